//! What a network has seen: hashes of its training and validation cases (`seen.json`), and what
//! another cohort shares with them.
//!
//! `case_id` is no evidence: two cohorts may call different patients alike, or one patient
//! differently. Patients and series are compared by their keyed hashes, which says something
//! under one key only; pictures by the hash of their pixels, and by their difference
//! hash ([`difference_hash`](crate::difference_hash)), under any key.
//!
//! Whoever holds this file and a picture, rendered by the same settings, can test whether the
//! network was trained on it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::DataError;
use crate::case::{CaseId, Split};
use crate::difference_hash::{DifferenceHash, near_pairs};
use crate::files;
use crate::manifest::{CaseRow, KeyInfo};
use crate::shard::ShardSet;
use crate::slice::CtSlice;

/// Version of `seen.json`.
pub const FORMAT_VERSION: u32 = 1;

/// Hex digits of a pixel hash that are kept: 128 bits.
const PIXEL_DIGITS: usize = 32;

/// `seen.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seen {
    /// [`FORMAT_VERSION`] of the writer.
    pub format_version: u32,
    /// The key of the hashes of patients and series.
    pub key: KeyInfo,
    /// [`ShardSet::sha256`] of the shards.
    pub shards_sha256: String,
    /// Training and validation cases, in stored order.
    pub cases: Vec<SeenCase>,
}

/// One case.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeenCase {
    /// Pseudonym: for messages, no evidence.
    pub case_id: CaseId,
    /// What it was used for.
    pub split: Split,
    /// Keyed hash of the patient; absent where the source names none.
    pub patient_hash: Option<String>,
    /// Keyed hash of SeriesInstanceUID; absent where there is none.
    pub series_uid_hash: Option<String>,
    /// The slices, in stored order.
    pub slices: Vec<SeenSlice>,
}

impl SeenCase {
    /// Everything that it can be recognised by.
    fn values(&self) -> impl Iterator<Item = (Identity, &str)> {
        let of_case = [(Identity::Patient, &self.patient_hash), (Identity::Series, &self.series_uid_hash)];
        let of_case = of_case.into_iter().filter_map(|(what, value)| Some((what, value.as_deref()?)));
        let pixels = self.slices.iter().filter_map(|slice| slice.pixels.as_deref());
        of_case.chain(pixels.map(|value| (Identity::Pixels, value)))
    }
}

/// One slice.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeenSlice {
    /// First 32 hex digits of the SHA-256 of its pixels; absent where all grey levels are one.
    pub pixels: Option<String>,
    /// Absent where the picture shows next to nothing.
    pub difference_hash: Option<DifferenceHash>,
}

impl SeenSlice {
    fn of(slice: &CtSlice) -> Self {
        let digits = slice.provenance.pixel_sha256.get(..PIXEL_DIGITS);
        Self {
            pixels: digits.filter(|_| !slice.is_flat()).map(str::to_owned),
            difference_hash: DifferenceHash::of(&slice.pixels, slice.pixels.len().isqrt()),
        }
    }
}

impl Seen {
    /// Collects the hashes of the cases that were `used`, each for its purpose.
    ///
    /// # Errors
    /// When the shards cannot be read.
    pub fn of(shards: &ShardSet, used: &BTreeMap<CaseId, Split>) -> Result<Self, DataError> {
        let split_of = |row: &CaseRow| used.get(&row.case_id).copied();
        let cases = collect(shards, &split_of)?;
        Ok(Self {
            format_version: FORMAT_VERSION,
            key: shards.manifest().key.clone(),
            shards_sha256: shards.sha256()?,
            cases,
        })
    }

    /// Reads `seen.json`.
    ///
    /// # Errors
    /// When it is missing, or of another form or version.
    pub fn read(path: &Path) -> Result<Self, DataError> {
        Self::parse(path, &files::read(path)?)
    }

    /// Reads the content of a `seen.json`; `path` is for the message.
    ///
    /// # Errors
    /// When it is of another form or version.
    pub fn parse(path: &Path, json: &[u8]) -> Result<Self, DataError> {
        let seen: Self = serde_json::from_slice(json).map_err(|err| DataError::malformed(path, err))?;
        if seen.format_version != FORMAT_VERSION {
            let why =
                format!("format version {} where this program reads {FORMAT_VERSION}", seen.format_version);
            return Err(DataError::malformed(path, why));
        }
        Ok(seen)
    }

    /// Writes `seen.json`, without line breaks.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn write(&self, path: &Path) -> Result<(), DataError> {
        let json = serde_json::to_vec(self).map_err(|err| DataError::malformed(path, err))?;
        files::write_atomic(path, &json)
    }

    /// What another cohort shares with the cases that were seen.
    ///
    /// # Errors
    /// When the shards cannot be read.
    pub fn overlap(&self, cohort: &ShardSet) -> Result<Overlap, DataError> {
        let cases = collect(cohort, &|row| Some(row.split))?;
        let same_key = self.key.id == cohort.manifest().key.id;
        // Keyed hashes of different keys never agree.
        let shared = self.shared(&cases);
        Ok(Overlap {
            patients: PatientCheck::of(same_key, &self.cases, &cases),
            n_seen_cases: self.cases.len(),
            n_cases: cases.len(),
            near_duplicates: self.near_duplicates(&cases),
            shared,
        })
    }

    /// Cases of the cohort of which the network has seen something.
    fn shared(&self, cases: &[SeenCase]) -> Vec<SharedCase> {
        let no_evidence = placeholders(&self.cases, cases);
        let mut seen: BTreeMap<(Identity, &str), &SeenCase> = BTreeMap::new();
        for case in &self.cases {
            for value in case.values() {
                seen.entry(value).or_insert(case);
            }
        }
        let of_case = |case: &SeenCase| {
            let known = case.values().filter(|value| !no_evidence.contains(value));
            let found: Vec<_> = known.filter_map(|value| Some((value.0, *seen.get(&value)?))).collect();
            let first = found.first()?.1;
            let what: BTreeSet<Identity> = found.iter().map(|(what, _)| *what).collect();
            Some(SharedCase {
                case_id: case.case_id.clone(),
                what: what.into_iter().collect(),
                seen_as: first.case_id.clone(),
                seen_in: first.split,
            })
        };
        cases.iter().filter_map(of_case).collect()
    }

    /// Pairs of slices that look alike without being equal, pair of cases by pair of cases.
    fn near_duplicates(&self, cases: &[SeenCase]) -> Vec<NearDuplicate> {
        let slices: Vec<(&SeenCase, &SeenSlice)> = self
            .cases
            .iter()
            .chain(cases)
            .flat_map(|case| case.slices.iter().map(move |slice| (case, slice)))
            .collect();
        let n_seen: usize = self.cases.iter().map(|case| case.slices.len()).sum();
        let hashes: Vec<(usize, DifferenceHash)> = slices
            .iter()
            .enumerate()
            .filter_map(|(i, (_, slice))| Some((i, slice.difference_hash?)))
            .collect();
        let mut found: BTreeMap<(&CaseId, &CaseId), NearDuplicate> = BTreeMap::new();
        near_pairs(&hashes, &|a, b| (a < n_seen) != (b < n_seen), &mut |a, b, distance| {
            // The smaller number is that of the slice that was seen.
            let ((seen, seen_slice), (case, slice)) = (slices[a], slices[b]);
            if seen_slice.pixels.is_some() && seen_slice.pixels == slice.pixels {
                return;
            }
            let entry = found.entry((&case.case_id, &seen.case_id)).or_insert_with(|| NearDuplicate {
                case_id: case.case_id.clone(),
                seen_as: seen.case_id.clone(),
                seen_in: seen.split,
                n_pairs: 0,
                least_distance: distance,
            });
            entry.n_pairs += 1;
            entry.least_distance = entry.least_distance.min(distance);
        });
        found.into_values().collect()
    }
}

/// Hashes of the cases that `split_of` names, in stored order.
fn collect(
    shards: &ShardSet,
    split_of: &dyn Fn(&CaseRow) -> Option<Split>,
) -> Result<Vec<SeenCase>, DataError> {
    let mut cases = Vec::new();
    for row in shards.cases()? {
        let Some(split) = split_of(&row) else { continue };
        cases.push(SeenCase {
            case_id: row.case_id,
            split,
            patient_hash: row.patient_hash,
            series_uid_hash: row.series_uid_hash,
            slices: Vec::new(),
        });
    }
    let place: BTreeMap<CaseId, usize> =
        cases.iter().enumerate().map(|(i, case)| (case.case_id.clone(), i)).collect();
    for slice in Split::ALL.into_iter().flat_map(|split| shards.slices(split)) {
        let slice = slice?;
        if let Some(&i) = place.get(&slice.case_id) {
            cases[i].slices.push(SeenSlice::of(&slice));
        }
    }
    Ok(cases)
}

/// Values that say nothing: an anonymiser left one series UID in several cases of a cohort.
fn placeholders<'a>(seen: &'a [SeenCase], cases: &'a [SeenCase]) -> BTreeSet<(Identity, &'a str)> {
    let repeated = |cases: &'a [SeenCase]| {
        let mut once = BTreeSet::new();
        let uids = cases.iter().flat_map(SeenCase::values).filter(|(what, _)| *what == Identity::Series);
        uids.filter(|value| !once.insert(*value)).collect::<Vec<_>>()
    };
    repeated(seen).into_iter().chain(repeated(cases)).collect()
}

/// By what a case is recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Identity {
    /// The patient.
    Patient,
    /// The series.
    Series,
    /// The pixels of a slice.
    Pixels,
}

impl Identity {
    /// For messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Patient => "patient",
            Self::Series => "series",
            Self::Pixels => "pixels",
        }
    }
}

/// What a cohort shares with what a network has seen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Overlap {
    /// Whether patients could be compared.
    pub patients: PatientCheck,
    /// Training and validation cases of the network.
    pub n_seen_cases: usize,
    /// Cases of the cohort.
    pub n_cases: usize,
    /// Cases that the network has seen.
    pub shared: Vec<SharedCase>,
    /// Pairs of cases with slices that look alike.
    pub near_duplicates: Vec<NearDuplicate>,
}

/// Whether the patients of two cohorts could be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PatientCheck {
    /// All of them.
    Compared,
    /// The hashes were made with different keys.
    OtherKey,
    /// Not all cases name their patient.
    NotAllKnown,
    /// The model does not say what it has seen.
    NothingRecorded,
}

impl PatientCheck {
    fn of(same_key: bool, seen: &[SeenCase], cases: &[SeenCase]) -> Self {
        let known = |cases: &[SeenCase]| cases.iter().all(|case| case.patient_hash.is_some());
        match () {
            () if !same_key => Self::OtherKey,
            () if known(seen) && known(cases) => Self::Compared,
            () => Self::NotAllKnown,
        }
    }

    /// What a reader must know; nothing where all were compared.
    pub fn caution(self) -> Option<&'static str> {
        match self {
            Self::Compared => None,
            Self::OtherKey => Some(
                "patient overlap with the training data cannot be checked: the two cohorts were made with \
                 different keys",
            ),
            Self::NotAllKnown => Some(
                "patient overlap with the training data cannot be checked wholly: some cases do not name their \
                 patient",
            ),
            Self::NothingRecorded => Some(
                "overlap with the training data cannot be checked: the model does not say what it has seen",
            ),
        }
    }
}

/// A case that the network has seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SharedCase {
    /// The case of the cohort.
    pub case_id: CaseId,
    /// By what it was recognised.
    pub what: Vec<Identity>,
    /// The case of the network's own data.
    pub seen_as: CaseId,
    /// What that was used for.
    pub seen_in: Split,
}

/// Two cases with slices that look alike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NearDuplicate {
    /// The case of the cohort.
    pub case_id: CaseId,
    /// The case of the network's own data.
    pub seen_as: CaseId,
    /// What that was used for.
    pub seen_in: Split,
    /// Pairs of slices that look alike.
    pub n_pairs: usize,
    /// Fewest bits, of 256, in which a pair differs.
    pub least_distance: u32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::KeyKind;

    fn difference_hash(word: u64) -> Option<DifferenceHash> {
        serde_json::from_value(serde_json::json!([word, 0xffff, 0xff00, 0x0f0f])).unwrap()
    }

    fn case(name: &str, patient: Option<&str>, series: Option<&str>, slices: &[(&str, u64)]) -> SeenCase {
        let slice = |&(pixels, word): &(&str, u64)| SeenSlice {
            pixels: Some(pixels.into()),
            difference_hash: difference_hash(word),
        };
        SeenCase {
            case_id: CaseId::new(name).unwrap(),
            split: Split::Train,
            patient_hash: patient.map(str::to_owned),
            series_uid_hash: series.map(str::to_owned),
            slices: slices.iter().map(slice).collect(),
        }
    }

    fn seen(cases: Vec<SeenCase>) -> Seen {
        let key = KeyInfo { kind: KeyKind::File, id: "00000000".into() };
        Seen { format_version: FORMAT_VERSION, key, shards_sha256: String::new(), cases }
    }

    #[test]
    fn a_case_is_recognised_by_what_it_is_not_by_its_name() {
        let seen = seen(vec![
            case("a", Some("p1"), Some("s1"), &[("x1", 0)]),
            case("b", Some("p2"), Some("s2"), &[("x2", u64::MAX)]),
        ]);
        let cohort = [
            case("a", Some("p9"), Some("s9"), &[("x9", 0xffff_ffff)]),
            case("c", Some("p2"), Some("s8"), &[("x8", 0xffff_ffff)]),
            case("d", Some("p7"), Some("s7"), &[("x1", 0)]),
        ];
        let shared = seen.shared(&cohort);
        let found: Vec<_> =
            shared.iter().map(|s| (s.case_id.as_str(), &s.what[..], s.seen_as.as_str())).collect();
        assert_eq!(found, [("c", &[Identity::Patient][..], "b"), ("d", &[Identity::Pixels][..], "a")]);
        // Equal pictures are no look-alikes.
        assert_eq!(seen.near_duplicates(&cohort), []);
    }

    #[test]
    fn one_series_in_several_cases_is_no_evidence() {
        let seen = seen(vec![case("a", Some("p1"), Some("s"), &[]), case("b", Some("p2"), Some("s"), &[])]);
        assert_eq!(seen.shared(&[case("c", Some("p3"), Some("s"), &[])]), []);
        let seen = self::seen(vec![case("a", Some("p1"), Some("s"), &[])]);
        assert_eq!(seen.shared(&[case("c", Some("p3"), Some("s"), &[])]).len(), 1);
    }

    #[test]
    fn slices_that_look_alike_are_counted_by_pair_of_cases() {
        let seen = seen(vec![case("a", None, None, &[("x1", 0b111), ("x2", 0b1)])]);
        let cohort = [case("c", None, None, &[("x3", 0b110)]), case("d", None, None, &[("x4", u64::MAX)])];
        let alike = seen.near_duplicates(&cohort);
        assert_eq!(alike.len(), 1);
        assert_eq!((alike[0].case_id.as_str(), alike[0].n_pairs, alike[0].least_distance), ("c", 2, 1));
    }

    #[test]
    fn what_could_not_be_compared_is_said() {
        let known = [case("a", Some("p"), None, &[])];
        let unknown = [case("b", None, None, &[])];
        assert_eq!(PatientCheck::of(true, &known, &known), PatientCheck::Compared);
        assert_eq!(PatientCheck::of(true, &known, &unknown), PatientCheck::NotAllKnown);
        assert_eq!(PatientCheck::of(false, &known, &known), PatientCheck::OtherKey);
    }
}
