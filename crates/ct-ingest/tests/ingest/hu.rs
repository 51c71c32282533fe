//! CT numbers of real files, pixel for pixel those of pydicom.
//!
//! `reference/hu_sha256.json` was made by `reference/hu_sha256.py`.

use std::collections::BTreeMap;

use crate::common::test_data;
use ct_read::Fault;
use ct_read::dicom::{self, HuTable, Scanned};
use ct_read::source::listing::ListedFile;
use serde::Deserialize;

#[derive(Deserialize)]
struct Reference {
    transfer_syntax: String,
    hu_sha256: String,
}

fn hu_sha256(path: &std::path::Path) -> Result<String, Fault> {
    let Scanned::Ct(header) = dicom::scan_file(&ListedFile::at(path))? else {
        return Err(Fault::NotDicom { why: "it is no CT image".into() });
    };
    let bytes = ListedFile::at(path).read()?;
    let words = dicom::stored_words(&dicom::inflate(&bytes)?, &header, 0)?;
    let hu = HuTable::new(header.format, &header.frames[0].rescale.clone()?).hu(&words);
    let bytes: Vec<u8> = hu.iter().flat_map(|hu| hu.to_le_bytes()).collect();
    Ok(diag_data::files::sha256_hex(&bytes))
}

#[test]
fn every_pixel_is_the_reference_s() {
    let Some(data) = test_data("data") else { return };
    let reference: BTreeMap<String, Reference> =
        serde_json::from_str(include_str!("../../../ct-read/tests/reference/hu_sha256.json")).unwrap();
    // Two files of the test data are the same, byte for byte.
    let mut seen = std::collections::BTreeSet::new();
    let (mut n_equal, mut wrong) = (0, Vec::new());
    for folder in
        ["lungfcp-01-0001/dicom", "covid-ct-md-P002/dicom", "dicom-syntaxes", "totalsegmentator-ct/dicom"]
    {
        for file in ct_read::source::listing::Listing::of(&data.join(folder)).unwrap().files {
            let hash = diag_data::files::sha256_file(&file.path()).unwrap();
            let Some(want) = reference.get(&hash).filter(|_| seen.insert(hash.clone())) else { continue };
            match hu_sha256(&file.path()) {
                Ok(got) if got == want.hu_sha256 => n_equal += 1,
                other => wrong.push(format!("{} in {}: {other:?}", file.relative, want.transfer_syntax)),
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(n_equal, reference.len());
    let syntaxes: std::collections::BTreeSet<&str> =
        reference.values().map(|file| file.transfer_syntax.as_str()).collect();
    assert!(syntaxes.len() >= 7, "{syntaxes:?}");
}
