//! `run.json`, the provenance of a run, and the model card.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use diag_data::case::Split;
use diag_data::run::{RunDir, RunInfo, ShardSource};
use diag_data::shard::ShardSet;
use diag_data::{files, place};
use diag_model::{FORMAT_VERSION, InputSpec, ModelCard, Network, SavedNetwork, TrainingData, WEIGHTS, input};

use super::plan::TrainPlan;
use crate::data::dataset::Dataset;
use crate::device;
use crate::error::TrainError;
use crate::step::learner::Learner;
use crate::sync::ranks::Ranks;

/// How a run was started.
pub(crate) struct Origin<'a> {
    pub initialisation: String,
    pub ranks: &'a Ranks,
    pub command: &'a str,
}

/// `run.json` before the first step.
pub(crate) fn describe(
    run: &RunDir,
    plan: &TrainPlan,
    shards: &ShardSet,
    dataset: &Dataset,
    learner: &Learner,
    origin: Origin<'_>,
) -> Result<RunInfo, TrainError> {
    let Origin { initialisation, ranks, command } = origin;
    let manifest = shards.manifest();
    let mut cases = dataset.cases();
    for row in &manifest.table {
        if row.split == Split::Test {
            cases.entry("test".to_owned()).or_default().insert(row.label.clone(), row.n_cases);
        }
    }
    Ok(RunInfo {
        tool: format!("diag-train {}", env!("CARGO_PKG_VERSION")),
        libraries: libraries(),
        device: describe_device(learner, ranks),
        seed: plan.recipe.seed,
        labels: dataset.labels.clone(),
        heads: learner.network.head_names(),
        backbone: plan.recipe.backbone.name().to_owned(),
        n_parameters: learner.network.n_parameters(),
        loss: plan.recipe.loss.name().to_owned(),
        initialisation,
        recipe_sha256: plan.recipe_sha256.clone(),
        model_sha256: None,
        shards: source(run, shards, plan.shards_sha256.clone()),
        cases,
        best_epoch: None,
        selection: plan.recipe.selection.describe().to_owned(),
        train_seconds: 0.0,
        commands: vec![command.to_owned()],
    })
}

/// The shards as a folder names them.
pub(crate) fn source(folder: &RunDir, shards: &ShardSet, sha256: String) -> ShardSource {
    let manifest = shards.manifest();
    ShardSource {
        path: relative(folder.root(), shards.root()),
        sha256,
        synthetic: manifest.synthetic,
        tool: manifest.tool.clone(),
        table: manifest.table.clone(),
        flow: manifest.flow.clone(),
    }
}

/// The model's description, once its weights are written.
pub(crate) fn model_card(
    run: &RunDir,
    plan: &TrainPlan,
    shards: &ShardSet,
    dataset: &Dataset,
    network: &Network,
) -> Result<ModelCard, TrainError> {
    let manifest = shards.manifest();
    let labels = dataset.labels.clone();
    let training = dataset.cases_where(|split| split == Split::Train);
    let n_cases = |class: usize| training.values().filter(|label| label.index() == class).count() as u64;
    let positive = plan.recipe.decision.positive.clone();
    Ok(ModelCard {
        format_version: FORMAT_VERSION,
        networks: vec![SavedNetwork {
            spec: *network.spec(),
            weights: WEIGHTS.into(),
            sha256: files::sha256_file(&run.weights())?,
        }],
        heads: network.head_names(),
        input: InputSpec {
            reader: manifest.spec.reader.clone(),
            range: (input::scale(0.0), input::scale(255.0)),
        },
        training: TrainingData {
            synthetic: manifest.synthetic,
            cases: (0..labels.len()).map(n_cases).collect(),
        },
        positive: positive.unwrap_or_else(|| labels.names()[0].clone()),
        labels,
    })
}

/// The device in words.
fn describe_device(learner: &Learner, ranks: &Ranks) -> String {
    let link = match ranks.n_ranks() {
        1 => String::new(),
        n => {
            let nccl = if learner.reduces_on_gpus() { "NCCL and " } else { "" };
            format!("{n} ranks linked by {nccl}{} of ", ranks.describe())
        }
    };
    device::describe(learner.network.device(), &link)
}

/// Versions of the libraries that do the arithmetic, from the lock file of this build.
fn libraries() -> BTreeMap<String, String> {
    const LOCK: &str = include_str!("../../../../Cargo.lock");
    let version = |name: &str| {
        let after = LOCK.split_once(&format!("name = \"{name}\"\nversion = \""))?.1;
        after.split_once('"').map(|(version, _)| version.to_owned())
    };
    let names = ["candle-core", "candle-nn", "candle-train-ops", "gemm", "rand_chacha"];
    names.into_iter().filter_map(|name| Some((name.to_owned(), version(name)?))).collect()
}

/// The path of `to` relative to the folder `from`, where both exist and share a root; unchanged for a
/// URL of an object store.
fn relative(from: &Path, to: &Path) -> PathBuf {
    if place::is_store(to) {
        return to.to_path_buf();
    }
    let (Ok(from), Ok(to)) = (from.canonicalize(), to.canonicalize()) else {
        return to.to_path_buf();
    };
    let (from, to): (Vec<Component<'_>>, Vec<Component<'_>>) =
        (from.components().collect(), to.components().collect());
    let shared = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
    let up = from[shared..].iter().map(|_| Component::ParentDir);
    up.chain(to[shared..].iter().copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shards_are_named_from_the_run_folder() {
        let root = tempfile::tempdir().unwrap();
        for folder in ["a/run", "a/shards", "b"] {
            std::fs::create_dir_all(root.path().join(folder)).unwrap();
        }
        let check = |to: &str, want: &str| {
            let got = relative(&root.path().join("a/run"), &root.path().join(to));
            assert_eq!(got, Path::new(want), "{to}");
        };
        check("a/shards", "../shards");
        check("b", "../../b");
    }

    #[test]
    fn the_lock_file_names_the_arithmetic() {
        assert_eq!(libraries().len(), 5);
    }
}
