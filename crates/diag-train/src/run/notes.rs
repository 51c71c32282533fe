//! What `fit` says about its data and about how training went: one line each, with what to do.

use std::collections::BTreeMap;

use diag_data::case::{LabelSet, Split};
use diag_data::manifest::Manifest;
use diag_data::run::{Epoch, LossRecord, Step};

use crate::data::dataset::Dataset;
use crate::recipe::TrainSpec;

/// Validation cross entropy above so many times the training one, and so many nats, is far from it.
const FAR: (f64, f64) = (2.0, 0.3);
/// A training cross entropy that falls by this share in the last epoch has reached no plateau.
const STILL_FALLING: f64 = 0.05;
/// Training cross entropy in nats below which more epochs are not advised.
const FITTED: f64 = 0.05;

/// Cases and slices of each class, by split.
type Counts = BTreeMap<(Split, usize), (u64, u64)>;

/// A table of the classes, and warnings of what is missing.
pub(crate) fn of_data(recipe: &TrainSpec, dataset: &Dataset, manifest: &Manifest) -> Vec<String> {
    let labels = &dataset.labels;
    let counts = counts(dataset, manifest);
    let mut lines = table(labels, &counts);
    lines.extend(warnings(labels, &counts));
    lines.extend(positive(recipe, labels));
    lines
}

/// The paper's first class is the one to be found; of other classes the first one may be any.
fn positive(recipe: &TrainSpec, labels: &LabelSet) -> Option<String> {
    let unstated = recipe.decision.positive.is_none() && *labels != LabelSet::paper();
    unstated.then(|| {
        let first = &labels.names()[0];
        format!(
            "warning: decision.positive is not set: the operating threshold will be for {first}, the first class; \
             set it in the recipe"
        )
    })
}

/// Training and validation as the run divides them, the test split as the shards have it.
fn counts(dataset: &Dataset, manifest: &Manifest) -> Counts {
    let mut counts = Counts::new();
    for split in [Split::Train, Split::Validation] {
        for label in dataset.cases_where(|of_item| of_item == split).into_values() {
            counts.entry((split, label.index())).or_default().0 += 1;
        }
        for (class, n_slices) in dataset.slices_per_class(split).into_iter().enumerate() {
            if n_slices > 0 {
                counts.entry((split, class)).or_default().1 = n_slices;
            }
        }
    }
    for row in manifest.table.iter().filter(|row| row.split == Split::Test) {
        if let Some(label) = dataset.labels.find(&row.label) {
            counts.insert((Split::Test, label.index()), (row.n_cases, row.n_slices));
        }
    }
    counts
}

fn table(labels: &LabelSet, counts: &Counts) -> Vec<String> {
    let width = labels.names().iter().map(String::len).max().unwrap_or_default().max("class".len());
    let mut lines = vec![format!("{:<width$}{:>24}{:>24}{:>24}", "class", "train", "validation", "test")];
    for (class, name) in labels.names().iter().enumerate() {
        let cells = Split::ALL.map(|split| {
            let (n_cases, n_slices) = counts.get(&(split, class)).copied().unwrap_or_default();
            format!("{}, {}", counted(n_cases, "case"), counted(n_slices, "slice"))
        });
        let [train, validation, test] = &cells;
        lines.push(format!("{name:<width$}{train:>24}{validation:>24}{test:>24}"));
    }
    lines
}

/// `1 case`, `2 cases`.
fn counted(n: u64, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

fn warnings(labels: &LabelSet, counts: &Counts) -> Vec<String> {
    let mut lines = Vec::new();
    let present = |split: Split| -> Vec<usize> {
        (0..labels.len()).filter(|&class| counts.contains_key(&(split, class))).collect()
    };
    if let [class] = present(Split::Train)[..] {
        let name = &labels.names()[class];
        lines.push(format!(
            "warning: all training slices are of class {name}: there is nothing to separate; pass shards with \
             several classes"
        ));
    }
    if present(Split::Validation).is_empty() {
        lines.push(
            "warning: there is no validation split: no epoch can be chosen and no decision fixed; set \
             validation_share"
                .to_owned(),
        );
    }
    for split in Split::ALL {
        if present(split).is_empty() {
            continue;
        }
        for (class, name) in labels.names().iter().enumerate() {
            let advice = match counts.get(&(split, class)).map_or(0, |(n_cases, _)| *n_cases) {
                0 if split == Split::Train => {
                    "the network cannot learn it; add cases, or leave the class out"
                }
                0 => "its measures are missing; add cases, or divide them otherwise",
                1 => "measures of it rest on this one; add cases, or divide them otherwise",
                _ => continue,
            };
            let n_cases = if counts.contains_key(&(split, class)) { "one case" } else { "no case" };
            lines.push(format!("warning: class {name} has {n_cases} in the {split} split: {advice}"));
        }
    }
    lines
}

/// The predicted class of every validation case, and the true one, after the best epoch.
#[derive(Clone, Debug, Default)]
pub(crate) struct Predicted {
    pub predicted: Vec<usize>,
    pub labels: Vec<usize>,
}

/// What training showed. `best`: the epoch that was kept.
pub(crate) fn of_training(
    recipe: &TrainSpec,
    labels: &LabelSet,
    epochs: &[Epoch],
    best: u32,
    predicted: Option<&Predicted>,
    steps: &[Step],
) -> Vec<String> {
    let mut lines = Vec::new();
    lines.extend(clipping(recipe, steps));
    if let Some(Predicted { predicted, labels: actual }) = predicted
        && let Some(class) = single(predicted)
        && single(actual).is_none()
    {
        lines.push(format!(
            "warning: every validation case is predicted as {}: train longer, or with another learning rate",
            labels.names()[class]
        ));
    }
    let kept = epochs.iter().find(|epoch| epoch.epoch == best);
    if let Some(epoch) = kept
        && let Some(validation) = &epoch.validation
        && let (Some(train), Some(validation)) =
            (cross_entropy(&epoch.train), cross_entropy(&validation.loss))
        && validation > (FAR.0 * train).max(train + FAR.1)
    {
        lines.push(format!(
            "warning: validation cross entropy {validation:.3} is far above that of training, {train:.3}: use more \
             augmentation or weight decay, fewer epochs or a smaller network, or add cases"
        ));
    }
    if let [.., before, last] = epochs
        && best == last.epoch
        && last.epoch == recipe.epochs
        && let (Some(before), Some(after)) = (cross_entropy(&before.train), cross_entropy(&last.train))
        && after > FITTED
        && after < (1.0 - STILL_FALLING) * before
    {
        let fell = 100.0 * (1.0 - after / before);
        lines.push(format!(
            "warning: the training cross entropy still fell by {fell:.0} % in the last epoch, which was the \
             best: raise epochs"
        ));
    }
    lines
}

/// The share of clipped steps.
fn clipping(recipe: &TrainSpec, steps: &[Step]) -> Option<String> {
    let limit = recipe.optimiser.max_gradient_norm?;
    let mut norms: Vec<f64> = steps.iter().map(|step| step.gradient_norm).collect();
    norms.sort_by(f64::total_cmp);
    let median = norms.get(norms.len() / 2)?;
    let n_clipped = norms.iter().filter(|norm| **norm > limit).count();
    let share = 100.0 * n_clipped as f64 / norms.len() as f64;
    let text = format!(
        "max_gradient_norm = {limit} clipped {n_clipped} of {} steps ({share:.0} %), median norm {median:.1}",
        norms.len()
    );
    // A limit that acts on most steps changes the learning rate and is no safety net.
    Some(if share > 10.0 {
        format!("warning: {text}: leave it out, or set it to ten times the median")
    } else {
        text
    })
}

fn cross_entropy(loss: &LossRecord) -> Option<f64> {
    loss.heads.get(diag_model::FINAL_HEAD)?.get("cross_entropy").copied()
}

/// The class of all, if they have the same one.
fn single(classes: &[usize]) -> Option<usize> {
    let first = *classes.first()?;
    classes.iter().all(|class| *class == first).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use diag_data::run::Validation;

    const RECIPE: &str = "seed = 1\nepochs = 3\nbatch_size = 2\nbackbone = \"tiny\"\ndeep_supervision = false\n\
         validation_share = 0.2\nselection = \"last\"\nloss = { name = \"cross-entropy\" }\n\
         [optimiser]\nname = \"sgd\"\nlearning_rate = 0.1\nweight_decay = 0.0\n";

    fn loss(cross_entropy: f64) -> LossRecord {
        let terms = BTreeMap::from([("cross_entropy".to_owned(), cross_entropy)]);
        let heads = BTreeMap::from([(diag_model::FINAL_HEAD.to_owned(), terms)]);
        LossRecord { total: cross_entropy, heads }
    }

    fn epoch(number: u32, train: f64, validation: f64) -> Epoch {
        Epoch {
            epoch: number,
            step: number.into(),
            learning_rate: 0.1,
            train: loss(train),
            validation: Some(Validation {
                loss: loss(validation),
                case_macro_f1: 0.5,
                case_macro_auroc: None,
                case_balanced_accuracy: 0.5,
                slice_macro_f1: 0.5,
                slice_balanced_accuracy: BTreeMap::new(),
            }),
            loss_state: BTreeMap::new(),
        }
    }

    fn steps(norms: &[f64]) -> Vec<Step> {
        let step = |(i, norm): (usize, &f64)| Step {
            step: i as u64 + 1,
            epoch: 1,
            learning_rate: 0.1,
            loss: 1.0,
            gradient_norm: *norm,
            loss_state: BTreeMap::new(),
            communication_share: None,
        };
        norms.iter().enumerate().map(step).collect()
    }

    /// Beginnings of the lines about a run whose best epoch is the last one.
    #[track_caller]
    fn check(limit: &str, losses: [(f64, f64); 3], predicted: &[usize], norms: &[f64], want: &[&str]) {
        let recipe: TrainSpec = toml::from_str(&format!("{RECIPE}{limit}")).unwrap();
        let epochs: Vec<Epoch> =
            losses.iter().zip(1..).map(|((train, validation), i)| epoch(i, *train, *validation)).collect();
        let predicted = Predicted { predicted: predicted.to_vec(), labels: vec![0, 1, 2] };
        let labels = LabelSet::paper();
        let lines = of_training(&recipe, &labels, &epochs, 3, Some(&predicted), &steps(norms));
        assert_eq!(lines.len(), want.len(), "{lines:?}");
        for (line, want) in lines.iter().zip(want) {
            assert!(line.starts_with(want), "{line}");
        }
    }

    const PLATEAU: [(f64, f64); 3] = [(0.9, 0.9), (0.51, 0.6), (0.5, 0.6)];

    #[test]
    fn a_run_without_oddities_has_no_lines() {
        check("", PLATEAU, &[0, 1, 1], &[1.0, 2.0], &[]);
    }

    #[test]
    fn the_share_of_clipped_steps_is_stated_and_warned_of_where_it_is_large() {
        let limit = "max_gradient_norm = 10.0";
        let rare = [1.0; 19].iter().chain(&[11.0]).copied().collect::<Vec<f64>>();
        check(limit, PLATEAU, &[0, 1, 2], &rare, &["max_gradient_norm = 10 clipped 1 of 20 steps (5 %)"]);
        let want = "warning: max_gradient_norm = 10 clipped 2 of 3 steps (67 %), median norm 20.0";
        check(limit, PLATEAU, &[0, 1, 2], &[20.0, 5.0, 30.0], &[want]);
    }

    #[test]
    fn one_predicted_class_is_named() {
        check("", PLATEAU, &[2, 2, 2], &[], &["warning: every validation case is predicted as bacterial"]);
    }

    #[test]
    fn a_wide_gap_and_a_falling_loss_are_named() {
        let gap = [(0.9, 0.9), (0.11, 0.9), (0.11, 0.9)];
        check("", gap, &[0, 1, 2], &[], &["warning: validation cross entropy 0.900 is far above"]);
        let falling = [(0.9, 0.9), (0.7, 0.7), (0.5, 0.5)];
        check("", falling, &[0, 1, 2], &[], &["warning: the training cross entropy still fell by 29 %"]);
    }

    #[test]
    fn the_positive_class_of_other_labels_is_asked_for() {
        let recipe = |decision: &str| toml::from_str::<TrainSpec>(&format!("{RECIPE}{decision}")).unwrap();
        let other = LabelSet::new(vec!["benign".to_owned(), "malignant".to_owned()]).unwrap();
        assert!(positive(&recipe(""), &other).unwrap().contains("for benign, the first class"));
        assert_eq!(positive(&recipe("[decision]\npositive = \"malignant\""), &other), None);
        assert_eq!(positive(&recipe(""), &LabelSet::paper()), None);
    }

    #[test]
    fn missing_and_single_cases_are_named_by_class_and_split() {
        let labels = LabelSet::paper();
        let counts = Counts::from([
            ((Split::Train, 0), (9, 90)),
            ((Split::Train, 1), (1, 9)),
            ((Split::Test, 0), (2, 9)),
            ((Split::Test, 1), (2, 9)),
            ((Split::Test, 2), (2, 9)),
        ]);
        let lines = warnings(&labels, &counts);
        assert_eq!(lines.len(), 3, "{lines:?}");
        assert!(lines[0].contains("no validation split"));
        assert!(lines[1].contains("class normal has one case in the train split"));
        assert!(lines[2].contains("class bacterial-pneumonia has no case in the train split"));
        let alone = warnings(&labels, &Counts::from([((Split::Train, 0), (9, 90))]));
        assert!(alone[0].contains("all training slices are of class covid-19"));
        let table = table(&labels, &counts);
        assert_eq!(table.len(), 4);
        assert!(table[1].starts_with("covid-19") && table[1].contains("9 cases, 90 slices"), "{table:?}");
    }
}
