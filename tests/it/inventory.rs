//! What is written is run: a file of tests that no `mod` names compiles nowhere, and nobody misses it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::lab::succeed;

/// The tests of this binary, as `module::name`.
fn listed() -> BTreeSet<String> {
    let out = succeed(Command::new(std::env::current_exe().unwrap()).args(["--list", "--format", "terse"]));
    out.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect()
}

fn rust_files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let (directories, files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    let below = directories.iter().flat_map(|path| rust_files(path));
    files.into_iter().filter(|path| path.extension().is_some_and(|end| end == "rs")).chain(below).collect()
}

/// `dhcp/clients.rs` → `dhcp::clients`.
fn module(root: &Path, file: &Path) -> String {
    let path = file.strip_prefix(root).unwrap().with_extension("");
    let parts: Vec<_> =
        path.iter().map(|part| part.to_str().unwrap()).filter(|part| *part != "mod").collect();
    parts.join("::")
}

#[test]
fn every_file_of_tests_is_compiled() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it");
    let listed = listed();
    let with_tests: Vec<_> = rust_files(&root)
        .into_iter()
        .filter(|file| fs::read_to_string(file).unwrap().lines().any(|line| line.trim() == "#[test]"))
        .collect();
    assert!(with_tests.len() > 40, "{with_tests:?}");
    for file in with_tests {
        let module = format!("{}::", module(&root, &file));
        assert!(listed.iter().any(|test| test.starts_with(&module)), "{} is in no mod line", file.display());
    }
}

/// The tables of docs that compare us with others name a test for each yes: `module::name`, or a link to its file with its name.
#[test]
fn every_test_that_a_comparison_names_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let listed = listed();
    let dhcp = fs::read_to_string(root.join("docs/dhcp.md")).unwrap();
    let named: Vec<_> = dhcp
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|code| code.contains("::") && !code.contains(' '))
        .collect();
    assert!(named.len() >= 20, "{named:?}");
    for test in named {
        assert!(
            listed.contains(test) || is_unit_test(root, test),
            "docs/dhcp.md names {test}, which is no test"
        );
    }

    let dns = fs::read_to_string(root.join("docs/dns.md")).unwrap();
    let links: Vec<_> =
        dns.match_indices("](../").map(|(at, _)| dns[at..].split(['(', ')']).nth(1).unwrap()).collect();
    let tests: Vec<_> =
        links.iter().filter_map(|link| link.trim_end_matches('"').split_once(" \"")).collect();
    assert!(tests.len() >= 20, "{links:?}");
    for (file, names) in tests {
        let text = fs::read_to_string(root.join("docs").join(file)).unwrap();
        for name in names.split("; ") {
            assert!(text.contains(name), "docs/dns.md names {name}, which is not in {file}");
        }
    }
}

/// Whether `module::tests::name` is a test function of the crate.
fn is_unit_test(root: &Path, test: &str) -> bool {
    let (module, name) = test.rsplit_once("::tests::").unwrap_or_default();
    let file = root.join("src").join(module.replace("::", "/")).with_extension("rs");
    fs::read_to_string(file).is_ok_and(|text| text.contains(&format!("fn {name}(")))
}
