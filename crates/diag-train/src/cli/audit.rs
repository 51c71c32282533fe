//! `diag-train audit`.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use diag_data::place::WorkingCopy;
use diag_train::audit::{self, AuditJob};
use diag_train::{DeviceChoice, TrainError};

use super::args::Audit;
use super::output::{Output, UPLOADED_LAST};
use super::{render, sweep};

pub fn run(audit: Audit, stop: &AtomicBool) -> Result<Output, TrainError> {
    let on_copy = |run: PathBuf, shards| {
        let copy = WorkingCopy::of(&run)?;
        let job = AuditJob { run: copy.path().into(), shards };
        Ok::<_, TrainError>((copy, job))
    };
    match audit {
        Audit::Noise { run, shards, json } => {
            let (_copy, job) = on_copy(run, shards)?;
            let found = audit::label_noise(&job, stop)?;
            Ok(Output::complete(if json { render::json(&found) } else { render::noise_table(&found) }))
        }
        Audit::Shortcut { run, shards, attribute, json } => {
            let (_copy, job) = on_copy(run, shards)?;
            let found = audit::shortcut(&job, attribute, stop)?;
            Ok(Output::complete(if json { render::json(&found) } else { render::shortcut_words(&found) }))
        }
        Audit::Trivial { run, shards, json } => {
            let (copy, job) = on_copy(run, shards)?;
            let found = audit::trivial(&job)?;
            copy.upload(&UPLOADED_LAST)?;
            Ok(Output::complete(if json { render::json(&found) } else { render::trivial_table(&found) }))
        }
        Audit::Leakage { shards, recipe, seeds, out, json } => {
            let spec = audit::leakage(&shards, &recipe, seeds);
            let chosen = sweep::Chosen { out, device: DeviceChoice::Auto, finished_only: false, have: None };
            sweep::run_spec(spec, chosen, json, stop)
        }
    }
}
