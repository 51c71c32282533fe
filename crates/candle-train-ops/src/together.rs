//! What training on several processes at once needs: sums over the parts of a batch
//! that they hold, and weight gradients as soon as they are finished.
//!
//! How the processes talk to each other is the caller's business.

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;

use candle_core::{Result, Tensor};

/// Adds up numbers over all processes that hold a part of the same batch.
///
/// Every process must make the same calls in the same order, and must get the same
/// bits back.
#[derive(Clone)]
pub struct BatchSum(Arc<dyn Fn(&mut [f64]) -> Result<()> + Send + Sync>);

impl BatchSum {
    /// `add_up` replaces every number by its sum over the processes.
    pub fn new(add_up: impl Fn(&mut [f64]) -> Result<()> + Send + Sync + 'static) -> Self {
        Self(Arc::new(add_up))
    }

    /// Replaces every number by its sum over the processes.
    ///
    /// # Errors
    /// As the function that it was made of.
    pub fn add_up(&self, numbers: &mut [f64]) -> Result<()> {
        (self.0)(numbers)
    }
}

impl fmt::Debug for BatchSum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BatchSum")
    }
}

type Observer = Box<dyn FnMut(&Tensor, &Tensor) -> Result<()>>;

thread_local! {
    static OBSERVER: RefCell<Option<Observer>> = const { RefCell::new(None) };
}

/// Runs `backward`, and calls `observer` with the weight and the gradient of every
/// convolution as soon as its gradient is computed, on the calling thread.
///
/// The gradient is that of one use of the weight; it still arrives in the gradient
/// store. Convolutions hold nearly all of a network's weights; other gradients are
/// not reported.
///
/// # Errors
/// An error of the observer makes the backward pass fail.
pub fn observe_weight_gradients<T>(
    observer: impl FnMut(&Tensor, &Tensor) -> Result<()> + 'static,
    backward: impl FnOnce() -> T,
) -> T {
    /// Takes the observer away again, whatever happens in between.
    struct Observing;
    impl Drop for Observing {
        fn drop(&mut self) {
            OBSERVER.with_borrow_mut(|slot| *slot = None);
        }
    }
    OBSERVER.with_borrow_mut(|slot| *slot = Some(Box::new(observer)));
    let _observing = Observing;
    backward()
}

/// Reports a finished weight gradient to whoever observes the pass.
pub(crate) fn report(weight: &Tensor, gradient: &Tensor) -> Result<()> {
    OBSERVER.with_borrow_mut(|slot| match slot {
        Some(observer) => observer(weight, gradient),
        None => Ok(()),
    })
}
