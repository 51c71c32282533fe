//! Why one file or one case is set aside while the run goes on.

use diag_data::manifest::Quarantined;

/// What is wrong with a file or a case. The text never holds anything that was
/// read from a header, except numbers, and names that the standard gives.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Found by reading it.
    #[error(transparent)]
    Read(#[from] ct_read::Fault),
    /// A case of the label table has no files.
    #[error("the label table names it, but it has no files")]
    NoFiles,
    /// More than one folder could be meant.
    #[error("{count} folders have its name")]
    AmbiguousFolder {
        /// Number of folders.
        count: usize,
    },
    /// Images lie in the root, but no label is known for them.
    #[error("{count} files belong to no case or class")]
    NoLabel {
        /// Number of files.
        count: usize,
    },
    /// Parts of the split are given, but not for this case.
    #[error("the given split has no part for it ({count} images)")]
    NoPart {
        /// Number of images.
        count: usize,
    },
    /// Patient, study, series or pixels occur in two parts of the split.
    #[error("the same {what} is in two parts of the split, in {n_cases} cases")]
    Leak {
        /// "patient", "study", "series" or "pixels".
        what: &'static str,
        /// Number of cases that share it.
        n_cases: usize,
    },
    /// Slices in two parts of the split look alike.
    #[error("{count} pairs of slices in two parts of the split look alike ({slices})")]
    NearDuplicates {
        /// Number of pairs.
        count: usize,
        /// The first of them, by slice index.
        slices: String,
    },
    /// A list of file names has one that is not there.
    #[error("the split list names it, but {why}")]
    Unlisted {
        /// "no image has that name", or how many have.
        why: String,
    },
}

impl Fault {
    /// The line of `quarantine.jsonl` for `source`, the file or case as the line shall name it.
    pub fn line(&self, source: String) -> Quarantined {
        Quarantined { source, reason: self.code().into(), detail: self.to_string(), remedy: self.remedy() }
    }

    /// Short fixed name, for scripts.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Read(fault) => fault.code(),
            Self::NoFiles => "no-files",
            Self::AmbiguousFolder { .. } => "ambiguous-folder",
            Self::NoLabel { .. } => "no-label",
            Self::NoPart { .. } => "no-part",
            Self::Leak { .. } => "leak",
            Self::NearDuplicates { .. } => "near-duplicates",
            Self::Unlisted { .. } => "unlisted",
        }
    }

    /// What the user can do about it.
    pub fn remedy(&self) -> String {
        match self {
            Self::Read(fault) => fault.remedy(),
            Self::NoFiles => "check the case_id against the folders, and the --match rule".into(),
            Self::AmbiguousFolder { .. } => "write the folder's path below the root as case_id".into(),
            Self::NoLabel { .. } => "add the case to the label table, or remove its files".into(),
            Self::NoPart { .. } => "add it to the split, or remove its images".into(),
            Self::Leak { .. } => "put these cases into the same part with --split-file".into(),
            Self::NearDuplicates { .. } => {
                "look at the slices; put both cases into the same part with --split-file if they are one patient".into()
            }
            Self::Unlisted { .. } => "correct the list, or add the image".into(),
        }
    }
}
