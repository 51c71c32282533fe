//! One body, stored in every direction of rows, columns and slices: always the same pictures.

use crate::common::{Dicom, SIDE, chest_hu, rows, settings};
use crate::tested::{changed, run};
use ct_ingest::settings::Settings;
use diag_data::reader::Crop;
use diag_data::shard::ShardSet;
use diag_data::slice::CtSlice;

/// HU of the chest with a mark that no turn leaves in place: the right upper corner of the body.
fn marked(z: f64) -> Vec<i16> {
    let mut hu = chest_hu(z).to_vec();
    for y in 20..24 {
        hu[y * SIDE + 24..y * SIDE + 30].fill(500);
    }
    hu
}

/// Stores the slice with rows along `across` and columns along `down`, each a signed axis of
/// the body (1 for x, 2 for y, negative for the other way).
fn store(slice: &mut Dicom, z: f64, across: i32, down: i32) {
    let hu = marked(z);
    let at = |row: usize, col: usize| {
        let mut place = [0, 0];
        for (axis, i) in [(across, col), (down, row)] {
            place[axis.unsigned_abs() as usize - 1] = if axis > 0 { i } else { SIDE - 1 - i };
        }
        hu[place[1] * SIDE + place[0]] + 1024
    };
    let stored: Vec<i16> = (0..SIDE * SIDE).map(|i| at(i / SIDE, i % SIDE)).collect();
    slice.stored(&stored);
    let cosine = |axis: i32| match axis {
        1 => "1\\0\\0",
        -1 => "-1\\0\\0",
        2 => "0\\1\\0",
        _ => "0\\-1\\0",
    };
    slice.text(0x0020_0037, "DS", &format!("{}\\{}", cosine(across), cosine(down)));
    let mut corner = [-176.0, -176.0];
    for axis in [across, down] {
        if axis < 0 {
            corner[axis.unsigned_abs() as usize - 1] += 5.5 * (SIDE - 1) as f64;
        }
    }
    slice.text(0x0020_0032, "DS", &format!("{}\\{}\\{z}", corner[0], corner[1]));
}

const DIRECTIONS: [(i32, i32); 8] = [(1, 2), (-1, 2), (1, -2), (-1, -2), (2, 1), (2, -1), (-2, 1), (-2, -1)];

fn stored_as(across: i32, down: i32) -> impl Fn(&mut Vec<Dicom>) {
    move |series| {
        for (i, slice) in series.iter_mut().enumerate() {
            store(slice, -30.0 + 5.0 * i as f64, across, down);
        }
    }
}

fn read(settings: Settings, across: i32, down: i32) -> (Vec<CtSlice>, Vec<String>) {
    let (cohort, codes) = run(&changed(stored_as(across, down)), settings);
    assert_eq!(codes, Vec::<String>::new());
    let cases = ShardSet::open(&cohort.shards()).unwrap().cases().unwrap();
    let case = cases.into_iter().find(|case| case.case_id.as_str() == "tested").unwrap();
    (rows(&cohort.shards(), "tested"), case.warnings)
}

#[test]
fn every_direction_gives_the_usual_view_from_feet_to_head() {
    for (across, down) in DIRECTIONS {
        let (rows, warnings) = read(settings(), across, down);
        for (i, row) in rows.iter().enumerate() {
            let z = -30.0 + 5.0 * i as f64;
            assert_eq!(row.geometry.z.unwrap().0, z, "{across} {down}");
            assert_eq!(row.hu.as_ref().unwrap(), &marked(z), "{across} {down}");
        }
        let is_turned = warnings.iter().any(|warning| warning.starts_with("turned to the usual view"));
        assert_eq!(is_turned, (across, down) != (1, 2), "{across} {down}: {warnings:?}");
    }
}

#[test]
fn a_turned_series_is_selected_and_cropped_as_the_usual_one() {
    let mut cropped = settings();
    cropped.reader.crop = Crop::Lung;
    let (want, _) = read(cropped.clone(), 1, 2);
    for (across, down) in [(-1, 2), (2, 1), (-2, 1)] {
        let (rows, _) = read(cropped.clone(), across, down);
        for (row, want) in rows.iter().zip(&want) {
            assert_eq!(row.pixels, want.pixels, "{across} {down}");
            assert_eq!(row.selection, want.selection, "{across} {down}");
        }
    }
}

#[test]
fn rounded_directions_are_no_tilt() {
    // A head turned by 3.5 degrees in the plane, and a short vector.
    for cosines in ["0.998\\0.061\\0\\-0.061\\0.998\\0", "0.998\\0\\0\\0\\0.998\\0"] {
        let (cohort, codes) = run(
            &changed(|series| series.iter_mut().for_each(|slice| slice.text(0x0020_0037, "DS", cosines))),
            settings(),
        );
        assert_eq!(codes, Vec::<String>::new());
        for row in rows(&cohort.shards(), "tested") {
            assert!(row.geometry.tilt_deg.unwrap() < 0.01, "{cosines}: {:?}", row.geometry.tilt_deg);
            assert!(row.geometry.gap_before.is_none_or(|gap| (gap.0 - 5.0).abs() < 1e-6), "{cosines}");
        }
    }
}
