//! The file of a sweep, and the runs that it asks for.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use diag_data::files;
use diag_data::results::ResultRow;
use serde::{Deserialize, Serialize};
use toml::Table;

use crate::error::TrainError;
use crate::recipe::{FoldSpec, Initialisation, TrainSpec, one_line};

/// A grid of runs as its file says it. Paths are seen from the file's folder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SweepSpec {
    /// Recipe that every run starts from.
    pub recipe: PathBuf,
    /// Folder of shards.
    pub shards: PathBuf,
    /// Runs at a time; absent: one. Each gets an equal part of the cores.
    #[serde(default)]
    pub processes: Option<usize>,
    /// Seeds; absent: the recipe's.
    #[serde(default)]
    pub seeds: Vec<u64>,
    /// Parts of a cross-validation, all of which are run; absent: none.
    #[serde(default)]
    pub folds: Option<usize>,
    /// Ratios of the classes' training cases; absent: the recipe's.
    #[serde(default)]
    pub class_ratios: Vec<Vec<u32>>,
    /// Shares of wrong training labels; absent: the recipe's.
    #[serde(default)]
    pub label_noise: Vec<f64>,
    /// Pairs of a ratio and a share that are run, in place of all pairs of the two lists above.
    #[serde(default)]
    pub settings: Vec<SettingSpec>,
    /// Changes of the recipe that are compared; absent: the recipe as it is.
    #[serde(default)]
    pub variants: Vec<Variant>,
    /// The variant that the others are compared with; absent: the first.
    #[serde(default)]
    pub reference: Option<String>,
    /// What the summary compares.
    #[serde(default)]
    pub summary: SummarySpec,
}

/// A named change of the recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variant {
    /// Letters, digits, `-`, `_` and `.`.
    pub name: String,
    /// Keys of a recipe. A table is merged with the recipe's key by key, but for
    /// `loss`, which replaces it.
    #[serde(default)]
    pub set: Table,
    /// Name of another variant. Nothing is trained then: the results are those of its runs, the
    /// case probabilities (mean over the slices) divided by the class shares of the training
    /// slices.
    #[serde(default)]
    pub corrected: Option<String>,
}

/// One setting of the training part.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SettingSpec {
    /// Ratio of the classes' training cases; absent: the recipe's.
    #[serde(default)]
    pub class_ratio: Option<Vec<u32>>,
    /// Share of wrong training labels.
    #[serde(default)]
    pub label_noise: f64,
}

/// What the summary compares.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SummarySpec {
    /// Part of the data.
    pub split: String,
    /// `case` or `slice`.
    pub unit: String,
    /// `mean`, `top_k_mean` or `decision`; for slices without meaning.
    pub aggregation: String,
    /// Names of measures, as in `metrics.json`; `f1/CLASS` is that of a class.
    pub measures: Vec<String>,
    /// Whether the tables also hold each run's 95 % bootstrap interval by case; of
    /// `unit = "case"` and `aggregation = "mean"` alone.
    pub intervals: bool,
}

impl SummarySpec {
    /// Whether a number is one of those that the summary compares, or a bound of one.
    pub(super) fn compares(&self, row: &ResultRow) -> bool {
        let measure = row.measure.split_once(':').map_or(row.measure.as_str(), |(name, _)| name);
        self.is_about(row) && self.measures.iter().any(|wanted| wanted == measure)
    }

    /// Whether a number is of the summary's part of the data and unit.
    pub(super) fn is_about(&self, row: &ResultRow) -> bool {
        row.split == self.split
            && row.unit == self.unit
            && (self.unit == "slice" || row.aggregation.as_ref() == Some(&self.aggregation))
    }
}

impl Default for SummarySpec {
    fn default() -> Self {
        let text = str::to_owned;
        Self {
            split: text("test"),
            unit: text("case"),
            aggregation: text("mean"),
            measures: ["macro_f1", "balanced_accuracy", "macro_auroc"].map(text).to_vec(),
            intervals: false,
        }
    }
}

/// One run of a sweep.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Cell {
    /// Name of its folder.
    pub name: String,
    pub variant: String,
    pub recipe: TrainSpec,
}

impl Cell {
    /// The recipe as its file has it.
    pub fn recipe_text(&self) -> Result<String, TrainError> {
        toml::to_string(&self.recipe).map_err(|err| TrainError::Recipe {
            file: format!("{}.toml", self.name).into(),
            reason: err.to_string(),
        })
    }
}

impl SweepSpec {
    /// Reads the file.
    ///
    /// # Errors
    /// When it cannot be read, has an unknown or missing key, or two variants of one name.
    pub fn read(path: &Path) -> Result<Self, TrainError> {
        let bad = |reason: String| TrainError::Recipe { file: path.into(), reason };
        let text = String::from_utf8(files::read(path)?).map_err(|err| bad(err.to_string()))?;
        let mut spec: Self = toml::from_str(&text).map_err(|err| bad(one_line(&err, &text)))?;
        let folder = path.parent().unwrap_or(Path::new(""));
        spec.recipe = folder.join(&spec.recipe);
        spec.shards = folder.join(&spec.shards);
        if spec.variants.is_empty() {
            spec.variants.push(Variant { name: "recipe".to_owned(), set: Table::new(), corrected: None });
        }
        let mut names: Vec<&str> = spec.variants.iter().map(|variant| variant.name.as_str()).collect();
        names.sort_unstable();
        if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(bad(format!("two variants are named `{}`", pair[0])));
        }
        let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if let Some(name) = names.iter().find(|name| name.is_empty() || !name.chars().all(fits)) {
            return Err(bad(format!(
                "variant name `{name}` has other characters than letters, digits and -_."
            )));
        }
        if let Some(reference) = &spec.reference
            && !names.contains(&reference.as_str())
        {
            return Err(bad(format!("reference `{reference}` is no variant")));
        }
        for variant in spec.variants.iter().filter(|variant| variant.corrected.is_some()) {
            let is_run = |other: &Variant| {
                Some(&other.name) == variant.corrected.as_ref() && other.corrected.is_none()
            };
            if !spec.variants.iter().any(is_run) || !variant.set.is_empty() {
                return Err(bad(format!(
                    "variant `{}` corrects no variant that is run, or sets keys of its own",
                    variant.name
                )));
            }
        }
        if !(spec.settings.is_empty() || spec.class_ratios.is_empty() && spec.label_noise.is_empty()) {
            return Err(bad("settings take the place of class_ratios and label_noise".to_owned()));
        }
        if spec.processes == Some(0) || spec.folds.is_some_and(|folds| folds < 2) {
            return Err(bad("processes must be at least 1, folds at least 2".to_owned()));
        }
        if spec.summary.intervals
            && (spec.summary.unit.as_str(), spec.summary.aggregation.as_str()) != ("case", "mean")
        {
            return Err(
                bad("summary.intervals are of unit = \"case\" and aggregation = \"mean\"".to_owned()),
            );
        }
        Ok(spec)
    }

    /// Number of runs, after every recipe was checked.
    ///
    /// # Errors
    /// A base recipe that cannot be read, a variant that makes no valid recipe.
    pub fn n_runs(&self) -> Result<usize, TrainError> {
        Ok(self.cells()?.len())
    }

    /// Name of the variant that the others are compared with.
    pub(super) fn reference(&self) -> &str {
        let first = self.variants.first().map_or("", |variant| variant.name.as_str());
        self.reference.as_deref().unwrap_or(first)
    }

    /// Every run, checked, in a fixed order.
    pub(super) fn cells(&self) -> Result<Vec<Cell>, TrainError> {
        let bad = |reason: String| TrainError::Recipe { file: self.recipe.clone(), reason };
        let text = String::from_utf8(files::read(&self.recipe)?).map_err(|err| bad(err.to_string()))?;
        let base: Table = toml::from_str(&text).map_err(|err| bad(one_line(&err, &text)))?;
        let folder = self.recipe.parent().unwrap_or(Path::new(""));
        let mut cells = BTreeMap::new();
        let mut order = Vec::new();
        for variant in self.variants.iter().filter(|variant| variant.corrected.is_none()) {
            let mut table = base.clone();
            merge(&mut table, &variant.set);
            let recipe: TrainSpec = table.try_into().map_err(|err| {
                bad(format!("variant `{}`: {}", variant.name, err.message().replace('\n', " ")))
            })?;
            for recipe in self.settings(&recipe) {
                let mut recipe = recipe;
                if let Initialisation::File(file) = &mut recipe.init {
                    *file = std::path::absolute(folder.join(&*file)).unwrap_or_else(|_| folder.join(&*file));
                }
                recipe.check()?;
                let name = cell_name(&variant.name, &recipe);
                order.push(name.clone());
                cells.insert(name.clone(), Cell { name, variant: variant.name.clone(), recipe });
            }
        }
        order.dedup();
        Ok(order.iter().filter_map(|name| cells.remove(name)).collect())
    }

    /// The names under which results of a cell are shown, each with its variant: its own first,
    /// then those of its corrections.
    pub(super) fn names_of(&self, cell: &Cell) -> Vec<(String, String)> {
        let corrections =
            self.variants.iter().filter(|other| other.corrected.as_ref() == Some(&cell.variant));
        let corrected = corrections.map(|other| (cell_name(&other.name, &cell.recipe), other.name.clone()));
        [(cell.name.clone(), cell.variant.clone())].into_iter().chain(corrected).collect()
    }

    /// A recipe under every setting of the grid.
    fn settings(&self, recipe: &TrainSpec) -> Vec<TrainSpec> {
        if !self.settings.is_empty() {
            let of_setting = |setting: &SettingSpec| {
                let mut only = self.clone();
                only.settings.clear();
                only.class_ratios = setting.class_ratio.iter().cloned().collect();
                only.label_noise = vec![setting.label_noise];
                only.settings(recipe)
            };
            return self.settings.iter().flat_map(of_setting).collect();
        }
        let ratios: Vec<Option<Vec<u32>>> = match self.class_ratios.as_slice() {
            [] => vec![recipe.data.class_ratio.clone()],
            ratios => ratios.iter().cloned().map(Some).collect(),
        };
        let noises =
            if self.label_noise.is_empty() { &[recipe.data.label_noise] } else { &*self.label_noise };
        let folds: Vec<_> = match self.folds {
            None => vec![recipe.fold],
            Some(of) => (0..of).map(|index| Some(FoldSpec { index, of })).collect(),
        };
        let seeds = if self.seeds.is_empty() { &[recipe.seed] } else { &*self.seeds };
        let mut settings = Vec::new();
        for ratio in &ratios {
            for &noise in noises {
                for &fold in &folds {
                    for &seed in seeds {
                        let mut recipe = recipe.clone();
                        recipe.data.class_ratio.clone_from(ratio);
                        recipe.data.label_noise = noise;
                        (recipe.fold, recipe.seed) = (fold, seed);
                        settings.push(recipe);
                    }
                }
            }
        }
        settings
    }
}

/// `VARIANT_ratio-1-5-1_noise-0.2_fold-0_seed-1`, without what does not apply.
fn cell_name(variant: &str, recipe: &TrainSpec) -> String {
    let mut name = variant.to_owned();
    if let Some(ratio) = &recipe.data.class_ratio {
        name += &format!("_ratio-{}", join(ratio, "-"));
    }
    if recipe.data.label_noise > 0.0 {
        name += &format!("_noise-{}", recipe.data.label_noise);
    }
    if let Some(fold) = recipe.fold {
        name += &format!("_fold-{}", fold.index);
    }
    name + &format!("_seed-{}", recipe.seed)
}

/// The ratio of the classes as tables show it.
pub(super) fn ratio_of(recipe: &TrainSpec) -> Option<String> {
    recipe.data.class_ratio.as_ref().map(|ratio| join(ratio, ":"))
}

/// Numbers with something between them.
fn join(numbers: &[u32], between: &str) -> String {
    numbers.iter().map(u32::to_string).collect::<Vec<_>>().join(between)
}

fn merge(base: &mut Table, changes: &Table) {
    for (key, value) in changes {
        match (base.get_mut(key), value) {
            (Some(toml::Value::Table(old)), toml::Value::Table(new)) if key != "loss" => merge(old, new),
            _ => {
                base.insert(key.clone(), value.clone());
            }
        }
    }
}
