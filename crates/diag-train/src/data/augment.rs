//! Variation of a training image, drawn from the image's own random stream.

use diag_model::input::scale;
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use crate::recipe::AugmentationSpec;

/// Writes a varied copy of a grey image as network input.
///
/// # Shapes
/// - `grey`: `height * width` bytes; `target`: as many values in [-1, 1]
pub(crate) fn augment(
    grey: &[u8],
    (height, width): (usize, usize),
    spec: &AugmentationSpec,
    rng: &mut ChaCha8Rng,
    target: &mut [f32],
) {
    let mut drawn = |bound: f64| if bound > 0.0 { rng.random_range(-bound..=bound) } else { 0.0 };
    let angle = drawn(spec.rotation_degrees).to_radians();
    let (shift_row, shift_col) = (drawn(spec.shift) * height as f64, drawn(spec.shift) * width as f64);
    let zoom = 1.0 / (1.0 + drawn(spec.scale));
    let (contrast, offset) = (1.0 + drawn(spec.intensity), drawn(spec.intensity) * 0.5);
    let gamma = drawn(spec.gamma).exp();
    let mirrored = spec.flip && rng.random::<bool>();

    let (sin, cos) = ((angle.sin() * zoom) as f32, (angle.cos() * zoom) as f32);
    let (mid_row, mid_col) = ((height as f32 - 1.0) / 2.0, (width as f32 - 1.0) / 2.0);
    let (shift_row, shift_col) = (shift_row as f32, shift_col as f32);
    let tone = tone_table(contrast, offset, gamma);
    let moved = sin != 0.0 || cos != 1.0 || shift_row != 0.0 || shift_col != 0.0;
    for (row, line) in target.chunks_exact_mut(width).enumerate() {
        let dy = row as f32 - mid_row - shift_row;
        for (col, value) in line.iter_mut().enumerate() {
            let col = if mirrored { width - 1 - col } else { col };
            if !moved {
                *value = tone[usize::from(grey[row * width + col])];
                continue;
            }
            let dx = col as f32 - mid_col - shift_col;
            let (from_row, from_col) = (mid_row + cos * dy - sin * dx, mid_col + sin * dy + cos * dx);
            *value = interpolate(grey, (height, width), &tone, from_row, from_col);
        }
    }
    if spec.noise > 0.0 {
        // The network's range is 2 wide.
        let deviation = 2.0 * spec.noise as f32;
        for pair in target.chunks_mut(2) {
            let radius = deviation * (-2.0 * (1.0 - rng.random::<f32>()).ln()).sqrt();
            let (sin, cos) = (std::f32::consts::TAU * rng.random::<f32>()).sin_cos();
            for (value, noise) in pair.iter_mut().zip([radius * cos, radius * sin]) {
                *value = (*value + noise).clamp(-1.0, 1.0);
            }
        }
    }
}

/// Network input for every grey level: `contrast * (g - 1/2) + 1/2 + offset`, clamped, to the power gamma.
fn tone_table(contrast: f64, offset: f64, gamma: f64) -> [f32; 256] {
    std::array::from_fn(|grey| {
        let changed = (contrast * (grey as f64 / 255.0 - 0.5) + 0.5 + offset).clamp(0.0, 1.0);
        let changed = if gamma == 1.0 { changed } else { changed.powf(gamma) };
        scale((changed * 255.0) as f32)
    })
}

/// Bilinear between pixel centres; outside the image lies black.
fn interpolate(grey: &[u8], (height, width): (usize, usize), tone: &[f32; 256], row: f32, col: f32) -> f32 {
    let (row0, col0) = (row.floor(), col.floor());
    let (down, right) = (row - row0, col - col0);
    let (row0, col0) = (row0 as i32, col0 as i32);
    let at = |row: i32, col: i32| {
        let inside = (0..height as i32).contains(&row) && (0..width as i32).contains(&col);
        tone[if inside { usize::from(grey[row as usize * width + col as usize]) } else { 0 }]
    };
    let top = at(row0, col0) * (1.0 - right) + at(row0, col0 + 1) * right;
    let bottom = at(row0 + 1, col0) * (1.0 - right) + at(row0 + 1, col0 + 1) * right;
    top * (1.0 - down) + bottom * down
}
