//! `cargo xtask confirm`: the study of `docs/protocol-cxr.md` on persons that took no part in it,
//! with its frozen recipe, methods and analysis. `cargo xtask study-shards` makes the shards of the
//! study itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, anyhow};
use sha2::{Digest, Sha256};

use crate::{Failure, process, workspace_root};

/// Classes in the order of the protocol's ratios.
const CLASSES: [&str; 3] = ["normal", "bacterial", "viral"];
/// The protocol's ratios of training cases.
const RATIOS: [[usize; 3]; 3] = [[1, 1, 1], [1, 5, 1], [1, 20, 1]];
/// Training cases of the study.
const STUDY_CASES: usize = 330;
/// Fewest cases of the rarest class in training with which a run says anything.
const FEWEST_OF_A_CLASS: usize = 3;
/// What the method of question 1 is held against.
const OTHERS: [&str; 6] = [
    "cross-entropy",
    "cross-entropy-corrected",
    "balanced-softmax",
    "class-balanced",
    "symmetric-cross-entropy",
    "generalised-cross-entropy",
];
/// Exit code of an ingest that has set something aside.
const SET_ASIDE: i32 = 3;

#[derive(clap::Args)]
pub struct Args {
    /// Folder with labels.csv (case_id,label,patient_id) and a folder of images a case
    #[arg(long)]
    data: PathBuf,
    /// Folder for everything that is made; the same command goes on where it was stopped
    #[arg(long, default_value = "runs/confirm")]
    out: PathBuf,
    /// Try the command on persons of the study: what it prints confirms nothing
    #[arg(long)]
    rehearsal: bool,
    /// Seeds of a rehearsal, counted from 1
    #[arg(long, requires = "rehearsal", default_value_t = 10, value_parser = clap::value_parser!(u32).range(2..))]
    seeds: u32,
}

#[derive(clap::Args)]
pub struct ShardArgs {
    /// Folder of the study's images, with labels.csv
    #[arg(long)]
    data: PathBuf,
    /// New folder for the shards
    #[arg(long, default_value = "runs/cxr-study/shards-64")]
    out: PathBuf,
    /// Side of the stored image in pixels
    #[arg(long, default_value = "64")]
    size: String,
}

/// How the persons are divided: share below which they are training, then validation.
#[derive(Clone, Copy)]
struct Division {
    training: f64,
    validation: f64,
}

const STUDY: Division = Division { training: 0.35, validation: 0.5 };
/// Nothing is chosen, so that no validation split is needed.
const CONFIRMATION: Division = Division { training: 0.5, validation: 0.5 };

pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    process::forward_interrupts()?;
    let cases = read_cases(&args.data)?;
    let n_known = known_persons(&cases)?;
    if n_known > 0 && !args.rehearsal {
        let error = anyhow!("{n_known} persons of {} took part in the study", args.data.display());
        return Err(Failure::new(error, "leave their cases out of labels.csv, or pass --rehearsal"));
    }
    let n_cases = training_cases(&cases).ok_or_else(|| {
        let error = anyhow!("{} has too few training cases for a ratio of 1:20:1", args.data.display());
        Failure::new(error, "bring a folder with more persons")
    })?;
    let bin = build()?;
    std::fs::create_dir_all(&args.out)
        .with_context(|| format!("cannot create {}", args.out.display()))
        .map_err(|err| Failure::new(err, "choose another --out"))?;
    let out = std::path::absolute(&args.out).map_err(|err| Failure::new(err, "choose another --out"))?;
    let shards = out.join("shards");
    if !shards.exists() {
        ingest(&bin, &args.data, &cases, CONFIRMATION, "64", &out, &shards)?;
    }
    let frozen = workspace_root().join("data");
    let recipe = read(&frozen.join("recipes/cxr.toml"))?;
    write(&out.join("recipe.toml"), &replaced(&recipe, "n_cases", &n_cases.to_string()))?;
    let grid = read(&frozen.join("sweeps/cxr.toml"))?;
    let seeds: Vec<String> = (1..=args.seeds).map(|seed| seed.to_string()).collect();
    let grid = [
        ("recipe", "\"recipe.toml\"".to_owned()),
        ("shards", "\"shards\"".to_owned()),
        ("processes", std::thread::available_parallelism().map_or(1, usize::from).to_string()),
        ("seeds", format!("[{}]", seeds.join(", "))),
    ]
    .iter()
    .fold(grid, |text, (key, value)| replaced(&text, key, value));
    write(&out.join("sweep.toml"), &grid)?;
    let mut sweep = Command::new(bin.join("diag-train"));
    sweep.arg("sweep").arg(out.join("sweep.toml")).arg("--out").arg(out.join("sweep"));
    // Its summary tests over seeds alone; the table of the protocol is made below.
    demand(sweep.stdout(std::process::Stdio::null()), &[])?;
    let document = out.join("confirmation.md");
    write(&document, &page(&cases, n_cases, args, &own_method(&grid)))?;
    let mut tables = Command::new(bin.join("diag-train"));
    demand(tables.arg("tables").arg(&document).stdout(std::process::Stdio::null()), &[])?;
    print!("{}", read(&document)?);
    Ok(ExitCode::SUCCESS)
}

pub fn shards(args: &ShardArgs) -> Result<ExitCode, Failure> {
    process::forward_interrupts()?;
    let left_out = read(&workspace_root().join("data/sweeps/cxr-left-out.txt"))?;
    let left_out: BTreeSet<&str> = left_out.lines().collect();
    let mut cases = read_cases(&args.data)?;
    cases.retain(|case| !left_out.contains(case.id.as_str()));
    let folder = args.out.parent().unwrap_or(Path::new("")).to_path_buf();
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("cannot create {}", folder.display()))
        .map_err(|err| Failure::new(err, "choose another --out"))?;
    ingest(&build()?, &args.data, &cases, STUDY, &args.size, &folder, &args.out)?;
    println!("{}", args.out.display());
    Ok(ExitCode::SUCCESS)
}

/// One case of a label table.
struct Case {
    /// Name of its folder.
    id: String,
    class: usize,
    person: String,
}

fn read_cases(data: &Path) -> Result<Vec<Case>, Failure> {
    let path = data.join("labels.csv");
    let bad = |why: String| {
        let error = anyhow!("{why}: {}", path.display());
        Failure::new(error, "bring case_id,label,patient_id with the labels normal, bacterial and viral")
    };
    let text = read(&path)?;
    let mut lines = text.lines();
    if lines.next().map(str::trim) != Some("case_id,label,patient_id") {
        return Err(bad("the header is not case_id,label,patient_id".into()));
    }
    let (mut cases, mut ids) = (Vec::new(), BTreeSet::new());
    for (i, line) in lines.enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let cells: Vec<&str> = line.trim().split(',').collect();
        let [path, label, person] = cells.as_slice() else {
            return Err(bad(format!("line {} has not three cells", i + 2)));
        };
        let class = CLASSES.iter().position(|class| class == label);
        let class = class.ok_or_else(|| bad(format!("line {} has an unknown label", i + 2)))?;
        if person.is_empty() || line.contains('"') {
            return Err(bad(format!("line {} has no plain patient_id", i + 2)));
        }
        let id = path.rsplit('/').next().unwrap_or(path).to_owned();
        if !ids.insert(id.clone()) {
            return Err(bad(format!("line {} names a folder that another line names", i + 2)));
        }
        cases.push(Case { id, class, person: (*person).to_owned() });
    }
    if cases.is_empty() { Err(bad("there are no cases".into())) } else { Ok(cases) }
}

/// First 32 bits of SHA-256 of a salt and a person.
fn hash(person: &str) -> u32 {
    let digest = Sha256::digest(format!("cxr {person}"));
    u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]])
}

fn split(person: &str, division: Division) -> &'static str {
    let share = f64::from(hash(person)) / 4_294_967_296.0;
    if share < division.training {
        "train"
    } else if share < division.validation {
        "validation"
    } else {
        "test"
    }
}

/// Number of persons that the study knows, by the hashes that are stored with it.
fn known_persons(cases: &[Case]) -> Result<usize, Failure> {
    let known = read(&workspace_root().join("data/sweeps/cxr-persons.txt"))?;
    let known: BTreeSet<&str> = known.lines().collect();
    let persons: BTreeSet<&str> = cases.iter().map(|case| case.person.as_str()).collect();
    Ok(persons.into_iter().filter(|person| known.contains(format!("{:08x}", hash(person)).as_str())).count())
}

/// The most training cases that every ratio allows, at most those of the study; `None` where the
/// rarest class would have hardly any.
fn training_cases(cases: &[Case]) -> Option<usize> {
    let mut pool = [0; 3];
    for case in cases.iter().filter(|case| split(&case.person, CONFIRMATION) == "train") {
        pool[case.class] += 1;
    }
    let most = RATIOS.iter().flat_map(|ratio| {
        let parts: usize = ratio.iter().sum();
        (0..3).map(move |class| pool[class] * parts / ratio[class])
    });
    let n_cases = most.min()?.min(STUDY_CASES);
    (n_cases / 22 >= FEWEST_OF_A_CLASS).then_some(n_cases)
}

/// Writes the label table with its split into `folder`, and the shards.
fn ingest(
    bin: &Path,
    data: &Path,
    cases: &[Case],
    division: Division,
    size: &str,
    folder: &Path,
    shards: &Path,
) -> Result<(), Failure> {
    let mut table = String::from("case_id,label,patient_id,split\n");
    for Case { id, class, person } in cases {
        // Writing to a string cannot fail.
        let _ = writeln!(table, "{id},{},{person},{}", CLASSES[*class], split(person, division));
    }
    let path = folder.join("labels.csv");
    write(&path, &table)?;
    let mut command = Command::new(bin.join("ct-ingest"));
    command.arg("images").arg(data).arg("--labels").arg(path);
    command.arg("--label-set").arg(workspace_root().join("data/sweeps/cxr-labels.toml"));
    command.args(["--size", size, "--keep-case-ids", "--public-key-anyone-can-test-names"]);
    demand(command.arg("--out").arg(shards).stdout(std::io::stderr()), &[SET_ASIDE])
}

/// The method that question 1 is about: `saal`, or the variant that took its row.
fn own_method(grid: &str) -> String {
    let value = grid.lines().find_map(|line| line.strip_prefix("reference = "));
    value.map_or("saal", |value| value.trim().trim_matches('"')).to_owned()
}

fn page(cases: &[Case], n_cases: usize, args: &Args, own: &str) -> String {
    let mut n: BTreeMap<&str, usize> = BTreeMap::new();
    for case in cases {
        *n.entry(split(&case.person, CONFIRMATION)).or_default() += 1;
    }
    let persons: BTreeSet<&str> = cases.iter().map(|case| case.person.as_str()).collect();
    let count = |split: &str| n.get(split).copied().unwrap_or_default();
    let head = if args.rehearsal {
        "# Rehearsal on persons of the study: this confirms nothing\n\n"
    } else {
        "# Confirmation\n\n"
    };
    format!(
        "{head}{} persons; training pool of {} cases, {n_cases} of them in each run (the study: \
         {STUDY_CASES}); {} test cases. Balanced accuracy by case, {own} less each other method, \
         {} seeds; simultaneous 95 % intervals over seeds and patients (docs/protocol-cxr.md); `*`: zero \
         lies outside.\n\n<!-- table: contrasts sweep test {own} {} {} -->\n<!-- end of table -->\n",
        persons.len(),
        count("train"),
        count("test"),
        args.seeds,
        args.seeds,
        OTHERS.join(" "),
    )
}

/// A TOML text with another value of a key that stands at the beginning of a line.
fn replaced(text: &str, key: &str, value: &str) -> String {
    let line = |line: &str| match line.strip_prefix(key).is_some_and(|rest| rest.starts_with(" = ")) {
        true => format!("{key} = {value}\n"),
        false => format!("{line}\n"),
    };
    text.lines().map(line).collect()
}

fn build() -> Result<PathBuf, Failure> {
    process::cargo(&["build", "--release", "--locked", "--workspace", "--bins"])?;
    let own = std::env::current_exe().map_err(|err| Failure::new(err, "run through cargo xtask"))?;
    Ok(own.parent().unwrap_or(Path::new("")).to_path_buf())
}

fn demand(command: &mut Command, allowed: &[i32]) -> Result<(), Failure> {
    eprintln!("{}", process::shown(command));
    let status = process::run(command)?;
    if status.success() || status.code().is_some_and(|code| allowed.contains(&code)) {
        return Ok(());
    }
    let error = anyhow!("{} failed ({status})", process::shown(command));
    Err(Failure::new(error, "see its message above; the same command goes on"))
}

fn read(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path)
        .with_context(|| format!("cannot read {}", path.display()))
        .map_err(|err| Failure::new(err, "check the path and its permissions"))
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    std::fs::write(path, text)
        .with_context(|| format!("cannot write {}", path.display()))
        .map_err(|err| Failure::new(err, "choose another --out"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn persons_are_divided_as_the_protocol_says() {
        // By sha256sum: `printf 'cxr PERSON' | sha256sum`, the first 8 digits.
        for (person, want, division) in [
            ("IM-0001", "3bede164", "train"),
            ("IM-0003", "ef3f3c69", "test"),
            ("IM-0016", "6589896b", "validation"),
        ] {
            assert_eq!((format!("{:08x}", hash(person)).as_str(), split(person, STUDY)), (want, division));
        }
        let text = read(&workspace_root().join("data/sweeps/cxr-persons.txt"));
        let text = text.unwrap_or_else(|failure| panic!("{}", failure.error));
        assert_eq!(text.lines().count(), 2459);
    }

    #[test]
    fn the_frozen_files_are_those_of_the_protocol() {
        let data = workspace_root().join("data");
        let text = |path: &str| read(&data.join(path)).unwrap_or_else(|failure| panic!("{}", failure.error));
        let grid = text("sweeps/cxr.toml");
        for name in OTHERS.iter().chain([&"saal", &"saal-wide"]) {
            assert!(grid.contains(&format!("name = \"{name}\"\n")), "{name}");
        }
        assert_eq!(grid.matches("[[variants]]").count(), OTHERS.len() + 2);
        assert_eq!(own_method(&grid), "saal");
        for ratio in RATIOS {
            assert!(grid.contains(&format!("class_ratio = {ratio:?}")), "{ratio:?}");
        }
        let recipe = text("recipes/cxr.toml");
        assert!(recipe.contains(&format!("\nn_cases = {STUDY_CASES}\n")));
        let changed = replaced(&recipe, "n_cases", "158");
        assert!(changed.contains("\nn_cases = 158\n") && !changed.contains("n_cases = 330"));
    }

    #[test]
    fn the_number_of_training_cases_is_what_the_rarest_setting_allows() {
        let cases = |n: usize| -> Vec<Case> {
            (0..n).map(|i| Case { id: i.to_string(), class: i % 3, person: format!("person{i}") }).collect()
        };
        let in_pool = |cases: &[Case], class: usize| {
            let of_class = cases.iter().filter(|case| case.class == class);
            of_class.filter(|case| split(&case.person, CONFIRMATION) == "train").count()
        };
        let some = cases(600);
        // 1:20:1 needs 20 of 22 from the second class; 1:1:1 a third from each.
        let want = (in_pool(&some, 1) * 22 / 20).min(3 * in_pool(&some, 0)).min(3 * in_pool(&some, 2));
        assert_eq!(training_cases(&some), Some(want));
        assert_eq!(training_cases(&cases(6000)), Some(STUDY_CASES));
        assert_eq!(training_cases(&cases(60)), None);
    }
}
