//! The manifests of this mesh's kinds say what the code takes: no field more, none less.

use std::collections::BTreeSet;

use registry::{RegistrySource, RegistrySync};
use serde_json::{Value, json};

const UNKNOWN: &str = "unknownWord";

/// A part of a schema, and how a value at its place is put into a whole object.
struct Part<'a> {
    path: String,
    schema: &'a Value,
    whole: Box<dyn Fn(Value) -> Value + 'a>,
}

fn spec(manifest: &str) -> Value {
    let path = testkit::programs::workspace()
        .join("deploy/crds")
        .join(manifest);
    let text = std::fs::read_to_string(&path).expect("a manifest");
    let crd: Value = serde_saphyr::from_str(&text).expect("YAML");
    crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"].clone()
}

/// The words in backquotes of `unknown field `a`, expected one of `b`, `c``, without the first.
fn expected(message: &str) -> BTreeSet<&str> {
    message.split('`').skip(3).step_by(2).collect()
}

fn compare(part: &Part<'_>, read: &dyn Fn(Value) -> Result<(), String>, compared: &mut usize) {
    let Part {
        path,
        schema,
        whole,
    } = part;
    if let Some(fields) = schema["properties"].as_object() {
        let message = read(whole(json!({UNKNOWN: 0}))).expect_err(path);
        let ours: BTreeSet<&str> = fields.keys().map(String::as_str).collect();
        assert_eq!(ours, expected(&message), "{path}: {message}");
        *compared += ours.len();
        for (name, schema) in fields {
            let part = Part {
                path: format!("{path}.{name}"),
                schema,
                whole: Box::new(move |value| whole(json!({name.as_str(): value}))),
            };
            compare(&part, read, compared);
        }
    } else if let Some(words) = schema["enum"].as_array() {
        let message = read(whole(json!(UNKNOWN))).expect_err(path);
        let ours: BTreeSet<&str> = words.iter().filter_map(Value::as_str).collect();
        assert_eq!(ours, expected(&message), "{path}: {message}");
        *compared += ours.len();
    } else if schema["type"] == "array" {
        let part = Part {
            path: format!("{path}[]"),
            schema: &schema["items"],
            whole: Box::new(move |value| whole(json!([value]))),
        };
        compare(&part, read, compared);
    } else if let Some(kind) = schema["type"].as_str() {
        // A value of another type is refused by both.
        let other = if kind == "string" {
            json!(7)
        } else {
            json!("7")
        };
        let message = read(whole(other)).expect_err(path);
        assert!(message.contains("invalid type"), "{path}: {message}");
        *compared += 1;
    }
}

fn agree(manifest: &str, read: &dyn Fn(Value) -> Result<(), String>) -> usize {
    let schema = spec(manifest);
    let mut compared = 0;
    let part = Part {
        path: "spec".to_owned(),
        schema: &schema,
        whole: Box::new(|value| value),
    };
    compare(&part, read, &mut compared);
    compared
}

#[test]
fn manifests_and_code_agree() {
    let source = agree("registrysources.yaml", &|value| {
        let read = serde_json::from_value::<RegistrySource>(value);
        read.map(|_| ()).map_err(|error| error.to_string())
    });
    let sync = agree("registrysyncs.yaml", &|value| {
        let read = serde_json::from_value::<RegistrySync>(value);
        read.map(|_| ()).map_err(|error| error.to_string())
    });
    assert!(source > 100 && sync > 30, "{source} and {sync} words");
}
