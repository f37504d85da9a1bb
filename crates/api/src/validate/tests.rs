//! What Envoy's rules refuse, with the path of the field.

use std::time::Instant;

use prost::Name;
use serde_json::{Value, json};

use crate::envoy::config::bootstrap::v3::Bootstrap;
use crate::envoy::config::cluster::v3::Cluster;
use crate::envoy::config::core::v3::{HeaderValueOption, SocketAddress};
use crate::envoy::config::listener::v3::Listener;
use crate::envoy::config::route::v3::{RouteConfiguration, VirtualHost};
use crate::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;

fn check<M: Name>(value: &Value) -> Result<(), String> {
    let bytes = crate::json::encode(&M::full_name(), value).expect("the message itself is fine");
    super::message::<M>(&bytes).map_err(|error| error.to_string())
}

fn cluster() -> Value {
    let address = json!({"socket_address": {"address": "127.0.0.1", "port_value": 80}});
    json!({"name": "c", "connect_timeout": "1s", "load_assignment": {"cluster_name": "c", "endpoints": [
        {"lb_endpoints": [{"endpoint": {"address": address}, "load_balancing_weight": 1}]}]}})
}

#[test]
fn names_the_field_of_each_kind_of_rule() {
    let hcm = |field: Value| {
        let mut hcm = json!({"@type": HttpConnectionManager::type_url(), "stat_prefix": "in", "rds": {
            "route_config_name": "r", "config_source": {"ads": {}}}});
        for (key, value) in field.as_object().expect("an object") {
            hcm[key] = value.clone();
        }
        json!({"filter_chains": [{"filters": []}, {"filters": [{"name": "hcm", "typed_config": hcm}]}]})
    };
    let in_hcm = "filter_chains[1].filters[0].typed_config";
    let cases = [
        (hcm(json!({})), String::new()),
        (hcm(json!({"stat_prefix": ""})), format!("{in_hcm}.stat_prefix: must not be empty")),
        (
            hcm(json!({"max_request_headers_kb": 0})),
            format!("{in_hcm}.max_request_headers_kb: 0 must be greater than 0"),
        ),
        (
            hcm(json!({"max_request_headers_kb": 8193})),
            format!("{in_hcm}.max_request_headers_kb: 8193 must be at most 8192"),
        ),
        (
            hcm(json!({"path_with_escaped_slashes_action": "UNESCAPE_AND_FORWARD", "upgrade_configs": [
                {"upgrade_type": "websocket", "filters": [{"name": "a"}, {"name": ""}]}]})),
            format!("{in_hcm}.upgrade_configs[0].filters[1].name: must not be empty"),
        ),
        (
            json!({"address": {}}),
            "address.address: is required: one of socket_address, pipe, envoy_internal_address".into(),
        ),
        (
            json!({"address": {"socket_address": {"address": "::1", "port_value": 65536}}}),
            "address.socket_address.port_value: 65536 must be at most 65535".into(),
        ),
        (
            json!({"per_connection_buffer_limit_bytes": 1, "connection_balance_config": {}}),
            "connection_balance_config.balance_type: is required: one of exact_balance, extend_balance, \
             cpu_locality_balance"
                .into(),
        ),
    ];
    for (value, expected) in cases {
        let error = check::<Listener>(&value).err().unwrap_or_default();
        assert_eq!(error, expected, "{value}");
    }
}

#[test]
fn durations_lists_maps_and_headers() {
    let mut slow = cluster();
    slow["connect_timeout"] = json!("0s");
    let mut weightless = cluster();
    weightless["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["load_balancing_weight"] =
        json!(0);
    let mut protocol = cluster();
    protocol["typed_extension_protocol_options"] = json!({"envoy.x": {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions"}});
    let clusters = [
        (cluster(), ""),
        (slow, "connect_timeout: 0s must be greater than 0s"),
        (
            weightless,
            "load_assignment.endpoints[0].lb_endpoints[0].load_balancing_weight: 0 must be at least 1",
        ),
        (
            protocol,
            "typed_extension_protocol_options[\"envoy.x\"].upstream_protocol_options: is required: one of \
             explicit_http_config, use_downstream_protocol_config, auto_config",
        ),
    ];
    for (value, expected) in clusters {
        let error = check::<Cluster>(&value).err().unwrap_or_default();
        assert_eq!(error, expected, "{value}");
    }
    let headers = [
        (json!({"header": {"key": "x-a", "value": "b"}}), ""),
        (json!({}), "header: is required"),
        (
            json!({"header": {"key": ""}}),
            "header.key: must not be empty",
        ),
        (
            json!({"header": {"key": "x", "value": "a\nb"}}),
            "header.value: \"a\\nb\" is no single line",
        ),
    ];
    for (value, expected) in headers {
        let error = check::<HeaderValueOption>(&value).err().unwrap_or_default();
        assert_eq!(error, expected, "{value}");
    }
    let route = |matched: Value| json!({"name": "v", "domains": ["*"], "routes": [{"match": matched, "redirect": {}}]});
    let hosts = [
        (route(json!({"prefix": "/"})), ""),
        (json!({"name": "v"}), "domains: must have at least 1 item"),
        (
            route(json!({"path_separated_prefix": "/a/"})),
            "routes[0].match.path_separated_prefix: \"/a/\" is no path prefix of whole segments: \"?\", \"#\" and a \
             final \"/\" are not allowed",
        ),
    ];
    for (value, expected) in hosts {
        let error = check::<VirtualHost>(&value).err().unwrap_or_default();
        assert_eq!(error, expected, "{value}");
    }
}

#[test]
fn nothing_given_is_checked_as_the_default() {
    assert_eq!(
        check::<Cluster>(&json!({})).unwrap_err(),
        "name: must not be empty"
    );
    check::<RouteConfiguration>(&json!({})).expect("a route configuration may be empty");
    check::<Bootstrap>(&json!({})).expect("a bootstrap may be empty");
}

#[test]
fn numbers_that_an_enum_does_not_define() {
    let protocol = [0x08, 9];
    let error = super::message::<SocketAddress>(&protocol).unwrap_err();
    assert_eq!(error.to_string(), "protocol: 9 is no value of the enum");
}

#[test]
fn depth_is_limited_and_bytes_may_be_anything() {
    let mut matched = json!({"any_match": true});
    for _ in 0..40 {
        matched = json!({"not_match": matched});
    }
    let listener = json!({"filter_chains": [], "listener_filters": [{"name": "f", "filter_disabled": matched}]});
    assert_eq!(check::<Listener>(&listener), Ok(()));
    let mut random = 1u32;
    for length in 0..2000 {
        let bytes: Vec<u8> = (0..length % 97)
            .map(|_| {
                random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (random >> 24) as u8
            })
            .collect();
        let _ = super::message::<Listener>(&bytes);
        let _ = super::message::<Cluster>(&bytes);
    }
}

/// Thousands of clusters come at once: their check must stay far below their decoding and compiling.
#[test]
fn a_cluster_costs_microseconds() {
    let bytes = crate::json::encode(&Cluster::full_name(), &cluster()).expect("valid");
    let started = Instant::now();
    for _ in 0..1000 {
        super::message::<Cluster>(&bytes).expect("valid");
    }
    let each = started.elapsed() / 1000;
    assert!(each.as_micros() < 500, "{each:?}");
}
