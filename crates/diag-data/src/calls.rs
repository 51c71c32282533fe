//! The class that every run of a sweep predicts for every case: `calls.csv`, one row a run and
//! split, and `cases.csv`, what the places of its text stand for. Together they are enough for
//! balanced accuracies and for resampling patients, and name nobody.

use serde::{Deserialize, Serialize};

use crate::case::Label;

/// One case that runs were tested on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CalledCase {
    /// Part of the data.
    pub split: String,
    /// Running number in its split, from 0, in order of the case names.
    pub case: usize,
    /// Number of its true class.
    pub label: u8,
    /// Running number of its patient in the split, from 0; absent where patients are not known.
    pub patient: Option<usize>,
}

/// What one run says of the cases of one split.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CallRow {
    /// Folder of the run.
    pub run: String,
    /// Name of the variant of the recipe.
    pub variant: String,
    /// Seed of the run.
    pub seed: i64,
    /// Ratio of the classes' training cases; absent where all were used.
    pub class_ratio: Option<String>,
    /// Share of wrong training labels.
    pub label_noise: f64,
    /// SHA-256 of the run's recipe.
    pub recipe_sha256: String,
    /// SHA-256 of its shards.
    pub shards_sha256: String,
    /// Part of the data.
    pub split: String,
    /// Predicted class of every case in order, a letter each: `a` is class 0.
    pub calls: String,
}

/// Writes predicted classes as text.
pub fn encode(class_n: impl IntoIterator<Item = Label>) -> String {
    class_n.into_iter().map(|class| char::from(b'a'.saturating_add(class.0))).collect()
}

/// Predicted classes of a text; `None` for another character than `a` to `z`.
pub fn decode(calls: &str) -> Option<Vec<Label>> {
    calls.bytes().map(|byte| byte.is_ascii_lowercase().then(|| Label(byte - b'a'))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::{read_csv, write_csv};

    #[test]
    fn rows_and_calls_survive_the_text_file() {
        let classes = [Label(0), Label(2), Label(25)];
        let row = CallRow {
            run: "saal_ratio-1-5-1_seed-1".into(),
            variant: "saal".into(),
            seed: 1,
            class_ratio: Some("1:5:1".into()),
            label_noise: 0.2,
            recipe_sha256: "r".into(),
            shards_sha256: "s".into(),
            split: "test".into(),
            calls: encode(classes),
        };
        let case = |patient| CalledCase { split: "test".into(), case: 1, label: 2, patient };
        let folder = tempfile::tempdir().unwrap();
        let (calls, cases) = (folder.path().join("calls.csv"), folder.path().join("cases.csv"));
        write_csv(&calls, std::slice::from_ref(&row)).unwrap();
        write_csv(&cases, &[case(Some(7)), case(None)]).unwrap();
        assert_eq!(read_csv::<CallRow>(&calls).unwrap(), [row]);
        assert_eq!(read_csv::<CalledCase>(&cases).unwrap(), [case(Some(7)), case(None)]);
        assert!(read_csv::<CallRow>(&cases).is_err());
        assert_eq!(decode("acz").unwrap(), classes);
        assert_eq!(decode("a{"), None);
    }
}
