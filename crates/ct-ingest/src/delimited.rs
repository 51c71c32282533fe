//! Tables of text as people keep them: comma, semicolon or tab, as Excel and its kin write them
//! in one country or another, in UTF-8, UTF-16 or Latin-1, with empty rows, and a header in
//! whatever case.

use std::borrow::Cow;
use std::path::Path;

use crate::IngestError;

/// The known columns of a table.
#[derive(Clone, Debug)]
pub struct Table {
    /// Rows that are not empty, in order.
    pub rows: Vec<Row>,
    /// What the operator should know: ignored columns, a guessed encoding.
    pub notes: Vec<String>,
}

/// One row.
#[derive(Clone, Debug)]
pub struct Row {
    /// Line in the file, from 1.
    pub line: u64,
    cells: Vec<(&'static str, String)>,
}

impl Row {
    /// A cell of a required column, without blanks around it.
    pub fn required(&self, column: &str) -> &str {
        self.cells.iter().find(|cell| cell.0 == column).map_or("", |cell| &cell.1)
    }

    /// A cell of an optional column; `None` where it is empty or the column is not there.
    pub fn optional(&self, column: &str) -> Option<&str> {
        Some(self.required(column)).filter(|text| !text.is_empty())
    }
}

impl Table {
    /// Reads a table from its bytes; `path` names it in errors.
    ///
    /// # Errors
    /// When it is no table, or a required column is missing: the error shows the header found.
    pub fn parse(
        bytes: &[u8],
        path: &Path,
        required: &[&'static str],
        optional: &[&'static str],
    ) -> Result<Self, IngestError> {
        let mut notes = Vec::new();
        let text = decoded(bytes, &mut notes);
        let (text, n_skipped, given) = separator_line(&text);
        let header_line = text.lines().find(|line| !line.trim().is_empty()).unwrap_or("");
        let delimiter = given.unwrap_or_else(|| delimiter_of(header_line, required));
        let table = |source| IngestError::Table { path: path.into(), source };
        let mut reader = csv::ReaderBuilder::new()
            .trim(csv::Trim::All)
            .has_headers(false)
            .flexible(true)
            .delimiter(delimiter)
            .from_reader(text.as_bytes());
        let mut records = reader
            .records()
            .filter(|record| !record.as_ref().is_ok_and(|record| record.iter().all(str::is_empty)));
        let header = records.next().transpose().map_err(table)?.unwrap_or_default();
        let (columns, ignored) = columns(&header, path, (required, optional))?;
        if !ignored.is_empty() {
            notes.push(format!(
                "columns of {} that are not known are ignored: {}",
                path.display(),
                ignored.join(", ")
            ));
        }
        let mut rows = Vec::new();
        for record in records {
            let record = record.map_err(table)?;
            let line = record.position().map_or(0, csv::Position::line) + n_skipped;
            let last = (0..record.len()).rev().find(|column| !record[*column].is_empty());
            let n_cells = last.map_or(0, |last| last + 1);
            if n_cells > header.len() {
                let why = format!("the row has {n_cells} cells under {} headings", header.len());
                return Err(IngestError::TableRow { path: path.into(), line, why });
            }
            let cell = |&(column, name): &(usize, &'static str)| {
                (name, record.get(column).unwrap_or_default().to_string())
            };
            rows.push(Row { line, cells: columns.iter().map(cell).collect() });
        }
        Ok(Self { rows, notes })
    }
}

/// Text of a file: UTF-8, UTF-16 with or without a mark, else Latin-1.
fn decoded<'a>(bytes: &'a [u8], notes: &mut Vec<String>) -> Cow<'a, str> {
    let wide = |bytes: &[u8], unit: fn([u8; 2]) -> u16| {
        let units: Vec<u16> = bytes.as_chunks().0.iter().map(|pair| unit(*pair)).collect();
        Cow::Owned(String::from_utf16_lossy(&units))
    };
    match bytes {
        [0xEF, 0xBB, 0xBF, rest @ ..] => String::from_utf8_lossy(rest),
        [0xFF, 0xFE, rest @ ..] => wide(rest, u16::from_le_bytes),
        [0xFE, 0xFF, rest @ ..] => wide(rest, u16::from_be_bytes),
        [1..=0x7F, 0, ..] => wide(bytes, u16::from_le_bytes),
        [0, 1..=0x7F, ..] => wide(bytes, u16::from_be_bytes),
        _ => match std::str::from_utf8(bytes) {
            Ok(text) => Cow::Borrowed(text),
            Err(_) => {
                notes.push("the table is not UTF-8 and was read as Latin-1".into());
                Cow::Owned(bytes.iter().map(|byte| char::from(*byte)).collect())
            }
        },
    }
}

/// Takes off a first line `sep=;`, which Excel writes; returns how many lines were taken.
fn separator_line(text: &str) -> (&str, u64, Option<u8>) {
    let (first, rest) = text.split_once('\n').unwrap_or((text, ""));
    let first = first.trim_end_matches('\r').trim_matches('"');
    let separator =
        first.get(..4).filter(|start| start.eq_ignore_ascii_case("sep=")).and(first.as_bytes().get(4));
    match separator {
        Some(&separator) if first.len() == 5 => (rest, 1, Some(separator)),
        _ => (text, 0, None),
    }
}

/// The delimiter by which the header has the required columns, else the most frequent one.
fn delimiter_of(header: &str, required: &[&str]) -> u8 {
    let holds_all = |delimiter: &u8| {
        let names: Vec<String> = header.split(char::from(*delimiter)).map(plain).collect();
        required.iter().all(|column| names.contains(&plain(column)))
    };
    let candidates = [b',', b';', b'\t'];
    let count = |delimiter: &u8| header.bytes().filter(|byte| byte == delimiter).count();
    let most = candidates.into_iter().rev().max_by_key(count).unwrap_or(b',');
    candidates.into_iter().find(holds_all).unwrap_or(most)
}

/// A heading without what hands write differently: case, blanks, `-`, `_` and quotes.
fn plain(heading: &str) -> String {
    heading.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

/// The known columns with their places, and the headings of the others.
#[expect(clippy::type_complexity, reason = "two lists, each used once")]
fn columns(
    header: &csv::StringRecord,
    path: &Path,
    (required, optional): (&[&'static str], &[&'static str]),
) -> Result<(Vec<(usize, &'static str)>, Vec<String>), IngestError> {
    let known = || required.iter().chain(optional).copied();
    let mut columns: Vec<(usize, &'static str)> = Vec::new();
    let mut ignored = Vec::new();
    for (column, heading) in header.iter().enumerate() {
        match known().find(|name| plain(name) == plain(heading)) {
            Some(name) if columns.iter().any(|(_, other)| *other == name) => {
                let why = format!("two columns are named {name}");
                return Err(IngestError::TableRow { path: path.into(), line: 1, why });
            }
            Some(name) => columns.push((column, name)),
            None if heading.is_empty() => {}
            None => ignored.push(format!("`{heading}`")),
        }
    }
    let missing: Vec<&str> =
        required.iter().copied().filter(|name| columns.iter().all(|(_, known)| known != name)).collect();
    if missing.is_empty() {
        return Ok((columns, ignored));
    }
    let found: Vec<&str> = header.iter().collect();
    Err(IngestError::Columns {
        path: path.into(),
        missing: missing.join(" and "),
        found: found.join(", "),
        wanted: known().collect::<Vec<_>>().join(", "),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(bytes: &[u8], n_notes: usize) {
        let table = Table::parse(bytes, Path::new("t"), &["case_id", "label"], &["split"]).unwrap();
        let rows: Vec<(u64, &str, &str)> =
            table.rows.iter().map(|row| (row.line, row.required("case_id"), row.required("label"))).collect();
        let first = rows[0].0;
        assert_eq!(rows, [(first, "a", "\u{e4}x"), (first + 1, "b", "y")]);
        assert_eq!(table.notes.len(), n_notes, "{:?}", table.notes);
    }

    fn wide(text: &str, bytes: fn(u16) -> [u8; 2]) -> Vec<u8> {
        text.encode_utf16().flat_map(bytes).collect()
    }

    #[test]
    fn tables_are_read_as_excel_writes_them() {
        let plain = "case_id,label\na,\u{e4}x\nb,y\n";
        check(plain.as_bytes(), 0);
        check("case_id;label\r\na;\u{e4}x\r\nb;y\r\n".as_bytes(), 0);
        check("Case ID\tLabel\na\t\u{e4}x\nb\ty\n".as_bytes(), 0);
        check("sep=;\ncase_id;label\na;\u{e4}x\nb;y\n".as_bytes(), 0);
        check("\u{feff}case_id,label\na,\u{e4}x\nb,y\n,\n,,\n\n".as_bytes(), 0);
        check("CaseId,notes,LABEL\na,1,\u{e4}x\nb,2,y\n".as_bytes(), 1);
        check(b"case_id,label\na,\xe4x\nb,y\n", 1);
        check(&wide(&format!("\u{feff}{plain}"), u16::to_le_bytes), 0);
        check(&wide(&format!("\u{feff}{plain}"), u16::to_be_bytes), 0);
        check(&wide(plain, u16::to_le_bytes), 0);
    }

    #[test]
    fn a_missing_column_is_told_with_the_header_found() {
        let error =
            Table::parse(b"name,class\na,b\n", Path::new("t"), &["case_id", "label"], &[]).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("no column case_id and label") && text.contains("name, class"), "{text}");
    }
}
