//! One stack out of what a folder holds: several series and acquisitions, tilt,
//! long pixels, objects that are no slices.

use crate::common::{Dicom, SIDE, chest_hu, reading, rows, settings};
use crate::tested::{changed, check_hu, run, used};
use ct_ingest::settings::Settings;
use diag_data::manifest::CaseRow;
use diag_data::reader::SeriesRule;
use diag_data::shard::ShardSet;

/// The tested case as the shards have it, and the codes of what was set aside.
fn case_of(settings: Settings, change: impl Fn(&mut Vec<Dicom>)) -> (Option<CaseRow>, Vec<String>) {
    let (cohort, codes) = run(&changed(change), settings);
    let set = ShardSet::open(&cohort.shards()).unwrap();
    let flow = &set.manifest().flow;
    assert!(flow.files.adds_up() && flow.series.adds_up() && flow.slices.adds_up());
    (set.cases().unwrap().into_iter().find(|case| case.case_id.as_str() == "tested"), codes)
}

/// Adds a second series: `n_slices` of `thickness`, numbered 9.
fn add_series(series: &mut Vec<Dicom>, n_slices: usize, thickness: &str) {
    for i in 0..n_slices {
        let mut slice = Dicom::chest(2, -30.0 + i as f64);
        slice.text(0x0008_0018, "UI", &format!("1.2.3.99.{i}"));
        slice.text(0x0020_000E, "UI", "1.2.5.99");
        slice.text(0x0020_0011, "IS", "9");
        slice.text(0x0018_0050, "DS", thickness);
        series.insert(0, slice);
    }
}

#[track_caller]
fn check_rule(rule: SeriesRule, n_slices: usize, thickness: &str, want: Option<f64>) {
    let settings = reading(|reader| reader.series = rule);
    let (case, codes) = case_of(settings, |series| add_series(series, n_slices, thickness));
    match want {
        Some(mm) => {
            let case = case.unwrap();
            assert_eq!((codes, case.slice_thickness_mm), (Vec::new(), Some(mm)));
            assert!(case.warnings.iter().any(|warning| warning.starts_with("2 axial series")));
        }
        None => assert_eq!((codes, case), (vec!["several-series".to_string()], None)),
    }
}

#[test]
fn of_several_series_one_is_used_by_rule_and_said_so() {
    // The tested case has 6 slices of 5 mm, series number 1.
    check_rule(SeriesRule::MostSlices, 3, "10", Some(5.0));
    check_rule(SeriesRule::MostSlices, 8, "1", Some(1.0));
    check_rule(SeriesRule::MostSlices, 6, "1", Some(5.0));
    check_rule(SeriesRule::Thickest, 8, "1", Some(5.0));
    check_rule(SeriesRule::Thickest, 3, "10", Some(10.0));
    check_rule(SeriesRule::Only, 3, "10", None);
}

#[test]
fn a_single_thick_image_is_no_series() {
    let settings = reading(|reader| reader.series = SeriesRule::Thickest);
    let (case, _) = case_of(settings, |series| add_series(series, 1, "10"));
    assert_eq!(case.unwrap().slice_thickness_mm, Some(5.0));
    let settings = reading(|reader| reader.series = SeriesRule::Only);
    let (case, codes) = case_of(settings, |series| add_series(series, 1, "10"));
    assert_eq!((case.is_some(), codes), (true, Vec::new()));
}

/// Numbers the series as acquisition 1 and adds 4 slices as acquisition 2, `shift` mm higher.
fn add_acquisition(series: &mut Vec<Dicom>, shift: f64) {
    series.iter_mut().for_each(|slice| slice.text(0x0020_0012, "IS", "1"));
    for i in 0..4 {
        let z = -30.0 + 5.0 * f64::from(i) + shift;
        let mut slice = Dicom::chest(2, z);
        slice.text(0x0020_0012, "IS", "2");
        slice.text(0x0008_0018, "UI", &format!("1.2.3.77.{i}"));
        slice.stored(&slice.stored_values().iter().map(|value| value + 7).collect::<Vec<_>>());
        series.push(slice);
    }
}

#[test]
fn acquisitions_of_one_region_are_told_apart() {
    // At the same heights, and between them: the second would pass for one fine stack.
    for shift in [0.0, 2.5] {
        let rows = used(|series| add_acquisition(series, shift));
        assert_eq!(rows.len(), 6, "{shift} mm");
        check_hu(&rows, -30.0);
        assert!(rows.iter().all(|row| row.geometry.gap_before.is_none_or(|gap| gap.0 == 5.0)));
    }
}

#[test]
fn acquisitions_one_above_the_other_are_one_stack() {
    assert_eq!(used(|series| add_acquisition(series, 30.0)).len(), 10);
    // A step-and-shoot scanner numbers every rotation.
    let rows = used(|series| {
        for (i, slice) in series.iter_mut().enumerate() {
            slice.text(0x0020_0012, "IS", &i.to_string());
        }
    });
    assert_eq!(rows.len(), 6);
}

#[test]
fn a_tilt_is_measured_flagged_and_not_corrected() {
    // Position moves back by 1 mm with each 5 mm upwards: atan(1/5).
    let tilt = |series: &mut Vec<Dicom>| {
        for (i, slice) in series.iter_mut().enumerate() {
            let z = -30.0 + 5.0 * i as f64;
            slice.text(0x0020_0032, "DS", &format!("-176\\{}\\{z}", -176.0 + i as f64));
        }
    };
    let rows = used(tilt);
    assert!((rows[0].geometry.tilt_deg.unwrap() - 11.31).abs() < 0.01);
    check_hu(&rows, -30.0);
    let (case, codes) = case_of(settings(), tilt);
    assert_eq!(codes, Vec::<String>::new());
    assert_eq!(case.unwrap().warnings, ["gantry tilt of 11.3 degrees, not corrected"]);
    let (case, _) = case_of(settings(), |_| ());
    assert_eq!(case.unwrap().warnings, Vec::<String>::new());
}

#[test]
fn long_pixels_become_square_millimetres() {
    // Rows 11 mm apart, columns 5.5: the chest must come out twice as tall as stored.
    let rows = used(|series| series.iter_mut().for_each(|slice| slice.text(0x0028_0030, "DS", "11\\5.5")));
    let hu = rows[0].hu.as_ref().unwrap();
    let n_body = |column: bool| {
        let at = |i: usize| if column { hu[i * SIDE + SIDE / 2] } else { hu[SIDE / 2 * SIDE + i] };
        (0..SIDE).filter(|i| at(*i) > -900).count() as f64
    };
    let source = chest_hu(-30.0);
    let n_source = |column: bool| {
        let at = |i: usize| if column { source[i * SIDE + SIDE / 2] } else { source[SIDE / 2 * SIDE + i] };
        (0..SIDE).filter(|i| at(*i) > -900).count() as f64
    };
    let (tall, wide) = (n_body(true) / n_source(true), n_body(false) / n_source(false));
    assert!((tall / wide - 2.0).abs() < 0.15, "{tall} {wide}");
}

#[test]
fn a_dicomdir_and_other_objects_are_counted_not_read() {
    // (class, reason in the flow); the last has its class in the meta group only.
    let cases = [
        ("1.2.840.10008.5.1.4.1.1.88.67", "dose report"),
        ("1.2.840.10008.5.1.4.1.1.88.22", "structured report"),
        ("1.2.840.10008.5.1.4.1.1.7.2", "secondary capture"),
        ("1.2.840.10008.5.1.4.1.1.11.1", "presentation state"),
        ("1.2.840.10008.5.1.4.1.1.66.4", "segmentation"),
        ("1.2.840.10008.5.1.4.1.1.4", "another kind of image"),
        ("1.2.840.10008.1.3.10", "DICOMDIR"),
    ];
    for (class, reason) in cases {
        let files = changed(|series| {
            let mut other = Dicom::chest(2, 70.0);
            other.media_class = Some(class);
            if reason == "DICOMDIR" {
                other.elements.clear();
                other.text(0x0004_1130, "CS", "DISC");
            } else {
                other.text(0x0008_0016, "UI", class);
            }
            series.push(other);
        });
        let (cohort, codes) = run(&files, settings());
        assert_eq!(codes, Vec::<String>::new(), "{reason}");
        assert_eq!(rows(&cohort.shards(), "tested").len(), 6, "{reason}");
        let flow = ShardSet::open(&cohort.shards()).unwrap().manifest().flow.clone();
        assert_eq!(flow.files.set_aside.get(reason), Some(&1), "{:?}", flow.files);
    }
}

#[test]
fn legacy_converted_objects_are_ct() {
    let rows = used(|series| {
        series.iter_mut().for_each(|slice| slice.text(0x0008_0016, "UI", "1.2.840.10008.5.1.4.1.1.2.2"));
    });
    check_hu(&rows, -30.0);
}

/// A second series at the heights of the first, with more slices than it.
fn add_dense_series(series: &mut Vec<Dicom>, image_type: &str) {
    for i in 0..12 {
        let mut slice = Dicom::chest(2, -30.0 + 2.5 * f64::from(i));
        slice.text(0x0008_0018, "UI", &format!("1.2.3.98.{i}"));
        slice.text(0x0020_000E, "UI", "1.2.5.98");
        slice.text(0x0020_0011, "IS", "9");
        slice.text(0x0008_0008, "CS", image_type);
        slice.stored(&slice.stored_values().iter().map(|value| value + 3).collect::<Vec<_>>());
        series.insert(0, slice);
    }
}

#[test]
fn a_projection_is_never_used_and_derived_pixels_only_without_original_ones() {
    for image_type in [
        "DERIVED\\SECONDARY\\AXIAL\\MIP",
        "DERIVED\\SECONDARY\\REFORMATTED\\MINIMUM",
        "DERIVED\\PRIMARY\\AXIAL\\AVERAGE",
        "DERIVED\\SECONDARY\\REFORMATTED",
    ] {
        let rows = used(|series| add_dense_series(series, image_type));
        assert_eq!(rows.len(), 6, "{image_type}");
        check_hu(&rows, -30.0);
    }
    let alone = |image_type: &'static str| {
        move |series: &mut Vec<Dicom>| {
            series.iter_mut().for_each(|slice| slice.text(0x0008_0008, "CS", image_type));
        }
    };
    crate::tested::aside(alone("DERIVED\\SECONDARY\\MIP"), "no-series");
    assert_eq!(used(alone("DERIVED\\SECONDARY\\REFORMATTED\\AVERAGE")).len(), 6);
}

/// Adds 6 slices to the series under its own UID, `shift` mm higher, changed in one more way.
fn add_reconstruction(series: &mut Vec<Dicom>, shift: f64, change: impl Fn(&mut Dicom)) {
    for i in 0..5 {
        let mut slice = Dicom::chest(2, -30.0 + 5.0 * f64::from(i) + shift);
        slice.text(0x0008_0018, "UI", &format!("1.2.3.76.{i}"));
        slice.stored(&slice.stored_values().iter().map(|value| value + 7).collect::<Vec<_>>());
        change(&mut slice);
        series.push(slice);
    }
}

#[test]
fn reconstructions_under_one_series_uid_are_told_apart() {
    type Change = fn(&mut Dicom);
    let changes: [Change; 6] = [
        |slice| slice.text(0x0018_1210, "SH", "LUNG"),
        |slice| slice.text(0x0018_0050, "DS", "1"),
        |slice| slice.text(0x0018_0060, "DS", "80"),
        |slice| slice.text(0x0020_0100, "IS", "2"),
        |slice| slice.text(0x0008_103E, "LO", "venous"),
        |slice| slice.text(0x0008_0032, "TM", "120100"),
    ];
    for (i, change) in changes.iter().enumerate() {
        for shift in [0.0, 2.5] {
            let rows = used(|series| {
                for slice in series.iter_mut() {
                    slice.text(0x0018_1210, "SH", "SOFT");
                    slice.text(0x0018_0060, "DS", "120");
                    slice.text(0x0020_0100, "IS", "1");
                    slice.text(0x0008_103E, "LO", "arterial");
                    slice.text(0x0008_0032, "TM", "120000");
                }
                add_reconstruction(series, shift, |slice| {
                    slice.text(0x0018_1210, "SH", "SOFT");
                    slice.text(0x0018_0060, "DS", "120");
                    slice.text(0x0020_0100, "IS", "1");
                    slice.text(0x0008_103E, "LO", "arterial");
                    slice.text(0x0008_0032, "TM", "120000");
                    change(slice);
                });
            });
            assert_eq!(rows.len(), 6, "change {i}, {shift} mm");
            check_hu(&rows, -30.0);
        }
    }
    // Nothing tells them apart: refused by name where they lie at one place.
    crate::tested::aside(|series| add_reconstruction(series, 0.0, |_| ()), "same-position");
}

#[test]
fn times_that_mean_nothing_divide_nothing() {
    let times = ["110000", "090000", "100000", "130000", "080000", "120000"];
    let rows = used(|series| {
        series.iter_mut().zip(times).for_each(|(slice, time)| slice.text(0x0008_0032, "TM", time));
    });
    assert_eq!(rows.len(), 6);
    // A scan from head to feet.
    let rows = used(|series| {
        for (i, slice) in series.iter_mut().enumerate() {
            slice.text(0x0008_0032, "TM", &format!("1200{:02}", 59 - 7 * i));
        }
    });
    assert_eq!(rows.len(), 6);
}

#[test]
fn files_of_two_patients_are_no_case() {
    crate::tested::aside(|series| series[2].text(0x0010_0020, "LO", "PATIENT-9"), "several-patients");
    crate::tested::aside(
        |series| {
            add_series(series, 3, "10");
            series[0].text(0x0010_0020, "LO", "PATIENT-9");
        },
        "several-patients",
    );
    crate::tested::aside(
        |series| {
            series.iter_mut().for_each(|slice| slice.text(0x0010_0040, "CS", "M"));
            series[2].text(0x0010_0040, "CS", "F");
        },
        "several-patients",
    );
}

#[test]
fn pixels_tell_repeats_from_clashes_whatever_the_uids_say() {
    // Sent again under new UIDs.
    let rows = used(|series| {
        for i in 0..3 {
            let mut again = series[i].clone();
            again.text(0x0008_0018, "UI", &format!("1.2.3.55.{i}"));
            series.push(again);
        }
    });
    assert_eq!(rows.len(), 6);
    check_hu(&rows, -30.0);
    // The same UID with other pixels.
    crate::tested::aside(
        |series| {
            let mut other = series[2].clone();
            other.stored(&other.stored_values().iter().map(|value| value + 1).collect::<Vec<_>>());
            series.push(other);
        },
        "same-position",
    );
}

#[test]
fn a_series_uid_anew_in_every_slice_is_one_series() {
    let (case, codes) = case_of(settings(), |series| {
        for (i, slice) in series.iter_mut().enumerate() {
            slice.text(0x0020_000E, "UI", &format!("1.2.5.2.{i}"));
        }
    });
    assert_eq!(codes, Vec::<String>::new());
    let case = case.unwrap();
    assert_eq!(case.n_slices, 6);
    assert!(case.warnings[0].starts_with("6 series of one image each"), "{:?}", case.warnings);
    // Other numbers make other series.
    crate::tested::aside(
        |series| {
            for (i, slice) in series.iter_mut().enumerate() {
                slice.text(0x0020_000E, "UI", &format!("1.2.5.2.{i}"));
                slice.text(0x0020_0011, "IS", &i.to_string());
            }
        },
        "no-series",
    );
}

#[test]
fn broken_and_odd_objects_of_other_series_are_left_out() {
    type Change = fn(&mut Dicom);
    let changes: [(Change, &str); 5] = [
        (|page| drop(page.elements.remove(&0x0020_0032)), "attribute"),
        (|page| page.number(0x0028_0002, "US", 3), "attribute"),
        (|page| page.text(0x0028_0301, "CS", "YES"), "burned-in"),
        (|page| drop(page.elements.remove(&0x7FE0_0010)), "attribute"),
        (
            |page| {
                page.text(0x0008_0016, "UI", "1.2.840.10008.5.1.4.1.1.7");
                // A delimiter behind a sequence that is closed by its length.
                page.elements.insert(0x0040_0555, ("SQ", Vec::new()));
                page.elements.insert(0xFFFE_E0DD, ("SQ", Vec::new()));
            },
            "secondary capture",
        ),
    ];
    for (change, reason) in changes {
        let files = changed(|series| {
            let mut page = Dicom::chest(2, 70.0);
            page.text(0x0020_000E, "UI", "1.2.5.66");
            change(&mut page);
            series.push(page);
        });
        let (cohort, codes) = run(&files, settings());
        assert_eq!(codes, Vec::<String>::new(), "{reason}");
        assert_eq!(rows(&cohort.shards(), "tested").len(), 6, "{reason}");
        let flow = ShardSet::open(&cohort.shards()).unwrap().manifest().flow.clone();
        assert_eq!(flow.files.set_aside.get(reason), Some(&1), "{:?}", flow.files);
    }
}

#[test]
fn a_case_of_one_slice_is_used_where_it_is_asked_for() {
    let one = |series: &mut Vec<Dicom>| series.truncate(1);
    let (case, codes) = case_of(settings(), one);
    assert_eq!((case.is_some(), codes), (false, vec!["no-series".to_string()]));
    let (case, codes) = case_of(reading(|reader| reader.min_slices = 1), one);
    assert_eq!((case.unwrap().n_slices, codes), (1, Vec::new()));
}
