//! `--mode validate` beside the real Envoy's: the same bootstrap, right or wrong in one field, is taken or refused by
//! both. `validate/cases.yaml` has the bootstraps; where mosn refuses what Envoy takes, it says so there.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use serde_json::{Value, json};
use testkit::programs;

const BASE: &str = include_str!("validate/base.yaml");
const CASES: &str = include_str!("validate/cases.yaml");

/// What the two programs say to a bootstrap. The paths are what mosn's message must hold.
#[derive(Debug)]
enum Verdict {
    Fine,
    Wrong(String),
    Missing(String),
}

/// A change of the base in one place.
struct Case {
    pointer: String,
    value: Value,
    verdict: Verdict,
}

fn cases() -> Vec<Case> {
    let groups = api::yaml::to_value(CASES).expect("cases.yaml is YAML");
    let mut cases = Vec::new();
    for group in groups.as_array().expect("groups") {
        let place = group["place"].as_str().expect("a place");
        for case in group["cases"].as_array().expect("cases") {
            let path = |path: &str| match (path_of(place).as_str(), path) {
                ("", path) => path.to_owned(),
                (place, "") => place.to_owned(),
                (place, path) => format!("{place}.{path}"),
            };
            let verdict = match (case["wrong"].as_str(), case["missing"].as_str()) {
                (Some(wrong), None) => Verdict::Wrong(path(wrong)),
                (None, Some(missing)) => Verdict::Missing(path(missing)),
                (None, None) => Verdict::Fine,
                (Some(_), Some(_)) => panic!("{case} is both wrong and missing"),
            };
            cases.push(Case {
                pointer: format!("{place}{}", case["at"].as_str().expect("at")),
                value: case["put"].clone(),
                verdict,
            });
        }
    }
    cases
}

/// A JSON pointer as the path of a field in an error.
fn path_of(pointer: &str) -> String {
    let mut path = String::new();
    for part in pointer.split('/').skip(1) {
        if part.parse::<usize>().is_ok() {
            let _ = write!(path, "[{part}]");
        } else {
            let dot = if path.is_empty() { "" } else { "." };
            let _ = write!(path, "{dot}{part}");
        }
    }
    path
}

/// Sets the value at a JSON pointer, or takes it away; members on the way that are missing become objects.
fn put(root: &mut Value, pointer: &str, value: Value) {
    let mut target = root;
    let mut parts = pointer.split('/').skip(1).peekable();
    while let Some(part) = parts.next() {
        target = match target {
            Value::Object(members) if value.is_null() && parts.peek().is_none() => {
                members.remove(part);
                return;
            }
            Value::Object(members) => members.entry(part).or_insert_with(|| json!({})),
            Value::Array(items) => {
                let index: usize = part.parse().expect("an index");
                if index == items.len() {
                    items.push(json!({}));
                }
                &mut items[index]
            }
            other => panic!("{pointer}: nothing can be put into {other}"),
        };
    }
    *target = value;
}

/// Whether a program takes a bootstrap, and what it says.
fn validate(program: &Path, bootstrap: &Path, extra: &[&str]) -> (bool, String) {
    let output = Command::new(program)
        .args(["--mode", "validate", "--concurrency", "1", "-c"])
        .arg(bootstrap)
        .args(extra)
        .output()
        .expect("the program starts");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.success(), text)
}

/// What differs from the case's verdict.
fn judge(case: &Case, file: &Path, envoy: &Path, mosn: &Path) -> Option<String> {
    let mut bootstrap = api::yaml::to_value(BASE).expect("base.yaml is YAML");
    put(&mut bootstrap, &case.pointer, case.value.clone());
    std::fs::write(file, bootstrap.to_string()).expect("a file is written");
    let (envoy_takes, envoy_says) =
        validate(envoy, file, &["--disable-hot-restart", "-l", "error"]);
    let (mosn_takes, mosn_says) = validate(mosn, file, &[]);
    let (envoy_should, mosn_should, path) = match &case.verdict {
        Verdict::Fine => (true, true, ""),
        Verdict::Wrong(path) => (false, false, path.as_str()),
        Verdict::Missing(path) => (true, false, path.as_str()),
    };
    let as_expected = envoy_takes == envoy_should
        && mosn_takes == mosn_should
        && (mosn_takes || mosn_says.contains(path));
    let word = |takes: bool| if takes { "takes it" } else { "refuses" };
    (!as_expected).then(|| {
        format!(
            "{} = {}: expected {:?}\n  envoy {}: {}\n  mosn {}: {}",
            path_of(&case.pointer),
            case.value,
            case.verdict,
            word(envoy_takes),
            envoy_says.trim(),
            word(mosn_takes),
            mosn_says.trim(),
        )
    })
}

#[test]
fn takes_and_refuses_what_envoy_does() {
    let (envoy, mosn) = (programs::envoy().unwrap(), programs::own("mosn").unwrap());
    let folder = tempfile::tempdir().unwrap();
    let cases = cases();
    let next = AtomicUsize::new(0);
    let failures = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(case) = cases.get(index) else {
                        return;
                    };
                    let file = folder.path().join(format!("{index}.json"));
                    if let Some(failure) = judge(case, &file, &envoy, &mosn) {
                        failures.lock().unwrap().push(failure);
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(
        failures.is_empty(),
        "{} of {} cases:\n{}",
        failures.len(),
        cases.len(),
        failures.join("\n")
    );
}
