//! What can be wrong with the arguments of an operation.

/// Arguments that an operation refuses. Reaches the caller as the text of a
/// [`candle_core::Error`], followed by the remedy; nothing in this crate panics on
/// data.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpError {
    /// A tensor has the wrong number of axes or the wrong extent along one.
    #[error("{op}: {argument} has shape {got:?}, expected {expected}")]
    Shape {
        /// Operation that refuses.
        op: &'static str,
        /// Name of the argument.
        argument: &'static str,
        /// The shape it has.
        got: Vec<usize>,
        /// The shape it should have, in words.
        expected: String,
    },
    /// A batch without samples, or an axis of extent 0.
    #[error("{op}: {argument} is empty, shape {got:?}")]
    Empty {
        /// Operation that refuses.
        op: &'static str,
        /// Name of the argument.
        argument: &'static str,
        /// The shape it has.
        got: Vec<usize>,
    },
    /// The window does not fit into the padded image.
    #[error("{op}: window {window:?} is larger than the padded image {image:?}")]
    WindowTooLarge {
        /// Operation that refuses.
        op: &'static str,
        /// Height and width of the window in pixels.
        window: (usize, usize),
        /// Height and width of the image in pixels, padding included.
        image: (usize, usize),
    },
    /// A stride, group count or kernel that makes no sense.
    #[error("{op}: {reason}")]
    Setting {
        /// Operation that refuses.
        op: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// An element type this crate has no kernel for, or two that differ.
    #[error("{op}: {argument} is {got}, expected {expected}")]
    DType {
        /// Operation that refuses.
        op: &'static str,
        /// Name of the argument.
        argument: &'static str,
        /// Element type found.
        got: String,
        /// Element types allowed.
        expected: String,
    },
    /// The tensor does not live in the memory of the CPU.
    #[error("{op}: {argument} is not on the CPU")]
    Device {
        /// Operation that refuses.
        op: &'static str,
        /// Name of the argument.
        argument: &'static str,
    },
    /// Saved optimiser state that does not belong to the variables.
    #[error("optimiser state: {reason}")]
    State {
        /// What is missing or does not fit.
        reason: String,
    },
}

impl OpError {
    /// What the caller can do about it.
    pub fn remedy(&self) -> String {
        match self {
            Self::Shape { argument, expected, .. } => format!("pass {argument} as {expected}"),
            Self::Empty { argument, .. } => {
                format!("pass at least one sample, channel and pixel in {argument}")
            }
            Self::WindowTooLarge { .. } => "use a larger image, a smaller window or more padding".to_owned(),
            Self::Setting { op, .. } => format!("change the settings of {op}"),
            Self::DType { argument, expected, .. } => format!("convert {argument} to {expected} first"),
            Self::Device { argument, .. } => {
                format!("move {argument} to Device::Cpu; NVIDIA GPUs need the feature `cuda`")
            }
            Self::State { .. } => {
                "load the state that was saved with the same variables and optimiser".to_owned()
            }
        }
    }
}

impl From<OpError> for candle_core::Error {
    fn from(error: OpError) -> Self {
        Self::wrap(format!("{error}; {}", error.remedy()))
    }
}

/// Outcome of checking arguments.
pub(crate) type Checked<T> = Result<T, OpError>;
