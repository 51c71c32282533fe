//! No name leaves: planted in every kind of attribute, in private tags, file and
//! folder names and archives, and searched in every byte that comes out.

use std::path::Path;

use ct_ingest::settings::Settings;
use diag_data::shard::ShardSet;

use crate::common::{Cohort, Dicom, Elements, program, rows, sequence, series, settings, text};
use crate::tested::aside;

/// Part of every planted name; it occurs nowhere else.
const PLANTED: &str = "Zbigniew";

/// Attributes that name people, places and things, with their representations.
const TAGS: [(u32, &str); 48] = [
    (0x0008_0050, "SH"),
    (0x0008_0080, "LO"),
    (0x0008_0081, "ST"),
    (0x0008_0090, "PN"),
    (0x0008_0092, "ST"),
    (0x0008_0094, "SH"),
    (0x0008_1010, "SH"),
    (0x0008_1030, "LO"),
    (0x0008_103E, "LO"),
    (0x0008_1040, "LO"),
    (0x0008_1048, "PN"),
    (0x0008_1050, "PN"),
    (0x0008_1060, "PN"),
    (0x0008_1070, "PN"),
    (0x0008_1080, "LO"),
    (0x0008_2111, "ST"),
    // Product names, in which a technician may have typed.
    (0x0008_0070, "LO"),
    (0x0008_1090, "LO"),
    (0x0018_1210, "SH"),
    (0x0009_0010, "LO"),
    (0x0009_1001, "LO"),
    (0x0009_1002, "UN"),
    (0x0010_0010, "PN"),
    (0x0010_0020, "LO"),
    (0x0010_0021, "LO"),
    (0x0010_1000, "LO"),
    (0x0010_1001, "PN"),
    (0x0010_1005, "PN"),
    (0x0010_1040, "LO"),
    (0x0010_1060, "PN"),
    (0x0010_1090, "LO"),
    (0x0010_2150, "LO"),
    (0x0010_2154, "SH"),
    (0x0010_2160, "SH"),
    (0x0010_2180, "SH"),
    (0x0010_21B0, "LT"),
    (0x0010_21F0, "LO"),
    (0x0010_4000, "LT"),
    (0x0018_1000, "LO"),
    (0x0018_1030, "LO"),
    (0x0018_1400, "LO"),
    (0x0020_0010, "SH"),
    (0x0020_4000, "LT"),
    (0x0032_1032, "PN"),
    (0x0032_1060, "LO"),
    (0x0040_0006, "PN"),
    (0x0011_0010, "LO"),
    (0x0011_1010, "UT"),
];

/// A case whose every text names somebody.
fn planted(case: usize) -> Vec<Dicom> {
    let mut slices = series(case);
    for slice in &mut slices {
        for (tag, vr) in TAGS {
            slice.text(tag, vr, &format!("{PLANTED}^{case}"));
        }
        // A name inside a sequence, and one inside a private sequence.
        let inner = Elements::from([(0x0040_1101, text("PN", PLANTED)), (0x0010_0010, text("PN", PLANTED))]);
        slice.elements.insert(0x0008_1110, sequence(slice.syntax, false, std::slice::from_ref(&inner)));
        slice.elements.insert(0x0011_1020, sequence(slice.syntax, true, &[inner]));
        slice.stored(&slice.stored_values().iter().map(|value| value + 5 * case as i16).collect::<Vec<_>>());
    }
    slices
}

fn all_files(folder: &Path, into: &mut Vec<(String, Vec<u8>)>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all_files(&path, into);
        } else {
            into.push((path.to_string_lossy().into(), std::fs::read(&path).unwrap()));
        }
    }
}

/// Looks for the name, whatever its case, and for identifiers of the crafted series.
#[track_caller]
fn check_clean(what: &str, bytes: &[u8]) {
    let planted = PLANTED.as_bytes();
    assert!(
        !bytes.windows(planted.len()).any(|part| part.eq_ignore_ascii_case(planted)),
        "the planted name is in {what}: {}",
        String::from_utf8_lossy(&bytes[..bytes.len().min(3000)])
    );
    assert!(
        !bytes.windows(6).any(|part| part == b"1.2.3." || part == b"1.2.5."),
        "an identifier is in {what}"
    );
}

#[test]
fn no_byte_that_comes_out_names_anybody() {
    let cohort = Cohort::new();
    cohort.label(&format!(
        "case_id,label,split\n{PLANTED}_A,normal,train\n{PLANTED}_B,covid-19,test\n{PLANTED}_C,normal,train\n\
         {PLANTED}_D,normal,train\n"
    ));
    cohort.write(&format!("{PLANTED}_A"), &planted(1));
    cohort.write(&format!("{PLANTED}_B"), &planted(2));
    // Cases, files and archives that are set aside must not be named either; D has no files.
    cohort.write(&format!("{PLANTED}_C"), &planted(3));
    std::fs::write(cohort.dicom().join(format!("{PLANTED}_C/{PLANTED}.dcm")), b"broken").unwrap();
    std::fs::create_dir_all(cohort.dicom().join(format!("{PLANTED}_nobody"))).unwrap();
    std::fs::write(cohort.dicom().join(format!("{PLANTED}_nobody/x.dcm")), planted(4)[0].bytes()).unwrap();
    std::fs::write(cohort.dicom().join(format!("{PLANTED}.zip")), b"no archive").unwrap();
    let previews = cohort.folder.path().join("previews");
    // The command itself, with all it logs. It runs beside its input: a path that
    // the operator typed may come back in a message.
    let run = |arguments: &[&str]| {
        let program = program(&cohort.folder.path().join("config"))
            .args(arguments)
            .current_dir(cohort.folder.path())
            .env("RUST_LOG", "trace")
            .output()
            .unwrap();
        check_clean("standard output", &program.stdout);
        check_clean("standard error", &program.stderr);
        program.status.code()
    };
    let labels = "dicom/labels.csv";
    let mut arguments = vec!["dicom", "dicom", "--labels", labels, "--out", "shards", "--with-hu"];
    arguments.extend(["--select", "all", "--size", "64", "--preview", "previews", "--crop", "body"]);
    assert_eq!(run(&arguments), Some(3));
    assert_eq!(run(&["inspect", "dicom"]), Some(3));
    assert_eq!(run(&["inspect", "dicom", "--json"]), Some(3));
    // The crafted chests look alike across the split, which verify tells.
    assert_eq!(run(&["verify", "shards"]), Some(3));
    // Every file, and every value that the compressed ones hold.
    let mut files = Vec::new();
    all_files(&cohort.shards(), &mut files);
    all_files(&previews, &mut files);
    assert!(files.len() >= 9, "{}", files.len());
    for (path, bytes) in &files {
        check_clean(
            "a file's name",
            path.strip_prefix(&*cohort.folder.path().to_string_lossy()).unwrap().as_bytes(),
        );
        check_clean(path, bytes);
    }
    let set = ShardSet::open(&cohort.shards()).unwrap();
    let cases = set.cases().unwrap();
    assert_eq!(cases.len(), 2);
    check_clean("cases.parquet", format!("{cases:?}").as_bytes());
    check_clean("quarantine.jsonl", format!("{:?}", set.quarantined().unwrap()).as_bytes());
    for case in cases {
        let slices = rows(&cohort.shards(), case.case_id.as_str());
        assert_eq!(slices.len(), 6);
        for slice in slices {
            check_clean(
                "a row",
                format!("{:?}", (&slice.acquisition, &slice.provenance, &slice.case_id)).as_bytes(),
            );
        }
    }
}

/// Manufacturer, model and kernel of a case `name` as they are stored.
fn stored(name: &str, texts: [&str; 3], allowed: Option<&str>) -> [String; 3] {
    let cohort = Cohort::new();
    cohort.label(&format!("case_id,label,split\n{name},normal,train\nother,covid-19,test\n"));
    let mut slices = series(1);
    for slice in &mut slices {
        for (tag, text) in [0x0008_0070, 0x0008_1090, 0x0018_1210].into_iter().zip(texts) {
            slice.text(tag, "LO", text);
        }
        slice.text(0x0010_1060, "PN", "Sharp^Ann");
        let other_id = Elements::from([(0x0010_0020, text("LO", "Force 7"))]);
        slice.elements.insert(0x0010_1002, sequence(slice.syntax, false, &[other_id]));
    }
    cohort.write(name, &slices);
    cohort.write("other", &series(2));
    let list = cohort.folder.path().join("words.txt");
    std::fs::write(&list, allowed.unwrap_or_default()).unwrap();
    cohort.run(Settings { allow_values: allowed.map(|_| list), ..settings() }).0.unwrap();
    let row = rows(&cohort.shards(), name).remove(0).acquisition;
    [row.manufacturer, row.model, row.kernel].map(Option::unwrap)
}

#[test]
fn listed_products_are_stored_in_the_spelling_of_the_list() {
    let texts = ["Siemens", "SOMATOM  Definition AS+", "B31f"];
    assert_eq!(stored("a", texts, None), ["SIEMENS", "SOMATOM Definition AS+", "B31f"]);
    assert_eq!(stored("a", ["TOSHIBA", "Aquilion", "Br38f\\3"], None)[2], "Br38f\\3");
}

#[test]
fn other_texts_become_tokens_unless_the_operator_names_them() {
    let texts = ["Wu", "Acme 7", "B31f Wu"];
    for (shown, kind) in stored("a", texts, None).iter().zip(["manufacturer-", "model-", "kernel-"]) {
        let digits = shown.strip_prefix(kind).unwrap_or_else(|| panic!("{shown} is no {kind} token"));
        assert!(digits.len() == 6 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()), "{shown}");
    }
    assert_eq!(stored("a", texts, Some("Acme 7\nwu\n"))[..2], ["wu", "Acme 7"]);
}

#[test]
fn a_listed_word_that_names_somebody_of_the_case_becomes_a_token() {
    // Mother's birth name, a nested number, and the case's own folder.
    assert!(stored("a", ["SIEMENS", "Revolution CT", "SHARP"], None)[2].starts_with("kernel-"));
    assert!(stored("a", ["SIEMENS", "SOMATOM Force", "B31f"], None)[1].starts_with("model-"));
    assert!(stored("Bone", ["SIEMENS", "Revolution CT", "BONE"], None)[2].starts_with("kernel-"));
    assert_eq!(stored("a", ["SIEMENS", "Revolution CT", "BONE"], None)[2], "BONE");
}

#[test]
fn burned_in_text_sets_the_case_aside_however_it_is_written() {
    for value in ["YES", "yes", " YES "] {
        aside(|series| series[0].text(0x0028_0301, "CS", value), "burned-in");
    }
    assert_eq!(crate::tested::used(|series| series[0].text(0x0028_0301, "CS", "NO")).len(), 6);
}

#[test]
fn paths_are_shown_only_on_request() {
    let cohort = Cohort::new();
    cohort.label("case_id,label,split\nA,normal,train\nZbigniew,covid-19,test\n");
    cohort.write("A", &planted(1));
    cohort.write(PLANTED, &planted(2));
    std::fs::write(cohort.dicom().join("Zbigniew/broken.dcm"), b"broken").unwrap();
    let settings = Settings { keep_paths: true, keep_case_ids: false, ..settings() };
    cohort.run(settings).0.unwrap();
    let quarantined = ShardSet::open(&cohort.shards()).unwrap().quarantined().unwrap();
    assert!(quarantined.iter().any(|line| line.source == "Zbigniew/broken.dcm"), "{quarantined:?}");
}
