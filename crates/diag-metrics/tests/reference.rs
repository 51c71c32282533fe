//! Every function against scikit-learn, statsmodels or scipy. The values and the
//! script that made them lie in `tests/reference/`.

#![expect(clippy::unwrap_used, reason = "in a test, a failed unwrap is a failed test")]

use diag_metrics::{
    Bootstrap, Measure, Scores, auroc, average_precision, bca_interval, brier_score, delong, delong_paired,
    evaluate, expected_calibration_error, holm, log_loss, mcnemar, net_benefit_curve, normal_cdf,
    normal_quantile, percentile_interval, pr_curve, recalibrate, reliability, roc_curve, summarise,
    wilson_interval,
};
use serde_json::Value;

fn reference() -> Value {
    serde_json::from_str(include_str!("reference/reference.json")).unwrap()
}

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

fn labels(value: &Value) -> Vec<usize> {
    value.as_array().unwrap().iter().map(|x| x.as_u64().unwrap() as usize).collect()
}

fn scores_of(case: &Value, probs: &str) -> Scores {
    let n_classes = case["n_classes"].as_u64().unwrap() as usize;
    Scores::new(&floats(&case[probs]), n_classes, &labels(&case["labels"])).unwrap()
}

#[track_caller]
fn close(got: f64, want: &Value, what: &str) {
    let want = want.as_f64().unwrap();
    assert!((got - want).abs() <= 1e-9 * want.abs().max(1.0), "{what}: {got} is not {want}");
}

#[track_caller]
fn all_close(got: &[f64], want: &Value, what: &str) {
    let want_all = want.as_array().unwrap();
    assert_eq!(got.len(), want_all.len(), "{what}");
    for (got, want) in got.iter().zip(want_all) {
        close(*got, want, what);
    }
}

fn for_each_case(check: impl Fn(&Value, &Scores, &str)) {
    let reference = reference();
    let cases = reference["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 4);
    for case in cases {
        check(case, &scores_of(case, "probs"), case["name"].as_str().unwrap());
    }
}

fn for_each_class(check: impl Fn(&Value, &[f64], &[bool], &str)) {
    for_each_case(|case, scores, name| {
        for (k, class) in case["classes"].as_array().unwrap().iter().enumerate() {
            check(class, &scores.of_class(k), &scores.is_class(k), &format!("{name}, class {k}"));
        }
    });
}

#[test]
fn overall_measures_equal_scikit_learn_s() {
    for_each_case(|case, scores, name| {
        let measures = evaluate(scores);
        // scikit-learn has no macro specificity; its parts are checked by class below.
        for measure in Measure::OVERALL.into_iter().filter(|m| *m != Measure::MacroSpecificity) {
            close(
                measures.get(measure).unwrap(),
                &case[measure.key()],
                &format!("{name}: {}", measure.key()),
            );
        }
        assert_eq!(serde_json::to_value(&measures.confusion).unwrap(), case["confusion"], "{name}");
        close(brier_score(scores), &case["brier"], name);
        close(log_loss(scores), &case["log_loss"], name);
    });
}

#[test]
fn class_measures_equal_scikit_learn_s() {
    for_each_case(|case, scores, name| {
        let measures = evaluate(scores);
        for (k, class) in case["classes"].as_array().unwrap().iter().enumerate() {
            assert_eq!(measures.classes[k].support, class["support"].as_u64().unwrap());
            for measure in Measure::of_class(k) {
                let what = format!("{name}: {} of {k}", measure.key());
                close(measures.get(measure).unwrap(), &class[measure.key()], &what);
            }
        }
    });
}

#[test]
fn curves_equal_scikit_learn_s() {
    for_each_class(|class, score_n, positive_n, what| {
        let roc = roc_curve(score_n, positive_n).unwrap();
        let rates: Vec<f64> = roc.iter().map(|p| p.false_positive_rate).collect();
        let sensitivities: Vec<f64> = roc.iter().map(|p| p.sensitivity).collect();
        let thresholds: Vec<f64> = roc.iter().filter_map(|p| p.threshold).collect();
        all_close(&rates, &class["roc"]["fpr"], what);
        all_close(&sensitivities, &class["roc"]["tpr"], what);
        all_close(&thresholds, &class["roc"]["thresholds"], what);

        let pr = pr_curve(score_n, positive_n).unwrap();
        // scikit-learn keeps the points after full recall too; so do we.
        all_close(&pr.iter().map(|p| p.recall).collect::<Vec<_>>(), &class["pr"]["recall"], what);
        all_close(&pr.iter().map(|p| p.precision).collect::<Vec<_>>(), &class["pr"]["precision"], what);
        all_close(&pr.iter().map(|p| p.threshold).collect::<Vec<_>>(), &class["pr"]["thresholds"], what);
        close(auroc(score_n, positive_n).unwrap(), &class["auroc"], what);
        close(average_precision(score_n, positive_n).unwrap(), &class["auprc"], what);
    });
}

#[test]
fn delong_s_variance_equals_the_double_sum() {
    for_each_class(|class, score_n, positive_n, what| {
        let got = delong(score_n, positive_n).unwrap();
        close(got.auroc, &class["auroc"], what);
        close(got.variance, &class["delong_variance"], what);
    });
}

#[test]
fn recalibration_equals_statsmodels() {
    for_each_class(|class, _, positive_n, what| {
        let got = recalibrate(&floats(&class["recalibration_input"]), positive_n).unwrap();
        let want = &class["recalibration"];
        let got = serde_json::to_value(got).unwrap();
        for key in ["slope", "intercept", "slope_standard_error", "intercept_standard_error", "in_the_large"]
        {
            let (got, want) = (got[key].as_f64().unwrap(), want[key].as_f64().unwrap());
            assert!((got - want).abs() < 1e-6, "{what}: {key} {got} is not {want}");
        }
    });
}

#[test]
fn reliability_bins_equal_scikit_learn_s() {
    for_each_class(|class, score_n, positive_n, what| {
        let bins = reliability(score_n, positive_n, 10);
        // scikit-learn searches edges of linspace, so a score on an edge may differ:
        // the comparison is made where no score lies on one.
        let on_an_edge = |p: &f64| (p * 10.0 - (p * 10.0).round()).abs() < 1e-9 && *p > 0.0 && *p < 1.0;
        if !score_n.iter().any(on_an_edge) {
            let observed: Vec<f64> = bins.iter().filter_map(|b| b.observed).collect();
            let mean: Vec<f64> = bins.iter().filter_map(|b| b.mean_probability).collect();
            all_close(&observed, &class["reliability"]["observed"], what);
            all_close(&mean, &class["reliability"]["mean_probability"], what);
        }
        assert_eq!(bins.iter().map(|b| b.n).sum::<u64>(), score_n.len() as u64);
        assert!(expected_calibration_error(&bins).unwrap() <= 1.0);
    });
}

#[test]
fn net_benefit_equals_its_definition() {
    let reference = reference();
    let scores = scores_of(&reference["pair"], "first");
    let want = &reference["net_benefit"];
    let curve =
        net_benefit_curve(&scores.of_class(0), &scores.is_class(0), &floats(&want["thresholds"])).unwrap();
    all_close(&curve.iter().map(|p| p.model).collect::<Vec<_>>(), &want["model"], "model");
    all_close(&curve.iter().map(|p| p.everybody).collect::<Vec<_>>(), &want["everybody"], "everybody");
}

#[test]
fn intervals_equal_scipy_s() {
    let want = &reference()["bca"];
    let (estimate, resampled) = (want["estimate"].as_f64().unwrap(), floats(&want["resampled"]));
    let acceleration = want["acceleration"].as_f64().unwrap();
    let (low, high) = bca_interval(estimate, &resampled, acceleration, 0.95).unwrap();
    close(low, &want["low"], "BCa low");
    close(high, &want["high"], "BCa high");
    let (low, high) = percentile_interval(&resampled, 0.95).unwrap();
    close(low, &want["percentile_low"], "percentile low");
    close(high, &want["percentile_high"], "percentile high");
    for entry in reference()["wilson"].as_array().unwrap() {
        let count = |key: &str| entry[key].as_u64().unwrap();
        let (low, high) = wilson_interval(count("successes"), count("trials"), 0.95).unwrap();
        all_close(&[low, high], &entry["bounds"], "Wilson");
    }
}

#[test]
fn paired_delong_equals_the_double_sum() {
    let reference = reference();
    let pair = &reference["pair"];
    let (first, second) = (scores_of(pair, "first"), scores_of(pair, "second"));
    for (k, want) in pair["delong"].as_array().unwrap().iter().enumerate() {
        let got = delong_paired(&first.of_class(k), &second.of_class(k), &first.is_class(k)).unwrap();
        close(got.difference, &want["difference"], "difference");
        close(got.standard_error, &want["standard_error"], "standard error");
        close(got.p_value.unwrap(), &want["p_value"], "p");
    }
}

#[test]
fn mcnemar_and_holm_equal_statsmodels() {
    let reference = reference();
    for entry in reference["mcnemar"].as_array().unwrap() {
        let count = |key: &str| entry[key].as_u64().unwrap() as usize;
        let (b, c) = (count("only_first"), count("only_second"));
        let first: Vec<bool> = [vec![true; b + 50], vec![false; c + 30]].concat();
        let second: Vec<bool> = [vec![false; b], vec![true; 50 + c], vec![false; 30]].concat();
        let got = mcnemar(&first, &second).unwrap();
        assert_eq!((got.only_first_right, got.only_second_right), (b as u64, c as u64));
        close(got.p_value, &entry["p_value"], &format!("{b} against {c}"));
    }
    let want = &reference["holm"];
    all_close(&holm(&floats(&want["p_values"])), &want["adjusted"], "Holm");
}

#[test]
fn the_normal_distribution_is_exact() {
    let want = &reference()["normal"];
    for (z, want) in floats(&want["z"]).into_iter().zip(floats(&want["cdf"])) {
        let got = normal_cdf(z);
        assert!((got / want - 1.0).abs() < 1e-12, "cdf({z}) = {got} is not {want}");
    }
    for (p, want) in floats(&want["p"]).into_iter().zip(floats(&want["quantile"])) {
        let got = normal_quantile(p).unwrap();
        assert!((got - want).abs() < 1e-10, "quantile({p}) = {got} is not {want}");
    }
}

#[test]
fn the_bootstrap_s_width_agrees_with_delong_s() {
    let reference = reference();
    let scores = scores_of(&reference["cases"][3], "probs");
    let case_n: Vec<usize> = (0..scores.len()).collect();
    let summary = summarise(&scores, &case_n, &Bootstrap::default()).unwrap();
    for k in 0..3 {
        let estimate = summary.estimate(Measure::Auroc(k));
        let width = estimate.high.unwrap() - estimate.low.unwrap();
        let (low, high) = delong(&scores.of_class(k), &scores.is_class(k)).unwrap().interval(0.95).unwrap();
        assert!((width / (high - low) - 1.0).abs() < 0.1, "class {k}: {width} against {}", high - low);
    }
}
