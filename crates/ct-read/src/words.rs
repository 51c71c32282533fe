//! The allow-list of texts: which names of makers, models and kernels leave the reader as they
//! stand. Headers are typed by people, and any text of one may hold a name; so nothing leaves
//! because it looks harmless, only because it is on the list ([`ScannerWords`]). The list is
//! `data/scanner_words.toml`, with its sources; an operator can add words.

use std::collections::BTreeMap;
use std::path::Path;

use diag_data::{DataError, files};
use regex::RegexSet;
use serde::Deserialize;

use crate::error::ReadError;

/// Longest word of an operator's list, in bytes; the longest value of a header is 64 characters.
const MAX_WORD_LEN: usize = 64;

/// Which text of the header it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScannerText {
    /// Manufacturer (0008,0070).
    Manufacturer,
    /// ManufacturerModelName (0008,1090).
    Model,
    /// ConvolutionKernel (0018,1210).
    Kernel,
}

impl ScannerText {
    /// Its name, as tokens begin with it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Manufacturer => "manufacturer",
            Self::Model => "model",
            Self::Kernel => "kernel",
        }
    }
}

/// The words that may leave as they stand.
#[derive(Clone, Debug)]
pub struct ScannerWords {
    /// Words by their folded form, with their spelling.
    manufacturers: BTreeMap<String, String>,
    models: BTreeMap<String, String>,
    kernels: BTreeMap<String, String>,
    kernel_patterns: RegexSet,
    /// The operator's own, for each of the three.
    added: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    maker: Vec<Maker>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Maker {
    names: Vec<String>,
    models: Vec<String>,
    kernels: Vec<String>,
    kernel_patterns: Vec<String>,
}

impl ScannerWords {
    /// The list of this version.
    ///
    /// # Errors
    /// Never in practice: the list is part of the program.
    pub fn known() -> Result<Self, ReadError> {
        let wrong = |why: String| DataError::Invalid { what: "list of scanner words", why };
        let list: List = toml::from_str(include_str!("../data/scanner_words.toml"))
            .map_err(|err| wrong(err.message().into()))?;
        let patterns = list.maker.iter().flat_map(|maker| &maker.kernel_patterns);
        let kernel_patterns = regex::RegexSetBuilder::new(patterns.map(|pattern| format!("^(?:{pattern})$")))
            .case_insensitive(true)
            .unicode(false)
            .build()
            .map_err(|err| wrong(err.to_string()))?;
        let words = |of: fn(&Maker) -> &Vec<String>| {
            list.maker.iter().flat_map(of).map(|word| (fold(word), word.clone())).collect()
        };
        Ok(Self {
            manufacturers: words(|maker| &maker.names),
            models: words(|maker| &maker.models),
            kernels: words(|maker| &maker.kernels),
            kernel_patterns,
            added: BTreeMap::new(),
        })
    }

    /// Adds the words of a file, one a line, as names of makers, models and kernels.
    ///
    /// # Errors
    /// When it cannot be read, is no UTF-8 text, or has a line of more than 64 bytes.
    pub fn with_file(mut self, path: &Path) -> Result<Self, ReadError> {
        let wrong = |why: &str| ReadError::Words { path: path.into(), why: why.into() };
        let text = String::from_utf8(files::read(path)?)
            .map_err(|_| wrong("the list of allowed values is not UTF-8 text"))?;
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            if line.len() > MAX_WORD_LEN {
                return Err(wrong("the list of allowed values has a line of more than 64 bytes"));
            }
            self.added.insert(fold(line), line.into());
        }
        Ok(self)
    }

    /// The value as it may leave; `None` where it is not on the list. Each of several values
    /// of a kernel must be; the strength of an iterative reconstruction (1 to 5) may follow.
    pub fn find(&self, what: ScannerText, value: &str) -> Option<String> {
        if what != ScannerText::Kernel {
            return self.word(what, value);
        }
        let mut found = Vec::new();
        for (i, part) in value.split('\\').enumerate() {
            let part = part.trim();
            let is_strength = i > 0 && matches!(part, "1" | "2" | "3" | "4" | "5");
            found.push(if is_strength { part.into() } else { self.word(what, part)? });
        }
        Some(found.join("\\"))
    }

    fn word(&self, what: ScannerText, value: &str) -> Option<String> {
        let words = match what {
            ScannerText::Manufacturer => &self.manufacturers,
            ScannerText::Model => &self.models,
            ScannerText::Kernel => &self.kernels,
        };
        let folded = fold(value);
        let word = words.get(&folded).or_else(|| self.added.get(&folded));
        let by_pattern = || what == ScannerText::Kernel && self.kernel_patterns.is_match(value);
        word.cloned().or_else(|| by_pattern().then(|| value.to_string()))
    }
}

/// A value without regard to case and to repeated blanks.
pub(crate) fn fold(value: &str) -> String {
    value.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase()
}

/// A maker, model or kernel as the header has it. It is compared here, and shown by
/// [`Pseudonyms::scanner_text`](crate::pseudonyms::Pseudonyms::scanner_text) only.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct HeaderText {
    value: String,
    /// Whether it holds a part of a name or number of somebody in the same header.
    names_somebody: bool,
}

impl std::fmt::Debug for HeaderText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HeaderText { hidden }")
    }
}

impl HeaderText {
    /// A value, held against what names people in the same header.
    pub fn new(value: String, people: &PartsOfNames) -> Self {
        let names_somebody = people.are_in(&value);
        Self { value, names_somebody }
    }

    /// The value as it may leave, `None` where a token must stand for it; `case` is the name
    /// of its case in the input.
    pub fn listed(&self, what: ScannerText, words: &ScannerWords, case: Option<&str>) -> Option<String> {
        let is_case = || case.is_some_and(|case| PartsOfNames::of([case]).are_in(&self.value));
        words.find(what, &self.value).filter(|_| !self.names_somebody && !is_case())
    }

    /// What a token is made of: equal values have equal ones.
    pub(crate) fn folded(&self) -> String {
        fold(&self.value)
    }
}

/// Names and numbers of people, whole and in parts, folded.
#[derive(Clone, Debug, Default)]
pub struct PartsOfNames(Vec<String>);

impl PartsOfNames {
    /// Of texts that name somebody.
    pub fn of<'a>(texts: impl IntoIterator<Item = &'a str>) -> Self {
        let mut parts = Vec::new();
        for text in texts {
            let folded = fold(text);
            let words = folded.split(|c: char| !c.is_alphanumeric()).filter(|part| !part.is_empty());
            parts.extend(words.map(String::from));
            parts.push(folded);
        }
        parts.retain(|part| !part.is_empty());
        Self(parts)
    }

    /// Whether a value is one of them, or has one of three letters or more as a word: shorter
    /// ones occur in product names and identify no person.
    fn are_in(&self, value: &str) -> bool {
        let folded = fold(value);
        let mut words = folded.split(|c: char| !c.is_alphanumeric()).filter(|word| word.chars().count() >= 3);
        self.0.contains(&folded) || words.any(|word| self.0.iter().any(|part| part == word))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(what: ScannerText, value: &str, want: Option<&str>) {
        let words = ScannerWords::known().unwrap();
        assert_eq!(words.find(what, value).as_deref(), want, "{value}");
    }

    #[test]
    fn a_word_of_the_list_leaves_in_its_spelling() {
        check(ScannerText::Manufacturer, "siemens", Some("SIEMENS"));
        check(ScannerText::Manufacturer, " GE  Medical Systems", Some("GE MEDICAL SYSTEMS"));
        check(ScannerText::Model, "SOMATOM  DEFINITION AS+", Some("SOMATOM Definition AS+"));
        check(ScannerText::Kernel, "lung", Some("LUNG"));
    }

    #[test]
    fn a_kernel_by_pattern_leaves_as_it_is() {
        for kernel in ["B31f", "B70f", "D40s", "B41s", "FC21", "FL05", "Br40d", "Bl57", "B_SHARP_C"] {
            check(ScannerText::Kernel, kernel, Some(kernel));
        }
        check(ScannerText::Kernel, "Br38f\\3", Some("Br38f\\3"));
        check(ScannerText::Kernel, "I70f \\ 5", Some("I70f\\5"));
    }

    #[test]
    fn everything_else_is_refused() {
        for value in
            ["", "Wu", "J12", "S12.1", "32", "19670312", "B31f Wu", "B31f\\Wu", "3", "B31f\\6", "王芳"]
        {
            check(ScannerText::Kernel, value, None);
        }
        check(ScannerText::Manufacturer, "SIEMENS Wu", None);
        check(ScannerText::Model, "SIEMENS", None);
        check(ScannerText::Manufacturer, "B31f", None);
    }

    #[test]
    fn values_of_real_and_of_synthetic_series_are_on_the_list() {
        let known = [
            (ScannerText::Manufacturer, ["SIEMENS", "GE MEDICAL SYSTEMS", "TOSHIBA", "FUJI"].as_slice()),
            (
                ScannerText::Model,
                &[
                    "SOMATOM Scope",
                    "Sensation 16",
                    "Sensation 64",
                    "SOMATOM Force",
                    "Revolution CT",
                    "LightSpeed VCT",
                    "Biograph40_mCT 4R",
                    "RHAPSODE",
                    "Xpress/GX",
                    "Optima",
                ],
            ),
            (
                ScannerText::Kernel,
                &["B25f", "B30f", "B31f", "B41s", "B70f", "D40s", "FC21", "STANDARD", "LUNG"],
            ),
        ];
        for (what, values) in known {
            values.iter().for_each(|value| check(what, value, Some(value)));
        }
    }

    #[test]
    fn a_listed_word_that_somebody_in_the_header_has_as_a_name_is_withheld() {
        let words = ScannerWords::known().unwrap();
        let listed = |value: &str, people: &[&str], case: Option<&str>| {
            let text = HeaderText::new(value.into(), &PartsOfNames::of(people.iter().copied()));
            text.listed(ScannerText::Kernel, &words, case).is_some()
        };
        assert!(listed("LUNG", &["Doe^Jane", "12345"], Some("case-7")));
        assert!(!listed("LUNG", &["Lung^Jane"], None));
        assert!(!listed("A", &["Doe^Jane^A"], None));
        assert!(!listed("BODY SHARP", &["Sharp^Ann"], None));
        assert!(listed("BODY SHARP", &["Sha^Bod"], None));
        assert!(!listed("B31f", &["Doe^Jane"], Some("b31f")));
        assert!(!listed("BONE", &[], Some("export/Bone")));
    }

    #[test]
    fn an_operator_adds_words() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("words.txt");
        std::fs::write(&path, "Acme Scan 7\n\n  Q9x \n").unwrap();
        let words = ScannerWords::known().unwrap().with_file(&path).unwrap();
        assert_eq!(words.find(ScannerText::Model, "ACME scan  7").as_deref(), Some("Acme Scan 7"));
        assert_eq!(words.find(ScannerText::Kernel, "q9x").as_deref(), Some("Q9x"));
        std::fs::write(&path, [b'x'; 65]).unwrap();
        assert!(matches!(ScannerWords::known().unwrap().with_file(&path), Err(ReadError::Words { .. })));
        std::fs::write(&path, [0xFF]).unwrap();
        assert!(matches!(ScannerWords::known().unwrap().with_file(&path), Err(ReadError::Words { .. })));
    }
}
