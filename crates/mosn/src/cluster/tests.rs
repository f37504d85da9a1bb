//! Which host is chosen, over whole clusters compiled from Envoy's JSON.

#![allow(
    clippy::needless_pass_by_value,
    reason = "literals of JSON are given away"
)]

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use api::envoy::config::cluster::v3 as proto;
use serde_json::{Value, json};

use super::config::ClusterUse;
use super::*;
use crate::config::{CompileContext, Options};

fn compile(config: &Value) -> Result<ClusterConfig, base::FieldError> {
    let stats = telemetry::stats::Registry::new();
    let access_logs = telemetry::access_log::Sinks::new(&stats, Duration::from_secs(1));
    let options = Options::default();
    let cluster: proto::Cluster = api::json::from_value(config)?;
    let ctx = CompileContext {
        stats: &stats,
        access_logs: &access_logs,
        options: &options,
        clusters: None,
    };
    ClusterConfig::compile(&cluster, ClusterUse::Traffic, &ctx)
}

fn cluster(extra: Value, endpoints: Value) -> Cluster {
    let mut config = json!({"name": "c", "type": "STATIC",
        "load_assignment": {"cluster_name": "c", "endpoints": [{"lb_endpoints": endpoints}]}});
    for (key, value) in extra.as_object().expect("an object") {
        config[key] = value.clone();
    }
    let config = compile(&config).expect("a valid cluster");
    let Discovery::Static(hosts) = config.discovery.clone() else {
        panic!("static")
    };
    Cluster::new(Arc::new(config), &hosts, None)
}

fn endpoint(port: u16, extra: Value) -> Value {
    let mut endpoint = json!({"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}});
    for (key, value) in extra.as_object().expect("an object") {
        endpoint[key] = value.clone();
    }
    endpoint
}

/// How often each port is chosen in `n` picks.
fn picks(cluster: &Cluster, context: &LbContext, n: usize) -> BTreeMap<u16, usize> {
    let mut counts = BTreeMap::new();
    for _ in 0..n {
        if let Some(host) = cluster.pick(context) {
            *counts.entry(host.address.port()).or_default() += 1;
        }
    }
    counts
}

fn ports(cluster: &Cluster, context: &LbContext) -> Vec<u16> {
    picks(cluster, context, 64).into_keys().collect()
}

#[test]
fn weights_are_kept_exactly() {
    for policy in ["ROUND_ROBIN", "LEAST_REQUEST"] {
        let endpoints = json!([
            endpoint(1, json!({"load_balancing_weight": 1})),
            endpoint(2, json!({"load_balancing_weight": 9})),
        ]);
        let cluster = cluster(json!({"lb_policy": policy}), endpoints);
        let counts = picks(&cluster, &LbContext::default(), 1000);
        assert!((99..=101).contains(&counts[&1]), "{policy}: {counts:?}");
    }
    let equal = cluster(
        json!({}),
        json!([
            endpoint(1, json!({})),
            endpoint(2, json!({})),
            endpoint(3, json!({}))
        ]),
    );
    assert_eq!(
        picks(&equal, &LbContext::default(), 300),
        BTreeMap::from([(1, 100), (2, 100), (3, 100)])
    );
}

#[test]
fn least_request_prefers_the_idle_host() {
    let cluster = cluster(
        json!({"lb_policy": "LEAST_REQUEST"}),
        json!([endpoint(1, json!({})), endpoint(2, json!({}))]),
    );
    let busy = loop {
        let host = cluster.pick(&LbContext::default()).expect("a host");
        if host.address.port() == 1 {
            break host;
        }
    };
    let _requests: Vec<_> = (0..10).map(|_| busy.start_request()).collect();
    let counts = picks(&cluster, &LbContext::default(), 1000);
    // both choices fall on the busy host one time in four
    assert!(counts[&2] > 650, "{counts:?}");
}

#[test]
fn unhealthy_hosts_serve_only_in_panic() {
    let unhealthy = json!({"health_status": "UNHEALTHY"});
    let endpoints = |sick: usize| {
        let all = (0..4u16).map(|i| {
            endpoint(
                i + 1,
                if usize::from(i) < sick {
                    unhealthy.clone()
                } else {
                    json!({})
                },
            )
        });
        Value::Array(all.collect())
    };
    let two = cluster(json!({}), endpoints(2));
    assert_eq!(ports(&two, &LbContext::default()), [3, 4]);
    let three = cluster(json!({}), endpoints(3));
    assert_eq!(
        ports(&three, &LbContext::default()),
        [1, 2, 3, 4],
        "below 50 % everyone serves"
    );
    let off = json!({"common_lb_config": {"healthy_panic_threshold": {"value": 0}}});
    assert_eq!(
        ports(&cluster(off.clone(), endpoints(3)), &LbContext::default()),
        [4]
    );
    assert!(
        cluster(off, endpoints(4))
            .pick(&LbContext::default())
            .is_none()
    );
}

#[test]
fn a_call_reaches_instances_of_its_version_and_group() {
    let serves = |v: Value| json!({"metadata": {"filter_metadata": {"mosn.rpc": v}}});
    let cluster = cluster(
        json!({}),
        json!([
            endpoint(1, serves(json!({"version": "1.0", "group": ""}))),
            endpoint(2, serves(json!({"version": "2.0", "group": "g"}))),
            endpoint(3, serves(json!({"version": "0.0.0", "group": ""}))),
            endpoint(4, serves(json!({"version": "*", "group": "*"}))),
            endpoint(5, json!({})),
        ]),
    );
    let reached = |version: &str, group: &str| {
        ports(
            &cluster,
            &LbContext {
                rpc: Some(RpcInstance { version, group }),
                ..LbContext::default()
            },
        )
    };
    assert_eq!(reached("1.0", ""), [1, 4, 5]);
    assert_eq!(reached("2.0", "g"), [2, 4, 5]);
    assert_eq!(reached("2.0", ""), [4, 5]);
    assert_eq!(reached("", ""), [3, 4, 5]);
    assert_eq!(reached("0.0.0", ""), [3, 4, 5]);
    assert_eq!(reached("*", "*"), [1, 2, 3, 4, 5]);
    assert_eq!(
        ports(&cluster, &LbContext::default()),
        [1, 2, 3, 4, 5],
        "HTTP does not ask"
    );
    for n in 0..5000 {
        let version = format!("made-up-{n}");
        assert_eq!(reached(&version, ""), [4, 5]);
    }
    assert!(cluster.hosts.borrow().subsets.len() <= 1024);
}

#[test]
fn subsets_are_chosen_by_labels_and_retries_go_elsewhere() {
    let labels = |version: &str| json!({"metadata": {"filter_metadata": {"envoy.lb": {"version": version}}}});
    let subsets = |fallback: &str| json!({"lb_subset_config": {"fallback_policy": fallback, "subset_selectors": [{"keys": ["version"]}]}});
    let endpoints = json!([
        endpoint(1, labels("v1")),
        endpoint(2, labels("v2")),
        endpoint(3, labels("v2"))
    ]);
    let wanted = |labels: Value| {
        let metadata = api::json::from_value(&json!({"filter_metadata": {"envoy.lb": labels}}))
            .expect("metadata");
        MetadataMatch::compile(&metadata).expect("labels")
    };
    let strict = cluster(subsets("NO_FALLBACK"), endpoints.clone());
    let any = cluster(subsets("ANY_ENDPOINT"), endpoints);
    for (labels, strictly, loosely) in [
        (json!({"version": "v1"}), &[1][..], &[1][..]),
        (json!({"version": "v2"}), &[2, 3], &[2, 3]),
        (json!({"version": "v3"}), &[], &[1, 2, 3]),
        (json!({"stage": "x"}), &[], &[1, 2, 3]),
    ] {
        let wanted = wanted(labels);
        let context = LbContext {
            metadata_match: Some(&wanted),
            ..LbContext::default()
        };
        assert_eq!(ports(&strict, &context), strictly);
        assert_eq!(ports(&any, &context), loosely);
    }
    let v2 = wanted(json!({"version": "v2"}));
    let context = LbContext {
        metadata_match: Some(&v2),
        ..LbContext::default()
    };
    let failed = strict.pick(&context).expect("a host");
    let avoid = [failed.clone()];
    for _ in 0..50 {
        let other = strict
            .pick(&LbContext {
                avoid: &avoid,
                ..context
            })
            .expect("a host");
        assert!(!Rc::ptr_eq(&other, &failed));
    }
}

#[test]
fn lower_priorities_serve_when_the_first_has_nobody() {
    let mut config = json!({"name": "c", "type": "STATIC",
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
        "load_assignment": {"cluster_name": "c", "endpoints": [
            {"priority": 0, "lb_endpoints": [endpoint(1, json!({}))]},
            {"priority": 1, "lb_endpoints": [endpoint(2, json!({}))]}]}});
    let make = |config: &Value| {
        let config = compile(config).expect("a valid cluster");
        let Discovery::Static(hosts) = config.discovery.clone() else {
            panic!("static")
        };
        Cluster::new(Arc::new(config), &hosts, None)
    };
    assert_eq!(ports(&make(&config), &LbContext::default()), [1]);
    config["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["health_status"] =
        json!("UNHEALTHY");
    assert_eq!(ports(&make(&config), &LbContext::default()), [2]);
}

#[test]
fn hosts_that_stay_keep_their_state() {
    let cluster = cluster(
        json!({}),
        json!([endpoint(1, json!({})), endpoint(2, json!({}))]),
    );
    let host = cluster.pick(&LbContext::default()).expect("a host");
    let _request = host.start_request();
    let Discovery::Static(hosts) = cluster.config.discovery.clone() else {
        panic!("static")
    };
    cluster.set_hosts(&hosts);
    let again = (0..8)
        .filter_map(|_| cluster.pick(&LbContext::default()))
        .find(|h| h.address == host.address);
    let again = again.expect("still there");
    assert!(Rc::ptr_eq(&host, &again) && again.active_requests.get() == 1);
    cluster.set_hosts(&HostsConfig::default());
    assert!(host.is_removed() && cluster.pick(&LbContext::default()).is_none());
}

#[test]
fn what_is_wrong_or_not_supported_is_named() {
    let endpoint = endpoint(1, json!({"load_balancing_weight": 0}));
    for (config, want) in [
        (json!({"name": ""}), "name: is required"),
        (
            json!({"name": "c", "lb_policy": "MAGLEV"}),
            "lb_policy: MAGLEV is not supported",
        ),
        (
            json!({"name": "c", "type": "EDS"}),
            "eds_cluster_config.eds_config: is required",
        ),
        (
            json!({"name": "c", "http2_protocol_options": {}}),
            "http2_protocol_options: is not supported",
        ),
        (
            json!({"name": "c", "outlier_detection": {}}),
            "outlier_detection: is not supported",
        ),
        (
            json!({"name": "c", "load_assignment": {"endpoints": [{"lb_endpoints": [endpoint]}]}}),
            "load_assignment.endpoints[0].lb_endpoints[0].load_balancing_weight: must be at least 1",
        ),
        (
            json!({"name": "c", "circuit_breakers": {"thresholds": [{"max_requests": "x"}]}}),
            "circuit_breakers.thresholds[0].max_requests: expected",
        ),
    ] {
        let error = compile(&config)
            .err()
            .map(|e| e.to_string())
            .unwrap_or_default();
        assert!(error.starts_with(want), "{error}");
    }
}
