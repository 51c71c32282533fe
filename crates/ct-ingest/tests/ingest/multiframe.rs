//! Enhanced multi-frame CT: geometry and rescale lie in functional groups, one
//! item a frame, and reading the top of the object gives wrong numbers.

use crate::common::{
    Dicom, EXPLICIT_BIG, EXPLICIT_LITTLE, Elements, IMPLICIT_LITTLE, SIDE, chest_hu, rows, sequence,
    settings, text,
};
use crate::tested::run;
use diag_data::slice::CtSlice;

const SHARED: u32 = 0x5200_9229;
const PER_FRAME: u32 = 0x5200_9230;
const PLANE_POSITION: u32 = 0x0020_9113;
const PLANE_ORIENTATION: u32 = 0x0020_9116;
const PIXEL_MEASURES: u32 = 0x0028_9110;
const TRANSFORMATION: u32 = 0x0028_9145;
const FRAME_TYPE: u32 = 0x0018_9329;
const FRAME_CONTENT: u32 = 0x0020_9111;
const RECONSTRUCTION: u32 = 0x0018_9314;
const XRAY_DETAILS: u32 = 0x0018_9325;

/// One frame: its height, rescale, and whatever else its groups hold.
#[derive(Clone)]
struct Frame {
    z: f64,
    slope: i16,
    intercept: i16,
    groups: Vec<(u32, Elements)>,
}

struct Enhanced {
    syntax: &'static str,
    open: bool,
    /// Whether sequences are written with VR UN, as a system that does not know them does.
    unknown: bool,
    frames: Vec<Frame>,
    change: fn(&mut Dicom),
}

fn elements(of: &[(u32, (&'static str, Vec<u8>))]) -> Elements {
    of.iter().cloned().collect()
}

impl Enhanced {
    /// Six frames from top to bottom, each second one with a rescale of its own.
    fn new() -> Self {
        let frame = |i: u32| Frame {
            z: -5.0 - 5.0 * f64::from(i),
            slope: if i.is_multiple_of(2) { 1 } else { 2 },
            intercept: if i.is_multiple_of(2) { -1024 } else { -2000 },
            groups: Vec::new(),
        };
        Self {
            syntax: EXPLICIT_LITTLE,
            open: false,
            unknown: false,
            frames: (0..6).map(frame).collect(),
            change: |_| (),
        }
    }

    fn bytes(&self) -> Vec<u8> {
        // Sequences inside a UN sequence are implicit little endian (PS3.5 6.2.2).
        let inner = if self.unknown { IMPLICIT_LITTLE } else { self.syntax };
        let groups = |groups: &[(u32, Elements)]| -> Elements {
            let written = |(tag, item): &(u32, Elements)| {
                (*tag, sequence(inner, self.open, std::slice::from_ref(item)))
            };
            groups.iter().map(written).collect()
        };
        let mut dicom = Dicom::chest(2, 0.0);
        dicom.syntax = self.syntax;
        dicom.text(0x0008_0016, "UI", "1.2.840.10008.5.1.4.1.1.2.1");
        dicom.text(0x0028_0008, "IS", &self.frames.len().to_string());
        // What a classic object has at its top must not be needed.
        for tag in [0x0018_0050, 0x0020_0032, 0x0020_0037, 0x0028_0030, 0x0028_1052, 0x0028_1053] {
            dicom.elements.remove(&tag);
        }
        let mut stored = Vec::new();
        let mut per_frame = Vec::new();
        for frame in &self.frames {
            let position = text("DS", &format!("-176\\-176\\{}", frame.z));
            let rescale = elements(&[
                (0x0028_1052, text("DS", &frame.intercept.to_string())),
                (0x0028_1053, text("DS", &frame.slope.to_string())),
            ]);
            let mut own =
                vec![(PLANE_POSITION, elements(&[(0x0020_0032, position)])), (TRANSFORMATION, rescale)];
            own.extend(frame.groups.iter().cloned());
            per_frame.push(groups(&own));
            stored.extend(chest_hu(frame.z).map(|hu| (hu - frame.intercept) / frame.slope));
        }
        dicom.stored(&stored);
        let shared = groups(&[
            (PLANE_ORIENTATION, elements(&[(0x0020_0037, text("DS", "1\\0\\0\\0\\1\\0"))])),
            (
                PIXEL_MEASURES,
                elements(&[(0x0018_0050, text("DS", "5")), (0x0028_0030, text("DS", "5.5\\5.5"))]),
            ),
            (RECONSTRUCTION, elements(&[(0x0018_1210, text("SH", "B31f"))])),
            (XRAY_DETAILS, elements(&[(0x0018_0060, text("DS", "120"))])),
        ]);
        let vr = match (self.unknown, self.open) {
            (false, false) => "SQ",
            (false, true) => "SQ open",
            (true, false) => "UN",
            (true, true) => "UN open",
        };
        dicom.elements.insert(SHARED, (vr, sequence(inner, self.open, &[shared]).1));
        dicom.elements.insert(PER_FRAME, (vr, sequence(inner, self.open, &per_frame).1));
        (self.change)(&mut dicom);
        dicom.bytes()
    }
}

/// Small objects of every writing, for the tests of damaged input.
pub fn seeds() -> Vec<Vec<u8>> {
    let shrink = |dicom: &mut Dicom| {
        dicom.number(0x0028_0010, "US", 8);
        dicom.number(0x0028_0011, "US", 8);
        dicom.stored(&[100; 6 * 64]);
    };
    let plain = Enhanced { change: shrink, ..Enhanced::new() };
    let open = Enhanced { change: shrink, open: true, syntax: IMPLICIT_LITTLE, ..Enhanced::new() };
    let unknown = Enhanced { change: shrink, open: true, unknown: true, ..Enhanced::new() };
    vec![plain.bytes(), open.bytes(), unknown.bytes()]
}

#[track_caller]
fn check(object: &Enhanced) -> Vec<CtSlice> {
    let (cohort, codes) = run(&[object.bytes()], settings());
    assert_eq!(codes, Vec::<String>::new());
    let rows = rows(&cohort.shards(), "tested");
    assert_eq!(rows.len(), 6);
    for (i, row) in rows.iter().enumerate() {
        let z = -30.0 + 5.0 * i as f64;
        assert_eq!(row.geometry.z.unwrap().0, z);
        // A slope of 2 halves the numbers that can be stored.
        let slope = row.acquisition.rescale_slope.unwrap() as i16;
        assert_eq!(row.hu.as_ref().unwrap(), &chest_hu(z).map(|hu| hu / slope * slope).to_vec(), "{z} mm");
        assert_eq!(slope, if i % 2 == 0 { 2 } else { 1 });
        assert_eq!(row.geometry.spacing.unwrap().row.0, 5.5);
        assert_eq!(row.geometry.slice_thickness.unwrap().0, 5.0);
        assert_eq!(row.acquisition.kernel.as_deref(), Some("B31f"));
        assert_eq!(row.acquisition.kvp, Some(120.0));
    }
    rows
}

#[track_caller]
fn refused(object: &Enhanced, code: &str) {
    let (_, codes) = run(&[object.bytes()], settings());
    assert_eq!(codes, [code]);
}

#[test]
fn each_frame_has_its_own_place_and_rescale() {
    for syntax in [EXPLICIT_LITTLE, IMPLICIT_LITTLE, EXPLICIT_BIG] {
        for open in [false, true] {
            check(&Enhanced { syntax, open, ..Enhanced::new() });
        }
    }
}

#[test]
fn functional_groups_of_unknown_representation_are_read() {
    for open in [false, true] {
        check(&Enhanced { unknown: true, open, ..Enhanced::new() });
    }
}

#[test]
fn a_localizer_among_the_frames_is_not_stacked() {
    let mut object = Enhanced::new();
    let kind = elements(&[(0x0008_9007, text("CS", "ORIGINAL\\PRIMARY\\LOCALIZER\\NONE"))]);
    let coronal = elements(&[(0x0020_0037, text("DS", "1\\0\\0\\0\\0\\-1"))]);
    let groups = vec![(FRAME_TYPE, kind), (PLANE_ORIENTATION, coronal)];
    object.frames.push(Frame { z: 12.0, slope: 1, intercept: -1024, groups });
    check(&object);
}

#[test]
fn frames_of_two_acquisitions_are_told_apart() {
    let mut object = Enhanced::new();
    let number = |number: u16| elements(&[(0x0020_9156, ("US", number.to_le_bytes().to_vec()))]);
    for frame in &mut object.frames {
        frame.groups.push((FRAME_CONTENT, number(1)));
    }
    for i in 0..3 {
        // Between the others: without the number they would make one stack.
        let z = -27.5 + 5.0 * f64::from(i);
        let groups = vec![(FRAME_CONTENT, number(2))];
        object.frames.push(Frame { z, slope: 1, intercept: -1024, groups });
    }
    check(&object);
}

#[test]
fn the_number_of_frames_must_be_right() {
    let change = |dicom: &mut Dicom| dicom.text(0x0028_0008, "IS", "7");
    refused(&Enhanced { change, ..Enhanced::new() }, "attribute");
    let change = |dicom: &mut Dicom| dicom.stored(&[0; 5 * SIDE * SIDE]);
    refused(&Enhanced { change, ..Enhanced::new() }, "pixels");
    let change = |dicom: &mut Dicom| {
        dicom.elements.remove(&PER_FRAME);
        dicom.elements.remove(&SHARED);
    };
    refused(&Enhanced { change, ..Enhanced::new() }, "attribute");
}

#[test]
fn a_frame_without_rescale_sets_the_case_aside() {
    let mut object = Enhanced::new();
    object.frames[2].groups.push((TRANSFORMATION, Elements::new()));
    refused(&object, "rescale");
}

/// RLE Lossless of one frame, in literal runs.
pub fn rle(stored: &[i16]) -> Vec<u8> {
    let mut segments = Vec::new();
    let mut offsets = Vec::new();
    for shift in [8, 0] {
        offsets.push(64 + segments.len() as u32);
        let plane: Vec<u8> = stored.iter().map(|value| (value >> shift) as u8).collect();
        for run in plane.chunks(128) {
            segments.push(run.len() as u8 - 1);
            segments.extend(run);
        }
    }
    let mut stream = Vec::from(2u32.to_le_bytes());
    stream.extend(offsets.iter().flat_map(|offset| offset.to_le_bytes()));
    stream.resize(64, 0);
    stream.extend(segments);
    if stream.len() % 2 == 1 {
        stream.push(0);
    }
    stream
}

#[test]
fn compressed_frames_are_found_with_and_without_an_offset_table() {
    fn encapsulated(dicom: &mut Dicom, with_table: bool) {
        dicom.syntax = "1.2.840.10008.1.2.5";
        let stored = dicom.stored_values();
        let frames: Vec<Vec<u8>> = stored.chunks(SIDE * SIDE).map(rle).collect();
        let mut offsets = Vec::new();
        let mut fragments = Vec::new();
        for frame in &frames {
            offsets.extend((fragments.len() as u32).to_le_bytes());
            fragments.extend([0xFE, 0xFF, 0x00, 0xE0]);
            fragments.extend((frame.len() as u32).to_le_bytes());
            fragments.extend(frame);
        }
        let table = if with_table { offsets } else { Vec::new() };
        let mut bytes = vec![0xFE, 0xFF, 0x00, 0xE0];
        bytes.extend((table.len() as u32).to_le_bytes());
        bytes.extend(table);
        bytes.extend(fragments);
        bytes.extend([0xFE, 0xFF, 0xDD, 0xE0, 0, 0, 0, 0]);
        dicom.elements.insert(0x7FE0_0010, ("OB open", bytes));
    }
    check(&Enhanced { change: |dicom| encapsulated(dicom, true), ..Enhanced::new() });
    check(&Enhanced { change: |dicom| encapsulated(dicom, false), ..Enhanced::new() });
}

#[test]
fn a_turned_enhanced_object_gives_the_usual_view() {
    let mut object = Enhanced::new();
    for frame in &mut object.frames {
        let cosines = text("DS", "1\\0\\0\\0\\-1\\0");
        frame.groups.push((PLANE_ORIENTATION, elements(&[(0x0020_0037, cosines)])));
        // Every HU can be stored.
        (frame.slope, frame.intercept) = (1, -1024);
    }
    let (cohort, codes) = run(&[object.bytes()], settings());
    assert_eq!(codes, Vec::<String>::new());
    let rows = rows(&cohort.shards(), "tested");
    assert_eq!(rows.len(), 6);
    for row in rows {
        let stored = chest_hu(row.geometry.z.unwrap().0);
        let turned: Vec<i16> = stored.chunks(SIDE).rev().flatten().copied().collect();
        assert_ne!(turned, stored, "the chest is not its own mirror image");
        assert_eq!(row.hu.as_ref().unwrap(), &turned);
    }
}
