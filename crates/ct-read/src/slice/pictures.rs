//! From the statistics of a stack to kept, rendered slices: what all volume formats share.

use std::path::Path;

use diag_data::reader::{Crop, ReaderSettings, Select};
use diag_data::slice::{Acquisition, Geometry, Provenance, Selection};
use diag_data::units::Spacing;
use rayon::prelude::*;

use crate::fault::Fault;
use crate::slice::hu_check::{HuHistogram, MAX_HU};
use crate::slice::lung::{self, LungMeasure, Masks, Region};
use crate::slice::preview::{self, Tile};
use crate::slice::render::{self, Image};
use crate::slice::statistics::{self, SliceStatistics};

/// One slice of a stack, decoded, with what its row will say of it.
#[derive(Clone, Debug)]
pub struct SourceSlice {
    /// What was measured on it; with HU where they are kept.
    pub statistics: SliceStatistics,
    /// Where it lies.
    pub geometry: Geometry,
    /// How it was acquired.
    pub acquisition: Acquisition,
    /// Where it came from; the pixels' hash is set when they are rendered.
    pub provenance: Provenance,
}

/// A slice reduced to what the choice among slices, rendering and its row need.
#[derive(Clone, Debug)]
pub struct Measured {
    lung: LungMeasure,
    hu_min: f32,
    hu_max: f32,
    hu_mean: f32,
    size: (usize, usize),
    geometry: Geometry,
    acquisition: Acquisition,
    provenance: Provenance,
    histogram: HuHistogram,
    picture: Picture,
    tile: Option<Tile>,
}

/// Where a choice or a crop needs every slice to be seen first, the picture waits
/// for it: what is not kept is not resized.
#[derive(Clone, Debug)]
enum Picture {
    Done { grey: Vec<u8>, hu: Option<Vec<i16>> },
    Waiting { grey: Image<u8>, hu: Option<Image<f32>> },
}

/// One kept slice.
#[derive(Clone, Debug, PartialEq)]
pub struct CaseSlice {
    /// Grey levels after windowing, row-major, `size * size` bytes.
    pub pixels: Vec<u8>,
    /// HU of the same pixels, when asked for.
    pub hu: Option<Vec<i16>>,
    /// Where it lies in the body.
    pub geometry: Geometry,
    /// How it was acquired.
    pub acquisition: Acquisition,
    /// What was measured on it.
    pub selection: Selection,
    /// Where it came from, without naming anybody.
    pub provenance: Provenance,
}

/// What became of a stack.
#[derive(Clone, Debug)]
pub struct Kept {
    /// The kept slices, lowest first.
    pub slices: Vec<CaseSlice>,
    /// Mean lung fraction of all slices of the stack.
    pub lung_fraction_source: f64,
    /// Mean lung fraction of the kept ones.
    pub lung_fraction: f64,
}

/// Measures a slice; without a crop, renders it too, so that no more of it has to be held.
/// With a tile for the contact sheet where one is wanted.
///
/// # Errors
/// [`Fault::Image`] for an image without area.
pub fn measure(
    slice: SourceSlice,
    spacing: Spacing,
    settings: &ReaderSettings,
    with_tile: bool,
) -> Result<Measured, Fault> {
    let SourceSlice { statistics, geometry, acquisition, provenance } = slice;
    let SliceStatistics { grey, hu, grid, hu_min, hu_max, hu_mean } = statistics;
    let size = (grey.rows, grey.cols);
    let histogram = HuHistogram::of_grid(&grid, acquisition.padding_px > 0);
    let masks = Masks::of(&grid);
    let lung = masks.measure();
    let whole = render::square(Region::whole(size.0, size.1), spacing, false);
    let tile = if with_tile { Some(Tile::new(&grey, whole, masks)?) } else { None };
    let picture = if settings.crop == Crop::None && settings.select == Select::All {
        let done = finished(&grey, hu.as_ref(), whole, settings.size)?;
        statistics::give_back(grey);
        done
    } else {
        Picture::Waiting { grey, hu }
    };
    Ok(Measured {
        lung,
        hu_min,
        hu_max,
        hu_mean,
        size,
        geometry,
        acquisition,
        provenance,
        histogram,
        picture,
        tile,
    })
}

/// Whether the values of a stack can be the HU of a chest.
///
/// # Errors
/// [`Fault::NotHu`].
pub fn check_hu(stack: &[Measured]) -> Result<(), Fault> {
    let (lowest, highest) =
        stack.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(lowest, highest), slice| {
            (lowest.min(slice.hu_min), highest.max(slice.hu_max))
        });
    if highest > MAX_HU {
        return Err(Fault::NotHu { why: format!("they run from {lowest} to {highest}") });
    }
    let mut histogram = HuHistogram::default();
    stack.iter().for_each(|slice| histogram.add(&slice.histogram));
    histogram.judge()
}

/// Chooses slices, crops and renders them, and draws the preview where one is asked for.
///
/// # Errors
/// [`Fault::NoLung`], [`Fault::Image`], and [`Fault::Preview`].
pub fn keep(
    stack: Vec<Measured>,
    spacing: Spacing,
    settings: &ReaderSettings,
    preview: Option<&Path>,
) -> Result<Kept, Fault> {
    let fractions: Vec<f32> = stack.iter().map(|slice| slice.lung.fraction).collect();
    let chosen = match settings.select {
        Select::All => Some((0..stack.len()).collect()),
        Select::Lung => lung::choose(&fractions),
    };
    let kept: Vec<usize> = chosen.clone().unwrap_or_default();
    let crop = crop_region(&stack, &kept, spacing, settings.crop);
    if let Some(path) = preview {
        draw_preview(path, &stack, &kept, crop)?;
    }
    if chosen.is_none() {
        return Err(Fault::NoLung);
    }
    let mut is_kept = vec![false; stack.len()];
    kept.iter().for_each(|&i| is_kept[i] = true);
    let chosen = stack.into_iter().zip(&is_kept).filter(|(_, kept)| **kept).map(|(slice, _)| slice);
    let chosen: Vec<Measured> = chosen.collect();
    let render_one = |slice| rendered(slice, (spacing, crop), settings);
    let slices = chosen.into_par_iter().map(render_one).collect::<Result<Vec<_>, Fault>>()?;
    Ok(Kept {
        slices,
        lung_fraction_source: mean(fractions.iter().copied()),
        lung_fraction: mean(kept.iter().map(|&i| fractions[i])),
    })
}

fn mean(values: impl ExactSizeIterator<Item = f32>) -> f64 {
    let count = values.len().max(1) as f64;
    values.map(f64::from).sum::<f64>() / count
}

/// The square around what is cropped to, in all kept slices; `None` without a crop.
fn crop_region(stack: &[Measured], kept: &[usize], spacing: Spacing, crop: Crop) -> Option<Region> {
    let box_of = |slice: &Measured| match crop {
        Crop::None => None,
        Crop::Body => slice.lung.body,
        Crop::Lung => slice.lung.lung,
    };
    let (rows, cols) = stack.first()?.size;
    if crop == Crop::None {
        return None;
    }
    let found = kept.iter().filter_map(|&i| box_of(&stack[i])).reduce(Region::union);
    Some(render::square(found.unwrap_or(Region::whole(rows, cols)), spacing, true))
}

fn draw_preview(path: &Path, stack: &[Measured], kept: &[usize], crop: Option<Region>) -> Result<(), Fault> {
    let tiles: Vec<(&Tile, bool)> = stack
        .iter()
        .enumerate()
        .filter_map(|(i, slice)| Some((slice.tile.as_ref()?, kept.binary_search(&i).is_ok())))
        .collect();
    preview::write(path, &tiles, crop)
}

fn rendered(
    slice: Measured,
    (spacing, crop): (Spacing, Option<Region>),
    settings: &ReaderSettings,
) -> Result<CaseSlice, Fault> {
    let picture = match slice.picture {
        Picture::Waiting { grey, hu } => {
            let whole = || render::square(Region::whole(slice.size.0, slice.size.1), spacing, false);
            finished(&grey, hu.as_ref(), crop.unwrap_or_else(whole), settings.size)?
        }
        done @ Picture::Done { .. } => done,
    };
    let Picture::Done { grey: pixels, hu } = picture else {
        return Err(Fault::Image { why: "it was not rendered".into() });
    };
    let pixel_sha256 = diag_data::files::sha256_hex(&pixels);
    Ok(CaseSlice {
        pixels,
        hu,
        geometry: slice.geometry,
        acquisition: slice.acquisition,
        selection: Selection {
            lung_fraction: Some(slice.lung.fraction),
            hu_min: Some(slice.hu_min),
            hu_max: Some(slice.hu_max),
            hu_mean: Some(slice.hu_mean),
        },
        provenance: Provenance { pixel_sha256, ..slice.provenance },
    })
}

fn finished(grey: &Image<u8>, hu: Option<&Image<f32>>, region: Region, size: u32) -> Result<Picture, Fault> {
    let wrong = |err: render::ResizeError| Fault::Image { why: err.to_string() };
    Ok(Picture::Done {
        grey: render::resize_grey(grey, region, size).map_err(wrong)?,
        hu: hu.map(|hu| render::resize_hu(hu, region, size)).transpose().map_err(wrong)?,
    })
}
