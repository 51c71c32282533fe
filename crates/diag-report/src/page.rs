//! The document: what comes in which order, and how numbers are written.

pub(crate) mod baseline;
mod browser;
mod calibration;
mod checklist;
mod comparison;
mod data;
mod explanations;
pub(crate) mod external;
mod failures;
mod model_card;
mod performance;
mod provenance;
mod summary;
mod training;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::load::Run;
use crate::numbers::{NamedEstimate, Numbers, RunNumbers};
use crate::{Options, ReportError, numbers, pictures};

const STYLE: &str = include_str!("page/style.css");
/// Heat maps take at most this part of the room for pictures, beside them.
const MAPS_SHARE: usize = 4;
const SCRIPT: &str = include_str!("page/browser.js");

/// Everything that a section may use.
pub(crate) struct Context<'a> {
    pub(crate) run: &'a Run,
    pub(crate) numbers: &'a RunNumbers,
    pub(crate) options: &'a Options,
    /// Prefix of the section's anchors: `run1-`.
    pub(crate) anchor: String,
}

impl Context<'_> {
    /// Class names in order.
    pub(crate) fn labels(&self) -> &[String] {
        &self.numbers.labels
    }
}

/// Sections of one run: anchor, title, content.
type Sections = Vec<(&'static str, &'static str, Markup)>;

pub(crate) fn document(runs: &[Run], numbers: &Numbers, options: &Options) -> Result<String, ReportError> {
    let title = summary::title(runs);
    let mut parts = Vec::new();
    for (i, (run, of_run)) in runs.iter().zip(&numbers.runs).enumerate() {
        let anchor = format!("run{}-", i + 1);
        let context = Context { run, numbers: of_run, options, anchor };
        parts.push((i, of_run.name.as_str(), sections(&context, options.picture_budget / runs.len())?));
    }
    let several = runs.len() > 1;
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                a.skip href="#content" { "Skip to the content" }
                p.banner role="note" { strong { "Research use only, not for clinical decisions." } }
                div.layout {
                    nav aria-label="Contents" {
                        @if several { p { a href="#comparison" { "Comparison of runs" } } }
                        @for (i, name, sections) in &parts {
                            @if several { p.run { (name) } }
                            ul {
                                @for (id, title, _) in sections {
                                    li { a href=(format!("#run{}-{id}", i + 1)) { (title) } }
                                }
                            }
                        }
                        p { a href="#definitions" { "Definitions" } }
                    }
                    main #content {
                        (summary::headline(runs, numbers, &title))
                        @if several { (comparison::section(numbers)) }
                        @for (i, name, sections) in &parts {
                            @if several { h2.run { "Run " (name) } }
                            @for (id, title, content) in sections {
                                section id=(format!("run{}-{id}", i + 1)) {
                                    h2 { (title) }
                                    (content)
                                }
                            }
                        }
                        section #definitions { h2 { "Definitions" } (checklist::definitions(options)) }
                        footer {
                            p { "Made by " (numbers.tool) ". Research use only, not for clinical decisions. This file holds everything it shows: it makes no request to any network." }
                        }
                    }
                }
                script { (PreEscaped(SCRIPT)) }
            }
        }
    };
    Ok(page.into_string())
}

fn sections(context: &Context, budget: usize) -> Result<Sections, ReportError> {
    let pictures = pictures::embed(context.run, &context.numbers.cases, budget)?;
    Ok(vec![
        ("summary", "Summary", summary::section(context)),
        ("data", "Data", data::section(context)),
        ("training", "Training", training::section(context)?),
        ("performance", "Performance", performance::section(context)?),
        ("calibration", "Calibration and benefit", calibration::section(context)?),
        ("explanations", "Explanations", explanations::section(context)),
        ("failures", "Failure cases", failures::section(context)),
        ("cases", "Cases", browser::section(context, &pictures, budget / MAPS_SHARE)?),
        ("model-card", "Model card", model_card::section(context)),
        ("provenance", "Provenance", provenance::section(context)),
        ("checklist", "Reporting checklist", checklist::section(context)),
    ])
}

/// The warning about classes with few cases, where numbers by class stand.
pub(crate) fn few_cases(context: &Context) -> Markup {
    let warning = numbers::few_cases(context.labels(), &context.numbers.by_case.cases_per_class);
    html! { @if let Some(warning) = warning { p.warning { strong { "Caution. " } (warning) } } }
}

/// Three decimals; an undefined value is called so.
pub(crate) fn number(value: Option<f64>) -> Markup {
    match value {
        Some(value) => html! { (plain(value)) },
        None => html! { span.undefined { "undefined" } },
    }
}

/// Three decimals with a true minus sign, never "-0.000".
pub(crate) fn plain(value: f64) -> String {
    let text = format!("{value:.3}");
    if text == "-0.000" { "0.000".into() } else { text.replace('-', "−") }
}

/// `0.712–0.903`, or a dash.
pub(crate) fn bounds(low: Option<f64>, high: Option<f64>) -> String {
    match low.zip(high) {
        Some((low, high)) if low < 0.0 => format!("{} to {}", plain(low), plain(high)),
        Some((low, high)) => format!("{}–{}", plain(low), plain(high)),
        None => "no interval".into(),
    }
}

/// A value above its interval.
pub(crate) fn estimate_cell(estimate: Option<&NamedEstimate>) -> Markup {
    html! {
        td.n {
            (number(estimate.and_then(|e| e.value)))
            @if let Some(estimate) = estimate.filter(|e| e.value.is_some()) {
                span.ci { (interval_text(estimate)) }
            }
        }
    }
}

pub(crate) fn interval_text(estimate: &NamedEstimate) -> String {
    bounds(estimate.low, estimate.high)
}

/// `95 % CI 0.712–0.903`, or in words why there is none.
pub(crate) fn interval_words(estimate: &NamedEstimate) -> String {
    match estimate.low {
        Some(_) => format!("95 % CI {}", interval_text(estimate)),
        None => "no 95 % CI: too few cases".into(),
    }
}

/// `1 case`, `12 cases`.
pub(crate) fn count(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}
