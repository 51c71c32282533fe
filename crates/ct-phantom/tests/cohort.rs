//! What cohort files may say, and what follows from them without rendering.

use ct_phantom::{CohortSpec, Label, Split};

const VALID: &str = r#"
name = "tiny"
description = "for tests"
cases = 40
slices_per_case = [3, 6]
placement = "thinned"
z_coverage = [0.2, 0.9]
severity = [0.2, 1.0]
sick_slices = [0.5, 1.0]
siemens = 0.5
label_noise = 0.15

[ratio]
"covid-19" = 1
normal = 2
"bacterial-pneumonia" = 1
"#;

#[track_caller]
fn refuses(replace: &str, with: &str, key: &str) {
    assert!(VALID.contains(replace), "the case is out of date: {replace}");
    let err = CohortSpec::from_toml("tiny", &VALID.replace(replace, with)).expect_err("must be refused");
    let text = err.to_string();
    assert!(text.contains(key), "{text:?} does not name {key:?}");
    assert!(err.is_usage() && !err.remedy().is_empty());
}

#[test]
fn wrong_files_are_refused_by_key() {
    refuses("siemens = 0.5", "siemens = 0.5\nsiemans = 0.5", "siemans");
    refuses("normal = 2", "normal = 0", "ratio.normal");
    refuses("normal = 2", "normal = -1", "ratio.normal");
    refuses("normal = 2", "healthy = 2", "healthy");
    refuses("cases = 40", "cases = 0", "cases");
    refuses("cases = 40", "", "groups");
    refuses("[3, 6]", "[1, 6]", "slices_per_case");
    refuses("[3, 6]", "[3, 55]", "slices_per_case");
    refuses("[3, 6]", "[6, 3]", "slices_per_case");
    refuses("label_noise = 0.15", "label_noise = 1.5", "label_noise");
    refuses("label_noise = 0.15", "label_noise = nan", "label_noise");
    refuses("severity = [0.2, 1.0]", "severity = [0.9, 0.2]", "severity");
    refuses("z_coverage = [0.2, 0.9]", "z_coverage = [0.2, 0.3]", "z_coverage");
    refuses("placement = \"thinned\"", "placement = \"random\"", "random");
}

#[test]
fn impossible_totals_are_refused() {
    let groups = "[[groups]]\nlabel = \"normal\"\ncases = 2\nslices_total = 13\n";
    let text = VALID.replace("cases = 40", "").split("[ratio]").next().map(|head| format!("{head}{groups}"));
    let err = CohortSpec::from_toml("tiny", &text.unwrap_or_default()).expect_err("2 cases of at most 6");
    assert!(err.to_string().contains("slices_total"), "{err}");
}

#[test]
fn ratio_and_label_noise_are_exact() {
    let spec = CohortSpec::from_toml("tiny", VALID).expect("valid");
    for seed in 0..5 {
        let plan = spec.plan(seed);
        let counts = Label::ALL.map(|label| plan.iter().filter(|case| case.true_label == label).count());
        assert_eq!(counts, [10, 20, 10]);
        let flipped = plan.iter().filter(|case| case.given_label != case.true_label).count();
        assert_eq!(flipped, 6, "15 % of 40");
        assert!(plan.iter().all(|case| (3..=6).contains(&case.n_slices)));
        assert!(plan.iter().all(|case| (case.severity == 0.0) == (case.true_label == Label::Normal)));
    }
}

/// Table 1 of the COVID19-Diag data card: cases and images by class and split.
const TABLE_1: [(Label, Split, usize, u32); 6] = [
    (Label::Covid19, Split::Train, 43, 1256),
    (Label::Covid19, Split::Test, 18, 513),
    (Label::Normal, Split::Train, 67, 2674),
    (Label::Normal, Split::Test, 28, 1150),
    (Label::BacterialPneumonia, Split::Train, 48, 980),
    (Label::BacterialPneumonia, Split::Test, 21, 409),
];

#[test]
fn paper_cohort_is_table_1() {
    let spec = CohortSpec::load("paper").expect("embedded");
    for seed in [1, 2, 77] {
        let plan = spec.plan(seed);
        assert_eq!(plan.len(), 225);
        for (label, split, n_cases, n_slices) in TABLE_1 {
            let cases: Vec<_> =
                plan.iter().filter(|case| case.true_label == label && case.split == Some(split)).collect();
            assert_eq!(cases.len(), n_cases, "{label} {split:?}");
            assert_eq!(cases.iter().map(|case| case.n_slices).sum::<u32>(), n_slices, "{label} {split:?}");
            assert!(cases.iter().all(|case| (2..=54).contains(&case.n_slices)));
        }
    }
}

#[test]
fn scanner_follows_the_label_only_when_asked() {
    let shortcut = VALID.replace("siemens = 0.5", "siemens = 0.5\nscanner_label_correlation = 1.0");
    let of = |text: &str| {
        let plan = CohortSpec::from_toml("tiny", text).expect("valid").plan(3);
        let share = |label| {
            let cases: Vec<_> = plan.iter().filter(|case| case.true_label == label).collect();
            let siemens = cases.iter().filter(|case| case.vendor == ct_phantom::Vendor::Siemens).count();
            siemens as f64 / cases.len() as f64
        };
        [share(Label::Covid19), share(Label::Normal)]
    };
    assert_eq!(of(&shortcut), [1.0, 0.0]);
    let [covid, normal] = of(VALID);
    assert!((0.2..=0.8).contains(&covid) && (0.2..=0.8).contains(&normal), "{covid} {normal}");
}
