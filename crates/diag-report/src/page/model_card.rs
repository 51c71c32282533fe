//! The model in one table, under the nine headings of Mitchell et al. (2019).

use diag_metrics::Measure;
use maud::{Markup, html};

use super::summary::{listed, thousands};
use super::{Context, interval_text, plain};

pub(crate) fn section(context: &Context) -> Markup {
    html! {
        p {
            "What the model is, for whom, and what is known of it, under the headings of Mitchell et al. (Model cards for model reporting, 2019). "
            "Computed text comes from the run; supplied text is the authors' own; what neither holds is called missing."
        }
        div.scroll {
            table.checklist.card {
                thead { tr { th { "Heading" } th { "State" } th { "Text" } } }
                tbody {
                    (computed("Model details", model(context)))
                    (supplied(context, "Licence", "licence"))
                    (supplied(context, "Code and weights", "code_availability"))
                    (supplied(context, "Intended use", "intended_use"))
                    (computed("Uses that are not intended", html! { "Clinical decisions: research use only." }))
                    (supplied(context, "Further uses that are not intended", "not_intended_use"))
                    (computed("Factors", factors(context)))
                    (computed("Metrics", html! {
                        "Measures by case with 95 % intervals; the called class is the most probable one. "
                        a href="#definitions" { "Definitions" } "."
                    }))
                    (supplied(context, "Operating point", "threshold_rationale"))
                    (computed("Evaluation data", evaluation_data(context)))
                    (supplied(context, "Validation at another site", "external_validation"))
                    (computed("Training data", training_data(context)))
                    (supplied(context, "Sources of the data", "data_source"))
                    (supplied(context, "Reference standard of the labels", "reference_standard"))
                    (computed("Quantitative analyses", results(context)))
                    (supplied(context, "Ethical considerations", "ethics"))
                    @for warning in &context.numbers.warnings { (computed("Caveat", html! { (warning) })) }
                    (supplied(context, "Limitations and recommendations", "limitations"))
                }
            }
        }
    }
}

fn computed(heading: &str, text: Markup) -> Markup {
    html! { tr { th scope="row" { (heading) } td { span.state.computed { "● computed" } } td { (text) } } }
}

fn supplied(context: &Context, heading: &str, key: &str) -> Markup {
    html! {
        tr {
            th scope="row" { (heading) }
            @match context.options.card.get(key) {
                Some(text) => { td { span.state.supplied { "◆ supplied" } } td { (text) } }
                None => { td { span.state.missing { "○ missing" } } td { "–" } }
            }
        }
    }
}

fn model(context: &Context) -> Markup {
    let info = &context.run.info;
    html! {
        (info.backbone) ", " (thousands(info.n_parameters)) " weights, heads " (listed(&info.heads))
        "; initialisation: " (info.initialisation) "; loss: " (info.loss)
        ". Made by " (info.tool) ". SHA-256 of the weights: "
        @match &info.model_sha256 { Some(hash) => code { (hash) }, None => "not recorded" } "."
    }
}

fn factors(context: &Context) -> Markup {
    let mut properties: Vec<String> =
        context.numbers.subgroups.iter().map(|group| group.property.to_string()).collect();
    properties.dedup();
    html! {
        @if properties.is_empty() { "None could be looked at: the shards are not at hand." }
        @else {
            "Looked at: " (listed(&properties)) ". "
            a href=(format!("#{}performance", context.anchor)) { "Subgroups" } "."
        }
    }
}

fn evaluation_data(context: &Context) -> Markup {
    let by_case = &context.numbers.by_case;
    let classes = context.labels().iter().zip(&by_case.cases_per_class);
    let classes: Vec<String> = classes.map(|(name, n)| format!("{n} {name}")).collect();
    html! {
        (kind(context.numbers.synthetic)) " " (by_case.n) " cases, " (context.numbers.by_slice.n) " slices: " (listed(&classes)) "."
    }
}

fn training_data(context: &Context) -> Markup {
    let part = |name: &str| {
        let counts = context.run.info.cases.get(name)?;
        let classes = context.labels().iter().map(|label| (label, counts.get(label).copied().unwrap_or(0)));
        let words: Vec<String> = classes.map(|(label, n)| format!("{n} {label}")).collect();
        Some(listed(&words))
    };
    let external = context.run.external.as_ref();
    let is_synthetic = external.map_or(context.numbers.synthetic, |external| external.trained_on_synthetic);
    html! {
        (kind(is_synthetic)) " Cases: "
        @match part("train") { Some(words) => (words), None => "not recorded" }
        @if let Some(words) = part("validation") { "; to choose the weights " (words) }
        "."
    }
}

fn kind(is_synthetic: bool) -> &'static str {
    if is_synthetic { "Synthetic, no patients." } else { "Not marked as synthetic." }
}

fn results(context: &Context) -> Markup {
    let by_case = &context.numbers.by_case;
    html! {
        @for measure in [Measure::BalancedAccuracy, Measure::MacroAuroc, Measure::Matthews, Measure::Brier] {
            @if let Some((estimate, value)) = by_case.get(measure).and_then(|e| Some((e, e.value?))) {
                (measure.title()) " " (plain(value)) " (" (interval_text(estimate)) "); "
            }
        }
        "unit: case."
    }
}
