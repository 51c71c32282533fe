//! Mixup and CutMix: images of a batch mixed in pairs, with their labels.

use rand::Rng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::loader::Partner;
use crate::recipe::MixingSpec;

/// Mixes the images of a batch in place; `None` when mixing is off.
///
/// # Shapes
/// - `values`: `[N, height, width]`
pub(crate) fn mix(
    values: &mut [f32],
    label_n: &[usize],
    (height, width): (usize, usize),
    spec: &MixingSpec,
    rng: &mut ChaCha8Rng,
) -> Option<Partner> {
    let cuts = match (spec.mixup > 0.0, spec.cutmix > 0.0) {
        (false, false) => return None,
        (true, true) => rng.random::<bool>(),
        (_, cuts) => cuts,
    };
    let mut partners: Vec<usize> = (0..label_n.len()).collect();
    partners.shuffle(rng);
    let whole = values.to_vec();
    let size = height * width;
    let partner_of = |image: usize| &whole[partners[image] * size..][..size];
    let mut share = beta(if cuts { spec.cutmix } else { spec.mixup }, rng);
    if cuts {
        // A rectangle of the partner, of the image's proportions and 1 - share of its area.
        let side = (1.0 - share).sqrt();
        let span = |extent: usize, rng: &mut ChaCha8Rng| {
            let (middle, half) = (rng.random_range(0..extent) as f64, side * extent as f64 / 2.0);
            let clip = |edge: f64| (edge.round().max(0.0) as usize).min(extent);
            clip(middle - half)..clip(middle + half)
        };
        let (rows, cols) = (span(height, rng), span(width, rng));
        share = 1.0 - (rows.len() * cols.len()) as f64 / size as f64;
        for (image, target) in values.chunks_exact_mut(size).enumerate() {
            for row in rows.clone() {
                let line = row * width + cols.start..row * width + cols.end;
                target[line.clone()].copy_from_slice(&partner_of(image)[line]);
            }
        }
    } else {
        for (image, target) in values.chunks_exact_mut(size).enumerate() {
            for (value, other) in target.iter_mut().zip(partner_of(image)) {
                *value = share as f32 * *value + (1.0 - share) as f32 * other;
            }
        }
    }
    Some(Partner { label_n: partners.iter().map(|&partner| label_n[partner]).collect(), share })
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
                let mut values: Vec<f32> = (0..3).flat_map(|i| vec![i as f32; height * width]).collect();
                let mut rng = ChaCha8Rng::seed_from_u64(seed);
                let spec = MixingSpec { mixup, cutmix };
                let partner = mix(&mut values, &[0, 1, 2], (height, width), &spec, &mut rng).unwrap();
                for (i, image) in values.chunks_exact(height * width).enumerate() {
                    let mean = f64::from(image.iter().sum::<f32>()) / image.len() as f64;
                    let want = partner.share * i as f64 + (1.0 - partner.share) * partner.label_n[i] as f64;
                    assert!((mean - want).abs() < 1e-5, "{spec:?}: {mean}, expected {want}");
                }
            }
        }
    }
}
