//! From pixels to millimetres of the patient, and back.

use crate::{anatomy::Anatomy, noise::SIZE};

/// Thickness of every slice, and the step between neighbouring ones, in millimetres.
pub const SLICE_MM: f32 = 5.0;

/// The image plane of a series: square pixels, a patient lying slightly turned and off centre.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grid {
    /// Pixel size in millimetres.
    pub spacing: f32,
    sin: f32,
    cos: f32,
    shift: [f32; 2],
}

impl Grid {
    /// The field of view fits the body, within 0.65 to 0.85 mm a pixel.
    pub(crate) fn fit(anatomy: &Anatomy) -> Self {
        let width = 2.0 * anatomy.body[0] * 1.14;
        let (sin, cos) = anatomy.roll.sin_cos();
        // Scanners offer fields in whole steps; so do the spacings.
        let spacing = (width / SIZE as f32 * 128.0).ceil() / 128.0;
        Self { spacing: spacing.clamp(0.65, 0.85), sin, cos, shift: anatomy.shift }
    }

    /// Pixel (column, row) to patient millimetres.
    pub(crate) fn to_patient(self, col: f32, row: f32) -> [f32; 2] {
        let centre = (SIZE as f32 - 1.0) * 0.5;
        let x = (col - centre) * self.spacing - self.shift[0];
        let y = (row - centre) * self.spacing - self.shift[1];
        [x * self.cos + y * self.sin, y * self.cos - x * self.sin]
    }

    /// Patient millimetres to pixel (column, row).
    pub(crate) fn to_pixel(self, p: [f32; 3]) -> [f32; 2] {
        let centre = (SIZE as f32 - 1.0) * 0.5;
        let x = p[0] * self.cos - p[1] * self.sin + self.shift[0];
        let y = p[0] * self.sin + p[1] * self.cos + self.shift[1];
        [x / self.spacing + centre, y / self.spacing + centre]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pixel_and_patient_are_inverse() {
        let anatomy = Anatomy::draw(&mut crate::seed::stream(3, &["anatomy"]), 0.0);
        let grid = Grid::fit(&anatomy);
        let [x, y] = grid.to_patient(100.0, 300.0);
        let [col, row] = grid.to_pixel([x, y, 0.0]);
        assert!((col - 100.0).abs() < 1e-2 && (row - 300.0).abs() < 1e-2, "{col} {row}");
    }
}
