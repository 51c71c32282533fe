//! CT numbers of real files, pixel for pixel those of pydicom.
//!
//! `reference/hu_sha256.json` and `series_sha256.json` were made by the scripts of the same names.

use std::collections::BTreeMap;

use crate::common::{Cohort, reading, rows, test_data};
use ct_read::Fault;
use ct_read::dicom::{self, HuTable, Scanned};
use ct_read::slice::hu_check::HuHistogram;
use ct_read::source::Listing;
use ct_read::source::listing::ListedFile;
use ct_read::volume;
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
        for file in Listing::of(&data.join(folder)).unwrap().files {
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

#[derive(Deserialize)]
struct SeriesReference {
    n_slices: usize,
    lowest_mm: f64,
    highest_mm: f64,
    hu_sha256: String,
}

#[test]
fn every_real_series_is_the_reference_s_in_the_usual_view_from_feet_to_head() {
    let Some(data) = test_data("data") else { return };
    let reference: BTreeMap<String, SeriesReference> =
        serde_json::from_str(include_str!("../../../ct-read/tests/reference/series_sha256.json")).unwrap();
    let cohort = Cohort::new();
    let mut table = String::from("case_id,label,split\n");
    for (i, series) in reference.keys().enumerate() {
        table.push_str(&format!("series-{i},{},train\n", ["normal", "covid-19"][i % 2]));
        std::fs::create_dir_all(cohort.dicom()).unwrap();
        std::os::unix::fs::symlink(data.join(series), cohort.dicom().join(format!("series-{i}"))).unwrap();
    }
    cohort.label(&table);
    let (result, codes) = cohort.run(reading(|reader| reader.size = 512));
    result.unwrap();
    assert_eq!(codes, Vec::<String>::new());
    for (i, (name, want)) in reference.iter().enumerate() {
        let rows = rows(&cohort.shards(), &format!("series-{i}"));
        let z: Vec<f64> = rows.iter().map(|row| row.geometry.z.unwrap().0).collect();
        let near = |got: f64, want: f64| assert!((got - want).abs() < 1e-6, "{name}: {got} mm, not {want}");
        assert_eq!(rows.len(), want.n_slices, "{name}");
        near(z[0], want.lowest_mm);
        near(z[z.len() - 1], want.highest_mm);
        assert!(z.windows(2).all(|pair| pair[0] < pair[1]), "{name}");
        let hu = rows.iter().flat_map(|row| row.hu.as_ref().unwrap()).flat_map(|hu| hu.to_le_bytes());
        let bytes: Vec<u8> = hu.collect();
        assert_eq!(diag_data::files::sha256_hex(&bytes), want.hu_sha256, "{name}");
    }
}

/// HU of all slices of a folder of one series, with padding as the file has it.
fn series_hu(folder: &std::path::Path) -> Vec<(Vec<f32>, (usize, usize))> {
    let mut slices = Vec::new();
    for file in Listing::of(folder).unwrap().files {
        let Ok(Scanned::Ct(header)) = dicom::scan_file(&file) else { continue };
        let bytes = file.read().unwrap();
        let words = dicom::stored_words(&dicom::inflate(&bytes).unwrap(), &header, 0).unwrap();
        let hu = HuTable::new(header.format, &header.frames[0].rescale.clone().unwrap()).hu(&words);
        slices.push((hu, (header.format.rows, header.format.cols)));
    }
    slices
}

#[test]
fn real_series_pass_the_check_of_hu_and_wrong_ones_do_not() {
    let Some(data) = test_data("data") else { return };
    let mut series: Vec<(String, Vec<(Vec<f32>, (usize, usize))>)> = Vec::new();
    for name in [
        "lungfcp-01-0001/dicom",
        "covid-ct-md-P002/dicom",
        "totalsegmentator-ct/dicom",
        "covid-ct-md-5/P001",
        "covid-ct-md-5/cap001",
        "covid-ct-md-5/cap002",
        "covid-ct-md-5/normal001",
        "covid-ct-md-5/normal002",
    ] {
        let slices = series_hu(&data.join(name));
        assert!(slices.len() > 15, "{name}");
        series.push((name.into(), slices));
    }
    for file in Listing::of(&data.join("totalsegmentator-ct")).unwrap().files {
        if file.relative.ends_with(".nii.gz") {
            let volume = volume::read_file(&file, &Listing::default()).unwrap().0;
            let axial = volume.axial();
            let slices = (0..axial.n_slices).map(|i| (volume.slice(i), (axial.rows, axial.cols))).collect();
            series.push((file.relative.to_string(), slices));
        }
    }
    assert_eq!(series.len(), 11);
    type Change = fn(f32) -> f32;
    let changes: [(&str, Change); 10] = [
        ("plus 300", |hu| hu + 300.0),
        ("minus 300", |hu| hu - 300.0),
        ("1.5 times", |hu| hu * 1.5),
        ("twice", |hu| hu * 2.0),
        ("negated", |hu| -hu),
        ("plus 1024", |hu| hu + 1024.0),
        ("plus 200", |hu| hu + 200.0),
        ("minus 200", |hu| hu - 200.0),
        ("lung window of 8 bits", |hu| ((hu + 1350.0) / 1500.0 * 255.0).clamp(0.0, 255.0).round()),
        ("soft window of 8 bits", |hu| ((hu + 160.0) / 400.0 * 255.0).clamp(0.0, 255.0).round()),
    ];
    let judged = |slices: &[(Vec<f32>, (usize, usize))], change: Change| {
        let mut histogram = HuHistogram::default();
        for (hu, size) in slices {
            let hu: Vec<f32> = hu.iter().map(|hu| change(*hu)).collect();
            histogram.add(&HuHistogram::of_hu(&hu, *size));
        }
        histogram.judge()
    };
    let mut wrong = Vec::new();
    for (name, slices) in &series {
        if let Err(fault) = judged(slices, |hu| hu) {
            wrong.push(format!("{name}: {fault}"));
        }
        for (change_name, change) in changes {
            if judged(slices, change).is_ok() {
                wrong.push(format!("{name}, {change_name}: passes"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
