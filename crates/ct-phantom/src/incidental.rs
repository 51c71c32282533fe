//! Findings that healthy and sick lungs share, and that must not be read as pneumonia.

use crate::{
    anatomy::{Anatomy, Cavity, Tube, smoothstep},
    fields::{Slow, fissure_distance},
    noise::ValueNoise,
    seed::{between, chance},
    vessels::LungSampler,
};
use rand::Rng;
use rand_chacha::ChaCha8Rng;

/// Mean density, gradient, dependent density, scars, nodules, emphysema of one case.
#[derive(Clone, Debug)]
pub(crate) struct Parenchyma {
    mean_hu: f32,
    /// Rise in HU from the front of the lung to its back.
    gradient_hu: f32,
    dependent_hu: f32,
    dependent_mm: f32,
    /// Share of emphysema, 0 to 1.
    emphysema: f32,
    /// Scars and bands.
    pub scars: Vec<Tube>,
    /// Small nodules with their HU.
    pub nodules: Vec<(Tube, f32)>,
    noise: ValueNoise,
}

impl Parenchyma {
    pub(crate) fn draw(rng: &mut ChaCha8Rng, sampler: &LungSampler<'_>, anatomy: &Anatomy) -> Self {
        let dependent = chance(rng, 0.55);
        let whole = [0.05 * anatomy.height, 0.97 * anatomy.height];
        let mut scars = Vec::new();
        for _ in 0..rng.random_range(0..4) {
            let side = if chance(rng, 0.5) { 1.0 } else { -1.0 };
            let Some(from) = sampler.point(rng, side, 3.0, whole) else { continue };
            let mut at = from;
            let mut way = [between(rng, -1.0, 1.0), between(rng, -1.0, 1.0), between(rng, -0.25, 0.25)];
            for _ in 0..rng.random_range(2..6) {
                way = way.map(|v| v + between(rng, -0.3, 0.3));
                let to = [at[0] + way[0] * 7.0, at[1] + way[1] * 7.0, at[2] + way[2] * 7.0];
                let radius = between(rng, 0.7, 1.5);
                scars.push(Tube { from: at, to, radius_from: radius, radius_to: radius });
                at = to;
            }
        }
        let mut nodules = Vec::new();
        for _ in 0..rng.random_range(0..4) {
            let side = if chance(rng, 0.5) { 1.0 } else { -1.0 };
            let Some(at) = sampler.point(rng, side, 2.0, whole) else { continue };
            let radius = between(rng, 1.4, 3.6);
            let hu = if chance(rng, 0.2) { 380.0 } else { between(rng, -60.0, 60.0) };
            let to = [at[0] + 0.1, at[1], at[2]];
            nodules.push((Tube { from: at, to, radius_from: radius, radius_to: radius }, hu));
        }
        Self {
            mean_hu: between(rng, -895.0, -835.0),
            gradient_hu: between(rng, 20.0, 75.0),
            dependent_hu: if dependent { between(rng, 60.0, 230.0) } else { 0.0 },
            dependent_mm: between(rng, 5.0, 15.0),
            emphysema: if chance(rng, 0.15) { between(rng, 0.3, 1.0) } else { 0.0 },
            scars,
            nodules,
            noise: ValueNoise::new(rng.random()),
        }
    }

    /// Slow change of density, in `[-1, 1]`.
    pub(crate) fn slow_noise(&self, p: [f32; 3]) -> f32 {
        self.noise.at(p.map(|v| v * 0.04))
    }

    /// Vessels too small to draw: a speckle that is coarser than the scanner's grain.
    pub(crate) fn speckle_noise(&self, p: [f32; 3]) -> f32 {
        self.noise.at([p[0] * 0.30 + 9.0, p[1] * 0.30, p[2] * 0.2])
    }

    /// Where emphysema makes holes; 0 without any.
    pub(crate) fn hole_noise(&self, p: [f32; 3]) -> f32 {
        if self.emphysema == 0.0 {
            return 0.0;
        }
        self.noise.fractal([p[0] * 0.09, p[1] * 0.09 + 20.0, p[2] * 0.07], 2)
    }

    /// HU of lung tissue without vessels at a point.
    ///
    /// `slow` and `speckle` are the interpolated noises of [`crate::fields::Fields`].
    pub(crate) fn hu(
        &self,
        p: [f32; 3],
        cavity: &Cavity,
        slow: &Slow,
        speckle: f32,
        anatomy: &Anatomy,
    ) -> f32 {
        let fine = self.noise.at([p[0] * 0.55, p[1] * 0.55 + 7.0, p[2] * 0.25]);
        let mut hu = self.mean_hu + 0.5 * self.gradient_hu * (p[1] / anatomy.cavity[1]) + 14.0 * slow.density;
        hu += 26.0 * speckle + 30.0 * (fine * fine * fine);
        let fissure = fissure_distance(p[0], slow.fissures);
        hu += 85.0 * (1.0 - smoothstep(0.3, 1.5, fissure));
        if self.dependent_hu > 0.0 {
            let back = smoothstep(0.55, 0.95, cavity.back);
            let depth = (-cavity.lung).max(0.0) / self.dependent_mm;
            let patchy = 0.75 + 0.5 * slow.density;
            hu += self.dependent_hu * back * patchy * (1.0 - smoothstep(0.0, 1.0, depth));
        }
        if self.emphysema > 0.0 {
            let upper = smoothstep(0.3, 0.8, p[2] / anatomy.height);
            hu -= 90.0 * self.emphysema * upper * smoothstep(0.15, 0.4, slow.hole);
        }
        hu.max(-985.0)
    }
}
