//! Predictions and a rule to measures, and all of them to the files of a folder.

use std::collections::{BTreeMap, btree_map};

use diag_data::DataError;
use diag_data::case::Split;
use diag_data::case_predictions::{self, CasePrediction};
use diag_data::files;
use diag_data::predictions::{Prediction, Predictions};
use diag_data::run::RunDir;
use diag_decision::{Decision, DecisionMetrics, RuleInWords, cases_of};
use diag_metrics::{Aggregation, Measures, aggregate, evaluate as measure};
use diag_model::ModelCard;
use serde::Serialize;

use super::attention::AttentionHead;
use super::inference::{Inference, case_numbers, scores};
use super::variant;
use crate::error::TrainError;

/// Version of `metrics.json`.
const FORMAT_VERSION: u32 = 2;

/// `metrics.json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Metrics {
    /// Version of this form.
    pub format_version: u32,
    /// Class names in the order of every list.
    pub labels: Vec<String>,
    /// Hash of the weights that were evaluated.
    pub model_sha256: String,
    /// Hash of the shards that were evaluated.
    pub shards_sha256: String,
    /// Hash of `decision.json`.
    pub decision_sha256: String,
    /// Hash of `predictions.parquet`.
    pub predictions_sha256: String,
    /// The decided rule in words.
    pub rule: RuleInWords,
    /// Measures by split.
    pub splits: BTreeMap<String, SplitMetrics>,
}

/// Measures of one split, final head.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SplitMetrics {
    /// Of the decided rule: the numbers that count. Unit of analysis: case.
    pub decision: DecisionMetrics,
    /// Variants that were not decided for, by the way slices are joined: `mean`,
    /// `top_k_mean`, and `attention` where the recipe asks for it. Unit of analysis: case.
    pub case: BTreeMap<String, Measures>,
    /// Unit of analysis: slice.
    pub slice: Measures,
    /// k of the top-k mean.
    pub top_k: usize,
    /// Balanced accuracy by head, unit of analysis: slice.
    pub slice_balanced_accuracy: BTreeMap<String, Option<f64>>,
}

/// Where results go, and what they rest on.
pub(super) struct Results<'a> {
    pub folder: &'a RunDir,
    pub card: &'a ModelCard,
    pub model_sha256: &'a str,
    pub shards_sha256: &'a str,
    pub decision: &'a Decision,
    /// k of the variant `top_k_mean`.
    pub top_k: usize,
}

impl Results<'_> {
    /// Measures a split.
    pub fn measure(
        &self,
        split: Split,
        inference: &Inference,
        attention: Option<&AttentionHead>,
    ) -> Result<SplitMetrics, TrainError> {
        let (card, top_k) = (self.card, self.top_k);
        let (rows, n_classes) = (&inference.predictions, card.labels.len());
        let slices = scores(rows, card.heads.len() - 1, n_classes)?;
        let cases = case_numbers(rows);
        let mut case = BTreeMap::new();
        for (name, how) in [("mean", Aggregation::Mean), ("top_k_mean", Aggregation::TopKMean { k: top_k })] {
            case.insert(name.to_owned(), measure(&aggregate(&slices, &cases, how)?.scores));
        }
        if let Some(head) = attention {
            case.insert("attention".to_owned(), variant::measured(head, inference, n_classes)?);
        }
        let mut slice_balanced_accuracy = BTreeMap::new();
        for (h, head) in card.heads.iter().enumerate() {
            let measures = measure(&scores(rows, h, n_classes)?);
            slice_balanced_accuracy.insert(head.clone(), measures.balanced_accuracy);
        }
        let decided = predicted(self.decision, rows, split)?;
        Ok(SplitMetrics {
            decision: DecisionMetrics::of(self.decision.terms(), &decided)?,
            case,
            slice: measure(&slices),
            top_k,
            slice_balanced_accuracy,
        })
    }

    /// Writes all files, `metrics.json` last, together with what is known of splits that are
    /// not among these.
    pub fn write(
        &self,
        mut rows: BTreeMap<Split, Vec<Prediction>>,
        metrics: BTreeMap<Split, SplitMetrics>,
    ) -> Result<Metrics, TrainError> {
        let (folder, card) = (self.folder, self.card);
        let mut of_splits = self.known(&mut rows)?;
        let mut predictions =
            Predictions { labels: card.labels.clone(), heads: card.heads.clone(), rows: Vec::new() };
        let mut case_rows = Vec::new();
        for (split, rows) in rows {
            case_rows.extend(predicted(self.decision, &rows, split)?);
            predictions.rows.extend(rows);
        }
        predictions.write(&folder.predictions())?;
        case_predictions::write_parquet(&folder.case_predictions(), &card.labels, &case_rows)?;
        case_predictions::write_csv(&folder.case_predictions_csv(), &card.labels, &case_rows)?;
        let metrics = Metrics {
            format_version: FORMAT_VERSION,
            labels: card.labels.names().to_vec(),
            model_sha256: self.model_sha256.to_owned(),
            shards_sha256: self.shards_sha256.to_owned(),
            decision_sha256: self.decision.sha256().to_owned(),
            predictions_sha256: files::sha256_file(&folder.predictions())?,
            rule: self.decision.terms().in_words(),
            splits: metrics.into_iter().map(|(split, of_split)| (split.to_string(), of_split)).collect(),
        };
        let refused =
            |err: serde_json::Error| DataError::Malformed { path: folder.metrics(), why: err.to_string() };
        let mut file = serde_json::to_value(&metrics).map_err(refused)?;
        for (split, of_split) in &metrics.splits {
            of_splits.insert(split.clone(), serde_json::to_value(of_split).map_err(refused)?);
        }
        file["splits"] = of_splits.into_iter().collect();
        files::write_json(&folder.metrics(), &file)?;
        Ok(metrics)
    }

    /// Metrics of an earlier evaluation by this rule of these weights on these shards. Its
    /// predictions of splits that `rows` lacks are put there.
    fn known(
        &self,
        rows: &mut BTreeMap<Split, Vec<Prediction>>,
    ) -> Result<BTreeMap<String, serde_json::Value>, TrainError> {
        let folder = self.folder;
        if !folder.metrics().exists() || !folder.predictions().exists() || rows.len() == Split::ALL.len() {
            return Ok(BTreeMap::new());
        }
        let metrics: serde_json::Value = files::read_json(&folder.metrics())?;
        let predictions_sha256 = files::sha256_file(&folder.predictions())?;
        let recorded = [
            ("model_sha256", self.model_sha256),
            ("shards_sha256", self.shards_sha256),
            ("decision_sha256", self.decision.sha256()),
            ("predictions_sha256", &predictions_sha256),
        ];
        if recorded.iter().any(|(key, value)| metrics[key].as_str() != Some(value)) {
            return Ok(BTreeMap::new());
        }
        let mut known: BTreeMap<Split, Vec<Prediction>> = BTreeMap::new();
        for row in Predictions::read(&folder.predictions(), &self.card.labels)?.rows {
            known.entry(row.split).or_default().push(row);
        }
        let mut of_splits = BTreeMap::new();
        for (split, of_split) in known {
            if let btree_map::Entry::Vacant(entry) = rows.entry(split) {
                entry.insert(of_split);
                of_splits.insert(split.to_string(), metrics["splits"][split.as_str()].clone());
            }
        }
        Ok(of_splits)
    }
}

/// Cases of a split as the rule decides them, sorted by name.
pub(super) fn predicted(
    decision: &Decision,
    rows: &[Prediction],
    split: Split,
) -> Result<Vec<CasePrediction>, TrainError> {
    let cases = cases_of(rows, split)?;
    Ok(cases.iter().map(|case| decision.predict(case)).collect::<Result<_, _>>()?)
}

/// The splits that were asked for.
pub(super) fn in_words(splits: &[Split]) -> String {
    match splits {
        [split] => split.to_string(),
        _ => "any".to_owned(),
    }
}
