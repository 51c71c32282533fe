//! What speaks for the run being what it says: nothing shared between the parts,
//! and hashes that hold together from the DICOM files to the maps.

use std::collections::{BTreeMap, BTreeSet};

use diag_data::DataError;
use diag_data::case::{CaseId, Split};
use diag_data::files;
use diag_data::heatmaps::Explanations;
use diag_data::run::{RunDir, RunInfo};
use diag_data::shard::ShardSet;
use diag_data::split::leaks;
use serde::Serialize;

use crate::decision::Recorded;

/// What two parts of the data could share. Parts are those that the run used:
/// training, validation and test.
#[derive(Clone, Debug, Serialize)]
pub struct Leakage {
    /// "patient", "study", "series" or "pixels".
    pub what: &'static str,
    /// Cases (for pixels: slices) that state it.
    pub n_known: usize,
    /// Cases (for pixels: slices) in all.
    pub n_all: usize,
    /// Different ones among them.
    pub n_distinct: usize,
    /// How many occur in more than one part.
    pub n_shared: usize,
    /// Cases that share them, sorted.
    pub cases: Vec<String>,
}

/// One link of the chain of hashes.
#[derive(Clone, Debug, Serialize)]
pub struct Link {
    /// What was hashed.
    pub what: &'static str,
    /// SHA-256; absent when it is not recorded.
    pub sha256: Option<String>,
    /// What the report found.
    pub state: LinkState,
    /// How it is tied to the link before, in words.
    pub tie: &'static str,
}

/// What the report found when it looked at a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LinkState {
    /// Computed anew for this report, and equal to what was recorded.
    Agrees,
    /// Computed anew, and different from what was recorded.
    Differs,
    /// Recorded by an earlier stage; there was nothing to compute it from.
    RecordedOnly,
    /// Computed for this report; no earlier stage recorded it.
    Computed,
    /// Neither recorded nor there.
    Missing,
}

impl LinkState {
    /// For readers.
    pub fn words(self) -> &'static str {
        match self {
            Self::Agrees => "agrees",
            Self::Differs => "differs",
            Self::RecordedOnly => "recorded only",
            Self::Computed => "computed here",
            Self::Missing => "missing",
        }
    }
}

/// What reading every slice once tells.
pub(crate) struct Evidence {
    pub(crate) leakage: Vec<Leakage>,
    /// Hash over the hashes of the source files, in stored order.
    sources_sha256: Option<String>,
    /// Whether every file of the shard folder has its recorded hash.
    shards_whole: bool,
}

/// Reads hashes of all cases and slices; `split_of` says which part a run put a case in.
pub(crate) fn gather(set: &ShardSet, split_of: &BTreeMap<CaseId, Split>) -> Result<Evidence, DataError> {
    let mut found: BTreeMap<&'static str, Vec<(String, CaseId, Split)>> = BTreeMap::new();
    let part = |case_id: &CaseId, stored: Split| split_of.get(case_id).copied().unwrap_or(stored);
    let cases = set.cases()?;
    for case in &cases {
        let split = part(&case.case_id, case.split);
        let known = [
            ("patient", &case.patient_hash),
            ("study", &case.study_uid_hash),
            ("series", &case.series_uid_hash),
        ];
        for (what, hash) in known {
            if let Some(hash) = hash {
                found.entry(what).or_default().push((hash.clone(), case.case_id.clone(), split));
            }
        }
    }
    let (mut n_slices, mut sources) = (0, String::new());
    for slice in Split::ALL.into_iter().flat_map(|split| set.slices(split)) {
        let slice = slice?;
        n_slices += 1;
        sources.push_str(&slice.provenance.source_blake3);
        sources.push('\n');
        // Empty images are equal everywhere and leak nothing.
        let is_flat = slice.is_flat();
        let hash = slice.provenance.pixel_sha256;
        if !is_flat && !hash.is_empty() {
            let split = part(&slice.case_id, slice.split);
            found.entry("pixels").or_default().push((hash, slice.case_id, split));
        }
    }
    let leakage = ["patient", "study", "series", "pixels"].map(|what| {
        let rows = found.remove(what).unwrap_or_default();
        let shared = leaks(rows.iter().map(|(value, case, split)| (value.as_str(), case, *split)));
        let of_leaks: BTreeSet<String> = shared.values().flatten().map(CaseId::to_string).collect();
        Leakage {
            what,
            n_known: rows.len(),
            n_all: if what == "pixels" { n_slices } else { cases.len() },
            n_distinct: rows.iter().map(|(value, ..)| value).collect::<BTreeSet<_>>().len(),
            n_shared: shared.len(),
            cases: of_leaks.into_iter().collect(),
        }
    });
    let has_sources = sources.len() > n_slices;
    Ok(Evidence {
        leakage: leakage.into(),
        sources_sha256: has_sources.then(|| files::sha256_hex(sources.as_bytes())),
        shards_whole: set.verify_hashes().is_ok(),
    })
}

/// The chain from the source files to the maps.
pub(crate) fn chain(
    dir: &RunDir,
    info: &RunInfo,
    recorded: &Recorded,
    evidence: Option<&Evidence>,
    explanations: Option<&Explanations>,
    is_external: bool,
) -> Vec<Link> {
    let hash_of = |path: std::path::PathBuf| files::sha256_file(&path).ok();
    let weights = hash_of(dir.weights());
    let state = |recorded: Option<&String>, computed: Option<&String>| match (recorded, computed) {
        (Some(recorded), Some(computed)) if recorded == computed => LinkState::Agrees,
        (Some(_), Some(_)) => LinkState::Differs,
        (Some(_), None) => LinkState::RecordedOnly,
        (None, Some(_)) => LinkState::Computed,
        (None, None) => LinkState::Missing,
    };
    let link = |what, tie, recorded: Option<String>, computed: Option<String>| Link {
        what,
        tie,
        state: state(recorded.as_ref(), computed.as_ref()),
        sha256: computed.or(recorded),
    };
    let sources = evidence.and_then(|e| e.sources_sha256.clone());
    let shards_state = match evidence {
        Some(evidence) if evidence.shards_whole => LinkState::Agrees,
        Some(_) => LinkState::Differs,
        None => LinkState::RecordedOnly,
    };
    let mut chain = vec![
        link(
            "Source files",
            "SHA-256 over the hashes of the source files of all slices, which the shards keep",
            None,
            sources,
        ),
        Link {
            what: "Shards (SHA256SUMS)",
            sha256: Some(info.shards.sha256.clone()),
            state: shards_state,
            tie: match is_external {
                true => {
                    "recorded in external.json; every file of the folder was hashed again for this report"
                }
                false => "recorded in run.json; every file of the folder was hashed again for this report",
            },
        },
        link("Recipe", "recorded in run.json", Some(info.recipe_sha256.clone()), None),
        link("Plan (plan.toml)", "names the hashes of shards and recipe", None, hash_of(dir.plan())),
        link(
            "Model weights",
            "recorded in run.json when training ended",
            info.model_sha256.clone(),
            weights.clone(),
        ),
        link(
            "Weights behind metrics.json",
            "recorded by the evaluation",
            Some(recorded.model_sha256.clone()),
            weights.clone(),
        ),
        link(
            "Shards behind metrics.json",
            "recorded by the evaluation",
            Some(recorded.shards_sha256.clone()),
            Some(info.shards.sha256.clone()),
        ),
        link(
            "Decided rule (decision.json)",
            "recorded by the evaluation; names the weights",
            Some(recorded.decision_sha256.clone()),
            hash_of(dir.decision()),
        ),
        link(
            "Predictions",
            "recorded by the evaluation; what every number of this page is computed from",
            Some(recorded.predictions_sha256.clone()),
            hash_of(dir.predictions()),
        ),
    ];
    if let Some(how) = explanations {
        chain.push(link(
            "Weights behind the heat maps",
            "recorded in explanations.json",
            Some(how.model_sha256.clone()),
            weights,
        ));
        chain.push(link(
            "Heat maps",
            "recorded in explanations.json",
            Some(how.heatmaps_sha256.clone()),
            hash_of(dir.heatmaps()),
        ));
        if how.truth_sha256.is_some() {
            chain.push(link(
                "True lesions (truth.json)",
                "recorded in explanations.json",
                how.truth_sha256.clone(),
                None,
            ));
        }
    }
    chain
}
