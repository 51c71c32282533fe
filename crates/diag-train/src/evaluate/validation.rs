//! The measures of the validation slices after an epoch.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;

use diag_data::case::Split;
use diag_data::run::Validation;
use diag_metrics::{Aggregation, aggregate, evaluate};
use diag_model::{Loss, Network};

use super::inference::{Inference, case_numbers, infer, prediction, scores};
use crate::data::dataset::{Dataset, owned};
use crate::error::TrainError;
use crate::run::notes::Predicted;
use crate::step::mean_loss::MeanLoss;
use crate::sync::ranks::Ranks;

/// Measures the validation slices: every rank infers those that it holds, and all get the result.
/// `None` where one was asked to stop.
pub(crate) fn validate(
    network: &Network,
    loss: &Loss,
    dataset: &Dataset,
    ranks: &Ranks,
    stop: &AtomicBool,
) -> Result<Option<(Validation, Predicted)>, TrainError> {
    let items = dataset.of_split(Split::Validation);
    let own = &items[owned(ranks.share(), items.len())];
    let inference = infer(network, Some(loss), dataset, own, stop)?;
    let whole = if ranks.n_ranks() == 1 { inference } else { gathered(inference, dataset, &items, ranks)? };
    let Some(Inference { predictions, loss: Some(loss), .. }) = whole else {
        return Ok(None);
    };
    let loss = loss.record();
    let heads = network.head_names();
    let mut slice_balanced_accuracy = BTreeMap::new();
    for (h, head) in heads.iter().enumerate() {
        let measures = evaluate(&scores(&predictions, h, dataset.labels.len())?);
        slice_balanced_accuracy.insert(head.clone(), measures.balanced_accuracy.unwrap_or_default());
    }
    let slices = scores(&predictions, heads.len() - 1, dataset.labels.len())?;
    let cases = aggregate(&slices, &case_numbers(&predictions), Aggregation::Mean)?;
    let (of_slices, of_cases) = (evaluate(&slices), evaluate(&cases.scores));
    let predicted = Predicted { predicted: cases.scores.predicted(), labels: cases.scores.labels().to_vec() };
    let validation = Validation {
        loss,
        case_macro_f1: of_cases.macro_f1.unwrap_or_default(),
        case_macro_auroc: of_cases.macro_auroc,
        case_balanced_accuracy: of_cases.balanced_accuracy.unwrap_or_default(),
        slice_macro_f1: of_slices.macro_f1.unwrap_or_default(),
        slice_balanced_accuracy,
    };
    Ok(Some((validation, predicted)))
}

/// The inferences of all ranks in the order of `items`, without the features; `None` where one
/// was asked to stop.
fn gathered(
    own: Option<Inference>,
    dataset: &Dataset,
    items: &[usize],
    ranks: &Ranks,
) -> Result<Option<Inference>, TrainError> {
    let stopped = ranks.any(own.is_none())?;
    let Some(own) = own.filter(|_| !stopped) else {
        return Ok(None);
    };
    let unreadable = |err: serde_json::Error| {
        TrainError::Tensor(candle_core::Error::msg(format!("the validation loss of a rank: {err}")))
    };
    let loss = serde_json::to_vec(&own.loss.unwrap_or_default()).map_err(unreadable)?;
    let mut mean = MeanLoss::default();
    for of_rank in ranks.all_gather(&loss)? {
        mean.merge(serde_json::from_slice(&of_rank).map_err(unreadable)?);
    }
    let heads = own.predictions.iter().flat_map(|row| &row.head_probabilities);
    let own: Vec<u8> = heads.flatten().flat_map(|p| p.to_le_bytes()).collect();
    let all = ranks.all_gather(&own)?.concat();
    let probabilities: Vec<f32> = all.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    let n_classes = dataset.labels.len();
    let of_slice = probabilities.len() / items.len().max(1);
    let rows = items.iter().zip(probabilities.chunks_exact(of_slice.max(1)));
    let predictions = rows.map(|(&item, probabilities)| {
        let heads = probabilities.chunks_exact(n_classes).map(<[f32]>::to_vec).collect();
        prediction(&dataset.items[item], heads)
    });
    Ok(Some(Inference { predictions: predictions.collect(), features: Vec::new(), loss: Some(mean) }))
}
