//! Several runs side by side, and the paired tests against the first.

use diag_metrics::Measure;
use maud::{Markup, html};

use super::{bounds, estimate_cell, number, plain};
use crate::compare::{AgainstFirst, Test};
use crate::numbers::{Numbers, few_cases};

pub(crate) fn section(numbers: &Numbers) -> Markup {
    html! {
        section #comparison {
            h2 { "Comparison of runs" }
            @for run in &numbers.runs {
                @if let Some(warning) = few_cases(&run.labels, &run.by_case.cases_per_class) {
                    p.warning { strong { "Caution, run " (run.name) ". " } (warning) }
                }
            }
            (side_by_side(numbers))
            @for comparison in &numbers.comparisons { (against_first(comparison)) }
        }
    }
}

fn side_by_side(numbers: &Numbers) -> Markup {
    html! {
        div.scroll {
            table {
                caption { "Unit: case. 95 % intervals by case below each value." }
                thead {
                    tr { th { "Measure" } @for run in &numbers.runs { th.n { (run.name) } } }
                }
                tbody {
                    tr {
                        th scope="row" { "Cases" }
                        @for run in &numbers.runs { td.n { (run.by_case.n) } }
                    }
                    @for measure in Measure::OVERALL {
                        tr {
                            th scope="row" title=(measure.definition()) {
                                (measure.title())
                                @if !measure.higher_is_better() { span.ci { "lower is better" } }
                            }
                            @for run in &numbers.runs { (estimate_cell(run.by_case.get(measure))) }
                        }
                    }
                }
            }
        }
    }
}

fn against_first(comparison: &AgainstFirst) -> Markup {
    html! {
        h3 { (comparison.second) " against " (comparison.first) }
        @if let Some(why) = &comparison.not_paired {
            p.warning { strong { "No paired test. " } "Paired tests need the same cases: " (why) "." }
        } @else {
            div.scroll {
                table {
                    caption {
                        "Unit: case; both runs on the same cases. Differences are " (comparison.second) " minus "
                        (comparison.first) ". Holm's correction is over the tests of this table. Intervals: 95 %, for each test alone. Seeds of training are not varied: a difference holds for these two trained networks."
                    }
                    thead { tr {
                        th { "What" } th { "Test" } th.n { "Difference" } th.n { "p" } th.n { "p, Holm" }
                    } }
                    tbody { @for test in &comparison.tests { (row(test)) } }
                }
            }
        }
    }
}

fn row(test: &Test) -> Markup {
    html! {
        tr {
            th scope="row" { (test.what) }
            td { (test.test) }
            td.n {
                (number(test.difference))
                @if test.low.is_some() { span.ci { (bounds(test.low, test.high)) } }
            }
            td.n { (p_value(test.p_value)) }
            td.n { (p_value(test.p_holm)) }
        }
    }
}

fn p_value(p: Option<f64>) -> Markup {
    match p {
        Some(p) if p < 0.001 => html! { "< 0.001" },
        Some(p) => html! { (plain(p)) },
        None => html! { span.undefined { "undefined" } },
    }
}
