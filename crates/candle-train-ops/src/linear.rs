//! The fully connected layer.

use candle_core::{CpuStorage, CustomOp3, DType, Device, Layout, Result, Shape, Tensor};

use crate::{
    OpError,
    element::{Element, check_kind, check_shape, storage_slice, with_values},
    kernels::gemm::{Extents, Matrix, multiply},
    together,
};

const OP: &str = "linear";

/// `x weight^T + bias`; on a GPU by candle's own operations.
///
/// # Shapes
/// - `x_nc`: `[N, C]`, f32 or f64
/// - `weight_oc`: `[O, C]`, `bias_o`: `[O]`, dtype of `x_nc`
/// - result: `[N, O]`
///
/// # Errors
/// Shapes that do not fit, an empty axis, another dtype or device.
///
/// ```
/// use candle_core::{Device, Tensor};
/// # fn main() -> candle_core::Result<()> {
/// let x_nc = Tensor::new(&[[1f32, 2.]], &Device::Cpu)?;
/// let weight_oc = Tensor::new(&[[3f32, 4.], [5., 6.]], &Device::Cpu)?;
/// let bias_o = Tensor::new(&[0.5f32, -0.5], &Device::Cpu)?;
/// let y = candle_train_ops::linear(&x_nc, &weight_oc, &bias_o)?;
/// assert_eq!(y.to_vec2::<f32>()?, [[11.5, 16.5]]);
/// # Ok(())
/// # }
/// ```
pub fn linear(x_nc: &Tensor, weight_oc: &Tensor, bias_o: &Tensor) -> Result<Tensor> {
    if x_nc.device().is_cuda() {
        return x_nc.matmul(&weight_oc.t()?)?.broadcast_add(bias_o);
    }
    let dtype = match x_nc.dtype() {
        DType::F64 => DType::F64,
        _ => DType::F32,
    };
    let arguments = [("x_nc", x_nc), ("weight_oc", weight_oc), ("bias_o", bias_o)];
    for (argument, tensor) in arguments {
        check_kind(OP, argument, tensor, dtype)?;
        if tensor.elem_count() == 0 {
            return Err(OpError::Empty { op: OP, argument, got: tensor.dims().to_vec() }.into());
        }
    }
    let &[n, c] = x_nc.dims() else {
        return Err(OpError::Shape {
            op: OP,
            argument: "x_nc",
            got: x_nc.dims().to_vec(),
            expected: "[N, C]".to_owned(),
        }
        .into());
    };
    let o = bias_o.elem_count();
    check_shape(OP, "weight_oc", weight_oc, &[o, c])?;
    check_shape(OP, "bias_o", bias_o, &[o])?;
    let (x_nc, weight_oc) = (x_nc.contiguous()?, weight_oc.contiguous()?);
    x_nc.apply_op3(&weight_oc, &bias_o.contiguous()?, Linear { n, c, o })
}

struct Linear {
    n: usize,
    c: usize,
    o: usize,
}

impl Linear {
    fn forward<T: Element>(&self, x: &[T], weight: &[T], bias: &[T]) -> CpuStorage {
        let mut y = bias.repeat(self.n);
        let extents = Extents { rows: self.n, cols: self.o, depth: self.c };
        let (x, weight) = (Matrix::rows(x, self.c), Matrix::transposed(weight, self.c));
        multiply(&mut y, self.o, x, weight, extents, true);
        T::to_cpu_storage_owned(y)
    }

    fn backward<T: Element>(
        &self,
        x_nc: &Tensor,
        weight_oc: &Tensor,
        bias_o: &Tensor,
        gradient: &Tensor,
    ) -> Result<[Option<Tensor>; 3]> {
        let &Self { n, c, o } = self;
        with_values::<T, _>(OP, gradient, |dy| {
            let mut gradients = [None, None, None];
            if x_nc.track_op() {
                let mut dx = vec![T::zero(); n * c];
                let extents = Extents { rows: n, cols: c, depth: o };
                with_values::<T, _>(OP, weight_oc, |weight| {
                    let (dy, weight) = (Matrix::rows(dy, o), Matrix::rows(weight, c));
                    multiply(&mut dx, c, dy, weight, extents, false);
                    Ok(())
                })?;
                gradients[0] = Some(Tensor::from_vec(dx, (n, c), &Device::Cpu)?);
            }
            if weight_oc.track_op() {
                let dw = with_values::<T, _>(OP, x_nc, |x| {
                    Ok(together::sum_of_parts(n, |rows| {
                        let mut dw = vec![T::zero(); o * c];
                        let extents = Extents { rows: o, cols: c, depth: rows.len() };
                        let dy = Matrix::transposed(&dy[together::of_images(dy, n, &rows)], o);
                        let x = Matrix::rows(&x[together::of_images(x, n, &rows)], c);
                        multiply(&mut dw, c, dy, x, extents, false);
                        dw
                    }))
                })?;
                gradients[1] = Some(Tensor::from_vec(dw, (o, c), &Device::Cpu)?);
            }
            if bias_o.track_op() {
                let db = together::sum_of_parts(n, |rows| {
                    let mut db = vec![T::zero(); o];
                    for dy in dy[together::of_images(dy, n, &rows)].chunks_exact(o) {
                        for (db, dy) in db.iter_mut().zip(dy) {
                            *db += *dy;
                        }
                    }
                    db
                });
                gradients[2] = Some(Tensor::from_vec(db, o, &Device::Cpu)?);
            }
            Ok(gradients)
        })
    }
}

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let y = match x {
            CpuStorage::F64(_) => self.forward::<f64>(
                storage_slice(OP, x, x_layout)?,
                storage_slice(OP, weight, weight_layout)?,
                storage_slice(OP, bias, bias_layout)?,
            ),
            _ => self.forward::<f32>(
                storage_slice(OP, x, x_layout)?,
                storage_slice(OP, weight, weight_layout)?,
                storage_slice(OP, bias, bias_layout)?,
            ),
        };
        Ok((y, Shape::from((self.n, self.o))))
    }

    fn bwd(
        &self,
        x_nc: &Tensor,
        weight_oc: &Tensor,
        bias_o: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [dx, dw, db] = match gradient.dtype() {
            DType::F64 => self.backward::<f64>(x_nc, weight_oc, bias_o, gradient)?,
            _ => self.backward::<f32>(x_nc, weight_oc, bias_o, gradient)?,
        };
        Ok((dx, dw, db))
    }
}
