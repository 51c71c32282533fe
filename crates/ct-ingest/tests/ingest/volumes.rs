//! NIfTI-2, pairs of files, MetaImage and NRRD: voxels and places as nibabel and SimpleITK have them,
//! whole runs, bad input.
//!
//! `reference/volumes.json` was made by the script of the same name.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use base64::Engine;
use ct_read::scan::Format;
use ct_read::source::listing::{ListedFile, Listing};
use ct_read::volume;
use diag_data::shard::ShardSet;
use serde::Deserialize;

use crate::common::{Cohort, chest_hu, rows, settings};
use crate::nifti::{Reference, check};

#[derive(Deserialize)]
struct Case {
    files: BTreeMap<String, String>,
    first: String,
    #[serde(flatten)]
    reference: Reference,
}

#[test]
fn every_format_and_orientation_is_as_its_library_reads_it() {
    let cases: Vec<Case> =
        serde_json::from_str(include_str!("../../../ct-read/tests/reference/volumes.json")).unwrap();
    assert_eq!(cases.len(), 238);
    for (i, case) in cases.iter().enumerate() {
        let folder = tempfile::tempdir().unwrap();
        for (name, packed) in &case.files {
            let packed = base64::engine::general_purpose::STANDARD.decode(packed).unwrap();
            let mut reader = flate2::read::GzDecoder::new(packed.as_slice());
            let mut file = std::fs::File::create(folder.path().join(name)).unwrap();
            std::io::copy(&mut reader, &mut file).unwrap();
        }
        // By itself, and below a folder.
        let alone = ListedFile::at(&folder.path().join(&case.first));
        let listing = Listing::of(folder.path()).unwrap();
        let listed = listing.files.iter().find(|file| *file.relative == *case.first).unwrap();
        for (file, listing) in [(&alone, &Listing::default()), (listed, &listing)] {
            let (volume, beside) = volume::read_file(file, listing).unwrap();
            assert_eq!(check(&volume, &case.reference), case.reference.axial, "case {i}, {}", case.first);
            assert_eq!(beside.is_some(), case.files.len() > 1, "case {i}");
        }
    }
}

/// The crafted chest as voxels: columns to the left, rows to posterior, slices to the head.
fn voxels(shift: i16) -> Vec<u8> {
    let slices = (0..6).flat_map(|i| chest_hu(-30.0 + 5.0 * f64::from(i)));
    slices.flat_map(|hu| (hu + shift).to_le_bytes()).collect()
}

const META: &str = "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\n\
    CompressedData = False\nTransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = -176 -176 -30\n\
    CenterOfRotation = 0 0 0\nAnatomicalOrientation = RAI\nElementSpacing = 5.5 5.5 5\nDimSize = 64 64 6\n\
    ElementType = MET_SHORT\nElementDataFile = LOCAL\n";
const NRRD: &str = "NRRD0004\n# of a test\ntype: short\ndimension: 3\nspace: left-posterior-superior\n\
    sizes: 64 64 6\nspace directions: (5.5,0,0) (0,5.5,0) (0,0,5)\nkinds: domain domain domain\n\
    endian: little\nencoding: raw\nspace origin: (-176,-176,-30)\n\n";

/// A header with one change, and the voxels behind it.
fn file(header: &str, (old, new): (&str, &str), voxels: &[u8]) -> Vec<u8> {
    assert!(header.contains(old), "{old}");
    [header.replacen(old, new, 1).as_bytes(), voxels].concat()
}

fn meta(old: &str, new: &str) -> Vec<u8> {
    file(META, (old, new), &voxels(0))
}

fn nrrd(old: &str, new: &str) -> Vec<u8> {
    file(NRRD, (old, new), &voxels(0))
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Small files of all formats, for the tests of damaged input.
pub fn seeds() -> Vec<Vec<u8>> {
    let small = &voxels(0)[..2 * 6 * 64];
    vec![
        file(META, ("DimSize = 64 64", "DimSize = 8 8"), small),
        file(NRRD, ("sizes: 64 64", "sizes: 8 8"), small),
        file(&NRRD.replace("raw", "gzip"), ("sizes: 64 64", "sizes: 8 8"), &gzip(small)),
    ]
}

/// Runs over a good volume and the tested files; returns what was set aside.
fn run(tested: &[(&str, Vec<u8>)]) -> (Cohort, Vec<String>) {
    let cohort = Cohort::new();
    cohort.label("case_id,label,split\ngood,normal,train\ntested,covid-19,test\n");
    std::fs::write(cohort.dicom().join("good.mha"), file(META, ("RAI", "RAI"), &voxels(5))).unwrap();
    for (name, bytes) in tested {
        let path = cohort.dicom().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
    let (result, codes) = cohort.run_as(Format::Nifti, settings());
    result.unwrap();
    assert_eq!(rows(&cohort.shards(), "good").len(), 6, "the other case is untouched");
    (cohort, codes)
}

#[test]
fn a_volume_of_every_format_gives_the_rows_of_its_dicom_series() {
    let raw = || voxels(0);
    let beside = meta("LOCAL", "ct.raw")[..META.len() - 5 + 6].to_vec();
    let detached = nrrd("\n\n", "\ndata file: ct.raw.gz\n").split_at(NRRD.len() + 21).0.to_vec();
    let detached = String::from_utf8(detached).unwrap().replace("encoding: raw", "encoding: gzip");
    let files: [(&str, Vec<(&str, Vec<u8>)>); 5] = [
        ("MetaImage", vec![("tested.mha", meta("RAI", "RAI"))]),
        ("MetaImage", vec![("tested/ct.mhd", beside.clone()), ("tested/ct.raw", raw())]),
        ("NRRD", vec![("tested.nrrd", nrrd("raw", "raw"))]),
        ("NRRD", vec![("tested/ct.nhdr", detached.into()), ("tested/ct.raw.gz", gzip(&raw()))]),
        ("MetaImage", vec![("tested.zip", zipped(&[("d/ct.mhd", &beside), ("d/ct.raw", &raw())]))]),
    ];
    for (format, files) in files {
        let (cohort, codes) = run(&files);
        assert_eq!(codes, Vec::<String>::new(), "{}", files[0].0);
        let rows = rows(&cohort.shards(), "tested");
        assert_eq!(rows.len(), 6);
        for (i, row) in rows.iter().enumerate() {
            let z = -30.0 + 5.0 * i as f64;
            assert_eq!(row.geometry.z.unwrap().0, z);
            assert_eq!(row.hu.as_ref().unwrap(), &chest_hu(z).to_vec(), "{} at {z} mm", files[0].0);
            assert_eq!(row.acquisition.transfer_syntax, format);
        }
    }
}

fn zipped(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, bytes) in entries {
        writer.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
        writer.write_all(bytes).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

#[test]
fn segmentations_and_maps_beside_the_ct_cost_nothing() {
    let files = [
        ("tested/a.seg.nrrd", nrrd("dimension: 3", "dimension: 4")),
        ("tested/b.nrrd", nrrd("space: left-posterior-superior\n", "")),
        ("tested/c.mha", meta("MET_SHORT", "MET_SHORT_ARRAY")),
        ("tested/ct.mha", meta("RAI", "RAI")),
        ("tested/notes.raw", b"of nobody".to_vec()),
    ];
    let (cohort, codes) = run(&files);
    assert_eq!(codes, Vec::<String>::new());
    let flow = ShardSet::open(&cohort.shards()).unwrap().manifest().flow.clone();
    assert!(flow.files.adds_up() && flow.series.adds_up());
    assert_eq!((flow.files.set_aside["volume"], flow.files.set_aside["not a volume"]), (3, 2));
    // What is not known to be something else costs the case.
    assert_eq!(run(&files[..3]).1, ["volume"]);
    let cut = ("tested/d.mha", meta("RAI", "RAI")[..900].to_vec());
    assert_eq!(run(&[files[3].clone(), cut]).1, ["truncated"]);
}

fn fault_of(bytes: &[u8]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("volume.mha");
    std::fs::write(&path, bytes).unwrap();
    // What a header must not lead to.
    std::fs::write(folder.path().join("other.raw"), [0; 100]).unwrap();
    outcome(&path)
}

fn outcome(path: &Path) -> String {
    match volume::read_file(&ListedFile::at(path), &Listing::default()) {
        Ok((volume, _)) => format!("read {}", volume.header().warnings.len()),
        Err(fault) => fault.code().into(),
    }
}

#[test]
fn a_text_header_that_cannot_be_true_is_refused() {
    let changes: [(&str, &str, &str); 21] = [
        ("ObjectType = Image", "ObjectType = Tube", "volume"),
        ("NDims = 3", "NDims = 4", "volume"),
        ("BinaryData = True", "BinaryData = False", "volume"),
        ("CompressedData = False", "CompressedData = True", "volume"),
        ("CompressedData = False", "ElementNumberOfChannels = 3", "volume"),
        ("CompressedData = False", "ElementToIntensityFunctionSlope = 2", "volume"),
        ("TransformMatrix = 1", "TransformMatrix = nan", "volume"),
        ("TransformMatrix = 1", "TransformMatrix = 0", "volume"),
        ("TransformMatrix = 1 0", "TransformMatrix = 1", "volume"),
        ("TransformMatrix = 1 0 0 0 1 0 0 0 1\n", "", "read 0"),
        (
            "TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = -176 -176 -30\nCenterOfRotation = 0 0 0\n\
             AnatomicalOrientation = RAI\n",
            "Offset = -176 -176 -30\n",
            "volume",
        ),
        ("RAI", "LPI", "read 1"),
        ("ElementSpacing = 5.5", "ElementSpacing = 0", "volume"),
        ("ElementSpacing = 5.5 5.5 5\n", "", "volume"),
        ("DimSize = 64", "DimSize = -64", "volume"),
        ("DimSize = 64", "DimSize = 8000", "truncated"),
        ("DimSize = 64 64", "DimSize = 8000 8000", "truncated"),
        ("DimSize = 64 64 6", "DimSize = 8000 8000 600", "too-large"),
        ("MET_SHORT", "MET_FLOAT", "truncated"),
        ("LOCAL", "../other.raw", "volume"),
        ("LOCAL", "missing.raw", "volume"),
    ];
    for (old, new, code) in changes {
        assert_eq!(fault_of(&meta(old, new)), code, "{new}");
    }
    let changes: [(&str, &str, &str); 19] = [
        ("NRRD0004", "NRRD0009", "volume"),
        ("type: short", "type: block", "volume"),
        ("type: short", "type: double", "truncated"),
        ("dimension: 3", "dimension: 4", "volume"),
        ("space: left-posterior-superior\n", "", "volume"),
        ("left-posterior-superior", "scanner-xyz", "volume"),
        ("sizes: 64", "sizes: 0", "volume"),
        ("sizes: 64 64 6", "sizes: 64 64", "volume"),
        ("(5.5,0,0) ", "", "volume"),
        ("(5.5,0,0)", "none", "volume"),
        ("(5.5,0,0)", "(0,0,0)", "volume"),
        ("endian: little\n", "", "volume"),
        ("encoding: raw", "encoding: bzip2", "volume"),
        ("encoding: raw", "encoding: gzip", "volume"),
        ("encoding: raw", "line skip: 1\nencoding: raw", "volume"),
        ("encoding: raw", "space units: \"m\" \"m\" \"m\"\nencoding: raw", "volume"),
        ("encoding: raw", "byte skip: 99999999\nencoding: raw", "truncated"),
        ("encoding: raw", "data file: /etc/hostname\nencoding: raw", "volume"),
        ("encoding: raw", "data file: other.raw\nencoding: raw", "truncated"),
    ];
    for (old, new, code) in changes {
        assert_eq!(fault_of(&nrrd(old, new)), code, "{new}");
    }
    let endless = [b"NDims = 3\n".to_vec(), vec![b'x'; 2 << 20]].concat();
    assert_eq!(fault_of(&endless), "volume");
    assert_eq!(fault_of(&gzip(&endless)), "volume");
}

#[test]
fn a_text_header_or_its_voxels_cut_anywhere_are_never_taken_for_whole() {
    for whole in [meta("RAI", "RAI"), nrrd("raw", "raw")] {
        for cut in (0..META.len() + 2).chain([whole.len() - 1]) {
            assert!(!fault_of(&whole[..cut]).starts_with("read"), "cut at {cut}");
        }
    }
}

#[test]
fn packed_voxels_take_no_more_memory_than_their_file_can_hold() {
    let announced =
        NRRD.replace("encoding: raw", "encoding: gzip").replace("sizes: 64 64 6", "sizes: 8000 8000 30");
    assert_eq!(fault_of(&[announced.as_bytes(), &gzip(&voxels(0))[..]].concat()), "truncated");
}
