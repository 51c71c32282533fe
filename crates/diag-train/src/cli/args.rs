//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use diag_data::case::Split;
use diag_train::DeviceChoice;
use diag_train::audit::Attribute;

/// Trains a deeply supervised network on slice shards.
#[derive(Parser)]
#[command(version)]
pub struct Args {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Trains a network; leaves a run folder. Started by mpirun, torchrun or srun, all
    /// processes train it together.
    Fit(FitArgs),
    /// Writes a run's predictions and metrics; with --out, those of another cohort.
    Evaluate(EvaluateArgs),
    /// Writes heat maps of an evaluated run.
    Explain(ExplainArgs),
    /// Writes the model of an evaluated run to one file: weights, description, decided rule.
    Export(ExportArgs),
    /// Raises the learning rate step by step and reports the loss; writes nothing.
    FindRate(FindRateArgs),
    /// Looks for wrong labels, shortcuts and leakage.
    Audit {
        #[command(subcommand)]
        audit: Audit,
    },
    /// Trains and evaluates a grid of recipes; continues where it was stopped.
    Sweep(SweepArgs),
    /// Rewrites the marked tables of a Markdown document from the results of sweeps.
    Tables(TablesArgs),
}

#[derive(Subcommand)]
pub enum Audit {
    /// Ranks training slices by how wrong their labels look.
    Noise {
        /// Run folder.
        run: PathBuf,
        /// Folder of shards; default: those it was trained on.
        #[arg(long)]
        shards: Option<PathBuf>,
        /// Print all slices as one JSON document.
        #[arg(long)]
        json: bool,
    },
    /// Tries to tell manufacturer or kernel from the features of the test cases.
    Shortcut {
        /// Run folder.
        run: PathBuf,
        /// Folder of shards; default: those it was trained on.
        #[arg(long)]
        shards: Option<PathBuf>,
        /// manufacturer or kernel.
        #[arg(long, default_value = "manufacturer")]
        attribute: Attribute,
        /// Print one JSON document instead of words.
        #[arg(long)]
        json: bool,
    },
    /// Measures what a classifier gets that never looks at the lung: from size, file format,
    /// scanner and grey levels. Writes trivial.json into the run.
    Trivial {
        /// Run folder.
        run: PathBuf,
        /// Folder of shards; default: those it was trained on.
        #[arg(long)]
        shards: Option<PathBuf>,
        /// Print one JSON document instead of words.
        #[arg(long)]
        json: bool,
    },
    /// Measures how much a split by slice inflates the results of a recipe.
    Leakage {
        /// Folder of shards.
        #[arg(long)]
        shards: PathBuf,
        /// Recipe in TOML.
        #[arg(long)]
        recipe: PathBuf,
        /// Seeds, separated by commas.
        #[arg(long, value_delimiter = ',', default_value = "1,2,3")]
        seeds: Vec<u64>,
        /// Folder of the sweep to make.
        #[arg(long)]
        out: PathBuf,
        /// Print one JSON document instead of tables.
        #[arg(long)]
        json: bool,
    },
}

/// Arguments of `fit`.
#[derive(clap::Args)]
pub struct FitArgs {
    /// Folder of shards, made by ct-ingest; or, with the feature `cloud`, a URL.
    #[arg(long)]
    pub shards: PathBuf,
    /// Recipe in TOML.
    #[arg(long)]
    pub recipe: PathBuf,
    /// Run folder to make, or a URL of an object store, uploaded to after every epoch.
    #[arg(long)]
    pub out: PathBuf,
    /// auto, cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto")]
    pub device: DeviceChoice,
    /// Continue a run that was stopped; starts it if there is none.
    #[arg(long)]
    pub resume: bool,
    /// Seconds between checkpoints inside an epoch.
    #[arg(long, default_value_t = 120.0)]
    pub checkpoint_seconds: f64,
    /// Threads; default: as the recipe says. The result does not depend on it.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    pub threads: Option<u16>,
    /// Print one JSON document instead of words.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `evaluate`.
#[derive(clap::Args)]
pub struct EvaluateArgs {
    /// Run folder.
    pub run: PathBuf,
    /// Where the shards are now that it was trained on; with --out: another cohort.
    #[arg(long)]
    pub shards: Option<PathBuf>,
    /// External validation: the run and its rule as they are, on the cohort of --shards. Folder
    /// to make; the run is not touched.
    #[arg(long, requires = "shards", value_name = "FOLDER")]
    pub out: Option<PathBuf>,
    /// train, validation or test; default: all.
    #[arg(long)]
    pub split: Option<Split>,
    /// auto, cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto")]
    pub device: DeviceChoice,
    /// Threads; default: as the recipe says. The result does not depend on it.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    pub threads: Option<u16>,
    /// Print one JSON document instead of a table.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `explain`.
#[derive(clap::Args)]
pub struct ExplainArgs {
    /// Run folder.
    pub run: PathBuf,
    /// Where the shards are now; default: where they were.
    #[arg(long)]
    pub shards: Option<PathBuf>,
    /// Folder of an external validation of the run: explains its cohort, and writes into it.
    #[arg(long, value_name = "FOLDER")]
    pub out: Option<PathBuf>,
    /// train, validation or test.
    #[arg(long, default_value = "test")]
    pub split: Split,
    /// truth.json of the phantoms behind the shards, to compare the maps with its lesions.
    #[arg(long, value_name = "FILE")]
    pub truth: Option<PathBuf>,
    /// Most slices of a case, evenly spread over its height.
    #[arg(long, default_value_t = 6, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub slices: u16,
    /// Most slices of a case with an occlusion map, which costs some 200 passes each.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub occlusion_slices: u16,
    /// auto, cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto")]
    pub device: DeviceChoice,
    /// Print one JSON document instead of words.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `export`.
#[derive(clap::Args)]
pub struct ExportArgs {
    /// Folder of an evaluated run.
    pub run: PathBuf,
    /// The file; an earlier export there is replaced.
    #[arg(long, value_name = "FILE.safetensors")]
    pub out: PathBuf,
    /// Leave out the hashes of what the network has seen: whoever evaluates the file can then
    /// not check that its cases are new to it.
    #[arg(long)]
    pub without_seen: bool,
    /// Print one JSON document instead of words.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `find-rate`.
#[derive(clap::Args)]
pub struct FindRateArgs {
    /// Folder of shards.
    #[arg(long)]
    pub shards: PathBuf,
    /// Recipe in TOML.
    #[arg(long)]
    pub recipe: PathBuf,
    /// Steps from 1e-6 to 1.
    #[arg(long, default_value_t = 100)]
    pub steps: u32,
    /// Print one JSON document instead of a table.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `sweep`.
#[derive(clap::Args)]
pub struct SweepArgs {
    /// The grid in TOML.
    pub file: PathBuf,
    /// Folder of the sweep to make.
    #[arg(long)]
    pub out: PathBuf,
    /// auto, cpu, cuda or cuda:N; all runs share it.
    #[arg(long, default_value = "auto")]
    pub device: DeviceChoice,
    /// Start nothing; summarise the runs that are finished.
    #[arg(long)]
    pub finished: bool,
    /// Folder with results.csv, calls.csv and cases.csv of an earlier sweep; its runs of the
    /// same recipe and shards are not made again.
    #[arg(long)]
    pub have: Option<PathBuf>,
    /// Print one JSON document instead of tables.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `tables`.
#[derive(clap::Args)]
pub struct TablesArgs {
    /// The document.
    pub document: PathBuf,
    /// Change nothing; exit code 3 where a table differs from its results.
    #[arg(long)]
    pub check: bool,
}
