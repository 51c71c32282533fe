//! One split of the shards, as a run divided them.

use std::collections::BTreeSet;

use diag_data::case::{CaseId, Split};
use diag_data::shard::ShardSet;

use crate::data::dataset::Dataset;
use crate::data::experiment;
use crate::error::TrainError;
use crate::run::plan::TrainPlan;
use crate::sync::share::RankShare;

/// Reads one split. With the plan of a run on these shards: as it was for training, before
/// labels were changed.
pub(crate) fn read_split(
    shards: &ShardSet,
    plan: Option<&TrainPlan>,
    split: Split,
) -> Result<Dataset, TrainError> {
    let mut dataset = list_split(shards, plan, split)?;
    dataset.load(shards, RankShare::WHOLE)?;
    Ok(dataset)
}

/// The same without pixels.
pub(crate) fn list_split(
    shards: &ShardSet,
    plan: Option<&TrainPlan>,
    split: Split,
) -> Result<Dataset, TrainError> {
    let Some(plan) = plan else {
        return Dataset::list(shards, &[split]);
    };
    let recipe = &plan.recipe;
    let mut stored = vec![split];
    if split == Split::Validation && !plan.validation_cases.is_empty() {
        stored = vec![Split::Train, Split::Validation];
    }
    if split == Split::Train && recipe.fold.is_some() {
        stored = vec![Split::Train, Split::Validation];
    }
    let mut dataset = Dataset::list(shards, &experiment::splits_to_read(&recipe.data, &stored))?;
    experiment::reassign_splits(&mut dataset, shards, &recipe.data, recipe.seed)?;
    if recipe.fold.is_some() {
        dataset.merge_validation_into_training();
    }
    let cases: BTreeSet<CaseId> = plan.validation_cases.iter().cloned().collect();
    dataset.move_to_validation(&cases);
    dataset.exclude_from_training(&plan.left_out_cases);
    dataset.items.retain(|item| item.split == split);
    Ok(dataset)
}
