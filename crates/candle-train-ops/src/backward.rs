//! Gradients of weights past candle's gradient store: sooner, and at less cost.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, TensorId};

type Take = Box<dyn FnMut(&Tensor, Tensor) -> Result<Option<Tensor>>>;

/// Who takes gradients in a pass, and which.
struct Taker {
    take: Take,
    /// Those of normalisations too, not of convolutions alone.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "normalisations on a GPU ask"))]
    all: bool,
}

thread_local! {
    static TAKER: RefCell<Option<Taker>> = const { RefCell::new(None) };
}

/// Runs `backward`, and offers `taker` the weight and the gradient of every convolution as
/// soon as its gradient is computed, on the calling thread.
///
/// The gradient is that of one use of the weight. What `taker` hands back goes to the gradient
/// store as ever; what it keeps does not, and costs none of the additions that candle makes
/// there. Convolutions hold nearly all of a network's weights; other gradients are not offered,
/// nor those of weights that are computed from variables: candle needs them to go on.
///
/// A taker inside another one's pass takes its place until it is done. Passes that a taker
/// itself runs are offered to nobody.
///
/// # Errors
/// An error of the taker makes the backward pass fail.
pub fn take_weight_gradients<T>(
    taker: impl FnMut(&Tensor, Tensor) -> Result<Option<Tensor>> + 'static,
    backward: impl FnOnce() -> T,
) -> T {
    with_taker(Taker { take: Box::new(taker), all: false }, backward)
}

fn with_taker<T>(taker: Taker, backward: impl FnOnce() -> T) -> T {
    /// Brings back who took before, whatever happens in between.
    struct Taking(Option<Taker>);
    impl Drop for Taking {
        fn drop(&mut self) {
            TAKER.set(self.0.take());
        }
    }
    let _taking = Taking(TAKER.replace(Some(taker)));
    backward()
}

/// The gradients that `loss.backward()` gives, sooner: candle adds every gradient to zeros,
/// which for the weights of convolutions means to write and read all of them twice more, and on
/// a GPU to queue two kernels more for each scale and shift of a normalisation.
///
/// Within [`take_weight_gradients`] it leaves them to that taker.
///
/// # Errors
/// As `loss.backward()`.
pub fn backward(loss: &Tensor) -> Result<GradStore> {
    if TAKER.with_borrow(Option::is_some) {
        return loss.backward();
    }
    let taken: Rc<RefCell<HashMap<TensorId, (Tensor, Tensor)>>> = Rc::default();
    let kept = Rc::clone(&taken);
    let taker = move |weight: &Tensor, gradient: Tensor| {
        let mut kept = kept.borrow_mut();
        // A weight that is used more than once.
        let gradient = match kept.remove(&weight.id()) {
            Some((_, before)) => (before + gradient)?,
            None => gradient,
        };
        kept.insert(weight.id(), (weight.clone(), gradient));
        Ok(None)
    };
    let taker = Taker { take: Box::new(taker), all: true };
    let mut gradients = with_taker(taker, || loss.backward())?;
    for (_, (weight, gradient)) in taken.take() {
        // An operation that offers nothing uses the weight too.
        let gradient = match gradients.remove(&weight) {
            Some(before) => (before + gradient)?,
            None => gradient,
        };
        gradients.insert(&weight, gradient);
    }
    Ok(gradients)
}

/// Offers a finished gradient of a convolution's weight to whoever takes them in this pass;
/// returns what is left for the gradient store.
pub(crate) fn offer(weight: &Tensor, gradient: Tensor) -> Result<Option<Tensor>> {
    offer_if(|_| true, weight, gradient)
}

/// As [`offer`], the gradient of a normalisation's scale or shift.
#[cfg(feature = "cuda")]
pub(crate) fn offer_affine(parameter: &Tensor, gradient: Tensor) -> Result<Option<Tensor>> {
    offer_if(|taker| taker.all, parameter, gradient)
}

fn offer_if(
    is_taken: impl Fn(&Taker) -> bool,
    variable: &Tensor,
    gradient: Tensor,
) -> Result<Option<Tensor>> {
    let taken = variable.is_variable() && TAKER.with_borrow(|taker| taker.as_ref().is_some_and(is_taken));
    let taker = if taken { TAKER.take() } else { None };
    let Some(mut taker) = taker else {
        return Ok(Some(gradient));
    };
    // Nothing is borrowed meanwhile: the taker may run passes of its own.
    let left = (taker.take)(variable, gradient);
    TAKER.set(Some(taker));
    left
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Activation, Conv2dSpec, conv2d};
    use candle_core::{Device, Var};

    fn var(shape: &[usize], seed: usize) -> Var {
        let count = shape.iter().product::<usize>();
        let numbers: Vec<f32> = (0..count).map(|i| ((i * 31 + seed) % 17) as f32 / 8.0 - 1.0).collect();
        Var::from_tensor(&Tensor::from_vec(numbers, shape, &Device::Cpu).unwrap()).unwrap()
    }

    #[test]
    fn gradients_are_those_of_candle_however_a_weight_is_used() {
        let spec = Conv2dSpec { padding: 1, ..Conv2dSpec::default() };
        let image = var(&[2, 4, 5, 5], 1);
        let [once, twice, doubled] = [2, 3, 4].map(|seed| var(&[4, 4, 3, 3], seed));
        let loss = || {
            let x = Activation::from_nchw(&image).unwrap();
            let computed = (doubled.as_tensor() * 2.0).unwrap();
            let x = conv2d(&x, &computed, spec).unwrap();
            let x = conv2d(&conv2d(&x, &once, spec).unwrap(), &twice, spec).unwrap();
            let y = conv2d(&x, &twice, spec).unwrap().to_nchw().unwrap();
            // What is no convolution uses a weight too.
            (y.sqr().unwrap().sum_all().unwrap() + once.sqr().unwrap().sum_all().unwrap()).unwrap()
        };
        let (got, want) = (backward(&loss()).unwrap(), loss().backward().unwrap());
        for var in [&image, &once, &twice, &doubled] {
            let flat =
                |store: &GradStore| store.get(var).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(flat(&got), flat(&want));
        }
    }

    #[test]
    fn a_gradient_that_is_taken_is_not_stored() {
        let (image, weight) = (var(&[1, 2, 4, 4], 1), var(&[2, 2, 1, 1], 2));
        let x = Activation::from_nchw(&image).unwrap();
        let y = conv2d(&x, &weight, Conv2dSpec::default()).unwrap().to_nchw().unwrap();
        let taken = take_weight_gradients(|_, _| Ok(None), || y.sum_all().unwrap().backward()).unwrap();
        assert!(taken.get(&weight).is_none() && taken.get(&image).is_some());
        let loss = || y.sum_all().unwrap();
        // The taker of the pass keeps it, whichever way that is run, and comes back afterwards.
        let taken = take_weight_gradients(
            |_, _| Ok(None),
            || {
                take_weight_gradients(|_, _| Ok(None), || loss().backward()).unwrap();
                backward(&loss())
            },
        );
        assert!(taken.unwrap().get(&weight).is_none());
        let failed =
            take_weight_gradients(|_, _| candle_core::bail!("no room"), || y.sum_all().unwrap().backward());
        assert!(failed.unwrap_err().to_string().contains("no room"));
    }
}
