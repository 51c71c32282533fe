//! Synthetic chest CT as DICOM series, with known truth.
//!
//! - **In:** a cohort ([`CohortSpec`], a TOML file) and a seed.
//! - **Out:** a folder with one DICOM series a case, `labels.csv` and `truth.json` ([`Truth`]).
//!   The same cohort, seed and version give the same bytes with any number of threads.
//! - **Refuses to know:** how a series is read, selected or learned from. It shares no code with
//!   the reader that it tests; only the mark of synthetic files
//!   ([`diag_data::case::SYNTHETIC_MARK`]) is that of both.
//!
//! Every file says that it is synthetic: by that mark in ImageComments, which readers demand, and
//! for people in the patient's name and the descriptions. PatientIDs and UIDs follow from the
//! cohort's name and the seed: two cohorts are two populations.
//! The images imitate the look of CT; they are no model of disease and prove nothing about patients.

mod anatomy;
mod case;
mod chest_wall;
mod cohort;
mod dicom;
mod error;
mod fields;
mod geometry;
mod incidental;
mod lesion;
mod noise;
mod output;
mod render;
mod scanner;
mod scout;
mod seed;
mod truth;
mod vessels;

pub use cohort::{CasePlan, CohortSpec, GroupSpec, Label, Placement, Split};
pub use error::PhantomError;
pub use geometry::SLICE_MM;
pub use scanner::Vendor;
pub use truth::{CaseTruth, MASK_SIZE, SliceTruth, Truth};

use output::Output;
use rayon::prelude::*;
use serde::Serialize;
use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

/// How a cohort is written.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Replace a folder that ct-phantom made before.
    pub force: bool,
}

/// How far a run is; given to the progress callback after each case.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Cases written.
    pub cases_done: usize,
    /// Cases of the cohort.
    pub cases_total: usize,
    /// Axial slices written.
    pub slices_done: usize,
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// The output folder.
    pub out: PathBuf,
    /// Name of the cohort.
    pub cohort: String,
    /// Always true.
    pub synthetic: bool,
    /// Seed of the cohort.
    pub seed: u64,
    /// Number of cases.
    pub cases: usize,
    /// Number of axial slices.
    pub slices: usize,
    /// Cases, slices and wrong labels by true class, in the order of [`Label::ALL`].
    pub classes: Vec<ClassSummary>,
}

/// One class of a [`Summary`].
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClassSummary {
    /// True label.
    pub label: Label,
    /// Number of cases.
    pub cases: usize,
    /// Number of axial slices.
    pub slices: usize,
    /// Slices with any lesion.
    pub slices_with_lesion: usize,
    /// Cases whose given label is wrong.
    pub mislabelled: usize,
}

/// Makes a cohort in `out_dir`, in parallel on the current rayon pool.
///
/// Everything is written to a sibling folder `.NAME.partial` and renamed at the end.
/// `progress` is called after each case, and asked before each slice with the last
/// state; when it breaks, the run stops and leaves nothing.
///
/// # Errors
/// [`PhantomError::OutputNotEmpty`] if `out_dir` holds files (with `force`: other than
/// an earlier cohort's); [`PhantomError::File`] and [`PhantomError::Dicom`] where
/// writing fails; [`PhantomError::Interrupted`].
pub fn generate(
    spec: &CohortSpec,
    seed: u64,
    out_dir: &Path,
    options: Options,
    progress: &(dyn Fn(Progress) -> ControlFlow<()> + Sync),
) -> Result<Summary, PhantomError> {
    let output = Output::open(out_dir, options.force)?;
    let plans = spec.plan(seed);
    let grain = noise::Grain::new(seed);
    let (cases_done, slices_done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let stopped = AtomicBool::new(false);
    let ask = || {
        let state = Progress {
            cases_done: cases_done.load(Ordering::Relaxed),
            cases_total: plans.len(),
            slices_done: slices_done.load(Ordering::Relaxed),
        };
        if progress(state).is_break() {
            stopped.store(true, Ordering::Relaxed);
        }
        !stopped.load(Ordering::Relaxed)
    };
    let cases: Vec<CaseTruth> = plans
        .par_iter()
        .with_max_len(1)
        .map_init(render::Canvas::new, |canvas, plan| {
            let dir = output.dir().join(&plan.case_id);
            let truth = case::make(spec, plan, seed, &grain, &dir, canvas, &ask)?;
            cases_done.fetch_add(1, Ordering::Relaxed);
            slices_done.fetch_add(truth.slices.len(), Ordering::Relaxed);
            ask();
            Ok(truth)
        })
        .collect::<Result<_, PhantomError>>()?;

    let truth = Truth {
        synthetic: true,
        seed,
        generator: concat!("ct-phantom ", env!("CARGO_PKG_VERSION")).into(),
        cohort: spec.clone(),
        mask_size: MASK_SIZE,
        cases,
    };
    output.write_tables(&plans, &truth)?;
    output.commit()?;
    Ok(summarise(out_dir, &truth))
}

fn summarise(out_dir: &Path, truth: &Truth) -> Summary {
    let classes = Label::ALL.map(|label| {
        let cases: Vec<&CaseTruth> = truth.cases.iter().filter(|c| c.true_label == label).collect();
        let slices = cases.iter().flat_map(|case| &case.slices);
        ClassSummary {
            label,
            cases: cases.len(),
            slices: slices.clone().count(),
            slices_with_lesion: slices.filter(|slice| slice.lesion_ml > 0.0).count(),
            mislabelled: cases.iter().filter(|c| c.given_label != c.true_label).count(),
        }
    });
    Summary {
        out: out_dir.into(),
        cohort: truth.cohort.name.clone(),
        synthetic: true,
        seed: truth.seed,
        cases: truth.cases.len(),
        slices: classes.iter().map(|class| class.slices).sum(),
        classes: classes.into(),
    }
}
