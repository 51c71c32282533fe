//! The README and the house agree.

use covid19_diag_tests::workspace;

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
