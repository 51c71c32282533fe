//! Which files make which case.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rayon::prelude::*;

use crate::archive;
use crate::decode::{self, Header, Scanned};
use crate::fault::Fault;
use crate::labels::LabelTable;
use crate::listing::{self, Listing};
use crate::nifti;
use crate::settings::{Format, Match};

/// What the header of a listed file said.
#[derive(Clone, Debug)]
pub enum Scan {
    /// A CT object.
    Ct(Arc<Header>),
    /// A NIfTI volume.
    Volume(Arc<nifti::Header>),
    /// A file that is no CT image, and why.
    Other(&'static str),
    /// A file that should have been one.
    Broken(Fault),
}

/// Reads the headers of all listed files of a format, in parallel.
pub fn scan(listing: &Listing, format: Format) -> Vec<Scan> {
    match format {
        Format::Dicom => scan_dicom(listing),
        Format::Nifti => scan_nifti(listing),
    }
}

fn scan_nifti(listing: &Listing) -> Vec<Scan> {
    let scan_one = |file: &listing::ListedFile| {
        if !nifti::is_named_as_nifti(&file.relative) {
            return Scan::Other("not a NIfTI volume");
        }
        match nifti::scan_file(file) {
            Ok(header) => Scan::Volume(Arc::new(header)),
            Err(fault) => Scan::Broken(fault),
        }
    };
    listing.files.par_iter().map(scan_one).collect()
}

fn scan_dicom(listing: &Listing) -> Vec<Scan> {
    let scan_one = |file: &listing::ListedFile| {
        if listing::is_companion(&file.relative) {
            return Scan::Other("not an image");
        }
        match decode::scan_file(file) {
            Ok(Scanned::Ct(header)) => Scan::Ct(Arc::from(header)),
            Ok(Scanned::Other { reason }) => Scan::Other(reason),
            Err(fault) => Scan::Broken(fault),
        }
    };
    listing.files.par_iter().map(scan_one).collect()
}

/// The files of each row of a label table, and the files of none.
#[derive(Clone, Debug, Default)]
pub struct Assigned {
    /// One entry a row, in the table's order: its files, or why it has none.
    pub cases: Vec<Result<Vec<usize>, Fault>>,
    /// Files that no row names, by the folder or group that they share.
    pub unlabelled: BTreeMap<String, Vec<usize>>,
}

/// Divides the files among the rows of the table.
pub fn assign(listing: &Listing, scans: &[Scan], table: &LabelTable, matching: Match) -> Assigned {
    match matching {
        Match::Folder => by_folder(listing, scans, table),
        Match::PatientId => by_header(listing, scans, table, |header| header.identity.patient_id.as_deref()),
        Match::SeriesUid => by_header(listing, scans, table, |header| header.identity.series_uid.as_deref()),
    }
}

/// A row may name a folder or archive, by its path or its unique name; or, where a file is
/// a whole series, that file, with or without its extension.
fn by_folder(listing: &Listing, scans: &[Scan], table: &LabelTable) -> Assigned {
    let row_of: BTreeMap<&str, usize> =
        table.rows.iter().enumerate().map(|(row, entry)| (entry.case.as_str(), row)).collect();
    // A row may give a folder's path or its name; a name must be unique.
    let mut folders_named: BTreeMap<usize, BTreeSet<&str>> = BTreeMap::new();
    let mut files_of: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    let mut unlabelled: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (file, listed) in listing.files.iter().enumerate() {
        let is_volume = nifti::is_named_as_nifti(&listed.relative) && !matches!(scans[file], Scan::Other(_));
        let names = if is_volume { file_names(&listed.relative) } else { Vec::new() };
        let folders = || names.iter().copied().chain(ancestors(&listed.relative));
        let by_path = folders().find_map(|folder| row_of.get(folder).map(|row| (*row, folder)));
        let by_name = || {
            folders().find_map(|folder| {
                let name = folder.rsplit('/').next().unwrap_or(folder);
                let without_zip = archive::is_named_as_zip(name).then(|| &name[..name.len() - 4]);
                let row = row_of.get(name).or_else(|| row_of.get(without_zip?));
                row.map(|row| (*row, folder))
            })
        };
        match by_path.or_else(by_name) {
            Some((row, folder)) => {
                folders_named.entry(row).or_default().insert(folder);
                files_of.entry(row).or_default().push(file);
            }
            // Tables and notes beside the cases belong to nobody.
            None if matches!(scans[file], Scan::Other(_)) => {}
            None => {
                let folder = ancestors(&listed.relative).last().unwrap_or(".").to_string();
                unlabelled.entry(folder).or_default().push(file);
            }
        }
    }
    let case = |row: usize| match folders_named.get(&row).map_or(0, BTreeSet::len) {
        0 => Err(Fault::NoFiles),
        1 => Ok(files_of.remove(&row).unwrap_or_default()),
        count => Err(Fault::AmbiguousFolder { count }),
    };
    Assigned { cases: (0..table.rows.len()).map(case).collect(), unlabelled }
}

/// The path of a NIfTI file, with and without its extension.
fn file_names(relative: &str) -> Vec<&str> {
    let lower = relative.to_ascii_lowercase();
    let extension = if lower.ends_with(".gz") { ".nii.gz" } else { ".nii" };
    vec![relative, &relative[..relative.len() - extension.len()]]
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
    scans: &[Scan],
    table: &LabelTable,
    key: impl Fn(&Header) -> Option<&str>,
) -> Assigned {
    let row_of: BTreeMap<&str, usize> =
        table.rows.iter().enumerate().map(|(row, entry)| (entry.case.as_str(), row)).collect();
    let mut cases: Vec<Result<Vec<usize>, Fault>> = vec![Err(Fault::NoFiles); table.rows.len()];
    let mut unlabelled: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (file, scan) in scans.iter().enumerate() {
        let Scan::Ct(header) = scan else { continue };
        match key(header).and_then(|text| row_of.get(text)) {
            Some(&row) => match &mut cases[row] {
                Ok(files) => files.push(file),
                case @ Err(_) => *case = Ok(vec![file]),
            },
            // Grouped by folder: the identifier itself is nobody's business.
            None => {
                let folder = ancestors(&listing.files[file].relative).next().unwrap_or(".");
                unlabelled.entry(folder.into()).or_default().push(file);
            }
        }
    }
    Assigned { cases, unlabelled }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_has_two_names() {
        assert_eq!(file_names("a/b.c.nii.gz"), ["a/b.c.nii.gz", "a/b.c"]);
        assert_eq!(file_names("B.NII"), ["B.NII", "B"]);
    }

    #[test]
    fn a_file_s_folders_are_named_innermost_first() {
        assert_eq!(ancestors("a/b/c.dcm").collect::<Vec<_>>(), ["a/b", "a"]);
        assert_eq!(ancestors("c.dcm").collect::<Vec<_>>(), ["."]);
    }
}
