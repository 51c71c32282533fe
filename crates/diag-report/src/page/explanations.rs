//! What the heat maps show, what they do not, and what they are worth.

use diag_data::heatmaps::Method;
use maud::{Markup, html};

use super::summary::listed;
use super::{Context, bounds, count, plain};
use crate::explanations::{ExplanationNumbers, MapNumbers, Mean};

pub(crate) fn section(context: &Context) -> Markup {
    let Some(numbers) = &context.numbers.explanations else {
        let why = context.run.maps.as_ref().err().cloned().unwrap_or_default();
        return html! { p.note { "Missing: " (why) "." } };
    };
    html! {
        p {
            "Heat maps were made for " (count(numbers.n_slices, "slice")) " of " (count(numbers.n_cases, "case")) ": at most "
            (numbers.slices_per_case) " of a case, evenly spread over its height, chosen without looking at them. "
            "Explained is the class that the case was called and, where it differs, its true class. "
            "They can be laid over the slices " a href=(format!("#{}cases", context.anchor)) { "in the case viewer" } "."
        }
        div.pair {
            div.says {
                h4 { "What a map shows" }
                ul {
                    li { "Grad-CAM, Grad-CAM++: where the features lie that raised the score of one class in one head. The final head's map adds those of all stages that it reads." }
                    li { "Occlusion: where replacing a window of " (numbers.occlusion_window_px) " pixels by aerated lung costs the class most probability. It changes the picture instead of following gradients, so it checks the other two. At most " (numbers.occlusion_slices_per_case) " a case." }
                }
            }
            div.says {
                h4 { "What it does not show" }
                ul {
                    li { "Whether the call is right: a wrong call has as neat a map as a right one." }
                    li { "The outline of a lesion: a cell of the deepest stage covers 1/49 of the picture or more." }
                    li { "Strength: every map is scaled to its own highest point; the peak is stated beside it." }
                    li { "Cause: a bright place was used, not necessarily needed." }
                }
            }
        }
        (verdict(numbers))
        @if numbers.n_slices_with_lesion > 0 { (localisation(numbers)) }
        @else { p.note { "No true lesions are known for these cases, so agreement with lesions cannot be measured: how much these maps are worth is not known." } }
        (sanity(numbers))
    }
}

fn title(map: &MapNumbers) -> &'static str {
    Method::ALL.into_iter().find(|method| method.as_str() == map.method).map_or("", Method::title)
}

/// The final head's Grad-CAM against the lungs as a whole, in a sentence.
fn verdict(numbers: &ExplanationNumbers) -> Markup {
    let grad_cam = |map: &&MapNumbers| map.method == Method::GradCam.as_str();
    let Some(map) = numbers.maps.iter().rfind(grad_cam) else { return html! {} };
    let Some((overlap, above)) = map.overlap.zip(map.overlap_above_lungs) else { return html! {} };
    let judgement = match (above.low, above.high) {
        (Some(low), _) if low > 0.0 => "They find lesions better than a point anywhere in the lungs would.",
        (_, Some(high)) if high < 0.0 => "They find lesions worse than a point anywhere in the lungs would.",
        (Some(_), Some(_)) => {
            "That they find lesions better than a point anywhere in the lungs would is not shown."
        }
        _ => "There are too few cases to judge.",
    };
    html! {
        p {
            "Held against the true lesions of " (count(map.n_slices, "slice")) " in " (count(map.n_cases, "case"))
            ", Grad-CAM of head " (map.head) " has an overlap of " strong { (plain(overlap.value)) }
            " (95 % CI " (bounds(overlap.low, overlap.high)) "): " strong { (signed(above.value)) }
            " (" (bounds(above.low, above.high)) ") above that of the lungs as a whole. " strong { (judgement) } " "
            (worthless(numbers))
        }
    }
}

/// Maps whose overlap is not above that of the lungs.
fn worthless(numbers: &ExplanationNumbers) -> Markup {
    let not_above = |map: &&MapNumbers| {
        map.overlap_above_lungs.is_some_and(|above| above.low.is_none_or(|low| low <= 0.0))
    };
    let names: Vec<String> = numbers
        .maps
        .iter()
        .filter(not_above)
        .map(|map| format!("{} of head {}", title(map), map.head))
        .collect();
    html! { @if !names.is_empty() { "Not shown to be better than the lungs as a whole: " (listed(&names)) "." } }
}

fn signed(value: f64) -> String {
    if value > 0.0 { format!("+{}", plain(value)) } else { plain(value) }
}

fn localisation(numbers: &ExplanationNumbers) -> Markup {
    html! {
        h3 { "Agreement with the true lesions" }
        div.scroll {
            table {
                caption {
                    "Unit: case; each case's slices are averaged first. 95 % bootstrap intervals by case. Slices whose lesion covers at least 0.2 % of the picture, true class explained. "
                    @if let Some(chance) = numbers.chance {
                        "A map without any knowledge gets " (plain(chance)) " in each column, the mean share of the picture that is lesion. "
                    }
                    "The last rows look at no network: a map is worth what it adds to them."
                }
                thead { tr {
                    th { "Head" } th { "Map" } th.n { "Slices (cases)" }
                    th.n title="Share of slices whose highest point lies in the lesion" { "Pointing game" }
                    th.n title="Share of the map's sum within the lesion" { "Mass in lesion" }
                    th.n title="Dice overlap of the lesion with the map's highest part of equal area" { "Overlap" }
                    th.n { "Overlap above lungs" } th.n { "Overlap above usual place" }
                } }
                tbody {
                    @for map in numbers.maps.iter().filter(|map| map.n_slices > 0) {
                        tr {
                            th scope="row" { @if map.reference { "none" } @else { (map.head) } }
                            td { (title(map)) }
                            td.n { (map.n_slices) " (" (map.n_cases) ")" }
                            (cell(map.pointing)) (cell(map.mass)) (cell(map.overlap))
                            (cell(map.overlap_above_lungs)) (cell(map.overlap_above_prior))
                        }
                    }
                }
            }
        }
    }
}

fn sanity(numbers: &ExplanationNumbers) -> Markup {
    html! {
        h3 { "Do the maps depend on what was learnt?" }
        div.scroll {
            table {
                caption {
                    "Rank correlation of each map with the same map of a network with random weights (Adebayo et al., NeurIPS 2018). Near 0: the map shows what was learnt. Far from 0, either way: it shows the picture's edges, whatever was learnt. "
                    "Unit: case; all slices that have maps. Empty: maps in which nothing spoke for the class, or, under occlusion, no single place."
                }
                thead { tr { th { "Head" } th { "Map" } th.n { "Maps" } th.n { "Empty" } th.n { "Rank correlation" } } }
                tbody {
                    @for map in numbers.maps.iter().filter(|map| !map.reference) {
                        tr {
                            th scope="row" { (map.head) }
                            td { (title(map)) }
                            td.n { (map.n_maps) } td.n { (map.n_empty) }
                            @if map.method == Method::Occlusion.as_str() { td.n { span.undefined { "not computed" } } }
                            @else { (cell(map.randomised_correlation)) }
                        }
                    }
                }
            }
        }
    }
}

fn cell(mean: Option<Mean>) -> Markup {
    html! {
        td.n {
            @if let Some(mean) = mean { (plain(mean.value)) span.ci { (bounds(mean.low, mean.high)) } }
            @else { "–" }
        }
    }
}
