//! Official splits given as lists of file names: `trainCT_COVID.txt` names the
//! training images of the class in folder `CT_COVID`; `train.txt` names images
//! of any class by their paths below the root.

use std::collections::BTreeMap;
use std::path::Path;

use ct_read::source::Listing;
use diag_data::case::Split;
use diag_data::files;

use crate::IngestError;
use crate::fault::Fault;

/// One line of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListEntry {
    /// Folder that the list's name gives; empty for lists of paths.
    pub folder: String,
    /// The line.
    pub name: String,
    /// Part that the list's name gives.
    pub split: Split,
}

/// All lists of a folder.
#[derive(Clone, Debug, Default)]
pub struct SplitLists {
    /// Their lines.
    pub entries: Vec<ListEntry>,
}

impl SplitLists {
    /// Reads all `{train,val,validation,test}*.txt` of a folder.
    ///
    /// # Errors
    /// When the folder or a list cannot be read, or there is none.
    pub fn read(folder: &Path) -> Result<Self, IngestError> {
        let unreadable = |source| IngestError::Folder { path: folder.into(), source };
        let mut paths = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(unreadable)? {
            paths.push(entry.map_err(unreadable)?.path());
        }
        paths.sort();
        let mut lists = Self::default();
        for path in paths {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let Some((split, folder)) = name.strip_suffix(".txt").and_then(part_and_folder) else { continue };
            let text = String::from_utf8_lossy(&files::read(&path)?).into_owned();
            let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
            lists.entries.extend(lines.map(|line| ListEntry {
                folder: folder.to_string(),
                name: line.to_string(),
                split,
            }));
        }
        if lists.entries.is_empty() {
            let why = "the folder has no lists named train*.txt, val*.txt or test*.txt".into();
            return Err(IngestError::File { path: folder.into(), why });
        }
        Ok(lists)
    }
}

/// What to say of lists that lie below the folder of the images and are not used; their names are
/// shown only where paths may be.
pub fn unused(listing: &Listing, keep_paths: bool) -> Option<String> {
    let is_list = |path: &&str| {
        let name = path.rsplit('/').next().unwrap_or(path);
        name.strip_suffix(".txt").and_then(part_and_folder).is_some()
    };
    let lists: Vec<&str> = listing.files.iter().map(|file| &*file.relative).filter(is_list).collect();
    let (first, n_more) = (*lists.first()?, lists.len() - 1);
    let name = if keep_paths { first } else { "train*.txt, val*.txt or test*.txt" };
    let found = match (keep_paths, n_more) {
        (true, 0) => format!("the list {name} lies"),
        (true, _) => format!("the list {name} and {n_more} others lie"),
        (false, _) => {
            format!("{} named {name} {}", count(lists.len()), if n_more == 0 { "lies" } else { "lie" })
        }
    };
    Some(format!(
        "{found} below the folder: if they are its official split, give their folder as --split-lists"
    ))
}

fn count(n_lists: usize) -> String {
    if n_lists == 1 { "a list".into() } else { format!("{n_lists} lists") }
}

fn part_and_folder(stem: &str) -> Option<(Split, &str)> {
    let prefixes = [
        ("train", Split::Train),
        ("validation", Split::Validation),
        ("val", Split::Validation),
        ("test", Split::Test),
    ];
    let (split, rest) =
        prefixes.iter().find_map(|(prefix, split)| Some((*split, stem.strip_prefix(prefix)?)))?;
    Some((split, rest.trim_start_matches(['_', '-'])))
}

/// Finds the image of each entry among paths below the root. A name that
/// differs in case or extension is accepted where only one image fits.
pub fn place<'a>(lists: &'a SplitLists, paths: &[&str]) -> Vec<(&'a ListEntry, Result<usize, Fault>)> {
    let exact: BTreeMap<&str, usize> = paths.iter().enumerate().map(|(i, path)| (*path, i)).collect();
    let mut lenient: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (i, path) in paths.iter().enumerate() {
        lenient.entry(without_case_and_extension(path)).or_default().push(i);
    }
    let find = |entry: &ListEntry| {
        let path = if entry.folder.is_empty() {
            entry.name.clone()
        } else {
            format!("{}/{}", entry.folder, entry.name)
        };
        if let Some(image) = exact.get(path.as_str()) {
            return Ok(*image);
        }
        match lenient.get(&without_case_and_extension(&path)).map(Vec::as_slice) {
            Some([image]) => Ok(*image),
            Some(several) => Err(Fault::Unlisted { why: format!("{} images fit its name", several.len()) }),
            None => Err(Fault::Unlisted { why: "no image has that name".into() }),
        }
    };
    lists.entries.iter().map(|entry| (entry, find(entry))).collect()
}

fn without_case_and_extension(path: &str) -> String {
    let stem = match path.rsplit_once('.') {
        Some((stem, extension)) if !extension.contains('/') => stem,
        _ => path,
    };
    stem.to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(folder: &str, name: &str, want: Result<usize, &str>) {
        let entry = ListEntry { folder: folder.into(), name: name.into(), split: Split::Train };
        let lists = SplitLists { entries: vec![entry] };
        let paths = ["a/1.png", "a/2.JPG", "a/2.png", "b/Three.jpg"];
        let found = place(&lists, &paths).remove(0).1;
        assert_eq!(found.map_err(|fault| fault.to_string()), want.map_err(String::from), "{folder}/{name}");
    }

    #[test]
    fn an_exact_name_wins() {
        check("a", "2.png", Ok(2));
    }

    #[test]
    fn case_and_extension_may_differ_where_one_image_fits() {
        check("b", "three.png", Ok(3));
        check("", "b/THREE.jpg", Ok(3));
    }

    #[test]
    fn what_is_ambiguous_or_absent_is_refused() {
        check("a", "2.jpeg", Err("the split list names it, but 2 images fit its name"));
        check("b", "1.png", Err("the split list names it, but no image has that name"));
    }

    #[test]
    fn list_names_give_part_and_folder() {
        assert_eq!(part_and_folder("trainCT_COVID"), Some((Split::Train, "CT_COVID")));
        assert_eq!(part_and_folder("val"), Some((Split::Validation, "")));
        assert_eq!(part_and_folder("validation_x"), Some((Split::Validation, "x")));
        assert_eq!(part_and_folder("notes"), None);
    }
}
