//! Attention pooling: a small head that weighs the slices of a case (Ilse et al.,
//! ICML 2018), trained on the features of the frozen network.
//!
//! z = sum_i a_i f_i with a = softmax_i(w tanh(V f_i)); logits = U z + b. The
//! features are scaled to mean 0 and deviation 1 on the training slices first.

use std::collections::BTreeMap;

use candle_core::{D, Device, Result, Tensor, Var};
use candle_nn::ops::{log_softmax, softmax};
use candle_train_ops::linear;
use candle_train_ops::optim::{AdamW, AdamWParams};
use rand::Rng;

use crate::random::{Domain, stream};

const WIDTH: usize = 16;
const N_STEPS: usize = 300;
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
    /// Trains on cases with their labels; a fixed number of steps over all cases
    /// at once, so that nothing but the seed and the features decides.
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
        let membership = membership(&bags.case_n)?;
        let labels = Tensor::from_iter(label_of_case.iter().map(|&l| l as u32), &Device::Cpu)?;
        let one_hot = candle_nn::encoding::one_hot::<f32>(labels, n_classes, 1.0, 0.0)?;
        let params = AdamWParams { weight_decay: WEIGHT_DECAY, ..AdamWParams::default() };
        let mut optimiser = AdamW::with_decay(named_vars, params, |_, var| var.rank() > 1)?;
        for _ in 0..N_STEPS {
            let log_prob = log_softmax(&head.logits(&features_nc, &membership)?, D::Minus1)?;
            let loss = ((log_prob * &one_hot)?.sum_all()? * (-1.0 / label_of_case.len() as f64))?;
            optimiser.step(&loss.backward()?, LEARNING_RATE)?;
        }
        let weights = head.weights.into_iter().map(|(name, tensor)| (name, tensor.detach())).collect();
        Ok(Self { weights })
    }

    /// Probabilities of every case, `[cases][K]`.
    pub fn probabilities(&self, bags: &Bags) -> Result<Vec<Vec<f64>>> {
        let logits = self.logits(&matrix(&bags.features)?, &membership(&bags.case_n)?)?;
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

    /// `[cases, K]`.
    fn logits(&self, features_nc: &Tensor, membership: &Tensor) -> Result<Tensor> {
        let scaled =
            features_nc.broadcast_sub(self.weight("mean_c")?)?.broadcast_div(self.weight("deviation_c")?)?;
        let layer = |x: &Tensor, name: &str| {
            linear(x, self.weight(&format!("{name}.weight"))?, self.weight(&format!("{name}.bias"))?)
        };
        let score_n = layer(&layer(&scaled, "v")?.tanh()?, "w")?.squeeze(1)?;
        // Slices of other cases stand 1e9 below, and so count nothing.
        let outside = membership.affine(1e9, -1e9)?;
        let attention = softmax(&outside.broadcast_add(&score_n)?, D::Minus1)?;
        layer(&attention.matmul(&scaled)?, "u")
    }
}

fn matrix(features: &[Vec<f32>]) -> Result<Tensor> {
    let n_features = features.first().map_or(0, Vec::len);
    Tensor::from_vec(features.concat(), (features.len(), n_features), &Device::Cpu)
}

/// `[cases, slices]`: 1 where a slice is of a case.
fn membership(case_n: &[usize]) -> Result<Tensor> {
    let n_cases = case_n.iter().max().map_or(0, |max| max + 1);
    let mut values = vec![0f32; n_cases * case_n.len()];
    for (slice, &case) in case_n.iter().enumerate() {
        values[case * case_n.len() + slice] = 1.0;
    }
    Tensor::from_vec(values, (n_cases, case_n.len()), &Device::Cpu)
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
}
