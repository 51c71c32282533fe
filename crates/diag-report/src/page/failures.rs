//! The cases that were called wrong, with what is known of them.

use std::collections::BTreeMap;

use maud::{Markup, html};

use super::{Context, count, plain};
use crate::numbers::CaseResult;

pub(crate) fn section(context: &Context) -> Markup {
    let cases = &context.numbers.cases;
    let wrong: Vec<(usize, &CaseResult)> =
        cases.iter().enumerate().filter(|(_, case)| case.label != case.predicted).collect();
    if wrong.is_empty() {
        return html! {
            p { "None of the " (count(cases.len(), "case")) " was called wrong. The one nearest to it stands first among the cases below." }
        };
    }
    let mut kinds: BTreeMap<(usize, usize), usize> = BTreeMap::new();
    for (_, case) in &wrong {
        *kinds.entry((case.label, case.predicted)).or_default() += 1;
    }
    let labels = context.labels();
    html! {
        p {
            (wrong.len()) " of " (count(cases.len(), "case")) " called wrong: "
            @for (i, ((label, predicted), n)) in kinds.iter().enumerate() {
                @if i > 0 { "; " }
                (n) " " (labels[*label]) " called " (labels[*predicted])
            }
            ". The most confident errors come first; each links to its slices."
        }
        div.scroll {
            table {
                caption { "Unit: case. Surest slice: the slice with the highest probability of the class called. Lesion: share of the lungs, where it is known." }
                thead { tr {
                    th { "Case" } th { "True class" } th { "Called" } th.n.wrap { "Probability of true class" } th.n.wrap { "Of class called" }
                    th.n.wrap { "Slices voting true / called / other" } th.n.wrap { "Surest slice" } th { "Scanner, kernel" } th.n { "Lesion" } th { "Noted at ingest" }
                } }
                tbody { @for (rank, case) in &wrong { (row(context, *rank, case)) } }
            }
        }
    }
}

fn row(context: &Context, rank: usize, case: &CaseResult) -> Markup {
    let labels = context.labels();
    let slices: Vec<_> = context.run.slices.iter().filter(|slice| slice.case == case.case).collect();
    let votes =
        |class: usize| slices.iter().filter(|slice| super::browser::top(slice.probs()) == class).count();
    let (for_true, for_called) = (votes(case.label), votes(case.predicted));
    let surest = slices.iter().max_by(|a, b| a.probs()[case.predicted].total_cmp(&b.probs()[case.predicted]));
    let known = context.run.shards.as_ref().ok().and_then(|shards| shards.case(&case.case_id));
    let scanner: Vec<&str> = known
        .iter()
        .flat_map(|row| [&row.manufacturer, &row.model, &row.kernel])
        .flatten()
        .map(String::as_str)
        .collect();
    let lesion = context.run.maps.as_ref().ok().and_then(|maps| {
        maps.how.lesion_share.iter().find(|(id, _)| id.as_str() == case.case_id).map(|(_, share)| *share)
    });
    html! {
        tr {
            th scope="row" { a href=(format!("#{}case{}", context.anchor, rank + 1)) { (case.case_id) } }
            td { (labels[case.label]) }
            td { (labels[case.predicted]) }
            td.n { (plain(case.probabilities[case.label])) }
            td.n { (plain(case.probabilities[case.predicted])) }
            td.n { (for_true) " / " (for_called) " / " (slices.len() - for_true - for_called) }
            td.n { @if let Some(slice) = surest { (slice.slice_index) " (" (plain(slice.probs()[case.predicted])) ")" } }
            td { @if scanner.is_empty() { "not stated" } @else { (scanner.join(", ")) } }
            td.n { @match lesion { Some(share) => { (format!("{:.1} %", 100.0 * share)) } None => { "–" } } }
            td { @match known.map(|row| row.warnings.join("; ")).filter(|text| !text.is_empty()) { Some(text) => { (text) } None => { "nothing" } } }
        }
    }
}
