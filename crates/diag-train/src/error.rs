//! The one error type of this crate.

use std::path::PathBuf;

use diag_data::DataError;
use diag_decision::DecisionError;
use diag_metrics::MetricsError;
use diag_model::ModelError;

/// Why training or evaluation stopped.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// Shards or the run folder could not be read or written.
    #[error("shards or run folder")]
    Data(#[from] DataError),
    /// The network, the loss or a saved model was refused.
    #[error("network, loss or saved model")]
    Model(#[from] ModelError),
    /// Predictions could not be measured.
    #[error("measuring the predictions")]
    Metrics(#[from] MetricsError),
    /// The decided rule cannot be fitted, read or applied.
    #[error("decided rule")]
    Decision(#[from] DecisionError),
    /// A tensor operation failed.
    #[error("a tensor operation failed")]
    Tensor(#[from] candle_core::Error),
    /// The recipe is not TOML, or has an unknown or missing key.
    #[error("recipe {} cannot be read: {reason}", file.display())]
    Recipe {
        /// The recipe.
        file: PathBuf,
        /// What is wrong, and where.
        reason: String,
    },
    /// A value of the recipe is outside its range.
    #[error("recipe: {key} = {value}, expected {expected}")]
    Setting {
        /// The key, with its table.
        key: &'static str,
        /// The value found.
        value: String,
        /// What it may be.
        expected: &'static str,
    },
    /// The device cannot be used.
    #[error("device {device} cannot be used: {reason}")]
    Device {
        /// As it was named.
        device: String,
        /// What is missing.
        reason: String,
    },
    /// There is nothing to train on or to evaluate.
    #[error("no {what} slices in the shards")]
    NoSlices {
        /// Which part is missing.
        what: String,
    },
    /// The run folder holds a run already.
    #[error("the folder holds a run already: {}", run.display())]
    RunExists {
        /// The run folder.
        run: PathBuf,
    },
    /// There is no run to continue or to evaluate.
    #[error("no {what} in {}", run.display())]
    NoRun {
        /// The file that is missing.
        what: &'static str,
        /// The run folder.
        run: PathBuf,
    },
    /// The run was not evaluated, so that nothing was decided.
    #[error("no decision.json in {}", run.display())]
    NotEvaluated {
        /// The run folder.
        run: PathBuf,
    },
    /// A resume with another recipe or other shards.
    #[error("{what} changed since the run in {} began ({how})", run.display())]
    Changed {
        /// The recipe or the shards.
        what: &'static str,
        /// Every change.
        how: String,
        /// The run folder.
        run: PathBuf,
    },
    /// Shards that are not those that the run was trained on.
    #[error("not the shards of the run (hash {found}, the run's {recorded}): {}", shards.display())]
    OtherShards {
        /// The shards that were passed.
        shards: PathBuf,
        /// Their hash.
        found: String,
        /// The hash that the run recorded.
        recorded: String,
    },
    /// Another cohort that was not read as the network's own.
    #[error("the network cannot be validated on these shards ({differences}; here: the network's): {}", shards.display())]
    OtherReader {
        /// The other cohort.
        shards: PathBuf,
        /// Every setting that differs.
        differences: String,
    },
    /// The shards of the run, where another cohort is to be validated on.
    #[error("these are the shards that the run was trained on: {}", shards.display())]
    OwnShards {
        /// The shards.
        shards: PathBuf,
    },
    /// Another cohort that holds what the network was trained on.
    #[error("the network has seen cases of these shards: {cases}: {}", shards.display())]
    SeenBefore {
        /// The other cohort.
        shards: PathBuf,
        /// Each case with what it shares with which one.
        cases: String,
    },
    /// Two files of a run that do not belong together.
    #[error("{} and {} are of different {what}", file.display(), other.display())]
    Apart {
        /// In what they differ.
        what: &'static str,
        /// One file.
        file: PathBuf,
        /// The other one.
        other: PathBuf,
    },
    /// A loss or gradient is not a finite number.
    #[error(
        "training diverged in epoch {epoch}, step {step}: {term} of head `{head}` is not a finite number"
    )]
    Diverged {
        /// Epoch, from 1.
        epoch: u32,
        /// Step, from 1.
        step: u64,
        /// Head whose loss is not finite; "all" for the gradient.
        head: String,
        /// Term of the loss, or the gradient norm.
        term: String,
    },
    /// The user stopped the run.
    #[error("interrupted {place}; what was done is kept")]
    Interrupted {
        /// Where it was.
        place: String,
    },
    /// The user stopped an explanation.
    #[error("stopped by request; nothing was written")]
    Stopped,
    /// The file with true lesions belongs to other data.
    #[error("{problem}: {}", file.display())]
    Truth {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The environment variables of a launcher are invalid or not supported.
    #[error("{problem}")]
    Launch {
        /// What is wrong.
        problem: String,
        /// What to do about it.
        remedy: &'static str,
    },
    /// Not all ranks connected.
    #[error("rank {rank} could not connect to the others at {address}")]
    Rendezvous {
        /// Host and port of rank 0.
        address: String,
        /// This rank.
        rank: usize,
        /// What happened.
        source: std::io::Error,
    },
    /// The connection to another rank was lost.
    #[error("lost rank {rank}, which died or cannot be reached")]
    LostRank {
        /// The rank that is gone.
        rank: usize,
        /// How this was noticed.
        source: std::io::Error,
    },
    /// Another rank failed and reported it.
    #[error("stopped because rank {rank} failed")]
    OtherRank {
        /// The rank that failed.
        rank: usize,
    },
    /// Ranks that should be equal are not.
    #[error("rank {rank} has another {what} than rank 0")]
    RanksDiffer {
        /// The first rank that differs.
        rank: usize,
        /// What differs.
        what: &'static str,
    },
    /// More ranks than a batch can be divided among.
    #[error("a batch of {batch_size} slices cannot be divided among {n_ranks} ranks")]
    TooManyRanks {
        /// Of the recipe, or all training slices where there are fewer.
        batch_size: usize,
        /// How many were started.
        n_ranks: usize,
    },
    /// A document asks for a table that cannot be made.
    #[error("line {line}: {reason}: {}", file.display())]
    Document {
        /// The document.
        file: PathBuf,
        /// Line of the marker, from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// The thread pool could not be made.
    #[error("cannot start {n_threads} threads: {reason}")]
    Threads {
        /// How many were asked for.
        n_threads: usize,
        /// The system's answer.
        reason: String,
    },
}

impl TrainError {
    /// Whether all ranks of a run get this error at the same point, so that each can exit
    /// without waiting; after any other, the rank that gets it must abort the rest.
    pub fn is_common(&self) -> bool {
        matches!(
            self,
            Self::Diverged { .. }
                | Self::Interrupted { .. }
                | Self::OtherRank { .. }
                | Self::RanksDiffer { .. }
                | Self::TooManyRanks { .. }
        )
    }

    /// What the user can do about it.
    pub fn remedy(&self) -> String {
        match self {
            Self::Data(err) => err.remedy(),
            Self::Model(err) => err.remedy(),
            Self::Metrics(err) => err.remedy(),
            Self::Decision(err) => err.remedy(),
            Self::Tensor(_) => "lower `batch_size` if memory is short; else report it as a bug".into(),
            Self::Recipe { .. } => "compare with data/recipes/default.toml; unknown keys are refused".into(),
            Self::Setting { key, .. } => format!("change `{key}` in the recipe"),
            Self::Device { .. } => {
                "pass --device cpu or --device auto, or build with --features cuda on a machine with an NVIDIA driver"
                    .into()
            }
            Self::NoSlices { what } => format!("pass shards with {what} slices, made by ct-ingest"),
            Self::RunExists { .. } => "pass --resume to continue it, or another --out".into(),
            Self::NoRun { .. } => "pass the folder of a run that diag-train fit made".into(),
            Self::NotEvaluated { .. } => "run `diag-train evaluate RUN` first".into(),
            Self::Changed { what, .. } => {
                format!("pass the {what} of the first start (epochs may be added), or another --out")
            }
            Self::OtherShards { .. } => {
                "pass the shards that the run was trained on, which run.json names; another cohort is validated with --out FOLDER".into()
            }
            Self::OtherReader { .. } => {
                "make the shards again with ct-ingest and the settings of the network (model.json, input.reader), \
                 classes by --label-set"
                    .into()
            }
            Self::OwnShards { .. } => {
                "leave --out away to evaluate the run, or pass the shards of another cohort".into()
            }
            Self::SeenBefore { .. } => {
                "leave these cases out of the label table and make the shards again: what a network has seen says \
                 nothing of others"
                    .into()
            }
            Self::Apart { .. } => "finish the training with diag-train fit --resume, or take both from one run".into(),
            Self::Diverged { .. } => {
                "lower the learning rate or lengthen the warm-up; the last good checkpoint is kept".into()
            }
            Self::Interrupted { .. } => "to continue, run the same command again, a fit with --resume".into(),
            Self::Stopped => "run the same command again".into(),
            Self::Truth { .. } => "pass truth.json of the phantoms behind the shards, made with \
                                   --crop none and --keep-case-ids, or leave --truth out"
                .into(),
            Self::Launch { remedy, .. } => (*remedy).into(),
            Self::Rendezvous { .. } => "start every rank with the same MASTER_ADDR and MASTER_PORT; the port \
                                     must be free on the host of rank 0 and open to the others"
                .into(),
            Self::LostRank { rank, .. } => {
                format!("see the last messages of rank {rank}, then run the same command with --resume")
            }
            Self::OtherRank { rank } => format!("see the error of rank {rank}"),
            Self::RanksDiffer { .. } => "give every rank the same build, recipe, shards and run folder, on \
                                         a file system that all of them see, and the same kind of processor"
                .into(),
            Self::TooManyRanks { .. } => "start fewer ranks, or raise `batch_size` in the recipe".into(),
            Self::Document { .. } => "correct the marker, or sum the sweep up again: \
                                      `means`, `gains` and `runs` are explained in data/sweeps/README.md"
                .into(),
            Self::Threads { .. } => "set a smaller `threads` in the recipe".into(),
        }
    }
}
