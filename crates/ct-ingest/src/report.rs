//! Results of `inspect`, `verify` and `table` as text or JSON.
#![expect(clippy::print_stdout, reason = "the result of a command goes to standard output")]

use std::path::Path;
use std::process::ExitCode;

use ct_ingest::inspect::Inspection;
use ct_ingest::table::{Comparison, Counts, Line};
use ct_ingest::verify::Verified;
use serde_json::json;

use crate::console::SET_ASIDE;
use crate::inspection_text;
use crate::printable::{json_text, printable};

fn code(all_good: bool) -> ExitCode {
    if all_good { ExitCode::SUCCESS } else { ExitCode::from(SET_ASIDE) }
}

/// What a folder holds; exit code 3 when some of it is broken.
pub fn inspection(found: &Inspection, as_json: bool) -> ExitCode {
    if as_json {
        println!("{}", json_text(&json!(found)));
        return code(found.broken.is_empty());
    }
    print!("{}", inspection_text::of(found));
    code(found.broken.is_empty())
}

/// What was copied.
pub fn copied(n_files: usize, to: &Path) -> ExitCode {
    println!("{n_files} files are in {}", printable(&to.display().to_string()));
    ExitCode::SUCCESS
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
        println!("{}", json_text(&document));
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
        println!("{}", json_text(&json!(comparison)));
        return code(comparison.equal);
    }
    let is_declared = comparison.source.is_some();
    println!("{:<22} {:<10} {:>16} {:>16}", "class", "part", "cases", "slices");
    for line in &comparison.lines {
        let cell = |count: fn(&Counts) -> u64| cell_text(line, count);
        let (cases, slices) = (cell(|counts| counts.cases), cell(|counts| counts.slices));
        println!("{:<22} {:<10} {cases:>16} {slices:>16}", printable(&line.class), line.split.as_str());
    }
    if let Some(source) = &comparison.source {
        println!("\ndeclared (in brackets where different): {}", printable(source));
    }
    for sentence in &comparison.contradictions {
        println!("the declared table contradicts its source: {}", printable(sentence));
    }
    for sentence in &comparison.explanations {
        println!("difference: {}", printable(sentence));
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
