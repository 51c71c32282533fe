//! A run folder and its shards out of thin air: drawn pictures, drawn
//! predictions, openly synthetic. No network was trained for it.

use std::collections::BTreeMap;
use std::path::Path;

use diag_data::DataError;
use diag_data::case::{CaseId, Label, LabelSet, Split};
use diag_data::files;
use diag_data::heatmaps::{self, Agreement, Explanations, Heatmap, Method};
use diag_data::manifest::{CaseRow, Flow, KeyInfo, KeyKind, Layout, ShardSpec};
use diag_data::predictions::{Prediction, Predictions};
use diag_data::reader::ReaderSettings;
use diag_data::run::{Epoch, LossRecord, RunDir, RunInfo, ShardSource, Validation};
use diag_data::shard::{Job, Outcome, ShardSet, ShardWriter};
use diag_data::slice::{Acquisition, CtSlice, Geometry, Provenance, Selection};
use diag_data::units::Mm;
use diag_decision::{DecisionError, DecisionMetrics, FitSpec, cases_of, fit};

/// What to draw.
#[derive(Clone, Debug)]
pub struct Fixture {
    /// Class names.
    pub labels: Vec<String>,
    /// Test cases of each class.
    pub test_cases: Vec<usize>,
    /// Most slices a case has; the fewest is half of it.
    pub n_slices: usize,
    /// Height and width of a slice in pixels.
    pub side: u32,
    /// How far the true class stands out, in logits.
    pub skill: f64,
    /// Whether the first training and the first test case are of one patient.
    pub leaks: bool,
    /// Scanner model of every case.
    pub model: Option<String>,
    /// Seed of the predictions; cases and pictures do not depend on it.
    pub seed: u64,
}

impl Fixture {
    /// Ten small cases: enough for every section, quick to write.
    pub fn small() -> Self {
        Self {
            labels: LabelSet::paper().names().to_vec(),
            test_cases: vec![4, 4, 2],
            n_slices: 4,
            side: 24,
            skill: 1.2,
            leaks: false,
            model: None,
            seed: 1,
        }
    }

    fn patient_of(&self, case: &Case) -> String {
        let shared = self.leaks && case.label == 0 && case.number == 0;
        if shared { "patient-x".into() } else { format!("patient-{}", case.name()) }
    }
}

const HEADS: [&str; 4] = ["stage2", "stage3", "stage4", "final"];

/// Writes `root/shards` (unless it is there) and the run folder `root/NAME`.
pub fn write(root: &Path, name: &str, fixture: &Fixture) -> Result<RunDir, DataError> {
    let labels = LabelSet::new(fixture.labels.clone())?;
    let shards = root.join("shards");
    if !shards.exists() {
        write_shards(&shards, &labels, fixture)?;
    }
    let set = ShardSet::open(&shards)?;
    let run = RunDir::new(root.join(name));
    std::fs::create_dir_all(run.root()).map_err(|source| DataError::Io {
        action: "create",
        path: run.root().into(),
        source,
    })?;
    let manifest = set.manifest();
    run.write_info(&RunInfo {
        tool: "fixture 0.1.0".into(),
        libraries: BTreeMap::from([("none".into(), "no network was trained for this fixture".into())]),
        device: "none".into(),
        seed: fixture.seed,
        labels: labels.clone(),
        heads: HEADS.map(String::from).to_vec(),
        backbone: "resnet18 (drawn, not trained)".into(),
        n_parameters: 11_176_512,
        loss: "saal-stabilised".into(),
        initialisation: "random".into(),
        recipe_sha256: files::sha256_hex(b"recipe"),
        model_sha256: Some(files::sha256_hex(b"model")),
        shards: ShardSource {
            path: "../shards".into(),
            sha256: set.sha256()?,
            synthetic: true,
            tool: manifest.tool.clone(),
            table: manifest.table.clone(),
            flow: manifest.flow.clone(),
        },
        cases: BTreeMap::from([
            ("train".into(), labels.names().iter().map(|name| (name.clone(), 8)).collect()),
            ("validation".into(), labels.names().iter().map(|name| (name.clone(), 2)).collect()),
        ]),
        best_epoch: Some(14),
        selection: "lowest validation loss".into(),
        train_seconds: 61.0,
        commands: vec!["diag-train fit --shards SHARDS --recipe drawn.toml --out RUN".into()],
    })?;
    run.write_epochs(&(1..=20).map(|epoch| draw_epoch(epoch, &labels)).collect::<Vec<_>>())?;
    files::write_atomic(&run.plan(), b"# drawn, not run\nseed = 1\n")?;
    Predictions { rows: draw_predictions(fixture)?, labels, heads: HEADS.map(String::from).to_vec() }
        .write(&run.predictions())?;
    write_evaluation(&run, fixture)?;
    Ok(run)
}

/// Draws heat maps for a run that [`write`] made: a hill that wanders with the slice.
pub fn write_maps(run: &RunDir, fixture: &Fixture) -> Result<(), DataError> {
    let info = run.read_info()?;
    files::write_atomic(&run.weights(), b"model")?;
    let mut noise = Noise(fixture.seed + 7);
    let (mut rows, mut lesion_share) = (Vec::new(), BTreeMap::new());
    for case in all_cases(fixture).into_iter().filter(|case| case.split == Split::Test) {
        let case_id = CaseId::new(case.name())?;
        let sick = case.label > 0;
        lesion_share.insert(case_id.clone(), if sick { 0.02 + 0.2 * noise.uniform() } else { 0.0 });
        for slice_index in [0, case.n_slices(fixture) as i32 / 2] {
            let mut row = |head: &str, method: Method, overlap: f32| Heatmap {
                case_id: case_id.clone(),
                slice_index,
                split: Split::Test,
                label: Label(case.label as u8),
                class: Label(case.label as u8),
                head: head.into(),
                method,
                height: if method.is_reference() { 0 } else { 14 },
                width: if method.is_reference() { 0 } else { 14 },
                values: if method.is_reference() { Vec::new() } else { draw_hill(&mut noise) },
                peak: 1.5,
                probability: (!method.is_reference()).then_some(0.5),
                randomised_correlation: (!method.is_reference()).then(|| noise.uniform() as f32 - 0.5),
                agreement: sick.then_some(Agreement {
                    lesion_share: 0.05,
                    pointing: if noise.uniform() < 0.6 { 1.0 } else { 0.0 },
                    mass: 0.2,
                    overlap: overlap + 0.1 * noise.uniform() as f32,
                }),
            };
            for head in HEADS {
                rows.push(row(head, Method::GradCam, 0.4));
                rows.push(row(head, Method::GradCamPlusPlus, 0.3));
            }
            rows.push(row("final", Method::Occlusion, 0.35));
            if sick {
                rows.push(row("none", Method::LungField, 0.2));
                rows.push(row("none", Method::LesionPrior, 0.25));
            }
        }
    }
    heatmaps::write(&run.heatmaps(), &info.labels, &rows)?;
    let how = Explanations {
        format_version: heatmaps::FORMAT_VERSION,
        tool: "fixture 0.1.0".into(),
        command: "diag-train explain RUN".into(),
        split: Split::Test,
        slices_per_case: 2,
        occlusion_slices_per_case: 2,
        occlusion_window_px: 32,
        occlusion_stride_px: 16,
        randomised_seed: 1,
        model_sha256: files::sha256_hex(b"model"),
        shards_sha256: info.shards.sha256,
        truth_sha256: Some(files::sha256_hex(b"truth")),
        heatmaps_sha256: files::sha256_file(&run.heatmaps())?,
        lesion_share,
    };
    files::write_json(&run.explanations(), &how)
}

fn draw_hill(noise: &mut Noise) -> Vec<u8> {
    let (x, y) = (14.0 * noise.uniform(), 14.0 * noise.uniform());
    let height = |i: usize| (-((i % 14) as f64 - x).hypot((i / 14) as f64 - y).powi(2) / 8.0).exp();
    let highest = (0..196).map(height).fold(0.0, f64::max);
    (0..196).map(|i| (255.0 * height(i) / highest).round() as u8).collect()
}

fn write_shards(target: &Path, labels: &LabelSet, fixture: &Fixture) -> Result<(), DataError> {
    let spec = ShardSpec {
        labels: labels.clone(),
        reader: ReaderSettings { size: fixture.side, ..ReaderSettings::DEFAULT },
        layout: Layout::Raw,
        with_hu: false,
        split_seed: None,
    };
    let config = serde_json::json!({ "drawn": true });
    let key = KeyInfo { kind: KeyKind::Public, id: "0123abcd".into() };
    let mut writer = ShardWriter::create(target, Job { spec, key, tool: "fixture 0.1.0".into(), config })?;
    let (mut flow, mut rows) = (Flow::default(), Vec::new());
    for case in all_cases(fixture) {
        let case_id = CaseId::new(case.name())?;
        let n_slices = case.n_slices(fixture);
        let vendor = if case.number % 3 == 0 { "GE MEDICAL SYSTEMS" } else { "SIEMENS" };
        flow.cases.keep();
        flow.series.keep();
        for i in 0..n_slices {
            flow.files.keep();
            flow.slices.keep();
            writer.append(vec![CtSlice {
                case_id: case_id.clone(),
                slice_index: i as i32,
                label: Label(case.label as u8),
                split: case.split,
                pixels: draw_slice(&case, i as f64 / n_slices as f64, fixture.side),
                hu: None,
                geometry: Geometry {
                    z: Some(Mm(5.0 * i as f64)),
                    source_rows: 512,
                    source_cols: 512,
                    ..Geometry::default()
                },
                acquisition: Acquisition { manufacturer: Some(vendor.into()), ..Acquisition::default() },
                selection: Selection::default(),
                provenance: Provenance {
                    source_blake3: files::sha256_hex(format!("{case_id} {i}").as_bytes()),
                    pixel_sha256: files::sha256_hex(format!("{case_id} {i} pixels").as_bytes()),
                    ..Provenance::default()
                },
            }])?;
        }
        rows.push(CaseRow {
            case_id,
            label: Label(case.label as u8),
            split: case.split,
            n_slices: n_slices as i32,
            n_source_slices: n_slices as i32 + 20,
            lung_fraction_source: None,
            lung_fraction: None,
            patient_hash: Some(fixture.patient_of(&case)),
            study_uid_hash: None,
            series_uid_hash: None,
            manufacturer: Some(vendor.into()),
            model: fixture.model.clone(),
            kernel: Some(if vendor == "SIEMENS" { "B70f" } else { "LUNG" }.into()),
            slice_thickness_mm: Some(5.0),
            patient_sex: Some(if case.number % 2 == 0 { "F" } else { "M" }.into()),
            patient_age_years: Some(30 + (case.number * 7 % 50) as i32),
            warnings: Vec::new(),
        });
    }
    flow.files.drop_for("not DICOM");
    flow.slices.drop_for("outside the lungs");
    let outcome = Outcome { synthetic: true, flow, cases: rows, ..Outcome::default() };
    writer.finish(outcome, |_| BTreeMap::new())?;
    Ok(())
}

/// Records the drawn predictions as an evaluation would, with a rule that is fitted on drawn
/// validation cases, ten of each class.
pub fn write_evaluation(run: &RunDir, fixture: &Fixture) -> Result<(), DataError> {
    let info = run.read_info()?;
    let model_sha256 = info.model_sha256.unwrap_or_default();
    let spec = FitSpec { sensitivity: 0.9, ..FitSpec::new(info.labels.clone(), model_sha256.clone()) };
    let invalid = |why: String| DataError::Malformed { path: run.decision(), why };
    let drawn = Fixture { test_cases: vec![10; fixture.labels.len()], ..fixture.clone() };
    let refused = |err: DecisionError| invalid(err.to_string());
    let validation = cases_of(&draw_predictions(&drawn)?, Split::Test).map_err(refused)?;
    let decision = fit(&validation, &spec).map_err(refused)?;
    decision.write(&run.decision()).map_err(refused)?;
    let table = Predictions::read(&run.predictions(), &info.labels)?;
    let cases = cases_of(&table.rows, Split::Test).map_err(refused)?;
    let rows: Vec<_> =
        cases.iter().map(|case| decision.predict(case)).collect::<Result<_, _>>().map_err(refused)?;
    let metrics = DecisionMetrics::of(decision.terms(), &rows).map_err(|err| invalid(err.to_string()))?;
    let metrics = serde_json::json!({
        "format_version": 2,
        "model_sha256": model_sha256,
        "shards_sha256": info.shards.sha256,
        "decision_sha256": decision.sha256(),
        "predictions_sha256": files::sha256_file(&run.predictions())?,
        "splits": { "test": { "decision": metrics } },
    });
    files::write_json(&run.metrics(), &metrics)
}

struct Case {
    label: usize,
    number: usize,
    split: Split,
}

impl Case {
    fn name(&self) -> String {
        format!("{}-{}-{:03}", self.split, self.label, self.number)
    }

    fn n_slices(&self, fixture: &Fixture) -> usize {
        let fewest = fixture.n_slices.div_ceil(2);
        fewest + (self.number * 7 + self.label * 3) % (fixture.n_slices - fewest + 1)
    }
}

fn all_cases(fixture: &Fixture) -> Vec<Case> {
    let mut cases = Vec::new();
    for (label, &n_test) in fixture.test_cases.iter().enumerate() {
        let train = (0..2).map(|number| Case { label, number, split: Split::Train });
        cases.extend(train.chain((0..n_test).map(|number| Case { label, number, split: Split::Test })));
    }
    cases
}

/// A chest-like picture: a body, two lungs, and for sick classes some spots.
fn draw_slice(case: &Case, height: f64, side: u32) -> Vec<u8> {
    let mut noise = Noise(case.number as u64 * 977 + case.label as u64 * 31 + (height * 1000.0) as u64);
    let size = 0.6 + 0.4 * (std::f64::consts::PI * height).sin();
    let spots: Vec<(f64, f64, f64)> = (0..case.label * 3)
        .map(|_| (noise.uniform() * 1.2 - 0.6, noise.uniform() - 0.5, 0.05 + 0.1 * noise.uniform()))
        .collect();
    let mut pixels = Vec::with_capacity((side * side) as usize);
    for row in 0..side {
        for col in 0..side {
            let at = |i: u32| 2.0 * (f64::from(i) + 0.5) / f64::from(side) - 1.0;
            let (x, y) = (at(col), at(row));
            let inside =
                |cx: f64, cy: f64, rx: f64, ry: f64| ((x - cx) / rx).powi(2) + ((y - cy) / ry).powi(2) < 1.0;
            let lung =
                inside(-0.42, 0.0, 0.32 * size, 0.5 * size) || inside(0.42, 0.0, 0.32 * size, 0.5 * size);
            let sick = spots.iter().any(|&(cx, cy, r)| inside(cx, cy, r, r));
            let grey = match (lung, inside(0.0, 0.0, 0.92, 0.72)) {
                (true, _) if sick => 150.0,
                (true, _) => 60.0,
                (false, true) => 220.0,
                (false, false) => 4.0,
            };
            pixels.push((grey + 24.0 * (noise.uniform() - 0.5)).clamp(0.0, 255.0) as u8);
        }
    }
    pixels
}

fn draw_predictions(fixture: &Fixture) -> Result<Vec<Prediction>, DataError> {
    let mut noise = Noise(fixture.seed);
    let n_classes = fixture.labels.len();
    let mut rows = Vec::new();
    for case in all_cases(fixture).into_iter().filter(|case| case.split == Split::Test) {
        let of_case: Vec<f64> = (0..n_classes).map(|_| 2.0 * noise.uniform()).collect();
        for i in 0..case.n_slices(fixture) {
            let mut head = |depth: usize| -> Vec<f32> {
                let logit = |k: usize, noise: &mut Noise| {
                    let skill = fixture.skill * (depth as f64 + 1.0) / HEADS.len() as f64;
                    of_case[k] + 1.5 * noise.uniform() + if k == case.label { skill } else { 0.0 }
                };
                let odds: Vec<f64> = (0..n_classes).map(|k| logit(k, &mut noise).exp()).collect();
                let sum: f64 = odds.iter().sum();
                odds.into_iter().map(|o| (o / sum) as f32).collect()
            };
            rows.push(Prediction {
                case_id: CaseId::new(case.name())?,
                slice_index: i as i32,
                split: Split::Test,
                label: Label(case.label as u8),
                head_probabilities: (0..HEADS.len()).map(&mut head).collect(),
            });
        }
    }
    Ok(rows)
}

fn draw_epoch(epoch: u32, labels: &LabelSet) -> Epoch {
    let t = f64::from(epoch);
    let loss = |floor: f64| LossRecord {
        total: 4.0 * (floor + (-t / 6.0).exp()),
        heads: HEADS
            .iter()
            .enumerate()
            .map(|(i, head)| {
                let ce = floor + 0.1 * (3 - i) as f64 + (-t / (4.0 + i as f64)).exp();
                let parts = [("cross_entropy", ce), ("reverse_cross_entropy", 1.5 * ce)];
                (head.to_string(), parts.map(|(k, v)| (k.to_string(), v)).into())
            })
            .collect(),
    };
    let mut loss_state = BTreeMap::from([("alpha".to_string(), 1.0 - 10f64.powf(-2.0 - t / 20.0))]);
    for (i, head) in HEADS.iter().enumerate() {
        loss_state.insert(format!("beta/{head}"), 0.3 + 0.02 * t * (i as f64 + 1.0) / 4.0);
    }
    for (i, name) in labels.names().iter().enumerate() {
        loss_state.insert(format!("class_weight/{name}"), 1.0 + 0.01 * t * (i as f64 - 1.0));
    }
    let rising = |start: f64| start + (0.9 - start) * (1.0 - (-t / 5.0).exp());
    Epoch {
        epoch,
        step: u64::from(epoch) * 12,
        learning_rate: 1e-3 * (1.0 + (std::f64::consts::PI * t / 20.0).cos()) / 2.0,
        train: loss(0.2),
        validation: Some(Validation {
            loss: loss(0.35),
            case_macro_auroc: None,
            case_macro_f1: rising(0.3),
            case_balanced_accuracy: rising(0.33),
            slice_macro_f1: rising(0.25),
            slice_balanced_accuracy: HEADS
                .iter()
                .enumerate()
                .map(|(i, head)| (head.to_string(), rising(0.3) - 0.05 * (3 - i) as f64))
                .collect(),
        }),
        loss_state,
    }
}

/// A small generator, so that the fixture needs no further crate (splitmix64).
struct Noise(u64);

impl Noise {
    /// From 0 to 1.
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}
