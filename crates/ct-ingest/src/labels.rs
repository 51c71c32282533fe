//! The label table, `case_id,label[,split][,patient_id]`, and the split file.

use std::collections::BTreeMap;
use std::path::Path;

use ct_read::picture::HuLine;
use diag_data::case::{Label, LabelSet, Split};
use serde::Deserialize;

use crate::IngestError;
use crate::delimited::Table;

/// A name one edit away from one this many times as frequent is likely a slip of the keyboard.
const MUCH_MORE_FREQUENT: usize = 10;
/// Shorter names are near to many others.
const MIN_NEAR_LEN: usize = 5;

/// A checked label table. Invariant: at least one row, no case twice.
#[derive(Clone, Debug)]
pub struct LabelTable {
    /// Class names in their order.
    pub labels: LabelSet,
    /// The cases, sorted by name.
    pub rows: Vec<LabelRow>,
    /// What the operator should know of the table.
    pub notes: Vec<String>,
}

/// One case of the table.
#[derive(Clone, Debug, PartialEq)]
pub struct LabelRow {
    /// Folder, PatientID or SeriesInstanceUID: may name somebody.
    pub case: String,
    /// Its class.
    pub label: Label,
    /// Its part, where the table says so.
    pub split: Option<Split>,
    /// Its patient, where the table says so.
    pub patient: Option<String>,
    /// How the stored values of its pictures become HU, where the table says so.
    pub hu_line: Option<HuLine>,
    /// Its line in the table, from 1; the header is line 1.
    pub line: u64,
}

/// What is said of a split that is none. No message repeats a cell: it may name somebody.
const NO_SPLIT: &str = "the split is not train, validation or test";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLabelSet {
    names: Vec<String>,
}

/// Reads a label-set file: TOML with `names = ["...", ...]`.
///
/// # Errors
/// When it cannot be read or is not of that form.
pub fn read_label_set(path: &Path) -> Result<LabelSet, IngestError> {
    let bytes = diag_data::files::read(path)?;
    let wrong = |why: String| IngestError::File { path: path.into(), why };
    let text = String::from_utf8(bytes).map_err(|_| wrong("the label set is not UTF-8 text".into()))?;
    let raw: RawLabelSet = toml::from_str(&text)
        .map_err(|err| wrong(format!("the label set is not `names = [...]` ({})", err.message())))?;
    Ok(LabelSet::new(raw.names)?)
}

impl LabelTable {
    /// Reads a table. Without a label set, its names are the classes: the data card's in their
    /// order where every name is one of them.
    ///
    /// # Errors
    /// When it cannot be read, is empty, or a row breaks a rule; the error names the line.
    pub fn read(path: &Path, known: Option<LabelSet>) -> Result<Self, IngestError> {
        Self::parse(&diag_data::files::read(path)?, path, known)
    }

    /// Reads a table from its bytes; `path` names it in errors.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn parse(bytes: &[u8], path: &Path, known: Option<LabelSet>) -> Result<Self, IngestError> {
        const OPTIONAL: [&str; 4] = ["split", "patient_id", "hu_slope", "hu_intercept"];
        let table = Table::parse(bytes, path, &["case_id", "label"], &OPTIONAL)?;
        let names: Vec<(u64, &str)> =
            table.rows.iter().map(|row| (row.line, row.required("label"))).collect();
        let is_drawn = known.is_none();
        let labels = match known {
            Some(labels) => labels,
            None => label_set(&names, path)?,
        };
        let mut notes = table.notes.clone();
        notes.extend(near_misses(&names));
        if is_drawn {
            notes.extend(order_note(&labels));
        }
        let mut rows = BTreeMap::new();
        for row in &table.rows {
            let wrong = |why: String| IngestError::TableRow { path: path.into(), line: row.line, why };
            let name = row.required("label");
            let label = labels
                .find(name)
                .ok_or_else(|| wrong(format!("the label is not one of {}", labels.names().join(", "))))?;
            let split = row.optional("split").map(str::parse).transpose();
            let split = split.map_err(|_: diag_data::DataError| wrong(NO_SPLIT.into()))?;
            let case = row.required("case_id").trim_end_matches('/').to_string();
            if case.is_empty() {
                return Err(wrong("the case_id is empty".into()));
            }
            let patient = row.optional("patient_id").map(String::from);
            let hu_line = hu_line(row.optional("hu_slope"), row.optional("hu_intercept")).map_err(wrong)?;
            let checked = LabelRow { case: case.clone(), label, split, patient, hu_line, line: row.line };
            if rows.insert(case, checked).is_some() {
                return Err(wrong("the case_id occurs twice".into()));
            }
        }
        let n_split = rows.values().filter(|row| row.split.is_some()).count();
        if n_split != 0 && n_split != rows.len() {
            let why = format!("{n_split} of {} cases have a split, the others have none", rows.len());
            return Err(IngestError::File { path: path.into(), why });
        }
        if rows.is_empty() {
            return Err(IngestError::File { path: path.into(), why: "the label table has no rows".into() });
        }
        Ok(Self { labels, rows: rows.into_values().collect(), notes })
    }

    /// Takes the split of every case from a file `case_id,split`.
    ///
    /// # Errors
    /// When it cannot be read, names a case twice, or leaves one out.
    pub fn set_splits(&mut self, path: &Path) -> Result<(), IngestError> {
        let splits = read_split_file(path)?;
        for row in &mut self.rows {
            row.split = splits.get(&row.case).copied();
        }
        let n_without = self.rows.iter().filter(|row| row.split.is_none()).count();
        if n_without > 0 {
            let why = format!("{n_without} of {} cases of the label table have no split", self.rows.len());
            return Err(IngestError::File { path: path.into(), why });
        }
        Ok(())
    }
}

fn hu_line(slope: Option<&str>, intercept: Option<&str>) -> Result<Option<HuLine>, String> {
    let number = |name: &str, text: &str| {
        let number = text.parse::<f64>().ok().filter(|number| number.is_finite());
        number.ok_or_else(|| format!("{name} is not a number"))
    };
    match (slope, intercept) {
        (None, None) => Ok(None),
        (Some(slope), Some(intercept)) => {
            let line =
                HuLine { slope: number("hu_slope", slope)?, intercept: number("hu_intercept", intercept)? };
            if line.slope == 0.0 { Err("hu_slope is 0".into()) } else { Ok(Some(line)) }
        }
        _ => Err("hu_slope and hu_intercept belong together".into()),
    }
}

/// The classes of a table: its names, where none is a misspelling of another.
fn label_set(names: &[(u64, &str)], path: &Path) -> Result<LabelSet, IngestError> {
    let wrong = |line: u64, why: String| IngestError::TableRow { path: path.into(), line, why };
    let mut first_of: BTreeMap<String, (u64, &str)> = BTreeMap::new();
    for &(line, name) in names {
        if name.is_empty() {
            return Err(wrong(line, "the label is empty".into()));
        }
        let &mut (first_line, first) = first_of.entry(plain(name)).or_insert((line, name));
        if first != name {
            let why = format!(
                "label `{name}` differs from `{first}` of line {first_line} only in case, blanks, - or _; if they \
                 are two classes, give both in a --label-set"
            );
            return Err(wrong(line, why));
        }
    }
    let paper = LabelSet::paper();
    let is_paper = |name: &str| paper.find(name).is_some();
    if names.iter().any(|(_, name)| is_paper(name)) {
        let slip = names.iter().find_map(|&(line, name)| {
            let near = paper.names().iter().find(|known| !is_paper(name) && is_one_edit(name, known))?;
            Some((
                line,
                format!(
                    "the label looks like `{near}`; if it is a class of its own, give it in a --label-set"
                ),
            ))
        });
        if let Some((line, why)) = slip {
            return Err(wrong(line, why));
        }
    }
    Ok(LabelSet::of_table(names.iter().map(|(_, name)| *name))?)
}

/// The order of classes that nobody stated: it decides which probability is which.
pub fn order_note(labels: &LabelSet) -> Option<String> {
    (*labels != LabelSet::paper()).then(|| {
        format!(
            "the classes are, in alphabetical order: {}; a --label-set states another order",
            labels.names().join(", ")
        )
    })
}

/// Two names that differ only in what hands type differently.
pub fn alike<'a>(names: impl IntoIterator<Item = &'a str>) -> Option<(&'a str, &'a str)> {
    let mut first_of: BTreeMap<String, &str> = BTreeMap::new();
    names.into_iter().find_map(|name| {
        let first = *first_of.entry(plain(name)).or_insert(name);
        (first != name).then_some((first, name))
    })
}

/// A name without what hands type differently.
fn plain(name: &str) -> String {
    name.chars()
        .filter(|c| !c.is_whitespace() && !matches!(c, '-' | '_'))
        .flat_map(char::to_lowercase)
        .collect()
}

/// Names that are one edit away from a much more frequent one.
fn near_misses(names: &[(u64, &str)]) -> Vec<String> {
    let mut seen: BTreeMap<&str, (u64, usize)> = BTreeMap::new();
    for &(line, name) in names {
        seen.entry(name).or_insert((line, 0)).1 += 1;
    }
    let mut notes = Vec::new();
    for (name, (line, count)) in &seen {
        let likely = seen.iter().find(|(other, (_, n_other))| {
            *n_other >= MUCH_MORE_FREQUENT * count
                && name.chars().count().max(other.chars().count()) >= MIN_NEAR_LEN
                && is_one_edit(name, other)
        });
        if let Some((other, (_, n_other))) = likely {
            notes.push(format!(
                "label `{name}` (line {line}, {count} of the cases) looks like `{other}` ({n_other} cases); it is \
                 taken as a class of its own"
            ));
        }
    }
    notes
}

/// Whether one insertion, deletion, exchange or swap of neighbours makes one name of the other.
fn is_one_edit(a: &str, b: &str) -> bool {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let (short, long) = if a.len() <= b.len() { (&a, &b) } else { (&b, &a) };
    let n_same = short.iter().zip(long).take_while(|(x, y)| x == y).count();
    let (rest, longer) = (&short[n_same..], &long[n_same..]);
    match long.len() - short.len() {
        0 if rest.is_empty() => false,
        0 => {
            let is_swap = rest.len() > 1 && rest[0] == longer[1] && rest[1] == longer[0];
            rest[1..] == longer[1..] || is_swap && rest[2..] == longer[2..]
        }
        1 => *rest == longer[1..],
        _ => false,
    }
}

/// Reads a split file, `case_id,split`.
///
/// # Errors
/// When it cannot be read, or a row breaks a rule; the error names the line.
pub fn read_split_file(path: &Path) -> Result<BTreeMap<String, Split>, IngestError> {
    let table = Table::parse(&diag_data::files::read(path)?, path, &["case_id", "split"], &[])?;
    let mut splits = BTreeMap::new();
    for row in &table.rows {
        let wrong = |why: String| IngestError::TableRow { path: path.into(), line: row.line, why };
        let split = row.required("split").parse();
        let split = split.map_err(|_: diag_data::DataError| wrong(NO_SPLIT.into()))?;
        if splits.insert(row.required("case_id").to_string(), split).is_some() {
            return Err(wrong("the case_id occurs twice".into()));
        }
    }
    Ok(splits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(a: &str, b: &str, want: bool) {
        assert_eq!((is_one_edit(a, b), is_one_edit(b, a)), (want, want), "{a} {b}");
    }

    #[test]
    fn one_edit_is_one_key() {
        check("normal", "norml", true);
        check("normal", "nromal", true);
        check("normal", "normel", true);
        check("normal", "normal", false);
        check("normal", "norm", false);
        check("covid-19", "covid-91", true);
        check("ab", "ba", true);
        check("a", "bc", false);
    }

    fn parse(text: &str) -> Result<LabelTable, String> {
        let table = LabelTable::parse(text.as_bytes(), Path::new("labels.csv"), None);
        table.map_err(|err| format!("{:#}", err))
    }

    #[test]
    fn names_that_only_hands_tell_apart_are_refused_with_both_lines() {
        for (one, other) in
            [("positive", "Positive"), ("not normal", "not-normal"), ("a_b", "a b"), ("x1", "X1")]
        {
            let error = parse(&format!("case_id,label\na,{one}\nb,third\nc,{other}\n")).unwrap_err();
            assert!(
                error.contains(&format!("`{other}`")) && error.contains(&format!("`{one}` of line 2")),
                "{error}"
            );
            assert!(error.contains("in line 4"), "{error}");
        }
        let known = LabelSet::new(vec!["positive".into(), "Positive".into()]).unwrap();
        let text = b"case_id,label\na,positive\nb,Positive\n";
        assert!(LabelTable::parse(text, Path::new("x"), Some(known)).is_ok());
    }

    #[test]
    fn a_rare_name_near_a_frequent_one_is_told() {
        let mut text = String::from("case_id,label\n");
        (0..20).for_each(|i| text.push_str(&format!("a{i},pneumonia\nb{i},healthy\n")));
        text.push_str("c,pneumnia\n");
        let notes = parse(&text).unwrap().notes;
        assert_eq!(notes.len(), 2);
        assert!(notes[0].starts_with("label `pneumnia` (line 42"), "{notes:?}");
    }

    #[test]
    fn an_order_that_nobody_stated_is_told() {
        let notes = parse("case_id,label\na,zebra\nb,ape\n").unwrap().notes;
        assert_eq!(
            notes,
            ["the classes are, in alphabetical order: ape, zebra; a --label-set states another order"]
        );
        assert_eq!(parse("case_id,label\na,normal\nb,covid-19\n").unwrap().notes, [""; 0]);
        let known = LabelSet::new(vec!["zebra".into(), "ape".into()]).unwrap();
        let table =
            LabelTable::parse(b"case_id,label\na,zebra\nb,ape\n", Path::new("x"), Some(known)).unwrap();
        assert_eq!((table.notes, table.rows[0].label), (vec![], Label(0)));
    }

    #[test]
    fn the_data_card_s_names_bind_only_together() {
        let names = |text: &str| parse(text).map(|table| table.labels.names().to_vec());
        let own = names("case_id,label\na,covid\nb,normal\nc,pneumonia\n").unwrap();
        assert_eq!(own, ["covid", "normal", "pneumonia"]);
        let card = names("case_id,label\na,normal\nb,covid-19\n").unwrap();
        assert_eq!(card, ["covid-19", "normal", "bacterial-pneumonia"]);
        assert!(
            names("case_id,label\na,normal\nb,covid-91\n")
                .unwrap_err()
                .contains("the label looks like `covid-19`")
        );
    }
}
