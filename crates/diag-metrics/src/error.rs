//! The one error type of this crate.

/// Why an input was refused.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum MetricsError {
    /// There is nothing to measure.
    #[error("there are no rows to measure")]
    Empty,
    /// Fewer than two classes.
    #[error("{n_classes} classes: a classifier needs at least 2")]
    TooFewClasses {
        /// What was given.
        n_classes: usize,
    },
    /// Two inputs that belong together differ in length.
    #[error("{what}: {got} values where {want} are needed")]
    WrongLength {
        /// Which input.
        what: &'static str,
        /// Its length.
        got: usize,
        /// The length that fits.
        want: usize,
    },
    /// A row is not a probability distribution.
    #[error("row {row} is not a probability distribution: {why}")]
    NotProbabilities {
        /// Index of the row.
        row: usize,
        /// What was wrong with it.
        why: String,
    },
    /// A label names no class.
    #[error("row {row} has label {label}, but there are {n_classes} classes")]
    LabelOutOfRange {
        /// Index of the row.
        row: usize,
        /// The label.
        label: usize,
        /// Number of classes.
        n_classes: usize,
    },
    /// One case carries two labels.
    #[error("case {case} has rows of class {first} and of class {second}")]
    MixedLabels {
        /// Index of the case.
        case: usize,
        /// Label of its first row.
        first: usize,
        /// A different label of a later row.
        second: usize,
    },
    /// A case number is skipped, so that a case would have no rows.
    #[error("case {case} has no rows")]
    EmptyCase {
        /// Index of the case.
        case: usize,
    },
    /// A setting is outside its range.
    #[error("{what} is {got}, but must be {range}")]
    OutOfRange {
        /// Which setting.
        what: &'static str,
        /// Its value.
        got: f64,
        /// The allowed range in words.
        range: &'static str,
    },
}

impl MetricsError {
    /// What the caller can do about it.
    pub fn remedy(&self) -> String {
        match self {
            Self::Empty => "give predictions of at least one case".into(),
            Self::TooFewClasses { .. } => "give a probability for each of the classes".into(),
            Self::WrongLength { what, .. } => format!("give {what} in the length that fits"),
            Self::NotProbabilities { .. } => "give softmax outputs: finite, 0 to 1, summing to 1".into(),
            Self::LabelOutOfRange { .. } => "use the label set that the model was trained with".into(),
            Self::MixedLabels { .. } => "give every slice of a case that case's label".into(),
            Self::EmptyCase { .. } => "number the cases 0, 1, 2 and so on without gaps".into(),
            Self::OutOfRange { what, range, .. } => format!("set {what} to {range}"),
        }
    }
}
