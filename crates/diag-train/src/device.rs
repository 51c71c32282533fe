//! Which device to run on.

use std::fmt;
use std::str::FromStr;

use candle_core::Device;

use crate::error::TrainError;

/// `--device`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceChoice {
    /// As `Gpu`, or else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// The first GPU; each of several processes on a machine takes the next one.
    Gpu,
    /// The CUDA device of this number, in every process.
    Cuda(usize),
}

impl FromStr for DeviceChoice {
    type Err = String;

    /// Reads `auto`, `cpu`, `cuda` or `cuda:N`.
    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.strip_prefix("cuda:").map(str::parse)) {
            ("auto", _) => Ok(Self::Auto),
            ("cpu", _) => Ok(Self::Cpu),
            ("cuda", _) => Ok(Self::Gpu),
            (_, Some(Ok(index))) => Ok(Self::Cuda(index)),
            _ => Err(format!("`{text}` is not auto, cpu, cuda or cuda:N")),
        }
    }
}

impl fmt::Display for DeviceChoice {
    /// As it is read.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Gpu => f.write_str("cuda"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

impl DeviceChoice {
    /// Replaces `auto` by the device that it selects, for several processes whose results are
    /// compared: all of them use a GPU, or all the CPU.
    ///
    /// # Errors
    /// As [`open`](Self::open), before any of them begins.
    pub fn resolved(self) -> Result<Self, TrainError> {
        match (self, self.open()?.is_cpu()) {
            (Self::Auto, true) => Ok(Self::Cpu),
            (Self::Auto, false) => Ok(Self::Gpu),
            (chosen, _) => Ok(chosen),
        }
    }

    /// The device. `auto` takes the first GPU that this build can use, or else the CPU.
    ///
    /// # Errors
    /// A CUDA device that is not there, or a build without the feature `cuda`.
    pub fn open(self) -> Result<Device, TrainError> {
        self.open_as(0)
    }

    /// As [`open`](Self::open), in the process of this number on its machine, from 0.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_as(self, local_rank: usize) -> Result<Device, TrainError> {
        let next = || gpu(of_local_rank(local_rank, n_gpus()));
        let refused = |device| move |reason| TrainError::Device { device, reason };
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Auto => Ok(next().unwrap_or(Device::Cpu)),
            Self::Gpu => next().map_err(refused("cuda".to_owned())),
            Self::Cuda(index) => gpu(index).map_err(refused(format!("cuda:{index}"))),
        }
    }
}

/// Modulo the number of GPUs: a launcher may show each process its own GPU alone, as number 0, and
/// several processes may have to share one.
fn of_local_rank(local_rank: usize, n_gpus: usize) -> usize {
    local_rank % n_gpus.max(1)
}

#[cfg(feature = "cuda")]
fn gpu(index: usize) -> Result<Device, String> {
    candle_train_ops::cuda::device(index).map_err(|err| err.to_string())
}

#[cfg(feature = "cuda")]
fn n_gpus() -> usize {
    candle_train_ops::cuda::n_devices().unwrap_or(0)
}

#[cfg(not(feature = "cuda"))]
fn gpu(_: usize) -> Result<Device, String> {
    Err("this program was built without the feature `cuda`".to_owned())
}

#[cfg(not(feature = "cuda"))]
fn n_gpus() -> usize {
    0
}

/// `cpu`, or the name of the GPU: devices of one kind compute the same bits.
pub(crate) fn kind(device: &Device) -> String {
    #[cfg(feature = "cuda")]
    if device.is_cuda() {
        return candle_train_ops::cuda::name(device).unwrap_or_else(|_| "unknown GPU".to_owned());
    }
    debug_assert!(device.is_cpu());
    "cpu".to_owned()
}

/// A device in words: `cpu, 2 threads, avx512` or `cuda, NVIDIA H100, 16 threads`. `ranks`
/// stands before the threads: `cpu, 2 ranks linked by TCP of 2 threads, avx512`.
pub(crate) fn describe(device: &Device, ranks: &str) -> String {
    let n_threads = rayon::current_num_threads();
    match kind(device).as_str() {
        "cpu" => format!("cpu, {ranks}{n_threads} threads, {}", instruction_set()),
        name => format!("cuda, {name}, {ranks}{n_threads} threads"),
    }
}

/// The vector instructions that the operations use on this processor.
fn instruction_set() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            return "avx512";
        }
        if is_x86_feature_detected!("avx2") {
            return "avx2";
        }
    }
    if cfg!(target_arch = "aarch64") { "neon" } else { "portable" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(not(feature = "cuda"))]
    fn a_build_without_cuda_refuses_a_gpu_and_takes_the_cpu_where_it_may_choose() {
        let err = DeviceChoice::Cuda(1).open().unwrap_err();
        assert!(err.to_string().contains("cuda:1") && err.to_string().contains("feature `cuda`"), "{err}");
        assert!(DeviceChoice::Auto.open().unwrap().is_cpu());
        assert_eq!(DeviceChoice::Auto.resolved().unwrap(), DeviceChoice::Cpu);
        assert!(DeviceChoice::Gpu.resolved().is_err());
    }

    #[test]
    fn a_device_is_read_as_it_is_written() {
        assert_eq!("cuda".parse(), Ok(DeviceChoice::Gpu));
        assert_eq!("cuda:2".parse(), Ok(DeviceChoice::Cuda(2)));
        for text in ["cuda:", "cuda:-1", "gpu"] {
            assert!(text.parse::<DeviceChoice>().is_err(), "{text}");
        }
        for text in ["auto", "cpu", "cuda", "cuda:3"] {
            assert_eq!(text.parse::<DeviceChoice>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn processes_of_a_machine_take_the_next_gpu_each() {
        for (local_rank, n_gpus, want) in [(0, 4, 0), (3, 4, 3), (5, 4, 1), (1, 1, 0), (2, 0, 0)] {
            assert_eq!(of_local_rank(local_rank, n_gpus), want, "rank {local_rank}, {n_gpus} GPUs");
        }
    }
}
