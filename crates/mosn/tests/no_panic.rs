//! Whatever a configuration holds, it is taken or refused: bootstraps with random edits, and xDS resources whose bytes are
//! random, cut or flipped.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::time::Duration;

use api::google::protobuf::Any;
use fastrand::Rng;
use mosn::config::Options;
use mosn::manager::Manager;
use proptest::prelude::*;
use serde_json::{Value, json};
use testkit::programs;

/// Valid bootstraps to start from.
fn corpus() -> Vec<Value> {
    let mut texts = vec![include_str!("validate/base.yaml").to_owned()];
    for entry in fs::read_dir(programs::workspace().join("docs/examples")).unwrap() {
        texts.push(fs::read_to_string(entry.unwrap().path()).unwrap());
    }
    texts.sort();
    let parsed = texts.iter().map(|text| api::yaml::to_value(text).unwrap());
    parsed.collect()
}

/// Values that fit nowhere in particular.
fn odd_value(random: &mut Rng) -> Value {
    let values = [
        json!(null),
        json!(true),
        json!(0),
        json!(-1),
        json!(4_294_967_296_u64),
        json!(1e300),
        json!(""),
        json!("*"),
        json!("%"),
        json!("%REQ(%"),
        json!("(((((((((("),
        json!("a{1000}{1000}{1000}"),
        json!("0.0000000001s"),
        json!("315576000001s"),
        json!("-5s"),
        json!("\u{0}\r\n\u{10ffff}"),
        json!("::1"),
        json!([]),
        json!({}),
        json!([[], {}, null]),
        json!({"@type": "type.googleapis.com/google.protobuf.Any"}),
        json!({"@type": "type.googleapis.com/xds.type.v3.TypedStruct", "type_url": "x/y", "value": {"a": 1}}),
    ];
    values[random.usize(..values.len())].clone()
}

/// JSON pointers of all values but paths of files: no test writes where a random word points to.
fn places(value: &Value, here: &str, found: &mut Vec<String>) {
    found.push(here.to_owned());
    match value {
        Value::Object(members) => {
            for (key, value) in members.iter().filter(|(key, _)| *key != "path") {
                let key = key.replace('~', "~0").replace('/', "~1");
                places(value, &format!("{here}/{key}"), found);
            }
        }
        Value::Array(items) => {
            for (index, value) in items.iter().enumerate() {
                places(value, &format!("{here}/{index}"), found);
            }
        }
        _ => {}
    }
}

fn random_place<'v>(value: &'v mut Value, random: &mut Rng) -> &'v mut Value {
    let mut found = Vec::new();
    places(value, "", &mut found);
    let place = &found[random.usize(..found.len())];
    value.pointer_mut(place).expect("it was found there")
}

fn edit(bootstrap: &mut Value, corpus: &[Value], random: &mut Rng) {
    let mut donor = corpus[random.usize(..corpus.len())].clone();
    let place = random_place(bootstrap, random);
    match (random.u8(..4), place) {
        (0, Value::Array(items)) if !items.is_empty() => {
            let item = items[random.usize(..items.len())].clone();
            items.push(item);
        }
        (1, Value::Object(members)) if !members.is_empty() => {
            let key = members.keys().nth(random.usize(..members.len())).cloned();
            members.remove(&key.unwrap_or_default());
        }
        (2, place) => *place = random_place(&mut donor, random).clone(),
        (_, place) => *place = odd_value(random),
    }
}

fn manager() -> Manager {
    let stats = telemetry::stats::Registry::new();
    let logs = telemetry::access_log::Sinks::new(&stats, Duration::from_secs(10));
    let (events, _) = tokio::sync::mpsc::unbounded_channel();
    Manager::new(
        Options::default(),
        stats,
        logs,
        Vec::new(),
        events,
        BTreeSet::new(),
    )
}

/// The resources of the corpus, encoded, with their types.
fn resources() -> Vec<Any> {
    const TYPES: [(&str, &str); 4] = [
        (
            "/static_resources/listeners",
            "envoy.config.listener.v3.Listener",
        ),
        (
            "/static_resources/clusters",
            "envoy.config.cluster.v3.Cluster",
        ),
        (
            "/load_assignment",
            "envoy.config.endpoint.v3.ClusterLoadAssignment",
        ),
        (
            "/typed_config/route_config",
            "envoy.config.route.v3.RouteConfiguration",
        ),
    ];
    let mut found = Vec::new();
    for bootstrap in corpus() {
        let mut pointers = Vec::new();
        places(&bootstrap, "", &mut pointers);
        for pointer in pointers {
            for (end, name) in TYPES {
                let Some(value) = bootstrap
                    .pointer(&pointer)
                    .filter(|_| pointer.ends_with(end))
                else {
                    continue;
                };
                let alone = std::slice::from_ref(value);
                for value in value.as_array().map_or(alone, |items| items) {
                    found.push(Any {
                        type_url: format!("type.googleapis.com/{name}"),
                        value: api::json::encode(name, value).unwrap(),
                    });
                }
            }
        }
    }
    found
}

fn spoil(bytes: &mut Vec<u8>, random: &mut Rng) {
    for _ in 0..random.usize(..4) {
        match random.u8(..4) {
            0 => bytes.truncate(random.usize(..=bytes.len())),
            1 => bytes.extend(
                (0..random.usize(..40))
                    .map(|_| random.u8(..))
                    .collect::<Vec<_>>(),
            ),
            _ if bytes.is_empty() => {}
            2 => {
                let at = random.usize(..bytes.len());
                bytes[at] = random.u8(..);
            }
            _ => {
                let at = random.usize(..bytes.len());
                bytes[at] ^= 1 << random.u8(..8);
            }
        }
    }
}

#[test]
fn resources_of_the_corpus_are_taken() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let _inside = runtime.enter();
    let all = resources();
    let of = |name: &str| -> Vec<Any> {
        let these = all.iter().filter(|any| any.type_url.ends_with(name));
        these.take(1).cloned().collect()
    };
    let mut manager = manager();
    manager.apply_clusters("1", &of(".Cluster")).unwrap();
    manager
        .apply_endpoints("1", &of(".ClusterLoadAssignment"))
        .unwrap();
    manager
        .apply_routes("1", &of(".RouteConfiguration"))
        .unwrap();
    for name in [
        ".Listener",
        ".Cluster",
        ".ClusterLoadAssignment",
        ".RouteConfiguration",
    ] {
        assert!(!of(name).is_empty(), "{name}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, max_shrink_iters: 0, ..ProptestConfig::default() })]

    #[test]
    fn edited_bootstraps(seed in any::<u64>()) {
        let mut random = Rng::with_seed(seed);
        let corpus = corpus();
        let mut bootstrap = corpus[random.usize(..corpus.len())].clone();
        for _ in 0..random.usize(1..4) {
            edit(&mut bootstrap, &corpus, &mut random);
        }
        let args = ["mosn", "--mode", "validate", "--concurrency", "1", "--config-yaml", &bootstrap.to_string()];
        let _ = mosn::main(args.map(OsString::from));
    }

    #[test]
    fn spoiled_resources(seed in any::<u64>()) {
        let mut random = Rng::with_seed(seed);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _inside = runtime.enter();
        let mut manager = manager();
        for mut any in resources() {
            spoil(&mut any.value, &mut random);
            let any = [any];
            let _ = manager.apply_clusters("1", &any);
            let _ = manager.apply_endpoints("1", &any);
            let _ = manager.apply_listeners("1", &any);
            let _ = manager.apply_routes("1", &any);
        }
    }
}
