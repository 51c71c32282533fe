//! Many studies: every folder, archive or volume directly below a folder.
//!
//! Each finished study is stored in a file of its own (see [`stored`](crate::stored)); when
//! all are there, the tables are made from the files alone. A run that was killed therefore
//! continues to the same bytes. No more studies are in memory than there are threads.

use std::collections::{BTreeMap, BTreeSet, btree_map};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use ct_read::key::{self, KeySource};
use ct_read::pseudonyms::{Kind, Pseudonyms};
use ct_read::source::listing;
use diag_data::case_predictions::{self, Call, CasePrediction};
use diag_data::manifest::Quarantined;
use diag_data::{DataError, files};
use diag_decision::RuleInWords;
use serde::Serialize;

use crate::error::PredictError;
use crate::predictor::Predictor;
use crate::refusal::Refusal;
use crate::report::{INTENDED_USE, SYNTHETIC, files_set_aside};
use crate::stored::{Finished, Outcome, Store};
use crate::study::{self, Study};

/// Hex digits of a pseudonym, as in the shards.
const N_DIGITS: usize = 10;

/// What to predict, and from what.
#[derive(Clone, Debug)]
pub struct BatchJob {
    /// Run folder or one-file model.
    pub model: PathBuf,
    /// Folder with the studies.
    pub root: PathBuf,
    /// Folder for the tables; new, empty, or of an earlier run.
    pub out: PathBuf,
    /// Worker threads; absent: one a core. The result does not depend on it.
    pub jobs: Option<usize>,
    /// Key of the pseudonyms.
    pub key: KeySource,
    /// Whether cases have their own names instead of pseudonyms.
    pub keep_case_ids: bool,
}

/// What happens during a run. Studies are named as in the tables.
#[derive(Clone, Copy, Debug)]
pub enum BatchEvent<'a> {
    /// The studies were counted.
    Found {
        /// How many there are.
        n_studies: usize,
    },
    /// A study was finished, now or in an earlier run.
    Advanced {
        /// Studies finished so far.
        n_done: usize,
    },
    /// A study was set aside.
    SetAside {
        /// Its line of `quarantine.jsonl`.
        line: &'a Quarantined,
    },
    /// Something the operator should know.
    Note(&'a str),
}

/// What a run reports to and is stopped by.
pub struct BatchControl<'a> {
    /// Called from any of the run's threads.
    pub on_event: &'a (dyn Fn(BatchEvent<'_>) + Sync),
    /// Set from outside to end the run after the studies at hand; the next run continues.
    pub stop: &'a AtomicBool,
}

/// What a run came to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BatchReport {
    /// [`INTENDED_USE`].
    pub intended_use: &'static str,
    /// Whether the model was trained on synthetic pictures alone.
    pub trained_on_synthetic_data: bool,
    /// [`SYNTHETIC`], where it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub notice: Option<&'static str>,
    /// Folder of the tables.
    pub out: String,
    /// Hash of the weights.
    pub model_sha256: String,
    /// Hash of the rule.
    pub decision_sha256: String,
    /// Studies that were found.
    pub n_studies: usize,
    /// Studies that were predicted.
    pub n_predicted: usize,
    /// Lines of `quarantine.jsonl`.
    pub n_set_aside: usize,
    /// Predicted studies by class.
    pub predicted: BTreeMap<String, usize>,
    /// Predicted studies whose set holds more than one class; absent where the rule has no sets.
    pub n_undecided: Option<usize>,
    /// Predicted studies that the threshold calls positive; absent where none is fixed.
    pub n_positive: Option<usize>,
    /// The class that the threshold calls.
    pub positive: String,
    /// What the rule rests on.
    pub rule: RuleInWords,
    /// Validation cases that the rule was fitted on.
    pub n_validation_cases: usize,
    /// The same by class.
    pub validation_cases: BTreeMap<String, usize>,
}

/// Predicts every study below a folder, and writes `predictions.csv`, `predictions.parquet` and
/// `quarantine.jsonl`. Their bytes depend on the studies, the model and the key only.
///
/// # Errors
/// A model that cannot be used, a folder without studies, an output folder with other content
/// or another writer, a stop by request. Broken studies are no errors: they are set aside.
pub fn predict_each(job: &BatchJob, control: &BatchControl<'_>) -> Result<BatchReport, PredictError> {
    let predictor = Predictor::open(&job.model)?;
    let mut found = Found::below(&job.root)?;
    let store = Store::open(&job.out)?;
    found.leave_out(&job.out)?;
    if found.studies.is_empty() {
        return Err(PredictError::NoStudies { root: job.root.clone() });
    }
    (control.on_event)(BatchEvent::Found { n_studies: found.studies.len() });
    let pool = rayon::ThreadPoolBuilder::new().num_threads(job.jobs.unwrap_or(0)).build();
    let pool = pool.map_err(|err| PredictError::Threads { reason: err.to_string() })?;
    let batch = Batch { job, predictor: &predictor, store: &store, names: Names::new(job, control), control };
    // A run that was stopped leaves no table of an earlier one, which could be taken for its own.
    for name in [CSV, PARQUET, QUARANTINE] {
        remove(&job.out.join(name))?;
    }
    let keys = pool.install(|| batch.predict(&found.studies))?;
    batch.assemble(&found, &keys)
}

const CSV: &str = "predictions.csv";
const PARQUET: &str = "predictions.parquet";
const QUARANTINE: &str = "quarantine.jsonl";

fn remove(path: &Path) -> Result<(), DataError> {
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(DataError::Io { action: "replace", path: path.into(), source })
        }
        _ => Ok(()),
    }
}

/// A study and the name of its case.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    path: PathBuf,
    name: String,
}

/// What lies directly in a folder.
#[derive(Debug)]
struct Found {
    studies: Vec<Place>,
    /// Files that may be images, but are no studies.
    n_loose: usize,
}

impl Found {
    fn below(root: &Path) -> Result<Self, PredictError> {
        let refused = |source| ct_read::ReadError::Folder { path: root.into(), source };
        let mut entries = Vec::new();
        for entry in std::fs::read_dir(root).map_err(refused)? {
            entries.push(entry.map_err(refused)?.path());
        }
        entries.sort();
        let (mut studies, mut n_loose) = (Vec::new(), 0);
        for path in entries {
            let full = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if full.starts_with('.') {
                continue;
            }
            if path.is_file() {
                match study::study_of_file(&full) {
                    Some(name) => studies.push((Place { name: name.to_owned(), path }, full)),
                    None => n_loose += usize::from(may_be_image(&path, &full)),
                }
            } else if path.is_dir() || !listing::is_companion(&full) {
                // Also a link that leads nowhere: a study that cannot be read.
                studies.push((Place { path, name: full.clone() }, full));
            }
        }
        // A folder and an archive of one name: both keep their whole names.
        let mut n_of: BTreeMap<String, usize> = BTreeMap::new();
        studies.iter().for_each(|(place, _)| *n_of.entry(place.name.clone()).or_default() += 1);
        let named = |(place, full): (Place, String)| {
            if n_of[&place.name] > 1 { Place { name: full, ..place } } else { place }
        };
        Ok(Self { studies: studies.into_iter().map(named).collect(), n_loose })
    }

    /// The output folder is no study, and lies in none.
    fn leave_out(&mut self, out: &Path) -> Result<(), PredictError> {
        let Ok(out) = out.canonicalize() else { return Ok(()) };
        self.studies.retain(|study| study.path.canonicalize().ok().as_ref() != Some(&out));
        let holds_it = |study: &Place| study.path.canonicalize().is_ok_and(|path| out.starts_with(path));
        if self.studies.iter().any(holds_it) {
            return Err(PredictError::OutputInStudy { out });
        }
        Ok(())
    }
}

/// Whether a file is not plainly something else than an image.
fn may_be_image(path: &Path, name: &str) -> bool {
    let listed = || study::list(path).ok().and_then(|listing| listing.files.into_iter().next());
    !listing::is_companion(name) && !listed().is_some_and(|file| listing::is_foreign(&file))
}

/// A name on one line of a table: control characters, and those that change the direction of
/// text, are escaped.
fn escaped(name: &str) -> String {
    let is_control = |c: char| {
        c.is_control()
            || matches!(c, '\u{061C}' | '\u{200E}' | '\u{200F}' | '\u{2028}'..='\u{202E}' | '\u{2066}'..='\u{2069}')
    };
    let one = |c: char| if is_control(c) { c.escape_default().to_string() } else { c.to_string() };
    name.chars().map(one).collect()
}

/// Makes the names of cases.
struct Names<'a> {
    job: &'a BatchJob,
    control: &'a BatchControl<'a>,
    /// Keys that were asked for: of synthetic studies, and of others.
    keys: Mutex<BTreeMap<bool, Pseudonyms>>,
}

impl<'a> Names<'a> {
    fn new(job: &'a BatchJob, control: &'a BatchControl<'a>) -> Self {
        Self { job, control, keys: Mutex::default() }
    }

    /// The name as the tables have it: that of `ct-ingest` for the same folder.
    fn of(&self, name: &str, synthetic: bool) -> Result<String, PredictError> {
        if self.job.keep_case_ids {
            return Ok(escaped(name));
        }
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        let pseudonyms = match keys.entry(synthetic) {
            btree_map::Entry::Occupied(known) => known.into_mut(),
            btree_map::Entry::Vacant(entry) => {
                let on_new = |text: &str| (self.control.on_event)(BatchEvent::Note(text));
                entry.insert(key::pseudonyms(&self.job.key, synthetic, &on_new)?)
            }
        };
        let hash = pseudonyms.hash(Kind::Case, name);
        Ok(format!("case-{}", &hash[..N_DIGITS]))
    }
}

/// Everything that stays the same during a run.
struct Batch<'a> {
    job: &'a BatchJob,
    predictor: &'a Predictor,
    store: &'a Store,
    names: Names<'a>,
    control: &'a BatchControl<'a>,
}

/// What the threads of a run have done.
#[derive(Default)]
struct Done {
    /// Key of the result of each finished study, by its index.
    keys: Vec<(usize, String)>,
    failed: Option<PredictError>,
}

impl Batch<'_> {
    /// Stores the result of every study; their keys in the same order.
    fn predict(&self, studies: &[Place]) -> Result<Vec<String>, PredictError> {
        let model = self.predictor.sha256();
        let next = AtomicUsize::new(0);
        let done = Mutex::<Done>::default();
        let locked = || done.lock().unwrap_or_else(PoisonError::into_inner);
        let work = || {
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                let Some(study) = studies.get(i) else { return };
                let key = if self.control.stop.load(Ordering::Relaxed) {
                    Err(PredictError::Interrupted)
                } else {
                    self.one(study, &model)
                };
                let mut done = locked();
                match key {
                    Ok(key) => {
                        done.keys.push((i, key));
                        (self.control.on_event)(BatchEvent::Advanced { n_done: done.keys.len() });
                    }
                    Err(err) => {
                        done.failed.get_or_insert(err);
                        next.store(studies.len(), Ordering::Relaxed);
                    }
                }
            }
        };
        // A thread that waits for slices of its study may take up other work, but never
        // another study: there are as many loops over studies as threads.
        rayon::scope(|scope| {
            for _ in 0..rayon::current_num_threads() {
                scope.spawn(|_| work());
            }
        });
        let Done { mut keys, failed } = done.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(err) = failed {
            return Err(err);
        }
        keys.sort();
        Ok(keys.into_iter().map(|(_, key)| key).collect())
    }

    /// Stores the result of a study, unless it is there; its key.
    fn one(&self, study: &Place, model: &str) -> Result<String, PredictError> {
        let listing = study::list(&study.path);
        let content = match &listing {
            Ok(listing) => study::content_sha256(listing),
            Err(err) => err.to_string(),
        };
        let key = files::sha256_hex(format!("{model} {content} {:?}", study.name).as_bytes());
        if self.store.find(&key).is_some_and(|finished| finished.is_final()) {
            return Ok(key);
        }
        let finished = match listing {
            Ok(listing) => self.read(&Study::scan(listing))?,
            Err(_) => {
                let fault = ct_read::Fault::Unreadable { why: "it cannot be opened".into() };
                Finished { synthetic: false, outcome: set_aside(&fault.into()) }
            }
        };
        if let Some(line) = self.quarantined(&study.name, &finished)? {
            (self.control.on_event)(BatchEvent::SetAside { line: &line });
        }
        self.store.put(&key, &finished)?;
        Ok(key)
    }

    fn read(&self, study: &Study) -> Result<Finished, PredictError> {
        let synthetic = study.is_synthetic();
        let outcome = match study.read(self.predictor.settings())? {
            Err((_, refusal)) => set_aside(&refusal),
            Ok(case) => {
                let slices = self.predictor.slices(&case)?;
                let mut warnings = case.warnings.clone();
                let aside = files_set_aside(&case);
                warnings.extend(aside.iter().map(|(why, n)| format!("{n} files not used: {why}")));
                let slice_nk = slices.into_iter().map(|slice| slice.probabilities).collect();
                Outcome::Predicted { slice_nk, warnings }
            }
        };
        Ok(Finished { synthetic, outcome })
    }

    fn quarantined(&self, name: &str, finished: &Finished) -> Result<Option<Quarantined>, PredictError> {
        let Outcome::SetAside { reason, detail, remedy } = &finished.outcome else { return Ok(None) };
        Ok(Some(Quarantined {
            source: self.names.of(name, finished.synthetic)?,
            reason: reason.clone(),
            detail: detail.clone(),
            remedy: remedy.clone(),
        }))
    }

    /// Makes the tables from what is stored.
    fn assemble(&self, found: &Found, keys: &[String]) -> Result<BatchReport, PredictError> {
        let (mut rows, mut lines) = (Vec::new(), Vec::new());
        for (study, key) in found.studies.iter().zip(keys) {
            let finished = self.store.get(key)?;
            match &finished.outcome {
                Outcome::Predicted { slice_nk, warnings } => {
                    let name = self.names.of(&study.name, finished.synthetic)?;
                    rows.push(self.row(name, slice_nk, warnings)?);
                }
                Outcome::SetAside { .. } => lines.extend(self.quarantined(&study.name, &finished)?),
            }
        }
        rows.sort_by(|a, b| a.case_id.cmp(&b.case_id));
        if let Some(pair) = rows.windows(2).find(|pair| pair[0].case_id == pair[1].case_id) {
            return Err(PredictError::SameName { name: pair[0].case_id.clone() });
        }
        lines.sort_by(|a: &Quarantined, b| a.source.cmp(&b.source));
        lines.extend(loose_files(found.n_loose));
        self.store.keep_only(&keys.iter().map(String::as_str).collect::<BTreeSet<_>>())?;
        let (out, labels) = (&self.job.out, &self.predictor.card().labels);
        let mut text = Vec::new();
        for line in &lines {
            let wrong =
                |err: serde_json::Error| DataError::Invalid { what: "quarantine", why: err.to_string() };
            serde_json::to_writer(&mut text, line).map_err(wrong)?;
            text.push(b'\n');
        }
        files::write_atomic(&out.join(QUARANTINE), &text)?;
        case_predictions::write_parquet(&out.join(PARQUET), labels, &rows)?;
        // Last: where this table is, the others are.
        case_predictions::write_csv(&out.join(CSV), labels, &rows)?;
        Ok(self.report(found, &rows, lines.len()))
    }

    fn row(
        &self,
        name: String,
        slice_nk: &[Vec<f32>],
        warnings: &[String],
    ) -> Result<CasePrediction, PredictError> {
        let decision = self.predictor.decision();
        let widen = |slice: &Vec<f32>| -> Vec<f64> { slice.iter().map(|&p| f64::from(p)).collect() };
        let decided = decision.apply(&slice_nk.iter().map(widen).collect::<Vec<_>>())?;
        let notice = self.predictor.card().training.synthetic.then(|| SYNTHETIC.to_owned());
        let warnings = notice.into_iter().chain(warnings.iter().cloned()).collect();
        Ok(decision.row(name, None, None, &decided, slice_nk.len(), warnings))
    }

    fn report(&self, found: &Found, rows: &[CasePrediction], n_set_aside: usize) -> BatchReport {
        let (card, terms) = (self.predictor.card(), self.predictor.decision().terms());
        let names = card.labels.names();
        let mut predicted: BTreeMap<String, usize> = names.iter().map(|name| (name.clone(), 0)).collect();
        for row in rows {
            *predicted.entry(names[row.predicted.index()].clone()).or_default() += 1;
        }
        let n_undecided =
            || rows.iter().filter(|row| row.set.as_ref().is_some_and(|set| set.len() > 1)).count();
        let n_positive = || rows.iter().filter(|row| row.call == Some(Call::Positive)).count();
        BatchReport {
            intended_use: INTENDED_USE,
            trained_on_synthetic_data: card.training.synthetic,
            notice: card.training.synthetic.then_some(SYNTHETIC),
            out: self.job.out.display().to_string(),
            model_sha256: terms.model_sha256.clone(),
            decision_sha256: self.predictor.decision().sha256().to_owned(),
            n_studies: found.studies.len(),
            n_predicted: rows.len(),
            n_set_aside,
            predicted,
            n_undecided: terms.sets.as_ref().map(|_| n_undecided()),
            n_positive: terms.threshold.map(|_| n_positive()),
            positive: terms.positive.clone(),
            rule: terms.in_words(),
            n_validation_cases: terms.n_validation_cases,
            validation_cases: terms.validation_cases.clone(),
        }
    }
}

fn set_aside(refusal: &Refusal) -> Outcome {
    Outcome::SetAside { reason: refusal.code().into(), detail: refusal.words(), remedy: refusal.remedy() }
}

/// The line of files that belong to no study.
fn loose_files(n_loose: usize) -> Option<Quarantined> {
    (n_loose > 0).then(|| Quarantined {
        source: ".".into(),
        reason: "loose-files".into(),
        detail: format!("{n_loose} files that may be images lie beside the studies and belong to none"),
        remedy: "give each study a folder of its own".into(),
    })
}

impl BatchReport {
    /// The report in words.
    pub fn words(&self) -> String {
        let mut lines = vec![self.intended_use.to_owned()];
        lines.extend(self.notice.map(String::from));
        lines.push(self.out.clone());
        lines.push(format!(
            "  {} studies, {} predicted, {} set aside{}",
            self.n_studies,
            self.n_predicted,
            self.n_set_aside,
            if self.n_set_aside > 0 { " (quarantine.jsonl)" } else { "" }
        ));
        lines.extend(self.predicted.iter().map(|(class, n)| format!("  {class:<22} {n:>6}")));
        match self.n_undecided {
            Some(n) => lines.push(format!("  sets      {n} undecided ({})", self.rule.sets)),
            None => lines.push(format!("  sets      {}", self.rule.sets)),
        }
        match self.n_positive {
            Some(n) => lines.push(format!("  threshold {n} positive ({})", self.rule.threshold)),
            None => lines.push(format!("  threshold {}", self.rule.threshold)),
        }
        let by_class = self.validation_cases.iter().map(|(class, n)| format!("{n} {class}"));
        lines.push(format!(
            "  rule      {}; temperature {}; {} validation cases: {}",
            self.rule.aggregation,
            self.rule.temperature,
            self.n_validation_cases,
            by_class.collect::<Vec<_>>().join(", ")
        ));
        lines.extend(self.rule.warnings.iter().map(|warning| format!("  note: {warning}")));
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_archives_and_volumes_are_studies_and_other_files_are_not() {
        let root = tempfile::tempdir().unwrap();
        for folder in ["a", "b", ".hidden", "out"] {
            std::fs::create_dir(root.path().join(folder)).unwrap();
        }
        for file in
            ["a.zip", "c.nii.gz", "D.NII", "e.tar.gz", "f.mhd", "f.raw", "labels.csv", "README", "1.2.3"]
        {
            std::fs::write(root.path().join(file), [0, 1, 2]).unwrap();
        }
        let mut found = Found::below(root.path()).unwrap();
        found.leave_out(&root.path().join("out")).unwrap();
        let names: Vec<&str> = found.studies.iter().map(|study| study.name.as_str()).collect();
        assert_eq!(names, ["D", "a", "a.zip", "b", "c", "e", "f"]);
        assert_eq!(found.n_loose, 1);
        std::fs::create_dir(root.path().join("b/out")).unwrap();
        assert_eq!(escaped("a\u{1b}[2J\nb\u{202e} 王"), "a\\u{1b}[2J\\nb\\u{202e} 王");
        let inside = found.leave_out(&root.path().join("b/out"));
        assert!(matches!(inside, Err(PredictError::OutputInStudy { .. })));
    }
}
