//! A case of pictures: one slice an image, in the order of their names.

use diag_data::files;
use diag_data::reader::ReaderSettings;
use diag_data::slice::{Acquisition, Geometry, Provenance, Selection};
use rayon::prelude::*;

use super::task::{CaseFault, CaseFiles, ReadCase, SeriesFacts};
use crate::fault::Fault;
use crate::picture;
use crate::pseudonyms::Pseudonyms;
use crate::slice::lung::Region;
use crate::slice::pictures::CaseSlice;
use crate::slice::render;
use crate::source::Listing;
use crate::source::guard::guarded;

/// Reads the images of a case.
///
/// # Errors
/// The [`Fault`] of the first image that cannot be used.
pub fn read(
    case: &CaseFiles,
    listing: &Listing,
    settings: &ReaderSettings,
    pseudonyms: &Pseudonyms,
) -> Result<ReadCase, CaseFault> {
    let read_one = |&file: &usize| {
        let broken = Fault::Image { why: "decoding it broke off".into() };
        guarded(broken, || read_image(&listing.files[file].read()?, settings, pseudonyms))
            .map_err(|fault| (Some(file), fault))
    };
    let results: Vec<_> = case.files.par_iter().map(read_one).collect();
    let slices = results.into_iter().collect::<Result<Vec<CaseSlice>, CaseFault>>()?;
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

fn read_image(bytes: &[u8], settings: &ReaderSettings, pseudonyms: &Pseudonyms) -> Result<CaseSlice, Fault> {
    let picture = picture::decode(bytes)?;
    let (rows, cols) = (picture.grey.rows, picture.grey.cols);
    let pixels = render::resize_grey(&picture.grey, Region::whole(rows, cols), settings.size)
        .map_err(|err| Fault::Image { why: err.to_string() })?;
    let pixel_sha256 = files::sha256_hex(&pixels);
    Ok(CaseSlice {
        pixels,
        hu: None,
        geometry: Geometry { source_rows: rows as i32, source_cols: cols as i32, ..Geometry::default() },
        acquisition: Acquisition {
            transfer_syntax: picture.format.into(),
            lossy: picture.lossy,
            ..Acquisition::default()
        },
        selection: Selection::default(),
        provenance: Provenance {
            source_blake3: pseudonyms.hash_file(bytes),
            pixel_sha256,
            sop_uid_hash: None,
            series_uid_hash: None,
            warnings: picture.warnings,
        },
    })
}
