//! Every compressed transfer syntax, from streams of the codecs' own libraries.
//!
//! `reference/codec_streams.json` was made by `reference/codec_streams.py`, and
//! `reference/lossless_streams.json` by `reference/lossless_streams.py`.

use std::io::Write;

use base64::Engine;
use ct_read::Fault;
use ct_read::dicom::{self, Scanned};
use serde::Deserialize;

use crate::common::{Dicom, chest_hu};
use crate::tested::{changed, check_hu, run};

#[derive(Clone, Deserialize)]
struct Case {
    name: String,
    syntax: String,
    bits: u16,
    rows: u16,
    cols: u16,
    tolerance: u16,
    stream: String,
    #[serde(default)]
    words: String,
    #[serde(default)]
    sha256: String,
}

fn cases() -> Vec<Case> {
    serde_json::from_str(include_str!("../../../ct-read/tests/reference/codec_streams.json")).unwrap()
}

/// JPEG lossless of every selection value.
fn lossless_cases() -> Vec<Case> {
    serde_json::from_str(include_str!("../../../ct-read/tests/reference/lossless_streams.json")).unwrap()
}

fn base64(text: &str) -> Vec<u8> {
    base64::engine::general_purpose::STANDARD.decode(text).unwrap()
}

/// Encapsulated pixel data of one fragment.
fn encapsulated(stream: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0xFE, 0xFF, 0x00, 0xE0, 0, 0, 0, 0];
    bytes.extend([0xFE, 0xFF, 0x00, 0xE0]);
    bytes.extend((stream.len() as u32).next_multiple_of(2).to_le_bytes());
    bytes.extend(stream);
    if stream.len() % 2 == 1 {
        bytes.push(0);
    }
    bytes.extend([0xFE, 0xFF, 0xDD, 0xE0, 0, 0, 0, 0]);
    bytes
}

/// One small file of every codec, for the tests of damaged input.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut seen = std::collections::BTreeSet::new();
    let cases = cases().into_iter().chain(lossless_cases()).filter(|case| case.rows > 16);
    let cases = cases.filter(|case| seen.insert((case.syntax.clone(), case.name.contains("after 1"))));
    cases.map(|case| file_of(&case, &base64(&case.stream))).collect()
}

/// A DICOM file around a stream, with the header that belongs to it.
fn file_of(case: &Case, stream: &[u8]) -> Vec<u8> {
    let mut dicom = Dicom::chest(1, 0.0);
    dicom.syntax = case.syntax.clone().leak();
    for (tag, value) in [
        (0x0028_0010, case.rows),
        (0x0028_0011, case.cols),
        (0x0028_0100, if case.bits == 8 { 8 } else { 16 }),
        (0x0028_0101, case.bits),
        (0x0028_0102, case.bits - 1),
        (0x0028_0103, 0),
    ] {
        dicom.number(tag, "US", value);
    }
    dicom.elements.insert(0x7FE0_0010, ("OB open", encapsulated(stream)));
    dicom.bytes()
}

fn decoded(case: &Case, stream: &[u8]) -> Result<Vec<u16>, Fault> {
    let bytes = file_of(case, stream);
    let Scanned::Ct(header) = dicom::scan(&bytes, bytes.len() as u64)? else {
        return Err(Fault::NotDicom { why: "it is no CT".into() });
    };
    dicom::stored_words(&bytes, &header, 0)
}

#[test]
fn every_stream_is_what_its_library_makes_of_it() {
    let cases: Vec<Case> = cases().into_iter().chain(lossless_cases()).collect();
    assert!(cases.len() >= 180);
    let mut wrong = Vec::new();
    for case in &cases {
        if case.name == "JPEG extended of 12 bits" {
            continue;
        }
        let words = match decoded(case, &base64(&case.stream)) {
            Ok(words) => words,
            Err(fault) => {
                wrong.push(format!("{}: {fault}", case.name));
                continue;
            }
        };
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let is_right = if case.tolerance == 0 {
            diag_data::files::sha256_hex(&bytes) == case.sha256
        } else {
            let want = base64(&case.words);
            let want = want.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
            words.iter().zip(want).all(|(got, want)| got.abs_diff(want) <= case.tolerance)
        };
        if !is_right {
            wrong.push(case.name.clone());
        }
    }
    assert!(wrong.is_empty(), "{} of {}: {wrong:#?}", wrong.len(), cases.len());
}

#[test]
fn twelve_bit_jpeg_is_named_by_its_transfer_syntax() {
    let case = cases().into_iter().find(|case| case.name == "JPEG extended of 12 bits").unwrap();
    let fault = decoded(&case, &base64(&case.stream)).unwrap_err();
    assert_eq!(fault.code(), "transfer-syntax");
    assert!(fault.to_string().contains("JPEG Extended (Process 2 & 4) (1.2.840.10008.1.2.4.51)"), "{fault}");
    assert!(fault.to_string().contains("12 bits"), "{fault}");
}

#[test]
fn a_stream_that_is_cut_or_damaged_is_never_taken_for_whole() {
    let cases = cases();
    let of_syntax = |syntax: &str| {
        let deepest = cases.iter().filter(|case| case.syntax.ends_with(syntax) && case.rows > 20);
        deepest.max_by_key(|case| case.bits).unwrap()
    };
    for syntax in [".4.50", ".4.70", ".4.80", ".4.81", ".4.90", ".4.91", ".4.201"] {
        let case = of_syntax(syntax);
        let stream = base64(&case.stream);
        for n_kept in [0, 10, stream.len() / 3, stream.len() / 2, stream.len() - 12] {
            let cut = &stream[..n_kept];
            assert!(decoded(case, cut).is_err(), "{}, cut at {n_kept}", case.name);
        }
        // Rows or columns that are not the stream's.
        for (rows, cols) in [(case.rows - 1, case.cols), (case.rows, case.cols + 1), (case.cols, case.rows)] {
            let other = Case { rows, cols, ..case.clone() };
            assert!(decoded(&other, &stream).is_err(), "{} as {rows} x {cols}", case.name);
        }
    }
    // With an end mark put behind the cut, the decoders must notice by themselves.
    for syntax in [".4.70", ".4.80", ".4.81"] {
        let case = of_syntax(syntax);
        let stream = base64(&case.stream);
        for n_kept in (30..stream.len() - 4).step_by(11) {
            let mut cut = stream[..n_kept].to_vec();
            cut.extend([0xFF, 0xD9]);
            assert!(decoded(case, &cut).is_err(), "{}, cut at {n_kept}", case.name);
        }
    }
}

#[test]
fn a_lossless_stream_that_breaks_a_rule_is_refused() {
    let of_name = |name: &str| lossless_cases().into_iter().find(|case| case.name == name).unwrap();
    let case = of_name("12 bits, selection 7, point transform 0, restart after 1 rows");
    let stream = base64(&case.stream);
    let find = |bytes: &[u8]| stream.windows(bytes.len()).position(|window| window == bytes).unwrap();
    let with = |at: usize, bytes: &[u8]| {
        let mut changed = stream.clone();
        changed[at..at + bytes.len()].copy_from_slice(bytes);
        changed
    };
    let (restart, scan, table) = (find(&[0xFF, 0xDD]), find(&[0xFF, 0xDA]), find(&[0xFF, 0xC4]));
    for (changed, what) in [
        (with(find(&[0xFF, 0xD3]), &[0xFF, 0xD4]), "restarts out of order"),
        (with(find(&[0xFF, 0xD3]), &[0xFF, 0xD9]), "an end before the end"),
        (with(restart + 4, &[0, 21]), "a restart within a line"),
        (with(restart + 4, &[0, 0]), "restarts that were not announced"),
        (with(restart + 4, &[0, 40]), "fewer restarts than announced"),
        (with(scan + 4, &[2]), "two components"),
        (with(scan + 6, &[0x10]), "a table that is not there"),
        (with(scan + 7, &[0]), "no selection value"),
        (with(scan + 7, &[8]), "another selection value"),
        (with(scan + 9, &[12]), "a point transform of all bits"),
        (with(table + 5, &[3]), "more codes than a bit has"),
        (with(table + 21, &[17]), "a difference of 17 bits"),
        (with(table + 2, &[0xFF, 0xFF]), "a table beyond the stream"),
    ] {
        assert_eq!(decoded(&case, &changed).unwrap_err().code(), "pixels", "{what}");
    }
    // Fill bytes may stand before any marker.
    let mut filled = stream.clone();
    let at = find(&[0xFF, 0xD3]);
    filled.splice(at..at, [0xFF; 3]);
    assert_eq!(decoded(&case, &filled).unwrap(), decoded(&case, &stream).unwrap());
    // A header that asks for more pixels than the stream has bits.
    let (at, mut large) = (find(&[0xFF, 0xC3]), stream.clone());
    large[at + 5..at + 9].copy_from_slice(&[0x20, 0x00, 0x20, 0x00]);
    assert!(decoded(&Case { rows: 8192, cols: 8192, ..case }, &large).is_err());
}

#[test]
fn an_rle_stream_that_contradicts_itself_is_refused() {
    let header = Case {
        name: "RLE".into(),
        syntax: "1.2.840.10008.1.2.5".into(),
        bits: 16,
        rows: 64,
        cols: 64,
        tolerance: 0,
        stream: String::new(),
        words: String::new(),
        sha256: String::new(),
    };
    let stored = chest_hu(0.0).map(|hu| hu + 1024);
    let stream = crate::multiframe::rle(&stored);
    assert_eq!(decoded(&header, &stream).unwrap(), stored.map(|value| value as u16).to_vec());
    let refused = |case: &Case, stream: &[u8], what: &str| {
        assert_eq!(decoded(case, stream).unwrap_err().code(), "pixels", "{what}");
    };
    for n_kept in [0, 2, 63, 64, 65, 1000, stream.len() / 2, stream.len() - 2] {
        refused(&header, &stream[..n_kept], "cut");
    }
    let with = |at: usize, number: u32| {
        let mut changed = stream.clone();
        changed[4 * at..4 * at + 4].copy_from_slice(&number.to_le_bytes());
        changed
    };
    let second = u32::from_le_bytes(stream[8..12].try_into().unwrap());
    for (at, number, what) in [
        (0, 0, "no segment"),
        (0, 1, "one segment"),
        (0, 3, "three segments"),
        (0, u32::MAX, "every segment"),
        (1, 0, "a segment inside the header"),
        (1, second + 2, "offsets in reverse"),
        (2, 64, "two segments in one place"),
        (2, u32::MAX, "an offset beyond the stream"),
    ] {
        refused(&header, &with(at, number), what);
    }
    for (rows, cols) in [(63, 64), (65, 64), (64, 63), (8192, 8192)] {
        refused(&Case { rows, cols, ..header.clone() }, &stream, &format!("{rows} x {cols}"));
    }
}

/// Deflates the data set and leaves the meta group as it is (PS3.5 A.5).
fn deflated(file: &[u8], level: flate2::Compression) -> Vec<u8> {
    let body = 132 + 8 + 22;
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), level);
    encoder.write_all(&file[body..]).unwrap();
    [&file[..body], &encoder.finish().unwrap()].concat()
}

const DEFLATED: &str = "1.2.840.10008.1.2.1.99";

#[test]
fn a_deflated_data_set_gives_the_same_numbers() {
    let files: Vec<Vec<u8>> = changed(|series| series.iter_mut().for_each(|slice| slice.syntax = DEFLATED))
        .iter()
        .map(|file| deflated(file, flate2::Compression::fast()))
        .collect();
    let (cohort, codes) = run(&files, crate::common::settings());
    assert_eq!(codes, Vec::<String>::new());
    let rows = crate::common::rows(&cohort.shards(), "tested");
    check_hu(&rows, -30.0);
    assert_eq!(rows[5].hu.as_ref().unwrap(), &chest_hu(-5.0).to_vec());
}

#[test]
fn a_large_deflated_file_is_read_whole_before_it_is_judged() {
    let files = changed(|series| {
        series[0].syntax = DEFLATED;
        // More than any header that can be read apart from its pixels.
        series[0].elements.insert(0x0009_1010, ("UN", vec![7; 65 << 20]));
    });
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large.dcm");
    std::fs::write(&path, deflated(&files[0], flate2::Compression::none())).unwrap();
    let scanned = dicom::scan_file(&ct_read::source::listing::ListedFile::at(&path));
    assert!(matches!(scanned, Ok(Scanned::Ct(_))), "{scanned:?}");
}
