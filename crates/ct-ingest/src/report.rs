//! Results of `inspect`, `verify` and `table` as text or JSON.

use std::path::Path;
use std::process::ExitCode;

use ct_ingest::inspect::Inspection;
use ct_ingest::table::{Comparison, Counts, Line};
use ct_ingest::verify::Verified;
use diag_cli::{Outcome, printable, printable_json};
use serde_json::json;

use crate::inspection_text;

fn outcome(all_good: bool) -> Outcome {
    if all_good { Outcome::Done } else { Outcome::SetAside }
}

/// What a folder holds; exit code 3 when some of it is broken.
pub fn inspection(found: &Inspection, as_json: bool) -> ExitCode {
    if as_json {
        return diag_cli::finish(
            &printable_json(&format!("{:#}", json!(found))),
            outcome(found.broken.is_empty()),
        );
    }
    diag_cli::finish(inspection_text::of(found).trim_end(), outcome(found.broken.is_empty()))
}

/// What was copied.
pub fn copied(n_files: usize, to: &Path) -> ExitCode {
    diag_cli::finish(
        &format!("{n_files} files are in {}", printable(&to.display().to_string())),
        Outcome::Done,
    )
}

/// What was checked; exit code 3 when something crosses the split.
pub fn verified(verified: &Verified, as_json: bool) -> ExitCode {
    let sound = verified.leaks.is_empty();
    if as_json {
        let leaks: Vec<_> = verified
            .leaks
            .iter()
            .map(|leak| {
                json!({"what": leak.what, "cases": leak.cases, "count": leak.count, "pairs": leak.pairs})
            })
            .collect();
        let document = json!({
            "n_files": verified.n_files,
            "n_cases": verified.n_cases,
            "n_slices": verified.n_slices,
            "leaks": leaks,
        });
        return diag_cli::finish(&printable_json(&format!("{document:#}")), outcome(sound));
    }
    let mut lines = Vec::new();
    lines.push(format!(
        "{} files unchanged, {} cases, {} slices; counts agree",
        verified.n_files, verified.n_cases, verified.n_slices
    ));
    for leak in &verified.leaks {
        let cases: Vec<&str> = leak.cases.iter().map(|case| case.as_str()).collect();
        let what = if leak.what == "look" { "pairs of slices that look alike" } else { leak.what };
        lines.push(format!("leak: {} {what} in more than one part: {}", leak.count, cases.join(" ")));
        for pair in &leak.pairs {
            let (one, other) = (&pair.one, &pair.other);
            lines.push(format!(
                "  {} slice {} ~ {} slice {}, {} bits",
                one.0, one.1, other.0, other.1, pair.distance
            ));
        }
    }
    if sound {
        lines.push(
            "no patient, study, series or image is in two parts, and no two images in two parts look alike"
                .to_string(),
        );
    }
    diag_cli::finish(&lines.join("\n"), outcome(sound))
}

/// Table 1; exit code 3 when it is not as declared.
pub fn comparison(comparison: &Comparison, as_json: bool) -> ExitCode {
    if as_json {
        return diag_cli::finish(
            &printable_json(&format!("{:#}", json!(comparison))),
            outcome(comparison.equal),
        );
    }
    let is_declared = comparison.source.is_some();
    let mut lines = Vec::new();
    lines.push(format!("{:<22} {:<10} {:>16} {:>16}", "class", "part", "cases", "slices"));
    for line in &comparison.lines {
        let cell = |count: fn(&Counts) -> u64| cell_text(line, count);
        let (cases, slices) = (cell(|counts| counts.cases), cell(|counts| counts.slices));
        lines.push(format!(
            "{:<22} {:<10} {cases:>16} {slices:>16}",
            printable(&line.class),
            line.split.as_str()
        ));
    }
    if let Some(source) = &comparison.source {
        lines.push(format!("\ndeclared (in brackets where different): {}", printable(source)));
    }
    for sentence in &comparison.contradictions {
        lines.push(format!("the declared table contradicts its source: {}", printable(sentence)));
    }
    for sentence in &comparison.explanations {
        lines.push(format!("difference: {}", printable(sentence)));
    }
    if is_declared && comparison.equal {
        lines.push("every count is as declared".to_string());
    }
    diag_cli::finish(&lines.join("\n"), outcome(comparison.equal))
}

fn cell_text(line: &Line, count: fn(&Counts) -> u64) -> String {
    let found = count(&line.found);
    match line.declared.as_ref().map(count) {
        Some(declared) if declared != found => format!("{found} [{declared}]"),
        _ => found.to_string(),
    }
}
