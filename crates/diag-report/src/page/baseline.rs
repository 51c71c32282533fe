//! What a classifier gets that never looks at the lung, beside the network.

use diag_data::trivial::{Baseline, TrivialAudit};
use maud::{Markup, html};

use super::plain;

/// The sentence and table of the summary; nothing where it was not measured.
pub(crate) fn section(audit: Option<&TrivialAudit>) -> Markup {
    let Some(audit) = audit else {
        return html! {
            p.note { "What a classifier gets that never looks at the lung was not measured: run diag-train audit trivial." }
        };
    };
    let rows = [
        ("size, file format, scanner", &audit.acquisition),
        ("grey levels", &audit.grey),
        ("both", &audit.both),
        ("both, labels in random order", &audit.permuted),
    ];
    let number = |value: Option<f64>| value.map_or("undefined".to_owned(), plain);
    html! {
        @if let Some(auroc) = audit.both.macro_auroc {
            p {
                "A classifier that never looks at the lung gets a macro AUROC of " strong { (plain(auroc)) }
                (range(audit.both.low, audit.both.high)) " on the same test cases."
            }
        }
        div.scroll {
            table {
                caption {
                    "Trivial baseline: fitted on " (audit.n_fitting_cases) " training and validation cases, measured on "
                    (audit.n_test_cases) " test cases (" (audit.n_units) " " (audit.unit.as_str()) "s)"
                }
                thead { tr {
                    th scope="col" { "What it sees" } th scope="col" { "Macro AUROC (95 %)" }
                    th scope="col" { "Balanced accuracy" } th scope="col" { "Network (decided rule) minus baseline, macro AUROC (95 %)" }
                } }
                tbody {
                    @for (name, baseline) in rows {
                        tr {
                            th scope="row" { (name) }
                            td { (number(baseline.macro_auroc)) (range(baseline.low, baseline.high)) }
                            td { (number(baseline.balanced_accuracy)) }
                            td {
                                @match baseline.network_minus_baseline {
                                    Some(lead) => { (format!("{:+.3}", lead.value)) (range(Some(lead.low), Some(lead.high))) }
                                    None => "–",
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// What the comparison does not support.
pub(crate) fn caution(audit: &TrivialAudit) -> Option<String> {
    let sees = [
        ("size, format and scanner", &audit.acquisition),
        ("grey levels", &audit.grey),
        ("both", &audit.both),
    ];
    let not_beaten = |(_, baseline): &&(&str, &Baseline)| {
        baseline.network_minus_baseline.is_some_and(|lead| lead.low <= 0.0)
    };
    let names: Vec<&str> = sees.iter().filter(not_beaten).map(|(name, _)| *name).collect();
    (!names.is_empty()).then(|| {
        format!(
            "These test cases do not show that the network beats a classifier that never looks at the lung ({}): \
             the interval of the difference in macro AUROC holds 0 or lies below it.",
            names.join("; ")
        )
    })
}

fn range(low: Option<f64>, high: Option<f64>) -> String {
    match (low, high) {
        (Some(low), Some(high)) => format!(" ({} to {})", plain(low), plain(high)),
        _ => String::new(),
    }
}
