//! Maximum and average over sliding windows.
#![expect(unsafe_code, reason = "cuDNN is a C library; each block says why it is sound")]

use std::{ffi::c_void, ptr::from_ref};

use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp3, Layout, Result, Shape, Tensor,
    backend::BackendStorage,
    cuda_backend::cudarc::{
        cudnn::{result, sys},
        driver::{DevicePtr, DevicePtrMut},
    },
};

use super::{
    context::{Context, Number, Shape4, by_number, extents, numbers, unspecified},
    image_dims, not_on_the_cpu,
};
use crate::{
    activation::Dims,
    pool::{output_dims, square},
    window::Window,
};

const OP: &str = "cuda::pool2d";

/// As [`max_pool2d`](crate::max_pool2d), on a GPU. Which of several equal maxima gets
/// the gradient is cuDNN's choice, the same every time.
///
/// # Shapes
/// - `x_nchw`: `[N, C, H, W]`, f32 or f64
/// - result: `[N, C, (H + 2 padding - kernel) / stride + 1, same of W]`
///
/// # Errors
/// As [`max_pool2d`](crate::max_pool2d); a tensor that is not on a CUDA device.
pub fn max_pool2d(x_nchw: &Tensor, kernel: usize, stride: usize, padding: usize) -> Result<Tensor> {
    let mode = sys::cudnnPoolingMode_t::CUDNN_POOLING_MAX_DETERMINISTIC;
    pool2d(x_nchw, square(kernel, stride, padding), mode)
}

/// As [`avg_pool2d`](crate::avg_pool2d), on a GPU; padding counts as zeros.
///
/// # Shapes
/// As [`max_pool2d`].
///
/// # Errors
/// As [`max_pool2d`].
pub fn avg_pool2d(x_nchw: &Tensor, kernel: usize, stride: usize, padding: usize) -> Result<Tensor> {
    let mode = sys::cudnnPoolingMode_t::CUDNN_POOLING_AVERAGE_COUNT_INCLUDE_PADDING;
    pool2d(x_nchw, square(kernel, stride, padding), mode)
}

fn pool2d(x_nchw: &Tensor, window: Window, mode: sys::cudnnPoolingMode_t) -> Result<Tensor> {
    let input = image_dims(OP, x_nchw)?;
    let output = output_dims(OP, window, input)?;
    x_nchw.contiguous()?.apply_op1(Forward(Pool { window, mode, input, output }))
}

#[derive(Clone, Copy)]
struct Pool {
    window: Window,
    mode: sys::cudnnPoolingMode_t,
    input: Dims,
    output: Dims,
}

struct Forward(Pool);

impl CustomOp1 for Forward {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        not_on_the_cpu(OP)
    }

    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        by_number!(OP, x, forward(self.0, x, layout))
    }

    fn bwd(&self, x_nchw: &Tensor, y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        x_nchw.apply_op3_no_bwd(y, &dy.contiguous()?, &Backward(self.0)).map(Some)
    }
}

struct Backward(Pool);

impl CustomOp3 for Backward {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        not_on_the_cpu(OP)
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        y: &CudaStorage,
        y_layout: &Layout,
        dy: &CudaStorage,
        dy_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        by_number!(OP, x, backward(self.0, (x, x_layout), (y, y_layout), (dy, dy_layout)))
    }
}

/// The description of a pooling window, destroyed when dropped.
struct PoolingWindow(sys::cudnnPoolingDescriptor_t);

impl PoolingWindow {
    fn new(pool: Pool) -> Result<Self> {
        let Window { kernel_h, kernel_w, stride, padding } = pool.window;
        let kernel = extents(OP, [kernel_h, kernel_w])?;
        let [padding, stride] = extents(OP, [padding, stride])?;
        let window = Self(result::create_pooling_descriptor().map_err(candle_core::Error::wrap)?);
        let nan = sys::cudnnNanPropagation_t::CUDNN_PROPAGATE_NAN;
        // SAFETY: the descriptor is live; each of the three arrays has two extents.
        unsafe {
            result::set_pooling_descriptor(window.0, pool.mode, nan, 2, &kernel, &[padding; 2], &[stride; 2])
                .map_err(candle_core::Error::wrap)?;
        }
        Ok(window)
    }
}

impl Drop for PoolingWindow {
    fn drop(&mut self) {
        // SAFETY: made by `create_pooling_descriptor`, destroyed once.
        let _ = unsafe { sys::cudnnDestroyPoolingDescriptor(self.0) };
    }
}

fn forward<T: Number>(pool: Pool, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
    let context = Context::of(x.device())?;
    let stream = context.device.cuda_stream();
    let window = PoolingWindow::new(pool)?;
    let (x_shape, y_shape) = (Shape4::nchw::<T>(OP, pool.input)?, Shape4::nchw::<T>(OP, pool.output)?);
    let x = numbers::<T>(OP, x, layout)?;
    let mut y = unspecified::<T>(&context.device, pool.output.count())?;
    let (one, zero) = (T::ONE, T::ZERO);
    {
        let (x, _read) = x.device_ptr(&stream);
        let (y, _written) = y.device_ptr_mut(&stream);
        // SAFETY: the pointers hold as many numbers as their descriptors say and live
        // until the call is queued; memory is freed in the order of the same stream.
        unsafe {
            result::pooling_forward(
                context.raw.0,
                window.0,
                from_ref(&one).cast(),
                x_shape.0,
                x as *const c_void,
                from_ref(&zero).cast(),
                y_shape.0,
                y as *mut c_void,
            )
        }
        .map_err(candle_core::Error::wrap)?;
    }
    Ok((CudaStorage::wrap_cuda_slice(y, context.device.clone()), Shape::from(pool.output.to_vec())))
}

type Argument<'a> = (&'a CudaStorage, &'a Layout);

fn backward<T: Number>(
    pool: Pool,
    x: Argument<'_>,
    y: Argument<'_>,
    dy: Argument<'_>,
) -> Result<(CudaStorage, Shape)> {
    let context = Context::of(dy.0.device())?;
    let stream = context.device.cuda_stream();
    let window = PoolingWindow::new(pool)?;
    let (x_shape, y_shape) = (Shape4::nchw::<T>(OP, pool.input)?, Shape4::nchw::<T>(OP, pool.output)?);
    let (x, y) = (numbers::<T>(OP, x.0, x.1)?, numbers::<T>(OP, y.0, y.1)?);
    let dy = numbers::<T>(OP, dy.0, dy.1)?;
    let mut dx = unspecified::<T>(&context.device, pool.input.count())?;
    let (one, zero) = (T::ONE, T::ZERO);
    {
        let ((x, _read_x), (y, _read_y)) = (x.device_ptr(&stream), y.device_ptr(&stream));
        let (dy, _read_dy) = dy.device_ptr(&stream);
        let (dx, _written) = dx.device_ptr_mut(&stream);
        // SAFETY: as in `forward`; candle's gradient has the shape of the result.
        unsafe {
            sys::cudnnPoolingBackward(
                context.raw.0,
                window.0,
                from_ref(&one).cast(),
                y_shape.0,
                y as *const c_void,
                y_shape.0,
                dy as *const c_void,
                x_shape.0,
                x as *const c_void,
                from_ref(&zero).cast(),
                x_shape.0,
                dx as *mut c_void,
            )
        }
        .result()
        .map_err(candle_core::Error::wrap)?;
    }
    Ok((CudaStorage::wrap_cuda_slice(dx, context.device.clone()), Shape::from(pool.input.to_vec())))
}
