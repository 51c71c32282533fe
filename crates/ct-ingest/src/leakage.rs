//! The gate between the parts: the same patient, study, series or picture in
//! two parts of the split make every test figure too good, and so do pictures
//! that are nearly the same (see [`diag_data::difference_hash`]).

use std::collections::{BTreeMap, BTreeSet};

use diag_data::case::{CaseId, Split};
use diag_data::difference_hash::{self, DifferenceHash};
use diag_data::manifest::CaseRow;
use diag_data::slice::CtSlice;
use diag_data::split;
use serde::{Deserialize, Serialize};

use crate::fault::Fault;

/// Pairs of nearly equal slices that are named one by one for two cases; all are counted.
const MAX_NAMED_PAIRS: usize = 20;

/// Something that two parts of the split share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leak {
    /// "patient", "study", "series", "pixels" or "look".
    pub what: &'static str,
    /// The cases that share it, sorted.
    pub cases: Vec<CaseId>,
    /// How many patients, studies, series, images or pairs of images are shared.
    pub count: usize,
    /// For "look": the first pairs of slices.
    pub pairs: Vec<Pair>,
}

/// Two nearly equal slices in two parts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pair {
    /// Case and slice index of one.
    pub one: (CaseId, usize),
    /// Case and slice index of the other.
    pub other: (CaseId, usize),
    /// Bits in which their difference hashes differ.
    pub distance: u32,
}

impl Leak {
    /// As an entry of the quarantine.
    pub fn fault(&self) -> Fault {
        let n_cases = self.cases.len();
        if self.what != "look" {
            return Fault::Leak { what: self.what, n_cases };
        }
        let pairs = self.pairs.iter().map(|pair| format!("{}~{}", pair.one.1, pair.other.1));
        Fault::NearDuplicates { count: self.count, slices: pairs.collect::<Vec<_>>().join(" ") }
    }
}

/// What is remembered of a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Start of the hash of its pixels; absent where the picture has no contrast:
    /// empty images are equal everywhere.
    pixels: Option<[u64; 2]>,
    hash: Option<DifferenceHash>,
}

impl Mark {
    /// Of a slice with square pictures.
    pub fn of(slice: &CtSlice) -> Self {
        let part = |from: usize| {
            let digits = slice.provenance.pixel_sha256.get(from..from + 16)?;
            u64::from_str_radix(digits, 16).ok()
        };
        let pixels = part(0).zip(part(16)).filter(|_| !slice.is_flat());
        let side = slice.pixels.len().isqrt();
        Self { pixels: pixels.map(|(a, b)| [a, b]), hash: DifferenceHash::of(&slice.pixels, side) }
    }
}

/// Collects what identifies cases and slices while they pass by.
#[derive(Clone, Debug, Default)]
pub struct LeakCheck {
    identities: BTreeMap<&'static str, BTreeSet<(String, CaseId, Split)>>,
    cases: Vec<(CaseId, Split)>,
    /// Case, slice index and mark of every slice.
    slices: Vec<(u32, u32, Mark)>,
}

impl LeakCheck {
    /// Notes a case with the marks of its slices, in order.
    pub fn add_case(&mut self, case: &CaseRow, marks: &[Mark]) {
        for (what, value) in [
            ("patient", &case.patient_hash),
            ("study", &case.study_uid_hash),
            ("series", &case.series_uid_hash),
        ] {
            if let Some(value) = value {
                let seen = self.identities.entry(what).or_default();
                seen.insert((value.clone(), case.case_id.clone(), case.split));
            }
        }
        let number = self.cases.len() as u32;
        self.cases.push((case.case_id.clone(), case.split));
        self.slices.extend(marks.iter().enumerate().map(|(index, mark)| (number, index as u32, *mark)));
    }

    /// "study" or "series", where anonymisers left one UID in all cases, of several patients: it
    /// says nothing then.
    pub fn placeholders(&self) -> Vec<&'static str> {
        let is_one = |what: &str| {
            self.identities.get(what).is_some_and(|values| {
                let first = values.first().map(|value| &value.0);
                values.len() == self.cases.len() && values.iter().all(|value| Some(&value.0) == first)
            })
        };
        let is_placeholder = |what: &&str| self.cases.len() > 2 && !is_one("patient") && is_one(what);
        ["study", "series"].into_iter().filter(is_placeholder).collect()
    }

    /// All leaks, by kind and cases.
    pub fn into_leaks(self) -> Vec<Leak> {
        let mut found = Vec::new();
        let placeholders = self.placeholders();
        for (&what, values) in self.identities.iter().filter(|entry| !placeholders.contains(entry.0)) {
            let rows = values.iter().map(|(value, case, split)| (value.as_str(), case, *split));
            let mut by_cases: BTreeMap<Vec<CaseId>, usize> = BTreeMap::new();
            for cases in split::leaks(rows).into_values() {
                *by_cases.entry(cases).or_default() += 1;
            }
            let leak = |(cases, count)| Leak { what, cases, count, pairs: Vec::new() };
            found.extend(by_cases.into_iter().map(leak));
        }
        found.extend(self.same_pixels());
        found.extend(self.same_looks());
        found
    }

    fn same_pixels(&self) -> Vec<Leak> {
        let mut marked: Vec<([u64; 2], u32)> =
            self.slices.iter().filter_map(|(case, _, mark)| Some((mark.pixels?, *case))).collect();
        marked.sort_unstable();
        marked.dedup();
        let mut by_cases: BTreeMap<Vec<CaseId>, usize> = BTreeMap::new();
        for equal in marked.chunk_by(|a, b| a.0 == b.0) {
            let of = |(_, case): &([u64; 2], u32)| &self.cases[*case as usize];
            if equal.iter().any(|mark| of(mark).1 != of(&equal[0]).1) {
                let mut cases: Vec<CaseId> = equal.iter().map(|mark| of(mark).0.clone()).collect();
                cases.sort();
                *by_cases.entry(cases).or_default() += 1;
            }
        }
        let leak = |(cases, count)| Leak { what: "pixels", cases, count, pairs: Vec::new() };
        by_cases.into_iter().map(leak).collect()
    }

    /// Pairs that are nearly, but not wholly equal: those are told already.
    fn same_looks(&self) -> Vec<Leak> {
        let hashes: Vec<(usize, DifferenceHash)> =
            self.slices.iter().enumerate().filter_map(|(i, slice)| Some((i, slice.2.hash?))).collect();
        let split_of = |i: usize| self.cases[self.slices[i].0 as usize].1;
        let mut by_cases: BTreeMap<[u32; 2], (usize, Vec<Pair>)> = BTreeMap::new();
        difference_hash::near_pairs(&hashes, &|a, b| split_of(a) != split_of(b), &mut |a, b, distance| {
            let (one, other) = (&self.slices[a], &self.slices[b]);
            if one.2.pixels == other.2.pixels {
                return;
            }
            let leak = by_cases.entry([one.0, other.0]).or_default();
            leak.0 += 1;
            if leak.1.len() < MAX_NAMED_PAIRS {
                let named =
                    |slice: &(u32, u32, Mark)| (self.cases[slice.0 as usize].0.clone(), slice.1 as usize);
                leak.1.push(Pair { one: named(one), other: named(other), distance });
            }
        });
        let leak = |(cases, (count, pairs)): ([u32; 2], (usize, Vec<Pair>))| Leak {
            what: "look",
            cases: cases.iter().map(|case| self.cases[*case as usize].0.clone()).collect(),
            count,
            pairs,
        };
        by_cases.into_iter().map(leak).collect()
    }
}
