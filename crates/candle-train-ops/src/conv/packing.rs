//! Weights between the plain order of models (OIHW) and that of the direct
//! kernels, which want 16 channels of the written side next to each other.

use rayon::prelude::*;

use crate::{activation::BLOCK, buffer::Buffer, conv::Geometry};

/// Input channels that lie side by side for each pixel.
pub(super) fn input_block(geometry: &Geometry) -> usize {
    if geometry.input.c.is_multiple_of(BLOCK) { BLOCK } else { 1 }
}

/// OIHW to `[O/16][I/b][KH KW][b][16 O]`, for the forward pass; `b` is
/// [`input_block`].
pub(super) fn for_forward(weight: &[f32], geometry: &Geometry) -> Buffer<f32> {
    let (in_channels, taps) = (geometry.input.c, geometry.taps());
    let block = input_block(geometry);
    let mut packed = Buffer::unspecified(weight.len());
    packed
        .par_chunks_mut(BLOCK * in_channels * taps)
        .zip(weight.par_chunks(BLOCK * in_channels * taps))
        .for_each(|(packed, weight)| {
            for channel in 0..in_channels {
                let first = channel / block * taps * block + channel % block;
                for out_lane in 0..BLOCK {
                    let kernel = &weight[(out_lane * in_channels + channel) * taps..][..taps];
                    for (tap, value) in kernel.iter().enumerate() {
                        packed[(first + tap * block) * BLOCK + out_lane] = *value;
                    }
                }
            }
        });
    packed
}

/// OIHW to `[I/16][O/16][KH KW][16 O][16 I]`, for the gradient of the input; the
/// input channels are a multiple of 16.
pub(super) fn for_input_gradient(weight: &[f32], geometry: &Geometry) -> Buffer<f32> {
    let (in_channels, out_channels) = (geometry.input.c, geometry.output.c);
    let taps = geometry.taps();
    let mut packed = Buffer::unspecified(weight.len());
    packed.par_chunks_mut(BLOCK * out_channels * taps).enumerate().for_each(|(in_block, packed)| {
        for out_channel in 0..out_channels {
            let (out_block, out_lane) = (out_channel / BLOCK, out_channel % BLOCK);
            let first = out_channel * in_channels + in_block * BLOCK;
            let kernels = &weight[first * taps..][..BLOCK * taps];
            for (in_lane, kernel) in kernels.chunks_exact(taps).enumerate() {
                for (tap, value) in kernel.iter().enumerate() {
                    let row = (out_block * taps + tap) * BLOCK + out_lane;
                    packed[row * BLOCK + in_lane] = *value;
                }
            }
        }
    });
    packed
}

/// Sums of the weight gradient, `[O/16/step][I/b][step][KH KW][b][16 O]`, back to
/// OIHW.
pub(super) fn unpack_gradient(sums: &[f32], step: usize, geometry: &Geometry) -> Vec<f32> {
    let (in_channels, taps) = (geometry.input.c / geometry.groups, geometry.taps());
    let block = input_block(geometry);
    let rows_len = BLOCK * in_channels * taps;
    let mut weight = vec![0.0; sums.len()];
    weight.par_chunks_mut(rows_len).enumerate().for_each(|(out_block, weight)| {
        let sums = &sums[out_block / step * step * rows_len..][..step * rows_len];
        for channel in 0..in_channels {
            let piece = channel / block * step + out_block % step;
            let first = piece * taps * block + channel % block;
            for out_lane in 0..BLOCK {
                let kernel = &mut weight[(out_lane * in_channels + channel) * taps..][..taps];
                for (tap, value) in kernel.iter_mut().enumerate() {
                    *value = sums[(first + tap * block) * BLOCK + out_lane];
                }
            }
        }
    });
    weight
}
