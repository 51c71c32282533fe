//! `ct-ingest images`: folders of pictures of slices to shards.
//!
//! Classes and cases come from a label table, or from the folders: `class/image`
//! is a case of one slice (nothing says which images share a patient),
//! `class/case/image` a case of several. Parts come from the table, a split
//! file, list files, or are drawn. Images are resized to the stored size as they
//! are, without keeping their proportions: figures cut from papers have none to keep.

use std::collections::BTreeMap;
use std::path::PathBuf;

use ct_read::case::{self, CaseFiles};
use ct_read::picture::{self, HuLine};
use ct_read::pseudonyms::{Kind, Pseudonyms};
use ct_read::source::{Listing, listing};
use diag_data::case::{CaseId, Label, LabelSet, Split};
use diag_data::manifest::ShardSpec;
use diag_data::shard::Job;
use diag_data::units::HuWindow;

use crate::IngestError;
use crate::accounting::{Accounting, CaseTask};
use crate::fault::Fault;
use crate::labels::{self, LabelTable};
use crate::run::{self, Control, Event, Summary};
use crate::settings::Settings;
use crate::split_lists::{self, SplitLists};
use crate::splitting::{self, Placeable};
use crate::store;

/// A run over images.
#[derive(Clone, Debug)]
pub struct ImagesRun {
    /// Folder with the images.
    pub root: PathBuf,
    /// The label table; without it, a folder is a class.
    pub labels: Option<PathBuf>,
    /// Folder of list files, `train*.txt`, `val*.txt`, `test*.txt`.
    pub split_lists: Option<PathBuf>,
    /// Where the shard folder goes.
    pub out: PathBuf,
    /// How stored values become HU; absent for pictures of grey levels.
    pub hu_line: Option<HuLine>,
    /// HU range that becomes black to white, where stored values become HU.
    pub window: HuWindow,
    /// Everything else; what concerns volumes plays no part.
    pub settings: Settings,
}

/// Reads all images and writes the shard folder, whole or not at all.
///
/// # Errors
/// As [`crate::dicom_run::ingest`].
pub fn ingest(run: &ImagesRun, control: &Control<'_>) -> Result<Summary, IngestError> {
    run::with_threads(run.settings.jobs, || ingest_in_pool(run, control))
}

/// A case before it has a part.
#[derive(Clone, Debug)]
struct Found {
    name: String,
    label: Label,
    split: Option<Split>,
    patient: Option<String>,
    hu_line: Option<HuLine>,
    files: Vec<usize>,
}

fn ingest_in_pool(run: &ImagesRun, control: &Control<'_>) -> Result<Summary, IngestError> {
    let settings = &run.settings;
    // A picture bears no mark of synthetic images.
    let pseudonyms = settings.pseudonyms(false, control)?;
    let known = settings.label_set.as_deref().map(labels::read_label_set).transpose()?;
    let table = match &run.labels {
        Some(path) => {
            let mut table = LabelTable::read(path, known.clone())?;
            if let Some(path) = &settings.split_file {
                table.set_splits(path)?;
            }
            Some(table)
        }
        None => None,
    };
    for note in table.iter().flat_map(|table| &table.notes) {
        (control.on_event)(Event::Note(note));
    }
    let lists = run.split_lists.as_deref().map(SplitLists::read).transpose()?;
    let listing = Listing::of(&run.root)?;
    let is_image = |file: usize| picture::is_named_as_image(&listing.files[file].relative);
    let images: Vec<usize> = (0..listing.files.len()).filter(|&file| is_image(file)).collect();
    if images.is_empty() {
        return Err(IngestError::Empty {
            what: "pictures (PNG, JPEG, TIFF, BMP, WebP)",
            path: run.root.clone(),
        });
    }
    let mut aside = Aside::default();
    let (labels, mut found) = match &table {
        Some(table) => (table.labels.clone(), of_table(table, &listing, &images, &mut aside)),
        None => {
            let is_drawn = known.is_none();
            let (labels, found) = of_folders(run, known, &listing, &images, &mut aside)?;
            if let Some(note) = labels::order_note(&labels).filter(|_| is_drawn) {
                (control.on_event)(Event::Note(&note));
            }
            (labels, found)
        }
    };
    if let (None, Some(path)) = (&table, &settings.split_file) {
        let splits = labels::read_split_file(path)?;
        found.iter_mut().for_each(|case| case.split = splits.get(&case.name).copied());
    }
    if let Some(lists) = &lists {
        apply_lists(lists, &listing, &mut found, &mut aside);
    }
    let split_given = found.iter().any(|case| case.split.is_some());
    if let Some(note) = split_lists::unused(&listing, settings.keep_paths).filter(|_| !split_given) {
        (control.on_event)(Event::Note(&note));
    }
    aside.cases_without_part(split_given, &mut found);

    found.iter_mut().for_each(|case| case.hu_line = case.hu_line.or(run.hu_line));
    let mut reader = settings.reader.clone();
    if found.iter().any(|case| case.hu_line.is_some()) {
        reader.window = Some(run.window);
    }
    let spec = ShardSpec {
        labels,
        reader: reader.clone(),
        layout: settings.layout,
        with_hu: false,
        split_seed: (!split_given).then_some(settings.seed),
    };
    let config = settings.to_json("images", split_given, &pseudonyms)?;
    let writer =
        run::create_writer(&run.out, Job { spec, key: pseudonyms.info(), tool: run::TOOL.into(), config })?;
    let mut accounting = Accounting::open(&listing, settings, &pseudonyms);
    for (path, fault) in &listing.closed {
        accounting.flow.files.drop_for(fault.code());
        accounting.quarantine.add_path(path, &fault.clone().into(), control);
    }
    for file in (0..listing.files.len()).filter(|&file| !is_image(file)) {
        let relative = &listing.files[file].relative;
        if listing::is_companion(relative) {
            accounting.flow.files.drop_for("not an image");
        } else {
            let fault = ct_read::Fault::Image { why: "it is no picture by its name".into() };
            let fault = Fault::from(fault);
            accounting.flow.files.drop_for(fault.code());
            accounting.quarantine.add_path(relative, &fault, control);
        }
    }
    aside.enter(&pseudonyms, settings, &mut accounting, control)?;
    let placeable = found.iter().map(|case| Placeable {
        name: &case.name,
        label: case.label,
        given: case.split,
        patient: case.patient.as_deref(),
    });
    let splits = splitting::place(&placeable.collect::<Vec<_>>(), settings)?;
    let mut tasks = Vec::with_capacity(found.len());
    let mut lines: BTreeMap<CaseId, HuLine> = BTreeMap::new();
    for (case, split) in found.into_iter().zip(splits) {
        let task = CaseTask {
            case_id: settings.shown_id(&case.name, &pseudonyms)?,
            name: case.name.clone(),
            label: case.label,
            split,
            patient_hash: case.patient.as_deref().map(|id| pseudonyms.hash(Kind::Patient, id)),
            files: case.files,
        };
        case.hu_line.and_then(|line| lines.insert(task.case_id.clone(), line));
        tasks.push((task, case.name));
    }
    let read = |task: &CaseTask| {
        let files = CaseFiles { files: task.files.clone(), name: None, preview: None };
        case::read_pictures(&files, &listing, &reader, &pseudonyms, lines.get(&task.case_id).copied())
    };
    let stored = store::store_cases(writer, tasks, accounting, &read, control)?;
    // The encoder needs its room.
    drop(listing);
    stored.finish(control)
}

/// What is left out before anything is read.
#[derive(Debug, Default)]
struct Aside {
    /// Cases by name, their number of files, and why.
    cases: Vec<(String, usize, Fault)>,
    /// Folders of files that belong to no case, and how many.
    files: BTreeMap<String, usize>,
    /// Entries of list files that name no image.
    entries: Vec<(String, Fault)>,
}

impl Aside {
    /// Where parts are given, a case without one is left out.
    fn cases_without_part(&mut self, split_given: bool, found: &mut Vec<Found>) {
        if !split_given {
            return;
        }
        found.retain(|case| {
            if case.split.is_none() {
                let fault = Fault::NoPart { count: case.files.len() };
                self.cases.push((case.name.clone(), case.files.len(), fault));
            }
            case.split.is_some()
        });
    }

    fn enter(
        self,
        pseudonyms: &Pseudonyms,
        settings: &Settings,
        accounting: &mut Accounting<'_>,
        control: &Control<'_>,
    ) -> Result<(), IngestError> {
        for (name, n_files, fault) in self.cases {
            accounting.flow.cases.drop_for(fault.code());
            (0..n_files).for_each(|_| accounting.flow.files.drop_for(fault.code()));
            let pseudonym = settings.shown_id(&name, pseudonyms)?;
            accounting.quarantine.add_case(&name, pseudonym.as_str(), &fault, control);
        }
        for (folder, count) in self.files {
            let fault = Fault::NoLabel { count };
            (0..count).for_each(|_| accounting.flow.files.drop_for(fault.code()));
            accounting.quarantine.add_path(&folder, &fault, control);
        }
        for (entry, fault) in self.entries {
            accounting.quarantine.add_path(&entry, &fault, control);
        }
        Ok(())
    }
}

/// Cases of a label table: `case_id` is an image (its path or name, with or
/// without extension) or a folder of images (its path or name).
fn of_table(table: &LabelTable, listing: &Listing, images: &[usize], aside: &mut Aside) -> Vec<Found> {
    let mut files_of: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    let row_of: BTreeMap<&str, usize> =
        table.rows.iter().enumerate().map(|(row, entry)| (entry.case.as_str(), row)).collect();
    for &file in images {
        let path = &*listing.files[file].relative;
        match names_of(path).into_iter().find_map(|name| row_of.get(name)) {
            Some(&row) => files_of.entry(row).or_default().push(file),
            None => {
                let folder = path.rsplit_once('/').map_or(".", |(folder, _)| folder);
                *aside.files.entry(folder.into()).or_default() += 1;
            }
        }
    }
    let mut found = Vec::new();
    for (row, entry) in table.rows.iter().enumerate() {
        match files_of.remove(&row) {
            Some(files) => found.push(Found {
                name: entry.case.clone(),
                label: entry.label,
                split: entry.split,
                patient: entry.patient.clone(),
                hu_line: entry.hu_line,
                files,
            }),
            None => aside.cases.push((entry.case.clone(), 0, Fault::NoFiles)),
        }
    }
    found
}

/// All names under which a label table may know an image, the exact ones first.
fn names_of(path: &str) -> Vec<&str> {
    let stem = |name: &'_ str| name.rsplit_once('.').map_or(name.len(), |(stem, _)| stem.len());
    let mut names = vec![path, &path[..stem(path)]];
    let file_name = path.rsplit('/').next().unwrap_or(path);
    names.extend([file_name, &file_name[..stem(file_name)]]);
    let mut folder = path;
    while let Some((parent, _)) = folder.rsplit_once('/') {
        names.push(parent);
        names.push(parent.rsplit('/').next().unwrap_or(parent));
        folder = parent;
    }
    names
}

/// Classes by the first folder, cases by the second or the image itself.
fn of_folders(
    run: &ImagesRun,
    known: Option<LabelSet>,
    listing: &Listing,
    images: &[usize],
    aside: &mut Aside,
) -> Result<(LabelSet, Vec<Found>), IngestError> {
    let class_of = |file: usize| listing.files[file].relative.split_once('/').map(|(class, _)| class);
    let labels = match known {
        Some(labels) => labels,
        None if let Some((one, other)) = labels::alike(images.iter().filter_map(|&file| class_of(file))) => {
            return Err(IngestError::Settings {
                why: format!("the folders `{one}` and `{other}` differ only in case, blanks, - or _"),
                fix: "join them, or give both names in a --label-set".into(),
            });
        }
        None => LabelSet::of_table(images.iter().filter_map(|&file| class_of(file))).map_err(|_| {
            IngestError::Settings {
                why: "the images are not in two or more folders, one a class".into(),
                fix: format!("sort them into folders below {}, or give --labels", run.root.display()),
            }
        })?,
    };
    let mut cases: BTreeMap<String, (Label, Vec<usize>)> = BTreeMap::new();
    for &file in images {
        let path = &listing.files[file].relative;
        let Some(label) = class_of(file).and_then(|class| labels.find(class)) else {
            *aside.files.entry(class_of(file).unwrap_or(".").into()).or_default() += 1;
            continue;
        };
        let parts: Vec<&str> = path.split('/').collect();
        let name = if parts.len() > 2 { parts[..2].join("/") } else { path.to_string() };
        cases.entry(name).or_insert((label, Vec::new())).1.push(file);
    }
    let found = cases
        .into_iter()
        .map(|(name, (label, files))| Found { name, label, split: None, patient: None, hu_line: None, files })
        .collect();
    Ok((labels, found))
}

/// Takes parts from list files; a case goes where its images are listed.
fn apply_lists(lists: &SplitLists, listing: &Listing, found: &mut [Found], aside: &mut Aside) {
    let image_paths: Vec<(usize, &str)> = found
        .iter()
        .enumerate()
        .flat_map(|(case, found)| found.files.iter().map(move |&file| (case, file)))
        .map(|(case, file)| (case, &*listing.files[file].relative))
        .collect();
    let paths: Vec<&str> = image_paths.iter().map(|(_, path)| *path).collect();
    for (entry, placed) in split_lists::place(lists, &paths) {
        match placed {
            Ok(image) => {
                let case = &mut found[image_paths[image].0];
                match case.split {
                    Some(split) if split != entry.split => {
                        let why = "its case is listed in two parts".into();
                        aside.entries.push((entry.name.clone(), Fault::Unlisted { why }));
                    }
                    _ => case.split = Some(entry.split),
                }
            }
            Err(fault) => aside.entries.push((entry.name.clone(), fault)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::names_of;

    #[test]
    fn a_table_may_name_an_image_or_its_folder() {
        assert_eq!(names_of("a/b/c.png"), ["a/b/c.png", "a/b/c", "c.png", "c", "a/b", "b", "a", "a"]);
    }
}
