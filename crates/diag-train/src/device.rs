//! Which device to run on.

use std::str::FromStr;

use crate::TrainError;

/// `--device`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The best device that the training operations support.
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
    /// Refuses what the training operations cannot run on.
    ///
    /// # Errors
    /// For a CUDA device.
    pub fn check(self) -> Result<(), TrainError> {
        match self {
            Self::Auto | Self::Cpu => Ok(()),
            Self::Cuda(index) => Err(TrainError::Device { device: format!("cuda:{index}") }),
        }
    }
}
