//! Every number of the page, computed once: the page and `--json` show the same.

use std::collections::BTreeMap;

use diag_data::case::{CaseId, Split};
use diag_data::case_predictions::{Call, CasePrediction};
use diag_data::external::External;
use diag_metrics::{
    Aggregation, Bootstrap, IntervalKind, Measure, MeasuredInterval, MetricsError, NetBenefitBandPoint,
    NetBenefitPoint, PrBandPoint, PrPoint, Recalibration, ReliabilityBin, RocBandPoint, RocPoint, Scores,
    UnitSummary, aggregate, net_benefit_band, net_benefit_curve, pr_curve, precision_recall_band,
    predictive_value_bounds, predictive_values, recalibrate, reliability, roc_band, roc_curve,
    summarise_units, wilson_interval,
};
use serde::Serialize;

use crate::compare::{AgainstFirst, against_first};
use crate::decision::OperatingPoint;
use crate::evidence::{Leakage, Link};
use crate::explanations::{self, ExplanationNumbers};
use crate::load::Run;
use crate::subgroups::{Subgroup, subgroups};
use crate::{Options, ReportError};

/// A class with fewer test cases than this gets a warning in words.
const FEW_CASES: usize = 10;
/// Slices of the top-k mean.
const TOP_K: usize = 3;
/// Shares at which predictive values are restated.
const PREVALENCES: [f64; 4] = [0.01, 0.05, 0.2, 0.5];

/// All runs of a report. This is the document that `--json` prints.
#[derive(Debug, Serialize)]
pub struct Numbers {
    /// Version of this form.
    pub schema_version: u32,
    /// Program and version.
    pub tool: String,
    /// Always "research use only, not for clinical decisions".
    pub notice: &'static str,
    /// Part of the data: "test" unless chosen otherwise.
    pub split: String,
    /// How the intervals were made.
    pub bootstrap: Bootstrap,
    /// One entry a run, in the order given.
    pub runs: Vec<RunNumbers>,
    /// Every later run against the first.
    pub comparisons: Vec<AgainstFirst>,
}

/// The numbers of one run.
#[derive(Debug, Serialize)]
pub struct RunNumbers {
    /// Name of the run folder.
    pub name: String,
    /// Whether the data is synthetic.
    pub synthetic: bool,
    /// What is known of the cohort, where it is not the one that the network was made with.
    pub external: Option<External>,
    /// Class names, in the order of every per-class list.
    pub labels: Vec<String>,
    /// Unit of analysis: case, by the decided rule.
    pub by_case: UnitNumbers,
    /// Unit of analysis: slice; intervals still by case.
    pub by_slice: UnitNumbers,
    /// Unit of analysis: case, by mean probability over its slices.
    pub by_case_mean: Vec<NamedEstimate>,
    /// Unit of analysis: case, by the mean of its 3 highest slice probabilities per class.
    pub by_case_top_3: Vec<NamedEstimate>,
    /// Every head by case, mean probability over its slices, shallowest first.
    pub heads: Vec<HeadNumbers>,
    /// Calibration of each class, by case.
    pub calibration: Vec<ClassCalibration>,
    /// The decided rule and what it does here.
    pub operating_point: OperatingPoint,
    /// Each case, most wrong first.
    pub cases: Vec<CaseResult>,
    /// Accuracy by scanner, kernel, slice thickness, sex, age and lesion load; empty without the shards.
    pub subgroups: Vec<Subgroup>,
    /// What heat maps are worth; absent without them.
    pub explanations: Option<ExplanationNumbers>,
    /// What parts of the data share; empty without the shards.
    pub leakage: Vec<Leakage>,
    /// Hashes from the source files to the heat maps.
    pub chain: Vec<Link>,
    /// What intervals rest on: "patient" where every case names its patient, else "case".
    pub unit_of_intervals: &'static str,
    /// How many there are.
    pub n_units: usize,
    /// What a reader must know before using the numbers, in words.
    pub warnings: Vec<String>,
}

/// Measures of one unit of analysis.
#[derive(Debug, Serialize)]
pub struct UnitNumbers {
    /// "case" or "slice".
    pub unit: &'static str,
    /// Number of units.
    pub n: usize,
    /// Number of cases behind them.
    pub n_cases: usize,
    /// Cases per class.
    pub cases_per_class: Vec<usize>,
    /// Counts, `[actual][predicted]`.
    pub confusion: Vec<Vec<u64>>,
    /// Every measure with its interval.
    pub estimates: Vec<NamedEstimate>,
    /// ROC curve of each class; `None` where a side is absent.
    pub roc: Vec<Option<Vec<RocPoint>>>,
    /// 95 % band of each ROC curve, by case.
    pub roc_band: Vec<Option<Vec<RocBandPoint>>>,
    /// Precision-recall curve of each class.
    pub precision_recall: Vec<Option<Vec<PrPoint>>>,
    /// 95 % band of each precision-recall curve, by case.
    pub precision_recall_band: Vec<Option<Vec<PrBandPoint>>>,
}

impl UnitNumbers {
    /// One measure; `None` when it was not computed.
    pub fn get(&self, measure: Measure) -> Option<&NamedEstimate> {
        find(&self.estimates, measure)
    }
}

/// A measure with its interval.
#[derive(Clone, Debug, Serialize)]
pub struct NamedEstimate {
    /// [`Measure::key`].
    pub measure: &'static str,
    /// Index of the class; absent for a measure over all classes.
    pub class: Option<usize>,
    /// The value; absent where it is undefined.
    pub value: Option<f64>,
    /// Lower bound.
    pub low: Option<f64>,
    /// Upper bound.
    pub high: Option<f64>,
    /// How the bounds were made.
    pub interval: IntervalKind,
}

/// One head of the network.
#[derive(Debug, Serialize)]
pub struct HeadNumbers {
    /// Name of the head.
    pub head: String,
    /// Every measure by case.
    pub estimates: Vec<NamedEstimate>,
}

/// Calibration of one class against the rest, by case.
#[derive(Debug, Serialize)]
pub struct ClassCalibration {
    /// Reliability bins, 10 of equal width.
    pub bins: Vec<CalibrationBin>,
    /// Logistic recalibration; absent when it has no finite answer.
    pub recalibration: Option<Recalibration>,
    /// Decision curve.
    pub net_benefit: Vec<NetBenefitPoint>,
    /// 95 % band of the model's decision curve, by case.
    pub net_benefit_band: Vec<NetBenefitBandPoint>,
    /// Predictive values where the class has another share.
    pub at_prevalence: Vec<AtPrevalence>,
}

/// A reliability bin with the interval of its observed share.
#[derive(Debug, Serialize)]
pub struct CalibrationBin {
    /// The bin.
    #[serde(flatten)]
    pub bin: ReliabilityBin,
    /// Lower Wilson bound of the observed share.
    pub low: Option<f64>,
    /// Upper Wilson bound of the observed share.
    pub high: Option<f64>,
}

/// Predictive values at a share of the class, from sensitivity and specificity.
#[derive(Debug, Serialize)]
pub struct AtPrevalence {
    /// Share of the class, 0 to 1.
    pub prevalence: f64,
    /// Positive predictive value.
    pub ppv: Option<f64>,
    /// Lower bound of the positive predictive value; absent where sensitivity or specificity has none.
    pub ppv_low: Option<f64>,
    /// Upper bound of the positive predictive value.
    pub ppv_high: Option<f64>,
    /// Negative predictive value.
    pub npv: Option<f64>,
    /// Lower bound of the negative predictive value; absent where sensitivity or specificity has none.
    pub npv_low: Option<f64>,
    /// Upper bound of the negative predictive value.
    pub npv_high: Option<f64>,
}

/// What became of one case.
#[derive(Debug, Serialize)]
pub struct CaseResult {
    /// Pseudonym.
    pub case_id: String,
    /// True class.
    pub label: usize,
    /// Class that the decided rule names.
    pub predicted: usize,
    /// Probability of each class by the decided rule.
    pub probabilities: Vec<f64>,
    /// Mean probability of each class over the slices.
    pub mean_probabilities: Vec<f64>,
    /// Classes of its set; absent where the rule has no sets.
    pub set: Option<Vec<usize>>,
    /// Side of the threshold; absent where none is fixed.
    pub call: Option<Call>,
    /// Number of slices.
    pub n_slices: usize,
    /// Index in the run's own order of cases.
    #[serde(skip)]
    pub(crate) case: usize,
}

pub(crate) fn find(estimates: &[NamedEstimate], measure: Measure) -> Option<&NamedEstimate> {
    estimates.iter().find(|e| e.measure == measure.key() && e.class == measure.class())
}

pub(crate) fn measure_all(runs: &[Run], options: &Options) -> Result<Numbers, ReportError> {
    let failed = |run: &Run| {
        let run = run.dir.root().to_path_buf();
        move |source| ReportError::Metrics { run, source }
    };
    let measured: Result<Vec<_>, _> =
        runs.iter().map(|run| measure_run(run, options).map_err(failed(run))).collect();
    let mut comparisons = Vec::new();
    for run in runs.iter().skip(1) {
        comparisons.push(against_first(&runs[0], run, &options.bootstrap()).map_err(failed(run))?);
    }
    Ok(Numbers {
        schema_version: 2,
        tool: concat!("diag-report ", env!("CARGO_PKG_VERSION")).into(),
        notice: "research use only, not for clinical decisions",
        split: options.split.to_string(),
        bootstrap: options.bootstrap(),
        runs: measured?,
        comparisons,
    })
}

/// Predictions of one head by case.
pub(crate) fn case_scores(run: &Run, head: usize, how: Aggregation) -> Result<Scores, MetricsError> {
    Ok(aggregate(&run.slice_scores(head)?, &run.case_of_slice(), how)?.scores)
}

fn measure_run(run: &Run, options: &Options) -> Result<RunNumbers, MetricsError> {
    let plan = &options.bootstrap();
    let last = run.heads().len() - 1;
    let cases = run.decided.scores.clone();
    let each_case: Vec<usize> = (0..cases.len()).collect();
    let (unit_of_case, unit_of_intervals) = units_of_cases(run);
    let summarise = |scores: &Scores| summarise_units(scores, &unit_of_case, plan.level);
    let by_case = unit("case", &cases, &cases, (&each_case, &unit_of_case), plan)?;
    let mean = case_scores(run, last, Aggregation::Mean)?;
    let top = case_scores(run, last, Aggregation::TopKMean { k: TOP_K })?;
    let mut heads = Vec::new();
    for (head, name) in run.heads().iter().enumerate() {
        let scores = case_scores(run, head, Aggregation::Mean)?;
        heads.push(HeadNumbers { head: name.clone(), estimates: named(&summarise(&scores)?) });
    }
    let results = case_results(run, &cases);
    let calibration: Result<Vec<_>, _> = (0..cases.n_classes())
        .map(|k| calibration(&cases, (&each_case, &unit_of_case), k, &by_case, plan))
        .collect();
    let case_of_slice = run.case_of_slice();
    let unit_of_slice: Vec<usize> = case_of_slice.iter().map(|&case| unit_of_case[case]).collect();
    let slices = run.slice_scores(last)?;
    Ok(RunNumbers {
        n_units: unit_of_case.iter().max().map_or(0, |last| last + 1),
        unit_of_intervals,
        subgroups: subgroups(run, &results, plan.level)?,
        explanations: explanations::measure(run, plan)?,
        leakage: run.shards.as_ref().map(|shards| shards.evidence.leakage.clone()).unwrap_or_default(),
        chain: run.chain.clone(),
        name: run.name.clone(),
        synthetic: run.info.shards.synthetic,
        external: run.external.clone(),
        labels: run.info.labels.names().to_vec(),
        by_slice: unit("slice", &slices, &cases, (&case_of_slice, &unit_of_slice), plan)?,
        by_case_mean: named(&summarise(&mean)?),
        by_case_top_3: named(&summarise(&top)?),
        heads,
        calibration: calibration?,
        operating_point: run.decided.point.clone(),
        cases: results,
        warnings: warnings(run, &by_case, options.split),
        by_case,
    })
}

/// Measures of slices or cases; of each row, its case and its independent unit.
fn unit(
    unit: &'static str,
    scores: &Scores,
    cases: &Scores,
    (case_n, unit_n): (&[usize], &[usize]),
    plan: &Bootstrap,
) -> Result<UnitNumbers, MetricsError> {
    let summary = summarise_units(scores, unit_n, plan.level)?;
    let classes = 0..scores.n_classes();
    let bands: Result<Vec<_>, _> = classes.clone().map(|k| roc_band(scores, case_n, k, plan)).collect();
    let recall_bands: Result<Vec<_>, _> =
        classes.clone().map(|k| precision_recall_band(scores, case_n, k, plan)).collect();
    Ok(UnitNumbers {
        unit,
        n: scores.len(),
        n_cases: cases.len(),
        cases_per_class: (0..cases.n_classes())
            .map(|class| cases.labels().iter().filter(|label| **label == class).count())
            .collect(),
        confusion: summary.measures.confusion.counts().to_vec(),
        estimates: named(&summary),
        roc: classes.clone().map(|k| roc_curve(&scores.of_class(k), &scores.is_class(k))).collect(),
        roc_band: bands?,
        precision_recall_band: recall_bands?,
        precision_recall: classes.map(|k| pr_curve(&scores.of_class(k), &scores.is_class(k))).collect(),
    })
}

fn named(summary: &UnitSummary) -> Vec<NamedEstimate> {
    let name = |found: &MeasuredInterval| NamedEstimate {
        measure: found.measure.key(),
        class: found.measure.class(),
        value: found.value,
        low: found.low,
        high: found.high,
        interval: found.kind,
    };
    summary.intervals.iter().map(name).collect()
}

/// The independent unit of every case, numbered without gaps, and its name: the patient where
/// all are known, else the case.
fn units_of_cases(run: &Run) -> (Vec<usize>, &'static str) {
    let patient = |case: &CaseId| {
        let shards = run.shards.as_ref().ok()?;
        shards.case(case.as_str())?.patient_hash.as_deref()
    };
    let patients: Option<Vec<&str>> = run.case_ids.iter().map(patient).collect();
    let Some(patients) = patients else {
        return ((0..run.case_ids.len()).collect(), "case");
    };
    let mut numbers = BTreeMap::new();
    let number = |patient: &&str| {
        let next = numbers.len();
        *numbers.entry(patient.to_string()).or_insert(next)
    };
    (patients.iter().map(number).collect(), "patient")
}

fn calibration(
    cases: &Scores,
    (each_case, unit_of_case): (&[usize], &[usize]),
    class: usize,
    by_case: &UnitNumbers,
    plan: &Bootstrap,
) -> Result<ClassCalibration, MetricsError> {
    let (prob_n, event_n) = (cases.of_class(class), cases.is_class(class));
    let thresholds: Vec<f64> = (1..100).map(|i| f64::from(i) / 100.0).collect();
    let value = |measure| by_case.get(measure).and_then(|e| e.value);
    let pair = value(Measure::Sensitivity(class)).zip(value(Measure::Specificity(class)));
    // Each of two independent pairs of bounds holds with this chance, both with that of the level.
    let of_each = summarise_units(cases, unit_of_case, plan.level.sqrt())?;
    let interval = |measure| {
        let found = of_each.intervals.iter().find(|found| found.measure == measure)?;
        found.low.zip(found.high)
    };
    let intervals = interval(Measure::Sensitivity(class)).zip(interval(Measure::Specificity(class)));
    let at = |prevalence: f64| {
        let bounds = intervals
            .map(|(sensitivity, specificity)| predictive_value_bounds(sensitivity, specificity, prevalence));
        let [of_ppv, of_npv] = bounds.unwrap_or([None, None]);
        let values =
            pair.map(|(sensitivity, specificity)| predictive_values(sensitivity, specificity, prevalence));
        let (ppv, npv) = values.unwrap_or((None, None));
        let ((ppv_low, ppv_high), (npv_low, npv_high)) = (of_ppv.unzip(), of_npv.unzip());
        AtPrevalence { prevalence, ppv, ppv_low, ppv_high, npv, npv_low, npv_high }
    };
    let with_bounds = |bin: ReliabilityBin| {
        let hits = bin.observed.map_or(0.0, |share| share * bin.n as f64).round() as u64;
        let (low, high) = wilson_interval(hits, bin.n, plan.level).unzip();
        CalibrationBin { bin, low, high }
    };
    Ok(ClassCalibration {
        bins: reliability(&prob_n, &event_n, 10).into_iter().map(with_bounds).collect(),
        recalibration: recalibrate(&prob_n, &event_n),
        net_benefit: net_benefit_curve(&prob_n, &event_n, &thresholds).unwrap_or_default(),
        net_benefit_band: net_benefit_band(cases, each_case, class, &thresholds, plan)?,
        at_prevalence: PREVALENCES.into_iter().map(at).collect(),
    })
}

fn case_results(run: &Run, cases: &Scores) -> Vec<CaseResult> {
    let result = |(case, row): (usize, &CasePrediction)| CaseResult {
        case_id: row.case_id.clone(),
        label: cases.labels()[case],
        predicted: row.predicted.index(),
        probabilities: row.probability_k.clone(),
        mean_probabilities: row.mean_probability_k.clone(),
        set: row.set.as_ref().map(|set| set.iter().map(|label| label.index()).collect()),
        call: row.call,
        n_slices: row.n_slices as usize,
        case,
    };
    let mut results: Vec<CaseResult> = run.decided.rows.iter().enumerate().map(result).collect();
    results.sort_by(|a, b| {
        let truth = |r: &CaseResult| r.probabilities[r.label];
        truth(a).total_cmp(&truth(b)).then_with(|| a.case_id.cmp(&b.case_id))
    });
    results
}

/// A warning in words when classes have fewer than 10 cases.
pub(crate) fn few_cases(labels: &[String], cases_per_class: &[usize]) -> Option<String> {
    let few = labels.iter().zip(cases_per_class).filter(|(_, n)| (1..FEW_CASES).contains(*n));
    let few: Vec<String> = few.map(|(name, n)| format!("{name} ({n})")).collect();
    let of_classes = if few.len() == 1 { "One class has" } else { "Some classes have" };
    (!few.is_empty()).then(|| {
        format!(
            "{of_classes} fewer than {FEW_CASES} cases: {}. Their numbers, and all numbers over the classes, can change greatly with a single case.",
            few.join(", ")
        )
    })
}

fn warnings(run: &Run, by_case: &UnitNumbers, split: Split) -> Vec<String> {
    let mut warnings = Vec::new();
    match (&run.external, split) {
        (Some(external), _) => warnings.extend(crate::page::external::cautions(external)),
        (None, Split::Train) => warnings.push(
            "These are the training cases: the network has learnt from them, and the numbers say nothing of others.".into(),
        ),
        (None, Split::Validation) => warnings.push(
            "These are the validation cases: the epoch and the rule were chosen on them, so that the numbers are too good.".into(),
        ),
        (None, Split::Test) => {}
    }
    let called = |class: usize| by_case.confusion.iter().map(|row| row[class]).sum::<u64>();
    let names = run.info.labels.names();
    let never: Vec<&str> =
        (0..names.len()).filter(|&class| called(class) == 0).map(|class| names[class].as_str()).collect();
    if never.len() + 1 == names.len() {
        warnings.push("Every case is called the same class: this classifier says nothing of a case.".into());
    } else if !never.is_empty() {
        warnings.push(format!(
            "No case is called {}: whoever has it is always called something else.",
            never.join(" or ")
        ));
    }
    for (name, &n) in run.info.labels.names().iter().zip(&by_case.cases_per_class) {
        if n == 0 {
            warnings.push(format!("There is no case of class {name}: nothing is known about it."));
        }
    }
    warnings.extend(few_cases(run.info.labels.names(), &by_case.cases_per_class));
    warnings.extend(run.decided.point.rule_warnings.iter().cloned());
    warnings.extend(run.baseline.as_ref().and_then(crate::page::baseline::caution));
    match &run.shards {
        Err(why) => warnings.push(format!("Of the shards: {why}.")),
        Ok(shards) => {
            for leak in shards.evidence.leakage.iter().filter(|leak| leak.n_shared > 0) {
                warnings.push(format!(
                    "Parts of the data share {} ({} shared, {} cases): results are too good to be believed.",
                    leak.what,
                    leak.n_shared,
                    leak.cases.len()
                ));
            }
        }
    }
    if run.chain.iter().any(|link| link.state == crate::LinkState::Differs) {
        warnings.push("A hash differs from what an earlier stage recorded; see Provenance.".into());
    }
    warnings
}
