//! A case of pictures: one slice an image, in the order of their names.

use diag_data::files;
use diag_data::reader::ReaderSettings;
use diag_data::slice::{Acquisition, Geometry, Provenance, Selection};
use rayon::prelude::*;

use super::task::{CaseFault, CaseFiles, ReadCase, SeriesFacts};
use crate::fault::Fault;
use crate::picture::{self, Content, HuLine};
use crate::pseudonyms::Pseudonyms;
use crate::slice::hu_check::{HuHistogram, OUTSIDE_CIRCLE_HU, PADDING_HU};
use crate::slice::lung::Region;
use crate::slice::pictures::CaseSlice;
use crate::slice::render::{self, Image};
use crate::slice::statistics;
use crate::source::Listing;
use crate::source::guard::guarded;

/// Reads the images of a case. With a line, their values are stored values of CT, which become
/// HU by it and grey levels by the window of the settings.
///
/// # Errors
/// The [`Fault`] of the first image that cannot be used, or [`Fault::NotHu`] for all of them.
pub fn read(
    case: &CaseFiles,
    listing: &Listing,
    settings: &ReaderSettings,
    pseudonyms: &Pseudonyms,
    line: Option<HuLine>,
) -> Result<ReadCase, CaseFault> {
    let read_one = |&file: &usize| {
        let broken = Fault::Image { why: "decoding it broke off".into() };
        guarded(broken, || read_image(&listing.files[file].read()?, settings, pseudonyms, line))
            .map_err(|fault| (Some(file), fault))
    };
    let results: Vec<_> = case.files.par_iter().map(read_one).collect();
    let read = results.into_iter().collect::<Result<Vec<_>, CaseFault>>()?;
    let mut histogram = HuHistogram::default();
    let mut slices = Vec::with_capacity(read.len());
    for (slice, counts) in read {
        counts.iter().for_each(|counts| histogram.add(counts));
        slices.push(slice);
    }
    if line.is_some() {
        histogram.judge().map_err(|fault| (None, fault))?;
    }
    Ok(ReadCase {
        n_source_slices: slices.len(),
        slices,
        lung_fraction_source: None,
        lung_fraction: None,
        series: SeriesFacts::default(),
        warnings: Vec::new(),
        synthetic: false,
        burned_in_unknown: true,
        files_aside: Vec::new(),
        series_aside: Vec::new(),
        slices_aside: Vec::new(),
    })
}

fn read_image(
    bytes: &[u8],
    settings: &ReaderSettings,
    pseudonyms: &Pseudonyms,
    line: Option<HuLine>,
) -> Result<(CaseSlice, Option<HuHistogram>), Fault> {
    let picture = picture::decode(bytes, line)?;
    let (mut selection, mut histogram, mut padding_px) = (Selection::default(), None, 0);
    let grey = match picture.content {
        Content::Grey(grey) => grey,
        Content::Hu(Image { rows, cols, mut values }) => {
            let window =
                settings.window.ok_or(Fault::Image { why: "stored values need a HU window".into() })?;
            for hu in values.iter_mut().filter(|hu| **hu < OUTSIDE_CIRCLE_HU) {
                *hu = PADDING_HU;
                padding_px += 1;
            }
            let measured = statistics::of_hu(&values, (rows, cols), window, false);
            histogram = Some(HuHistogram::of_grid(&measured.grid, padding_px > 0));
            selection.hu_min = Some(measured.hu_min);
            selection.hu_max = Some(measured.hu_max);
            selection.hu_mean = Some(measured.hu_mean);
            measured.grey
        }
    };
    let (rows, cols) = (grey.rows, grey.cols);
    let pixels = render::resize_grey(&grey, Region::whole(rows, cols), settings.size)
        .map_err(|err| Fault::Image { why: err.to_string() })?;
    let pixel_sha256 = files::sha256_hex(&pixels);
    let slice = CaseSlice {
        pixels,
        hu: None,
        geometry: Geometry { source_rows: rows as i32, source_cols: cols as i32, ..Geometry::default() },
        acquisition: Acquisition {
            transfer_syntax: picture.format.into(),
            lossy: picture.lossy,
            rescale_slope: line.map(|line| line.slope),
            rescale_intercept: line.map(|line| line.intercept),
            padding_px,
            ..Acquisition::default()
        },
        selection,
        provenance: Provenance {
            source_blake3: pseudonyms.hash_file(bytes),
            pixel_sha256,
            sop_uid_hash: None,
            series_uid_hash: None,
            warnings: picture.warnings,
        },
    };
    Ok((slice, histogram))
}
