//! Probabilities of every head for stored slices, with the running statistics.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use diag_data::predictions::Prediction;
use diag_metrics::Scores;
use diag_model::{HeadLogits, Loss, Network, input};

use crate::data::dataset::{Dataset, INFERENCE_BATCH, Item};
use crate::error::TrainError;
use crate::step::mean_loss::MeanLoss;

/// Network outputs for some slices.
pub(crate) struct Inference {
    pub predictions: Vec<Prediction>,
    /// Means over the image of what the final head reads, in the order of the predictions.
    pub features: Vec<Vec<f32>>,
    /// Mean loss; absent when no loss was given.
    pub loss: Option<MeanLoss>,
}

/// Runs the network over slices; `None` when asked to stop.
pub(crate) fn infer(
    network: &Network,
    loss: Option<&Loss>,
    dataset: &Dataset,
    items: &[usize],
    stop: &AtomicBool,
) -> Result<Option<Inference>, TrainError> {
    let (mut predictions, mut features) = (Vec::with_capacity(items.len()), Vec::with_capacity(items.len()));
    let mut mean = MeanLoss::default();
    let network = network.folded()?;
    for batch in items.chunks(INFERENCE_BATCH) {
        if stop.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let images = batch.iter().map(|&item| dataset.pixels(item));
        let image_nchw = input::from_grey(images, dataset.height, dataset.width)?;
        let answer = network.answer(&image_nchw)?;
        let logits = answer.logits;
        features.extend(answer.features_nc.to_vec2::<f32>()?);
        if let Some(loss) = loss {
            let label_n: Vec<usize> = batch.iter().map(|&item| dataset.items[item].label.index()).collect();
            mean.add(&loss.terms(&logits, &label_n)?.record()?, batch.len());
        }
        let probabilities = probabilities(&logits)?;
        for (row, &item) in batch.iter().enumerate() {
            let heads = probabilities.iter().map(|head| head[row].clone()).collect();
            predictions.push(prediction(&dataset.items[item], heads));
        }
    }
    Ok(Some(Inference { predictions, features, loss: loss.map(|_| mean) }))
}

/// Softmax of every head, `[heads][N][K]`.
fn probabilities(logits: &HeadLogits) -> Result<Vec<Vec<Vec<f32>>>, TrainError> {
    let mut heads = Vec::new();
    for (_, logits_nk) in logits.iter() {
        let rows = logits_nk.to_vec2::<f32>()?;
        heads.push(rows.iter().map(|row| diag_model::softmax(row)).collect());
    }
    Ok(heads)
}

pub(super) fn prediction(item: &Item, head_probabilities: Vec<Vec<f32>>) -> Prediction {
    Prediction {
        case_id: item.case_id.clone(),
        slice_index: item.slice_index,
        split: item.split,
        label: item.label,
        head_probabilities,
    }
}

/// Probabilities of one head with the labels.
pub(crate) fn scores(rows: &[Prediction], head: usize, n_classes: usize) -> Result<Scores, TrainError> {
    let of_head = rows.iter().flat_map(|row| row.head_probabilities[head].iter().map(|&p| f64::from(p)));
    let labels: Vec<usize> = rows.iter().map(|row| row.label.index()).collect();
    Ok(Scores::new(&of_head.collect::<Vec<_>>(), n_classes, &labels)?)
}

/// The case of every row, numbered in order of first appearance.
pub(crate) fn case_numbers(rows: &[Prediction]) -> Vec<usize> {
    let mut numbers = BTreeMap::new();
    rows.iter()
        .map(|row| {
            let next = numbers.len();
            *numbers.entry(&row.case_id).or_insert(next)
        })
        .collect()
}
