//! What stands only on the page of an external validation: what the cohort shares with the
//! network's own data, and what calibration on cases of the cohort would change.

use diag_data::external::{External, LocalCalibration, RuleQuality};
use maud::{Markup, html};

use super::{count, number, plain};

/// The first sentences of the page.
pub(crate) fn lead(external: &External) -> Markup {
    html! {
        strong { "External validation: " }
        "the network and its decided rule, as they were, on a cohort that they were not made with. "
        @if external.trained_on_synthetic && !external.shards.synthetic {
            "The network was trained on synthetic data: generated scans, no patients. "
        }
    }
}

/// What a reader must know of the cohort before the numbers.
pub(crate) fn cautions(external: &External) -> Vec<String> {
    let mut cautions = Vec::new();
    if external.trained_on_synthetic && !external.shards.synthetic {
        cautions.push(
            "The network was trained on synthetic data, and these are not: the numbers say what is left of it.".to_owned(),
        );
    }
    cautions.extend(external.overlap.patients.caution().map(|caution| {
        let mut letters = caution.chars();
        let first = letters.next().map(|letter| letter.to_uppercase().collect::<String>());
        format!("{}{}.", first.unwrap_or_default(), letters.as_str())
    }));
    let alike = &external.overlap.near_duplicates;
    if !alike.is_empty() {
        cautions.push(format!(
            "{} of cases have slices that look like slices that the network has seen: look at them (Data).",
            count(alike.len(), "pair")
        ));
    }
    cautions
}

/// What the cohort shares with the cases that the network has seen.
pub(crate) fn overlap(external: &External) -> Markup {
    let overlap = &external.overlap;
    html! {
        h3 { "Has the network seen this cohort?" }
        p {
            "No patient, series or picture that could be compared is among the "
            (count(overlap.n_seen_cases, "training and validation case")) " of the network: such a cohort is refused. "
            @if let Some(caution) = overlap.patients.caution() { strong { "But " (caution) ". " } }
            "Patients and series are compared by keyed hashes, pictures by the hash of their pixels and by a difference hash of 256 bits."
        }
        @if overlap.near_duplicates.is_empty() {
            p { "No two slices look alike (at most 15 bits apart)." }
        } @else {
            div.scroll {
                table {
                    caption { "Cases with slices that look alike: at most 15 of 256 bits apart." }
                    thead { tr {
                        th scope="col" { "Case" } th scope="col" { "Case of the network's own data" } th scope="col" { "Used for" }
                        th.n scope="col" { "Pairs of slices" } th.n scope="col" { "Nearest, bits" }
                    } }
                    tbody {
                        @for alike in &overlap.near_duplicates {
                            tr {
                                th scope="row" { (alike.case_id) } td { (alike.seen_as) } td { (alike.seen_in) }
                                td.n { (alike.n_pairs) } td.n { (alike.least_distance) }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// The frozen rule beside a local one.
pub(crate) fn local_calibration(external: &External) -> Markup {
    html! {
        h3 { "What calibration on this cohort would change" }
        @match &external.recalibration {
            None => p.note {
                "Not measured: the cohort has no training or validation part to calibrate on. Every number of this page is that of the rule as it was."
            },
            Some(local) => (table(local)),
        }
    }
}

fn table(local: &LocalCalibration) -> Markup {
    let row = |name: &str, quality: &RuleQuality| {
        html! {
            tr {
                th scope="row" { (name) }
                td.n { (plain(quality.temperature)) }
                td.n { (number(quality.log_loss)) }
                td.n { (number(quality.brier)) }
                td.n { (number(quality.balanced_accuracy)) }
            }
        }
    };
    html! {
        p {
            "Every other number of this page is that of the frozen rule. The second row is a rule of the same form, fitted on "
            (count(local.n_local_cases, "case")) " of this cohort that are not tested, and applied to the same "
            (count(local.n_test_cases, "test case")) "."
        }
        div.scroll {
            table {
                caption { "Unit: case." }
                thead { tr {
                    th scope="col" { "Rule" } th.n scope="col" { "Temperature" } th.n scope="col" { "Log loss" }
                    th.n scope="col" { "Brier score" } th.n scope="col" { "Balanced accuracy" }
                } }
                tbody { (row("frozen: that of the run", &local.frozen)) (row("local", &local.local)) }
            }
        }
    }
}
