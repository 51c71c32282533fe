//! Smooth fields of one slice, computed on coarse nodes and interpolated between them.
//!
//! Distances and slow noise change little from pixel to pixel; computing them at every
//! second or fourth one is what makes a slice take hundredths of a second.

use crate::{
    anatomy::{Anatomy, Cavity, Level},
    geometry::Grid,
    incidental::Parenchyma,
    lesion::{Disease, Opacity},
    noise::SIZE,
};

/// `K` values at each node of a square lattice over the image, `STEP` pixels apart.
struct Lattice<const K: usize, const STEP: usize> {
    nodes: Vec<[f32; K]>,
}

impl<const K: usize, const STEP: usize> Lattice<K, STEP> {
    const SIDE: usize = SIZE / STEP + 1;

    /// Computes every node from its patient position; `(column, row)` is that of its pixel.
    fn compute(grid: &Grid, value: impl Fn([f32; 2], (usize, usize)) -> [f32; K]) -> Self {
        let nodes = (0..Self::SIDE * Self::SIDE)
            .map(|idx| {
                let (col, row) = (idx % Self::SIDE * STEP, idx / Self::SIDE * STEP);
                value(grid.to_patient(col as f32, row as f32), (col, row))
            })
            .collect();
        Self { nodes }
    }

    /// Bilinear value at a pixel.
    #[inline]
    fn at(&self, col: usize, row: usize) -> [f32; K] {
        let first = row / STEP * Self::SIDE + col / STEP;
        let (tx, ty) = ((col % STEP) as f32 / STEP as f32, (row % STEP) as f32 / STEP as f32);
        let (a, b) = (&self.nodes[first], &self.nodes[first + 1]);
        let (c, d) = (&self.nodes[first + Self::SIDE], &self.nodes[first + Self::SIDE + 1]);
        std::array::from_fn(|k| {
            let (top, bottom) = (a[k] + tx * (b[k] - a[k]), c[k] + tx * (d[k] - c[k]));
            top + ty * (bottom - top)
        })
    }

    /// Value of the node at or before a pixel.
    fn node(&self, col: usize, row: usize) -> &[f32; K] {
        &self.nodes[(row / STEP).min(Self::SIDE - 1) * Self::SIDE + (col / STEP).min(Self::SIDE - 1)]
    }
}

/// Slow fields at one pixel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slow {
    /// Signed distance to the skin, negative inside.
    pub skin: f32,
    /// Noise of about 9 mm, 20 mm and 8 mm, in `[-1, 1]`.
    pub grain: f32,
    pub strand: f32,
    pub nodes: f32,
    /// Noise stretched from side to side: fat between muscle fibres.
    pub marbling: f32,
    /// Two octaves: glandular tissue.
    pub gland: f32,
    /// Slow change of lung density.
    pub density: f32,
    /// As of [`Anatomy::fissures`].
    pub fissures: [f32; 2],
    /// Two octaves: holes of emphysema.
    pub hole: f32,
}

/// All fields of one slice.
pub(crate) struct Fields {
    slow: Lattice<10, 4>,
    cavity: Lattice<7, 2>,
    opacity: Option<Lattice<5, 2>>,
}

/// Stands for "far outside" where nothing is computed.
const FAR: f32 = 60.0;

impl Fields {
    pub(crate) fn compute(
        grid: &Grid,
        level: &Level<'_>,
        parenchyma: &Parenchyma,
        disease: &Disease,
        edge_mm: f32,
    ) -> Self {
        let anatomy = level.anatomy;
        let z = level.z;
        let w = anatomy.wobble;
        let slow: Lattice<10, 4> = Lattice::compute(grid, |[x, y], _| {
            let skin = level.body(x, y);
            if skin > 12.0 {
                return [skin, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
            }
            let (oblique, horizontal) = anatomy.fissures([x, y, z]);
            [
                skin,
                w.at([x * 0.11, y * 0.11, z * 0.06]),
                w.at([x * 0.05 + 40.0, y * 0.05, z * 0.03]),
                w.at([x * 0.12, y * 0.12 + 33.0, z * 0.1]),
                w.at([x * 0.07, y * 0.16 + 11.0, z * 0.05]),
                w.fractal([x * 0.06, y * 0.09 + 70.0, z * 0.04], 2),
                parenchyma.slow_noise([x, y, z]),
                oblique,
                horizontal,
                parenchyma.hole_noise([x, y, z]),
            ]
        });
        let cavity: Lattice<7, 2> = Lattice::compute(grid, |[x, y], (col, row)| {
            if slow.node(col, row)[0] > 0.0 {
                return [FAR, FAR, FAR, -FAR, 0.0, FAR, 0.0];
            }
            let (wall, angle) = level.wall(x, y);
            if wall > 10.0 {
                return [wall, FAR, FAR, -FAR, angle.sin(), FAR, 0.0];
            }
            let c = level.cavity(x, y);
            let speckle = parenchyma.speckle_noise([x, y, z]);
            [c.wall, c.lung, c.blood, c.below, angle.sin(), c.spine, speckle]
        });
        let opacity = (!disease.is_empty()).then(|| {
            Lattice::compute(grid, |[x, y], (col, row)| {
                let here = to_cavity(cavity.node(col, row));
                if here.lung > 3.0 {
                    return [0.0; 5];
                }
                let o = disease.opacity([x, y, z], &here, anatomy, edge_mm);
                // Weighted by the shares, so that HU does not fade towards 0 at the border.
                [o.ground_glass, o.ground_glass * o.ground_glass_hu, o.solid, o.solid * o.solid_hu, o.fluid]
            })
        });
        Self { slow, cavity, opacity }
    }

    /// Whether a pixel certainly lies outside the body.
    #[inline]
    pub(crate) fn is_outside(&self, col: usize, row: usize) -> bool {
        self.slow.node(col, row)[0] > 12.0
    }

    #[inline]
    pub(crate) fn slow(&self, col: usize, row: usize) -> Slow {
        let [skin, grain, strand, nodes, marbling, gland, density, oblique, horizontal, hole] =
            self.slow.at(col, row);
        let fissures = [oblique, horizontal];
        Slow { skin, grain, strand, nodes, marbling, gland, density, fissures, hole }
    }

    /// Distances in the cavity, and the speckle of the lung.
    #[inline]
    pub(crate) fn cavity(&self, col: usize, row: usize) -> (Cavity, f32) {
        let values = self.cavity.at(col, row);
        (to_cavity(&values), values[6])
    }

    /// The opacity at a pixel; none where there is no disease.
    pub(crate) fn opacity(&self, col: usize, row: usize) -> Option<Opacity> {
        let [ground_glass, ground_glass_sum, solid, solid_sum, fluid] = self.opacity.as_ref()?.at(col, row);
        Some(Opacity {
            ground_glass,
            ground_glass_hu: ground_glass_sum / ground_glass.max(1e-6),
            solid,
            solid_hu: solid_sum / solid.max(1e-6),
            fluid,
        })
    }
}

fn to_cavity(values: &[f32; 7]) -> Cavity {
    let &[wall, lung, blood, below, back, spine, _] = values;
    Cavity { wall, lung, blood, below, back, spine }
}

/// Distance to the nearest fissure; the right lung alone has a horizontal one, in front of the oblique.
pub(crate) fn fissure_distance(x: f32, [oblique, horizontal]: [f32; 2]) -> f32 {
    if x < 0.0 && oblique < 0.0 {
        // It lies nearly in the plane of the slice: a broad faint veil.
        return oblique.abs().min(0.8 + 0.22 * horizontal.abs());
    }
    oblique.abs()
}

/// Whether two points on one side lie in the same lobe, as a distance: positive inside.
pub(crate) fn lobe_depth(anatomy: &Anatomy, p: [f32; 3], home: [f32; 3]) -> f32 {
    let (here, there) = (anatomy.fissures(p), anatomy.fissures(home));
    let depth = here.0 * there.0.signum();
    if p[0] < 0.0 && there.0 < 0.0 { depth.min(here.1 * there.1.signum()) } else { depth }
}
