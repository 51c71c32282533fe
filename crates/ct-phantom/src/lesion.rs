//! Pneumonia: what it looks like, where it lies, how dense it is.
//!
//! HU ranges: ground glass -700 to -300, consolidation -100 to +60, effusion 0 to 20.

use crate::{
    anatomy::{Anatomy, Cavity, Tube, dot, smoothstep, sub},
    chest_wall::mix,
    cohort::Label,
    fields::lobe_depth,
    noise::ValueNoise,
    seed::{between, chance},
    vessels::{LungSampler, TreeStyle, grow},
};
use rand::Rng;
use rand_chacha::ChaCha8Rng;

const FLUID_HU: f32 = 9.0;

/// Disease of one case; empty for a normal one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disease {
    patches: Vec<Patch>,
    /// Tree-in-bud: small nodules and the twigs between them.
    pub buds: Vec<Tube>,
    /// Bronchi that stay open inside consolidation.
    pub bronchograms: Vec<Tube>,
    effusion: Option<Effusion>,
    /// Heights between which there is disease.
    band: [f32; 2],
}

/// One opacity: an ellipsoid roughened by fractal noise.
#[derive(Clone, Debug)]
struct Patch {
    centre: [f32; 3],
    /// Unit vector in the plane along which `radii[0]` is measured.
    axis: [f32; 2],
    radii: [f32; 3],
    ground_glass_hu: f32,
    solid_hu: f32,
    /// Ellipsoid radius, relative, inside which the patch is consolidated; 0 for none.
    solid: f32,
    /// Relative width of the hazy rim.
    haze: f32,
    /// Strength of crazy paving, 0 to 1.
    paving: f32,
    /// Whether the fissures bound it.
    in_lobe: bool,
    noise: ValueNoise,
}

#[derive(Clone, Copy, Debug)]
struct Effusion {
    side: f32,
    thickness: f32,
    top: f32,
}

/// What disease does to one pixel of lung.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Opacity {
    /// Share of the pixel that is ground glass, and its HU.
    pub ground_glass: f32,
    pub ground_glass_hu: f32,
    /// Share that is consolidation, and its HU.
    pub solid: f32,
    pub solid_hu: f32,
    /// Share that is fluid.
    pub fluid: f32,
}

impl Opacity {
    /// HU of the pixel, given that of its healthy lung.
    pub(crate) fn over(&self, healthy_hu: f32) -> f32 {
        let hu = mix(healthy_hu, self.ground_glass_hu, self.ground_glass);
        mix(mix(hu, self.solid_hu, self.solid), FLUID_HU, self.fluid)
    }

    /// Share of the pixel that is lesion of any kind.
    pub(crate) fn share(&self) -> f32 {
        self.ground_glass.max(self.solid).max(self.fluid)
    }
}

impl Disease {
    /// Draws the disease of a case; `band` are the heights it may span.
    pub(crate) fn draw(
        rng: &mut ChaCha8Rng,
        label: Label,
        severity: f32,
        atypical: bool,
        band: [f32; 2],
        sampler: &LungSampler<'_>,
        anatomy: &Anatomy,
    ) -> Self {
        match label {
            Label::Normal => Self::default(),
            Label::Covid19 => covid(rng, severity, atypical, band, sampler),
            Label::BacterialPneumonia => bacterial(rng, severity, atypical, band, sampler, anatomy),
        }
    }

    /// The part of the disease that can reach the height z.
    pub(crate) fn at_level(&self, z: f32) -> Self {
        let inside = z >= self.band[0] && z <= self.band[1];
        if !inside {
            return Self::default();
        }
        let patches = self.patches.iter().filter(|p| (p.centre[2] - z).abs() < 1.7 * p.radii[2]);
        Self { patches: patches.cloned().collect(), ..self.clone() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.patches.is_empty() && self.effusion.is_none() && self.buds.is_empty()
    }

    /// The opacity at a point of lung. `fissures` as of [`Anatomy::fissures`].
    pub(crate) fn opacity(&self, p: [f32; 3], cavity: &Cavity, anatomy: &Anatomy, edge_mm: f32) -> Opacity {
        let mut out = Opacity::default();
        for patch in &self.patches {
            patch.add(p, anatomy, edge_mm, &mut out);
        }
        if let Some(effusion) = self.effusion.filter(|e| e.side * p[0] > 0.0) {
            let back = smoothstep(0.15, 0.95, cavity.back);
            let depth = effusion.thickness * back * smoothstep(effusion.top, effusion.top - 60.0, p[2]);
            if depth > 1.0 {
                out.fluid = ((cavity.wall + depth) / edge_mm + 0.5).clamp(0.0, 1.0);
            }
        }
        out
    }
}

impl Patch {
    fn add(&self, p: [f32; 3], anatomy: &Anatomy, edge_mm: f32, out: &mut Opacity) {
        let rel = sub(p, self.centre);
        let along = (rel[0] * self.axis[0] + rel[1] * self.axis[1]) / self.radii[0];
        let across = (rel[1] * self.axis[0] - rel[0] * self.axis[1]) / self.radii[1];
        let up = rel[2] / self.radii[2];
        let ideal = (along * along + across * across + up * up).sqrt();
        if ideal > 1.75 {
            return;
        }
        let mut lobe = 1.0;
        if self.in_lobe && p[0] * self.centre[0] > 0.0 {
            lobe = (lobe_depth(anatomy, p, self.centre) / edge_mm + 0.5).clamp(0.0, 1.0);
        }
        let mean = (self.radii[0] * self.radii[1] * self.radii[2]).cbrt();
        let scale = 1.0 / (0.55 * mean + 3.0);
        let rough = self.noise.fractal(p.map(|v| v * scale), 3);
        let q = ideal + 0.48 * rough;
        let haze = lobe * smoothstep(1.0 + 0.5 * self.haze, 1.0 - 0.5 * self.haze, q);
        if haze > 0.0 {
            let fine = self.noise.at(p.map(|v| v * 0.22));
            let mut hu = self.ground_glass_hu + 70.0 * fine + 60.0 * rough;
            if self.paving > 0.0 {
                let web = self.noise.at([p[0] * 0.17 + 50.0, p[1] * 0.17, p[2] * 0.12]);
                hu += 190.0 * self.paving * (1.0 - smoothstep(0.0, 0.20, web.abs()));
            }
            let hu = hu.clamp(-700.0, -300.0);
            if haze > out.ground_glass {
                out.ground_glass_hu = hu;
            }
            out.ground_glass = out.ground_glass.max(haze);
        }
        if self.solid > 0.0 {
            let solid = lobe * smoothstep(self.solid + 0.08, self.solid - 0.08, q);
            if solid > out.solid {
                out.solid = solid;
                let mottle = 14.0 * self.noise.at(p.map(|v| v * 0.3));
                out.solid_hu = (self.solid_hu + mottle).clamp(-100.0, 60.0);
            }
        }
    }
}

/// Multifocal, bilateral, mostly peripheral and basal ground glass.
fn covid(
    rng: &mut ChaCha8Rng,
    severity: f32,
    atypical: bool,
    band: [f32; 2],
    sampler: &LungSampler<'_>,
) -> Disease {
    let n_patches = (4.0 + 13.0 * severity * between(rng, 0.7, 1.2)).round() as usize;
    let lean = if chance(rng, 0.5) { 1.0 } else { -1.0 };
    let density = between(rng, -660.0, -560.0) + 190.0 * severity;
    let mature = if atypical { 0.6 } else { 0.12 + 0.25 * severity };
    let paving = if chance(rng, 0.25 + 0.4 * severity) { between(rng, 0.5, 1.0) } else { 0.0 };
    let mut patches = Vec::new();
    for idx in 0..n_patches {
        // The first two patches make it bilateral; an atypical case may stay on one side.
        let side = match idx {
            0 => lean,
            1 if !atypical => -lean,
            _ if atypical => lean * if chance(rng, 0.85) { 1.0 } else { -1.0 },
            _ => lean * if chance(rng, 0.55) { 1.0 } else { -1.0 },
        };
        let tries = (0..12).filter_map(|_| sampler.point(rng, side, 1.0, band));
        let candidates: Vec<[f32; 3]> = tries.collect();
        let weight = |p: &[f32; 3]| {
            let cavity = sampler.level(p[2]).cavity(p[0], p[1]);
            let basal = 1.0 - (p[2] - band[0]) / (band[1] - band[0]).max(1.0);
            let peripheral = if atypical { 22.0 } else { 9.0 };
            -cavity.wall / peripheral - 1.2 * basal - 0.9 * cavity.back
        };
        let best = candidates.into_iter().min_by(|a, b| weight(a).total_cmp(&weight(b)));
        let Some(centre) = best else { continue };
        let radius = (7.0 + between(rng, 0.25, 1.0) * 32.0 * (0.35 + severity)).min(50.0);
        let radial = [centre[0], centre[1] - sampler.level(centre[2]).cavity_y];
        let norm = (radial[0] * radial[0] + radial[1] * radial[1]).sqrt().max(1.0);
        let core = chance(rng, mature);
        patches.push(Patch {
            centre,
            axis: [radial[0] / norm, radial[1] / norm],
            radii: [radius * between(rng, 0.5, 0.8), radius * between(rng, 0.9, 1.3), radius * 0.9],
            ground_glass_hu: density + between(rng, -60.0, 60.0),
            solid_hu: between(rng, -90.0, 10.0),
            solid: if core { between(rng, 0.25, 0.6) } else { 0.0 },
            haze: between(rng, 0.35, 0.75),
            paving: paving * between(rng, 0.4, 1.0),
            in_lobe: false,
            noise: ValueNoise::new(rng.random()),
        });
    }
    Disease { patches, band, ..Disease::default() }
}

/// Segmental or lobar consolidation, mostly on one side.
fn bacterial(
    rng: &mut ChaCha8Rng,
    severity: f32,
    atypical: bool,
    band: [f32; 2],
    sampler: &LungSampler<'_>,
    anatomy: &Anatomy,
) -> Disease {
    let side = if chance(rng, 0.6) { -1.0 } else { 1.0 };
    let n_foci = 1 + usize::from(chance(rng, 0.35 + 0.3 * severity)) + if atypical { 3 } else { 0 };
    let mut disease = Disease { band, ..Disease::default() };
    let mut home: Option<[f32; 3]> = None;
    for idx in 0..n_foci {
        let other_side = idx > 0 && chance(rng, if atypical { 0.6 } else { 0.08 });
        let side = if other_side { -side } else { side };
        let middle = 0.5 * (band[0] + band[1]);
        let core = [0.5 * (band[0] + middle), 0.5 * (band[1] + middle)];
        let near = home.map_or(core, |h| [(h[2] - 45.0).max(band[0]), (h[2] + 45.0).min(band[1])]);
        let Some(centre) = sampler.point(rng, side, 9.0, near) else { continue };
        if idx == 0 {
            home = Some(centre);
        }
        let shrink = match idx {
            0 if !atypical => 1.0,
            _ => between(rng, 0.3, 0.6),
        };
        let lobar = idx == 0 && !atypical && severity > 0.35 && chance(rng, 0.45);
        let radius =
            (19.0 + 36.0 * severity + between(rng, -3.0, 8.0)) * shrink * if lobar { 1.45 } else { 1.0 };
        let hilum = anatomy.hilum(side)[0];
        let radial = [centre[0] - hilum[0], centre[1] - hilum[1]];
        let norm = (radial[0] * radial[0] + radial[1] * radial[1]).sqrt().max(1.0);
        let patch = Patch {
            centre,
            axis: [radial[0] / norm, radial[1] / norm],
            radii: [radius * between(rng, 1.0, 1.35), radius * between(rng, 0.65, 0.95), radius],
            ground_glass_hu: between(rng, -520.0, -340.0),
            solid_hu: between(rng, -25.0, 38.0),
            solid: if atypical { between(rng, 0.4, 0.7) } else { between(rng, 0.72, 0.92) },
            haze: if atypical { 0.5 } else { between(rng, 0.15, 0.35) },
            paving: 0.0,
            in_lobe: true,
            noise: ValueNoise::new(rng.random()),
        };
        disease.bronchograms.extend(bronchogram(rng, sampler, side, &patch, anatomy));
        if chance(rng, 0.65) {
            disease.buds.extend(tree_in_bud(rng, sampler, &patch));
        }
        disease.patches.push(patch);
    }
    disease.buds.retain(|tube| tube.from[2] > band[0] && tube.from[2] < band[1]);
    if chance(rng, 0.15 + 0.3 * severity) {
        let top = home.map_or(band[1], |h| (h[2] + 50.0).min(band[1]));
        disease.effusion = Some(Effusion { side, thickness: between(rng, 9.0, 14.0) + 18.0 * severity, top });
    }
    disease
}

/// Bronchi that run from the hilum through the patch.
fn bronchogram(
    rng: &mut ChaCha8Rng,
    sampler: &LungSampler<'_>,
    side: f32,
    patch: &Patch,
    anatomy: &Anatomy,
) -> Vec<Tube> {
    let root = anatomy.hilum(side)[2];
    let style = TreeStyle { n_leaves: 160, leaf_radius: 0.75, root_radius: 3.6, margin: 5.0, bend: 3.0 };
    let inside = |p: [f32; 3]| {
        let rel = sub(p, patch.centre);
        dot(rel, rel).sqrt() < patch.radii[0].max(patch.radii[1])
    };
    grow(rng, sampler, side, root, &style).into_iter().filter(|tube| inside(tube.to)).collect()
}

/// Clusters of small nodules on twigs around a patch.
fn tree_in_bud(rng: &mut ChaCha8Rng, sampler: &LungSampler<'_>, patch: &Patch) -> Vec<Tube> {
    let mut tubes = Vec::new();
    for _ in 0..rng.random_range(5..14) {
        let reach = between(rng, 0.9, 1.9);
        let direction = [(); 3].map(|()| between(rng, -1.0, 1.0));
        let stem = [0, 1, 2].map(|k| patch.centre[k] + direction[k] * reach * patch.radii[k]);
        if sampler.level(stem[2]).cavity(stem[0], stem[1]).lung > -5.0 || stem[0] * patch.centre[0] < 0.0 {
            continue;
        }
        for _ in 0..rng.random_range(3..8) {
            let bud = stem.map(|v| v + between(rng, -7.0, 7.0));
            let radius = between(rng, 1.2, 2.3);
            tubes.push(Tube { from: stem, to: bud, radius_from: 0.7, radius_to: 0.7 });
            let tip = [bud[0] + 0.1, bud[1], bud[2]];
            tubes.push(Tube { from: bud, to: tip, radius_from: radius, radius_to: radius });
        }
    }
    tubes
}
