//! Probabilities of every head for stored slices, with the running statistics.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use diag_data::case::Split;
use diag_data::predictions::Prediction;
use diag_data::run::{LossRecord, Validation};
use diag_metrics::{Aggregation, Scores, aggregate, evaluate};
use diag_model::{HeadLogits, Loss, Network, input};
use serde::{Deserialize, Serialize};

use crate::TrainError;
use crate::dataset::{BLOCK, Dataset, Item, held};
use crate::ranks::Ranks;

/// What the network says of some slices.
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
    for batch in items.chunks(BLOCK) {
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

/// Measures the validation slices; every rank takes those that it holds, and all learn the whole.
pub(crate) fn validate(
    network: &Network,
    loss: &Loss,
    dataset: &Dataset,
    ranks: &Ranks,
    stop: &AtomicBool,
) -> Result<Option<Validation>, TrainError> {
    let items = dataset.of_split(Split::Validation);
    let own = &items[held(ranks.part(), items.len())];
    let inference = infer(network, Some(loss), dataset, own, stop)?;
    let whole = if ranks.n_ranks() == 1 { inference } else { joined(inference, dataset, &items, ranks)? };
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
    Ok(Some(Validation {
        loss,
        case_macro_f1: of_cases.macro_f1.unwrap_or_default(),
        case_macro_auroc: of_cases.macro_auroc,
        case_balanced_accuracy: of_cases.balanced_accuracy.unwrap_or_default(),
        slice_macro_f1: of_slices.macro_f1.unwrap_or_default(),
        slice_balanced_accuracy,
    }))
}

/// What all ranks found, in the order of `items`, without the features; `None` where one
/// was asked to stop.
fn joined(
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
    for of_rank in ranks.collect(&loss)? {
        mean.join(serde_json::from_slice(&of_rank).map_err(unreadable)?);
    }
    let heads = own.predictions.iter().flat_map(|row| &row.head_probabilities);
    let own: Vec<u8> = heads.flatten().flat_map(|p| p.to_le_bytes()).collect();
    let all = ranks.collect(&own)?.concat();
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

fn prediction(item: &Item, head_probabilities: Vec<Vec<f32>>) -> Prediction {
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

/// Mean of loss records over slices.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct MeanLoss {
    n_slices: usize,
    total: f64,
    heads: BTreeMap<String, BTreeMap<String, f64>>,
}

impl MeanLoss {
    pub fn add(&mut self, record: &LossRecord, n_slices: usize) {
        self.n_slices += n_slices;
        self.total += record.total * n_slices as f64;
        for (head, parts) in &record.heads {
            let sums = self.heads.entry(head.clone()).or_default();
            for (part, value) in parts {
                *sums.entry(part.clone()).or_default() += value * n_slices as f64;
            }
        }
    }

    /// Takes in the slices of another mean.
    fn join(&mut self, other: Self) {
        self.n_slices += other.n_slices;
        self.total += other.total;
        for (head, parts) in other.heads {
            let sums = self.heads.entry(head).or_default();
            for (part, value) in parts {
                *sums.entry(part).or_default() += value;
            }
        }
    }

    pub fn record(mut self) -> LossRecord {
        let n_slices = self.n_slices.max(1) as f64;
        for value in self.heads.values_mut().flat_map(BTreeMap::values_mut) {
            *value /= n_slices;
        }
        LossRecord { total: self.total / n_slices, heads: self.heads }
    }
}
