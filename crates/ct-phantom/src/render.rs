//! One axial slice of one case: tissue, vessels, disease, then the scanner's blur and grain.

use crate::{
    anatomy::{Anatomy, Level, Tube},
    chest_wall::{ChestWall, coverage, mix, outside},
    fields::Fields,
    geometry::{Grid, SLICE_MM},
    incidental::Parenchyma,
    lesion::Disease,
    noise::{Grain, SIZE},
    scanner::Scanner,
    truth::SliceTruth,
};
use rand::Rng;
use rand_chacha::ChaCha8Rng;

const N_PIXELS: usize = SIZE * SIZE;
const VESSEL_HU: f32 = 42.0;

/// Everything that the slices of a case share.
pub(crate) struct Chest<'a> {
    pub anatomy: &'a Anatomy,
    pub grid: Grid,
    pub scanner: &'a Scanner,
    pub parenchyma: Parenchyma,
    pub disease: Disease,
    pub vessels: Vec<Tube>,
    pub bronchi: Vec<Tube>,
}

/// Buffers that one worker uses again for every slice.
pub(crate) struct Canvas {
    /// HU, `[512 * 512]`, row-major.
    pub hu: Vec<f32>,
    lung_hu: Vec<f32>,
    lung_share: Vec<f32>,
    lesion: Vec<f32>,
    scratch: Vec<f32>,
    tubes: crate::vessels::Coverage,
}

impl Canvas {
    pub(crate) fn new() -> Self {
        let plane = || vec![0.0; N_PIXELS];
        Self {
            hu: plane(),
            lung_hu: plane(),
            lung_share: plane(),
            lesion: plane(),
            scratch: plane(),
            tubes: crate::vessels::Coverage::new(),
        }
    }
}

/// Renders the slice at height z into `canvas.hu` and returns what is truly there.
pub(crate) fn slice(
    chest: &Chest<'_>,
    z: f32,
    grain: &Grain,
    rng: &mut ChaCha8Rng,
    canvas: &mut Canvas,
) -> SliceTruth {
    let edge = chest.scanner.kernel.edge_px() * chest.grid.spacing;
    let level = Level::new(chest.anatomy, z);
    let disease = chest.disease.at_level(z);
    let mut truth = SliceTruth::default();

    paint_tissue(chest, &level, &disease, edge, canvas, &mut truth);
    paint_lung_details(chest, &disease, z, edge, canvas);
    for idx in 0..N_PIXELS {
        let share = canvas.lung_share[idx];
        if share > 0.0 {
            canvas.hu[idx] = mix(canvas.hu[idx], canvas.lung_hu[idx], share);
        }
    }
    paint_airways(chest, &disease, z, edge, canvas);
    truth.measure(&canvas.lesion, &canvas.lung_share, chest.grid.spacing, SLICE_MM);
    sharpen(chest.scanner.kernel.overshoot(), canvas);
    add_grain(chest, &level, grain, rng, canvas);
    truth
}

/// Body, cavity and lung tissue with its opacities, pixel by pixel.
fn paint_tissue(
    chest: &Chest<'_>,
    level: &Level<'_>,
    disease: &Disease,
    edge: f32,
    canvas: &mut Canvas,
    truth: &mut SliceTruth,
) {
    let grid = &chest.grid;
    let wall = ChestWall::new(level, edge);
    let fields = Fields::compute(grid, level, &chest.parenchyma, disease, edge);
    let anatomy = chest.anatomy;
    let centre = (SIZE as f32 - 1.0) * 0.5;
    let table_y = anatomy.body[1] * 1.02 + anatomy.shift[1] + 9.0;
    for row in 0..SIZE {
        for col in 0..SIZE {
            let idx = row * SIZE + col;
            canvas.lung_share[idx] = 0.0;
            canvas.lesion[idx] = 0.0;
            let (image_x, image_y) =
                ((col as f32 - centre) * grid.spacing, (row as f32 - centre) * grid.spacing);
            if fields.is_outside(col, row) {
                canvas.hu[idx] = outside(image_x, image_y, table_y, edge);
                continue;
            }
            let [x, y] = grid.to_patient(col as f32, row as f32);
            let slow = fields.slow(col, row);
            let body_share = coverage(slow.skin, edge);
            let mut hu = -1000.0;
            if body_share < 1.0 {
                hu = outside(image_x, image_y, table_y, edge);
            }
            if body_share > 0.0 {
                let (from_wall, angle) = level.wall(x, y);
                let wall_share = coverage(-from_wall, edge);
                let mut tissue = 0.0;
                if wall_share > 0.0 {
                    tissue = wall.outer(x, y, from_wall, angle, &slow);
                }
                if wall_share < 1.0 {
                    let (cavity, speckle) = fields.cavity(col, row);
                    let lung_share = coverage(cavity.lung, edge);
                    canvas.lung_share[idx] = lung_share;
                    if lung_share < 1.0 {
                        tissue = mix(wall.inner(x, y, &cavity, &slow), tissue, wall_share);
                    }
                    if lung_share > 0.0 {
                        let p = [x, y, level.z];
                        let mut hu = chest.parenchyma.hu(p, &cavity, &slow, speckle, anatomy);
                        if let Some(opacity) = fields.opacity(col, row) {
                            hu = opacity.over(hu);
                            canvas.lesion[idx] = opacity.share();
                            truth.count(&opacity, if lung_share > 0.5 { 1.0 } else { 0.0 });
                        }
                        canvas.lung_hu[idx] = hu;
                    }
                }
                if canvas.lung_share[idx] < 1.0 {
                    tissue = wall.spine(tissue, x, y, slow.grain);
                }
                hu = mix(hu, tissue, body_share);
            }
            canvas.hu[idx] = hu;
        }
    }
}

/// Vessels, scars, nodules and buds, on the lung's own plane so that they end at its surface.
fn paint_lung_details(chest: &Chest<'_>, disease: &Disease, z: f32, edge: f32, canvas: &mut Canvas) {
    let Canvas { lung_hu, lesion, tubes, .. } = canvas;
    let grid = &chest.grid;
    tubes.stamp(&chest.vessels, 0.0, z, grid, edge, |idx, cover| {
        lung_hu[idx] = lung_hu[idx].max(mix(lung_hu[idx], VESSEL_HU, cover));
    });
    tubes.stamp(&chest.parenchyma.scars, 0.0, z, grid, edge, |idx, cover| {
        lung_hu[idx] = lung_hu[idx].max(mix(lung_hu[idx], 0.0, cover));
    });
    for (nodule, hu) in &chest.parenchyma.nodules {
        tubes.stamp(&[*nodule], 0.0, z, grid, edge, |idx, cover| {
            lung_hu[idx] = lung_hu[idx].max(mix(lung_hu[idx], *hu, cover));
        });
    }
    if !disease.is_empty() {
        tubes.stamp(&disease.buds, 0.0, z, grid, edge, |idx, cover| {
            lung_hu[idx] = lung_hu[idx].max(mix(lung_hu[idx], -40.0, cover));
            lesion[idx] = lesion[idx].max(cover);
        });
    }
}

/// Trachea and bronchi: first the wall, then the lumen inside it.
fn paint_airways(chest: &Chest<'_>, disease: &Disease, z: f32, edge: f32, canvas: &mut Canvas) {
    let Canvas { hu, lung_share, lesion, tubes, .. } = canvas;
    let grid = &chest.grid;
    let trachea = &chest.anatomy.trachea;
    tubes.stamp(trachea, 1.6, z, grid, edge, |idx, cover| hu[idx] = mix(hu[idx], 40.0, cover));
    tubes.stamp(trachea, 0.0, z, grid, edge, |idx, cover| hu[idx] = mix(hu[idx], -990.0, cover));
    tubes.stamp(&chest.bronchi, 1.0, z, grid, edge, |idx, cover| {
        hu[idx] = hu[idx].max(mix(hu[idx], -120.0, 0.85 * cover * lung_share[idx]));
    });
    tubes.stamp(&chest.bronchi, 0.0, z, grid, edge, |idx, cover| {
        hu[idx] = mix(hu[idx], -960.0, cover * lung_share[idx].max(0.35));
    });
    if !disease.is_empty() {
        tubes.stamp(&disease.bronchograms, 0.0, z, grid, edge, |idx, cover| {
            let open = cover * lung_share[idx] * lesion[idx];
            hu[idx] = mix(hu[idx], -940.0, open);
        });
    }
}

/// Adds the overshoot that a sharp kernel makes at edges: an unsharp mask of 5x5 pixels.
fn sharpen(strength: f32, canvas: &mut Canvas) {
    if strength <= 0.0 {
        return;
    }
    const TAPS: [f32; 5] = [0.0625, 0.25, 0.375, 0.25, 0.0625];
    let Canvas { hu, scratch, .. } = canvas;
    for row in 0..SIZE {
        let line = &hu[row * SIZE..(row + 1) * SIZE];
        let out = &mut scratch[row * SIZE..(row + 1) * SIZE];
        out[..2].copy_from_slice(&line[..2]);
        out[SIZE - 2..].copy_from_slice(&line[SIZE - 2..]);
        for col in 2..SIZE - 2 {
            out[col] = (0..5).map(|k| TAPS[k] * line[col + k - 2]).sum();
        }
    }
    for row in 2..SIZE - 2 {
        for col in 0..SIZE {
            let idx = row * SIZE + col;
            let blurred: f32 = (0..5).map(|k| TAPS[k] * scratch[idx + k * SIZE - 2 * SIZE]).sum();
            hu[idx] += strength * (hu[idx] - blurred).clamp(-320.0, 320.0);
        }
    }
}

/// Quantum noise: more in the middle of a wide body and between the shoulders.
fn add_grain(chest: &Chest<'_>, level: &Level<'_>, grain: &Grain, rng: &mut ChaCha8Rng, canvas: &mut Canvas) {
    let tile = grain.tile(chest.scanner.kernel);
    let (shift_col, shift_row) = (rng.random_range(0..SIZE), rng.random_range(0..SIZE));
    let flip: bool = rng.random();
    let width = chest.anatomy.body[0] / 150.0;
    let dose = (160.0 / chest.scanner.tube_current_ma as f32).sqrt();
    let shoulders = 1.0 + 0.7 * crate::anatomy::smoothstep(0.75, 1.0, level.u);
    let amplitude = chest.scanner.kernel.noise_hu() * width * dose.clamp(0.75, 1.3) * shoulders;
    let centre = (SIZE as f32 - 1.0) * 0.5;
    for row in 0..SIZE {
        let tile_row = (row + shift_row) % SIZE * SIZE;
        for col in 0..SIZE {
            let (dx, dy) = ((col as f32 - centre) / centre, (row as f32 - centre) / centre);
            let profile = 1.15 - 0.55 * (dx * dx + dy * dy).min(1.0);
            let tile_col = (if flip { SIZE - 1 - col } else { col } + shift_col) % SIZE;
            canvas.hu[row * SIZE + col] += amplitude * profile * tile[tile_row + tile_col];
        }
    }
}
