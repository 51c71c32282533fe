//! The output folder: all or nothing.

use crate::{CasePlan, PhantomError, Truth, case::patient_id};
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// A folder in the making, beside its final place. Dropped before [`Output::commit`], it is removed.
pub(crate) struct Output {
    partial: PathBuf,
    target: PathBuf,
    committed: bool,
}

impl Output {
    pub(crate) fn open(target: &Path, force: bool) -> Result<Self, PhantomError> {
        let replaceable = force && is_cohort(target);
        if !replaceable && !is_free(target)? {
            return Err(PhantomError::OutputNotEmpty { dir: target.into() });
        }
        let partial = sibling(target, "partial");
        // A killed run could not clean up behind itself.
        remove(&partial)?;
        fs::create_dir_all(&partial).map_err(|source| file("create", &partial, source))?;
        Ok(Self { partial, target: target.into(), committed: false })
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.partial
    }

    /// Writes `labels.csv` and `truth.json`.
    pub(crate) fn write_tables(&self, plans: &[CasePlan], truth: &Truth) -> Result<(), PhantomError> {
        let path = self.partial.join("labels.csv");
        let fail = |err: csv::Error| file("write", &path, err.into());
        let has_split = plans.iter().any(|plan| plan.split.is_some());
        let mut table = csv::Writer::from_path(&path).map_err(fail)?;
        let mut header = vec!["case_id", "label", "patient_id"];
        header.extend(has_split.then_some("split"));
        table.write_record(&header).map_err(fail)?;
        for plan in plans {
            let mut row = vec![
                plan.case_id.clone(),
                plan.given_label.name().into(),
                patient_id(&truth.cohort.name, truth.seed, plan),
            ];
            if has_split {
                row.push(plan.split.map(|split| split.name().into()).unwrap_or_default());
            }
            table.write_record(&row).map_err(fail)?;
        }
        table.flush().map_err(|source| file("write", &path, source))?;

        let path = self.partial.join("truth.json");
        let mut text = serde_json::to_string(truth).map_err(|err| file("write", &path, err.into()))?;
        text.push('\n');
        fs::write(&path, text).map_err(|source| file("write", &path, source))
    }

    /// Puts the folder in its place; an earlier cohort there is removed last.
    pub(crate) fn commit(mut self) -> Result<(), PhantomError> {
        let earlier = sibling(&self.target, "earlier");
        remove(&earlier)?;
        if self.target.exists() {
            fs::rename(&self.target, &earlier).map_err(|source| file("rename", &self.target, source))?;
        }
        fs::rename(&self.partial, &self.target).map_err(|source| file("rename", &self.partial, source))?;
        self.committed = true;
        remove(&earlier)
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if !self.committed {
            // Nothing more can be done here; the next run removes it first.
            let _ = fs::remove_dir_all(&self.partial);
        }
    }
}

fn file(action: &'static str, path: &Path, source: io::Error) -> PhantomError {
    PhantomError::File { action, path: path.into(), source }
}

fn sibling(target: &Path, role: &str) -> PathBuf {
    let name = target.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    target.with_file_name(format!(".{name}.{role}"))
}

fn is_free(dir: &Path) -> Result<bool, PhantomError> {
    match fs::read_dir(dir) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(source) => Err(file("read", dir, source)),
    }
}

/// Whether ct-phantom made this folder: only then may `--force` replace it.
fn is_cohort(dir: &Path) -> bool {
    let text = fs::read_to_string(dir.join("truth.json")).unwrap_or_default();
    serde_json::from_str::<Truth>(&text).is_ok_and(|truth| truth.synthetic)
}

fn remove(dir: &Path) -> Result<(), PhantomError> {
    match fs::remove_dir_all(dir) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(file("remove", dir, source)),
        _ => Ok(()),
    }
}
