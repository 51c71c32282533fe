//! Mixup and CutMix: images of a batch mixed in pairs, with their labels.

use std::ops::Range;

use rand::Rng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::recipe::MixingSpec;

/// How the images of one batch are mixed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Mixture {
    /// Whose pixels each image takes in, `[N]`.
    pub partners: Vec<usize>,
    /// How much of each image stays its own, in [0, 1].
    pub share: f64,
    /// The pixels that are replaced, rows and columns; absent: all are blended.
    cut: Option<(Range<usize>, Range<usize>)>,
}

impl Mixture {
    /// Draws for a batch of `n` images; `None` when mixing is off.
    pub fn draw(
        n: usize,
        (height, width): (usize, usize),
        spec: &MixingSpec,
        rng: &mut ChaCha8Rng,
    ) -> Option<Self> {
        let cuts = match (spec.mixup > 0.0, spec.cutmix > 0.0) {
            (false, false) => return None,
            (true, true) => rng.random::<bool>(),
            (_, cuts) => cuts,
        };
        let mut partners: Vec<usize> = (0..n).collect();
        partners.shuffle(rng);
        let share = beta(if cuts { spec.cutmix } else { spec.mixup }, rng);
        if !cuts {
            return Some(Self { partners, share, cut: None });
        }
        // A rectangle of the partner, of the image's proportions and 1 - share of its area.
        let side = (1.0 - share).sqrt();
        let span = |extent: usize, rng: &mut ChaCha8Rng| {
            let (middle, half) = (rng.random_range(0..extent) as f64, side * extent as f64 / 2.0);
            let clip = |edge: f64| (edge.round().max(0.0) as usize).min(extent);
            clip(middle - half)..clip(middle + half)
        };
        let (rows, cols) = (span(height, rng), span(width, rng));
        let share = 1.0 - (rows.len() * cols.len()) as f64 / (height * width) as f64;
        Some(Self { partners, share, cut: Some((rows, cols)) })
    }

    /// Mixes the pixels of a partner into one image, `width` a row.
    pub fn apply(&self, image: &mut [f32], partner: &[f32], width: usize) {
        match &self.cut {
            Some((rows, cols)) => {
                for row in rows.clone() {
                    let line = row * width + cols.start..row * width + cols.end;
                    image[line.clone()].copy_from_slice(&partner[line]);
                }
            }
            None => {
                for (value, other) in image.iter_mut().zip(partner) {
                    *value = self.share as f32 * *value + (1.0 - self.share) as f32 * other;
                }
            }
        }
    }
}

/// A number of the distribution Beta(a, a), as a quotient of two gamma numbers.
fn beta(a: f64, rng: &mut ChaCha8Rng) -> f64 {
    let (x, y) = (gamma(a, rng), gamma(a, rng));
    if x + y > 0.0 { x / (x + y) } else { f64::from(u8::from(rng.random::<bool>())) }
}

/// A number of the gamma distribution of shape `a` (Marsaglia and Tsang 2000).
fn gamma(a: f64, rng: &mut ChaCha8Rng) -> f64 {
    if a < 1.0 {
        let shrink = (1.0 - rng.random::<f64>()).powf(1.0 / a);
        return gamma(a + 1.0, rng) * shrink;
    }
    let d = a - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    loop {
        let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
        let x = radius * (std::f64::consts::TAU * rng.random::<f64>()).cos();
        let v = (1.0 + c * x).powi(3);
        if v > 0.0 && (1.0 - rng.random::<f64>()).ln() < 0.5 * x * x + d - d * v + d * v.ln() {
            return d * v;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    /// Mean and variance of Beta(a, a) are 1/2 and 1 / (4 (2a + 1)).
    #[test]
    fn shares_have_the_moments_of_the_beta_distribution() {
        for a in [0.2, 1.0, 4.0] {
            let mut rng = ChaCha8Rng::seed_from_u64(2);
            let drawn: Vec<f64> = (0..20_000).map(|_| beta(a, &mut rng)).collect();
            let mean = drawn.iter().sum::<f64>() / drawn.len() as f64;
            let var = drawn.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / drawn.len() as f64;
            assert!((mean - 0.5).abs() < 0.01, "Beta({a}): mean {mean}");
            assert!((var - 0.25 / (2.0 * a + 1.0)).abs() < 0.005, "Beta({a}): variance {var}");
        }
    }

    #[test]
    fn the_share_is_what_is_left_of_each_image() {
        let (height, width) = (6, 8);
        for (mixup, cutmix) in [(1.0, 0.0), (0.0, 1.0)] {
            for seed in 0..20 {
                let whole: Vec<f32> = (0..3).flat_map(|i| vec![i as f32; height * width]).collect();
                let mut rng = ChaCha8Rng::seed_from_u64(seed);
                let spec = MixingSpec { mixup, cutmix };
                let mixture = Mixture::draw(3, (height, width), &spec, &mut rng).unwrap();
                let mut values = whole.clone();
                for (image, &partner) in values.chunks_exact_mut(height * width).zip(&mixture.partners) {
                    mixture.apply(image, &whole[partner * height * width..][..height * width], width);
                }
                for (i, image) in values.chunks_exact(height * width).enumerate() {
                    let mean = f64::from(image.iter().sum::<f32>()) / image.len() as f64;
                    let share = mixture.share;
                    let want = share * i as f64 + (1.0 - share) * mixture.partners[i] as f64;
                    assert!((mean - want).abs() < 1e-5, "{spec:?}: {mean}, expected {want}");
                }
            }
        }
    }
}
