//! How training went: losses by head and part, the loss's own state, validation.

use std::collections::BTreeMap;

use diag_data::run::{Epoch, LossRecord, RunInfo, Validation};
use maud::{Markup, html};

use super::Context;
use crate::ReportError;
use crate::chart::{Chart, Series, figure, points_table};

pub(crate) fn section(context: &Context) -> Result<Markup, ReportError> {
    let (info, epochs) = (&context.run.info, &context.run.epochs);
    if epochs.is_empty() {
        return Ok(html! { p.note { "Missing: the run holds no epochs." } });
    }
    let mut figures = vec![
        epoch_chart(
            "Loss that was minimised",
            "Total loss by epoch, training and validation",
            "loss",
            totals(epochs),
        )?,
        epoch_chart(
            "Validation, final head",
            "Validation measures by epoch",
            "share, 0 to 1",
            validation(epochs),
        )?,
        epoch_chart("Learning rate", "Learning rate by epoch", "learning rate", learning_rate(epochs))?,
    ];
    for (title, y_label, series) in state_charts(info, epochs) {
        figures.push(epoch_chart(&title, &format!("{title} by epoch"), y_label, series)?);
    }
    for (title, series) in part_charts(info, epochs) {
        figures.push(epoch_chart(&title, &format!("{title} by epoch, a line per head"), "loss", series)?);
    }
    figures.push(epoch_chart(
        "Validation by head, slices",
        "Balanced accuracy on validation slices by epoch, a line per head",
        "balanced accuracy",
        by_name(info, epochs, |e| {
            e.validation.as_ref().map(|v| v.slice_balanced_accuracy.clone()).unwrap_or_default()
        }),
    )?);
    Ok(html! {
        p {
            "Trained for " (super::count(epochs.len(), "epoch"))
            @if let Some(last) = epochs.last() { " (" (last.step) " steps)" }
            " in " (duration(info.train_seconds)) " on " (info.device) ". "
            @match info.best_epoch {
                Some(best) => { "The weights of epoch " strong { (best) } " were kept (rule: " (info.selection) ")." }
                None => { "Training has not ended: no epoch was chosen yet." }
            }
        }
        p.note {
            "Unit: slice, unless a chart says case. Losses are means over the slices of the part; training losses are over the epoch while the weights change, validation losses after it. "
            "alpha, beta, class and head weights: their values at the end of the epoch. No chart has intervals: one training run was made."
        }
        div.charts { @for chart in figures.into_iter().flatten() { (chart) } }
    })
}

/// `None` when there is nothing to draw.
fn epoch_chart(
    title: &str,
    alt: &str,
    y_label: &str,
    series: Vec<Series>,
) -> Result<Option<Markup>, ReportError> {
    let series: Vec<Series> = series.into_iter().filter(|s| !s.points.is_empty()).collect();
    if series.is_empty() {
        return Ok(None);
    }
    let chart = Chart { title, alt, x_label: "epoch", y_label, x: None, y: None, reference: None, series };
    figure(&chart, points_table(&chart)).map(Some)
}

fn points(epochs: &[Epoch], value: impl Fn(&Epoch) -> Option<f64>) -> Vec<(f64, f64)> {
    epochs.iter().filter_map(|epoch| Some((f64::from(epoch.epoch), value(epoch)?))).collect()
}

fn totals(epochs: &[Epoch]) -> Vec<Series> {
    vec![
        Series::line("training", points(epochs, |e| Some(e.train.total))),
        Series::line("validation", points(epochs, |e| e.validation.as_ref().map(|v| v.loss.total))),
    ]
}

fn validation(epochs: &[Epoch]) -> Vec<Series> {
    let line = |name: &str, value: fn(&Validation) -> f64| {
        Series::line(name, points(epochs, |e| e.validation.as_ref().map(value)))
    };
    vec![
        line("balanced accuracy, case", |v| v.case_balanced_accuracy),
        line("macro F1, case", |v| v.case_macro_f1),
        line("macro F1, slice", |v| v.slice_macro_f1),
    ]
}

fn learning_rate(epochs: &[Epoch]) -> Vec<Series> {
    vec![Series::line("learning rate", points(epochs, |e| Some(e.learning_rate)))]
}

/// One line for each name that any epoch has: heads and classes in their own
/// order, so that a colour means the same in every chart, then other names.
fn by_name(
    info: &RunInfo,
    epochs: &[Epoch],
    values: impl Fn(&Epoch) -> BTreeMap<String, f64>,
) -> Vec<Series> {
    let mut lines: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    for epoch in epochs {
        for (name, value) in values(epoch) {
            lines.entry(name).or_default().push((f64::from(epoch.epoch), value));
        }
    }
    let order: Vec<&String> = info.heads.iter().chain(info.labels.names()).collect();
    let mut lines: Vec<_> = lines.into_iter().collect();
    lines.sort_by_key(|(name, _)| order.iter().position(|known| *known == name).unwrap_or(order.len()));
    lines.into_iter().map(|(name, points)| Series::line(name, points)).collect()
}

/// The loss's own state: one chart for `alpha`, one for all `beta/HEAD`, and so on.
fn state_charts(info: &RunInfo, epochs: &[Epoch]) -> Vec<(String, &'static str, Vec<Series>)> {
    let group_of = |name: &str| name.split_once('/').map_or(name, |(group, _)| group).to_string();
    let groups: std::collections::BTreeSet<String> =
        epochs.iter().flat_map(|e| e.loss_state.keys().map(|name| group_of(name))).collect();
    let chart = |group: String| {
        let series = by_name(info, epochs, |epoch| {
            let of_group = epoch.loss_state.iter().filter(|(name, _)| group_of(name) == group);
            let short =
                |name: &String| name.split_once('/').map_or(name.as_str(), |(_, rest)| rest).to_string();
            of_group.map(|(name, value)| (short(name), *value)).collect()
        });
        let (title, y_label) = match group.as_str() {
            "alpha" => ("Alpha, effective number of samples".to_string(), "alpha"),
            "beta" => ("Beta, weight of reverse cross entropy by head".to_string(), "beta"),
            "class_weight" => ("Class weights".to_string(), "weight"),
            "head_weight" => ("Head weights".to_string(), "weight"),
            _ => (format!("Loss state: {group}"), "value"),
        };
        (title, y_label, series)
    };
    groups.into_iter().map(chart).collect()
}

/// One chart for each part of the loss, training and validation apart.
fn part_charts(info: &RunInfo, epochs: &[Epoch]) -> Vec<(String, Vec<Series>)> {
    type Side = (&'static str, fn(&Epoch) -> Option<&LossRecord>);
    let sides: [Side; 2] =
        [("training", |e| Some(&e.train)), ("validation", |e| e.validation.as_ref().map(|v| &v.loss))];
    let parts: std::collections::BTreeSet<&String> =
        epochs.iter().flat_map(|e| e.train.heads.values().flat_map(BTreeMap::keys)).collect();
    let mut charts = Vec::new();
    for part in parts {
        for (side, record) in sides {
            let series = by_name(info, epochs, |epoch| {
                let heads = record(epoch).map(|r| &r.heads).into_iter().flatten();
                heads.filter_map(|(head, values)| Some((head.clone(), *values.get(part)?))).collect()
            });
            charts.push((format!("{} by head, {side}", words(part)), series));
        }
    }
    charts
}

/// `cross_entropy` becomes `Cross entropy`.
fn words(key: &str) -> String {
    let text = key.replace('_', " ");
    let mut letters = text.chars();
    letters.next().map_or(String::new(), |first| first.to_uppercase().chain(letters).collect())
}

fn duration(seconds: f64) -> String {
    if seconds < 120.0 { format!("{seconds:.0} s") } else { format!("{:.1} min", seconds / 60.0) }
}
