//! The plan: what will run, with everything resolved. Saved as `plan.toml`.

use std::collections::BTreeSet;
use std::path::Path;

use diag_data::case::{CaseId, Split};
use diag_data::files;
use diag_data::shard::ShardSet;
use serde::{Deserialize, Serialize};

use crate::data::batch::n_batches;
use crate::data::dataset::Dataset;
use crate::data::experiment;
use crate::error::TrainError;
use crate::recipe::{BatchNorm, TrainSpec};
use crate::step::population;

/// Folds do not depend on the recipe's seed: runs of several seeds have the same folds.
const FOLD_SEED: u64 = 0;

/// What will run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainPlan {
    /// Steps of one epoch.
    pub steps_per_epoch: u64,
    /// Training slices by class, in the order of the shards' label set.
    pub slices_per_class: Vec<u64>,
    /// Training slices of which the batch statistics are recomputed after every epoch; 0 where
    /// the recipe takes the moving averages.
    #[serde(default)]
    pub statistics_slices: usize,
    /// SHA-256 of the shards.
    pub shards_sha256: String,
    /// SHA-256 of the recipe file.
    pub recipe_sha256: String,
    /// Where the validation split is from.
    pub validation: ValidationSource,
    /// Cases drawn for validation; empty where the shards have their own validation split.
    pub validation_cases: Vec<CaseId>,
    /// Training cases that the class ratio of the recipe leaves out.
    #[serde(default)]
    pub left_out_cases: Vec<CaseId>,
    /// Training cases (or slices) that were given a wrong label on purpose.
    #[serde(default)]
    pub n_wrong_labels: usize,
    /// The recipe, with every default filled in.
    pub recipe: TrainSpec,
}

/// Where the validation split is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ValidationSource {
    /// The shards have a validation split.
    Shards,
    /// Drawn from the training cases, class by class.
    TrainingCases,
    /// One fold of the training and validation cases.
    Fold,
    /// There is none; the last epoch is kept.
    None,
}

impl TrainPlan {
    /// Resolves a recipe against shards; returns the data it will run on, without pixels.
    pub(crate) fn resolve(
        recipe: &TrainSpec,
        recipe_sha256: String,
        shards: &ShardSet,
    ) -> Result<(Self, Dataset), TrainError> {
        let wanted = [Split::Train, Split::Validation];
        let mut dataset = Dataset::list(shards, &experiment::splits_to_read(&recipe.data, &wanted))?;
        experiment::reassign_splits(&mut dataset, shards, &recipe.data, recipe.seed)?;
        dataset.items.retain(|item| wanted.contains(&item.split));
        if recipe.shuffle_labels {
            dataset.shuffle_labels(recipe.seed);
        }
        let (validation, validation_cases) = match recipe.fold {
            Some(fold) => (ValidationSource::Fold, dataset.draw_fold(shards, fold, FOLD_SEED)?),
            None if !dataset.of_split(Split::Validation).is_empty() => {
                (ValidationSource::Shards, Default::default())
            }
            None => {
                let cases = dataset.draw_validation(shards, recipe.validation_share, recipe.seed)?;
                let source =
                    if cases.is_empty() { ValidationSource::None } else { ValidationSource::TrainingCases };
                (source, cases)
            }
        };
        dataset.move_to_validation(&validation_cases);
        let left_out_cases = experiment::subsample_classes(&mut dataset, &recipe.data, recipe.seed)?;
        let n_wrong_labels = experiment::add_label_noise(&mut dataset, &recipe.data, recipe.seed);
        let n_training = dataset.of_split(Split::Train).len();
        if n_training < 2 {
            return Err(TrainError::NoSlices { what: "train".to_owned() });
        }
        let mut recipe = recipe.clone();
        recipe.batch_size = recipe.batch_size.min(n_training);
        let batches_per_epoch = n_batches(n_training, recipe.batch_size);
        let plan = Self {
            steps_per_epoch: batches_per_epoch.div_ceil(recipe.accumulate) as u64,
            slices_per_class: dataset.slices_per_class(Split::Train),
            statistics_slices: match recipe.batch_norm {
                BatchNorm::Precise => population::n_slices(n_training, recipe.batch_size),
                BatchNorm::Running => 0,
            },
            shards_sha256: shards.sha256()?,
            recipe_sha256,
            validation,
            validation_cases: validation_cases.into_iter().collect(),
            left_out_cases,
            n_wrong_labels,
            recipe,
        };
        Ok((plan, dataset))
    }

    /// Optimiser steps of the whole run.
    pub fn n_steps(&self) -> u64 {
        self.steps_per_epoch * u64::from(self.recipe.epochs)
    }

    /// Writes `plan.toml`.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn write(&self, path: &Path) -> Result<(), TrainError> {
        let text = toml::to_string(self)
            .map_err(|err| TrainError::Recipe { file: path.into(), reason: err.to_string() })?;
        Ok(files::write_atomic(path, text.as_bytes())?)
    }

    /// Reads `plan.toml`.
    ///
    /// # Errors
    /// When it is missing or of another form.
    pub fn read(path: &Path) -> Result<Self, TrainError> {
        let bad = |reason: String| TrainError::Recipe { file: path.into(), reason };
        let text = String::from_utf8(files::read(path)?).map_err(|err| bad(err.to_string()))?;
        toml::from_str(&text).map_err(|err| bad(err.message().replace('\n', " ")))
    }

    /// What a resume under `now` would compute otherwise, in words. The number of threads does
    /// not matter, and epochs may be added.
    pub(crate) fn changes(&self, now: &Self) -> Vec<String> {
        let comparable = |plan: &Self| {
            let mut recipe = plan.recipe.clone();
            recipe.threads = None;
            if now.recipe.epochs > self.recipe.epochs {
                recipe.epochs = now.recipe.epochs;
            }
            recipe
        };
        let mut changes = Vec::new();
        let [before, after] = [self, now].map(|plan| toml::Value::try_from(comparable(plan)).ok());
        compare("", before.as_ref(), after.as_ref(), &mut changes);
        if changes.is_empty()
            && (&self.validation_cases, &self.slices_per_class)
                != (&now.validation_cases, &now.slices_per_class)
        {
            changes.push("the training and validation cases".to_owned());
        }
        changes
    }
}

/// Collects the keys in which two values differ.
fn compare(key: &str, before: Option<&toml::Value>, after: Option<&toml::Value>, changes: &mut Vec<String>) {
    if let (Some(toml::Value::Table(before)), Some(toml::Value::Table(after))) = (before, after) {
        let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
        for name in names {
            let key = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
            compare(&key, before.get(name), after.get(name), changes);
        }
    } else if before != after {
        let shown = |value: Option<&toml::Value>| value.map_or("absent".to_owned(), toml::Value::to_string);
        changes.push(format!("{key}: {} before, {} now", shown(before), shown(after)));
    }
}
