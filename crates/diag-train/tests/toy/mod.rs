//! Openly synthetic shards: noise, with a bright disc at a place that depends on the class.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use diag_data::case::{CaseId, Label, LabelSet, Split};
use diag_data::files;
use diag_data::manifest::{CaseRow, KeyInfo, KeyKind, Layout, ShardSpec};
use diag_data::reader::ReaderSettings;
use diag_data::shard::{Job, Outcome, ShardWriter};
use diag_data::slice::{Acquisition, CtSlice, Geometry, Provenance, Selection};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Side of a toy image in pixels.
pub const SIDE: usize = 32;

/// A toy cohort. The class of case `i` is `i % 3`.
#[derive(Clone)]
pub struct Cohort {
    /// Draws the pictures.
    pub seed: u64,
    /// Training cases of each class.
    pub n_train: usize,
    /// Test cases of each class.
    pub n_test: usize,
    /// Cases are called `PREFIX-000` and on.
    pub prefix: &'static str,
    /// Added to every grey level.
    pub brighter: u8,
    /// How the slices say that they were read.
    pub reader: ReaderSettings,
    /// Scanner of a case.
    pub scanner: fn(usize) -> &'static str,
}

/// The cohort of [`write_shards`], without cases.
pub const COHORT: Cohort = Cohort {
    seed: 7,
    n_train: 1,
    n_test: 1,
    prefix: "toy",
    brighter: 0,
    reader: ReaderSettings { size: SIDE as u32, ..ReaderSettings::DEFAULT },
    // Scanners alternate within each class.
    scanner: |case| ["Alpha", "Beta"][case / 3 % 2],
};

/// Writes shards with so many training and test cases of each class, 4 slices each.
pub fn write_shards(folder: &Path, n_train: usize, n_test: usize) -> PathBuf {
    write_cohort(folder, Cohort { n_train, n_test, ..COHORT })
}

/// Writes the shards of a cohort into the folder `shards` below another, which is made.
pub fn write_cohort(folder: &Path, cohort: Cohort) -> PathBuf {
    std::fs::create_dir_all(folder).unwrap();
    let target = folder.join("shards");
    let spec = ShardSpec {
        labels: LabelSet::paper(),
        reader: cohort.reader,
        layout: Layout::Raw,
        with_hu: false,
        split_seed: None,
    };
    let config = serde_json::json!({ "toy": true });
    let key = KeyInfo { kind: KeyKind::Public, id: "0123abcd".into() };
    let mut writer = ShardWriter::create(&target, Job { spec, key, tool: "toy".into(), config }).unwrap();
    let mut outcome = Outcome { synthetic: true, ..Outcome::default() };
    let mut rng = ChaCha8Rng::seed_from_u64(cohort.seed);
    for case in 0..3 * (cohort.n_train + cohort.n_test) {
        let label = Label((case % 3) as u8);
        let split = if case < 3 * cohort.n_train { Split::Train } else { Split::Test };
        let case_id = CaseId::new(format!("{}-{case:03}", cohort.prefix)).unwrap();
        let slices = (0..4).map(|i| {
            let mut slice = slice(&case_id, i, label, split, &mut rng);
            slice.pixels.iter_mut().for_each(|grey| *grey += cohort.brighter);
            slice.provenance.pixel_sha256 = files::sha256_hex(&slice.pixels);
            slice
        });
        writer.append(slices.collect()).unwrap();
        outcome.cases.push(CaseRow {
            case_id,
            label,
            split,
            n_slices: 4,
            n_source_slices: 4,
            lung_fraction_source: None,
            lung_fraction: None,
            patient_hash: None,
            study_uid_hash: None,
            series_uid_hash: None,
            manufacturer: Some((cohort.scanner)(case).into()),
            model: None,
            kernel: None,
            slice_thickness_mm: None,
            patient_sex: None,
            patient_age_years: None,
            warnings: Vec::new(),
        });
    }
    writer.finish(outcome, |_| BTreeMap::new()).unwrap();
    target
}

fn slice(case_id: &CaseId, index: i32, label: Label, split: Split, rng: &mut ChaCha8Rng) -> CtSlice {
    let centre = [8.0, 16.0, 24.0][label.index()] + rng.random_range(-2.0..2.0);
    let mut pixels = Vec::with_capacity(SIDE * SIDE);
    for row in 0..SIDE {
        for col in 0..SIDE {
            let distance = (row as f64 - 16.0).hypot(col as f64 - centre);
            // The disc differs in size as well, so that a mean over the image can tell the classes.
            let disc = if distance < 3.0 + 2.0 * label.index() as f64 { 120 } else { 0 };
            pixels.push(disc + rng.random_range(0..100u8));
        }
    }
    CtSlice {
        case_id: case_id.clone(),
        slice_index: index,
        label,
        split,
        pixels,
        hu: None,
        geometry: Geometry::default(),
        acquisition: Acquisition::default(),
        selection: Selection::default(),
        provenance: Provenance::default(),
    }
}

/// A quick recipe for toy shards.
pub const RECIPE: &str = r#"
seed = 1
epochs = 4
batch_size = 12
backbone = "tiny"
deep_supervision = true
validation_share = 0.2
selection = "macro-f1"

[loss]
name = "saal"

[optimiser]
name = "adamw"
learning_rate = 0.003
weight_decay = 0.01

[schedule]
warmup_epochs = 0.5

[augmentation]
rotation_degrees = 5.0
shift = 0.02
noise = 0.02
"#;

/// Writes a recipe and returns its path.
pub fn write_recipe(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path
}
