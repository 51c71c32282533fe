//! The README and the house agree.

use std::collections::BTreeSet;
use std::path::PathBuf;

use covid19_diag_tests::imports::Imports;
use covid19_diag_tests::workspace;

/// Circles of files that are there still: the folder or file that they lie in, and why.
const CIRCLES: [(&str, &str); 6] = [
    (
        "crates/candle-train-ops/src",
        "each operation chooses between CPU and CUDA; floors with one dispatch are planned",
    ),
    (
        "crates/ct-phantom/src",
        "lesions, lobes and the parenchyma share the geometry of the lung; it moves below them",
    ),
    ("crates/ct-read/src/dicom/jpegls", "the decoder's tables lie beside its entry; they move below it"),
    ("crates/diag-data/src", "errors name stores, stores read chosen rows of tables; both move below them"),
    (
        "crates/diag-model/src",
        "backbones, heads and losses take their settings from the file that builds them",
    ),
    ("crates/diag-report/src", "the options lie in the crate's root"),
];

#[test]
fn files_import_downwards() {
    let root = workspace();
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(root.join("crates")).unwrap().chain(std::fs::read_dir(&root).unwrap()) {
        for name in ["lib.rs", "main.rs"] {
            let file = entry.as_ref().unwrap().path().join("src").join(name);
            if file.exists() {
                found.extend(Imports::of(&file).circles());
            }
        }
    }
    let is_known = |circle: &BTreeSet<PathBuf>| {
        CIRCLES.iter().any(|(place, _)| circle.iter().all(|file| file.starts_with(root.join(place))))
    };
    let new: Vec<_> = found.iter().filter(|circle| !is_known(circle)).collect();
    assert!(new.is_empty(), "files that import each other in a circle: {new:#?}");
    for (place, why) in CIRCLES {
        let is_there =
            |circle: &BTreeSet<PathBuf>| circle.iter().all(|file| file.starts_with(root.join(place)));
        assert!(found.iter().any(is_there), "{place} has no circle any more ({why}): take it off the list");
    }
}

#[test]
fn the_readme_s_tree_names_every_room_and_no_other() {
    let root = workspace();
    let readme = std::fs::read_to_string(root.join("README.md")).unwrap();
    let tree = readme.split("```").find(|block| block.contains("crates/")).unwrap();
    let crates = tree.split("crates/").nth(1).unwrap();
    let named: Vec<&str> = crates
        .lines()
        .skip(1)
        .take_while(|line| line.starts_with("  "))
        .filter_map(|line| line.strip_prefix("  ")?.split('/').next().filter(|name| !name.starts_with(' ')))
        .collect();
    let mut present: Vec<String> = std::fs::read_dir(root.join("crates"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    present.sort();
    let mut sorted = named.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, present);
}

#[test]
fn every_test_that_the_table_of_input_names_exists() {
    let root = workspace();
    let mut tests = BTreeSet::new();
    let mut folders = vec![root.join("tests"), root.join("crates")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let module = path.file_stem().unwrap().to_string_lossy().into_owned();
                let names = text.split("#[test]").skip(1).filter_map(|rest| {
                    let name = rest.split_once("fn ")?.1;
                    Some(name.split_once('(')?.0.to_string())
                });
                tests.extend(names.map(|name| format!("{module}::{name}")));
            }
        }
    }
    let text = std::fs::read_to_string(root.join("docs/input.md")).unwrap();
    let rows = text.lines().skip_while(|line| !line.starts_with("| kind |")).skip(2);
    let rows: Vec<&str> = rows.take_while(|line| line.starts_with('|')).collect();
    assert!(rows.len() > 60, "{} rows", rows.len());
    for row in rows {
        let named = row.trim_end_matches(['|', ' ']).rsplit('|').next().unwrap();
        let named: Vec<&str> = named.split('`').skip(1).step_by(2).collect();
        assert!(!named.is_empty(), "no test: {row}");
        let missing: Vec<&&str> = named.iter().filter(|name| !tests.contains(**name)).collect();
        assert!(missing.is_empty(), "{missing:?} of {row}");
    }
    // Those in the sentences before the table, too.
    let before = text.split("| kind |").next().unwrap();
    for name in before.split('`').skip(1).step_by(2).filter(|name| name.contains("::")) {
        assert!(tests.contains(name), "{name}");
    }
}
