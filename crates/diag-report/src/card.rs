//! What only the authors can say: the supplied half of the reporting checklist.

use std::collections::BTreeMap;

use crate::ReportError;

/// Items of the checklist that no program can compute: key and question.
pub(crate) const ITEMS: [(&str, &str); 18] = [
    ("intended_use", "Intended use, users and place in the clinical pathway"),
    ("not_intended_use", "Uses that are not intended"),
    ("data_source", "Data sources: sites, dates, setting"),
    ("eligibility", "Inclusion and exclusion of patients, and how they were chosen"),
    ("reference_standard", "Reference standard of the labels, who set it, and agreement between readers"),
    ("deidentification", "How patient identity was removed"),
    ("missing_data", "How missing data were handled"),
    ("sample_size", "Why this number of cases"),
    ("threshold_rationale", "Operating point chosen in advance, and why"),
    ("external_validation", "Validation on data of another site"),
    ("reader_comparison", "Comparison with human readers"),
    ("explanations", "Explanations of single predictions, and their limits"),
    ("limitations", "Limitations, including possible biases"),
    ("ethics", "Ethics approval and consent"),
    ("funding", "Funding and competing interests"),
    ("licence", "Licence of model and code"),
    ("data_availability", "Where data can be had"),
    ("code_availability", "Where code and weights can be had"),
];

/// Text by checklist key.
///
/// ```
/// use diag_report::Card;
/// let card = Card::from_toml("licence = \"MIT\"")?;
/// assert_eq!(card.get("licence"), Some("MIT"));
/// assert!(Card::from_toml("license = \"MIT\"").is_err());
/// # Ok::<(), diag_report::ReportError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Card(BTreeMap<String, String>);

impl Card {
    /// Reads a TOML table of texts.
    ///
    /// # Errors
    /// When it is not TOML, a value is no text, or a key is not of the checklist.
    pub fn from_toml(text: &str) -> Result<Self, ReportError> {
        let table: BTreeMap<String, String> =
            toml::from_str(text).map_err(|err| ReportError::Card { why: err.message().to_string() })?;
        match table.keys().find(|key| ITEMS.iter().all(|(known, _)| known != key)) {
            Some(key) => Err(ReportError::Card { why: format!("unknown key `{key}`") }),
            None => Ok(Self(table)),
        }
    }

    /// The text of one key, unless it is absent or blank.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(|text| text.trim()).filter(|text| !text.is_empty())
    }
}
