//! Runs CUDA programs on the CPU, for tests where there is no GPU.
//!
//! The library stands in for `libcuda`, `libcudnn`, `libcublas`, `libcurand` and `libnccl`: a program
//! finds it under their names (symbolic links in a folder of `LD_LIBRARY_PATH`), loads its
//! PTX into it and launches kernels, which are interpreted thread by thread. It has what the
//! operations of `candle-train-ops` and candle's own kernels need, no more; anything else is
//! an error that says what is missing.
//!
//! README.md says what it checks, and what it is not.
#![cfg(target_os = "linux")]
#![expect(unsafe_code, reason = "stands in for C libraries; each block says why it is sound")]

mod cublas;
mod cudnn;
mod curand;
mod driver;
mod gpu;
mod interpreter;
mod memory;
mod nccl;
mod ptx;
