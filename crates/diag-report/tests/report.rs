//! The page and its numbers, from drawn run folders.

#![expect(clippy::unwrap_used, reason = "in a test, a failed unwrap is a failed test")]

mod common;

use std::path::Path;

use common::{Fixture, write, write_maps};
use diag_data::case::Split;
use diag_data::heatmaps::Explanations;
use diag_data::predictions::Predictions;
use diag_data::run::{RunDir, RunInfo};
use diag_decision::{Decision, DecisionMetrics, cases_of};
use diag_metrics::{Aggregation, Bootstrap, Measure, Scores, aggregate, evaluate, summarise};
use diag_report::{Card, NamedEstimate, Options, ReportError, compute, csv_tables, render};

fn options() -> Options {
    Options { n_resamples: 200, ..Options::default() }
}

fn page_of(fixture: &Fixture) -> String {
    let folder = tempfile::tempdir().unwrap();
    let run = write(folder.path(), "drawn", fixture).unwrap();
    render(&[run], &options()).unwrap()
}

#[test]
fn all_sections_are_there() {
    let page = page_of(&Fixture::small());
    for id in [
        "summary",
        "data",
        "training",
        "performance",
        "calibration",
        "explanations",
        "failures",
        "model-card",
        "cases",
        "provenance",
        "checklist",
    ] {
        assert!(page.contains(&format!("<section id=\"run1-{id}\">")), "{id}");
        assert!(page.contains(&format!("href=\"#run1-{id}\"")), "link to {id}");
    }
    assert!(page.contains("<section id=\"definitions\">"));
    assert!(page.contains("Research use only, not for clinical decisions."));
    assert!(page.contains("Alpha, effective number of samples") && page.contains("Beta, weight of"));
    assert!(page.contains("fewer than 10"), "a small class is warned about in words");
    assert_eq!(page.matches("<article class=\"case\"").count(), 10);
    assert!(page.contains("data:image/png;base64,"));
}

#[test]
fn synthetic_data_is_called_so_first() {
    let page = page_of(&Fixture::small());
    let title = page.split("<title>").nth(1).unwrap().split("</title>").next().unwrap();
    assert!(title.contains("synthetic"), "{title}");
    let lead = page.split("<p class=\"lead\">").nth(1).unwrap();
    assert!(lead.starts_with("The data of this report is synthetic"), "{}", &lead[..80]);
}

#[test]
fn nothing_is_asked_of_a_network() {
    let page = page_of(&Fixture::small());
    assert!(!page.contains("http:") && !page.contains("https:"), "no address at all");
    for part in page.split("src=\"").skip(1) {
        assert!(part.starts_with("data:image/png;base64,"), "{}", &part[..40]);
    }
    for part in page.split("href=\"").skip(1) {
        assert!(part.starts_with('#'), "{}", &part[..40]);
    }
    for word in ["@import", "url(", "fetch(", "XMLHttpRequest", "<link", "<iframe"] {
        assert!(!page.contains(word), "{word}");
    }
}

#[test]
fn user_text_stays_text() {
    let mut fixture = Fixture::small();
    fixture.labels =
        vec!["<script>alert(1)</script>".into(), "\"><img src=x>".into(), "normal & well".into()];
    fixture.model = Some("<script>model</script>".into());
    let page = page_of(&fixture);
    let folder = tempfile::tempdir().unwrap();
    let run = write(folder.path(), "drawn", &fixture).unwrap();
    write_maps(&run, &fixture).unwrap();
    std::fs::write(run.plan(), "# <script>plan</script>").unwrap();
    let page = page + &render(&[run], &options()).unwrap();
    assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;"));
    assert!(page.contains("&lt;script&gt;model&lt;/script&gt;") && page.contains("&lt;script&gt;plan"));
    assert!(!page.contains("<script>alert") && !page.contains("<img src=x>"));
    assert_eq!(page.matches("<script>").count(), 2, "only our own, once a page");
}

#[test]
fn equal_input_gives_equal_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let runs = ["one", "two"].map(|name| write(folder.path(), name, &Fixture::small()).unwrap());
    let with_threads = |n: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
        pool.install(|| render(&runs, &options()).unwrap())
    };
    assert_eq!(with_threads(1), with_threads(2));
}

#[test]
fn the_numbers_equal_those_of_diag_metrics() {
    let folder = tempfile::tempdir().unwrap();
    let run = write(folder.path(), "drawn", &Fixture::small()).unwrap();
    let numbers = compute(std::slice::from_ref(&run), &options()).unwrap();
    let page = render(std::slice::from_ref(&run), &options()).unwrap();

    // By another way: straight from the table of predictions.
    let labels = run.read_info().unwrap().labels;
    let table = Predictions::read(&run.predictions(), &labels).unwrap();
    let mut names: Vec<_> = table.rows.iter().map(|row| row.case_id.clone()).collect();
    names.sort();
    names.dedup();
    let case_n: Vec<usize> =
        table.rows.iter().map(|row| names.iter().position(|n| *n == row.case_id).unwrap()).collect();
    let probs: Vec<f64> = table
        .rows
        .iter()
        .flat_map(|row| Predictions::final_probabilities(row).iter().map(|&p| f64::from(p)))
        .collect();
    let truth: Vec<usize> = table.rows.iter().map(|row| row.label.index()).collect();
    let slices = Scores::new(&probs, 3, &truth).unwrap();
    let cases = aggregate(&slices, &case_n, Aggregation::Mean).unwrap().scores;
    let each: Vec<usize> = (0..cases.len()).collect();
    let summary = summarise(&cases, &each, &Bootstrap { n_resamples: 200, ..Bootstrap::default() }).unwrap();

    assert_eq!(numbers.runs[0].by_case.n, 10);
    for property in ["manufacturer", "kernel", "slice thickness", "sex", "age"] {
        let of_property = numbers.runs[0].subgroups.iter().filter(|group| group.property == property);
        let (n, n_right) = of_property.fold((0, 0), |(n, n_right), group| {
            (n + group.cases_per_class.iter().sum::<u64>(), n_right + group.n_right)
        });
        let all_right = summary.measures.get(Measure::Accuracy).unwrap() * 10.0;
        assert_eq!((n, n_right as f64), (10, all_right.round()), "{property}");
    }
    let mut n_defined = 0;
    for measure in Measure::all(3) {
        let of_mean = &numbers.runs[0].by_case_mean;
        let named = |e: &&NamedEstimate| e.measure == measure.key() && e.class == measure.class();
        let got = of_mean.iter().find(named).unwrap();
        assert_eq!(got.value, summary.measures.get(measure), "{measure:?}");
        let by_slice = numbers.runs[0].by_slice.get(measure).unwrap().value;
        match (by_slice, evaluate(&slices).get(measure)) {
            // The order of rows differs, and with it the last digit of a sum.
            (Some(a), Some(b)) => assert!((a - b).abs() < 1e-12, "{measure:?} by slice"),
            (a, b) => assert_eq!(a, b, "{measure:?} by slice"),
        }
        if let Some(value) = got.value.filter(|_| measure.class().is_none()) {
            n_defined += 1;
            assert!(
                page.contains(&format!("{value:.3}").replace('-', "−")),
                "{measure:?} {value} is on the page"
            );
        }
    }
    assert!(n_defined > 9);
}

#[test]
fn runs_on_the_same_cases_are_tested_in_pairs() {
    let folder = tempfile::tempdir().unwrap();
    let first = write(folder.path(), "first", &Fixture::small()).unwrap();
    let better = Fixture { skill: 6.0, seed: 5, ..Fixture::small() };
    let second = write(folder.path(), "second", &better).unwrap();
    let numbers = compute(&[first.clone(), second.clone()], &options()).unwrap();
    let comparison = &numbers.comparisons[0];
    assert_eq!((comparison.first.as_str(), comparison.not_paired.as_deref()), ("first", None));
    assert_eq!(comparison.tests.len(), 4 + 3 + 1);
    assert!(comparison.tests[0].difference.unwrap() > 0.0, "the second is better");
    assert!(comparison.tests.iter().all(|t| t.p_holm >= t.p_value));
    let page = render(&[first.clone(), second], &options()).unwrap();
    assert!(page.contains("second against first") && page.contains("run2-performance"));

    let other = Fixture { test_cases: vec![3, 4, 2], ..Fixture::small() };
    let third = write(folder.path(), "third", &other).unwrap();
    let numbers = compute(&[first, third], &options()).unwrap();
    assert_eq!(numbers.comparisons[0].not_paired.as_deref(), Some("the runs were tested on different cases"));
}

#[test]
fn runs_of_one_name_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let runs =
        ["<b>one", "two"].map(|above| write(&folder.path().join(above), "run", &Fixture::small()).unwrap());
    let numbers = compute(&runs, &options()).unwrap();
    assert_eq!(numbers.comparisons[0].first, "<b>one/run");
    assert_eq!(numbers.comparisons[0].second, "two/run");
    let page = render(&runs, &options()).unwrap();
    assert!(page.contains("two/run against &lt;b&gt;one/run") && !page.contains("<b>one"));
    assert!(page.contains("Caution, run "), "few cases are warned about beside the tests");
    let twice = compute(&[runs[0].clone(), runs[0].clone()], &options()).unwrap();
    assert_eq!(twice.runs[1].name, "<b>one/run (2)");
}

#[test]
fn curves_have_bands_that_hold_them_and_the_tables_behind_them_too() {
    let folder = tempfile::tempdir().unwrap();
    let fixture = Fixture { test_cases: vec![9, 9, 9], ..Fixture::small() };
    let run = write(folder.path(), "drawn", &fixture).unwrap();
    let numbers = compute(std::slice::from_ref(&run), &options()).unwrap();
    let of_run = &numbers.runs[0];
    for (k, class) in of_run.calibration.iter().enumerate() {
        assert_eq!(class.net_benefit_band.len(), class.net_benefit.len());
        let inside = class.net_benefit.iter().zip(&class.net_benefit_band);
        assert!(inside.filter(|(p, b)| b.low <= p.model && p.model <= b.high).count() > 90, "class {k}");
        for bin in class.bins.iter().filter(|bin| bin.bin.n > 0) {
            let observed = bin.bin.observed.unwrap();
            assert!(bin.low.unwrap() <= observed && observed <= bin.high.unwrap());
        }
        for unit in [&of_run.by_case, &of_run.by_slice] {
            assert_eq!(unit.precision_recall_band[k].as_ref().unwrap().len(), 100);
        }
    }
    let page = render(&[run], &options()).unwrap();
    for title in ["Reliability of covid-19, by case", "Decision curve of normal, by case"] {
        let figure = page.split(title).nth(1).unwrap().split("</figure>").next().unwrap();
        assert!(figure.contains("95 % low") && figure.contains(", interval</td>"), "{title}");
    }
    assert!(page.contains("on everybody"));
}

#[test]
fn the_decided_rule_is_the_headline_and_says_what_it_rests_on() {
    let folder = tempfile::tempdir().unwrap();
    let run = write(folder.path(), "drawn", &Fixture::small()).unwrap();
    let numbers = compute(std::slice::from_ref(&run), &options()).unwrap();
    let model_sha256 = run.read_info().unwrap().model_sha256.unwrap();
    let labels = run.read_info().unwrap().labels;
    let decision = Decision::read(&run.decision(), &labels, &model_sha256).unwrap();
    let table = Predictions::read(&run.predictions(), &labels).unwrap();
    let rows: Vec<_> = cases_of(&table.rows, Split::Test)
        .unwrap()
        .iter()
        .map(|case| decision.predict(case).unwrap())
        .collect();
    let want = DecisionMetrics::of(decision.terms(), &rows).unwrap();
    let of_run = &numbers.runs[0];
    for measure in Measure::all(3) {
        assert_eq!(of_run.by_case.get(measure).unwrap().value, want.case.get(measure), "{measure:?}");
    }
    let point = &of_run.operating_point;
    assert_eq!(point.n_validation_cases, 30);
    assert_eq!(point.sensitivity, want.at_threshold.unwrap().sensitivity);
    assert_eq!(point.coverage, Some(want.sets.unwrap().coverage));
    for case in &of_run.cases {
        let row = rows.iter().find(|row| row.case_id == case.case_id).unwrap();
        assert_eq!((&case.probabilities, case.call), (&row.probability_k, row.call));
        assert_eq!(case.mean_probabilities, row.mean_probability_k);
    }
    let page = render(std::slice::from_ref(&run), &options()).unwrap();
    assert!(page.contains("Fitted on 30 validation cases") && page.contains(&point.threshold_basis));
    for warning in &point.rule_warnings {
        assert!(page.contains(warning), "{warning}");
    }
}

/// Renders, and says which two files of the run an error names.
#[track_caller]
fn check_apart(run: &RunDir, file: std::path::PathBuf, other: std::path::PathBuf) {
    let error = render(std::slice::from_ref(run), &options()).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, ReportError::Apart { .. }), "{text}");
    for path in [file, other] {
        assert!(text.contains(path.to_str().unwrap()), "{text}");
    }
}

#[test]
fn predictions_with_two_cases_swapped_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let run = write(folder.path(), "drawn", &Fixture::small()).unwrap();
    let labels = run.read_info().unwrap().labels;
    let mut table = Predictions::read(&run.predictions(), &labels).unwrap();
    let first = table.rows[0].head_probabilities.clone();
    let last = table.rows.len() - 1;
    table.rows[0].head_probabilities = std::mem::replace(&mut table.rows[last].head_probabilities, first);
    table.write(&run.predictions()).unwrap();
    check_apart(&run, run.metrics(), run.predictions());
}

#[test]
fn metrics_that_count_otherwise_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let run = write(folder.path(), "drawn", &Fixture::small()).unwrap();
    let mut metrics: serde_json::Value = diag_data::files::read_json(&run.metrics()).unwrap();
    let count = &mut metrics["splits"]["test"]["decision"]["case"]["confusion"][0][0];
    *count = (count.as_u64().unwrap() + 1).into();
    diag_data::files::write_json(&run.metrics(), &metrics).unwrap();
    check_apart(&run, run.metrics(), run.predictions());
}

#[test]
fn files_of_different_evaluations_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let run = write(folder.path(), "drawn", &Fixture::small()).unwrap();
    let other = write(folder.path(), "other", &Fixture { seed: 2, ..Fixture::small() }).unwrap();
    let own = std::fs::read(run.decision()).unwrap();
    std::fs::copy(other.decision(), run.decision()).unwrap();
    check_apart(&run, run.metrics(), run.decision());
    std::fs::write(run.decision(), own).unwrap();
    let info = run.read_info().unwrap();
    run.write_info(&RunInfo { model_sha256: Some("other".into()), ..info.clone() }).unwrap();
    check_apart(&run, run.metrics(), run.info());
    run.write_info(&info).unwrap();
    std::fs::write(run.metrics(), r#"{"format_version": 1}"#).unwrap();
    let error = render(std::slice::from_ref(&run), &options()).unwrap_err();
    assert!(matches!(error, ReportError::Version { found: 1, .. }), "{error}");
}

#[test]
fn changed_or_missing_shards_are_said_and_not_shown() {
    let folder = tempfile::tempdir().unwrap();
    let run = write(folder.path(), "drawn", &Fixture::small()).unwrap();
    let sums = folder.path().join("shards/SHA256SUMS");
    let mut text = std::fs::read(&sums).unwrap();
    text.push(b'\n');
    std::fs::write(&sums, text).unwrap();
    let page = render(std::slice::from_ref(&run), &options()).unwrap();
    assert!(page.contains("its hash differs") && !page.contains("src=\"data:image/png"));
    std::fs::remove_dir_all(folder.path().join("shards")).unwrap();
    let page = render(&[run], &options()).unwrap();
    assert!(page.contains("is not there") && !page.contains("src=\"data:image/png"));
}

#[test]
fn pictures_stay_within_their_budget() {
    let folder = tempfile::tempdir().unwrap();
    let run = write(folder.path(), "drawn", &Fixture { side: 64, ..Fixture::small() }).unwrap();
    for budget in [0, 20_000, 60_000] {
        let page =
            render(std::slice::from_ref(&run), &Options { picture_budget: budget, ..options() }).unwrap();
        let bytes: usize = page.split("src=\"").skip(1).map(|p| p.split('"').next().unwrap().len()).sum();
        assert!(bytes <= budget, "{bytes} of {budget}");
        assert_eq!(bytes > 0, budget > 0);
    }
}

#[test]
fn supplied_text_is_marked_as_such() {
    let folder = tempfile::tempdir().unwrap();
    let run = write(folder.path(), "drawn", &Fixture::small()).unwrap();
    let card = Card::from_toml("intended_use = \"Drawn <b>only</b>.\"").unwrap();
    let page = render(&[run], &Options { card, ..options() }).unwrap();
    assert!(page.contains("Drawn &lt;b&gt;only&lt;/b&gt;."));
    assert_eq!(page.matches("◆ supplied").count(), 2, "in the model card and in the checklist");
    assert_eq!(page.matches("Drawn &lt;b&gt;only&lt;/b&gt;.").count(), 2);
    let error = Card::from_toml("no_such_key = \"x\"").unwrap_err();
    assert!(error.to_string().contains("no_such_key"));
}

#[test]
fn what_is_missing_is_named_with_its_fix() {
    let folder = tempfile::tempdir().unwrap();
    let run = write(folder.path(), "drawn", &Fixture::small()).unwrap();
    assert!(matches!(render(&[], &options()), Err(ReportError::NoRun)));
    let error =
        render(std::slice::from_ref(&run), &Options { split: Split::Validation, ..options() }).unwrap_err();
    assert!(matches!(error, ReportError::NoRows { split: Split::Validation, .. }));
    std::fs::remove_file(run.predictions()).unwrap();
    let error = render(&[run], &options()).unwrap_err();
    assert!(error.remedy().contains("diag-train evaluate"), "{}", error.remedy());
    let nowhere = RunDir::new(folder.path().join("nowhere"));
    let error = render(&[nowhere], &options()).unwrap_err();
    assert!(error.to_string().contains("nowhere") && !error.remedy().is_empty());
}

#[test]
fn the_program_writes_the_page_or_says_in_two_lines_why_not() {
    let folder = tempfile::tempdir().unwrap();
    let run = write(folder.path(), "drawn", &Fixture::small()).unwrap();
    let program = |arguments: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_diag-report"));
        command.args(arguments).args(["--resamples", "200"]).output().unwrap()
    };
    let root = run.root().to_str().unwrap();
    let done = program(&[root]);
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    assert_eq!(String::from_utf8_lossy(&done.stdout).trim(), run.report().to_str().unwrap());
    let page = std::fs::read_to_string(run.report()).unwrap();
    assert_eq!(page, render(std::slice::from_ref(&run), &options()).unwrap());

    let out = folder.path().join("elsewhere.html");
    let done = program(&[root, "--json", "--out", out.to_str().unwrap()]);
    let json: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(json["runs"][0]["by_case"]["n"], 10);
    assert!(out.exists());

    let missing = folder.path().join("missing");
    let failed = program(&[missing.to_str().unwrap()]);
    assert_eq!(failed.status.code(), Some(1));
    let text = String::from_utf8_lossy(&failed.stderr).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert!(lines[0].starts_with("error: ") && lines[1].starts_with("  fix: "), "{text}");
    assert!(failed.stdout.is_empty());
    assert_eq!(program(&["--no-such-flag"]).status.code(), Some(2));
    assert_eq!(program(&[root, "--seed", "x"]).status.code(), Some(2));
}

#[test]
fn heat_maps_are_shown_measured_and_within_their_budget() {
    let folder = tempfile::tempdir().unwrap();
    let fixture = Fixture { side: 64, ..Fixture::small() };
    let run = write(folder.path(), "drawn", &fixture).unwrap();
    let without = render(std::slice::from_ref(&run), &options()).unwrap();
    assert!(without.contains("no heat maps were made") && !without.contains("class=\"maps\""));
    write_maps(&run, &fixture).unwrap();
    let page = render(std::slice::from_ref(&run), &options()).unwrap();
    assert!(page.contains("They find lesions better than a point anywhere in the lungs would."));
    let maps = |page: &str| -> serde_json::Value {
        let data = page.split("class=\"maps\">").nth(1).unwrap().split("</script>").next().unwrap();
        serde_json::from_str(data).unwrap()
    };
    let all: usize = maps(&page).as_object().unwrap().values().map(|of| of.as_array().unwrap().len()).sum();
    assert_eq!(all, 10 * 2 * (4 * 2 + 1), "every map of every chosen slice");
    let small = Options { picture_budget: 40_000, ..options() };
    let page = render(std::slice::from_ref(&run), &small).unwrap();
    let some: usize = maps(&page).as_object().unwrap().values().map(|of| of.as_array().unwrap().len()).sum();
    assert!((1..all).contains(&some), "{some} of {all}");

    let numbers = compute(std::slice::from_ref(&run), &options()).unwrap();
    let explained = numbers.runs[0].explanations.as_ref().unwrap();
    assert_eq!(
        (explained.n_slices, explained.n_slices_with_lesion, explained.n_cases_with_lesion),
        (20, 12, 6)
    );
    let cam =
        explained.maps.iter().find(|map| (map.head.as_str(), map.method) == ("final", "grad-cam")).unwrap();
    // By another way: each case's mean, then the mean of cases.
    let rows = diag_data::heatmaps::read(&run.heatmaps(), &run.read_info().unwrap().labels).unwrap();
    let mut by_case = std::collections::BTreeMap::<_, Vec<f64>>::new();
    for row in rows.iter().filter(|row| row.head == "final" && row.method.as_str() == "grad-cam") {
        if let Some(agreement) = row.agreement {
            by_case.entry(&row.case_id).or_default().push(f64::from(agreement.overlap));
        }
    }
    let means: Vec<f64> = by_case.values().map(|v| v.iter().sum::<f64>() / v.len() as f64).collect();
    let want = means.iter().sum::<f64>() / means.len() as f64;
    assert!((cam.overlap.unwrap().value - want).abs() < 1e-12);
    assert!(cam.overlap.unwrap().low.unwrap() < want && want < cam.overlap.unwrap().high.unwrap());
    assert!(numbers.runs[0].subgroups.iter().any(|group| group.property == "lesion load"));
}

#[test]
fn maps_of_other_weights_or_with_changed_bytes_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let run = write(folder.path(), "drawn", &Fixture::small()).unwrap();
    write_maps(&run, &Fixture::small()).unwrap();
    let bytes = std::fs::read(run.heatmaps()).unwrap();
    std::fs::write(run.heatmaps(), [&bytes[..], b"x"].concat()).unwrap();
    check_apart(&run, run.explanations(), run.heatmaps());
    std::fs::write(run.heatmaps(), bytes).unwrap();
    let mut how: Explanations = diag_data::files::read_json(&run.explanations()).unwrap();
    how.model_sha256 = "other".into();
    diag_data::files::write_json(&run.explanations(), &how).unwrap();
    check_apart(&run, run.explanations(), run.info());
}

#[test]
fn weights_that_are_not_those_of_the_run_are_said_first() {
    let folder = tempfile::tempdir().unwrap();
    let run = write(folder.path(), "drawn", &Fixture::small()).unwrap();
    std::fs::write(run.weights(), b"other").unwrap();
    let page = render(&[run], &options()).unwrap();
    assert!(page.contains("A hash differs"), "the chain is broken, and the summary says so");
}

#[test]
fn a_shared_patient_is_said_first() {
    let folder = tempfile::tempdir().unwrap();
    let fixture = Fixture { leaks: true, ..Fixture::small() };
    let run = write(folder.path(), "drawn", &fixture).unwrap();
    let numbers = compute(std::slice::from_ref(&run), &options()).unwrap();
    let patient = numbers.runs[0].leakage.iter().find(|leak| leak.what == "patient").unwrap();
    assert_eq!(
        (patient.n_shared, &patient.cases[..]),
        (1, &["test-0-000".to_string(), "train-0-000".into()][..])
    );
    assert!(numbers.runs[0].warnings.iter().any(|warning| warning.contains("share patient")));
    let page = render(&[run], &options()).unwrap();
    assert!(page.contains("Yes: results on shared data are too good to be believed."));

    let clean =
        compute(&[write(&folder.path().join("b"), "drawn", &Fixture::small()).unwrap()], &options()).unwrap();
    let shared: Vec<usize> = clean.runs[0].leakage.iter().map(|leak| leak.n_shared).collect();
    assert_eq!(shared, [0; 4]);
    assert_eq!(clean.runs[0].leakage[3].n_distinct, clean.runs[0].leakage[3].n_all, "pixels were compared");
}

#[test]
fn every_wrong_case_is_a_failure_case() {
    let folder = tempfile::tempdir().unwrap();
    let run = write(folder.path(), "drawn", &Fixture::small()).unwrap();
    let numbers = compute(std::slice::from_ref(&run), &options()).unwrap();
    let page = render(&[run], &options()).unwrap();
    let section =
        page.split("<section id=\"run1-failures\">").nth(1).unwrap().split("</section>").next().unwrap();
    let wrong: Vec<_> = numbers.runs[0].cases.iter().filter(|case| case.label != case.predicted).collect();
    assert!(!wrong.is_empty());
    assert_eq!(section.matches("<tr>").count(), 1 + wrong.len());
    assert!(wrong.iter().all(|case| section.contains(&case.case_id)));
}

#[test]
fn the_documented_keys_are_those_of_the_json() {
    let folder = tempfile::tempdir().unwrap();
    let runs = ["one", "two"].map(|name| {
        let run = write(folder.path(), name, &Fixture::small()).unwrap();
        write_maps(&run, &Fixture::small()).unwrap();
        run
    });
    let numbers = serde_json::to_value(compute(&runs, &options()).unwrap()).unwrap();
    let mut keys = std::collections::BTreeSet::new();
    collect_keys(&numbers, &mut keys);
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/report-numbers.md");
    let docs = std::fs::read_to_string(docs).unwrap();
    let table =
        docs.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`').map(|(keys, _)| keys));
    let documented: std::collections::BTreeSet<String> = table.map(String::from).collect();
    assert_eq!(documented, keys);
}

fn collect_keys(value: &serde_json::Value, keys: &mut std::collections::BTreeSet<String>) {
    match value {
        serde_json::Value::Object(map) => map.iter().for_each(|(key, value)| {
            keys.insert(key.clone());
            collect_keys(value, keys);
        }),
        serde_json::Value::Array(values) => values.iter().for_each(|value| collect_keys(value, keys)),
        _ => {}
    }
}

#[test]
fn every_table_has_its_csv() {
    let folder = tempfile::tempdir().unwrap();
    let runs = ["one", "two"].map(|name| {
        let run = write(folder.path(), name, &Fixture::small()).unwrap();
        write_maps(&run, &Fixture::small()).unwrap();
        run
    });
    let numbers = compute(&runs, &options()).unwrap();
    let tables = csv_tables(&runs, &numbers, &options()).unwrap();
    assert_eq!(tables.len(), 21);
    for (name, bytes) in &tables {
        let text = String::from_utf8(bytes.clone()).unwrap();
        let columns = text.lines().next().unwrap().split(',').count();
        assert!(text.lines().count() > 1, "{name} is empty");
        assert!(text.starts_with("run,") && columns > 3, "{name}: {}", &text[..40]);
    }
    let measures = &tables.iter().find(|(name, _)| *name == "measures.csv").unwrap().1;
    let accuracy = numbers.runs[1].by_case.get(Measure::Accuracy).unwrap();
    let line = format!("two,case,{},,{},", accuracy.measure, accuracy.value.unwrap());
    assert!(String::from_utf8_lossy(measures).lines().any(|l| l.starts_with(&line)), "{line}");
}
