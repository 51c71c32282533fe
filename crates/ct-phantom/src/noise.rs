//! Noise: 3-D value noise that shapes tissue, and the grain of a reconstruction kernel.

use crate::{scanner::Kernel, seed};

/// Width and height of an image, in pixels.
pub(crate) const SIZE: usize = 512;

/// Smooth lattice noise over millimetres; a pure function of seed and position.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ValueNoise {
    seed: u32,
}

impl ValueNoise {
    pub(crate) fn new(seed: u32) -> Self {
        Self { seed }
    }

    /// Value in `[-1, 1]` at a position given in lattice cells.
    pub(crate) fn at(self, p: [f32; 3]) -> f32 {
        // `f32::floor` is a library call on baseline x86-64; this is exact for |p| below 2^24.
        let cell = p.map(|v| {
            let whole = v as i32 as f32;
            if whole > v { whole - 1.0 } else { whole }
        });
        let fade = |x: f32| x * x * (3.0 - 2.0 * x);
        let t = [fade(p[0] - cell[0]), fade(p[1] - cell[1]), fade(p[2] - cell[2])];
        let [x, y, z] = cell.map(|c| c as i32);
        let lerp = |a: f32, b: f32, t: f32| a + (b - a) * t;
        let row =
            |dy: i32, dz: i32| lerp(self.corner(x, y + dy, z + dz), self.corner(x + 1, y + dy, z + dz), t[0]);
        let plane = |dz: i32| lerp(row(0, dz), row(1, dz), t[1]);
        lerp(plane(0), plane(1), t[2])
    }

    /// Sum of octaves, each half as strong and twice as fine; within about `[-1, 1]`.
    pub(crate) fn fractal(self, p: [f32; 3], octaves: u32) -> f32 {
        let (mut sum, mut weight, mut scale, mut total) = (0.0, 1.0, 1.0, 0.0);
        for octave in 0..octaves {
            let layer = Self { seed: self.seed.wrapping_add(octave.wrapping_mul(0x9E37_79B9)) };
            sum += weight * layer.at(p.map(|v| v * scale));
            total += weight;
            weight *= 0.5;
            scale *= 2.03;
        }
        sum / total * 1.4
    }

    fn corner(self, x: i32, y: i32, z: i32) -> f32 {
        let mut h = self.seed
            ^ (x as u32).wrapping_mul(0x8DA6_B343)
            ^ (y as u32).wrapping_mul(0xD816_3841)
            ^ (z as u32).wrapping_mul(0xCB1A_B31F);
        h ^= h >> 15;
        h = h.wrapping_mul(0x2C1B_3C6D);
        h ^= h >> 12;
        h = h.wrapping_mul(0x297A_2D39);
        h ^= h >> 15;
        (h >> 8) as f32 * (2.0 / 16_777_216.0) - 1.0
    }
}

/// Periodic tiles of filtered Gaussian noise, one per kernel, of unit standard deviation.
pub(crate) struct Grain {
    tiles: Vec<Vec<f32>>,
}

impl Grain {
    pub(crate) fn new(cohort_seed: u64) -> Self {
        Self { tiles: Kernel::ALL.iter().map(|&kernel| tile(cohort_seed, kernel)).collect() }
    }

    /// The tile of a kernel, row-major `[512 * 512]`.
    pub(crate) fn tile(&self, kernel: Kernel) -> &[f32] {
        &self.tiles[kernel as usize]
    }
}

/// White noise through a band pass: back-projection removes the lowest frequencies
/// (ramp filter), the kernel the highest.
fn tile(cohort_seed: u64, kernel: Kernel) -> Vec<f32> {
    let mut rng = seed::stream(cohort_seed, &["grain", kernel.name()]);
    let white: Vec<f32> = (0..SIZE * SIZE).map(|_| seed::normal(&mut rng)).collect();
    let fine = blur(&white, kernel.grain_sigma_px());
    let coarse = blur(&white, kernel.grain_sigma_px() * 2.2);
    let mut grain: Vec<f32> = fine.iter().zip(&coarse).map(|(f, c)| f - 0.8 * c).collect();
    let variance = grain.iter().map(|v| v * v).sum::<f32>() / grain.len() as f32;
    let scale = 1.0 / variance.sqrt().max(1e-6);
    grain.iter_mut().for_each(|v| *v *= scale);
    grain
}

/// Separable Gaussian blur with wrap-around, `[512 * 512]`.
fn blur(image: &[f32], sigma_px: f32) -> Vec<f32> {
    let reach = (sigma_px * 3.0).ceil() as usize;
    let weights: Vec<f32> = (0..=2 * reach)
        .map(|i| (-(i as f32 - reach as f32).powi(2) / (2.0 * sigma_px * sigma_px)).exp())
        .collect();
    let total: f32 = weights.iter().sum();
    let pass = |source: &[f32], stride: usize, other: usize| -> Vec<f32> {
        (0..SIZE * SIZE)
            .map(|idx| {
                let along = idx / stride % SIZE;
                let across = idx / other % SIZE * other;
                let taps = weights.iter().enumerate();
                taps.map(|(i, w)| w * source[across + (along + SIZE + i - reach) % SIZE * stride])
                    .sum::<f32>()
                    / total
            })
            .collect()
    };
    let rows = pass(image, 1, SIZE);
    pass(&rows, SIZE, 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn value_noise_is_smooth_and_bounded() {
        let noise = ValueNoise::new(7);
        let mut last = noise.at([0.0, 0.3, 0.7]);
        for i in 1..2000 {
            let value = noise.at([i as f32 * 0.01, 0.3, 0.7]);
            assert!(value.abs() <= 1.0 && (value - last).abs() < 0.05, "step {i}: {last} to {value}");
            last = value;
        }
    }

    #[test]
    fn grain_has_unit_deviation_and_no_mean() {
        let grain = Grain::new(1);
        for kernel in Kernel::ALL {
            let tile = grain.tile(kernel);
            let mean = tile.iter().sum::<f32>() / tile.len() as f32;
            let variance = tile.iter().map(|v| v * v).sum::<f32>() / tile.len() as f32;
            assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.01, "{kernel:?}: {mean} {variance}");
        }
    }
}
