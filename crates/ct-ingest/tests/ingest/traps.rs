//! The traps between a DICOM folder and true HU, one crafted series each. Every
//! test fails without the handling that it names.

use crate::common::{
    Dicom, EXPLICIT_BIG, EXPLICIT_LITTLE, IMPLICIT_LITTLE, SIDE, chest_hu, reading, rows, settings,
};
use crate::tested::{aside, changed, check_hu, run, used};
use diag_data::reader::{Crop, Select};

#[test]
fn slices_are_ordered_by_position_not_by_file_or_number() {
    let rows = used(|series| {
        series.reverse();
        for (i, slice) in series.iter_mut().enumerate() {
            slice.text(0x0020_0013, "IS", &i.to_string());
        }
    });
    let heights: Vec<f64> = rows.iter().map(|row| row.geometry.z.unwrap().0).collect();
    assert_eq!(heights, [-30.0, -25.0, -20.0, -15.0, -10.0, -5.0]);
    check_hu(&rows, -30.0);
}

#[test]
fn each_slice_has_its_own_rescale() {
    let rows = used(|series| {
        series[0].text(0x0028_1053, "DS", "2");
        series[0].text(0x0028_1052, "DS", "-2000");
        let halved: Vec<i16> = chest_hu(-30.0).map(|hu| (hu / 2 * 2 + 2000) / 2).to_vec();
        series[0].stored(&halved);
    });
    assert_eq!(rows[0].hu.as_ref().unwrap(), &chest_hu(-30.0).map(|hu| hu / 2 * 2).to_vec());
    assert_eq!(rows[1].hu.as_ref().unwrap(), &chest_hu(-25.0).to_vec());
}

#[test]
fn rescale_of_unknown_representation_is_read_as_text() {
    let rows = used(|series| {
        for slice in series {
            slice.text(0x0028_1053, "UN", "1");
            slice.text(0x0028_1052, "UN", "-1024");
        }
    });
    check_hu(&rows, -30.0);
}

#[test]
fn a_rescale_that_is_not_certain_is_refused() {
    aside(|series| drop(series[3].elements.remove(&0x0028_1053)), "rescale");
    aside(|series| drop(series[3].elements.remove(&0x0028_1052)), "rescale");
    aside(|series| series[3].text(0x0028_1053, "DS", "one"), "rescale");
    aside(|series| series[3].text(0x0028_1053, "DS", "0"), "rescale");
    aside(|series| series[3].text(0x0028_1053, "DS", "NaN"), "rescale");
}

#[test]
fn padding_becomes_air_before_any_resize_and_is_counted() {
    let rows = used(|series| {
        for slice in series {
            let mut stored = slice.stored_values();
            stored[..SIDE].fill(-2000);
            slice.stored(&stored);
            slice.number(0x0028_0120, "SS", -2000i16 as u16);
        }
    });
    assert_eq!(rows[0].acquisition.padding_px, SIDE as i32);
    assert!(rows[0].hu.as_ref().unwrap()[..SIDE].iter().all(|hu| *hu == -1024));
    assert_eq!(rows[0].selection.hu_min, Some(-1024.0));
}

#[test]
fn padding_written_as_unsigned_follows_the_pixels_sign() {
    let rows = used(|series| {
        for slice in series {
            let mut stored = slice.stored_values();
            stored[0] = -500;
            slice.stored(&stored);
            slice.number(0x0028_0120, "US", -500i16 as u16);
        }
    });
    assert_eq!(rows[0].acquisition.padding_px, 1);
}

#[test]
fn bits_above_the_stored_ones_are_masked() {
    let rows = used(|series| {
        for slice in series {
            slice.number(0x0028_0101, "US", 12);
            slice.number(0x0028_0102, "US", 11);
            slice.number(0x0028_0103, "US", 0);
            let with_overlay: Vec<i16> = slice.stored_values().iter().map(|value| value | 0x4000).collect();
            slice.stored(&with_overlay);
        }
    });
    check_hu(&rows, -30.0);
}

#[test]
fn signed_values_of_twelve_bits_are_extended() {
    let rows = used(|series| {
        for slice in series {
            slice.number(0x0028_0101, "US", 12);
            slice.number(0x0028_0102, "US", 11);
            slice.text(0x0028_1052, "DS", "0");
            let cut: Vec<i16> = slice.stored_values().iter().map(|value| (value - 1024) & 0x0FFF).collect();
            slice.stored(&cut);
        }
    });
    check_hu(&rows, -30.0);
}

#[test]
fn impossible_pixel_formats_are_refused() {
    for (tag, value) in [
        (0x0028_0102, 11),
        (0x0028_0101, 0),
        (0x0028_0101, 33),
        (0x0028_0100, 12),
        (0x0028_0010, 0),
        (0x0028_0010, 65535),
    ] {
        aside(|series| series[0].number(tag, "US", value), "attribute");
    }
    aside(|series| drop(series[0].elements.remove(&0x0028_0010)), "attribute");
    aside(|series| series[0].text(0x0028_0008, "IS", "-1"), "attribute");
    aside(|series| series[0].text(0x0028_0008, "IS", "2147483648"), "attribute");
}

#[test]
fn the_pixel_data_must_have_its_length() {
    aside(
        |series| series[0].elements.get_mut(&0x7FE0_0010).unwrap().1.truncate(2 * SIDE * SIDE - 2),
        "pixels",
    );
    // Another frame is no padding.
    aside(
        |series| series[0].elements.get_mut(&0x7FE0_0010).unwrap().1.extend([0; 2 * SIDE * SIDE]),
        "pixels",
    );
    aside(|series| drop(series[0].elements.remove(&0x7FE0_0010)), "attribute");
}

#[test]
fn every_uncompressed_syntax_gives_the_same_numbers() {
    for syntax in [IMPLICIT_LITTLE, EXPLICIT_BIG] {
        check_hu(&used(|series| series.iter_mut().for_each(|slice| slice.syntax = syntax)), -30.0);
    }
}

#[test]
fn monochrome1_does_not_change_ct_numbers() {
    let rows =
        used(|series| series.iter_mut().for_each(|slice| slice.text(0x0028_0004, "CS", "MONOCHROME1")));
    check_hu(&rows, -30.0);
    assert!(rows[0].provenance.warnings[0].contains("MONOCHROME1"));
}

#[test]
fn what_is_no_slice_of_the_stack_is_left_out() {
    // Localizer, dose report, secondary capture, a coronal image, a single slice of another size.
    type Change = fn(&mut Dicom);
    let others: [Change; 5] = [
        |slice| slice.text(0x0008_0008, "CS", "ORIGINAL\\PRIMARY\\LOCALIZER"),
        |slice| slice.text(0x0008_0016, "UI", "1.2.840.10008.5.1.4.1.1.88.67"),
        |slice| slice.text(0x0008_0016, "UI", "1.2.840.10008.5.1.4.1.1.7"),
        |slice| slice.text(0x0020_0037, "DS", "1\\0\\0\\0\\0\\-1"),
        |slice| slice.text(0x0028_0030, "DS", "1\\1"),
    ];
    for change in others {
        let rows = used(|series| {
            let mut other = Dicom::chest(2, 40.0);
            change(&mut other);
            series.push(other);
        });
        assert_eq!(rows.len(), 6);
        assert!(rows.iter().all(|row| row.geometry.gap_before.is_none_or(|gap| gap.0 == 5.0)));
    }
}

#[test]
fn a_repeated_file_is_dropped_and_a_clash_refused() {
    let rows = used(|series| series.push(series[2].clone()));
    assert_eq!(rows.len(), 6);
    aside(
        |series| {
            let mut other = Dicom::chest(2, -20.0);
            other.text(0x0008_0018, "UI", "1.2.3.4.5");
            let stored: Vec<i16> = other.stored_values().iter().map(|value| value + 1).collect();
            other.stored(&stored);
            series.push(other);
        },
        "same-position",
    );
}

#[test]
fn a_gap_is_recorded_and_refused_when_strict() {
    let gap = |series: &mut Vec<Dicom>| drop(series.remove(3));
    let rows = used(gap);
    assert_eq!(rows[3].geometry.gap_before.unwrap().0, 10.0);
    assert_eq!(rows[3].provenance.warnings, ["gap of 10.0 mm below"]);
    let (_, codes) = run(&changed(gap), reading(|reader| reader.refuse_gaps = true));
    assert_eq!(codes, ["gaps"]);
}

#[test]
fn a_position_must_be_there_and_whole() {
    aside(|series| drop(series[0].elements.remove(&0x0020_0032)), "attribute");
    aside(|series| series[0].text(0x0020_0032, "DS", "1\\2"), "attribute");
    aside(|series| series[0].text(0x0020_0037, "DS", "1\\1\\0\\0\\1\\0"), "attribute");
}

#[test]
fn burned_in_text_is_refused() {
    aside(|series| series[0].text(0x0028_0301, "CS", "YES"), "burned-in");
}

#[test]
fn a_broken_file_costs_its_case() {
    let whole = changed(|_| ());
    for (bytes, code) in [
        (Vec::new(), "not-dicom"),
        (vec![7; 3000], "not-dicom"),
        (b"\xFF\xD8\xFF\xE0 a picture".to_vec(), "not-dicom"),
        (whole[0][..100].to_vec(), "not-dicom"),
        (whole[0][..400].to_vec(), "truncated"),
        (whole[0][..2000].to_vec(), "truncated"),
        // Without preamble, and cut.
        (whole[0][132 + 8 + 20..2000].to_vec(), "truncated"),
    ] {
        let mut files = whole.clone();
        files[0] = bytes;
        let (cohort, codes) = run(&files, settings());
        assert_eq!(codes, [code]);
        assert_eq!(rows(&cohort.shards(), "tested").len(), 0);
    }
}

#[test]
fn a_header_cut_anywhere_is_never_taken_for_whole() {
    let whole = changed(|_| ());
    let pixels = whole[0].len() - 2 * SIDE * SIDE;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cut.dcm");
    for cut in (0..pixels).chain([pixels, pixels + 1, whole[0].len() - 1]) {
        std::fs::write(&path, &whole[0][..cut]).unwrap();
        assert!(
            ct_read::dicom::scan_file(&ct_read::source::listing::ListedFile::at(&path)).is_err(),
            "cut at {cut}"
        );
    }
}

/// Puts an element with a length that is only announced at the start of the first file.
fn announcing(vr: &[u8; 2], length: u32) -> Vec<Vec<u8>> {
    let mut files = changed(|_| ());
    let mut element = vec![0x08, 0, 0x05, 0];
    element.extend(vr);
    if vr == b"UN" {
        element.extend([0, 0]);
        element.extend(length.to_le_bytes());
    } else {
        element.extend((length as u16).to_le_bytes());
    }
    let body = 132 + 8 + 20;
    files[0].splice(body..body, element);
    files
}

#[test]
fn a_length_beyond_the_file_takes_no_memory() {
    for files in [announcing(b"LO", 0xFFFE), announcing(b"UN", 2 << 30), announcing(b"UN", 0xFFFF_FFFE)] {
        let (cohort, codes) = run(&files, settings());
        assert_eq!(codes, ["truncated"]);
        assert_eq!(rows(&cohort.shards(), "tested").len(), 0);
    }
}

#[test]
fn an_element_of_two_gigabytes_is_refused_unread() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large.dcm");
    std::fs::write(&path, &announcing(b"UN", 2 << 30)[0]).unwrap();
    // The bytes are there: a hole of the file system, which takes no room.
    std::fs::File::options().write(true).open(&path).unwrap().set_len(3 << 30).unwrap();
    let scanned = ct_read::dicom::scan_file(&ct_read::source::listing::ListedFile::at(&path));
    assert_eq!(scanned.unwrap_err().code(), "too-large");
}

#[test]
fn an_unknown_transfer_syntax_is_named() {
    aside(|series| series[1].syntax = "1.2.840.10008.1.2.4.999", "transfer-syntax");
}

#[test]
fn a_long_header_is_read_on() {
    // Longer than what is read first, and than what is read next.
    for n_bytes in [20_000, 400_000] {
        let rows = used(|series| {
            for slice in series {
                slice.elements.insert(0x0009_1010, ("UN", vec![7; n_bytes]));
            }
        });
        check_hu(&rows, -30.0);
    }
}

#[cfg(unix)]
#[test]
fn a_link_that_leads_nowhere_costs_its_case_and_a_circle_is_told() {
    use std::os::unix::fs::symlink;
    let (cohort, _) = run(&changed(|_| ()), settings());
    std::fs::remove_dir_all(cohort.shards()).unwrap();
    let tested = cohort.dicom().join("tested");
    symlink("..", tested.join("circle")).unwrap();
    let (result, codes) = cohort.run(settings());
    assert_eq!((codes, result.unwrap().manifest.flow.cases.used), (vec!["unreadable".to_string()], 2));
    std::fs::remove_dir_all(cohort.shards()).unwrap();
    std::fs::remove_file(tested.join("circle")).unwrap();
    symlink("nowhere.dcm", tested.join("6.dcm")).unwrap();
    let (result, codes) = cohort.run(settings());
    assert_eq!((codes, result.unwrap().manifest.flow.cases.used), (vec!["unreadable".to_string()], 1));
}

#[test]
fn a_file_without_preamble_is_read() {
    let whole = changed(|_| ());
    let mut files = whole.clone();
    files[0].drain(..132);
    let (cohort, codes) = run(&files, settings());
    assert_eq!(codes, Vec::<String>::new());
    check_hu(&rows(&cohort.shards(), "tested"), -30.0);
}

#[test]
fn sequences_nested_without_end_are_refused() {
    let mut file = changed(|_| ())[0].clone();
    let at = 132 + 8 + 20;
    let mut nest = Vec::new();
    for _ in 0..200_000 {
        nest.extend([0x08, 0, 0x15, 0x11, b'S', b'Q', 0, 0, 0xFF, 0xFF, 0xFF, 0xFF]);
        nest.extend([0xFE, 0xFF, 0, 0xE0, 0xFF, 0xFF, 0xFF, 0xFF]);
    }
    file.splice(at..at, nest);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("deep.dcm");
    std::fs::write(&path, file).unwrap();
    assert_eq!(
        ct_read::dicom::scan_file(&ct_read::source::listing::ListedFile::at(&path)).unwrap_err().code(),
        "too-deep"
    );
}

#[test]
fn lung_slices_are_kept_and_others_are_not() {
    let files = changed(|series| {
        for i in 0..6 {
            let mut below = Dicom::chest(2, -60.0 + 5.0 * f64::from(i));
            let abdomen = chest_hu(f64::from(i)).map(|hu| if hu == -850 { 50 } else { hu } + 1024);
            below.stored(&abdomen);
            series.push(below);
        }
    });
    let (cohort, codes) = run(&files, reading(|reader| reader.select = Select::Lung));
    assert_eq!(codes, Vec::<String>::new());
    let rows = rows(&cohort.shards(), "tested");
    assert_eq!(rows.len(), 6);
    assert!(rows.iter().all(|row| row.geometry.z.unwrap().0 >= -30.0));
    assert_eq!(rows.iter().map(|row| row.slice_index).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5]);
}

#[test]
fn a_case_without_lung_is_set_aside() {
    let files = changed(|series| {
        for slice in series {
            slice.stored(&chest_hu(0.0).map(|hu| if hu == -850 { 50 } else { hu } + 1024));
        }
    });
    let (_, codes) = run(&files, reading(|reader| reader.select = Select::Lung));
    assert_eq!(codes, ["no-lung"]);
}

#[test]
fn a_crop_enlarges_what_it_names() {
    let mean = |crop| {
        let (cohort, _) = run(&changed(|_| ()), reading(|reader| reader.crop = crop));
        let rows = rows(&cohort.shards(), "tested");
        let n_lung = rows[0].hu.as_ref().unwrap().iter().filter(|hu| (-900..-700).contains(*hu)).count();
        n_lung as f64 / (SIDE * SIDE) as f64
    };
    let (none, body, lung) = (mean(Crop::None), mean(Crop::Body), mean(Crop::Lung));
    assert!(none < body && body < lung, "{none} {body} {lung}");
}

#[test]
fn padding_behind_the_pixels_is_ignored() {
    for n_bytes in [2, 512] {
        let rows = used(|series| {
            let pixels = series.iter_mut().map(|slice| slice.elements.get_mut(&0x7FE0_0010).unwrap());
            pixels.for_each(|pixels| pixels.1.extend(vec![0; n_bytes]));
        });
        check_hu(&rows, -30.0);
        let want = format!("{n_bytes} bytes behind the pixels were ignored");
        assert_eq!(rows[0].provenance.warnings, [want]);
    }
}

#[test]
fn a_number_of_frames_without_a_value_is_one() {
    check_hu(&used(|series| series.iter_mut().for_each(|slice| slice.text(0x0028_0008, "IS", ""))), -30.0);
}

#[test]
fn a_data_set_in_another_syntax_than_the_file_names_is_read() {
    for (named, written) in [
        (EXPLICIT_LITTLE, IMPLICIT_LITTLE),
        (IMPLICIT_LITTLE, EXPLICIT_LITTLE),
        (EXPLICIT_LITTLE, EXPLICIT_BIG),
        (EXPLICIT_BIG, EXPLICIT_LITTLE),
    ] {
        let files = |syntax: &'static str| {
            changed(|series| series.iter_mut().for_each(|slice| slice.syntax = syntax))
        };
        let body = |syntax: &str| 132 + 8 + syntax.len().next_multiple_of(2);
        let files: Vec<Vec<u8>> = files(named)
            .iter()
            .zip(files(written))
            .map(|(named_file, written_file)| {
                [&named_file[..body(named)], &written_file[body(written)..]].concat()
            })
            .collect();
        let (cohort, codes) = run(&files, settings());
        assert_eq!(codes, Vec::<String>::new(), "{named} {written}");
        let rows = rows(&cohort.shards(), "tested");
        check_hu(&rows, -30.0);
        assert!(rows[0].provenance.warnings[0].contains("another transfer syntax"), "{named} {written}");
        assert_eq!(rows[0].acquisition.transfer_syntax, written);
    }
}

#[test]
fn what_is_no_dicom_object_by_bytes_and_name_is_counted() {
    let (cohort, _) = run(&changed(|_| ()), settings());
    std::fs::remove_dir_all(cohort.shards()).unwrap();
    let tested = cohort.dicom().join("tested");
    let foreign: [(&str, &[u8]); 11] = [
        ("mask.nii.gz", b"\x1F\x8B\x08\0 gzip"),
        ("label.nrrd", b"NRRD0004\n"),
        ("array.npy", b"\x93NUMPY\x01\0"),
        ("viewer.dll", b"MZ\x90\0\x03\0\0\0"),
        ("preview.jpg", b"\xFF\xD8\xFF\xE0"),
        ("help.chm", b"ITSF\x03\0"),
        ("LOCKFILE", b""),
        ("VERSION", b"1.0.2\n"),
        ("viewer", b"\x7FELF\x02\x01\x01\0"),
        ("IM0001", b"\x89PNG\r\n\x1A\n"),
        ("README2", "a note of 2020\n".as_bytes()),
    ];
    for (name, bytes) in foreign {
        std::fs::write(tested.join(name), bytes).unwrap();
    }
    let (result, codes) = cohort.run(settings());
    assert_eq!(codes, Vec::<String>::new());
    // The label table, too.
    assert_eq!(result.unwrap().manifest.flow.files.set_aside.get("not an image"), Some(&12));
    for (name, bytes) in [("IM0007", &b"\x01\0\x02"[..]), ("IM0008", b""), ("1.2.840.7", b"\0\0\x05")] {
        std::fs::remove_dir_all(cohort.shards()).unwrap();
        std::fs::write(tested.join(name), bytes).unwrap();
        assert_eq!(cohort.run(settings()).1, ["not-dicom"], "{name}");
        std::fs::remove_file(tested.join(name)).unwrap();
    }
}
