//! Table 1, the flow of inclusion and exclusion, scanners.

use std::collections::BTreeMap;

use diag_data::case::Split;
use diag_data::manifest::{CaseRow, Level};
use maud::{Markup, html};

use super::Context;
use super::summary::thousands;

pub(crate) fn section(context: &Context) -> Markup {
    html! {
        h3 { "Cases and slices per class and part (Table 1)" }
        (table_1(context))
        @if !context.run.info.cases.is_empty() && context.run.external.is_none() { (parts(context)) }
        @if let Some(external) = &context.run.external { (super::external::overlap(external)) }
        h3 { "Flow of inclusion and exclusion" }
        (flow(context))
        h3 { "Is anything shared between the parts?" }
        (leakage(context))
        h3 { "Scanners" }
        (scanners(context))
        (demographics(context))
    }
}

fn table_1(context: &Context) -> Markup {
    let table = &context.run.info.shards.table;
    let splits: Vec<Split> =
        Split::ALL.into_iter().filter(|s| table.iter().any(|row| row.split == *s)).collect();
    let sum = |label: Option<&str>, split: Option<Split>| {
        let rows = table.iter().filter(|row| {
            label.is_none_or(|label| row.label == label) && split.is_none_or(|split| row.split == split)
        });
        rows.fold((0, 0), |(cases, slices), row| (cases + row.n_cases, slices + row.n_slices))
    };
    let row = |label: Option<&str>| {
        html! {
            @for split in splits.iter().map(|s| Some(*s)).chain([None]) {
                @let (cases, slices) = sum(label, split);
                td.n { (thousands(cases)) }
                td.n { (thousands(slices)) }
            }
        }
    };
    html! {
        div.scroll {
            table {
                caption {
                    "As the shards hold them. Unit: case and slice."
                    @if context.run.external.is_some() { " The parts are those of this cohort: the network was trained on none of them." }
                }
                thead {
                    tr {
                        th rowspan="2" { "Class" }
                        @for split in &splits { th.group colspan="2" { (split) } }
                        th.group colspan="2" { "all" }
                    }
                    tr { @for _ in 0..=splits.len() { th.n { "cases" } th.n { "slices" } } }
                }
                tbody {
                    @for label in context.labels() { tr { th scope="row" { (label) } (row(Some(label))) } }
                    tr.total { th scope="row" { "all" } (row(None)) }
                }
            }
        }
    }
}

/// The partition that training used: the validation part comes out of the training cases.
fn parts(context: &Context) -> Markup {
    let mut parts: Vec<_> = context.run.info.cases.iter().collect();
    parts.sort_by_key(|(part, _)| Split::ALL.iter().position(|split| split.as_str() == part.as_str()));
    html! {
        div.scroll {
            table {
                caption { "Unit: case. The parts as the run used them: validation is taken from the training cases, by case." }
                thead { tr { th { "Part" } @for label in context.labels() { th.n { (label) } } } }
                tbody {
                    @for (part, counts) in parts {
                        tr {
                            th scope="row" { (part) }
                            @for label in context.labels() { td.n { (counts.get(label).copied().unwrap_or(0)) } }
                        }
                    }
                }
            }
        }
    }
}

fn flow(context: &Context) -> Markup {
    let flow = &context.run.info.shards.flow;
    let levels =
        [("Files", &flow.files), ("Series", &flow.series), ("Cases", &flow.cases), ("Slices", &flow.slices)];
    let n_quarantined = context.run.shards.as_ref().map(|shards| shards.quarantined.len());
    html! {
        ol.flow { @for (name, level) in levels { (flow_level(name, level)) } }
        @match n_quarantined {
            Ok(0) => p { "Nothing was quarantined." },
            Ok(n) => p { "Quarantine list: " (n) @if n == 1 { " entry with its reason." } @else { " entries, each with its reason." } },
            Err(_) => p.note { "The quarantine list is with the shards, which are not at hand." },
        }
    }
}

fn flow_level(name: &str, level: &Level) -> Markup {
    let n_aside: u64 = level.set_aside.values().sum();
    html! {
        li {
            h4 { (name) }
            p { span.big { (thousands(level.seen)) } " seen" }
            p { span.big { (thousands(level.used)) } " used" }
            @if n_aside > 0 {
                p { (thousands(n_aside)) " set aside:" }
                ul { @for (reason, n) in &level.set_aside { li { (thousands(*n)) " " (reason) } } }
            } @else {
                p { "none set aside" }
            }
            p.note {
                @if level.adds_up() { "adds up: " (level.seen) " = " (level.used) " + " (n_aside) }
                @else { strong { "does not add up: " (level.seen) " is not " (level.used) " + " (n_aside) } }
            }
        }
    }
}

fn leakage(context: &Context) -> Markup {
    let leaks = &context.numbers.leakage;
    if leaks.is_empty() {
        return html! { p.note { "Missing: the shards are not at hand." } };
    }
    let n_shared: usize = leaks.iter().map(|leak| leak.n_shared).sum();
    let unknown: Vec<&str> = leaks.iter().filter(|leak| leak.n_known == 0).map(|leak| leak.what).collect();
    html! {
        p {
            @if n_shared > 0 {
                strong { "Yes: results on shared data are too good to be believed. " }
            } @else {
                strong { "Nothing was found" } " that two parts share. "
            }
            "Parts are training, validation and test"
            @if context.run.external.is_none() { " as the run used them" }
            "; they are divided by case, and cases of one patient stay together where the patient is known. "
            @if !unknown.is_empty() { "Not stated by the shards, and therefore not checked: " (unknown.join(", ")) ". " }
            "Images that only look alike (another reconstruction, compression or a shift) are not looked for here; " code { "ct-ingest verify" } " looks for them."
        }
        div.scroll {
            table {
                caption { "Found by comparing hashes of every case and slice for this report. Unit: case; for pixels, slice." }
                thead { tr {
                    th { "What" } th.n { "Stated by" } th.n { "Different ones" } th.n { "In more than one part" } th { "Cases" }
                } }
                tbody {
                    @for leak in leaks {
                        tr {
                            th scope="row" { (leak.what) }
                            td.n { (thousands(leak.n_known as u64)) " of " (thousands(leak.n_all as u64)) }
                            td.n { (thousands(leak.n_distinct as u64)) }
                            td.n { @if leak.n_shared > 0 { strong { (leak.n_shared) } } @else { "0" } }
                            td { @if leak.cases.is_empty() { "none" } @else { (shortened(&leak.cases)) } }
                        }
                    }
                }
            }
        }
    }
}

/// The first ten names.
fn shortened(names: &[String]) -> String {
    let more = names.len().saturating_sub(10);
    let shown = names.iter().take(10).map(String::as_str).collect::<Vec<_>>().join(", ");
    if more > 0 { format!("{shown} and {more} more") } else { shown }
}

fn scanners(context: &Context) -> Markup {
    let Ok(shards) = &context.run.shards else {
        return html! { p.note { "Missing: the shards are not at hand." } };
    };
    let unknown = || "not stated".to_string();
    let mut rows: BTreeMap<[String; 4], BTreeMap<(Split, usize), u64>> = BTreeMap::new();
    for case in &shards.cases {
        let thickness = case.slice_thickness_mm.map_or_else(unknown, |mm| format!("{mm} mm"));
        let text = |value: &Option<String>| value.clone().unwrap_or_else(unknown);
        let key = [text(&case.manufacturer), text(&case.model), text(&case.kernel), thickness];
        *rows.entry(key).or_default().entry((case.split, case.label.index())).or_default() += 1;
    }
    let splits: Vec<Split> =
        Split::ALL.into_iter().filter(|s| shards.cases.iter().any(|case| case.split == *s)).collect();
    html! {
        div.scroll {
            table {
                caption { "Unit: case. A class that comes from one scanner only can be recognised by the scanner." }
                thead {
                    tr {
                        @for title in ["Manufacturer", "Model", "Kernel", "Slice thickness"] { th rowspan="2" { (title) } }
                        @for split in &splits { th.group colspan=(context.labels().len()) { (split) } }
                    }
                    tr { @for _ in &splits { @for label in context.labels() { th.n { (label) } } } }
                }
                tbody {
                    @for (key, counts) in &rows {
                        tr {
                            @for text in key { td { (text) } }
                            @for split in &splits {
                                @for k in 0..context.labels().len() {
                                    td.n { (counts.get(&(*split, k)).copied().unwrap_or(0)) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn demographics(context: &Context) -> Markup {
    let Ok(shards) = &context.run.shards else { return html! {} };
    let known = |case: &&CaseRow| case.patient_sex.is_some() || case.patient_age_years.is_some();
    if !shards.cases.iter().any(|case| known(&case)) {
        return html! { p.note { "Age and sex: not in the shards." } };
    }
    html! {
        h3 { "Age and sex" }
        div.scroll {
            table {
                caption { "Unit: case. Ages are in whole years; 90 stands for 90 and over." }
                thead { tr {
                    th { "Part" } th.n { "Cases" } th.n { "Female" } th.n { "Male" } th.n { "Other" } th.n { "Not stated" }
                    th.n { "Median age" } th.n { "Youngest" } th.n { "Oldest" }
                } }
                tbody {
                    @for split in Split::ALL {
                        @let cases: Vec<&CaseRow> = shards.cases.iter().filter(|case| case.split == split).collect();
                        @if !cases.is_empty() { (demographics_row(split, &cases)) }
                    }
                }
            }
        }
    }
}

fn demographics_row(split: Split, cases: &[&CaseRow]) -> Markup {
    let of_sex = |sex: &str| cases.iter().filter(|case| case.patient_sex.as_deref() == Some(sex)).count();
    let mut ages: Vec<i32> = cases.iter().filter_map(|case| case.patient_age_years).collect();
    ages.sort_unstable();
    let age = |i: usize| ages.get(i).map_or("not stated".to_string(), i32::to_string);
    let n_unstated = cases.iter().filter(|case| case.patient_sex.is_none()).count();
    // Of an even number the mean of the two in the middle.
    let median = ages.get(ages.len() / 2).zip(ages.get(ages.len().saturating_sub(1) / 2));
    let median = median.map(|(a, b)| f64::from(a + b) / 2.0);
    html! {
        tr {
            th scope="row" { (split) }
            td.n { (cases.len()) }
            td.n { (of_sex("F")) }
            td.n { (of_sex("M")) }
            td.n { (cases.len() - of_sex("F") - of_sex("M") - n_unstated) }
            td.n { (n_unstated) }
            td.n { (median.map_or("not stated".into(), |years| years.to_string())) }
            td.n { (age(0)) }
            td.n { (age(ages.len().saturating_sub(1))) }
        }
    }
}
