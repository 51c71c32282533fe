//! The cases, most wrong first: slices, probabilities, and a viewer on top.
//!
//! Without scripts and in print the worst cases stand open with all their
//! slices; the script only rearranges what the page already holds.

use std::collections::BTreeMap;

use diag_data::manifest::ShardSpec;
use maud::{Markup, PreEscaped, html};

use super::{Context, count, plain};
use crate::ReportError;
use crate::chart::tick;
use crate::load::SliceRow;
use crate::numbers::CaseResult;
use crate::pictures::{N_WORST, Pictures, ShownMap, embed_maps};

pub(crate) fn section(
    context: &Context,
    pictures: &Pictures,
    map_budget: usize,
) -> Result<Markup, ReportError> {
    let maps = embed_maps(context.run, &context.numbers.cases, pictures, map_budget)?;
    let mut slices_of: Vec<Vec<&SliceRow>> = vec![Vec::new(); context.run.case_ids.len()];
    for slice in &context.run.slices {
        slices_of[slice.case].push(slice);
    }
    let n_slices = context.run.slices.len();
    let labels = context.labels();
    Ok(html! {
        p {
            "Every case of this part, the one whose true class got the lowest probability first. "
            @if context.run.shards.is_err() {
                "No slices are shown: the shards are not at hand. "
            } @else if pictures.is_empty() {
                "No slices are shown: there was no room for them. "
            } @else if pictures.len() < n_slices {
                (pictures.len()) " of " (n_slices) " slices are embedded, to keep the file small: those of the "
                (N_WORST) " worst cases first, then as many of every other case as fit, spread over its height. "
            } @else {
                "All " (n_slices) " slices are embedded, losslessly, as the network saw them. "
            }
            @if let Ok(shards) = &context.run.shards {
                (grey_levels(&shards.set.manifest().spec)) " "
            }
            "Below each slice: its number, the number of the called class, and that class's probability. The coloured strips stack the probabilities of every slice, class 1 at the bottom. "
            (about_maps(context, &maps))
        }
        ul.legend { @for (k, name) in labels.iter().enumerate() { li { (key(k)) (name) } } }
        div.viewer hidden data-labels=(labels.join("\u{1f}")) {}
        @if !maps.is_empty() { (PreEscaped(map_data(context, &maps))) }
        @for (rank, result) in context.numbers.cases.iter().enumerate() {
            (case(context, rank, result, &slices_of[result.case], pictures))
        }
    })
}

/// What black and white are, for those who read CT.
fn grey_levels(spec: &ShardSpec) -> Markup {
    html! {
        @match &spec.reader.window {
            Some(window) => {
                @let (lo, hi) = (window.lo().0, window.hi().0);
                "Window: level " (tick(f64::from(lo + hi) / 2.0)) " HU, width " (tick(f64::from(hi - lo))) " HU."
            }
            None => "The source was grey levels: what they are in HU is not known.",
        }
        " " (spec.reader.size) " × " (spec.reader.size) " pixels."
    }
}

type Maps<'a> = BTreeMap<(usize, i32), Vec<ShownMap<'a>>>;

fn about_maps(context: &Context, maps: &Maps) -> Markup {
    let Ok(made) = &context.run.maps else {
        return html! { "There are no heat maps: nothing here says where in a slice the network looked." };
    };
    let n_shown: usize = maps.values().map(Vec::len).sum();
    let n_made = made.rows.iter().filter(|row| !row.values.is_empty()).count();
    html! {
        "Where the viewer offers a heat map, it can be laid over the slice: "
        (n_shown) " of " (n_made) " maps are embedded"
        @if n_shown < n_made { " (all of the worst cases, then the final head's Grad-CAM)" }
        ". A map says where features lie that raised a class, not that the class is right; "
        a href=(format!("#{}explanations", context.anchor)) { "what the maps are worth" } "."
    }
}

/// The maps as JSON for the viewer: by case and slice, each
/// `[head, method, class, probability, peak, PNG]`.
fn map_data(context: &Context, maps: &Maps) -> String {
    let mut by_slice = serde_json::Map::new();
    for (rank, result) in context.numbers.cases.iter().enumerate() {
        for ((_, slice), shown) in maps.range((result.case, i32::MIN)..=(result.case, i32::MAX)) {
            let entries = shown.iter().map(|map| {
                let row = map.row;
                serde_json::json!([
                    row.head,
                    row.method.title(),
                    row.class.index(),
                    row.probability.map(|p| format!("{p:.3}")),
                    format!("{:.3}", row.peak),
                    map.png
                ])
            });
            by_slice.insert(format!("{rank}/{slice}"), entries.collect());
        }
    }
    // Inside a script element only this sign could end it.
    let json = serde_json::Value::Object(by_slice).to_string().replace('<', "\\u003c");
    format!("<script type=\"application/json\" class=\"maps\">{json}</script>")
}

/// The colour of a class in bars and strips.
fn key(class: usize) -> Markup {
    let name = format!("key f{}", class % 7);
    html! { span class=(name) aria-hidden="true" { (class + 1) } }
}

fn case(
    context: &Context,
    rank: usize,
    result: &CaseResult,
    slices: &[&SliceRow],
    pictures: &Pictures,
) -> Markup {
    let labels = context.labels();
    let right = result.label == result.predicted;
    let worst = rank < N_WORST;
    let shown: Vec<&&SliceRow> =
        slices.iter().filter(|s| pictures.contains_key(&(result.case, s.slice_index))).collect();
    let row = |s: &&SliceRow| {
        let probs: Vec<String> = s.probs().iter().map(|p| format!("{p:.3}")).collect();
        format!("{}:{}", s.slice_index, probs.join(","))
    };
    let rows: Vec<String> = slices.iter().map(row).collect();
    html! {
        article.case id=(format!("{}case{}", context.anchor, rank + 1))
            data-case=(result.case_id) data-truth=(result.label) data-called=(result.predicted)
            data-slices=(rows.join(";")) data-probability=(joined(&result.probabilities)) {
            h3 {
                (rank + 1) ". " (result.case_id) " "
                @if right { span.verdict.good { "✓ right" } } @else { span.verdict.bad { "✗ wrong" } }
            }
            p {
                "True class " strong { (labels[result.label]) } ", called " strong { (labels[result.predicted]) }
                ". Probability of the true class " strong { (plain(result.probabilities[result.label])) }
                " (from " (count(result.n_slices, "slice")) "): "
                @for (k, p) in result.probabilities.iter().enumerate() {
                    @if k > 0 { ", " }
                    (labels[k]) " " (plain(*p))
                }
                "."
                @if let Some(set) = &result.set {
                    @let names: Vec<&str> = set.iter().map(|k| labels[*k].as_str()).collect();
                    @if set.len() > 1 { " Undecided: " } @else { " Set: " }
                    (names.join(" or ")) "."
                }
                @if let Some(call) = result.call {
                    " Threshold on " (context.numbers.operating_point.positive) ": " (call.as_str()) "."
                }
            }
            (strip(labels, slices))
            @if worst {
                (film(context, result, &shown, pictures))
            } @else if !shown.is_empty() {
                details { summary { (count(shown.len(), "slice")) " of this case" } (film(context, result, &shown, pictures)) }
            }
            details { summary { "Probabilities by slice" } div.scroll { (table(labels, slices)) } }
        }
    }
}

fn film(context: &Context, result: &CaseResult, shown: &[&&SliceRow], pictures: &Pictures) -> Markup {
    html! {
        div.film {
            @for slice in shown {
                @if let Some(uri) = pictures.get(&(result.case, slice.slice_index)) {
                    figure.slice data-index=(slice.slice_index) {
                        img src=(uri) loading="lazy" width="112" height="112"
                            alt=(format!("CT slice {} of case {}, true class {}", slice.slice_index, result.case_id, context.labels()[result.label]));
                        figcaption { (slice.slice_index) " · " (key(top(slice.probs()))) " " (plain(highest(slice.probs()))) }
                    }
                }
            }
        }
    }
}

/// Stacked probabilities, a column a slice, classes always in the same order from below.
fn strip(labels: &[String], slices: &[&SliceRow]) -> Markup {
    let width = 10 * slices.len();
    let alt = format!(
        "Stacked class probabilities of {} slices in order, {} at the bottom",
        slices.len(),
        labels[0]
    );
    html! {
        svg.strip viewBox=(format!("0 0 {width} 40")) preserveAspectRatio="none" role="img" aria-label=(alt) {
            @for (i, slice) in slices.iter().enumerate() {
                @for (k, p) in slice.probs().iter().enumerate() {
                    @let stacked: f64 = slice.probs().iter().take(k + 1).sum();
                    rect class=(format!("f{}", k % 7)) x=(10 * i) width="9.2"
                        y=(format!("{:.1}", 40.0 * (1.0 - stacked))) height=(format!("{:.1}", 40.0 * p)) {}
                }
            }
        }
    }
}

fn table(labels: &[String], slices: &[&SliceRow]) -> Markup {
    html! {
        table {
            thead { tr { th.n { "Slice" } @for name in labels { th.n { (name) } } } }
            tbody {
                @for slice in slices {
                    tr { td.n { (slice.slice_index) } @for p in slice.probs() { td.n { (plain(*p)) } } }
                }
            }
        }
    }
}

fn joined(probs: &[f64]) -> String {
    probs.iter().map(|p| format!("{p:.3}")).collect::<Vec<_>>().join(",")
}

pub(crate) fn top(probs: &[f64]) -> usize {
    (0..probs.len()).rev().max_by(|&a, &b| probs[a].total_cmp(&probs[b])).unwrap_or(0)
}

fn highest(probs: &[f64]) -> f64 {
    probs.iter().copied().fold(0.0, f64::max)
}
