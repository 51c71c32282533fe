//! One case is tested beside a good one, whose rows must come out as ever.

use crate::common::{Cohort, Dicom, chest_hu, rows, series, settings};
use ct_ingest::settings::Settings;
use diag_data::slice::CtSlice;

const TABLE: &str = "case_id,label,split\ngood,normal,train\ntested,covid-19,test\n";

/// Runs over a good case and the tested files; returns what was set aside.
pub fn run(tested: &[Vec<u8>], settings: Settings) -> (Cohort, Vec<String>) {
    let cohort = Cohort::new();
    cohort.label(TABLE);
    // Other pixels than the tested case has: equal ones would be a leak.
    let mut good = series(1);
    for slice in &mut good {
        slice.stored(&slice.stored_values().iter().map(|value| value + 5).collect::<Vec<_>>());
    }
    cohort.write("good", &good);
    cohort.write_files("tested", tested);
    let (result, codes) = cohort.run(settings);
    result.unwrap();
    assert_eq!(rows(&cohort.shards(), "good").len(), 6, "the other case is untouched");
    (cohort, codes)
}

pub fn changed(change: impl Fn(&mut Vec<Dicom>)) -> Vec<Vec<u8>> {
    let mut tested = series(2);
    change(&mut tested);
    tested.iter().map(Dicom::bytes).collect()
}

/// The case is used, and its rows are returned.
#[track_caller]
pub fn used(change: impl Fn(&mut Vec<Dicom>)) -> Vec<CtSlice> {
    let (cohort, codes) = run(&changed(change), settings());
    assert_eq!(codes, Vec::<String>::new());
    rows(&cohort.shards(), "tested")
}

/// The case is set aside for one reason.
#[track_caller]
pub fn aside(change: impl Fn(&mut Vec<Dicom>), code: &str) {
    let (cohort, codes) = run(&changed(change), settings());
    assert_eq!(codes, [code]);
    assert_eq!(rows(&cohort.shards(), "tested").len(), 0);
}

#[track_caller]
pub fn check_hu(rows: &[CtSlice], lowest_z: f64) {
    let hu = rows[0].hu.as_ref().unwrap();
    assert_eq!(hu, &chest_hu(lowest_z).to_vec());
}
