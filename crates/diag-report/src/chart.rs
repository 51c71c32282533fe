//! Line charts as SVG: drawn by plotters, coloured by the page's style sheet.
//!
//! plotters writes fixed colours. Each is a marker that `style.css` maps to the
//! colour and dash of the light or dark theme, so one chart serves both.

use maud::{Markup, PreEscaped, html};
use plotters::prelude::*;

use crate::ReportError;

/// plotters places everything on whole pixels; drawn large and shown small, lines stay smooth.
const SCALE: u32 = 4;
const SIZE: (u32, u32) = (380 * SCALE, 280 * SCALE);
const INK: RGBColor = RGBColor(0x44, 0x44, 0x45);
const GRID: RGBColor = RGBColor(0xDD, 0xDD, 0xDE);
const REFERENCE: RGBColor = RGBColor(0x99, 0x99, 0x9A);
/// Markers of the series, in the style sheet's order (Okabe and Ito's palette).
const SLOTS: [RGBColor; 7] = [
    RGBColor(0x00, 0x72, 0xB2),
    RGBColor(0xD5, 0x5E, 0x00),
    RGBColor(0x00, 0x9E, 0x73),
    RGBColor(0xCC, 0x79, 0xA7),
    RGBColor(0xE6, 0x9F, 0x00),
    RGBColor(0x56, 0xB4, 0xE9),
    RGBColor(0x77, 0x66, 0x22),
];

/// A chart with its words.
pub(crate) struct Chart<'a> {
    pub(crate) title: &'a str,
    /// One sentence that says what the picture shows, for those who do not see it.
    pub(crate) alt: &'a str,
    pub(crate) x_label: &'a str,
    pub(crate) y_label: &'a str,
    /// Fixed ranges; `None` fits the data.
    pub(crate) x: Option<(f64, f64)>,
    pub(crate) y: Option<(f64, f64)>,
    /// A thin straight line from one point to another, for example chance.
    pub(crate) reference: Option<[(f64, f64); 2]>,
    pub(crate) series: Vec<Series>,
}

/// One line.
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
    pub(crate) band: Option<Band>,
    pub(crate) markers: bool,
    /// Place in the palette; `None`: the place in the chart.
    pub(crate) slot: Option<usize>,
    /// Upright intervals at single places: `(x, low, high)`.
    pub(crate) bars: Vec<(f64, f64, f64)>,
}

/// Lower and upper edge of a band, from left to right.
pub(crate) struct Band {
    pub(crate) low: Vec<(f64, f64)>,
    pub(crate) high: Vec<(f64, f64)>,
}

impl Series {
    pub(crate) fn line(name: impl Into<String>, points: Vec<(f64, f64)>) -> Self {
        // A few points are shown as such: one alone would not be seen as a line.
        let markers = points.len() <= 12;
        Self { name: name.into(), points, band: None, markers, slot: None, bars: Vec::new() }
    }
}

/// The chart as a figure, with its legend and the numbers behind it.
pub(crate) fn figure(chart: &Chart, table: Markup) -> Result<Markup, ReportError> {
    let svg = draw(chart)?;
    Ok(html! {
        figure.chart {
            figcaption { (chart.title) }
            (PreEscaped(svg))
            @if chart.series.len() > 1 {
                ul.legend {
                    @for (place, series) in chart.series.iter().enumerate() {
                        li { (swatch(series.slot.unwrap_or(place))) (series.name) }
                    }
                }
            }
            details { summary { "Numbers behind this chart" } div.scroll { (table) } }
        }
    })
}

/// The points of all series as a table, then those of their bands, each thinned to at
/// most about 100 rows.
pub(crate) fn points_table(chart: &Chart) -> Markup {
    let bounds = |series: &Series| -> Vec<(f64, f64, f64)> {
        let band = series.band.iter().flat_map(|band| band.low.iter().zip(&band.high));
        band.map(|(low, high)| (low.0, low.1, high.1)).chain(series.bars.iter().copied()).collect()
    };
    let has_bounds = chart.series.iter().any(|series| !bounds(series).is_empty());
    html! {
        table {
            thead {
                tr {
                    th { "Series" } th.n { (chart.x_label) } th.n { (chart.y_label) }
                    @if has_bounds { th.n { "95 % low" } th.n { "95 % high" } }
                }
            }
            tbody {
                @for series in &chart.series {
                    @for (x, y) in thinned(&series.points) {
                        tr {
                            td { (series.name) } td.n { (tick(*x)) } td.n { (tick(*y)) }
                            @if has_bounds { td.n {} td.n {} }
                        }
                    }
                    @for (x, low, high) in thinned(&bounds(series)) {
                        tr {
                            td { (series.name) ", interval" } td.n { (tick(*x)) } td.n {}
                            td.n { (tick(*low)) } td.n { (tick(*high)) }
                        }
                    }
                }
            }
        }
    }
}

/// The line sample of a legend.
pub(crate) fn swatch(slot: usize) -> Markup {
    let class = format!("swatch s{}", slot % SLOTS.len());
    html! { svg class=(class) viewBox="0 0 28 10" aria-hidden="true" { line x1="0" y1="5" x2="28" y2="5" {} } }
}

fn thinned<T>(points: &[T]) -> impl Iterator<Item = &T> {
    let step = points.len().div_ceil(100).max(1);
    let last = points.len().saturating_sub(1);
    points.iter().enumerate().filter(move |(i, _)| i % step == 0 || *i == last).map(|(_, point)| point)
}

fn draw(chart: &Chart) -> Result<String, ReportError> {
    let mut svg = String::new();
    plot(chart, &mut svg).map_err(|err| ReportError::Chart { why: err.to_string() })?;
    // Inline SVG needs no name space and takes its size from the page.
    let body = svg.split_once("<svg").and_then(|(_, rest)| rest.split_once('>')).map_or("", |(_, body)| body);
    let open = html! {
        (PreEscaped(format!("<svg class=\"chart\" viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"", SIZE.0, SIZE.1)))
        (chart.alt)
        (PreEscaped("\">"))
    };
    Ok(open.into_string() + body)
}

fn plot(chart: &Chart, svg: &mut String) -> Result<(), Box<dyn std::error::Error>> {
    let all = || chart.series.iter().flat_map(|s| s.points.iter());
    let (x0, x1) = chart.x.unwrap_or_else(|| range(all().map(|p| p.0)));
    let (y0, y1) = chart.y.unwrap_or_else(|| padded(range(all().map(|p| p.1))));
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    let label = ("sans-serif", 15 * SCALE).into_text_style(&root).color(&INK);
    let mut area = ChartBuilder::on(&root)
        .margin(6 * SCALE)
        .margin_right(14 * SCALE)
        .x_label_area_size(40 * SCALE)
        .y_label_area_size(72 * SCALE)
        .build_cartesian_2d(x0..x1, y0..y1)?;
    area.configure_mesh()
        .x_desc(chart.x_label)
        .y_desc(chart.y_label)
        .x_labels(6)
        .y_labels(6)
        .max_light_lines(0)
        .bold_line_style(GRID)
        .axis_style(GRID)
        .label_style(label.clone())
        .set_all_tick_mark_size(5 * SCALE)
        .axis_desc_style(label)
        .x_label_formatter(&|x| tick(*x))
        .y_label_formatter(&|y| tick(*y))
        .draw()?;
    if let Some(ends) = chart.reference {
        area.draw_series(LineSeries::new(ends, REFERENCE))?;
    }
    for (place, series) in chart.series.iter().enumerate() {
        let colour = SLOTS[series.slot.unwrap_or(place) % SLOTS.len()];
        if let Some(Band { low, high }) = &series.band {
            let outline: Vec<(f64, f64)> = low.iter().chain(high.iter().rev()).copied().collect();
            area.draw_series(std::iter::once(Polygon::new(outline, colour.mix(0.15))))?;
        }
    }
    for (place, series) in chart.series.iter().enumerate() {
        let colour = SLOTS[series.slot.unwrap_or(place) % SLOTS.len()];
        for &(x, low, high) in &series.bars {
            // Bars take the neutral ink: a dashed bar would look like several.
            area.draw_series(LineSeries::new([(x, low), (x, high)], INK.stroke_width(1)))?;
        }
        let points = || series.points.iter().copied().filter(|(x, y)| x.is_finite() && y.is_finite());
        area.draw_series(LineSeries::new(points(), colour.stroke_width(2)))?;
        if series.markers {
            area.draw_series(points().map(|point| Circle::new(point, 3 * SCALE, colour.filled())))?;
        }
    }
    root.present()?;
    Ok(())
}

fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let finite = values.filter(|v| v.is_finite());
    let (lo, hi) = finite.fold((f64::INFINITY, f64::NEG_INFINITY), |(lo, hi), v| (lo.min(v), hi.max(v)));
    match (lo.is_finite(), lo < hi) {
        (true, true) => (lo, hi),
        (true, false) => (lo - 0.5, lo + 0.5),
        (false, _) => (0.0, 1.0),
    }
}

fn padded((lo, hi): (f64, f64)) -> (f64, f64) {
    let pad = 0.05 * (hi - lo);
    // A quantity that is never negative keeps its zero in sight when it is near.
    let low = if lo >= 0.0 && lo < 0.5 * hi { 0.0 } else { lo - pad };
    (low, hi + pad)
}

/// A number for an axis: as short as four digits allow.
pub(crate) fn tick(value: f64) -> String {
    if value == 0.0 || value.abs() < 1e-12 {
        return "0".into();
    }
    if value.abs() < 1e-3 || value.abs() >= 1e6 {
        return format!("{value:.1e}").replace(".0e", "e").replace('-', "−");
    }
    let digits = (3 - value.abs().log10().floor() as i32).clamp(0, 6) as usize;
    let text = format!("{value:.digits$}");
    let short = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    short.replace('-', "−")
}
