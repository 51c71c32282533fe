//! Sums over processes of what lies on a GPU.

use candle_core::{Result, cuda_backend::cudarc::driver::CudaSlice};

use super::context::Context;
use crate::BatchSum;

impl BatchSum {
    /// As [`add_up`](Self::add_up), of numbers on a GPU, in the order of its stream.
    pub(super) fn add_up_on(&self, context: &Context, sums: &mut CudaSlice<f64>) -> Result<()> {
        let wrap = candle_core::Error::wrap;
        #[cfg(feature = "nccl")]
        if let Some(nccl) = self.nccl() {
            if self.is_left_out() {
                context.stream.memset_zeros(sums).map_err(wrap)?;
            }
            return nccl.add_up(&context.stream, context.address_of_sums(sums), sums.len());
        }
        let mut numbers = context.stream.clone_dtoh(sums).map_err(wrap)?;
        self.add_up(&mut numbers)?;
        context.stream.memcpy_htod(&numbers, sums).map_err(wrap)
    }
}
