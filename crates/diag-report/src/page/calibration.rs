//! Whether the probabilities can be taken at their word, and what acting on them is worth.

use diag_metrics::{NetBenefitBandPoint, NetBenefitPoint};
use maud::{Markup, html};

use super::{Context, bounds, count, few_cases, number};
use crate::chart::{Band, Chart, Series, figure, points_table};
use crate::{ClassCalibration, ReportError};

/// Losses far below zero would only flatten the picture.
const LOWEST_BENEFIT: f64 = -0.15;
/// Place in the palette of acting on everybody, away from the classes.
const EVERYBODY_SLOT: usize = 6;

pub(crate) fn section(context: &Context) -> Result<Markup, ReportError> {
    let classes = || context.labels().iter().zip(&context.numbers.calibration).enumerate();
    let reliability: Result<Vec<_>, _> =
        classes().map(|(k, (name, class))| reliability(k, name, class)).collect();
    let benefit: Result<Vec<_>, _> = classes().map(|(k, (name, class))| benefit(k, name, class)).collect();
    Ok(html! {
        (few_cases(context))
        h3 { "Do the probabilities come true?" }
        p.note {
            "Each class against the rest, unit: case, 10 bins of equal width. Upright lines: Wilson score intervals, 95 %, of the observed share. Dotted: perfect calibration. ECE and Brier score are "
            a href=(format!("#{}performance", context.anchor)) { "among the measures over all classes" } "."
        }
        div.charts { @for chart in reliability? { (chart) } }
        (bins(context))
        (recalibration(context))
        @if let Some(external) = &context.run.external { (super::external::local_calibration(external)) }
        h3 { "What is acting on them worth?" }
        p.note {
            "Net benefit of acting on a class from a threshold probability on, unit: case, at the class shares of this data. Band: pointwise, 95 %, by case. Dotted: acting on nobody."
        }
        div.charts { @for chart in benefit? { (chart) } }
        h3 { "Where the class is rarer" }
        (prevalence(context))
        h3 { "Operating point, fixed beforehand" }
        (operating_point(context))
    })
}

fn reliability(k: usize, name: &str, class: &ClassCalibration) -> Result<Markup, ReportError> {
    let bins = || class.bins.iter().filter_map(|bin| Some((bin.bin.mean_probability?, bin)));
    let points = bins().filter_map(|(mean, bin)| Some((mean, bin.bin.observed?))).collect();
    let bars = bins().filter_map(|(mean, bin)| Some((mean, bin.low?, bin.high?))).collect();
    let chart = Chart {
        title: &format!("Reliability of {name}, by case"),
        alt: &format!(
            "Observed share of {name} against mean predicted probability in 10 bins, with 95 percent intervals; the diagonal is perfect calibration"
        ),
        x_label: "mean predicted probability",
        y_label: "observed share",
        x: Some((0.0, 1.0)),
        y: Some((0.0, 1.0)),
        reference: Some([(0.0, 0.0), (1.0, 1.0)]),
        series: vec![Series { markers: true, slot: Some(k), bars, ..Series::line(name, points) }],
    };
    figure(&chart, points_table(&chart))
}

fn benefit(k: usize, name: &str, class: &ClassCalibration) -> Result<Markup, ReportError> {
    let curve = |value: fn(&NetBenefitPoint) -> f64| -> Vec<(f64, f64)> {
        class.net_benefit.iter().map(|p| (p.threshold, value(p))).collect()
    };
    let (model, everybody) = (curve(|p| p.model), curve(|p| p.everybody));
    let edge = |value: fn(&NetBenefitBandPoint) -> f64| -> Vec<(f64, f64)> {
        class.net_benefit_band.iter().map(|p| (p.threshold, value(p))).collect()
    };
    let band = Band { low: edge(|p| p.low), high: edge(|p| p.high) };
    let highest = band.high.iter().chain(&model).map(|(_, y)| *y).fold(0.1, f64::max);
    let chart = Chart {
        title: &format!("Decision curve of {name}, by case"),
        alt: &format!(
            "Net benefit of acting on {name} by threshold probability with a 95 percent band, beside acting on everybody; zero is acting on nobody"
        ),
        x_label: "threshold probability",
        y_label: "net benefit",
        x: Some((0.0, 1.0)),
        y: Some((LOWEST_BENEFIT, highest + 0.05)),
        reference: Some([(0.0, 0.0), (1.0, 0.0)]),
        series: vec![
            Series { band: Some(band), markers: false, slot: Some(k), ..Series::line("by the model", model) },
            Series { markers: false, slot: Some(EVERYBODY_SLOT), ..Series::line("on everybody", everybody) },
        ],
    };
    // The table has what the picture cannot show.
    let table = points_table(&chart);
    let chart = Chart { series: chart.series.into_iter().map(inside).collect(), ..chart };
    figure(&chart, table)
}

/// A line ends where it leaves the picture below; a band is held at its border.
fn inside(series: Series) -> Series {
    let mut points: Vec<(f64, f64)> = Vec::new();
    for (x, y) in series.points {
        match points.last() {
            Some((before, above)) if y < LOWEST_BENEFIT && *above > LOWEST_BENEFIT => {
                let share = (above - LOWEST_BENEFIT) / (above - y);
                points.push((before + share * (x - before), LOWEST_BENEFIT));
                break;
            }
            _ => points.push((x, y.max(LOWEST_BENEFIT))),
        }
    }
    let held = |edge: Vec<(f64, f64)>| edge.into_iter().map(|(x, y)| (x, y.max(LOWEST_BENEFIT))).collect();
    let band = series.band.map(|band| Band { low: held(band.low), high: held(band.high) });
    Series { points, band, ..series }
}

fn bins(context: &Context) -> Markup {
    html! {
        details {
            summary { "Reliability bins" }
            div.scroll {
                table {
                    caption { "Unit: case. A bin holds its lower edge; the last one also its upper. Wilson score intervals, 95 %." }
                    thead { tr { th { "Class" } th.n { "Bin" } th.n { "Cases" } th.n { "Mean probability" } th.n { "Observed share" } } }
                    tbody {
                        @for (name, class) in context.labels().iter().zip(&context.numbers.calibration) {
                            @for bin in class.bins.iter().filter(|bin| bin.bin.n > 0) {
                                tr {
                                    td { (name) }
                                    td.n { (format!("{:.1}–{:.1}", bin.bin.lower, bin.bin.upper)) }
                                    td.n { (bin.bin.n) }
                                    td.n { (number(bin.bin.mean_probability)) }
                                    td.n { (number(bin.bin.observed)) span.ci { (bounds(bin.low, bin.high)) } }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn recalibration(context: &Context) -> Markup {
    html! {
        div.scroll {
            table {
                caption { "Logistic recalibration, unit: case. Perfect is slope 1, intercept 0. 95 % interval of the slope below it. Undefined where a class is perfectly separated from the rest." }
                thead { tr { th { "Class" } th.n { "Slope" } th.n { "Intercept" } th.n { "Calibration in the large" } } }
                tbody {
                    @for (name, class) in context.labels().iter().zip(&context.numbers.calibration) {
                        @let fit = class.recalibration;
                        @let interval = fit.and_then(|fit| fit.slope_interval(0.95));
                        tr {
                            th scope="row" { (name) }
                            td.n {
                                (number(fit.map(|fit| fit.slope)))
                                @if let Some((low, high)) = interval { span.ci { (bounds(Some(low), Some(high))) } }
                            }
                            td.n { (number(fit.map(|fit| fit.intercept))) }
                            td.n { (number(fit.map(|fit| fit.in_the_large))) }
                        }
                    }
                }
            }
        }
    }
}

fn prevalence(context: &Context) -> Markup {
    let shares: Vec<f64> = context
        .numbers
        .calibration
        .first()
        .map(|class| class.at_prevalence.iter().map(|at| at.prevalence).collect())
        .unwrap_or_default();
    html! {
        div.scroll {
            table {
                caption { "PPV and NPV where the class has another share than here, from sensitivity and specificity; unit: case. 95 % intervals by case below each value. “all agree”: no resample differs, because no case was called wrong that way; with few cases that is no certainty." }
                thead {
                    tr {
                        th rowspan="2" { "Class" }
                        @for share in &shares { th.group colspan="2" { "share " (format!("{:.0} %", 100.0 * share)) } }
                    }
                    tr { @for _ in &shares { th.n { "PPV" } th.n { "NPV" } } }
                }
                tbody {
                    @for (name, class) in context.labels().iter().zip(&context.numbers.calibration) {
                        tr {
                            th scope="row" { (name) }
                            @for at in &class.at_prevalence { (restated(at.ppv, at.ppv_low, at.ppv_high)) (restated(at.npv, at.npv_low, at.npv_high)) }
                        }
                    }
                }
            }
        }
    }
}

fn operating_point(context: &Context) -> Markup {
    let point = &context.numbers.operating_point;
    let mut rows = Vec::new();
    if point.threshold.is_some() {
        rows.push(("Sensitivity at the threshold, on this split".to_owned(), point.sensitivity));
        rows.push(("Specificity at the threshold, on this split".into(), point.specificity));
    }
    if point.coverage.is_some() {
        let wanted = point.wanted_coverage;
        rows.push((
            format!("Share of sets of classes that hold the true one, on this split; wanted {wanted:.2}"),
            point.coverage,
        ));
        rows.push(("Mean number of classes in a set".into(), point.mean_size));
        rows.push((
            "Share of cases whose set is one class (the others are undecided)".into(),
            point.singletons,
        ));
        rows.push(("Share of these sets that name the true class".into(), point.singleton_accuracy));
    }
    let words = [
        ("Slices are joined by", &point.aggregation),
        ("Temperature", &point.temperature_basis),
        ("Threshold", &point.threshold_basis),
        ("Sets of classes", &point.sets_basis),
    ];
    html! {
        div.scroll {
            table {
                caption {
                    "Unit: case. Fitted on " (count(point.n_validation_cases, "validation case"))
                    ", without looking at test cases (decision.json), for a sensitivity of "
                    (format!("{:.2}", point.wanted_sensitivity)) " to " (point.positive)
                    "; what it does here was computed for this page, without intervals. Every number by case on this page is of this rule, unless its column says otherwise."
                }
                thead { tr { th { "What" } th.n { "Value" } } }
                tbody {
                    @for (what, value) in words { tr { th scope="row" { (what) } td { (value) } } }
                    @for (what, value) in &rows { tr { th scope="row" { (what) } td.n { (number(*value)) } } }
                }
            }
        }
    }
}

fn restated(value: Option<f64>, low: Option<f64>, high: Option<f64>) -> Markup {
    html! {
        td.n {
            (number(value))
            @if value.is_some() { span.ci { @if low.is_some() { (bounds(low, high)) } @else { "all agree" } } }
        }
    }
}
