//! Runs CUDA programs on the CPU, for tests where there is no GPU.
//!
//! The library stands in for `libcuda`, `libcudnn`, `libcublas`, `libcurand` and `libnccl`: a program
//! finds it under their names (symbolic links in a folder of `LD_LIBRARY_PATH`), loads its
//! PTX into it and launches kernels, which are interpreted thread by thread. It has what the
//! operations of `candle-train-ops` and candle's own kernels need, no more; anything else is
//! an error that says what is missing.
//!
//! It is stricter than a GPU. Reading or writing outside an allocation, in freed memory or at
//! an address that is no multiple of the access, and sharing memory among threads without a
//! barrier between them, is a fault, which is printed with the kernel, the thread and the
//! line of its PTX. Memory that nobody wrote holds NaNs. Work of a stream runs as late as it
//! may, so that a forgotten wait shows.
//!
//! It says nothing about speed, and nothing about what cuDNN computes: its convolutions here
//! are plain loops.
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
