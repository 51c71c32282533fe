//! The page's tables as CSV, in full precision: one file a table, all runs in each.

use crate::ReportError;
use crate::explanations::Mean;
use crate::load::{Run, load_all};
use crate::numbers::{NamedEstimate, Numbers, RunNumbers, UnitNumbers};
use crate::{Options, RunDir};

/// A file's name and its rows, the header first.
struct Table {
    name: &'static str,
    header: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    fn new(name: &'static str, header: &[&'static str]) -> Self {
        let mut columns = vec!["run"];
        columns.extend(header);
        Self { name, header: columns, rows: Vec::new() }
    }

    fn push(&mut self, run: &str, cells: impl IntoIterator<Item = String>) {
        let mut row = vec![run.to_owned()];
        row.extend(cells);
        self.rows.push(row);
    }

    fn bytes(&self) -> Result<Vec<u8>, csv::Error> {
        let mut writer = csv::Writer::from_writer(Vec::new());
        writer.write_record(&self.header)?;
        self.rows.iter().try_for_each(|row| writer.write_record(row))?;
        writer.into_inner().map_err(|err| csv::Error::from(std::io::Error::other(err.to_string())))
    }
}

/// Every table of the page as `(file name, CSV)`. `numbers` are those of the same runs and options.
///
/// # Errors
/// As [`render`](crate::render).
pub fn csv_tables(
    runs: &[RunDir],
    numbers: &Numbers,
    options: &Options,
) -> Result<Vec<(&'static str, Vec<u8>)>, ReportError> {
    let runs = load_all(runs, options.split)?;
    let mut tables = vec![comparisons(numbers)];
    let each: [for<'a, 'b> fn(Pairs<'a, 'b>) -> Table; 17] = [
        measures,
        confusion,
        heads,
        roc,
        precision_recall,
        reliability,
        recalibration,
        net_benefit,
        prevalence,
        operating_points,
        cases,
        slices,
        subgroups,
        heat_maps,
        leakage,
        hashes,
        epochs,
    ];
    let pairs: Vec<(&Run, &RunNumbers)> = runs.iter().zip(&numbers.runs).collect();
    tables.extend(each.iter().map(|table| table(&pairs)));
    tables.extend([table_1(&pairs), flow(&pairs), scanners(&pairs)]);
    tables
        .iter()
        .map(|table| {
            let bytes = table.bytes().map_err(|err| ReportError::Csv { why: err.to_string() })?;
            Ok((table.name, bytes))
        })
        .collect()
}

type Pairs<'a, 'b> = &'a [(&'b Run, &'b RunNumbers)];

fn optional(value: Option<f64>) -> String {
    value.map_or(String::new(), |value| value.to_string())
}

fn class_name(of_run: &RunNumbers, class: Option<usize>) -> String {
    class.and_then(|k| of_run.labels.get(k)).cloned().unwrap_or_default()
}

fn estimate(of_run: &RunNumbers, e: &NamedEstimate) -> [String; 6] {
    let how = format!("{:?}", e.interval).to_lowercase();
    [e.measure.into(), class_name(of_run, e.class), optional(e.value), optional(e.low), optional(e.high), how]
}

fn units(of_run: &RunNumbers) -> [&UnitNumbers; 2] {
    [&of_run.by_case, &of_run.by_slice]
}

fn measures(runs: Pairs) -> Table {
    let mut table =
        Table::new("measures.csv", &["unit", "measure", "class", "value", "low", "high", "interval"]);
    for (_, of_run) in runs {
        let units = [
            ("case", &of_run.by_case.estimates),
            ("case, mean over slices", &of_run.by_case_mean),
            ("case, mean of top 3 slices", &of_run.by_case_top_3),
            ("slice", &of_run.by_slice.estimates),
        ];
        for (unit, estimates) in units {
            for e in estimates {
                table.push(&of_run.name, [unit.to_string()].into_iter().chain(estimate(of_run, e)));
            }
        }
    }
    table
}

fn confusion(runs: Pairs) -> Table {
    let mut table = Table::new("confusion.csv", &["unit", "true_class", "called_class", "count"]);
    for (_, of_run) in runs {
        for unit in units(of_run) {
            for (actual, row) in unit.confusion.iter().enumerate() {
                for (called, n) in row.iter().enumerate() {
                    let names = [actual, called].map(|k| class_name(of_run, Some(k)));
                    let [actual, called] = names;
                    table.push(&of_run.name, [unit.unit.to_string(), actual, called, n.to_string()]);
                }
            }
        }
    }
    table
}

fn heads(runs: Pairs) -> Table {
    let mut table =
        Table::new("heads.csv", &["head", "measure", "class", "value", "low", "high", "interval"]);
    for (_, of_run) in runs {
        for head in &of_run.heads {
            for e in &head.estimates {
                table.push(&of_run.name, [head.head.clone()].into_iter().chain(estimate(of_run, e)));
            }
        }
    }
    table
}

fn roc(runs: Pairs) -> Table {
    let mut table = Table::new("roc.csv", &["unit", "class", "false_positive_rate", "sensitivity"]);
    for (_, of_run) in runs {
        for unit in units(of_run) {
            for (k, curve) in unit.roc.iter().enumerate() {
                for p in curve.iter().flatten() {
                    let numbers = [p.false_positive_rate, p.sensitivity].map(|x| x.to_string());
                    let names = [unit.unit.to_string(), class_name(of_run, Some(k))];
                    table.push(&of_run.name, names.into_iter().chain(numbers));
                }
            }
        }
    }
    table
}

fn precision_recall(runs: Pairs) -> Table {
    let mut table = Table::new("precision_recall.csv", &["unit", "class", "recall", "precision"]);
    for (_, of_run) in runs {
        for unit in units(of_run) {
            for (k, curve) in unit.precision_recall.iter().enumerate() {
                for p in curve.iter().flatten() {
                    let numbers = [p.recall, p.precision].map(|x| x.to_string());
                    let names = [unit.unit.to_string(), class_name(of_run, Some(k))];
                    table.push(&of_run.name, names.into_iter().chain(numbers));
                }
            }
        }
    }
    table
}

fn reliability(runs: Pairs) -> Table {
    let mut table = Table::new(
        "reliability.csv",
        &["class", "lower", "upper", "cases", "mean_probability", "observed_share", "low", "high"],
    );
    for (_, of_run) in runs {
        for (k, class) in of_run.calibration.iter().enumerate() {
            for bin in &class.bins {
                table.push(
                    &of_run.name,
                    [
                        class_name(of_run, Some(k)),
                        bin.bin.lower.to_string(),
                        bin.bin.upper.to_string(),
                        bin.bin.n.to_string(),
                        optional(bin.bin.mean_probability),
                        optional(bin.bin.observed),
                        optional(bin.low),
                        optional(bin.high),
                    ],
                );
            }
        }
    }
    table
}

fn recalibration(runs: Pairs) -> Table {
    let mut table = Table::new(
        "recalibration.csv",
        &["class", "slope", "slope_low", "slope_high", "intercept", "calibration_in_the_large"],
    );
    for (_, of_run) in runs {
        for (k, class) in of_run.calibration.iter().enumerate() {
            let fit = class.recalibration;
            let interval = fit.and_then(|fit| fit.slope_interval(0.95));
            let numbers = [
                fit.map(|fit| fit.slope),
                interval.map(|i| i.0),
                interval.map(|i| i.1),
                fit.map(|fit| fit.intercept),
                fit.map(|fit| fit.in_the_large),
            ];
            table.push(&of_run.name, [class_name(of_run, Some(k))].into_iter().chain(numbers.map(optional)));
        }
    }
    table
}

fn net_benefit(runs: Pairs) -> Table {
    let mut table =
        Table::new("net_benefit.csv", &["class", "threshold", "net_benefit", "low", "high", "everybody"]);
    for (_, of_run) in runs {
        for (k, class) in of_run.calibration.iter().enumerate() {
            for p in &class.net_benefit {
                let band = class.net_benefit_band.iter().find(|band| band.threshold == p.threshold);
                let numbers = [
                    Some(p.threshold),
                    Some(p.model),
                    band.map(|band| band.low),
                    band.map(|band| band.high),
                    Some(p.everybody),
                ];
                let numbers = numbers.map(optional);
                table.push(&of_run.name, [class_name(of_run, Some(k))].into_iter().chain(numbers));
            }
        }
    }
    table
}

fn prevalence(runs: Pairs) -> Table {
    let mut table = Table::new(
        "predictive_values.csv",
        &["class", "prevalence", "ppv", "ppv_low", "ppv_high", "npv", "npv_low", "npv_high"],
    );
    for (_, of_run) in runs {
        for (k, class) in of_run.calibration.iter().enumerate() {
            for at in &class.at_prevalence {
                let numbers =
                    [Some(at.prevalence), at.ppv, at.ppv_low, at.ppv_high, at.npv, at.npv_low, at.npv_high]
                        .map(optional);
                table.push(&of_run.name, [class_name(of_run, Some(k))].into_iter().chain(numbers));
            }
        }
    }
    table
}

fn operating_points(runs: Pairs) -> Table {
    let columns = [
        "validation_cases",
        "aggregation",
        "temperature",
        "positive",
        "threshold",
        "wanted_sensitivity",
        "sensitivity",
        "specificity",
        "wanted_coverage",
        "coverage",
        "mean_size",
        "singletons",
        "singleton_accuracy",
    ];
    let mut table = Table::new("operating_points.csv", &columns);
    for (_, of_run) in runs {
        let point = &of_run.operating_point;
        table.push(
            &of_run.name,
            [
                point.n_validation_cases.to_string(),
                point.aggregation.clone(),
                point.temperature.to_string(),
                point.positive.clone(),
                optional(point.threshold),
                point.wanted_sensitivity.to_string(),
                optional(point.sensitivity),
                optional(point.specificity),
                point.wanted_coverage.to_string(),
                optional(point.coverage),
                optional(point.mean_size),
                optional(point.singletons),
                optional(point.singleton_accuracy),
            ],
        );
    }
    table
}

fn cases(runs: Pairs) -> Table {
    let mut table = Table::new(
        "cases.csv",
        &[
            "rank",
            "case_id",
            "true_class",
            "called_class",
            "slices",
            "class",
            "probability",
            "mean_probability",
        ],
    );
    for (_, of_run) in runs {
        for (rank, case) in of_run.cases.iter().enumerate() {
            for (k, p) in case.probabilities.iter().enumerate() {
                table.push(
                    &of_run.name,
                    [
                        (rank + 1).to_string(),
                        case.case_id.clone(),
                        class_name(of_run, Some(case.label)),
                        class_name(of_run, Some(case.predicted)),
                        case.n_slices.to_string(),
                        class_name(of_run, Some(k)),
                        p.to_string(),
                        case.mean_probabilities[k].to_string(),
                    ],
                );
            }
        }
    }
    table
}

fn slices(runs: Pairs) -> Table {
    let mut table = Table::new("slices.csv", &["case_id", "slice_index", "head", "class", "probability"]);
    for (run, of_run) in runs {
        for slice in &run.slices {
            for (head, probs) in run.heads().iter().zip(&slice.heads) {
                for (k, p) in probs.iter().enumerate() {
                    table.push(
                        &of_run.name,
                        [
                            run.case_ids[slice.case].to_string(),
                            slice.slice_index.to_string(),
                            head.clone(),
                            class_name(of_run, Some(k)),
                            p.to_string(),
                        ],
                    );
                }
            }
        }
    }
    table
}

fn subgroups(runs: Pairs) -> Table {
    let mut table = Table::new(
        "subgroups.csv",
        &["property", "value", "cases", "right", "accuracy", "low", "high", "balanced_accuracy"],
    );
    for (_, of_run) in runs {
        for group in &of_run.subgroups {
            let n: u64 = group.cases_per_class.iter().sum();
            let names =
                [group.property.to_string(), group.value.clone(), n.to_string(), group.n_right.to_string()];
            let numbers = [group.accuracy, group.low, group.high, group.balanced_accuracy].map(optional);
            table.push(&of_run.name, names.into_iter().chain(numbers));
        }
    }
    table
}

fn heat_maps(runs: Pairs) -> Table {
    let mut table = Table::new(
        "heat_maps.csv",
        &["head", "method", "maps", "empty", "slices", "cases", "measure", "value", "low", "high"],
    );
    for (_, of_run) in runs {
        for map in of_run.explanations.iter().flat_map(|e| &e.maps) {
            let values: [(&str, Option<Mean>); 6] = [
                ("pointing", map.pointing),
                ("mass", map.mass),
                ("overlap", map.overlap),
                ("overlap_above_lungs", map.overlap_above_lungs),
                ("overlap_above_prior", map.overlap_above_prior),
                ("randomised_correlation", map.randomised_correlation),
            ];
            for (measure, mean) in values {
                let counts = [map.n_maps, map.n_empty, map.n_slices, map.n_cases].map(|n| n.to_string());
                let numbers = [mean.map(|m| m.value), mean.and_then(|m| m.low), mean.and_then(|m| m.high)];
                let names = [map.head.clone(), map.method.to_string()];
                let cells = names.into_iter().chain(counts).chain([measure.to_string()]);
                table.push(&of_run.name, cells.chain(numbers.map(optional)));
            }
        }
    }
    table
}

fn leakage(runs: Pairs) -> Table {
    let mut table = Table::new("leakage.csv", &["what", "known", "all", "distinct", "shared", "cases"]);
    for (_, of_run) in runs {
        for leak in &of_run.leakage {
            let counts = [leak.n_known, leak.n_all, leak.n_distinct, leak.n_shared].map(|n| n.to_string());
            let names = [leak.what.to_string()];
            table.push(&of_run.name, names.into_iter().chain(counts).chain([leak.cases.join(" ")]));
        }
    }
    table
}

fn hashes(runs: Pairs) -> Table {
    let mut table = Table::new("hashes.csv", &["what", "sha256", "state", "tie"]);
    for (_, of_run) in runs {
        for link in &of_run.chain {
            table.push(
                &of_run.name,
                [
                    link.what.to_string(),
                    link.sha256.clone().unwrap_or_default(),
                    link.state.words().to_string(),
                    link.tie.to_string(),
                ],
            );
        }
    }
    table
}

fn epochs(runs: Pairs) -> Table {
    let mut table = Table::new("epochs.csv", &["epoch", "part", "head", "name", "value"]);
    for (run, of_run) in runs {
        for epoch in &run.epochs {
            let number = epoch.epoch.to_string();
            let mut push = |part: &str, head: &str, name: &str, value: f64| {
                table.push(
                    &of_run.name,
                    [number.clone(), part.into(), head.into(), name.into(), value.to_string()],
                );
            };
            push("training", "", "learning_rate", epoch.learning_rate);
            let validation = epoch.validation.as_ref().map(|v| ("validation", &v.loss));
            for (part, loss) in [("training", &epoch.train)].into_iter().chain(validation) {
                push(part, "", "total_loss", loss.total);
                for (head, parts) in &loss.heads {
                    parts.iter().for_each(|(name, value)| push(part, head, name, *value));
                }
            }
            if let Some(v) = &epoch.validation {
                push("validation", "", "case_macro_f1", v.case_macro_f1);
                push("validation", "", "case_balanced_accuracy", v.case_balanced_accuracy);
                push("validation", "", "slice_macro_f1", v.slice_macro_f1);
                for (head, value) in &v.slice_balanced_accuracy {
                    push("validation", head, "slice_balanced_accuracy", *value);
                }
            }
            epoch.loss_state.iter().for_each(|(name, value)| push("loss", "", name, *value));
        }
    }
    table
}

fn comparisons(numbers: &Numbers) -> Table {
    let header = ["against", "what", "test", "difference", "low", "high", "p", "p_holm"];
    let mut table = Table::new("comparisons.csv", &header);
    for comparison in &numbers.comparisons {
        for test in &comparison.tests {
            let values = [test.difference, test.low, test.high, test.p_value, test.p_holm].map(optional);
            let names = [comparison.first.clone(), test.what.clone(), test.test.clone()];
            table.push(&comparison.second, names.into_iter().chain(values));
        }
    }
    table
}

fn table_1(runs: Pairs) -> Table {
    let mut table = Table::new("table_1.csv", &["class", "split", "cases", "slices"]);
    for (run, of_run) in runs {
        for row in &run.info.shards.table {
            let counts = [row.n_cases, row.n_slices].map(|n| n.to_string());
            table.push(&of_run.name, [row.label.clone(), row.split.to_string()].into_iter().chain(counts));
        }
    }
    table
}

fn flow(runs: Pairs) -> Table {
    let mut table = Table::new("flow.csv", &["level", "what", "count"]);
    for (run, of_run) in runs {
        let flow = &run.info.shards.flow;
        let levels = [
            ("files", &flow.files),
            ("series", &flow.series),
            ("cases", &flow.cases),
            ("slices", &flow.slices),
        ];
        for (name, level) in levels {
            let counts = [("seen".to_string(), level.seen), ("used".to_string(), level.used)];
            let aside = level.set_aside.iter().map(|(reason, n)| (format!("set aside: {reason}"), *n));
            for (what, n) in counts.into_iter().chain(aside) {
                table.push(&of_run.name, [name.to_string(), what, n.to_string()]);
            }
        }
    }
    table
}

fn scanners(runs: Pairs) -> Table {
    let header = [
        "case_id",
        "class",
        "split",
        "manufacturer",
        "model",
        "kernel",
        "slice_thickness_mm",
        "sex",
        "age_years",
        "slices",
    ];
    let mut table = Table::new("acquisition.csv", &header);
    for (run, of_run) in runs {
        for row in run.shards.iter().flat_map(|shards| &shards.cases) {
            let text = |value: &Option<String>| value.clone().unwrap_or_default();
            table.push(
                &of_run.name,
                [
                    row.case_id.to_string(),
                    class_name(of_run, Some(row.label.index())),
                    row.split.to_string(),
                    text(&row.manufacturer),
                    text(&row.model),
                    text(&row.kernel),
                    optional(row.slice_thickness_mm),
                    text(&row.patient_sex),
                    row.patient_age_years.map_or(String::new(), |years| years.to_string()),
                    row.n_slices.to_string(),
                ],
            );
        }
    }
    table
}
