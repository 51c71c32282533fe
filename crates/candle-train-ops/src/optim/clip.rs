//! Clipping of gradients by their common norm.

use candle_core::{DType, Result, Var, backprop::GradStore};

use crate::element::{check_kind, with_values};

/// Scales the gradients of `named_vars` so that their common L2 norm is at most
/// `max_norm`, as PyTorch's `clip_grad_norm_`; returns the norm before.
///
/// Variables without a gradient are left out. The order of `named_vars` fixes the
/// order of summation, so the result does not depend on the number of threads.
///
/// # Errors
/// A gradient that is not f32 on the CPU (or, with the feature `cuda`, on a GPU).
pub fn clip_grad_norm(named_vars: &[(String, Var)], grads: &mut GradStore, max_norm: f64) -> Result<f64> {
    const OP: &str = "clip_grad_norm";
    let mut sum_of_squares = 0f64;
    #[cfg(feature = "cuda")]
    let mut on_gpu = crate::cuda::Changes::default();
    for (_, var) in named_vars {
        if let Some(gradient) = grads.get(var) {
            #[cfg(feature = "cuda")]
            if gradient.device().is_cuda() {
                on_gpu.push(OP, gradient, gradient, &[], (1.0, 0.0))?;
                continue;
            }
            check_kind(OP, "gradient", gradient, DType::F32)?;
            sum_of_squares += with_values(OP, gradient, |values: &[f32]| {
                Ok(values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>())
            })?;
        }
    }
    #[cfg(feature = "cuda")]
    {
        sum_of_squares += on_gpu.sum_of_squares()?;
    }
    let norm = sum_of_squares.sqrt();
    let scale = max_norm / (norm + 1e-6);
    if scale < 1.0 {
        for (_, var) in named_vars {
            if let Some(gradient) = grads.remove(var) {
                grads.insert(var, gradient.affine(scale, 0.0)?);
            }
        }
    }
    Ok(norm)
}
