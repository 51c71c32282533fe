//! Training-grade operations for [candle](candle_core) on the CPU: convolution,
//! pooling, batch normalisation, linear layer and optimisers, each with a backward
//! pass that is both correct and fast.
//!
//! In go candle tensors (`[N, C, H, W]`, f32, or f64 to check gradients), out come
//! candle tensors; between [`Activation::from_nchw`] and [`Activation::to_nchw`] or
//! [`Activation::global_avg_pool`] the numbers lie as the kernels like them. The
//! results are the same bit for bit on any number of threads of the rayon pool they
//! run in. Processes that each hold a part of a batch get the statistics of the whole
//! through a [`BatchSum`]. Bad arguments are errors ([`OpError`]), never panics.
//!
//! The crate refuses to know what a network is: no layers, no initialisation, no
//! losses, no files.

mod activation;
mod arithmetic;
mod backward;
mod buffer;
mod conv;
#[cfg(feature = "cuda")]
pub mod cuda;
mod element;
mod error;
mod joining;
mod kernels;
mod linear;
mod norm;
pub mod optim;
mod pool;
mod relu;
mod together;
mod window;

pub use activation::Activation;
pub use arithmetic::{bf16_available, set_bf16, set_winograd};
pub use backward::{backward, take_weight_gradients};
pub use buffer::release_buffers;
pub use conv::{Conv2dSpec, FoldedConv2d, conv2d};
pub use error::OpError;
pub use joining::{concat_channels, pad_end};
pub use linear::linear;
pub use norm::{Act, BatchStatistics, RunningStats, batch_norm};
pub use pool::{avg_pool2d, max_pool2d};
pub use relu::relu;
pub use together::{BatchSum, batch_parts, scale_jointly, set_batch_parts};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExample;
