//! Cases, their labels and the part of the data they belong to.

use serde::{Deserialize, Serialize};

use crate::DataError;

/// The mark of images that no scanner made. `ct-phantom` writes it as ImageComments (0020,4000) of
/// every file; a NIfTI volume bears it as its description. Only a file that has exactly this
/// text there is synthetic: no word in a comment is enough.
pub const SYNTHETIC_MARK: &str = "SYNTHETIC: made by ct-phantom, not a patient";

/// Name of a case: a pseudonym. Invariant: 1 to 64 characters of
/// `A-Z a-z 0-9 . _ -`, not starting with a dot, so that it is safe as a file name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CaseId(String);

impl CaseId {
    /// Checks the characters.
    ///
    /// # Errors
    /// When the text is empty, too long, starts with a dot or has other characters.
    pub fn new(text: impl Into<String>) -> Result<Self, DataError> {
        let text = text.into();
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if text.is_empty() || text.len() > 64 || text.starts_with('.') || !text.chars().all(plain) {
            return Err(DataError::invalid("case id", "needs 1 to 64 characters of A-Z a-z 0-9 . _ -"));
        }
        Ok(Self(text))
    }

    /// The text itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for CaseId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for CaseId {
    type Error = DataError;
    fn try_from(text: String) -> Result<Self, DataError> {
        Self::new(text)
    }
}

impl From<CaseId> for String {
    fn from(id: CaseId) -> Self {
        id.0
    }
}

/// Index of a class in its [`LabelSet`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Label(pub u8);

impl Label {
    /// As an index into per-class arrays.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// The class names in their fixed order. Invariant: 2 to 127 distinct,
/// non-empty names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub struct LabelSet(Vec<String>);

impl LabelSet {
    /// The three classes of the COVID19-Diag data card, in its order.
    pub fn paper() -> Self {
        Self(["covid-19", "normal", "bacterial-pneumonia"].map(String::from).to_vec())
    }

    /// Checks the names.
    ///
    /// # Errors
    /// When there are fewer than 2 or more than 127, or a name is empty or repeated.
    pub fn new(names: Vec<String>) -> Result<Self, DataError> {
        let distinct: std::collections::BTreeSet<_> = names.iter().collect();
        if !(2..=127).contains(&names.len())
            || distinct.len() != names.len()
            || names.iter().any(String::is_empty)
        {
            return Err(DataError::invalid(
                "label set",
                format!("needs 2 to 127 distinct names, got {names:?}"),
            ));
        }
        Ok(Self(names))
    }

    /// The label set of a table of labels: the data card's order if every name
    /// is one of its three, else alphabetical.
    ///
    /// # Errors
    /// When the table names fewer than 2 classes.
    pub fn of_table<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Self, DataError> {
        let seen: std::collections::BTreeSet<_> = names.into_iter().collect();
        let paper = Self::paper();
        if !seen.is_empty() && seen.iter().all(|name| paper.find(name).is_some()) {
            return Ok(paper);
        }
        Self::new(seen.into_iter().map(String::from).collect())
    }

    /// Number of classes.
    #[expect(clippy::len_without_is_empty, reason = "a label set is never empty")]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The names in order.
    pub fn names(&self) -> &[String] {
        &self.0
    }

    /// Name of one class; `None` for a label of another set.
    pub fn name(&self, label: Label) -> Option<&str> {
        self.0.get(label.index()).map(String::as_str)
    }

    /// The label of a name.
    pub fn find(&self, name: &str) -> Option<Label> {
        self.0.iter().position(|n| n == name).map(|i| Label(i as u8))
    }
}

impl TryFrom<Vec<String>> for LabelSet {
    type Error = DataError;
    fn try_from(names: Vec<String>) -> Result<Self, DataError> {
        Self::new(names)
    }
}

impl From<LabelSet> for Vec<String> {
    fn from(set: LabelSet) -> Self {
        set.0
    }
}

/// Part of the data that a case belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// Weights are fitted to it.
    Train,
    /// Choices (epoch, threshold) are made on it.
    Validation,
    /// Looked at once, at the end.
    Test,
}

impl Split {
    /// Every part, in the order of tables.
    pub const ALL: [Self; 3] = [Self::Train, Self::Validation, Self::Test];

    /// The name in files and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Validation => "validation",
            Self::Test => "test",
        }
    }
}

impl std::fmt::Display for Split {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Split {
    type Err = DataError;

    /// Reads `train`, `validation` (also `val`) or `test`.
    fn from_str(text: &str) -> Result<Self, DataError> {
        match text {
            "train" => Ok(Self::Train),
            "validation" | "val" => Ok(Self::Validation),
            "test" => Ok(Self::Test),
            _ => Err(DataError::invalid("split", format!("`{text}` is not train, validation or test"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_id_is_safe_as_a_file_name() {
        for good in ["case-0001", "A.b_c", "1"] {
            assert!(CaseId::new(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "../x", "a/b", "Müller", "a b", &"x".repeat(65)] {
            assert!(CaseId::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_order_of_classes_does_not_depend_on_the_table() {
        let set = LabelSet::of_table(["normal", "covid-19"]).unwrap();
        assert_eq!(set, LabelSet::paper());
        let set = LabelSet::of_table(["b", "a", "b"]).unwrap();
        assert_eq!(set.names(), ["a", "b"]);
        assert!(LabelSet::of_table(["a"]).is_err());
    }
}
