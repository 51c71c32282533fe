//! Everything around and between the lungs: skin, fat, muscle, bone, mediastinum, abdomen, table.

use crate::{
    anatomy::{Cavity, Level, Tube, ellipse, smooth_min, smoothstep},
    fields::Slow,
};

const FAT_HU: f32 = -105.0;
const MUSCLE_HU: f32 = 52.0;
const BLOOD_HU: f32 = 43.0;

/// Share of a pixel inside a surface at that signed distance.
pub(crate) fn coverage(distance: f32, edge_mm: f32) -> f32 {
    (0.5 - distance / edge_mm).clamp(0.0, 1.0)
}

pub(crate) fn mix(a: f32, b: f32, share: f32) -> f32 {
    a + (b - a) * share
}

/// Lays bone over a tissue: a dense shell around a spongy inside.
fn bone(under: f32, distance: f32, shell_mm: f32, inside_hu: f32, edge_mm: f32) -> f32 {
    let cover = coverage(distance, edge_mm);
    if cover <= 0.0 {
        return under;
    }
    let inner = coverage(distance + shell_mm, edge_mm);
    mix(under, mix(720.0, inside_hu, inner), cover)
}

/// Outer tissues of one level, with the bones that are straight tubes.
pub(crate) struct ChestWall<'a> {
    level: &'a Level<'a>,
    clavicles: Vec<Tube>,
    front_y: f32,
    edge_mm: f32,
}

impl<'a> ChestWall<'a> {
    pub(crate) fn new(level: &'a Level<'a>, edge_mm: f32) -> Self {
        let h = level.anatomy.height;
        let front_y = -level.wall_radius(-std::f32::consts::FRAC_PI_2) + level.cavity_y;
        let clavicles: Vec<Tube> = [-1.0, 1.0]
            .into_iter()
            .flat_map(|side| {
                let ends = [
                    [side * 20.0, front_y - 6.0, 0.87 * h],
                    [side * 66.0, front_y - 2.0, 0.945 * h],
                    [side * 125.0, front_y + 38.0, 1.03 * h],
                ];
                [0, 1].map(|i| Tube { from: ends[i], to: ends[i + 1], radius_from: 6.5, radius_to: 5.5 })
            })
            .filter(|tube| tube.touches(level.z, 3.0))
            .collect();
        Self { level, clavicles, front_y, edge_mm }
    }

    /// HU outside the thoracic cavity; `wall` and `angle` as of [`Level::wall`], `slow` the noise there.
    pub(crate) fn outer(&self, x: f32, y: f32, wall: f32, angle: f32, slow: &Slow) -> f32 {
        let level = self.level;
        let an = level.anatomy;
        let edge = self.edge_mm;
        let Slow { grain, strand, .. } = *slow;
        let skin = -slow.skin;
        let upper = smoothstep(0.35, 0.8, level.u);
        let (s, c) = angle.sin_cos();
        // Muscle: thin at the sides below, thick behind (paraspinal), and above in front and behind (shoulder girdle).
        let behind = smoothstep(0.3, 0.95, s);
        let in_front = smoothstep(0.25, 0.8, -s) * smoothstep(0.05, 0.35, c.abs());
        let muscle_mm = 12.5 + 13.0 * behind + upper * (11.0 * in_front + 17.0 * smoothstep(-0.3, 0.7, s));
        let muscle_edge = wall - muscle_mm - 3.5 * strand;
        let mut hu = FAT_HU + 13.0 * grain;
        // Septa through the fat.
        hu += 60.0 * (1.0 - smoothstep(0.02, 0.09, strand.abs())) * smoothstep(0.2, 0.7, grain);
        let mut muscle_hu = MUSCLE_HU + 12.0 * grain;
        // Fat planes between layers of muscle.
        let plane = (wall - 13.0 - 3.0 * grain).abs().min((wall - 24.0 - 5.0 * strand).abs());
        let marbling = smoothstep(0.42, 0.62, slow.marbling);
        let between = (1.0 - smoothstep(0.3, 2.2, plane)).max(0.6 * marbling);
        muscle_hu = mix(muscle_hu, FAT_HU + 25.0, 0.8 * between * smoothstep(8.0, 11.0, wall));
        hu = mix(hu, muscle_hu, coverage(muscle_edge, edge));
        if an.breast > 8.0 && s < -0.2 {
            let gland = slow.gland;
            let inside = smoothstep(0.0, 7.0, muscle_edge) * smoothstep(4.0, 10.0, skin);
            let zone = smoothstep(0.14, 0.3, level.u) * smoothstep(0.62, 0.45, level.u);
            hu = mix(hu, 30.0, inside * zone * smoothstep(0.05, 0.35, gland) * smoothstep(0.2, 0.5, c.abs()));
        }
        // The muscles of the shoulder girdle, in bundles with fat between them.
        let girdle =
            smoothstep(0.66, 0.86, level.u) * smoothstep(9.0, 15.0, skin) * smoothstep(-0.75, -0.4, s);
        if girdle > 0.0 {
            let bundle = smoothstep(-0.22, 0.0, strand + 0.35 * slow.marbling);
            hu = mix(hu, MUSCLE_HU + 12.0 * grain, girdle * bundle);
        }
        hu = mix(-25.0, hu, coverage(1.6 - skin, edge));
        self.bones(hu, x, y, wall, angle, grain)
    }

    fn bones(&self, under: f32, x: f32, y: f32, wall: f32, angle: f32, grain: f32) -> f32 {
        let level = self.level;
        let an = level.anatomy;
        let edge = self.edge_mm;
        let mut hu = under;
        if wall > 0.0 && wall < 14.0 && y < an.spine_y + 44.0 {
            let turn = (angle - std::f32::consts::FRAC_PI_2 + std::f32::consts::TAU)
                .rem_euclid(std::f32::consts::TAU);
            let front = turn.min(std::f32::consts::TAU - turn) / std::f32::consts::PI;
            let [step, drop, offset] = an.rib;
            let along = (level.z + drop * front + offset).rem_euclid(step) - 0.5 * step;
            let ring = (wall - 6.2) / 4.1;
            let across = along / 6.6;
            let norm = (ring * ring + across * across).sqrt();
            let distance = (norm - 1.0) * 4.1;
            if front < 0.78 {
                hu = bone(hu, distance, 1.5, 210.0 + 90.0 * grain, edge * 1.3);
            } else if front < 0.955 {
                hu = mix(hu, 105.0 + 40.0 * grain, coverage(distance, edge * 1.3));
            }
        }
        // Sternum, with the wider manubrium on top.
        if y < self.front_y + 8.0 && level.u > 0.22 && level.u < 0.93 {
            let half = 15.0 + 13.0 * smoothstep(0.72, 0.84, level.u);
            let dy = y - (self.front_y - 8.0);
            let (qx, qy) = (x.abs() - half + 4.0, dy.abs() - 1.5);
            let outside = (qx.max(0.0).powi(2) + qy.max(0.0).powi(2)).sqrt();
            hu = bone(hu, outside + qx.max(qy).min(0.0) - 4.5, 1.4, 190.0 + 90.0 * grain, edge);
        }
        for clavicle in &self.clavicles {
            hu = bone(hu, clavicle.distance([x, y, level.z]), 1.8, 260.0, edge);
        }
        self.scapula(hu, x, y, wall, angle, grain)
    }

    fn scapula(&self, under: f32, x: f32, y: f32, wall: f32, angle: f32, grain: f32) -> f32 {
        let level = self.level;
        if level.u < 0.42 || y < level.cavity_y - 30.0 || wall < 10.0 {
            return under;
        }
        // Angle from the side towards the back, the same on the right and on the left.
        let back = if x > 0.0 { angle } else { std::f32::consts::PI - angle.abs() };
        let back = if y < level.cavity_y { -back.abs() } else { back };
        let reach = 0.45 * smoothstep(0.42, 0.62, level.u);
        let middle = 0.62 - 0.12 * smoothstep(0.6, 0.9, level.u);
        let radius = level.wall_radius(angle) + wall;
        let sideways = ((back - middle).abs() - reach) * radius;
        let depth = (wall - 21.0 - 9.0 * (back - middle) - 4.0 * smoothstep(0.7, 0.95, level.u)).abs() - 2.1;
        let blade = depth.max(sideways);
        let mut distance = blade;
        let root = smoothstep(0.74, 0.82, level.u);
        if root > 0.0 {
            // The spine of the scapula and the glenoid end.
            let along = (back - middle) * radius;
            let spine = ((along + 6.0) * 0.8 - (wall - 24.0) * 0.6).abs() - 2.6;
            let spine = spine.max((wall - 31.0).abs() - 8.0);
            let glenoid = ellipse(along + reach * radius, wall - 22.0, 11.0, 7.0) + 2.0 * grain;
            distance = smooth_min(distance, spine + (1.0 - root) * 6.0, 4.0);
            distance = smooth_min(distance, glenoid + (1.0 - root) * 10.0, 5.0);
        }
        bone(under, distance, 1.6, 190.0 + 90.0 * grain, self.edge_mm * 1.2)
    }

    /// Lays the vertebra over any tissue near the midline.
    pub(crate) fn spine(&self, under: f32, x: f32, y: f32, grain: f32) -> f32 {
        let level = self.level;
        let edge = self.edge_mm;
        let dy = y - level.anatomy.spine_y;
        if x.abs() > 48.0 || !(-24.0..62.0).contains(&dy) {
            return under;
        }
        let phase = (level.z + 11.0).rem_euclid(24.0);
        let disc = phase < 4.5;
        // Body with its flattened back, or the disc between two bodies.
        let body = ellipse(x, dy, 17.0, 14.5).max(dy - 11.5);
        let mut hu = if disc {
            mix(under, 85.0, coverage(body, edge))
        } else {
            bone(under, body, 1.5, 190.0 + 70.0 * grain, edge)
        };
        let arch = (ellipse(x, dy - 20.0, 15.0, 12.0)).max(9.0 - dy);
        let spinous =
            smooth_min(x.abs() - 2.4, 9.0, 2.0).max((dy - 40.0).abs() - 11.0) + 0.06 * (dy - 34.0).max(0.0);
        let taper = 5.6 - 0.07 * x.abs() + 1.2 * grain;
        let tilt = (dy - 15.0 - 0.62 * x.abs()).abs() * 0.85 - taper;
        let transverse = tilt.max(x.abs() - 29.0 - 3.0 * grain);
        let level_has_process = phase > 9.0 && phase < 20.0;
        let mut back = arch;
        if level_has_process {
            back = back.min(transverse);
        }
        if phase > 4.5 {
            back = back.min(spinous);
        }
        hu = bone(hu, back, 1.7, 240.0 + 70.0 * grain, edge);
        // Canal with the dural sac in fat.
        let canal = ellipse(x, dy - 18.0, 9.5, 8.0);
        let filling = mix(-40.0, 28.0, coverage(canal + 2.0, edge));
        mix(hu, filling, coverage(canal, edge))
    }

    /// HU of the cavity where there is no lung: mediastinum above the diaphragm, abdomen below.
    pub(crate) fn inner(&self, x: f32, y: f32, cavity: &Cavity, slow: &Slow) -> f32 {
        let edge = self.edge_mm;
        let grain = slow.grain;
        let mut hu = -88.0 + 22.0 * grain;
        // Nodes and thymic remnants.
        hu = mix(hu, 15.0, smoothstep(0.35, 0.6, slow.nodes));
        hu = mix(hu, BLOOD_HU + 5.0 * grain, coverage(cavity.blood, edge));
        hu = mix(hu, 48.0, coverage(cavity.spine, edge));
        let below = coverage(-cavity.below, edge * 2.0);
        if below > 0.0 {
            hu = mix(hu, self.abdomen(x, y, grain), below * coverage(-cavity.blood, edge));
        }
        // Intercostal muscle and pleura line the wall.
        mix(hu, 45.0, coverage(-cavity.wall - 2.0, edge))
    }

    fn abdomen(&self, x: f32, y: f32, grain: f32) -> f32 {
        let level = self.level;
        let edge = self.edge_mm;
        let [a, b] = level.anatomy.cavity;
        let liver = ellipse(x + 0.42 * a, y - level.cavity_y + 2.0, 0.78 * a, 0.94 * b);
        let stomach = ellipse(x - 0.42 * a, y - level.cavity_y + 0.25 * b, 0.40 * a, 0.48 * b);
        let spleen = ellipse(x - 0.62 * a, y - level.cavity_y - 0.42 * b, 0.32 * a, 0.44 * b);
        let mut hu = FAT_HU + 14.0 * grain;
        hu = mix(hu, 50.0 + 4.0 * grain, coverage(spleen, edge));
        hu = mix(hu, 32.0, coverage(stomach, edge));
        // A gas bubble floats in front of the fluid level.
        let bubble = (stomach + 5.0).max(y - level.cavity_y + 0.38 * b);
        hu = mix(hu, -985.0, coverage(bubble, edge));
        mix(hu, 58.0 + 5.0 * grain, coverage(liver, edge))
    }
}

/// HU outside the body: air, and the table's two shells.
pub(crate) fn outside(image_x: f32, image_y: f32, table_y: f32, edge_mm: f32) -> f32 {
    if image_y < 60.0 {
        return -1000.0;
    }
    let sag = |flat: f32| image_y - table_y + flat * image_x * image_x;
    let (top, bottom) = (sag(0.0011), sag(0.0009) - 34.0);
    let mut hu = -1000.0;
    hu = mix(hu, -955.0, coverage((-top).max(bottom), edge_mm));
    hu = mix(hu, -330.0, coverage(top.abs() - 1.1, edge_mm));
    mix(hu, -90.0, coverage(bottom.abs() - 2.0, edge_mm))
}
