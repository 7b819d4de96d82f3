//! `docs/behaviours.md`, `docs/api-behaviours.md`, `docs/node-behaviours.md` and `docs/store-behaviours.md` name a test for each behaviour: every name must be a test in the tree.

use std::path::{Path, PathBuf};

const TREES: [&str; 14] = [
    "api",
    "control-plane/apiserver",
    "control-plane/controllers",
    "control-plane/registry",
    "control-plane/scheduler",
    "cli",
    "control-plane/serverless",
    "control-plane/store",
    "node",
    "runtime",
    "tests/e2e",
    "tests/faults",
    "tests/history",
    "tests/simulation",
];

/// The names of a file's tests.
fn tests_of(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut marked = false;
    for line in text.lines().map(str::trim) {
        if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            marked = true;
        } else if let Some(name) = line.strip_prefix("target!(") {
            // A test of fuzzing.
            found.extend(name.split(',').next());
        } else if let Some((_, rest)) = line.split_once("fn ").filter(|_| marked) {
            found.extend(rest.split('(').next());
            marked = false;
        }
    }
    found
}

fn files(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, into);
        } else if path.extension().is_some_and(|e| e == "rs") {
            into.push(path);
        }
    }
}

/// Whether the parts of a path are found in a file's path, in order.
fn is_in(parts: &[&str], file: &Path) -> bool {
    let mut names = file.iter().map(|part| part.to_str().unwrap().trim_end_matches(".rs"));
    parts.iter().all(|part| names.any(|name| name == *part))
}

/// The last cell of a table's row, if it names tests.
fn named(row: &str) -> Option<Vec<&str>> {
    let cell = row.trim().strip_prefix('|')?.strip_suffix('|')?.rsplit('|').next()?.trim();
    match cell {
        "test" | "---" | "none yet" => None,
        cell => Some(cell.split('`').skip(1).step_by(2).collect()),
    }
}

/// The rows of a list whose names are no tests, and how many rows name one.
fn wrong(list: &str) -> (usize, Vec<String>) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut all = Vec::new();
    TREES.iter().for_each(|tree| files(&root.join(tree), &mut all));
    let known: Vec<(PathBuf, String)> =
        all.into_iter().map(|path| (path.clone(), std::fs::read_to_string(path).unwrap())).collect();
    let text = std::fs::read_to_string(root.join("docs").join(list)).unwrap();
    let (mut rows, mut wrong) = (0, Vec::new());
    for row in text.lines().filter(|line| line.starts_with('|')) {
        let Some(names) = named(row) else { continue };
        rows += 1;
        let exists = |name: &str| {
            let parts: Vec<&str> = name.split("::").collect();
            let (function, path) = parts.split_last().unwrap();
            known.iter().any(|(file, text)| is_in(path, file) && tests_of(text).contains(function))
        };
        if names.is_empty() || !names.iter().all(|name| exists(name)) {
            wrong.push(row.to_owned());
        }
    }
    (rows, wrong)
}

#[test]
fn each_behaviour_names_a_test_that_is_there() {
    for list in ["behaviours.md", "api-behaviours.md", "node-behaviours.md", "store-behaviours.md"] {
        let (rows, wrong) = wrong(list);
        assert!(rows > 50, "only {rows} rows of {list} were read");
        assert!(wrong.is_empty(), "rows of {list} whose test is not in the tree:\n{}", wrong.join("\n"));
    }
}
