//! `ct-ingest table`: Table 1 from the shards, held against a declared one.
//!
//! Papers and data cards state how many cases and images each class and part
//! has. Such tables have mistakes, and a reader who holds the data can find
//! them: totals of two classes swapped, a case forgotten. The explanations
//! follow from two general rules (the permutation of classes that fits best, and
//! what is then left over); nothing here knows a particular data set.

use std::path::Path;

use diag_data::case::Split;
use diag_data::shard::ShardSet;
use serde::{Deserialize, Serialize};

use crate::IngestError;

/// Classes above this are not permuted: 8! is 40,320 tries.
const MAX_PERMUTED: usize = 8;

/// A declared table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeclaredTable {
    /// Where it was published.
    pub source: String,
    /// Its classes.
    pub class: Vec<DeclaredClass>,
}

/// One class of a declared table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeclaredClass {
    /// Class name.
    pub name: String,
    /// Volumes stated outside the table, if they are.
    pub volumes: Option<u64>,
    /// Slices stated outside the table, if they are.
    pub slices: Option<u64>,
    /// Training part.
    pub train: Counts,
    /// Test part.
    pub test: Counts,
}

/// Cases and slices of one class and part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counts {
    /// Cases.
    pub cases: u64,
    /// Slices.
    pub slices: u64,
}

/// One line of the comparison.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Line {
    /// Class name.
    pub class: String,
    /// Part of the data.
    pub split: Split,
    /// What the shards hold.
    pub found: Counts,
    /// What is declared.
    pub declared: Option<Counts>,
}

/// Table 1, with what it says about the declared one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Comparison {
    /// Where the declared table was published.
    pub source: Option<String>,
    /// Class by class, part by part.
    pub lines: Vec<Line>,
    /// Whether every count is as declared.
    pub equal: bool,
    /// What the declared table says against itself, in sentences.
    pub contradictions: Vec<String>,
    /// How the shards differ from the declared table, in sentences.
    pub explanations: Vec<String>,
}

/// Reads a declared table.
///
/// # Errors
/// When it cannot be read or has another form.
pub fn read_declared(path: &Path) -> Result<DeclaredTable, IngestError> {
    let wrong = |why: String| IngestError::File { path: path.into(), why };
    let bytes = diag_data::files::read(path)?;
    let text = String::from_utf8(bytes).map_err(|_| wrong("the declared table is not UTF-8 text".into()))?;
    toml::from_str(&text)
        .map_err(|err| wrong(format!("the declared table has another form ({})", err.message())))
}

/// Counts the shards and compares.
///
/// # Errors
/// When the shards cannot be read.
pub fn compare(root: &Path, declared: Option<&DeclaredTable>) -> Result<Comparison, IngestError> {
    let shards = ShardSet::open(root)?;
    let labels = &shards.manifest().spec.labels;
    let cases = shards.cases()?;
    let count = |class: &str, split: Split| {
        let of_cell =
            cases.iter().filter(|case| case.split == split && labels.name(case.label) == Some(class));
        of_cell.fold(Counts::default(), |sum, case| Counts {
            cases: sum.cases + 1,
            slices: sum.slices + u64::try_from(case.n_slices).unwrap_or(0),
        })
    };
    Ok(of_counts(labels.names(), count, declared))
}

/// Compares counts that are known; `found` gives those of a class and part.
pub fn of_counts(
    names: &[String],
    found: impl Fn(&str, Split) -> Counts,
    declared: Option<&DeclaredTable>,
) -> Comparison {
    let mut classes: Vec<String> = names.to_vec();
    for class in declared.iter().flat_map(|table| &table.class) {
        if !classes.contains(&class.name) {
            classes.push(class.name.clone());
        }
    }
    let declared_class =
        |name: &str| declared.and_then(|table| table.class.iter().find(|class| class.name == name));
    let declared_cell = |name: &str, split| match (declared.is_some(), declared_class(name), split) {
        (false, ..) => None,
        (true, Some(class), Split::Train) => Some(class.train),
        (true, Some(class), Split::Test) => Some(class.test),
        (true, ..) => Some(Counts::default()),
    };
    let mut lines = Vec::new();
    for name in &classes {
        for split in Split::ALL {
            let (found, declared) = (found(name, split), declared_cell(name, split));
            let is_empty =
                found == Counts::default() && declared.is_none_or(|counts| counts == Counts::default());
            if split != Split::Validation || !is_empty {
                lines.push(Line { class: name.clone(), split, found, declared });
            }
        }
    }
    let equal = lines.iter().all(|line| line.declared.is_none_or(|declared| declared == line.found));
    let mut comparison = Comparison {
        source: declared.map(|table| table.source.clone()),
        lines,
        equal,
        contradictions: Vec::new(),
        explanations: Vec::new(),
    };
    if let Some(table) = declared {
        comparison.contradictions = contradictions(table);
        if !equal {
            comparison.explanations = explanations(table, &comparison.lines);
        }
    }
    comparison
}

/// Per class: its name, what is declared as parts of a sum, and the other count.
struct Total {
    class: String,
    train: u64,
    test: u64,
    other: u64,
}

/// The table against the totals that its source states elsewhere.
fn contradictions(table: &DeclaredTable) -> Vec<String> {
    let totals = |parts: fn(&DeclaredClass) -> (u64, u64), stated: fn(&DeclaredClass) -> Option<u64>| {
        let total = |class: &DeclaredClass| {
            let (train, test) = parts(class);
            Some(Total { class: class.name.clone(), train, test, other: stated(class)? })
        };
        table.class.iter().map(total).collect::<Option<Vec<Total>>>()
    };
    let mut sentences = Vec::new();
    if let Some(cases) = totals(|class| (class.train.cases, class.test.cases), |class| class.volumes) {
        sentences.extend(explain(&cases, "case", "its source states"));
    }
    if let Some(slices) = totals(|class| (class.train.slices, class.test.slices), |class| class.slices) {
        sentences.extend(explain(&slices, "slice", "its source states"));
    }
    sentences
}

/// The table against the shards.
fn explanations(table: &DeclaredTable, lines: &[Line]) -> Vec<String> {
    let totals = |count: fn(&Counts) -> u64| -> Vec<Total> {
        let total = |class: &DeclaredClass| Total {
            class: class.name.clone(),
            train: count(&class.train),
            test: count(&class.test),
            other: lines.iter().filter(|line| line.class == class.name).map(|line| count(&line.found)).sum(),
        };
        table.class.iter().map(total).collect()
    };
    let mut sentences = explain(&totals(|counts| counts.cases), "case", "the shards hold");
    sentences.extend(explain(&totals(|counts| counts.slices), "slice", "the shards hold"));
    if sentences.is_empty() {
        sentences.push("the totals of every class agree; only the parts are divided differently".into());
    }
    sentences
}

/// Says how declared sums and other counts can be brought together: by exchanging
/// classes, where that leaves less over than taking each for itself, and then
/// by what is missing or too much.
fn explain(totals: &[Total], unit: &str, holder: &str) -> Vec<String> {
    let sum = |total: &Total| total.train + total.test;
    let cost = |order: &[usize]| -> u64 {
        totals.iter().zip(order).map(|(total, &from)| total.other.abs_diff(sum(&totals[from]))).sum()
    };
    let identity: Vec<usize> = (0..totals.len()).collect();
    if cost(&identity) == 0 {
        return Vec::new();
    }
    let best = best_order(totals.len(), &cost);
    let mut sentences = Vec::new();
    for cycle in cycles(&best) {
        let named = |&class: &usize| {
            let total = &totals[class];
            format!("{} ({}+{}={})", total.class, total.train, total.test, sum(total))
        };
        let held: Vec<String> = cycle.iter().map(|&class| totals[class].other.to_string()).collect();
        let names: Vec<String> = cycle.iter().map(named).collect();
        let how = if cycle.len() == 2 { "swapped" } else { "exchanged in a circle" };
        sentences.push(format!(
            "the {unit} totals of {} look {how}: {holder} {}",
            names.join(" and "),
            held.join(" and ")
        ));
    }
    for (class, &from) in best.iter().enumerate() {
        let (total, declared) = (&totals[class], sum(&totals[from]));
        let moved = if class == from { "" } else { "with that put right, " };
        let (count, verb) = (
            total.other.abs_diff(declared),
            if total.other > declared { "missing from" } else { "too many in" },
        );
        if count > 0 {
            let counted = if count == 1 {
                format!("one {} {unit} is", total.class)
            } else {
                format!("{count} {} {unit}s are", total.class)
            };
            sentences.push(format!(
                "{moved}{counted} {verb} the declared table ({declared} there, {holder} {})",
                total.other
            ));
        }
    }
    sentences
}

/// The order with the least cost; among equals the one that moves fewest classes.
fn best_order(n_classes: usize, cost: &dyn Fn(&[usize]) -> u64) -> Vec<usize> {
    let identity: Vec<usize> = (0..n_classes).collect();
    if n_classes > MAX_PERMUTED {
        return identity;
    }
    let n_moved = |order: &[usize]| order.iter().enumerate().filter(|(class, from)| class != *from).count();
    let mut best = (cost(&identity), 0, identity.clone());
    let mut order = identity;
    permute(&mut order, 0, &mut |order| {
        let candidate = (cost(order), n_moved(order));
        if candidate < (best.0, best.1) {
            best = (candidate.0, candidate.1, order.to_vec());
        }
    });
    best.2
}

fn permute(order: &mut [usize], from: usize, visit: &mut dyn FnMut(&[usize])) {
    if from == order.len() {
        return visit(order);
    }
    for i in from..order.len() {
        order.swap(from, i);
        permute(order, from + 1, visit);
        order.swap(from, i);
    }
}

/// The classes that an order moves, circle by circle.
fn cycles(order: &[usize]) -> Vec<Vec<usize>> {
    let mut seen = vec![false; order.len()];
    let mut cycles = Vec::new();
    for start in 0..order.len() {
        let (mut cycle, mut at) = (Vec::new(), start);
        while !seen[at] {
            seen[at] = true;
            cycle.push(at);
            at = order[at];
        }
        if cycle.len() > 1 {
            cycles.push(cycle);
        }
    }
    cycles
}

#[cfg(test)]
mod tests {
    use super::*;

    fn totals(rows: &[(&str, u64, u64, u64)]) -> Vec<Total> {
        let total = |&(class, train, test, other): &(&str, u64, u64, u64)| Total {
            class: class.into(),
            train,
            test,
            other,
        };
        rows.iter().map(total).collect()
    }

    #[track_caller]
    fn check(rows: &[(&str, u64, u64, u64)], want: &[&str]) {
        assert_eq!(explain(&totals(rows), "case", "the shards hold"), want);
    }

    #[test]
    fn equal_totals_need_no_words() {
        check(&[("a", 1, 2, 3), ("b", 4, 5, 9)], &[]);
    }

    #[test]
    fn two_swapped_classes_and_a_missing_case_are_found() {
        check(
            &[("a", 43, 18, 69), ("b", 67, 28, 95), ("c", 48, 21, 62)],
            &[
                "the case totals of a (43+18=61) and c (48+21=69) look swapped: the shards hold 69 and 62",
                "with that put right, one c case is missing from the declared table (61 there, the shards hold 62)",
            ],
        );
    }

    #[test]
    fn a_plain_surplus_is_no_swap() {
        check(
            &[("a", 5, 5, 8), ("b", 50, 50, 100)],
            &["2 a cases are too many in the declared table (10 there, the shards hold 8)"],
        );
    }

    #[test]
    fn three_classes_may_go_round() {
        let found =
            explain(&totals(&[("a", 1, 9, 30), ("b", 2, 18, 10), ("c", 3, 27, 20)]), "case", "x holds");
        assert_eq!(found.len(), 1);
        assert!(found[0].contains("exchanged in a circle"), "{found:?}");
    }
}
