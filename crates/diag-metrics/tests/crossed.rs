//! The crossed bootstrap against numpy (`tests/reference/make_crossed.py`) and against what can be
//! computed without resampling.

#![expect(clippy::unwrap_used, reason = "in a test, a failed unwrap is a failed test")]

use diag_metrics::{
    Bootstrap, CrossedPlan, CrossedRuns, Measure, MetricsError, Scores, crossed_bootstrap, summarise,
    summarise_by_patient,
};
use serde_json::Value;

fn numbers(value: &Value) -> Vec<usize> {
    value.as_array().unwrap().iter().map(|x| x.as_u64().unwrap() as usize).collect()
}

fn plan(n_resamples: usize) -> CrossedPlan {
    CrossedPlan { n_resamples, ..CrossedPlan::default() }
}

#[track_caller]
fn close(got: f64, want: &Value, tolerance: f64) {
    let want = want.as_f64().unwrap();
    assert!((got - want).abs() <= tolerance, "{got} is not {want}");
}

#[test]
fn intervals_are_those_of_numpy() {
    let reference: Value = serde_json::from_str(include_str!("reference/crossed.json")).unwrap();
    let right = |run: &Value| run.as_str().unwrap().bytes().map(|byte| byte == b'1').collect();
    let series = |series: &Value| series.as_array().unwrap().iter().map(right).collect();
    let runs = CrossedRuns {
        class_n: numbers(&reference["label"]),
        patient_n: numbers(&reference["patient"]),
        right_srn: reference["right"].as_array().unwrap().iter().map(series).collect(),
    };
    let contrast = |row: &Value| -> Vec<(usize, f64)> {
        row.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).enumerate().collect()
    };
    let contrasts: Vec<_> = reference["contrasts"].as_array().unwrap().iter().map(contrast).collect();
    let found = crossed_bootstrap(&runs, &contrasts, &plan(100_000)).unwrap();
    for (got, want) in found.iter().zip(reference["found"].as_array().unwrap()) {
        close(got.difference, &want["difference"], 1e-12);
        // Both are simulations, with a standard error of some 0.2 %.
        close(got.standard_error, &want["standard_error"], 0.01 * got.standard_error);
        close(got.degrees_of_freedom, &want["degrees_of_freedom"], 0.03 * got.degrees_of_freedom);
        close(got.interval.0, &want["interval"][0], 0.03 * got.standard_error);
        close(got.interval.1, &want["interval"][1], 0.03 * got.standard_error);
        close(got.simultaneous.0, &want["simultaneous"][0], 0.06 * got.standard_error);
        close(got.simultaneous.1, &want["simultaneous"][1], 0.06 * got.standard_error);
        let excludes_zero = got.simultaneous.0 * got.simultaneous.1 > 0.0;
        assert_eq!(got.adjusted_p_value < 0.05, excludes_zero);
    }
}

/// Two classes of `n` cases, each of its own patient; the first `right` of each class are right.
fn one_run(n: usize, right: usize) -> Vec<bool> {
    (0..2 * n).map(|case| case % n < right).collect()
}

#[test]
fn errors_by_seeds_and_by_patients_are_those_of_the_formulas() {
    let n = 200;
    let class_n: Vec<usize> = (0..2 * n).map(|case| case / n).collect();
    let runs = CrossedRuns {
        class_n,
        patient_n: (0..2 * n).collect(),
        right_srn: vec![[140, 150, 160].map(|right| one_run(n, right)).to_vec()],
    };
    let found = crossed_bootstrap(&runs, &[vec![(0, 1.0)]], &plan(20_000)).unwrap()[0];
    assert!((found.difference - 0.75).abs() < 1e-12);
    // Standard deviation 0.05 over three seeds.
    assert!((found.seed_error - 0.05 / 3f64.sqrt()).abs() < 1e-12);
    // Mean over the seeds of each case: 1 for 140, 2/3 for 10, 1/3 for 10, 0 for 40 of 200; two
    // classes of 200 that vary by themselves.
    let square = (140.0 + 10.0 * 4.0 / 9.0 + 10.0 / 9.0) / 200.0;
    let by_patient = ((square - 0.75f64.powi(2)) / 400.0).sqrt();
    assert!((found.patient_error / by_patient - 1.0).abs() < 0.03, "{} {by_patient}", found.patient_error);
    let both = (found.seed_error.powi(2) + by_patient.powi(2)).sqrt();
    assert!((found.standard_error / both - 1.0).abs() < 0.04, "{} {both}", found.standard_error);
    // A single contrast is a family of its own: t with the normal's tail chance, nearly as it is.
    let width = |bounds: (f64, f64)| bounds.1 - bounds.0;
    assert!((width(found.simultaneous) / width(found.interval) - 1.0).abs() < 0.15);
}

#[test]
fn series_that_agree_differ_by_exactly_nothing() {
    let runs = CrossedRuns {
        class_n: vec![0, 0, 1, 1],
        patient_n: vec![0, 1, 2, 3],
        right_srn: vec![vec![vec![true, false, true, true]; 3]; 2],
    };
    // Four patients leave a class out too often.
    let refused = crossed_bootstrap(&runs, &[vec![(0, 1.0), (1, -1.0)]], &plan(1000));
    assert!(matches!(refused, Err(MetricsError::OutOfRange { .. })), "{refused:?}");
    let many = |values: &[bool]| (0..40).flat_map(|_| values.to_vec()).collect::<Vec<bool>>();
    let runs = CrossedRuns {
        class_n: (0..160).map(|case| case % 4 / 2).collect(),
        patient_n: (0..160).collect(),
        right_srn: vec![vec![many(&[true, false, true, true]); 3]; 2],
    };
    let found = crossed_bootstrap(&runs, &[vec![(0, 1.0), (1, -1.0)]], &plan(1000)).unwrap()[0];
    assert_eq!((found.difference, found.standard_error, found.simultaneous), (0.0, 0.0, (0.0, 0.0)));
    assert_eq!(found.adjusted_p_value, 1.0);
}

#[test]
fn what_does_not_fit_together_is_refused() {
    let good = CrossedRuns {
        class_n: (0..80).map(|case| case % 2).collect(),
        patient_n: (0..80).collect(),
        right_srn: vec![vec![vec![true; 80]; 2]],
    };
    let contrast = [vec![(0, 1.0)]];
    assert!(crossed_bootstrap(&good, &contrast, &plan(100)).is_ok());
    let refused = |change: fn(&mut CrossedRuns)| {
        let mut runs = good.clone();
        change(&mut runs);
        crossed_bootstrap(&runs, &contrast, &plan(100)).unwrap_err()
    };
    refused(|runs| runs.right_srn[0].truncate(1));
    refused(|runs| runs.right_srn[0][1].truncate(79));
    refused(|runs| runs.patient_n[79] = 90);
    refused(|runs| runs.patient_n.truncate(79));
    refused(|runs| runs.right_srn.clear());
    assert!(crossed_bootstrap(&good, &[vec![(1, 1.0)]], &plan(100)).is_err());
    assert!(crossed_bootstrap(&good, &contrast, &plan(99)).is_err());
}

#[test]
fn intervals_by_patient_are_wider_where_a_patient_s_cases_agree() {
    // 80 patients with four equal cases each: 320 cases hold no more than 80 do.
    let (mut probs, mut label_n, mut patient_n) = (Vec::new(), Vec::new(), Vec::new());
    for patient in 0..80 {
        for _ in 0..4 {
            let label = patient % 2;
            let prob = if patient % 5 == 0 { 0.25 } else { 0.75 };
            probs.extend(if label == 0 { [prob, 1.0 - prob] } else { [1.0 - prob, prob] });
            label_n.push(label);
            patient_n.push(patient);
        }
    }
    let scores = Scores::new(&probs, 2, &label_n).unwrap();
    let own: Vec<usize> = (0..320).collect();
    let width = |summary: diag_metrics::Summary| {
        let estimate = summary.estimate(Measure::Accuracy);
        estimate.high.unwrap() - estimate.low.unwrap()
    };
    let by_patient = summarise_by_patient(&scores, &patient_n, &Bootstrap::default()).unwrap();
    assert_eq!((by_patient.n_cases, by_patient.cases_per_class.as_slice()), (80, [160, 160].as_slice()));
    let by_case = width(summarise(&scores, &own, &Bootstrap::default()).unwrap());
    let ratio = width(by_patient) / by_case;
    assert!((1.7..2.3).contains(&ratio), "{ratio}");
    // Each case its own patient: the same draws as by case.
    let same = width(summarise_by_patient(&scores, &own, &Bootstrap::default()).unwrap());
    assert_eq!(same, by_case);
    // A patient of both classes is no error.
    patient_n.iter_mut().for_each(|patient| *patient /= 2);
    assert_eq!(summarise_by_patient(&scores, &patient_n, &Bootstrap::default()).unwrap().n_cases, 40);
}
