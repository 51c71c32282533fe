//! Attention pooling: a small head that weighs the slices of a case (Ilse et al.,
//! ICML 2018), trained on the features of the frozen network.
//!
//! z = sum_i a_i f_i with a = softmax_i(w tanh(V f_i)); logits = U z + b. The features are
//! scaled to mean 0 and deviation 1 on the training slices first. As the a_i of a case sum to
//! 1, U z + b is computed as sum_i a_i (U f_i + b), so that time and memory are linear in the
//! number of slices.

use std::collections::BTreeMap;

use candle_core::{D, Device, Result, Tensor, Var};
use candle_nn::ops::{log_softmax, softmax};
use candle_train_ops::linear;
use candle_train_ops::optim::{AdamW, AdamWParams};
use rand::Rng;
use rand::seq::SliceRandom;

use crate::random::{Domain, stream};

const WIDTH: usize = 16;
const MOST_STEPS: usize = 300;
/// Training stops after so many steps without a lower log loss on the held-out cases.
const PATIENCE: usize = 20;
/// One in so many training cases is held out, to decide when to stop.
const HELD_OUT_ONE_IN: usize = 5;
/// With fewer training cases none is held out, and all steps are taken.
const FEWEST_TO_HOLD_OUT: usize = 20;
const LEARNING_RATE: f64 = 5e-3;
const WEIGHT_DECAY: f64 = 1e-2;

/// Features of slices and the case that each belongs to, numbered without gaps.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bags {
    pub features: Vec<Vec<f32>>,
    pub case_n: Vec<usize>,
}

/// The head with its weights.
#[derive(Debug)]
pub(crate) struct AttentionHead {
    /// `mean_c`, `deviation_c`, `v.weight`, `v.bias`, `w.weight`, `w.bias`, `u.weight`, `u.bias`.
    weights: BTreeMap<String, Tensor>,
}

impl AttentionHead {
    /// Trains on cases with their labels, all of them in every step, until the log loss of
    /// held-out cases stops to fall; the weights with the lowest one are kept.
    pub fn train(bags: &Bags, label_of_case: &[usize], n_classes: usize, seed: u64) -> Result<Self> {
        let features_nc = matrix(&bags.features)?;
        let mean_c = features_nc.mean(0)?;
        let deviation_c = features_nc.broadcast_sub(&mean_c)?.sqr()?.mean(0)?.affine(1.0, 1e-6)?.sqrt()?;
        let n_features = features_nc.dim(1)?;
        let mut rng = stream(seed, Domain::Attention, 0, 0);
        let mut named_vars = Vec::new();
        for (name, outputs, inputs) in
            [("v", WIDTH, n_features), ("w", 1, WIDTH), ("u", n_classes, n_features)]
        {
            let bound = 1.0 / (inputs as f32).sqrt();
            let values: Vec<f32> = (0..outputs * inputs).map(|_| rng.random_range(-bound..bound)).collect();
            let weight = Tensor::from_vec(values, (outputs, inputs), &Device::Cpu)?;
            named_vars.push((format!("{name}.weight"), Var::from_tensor(&weight)?));
            let bias = Tensor::new(vec![0f32; outputs], &Device::Cpu)?;
            named_vars.push((format!("{name}.bias"), Var::from_tensor(&bias)?));
        }
        let mut weights: BTreeMap<String, Tensor> =
            named_vars.iter().map(|(name, var)| (name.clone(), var.as_tensor().clone())).collect();
        weights.extend([("mean_c".to_owned(), mean_c), ("deviation_c".to_owned(), deviation_c)]);
        let head = Self { weights };
        let scaled_nc = head.scaled(&features_nc)?;
        let segments = Segments::new(&bags.case_n)?;
        let [fitted_n, held_out_n] = weights_of_cases(label_of_case.len(), seed)?;
        let labels = Tensor::from_iter(label_of_case.iter().map(|&l| l as u32), &Device::Cpu)?;
        let one_hot = candle_nn::encoding::one_hot::<f32>(labels, n_classes, 1.0, 0.0)?;
        let params = AdamWParams { weight_decay: WEIGHT_DECAY, ..AdamWParams::default() };
        let mut optimiser = AdamW::with_decay(named_vars, params, |_, var| var.rank() > 1)?;
        let (mut lowest, mut best_step, mut best) = (f32::INFINITY, 0, head.copy()?);
        for step in 0..=MOST_STEPS {
            let log_prob = log_softmax(&head.logits(&scaled_nc, &segments)?, D::Minus1)?;
            let loss_n = (log_prob * &one_hot)?.sum(1)?.neg()?;
            let held_out = (&loss_n * &held_out_n)?.sum_all()?.to_scalar::<f32>()?;
            if held_out < lowest {
                (lowest, best_step, best) = (held_out, step, head.copy()?);
            }
            if step == MOST_STEPS || step - best_step >= PATIENCE {
                break;
            }
            optimiser.step(&(loss_n * &fitted_n)?.sum_all()?.backward()?, LEARNING_RATE)?;
        }
        tracing::info!(steps = best_step, log_loss = lowest, "trained the attention head");
        Ok(best)
    }

    /// The head as it is now, without a graph.
    fn copy(&self) -> Result<Self> {
        let copied = |(name, tensor): (&String, &Tensor)| Ok((name.clone(), tensor.detach().copy()?));
        Ok(Self { weights: self.weights.iter().map(copied).collect::<Result<_>>()? })
    }

    /// Probabilities of every case, `[cases][K]`.
    pub fn probabilities(&self, bags: &Bags) -> Result<Vec<Vec<f64>>> {
        let scaled_nc = self.scaled(&matrix(&bags.features)?)?;
        let logits = self.logits(&scaled_nc, &Segments::new(&bags.case_n)?)?;
        softmax(&logits.to_dtype(candle_core::DType::F64)?, D::Minus1)?.to_vec2()
    }

    /// The weights by name, to be saved.
    pub fn weights(&self) -> &BTreeMap<String, Tensor> {
        &self.weights
    }

    /// A head that was saved.
    pub fn from_weights(weights: BTreeMap<String, Tensor>) -> Self {
        Self { weights }
    }

    fn weight(&self, name: &str) -> Result<&Tensor> {
        match self.weights.get(name) {
            Some(weight) => Ok(weight),
            None => candle_core::bail!("the attention head lacks {name}"),
        }
    }

    /// Features with mean 0 and deviation 1 on the training slices, `[N, C]`.
    fn scaled(&self, features_nc: &Tensor) -> Result<Tensor> {
        features_nc.broadcast_sub(self.weight("mean_c")?)?.broadcast_div(self.weight("deviation_c")?)
    }

    /// `[cases, K]`.
    fn logits(&self, scaled_nc: &Tensor, segments: &Segments) -> Result<Tensor> {
        let layer = |x: &Tensor, name: &str| {
            linear(x, self.weight(&format!("{name}.weight"))?, self.weight(&format!("{name}.bias"))?)
        };
        let score_n = layer(&layer(scaled_nc, "v")?.tanh()?, "w")?.squeeze(1)?;
        let attention_n = segments.softmax(&score_n)?;
        segments.sum(&layer(scaled_nc, "u")?.broadcast_mul(&attention_n.unsqueeze(1)?)?)
    }
}

fn matrix(features: &[Vec<f32>]) -> Result<Tensor> {
    let n_features = features.first().map_or(0, Vec::len);
    Tensor::from_vec(features.concat(), (features.len(), n_features), &Device::Cpu)
}

/// Weights of the cases `[cases]` in the mean loss that is minimised, and in the one that
/// decides when to stop.
fn weights_of_cases(n_cases: usize, seed: u64) -> Result<[Tensor; 2]> {
    let mut order: Vec<usize> = (0..n_cases).collect();
    order.shuffle(&mut stream(seed, Domain::Attention, 1, 0));
    let mut held_out = vec![false; n_cases];
    if n_cases >= FEWEST_TO_HOLD_OUT {
        order.iter().step_by(HELD_OUT_ONE_IN).for_each(|&case| held_out[case] = true);
    }
    let n_held_out = held_out.iter().filter(|held_out| **held_out).count();
    let weights = |of: &dyn Fn(bool) -> bool, n: usize| {
        let weight = |&held_out: &bool| if of(held_out) { 1.0 / n.max(1) as f32 } else { 0.0 };
        Tensor::from_iter(held_out.iter().map(weight), &Device::Cpu)
    };
    let fitted = weights(&|held_out| !held_out, n_cases - n_held_out)?;
    let deciding = if n_held_out > 0 { weights(&|held_out| held_out, n_held_out)? } else { fitted.clone() };
    Ok([fitted, deciding])
}

/// Which case each slice belongs to.
struct Segments {
    case_n: Tensor,
    n_cases: usize,
}

impl Segments {
    fn new(case_n: &[usize]) -> Result<Self> {
        let n_cases = case_n.iter().max().map_or(0, |max| max + 1);
        let case_n = Tensor::from_iter(case_n.iter().map(|&case| case as u32), &Device::Cpu)?;
        Ok(Self { case_n, n_cases })
    }

    /// Sums over the slices of each case, `[N, K]` to `[cases, K]`.
    fn sum(&self, x_nk: &Tensor) -> Result<Tensor> {
        let zeros = Tensor::zeros((self.n_cases, x_nk.dim(1)?), x_nk.dtype(), &Device::Cpu)?;
        zeros.index_add(&self.case_n, x_nk, 0)
    }

    /// The softmax over the slices of each case, `[N]`.
    fn softmax(&self, x_n: &Tensor) -> Result<Tensor> {
        let mut highest = vec![f32::NEG_INFINITY; self.n_cases];
        let cases = self.case_n.to_vec1::<u32>()?;
        for (case, x) in cases.iter().zip(x_n.to_vec1::<f32>()?) {
            highest[*case as usize] = highest[*case as usize].max(x);
        }
        let highest_n = Tensor::from_iter(cases.iter().map(|&case| highest[case as usize]), &Device::Cpu)?;
        let exp_n = (x_n - highest_n)?.exp()?;
        let sum = self.sum(&exp_n.unsqueeze(1)?)?.squeeze(1)?;
        exp_n / sum.index_select(&self.case_n, 0)?
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    /// One slice in six shows what the case has: a mean over slices drowns it in noise.
    fn bags(seed: u64) -> (Bags, Vec<usize>) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let (mut bags, mut labels) = (Bags::default(), Vec::new());
        for case in 0..60 {
            let label = case % 2;
            labels.push(label);
            for slice in 0..6 {
                let shows = if slice == case % 6 { 1.0 } else { 0.0 };
                let sign = if label == 1 { 1.0 } else { -1.0 };
                let noise = rng.random_range(-1.0..1.0) * (1.0 - shows) * 4.0;
                bags.features.push(vec![
                    shows * 3.0,
                    shows * sign * 3.0 + noise,
                    rng.random_range(-1.0..1.0),
                ]);
                bags.case_n.push(case);
            }
        }
        (bags, labels)
    }

    #[test]
    fn it_finds_the_slice_that_matters() {
        let (train, labels) = bags(1);
        let head = AttentionHead::train(&train, &labels, 2, 7).unwrap();
        let (test, labels) = bags(2);
        let probabilities = head.probabilities(&test).unwrap();
        let right = probabilities.iter().zip(&labels).filter(|(p, label)| p[**label] > 0.5).count();
        assert!(right >= 54, "{right} of 60 right");
        let again = AttentionHead::from_weights(head.weights().clone()).probabilities(&test).unwrap();
        assert_eq!(again, probabilities);
    }

    #[test]
    fn the_softmax_is_taken_within_each_case() {
        let segments = Segments::new(&[0, 1, 0, 1, 1]).unwrap();
        // Far from 0: the highest score of a case is taken off first.
        let scores = Tensor::new(&[200f32, 1.0, 200.0, 1.0, 1.0 + 2f32.ln()], &Device::Cpu).unwrap();
        let got: Vec<f32> = segments.softmax(&scores).unwrap().to_vec1().unwrap();
        for (got, want) in got.iter().zip([0.5, 0.25, 0.5, 0.25, 0.5]) {
            assert!((got - want).abs() < 1e-6, "{got}, expected {want}");
        }
        let x = Tensor::new(&[[1f32, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0], [9.0, 1.0]], &Device::Cpu);
        let sums: Vec<Vec<f32>> = segments.sum(&x.unwrap()).unwrap().to_vec2().unwrap();
        assert_eq!(sums, [[6.0, 8.0], [19.0, 13.0]]);
    }

    #[test]
    fn held_out_cases_are_not_fitted() {
        for (n_cases, n_held_out) in [(19, 0), (20, 4), (61, 13)] {
            let [fitted, deciding] = weights_of_cases(n_cases, 3).unwrap();
            let [fitted, deciding] = [fitted, deciding].map(|weights| weights.to_vec1::<f32>().unwrap());
            for weights in [&fitted, &deciding] {
                assert!((weights.iter().sum::<f32>() - 1.0).abs() < 1e-5);
            }
            let n_apart = fitted.iter().zip(&deciding).filter(|(f, d)| **f == 0.0 && **d > 0.0).count();
            assert_eq!(n_apart, n_held_out, "{n_cases} cases");
            assert!(n_held_out == 0 || fitted.iter().zip(&deciding).all(|(f, d)| f * d == 0.0));
        }
    }
}
