//! Test log loss and balanced accuracy of the decided rule against the plain mean, by case, from
//! the `metrics.json` of evaluated runs, as a table.
//!
//! ```sh
//! cargo run --release -p diag-decision --example against_mean -- RUN...
//! ```

#![expect(clippy::print_stdout, reason = "an example shows its result")]

use std::path::{Path, PathBuf};

use diag_data::DataError;
use diag_data::files;
use diag_data::run::RunDir;
use serde_json::Value;

fn main() -> Result<(), DataError> {
    println!(
        "| run | validation cases | test cases | temperature | aggregation | log loss: mean | change | balanced accuracy: mean | change |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    let (mut changes, mut accuracy_changes) = (Vec::new(), Vec::new());
    for run in std::env::args_os().skip(1).map(PathBuf::from) {
        let dir = RunDir::new(&run);
        let metrics: Value = files::read_json(&dir.metrics())?;
        let decision: Value = files::read_json(&dir.decision())?;
        let test = &metrics["splits"]["test"];
        let number = |value: &Value| value.as_f64().unwrap_or(f64::NAN);
        let of = |key: &str| (number(&test["case"]["mean"][key]), number(&test["decision"]["case"][key]));
        let ((mean_loss, loss), (mean_accuracy, accuracy)) = (of("log_loss"), of("balanced_accuracy"));
        changes.push(loss - mean_loss);
        accuracy_changes.push(accuracy - mean_accuracy);
        println!(
            "| {} | {} | {} | {:.3} | {} | {mean_loss:.4} | {:+.4} | {mean_accuracy:.3} | {:+.3} |",
            name(&run),
            decision["n_validation_cases"],
            test["decision"]["case"]["n"],
            number(&decision["temperature"]),
            aggregation(&decision["aggregation"]),
            loss - mean_loss,
            accuracy - mean_accuracy,
        );
    }
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let largest = changes.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    println!(
        "\nOver {} runs: log loss {:+.4} in the mean, {largest:+.4} at most; balanced accuracy {:+.4} in the mean.",
        changes.len(),
        mean(&changes),
        mean(&accuracy_changes)
    );
    Ok(())
}

/// `mean` or `top-3`.
fn aggregation(value: &Value) -> String {
    match value["top-k-mean"]["k"].as_u64() {
        Some(k) => format!("top-{k}"),
        None => value.as_str().unwrap_or("unknown").to_owned(),
    }
}

/// The last two parts of the path: pipelines call every run folder alike.
fn name(run: &Path) -> String {
    let parts: Vec<_> =
        run.components().rev().take(2).map(|part| part.as_os_str().to_string_lossy()).collect();
    parts.into_iter().rev().collect::<Vec<_>>().join("/")
}
