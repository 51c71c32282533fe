//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use ct_ingest::key::KeySource;
use ct_ingest::partition::Partition;
use ct_ingest::settings::{Match, Settings};
use diag_data::manifest::Layout;
use diag_data::reader::{Crop, ReaderSettings, Select, SeriesRule};
use diag_data::split::Ratio;
use diag_data::units::HuWindow;

/// CT files to training shards. Research software, not for clinical use.
#[derive(Debug, Parser)]
#[command(version, about)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Turn DICOM series into shards.
    Dicom(DicomArgs),
    /// Turn volumes (NIfTI, MetaImage, NRRD) into shards.
    Nifti(NiftiArgs),
    /// Turn folders of pictures (PNG, JPEG, TIFF, BMP, WebP) into shards.
    Images(ImagesArgs),
    /// Show what is below a folder, series by series; writes nothing.
    Inspect(InspectArgs),
    /// Join what runs with --partition made.
    Merge(MergeArgs),
    /// Copy finished shards, or a partition, between folders and object stores.
    Copy(CopyArgs),
    /// Check hashes, schema, counts, and that nothing crosses the split.
    Verify(VerifyArgs),
    /// Count cases and slices, and hold them against a declared table.
    Table(TableArgs),
}

#[derive(Debug, Args)]
pub struct DicomArgs {
    /// Folder with the DICOM files.
    pub dir: PathBuf,
    /// What a case_id names.
    #[arg(long = "match", value_enum, default_value = "folder")]
    pub matching: Match,
    #[command(flatten)]
    pub volume: VolumeArgs,
}

#[derive(Debug, Args)]
pub struct NiftiArgs {
    /// Folder with the volumes (.nii, .nii.gz, .hdr, .mha, .mhd, .nrrd, .nhdr); a case_id names one of
    /// them, or a folder.
    pub dir: PathBuf,
    /// What a case_id names; volumes have no other identity.
    #[arg(long = "match", value_parser = ["folder"], default_value = "folder")]
    pub matching: String,
    #[command(flatten)]
    pub volume: VolumeArgs,
}

/// What `dicom` and `nifti` share.
#[derive(Debug, Args)]
pub struct VolumeArgs {
    /// Label table: case_id,label and optionally split and patient_id.
    #[arg(long, value_name = "FILE.csv")]
    pub labels: PathBuf,
    /// Which slices to keep.
    #[arg(long, value_enum, default_value = "lung")]
    pub select: Select,
    /// Which of several axial series of a case to use.
    #[arg(long, value_enum, default_value = "most-slices")]
    pub series: SeriesRule,
    /// Which part of a slice to keep: a square in millimetres, 10 mm around it.
    #[arg(long, value_enum, default_value = "none")]
    pub crop: Crop,
    /// HU range that becomes black to white.
    #[arg(long, value_name = "LO:HI", default_value = "-1350:150", allow_hyphen_values = true)]
    pub window: HuWindow,
    /// Store HU beside the grey levels.
    #[arg(long)]
    pub with_hu: bool,
    /// Fewest slices of a series that is used.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    pub min_slices: u32,
    /// Set cases with gaps between slices aside.
    #[arg(long)]
    pub strict: bool,
    /// Draw a contact sheet of every case there: kept slices framed green, dropped
    /// ones red, body outlined yellow, lungs cyan, the crop white.
    #[arg(long, value_name = "DIR")]
    pub preview: Option<PathBuf>,
    #[command(flatten)]
    pub shared: SharedArgs,
}

impl VolumeArgs {
    /// As the library wants them.
    pub fn settings(&self) -> Settings {
        let shared = self.shared.settings();
        Settings {
            reader: ReaderSettings {
                series: self.series,
                refuse_gaps: self.strict,
                min_slices: self.min_slices,
                select: self.select,
                crop: self.crop,
                window: Some(self.window),
                size: self.shared.size,
                ..ReaderSettings::DEFAULT
            },
            with_hu: self.with_hu,
            preview: self.preview.clone(),
            ..shared
        }
    }
}

#[derive(Debug, Args)]
pub struct ImagesArgs {
    /// Folder with the images: a folder per class, unless --labels is given.
    pub dir: PathBuf,
    /// Label table: case_id,label and optionally split and patient_id.
    #[arg(long, value_name = "FILE.csv")]
    pub labels: Option<PathBuf>,
    /// Folder of list files, named like trainCT_COVID.txt, that give the split.
    #[arg(long, value_name = "DIR", conflicts_with = "split_file")]
    pub split_lists: Option<PathBuf>,
    /// Slope by which stored values become HU: for pictures of CT numbers, 16 bits mostly.
    #[arg(long, value_name = "S", requires = "hu_intercept", allow_hyphen_values = true)]
    pub hu_slope: Option<f64>,
    /// Intercept by which stored values become HU. Columns of these names in the label table
    /// say it image by image.
    #[arg(long, value_name = "I", requires = "hu_slope", allow_hyphen_values = true)]
    pub hu_intercept: Option<f64>,
    /// HU range that becomes black to white, where stored values become HU.
    #[arg(long, value_name = "LO:HI", default_value = "-1350:150", allow_hyphen_values = true)]
    pub window: HuWindow,
    #[command(flatten)]
    pub shared: SharedArgs,
}

#[derive(Debug, Args)]
pub struct InspectArgs {
    /// Folder with DICOM files.
    pub dir: PathBuf,
    /// Show paths below the folder; they may name patients.
    #[arg(long)]
    pub keep_paths: bool,
    /// Makers, models and kernels that are shown beside the known ones, one a line.
    #[arg(long, value_name = "FILE")]
    pub allow_values: Option<PathBuf>,
    /// Write a label table to fill in: one line a folder of CT objects or a volume. The
    /// names may be those of patients.
    #[arg(long, value_name = "FILE.csv")]
    pub labels_template: Option<PathBuf>,
    /// Print the result as one JSON document.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct MergeArgs {
    /// The partitions: what `--partition 0/N` to `N-1/N` wrote.
    #[arg(required = true, value_name = "PARTITION")]
    pub partitions: Vec<PathBuf>,
    /// New folder for the shards, or a URL.
    #[arg(long, value_name = "SHARDS")]
    pub out: PathBuf,
    /// Worker threads; default one a core.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub jobs: Option<u16>,
    /// Print the result as one JSON document.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct CopyArgs {
    /// What was finished: a folder or URL.
    pub from: PathBuf,
    /// New folder or URL.
    #[arg(long, value_name = "PLACE")]
    pub out: PathBuf,
}

#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// A shard folder, or its URL.
    pub shards: PathBuf,
    /// Print the result as one JSON document.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct TableArgs {
    /// A shard folder, or its URL.
    pub shards: PathBuf,
    /// The declared table.
    #[arg(long, value_name = "FILE.toml")]
    pub expect: Option<PathBuf>,
    /// Print the result as one JSON document.
    #[arg(long)]
    pub json: bool,
}

/// What all formats share.
#[derive(Debug, Args)]
pub struct SharedArgs {
    /// New folder for the shards; or, with the feature `cloud`, a URL: s3://, gs://, az://.
    #[arg(long, value_name = "SHARDS")]
    pub out: PathBuf,
    /// Side of the stored picture in pixels.
    #[arg(long, default_value_t = 224, value_parser = clap::value_parser!(u32).range(8..=1024))]
    pub size: u32,
    /// Shares of training and test cases, where no split is given; 7:2:1 has a validation part
    /// between them, 0:1 no training part: an external test set.
    #[arg(long, default_value = "7:3")]
    pub split: Ratio,
    /// Seed of the split.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Table case_id,split instead of a drawn split.
    #[arg(long, value_name = "FILE.csv")]
    pub split_file: Option<PathBuf>,
    /// File that fixes the classes and their order: names = ["...", ...].
    #[arg(long, value_name = "FILE.toml")]
    pub label_set: Option<PathBuf>,
    /// How pixels are stored: bytes, or PNG for Hugging Face data sets.
    #[arg(long, value_enum, default_value = "raw")]
    pub layout: Layout,
    /// Secret key of the pseudonyms, at least 32 random bytes; or the variable
    /// COVID19_DIAG_KEY_FILE. By default a key of this machine's user, drawn at first use; for
    /// a synthetic cohort the public one.
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
    /// Use the key that is in the source code: whoever guesses a name or a number can then
    /// test it against the hashes.
    #[arg(long, conflicts_with = "key_file")]
    pub public_key_anyone_can_test_names: bool,
    /// Salt the pseudonyms of cases with this name: those of two cohorts are then never
    /// equal. Hashes of patients are not salted.
    #[arg(long, value_name = "NAME")]
    pub cohort: Option<String>,
    /// Makers, models and kernels that are stored as they stand beside the known ones, one a
    /// line. Any other value becomes a token, such as model-3fa9c1.
    #[arg(long, value_name = "FILE")]
    pub allow_values: Option<PathBuf>,
    /// Keep the table's case ids instead of pseudonyms.
    #[arg(long)]
    pub keep_case_ids: bool,
    /// Show paths in quarantine.jsonl and messages; they may name patients.
    #[arg(long)]
    pub keep_paths: bool,
    /// Worker threads; default one a core.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub jobs: Option<u16>,
    /// Read only partition I of N of the cases, counted from 0, into a folder for
    /// `ct-ingest merge`. `auto` asks a Slurm array, `auto/N` also a Kubernetes
    /// indexed Job, which partition this is.
    #[arg(long, value_name = "I/N", alias = "shard", value_parser = read_partition)]
    pub partition: Option<Partition>,
    /// Print the result as one JSON document.
    #[arg(long)]
    pub json: bool,
}

fn read_partition(text: &str) -> Result<Partition, String> {
    Partition::read(text, &|name| std::env::var(name).ok())
}

impl SharedArgs {
    fn key(&self) -> KeySource {
        if self.public_key_anyone_can_test_names {
            return KeySource::Public;
        }
        KeySource::of_user(self.key_file.clone())
    }

    /// As the library wants them, for images.
    pub fn settings(&self) -> Settings {
        Settings {
            reader: ReaderSettings { size: self.size, ..ReaderSettings::IMAGES },
            ratio: self.split,
            seed: self.seed,
            split_file: self.split_file.clone(),
            label_set: self.label_set.clone(),
            layout: self.layout,
            with_hu: false,
            key: self.key(),
            cohort: self.cohort.clone(),
            allow_values: self.allow_values.clone(),
            keep_case_ids: self.keep_case_ids,
            keep_paths: self.keep_paths,
            preview: None,
            jobs: self.jobs.map(usize::from),
            partition: self.partition,
        }
    }
}
