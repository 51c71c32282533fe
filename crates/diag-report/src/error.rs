//! The one error type of this crate.

use std::path::PathBuf;

use diag_data::DataError;
use diag_data::case::Split;
use diag_decision::DecisionError;
use diag_metrics::MetricsError;

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// No run folder was named.
    #[error("there is no run to report on")]
    NoRun,
    /// A file of the run folder cannot be used.
    #[error("the run folder is not complete: {}", run.display())]
    Run {
        /// The run folder.
        run: PathBuf,
        /// Which file, and why.
        source: DataError,
    },
    /// The run folder has no predictions for the part reported on.
    #[error("no predictions for the {split} part in {}", run.display())]
    NoRows {
        /// The part.
        split: Split,
        /// The run folder.
        run: PathBuf,
    },
    /// The predictions break a rule of the statistics.
    #[error("the predictions cannot be measured: {}", run.display())]
    Metrics {
        /// The run folder.
        run: PathBuf,
        /// Which rule.
        source: MetricsError,
    },
    /// The decided rule cannot be read or applied.
    #[error("the decided rule cannot be used: {}", run.display())]
    Decision {
        /// The run folder.
        run: PathBuf,
        /// Why.
        source: DecisionError,
    },
    /// A file is of another version of its format.
    #[error("format version {found}, where this program knows {known}: {}", file.display())]
    Version {
        /// The file.
        file: PathBuf,
        /// What it says; 0 where it says nothing.
        found: u64,
        /// The version of this program.
        known: u32,
    },
    /// Two files of a run that do not belong together.
    #[error("{} and {} do not belong together: they are of different {what}", file.display(), other.display())]
    Apart {
        /// In what they differ.
        what: &'static str,
        /// One file.
        file: PathBuf,
        /// The other one.
        other: PathBuf,
    },
    /// The supplied text is not a table of known keys.
    #[error("the supplied text is not valid: {why}")]
    Card {
        /// What is wrong, from the TOML reader.
        why: String,
    },
    /// A chart could not be drawn.
    #[error("cannot draw a chart: {why}")]
    Chart {
        /// The drawing library's own words.
        why: String,
    },
    /// A table could not be written as CSV.
    #[error("cannot write a table as CSV: {why}")]
    Csv {
        /// The writer's own words.
        why: String,
    },
    /// A picture could not be encoded.
    #[error("cannot encode a slice as PNG")]
    Picture {
        /// The encoder's own words.
        source: image::ImageError,
    },
}

impl ReportError {
    /// What the user can do about it.
    pub fn remedy(&self) -> String {
        match self {
            Self::NoRun => "name at least one run folder".into(),
            Self::Run { source: DataError::Io { path, .. }, .. }
                if ["predictions.parquet", "decision.json", "metrics.json"]
                    .iter()
                    .any(|name| path.ends_with(name)) =>
            {
                "run `diag-train evaluate RUN` first".into()
            }
            Self::Run { source, .. } => source.remedy(),
            Self::NoRows { split, .. } => {
                format!("run `diag-train evaluate RUN --split {split}` first, or choose another --split")
            }
            Self::Metrics { source, .. } => source.remedy(),
            Self::Decision { source, .. } => source.remedy(),
            Self::Version { .. } | Self::Apart { .. } => {
                "one of them was changed or is of another evaluation: run `diag-train evaluate RUN` again, and `diag-train explain RUN` for heat maps".into()
            }
            Self::Card { .. } => {
                "use only the keys of the reporting checklist, each with text: KEY = \"...\"".into()
            }
            Self::Chart { .. } => "check that epochs.jsonl holds finite numbers".into(),
            Self::Csv { .. } => "report this as a bug".into(),
            Self::Picture { .. } => "make the shards again with ct-ingest".into(),
        }
    }
}
