//! The documentation is held against the program: examples are configurations that it takes, and what it refuses and
//! counts is named.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use regex::Regex;
use testkit::programs;

fn docs() -> PathBuf {
    programs::workspace().join("docs")
}

fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, extension));
        } else if path.extension().is_some_and(|given| given == extension) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// What mosn says against a bootstrap.
fn refusal(bootstrap: &Path) -> Option<String> {
    let output = Command::new(programs::own("mosn").unwrap())
        .args(["--mode", "validate", "--concurrency", "1", "-c"])
        .arg(bootstrap)
        .output()
        .unwrap();
    (!output.status.success()).then(|| String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn examples_are_valid() {
    let examples = files(&docs().join("examples"), "yaml");
    assert!(!examples.is_empty());
    for example in examples {
        assert_eq!(refusal(&example), None, "{}", example.display());
    }
}

#[test]
fn bootstraps_in_the_text_are_valid() {
    let fence = Regex::new("(?s)```yaml\n(.*?)```").unwrap();
    let folder = tempfile::tempdir().unwrap();
    for page in files(&docs(), "md") {
        let text = fs::read_to_string(&page).unwrap();
        let blocks = fence.captures_iter(&text).map(|found| found[1].to_owned());
        for (index, block) in blocks.enumerate() {
            if block.contains("static_resources:") {
                let file = folder.path().join(format!("{index}.yaml"));
                fs::write(&file, block).unwrap();
                assert_eq!(refusal(&file), None, "{}, example {index}", page.display());
            }
        }
    }
}

#[test]
fn every_refused_field_is_in_the_compatibility_page() {
    let refused = Regex::new(r"(?s)refuse_fields!\(\w+;(.*?)\)").unwrap();
    let page = fs::read_to_string(docs().join("envoy-compatibility.md")).unwrap();
    let mut missing = BTreeSet::new();
    for source in files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), "rs") {
        let text = fs::read_to_string(source).unwrap();
        for list in refused.captures_iter(&text) {
            for field in list[1].split(',').map(str::trim) {
                if !field.is_empty() && !page.contains(&format!("`{field}`")) {
                    missing.insert(field.to_owned());
                }
            }
        }
    }
    assert_eq!(missing, BTreeSet::new());
}

#[test]
fn every_statistic_of_the_rpc_proxy_is_in_its_page() {
    let counter = Regex::new(r"(?m)^    (\w+): (?:Counter|Gauge|Histogram),$").unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/rpc/stats.rs");
    let page = fs::read_to_string(docs().join("mosn.md")).unwrap();
    let text = fs::read_to_string(source).unwrap();
    let names: Vec<&str> = counter
        .captures_iter(&text)
        .filter_map(|found| Some(found.get(1)?.as_str()))
        .collect();
    assert!(names.len() > 10);
    for name in names {
        assert!(page.contains(&format!("`{name}`")), "{name}");
    }
}
