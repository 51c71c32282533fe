//! The learning-rate range test (Smith, WACV 2017): the rate rises from step to step
//! while the loss is recorded.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::Device;
use diag_data::case::Split;
use diag_data::files;
use diag_data::shard::ShardSet;
use diag_model::Pass;
use serde::Serialize;

use crate::data::loader::{Division, LoaderOptions, for_each_batch};
use crate::data::sampling::order;
use crate::error::TrainError;
use crate::recipe::TrainSpec;
use crate::run::plan::TrainPlan;
use crate::step::learner::{GradientSum, Learner};
use crate::sync::ranks::Ranks;
use crate::sync::share::RankShare;
use crate::threads::{available_threads, thread_pool};

/// Lowest and highest rate; the steps between them are even in the logarithm.
const RATES: (f64, f64) = (1e-6, 1.0);
/// Share of the old value in the smoothed loss.
const SMOOTHING: f64 = 0.8;
/// The search ends where the smoothed loss is so many times its lowest value.
const DIVERGED: f64 = 4.0;

/// What to search for.
#[derive(Clone, Debug)]
pub struct FindRateJob {
    /// Folder of shards.
    pub shards: PathBuf,
    /// Recipe file; its learning rate and schedule are not used.
    pub recipe: PathBuf,
    /// Steps from the lowest to the highest rate, at least 10.
    pub n_steps: u32,
}

/// What the search found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FoundRate {
    /// A tenth of the rate at the lowest smoothed loss: a safe highest rate.
    pub suggested: f64,
    /// Every step.
    pub steps: Vec<RateStep>,
}

/// One step of the search.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct RateStep {
    /// Learning rate of the step.
    pub learning_rate: f64,
    /// Loss before the step.
    pub loss: f64,
    /// The same, smoothed.
    pub smoothed: f64,
}

/// Searches; nothing is written.
///
/// # Errors
/// A recipe or shards that cannot be read, fewer than 10 steps, a stop by request.
pub fn find_rate(job: &FindRateJob, stop: &AtomicBool) -> Result<FoundRate, TrainError> {
    if job.n_steps < 10 {
        let value = job.n_steps.to_string();
        return Err(TrainError::Setting { key: "steps", value, expected: "at least 10" });
    }
    let recipe = TrainSpec::read(&job.recipe)?;
    let shards = ShardSet::open(&job.shards)?;
    let (plan, mut dataset) = TrainPlan::resolve(&recipe, files::sha256_file(&job.recipe)?, &shards)?;
    dataset.load(&shards, RankShare::WHOLE)?;
    let recipe = &plan.recipe;
    recipe.set_arithmetic();
    let search = || -> Result<Vec<RateStep>, TrainError> {
        let (mut learner, _) = Learner::new(recipe, &dataset.labels, &plan.slices_per_class, &Device::Cpu)?;
        let mut options = LoaderOptions {
            seed: recipe.seed,
            batch_size: recipe.batch_size,
            augmentation: recipe.augmentation.clone(),
            mixing: recipe.mixing.clone(),
            ranks: &Ranks::alone(),
            division: Division::Rows,
            epoch: 0,
            n_skip: 0,
            device: &Device::Cpu,
        };
        let items = dataset.of_split(Split::Train);
        let (mut steps, mut ended): (Vec<RateStep>, bool) = (Vec::new(), false);
        while !ended {
            options.epoch += 1;
            let order = order(&dataset, &items, recipe.sampling, recipe.seed, options.epoch);
            for_each_batch(&dataset, &order, &options, |batch| {
                let progress = steps.len() as f64 / f64::from(job.n_steps - 1);
                let learning_rate = RATES.0 * (RATES.1 / RATES.0).powf(progress);
                let noise_seed = steps.len() as u64;
                let pass = Pass::Train { noise_seed, first_row: 0, n_frozen: recipe.n_frozen(1) };
                let (record, gradients) = learner.gradients(batch, pass)?;
                let loss = record.total;
                let smoothed = match steps.last() {
                    Some(before) => SMOOTHING * before.smoothed + (1.0 - SMOOTHING) * loss,
                    None => loss,
                };
                let lowest = steps.iter().map(|step| step.smoothed).fold(smoothed, f64::min);
                let diverged = !smoothed.is_finite() || smoothed > DIVERGED * lowest.max(1e-3);
                if !diverged {
                    steps.push(RateStep { learning_rate, loss, smoothed });
                }
                let mut sum = GradientSum::default();
                learner.accumulate(&mut sum, gradients, loss)?;
                let finite = learner.step(sum, learning_rate, steps.len() as u64)?.is_finite();
                let stopped = stop.load(Ordering::Relaxed);
                ended = diverged || !finite || stopped || steps.len() >= job.n_steps as usize;
                Ok(if ended { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
            })?;
        }
        Ok(steps)
    };
    let steps = thread_pool(recipe.threads.unwrap_or_else(available_threads))?.install(search)?;
    if stop.load(Ordering::Relaxed) {
        return Err(TrainError::Interrupted { place: "in the search".to_owned() });
    }
    let lowest = steps.iter().min_by(|a, b| a.smoothed.total_cmp(&b.smoothed));
    let suggested = lowest.map_or(RATES.0, |step| step.learning_rate / 10.0);
    Ok(FoundRate { suggested, steps })
}
