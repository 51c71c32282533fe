//! `diag-train fit`.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use diag_data::place::WorkingCopy;
use diag_train::fit::{FitJob, fit_on};
use diag_train::progress::Event;
use diag_train::{Ranks, TrainError};

use super::args::FitArgs;
use super::bar::Bar;
use super::output::{Output, UPLOADED_LAST};
use super::render;

pub fn run(args: FitArgs, ranks: &Arc<Ranks>, stop: &AtomicBool) -> Result<Output, TrainError> {
    let FitArgs { shards, recipe, out, device, resume, checkpoint_seconds, threads, json } = args;
    let recipe_name = recipe.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let copy = WorkingCopy::of(&out)?;
    let job = FitJob {
        command: format!("diag-train fit --shards SHARDS --recipe {recipe_name} --out RUN"),
        shards,
        recipe,
        run: copy.path().into(),
        device,
        resume,
        checkpoint_seconds,
        threads: threads.map(usize::from),
    };
    let bar = Bar::new();
    let fitted = fit_on(ranks, &job, stop, &mut |event| {
        let epoch_ends = matches!(event, Event::EpochEnds { .. });
        bar.show(event);
        // A failed upload is tried again after the next epoch; the last one must succeed.
        if epoch_ends
            && ranks.is_first()
            && let Err(err) = copy.upload(&UPLOADED_LAST)
        {
            tracing::warn!("the run is not in {} yet: {err}", out.display());
        }
    });
    bar.finish();
    if ranks.is_first() && matches!(fitted, Ok(_) | Err(TrainError::Interrupted { .. })) {
        copy.upload(&UPLOADED_LAST)?;
    }
    let summary = fitted?;
    Ok(Output::complete(if json { render::fit_json(&summary) } else { render::fit_words(&summary, &out) }))
}
