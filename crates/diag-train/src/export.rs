//! A run as one file, for those who only use its model.

use std::path::PathBuf;

use candle_core::Device;
use diag_data::DataError;
use diag_data::files;
use diag_data::model_file::ModelFile;
use diag_data::run::RunDir;
use diag_decision::Decision;
use diag_model::OpenModel;

use crate::error::TrainError;

/// What to export.
#[derive(Clone, Debug)]
pub struct ExportJob {
    /// Folder of an evaluated run.
    pub run: PathBuf,
    /// The file; an earlier export there is replaced, nothing else is.
    pub out: PathBuf,
    /// Leaves out the hashes of what the network has seen.
    pub without_seen: bool,
}

/// What a one-file model says of what the network has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeenHashes {
    /// It carries the hashes.
    Carried,
    /// They were left out on request.
    LeftOut,
    /// The run has none.
    None,
}

/// What was exported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exported {
    /// Hash of the file.
    pub sha256: String,
    /// Hash of the weights, as predictions name it.
    pub model_sha256: String,
    /// Hash of the rule, as predictions name it.
    pub decision_sha256: String,
    /// Whether the network was trained on synthetic pictures alone.
    pub trained_on_synthetic_data: bool,
    /// What it says of what the network has seen.
    pub seen: SeenHashes,
}

/// Writes weights, description and decided rule of a run to one file, which
/// [`OpenModel::at`] opens as it opens the run.
///
/// # Errors
/// A run that is not finished or not evaluated, files of it that do not belong together, a file
/// at the place that is no export.
pub fn export(job: &ExportJob) -> Result<Exported, TrainError> {
    let run = RunDir::new(&job.run);
    for (what, path) in [("run.json", run.info()), ("model.safetensors", run.weights())] {
        if !path.exists() {
            return Err(TrainError::NoRun { what, run: job.run.clone() });
        }
    }
    let open = OpenModel::at(&job.run, &Device::Cpu)?;
    if run.read_info()?.model_sha256.as_deref() != Some(open.sha256()) {
        return Err(TrainError::Apart { what: "weights", file: run.info(), other: run.model() });
    }
    open.check_published()?;
    let Some(rule) = &open.decision else {
        return Err(TrainError::NotEvaluated { run: job.run.clone() });
    };
    let card = &open.model.card;
    let decision = Decision::from_json(rule.bytes.clone(), &rule.place, &card.labels, open.sha256())?;
    let seen = match &open.seen {
        None => SeenHashes::None,
        Some(_) if job.without_seen => SeenHashes::LeftOut,
        Some(_) => SeenHashes::Carried,
    };
    if job.out.exists() && ModelFile::read(&job.out).is_err() {
        return Err(DataError::OutputExists { path: job.out.clone() }.into());
    }
    let (model_sha256, trained_on_synthetic_data) = (open.sha256().to_owned(), card.training.synthetic);
    let file = ModelFile {
        card: files::read(&run.model())?,
        decision: decision.json().to_vec(),
        seen: open.seen.filter(|_| !job.without_seen).map(|part| part.bytes),
        weights: files::read(&run.weights())?,
    };
    file.write(&job.out)?;
    Ok(Exported {
        sha256: files::sha256_file(&job.out)?,
        model_sha256,
        decision_sha256: decision.sha256().to_owned(),
        trained_on_synthetic_data,
        seen,
    })
}
