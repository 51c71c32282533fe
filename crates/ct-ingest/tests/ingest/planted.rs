//! Planted values: names and numbers of people in five scripts, in every place where a text can
//! enter, none of which may be in any byte that comes out: of files, of the values that
//! compressed columns hold, of what the commands print and log.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use ::zip::CompressionMethod;
use diag_data::case::Split;
use diag_data::shard::ShardSet;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::common::{Cohort, Dicom, Elements, key_file, program, sequence, series, text};
use crate::{nifti, zip};

/// Seed of the values.
const SEED: u64 = 20261201;
/// Fewest values.
const MIN_VALUES: usize = 700;

/// Syllables of names, script by script.
const SCRIPTS: [(&str, &[&str]); 5] = [
    (
        "Latin",
        &["kow", "zbi", "gnie", "mül", "ler", "ngu", "yễn", "øst", "ber", "fáb", "rić", "wyc", "quil", "xav"],
    ),
    ("Chinese", &["王", "芳", "伟", "敏", "静", "丽", "强", "磊", "军", "洋", "勇", "艳", "杰", "娟"]),
    (
        "Japanese",
        &["佐藤", "鈴木", "たか", "ハナ", "さく", "ケン", "よう", "ミキ", "渡辺", "ゆう", "ナオ", "ひろ"],
    ),
    ("Cyrillic", &["ива", "нов", "пет", "ров", "ольг", "щук", "жён", "мих", "дми", "три", "цве", "юрь"]),
    ("Arabic", &["محم", "فاط", "علي", "حسن", "زين", "يوس", "خال", "نور", "سعي", "رحم", "عائ", "قاس"]),
];

/// Texts of a header, by tag and representation.
const TEXTS: [(u32, &str); 62] = [
    (0x0008_0050, "SH"), // AccessionNumber
    (0x0008_0080, "LO"), // InstitutionName
    (0x0008_0081, "ST"),
    (0x0008_0090, "PN"), // ReferringPhysicianName
    (0x0008_0092, "ST"),
    (0x0008_0094, "SH"),
    (0x0008_009C, "PN"), // ConsultingPhysicianName
    (0x0008_1010, "SH"),
    (0x0008_1030, "LO"),
    (0x0008_103E, "LO"), // SeriesDescription
    (0x0008_1040, "LO"),
    (0x0008_1048, "PN"),
    (0x0008_1050, "PN"),
    (0x0008_1060, "PN"),
    (0x0008_1070, "PN"),
    (0x0008_1080, "LO"),
    (0x0008_2111, "ST"),
    (0x0008_0070, "LO"), // Manufacturer
    (0x0008_1090, "LO"), // ManufacturerModelName
    (0x0018_1210, "SH"), // ConvolutionKernel
    (0x0009_0010, "LO"),
    (0x0009_1001, "LO"),
    (0x0009_1002, "UN"),
    (0x0010_0010, "PN"), // PatientName
    (0x0010_0021, "LO"),
    (0x0010_0040, "CS"), // PatientSex
    (0x0010_1000, "LO"),
    (0x0010_1001, "PN"),
    (0x0010_1005, "PN"),
    (0x0010_1010, "AS"), // PatientAge
    (0x0010_1040, "LO"),
    (0x0010_1060, "PN"), // PatientMotherBirthName
    (0x0010_1080, "LO"),
    (0x0010_1090, "LO"),
    (0x0010_2150, "LO"),
    (0x0010_2152, "LO"),
    (0x0010_2154, "SH"), // PatientTelephoneNumbers
    (0x0010_2160, "SH"),
    (0x0010_2180, "SH"),
    (0x0010_21B0, "LT"),
    (0x0010_21F0, "LO"),
    (0x0010_2297, "PN"), // ResponsiblePerson
    (0x0010_2299, "LO"),
    (0x0010_4000, "LT"),
    (0x0018_0015, "CS"),
    (0x0018_1000, "LO"),
    (0x0018_1020, "LO"),
    (0x0018_1030, "LO"),
    (0x0018_1400, "LO"),
    (0x0018_1160, "SH"),
    (0x0018_5100, "CS"),
    (0x0020_0010, "SH"),
    (0x0020_4000, "LT"), // ImageComments
    (0x0032_1032, "PN"),
    (0x0032_1060, "LO"),
    (0x0038_0010, "LO"),
    (0x0038_0300, "LO"),
    (0x0040_0006, "PN"),
    (0x0040_0254, "LO"),
    (0x0040_A123, "PN"),
    (0x0011_0010, "LO"),
    (0x0011_1010, "UT"),
];

/// Draws values, no two of which are equal, and keeps them.
struct Plants {
    rng: ChaCha8Rng,
    values: BTreeSet<String>,
    /// How many there are of each kind.
    kinds: BTreeMap<String, usize>,
}

impl Plants {
    fn new() -> Self {
        Self { rng: ChaCha8Rng::seed_from_u64(SEED), values: BTreeSet::new(), kinds: BTreeMap::new() }
    }

    fn keep(&mut self, kind: &str, draw: impl Fn(&mut ChaCha8Rng) -> String) -> String {
        loop {
            let value = draw(&mut self.rng);
            if self.values.insert(value.clone()) {
                *self.kinds.entry(kind.into()).or_default() += 1;
                return value;
            }
        }
    }

    /// A name in any script, of two parts: neither may come out.
    fn name(&mut self) -> String {
        let (script, syllables) = *SCRIPTS.choose(&mut self.rng).unwrap();
        self.keep(&format!("name, {script}"), |rng| {
            let mut part = |n: usize| -> String { (0..n).map(|_| *syllables.choose(rng).unwrap()).collect() };
            part(5)
        })
    }

    /// A number of ten digits or a date.
    fn number(&mut self) -> String {
        if self.rng.random_bool(0.2) {
            return self.date();
        }
        self.keep("number", |rng| rng.random_range(1_000_000_000u64..10_000_000_000).to_string())
    }

    fn date(&mut self) -> String {
        self.keep("date", |rng| {
            let (year, month, day) =
                (rng.random_range(1920..2000), rng.random_range(1..13), rng.random_range(1..29));
            format!("{year}{month:02}{day:02}")
        })
    }

    fn uid(&mut self) -> String {
        self.keep("UID", |rng| format!("2.25.{}", rng.random_range(10u128.pow(20)..10u128.pow(24))))
    }

    fn any(&mut self) -> String {
        if self.rng.random_bool(0.7) { self.name() } else { self.number() }
    }
}

/// A case whose every text is planted; `number` keeps its pixels apart from those of others.
fn planted(number: usize, plants: &mut Plants) -> Vec<Dicom> {
    let mut slices = series(number);
    slices.truncate(4);
    let (study, series_uid, patient) = (plants.uid(), plants.uid(), plants.any());
    // What is told of a whole case, and compared inside it, is equal in all slices.
    let products: Vec<String> = (0..3).map(|_| plants.any()).collect();
    let birth_date = plants.date();
    for slice in &mut slices {
        for (tag, vr) in TEXTS {
            slice.text(tag, vr, &plants.any());
        }
        for (tag, value) in [0x0008_0070, 0x0008_1090, 0x0018_1210].into_iter().zip(&products) {
            slice.text(tag, "LO", value);
        }
        // In kernels of two values too, and after a word of the list.
        if number.is_multiple_of(2) {
            slice.text(0x0018_1210, "SH", &format!("B31f\\{}", products[2]));
        }
        slice.text(0x0010_0020, "LO", &patient);
        slice.text(0x0020_000D, "UI", &study);
        slice.text(0x0020_000E, "UI", &series_uid);
        slice.text(0x0008_0018, "UI", &plants.uid());
        slice.text(0x0020_0052, "UI", &plants.uid());
        for tag in [0x0008_0020, 0x0008_0021, 0x0008_0022, 0x0008_0023] {
            slice.text(tag, "DA", &plants.date());
        }
        slice.text(0x0010_0030, "DA", &birth_date);
        // Numbers where a scanner writes its own.
        for tag in [0x0018_0060, 0x0018_0050] {
            slice.text(tag, "DS", &plants.number());
        }
        let series_number =
            plants.keep("number", |rng| rng.random_range(1_000_000_000u32..2_000_000_000).to_string());
        slice.text(0x0020_0011, "IS", &series_number);
        let mut nested = |depth: usize| {
            let mut inner = Elements::new();
            for tag in [0x0010_0010, 0x0010_0020, 0x0040_1101, 0x0040_A123] {
                inner.insert(tag, text("LO", &plants.any()));
            }
            for level in 0..depth {
                let wrapped = sequence(slice.syntax, level % 2 == 0, &[inner]);
                inner = Elements::from([(0x0040_0275, wrapped), (0x0010_0020, text("LO", &plants.any()))]);
            }
            inner
        };
        let (flat, deep, private) = (nested(0), nested(3), nested(1));
        slice.elements.insert(0x0010_1002, sequence(slice.syntax, false, &[flat]));
        slice.elements.insert(0x0008_1110, sequence(slice.syntax, true, &[deep]));
        slice.elements.insert(0x0011_1020, sequence(slice.syntax, true, &[private]));
        slice
            .stored(&slice.stored_values().iter().map(|value| value + 5 * number as i16).collect::<Vec<_>>());
    }
    slices
}

/// Finds planted values in bytes: by their first four bytes, without regard to case.
struct Search {
    by_start: HashMap<[u8; 4], Vec<Vec<u8>>>,
}

impl Search {
    fn of(plants: &Plants) -> Self {
        let mut by_start: HashMap<[u8; 4], Vec<Vec<u8>>> = HashMap::new();
        for value in &plants.values {
            for form in [value.clone(), value.to_lowercase(), value.to_uppercase()] {
                let bytes = form.into_bytes().to_ascii_lowercase();
                let start = [bytes[0], bytes[1], bytes[2], bytes[3]];
                by_start.entry(start).or_default().push(bytes);
            }
        }
        Self { by_start }
    }

    /// The first planted value in some bytes. A number counts where it stands alone: hashes
    /// are full of digits.
    fn find(&self, bytes: &[u8]) -> Option<String> {
        let lower = bytes.to_ascii_lowercase();
        let is_word =
            |at: Option<usize>| at.and_then(|at| lower.get(at)).is_some_and(u8::is_ascii_alphanumeric);
        (0..lower.len().saturating_sub(3)).find_map(|at| {
            let values = self.by_start.get(&lower[at..at + 4])?;
            let found = values.iter().find(|value| {
                let is_number = value.iter().all(u8::is_ascii_digit);
                lower[at..].starts_with(value)
                    && !(is_number && (is_word(at.checked_sub(1)) || is_word(Some(at + value.len()))))
            })?;
            Some(String::from_utf8_lossy(found).into_owned())
        })
    }

    #[track_caller]
    fn check(&self, what: &str, bytes: &[u8]) {
        if let Some(value) = self.find(bytes) {
            panic!("`{value}` is in {what}");
        }
    }

    /// Every file below a folder, by name and content; returns how many.
    fn check_folder(&self, folder: &Path) -> usize {
        let mut n_files = 0;
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            self.check("the name of a file", path.file_name().unwrap().to_string_lossy().as_bytes());
            if path.is_dir() {
                n_files += self.check_folder(&path);
            } else {
                self.check(&path.to_string_lossy(), &std::fs::read(&path).unwrap());
                n_files += 1;
            }
        }
        n_files
    }

    /// Every value of the compressed columns; returns the number of rows.
    fn check_shards(&self, shards: &Path) -> usize {
        let set = ShardSet::open(shards).unwrap();
        self.check("cases.parquet", format!("{:?}", set.cases().unwrap()).as_bytes());
        self.check("manifest.json", format!("{:?}", set.manifest()).as_bytes());
        let mut n_rows = 0;
        for slice in Split::ALL.into_iter().flat_map(|split| set.slices(split)) {
            let mut slice = slice.unwrap();
            self.check("pixels", &slice.pixels);
            (slice.pixels, slice.hu) = (Vec::new(), None);
            self.check("a row", format!("{slice:?}").as_bytes());
            n_rows += 1;
        }
        n_rows
    }
}

/// A PNG with a planted comment.
fn picture(level: u8, comment: &str) -> Vec<u8> {
    let image = image::GrayImage::from_fn(32, 32, |x, y| image::Luma([(x * 5 + y * 3) as u8 ^ level]));
    let mut png = std::io::Cursor::new(Vec::new());
    image.write_to(&mut png, image::ImageFormat::Png).unwrap();
    let png = png.into_inner();
    // Signature and IHDR take 33 bytes; a text may follow.
    let body = [b"tEXtComment\0", comment.as_bytes()].concat();
    let mut checksum = flate2::Crc::new();
    checksum.update(&body);
    let length = (body.len() as u32 - 4).to_be_bytes();
    [&png[..33], &length, &body, &checksum.sum().to_be_bytes(), &png[33..]].concat()
}

#[test]
fn no_planted_value_is_in_any_byte_that_comes_out() {
    let mut plants = Plants::new();
    let cohort = Cohort::new();
    let root = cohort.folder.path();
    let write = |below: PathBuf, bytes: &[u8]| {
        let path = root.join(below);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    };

    // Five cases in folders, one in an archive, one broken, one without files, one without a label.
    let names: Vec<String> = (0..8).map(|_| plants.name()).collect();
    let mut labels = String::from("case_id,label,patient_id,split,note\n");
    let mut splits = String::from("case_id,split\n");
    for (i, name) in names.iter().enumerate() {
        let (class, split) = if i % 2 == 0 { ("normal", "train") } else { ("covid-19", "test") };
        labels.push_str(&format!("{name},{class},{},{split},{}\n", plants.any(), plants.any()));
        splits.push_str(&format!("{name},{split}\n"));
    }
    for (i, name) in names.iter().enumerate().take(5) {
        for slice in planted(i + 1, &mut plants) {
            write(["dicom", name, &plants.name()].iter().collect(), &slice.bytes());
        }
    }
    let entries: Vec<(String, Vec<u8>)> = planted(6, &mut plants)
        .iter()
        .map(|slice| (format!("{}/{}", names[5], plants.name()), slice.bytes()))
        .collect();
    write(format!("dicom/{}.zip", plants.name()).into(), &zip::archive(&entries, CompressionMethod::Stored));
    let mut broken = planted(7, &mut plants);
    let frames = plants.number();
    broken[0].text(0x0028_0008, "IS", &frames);
    broken[1].text(0x0028_0030, "DS", &plants.any());
    for slice in &broken {
        write(["dicom", &names[6], &plants.name()].iter().collect(), &slice.bytes());
    }
    // Faults that could repeat what they found.
    let mut odd = planted(8, &mut plants);
    odd[0].syntax = "1.2.840.113619.19670312.7";
    plants.values.insert(odd[0].syntax.into());
    odd[1].text(0x0028_0010, "IS", &plants.number());
    odd[2].text(0x0028_0004, "CS", &plants.name());
    odd[3].text(0x0008_0016, "UI", &plants.uid());
    for slice in &odd {
        write(["dicom", &plants.name(), &plants.name()].iter().collect(), &slice.bytes());
    }
    write(format!("dicom/{}.zip", plants.name()).into(), b"no archive");
    write("dicom/labels.csv".into(), labels.as_bytes());
    write("splits.csv".into(), splits.as_bytes());
    let wrong_label = labels.replacen(",normal,", &format!(",{},", plants.name()), 1);
    let wrong_split = labels.replacen(",train,", &format!(",{},", plants.name()), 1);
    let doubled = format!("{labels}{},normal,,train,\n", names[0]);
    // Without it, whatever stands in the column of labels is a class, and classes are published.
    write("classes.toml".into(), b"names = [\"covid-19\", \"normal\", \"bacterial-pneumonia\"]");
    for (name, table) in [("label", &wrong_label), ("split", &wrong_split), ("double", &doubled)] {
        write(format!("wrong-{name}.csv").into(), table.as_bytes());
    }

    // Volumes: the free fields of their headers.
    let mut nifti_labels = String::from("case_id,label,split\n");
    for (class, split) in [("normal", "train"), ("covid-19", "test")] {
        let name = plants.name();
        let texts = [plants.name(), plants.name(), plants.date(), plants.date()];
        let fields = [(148, 80), (228, 24), (14, 18), (328, 16)];
        let fields: Vec<(usize, usize, &str)> =
            fields.iter().zip(&texts).map(|(&(at, length), text)| (at, length, text.as_str())).collect();
        write(format!("nifti/{name}.nii").into(), &nifti::chest_with(&fields));
        nifti_labels.push_str(&format!("{name},{class},{split}\n"));
    }
    write("nifti/labels.csv".into(), nifti_labels.as_bytes());

    // Pictures: comments, names, list files.
    for (i, class) in ["first", "second"].iter().enumerate() {
        let mut list = String::new();
        for j in 0..4 {
            let name = format!("{}.png", plants.name());
            write(["images", class, &name].iter().collect(), &picture((i * 4 + j) as u8 * 20, &plants.any()));
            list.push_str(&format!("{class}/{name}\n"));
        }
        list.push_str(&format!("{class}/{}.png\n", plants.name()));
        write(format!("lists/{}.txt", ["train", "test"][i]).into(), list.as_bytes());
    }
    write(format!("images/first/{}.gif", plants.name()).into(), b"GIF89a");

    assert!(plants.values.len() >= MIN_VALUES, "{}", plants.values.len());
    assert!(
        SCRIPTS.iter().all(|(script, _)| plants.kinds[&format!("name, {script}")] >= 50),
        "{:?}",
        plants.kinds
    );
    let search = Search::of(&plants);
    // The search finds what is there.
    assert!(search.find(labels.as_bytes()).is_some() && search.find(&broken[0].bytes()).is_some());

    let key = key_file();
    let run = |line: &str, want: i32| {
        let mut command = program(&root.join("config"));
        command.args(line.split(' ')).current_dir(root).env("RUST_LOG", "trace");
        command.env("COVID19_DIAG_KEY_FILE", &key);
        let output = command.output().unwrap();
        search.check(&format!("standard output of {line}"), &output.stdout);
        search.check(&format!("standard error of {line}"), &output.stderr);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(want), "{line}: {told}");
    };
    let dicom = "dicom dicom --labels dicom/labels.csv --select all --size 64";
    run(&format!("{dicom} --with-hu --crop body --preview previews --out shards"), 3);
    run(&format!("{dicom} --layout hf --json --cohort spring --split-file splits.csv --out hf"), 3);
    run(&format!("{dicom} --partition 0/2 --out part-0"), 3);
    run(&format!("{dicom} --partition 1/2 --out part-1"), 0);
    run("merge part-0 part-1 --out merged", 3);
    run("copy shards --out copied", 0);
    for table in ["label", "split", "double"] {
        run(&format!("dicom dicom --labels wrong-{table}.csv --label-set classes.toml --out none"), 1);
    }
    run(&format!("{dicom} --match patient-id --out none"), 1);
    run(
        "nifti nifti --labels nifti/labels.csv --select all --size 64 --preview volumes --out volume-shards",
        3,
    );
    run("images images --split-lists lists --size 32 --out picture-shards", 3);
    for what in ["dicom", "nifti"] {
        run(&format!("inspect {what}"), if what == "dicom" { 3 } else { 0 });
        run(&format!("inspect {what} --json"), if what == "dicom" { 3 } else { 0 });
    }
    // What is asked for comes out, and is found.
    let mut command = program(&root.join("config"));
    let told = command.args(["inspect", "dicom", "--keep-paths"]).current_dir(root).output().unwrap();
    assert!(search.find(&told.stdout).is_some());
    let mut n_files = 0;
    for (shards, n_rows) in [
        ("shards", 24),
        ("hf", 24),
        ("merged", 24),
        ("copied", 24),
        ("volume-shards", 12),
        ("picture-shards", 8),
    ] {
        // Crafted chests look alike across the split, which verify tells.
        run(&format!("verify {shards}"), if shards == "picture-shards" { 0 } else { 3 });
        run(&format!("table {shards}"), 0);
        n_files += search.check_folder(&root.join(shards));
        assert_eq!(search.check_shards(&root.join(shards)), n_rows, "{shards}");
    }
    for folder in ["part-0", "part-1", "previews", "volumes"] {
        n_files += search.check_folder(&root.join(folder));
    }
    assert!(n_files >= 60, "{n_files}");
    assert!(!root.join("none").exists() && !root.join("config").exists());
    println!("{} planted values of {:?}: none in {n_files} files", plants.values.len(), plants.kinds);
}
