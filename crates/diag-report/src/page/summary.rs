//! The headline and the summary in words.

use diag_metrics::{Measure, wilson_interval};
use maud::{Markup, html};

use super::{Context, count, interval_words, plain};
use crate::load::Run;
use crate::numbers::{Numbers, UnitNumbers};

pub(crate) fn title(runs: &[Run]) -> String {
    let what = match runs {
        [run] if run.external.is_some() => {
            format!("External validation: chest-CT classification by the network {}", run.info.backbone)
        }
        [run] => format!("Chest-CT classification by the network {}", run.info.backbone),
        _ => format!("Chest-CT classification: {} runs", runs.len()),
    };
    if runs.iter().any(|run| run.info.shards.synthetic) { format!("{what}, on synthetic data") } else { what }
}

pub(crate) fn headline(runs: &[Run], numbers: &Numbers, title: &str) -> Markup {
    let n_synthetic = runs.iter().filter(|run| run.info.shards.synthetic).count();
    html! {
        header {
            h1 { (title) }
            p.lead {
                @if let [Run { external: Some(external), .. }] = runs { (super::external::lead(external)) }
                @if n_synthetic == runs.len() {
                    "The data of this report is synthetic: generated scans, no patients. "
                } @else if n_synthetic > 0 {
                    "The data of " (n_synthetic) " of these " (runs.len()) " runs is synthetic: generated scans, no patients. "
                }
                @for run in runs {
                    "A " (run.info.backbone) " network of " (thousands(run.info.n_parameters))
                    " weights with " (count(run.heads().len(), "head"))
                    " was trained with the loss " (run.info.loss) " to tell "
                    (listed(run.info.labels.names())) " apart"
                    @if runs.len() > 1 {
                        " (run " (run.name) @if run.external.is_some() { ", an external validation" } ")"
                    }
                    ". "
                }
                "Everything below is measured on the " (numbers.split) " part."
            }
        }
    }
}

pub(crate) fn section(context: &Context) -> Markup {
    let by_case = &context.numbers.by_case;
    let n_right: u64 = by_case.confusion.iter().enumerate().map(|(k, row)| row[k]).sum();
    let per_class =
        context.labels().iter().zip(&by_case.cases_per_class).map(|(name, n)| format!("{n} {name}"));
    let per_class: Vec<String> = per_class.collect();
    html! {
        @if let Some(text) = how_little(by_case.n) {
            p.warning { strong { "Caution. " } (text) }
        }
        p {
            "On " (count(by_case.n, "case")) " (" (listed(&per_class)) "; "
            (count(context.numbers.by_slice.n, "slice")) "), the model called "
            strong { (n_right) " of " (by_case.n) } " right. "
            (sentence(by_case, Measure::BalancedAccuracy, "Balanced accuracy"))
            (sentence(by_case, Measure::MacroAuroc, "Macro AUROC"))
            (weakest(context))
        }
        div.tiles {
            @for measure in [Measure::BalancedAccuracy, Measure::MacroAuroc, Measure::MacroF1, Measure::Matthews] {
                @if let Some(estimate) = by_case.get(measure) {
                    div.tile {
                        span.name { (measure.title()) }
                        span.value { (estimate.value.map_or("undefined".into(), plain)) }
                        span.ci { (interval_words(estimate)) }
                        span.unit { "by case, n = " (by_case.n) }
                    }
                }
            }
        }
        @if context.run.external.is_some() {
            p.note { "What a classifier gets that never looks at the lung is measured on the run's own cohort only." }
        } @else {
            (super::baseline::section(context.run.baseline.as_ref()))
        }
        @for warning in &context.numbers.warnings {
            p.warning { strong { "Caution. " } (warning) }
        }
        p.note {
            "Unit of analysis: a case, as the rule that was decided on the validation cases sees it, unless a table says slice: "
            (context.numbers.operating_point.aggregation) "; temperature " (context.numbers.operating_point.temperature_basis) ". "
            "Intervals: 95 %, by " (context.numbers.unit_of_intervals) " (" (context.numbers.n_units)
            "), also for slices: Wilson's, where a measure is no share of independent cases at the effective number of "
            (context.numbers.unit_of_intervals) "s. "
            a href="#definitions" { "Definitions of every measure." }
        }
    }
}

/// Fewer cases than this show next to nothing, whatever the result.
const NEXT_TO_NOTHING: usize = 20;

/// What the best result could show on so few cases; `None` for more.
fn how_little(n: usize) -> Option<String> {
    let (low, _) = wilson_interval(n as u64, n as u64, 0.95)?;
    (n < NEXT_TO_NOTHING).then(|| {
        format!(
            "{} can show next to nothing about the network: had all of them been called right, the 95 % \
             interval of the share of right calls (Wilson) would still begin at {}.",
            count(n, "test case"),
            plain(low)
        )
    })
}

fn sentence(unit: &UnitNumbers, measure: Measure, name: &str) -> Markup {
    let Some(estimate) = unit.get(measure) else { return html! {} };
    html! {
        @match estimate.value {
            Some(value) => {
                (name) " is " strong { (plain(value)) } " (" (interval_words(estimate)) "; by case). "
            }
            None => { (name) " is undefined here. " }
        }
    }
}

/// The class that is found least often.
fn weakest(context: &Context) -> Markup {
    let by_case = &context.numbers.by_case;
    let found = |k: usize| by_case.get(Measure::Sensitivity(k)).and_then(|e| e.value.map(|v| (k, v, e)));
    let weakest = (0..context.labels().len()).filter_map(found).min_by(|a, b| a.1.total_cmp(&b.1));
    html! {
        @if let Some((k, value, estimate)) = weakest {
            "Least often found is " (context.labels()[k]) ": sensitivity " strong { (plain(value)) }
            " (" (interval_words(estimate)) "; by case)."
        }
    }
}

/// `a, b and c`.
pub(crate) fn listed(names: &[String]) -> String {
    match names {
        [] => String::new(),
        [one] => one.clone(),
        [most @ .., last] => format!("{} and {last}", most.join(", ")),
    }
}

/// `11 176 512`, with thin spaces.
pub(crate) fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}
