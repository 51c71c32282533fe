//! What a cohort holds: the TOML file, checked, and the list of cases drawn from it.

use crate::{PhantomError, scanner::Vendor, seed};
use rand::{Rng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt, path::Path};

/// Diagnosis of a case, by the names of the COVID19-Diag data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Label {
    /// COVID-19: multifocal, bilateral, peripheral and basal ground glass.
    #[serde(rename = "covid-19")]
    Covid19,
    /// No pneumonia.
    Normal,
    /// Bacterial pneumonia: segmental or lobar, mostly one-sided consolidation.
    BacterialPneumonia,
}

impl Label {
    /// All labels, in the order of the data set's table.
    pub const ALL: [Self; 3] = [Self::Covid19, Self::Normal, Self::BacterialPneumonia];

    /// The name as written in `labels.csv`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Covid19 => "covid-19",
            Self::Normal => "normal",
            Self::BacterialPneumonia => "bacterial-pneumonia",
        }
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Part of the data set that a case is fixed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Split {
    /// For fitting.
    Train,
    /// Held out.
    Test,
}

impl Split {
    /// The name as written in `labels.csv`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Test => "test",
        }
    }
}

/// Where the slices of a case lie inside its z coverage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Placement {
    /// Neighbouring slices 5 mm apart.
    Contiguous,
    /// Every k-th slice of 5 mm, with the largest whole k that fits the coverage.
    Thinned,
}

/// A number of cases of one class, optionally with a fixed split and slice total.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupSpec {
    /// True label of these cases.
    pub label: Label,
    /// Number of cases, at least 1.
    pub cases: u32,
    /// Part of the data set they are fixed to; absent: the reader splits.
    pub split: Option<Split>,
    /// Slices of all these cases together; absent: drawn case by case.
    pub slices_total: Option<u32>,
}

/// A cohort as its TOML file says it. [`CohortSpec::from_toml`] checks it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CohortSpec {
    /// Name, copied to `truth.json`.
    pub name: String,
    /// One sentence for the reader, copied to `truth.json`.
    pub description: String,
    /// Total number of cases, shared out by `ratio`. Excludes `groups`.
    pub cases: Option<u32>,
    /// Relative size of each class, each above 0.
    pub ratio: Option<BTreeMap<Label, f64>>,
    /// Cases class by class. Excludes `cases` and `ratio`.
    #[serde(default)]
    pub groups: Vec<GroupSpec>,
    /// Fewest and most slices a case, within 2 and 54.
    pub slices_per_case: [u32; 2],
    /// How the slices lie in z.
    pub placement: Placement,
    /// Range of z that slices may come from, as fractions of the lung height (0 base, 1 apex).
    pub z_coverage: [f32; 2],
    /// Range of severity of sick cases, within 0 (faint) and 1 (extensive).
    pub severity: [f32; 2],
    /// Range of the share of a sick case's slices that its disease spans, within 0 and 1.
    pub sick_slices: [f32; 2],
    /// Share of sick cases whose pattern leans towards the other pneumonia, 0 to 1.
    #[serde(default)]
    pub atypical: f32,
    /// Share of cases whose label in `labels.csv` is a wrong one, 0 to 1.
    #[serde(default)]
    pub label_noise: f32,
    /// Share of SIEMENS scanners; the rest is GE.
    pub siemens: f32,
    /// Probability that the label decides the scanner (COVID-19: SIEMENS, normal: GE). 0 is off.
    #[serde(default)]
    pub scanner_label_correlation: f32,
    /// Share of GE cases written as Implicit VR Little Endian.
    #[serde(default)]
    pub implicit_vr: f32,
    /// Share of cases with one localizer image in the folder of the series.
    #[serde(default)]
    pub localizer: f32,
}

/// One case to be made.
#[derive(Clone, Debug, PartialEq)]
pub struct CasePlan {
    /// Folder name and `case_id`: `case-0001` and so on.
    pub case_id: String,
    /// What is in the pixels.
    pub true_label: Label,
    /// What `labels.csv` says.
    pub given_label: Label,
    /// Fixed split, if any.
    pub split: Option<Split>,
    /// Number of axial slices.
    pub n_slices: u32,
    /// 0 for a normal case, else within the cohort's range.
    pub severity: f32,
    /// Whether the pattern leans towards the other pneumonia.
    pub atypical: bool,
    /// Vendor of the scanner.
    pub vendor: Vendor,
    /// Whether the files are written as Implicit VR Little Endian.
    pub implicit_vr: bool,
    /// Whether a localizer lies in the folder.
    pub localizer: bool,
}

const SMOKE: &str = include_str!("../../../data/cohorts/smoke.toml");
const MIDDLING: &str = include_str!("../../../data/cohorts/middling.toml");
const PAPER: &str = include_str!("../../../data/cohorts/paper.toml");

impl CohortSpec {
    /// An embedded cohort (`smoke`, `middling`, `paper`), or else the file of that path.
    ///
    /// # Errors
    /// [`PhantomError::File`] if there is no such file, and those of [`CohortSpec::from_toml`].
    pub fn load(name_or_path: &str) -> Result<Self, PhantomError> {
        match name_or_path {
            "smoke" => Self::from_toml("smoke", SMOKE),
            "middling" => Self::from_toml("middling", MIDDLING),
            "paper" => Self::from_toml("paper", PAPER),
            path => {
                let text = std::fs::read_to_string(path).map_err(|source| PhantomError::File {
                    action: "read",
                    path: Path::new(path).into(),
                    source,
                })?;
                Self::from_toml(path, &text)
            }
        }
    }

    /// Parses and checks a cohort file; `name` is only for error messages.
    ///
    /// # Errors
    /// [`PhantomError::CohortSyntax`] and [`PhantomError::CohortValue`].
    pub fn from_toml(name: &str, text: &str) -> Result<Self, PhantomError> {
        let spec: Self = toml::from_str(text).map_err(|err| {
            let before = err.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            let line = before.matches('\n').count() + 1;
            PhantomError::CohortSyntax { name: name.into(), line, reason: err.message().replace('\n', " ") }
        })?;
        spec.check()?;
        Ok(spec)
    }

    /// Number of axial slices of each class and split that every seed gives, where the file fixes them.
    pub fn n_cases(&self) -> u32 {
        self.resolved_groups().iter().map(|group| group.cases).sum()
    }

    /// Draws the cases. The same cohort and seed give the same list.
    pub fn plan(&self, cohort_seed: u64) -> Vec<CasePlan> {
        let mut rng = seed::stream(cohort_seed, &["plan"]);
        let mut drawn: Vec<(Label, Option<Split>, u32)> = Vec::new();
        for group in self.resolved_groups() {
            let slices = self.draw_slices(&group, &mut rng);
            drawn.extend(slices.into_iter().map(|n_slices| (group.label, group.split, n_slices)));
        }
        // Classes are mixed so that a folder's number says nothing about its label.
        drawn.shuffle(&mut rng);

        let mut cases: Vec<CasePlan> = drawn
            .into_iter()
            .enumerate()
            .map(|(idx, (label, split, n_slices))| self.draw_case(idx, label, split, n_slices, &mut rng))
            .collect();
        self.flip_labels(&mut cases, &mut rng);
        cases
    }

    fn draw_case(
        &self,
        idx: usize,
        label: Label,
        split: Option<Split>,
        n_slices: u32,
        rng: &mut ChaCha8Rng,
    ) -> CasePlan {
        let sick = label != Label::Normal;
        let severity = seed::between(rng, self.severity[0], self.severity[1]);
        let atypical = seed::chance(rng, self.atypical);
        let by_label = seed::chance(rng, self.scanner_label_correlation);
        let by_mix = if seed::chance(rng, self.siemens) { Vendor::Siemens } else { Vendor::Ge };
        let vendor = match (by_label, label) {
            (true, Label::Covid19) => Vendor::Siemens,
            (true, Label::Normal) => Vendor::Ge,
            (true, Label::BacterialPneumonia) | (false, _) => by_mix,
        };
        let implicit_vr = seed::chance(rng, self.implicit_vr) && vendor == Vendor::Ge;
        let localizer = seed::chance(rng, self.localizer);
        CasePlan {
            case_id: format!("case-{:04}", idx + 1),
            true_label: label,
            given_label: label,
            split,
            n_slices,
            severity: if sick { severity } else { 0.0 },
            atypical: atypical && sick,
            vendor,
            implicit_vr,
            localizer,
        }
    }

    /// Gives exactly `round(label_noise * cases)` cases one of the two other labels.
    fn flip_labels(&self, cases: &mut [CasePlan], rng: &mut ChaCha8Rng) {
        let n_flips = (f64::from(self.label_noise) * cases.len() as f64).round() as usize;
        let mut order: Vec<usize> = (0..cases.len()).collect();
        order.shuffle(rng);
        for &idx in order.iter().take(n_flips) {
            let others = Label::ALL.map(|label| (label, label != cases[idx].true_label));
            let wrong: Vec<Label> = others.into_iter().filter(|(_, other)| *other).map(|(l, _)| l).collect();
            cases[idx].given_label = wrong[rng.random_range(0..wrong.len())];
        }
    }

    /// Slices of each case of a group: in range, and summing to the total where one is given.
    fn draw_slices(&self, group: &GroupSpec, rng: &mut ChaCha8Rng) -> Vec<u32> {
        let [fewest, most] = self.slices_per_case;
        let mut slices: Vec<u32> = (0..group.cases).map(|_| rng.random_range(fewest..=most)).collect();
        let Some(total) = group.slices_total else { return slices };
        // Shift the draw towards the wanted mean first: single steps alone would
        // leave the distribution flat with a pile-up at one end.
        let mean = f64::from(total) / f64::from(group.cases);
        let (lo, hi) = (f64::from(fewest), f64::from(most));
        let exponent = if hi > lo { ((hi - mean) / (mean - lo).max(0.5)).clamp(0.05, 20.0) } else { 1.0 };
        for n_slices in &mut slices {
            let uniform: f64 = rng.random();
            *n_slices = (lo + (hi - lo) * uniform.powf(exponent)).round() as u32;
        }
        let mut sum: u32 = slices.iter().sum();
        while sum != total {
            let idx = rng.random_range(0..slices.len());
            if sum < total && slices[idx] < most {
                slices[idx] += 1;
                sum += 1;
            } else if sum > total && slices[idx] > fewest {
                slices[idx] -= 1;
                sum -= 1;
            }
        }
        slices
    }

    /// The groups, whichever way the file gives them; largest remainders for a ratio.
    fn resolved_groups(&self) -> Vec<GroupSpec> {
        let (Some(cases), Some(ratio)) = (self.cases, &self.ratio) else { return self.groups.clone() };
        let total: f64 = ratio.values().sum();
        let mut shares: Vec<(Label, u32, f64)> = ratio
            .iter()
            .map(|(&label, part)| {
                let exact = f64::from(cases) * part / total;
                (label, exact.floor() as u32, exact.fract())
            })
            .collect();
        let given: u32 = shares.iter().map(|share| share.1).sum();
        shares.sort_by(|a, b| b.2.total_cmp(&a.2).then(a.0.cmp(&b.0)));
        for share in shares.iter_mut().take((cases - given) as usize) {
            share.1 += 1;
        }
        shares.sort_by_key(|share| share.0);
        shares
            .into_iter()
            .filter(|share| share.1 > 0)
            .map(|(label, cases, _)| GroupSpec { label, cases, split: None, slices_total: None })
            .collect()
    }

    fn check(&self) -> Result<(), PhantomError> {
        let fail = |key: &str, got: String, want: &str| {
            Err(PhantomError::CohortValue {
                name: self.name.clone(),
                key: key.into(),
                got,
                want: want.into(),
            })
        };
        let [fewest, most] = self.slices_per_case;
        if fewest < 2 || most > 54 || fewest > most {
            return fail(
                "slices_per_case",
                format!("[{fewest}, {most}]"),
                "an increasing pair within 2 and 54",
            );
        }
        let pairs =
            [("z_coverage", self.z_coverage), ("severity", self.severity), ("sick_slices", self.sick_slices)];
        for (key, [lo, hi]) in pairs {
            if !(0.0 <= lo && lo <= hi && hi <= 1.0) {
                return fail(key, format!("[{lo}, {hi}]"), "an increasing pair within 0 and 1");
            }
        }
        if self.z_coverage[1] - self.z_coverage[0] < 0.2 {
            return fail("z_coverage", format!("{:?}", self.z_coverage), "a range at least 0.2 wide");
        }
        let shares = [
            ("atypical", self.atypical),
            ("label_noise", self.label_noise),
            ("siemens", self.siemens),
            ("scanner_label_correlation", self.scanner_label_correlation),
            ("implicit_vr", self.implicit_vr),
            ("localizer", self.localizer),
        ];
        for (key, share) in shares {
            if !(0.0..=1.0).contains(&share) {
                return fail(key, share.to_string(), "a number from 0 to 1");
            }
        }
        match (self.cases, &self.ratio, self.groups.is_empty()) {
            (Some(_), Some(_), true) | (None, None, false) => {}
            _ => {
                return fail("groups", "set beside cases and ratio, or all are missing".into(), {
                    "either [[groups]], or both cases and [ratio]"
                });
            }
        }
        if let Some(cases) = self.cases.filter(|&cases| cases == 0 || cases > 9999) {
            return fail("cases", cases.to_string(), "a number from 1 to 9999");
        }
        for (label, &part) in self.ratio.iter().flatten() {
            if !(part > 0.0 && part.is_finite()) {
                return fail(&format!("ratio.{label}"), part.to_string(), "a number above 0");
            }
        }
        for group in &self.groups {
            if group.cases == 0 || group.cases > 9999 {
                return fail("groups.cases", group.cases.to_string(), "a number from 1 to 9999");
            }
            if let Some(total) = group.slices_total {
                let (lo, hi) = (group.cases * fewest, group.cases * most);
                if total < lo || total > hi {
                    let want = format!("from {lo} to {hi} for {} cases", group.cases);
                    return fail("groups.slices_total", total.to_string(), &want);
                }
            }
        }
        Ok(())
    }
}
