//! Contact sheets, and what the manifest says of the selection.

use crate::common::{Dicom, chest_hu, reading, settings};
use crate::tested::{changed, run};
use ct_ingest::settings::Settings;
use diag_data::reader::{Crop, Select};
use diag_data::shard::ShardSet;

const TILE: u32 = 128;
const KEPT: [u8; 3] = [60, 200, 90];
const DROPPED: [u8; 3] = [210, 60, 50];

/// Six slices with lung, and six below without.
fn chest_and_abdomen() -> Vec<Vec<u8>> {
    changed(|series| {
        for i in 0..6 {
            let mut below = Dicom::chest(2, -60.0 + 5.0 * f64::from(i));
            below.stored(&chest_hu(f64::from(i)).map(|hu| if hu == -850 { 50 } else { hu } + 1024));
            series.push(below);
        }
    })
}

#[test]
fn kept_and_dropped_slices_are_framed_and_masks_outlined() {
    let folder = tempfile::tempdir().unwrap();
    let cropped = reading(|reader| (reader.select, reader.crop) = (Select::Lung, Crop::Lung));
    let settings = Settings { preview: Some(folder.path().join("sheets")), ..cropped };
    let (_, codes) = run(&chest_and_abdomen(), settings);
    assert_eq!(codes, Vec::<String>::new());
    let sheet = image::open(folder.path().join("sheets/tested.png")).unwrap().to_rgb8();
    assert_eq!(sheet.dimensions(), (12 * TILE, TILE));
    for i in 0..12 {
        // The abdomen lies below, so it comes first.
        let frame = sheet.get_pixel(i * TILE, 0).0;
        assert_eq!(frame, if i < 6 { DROPPED } else { KEPT }, "tile {i}");
    }
    // The left lung's centre lies at row 32, column 21 of 64; its edge 8 columns to the left.
    let tile = |i: u32, x: u32, y: u32| sheet.get_pixel(i * TILE + 2 * x, 2 * y).0;
    let is_cyan = |[red, green, blue]: [u8; 3]| red < 100 && green > 150 && blue > 150;
    let is_yellow = |[red, green, blue]: [u8; 3]| red > 150 && green > 150 && blue < 100;
    assert!((10..16).any(|x| is_cyan(tile(7, x, 32))), "the lung is outlined");
    assert!(!(0..64).any(|x| is_cyan(tile(2, x, 32))), "there is no lung in the abdomen");
    assert!((4..11).any(|x| is_yellow(tile(7, x, 32))), "the body is outlined");
    assert!(!is_cyan(tile(7, 21, 32)) && !is_yellow(tile(7, 21, 32)), "the lung itself is grey");
}

#[test]
fn the_shards_do_not_depend_on_the_preview() {
    let folder = tempfile::tempdir().unwrap();
    let sums = |preview| {
        let (cohort, _) = run(&chest_and_abdomen(), Settings { preview, ..settings() });
        std::fs::read_to_string(cohort.shards().join("SHA256SUMS")).unwrap()
    };
    assert_eq!(sums(None), sums(Some(folder.path().into())));
}

#[test]
fn a_case_without_lung_has_a_sheet_too() {
    let folder = tempfile::tempdir().unwrap();
    let preview = Some(folder.path().into());
    let files = changed(|series| {
        for slice in series {
            slice.stored(&chest_hu(0.0).map(|hu| if hu == -850 { 50 } else { hu } + 1024));
        }
    });
    let (_, codes) = run(&files, Settings { preview, ..reading(|reader| reader.select = Select::Lung) });
    assert_eq!(codes, ["no-lung"]);
    let sheet = image::open(folder.path().join("tested.png")).unwrap().to_rgb8();
    assert_eq!(sheet.get_pixel(0, 0).0, DROPPED);
}

#[test]
fn a_preview_that_cannot_be_written_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let blocked = folder.path().join("file");
    std::fs::write(&blocked, b"").unwrap();
    let cohort = crate::common::Cohort::new();
    cohort.label("case_id,label,split\ntested,normal,train\n");
    cohort.write_files("tested", &chest_and_abdomen());
    let (result, _) = cohort.run(Settings { preview: Some(blocked), ..settings() });
    assert!(matches!(result, Err(ct_ingest::IngestError::Folder { .. })), "{result:?}");
}

#[test]
fn the_manifest_says_what_was_kept_of_each_class() {
    let (cohort, _) = run(&chest_and_abdomen(), reading(|reader| reader.select = Select::Lung));
    let manifest = ShardSet::open(&cohort.shards()).unwrap().manifest().clone();
    let row = |label: &str| manifest.selection.iter().find(|row| row.label == label).unwrap();
    let (good, tested) = (row("normal"), row("covid-19"));
    assert_eq!((good.n_source_slices, good.n_slices), (6, 6));
    assert_eq!((tested.n_source_slices, tested.n_slices), (12, 6));
    // Half of the slices have no lung, and none of those was kept.
    let (all, kept) = (tested.lung_fraction_source.unwrap(), tested.lung_fraction.unwrap());
    assert!((kept - 2.0 * all).abs() < 1e-6 && (kept - good.lung_fraction.unwrap()).abs() < 1e-6);
}
