//! Results as words or JSON, for standard output.

use std::path::Path;

use diag_data::external::External;
use diag_data::trivial::{Baseline, TrivialAudit};
use diag_train::audit::{NoiseAudit, ShortcutAudit};
use diag_train::evaluate::Metrics;
use diag_train::explain::Explained;
use diag_train::export::{Exported, SeenHashes};
use diag_train::find_rate::FoundRate;
use diag_train::fit::FitSummary;
use serde::Serialize;

use super::output::Output;

/// Suspect slices that are listed in words.
const N_SUSPECTS: usize = 20;

/// One JSON document.
pub fn json(value: &impl Serialize) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default()
}

/// How a training ended.
pub fn fit_words(summary: &FitSummary, run: &Path) -> String {
    format!(
        "trained {} epochs in {:.1} s, kept epoch {}: {}",
        summary.epochs.len(),
        summary.train_seconds,
        summary.best_epoch,
        run.display()
    )
}

/// The same as JSON.
pub fn fit_json(summary: &FitSummary) -> String {
    serde_json::json!({
        "epochs": summary.epochs.len(),
        "best_epoch": summary.best_epoch,
        "train_seconds": summary.train_seconds,
    })
    .to_string()
}

/// The measures of an evaluation, and the decided rule.
pub fn metrics_table(metrics: &Metrics) -> String {
    let mut lines = vec![format!(
        "{:<12}{:<18}{:>6}{:>10}{:>10}{:>10}{:>10}",
        "split", "unit", "n", "accuracy", "balanced", "macro-F1", "AUROC"
    )];
    for (split, of_split) in &metrics.splits {
        let decided = [("case, decided".to_owned(), &of_split.decision.case)];
        let cases = of_split.case.iter().map(|(how, measures)| (format!("case, {how}"), measures));
        let cases = decided.into_iter().chain(cases);
        for (unit, measures) in cases.chain([("slice".to_owned(), &of_split.slice)]) {
            let number = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.3}"));
            lines.push(format!(
                "{split:<12}{unit:<18}{:>6}{:>10}{:>10}{:>10}{:>10}",
                measures.n,
                number(measures.accuracy),
                number(measures.balanced_accuracy),
                number(measures.macro_f1),
                number(measures.macro_auroc)
            ));
        }
    }
    let rule = &metrics.rule;
    for (what, words) in [
        ("slices", &rule.aggregation),
        ("temperature", &rule.temperature),
        ("threshold", &rule.threshold),
        ("sets", &rule.sets),
    ] {
        lines.push(format!("decided: {what}: {words}"));
    }
    lines.extend(rule.warnings.iter().map(|warning| format!("note: {warning}")));
    lines.join("\n")
}

/// An external validation: what the cohort shares with what the network has seen, then the
/// measures. Something that looks alike is something to look at (exit code 3).
pub fn external(metrics: &Metrics, external: &External, json: bool) -> Output {
    let overlap = &external.overlap;
    let complete = overlap.near_duplicates.is_empty();
    if json {
        let document = serde_json::json!({ "metrics": metrics, "external": external });
        return Output { text: self::json(&document), complete };
    }
    let mut lines = vec![metrics_table(metrics)];
    lines.extend(overlap.patients.caution().map(|caution| format!("note: {caution}")));
    if !complete {
        lines.push(
            "note: slices look like those that the network has seen; look at them before you publish:".into(),
        );
    }
    lines.extend(overlap.near_duplicates.iter().map(|alike| {
        format!(
            "  {} and {} ({}): {} pairs of slices, the nearest differ in {} of 256 bits",
            alike.case_id, alike.seen_as, alike.seen_in, alike.n_pairs, alike.least_distance
        )
    }));
    if let Some(local) = &external.recalibration {
        let number = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.3}"));
        lines.push(format!(
            "calibration on {} local cases would change the log loss of the {} test cases from {} to {}",
            local.n_local_cases,
            local.n_test_cases,
            number(local.frozen.log_loss),
            number(local.local.log_loss)
        ));
    }
    Output { text: lines.join("\n"), complete }
}

/// The slices whose labels look most wrong.
pub fn noise_table(audit: &NoiseAudit) -> String {
    let mut lines =
        vec![format!("{:<24}{:>6}  {:<22}{:<22}{:>8}", "case", "slice", "given", "suggested", "margin")];
    for slice in audit.slices.iter().take(N_SUSPECTS) {
        let known = if slice.known_wrong == Some(true) { "  wrong on purpose" } else { "" };
        lines.push(format!(
            "{:<24}{:>6}  {:<22}{:<22}{:>8.3}{known}",
            slice.case_id, slice.slice_index, slice.given, slice.suggested, slice.margin
        ));
    }
    for (k, precision) in &audit.precision_at {
        lines.push(format!(
            "of the first {k}, {:.0} % are wrong on purpose (of all: {:.0} %)",
            100.0 * precision,
            100.0 * audit.chance
        ));
    }
    lines.join("\n")
}

/// Whether the features know an attribute.
pub fn shortcut_words(audit: &ShortcutAudit) -> String {
    format!(
        "a linear probe tells the {} of test cases with balanced accuracy {:.3}; chance {:.3}, \
         shuffled within classes {:.3}, p = {:.3}",
        match audit.attribute {
            diag_train::audit::Attribute::Manufacturer => "manufacturer",
            diag_train::audit::Attribute::Kernel => "kernel",
        },
        audit.balanced_accuracy,
        audit.chance,
        audit.shuffled,
        audit.p_value
    )
}

/// What a classifier gets that never looks at the lung.
pub fn trivial_table(audit: &TrivialAudit) -> String {
    let number = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.3}"));
    let line = |name: &str, found: &Baseline| {
        let lead = found.network_minus_baseline.map_or(String::new(), |lead| {
            format!("  network {:+.3} ({:+.3} to {:+.3})", lead.value, lead.low, lead.high)
        });
        format!(
            "{name:<34} macro AUROC {} ({} to {}), balanced accuracy {}{lead}",
            number(found.macro_auroc),
            number(found.low),
            number(found.high),
            number(found.balanced_accuracy),
        )
    };
    [
        format!(
            "A classifier that never looks at the lung, fitted on {} cases, measured on {} ({} {}s):",
            audit.n_fitting_cases,
            audit.n_test_cases,
            audit.n_units,
            audit.unit.as_str()
        ),
        line("size, format and scanner", &audit.acquisition),
        line("grey levels", &audit.grey),
        line("both", &audit.both),
        line("both, labels in random order", &audit.permuted),
    ]
    .join("\n")
}

/// The search for a learning rate.
pub fn rate_table(found: &FoundRate) -> String {
    let mut lines = vec![format!("{:>14}{:>12}{:>12}", "rate", "loss", "smoothed")];
    let line = |s: &diag_train::find_rate::RateStep| {
        format!("{:>14.3e}{:>12.4}{:>12.4}", s.learning_rate, s.loss, s.smoothed)
    };
    lines.extend(found.steps.iter().map(line));
    lines.push(format!("suggested learning_rate = {:.1e}", found.suggested));
    lines.join("\n")
}

/// What an explanation wrote.
pub fn explained_words(explained: &Explained, run: &Path) -> String {
    format!(
        "wrote {} maps of {} slices in {} cases ({} slices held against a known lesion): {}",
        explained.n_maps,
        explained.n_slices,
        explained.n_cases,
        explained.n_with_lesion,
        run.join("heatmaps.parquet").display()
    )
}

/// The same as JSON.
pub fn explained_json(explained: &Explained) -> String {
    serde_json::json!({
        "maps": explained.n_maps,
        "slices": explained.n_slices,
        "cases": explained.n_cases,
        "slices_with_lesion": explained.n_with_lesion,
    })
    .to_string()
}

/// What an export wrote.
pub fn exported_words(exported: &Exported, out: &Path) -> String {
    let mut lines = vec![
        out.display().to_string(),
        format!("  weights   {}", exported.model_sha256),
        format!("  rule      {}", exported.decision_sha256),
        format!("  file      {}", exported.sha256),
    ];
    if exported.trained_on_synthetic_data {
        lines.push("  trained on synthetic pictures alone: it says nothing of patients".into());
    }
    lines.push(format!("  {}", seen_words(exported.seen)));
    lines.join("\n")
}

fn seen_words(seen: SeenHashes) -> &'static str {
    match seen {
        SeenHashes::Carried => "carries the hashes of what the network has seen",
        SeenHashes::LeftOut => "hashes of what the network has seen were left out: overlap cannot be checked",
        SeenHashes::None => "the run has no hashes of what the network has seen: overlap cannot be checked",
    }
}

/// The same as JSON.
pub fn exported_json(exported: &Exported, out: &Path) -> String {
    serde_json::json!({
        "file": out.display().to_string(),
        "sha256": exported.sha256,
        "model_sha256": exported.model_sha256,
        "decision_sha256": exported.decision_sha256,
        "trained_on_synthetic_data": exported.trained_on_synthetic_data,
        "has_seen": exported.seen == SeenHashes::Carried,
        "seen": seen_words(exported.seen),
    })
    .to_string()
}
