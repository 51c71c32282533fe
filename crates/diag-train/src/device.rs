//! Which device to run on.

use std::str::FromStr;

use candle_core::Device;

use crate::TrainError;

/// `--device`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first GPU, or else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// The CUDA device of this number.
    Cuda(usize),
}

impl FromStr for DeviceChoice {
    type Err = String;

    /// Reads `auto`, `cpu` or `cuda:N`.
    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.strip_prefix("cuda:").map(str::parse)) {
            ("auto", _) => Ok(Self::Auto),
            ("cpu", _) => Ok(Self::Cpu),
            (_, Some(Ok(index))) => Ok(Self::Cuda(index)),
            _ => Err(format!("`{text}` is not auto, cpu or cuda:N")),
        }
    }
}

impl DeviceChoice {
    /// The device. `auto` takes the first GPU that this build can use, or else the CPU.
    ///
    /// # Errors
    /// A CUDA device that is not there, or a build without the feature `cuda`.
    pub fn open(self) -> Result<Device, TrainError> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Auto => Ok(gpu(0).unwrap_or(Device::Cpu)),
            Self::Cuda(index) => {
                gpu(index).map_err(|reason| TrainError::Device { device: format!("cuda:{index}"), reason })
            }
        }
    }
}

#[cfg(feature = "cuda")]
fn gpu(index: usize) -> Result<Device, String> {
    candle_train_ops::cuda::device(index).map_err(|err| err.to_string())
}

#[cfg(not(feature = "cuda"))]
fn gpu(_: usize) -> Result<Device, String> {
    Err("this program was built without the feature `cuda`".to_owned())
}

/// A device in words: `cpu, 2 threads, avx512` or `cuda, NVIDIA H100, 16 threads`.
pub(crate) fn describe(device: &Device) -> String {
    let n_threads = rayon::current_num_threads();
    #[cfg(feature = "cuda")]
    if device.is_cuda() {
        let name = candle_train_ops::cuda::name(device).unwrap_or_else(|_| "unknown GPU".to_owned());
        return format!("cuda, {name}, {n_threads} threads");
    }
    debug_assert!(device.is_cpu());
    format!("cpu, {n_threads} threads, {}", instruction_set())
}

/// The vector instructions that the operations use on this processor.
pub(crate) fn instruction_set() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            return "avx512";
        }
        if is_x86_feature_detected!("avx2") {
            return "avx2";
        }
    }
    "portable"
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
    }

    #[test]
    fn a_device_is_read_as_it_is_written() {
        assert_eq!("cuda:2".parse(), Ok(DeviceChoice::Cuda(2)));
        for text in ["cuda", "cuda:", "cuda:-1", "gpu"] {
            assert!(text.parse::<DeviceChoice>().is_err(), "{text}");
        }
    }
}
