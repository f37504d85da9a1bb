//! Holds the arrows between the crates (docs/architecture.md): who may use whom, and what must never be reached.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

/// Each crate of ours and those of ours that it may name in `[dependencies]`.
const MAY_USE: &[(&str, &[&str])] = &[
    ("base", &[]),
    ("wire", &["base"]),
    ("net", &["base", "wire"]),
    ("api", &["base"]),
    ("telemetry", &["base", "api"]),
    ("xds", &["base", "api"]),
    ("registry", &["base", "wire", "api"]),
    ("mosn", &["base", "wire", "net", "api", "telemetry", "xds"]),
    (
        "pilot",
        &["base", "wire", "api", "telemetry", "xds", "registry"],
    ),
    (
        "meshctl",
        &[
            "base",
            "wire",
            "net",
            "api",
            "telemetry",
            "xds",
            "mosn",
            "registry",
            "pilot",
        ],
    ),
    ("testkit", &["base", "wire", "api"]),
    ("loadgen", &["base", "wire", "net"]),
    ("registryload", &["api"]),
    ("e2e", &[]),
];

/// What a crate must not reach at all, through whatever other crate.
const NEVER_REACHES: &[(&str, &[&str])] = &[
    ("base", &["tokio", "hyper", "prost", "tonic", "libc"]),
    ("wire", &["tokio", "hyper", "prost", "tonic"]),
    ("mosn", &["registry", "pilot", "kube", "redb"]),
    ("pilot", &["mosn", "net"]),
    ("registry", &["mosn", "pilot", "xds"]),
];

/// Package name → the names of the packages it depends on, development dependencies left out.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo metadata starts");
    assert!(
        output.status.success(),
        "cargo metadata failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON");
    let names: BTreeMap<&str, &str> = list(&metadata["packages"])
        .map(|package| (text(&package["id"]), text(&package["name"])))
        .collect();
    let mut graph: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for node in list(&metadata["resolve"]["nodes"]) {
        let uses = graph
            .entry(names[text(&node["id"])].to_owned())
            .or_default();
        for dependency in list(&node["deps"]) {
            if list(&dependency["dep_kinds"]).any(|kind| kind["kind"].is_null()) {
                uses.insert(names[text(&dependency["pkg"])].to_owned());
            }
        }
    }
    graph
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> &str {
    value.as_str().expect("a string")
}

fn reachable(graph: &BTreeMap<String, BTreeSet<String>>, from: &str) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    let mut open = vec![from.to_owned()];
    while let Some(name) = open.pop() {
        for next in graph.get(&name).into_iter().flatten() {
            if seen.insert(next.clone()) {
                open.push(next.clone());
            }
        }
    }
    seen
}

#[test]
fn crates_use_only_what_lies_below_them() {
    let graph = dependencies();
    let ours: BTreeSet<&str> = MAY_USE.iter().map(|(name, _)| *name).collect();
    let mut wrong = Vec::new();
    for (name, allowed) in MAY_USE {
        let uses = graph
            .get(*name)
            .unwrap_or_else(|| panic!("no crate {name}"));
        for used in uses.iter().filter(|used| ours.contains(used.as_str())) {
            if !allowed.contains(&used.as_str()) {
                wrong.push(format!("{name} must not depend on {used}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn crates_do_not_reach_what_is_closed_to_them() {
    let graph = dependencies();
    let mut wrong = Vec::new();
    for (name, closed) in NEVER_REACHES {
        let reached = reachable(&graph, name);
        for crate_name in closed.iter().filter(|c| reached.contains(**c)) {
            wrong.push(format!("{name} reaches {crate_name}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
