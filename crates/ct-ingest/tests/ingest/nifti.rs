//! NIfTI volumes: voxels and places as nibabel has them, whole runs, bad input.
//!
//! `reference/nifti_orientations.json` and `reference/nifti_sha256.json` were made
//! by the scripts of the same names.

use std::collections::BTreeMap;
use std::path::Path;

use base64::Engine;
use ct_ingest::settings::Settings;
use ct_read::scan::Format;
use ct_read::source::listing::{ListedFile, Listing};
use ct_read::volume::{self, Volume};
use diag_data::reader::SeriesRule;
use diag_data::shard::ShardSet;
use serde::Deserialize;

use crate::common::{Cohort, SIDE, chest_hu, reading, rows, settings, test_data};

#[derive(Deserialize)]
pub struct Reference {
    #[serde(default)]
    file_gz: String,
    shape: [usize; 3],
    spacing_mm: [f64; 2],
    step_mm: f64,
    lowest_mm: f64,
    #[serde(default)]
    pub axial: Vec<f32>,
    #[serde(default)]
    hu_sha256: String,
}

#[track_caller]
pub fn check(volume: &Volume, want: &Reference) -> Vec<f32> {
    let axial = volume.axial();
    assert_eq!([axial.n_slices, axial.rows, axial.cols], want.shape);
    let near = |got: f64, want: f64| assert!((got - want).abs() < 1e-4, "{got} mm where {want} is right");
    near(axial.spacing.row.0, want.spacing_mm[0]);
    near(axial.spacing.col.0, want.spacing_mm[1]);
    near(axial.step.0, want.step_mm);
    near(axial.z(0).0, want.lowest_mm);
    near(axial.z(axial.n_slices - 1).0, want.lowest_mm + want.step_mm * (axial.n_slices - 1) as f64);
    (0..axial.n_slices).flat_map(|index| volume.slice(index)).collect()
}

#[test]
fn every_orientation_and_number_type_is_as_nibabel_reads_it() {
    let cases: Vec<Reference> =
        serde_json::from_str(include_str!("../../../ct-read/tests/reference/nifti_orientations.json"))
            .unwrap();
    assert_eq!(cases.len(), 136);
    let folder = tempfile::tempdir().unwrap();
    for (i, case) in cases.iter().enumerate() {
        let packed = base64::engine::general_purpose::STANDARD.decode(&case.file_gz).unwrap();
        let path = folder.path().join("volume.nii.gz");
        std::fs::write(&path, packed).unwrap();
        let hu = check(&volume::read_file(&ListedFile::at(&path), &Listing::default()).unwrap().0, case);
        assert_eq!(hu, case.axial, "case {i}");
    }
}

#[test]
fn every_voxel_of_real_volumes_is_nibabel_s() {
    let Some(data) = test_data("data/totalsegmentator-ct") else { return };
    let reference: BTreeMap<String, Reference> =
        serde_json::from_str(include_str!("../../../ct-read/tests/reference/nifti_sha256.json")).unwrap();
    let mut n_seen = 0;
    for file in Listing::of(&data).unwrap().files {
        if !volume::is_named_as_volume(&file.relative) {
            continue;
        }
        let want = &reference[&diag_data::files::sha256_file(&file.path()).unwrap()];
        let hu = check(&volume::read_file(&file, &Listing::default()).unwrap().0, want);
        let bytes: Vec<u8> = hu.iter().flat_map(|value| value.to_le_bytes()).collect();
        assert_eq!(diag_data::files::sha256_hex(&bytes), want.hu_sha256, "{}", file.relative);
        n_seen += 1;
    }
    assert_eq!(n_seen, reference.len());
}

/// A volume of 16-bit voxels, uncompressed, as its bytes.
#[derive(Clone)]
struct Crafted {
    header: Vec<u8>,
    voxels: Vec<u8>,
}

impl Crafted {
    /// The crafted chest from -30 to -5 mm, stored with the first column to the
    /// patient's left, the first row posterior, and the highest slice first.
    fn chest() -> Self {
        let mut stored = Vec::new();
        for i in (0..6).rev() {
            let hu = chest_hu(-30.0 + 5.0 * f64::from(i));
            for row in (0..SIDE).rev() {
                stored.extend(hu[row * SIDE..(row + 1) * SIDE].iter().rev().copied());
            }
        }
        let mut header = vec![0; 352];
        header[0..4].copy_from_slice(&348i32.to_le_bytes());
        header[344..348].copy_from_slice(b"n+1\0");
        let mut crafted = Self { header, voxels: Vec::new() };
        for (i, side) in [3, SIDE as i16, SIDE as i16, 6, 1, 1, 1, 1].into_iter().enumerate() {
            crafted.i16(40 + 2 * i, side);
        }
        crafted.i16(70, 4);
        crafted.i16(72, 16);
        crafted.f32(108, 352.0);
        crafted.f32(112, 1.0);
        crafted.header[123] = 2;
        crafted.i16(254, 1);
        for (row, axis, value) in [(0, 0, 5.5), (0, 3, -176.0), (1, 1, 5.5), (2, 2, -5.0), (2, 3, -5.0)] {
            crafted.f32(280 + 16 * row + 4 * axis, value);
        }
        crafted.stored(&stored);
        crafted
    }

    fn i16(&mut self, at: usize, value: i16) {
        self.header[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }

    fn f32(&mut self, at: usize, value: f32) {
        self.header[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }

    fn stored(&mut self, values: &[i16]) {
        self.voxels = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    }

    fn values(&self) -> Vec<i16> {
        self.voxels.chunks_exact(2).map(|pair| i16::from_le_bytes([pair[0], pair[1]])).collect()
    }

    fn map(mut self, change: impl Fn(i16) -> i16) -> Self {
        self.stored(&self.values().into_iter().map(change).collect::<Vec<_>>());
        self
    }

    fn bytes(&self) -> Vec<u8> {
        [&self.header[..], &self.voxels[..]].concat()
    }

    fn packed(&self) -> Vec<u8> {
        packed(&self.bytes())
    }
}

/// A small volume, for the tests of damaged input.
pub fn seed() -> Vec<u8> {
    let mut small = Crafted::chest();
    for at in [42, 44] {
        small.i16(at, 8);
    }
    small.voxels.truncate(2 * 6 * 64);
    small.bytes()
}

/// The crafted chest with texts in the free fields of its header, by first byte and length.
pub fn chest_with(texts: &[(usize, usize, &str)]) -> Vec<u8> {
    let mut chest = Crafted::chest();
    for &(at, length, text) in texts {
        let bytes = &text.as_bytes()[..text.len().min(length)];
        chest.header[at..at + bytes.len()].copy_from_slice(bytes);
    }
    chest.bytes()
}

fn packed(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut encoder, bytes).unwrap();
    encoder.finish().unwrap()
}

/// Runs over a good volume and the tested files; returns what was set aside.
fn run(tested: &[(&str, Vec<u8>)], settings: Settings) -> (Cohort, Vec<String>) {
    let cohort = Cohort::new();
    cohort.label("case_id,label,split\ngood,normal,train\ntested,covid-19,test\n");
    std::fs::write(cohort.dicom().join("good.nii.gz"), Crafted::chest().map(|hu| hu + 5).packed()).unwrap();
    for (name, bytes) in tested {
        let path = cohort.dicom().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
    let (result, codes) = cohort.run_as(Format::Nifti, settings);
    result.unwrap();
    assert_eq!(rows(&cohort.shards(), "good").len(), 6, "the other case is untouched");
    (cohort, codes)
}

#[test]
fn a_volume_gives_the_rows_of_its_dicom_series() {
    for (name, bytes) in [
        ("tested.nii", Crafted::chest().bytes()),
        ("tested.nii.gz", Crafted::chest().packed()),
        ("tested/any name.NII.GZ", Crafted::chest().packed()),
        ("deep/tested/ct.nii", Crafted::chest().bytes()),
    ] {
        let (cohort, codes) = run(&[(name, bytes)], settings());
        assert_eq!(codes, Vec::<String>::new(), "{name}");
        let rows = rows(&cohort.shards(), "tested");
        assert_eq!(rows.len(), 6);
        for (i, row) in rows.iter().enumerate() {
            let z = -30.0 + 5.0 * i as f64;
            assert_eq!(row.geometry.z.unwrap().0, z);
            assert_eq!(row.hu.as_ref().unwrap(), &chest_hu(z).to_vec(), "{name} at {z} mm");
            assert_eq!(row.acquisition.transfer_syntax, "NIfTI-1");
        }
        assert_eq!(rows[1].geometry.gap_before.unwrap().0, 5.0);
    }
}

#[test]
fn masks_and_other_volumes_beside_the_ct_are_left_out() {
    let mask = Crafted::chest().map(|hu| i16::from(hu == -850));
    let mut short = Crafted::chest();
    short.i16(46, 3);
    short.voxels.truncate(3 * 2 * SIDE * SIDE);
    let files = [
        ("tested/a_mask.nii", mask.bytes()),
        ("tested/b_short.nii", short.bytes()),
        ("tested/c_ct.nii", Crafted::chest().bytes()),
    ];
    let (cohort, codes) = run(&files, settings());
    assert_eq!(codes, Vec::<String>::new());
    assert_eq!(rows(&cohort.shards(), "tested").len(), 6);
    let flow = ShardSet::open(&cohort.shards()).unwrap().manifest().flow.clone();
    assert!(flow.files.adds_up() && flow.series.adds_up() && flow.slices.adds_up());
    assert_eq!(flow.files.set_aside.get("values other than HU"), Some(&1));
    assert_eq!(flow.files.set_aside.get("another series of the case was used"), Some(&1));
    let (_, codes) = run(&files, reading(|reader| reader.series = SeriesRule::Only));
    assert_eq!(codes, ["several-series"]);
}

#[test]
fn values_that_are_no_hu_are_refused() {
    type Change = fn(i16) -> i16;
    let changes: [(&str, Change); 6] = [
        ("shifted by 1024", |hu| hu + 1024),
        ("shifted down by 1024", |hu| hu - 1024),
        ("windowed to 0..255", |hu| ((hu.clamp(-1000, 150) + 1000) / 5).min(255)),
        ("a mask", |hu| i16::from(hu > 0)),
        ("all air", |_| -1000),
        ("all tissue", |_| 40),
    ];
    for (what, change) in changes {
        let (_, codes) = run(&[("tested.nii", Crafted::chest().map(change).bytes())], settings());
        assert_eq!(codes, ["not-hu"], "{what}");
    }
}

#[test]
fn filling_outside_the_circle_becomes_air_and_is_counted() {
    let mut filled = Crafted::chest();
    let mut values = filled.values();
    values[..SIDE].fill(-3024);
    filled.stored(&values);
    let (cohort, _) = run(&[("tested.nii", filled.bytes())], settings());
    let rows = rows(&cohort.shards(), "tested");
    // The file's first row is the last of the highest slice.
    assert_eq!(rows[5].acquisition.padding_px, SIDE as i32);
    assert!(rows[5].hu.as_ref().unwrap()[(SIDE - 1) * SIDE..].iter().all(|hu| *hu == -1024));
}

fn fault_of(bytes: &[u8]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("volume.nii");
    std::fs::write(&path, bytes).unwrap();
    outcome(&path)
}

fn outcome(path: &Path) -> String {
    match volume::read_file(&ListedFile::at(path), &Listing::default()) {
        Ok(_) => "read".into(),
        Err(fault) => fault.code().into(),
    }
}

#[test]
fn a_header_that_cannot_be_true_is_refused() {
    type Change = fn(&mut Crafted);
    let changes: [(&str, Change); 18] = [
        ("volume", |c| c.header[344..348].copy_from_slice(b"ni1\0")),
        ("volume", |c| c.header[344] = b'x'),
        ("volume", |c| c.header[344..348].fill(0)),
        ("truncated", |c| {
            c.header[0..4].copy_from_slice(&540i32.to_le_bytes());
            c.voxels.truncate(100);
        }),
        ("volume", |c| c.header[0] = 7),
        ("volume", |c| c.i16(40, 2)),
        ("volume", |c| c.i16(40, 9)),
        ("volume", |c| c.i16(42, -1)),
        ("volume", |c| c.i16(44, 0)),
        ("volume", |c| c.i16(70, 128)),
        ("volume", |c| c.i16(72, 8)),
        ("volume", |c| c.f32(108, f32::NAN)),
        ("volume", |c| c.f32(108, 1e30)),
        ("volume", |c| c.i16(254, 0)),
        ("volume", |c| c.f32(280, f32::NAN)),
        ("volume", |c| c.f32(280, 0.0)),
        ("rescale", |c| c.f32(116, f32::INFINITY)),
        ("truncated", |c| c.i16(46, 8000)),
    ];
    for (i, (code, change)) in changes.into_iter().enumerate() {
        let mut crafted = Crafted::chest();
        change(&mut crafted);
        assert_eq!(fault_of(&crafted.bytes()), code, "change {i}");
    }
    let mut series = Crafted::chest();
    series.i16(40, 4);
    series.i16(48, 1);
    assert_eq!(fault_of(&series.bytes()), "read", "one volume on a fourth axis");
    series.i16(48, 2);
    assert_eq!(fault_of(&series.bytes()), "volume");
    // Voxels of 45 degrees to the body: no axis runs along it.
    let mut oblique = Crafted::chest();
    for (row, axis, value) in [(1, 1, 3.9), (1, 2, -3.9), (2, 1, 3.9), (2, 2, 3.9)] {
        oblique.f32(280 + 16 * row + 4 * axis, value);
    }
    assert_eq!(fault_of(&oblique.bytes()), "volume");
}

#[test]
fn a_file_cut_anywhere_is_never_taken_for_whole() {
    let whole = Crafted::chest().bytes();
    for cut in (0..400).chain([whole.len() / 2, whole.len() - 1]) {
        assert_ne!(fault_of(&whole[..cut]), "read", "cut at {cut}");
    }
    let packed = Crafted::chest().packed();
    for cut in (0..packed.len() - 8).step_by(97) {
        assert_ne!(fault_of(&packed[..cut]), "read", "packed, cut at {cut}");
    }
}

#[test]
fn a_bomb_takes_no_more_memory_than_its_file_can_hold() {
    // 4096 x 4096 x 120 voxels are announced, none is there: refused before any is allocated.
    let mut bomb = Crafted::chest();
    for (at, side) in [(42, 4096), (44, 4096), (46, 120)] {
        bomb.i16(at, side);
    }
    bomb.voxels.clear();
    assert_eq!(fault_of(&bomb.packed()), "truncated");
    bomb.i16(46, 8000);
    assert_eq!(fault_of(&bomb.packed()), "too-large");
    // What inflates beyond the voxels is never looked at.
    let mut long = Crafted::chest();
    long.voxels.extend(vec![0; 50 << 20]);
    assert_eq!(fault_of(&long.packed()), "read");
}
