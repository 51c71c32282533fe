//! The healthy body of one case, as signed distances in millimetres.
//!
//! Axes follow DICOM: x to the patient's left, y to the back, z to the head;
//! z = 0 is the lowest edge of the lungs. A distance is negative inside. All
//! dimensions are drawn from the case's seed around those of an adult chest.

use crate::{
    noise::ValueNoise,
    seed::{between, chance},
};
use rand::Rng;
use rand_chacha::ChaCha8Rng;

/// Directions in a polar outline.
const N_ANGLES: usize = 720;

/// Sizes and positions that make one person differ from the next.
#[derive(Clone, Debug)]
pub(crate) struct Anatomy {
    /// Lung height, base to apex.
    pub height: f32,
    /// Half width and half depth of the body at mid-chest.
    pub body: [f32; 2],
    /// Half width and half depth of the thoracic cavity.
    pub cavity: [f32; 2],
    pub cavity_y: f32,
    pub breast: f32,
    pub spine_y: f32,
    pub heart_scale: f32,
    pub heart_shift: f32,
    /// Dome height of the right and left diaphragm, as a fraction of the lung height.
    pub dome: [f32; 2],
    /// Low harmonics of the outlines: amplitude and phase.
    harmonics: [[f32; 2]; 4],
    /// Distance between ribs, their drop from back to front, and offset.
    pub rib: [f32; 3],
    pub vessels: Vec<Tube>,
    pub trachea: Vec<Tube>,
    /// Rotation of the patient on the table, radians, and shift in mm.
    pub roll: f32,
    pub shift: [f32; 2],
    pub wobble: ValueNoise,
}

/// A straight tapered tube.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tube {
    pub from: [f32; 3],
    pub to: [f32; 3],
    pub radius_from: f32,
    pub radius_to: f32,
}

impl Tube {
    /// Signed distance to the tube's surface.
    pub(crate) fn distance(&self, p: [f32; 3]) -> f32 {
        let axis = sub(self.to, self.from);
        let rel = sub(p, self.from);
        let t = (dot(rel, axis) / dot(axis, axis).max(1e-6)).clamp(0.0, 1.0);
        let off = [rel[0] - t * axis[0], rel[1] - t * axis[1], rel[2] - t * axis[2]];
        dot(off, off).sqrt() - (self.radius_from + t * (self.radius_to - self.radius_from))
    }

    /// Whether any part lies within `reach` of the height z.
    pub(crate) fn touches(&self, z: f32, reach: f32) -> bool {
        let r = self.radius_from.max(self.radius_to) + reach;
        z > self.from[2].min(self.to[2]) - r && z < self.from[2].max(self.to[2]) + r
    }
}

pub(crate) fn sub(a: [f32; 3], b: [f32; 3]) -> [f32; 3] {
    [a[0] - b[0], a[1] - b[1], a[2] - b[2]]
}

pub(crate) fn dot(a: [f32; 3], b: [f32; 3]) -> f32 {
    a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
}

/// Rises smoothly from 0 at `lo` to 1 at `hi`.
pub(crate) fn smoothstep(lo: f32, hi: f32, x: f32) -> f32 {
    let t = ((x - lo) / (hi - lo)).clamp(0.0, 1.0);
    t * t * (3.0 - 2.0 * t)
}

/// Union with a fillet of about `k` millimetres.
pub(crate) fn smooth_min(a: f32, b: f32, k: f32) -> f32 {
    let h = (k - (a - b).abs()).max(0.0) / k;
    a.min(b) - h * h * k * 0.25
}

/// Approximate signed distance to an axis-aligned ellipse about the origin.
pub(crate) fn ellipse(x: f32, y: f32, rx: f32, ry: f32) -> f32 {
    let k0 = ((x / rx).powi(2) + (y / ry).powi(2)).sqrt();
    let k1 = ((x / (rx * rx)).powi(2) + (y / (ry * ry)).powi(2)).sqrt();
    if k1 < 1e-6 { -rx.min(ry) } else { k0 * (k0 - 1.0) / k1 }
}

impl Anatomy {
    /// Draws a person. `min_height_mm` is what the case's slices need; taller people get taller lungs.
    pub(crate) fn draw(rng: &mut ChaCha8Rng, min_height_mm: f32) -> Self {
        let size = between(rng, 0.0, 1.0);
        let height = (between(rng, 215.0, 250.0) + 35.0 * size).max(min_height_mm);
        let cavity = [between(rng, 108.0, 120.0) + 14.0 * size, between(rng, 78.0, 88.0) + 10.0 * size];
        let fat = between(rng, 6.0, 15.0) + if chance(rng, 0.25) { between(rng, 5.0, 13.0) } else { 0.0 };
        let wall = [between(rng, 17.0, 22.0) + fat, between(rng, 14.0, 18.0) + fat * 0.8];
        let body = [cavity[0] + wall[0], cavity[1] + wall[1] + 8.0];
        let spine_y = cavity[1] * 0.54 - 4.0;
        let h = height;
        let k = between(rng, 0.9, 1.1);
        let sway = between(rng, -3.0, 3.0);
        let tube = |from: [f32; 3], to: [f32; 3], r0: f32, r1: f32| Tube {
            from: [from[0] * k + sway, from[1] * k, from[2] * h],
            to: [to[0] * k + sway, to[1] * k, to[2] * h],
            radius_from: r0 * k,
            radius_to: r1 * k,
        };
        let back = spine_y - 8.0;
        let aorta = between(rng, 0.88, 1.2);
        let vessels = vec![
            tube([-13.0, -20.0, 0.40], [-13.0, -18.0, 0.62], 15.0 * aorta, 15.0 * aorta),
            tube([-13.0, -18.0, 0.62], [-2.0, -10.0, 0.695], 14.0 * aorta, 13.0 * aorta),
            tube([-2.0, -10.0, 0.695], [14.0, 10.0, 0.70], 13.0 * aorta, 12.5 * aorta),
            tube([14.0, 10.0, 0.70], [23.0, back - 6.0, 0.64], 12.5 * aorta, 12.0 * aorta),
            tube([23.0, back - 6.0, 0.64], [19.0, back - 2.0, 0.02], 12.0 * aorta, 10.5 * aorta),
            tube([10.0, -30.0, 0.42], [16.0, -14.0, 0.55], 14.0, 13.0),
            tube([12.0, -10.0, 0.54], [-40.0, 2.0, 0.52], 11.0, 8.5),
            tube([-40.0, 2.0, 0.52], [-47.0, 12.0, 0.43], 8.0, 6.0),
            tube([16.0, -14.0, 0.55], [40.0, 10.0, 0.57], 12.0, 9.0),
            tube([40.0, 10.0, 0.57], [44.0, 20.0, 0.45], 8.0, 6.0),
            tube([-27.0, -12.0, 0.38], [-26.0, -16.0, 0.84], 9.5, 8.5),
            tube([-8.0, -14.0, 0.70], [-20.0, -4.0, 0.93], 6.5, 6.0),
            tube([4.0, -8.0, 0.71], [15.0, 0.0, 0.96], 4.5, 4.0),
            tube([14.0, 6.0, 0.70], [25.0, 8.0, 0.97], 5.0, 5.0),
            tube([-26.0, -16.0, 0.80], [20.0, -26.0, 0.88], 7.0, 6.0),
            tube([5.0, back - 14.0, 0.1], [3.0, back - 16.0, 0.97], 7.5, 6.5),
            tube([-34.0, 4.0, 0.40], [10.0, 8.0, 0.42], 9.0, 12.0),
            tube([40.0, 6.0, 0.41], [10.0, 8.0, 0.42], 8.0, 12.0),
        ];
        let trachea = vec![
            tube([0.0, 4.0, 1.15], [-2.0, back - 26.0, 0.62], 8.2, 8.4),
            tube([-2.0, back - 26.0, 0.62], [-30.0, back - 20.0, 0.54], 7.4, 6.4),
            tube([-2.0, back - 26.0, 0.62], [34.0, back - 20.0, 0.52], 7.0, 5.8),
        ];
        let harmonics =
            [0; 4].map(|_| [between(rng, -0.016, 0.016), between(rng, 0.0, std::f32::consts::TAU)]);
        let breath = between(rng, -0.03, 0.06);
        let female = chance(rng, 0.45);
        Self {
            height,
            body,
            cavity,
            cavity_y: -4.0,
            breast: if female { between(rng, 12.0, 30.0) } else { between(rng, 0.0, 5.0) },
            spine_y,
            heart_scale: between(rng, 0.88, 1.14),
            heart_shift: between(rng, -5.0, 6.0),
            dome: [0.27 + breath + between(rng, -0.02, 0.02), 0.235 + breath + between(rng, -0.02, 0.02)],
            harmonics,
            rib: [between(rng, 23.0, 28.0), between(rng, 95.0, 135.0), between(rng, 0.0, 26.0)],
            vessels,
            trachea,
            roll: between(rng, -0.06, 0.06),
            shift: [between(rng, -8.0, 8.0), between(rng, -14.0, 4.0)],
            wobble: ValueNoise::new(rng.random()),
        }
    }

    /// Roots of the arterial, venous and bronchial trees of one lung (side -1 right, +1 left).
    pub(crate) fn hilum(&self, side: f32) -> [[f32; 3]; 3] {
        let h = self.height;
        let x = if side < 0.0 { 1.0 } else { 0.95 };
        [
            [side * 42.0 * x, 8.0, 0.50 * h],
            [side * 34.0 * x, 4.0, 0.42 * h],
            [side * 30.0 * x, self.spine_y - 26.0, 0.52 * h],
        ]
    }

    /// Signed height above the fissures: (oblique, horizontal); oblique > 0 is the lower lobe,
    /// horizontal > 0 lies above the right lung's minor fissure.
    pub(crate) fn fissures(&self, p: [f32; 3]) -> (f32, f32) {
        let u = p[2] / self.height;
        let bend = 5.0 * self.wobble.at([p[0] * 0.02 + 31.0, p[1] * 0.02, p[2] * 0.02]);
        let side_shift = if p[0] < 0.0 { 0.0 } else { -6.0 };
        let b = self.cavity[1];
        let surface = -0.72 * b + (u - 0.12) / 0.68 * 1.45 * b + 0.0016 * (p[0].abs() - 60.0).powi(2);
        let slope = 1.45 * b / (0.68 * self.height);
        let oblique = (p[1] - surface - bend - side_shift) / (1.0 + slope * slope).sqrt();
        (oblique, p[2] - 0.47 * self.height - bend)
    }

    fn outline(&self, a: f32, b: f32, exponent: f32, twist: f32) -> Vec<f32> {
        let step = std::f32::consts::TAU / N_ANGLES as f32;
        (0..=N_ANGLES)
            .map(|i| {
                let angle = i as f32 * step - std::f32::consts::PI;
                let (s, c) = angle.sin_cos();
                let norm = (c.abs() / a).powf(exponent) + (s.abs() / b).powf(exponent);
                let mut wave = 1.0;
                for (k, [amplitude, phase]) in self.harmonics.iter().enumerate() {
                    wave += amplitude * ((k as f32 + 1.0) * angle + phase + twist).cos();
                }
                norm.powf(-1.0 / exponent) * wave
            })
            .collect()
    }
}

/// The outlines of one axial plane.
pub(crate) struct Level<'a> {
    pub anatomy: &'a Anatomy,
    pub z: f32,
    /// Height as a fraction of the lung height.
    pub u: f32,
    body: Vec<f32>,
    cavity: Vec<f32>,
    /// Centre of the cavity in y.
    pub cavity_y: f32,
    vessels: Vec<Tube>,
    airways: Vec<Tube>,
}

/// Distances at one point of a [`Level`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cavity {
    /// To the inner chest wall; negative inside.
    pub wall: f32,
    /// To the surface of the lungs; negative inside.
    pub lung: f32,
    /// To heart and great vessels.
    pub blood: f32,
    /// To the diaphragm, positive below it.
    pub below: f32,
    /// Sine of the angle about the cavity's centre: 1 at the back, -1 in front.
    pub back: f32,
    /// To the block of bone and muscle around the spine.
    pub spine: f32,
}

impl<'a> Level<'a> {
    pub(crate) fn new(anatomy: &'a Anatomy, z: f32) -> Self {
        let u = z / anatomy.height;
        let rise = ((u - 0.33) / 0.70).clamp(0.0, 1.0);
        let narrow = (1.0 - rise.powf(2.7)).max(0.0).sqrt() * (1.0 - 0.05 * (0.33 - u).max(0.0) / 0.33);
        let a = anatomy.cavity[0] * (0.30 + 0.70 * narrow);
        let b = anatomy.cavity[1] * (0.32 + 0.68 * narrow);
        let shoulder = smoothstep(0.72, 1.0, u);
        let body_a = anatomy.body[0] * (1.0 + 0.15 * shoulder);
        let body_b = anatomy.body[1] * (1.0 - 0.14 * shoulder);
        let vessels = anatomy.vessels.iter().filter(|t| t.touches(z, 12.0)).copied().collect();
        let airways = anatomy.trachea.iter().filter(|t| t.touches(z, 12.0)).copied().collect();
        let mut body = anatomy.outline(body_a, body_b, 2.35, 0.0);
        let lift = anatomy.breast * smoothstep(0.12, 0.3, u) * smoothstep(0.66, 0.42, u);
        let step = std::f32::consts::TAU / N_ANGLES as f32;
        for (i, radius) in body.iter_mut().enumerate() {
            let angle = i as f32 * step - std::f32::consts::PI;
            // Lying flattens the back against the table.
            let back = angle.sin().max(0.0) * *radius;
            let (flat, give) = (body_b * 0.80, 0.11 * body_b);
            if back > flat {
                *radius *= (flat + give * (1.0 - (-(back - flat) / give).exp())) / back;
            }
            for centre in [-0.95, -2.19] {
                *radius += lift * (-((angle - centre) / 0.42f32).powi(2)).exp();
            }
        }
        Self {
            anatomy,
            z,
            u,
            body,
            cavity: anatomy.outline(a, b, 2.25, 0.6 + u),
            cavity_y: anatomy.cavity_y + 20.0 * smoothstep(0.6, 1.0, u),
            vessels,
            airways,
        }
    }

    /// Signed distance to the skin.
    pub(crate) fn body(&self, x: f32, y: f32) -> f32 {
        let angle = fast_atan2(y, x);
        (x * x + y * y).sqrt() - lookup(&self.body, angle)
    }

    /// Radius of the inner chest wall in one direction.
    pub(crate) fn wall_radius(&self, angle: f32) -> f32 {
        lookup(&self.cavity, angle)
    }

    /// Distance and angle with respect to the inner chest wall.
    pub(crate) fn wall(&self, x: f32, y: f32) -> (f32, f32) {
        let y = y - self.cavity_y;
        let angle = fast_atan2(y, x);
        ((x * x + y * y).sqrt() - lookup(&self.cavity, angle), angle)
    }

    /// The bony and muscular block around the spine that the lungs curve around.
    pub(crate) fn spine_block(&self, x: f32, y: f32) -> f32 {
        let dy = y - self.anatomy.spine_y;
        let front = ellipse(x, dy, 23.0, 21.0);
        let flank = (x.abs() - 17.0 - 0.62 * (dy - 4.0).max(0.0)).max(-dy);
        smooth_min(front, flank, 8.0)
    }

    /// All distances inside the cavity.
    pub(crate) fn cavity(&self, x: f32, y: f32) -> Cavity {
        let (wall, angle) = self.wall(x, y);
        let an = self.anatomy;
        let p = [x, y, self.z];
        // Beyond the reach of the heart only the wall and the diaphragm shape the lung.
        let central = x.abs() < 92.0;
        let mut blood = if central { self.heart(x, y) } else { 40.0 };
        if x.abs() < 72.0 {
            for tube in &self.vessels {
                blood = smooth_min(blood, tube.distance(p), 3.0);
            }
        }
        let u = self.u;
        // Mediastinal fat and nodes: a column that is a thin septum in front and wide in the middle.
        let widen = 8.0 * smoothstep(0.72, 0.98, u);
        let column = ellipse(x - 2.0, y - 12.0, 19.0 + widen, 36.0 + widen);
        let retrosternal = smoothstep(0.72, 1.0, -(y - self.cavity_y) / an.cavity[1]);
        let bow = if x.abs() < 60.0 { 3.0 * an.wobble.at([3.0, y * 0.03, self.z * 0.02]) } else { 0.0 };
        let septum = (x - 3.0 - 0.10 * (y + 40.0) - bow).abs()
            - 1.7
            - 11.0 * retrosternal * retrosternal
            - 14.0 * smoothstep(0.74, 0.95, u);
        let septum = septum.max(y - 20.0);
        let mut middle = smooth_min(column, septum, 10.0);
        middle = smooth_min(middle, blood - 2.2, 9.0);
        for tube in &self.airways {
            middle = smooth_min(middle, tube.distance(p) - 2.5, 6.0);
        }
        let spine = self.spine_block(x, y);
        middle = smooth_min(middle, spine, 8.0);
        let below = self.diaphragm(x, y);
        let lung = -smooth_min(smooth_min(-(wall + 1.0), middle, 9.0), -below, 5.0);
        Cavity { wall, lung, blood, below, back: angle.sin(), spine }
    }

    /// Signed distance to the heart, a tilted pair of ellipsoids.
    pub(crate) fn heart(&self, x: f32, y: f32) -> f32 {
        let an = self.anatomy;
        if self.u > 0.62 {
            return 40.0;
        }
        let s = an.heart_scale;
        let h = an.height;
        let shape = |centre: [f32; 3], radii: [f32; 3], tilt: f32| {
            let dz = (self.z - centre[2] * h) / (radii[2] * s);
            if dz.abs() >= 0.995 {
                return 40.0f32;
            }
            let shrink = (1.0 - dz * dz).sqrt() * s;
            let (dx, dy) = (x - centre[0] - an.heart_shift, y - centre[1]);
            let (sin, cos) = tilt.sin_cos();
            ellipse(dx * cos + dy * sin, dy * cos - dx * sin, radii[0] * shrink, radii[1] * shrink)
        };
        let lumpy = 2.5 * an.wobble.at([x * 0.035, y * 0.035, self.z * 0.03]);
        let left = shape([24.0, -36.0, 0.27], [54.0, 38.0, 62.0], 0.55);
        let right = shape([-13.0, -30.0, 0.30], [33.0, 37.0, 54.0], 0.15);
        let atrium = shape([2.0, 8.0, 0.37], [32.0, 19.0, 30.0], 0.0);
        smooth_min(smooth_min(left, right, 12.0), atrium, 8.0) + lumpy
    }

    /// Signed distance to the diaphragm: positive below the dome.
    fn diaphragm(&self, x: f32, y: f32) -> f32 {
        let an = self.anatomy;
        if self.u > 0.45 {
            return -60.0;
        }
        let side = usize::from(x > 0.0);
        let centre_x = 0.50 * an.cavity[0];
        let (dx, dy) = ((x.abs() - centre_x) / an.cavity[0], (y - self.cavity_y + 10.0) / an.cavity[1]);
        let far = dx * dx * 2.2 + dy * dy * if dy > 0.0 { 1.35 } else { 0.42 };
        let wave = 3.0 * an.wobble.at([x * 0.03, y * 0.03, 9.0]);
        let top = an.height * an.dome[side] * (1.0 - 0.95 * far) + wave;
        let slope = 1.0 + 1.6 * far.min(1.5);
        (top - self.z) / slope
    }
}

fn lookup(table: &[f32], angle: f32) -> f32 {
    let at = (angle + std::f32::consts::PI) * (N_ANGLES as f32 / std::f32::consts::TAU);
    let low = (at.max(0.0) as usize).min(N_ANGLES - 1);
    let t = at - low as f32;
    table[low] + t * (table[low + 1] - table[low])
}

/// Four-quadrant arc tangent, error below 0.0004 rad (rational fit on the octant).
fn fast_atan2(y: f32, x: f32) -> f32 {
    let (ax, ay) = (x.abs(), y.abs());
    let (small, large) = (ax.min(ay), ax.max(ay).max(1e-9));
    let t = small / large;
    let s = t * t;
    let mut angle = ((-0.046_496_473 * s + 0.159_314_22) * s - 0.327_622_76) * s * t + t;
    if ay > ax {
        angle = std::f32::consts::FRAC_PI_2 - angle;
    }
    if x < 0.0 {
        angle = std::f32::consts::PI - angle;
    }
    if y < 0.0 { -angle } else { angle }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fast_atan2_is_close_everywhere() {
        for i in 0..1000 {
            let angle = (i as f32 / 1000.0 - 0.5) * 0.999 * std::f32::consts::TAU;
            let (s, c) = angle.sin_cos();
            assert!((fast_atan2(3.0 * s, 3.0 * c) - angle).abs() < 5e-4, "at {angle}");
        }
    }

    #[test]
    fn both_lungs_are_there_and_separate() {
        for seed in 0..20 {
            let anatomy = Anatomy::draw(&mut crate::seed::stream(seed, &["anatomy"]), 0.0);
            // Above the dome of the diaphragm, which may rise to 0.45.
            for u in [0.5, 0.65, 0.8] {
                let level = Level::new(&anatomy, u * anatomy.height);
                let half = anatomy.cavity[0] * 0.55;
                for x in [-half, half] {
                    let depth = level.cavity(x, level.cavity_y + 5.0).lung;
                    assert!(depth < -3.0, "seed {seed}, u {u}, x {x}: {depth}");
                }
                assert!(level.cavity(0.0, anatomy.spine_y).lung > 5.0, "spine of seed {seed} at {u}");
            }
        }
    }
}
