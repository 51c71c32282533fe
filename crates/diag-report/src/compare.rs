//! A later run against the first, on the same cases.

use diag_metrics::{Bootstrap, Measure, MetricsError, delong_paired, holm, mcnemar, paired_bootstrap};
use serde::Serialize;

use crate::load::Run;

/// Measures whose difference is tested by paired bootstrap.
const TESTED: [Measure; 4] =
    [Measure::BalancedAccuracy, Measure::MacroF1, Measure::MacroAuroc, Measure::Brier];

/// One run against the first of the report. Unit of analysis: case.
#[derive(Debug, Serialize)]
pub struct AgainstFirst {
    /// Name of the first run.
    pub first: String,
    /// Name of the other run.
    pub second: String,
    /// Why there is no test, in words; absent when there are tests.
    pub not_paired: Option<String>,
    /// Paired tests; p values adjusted together.
    pub tests: Vec<Test>,
}

/// A paired test. Differences are second minus first.
#[derive(Debug, Serialize)]
pub struct Test {
    /// What is compared.
    pub what: String,
    /// Which test.
    pub test: String,
    /// Second minus first.
    pub difference: Option<f64>,
    /// Lower bound of the difference.
    pub low: Option<f64>,
    /// Upper bound of the difference.
    pub high: Option<f64>,
    /// Two-sided p value.
    pub p_value: Option<f64>,
    /// The same after Holm's correction over all tests of this comparison.
    pub p_holm: Option<f64>,
}

pub(crate) fn against_first(
    first: &Run,
    second: &Run,
    plan: &Bootstrap,
) -> Result<AgainstFirst, MetricsError> {
    let mut result = AgainstFirst {
        first: first.name.clone(),
        second: second.name.clone(),
        not_paired: not_paired(first, second).map(String::from),
        tests: Vec::new(),
    };
    if result.not_paired.is_none() {
        result.tests = tests(first, second, plan)?;
        adjust(&mut result.tests);
    }
    Ok(result)
}

fn not_paired(first: &Run, second: &Run) -> Option<&'static str> {
    let labels = |run: &Run| {
        let mut labels: Vec<(usize, usize)> = run.slices.iter().map(|s| (s.case, s.label)).collect();
        labels.dedup();
        labels
    };
    if first.info.labels != second.info.labels {
        Some("the runs have different classes")
    } else if first.info.shards.sha256 != second.info.shards.sha256 {
        Some("the runs were tested on different shards, where equal names need not mean equal cases")
    } else if first.case_ids != second.case_ids {
        Some("the runs were tested on different cases")
    } else if labels(first) != labels(second) {
        Some("the runs give the same cases different labels")
    } else {
        None
    }
}

fn tests(first: &Run, second: &Run, plan: &Bootstrap) -> Result<Vec<Test>, MetricsError> {
    let (a, b) = (&first.decided.scores, &second.decided.scores);
    let each_case: Vec<usize> = (0..a.len()).collect();
    let comparison = paired_bootstrap(b, a, &each_case, plan)?;
    let mut tests = Vec::new();
    for measure in TESTED {
        let difference = comparison.get(measure);
        tests.push(Test {
            what: measure.title().into(),
            test: "paired bootstrap".into(),
            difference: difference.and_then(|d| d.difference),
            low: difference.and_then(|d| d.low),
            high: difference.and_then(|d| d.high),
            p_value: difference.and_then(|d| d.p_value),
            p_holm: None,
        });
    }
    for (k, name) in first.info.labels.names().iter().enumerate() {
        let delong = delong_paired(&b.of_class(k), &a.of_class(k), &a.is_class(k));
        let half = delong.map(|d| 1.959_963_984_540_054 * d.standard_error);
        tests.push(Test {
            what: format!("AUROC of {name}"),
            test: "DeLong, interval 95 %".into(),
            difference: delong.map(|d| d.difference),
            low: delong.zip(half).map(|(d, half)| d.difference - half),
            high: delong.zip(half).map(|(d, half)| d.difference + half),
            p_value: delong.and_then(|d| d.p_value),
            p_holm: None,
        });
    }
    let right = |scores: &diag_metrics::Scores| -> Vec<bool> {
        scores.predicted().iter().zip(scores.labels()).map(|(p, l)| p == l).collect()
    };
    let (right_a, right_b) = (right(a), right(b));
    let errors = mcnemar(&right_a, &right_b)?;
    let share = |right: &[bool]| right.iter().filter(|r| **r).count() as f64 / right.len() as f64;
    let form = if errors.exact { "exact" } else { "chi-squared" };
    tests.push(Test {
        what: "Cases right".into(),
        test: format!(
            "McNemar, {form}; only first right {}, only second right {}",
            errors.only_first_right, errors.only_second_right
        ),
        difference: Some(share(&right_b) - share(&right_a)),
        low: None,
        high: None,
        p_value: Some(errors.p_value),
        p_holm: None,
    });
    Ok(tests)
}

fn adjust(tests: &mut [Test]) {
    let p_values: Vec<f64> = tests.iter().filter_map(|t| t.p_value).collect();
    let mut adjusted = holm(&p_values).into_iter();
    for test in tests.iter_mut().filter(|t| t.p_value.is_some()) {
        test.p_holm = adjusted.next();
    }
}
