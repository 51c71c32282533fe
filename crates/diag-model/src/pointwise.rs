//! Functions of one number that keep their digits near 0 and far from it.
//!
//! candle has no `ln_1p` or `exp_m1`, and composing them from `ln` and `exp` loses
//! the digits that the effective number of samples depends on.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

/// A function applied to every number of a small f64 tensor, differentiable.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pointwise {
    /// `exp(x) - 1`.
    ExpM1,
    /// `ln(1 + x)`, x > -1.
    Ln1p,
    /// `1 / (1 + exp(-x))`.
    Sigmoid,
    /// `ln(1 + exp(x))`.
    Softplus,
}

impl Pointwise {
    /// Applies it to a contiguous f64 tensor.
    pub fn of(self, x: &Tensor) -> Result<Tensor> {
        x.contiguous()?.apply_op1(self)
    }

    fn value(self, x: f64) -> f64 {
        match self {
            Self::ExpM1 => x.exp_m1(),
            Self::Ln1p => x.ln_1p(),
            Self::Sigmoid => sigmoid(x),
            Self::Softplus => x.max(0.0) + (-x.abs()).exp().ln_1p(),
        }
    }

    fn derivative(self, x: f64) -> f64 {
        match self {
            Self::ExpM1 => x.exp(),
            Self::Ln1p => 1.0 / (1.0 + x),
            Self::Sigmoid => sigmoid(x) * sigmoid(-x),
            Self::Softplus => sigmoid(x),
        }
    }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

impl CustomOp1 for Pointwise {
    fn name(&self) -> &'static str {
        "pointwise"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let values = storage.as_slice::<f64>()?;
        let Some((start, end)) = layout.contiguous_offsets() else {
            candle_core::bail!("pointwise: argument is not contiguous");
        };
        let result = values[start..end].iter().map(|&x| self.value(x)).collect();
        Ok((CpuStorage::F64(result), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let slopes: Vec<f64> =
            x.flatten_all()?.to_vec1::<f64>()?.into_iter().map(|x| self.derivative(x)).collect();
        (gradient * Tensor::from_vec(slopes, x.shape(), x.device())?).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    #[track_caller]
    fn check(function: Pointwise, x: f64, want: f64, want_slope: f64) {
        let var = Var::new(x, &Device::Cpu).unwrap();
        let y = function.of(&var).unwrap();
        let slope = y.backward().unwrap().get(&var).unwrap().to_scalar::<f64>().unwrap();
        let near = |got: f64, want: f64| (got - want).abs() <= 1e-12 * want.abs();
        let y = y.to_scalar::<f64>().unwrap();
        assert!(near(y, want), "{function:?}({x}) = {y}, expected {want}");
        assert!(near(slope, want_slope), "slope of {function:?} at {x} = {slope}, expected {want_slope}");
    }

    #[test]
    fn digits_survive_near_zero() {
        check(Pointwise::ExpM1, -1e-12, -9.999999999995e-13, 0.999999999999);
        check(Pointwise::Ln1p, -1e-12, -1.0000000000005e-12, 1.000000000001);
    }

    #[test]
    fn far_arguments_stay_finite() {
        check(Pointwise::Softplus, 1e4, 1e4, 1.0);
        check(Pointwise::Softplus, -1e4, 0.0, 0.0);
        check(Pointwise::Sigmoid, -700.0, (-700f64).exp(), (-700f64).exp());
    }
}
