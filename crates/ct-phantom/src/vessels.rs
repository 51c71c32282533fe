//! Branching trees of vessels and bronchi, and how tubes are drawn into a slice.

use crate::{
    anatomy::{Anatomy, Level, Tube, dot, sub},
    geometry::{Grid, SLICE_MM},
    noise::SIZE,
    seed::between,
};
use rand::Rng;
use rand_chacha::ChaCha8Rng;

/// Distance between the levels at which points are tested for lying in a lung.
const LEVEL_STEP_MM: f32 = 4.0;

/// Draws points inside the lungs.
pub(crate) struct LungSampler<'a> {
    levels: Vec<Level<'a>>,
}

impl<'a> LungSampler<'a> {
    pub(crate) fn new(anatomy: &'a Anatomy) -> Self {
        let n_levels = (anatomy.height / LEVEL_STEP_MM) as usize + 1;
        Self { levels: (0..n_levels).map(|i| Level::new(anatomy, i as f32 * LEVEL_STEP_MM)).collect() }
    }

    /// The level nearest to a height.
    pub(crate) fn level(&self, z: f32) -> &Level<'a> {
        let idx = (z / LEVEL_STEP_MM).round().max(0.0) as usize;
        &self.levels[idx.min(self.levels.len() - 1)]
    }

    /// A point at least `depth` millimetres inside the lung of that side, between two heights;
    /// `None` where 400 tries found none.
    pub(crate) fn point(
        &self,
        rng: &mut ChaCha8Rng,
        side: f32,
        depth: f32,
        z_range: [f32; 2],
    ) -> Option<[f32; 3]> {
        let [a, b] = self.levels[0].anatomy.cavity;
        (0..400).find_map(|_| {
            let z = between(rng, z_range[0], z_range[1]);
            let p = [side * between(rng, 4.0, a), between(rng, -b - 8.0, b + 20.0), z];
            (self.level(z).cavity(p[0], p[1]).lung < -depth).then_some(p)
        })
    }
}

/// How a tree grows.
pub(crate) struct TreeStyle {
    pub n_leaves: usize,
    pub leaf_radius: f32,
    pub root_radius: f32,
    /// Distance that the leaves keep from the lung's surface.
    pub margin: f32,
    /// Sideways bend of the branches, in millimetres.
    pub bend: f32,
}

/// Grows a tree from a root to random leaves inside one lung.
///
/// Each leaf joins the nearest node that is closer to the root than itself;
/// radii follow Murray's law (a parent's cube is the sum of its children's).
pub(crate) fn grow(
    rng: &mut ChaCha8Rng,
    sampler: &LungSampler<'_>,
    side: f32,
    root: [f32; 3],
    style: &TreeStyle,
) -> Vec<Tube> {
    struct Node {
        at: [f32; 3],
        from_root: f32,
        parent: usize,
        load: f32,
    }
    let height = sampler.levels[0].anatomy.height;
    let distance = |a: [f32; 3], b: [f32; 3]| dot(sub(a, b), sub(a, b)).sqrt();
    let mut leaves: Vec<[f32; 3]> = (0..style.n_leaves)
        .filter_map(|_| sampler.point(rng, side, style.margin, [0.03 * height, 0.99 * height]))
        .collect();
    leaves.sort_by(|a, b| distance(*a, root).total_cmp(&distance(*b, root)));

    let mut nodes = vec![Node { at: root, from_root: 0.0, parent: 0, load: 0.0 }];
    for leaf in leaves {
        let reach = distance(leaf, root);
        let mut best = (0, f32::INFINITY);
        for (idx, node) in nodes.iter().enumerate() {
            // A branch that turns back on itself looks wrong: nodes count as farther the
            // more the way to the leaf leads away from the root-to-node direction.
            let way = sub(leaf, node.at);
            let length = dot(way, way).sqrt();
            if length >= best.1 || node.from_root > reach * 0.93 {
                continue;
            }
            let out = sub(node.at, root);
            let forward = dot(way, out) / (length * node.from_root).max(1e-3);
            let cost = length * (1.45 - 0.45 * forward);
            if cost < best.1 {
                best = (idx, cost);
            }
        }
        let start = nodes[best.0].at;
        let length = distance(leaf, start);
        let n_steps = (length / 8.0).ceil().max(1.0) as usize;
        let bend = [(); 3].map(|()| between(rng, -style.bend, style.bend));
        let mut parent = best.0;
        for step in 1..=n_steps {
            let t = step as f32 / n_steps as f32;
            let bow = 4.0 * t * (1.0 - t) * (length / 40.0).min(1.0);
            let at = [0, 1, 2].map(|k| start[k] + t * (leaf[k] - start[k]) + bow * bend[k]);
            let from_root = distance(at, root);
            nodes.push(Node { at, from_root, parent, load: 0.0 });
            parent = nodes.len() - 1;
        }
        nodes[parent].load = rng.random::<f32>() * 0.8 + 0.6;
    }
    // Children come after their parents, so one backward pass sums the loads.
    for idx in (1..nodes.len()).rev() {
        let (parent, load) = (nodes[idx].parent, nodes[idx].load);
        nodes[parent].load += load;
    }
    let total = nodes[0].load.max(1.0);
    let radius = |load: f32| {
        let murray = style.leaf_radius * load.max(0.3).cbrt();
        let root = style.root_radius / (style.leaf_radius * total.cbrt());
        // Blend so that the root has its anatomical radius and the leaves theirs.
        murray * (1.0 + (root - 1.0) * (load / total).cbrt())
    };
    nodes[1..]
        .iter()
        .map(|node| Tube {
            from: nodes[node.parent].at,
            to: node.at,
            radius_from: radius(node.load).max(radius(nodes[node.parent].load).min(radius(node.load) * 1.15)),
            radius_to: radius(node.load),
        })
        .collect()
}

/// Coverage, 0 to 1, of each pixel by tubes, averaged over the slice's thickness.
pub(crate) struct Coverage {
    planes: [Vec<f32>; 3],
    touched: Vec<u32>,
}

impl Coverage {
    pub(crate) fn new() -> Self {
        Self { planes: [(); 3].map(|()| vec![0.0; SIZE * SIZE]), touched: Vec::new() }
    }

    /// Draws tubes, grown by `extra` millimetres, and hands each covered pixel to `paint`.
    pub(crate) fn stamp(
        &mut self,
        tubes: &[Tube],
        extra: f32,
        z: f32,
        grid: &Grid,
        edge_mm: f32,
        mut paint: impl FnMut(usize, f32),
    ) {
        let half = 0.5 * SLICE_MM;
        for tube in tubes.iter().filter(|tube| tube.touches(z, half + extra)) {
            // A leak of the edge width keeps thin tubes from falling between pixels.
            let reach = tube.radius_from.max(tube.radius_to) + extra + edge_mm;
            let (a, b) = (grid.to_pixel(tube.from), grid.to_pixel(tube.to));
            // Only the part of the axis inside the slab can be seen.
            let dz = tube.to[2] - tube.from[2];
            let clip = |limit: f32| ((limit - tube.from[2]) / dz).clamp(0.0, 1.0);
            let (mut t0, mut t1) = (0.0, 1.0);
            if dz.abs() > 1e-3 {
                let (lo, hi) = (clip(z - half - reach), clip(z + half + reach));
                (t0, t1) = (lo.min(hi), lo.max(hi));
            }
            let at = |t: f32, k: usize| a[k] + t * (b[k] - a[k]);
            let pad = reach / grid.spacing + 1.0;
            let range = |k: usize| {
                let (lo, hi) = (at(t0, k).min(at(t1, k)) - pad, at(t0, k).max(at(t1, k)) + pad);
                (lo.max(0.0) as usize, (hi.max(0.0) as usize).min(SIZE - 1))
            };
            let ((c0, c1), (r0, r1)) = (range(0), range(1));
            for (sub_idx, plane) in self.planes.iter_mut().enumerate() {
                let z = z + (sub_idx as f32 - 1.0) * SLICE_MM / 3.0;
                if !tube.touches(z, extra + edge_mm) {
                    continue;
                }
                for row in r0..=r1 {
                    for col in c0..=c1 {
                        let [x, y] = grid.to_patient(col as f32, row as f32);
                        let distance = tube.distance([x, y, z]) - extra;
                        let cover = (0.5 - distance / edge_mm).clamp(0.0, 1.0);
                        let idx = row * SIZE + col;
                        if cover > plane[idx] {
                            plane[idx] = cover;
                            self.touched.push(idx as u32);
                        }
                    }
                }
            }
        }
        for &idx in &self.touched {
            let idx = idx as usize;
            let cover = (self.planes[0][idx] + self.planes[1][idx] + self.planes[2][idx]) / 3.0;
            if cover > 0.0 {
                paint(idx, cover);
                self.planes.iter_mut().for_each(|plane| plane[idx] = 0.0);
            }
        }
        self.touched.clear();
    }
}
