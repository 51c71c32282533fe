//! From stored values to HU by a modality table, and values that are no HU.

use crate::common::{Dicom, EXPLICIT_BIG, EXPLICIT_LITTLE, Elements, IMPLICIT_LITTLE, SIDE, sequence, text};
use crate::tested::{aside, check_hu, used};

/// ModalityLUTSequence in place of slope and intercept.
#[derive(Clone)]
struct Table {
    descriptor: [u16; 3],
    kind: &'static str,
    entries: Vec<u16>,
}

impl Table {
    /// Stored -3 to 4 become 0, 100, ... 700 HU.
    fn new() -> Self {
        let entries = (0..8).map(|i| 100 * i).collect();
        Self { descriptor: [8, -3i16 as u16, 16], kind: "HU", entries }
    }

    fn set(&self, dicom: &mut Dicom) {
        let words = |values: &[u16]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
        let item = Elements::from([
            (0x0028_3002, ("US", words(&self.descriptor))),
            (0x0028_3004, text("LO", self.kind)),
            (0x0028_3006, ("OW", words(&self.entries))),
        ]);
        dicom.elements.remove(&0x0028_1052);
        dicom.elements.remove(&0x0028_1053);
        dicom.elements.insert(0x0028_3000, sequence(dicom.syntax, false, &[item]));
        // Values beyond both ends of the table among them; each slice other than the next.
        let shift = dicom.stored_values()[SIDE * SIDE / 2] % 5;
        let stored: Vec<i16> = (0..SIDE * SIDE).map(|i| (i % 12) as i16 - 6 + shift).collect();
        dicom.stored(&stored);
    }
}

fn wanted(stored: &[i16], shift: i16) -> Vec<i16> {
    stored.iter().map(|value| 100 * (value + shift + 3).clamp(0, 7)).collect()
}

#[test]
fn a_modality_table_is_applied_and_said_so() {
    for syntax in [EXPLICIT_LITTLE, IMPLICIT_LITTLE, EXPLICIT_BIG] {
        let rows = used(|series| {
            for slice in series {
                slice.syntax = syntax;
                Table::new().set(slice);
            }
        });
        let plain: Vec<i16> = (0..SIDE * SIDE).map(|i| (i % 12) as i16 - 6).collect();
        let mut reference = Dicom::chest(2, -30.0);
        let shift = reference.stored_values()[SIDE * SIDE / 2] % 5;
        Table::new().set(&mut reference);
        assert_eq!(reference.stored_values()[0], plain[0] + shift);
        assert_eq!(rows[0].hu.as_ref().unwrap(), &wanted(&plain, shift), "{syntax}");
        assert_eq!((rows[0].acquisition.rescale_slope, rows[0].acquisition.rescale_intercept), (None, None));
        assert_eq!(rows[0].provenance.warnings, ["CT numbers by a modality table"]);
    }
}

#[test]
fn a_modality_table_that_is_not_certain_is_refused() {
    type Change = fn(&mut Table);
    let changes: [Change; 5] = [
        |table| table.kind = "US",
        |table| table.descriptor[0] = 9,
        |table| table.descriptor[2] = 17,
        |table| table.descriptor[2] = 9,
        |table| table.entries.clear(),
    ];
    for change in changes {
        aside(
            |series| {
                let mut table = Table::new();
                change(&mut table);
                table.set(&mut series[3]);
            },
            "rescale",
        );
    }
    aside(|series| series[3].text(0x0028_3000, "SQ", ""), "rescale");
    aside(
        |series| {
            Table::new().set(&mut series[3]);
            series[3].text(0x0028_1052, "DS", "-1024");
        },
        "rescale",
    );
}

#[test]
fn maps_of_other_quantities_are_no_ct() {
    // Iodine, effective atomic number, electron density: same SOP class, other numbers.
    for kind in ["MGML", "Z_EFF", "ED"] {
        aside(|series| series.iter_mut().for_each(|slice| slice.text(0x0028_1054, "LO", kind)), "no-series");
        let rows = used(|series| {
            let mut maps = series.clone();
            for (i, map) in maps.iter_mut().enumerate() {
                map.text(0x0028_1054, "LO", kind);
                map.text(0x0008_0018, "UI", &format!("1.2.3.9.{i}"));
            }
            series.extend(maps);
        });
        assert_eq!(rows.len(), 6);
    }
    assert_eq!(used(|series| series.iter_mut().for_each(|s| s.text(0x0028_1054, "LO", "HU"))).len(), 6);
}

#[test]
fn values_that_are_no_hu_are_refused_whatever_the_header_says() {
    // Slope and intercept that are not those of the stored values.
    for (slope, intercept) in
        [("1", "-724"), ("1", "-1324"), ("1", "0"), ("1.5", "-1536"), ("2", "-2048"), ("-1", "1024")]
    {
        aside(
            |series| {
                for slice in series {
                    slice.text(0x0028_1053, "DS", slope);
                    slice.text(0x0028_1052, "DS", intercept);
                }
            },
            "not-hu",
        );
    }
    // The window of a screen, 0 to 255, whatever RescaleType says.
    for kind in ["HU", "US"] {
        aside(
            |series| {
                for slice in series {
                    let window = |stored: &i16| {
                        ((f32::from(*stored) - 1024.0 + 1350.0) / 1500.0 * 255.0).clamp(0.0, 255.0) as i16
                    };
                    slice.stored(&slice.stored_values().iter().map(window).collect::<Vec<_>>());
                    slice.text(0x0028_1052, "DS", "0");
                    slice.text(0x0028_1054, "LO", kind);
                }
            },
            "not-hu",
        );
    }
}

#[test]
fn of_two_series_the_one_in_hu_is_used() {
    let rows = used(|series| {
        for i in 0..8 {
            let mut slice = Dicom::chest(2, -30.0 + f64::from(i));
            slice.text(0x0008_0018, "UI", &format!("1.2.3.99.{i}"));
            slice.text(0x0020_000E, "UI", "1.2.5.99");
            slice.text(0x0028_1052, "DS", "0");
            series.push(slice);
        }
    });
    assert_eq!(rows.len(), 6);
    check_hu(&rows, -30.0);
}

#[test]
fn a_unit_is_free_text() {
    for kind in ["Houndsfield Unit", "hu", "UNSPECIFIED"] {
        let rows = used(|series| series.iter_mut().for_each(|slice| slice.text(0x0028_1054, "LO", kind)));
        check_hu(&rows, -30.0);
        assert_eq!(rows[0].provenance.warnings.is_empty(), kind != "UNSPECIFIED", "{kind}");
    }
    aside(|series| series.iter_mut().for_each(|slice| slice.text(0x0028_1054, "LO", "Z_EFF")), "no-series");
}
