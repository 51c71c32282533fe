//! Rules that hold for every input, tried on seeded random ones.

#![expect(clippy::unwrap_used, reason = "in a test, a failed unwrap is a failed test")]

use diag_metrics::{
    Aggregation, Bootstrap, IntervalMethod, Measure, MetricsError, Scores, aggregate, auroc,
    average_precision, delong, delong_paired, evaluate, mcnemar, net_benefit_band, net_benefit_curve,
    paired_bootstrap, pr_curve, precision_recall_band, predictive_values, recalibrate, roc_band, roc_curve,
    summarise,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const N_ROUNDS: u64 = 50;

/// Random scores; coarse steps make ties.
fn random_scores(seed: u64, n: usize, n_classes: usize) -> Scores {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let labels: Vec<usize> =
        (0..n).map(|i| if i < n_classes { i } else { rng.random_range(0..n_classes) }).collect();
    let mut probs = Vec::new();
    for &label in &labels {
        let mut row: Vec<f64> = (0..n_classes).map(|_| f64::from(rng.random_range(1..8))).collect();
        row[label] += f64::from(rng.random_range(0..6));
        let sum: f64 = row.iter().sum();
        probs.extend(row.into_iter().map(|p| p / sum));
    }
    Scores::new(&probs, n_classes, &labels).unwrap()
}

fn plan() -> Bootstrap {
    Bootstrap { n_resamples: 200, ..Bootstrap::default() }
}

#[track_caller]
fn close(got: Option<f64>, want: Option<f64>, what: &str) {
    match (got, want) {
        (Some(a), Some(b)) => assert!((a - b).abs() < 1e-12, "{what}: {a} is not {b}"),
        (a, b) => assert_eq!(a, b, "{what}"),
    }
}

#[test]
fn renaming_the_classes_changes_nothing_but_their_order() {
    for seed in 0..N_ROUNDS {
        let scores = random_scores(seed, 30, 3);
        let new_name = [2, 0, 1];
        let probs: Vec<f64> = (0..30).flat_map(|i| [1, 2, 0].map(|old: usize| scores.row(i)[old])).collect();
        let labels: Vec<usize> = scores.labels().iter().map(|&l| new_name[l]).collect();
        let renamed = Scores::new(&probs, 3, &labels).unwrap();
        // A tie between classes goes to the first of them, so only untied sets are comparable.
        let tied = |s: &Scores| {
            (0..30).any(|i| {
                let top = s.row(i).iter().copied().fold(0.0, f64::max);
                s.row(i).iter().filter(|p| **p == top).count() > 1
            })
        };
        let (before, after) = (evaluate(&scores), evaluate(&renamed));
        for (old, new) in new_name.into_iter().enumerate() {
            close(after.classes[new].auroc, before.classes[old].auroc, "AUROC");
            close(after.classes[new].auprc, before.classes[old].auprc, "AUPRC");
        }
        close(after.brier, before.brier, "Brier");
        if !tied(&scores) {
            for measure in Measure::OVERALL {
                close(after.get(measure), before.get(measure), measure.key());
            }
        }
    }
}

#[test]
fn the_order_of_rows_does_not_matter() {
    for seed in 0..N_ROUNDS {
        let scores = random_scores(seed, 20, 3);
        let probs: Vec<f64> = (0..20).rev().flat_map(|i| scores.row(i).to_vec()).collect();
        let labels: Vec<usize> = scores.labels().iter().rev().copied().collect();
        let reversed = Scores::new(&probs, 3, &labels).unwrap();
        for measure in Measure::all(3) {
            close(evaluate(&reversed).get(measure), evaluate(&scores).get(measure), measure.key());
        }
    }
}

#[test]
fn auroc_is_the_share_of_ordered_pairs() {
    for seed in 0..N_ROUNDS {
        let scores = random_scores(seed, 25, 2);
        let (score, positive) = (scores.of_class(1), scores.is_class(1));
        let (mut right, mut pairs) = (0.0, 0.0);
        for i in (0..25).filter(|&i| positive[i]) {
            for j in (0..25).filter(|&j| !positive[j]) {
                pairs += 1.0;
                right += if score[i] > score[j] {
                    1.0
                } else if score[i] == score[j] {
                    0.5
                } else {
                    0.0
                };
            }
        }
        close(auroc(&score, &positive), Some(right / pairs), "pairs");
        let flipped: Vec<bool> = positive.iter().map(|p| !p).collect();
        close(auroc(&score, &flipped), Some(1.0 - right / pairs), "flipped");
    }
}

#[test]
fn auroc_and_auprc_see_only_the_order_of_scores() {
    for seed in 0..N_ROUNDS {
        let scores = random_scores(seed, 25, 2);
        let (score, positive) = (scores.of_class(1), scores.is_class(1));
        let stretched: Vec<f64> = score.iter().map(|s| s.powi(3) * 7.0 - 2.0).collect();
        close(auroc(&stretched, &positive), auroc(&score, &positive), "AUROC");
        close(average_precision(&stretched, &positive), average_precision(&score, &positive), "AUPRC");
    }
}

#[test]
fn equal_scores_are_worth_a_coin() {
    let positive = [true, false, true, false, false];
    assert_eq!(auroc(&[0.5; 5], &positive), Some(0.5));
    close(average_precision(&[0.5; 5], &positive), Some(0.4), "share of positives");
    assert_eq!(roc_curve(&[0.5; 5], &positive).unwrap().len(), 2);
}

#[test]
fn what_needs_both_sides_is_undefined_without_one() {
    let scores = Scores::new(&[0.6, 0.3, 0.1, 0.2, 0.7, 0.1], 3, &[0, 1]).unwrap();
    let measures = evaluate(&scores);
    for measure in
        [Measure::Auroc(2), Measure::Auprc(2), Measure::Sensitivity(2), Measure::Precision(2), Measure::F1(2)]
    {
        assert_eq!(measures.get(measure), None, "{measure:?}");
    }
    assert_eq!(measures.get(Measure::Specificity(2)), Some(1.0));
    assert_eq!(measures.get(Measure::BalancedAccuracy), Some(1.0), "absent classes are left out");
    assert_eq!(measures.get(Measure::Auroc(9)), None, "there is no such class");
    assert_eq!(delong(&[0.1, 0.2], &[true, false]), None);
    assert_eq!(recalibrate(&[0.1, 0.2], &[true, true]), None);
    assert_eq!(recalibrate(&[0.1, 0.2, 0.8, 0.9], &[false, false, true, true]), None, "separated");
    assert_eq!(recalibrate(&[0.5; 4], &[false, true, false, true]), None, "constant");
}

#[test]
fn a_class_never_predicted_has_no_precision() {
    let scores = Scores::new(&[0.6, 0.4, 0.7, 0.3, 0.8, 0.2], 2, &[0, 1, 0]).unwrap();
    let measures = evaluate(&scores);
    assert_eq!(measures.get(Measure::Precision(1)), None);
    assert_eq!(measures.get(Measure::MacroPrecision), None);
    assert_eq!(measures.get(Measure::F1(1)), Some(0.0));
    assert_eq!(measures.get(Measure::Matthews), None);
    assert_eq!(measures.get(Measure::Kappa), Some(0.0));
}

#[test]
fn one_case_is_measured_without_claiming_certainty() {
    let scores = Scores::new(&[0.6, 0.3, 0.1], 3, &[0]).unwrap();
    let summary = summarise(&scores, &[0], &plan()).unwrap();
    let accuracy = summary.estimate(Measure::Accuracy);
    assert_eq!((accuracy.value, accuracy.degenerate), (Some(1.0), true));
    assert_eq!(summary.estimate(Measure::MacroAuroc).value, None);
    assert_eq!(summary.cases_per_class, [1, 0, 0]);
}

#[test]
fn intervals_hold_the_value_and_do_not_depend_on_threads() {
    let scores = random_scores(1, 60, 3);
    let case_n: Vec<usize> = (0..60).collect();
    for method in [IntervalMethod::Percentile, IntervalMethod::Bca] {
        let plan = Bootstrap { method, ..plan() };
        let with_threads = |n: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
            pool.install(|| summarise(&scores, &case_n, &plan).unwrap().estimates().to_vec())
        };
        let estimates = with_threads(1);
        assert_eq!(estimates, with_threads(3));
        let accuracy = estimates.iter().find(|(m, _)| *m == Measure::BalancedAccuracy).unwrap().1;
        assert!(accuracy.low < accuracy.value && accuracy.value < accuracy.high, "{accuracy:?}");
        let other = Bootstrap { seed: 9, ..plan };
        assert_ne!(estimates, summarise(&scores, &case_n, &other).unwrap().estimates());
    }
}

#[test]
fn copies_of_a_slice_do_not_narrow_the_interval() {
    let cases = random_scores(4, 40, 3);
    let case_n: Vec<usize> = (0..40).collect();
    let by_case = summarise(&cases, &case_n, &plan()).unwrap();
    let probs: Vec<f64> = (0..40).flat_map(|i| cases.row(i).repeat(10)).collect();
    let labels: Vec<usize> = cases.labels().iter().flat_map(|&l| [l; 10]).collect();
    let copied_case_n: Vec<usize> = (0..40).flat_map(|i| [i; 10]).collect();
    let slices = Scores::new(&probs, 3, &labels).unwrap();
    let by_slice = summarise(&slices, &copied_case_n, &plan()).unwrap();
    for measure in Measure::all(3) {
        let (a, b) = (by_case.estimate(measure), by_slice.estimate(measure));
        close(b.low, a.low, measure.key());
        close(b.high, a.high, measure.key());
    }
}

#[test]
fn bands_hold_their_curves_and_copies_of_slices_do_not_narrow_them() {
    let cases = random_scores(6, 60, 3);
    let case_n: Vec<usize> = (0..60).collect();
    let thresholds: Vec<f64> = (1..100).map(|i| f64::from(i) / 100.0).collect();
    let probs: Vec<f64> = (0..60).flat_map(|i| cases.row(i).repeat(4)).collect();
    let labels: Vec<usize> = cases.labels().iter().flat_map(|&l| [l; 4]).collect();
    let copied_case_n: Vec<usize> = (0..60).flat_map(|i| [i; 4]).collect();
    let copies = Scores::new(&probs, 3, &labels).unwrap();
    for class in 0..3 {
        let (prob_n, event_n) = (cases.of_class(class), cases.is_class(class));
        let curve = pr_curve(&prob_n, &event_n).unwrap();
        let band = precision_recall_band(&cases, &case_n, class, &plan()).unwrap().unwrap();
        assert_eq!(band.len(), 100);
        let inside = band.iter().filter(|point| {
            let here = curve.iter().find(|p| p.recall + 1e-12 >= point.recall).unwrap();
            point.low <= here.precision && here.precision <= point.high
        });
        assert!(inside.count() >= 98, "class {class}");
        assert!(band.iter().any(|p| p.low < p.high) && band.iter().all(|p| p.low >= 0.0 && p.high <= 1.0));
        let of_copies = precision_recall_band(&copies, &copied_case_n, class, &plan()).unwrap().unwrap();
        for (a, b) in band.iter().zip(&of_copies) {
            close(Some(b.low), Some(a.low), "low");
            close(Some(b.high), Some(a.high), "high");
        }

        let curve = net_benefit_curve(&prob_n, &event_n, &thresholds).unwrap();
        let band = net_benefit_band(&cases, &case_n, class, &thresholds, &plan()).unwrap();
        assert_eq!(band.len(), curve.len());
        // Where no resample differs, the two sums may round apart.
        let inside =
            band.iter().zip(&curve).filter(|(b, c)| b.low - 1e-12 <= c.model && c.model <= b.high + 1e-12);
        assert!(inside.count() >= 97, "class {class}");
    }
}

#[test]
fn without_errors_or_without_a_side_there_is_no_made_up_band() {
    let right = Scores::new(&[0.9, 0.1, 0.8, 0.2, 0.3, 0.7, 0.2, 0.8], 2, &[0, 0, 1, 1]).unwrap();
    let case_n = [0, 1, 2, 3];
    let band = precision_recall_band(&right, &case_n, 0, &plan()).unwrap().unwrap();
    assert!(band.iter().all(|p| (p.low, p.high) == (1.0, 1.0)));
    let one_side = Scores::new(&[0.9, 0.1, 0.8, 0.2], 2, &[0, 0]).unwrap();
    assert_eq!(precision_recall_band(&one_side, &[0, 1], 0, &plan()).unwrap(), None);
    assert!(
        net_benefit_band(&one_side, &[0, 1], 0, &[0.5], &Bootstrap { n_resamples: 3, ..plan() }).is_err()
    );
}

#[test]
fn a_run_does_not_differ_from_itself() {
    let scores = random_scores(2, 40, 3);
    let case_n: Vec<usize> = (0..40).collect();
    let comparison = paired_bootstrap(&scores, &scores, &case_n, &plan()).unwrap();
    let accuracy = comparison.get(Measure::Accuracy).unwrap();
    assert_eq!((accuracy.difference, accuracy.p_value), (Some(0.0), Some(1.0)));
    let right: Vec<bool> = scores.predicted().iter().zip(scores.labels()).map(|(a, b)| a == b).collect();
    assert_eq!(mcnemar(&right, &right).unwrap().p_value, 1.0);
    let (score, positive) = (scores.of_class(0), scores.is_class(0));
    let same = delong_paired(&score, &score, &positive).unwrap();
    assert_eq!((same.difference, same.standard_error, same.p_value), (0.0, 0.0, Some(1.0)));
}

#[test]
fn a_clearly_better_run_is_found_better() {
    let good = random_scores(3, 60, 2);
    // The same cases, called by the opposite class.
    let probs: Vec<f64> = (0..60).flat_map(|i| [good.row(i)[1], good.row(i)[0]]).collect();
    let bad = Scores::new(&probs, 2, good.labels()).unwrap();
    let case_n: Vec<usize> = (0..60).collect();
    let difference =
        paired_bootstrap(&good, &bad, &case_n, &plan()).unwrap().get(Measure::MacroAuroc).unwrap();
    assert!(difference.difference.unwrap() > 0.0 && difference.low.unwrap() > 0.0);
    assert!(difference.p_value.unwrap() < 0.02);
    let delong = delong_paired(&good.of_class(0), &bad.of_class(0), &good.is_class(0)).unwrap();
    assert!(delong.p_value.unwrap() < 0.001);
}

#[test]
fn a_band_encloses_its_curve_s_corners() {
    let scores = random_scores(5, 50, 3);
    let case_n: Vec<usize> = (0..50).collect();
    let band = roc_band(&scores, &case_n, 0, &plan()).unwrap().unwrap();
    assert_eq!(band.len(), 101);
    assert_eq!(band[100].low, 1.0);
    assert!(band.iter().all(|p| p.low <= p.high));
    assert!(band.windows(2).all(|w| w[0].high <= w[1].high && w[0].low <= w[1].low));
    let one_class = Scores::new(&[0.6, 0.4], 2, &[0]).unwrap();
    assert_eq!(roc_band(&one_class, &[0], 0, &plan()).unwrap(), None);
}

#[test]
fn slices_join_to_cases() {
    let probs = [0.9, 0.1, 0.3, 0.7, 0.2, 0.8, 0.4, 0.6];
    let slices = Scores::new(&probs, 2, &[0, 0, 0, 1]).unwrap();
    let case_n = [0, 0, 0, 1];
    let check = |how, want: [f64; 2]| {
        let cases = aggregate(&slices, &case_n, how).unwrap();
        assert_eq!((cases.n_slices, cases.scores.labels()), (vec![3, 1], [0, 1].as_slice()));
        for (got, want) in cases.scores.row(0).iter().zip(want) {
            assert!((got - want).abs() < 1e-12, "{how:?}: {got} is not {want}");
        }
    };
    let mean = 1.4 / 3.0;
    check(Aggregation::Mean, [mean, 1.0 - mean]);
    check(Aggregation::TopKMean { k: 1 }, [0.9 / 1.7, 0.8 / 1.7]);
    check(Aggregation::TopKMean { k: 99 }, [mean, 1.0 - mean]);
}

#[test]
fn predictive_values_follow_bayes() {
    let (ppv, npv) = predictive_values(0.9, 0.8, 0.1);
    close(ppv, Some(0.09 / 0.27), "PPV");
    close(npv, Some(0.72 / 0.73), "NPV");
    assert_eq!(predictive_values(0.0, 1.0, 0.5).0, None, "nothing is ever called");
    assert_eq!(predictive_values(1.1, 0.5, 0.5), (None, None));
}

#[test]
fn bad_input_is_refused_by_name() {
    type Refused = fn(&MetricsError) -> bool;
    let table: [(&[f64], usize, &[usize], Refused); 6] = [
        (&[], 2, &[], |e| matches!(e, MetricsError::Empty)),
        (&[1.0], 1, &[0], |e| matches!(e, MetricsError::TooFewClasses { n_classes: 1 })),
        (&[0.5, 0.5], 2, &[0, 1], |e| matches!(e, MetricsError::WrongLength { got: 2, want: 4, .. })),
        (&[0.5, 0.4], 2, &[0], |e| matches!(e, MetricsError::NotProbabilities { row: 0, .. })),
        (&[f64::NAN, 0.4], 2, &[0], |e| matches!(e, MetricsError::NotProbabilities { row: 0, .. })),
        (&[0.5, 0.5], 2, &[2], |e| matches!(e, MetricsError::LabelOutOfRange { label: 2, .. })),
    ];
    for (probs, n_classes, labels, refused) in table {
        let error = Scores::new(probs, n_classes, labels).unwrap_err();
        assert!(refused(&error), "{error}");
        assert!(!error.remedy().is_empty());
    }
    let scores = Scores::new(&[0.5, 0.5, 0.5, 0.5], 2, &[0, 1]).unwrap();
    assert!(matches!(
        aggregate(&scores, &[0, 0], Aggregation::Mean),
        Err(MetricsError::MixedLabels { case: 0, .. })
    ));
    assert!(matches!(
        aggregate(&scores, &[0, 2], Aggregation::Mean),
        Err(MetricsError::EmptyCase { case: 1 })
    ));
    assert!(matches!(
        aggregate(&scores, &[0, usize::MAX], Aggregation::Mean),
        Err(MetricsError::EmptyCase { case: 1 })
    ));
    let few = Bootstrap { n_resamples: 3, ..plan() };
    assert!(matches!(summarise(&scores, &[0, 1], &few), Err(MetricsError::OutOfRange { .. })));
}
