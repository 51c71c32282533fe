//! Broken files of the shared test data: each gives a clear reason or is read
//! right, and none panics, hangs or costs more than its own case.

use crate::common::{Cohort, series, settings, test_data};
use ct_read::dicom::{self, Scanned};
use ct_read::source::listing::ListedFile;

/// How a file is handled: "read", the reason it is no CT image, or the fault's code.
fn outcome(path: &std::path::Path) -> String {
    let header = match dicom::scan_file(&ListedFile::at(path)) {
        Ok(Scanned::Ct(header)) => header,
        Ok(Scanned::Other { reason }) => return reason.into(),
        Err(fault) => return fault.code().into(),
    };
    let read = || {
        let frame = &header.frames[0];
        frame.position.clone()?;
        frame.rescale.clone()?;
        let bytes = ListedFile::at(path).read()?;
        dicom::stored_words(&dicom::inflate(&bytes)?, &header, 0)
    };
    match read() {
        Ok(words) => {
            assert_eq!(words.len(), header.format.rows * header.format.cols);
            "read".into()
        }
        Err(fault) => fault.code().into(),
    }
}

#[test]
fn every_fault_is_named() {
    let Some(folder) = test_data("bad-dicom") else { return };
    let want = [
        ("00_ok", "read"),
        ("01_empty", "not-dicom"),
        ("02_trunc_preamble", "not-dicom"),
        ("03_trunc_meta", "truncated"),
        ("05_trunc_pixels", "truncated"),
        ("06_nopreamble", "read"),
        ("07_garbage", "not-dicom"),
        ("08_jpeg.jpg", "not-dicom"),
        ("09_hugelen_pixel", "truncated"),
        ("10_undeflen_native", "pixels"),
        ("13_rows65535", "attribute"),
        ("14_rows0", "attribute"),
        ("15_norows", "attribute"),
        ("16_bitsstored0", "attribute"),
        ("18_ba12", "attribute"),
        ("20_nframes_neg", "attribute"),
        ("21_slope_text", "rescale"),
        ("22_slope_zero", "rescale"),
        ("24_noipp", "attribute"),
        ("26_norescale", "rescale"),
        ("27_mono1", "read"),
        ("28_unknown_ts", "transfer-syntax"),
        ("29_overlay_highbits", "read"),
        ("40_htj2k_trunc", "pixels"),
        ("40_j2k_trunc", "pixels"),
        ("40_jls_trunc", "pixels"),
        ("40_jpll_trunc", "pixels"),
        ("40_rle_trunc", "pixels"),
        ("41_htj2k_tiny", "pixels"),
        ("41_jls_tiny", "pixels"),
        ("41_jpll_tiny", "pixels"),
        ("42_htj2k_empty", "pixels"),
        ("42_j2k_empty", "pixels"),
        ("42_jpll_empty", "pixels"),
        ("42_rle_empty", "pixels"),
        ("43_htj2k_rows_smaller", "pixels"),
        ("43_j2k_rows_smaller", "pixels"),
        ("43_jpll_rows_smaller", "pixels"),
        ("44_htj2k_rows_larger", "pixels"),
        ("44_jpll_rows_larger", "pixels"),
        ("44_rle_rows_larger", "pixels"),
        ("51_nest200k", "too-deep"),
        ("52_deflate_bomb_1GB", "too-large"),
        ("53_bigendian", "read"),
    ];
    let mut wrong = Vec::new();
    let mut seen = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let Some(stem) = name.strip_suffix(".dcm") else { continue };
        seen += 1;
        let expected =
            want.iter().find(|(known, _)| *known == stem).map_or("a known file", |(_, code)| *code);
        let got = outcome(&path);
        if got != expected {
            wrong.push(format!("{stem}: {got} where {expected} is right"));
        }
    }
    wrong.sort();
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(seen, want.len());
}

#[test]
fn no_broken_file_changes_a_byte_of_the_other_cases() {
    let Some(folder) = test_data("bad-dicom") else { return };
    let entries = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    let broken: Vec<_> = entries.filter(|path| path.extension().is_some_and(|e| e == "dcm")).collect();
    let made = |broken: &[std::path::PathBuf]| {
        let cohort = Cohort::new();
        let mut table = String::from("case_id,label,split\na,normal,train\nz,covid-19,train\n");
        cohort.write("a", &series(1));
        cohort.write("z", &series(2));
        // Other pixels than the sound cases have: equal ones would be a leak.
        let mut around = series(9);
        for slice in &mut around {
            slice.stored(&slice.stored_values().iter().map(|value| value + 5).collect::<Vec<_>>());
            // One person with the broken files.
            slice.text(0x0010_0020, "LO", "S000");
        }
        for (i, path) in broken.iter().enumerate() {
            cohort.write(&format!("broken{i}"), &around);
            std::fs::copy(path, cohort.dicom().join(format!("broken{i}/broken.dcm"))).unwrap();
            table.push_str(&format!("broken{i},normal,test\n"));
        }
        cohort.label(&table);
        let (result, codes) = cohort.run(settings());
        let shard = cohort.shards().join("data/train-00000-of-00001.parquet");
        (std::fs::read(shard).unwrap(), codes.len(), result.unwrap().manifest.flow.cases.used)
    };
    let (alone, beside) = (made(&[]), made(&broken));
    assert!(alone.0 == beside.0, "the bytes of the sound cases");
    // A file that cannot be told from a slice of the used series costs its case; what is broken
    // in another series, or sound but a single slice, is left out and not decoded.
    assert_eq!((beside.1, beside.2), (7, 2 + broken.len() as u64 - 7));
}
