//! The command line.

use std::path::PathBuf;

use clap::Parser;

/// Decides CT studies by a trained model. Research software, not for clinical use.
#[derive(Parser)]
#[command(version)]
pub struct Args {
    /// Run folder of diag-train, or a file of `diag-train export`.
    pub model: PathBuf,
    /// One study: a folder of DICOM files, a zip or tar archive, a DICOM file, or a volume (NIfTI,
    /// MetaImage, NRRD). With --each, a folder of studies.
    pub study: PathBuf,
    /// Take every folder, archive or volume directly below the folder for a study.
    #[arg(long, requires = "out", conflicts_with = "keep_paths")]
    pub each: bool,
    /// Folder for predictions.csv, predictions.parquet and quarantine.jsonl. A run that was
    /// stopped continues there.
    #[arg(long, value_name = "DIR", requires = "each")]
    pub out: Option<PathBuf>,
    /// Worker threads; default one a core.
    #[arg(long, value_name = "N", requires = "each", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub jobs: Option<u16>,
    /// Name cases by their folders instead of pseudonyms; the names may be those of patients.
    #[arg(long, requires = "each")]
    pub keep_case_ids: bool,
    /// Secret key of the pseudonyms, at least 32 random bytes; or the variable
    /// COVID19_DIAG_KEY_FILE. By default a key of this machine's user, drawn at first use; for
    /// synthetic studies the public one.
    #[arg(long, value_name = "FILE", requires = "each")]
    pub key_file: Option<PathBuf>,
    /// Name files below the study in errors; their paths may name patients.
    #[arg(long)]
    pub keep_paths: bool,
    /// Print one JSON document instead of words.
    #[arg(long)]
    pub json: bool,
}
