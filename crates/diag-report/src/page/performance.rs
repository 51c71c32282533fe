//! How well it classifies: confusion, measures per class and over all, curves.

use diag_metrics::Measure;
use maud::{Markup, html};

use super::{Context, bounds, estimate_cell, few_cases, number};
use crate::ReportError;
use crate::chart::{Band, Chart, Series, figure, points_table};
use crate::numbers::{NamedEstimate, UnitNumbers, find};

pub(crate) fn section(context: &Context) -> Result<Markup, ReportError> {
    let (by_case, by_slice) = (&context.numbers.by_case, &context.numbers.by_slice);
    Ok(html! {
        (few_cases(context))
        h3 { "Confusion" }
        div.pair { (confusion(context, by_case)) (confusion(context, by_slice)) }
        h3 { "Each class against the rest" }
        (per_class(context, by_case))
        (per_class(context, by_slice))
        h3 { "Over all classes" }
        (overall(context))
        h3 { "Curves, each class against the rest" }
        p.note { "Bands: pointwise, 95 %, by case. A curve without a visible band did not change in any resample: with few cases that is no certainty." }
        div.charts.pairs {
            (roc(context, by_case)?) (precision_recall(context, by_case)?)
            (roc(context, by_slice)?) (precision_recall(context, by_slice)?)
        }
        h3 { "Heads, by case" }
        (heads(context))
        h3 { "Subgroups, by case" }
        (subgroups(context))
    })
}

fn confusion(context: &Context, unit: &UnitNumbers) -> Markup {
    html! {
        div.scroll {
            table.confusion {
                caption { "By " (unit.unit) ", n = " (unit.n) ". Rows: true class; columns: called class; share of the row below the count." }
                thead { tr { th { "true \\ called" } @for name in context.labels() { th.n { (name) } } th.n { "all" } } }
                tbody {
                    @for (actual, row) in unit.confusion.iter().enumerate() {
                        @let total: u64 = row.iter().sum();
                        tr {
                            th scope="row" { (context.labels()[actual]) }
                            @for (called, n) in row.iter().enumerate() {
                                @let share = if total > 0 { *n as f64 / total as f64 } else { 0.0 };
                                td.n.right[actual == called] style=(format!("--share:{share:.3}")) {
                                    (n) span.ci { @if total > 0 { (format!("{:.0} %", 100.0 * share)) } @else { "–" } }
                                }
                            }
                            td.n { (total) }
                        }
                    }
                }
            }
        }
    }
}

fn per_class(context: &Context, unit: &UnitNumbers) -> Markup {
    html! {
        div.scroll {
            table {
                caption { "Unit: " (unit.unit) ". 95 % intervals by case below each value." }
                thead {
                    tr {
                        th { "Class" }
                        th.n { (unit.unit) "s" }
                        @for measure in Measure::of_class(0) { th.n title=(measure.definition()) { (measure.title()) } }
                    }
                }
                tbody {
                    @for (k, name) in context.labels().iter().enumerate() {
                        tr {
                            th scope="row" { (name) }
                            td.n { (unit.confusion[k].iter().sum::<u64>()) }
                            @for measure in Measure::of_class(k) { (estimate_cell(unit.get(measure))) }
                        }
                    }
                }
            }
        }
    }
}

fn overall(context: &Context) -> Markup {
    let numbers = context.numbers;
    let columns: [(&str, &[NamedEstimate]); 4] = [
        ("case, decided", &numbers.by_case.estimates),
        ("case, mean over slices", &numbers.by_case_mean),
        ("case, mean of top 3 slices", &numbers.by_case_top_3),
        ("slice", &numbers.by_slice.estimates),
    ];
    html! {
        div.scroll {
            table {
                caption { "Unit of analysis in the column heads. 95 % intervals by case below each value." }
                thead { tr { th { "Measure" } @for (name, _) in columns { th.n { (name) } } } }
                tbody {
                    @for measure in Measure::OVERALL {
                        tr {
                            th scope="row" title=(measure.definition()) {
                                (measure.title())
                                @if !measure.higher_is_better() { span.ci { "lower is better" } }
                            }
                            @for (_, estimates) in columns { (estimate_cell(find(estimates, measure))) }
                        }
                    }
                }
            }
        }
    }
}

fn heads(context: &Context) -> Markup {
    let measures = [Measure::BalancedAccuracy, Measure::MacroF1, Measure::MacroAuroc, Measure::Brier];
    html! {
        div.scroll {
            table {
                caption { "Unit: case. Each head judged alone; the last one is the output that everything else on this page uses." }
                thead { tr { th { "Head" } @for measure in measures { th.n { (measure.title()) } } } }
                tbody {
                    @for head in &context.numbers.heads {
                        tr {
                            th scope="row" { (head.head) }
                            @for measure in measures { (estimate_cell(find(&head.estimates, measure))) }
                        }
                    }
                }
            }
        }
    }
}

fn subgroups(context: &Context) -> Markup {
    if context.numbers.subgroups.is_empty() {
        return html! { p.note { "Missing: the shards, which hold scanner and kernel, are not at hand." } };
    }
    html! {
        div.scroll {
            table {
                caption { "Unit: case. Wilson score intervals, 95 %. Balanced accuracy is over the classes that occur in the subgroup. Subgroups with fewer than 10 cases differ by chance; lesion load is the share of the lungs, where the truth is known." }
                thead { tr {
                    th { "Property" } th { "Value" }
                    @for name in context.labels() { th.n { (name) } }
                    th.n { "all" } th.n { "right" } th.n { "Accuracy" } th.n { "Balanced accuracy" }
                } }
                tbody {
                    @for (i, group) in context.numbers.subgroups.iter().enumerate() {
                        @let first = i == 0 || context.numbers.subgroups[i - 1].property != group.property;
                        tr.first[first] {
                            td { @if first { (group.property) } @else { span.again { (group.property) } } }
                            td { (group.value) }
                            @for n in &group.cases_per_class { td.n { (n) } }
                            td.n { (group.cases_per_class.iter().sum::<u64>()) }
                            td.n { (group.n_right) }
                            td.n { (number(group.accuracy)) span.ci { (bounds(group.low, group.high)) } }
                            td.n { (number(group.balanced_accuracy)) }
                        }
                    }
                }
            }
        }
    }
}

fn roc(context: &Context, unit: &UnitNumbers) -> Result<Markup, ReportError> {
    let mut series = Vec::new();
    for (k, name) in context.labels().iter().enumerate() {
        let Some(curve) = &unit.roc[k] else { continue };
        let points = thin(curve.iter().map(|p| (p.false_positive_rate, p.sensitivity)).collect());
        let band = unit.roc_band[k].as_ref().map(|band| {
            let edge = |high: bool| {
                band.iter().map(move |p| (p.false_positive_rate, if high { p.high } else { p.low })).collect()
            };
            Band { low: edge(false), high: edge(true) }
        });
        series.push(Series { band, markers: false, ..Series::line(name.clone(), points) });
    }
    if series.is_empty() {
        return Ok(html! { p.note { "ROC by " (unit.unit) ": undefined with a single class." } });
    }
    let chart = Chart {
        title: &format!("ROC by {}", unit.unit),
        alt: &format!(
            "ROC curves by {} of each class with 95 percent bands; areas are in the table above",
            unit.unit
        ),
        x_label: "1 − specificity",
        y_label: "sensitivity",
        x: Some((0.0, 1.0)),
        y: Some((0.0, 1.0)),
        reference: Some([(0.0, 0.0), (1.0, 1.0)]),
        series,
    };
    figure(&chart, points_table(&chart))
}

fn precision_recall(context: &Context, unit: &UnitNumbers) -> Result<Markup, ReportError> {
    let mut series = Vec::new();
    for (k, name) in context.labels().iter().enumerate() {
        let Some(curve) = &unit.precision_recall[k] else { continue };
        let points = thin(curve.iter().map(|p| (p.recall, p.precision)).collect());
        let band = unit.precision_recall_band[k].as_ref().map(|band| Band {
            low: band.iter().map(|p| (p.recall, p.low)).collect(),
            high: band.iter().map(|p| (p.recall, p.high)).collect(),
        });
        series.push(Series { band, markers: false, ..Series::line(name.clone(), points) });
    }
    let chart = Chart {
        title: &format!("Precision and recall by {}", unit.unit),
        alt: &format!(
            "Precision-recall curves by {} of each class with 95 percent bands; areas are in the table above",
            unit.unit
        ),
        x_label: "recall (sensitivity)",
        y_label: "precision (PPV)",
        x: Some((0.0, 1.0)),
        y: Some((0.0, 1.0)),
        reference: None,
        series,
    };
    figure(&chart, points_table(&chart))
}

/// Corners that a chart of this size cannot show are left out of the drawing.
fn thin(points: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    let last = points.len().saturating_sub(1);
    let mut kept: Vec<(f64, f64)> = Vec::new();
    for (i, &(x, y)) in points.iter().enumerate() {
        let near = kept.last().is_some_and(|(a, b)| (x - a).abs() + (y - b).abs() < 0.002);
        if !near || i == last {
            kept.push((x, y));
        }
    }
    kept
}
