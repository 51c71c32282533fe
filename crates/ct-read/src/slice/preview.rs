//! Contact sheets: every slice of a case as a small tile, so that a person sees
//! what was kept, what was dropped, and what was taken for body and lung.
//!
//! Tiles run from the lowest slice at the top left. Kept slices have a green
//! frame; dropped ones are darkened, with a red frame. The body is outlined in
//! yellow, the lungs in cyan, a crop in white.

use std::path::Path;

use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder};

use crate::fault::Fault;
use crate::slice::lung::{Masks, Region};
use crate::slice::render::{self, Image};

/// Side of a tile in pixels.
const TILE: usize = 128;
/// Tiles in a row of the sheet.
const COLUMNS: usize = 12;
/// Most tiles of a sheet; longer stacks are thinned evenly.
const MAX_TILES: usize = 360;

const KEPT: [u8; 3] = [60, 200, 90];
const DROPPED: [u8; 3] = [210, 60, 50];
const BODY: [u8; 3] = [230, 200, 40];
const LUNG: [u8; 3] = [40, 210, 230];
const CROP: [u8; 3] = [255, 255, 255];

/// A slice on its way to a sheet.
#[derive(Clone, Debug)]
pub struct Tile {
    grey: Vec<u8>,
    /// The part of the source image that the tile shows.
    shown: Region,
    masks: Masks,
}

impl Tile {
    /// Reduces a slice; `shown` is the part of it that becomes the tile.
    ///
    /// # Errors
    /// [`Fault::Image`] when it has no area.
    pub fn new(grey: &Image<u8>, shown: Region, masks: Masks) -> Result<Self, Fault> {
        let grey = render::resize_grey(grey, shown, TILE as u32)
            .map_err(|err| Fault::Image { why: err.to_string() })?;
        Ok(Self { grey, shown, masks })
    }

    /// Source pixel, row and column, under the centre of a tile's pixel.
    fn source(&self, y: usize, x: usize) -> (f64, f64) {
        let at = |i: usize, from: f64, to: f64| from + (i as f64 + 0.5) * (to - from) / TILE as f64;
        (at(y, self.shown.top, self.shown.bottom), at(x, self.shown.left, self.shown.right))
    }

    /// Colour of a pixel of the tile.
    fn colour(&self, y: usize, x: usize, is_kept: bool, crop: Option<Region>) -> [u8; 3] {
        if y == 0 || x == 0 || y + 1 == TILE || x + 1 == TILE {
            return if is_kept { KEPT } else { DROPPED };
        }
        // A pixel is on an outline when it is inside and a neighbour is not.
        let is_edge = |inside: &dyn Fn(f64, f64) -> bool| {
            let at = |y, x| {
                let (row, col) = self.source(y, x);
                inside(row, col)
            };
            at(y, x) && !(at(y - 1, x) && at(y + 1, x) && at(y, x - 1) && at(y, x + 1))
        };
        let in_crop = |row: f64, col: f64| {
            crop.is_some_and(|crop| {
                (crop.top..crop.bottom).contains(&row) && (crop.left..crop.right).contains(&col)
            })
        };
        let shade = if is_kept { 1.0 } else { 0.55 };
        let dimmed = |colour: [u8; 3]| colour.map(|channel| (f32::from(channel) * shade) as u8);
        if is_edge(&|row, col| self.masks.is_lung(row, col)) {
            dimmed(LUNG)
        } else if is_edge(&|row, col| self.masks.is_body(row, col)) {
            dimmed(BODY)
        } else if is_edge(&in_crop) {
            dimmed(CROP)
        } else {
            dimmed([self.grey[y * TILE + x]; 3])
        }
    }
}

/// Writes a sheet as PNG; each tile says whether its slice was kept.
///
/// # Errors
/// [`Fault::Preview`] when the file cannot be written.
pub fn write(path: &Path, tiles: &[(&Tile, bool)], crop: Option<Region>) -> Result<(), Fault> {
    let wrong = |why: String| Fault::Preview { why };
    let n_shown = tiles.len().min(MAX_TILES);
    let columns = COLUMNS.min(n_shown.max(1));
    let (width, height) = (columns * TILE, n_shown.div_ceil(columns).max(1) * TILE);
    let mut pixels = vec![0u8; 3 * width * height];
    for i in 0..n_shown {
        let (tile, is_kept) = tiles[i * tiles.len() / n_shown];
        let (top, left) = (i / columns * TILE, i % columns * TILE);
        for y in 0..TILE {
            for x in 0..TILE {
                let at = 3 * ((top + y) * width + left + x);
                pixels[at..at + 3].copy_from_slice(&tile.colour(y, x, is_kept, crop));
            }
        }
    }
    let mut png = Vec::new();
    PngEncoder::new(&mut png)
        .write_image(&pixels, width as u32, height as u32, ExtendedColorType::Rgb8)
        .map_err(|err| wrong(err.to_string()))?;
    // The error's own text would repeat the path.
    diag_data::files::write_atomic(path, &png).map_err(|_| wrong("the file cannot be created".into()))
}
