//! Attention pooling as a variant that is reported beside the decided rule, where the recipe
//! asks for it. It reads features, which predictions do not hold, so that it can never be the
//! rule itself.

use std::path::Path;

use diag_metrics::{Measures, Scores, evaluate as measure};
use diag_model::tensors;

use super::attention::{AttentionHead, Bags};
use super::inference::{Inference, case_numbers};
use crate::error::TrainError;

/// The stored head; `None` when there is none for these weights.
pub(super) fn read(file: &Path, model_sha256: &str) -> Result<Option<AttentionHead>, TrainError> {
    if !file.exists() {
        return Ok(None);
    }
    let (weights, of_model) = tensors::read(file)?;
    Ok((of_model == model_sha256).then(|| AttentionHead::from_weights(weights)))
}

/// Trains the head on the training split and stores it; `None` when that has fewer than two
/// cases.
pub(super) fn train(
    file: &Path,
    model_sha256: &str,
    training: &Inference,
    label_n: &[usize],
    n_classes: usize,
    seed: u64,
) -> Result<Option<AttentionHead>, TrainError> {
    let bags = bags(training);
    let n_cases = bags.case_n.iter().max().map_or(0, |max| max + 1);
    if n_cases < 2 {
        return Ok(None);
    }
    // Noise by slice can give a case several labels: the most frequent counts.
    let mut votes = vec![vec![0usize; n_classes]; n_cases];
    for (&case, &label) in bags.case_n.iter().zip(label_n) {
        votes[case][label] += 1;
    }
    let winner = |votes: &Vec<usize>| {
        let most = votes.iter().max().copied().unwrap_or_default();
        votes.iter().position(|&n| n == most).unwrap_or_default()
    };
    let labels: Vec<usize> = votes.iter().map(winner).collect();
    let head = AttentionHead::train(&bags, &labels, n_classes, seed)?;
    tensors::write(file, head.weights(), model_sha256)?;
    Ok(Some(head))
}

/// Measures by case of what the head makes of a split.
pub(super) fn measured(
    head: &AttentionHead,
    inference: &Inference,
    n_classes: usize,
) -> Result<Measures, TrainError> {
    let bags = bags(inference);
    let probabilities = head.probabilities(&bags)?.concat();
    let n_cases = bags.case_n.iter().max().map_or(0, |max| max + 1);
    let mut label_n = vec![0; n_cases];
    for (&case, row) in bags.case_n.iter().zip(&inference.predictions) {
        label_n[case] = row.label.index();
    }
    Ok(measure(&Scores::new(&probabilities, n_classes, &label_n)?))
}

fn bags(inference: &Inference) -> Bags {
    Bags { features: inference.features.clone(), case_n: case_numbers(&inference.predictions) }
}
