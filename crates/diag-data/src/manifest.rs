//! `manifest.json` of a shard folder: what it holds, and what became of every
//! file and case that was looked at.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::case::{LabelSet, Split};
use crate::reader::ReaderSettings;

/// Version of the shard format. Rises whenever a reader of the old one would fail.
pub const FORMAT_VERSION: u32 = 2;

/// The description of a shard folder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`FORMAT_VERSION`] of the writer.
    pub format_version: u32,
    /// Name and version of the program that wrote it.
    pub tool: String,
    /// Whether every used file bears the mark of ct-phantom: no patient was scanned.
    pub synthetic: bool,
    /// The key of the pseudonyms.
    pub key: KeyInfo,
    /// Cases of which nothing says whether text is burned into the pixels: BurnedInAnnotation is
    /// neither YES (such a case is set aside) nor NO. Pixels are not searched for text.
    pub n_cases_burned_in_unknown: u64,
    /// What was stored.
    pub spec: ShardSpec,
    /// The command's resolved settings.
    pub config: serde_json::Value,
    /// SHA-256 of `config` as compact JSON.
    pub config_sha256: String,
    /// Inclusion and exclusion, with counts that add up.
    pub flow: Flow,
    /// Slices and cases by split and class name.
    pub table: Vec<TableRow>,
    /// What the selection of slices kept of each class: a bias shows here.
    #[serde(default)]
    pub selection: Vec<SelectionRow>,
    /// The Parquet files of slices, in order.
    pub files: Vec<ShardFile>,
}

/// What every row of a shard folder has in common.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ShardSpec {
    /// Class names, in the order of the `label` column.
    pub labels: LabelSet,
    /// How the studies were read.
    pub reader: ReaderSettings,
    /// How pixels are stored.
    pub layout: Layout,
    /// Whether the `hu` column is filled.
    pub with_hu: bool,
    /// Seed of the split; absent when the split was given.
    pub split_seed: Option<u64>,
}

/// The key of the pseudonyms: enough to tell whether the hashes of two cohorts can be
/// compared, nothing that would help to guess it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyInfo {
    /// Where it comes from.
    pub kind: KeyKind,
    /// 8 hex digits of a keyed hash of a constant: equal keys have equal ones.
    pub id: String,
}

/// Where the key of the pseudonyms comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyKind {
    /// Drawn at random for this machine's user at first use.
    Machine,
    /// A file or variable that the operator named.
    File,
    /// In the source code: whoever guesses a name can test the guess.
    Public,
}

/// How pixels are stored in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// `pixels`: fixed-size binary, one byte a pixel.
    Raw,
    /// `image`: struct of PNG bytes and path, as Hugging Face data sets store images.
    Hf,
}

/// One row of Table 1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableRow {
    /// Class name.
    pub label: String,
    /// Part of the data.
    pub split: Split,
    /// Number of cases.
    pub n_cases: u64,
    /// Number of slices.
    pub n_slices: u64,
}

/// What was kept of the slices of one class. A selection by lung fraction can
/// favour a class whose lesions leave more air; comparing classes shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SelectionRow {
    /// Class name.
    pub label: String,
    /// Number of cases.
    pub n_cases: u64,
    /// Slices of their source series.
    pub n_source_slices: u64,
    /// Slices in the shards.
    pub n_slices: u64,
    /// Mean lung fraction of the source slices; absent where none was measured.
    pub lung_fraction_source: Option<f64>,
    /// Mean lung fraction of the kept slices.
    pub lung_fraction: Option<f64>,
}

/// What was kept, class by class, in the order of the labels.
pub fn selection_table(labels: &LabelSet, cases: &[CaseRow]) -> Vec<SelectionRow> {
    let row = |(index, name): (usize, &String)| {
        let of_class: Vec<&CaseRow> =
            cases.iter().filter(|case| usize::from(case.label.0) == index).collect();
        let n_slices = of_class.iter().map(|case| case.n_slices).sum::<i32>();
        let n_source_slices = of_class.iter().map(|case| case.n_source_slices).sum::<i32>();
        let total = |mean: fn(&CaseRow) -> Option<f64>, count: fn(&CaseRow) -> i32| {
            of_class.iter().map(|case| Some(mean(case)? * f64::from(count(case)))).sum::<Option<f64>>()
        };
        let source = total(|case| case.lung_fraction_source, |case| case.n_source_slices);
        let kept = total(|case| case.lung_fraction, |case| case.n_slices);
        SelectionRow {
            label: name.clone(),
            n_cases: of_class.len() as u64,
            n_source_slices: n_source_slices as u64,
            n_slices: n_slices as u64,
            lung_fraction_source: source
                .filter(|_| n_source_slices > 0)
                .map(|sum| sum / f64::from(n_source_slices)),
            lung_fraction: kept.filter(|_| n_slices > 0).map(|sum| sum / f64::from(n_slices)),
        }
    };
    labels.names().iter().enumerate().map(row).filter(|row| row.n_cases > 0).collect()
}

/// One Parquet file of slices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardFile {
    /// Path below the shard folder, with `/`.
    pub path: String,
    /// Part of the data that all its rows belong to.
    pub split: Split,
    /// Number of rows.
    pub n_rows: u64,
    /// SHA-256 of the file, in hex.
    pub sha256: String,
}

/// The flow of inclusion and exclusion. Each level adds up:
/// `seen = used + sum of set_aside`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flow {
    /// Files below the root.
    pub files: Level,
    /// Series, or folders of images.
    pub series: Level,
    /// Cases of the label table.
    pub cases: Level,
    /// Slices of the used series: `used` are in the shards.
    pub slices: Level,
}

impl Flow {
    /// Adds the counts of another account.
    pub fn add(&mut self, other: &Self) {
        self.files.add(&other.files);
        self.series.add(&other.series);
        self.cases.add(&other.cases);
        self.slices.add(&other.slices);
    }
}

/// Counts of one level of the flow.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Level {
    /// How many there were.
    pub seen: u64,
    /// How many went on.
    pub used: u64,
    /// How many did not, by reason.
    pub set_aside: BTreeMap<String, u64>,
}

impl Level {
    /// Counts one that goes on.
    pub fn keep(&mut self) {
        self.seen += 1;
        self.used += 1;
    }

    /// Counts one that does not, under its reason.
    pub fn drop_for(&mut self, reason: impl Into<String>) {
        self.seen += 1;
        *self.set_aside.entry(reason.into()).or_default() += 1;
    }

    /// Adds the counts of another account.
    pub fn add(&mut self, other: &Self) {
        self.seen += other.seen;
        self.used += other.used;
        for (reason, count) in &other.set_aside {
            *self.set_aside.entry(reason.clone()).or_default() += count;
        }
    }

    /// Whether the counts add up.
    pub fn adds_up(&self) -> bool {
        self.seen == self.used + self.set_aside.values().sum::<u64>()
    }
}

/// One line of `quarantine.jsonl`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantined {
    /// The file or folder below the root; hashed where a path could name a patient.
    pub source: String,
    /// Short name of the reason, fixed, for scripts.
    pub reason: String,
    /// The reason in words.
    pub detail: String,
    /// What the user can do about it.
    pub remedy: String,
}

/// One row of `cases.parquet`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CaseRow {
    /// Pseudonym.
    pub case_id: crate::case::CaseId,
    /// Class.
    pub label: crate::case::Label,
    /// Part of the data.
    pub split: Split,
    /// Slices in the shards.
    pub n_slices: i32,
    /// Slices of the source series.
    pub n_source_slices: i32,
    /// Mean lung fraction of the source slices; absent where it was not measured.
    pub lung_fraction_source: Option<f64>,
    /// Mean lung fraction of the slices in the shards.
    pub lung_fraction: Option<f64>,
    /// Keyed hash of the patient; equal in two splits is a leak.
    pub patient_hash: Option<String>,
    /// Keyed hash of StudyInstanceUID.
    pub study_uid_hash: Option<String>,
    /// Keyed hash of SeriesInstanceUID.
    pub series_uid_hash: Option<String>,
    /// Manufacturer (0008,0070).
    pub manufacturer: Option<String>,
    /// ManufacturerModelName (0008,1090).
    pub model: Option<String>,
    /// ConvolutionKernel (0018,1210).
    pub kernel: Option<String>,
    /// SliceThickness in mm.
    pub slice_thickness_mm: Option<f64>,
    /// PatientSex: M, F or O.
    pub patient_sex: Option<String>,
    /// PatientAge in whole years; 90 stands for 90 and over.
    pub patient_age_years: Option<i32>,
    /// What was odd about the case, in words.
    pub warnings: Vec<String>,
}
