//! Crafted DICOM series, written byte by byte so that the tests do not lean on
//! the code under test, and a run over them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use ct_ingest::IngestError;
use ct_ingest::dicom_run::{self, DicomRun};
use ct_ingest::key::KeySource;
use ct_ingest::run::{Control, Event, Summary};
use ct_ingest::settings::{Match, Settings};
use ct_read::scan::Format;
use diag_data::manifest::Layout;
use diag_data::reader::{ReaderSettings, Select};
use diag_data::shard::ShardSet;
use diag_data::slice::CtSlice;
use diag_data::split::Ratio;

pub const EXPLICIT_LITTLE: &str = "1.2.840.10008.1.2.1";
pub const IMPLICIT_LITTLE: &str = "1.2.840.10008.1.2";
pub const EXPLICIT_BIG: &str = "1.2.840.10008.1.2.2";

/// Rows and columns of crafted slices.
pub const SIDE: usize = 64;

/// A crafted slice: elements by tag, values in little endian.
#[derive(Clone, Debug)]
pub struct Dicom {
    pub syntax: &'static str,
    /// MediaStorageSOPClassUID, which is all that a DICOMDIR says of its kind.
    pub media_class: Option<&'static str>,
    pub elements: Elements,
}

/// Elements by tag: value representation and value.
pub type Elements = BTreeMap<u32, (&'static str, Vec<u8>)>;

impl Dicom {
    /// A 16-bit signed axial slice of a chest at height `z`, intercept -1024.
    pub fn chest(case: usize, z: f64) -> Self {
        let mut dicom = Self { syntax: EXPLICIT_LITTLE, media_class: None, elements: Elements::new() };
        dicom.text(0x0008_0008, "CS", "ORIGINAL\\PRIMARY\\AXIAL");
        dicom.text(0x0008_0016, "UI", "1.2.840.10008.5.1.4.1.1.2");
        dicom.text(0x0008_0018, "UI", &format!("1.2.3.{case}.{}", (z * 10.0) as i64 + 100_000));
        dicom.text(0x0008_0060, "CS", "CT");
        dicom.text(0x0008_0070, "LO", "SIEMENS");
        dicom.text(0x0010_0010, "PN", "Doe^Jane");
        dicom.text(0x0010_0020, "LO", &format!("PATIENT-{case}"));
        dicom.text(0x0010_1010, "AS", "093Y");
        dicom.text(0x0018_0050, "DS", "5");
        dicom.text(0x0020_000D, "UI", &format!("1.2.4.{case}"));
        dicom.text(0x0020_000E, "UI", &format!("1.2.5.{case}"));
        dicom.text(0x0020_0011, "IS", "1");
        dicom.position(z);
        dicom.text(0x0020_0037, "DS", "1\\0\\0\\0\\1\\0");
        dicom.number(0x0028_0002, "US", 1);
        dicom.text(0x0028_0004, "CS", "MONOCHROME2");
        dicom.number(0x0028_0010, "US", SIDE as u16);
        dicom.number(0x0028_0011, "US", SIDE as u16);
        dicom.text(0x0028_0030, "DS", "5.5\\5.5");
        dicom.number(0x0028_0100, "US", 16);
        dicom.number(0x0028_0101, "US", 16);
        dicom.number(0x0028_0102, "US", 15);
        dicom.number(0x0028_0103, "US", 1);
        dicom.text(0x0028_0301, "CS", "NO");
        dicom.text(0x0028_1052, "DS", "-1024");
        dicom.text(0x0028_1053, "DS", "1");
        dicom.stored(&chest_hu(z).map(|hu| hu + 1024));
        dicom
    }

    pub fn text(&mut self, tag: u32, vr: &'static str, value: &str) {
        self.elements.insert(tag, text(vr, value));
    }

    pub fn number(&mut self, tag: u32, vr: &'static str, value: u16) {
        self.elements.insert(tag, (vr, value.to_le_bytes().to_vec()));
    }

    pub fn position(&mut self, z: f64) {
        self.text(0x0020_0032, "DS", &format!("-176\\-176\\{z}"));
    }

    pub fn stored(&mut self, values: &[i16]) {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.elements.insert(0x7FE0_0010, ("OW", bytes));
    }

    pub fn stored_values(&self) -> Vec<i16> {
        let bytes = &self.elements[&0x7FE0_0010].1;
        bytes.chunks_exact(2).map(|pair| i16::from_le_bytes([pair[0], pair[1]])).collect()
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut file = vec![0; 128];
        file.extend_from_slice(b"DICM");
        let mut uid = self.syntax.as_bytes().to_vec();
        if uid.len() % 2 == 1 {
            uid.push(0);
        }
        if let Some(class) = self.media_class {
            write_element(&mut file, EXPLICIT_LITTLE, 0x0002_0002, "UI", &text("UI", class).1);
        }
        write_element(&mut file, EXPLICIT_LITTLE, 0x0002_0010, "UI", &uid);
        for (&tag, (vr, value)) in &self.elements {
            write_element(&mut file, self.syntax, tag, vr, value);
        }
        file
    }
}

/// The value of a text element, padded to an even length.
pub fn text(vr: &'static str, value: &str) -> (&'static str, Vec<u8>) {
    let mut bytes = value.as_bytes().to_vec();
    if bytes.len() % 2 == 1 {
        bytes.push(if vr == "UI" { 0 } else { b' ' });
    }
    (vr, bytes)
}

const ITEM: [u8; 4] = [0xFE, 0xFF, 0x00, 0xE0];
const ITEM_END: [u8; 8] = [0xFE, 0xFF, 0x0D, 0xE0, 0, 0, 0, 0];
const SEQUENCE_END: [u8; 8] = [0xFE, 0xFF, 0xDD, 0xE0, 0, 0, 0, 0];

/// A sequence as an element of vr `SQ`, written in `syntax`; with `open` ends,
/// lengths are undefined and delimiters close it and its items.
pub fn sequence(syntax: &str, open: bool, items: &[Elements]) -> (&'static str, Vec<u8>) {
    let swapped = |mark: &[u8]| -> Vec<u8> {
        if syntax == EXPLICIT_BIG { vec![mark[1], mark[0], mark[3], mark[2]] } else { mark[..4].to_vec() }
    };
    let mut bytes = Vec::new();
    for elements in items {
        let mut item = Vec::new();
        for (&tag, (vr, value)) in elements {
            write_element(&mut item, syntax, tag, vr, value);
        }
        bytes.extend(swapped(&ITEM));
        let length = if open { u32::MAX } else { item.len() as u32 };
        bytes.extend(if syntax == EXPLICIT_BIG { length.to_be_bytes() } else { length.to_le_bytes() });
        bytes.extend(item);
        if open {
            bytes.extend(swapped(&ITEM_END));
            bytes.extend([0; 4]);
        }
    }
    if open {
        bytes.extend(swapped(&SEQUENCE_END));
        bytes.extend([0; 4]);
    }
    (if open { "SQ open" } else { "SQ" }, bytes)
}

/// Writes one element. Numbers are given in little endian and swapped as the
/// syntax asks; `SQ open` and `OB open` have an undefined length.
fn write_element(file: &mut Vec<u8>, syntax: &str, tag: u32, vr: &str, value: &[u8]) {
    let big = syntax == EXPLICIT_BIG;
    let u16_bytes = |number: u16| if big { number.to_be_bytes() } else { number.to_le_bytes() };
    let u32_bytes = |number: u32| if big { number.to_be_bytes() } else { number.to_le_bytes() };
    file.extend(u16_bytes((tag >> 16) as u16));
    file.extend(u16_bytes(tag as u16));
    let length = if vr.ends_with(" open") { u32::MAX } else { value.len() as u32 };
    let vr = vr.trim_end_matches(" open");
    if syntax == IMPLICIT_LITTLE {
        file.extend(u32_bytes(length));
    } else {
        file.extend(vr.as_bytes());
        if matches!(vr, "OB" | "OW" | "UN" | "SQ" | "UT") {
            file.extend([0, 0]);
            file.extend(u32_bytes(length));
        } else {
            file.extend(u16_bytes(length as u16));
        }
    }
    if big && matches!(vr, "US" | "SS" | "OW") {
        file.extend(value.chunks_exact(2).flat_map(|pair| [pair[1], pair[0]]));
    } else {
        file.extend(value);
    }
}

/// HU of a chest: two lungs in an ellipse of tissue; a mark moves with `z`, so
/// that no two heights look alike.
pub fn chest_hu(z: f64) -> [i16; SIDE * SIDE] {
    let inside = |y: f64, x: f64, cy: f64, cx: f64, ry: f64, rx: f64| {
        ((y - cy) / ry).powi(2) + ((x - cx) / rx).powi(2) < 1.0
    };
    std::array::from_fn(|i| {
        let (y, x) = ((i / SIDE) as f64, (i % SIDE) as f64);
        let lung = |cx| inside(y, x, 32.0, cx, 11.0, 8.0);
        match (lung(21.0) || lung(43.0), inside(y, x, 32.0, 32.0, 19.0, 25.0)) {
            (true, _) => -850,
            (false, true) => 40 + (z.rem_euclid(97.0) as i16),
            _ => -1000,
        }
    })
}

/// A series of slices from -30 to -5 mm, 5 mm apart.
pub fn series(case: usize) -> Vec<Dicom> {
    (0..6).map(|i| Dicom::chest(case, -30.0 + 5.0 * f64::from(i))).collect()
}

/// A folder of cases with its label table.
pub struct Cohort {
    pub folder: tempfile::TempDir,
}

impl Cohort {
    pub fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    pub fn dicom(&self) -> PathBuf {
        self.folder.path().join("dicom")
    }

    pub fn shards(&self) -> PathBuf {
        self.folder.path().join("shards")
    }

    pub fn write(&self, case: &str, series: &[Dicom]) {
        let files: Vec<Vec<u8>> = series.iter().map(Dicom::bytes).collect();
        self.write_files(case, &files);
    }

    pub fn write_files(&self, case: &str, files: &[Vec<u8>]) {
        let folder = self.dicom().join(case);
        std::fs::create_dir_all(&folder).unwrap();
        for (i, bytes) in files.iter().enumerate() {
            std::fs::write(folder.join(format!("{i}.dcm")), bytes).unwrap();
        }
    }

    pub fn label(&self, table: &str) {
        std::fs::create_dir_all(self.dicom()).unwrap();
        std::fs::write(self.dicom().join("labels.csv"), table).unwrap();
    }

    pub fn run(&self, settings: Settings) -> (Result<Summary, IngestError>, Vec<String>) {
        self.run_as(Format::Dicom, settings)
    }

    pub fn run_as(&self, format: Format, settings: Settings) -> (Result<Summary, IngestError>, Vec<String>) {
        let run = DicomRun {
            format,
            root: self.dicom(),
            labels: self.dicom().join("labels.csv"),
            out: self.shards(),
            matching: Match::Folder,
            settings,
        };
        with_control(|control| dicom_run::ingest(&run, control))
    }
}

/// Runs something that reports, and returns what it set aside: the codes. That
/// slices look alike is left out: all crafted chests do, and `gate` asks `verify` for it.
pub fn with_control<T>(work: impl FnOnce(&Control<'_>) -> T) -> (T, Vec<String>) {
    let codes = Mutex::new(Vec::new());
    let on_event = |event: Event<'_>| {
        if let Event::SetAside { fault, .. } = event
            && fault.code() != "near-duplicates"
        {
            codes.lock().unwrap().push(fault.code().to_string());
        }
    };
    let result = work(&Control { on_event: &on_event, stop: &AtomicBool::new(false) });
    (result, codes.into_inner().unwrap())
}

/// A key: tests leave that of the machine's user alone.
pub fn key_file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/ingest/key.txt")
}

/// The command itself, with a folder for settings of its own.
pub fn program(config_home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ct-ingest"));
    command.env("XDG_CONFIG_HOME", config_home).env("HOME", config_home);
    command.env_remove("COVID19_DIAG_KEY_FILE");
    command
}

/// All slices, the size of the source kept, HU beside them.
pub fn settings() -> Settings {
    Settings {
        reader: ReaderSettings { select: Select::All, size: SIDE as u32, ..ReaderSettings::DEFAULT },
        ratio: Ratio::SEVEN_TO_THREE,
        seed: 1,
        split_file: None,
        label_set: None,
        layout: Layout::Raw,
        with_hu: true,
        key: KeySource::File(key_file()),
        cohort: None,
        allow_values: None,
        keep_case_ids: true,
        keep_paths: false,
        preview: None,
        jobs: Some(2),
        partition: None,
    }
}

/// [`settings`] with another reader.
pub fn reading(change: impl FnOnce(&mut ReaderSettings)) -> Settings {
    let mut settings = settings();
    change(&mut settings.reader);
    settings
}

/// The rows of a case, in order.
pub fn rows(shards: &Path, case: &str) -> Vec<CtSlice> {
    let set = ShardSet::open(shards).unwrap();
    let all = diag_data::case::Split::ALL.into_iter().flat_map(|split| set.slices(split).collect::<Vec<_>>());
    all.map(Result::unwrap).filter(|row| row.case_id.as_str() == case).collect()
}

/// A folder of the test data; `None`, said aloud, where there is none.
#[expect(clippy::print_stderr, reason = "a skipped test must be heard")]
pub fn test_data(below: &str) -> Option<PathBuf> {
    let Some(root) = std::env::var_os("COVID19_DIAG_TEST_DATA") else {
        eprintln!("SKIPPED: COVID19_DIAG_TEST_DATA is not set, so {below} was not read");
        return None;
    };
    let path = PathBuf::from(root).join(below);
    assert!(path.exists(), "{} is missing", path.display());
    Some(path)
}
