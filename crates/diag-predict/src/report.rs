//! What is said of a study.

use std::collections::BTreeMap;

use ct_read::case::ReadCase;
use diag_decision::{Call, Decision, DecisionError, RuleInWords};
use serde::Serialize;

/// Stands above every result.
pub const INTENDED_USE: &str = "Research software. Not for clinical use.";

/// Stands above every result of a model of synthetic data.
pub const SYNTHETIC: &str =
    "The model was trained on synthetic pictures alone: what it says of a patient means nothing.";

/// What the decided rule says of one study.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StudyReport {
    /// [`INTENDED_USE`].
    pub intended_use: &'static str,
    /// Whether the model was trained on synthetic pictures alone.
    pub trained_on_synthetic_data: bool,
    /// [`SYNTHETIC`], where it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub notice: Option<&'static str>,
    /// Hash of the weights.
    pub model_sha256: String,
    /// Hash of the rule.
    pub decision_sha256: String,
    /// Class names in the order of every list.
    pub labels: Vec<String>,
    /// Class that the rule names.
    pub predicted: String,
    /// Probability by class, joined and calibrated by the rule; they sum to 1.
    pub case_probabilities: Vec<f64>,
    /// Mean probability over the slices, by class.
    pub mean_probabilities: Vec<f64>,
    /// Classes of the set; absent where the rule has no sets.
    pub set: Option<Vec<String>>,
    /// Whether the set holds more than one class; absent where the rule has no sets.
    pub undecided: Option<bool>,
    /// The class that the threshold calls.
    pub positive: String,
    /// Which side of the threshold it is on; absent where none is fixed.
    pub call: Option<Call>,
    /// What the rule rests on.
    pub rule: RuleInWords,
    /// Validation cases that the rule was fitted on.
    pub n_validation_cases: usize,
    /// The same by class.
    pub validation_cases: BTreeMap<String, usize>,
    /// The slices, lowest first.
    pub slices: Vec<SliceReport>,
    /// Slices of the series that was read.
    pub n_source_slices: i32,
    /// Files that were not used, by reason.
    pub files_set_aside: BTreeMap<String, u64>,
    /// What was odd about the series.
    pub warnings: Vec<String>,
}

/// Class probabilities of one slice.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SliceReport {
    /// Position among the slices that were used, from 0 at the lowest.
    pub slice_index: i32,
    /// Position along the normal in mm.
    pub z_mm: Option<f64>,
    /// Probability by class; they sum to 1.
    pub probabilities: Vec<f32>,
}

impl SliceReport {
    /// Its probabilities as a rule takes them.
    pub(crate) fn widened(&self) -> Vec<f64> {
        self.probabilities.iter().map(|&p| f64::from(p)).collect()
    }
}

/// Files that were not used, by reason.
pub(crate) fn files_set_aside(case: &ReadCase) -> BTreeMap<String, u64> {
    let mut files = BTreeMap::new();
    for (_, reason) in &case.files_aside {
        *files.entry((*reason).to_owned()).or_default() += 1;
    }
    files
}

impl StudyReport {
    /// Decides a study by its slices.
    pub(crate) fn new(
        decision: &Decision,
        trained_on_synthetic_data: bool,
        slices: Vec<SliceReport>,
        case: &ReadCase,
    ) -> Result<Self, DecisionError> {
        let decided = decision.apply(&slices.iter().map(SliceReport::widened).collect::<Vec<_>>())?;
        let terms = decision.terms();
        let labels = terms.labels.names().to_vec();
        let members = |set: &Vec<bool>| -> Vec<String> {
            let members = labels.iter().zip(set).filter(|(_, member)| **member);
            members.map(|(name, _)| name.clone()).collect()
        };
        Ok(Self {
            intended_use: INTENDED_USE,
            trained_on_synthetic_data,
            notice: trained_on_synthetic_data.then_some(SYNTHETIC),
            model_sha256: terms.model_sha256.clone(),
            decision_sha256: decision.sha256().to_owned(),
            predicted: labels[decided.class].clone(),
            set: decided.set.as_ref().map(members),
            undecided: decided.is_undecided(),
            case_probabilities: decided.probability_k,
            mean_probabilities: decided.mean_probability_k,
            positive: terms.positive.clone(),
            call: decided.call,
            rule: terms.in_words(),
            n_validation_cases: terms.n_validation_cases,
            validation_cases: terms.validation_cases.clone(),
            labels,
            n_source_slices: case.n_source_slices as i32,
            files_set_aside: files_set_aside(case),
            warnings: case.warnings.clone(),
            slices,
        })
    }

    /// The report as a table in words.
    pub fn table(&self) -> String {
        let row = |name: &str, probabilities: &[f64]| {
            let numbers = self.labels.iter().zip(probabilities);
            let cells: Vec<String> =
                numbers.map(|(label, p)| format!("{p:>width$.3}", width = label.len().max(6))).collect();
            format!("{name:<18}{}", cells.join("  "))
        };
        let header: Vec<String> = self.labels.iter().map(|label| format!("{label:>6}")).collect();
        let mut lines = vec![self.intended_use.to_owned()];
        lines.extend(self.notice.map(String::from));
        lines.push(format!("class             {}", self.predicted));
        match (&self.set, self.undecided) {
            (Some(set), Some(true)) => {
                lines.push(format!("set               undecided: {}", set.join(" or ")))
            }
            (Some(set), _) => lines.push(format!("set               {}", set.join(" or "))),
            (None, _) => lines.push(format!("set               {}", self.rule.sets)),
        }
        match self.call {
            Some(call) => lines.push(format!(
                "threshold         {} for {} ({})",
                call.as_str(),
                self.positive,
                self.rule.threshold
            )),
            None => lines.push(format!("threshold         {}", self.rule.threshold)),
        }
        lines.push(format!("{:<18}{}", "", header.join("  ")));
        lines.push(row("case", &self.case_probabilities));
        lines.push(row("mean over slices", &self.mean_probabilities));
        for slice in &self.slices {
            let place = slice.z_mm.map_or(String::new(), |z| format!(" {z:.1} mm"));
            lines.push(row(&format!("slice {}{place}", slice.slice_index), &slice.widened()));
        }
        let by_class = self.validation_cases.iter().map(|(class, n)| format!("{n} {class}"));
        lines.push(format!(
            "rule: {}; temperature {}; {} validation cases: {}",
            self.rule.aggregation,
            self.rule.temperature,
            self.n_validation_cases,
            by_class.collect::<Vec<_>>().join(", ")
        ));
        lines.extend(self.rule.warnings.iter().map(|warning| format!("note: {warning}")));
        lines.extend(self.warnings.iter().map(|warning| format!("note: {warning}")));
        lines.extend(self.files_set_aside.iter().map(|(why, n)| format!("not used: {n} files: {why}")));
        lines.join("\n")
    }
}
