//! Why one study gets no prediction, in words that fit this program.

use ct_read::Fault;

/// Why a study cannot be used. As a [`Fault`], it holds nothing that was read from a header but
/// numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Its files were not read.
    Fault(Fault),
    /// It is of several people.
    SeveralPatients {
        /// Distinct PatientIDs.
        count: usize,
    },
    /// It is of several examinations.
    SeveralStudies {
        /// Distinct StudyInstanceUIDs.
        count: usize,
    },
    /// Volume files do not say whose they are.
    SeveralVolumes {
        /// Volumes with CT numbers.
        count: usize,
    },
    /// It has a file, but none of a study.
    NoImages,
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::SeveralPatients { count } => Self::SeveralPatients { count },
            fault => Self::Fault(fault),
        }
    }
}

impl Refusal {
    /// Short fixed name, for scripts.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Fault(fault) => fault.code(),
            Self::SeveralPatients { .. } => "several-patients",
            Self::SeveralStudies { .. } => "several-studies",
            Self::SeveralVolumes { .. } => "several-volumes",
            Self::NoImages => "no-series",
        }
    }

    /// What is wrong.
    pub fn words(&self) -> String {
        match self {
            Self::Fault(Fault::SeveralSeries { count }) => {
                format!("it has {count} axial CT series, where the model was trained on cases with one")
            }
            Self::Fault(fault) => fault.to_string(),
            Self::SeveralPatients { count } => format!("its files are of {count} patients"),
            Self::SeveralStudies { count } => format!("its files are of {count} studies"),
            Self::SeveralVolumes { count } => {
                format!("it has {count} volumes, which do not say whether they are of one patient")
            }
            Self::NoImages => "it holds no files".into(),
        }
    }

    /// What can be done about it: flags of other programs are not named.
    pub fn remedy(&self) -> String {
        match self {
            Self::Fault(Fault::Gaps { .. }) => {
                "export the whole series; the model was trained on series without gaps".into()
            }
            Self::Fault(Fault::SeveralSeries { .. }) => "keep the one series that shall be read".into(),
            Self::Fault(Fault::StoredValues { .. }) => "give the series as DICOM, or as a volume in HU".into(),
            Self::Fault(Fault::Preview { .. }) => "report it as a bug".into(),
            Self::Fault(fault) => fault.remedy(),
            Self::SeveralPatients { .. } | Self::SeveralStudies { .. } => {
                "give each study a folder of its own, and pass one of them, or the folder above them with --each \
                 and --out DIR"
                    .into()
            }
            Self::SeveralVolumes { .. } => {
                "pass one volume, or the folder that holds them with --each and --out DIR".into()
            }
            Self::NoImages => "check that the export is complete".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Words that start with two dashes.
    fn flags(text: &str) -> Vec<&str> {
        let words = text.split(|c: char| !(c.is_ascii_lowercase() || c == '-'));
        words.filter(|word| word.starts_with("--") && word.len() > 2).collect()
    }

    #[test]
    fn advice_names_only_flags_that_exist_here() {
        let args = include_str!("args.rs");
        let exists = |flag: &str| args.contains(&format!("pub {}: ", flag[2..].replace('-', "_")));
        let all_exist = |text: &str| flags(text).into_iter().all(exists);
        let rewritten = [
            Fault::Gaps { count: 1, largest_mm: "9.0".into() },
            Fault::SeveralSeries { count: 2 },
            Fault::SeveralPatients { count: 2 },
            Fault::StoredValues { lowest: 0, highest: 1 },
            Fault::Preview { why: "x".into() },
        ]
        .map(Refusal::from);
        let own_words =
            [Refusal::SeveralStudies { count: 2 }, Refusal::SeveralVolumes { count: 2 }, Refusal::NoImages];
        for refusal in rewritten.iter().chain(&own_words) {
            assert!(all_exist(&refusal.words()) && all_exist(&refusal.remedy()), "{refusal:?}");
            assert!(!refusal.remedy().contains("label table"), "{refusal:?}");
        }
        // What the reader of a case advises elsewhere is rewritten here, or names a flag of ours.
        let faults = concat!(env!("CARGO_MANIFEST_DIR"), "/../ct-read/src/fault.rs");
        let known = ["--strict", "--series", "--hu-slope", "--hu-intercept", "--preview", "--raw"];
        for flag in flags(&std::fs::read_to_string(faults).unwrap()) {
            assert!(known.contains(&flag) || exists(flag), "{flag} is advised, but does not exist here");
        }
    }
}
