//! Which files make which case.
//!
//! Headers are not kept: a hospital export has hundreds of thousands. A run looks at
//! those that it needs to divide the files, and reads a case's own again when its turn comes.

use std::collections::{BTreeMap, BTreeSet};

use ct_read::dicom::Header;
use ct_read::scan::{Format, Scan, scan_case, scan_file};
use ct_read::source::{ListedFile, Listing, archive, listing};
use ct_read::volume;
use rayon::prelude::*;

use crate::fault::Fault;
use crate::labels::LabelTable;
use crate::settings::Match;

/// The files of each row of a label table, and the files of none.
#[derive(Clone, Debug, Default)]
pub struct Assigned {
    /// One entry a row, in the table's order: its files, or why it has none.
    pub cases: Vec<Result<Vec<usize>, Fault>>,
    /// Files that no row names, by the folder or group that they share.
    pub unlabelled: BTreeMap<String, Vec<usize>>,
    /// Files that belong to no case and ask for none, in order, each with its reason,
    /// or its fault where it is broken.
    pub others: Vec<(usize, Result<&'static str, ct_read::Fault>)>,
    /// Lines of the table whose patient has several studies, where patients are matched.
    pub several_studies: Vec<u64>,
}

impl Assigned {
    /// Whether any file may be an image of the format.
    pub fn holds_any(&self, listing: &Listing, format: Format) -> bool {
        let is_image = |&file: &usize| !scan_file(&listing.files[file], format).is_other();
        !self.unlabelled.is_empty()
            || self.others.iter().any(|(_, why)| why.is_err())
            || self.cases.iter().flatten().flatten().any(is_image)
    }
}

/// What to say where rows of the table name no file, and files no row; folders and ids are named
/// only where paths may be.
pub fn unmatched(
    assigned: &Assigned,
    listing: &Listing,
    table: &LabelTable,
    matching: Match,
    keep_paths: bool,
) -> Option<String> {
    let missing = table.rows.iter().zip(&assigned.cases).filter(|(_, case)| **case == Err(Fault::NoFiles));
    let ids: Vec<&str> = missing.map(|(row, _)| row.case.as_str()).collect();
    // Where every file has its row, the rest was simply not there.
    if ids.is_empty() || assigned.unlabelled.is_empty() {
        return None;
    }
    let what = match matching {
        Match::Folder => "folder or file",
        Match::PatientId => "PatientID",
        Match::SeriesUid => "SeriesInstanceUID",
    };
    let mut text = format!("{} of {} case_ids name no {what}", ids.len(), table.rows.len());
    if !keep_paths || matching != Match::Folder {
        text.push_str(": compare both sides with `ct-ingest inspect --keep-paths`");
        return Some(text);
    }
    let first_three =
        |names: &[&str]| names.iter().take(3).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    let files = assigned.unlabelled.values().flatten();
    let folders: BTreeSet<&str> =
        files.filter_map(|&file| ancestors(&listing.files[file].relative).next()).collect();
    let folders: Vec<&str> = folders.into_iter().collect();
    text.push_str(&format!(
        ": the table has {}, the folders that no case_id names are {}",
        first_three(&ids),
        first_three(&folders)
    ));
    let without_zeros =
        |name: &str| name.rsplit('/').next().unwrap_or(name).trim_start_matches('0').to_string();
    if folders.iter().any(|folder| ids.iter().any(|id| without_zeros(folder) == without_zeros(id))) {
        text.push_str("; leading zeros were lost, as spreadsheets do: format the column as text");
    }
    Some(text)
}

/// What to say where a patient has several studies: a case is made of one series.
pub fn several_studies(assigned: &Assigned) -> Option<String> {
    let lines = &assigned.several_studies;
    let shown: Vec<String> = lines.iter().take(3).map(u64::to_string).collect();
    let more = if lines.len() > shown.len() { ", ..." } else { "" };
    (!lines.is_empty()).then(|| {
        format!(
            "patients of the label table with several studies: {} (line {}{more}); one series of one study is \
             used of each; match by folder or series-uid to make each study a case",
            lines.len(),
            shown.join(", "),
        )
    })
}

/// Divides the files among the rows of the table.
pub fn assign(listing: &Listing, format: Format, table: &LabelTable, matching: Match) -> Assigned {
    match matching {
        Match::Folder => by_folder(listing, format, table),
        Match::PatientId => by_header(listing, format, table, |header| header.identity.patient_id.as_deref()),
        Match::SeriesUid => by_header(listing, format, table, |header| header.identity.series_uid.as_deref()),
    }
}

/// A row may name a folder or archive, by its path or its unique name; or, where a file is
/// a whole series, that file, with or without its extension.
fn by_folder(listing: &Listing, format: Format, table: &LabelTable) -> Assigned {
    let row_of: BTreeMap<&str, usize> =
        table.rows.iter().enumerate().map(|(row, entry)| (entry.case.as_str(), row)).collect();
    // A row may give a folder's path or its name; a name must be unique.
    let mut folders_named: BTreeMap<usize, BTreeSet<&str>> = BTreeMap::new();
    let mut files_of: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    let mut of_no_row = Vec::new();
    for (file, listed) in listing.files.iter().enumerate() {
        let is_companion = format == Format::Dicom && listing::is_companion(&listed.relative);
        let stem = volume::stem(&listed.relative).filter(|_| !is_companion);
        // With and without its extension.
        let names = stem.map_or(Vec::new(), |stem| vec![&*listed.relative, stem]);
        let folders = || names.iter().copied().chain(ancestors(&listed.relative));
        let by_path = folders().find_map(|folder| row_of.get(folder).map(|row| (*row, folder)));
        let by_name = || {
            folders().find_map(|folder| {
                let name = folder.rsplit('/').next().unwrap_or(folder);
                let row = row_of.get(name).or_else(|| row_of.get(archive::stem(name)?));
                row.map(|row| (*row, folder))
            })
        };
        match by_path.or_else(by_name) {
            Some((row, folder)) => {
                folders_named.entry(row).or_default().insert(folder);
                files_of.entry(row).or_default().push(file);
            }
            None => of_no_row.push(file),
        }
    }
    let case = |row: usize| match folders_named.get(&row).map_or(0, BTreeSet::len) {
        0 => Err(Fault::NoFiles),
        1 => Ok(files_of.remove(&row).unwrap_or_default()),
        count => Err(Fault::AmbiguousFolder { count }),
    };
    let mut assigned = Assigned { cases: (0..table.rows.len()).map(case).collect(), ..Assigned::default() };
    for (file, scan) in scan_case(listing, &of_no_row, format) {
        match scan {
            // Tables and notes beside the cases belong to nobody.
            Scan::Other(reason) => assigned.others.push((file, Ok(reason))),
            _ => {
                let folder = ancestors(&listing.files[file].relative).last().unwrap_or(".").to_string();
                assigned.unlabelled.entry(folder).or_default().push(file);
            }
        }
    }
    // What is left belongs to rows that could mean several folders.
    let ambiguous: Vec<usize> = files_of.into_values().flatten().collect();
    let why = |scan| match scan {
        Scan::Other(reason) => Ok(reason),
        Scan::Broken { fault, .. } => Err(fault),
        Scan::Ct(_) | Scan::Volume(_) => Ok("no case"),
    };
    let ambiguous = scan_case(listing, &ambiguous, format);
    assigned.others.extend(ambiguous.into_iter().map(|(file, scan)| (file, why(scan))));
    assigned.others.sort_by_key(|(file, _)| *file);
    assigned
}

/// The folders that hold a file, innermost first, and the root as `.`.
fn ancestors(relative: &str) -> impl Iterator<Item = &str> {
    fn parent(path: &str) -> Option<&str> {
        path.rsplit_once('/').map(|(parent, _)| parent)
    }
    let start = parent(relative);
    std::iter::successors(start, |path| parent(path)).chain(start.is_none().then_some("."))
}

fn by_header(
    listing: &Listing,
    format: Format,
    table: &LabelTable,
    key: impl Fn(&Header) -> Option<&str> + Sync,
) -> Assigned {
    let row_of: BTreeMap<&str, usize> =
        table.rows.iter().enumerate().map(|(row, entry)| (entry.case.as_str(), row)).collect();
    // The row of a CT image, or why it asks for none.
    let place = |file: &ListedFile| match scan_file(file, format) {
        Scan::Ct(header) => {
            let row = key(&header).and_then(|text| row_of.get(text)).copied();
            Ok(row.map(|row| (row, header.identity.study_uid.clone())))
        }
        Scan::Other(reason) => Err(Ok(reason)),
        Scan::Broken { fault, .. } => Err(Err(fault)),
        Scan::Volume(_) => Err(Ok("no case")),
    };
    let places: Vec<_> = listing.files.par_iter().map(place).collect();
    let mut assigned = Assigned { cases: vec![Err(Fault::NoFiles); table.rows.len()], ..Assigned::default() };
    let mut studies: BTreeMap<usize, BTreeSet<Option<String>>> = BTreeMap::new();
    for (file, place) in places.into_iter().enumerate() {
        match place {
            Ok(Some((row, study))) => {
                studies.entry(row).or_default().insert(study);
                match &mut assigned.cases[row] {
                    Ok(files) => files.push(file),
                    case @ Err(_) => *case = Ok(vec![file]),
                }
            }
            // Grouped by folder: the identifier itself is nobody's business.
            Ok(None) => {
                let folder = ancestors(&listing.files[file].relative).next().unwrap_or(".");
                assigned.unlabelled.entry(folder.into()).or_default().push(file);
            }
            Err(why) => assigned.others.push((file, why)),
        }
    }
    let several = studies.into_iter().filter(|(_, studies)| studies.len() > 1);
    assigned.several_studies = several.map(|(row, _)| table.rows[row].line).collect();
    assigned.several_studies.sort_unstable();
    assigned
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_s_folders_are_named_innermost_first() {
        assert_eq!(ancestors("a/b/c.dcm").collect::<Vec<_>>(), ["a/b", "a"]);
        assert_eq!(ancestors("c.dcm").collect::<Vec<_>>(), ["."]);
    }
}
