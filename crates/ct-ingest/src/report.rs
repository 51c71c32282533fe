//! Results of `inspect`, `verify` and `table` as text or JSON.
#![expect(clippy::print_stdout, reason = "the result of a command goes to standard output")]

use std::process::ExitCode;

use ct_ingest::inspect::{Inspection, SeriesLine};
use ct_ingest::table::{Comparison, Counts, Line};
use ct_ingest::verify::Verified;
use serde_json::json;

use crate::console::SET_ASIDE;

fn code(all_good: bool) -> ExitCode {
    if all_good { ExitCode::SUCCESS } else { ExitCode::from(SET_ASIDE) }
}

/// What a folder holds; exit code 3 when some of it is broken.
pub fn inspection(found: &Inspection, as_json: bool) -> ExitCode {
    if as_json {
        println!("{:#}", json!(found));
        return code(found.broken.is_empty());
    }
    println!(
        "{} files, {} patients, {} studies, {} CT series",
        found.n_files,
        found.n_patients,
        found.n_studies,
        found.series.len()
    );
    for (i, series) in found.series.iter().enumerate() {
        println!(
            "\nseries {}{}",
            i + 1,
            series.folder.as_ref().map(|f| format!(" in {f}")).unwrap_or_default()
        );
        series_text(series);
    }
    if !found.others.is_empty() {
        println!("\nnot CT images:");
        found.others.iter().for_each(|(reason, count)| println!("  {count:>6} {reason}"));
    }
    if !found.broken.is_empty() {
        println!("\nbroken:");
        for file in &found.broken {
            println!(
                "  {}{}",
                file.path.as_ref().map(|path| format!("{path}: ")).unwrap_or_default(),
                file.detail
            );
        }
    }
    code(found.broken.is_empty())
}

fn series_text(series: &SeriesLine) {
    let synthetic = if series.synthetic { ", SYNTHETIC" } else { "" };
    println!("  {} images of {} x {}{synthetic}", series.n_images, series.size.0, series.size.1);
    if let Some((lowest, highest)) = series.extent {
        let step = series.step.map(|step| format!(", every {:.2} mm", step.0)).unwrap_or_default();
        let thick = series.slice_thickness.map(|mm| format!(", {:.2} mm thick", mm.0)).unwrap_or_default();
        println!("  from {:.1} to {:.1} mm{step}{thick}", lowest.0, highest.0);
    }
    let spacing = series.spacing.map(|s| format!("pixels of {:.3} x {:.3} mm", s.row.0, s.col.0));
    let kernel = series.kernel.as_ref().map(|kernel| format!("kernel {kernel}"));
    let scanner = Some(series.scanner.clone()).filter(|scanner| !scanner.is_empty());
    let syntaxes = series.transfer_syntaxes.iter().cloned().collect::<Vec<_>>().join(", ");
    let parts: Vec<String> = [spacing, scanner, kernel, Some(syntaxes)].into_iter().flatten().collect();
    println!("  {}", parts.join("; "));
    series.warnings.iter().for_each(|warning| println!("  note: {warning}"));
    match &series.unusable {
        Some(why) => println!("  cannot be used: {why}"),
        None => println!("  can be used"),
    }
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
        println!("{document:#}");
        return code(sound);
    }
    println!(
        "{} files unchanged, {} cases, {} slices; counts agree",
        verified.n_files, verified.n_cases, verified.n_slices
    );
    for leak in &verified.leaks {
        let cases: Vec<&str> = leak.cases.iter().map(|case| case.as_str()).collect();
        let what = if leak.what == "look" { "pairs of slices that look alike" } else { leak.what };
        println!("leak: {} {what} in more than one part: {}", leak.count, cases.join(" "));
        for pair in &leak.pairs {
            let (one, other) = (&pair.one, &pair.other);
            println!("  {} slice {} ~ {} slice {}, {} bits", one.0, one.1, other.0, other.1, pair.distance);
        }
    }
    if sound {
        println!(
            "no patient, study, series or image is in two parts, and no two images in two parts look alike"
        );
    }
    code(sound)
}

/// Table 1; exit code 3 when it is not as declared.
pub fn comparison(comparison: &Comparison, as_json: bool) -> ExitCode {
    if as_json {
        println!("{:#}", json!(comparison));
        return code(comparison.equal);
    }
    let is_declared = comparison.source.is_some();
    println!("{:<22} {:<10} {:>16} {:>16}", "class", "part", "cases", "slices");
    for line in &comparison.lines {
        let cell = |count: fn(&Counts) -> u64| cell_text(line, count);
        let (cases, slices) = (cell(|counts| counts.cases), cell(|counts| counts.slices));
        println!("{:<22} {:<10} {cases:>16} {slices:>16}", line.class, line.split.as_str());
    }
    if let Some(source) = &comparison.source {
        println!("\ndeclared (in brackets where different): {source}");
    }
    for sentence in &comparison.contradictions {
        println!("the declared table contradicts its source: {sentence}");
    }
    for sentence in &comparison.explanations {
        println!("difference: {sentence}");
    }
    if is_declared && comparison.equal {
        println!("every count is as declared");
    }
    code(comparison.equal)
}

fn cell_text(line: &Line, count: fn(&Counts) -> u64) -> String {
    let found = count(&line.found);
    match line.declared.as_ref().map(count) {
        Some(declared) if declared != found => format!("{found} [{declared}]"),
        _ => found.to_string(),
    }
}
