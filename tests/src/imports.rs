//! Which source file of a crate takes names from which other: enough of Rust's `use` to
//! find circles, read as text.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Files of one crate root (`lib.rs` or `main.rs`) and what each imports of the others.
#[derive(Debug, Default)]
pub struct Imports {
    edges: BTreeMap<PathBuf, BTreeSet<PathBuf>>,
}

/// A module: its path in the crate, its file, its source without tests.
struct Module {
    path: Vec<String>,
    file: PathBuf,
    /// Imports: segments, and the name by which a `pub use` hands the item on.
    uses: Vec<Use>,
}

struct Use {
    segments: Vec<String>,
    public_name: Option<String>,
}

impl Imports {
    /// Reads the modules below a crate root.
    pub fn of(root: &Path) -> Self {
        let mut modules = Vec::new();
        read_module(root, Vec::new(), &mut modules);
        let mut edges: BTreeMap<PathBuf, BTreeSet<PathBuf>> = BTreeMap::new();
        for module in &modules {
            let targets = module.uses.iter().filter_map(|used| {
                let segments = absolute(&module.path, &used.segments, &modules)?;
                defining_file(&segments, &modules, 8)
            });
            let targets: BTreeSet<PathBuf> = targets.filter(|file| *file != module.file).collect();
            edges.entry(module.file.clone()).or_default().extend(targets);
        }
        Self { edges }
    }

    /// Sets of two files or more that all reach each other, in order of their names.
    pub fn circles(&self) -> Vec<BTreeSet<PathBuf>> {
        let reached: BTreeMap<&PathBuf, BTreeSet<&PathBuf>> =
            self.edges.keys().map(|file| (file, self.reached_from(file))).collect();
        let mut circles: Vec<BTreeSet<PathBuf>> = Vec::new();
        for file in self.edges.keys() {
            let is_mutual = |other: &&&PathBuf| reached.get(**other).is_some_and(|back| back.contains(file));
            let circle: BTreeSet<PathBuf> =
                reached[file].iter().filter(is_mutual).map(|file| (*file).clone()).collect();
            if circle.len() > 1 && !circles.contains(&circle) {
                circles.push(circle);
            }
        }
        circles
    }

    fn reached_from(&self, start: &PathBuf) -> BTreeSet<&PathBuf> {
        let mut reached = BTreeSet::new();
        let mut waiting: Vec<&PathBuf> = self.edges[start].iter().collect();
        while let Some(file) = waiting.pop() {
            if reached.insert(file) {
                waiting.extend(self.edges.get(file).into_iter().flatten());
            }
        }
        reached
    }
}

fn read_module(file: &Path, path: Vec<String>, modules: &mut Vec<Module>) {
    let Ok(text) = std::fs::read_to_string(file) else { return };
    let text = without_comments_and_tests(&text);
    let is_root = path.is_empty();
    let folder = match (file.file_stem().and_then(|stem| stem.to_str()), file.parent()) {
        (_, Some(parent)) if is_root => parent.to_path_buf(),
        (Some("mod"), Some(parent)) => parent.to_path_buf(),
        (Some(stem), Some(parent)) => parent.join(stem),
        _ => return,
    };
    let children: Vec<String> = statements(&text, "mod ").map(|name| name.trim().to_owned()).collect();
    modules.push(Module { path: path.clone(), file: file.into(), uses: uses_of(&text) });
    for child in children {
        let candidates = [folder.join(format!("{child}.rs")), folder.join(&child).join("mod.rs")];
        if let Some(file) = candidates.iter().find(|file| file.exists()) {
            read_module(file, [&path[..], std::slice::from_ref(&child)].concat(), modules);
        }
    }
}

fn without_comments_and_tests(text: &str) -> String {
    let production = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or(text);
    let code = production.lines().filter(|line| !line.trim_start().starts_with("//"));
    code.map(|line| line.split(" // ").next().unwrap_or(line)).collect::<Vec<_>>().join("\n")
}

/// What follows a keyword at the start of a line (after its visibility), up to the semicolon.
fn statements<'a>(text: &'a str, keyword: &'a str) -> impl Iterator<Item = &'a str> {
    text.split(';').filter_map(move |statement| {
        let line = statement.rsplit('\n').find(|line| line.trim_start().contains(keyword))?;
        let start = statement.find(line)?;
        let statement = statement[start..].trim();
        let statement = match statement.strip_prefix("pub") {
            Some(rest) => {
                rest.trim_start_matches(|c: char| c == '(' || c == ')' || c.is_alphanumeric()).trim()
            }
            None => statement,
        };
        statement.strip_prefix(keyword)
    })
}

fn uses_of(text: &str) -> Vec<Use> {
    let mut uses = Vec::new();
    for statement in text.split(';') {
        let Some(start) = statement.find("use ").filter(|&start| {
            let before = statement[..start].rsplit('\n').next().unwrap_or_default().trim();
            before.is_empty() || before.starts_with("pub")
        }) else {
            continue;
        };
        let is_public = statement[..start].rsplit('\n').next().unwrap_or_default().trim().starts_with("pub");
        for segments in expanded(&statement[start + 4..]) {
            let name = segments.last().cloned();
            uses.push(Use { segments, public_name: name.filter(|_| is_public) });
        }
    }
    // Names with their path, in the middle of code.
    for keyword in ["crate::", "super::"] {
        for (at, _) in text.match_indices(keyword) {
            let end = text[at..].find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'));
            let path = text[at..at + end.unwrap_or(text.len() - at)].trim_end_matches(':');
            if !path.contains("::") {
                // The start of a `use` with braces, read above.
                continue;
            }
            uses.push(Use { segments: path.split("::").map(str::to_owned).collect(), public_name: None });
        }
    }
    uses
}

/// `a::{b, c::d as e}` as `a::b` and `a::c::d`.
fn expanded(tree: &str) -> Vec<Vec<String>> {
    let tree = tree.trim();
    let Some((prefix, rest)) = tree.split_once('{') else {
        let path = tree.split(" as ").next().unwrap_or(tree);
        return vec![path.split("::").map(|segment| segment.trim().to_owned()).collect()];
    };
    let prefix: Vec<String> =
        prefix.split("::").map(|segment| segment.trim().to_owned()).filter(|s| !s.is_empty()).collect();
    let inner = rest.rsplit_once('}').map_or(rest, |(inner, _)| inner);
    let (mut parts, mut depth, mut start) = (Vec::new(), 0, 0);
    for (i, c) in inner.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&inner[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    parts.push(&inner[start..]);
    let parts = parts.into_iter().filter(|part| !part.trim().is_empty());
    parts.flat_map(expanded).map(|path| [prefix.clone(), path].concat()).collect()
}

/// Segments from the crate's root; `None` for another crate.
fn absolute(at: &[String], segments: &[String], modules: &[Module]) -> Option<Vec<String>> {
    let mut from = at.to_vec();
    let mut rest = segments;
    match rest.first().map(String::as_str)? {
        "crate" => {
            from.clear();
            rest = &rest[1..];
        }
        "self" => rest = &rest[1..],
        "super" => {
            while rest.first().is_some_and(|segment| segment == "super") {
                from.pop();
                rest = &rest[1..];
            }
        }
        first => {
            let child = [&from[..], &[first.to_owned()]].concat();
            modules.iter().find(|module| module.path == child)?;
        }
    }
    Some([&from[..], rest].concat())
}

/// The file that defines an item, through re-exports.
fn defining_file(segments: &[String], modules: &[Module], n_steps: usize) -> Option<PathBuf> {
    let longest = (0..=segments.len()).rev().find_map(|n| {
        let module = modules.iter().find(|module| module.path == segments[..n])?;
        Some((module, &segments[n..]))
    });
    let (module, rest) = longest?;
    let (Some(item), true) = (rest.first(), n_steps > 0) else { return Some(module.file.clone()) };
    let handed_on = module.uses.iter().find(|used| used.public_name.as_ref() == Some(item));
    let further = handed_on.and_then(|used| absolute(&module.path, &used.segments, modules));
    match further {
        Some(further) => defining_file(&further, modules, n_steps - 1),
        None => Some(module.file.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(files: &[(&str, &str)], want: &[&[&str]]) {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let found: Vec<Vec<String>> = Imports::of(&folder.path().join("lib.rs"))
            .circles()
            .iter()
            .map(|circle| {
                let name =
                    |file: &PathBuf| file.strip_prefix(folder.path()).unwrap().to_string_lossy().into_owned();
                circle.iter().map(name).collect()
            })
            .collect();
        assert_eq!(found, want);
    }

    #[test]
    fn downwards_is_no_circle_even_through_a_re_export() {
        check(
            &[
                ("lib.rs", "mod error;\npub mod a;\nmod b;\npub use error::Error;\npub use b::{B, C};"),
                ("error.rs", "pub struct Error;"),
                ("a.rs", "use crate::Error;\nuse crate::B;\nfn f() -> B {}"),
                ("b.rs", "use crate::Error;\npub struct B;\npub struct C;"),
            ],
            &[],
        );
    }

    #[test]
    fn a_circle_is_found_by_use_by_path_and_by_parent() {
        check(
            &[
                ("lib.rs", "mod a;\nmod b;"),
                ("a.rs", "use crate::{\n    b::{self, B},\n};\npub struct A;"),
                ("b.rs", "pub struct B;\nfn f() { crate::a::A::new(); }"),
            ],
            &[&["a.rs", "b.rs"]],
        );
        check(
            &[
                ("lib.rs", "mod a;"),
                ("a.rs", "mod c;\nuse c::C;\npub struct A;"),
                ("a/c.rs", "use super::A;\npub struct C;"),
            ],
            &[&["a/c.rs", "a.rs"]],
        );
    }

    #[test]
    fn tests_and_comments_do_not_count() {
        check(
            &[
                ("lib.rs", "mod a;\nmod b;"),
                ("a.rs", "use crate::b::B;\npub struct A;"),
                (
                    "b.rs",
                    "//! See [`crate::a::A`].\npub struct B;\n#[cfg(test)]\nmod tests {\n    use crate::a::A;\n}",
                ),
            ],
            &[],
        );
    }
}
