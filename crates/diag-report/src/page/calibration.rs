//! Whether the probabilities can be taken at their word, and what acting on them is worth.

use maud::{Markup, html};

use super::{Context, bounds, number};
use crate::ReportError;
use crate::chart::{Chart, Series, figure, points_table};

pub(crate) fn section(context: &Context) -> Result<Markup, ReportError> {
    Ok(html! {
        div.charts { (reliability(context)?) (benefit(context)?) }
        (bins(context))
        (recalibration(context))
        (prevalence(context))
    })
}

fn reliability(context: &Context) -> Result<Markup, ReportError> {
    let line = |(name, class): (&String, &crate::ClassCalibration)| {
        let points = class.bins.iter().filter_map(|bin| bin.mean_probability.zip(bin.observed));
        Series { markers: true, ..Series::line(name.clone(), points.collect()) }
    };
    let chart = Chart {
        title: "Reliability by case",
        alt: "Observed share against mean predicted probability in 10 bins for each class; the diagonal is perfect calibration",
        x_label: "mean predicted probability",
        y_label: "observed share",
        x: Some((0.0, 1.0)),
        y: Some((0.0, 1.0)),
        reference: Some([(0.0, 0.0), (1.0, 1.0)]),
        series: context.labels().iter().zip(&context.numbers.calibration).map(line).collect(),
    };
    figure(&chart, points_table(&chart))
}

fn benefit(context: &Context) -> Result<Markup, ReportError> {
    let line = |(name, class): (&String, &crate::ClassCalibration)| {
        let points = class.net_benefit.iter().map(|p| (p.threshold, p.model)).collect();
        Series { markers: false, ..Series::line(name.clone(), points) }
    };
    let chart = Chart {
        title: "Decision curves by case",
        alt: "Net benefit of acting on each class by threshold probability; zero is acting on nobody",
        x_label: "threshold probability",
        y_label: "net benefit",
        x: Some((0.0, 1.0)),
        y: Some((-0.1, 0.7)),
        reference: Some([(0.0, 0.0), (1.0, 0.0)]),
        series: context.labels().iter().zip(&context.numbers.calibration).map(line).collect(),
    };
    let chart = Chart { series: chart.series.into_iter().map(inside).collect(), ..chart };
    figure(&chart, points_table(&chart))
}

/// Losses far below zero would only flatten the picture.
fn inside(series: Series) -> Series {
    let points = series.points.into_iter().filter(|(_, y)| (-0.1..=0.7).contains(y)).collect();
    Series { points, ..series }
}

fn bins(context: &Context) -> Markup {
    html! {
        details {
            summary { "Reliability bins" }
            div.scroll {
                table {
                    caption { "Unit: case. A bin holds its lower edge; the last one also its upper." }
                    thead { tr { th { "Class" } th.n { "Bin" } th.n { "Cases" } th.n { "Mean probability" } th.n { "Observed share" } } }
                    tbody {
                        @for (name, class) in context.labels().iter().zip(&context.numbers.calibration) {
                            @for bin in class.bins.iter().filter(|bin| bin.n > 0) {
                                tr {
                                    td { (name) }
                                    td.n { (format!("{:.1}–{:.1}", bin.lower, bin.upper)) }
                                    td.n { (bin.n) }
                                    td.n { (number(bin.mean_probability)) }
                                    td.n { (number(bin.observed)) }
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
                caption { "Logistic recalibration, unit: case. Perfect is slope 1, intercept 0. Undefined where a class is perfectly separated." }
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
                caption { "Predictive values where the class has another share than here (from sensitivity and specificity by case): PPV / NPV." }
                thead { tr { th { "Class" } @for share in &shares { th.n { "share " (format!("{:.0} %", 100.0 * share)) } } } }
                tbody {
                    @for (name, class) in context.labels().iter().zip(&context.numbers.calibration) {
                        tr {
                            th scope="row" { (name) }
                            @for at in &class.at_prevalence { td.n { (number(at.ppv)) " / " (number(at.npv)) } }
                        }
                    }
                }
            }
        }
    }
}
