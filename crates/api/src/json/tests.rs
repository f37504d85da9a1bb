use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::envoy::config::bootstrap::v3::Bootstrap;
use crate::envoy::config::cluster::v3::Cluster;
use crate::envoy::config::core::v3::{
    Address, Metadata, Node, SocketAddress, address, socket_address,
};
use crate::envoy::config::endpoint::v3::ClusterLoadAssignment;
use crate::envoy::config::listener::v3::Listener;
use crate::envoy::config::route::v3::{Route, RouteConfiguration, RouteMatch};
use crate::envoy::extensions::filters::http::fault::v3::HttpFault;
use crate::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use crate::google::protobuf::{Duration, Struct, Value as ProtoValue};
use crate::mosn::extensions::filters::network::rpc_proxy::v1::RpcProxy;
use crate::{any, yaml};

const BOOTSTRAP: &str = r#"
admin: { address: { socket_address: { address: 127.0.0.1, port_value: 0 } } }
node: { id: a, cluster: b, metadata: { list: [1, "x", null, true, { deep: 1.5 }] } }
static_resources:
  listeners:
  - name: main
    address: { socketAddress: { address: 127.0.0.1, portValue: 10000 } }
    per_connection_buffer_limit_bytes: 1048576
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: ingress
          codec_type: HTTP1
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: { prefix: / }
                route: { cluster: up, timeout: 0.25s }
          http_filters:
          - name: envoy.filters.http.router
            typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }
  clusters:
  - name: up
    connect_timeout: 1s
    type: STATIC
    circuit_breakers: { thresholds: [{ priority: 1, max_requests: "7" }] }
"#;

#[test]
fn reads_a_bootstrap_with_nested_any() {
    let value = yaml::to_value(BOOTSTRAP).unwrap();
    let bootstrap: Bootstrap = from_value(&value).unwrap();
    let resources = bootstrap.static_resources.as_ref().unwrap();
    let listener = &resources.listeners[0];
    assert_eq!(listener.per_connection_buffer_limit_bytes, Some(1 << 20));
    let Some(crate::envoy::config::listener::v3::filter::ConfigType::TypedConfig(config)) =
        &listener.filter_chains[0].filters[0].config_type
    else {
        panic!("no typed_config");
    };
    let hcm: HttpConnectionManager = any::unpack(config).unwrap();
    assert_eq!(hcm.stat_prefix, "ingress");

    let written = to_value(&bootstrap).unwrap();
    let filter = &written["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"];
    assert_eq!(
        filter["route_config"]["virtual_hosts"][0]["routes"][0]["route"],
        json!({"cluster": "up", "timeout": "0.250s"})
    );
    assert_eq!(filter["codec_type"], "HTTP1");
    assert_eq!(
        filter["http_filters"][0]["typed_config"]["@type"],
        "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
    );
    assert_eq!(
        written["static_resources"]["clusters"][0]["circuit_breakers"]["thresholds"][0],
        json!({"priority": "HIGH", "max_requests": 7})
    );
    assert_eq!(written["node"]["metadata"], value["node"]["metadata"]);
    assert_eq!(from_value::<Bootstrap>(&written).unwrap(), bootstrap);
}

#[test]
fn errors_name_the_path() {
    let hcm = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    let nested = |config: Value| json!({"filter_chains": [{"filters": [{"name": "x", "typed_config": config}]}]});
    for (value, expected) in [
        (
            json!({"nam": 1}),
            "nam: unknown field \"nam\" of envoy.config.listener.v3.Listener",
        ),
        (json!({"name": 1}), "name: expected a string, found 1"),
        (
            nested(json!({"@type": hcm, "stat_prefx": "x"})),
            "filter_chains[0].filters[0].typed_config.stat_prefx: unknown field \"stat_prefx\" of envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        ),
        (
            nested(json!({"@type": hcm, "codec_type": "HTTP9"})),
            "filter_chains[0].filters[0].typed_config.codec_type: unknown value \"HTTP9\": expected one of AUTO, HTTP1, HTTP2, HTTP3",
        ),
        (
            nested(json!({"@type": hcm, "codec_type": 9})),
            "filter_chains[0].filters[0].typed_config.codec_type: 9 is no value of envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.CodecType",
        ),
        (
            nested(json!({"@type": hcm, "rds": {}, "route_config": {}})),
            "filter_chains[0].filters[0].typed_config.route_config: conflicts with \"rds\": only one of oneof \"route_specifier\" may be set",
        ),
        (
            nested(json!({"@type": "type.googleapis.com/no.Such"})),
            "filter_chains[0].filters[0].typed_config.@type: unknown type \"type.googleapis.com/no.Such\"",
        ),
        (
            nested(json!({"a": 1})),
            "filter_chains[0].filters[0].typed_config: \"@type\" is missing",
        ),
        (
            json!({"metadata": {"filter_metadata": {"a.b": 1}}}),
            "metadata.filter_metadata[\"a.b\"]: expected an object, found 1",
        ),
        (
            json!({"filterChains": {}}),
            "filterChains: expected a list, found an object",
        ),
        (
            json!({"per_connection_buffer_limit_bytes": -1}),
            "per_connection_buffer_limit_bytes: expected an integer from 0 to 4294967295, found -1",
        ),
        (
            json!({"listener_filters_timeout": "1"}),
            "listener_filters_timeout: expected a duration such as \"1.5s\", found \"1\"",
        ),
        (
            json!({"stat_prefix": "a", "statPrefix": "b"}),
            "statPrefix: the same field as \"stat_prefix\"",
        ),
        (json!([]), "expected an object, found a list"),
    ] {
        let error = from_value::<Listener>(&value).unwrap_err();
        assert_eq!(error.to_string(), expected, "{value}");
    }
}

#[test]
fn scalars_follow_the_mapping() {
    for (given, expected) in [
        (json!({"port_value": "80"}), json!({"port_value": 80})),
        (json!({"port_value": 80.0}), json!({"port_value": 80})),
        (json!({"port_value": null, "address": null}), json!({})),
        (
            json!({"ipv4Compat": true, "protocol": "UDP"}),
            json!({"ipv4_compat": true, "protocol": "UDP"}),
        ),
    ] {
        let address: SocketAddress = from_value(&given).unwrap();
        assert_eq!(to_value(&address).unwrap(), expected, "{given}");
    }
    for wrong in [
        json!({"port_value": 80.5}),
        json!({"port_value": "x"}),
        json!({"ipv4_compat": "true"}),
    ] {
        assert!(from_value::<SocketAddress>(&wrong).is_err(), "{wrong}");
    }
    let source = json!({"inline_bytes": "_-8"});
    let data: crate::envoy::config::core::v3::DataSource = from_value(&source).unwrap();
    assert_eq!(to_value(&data).unwrap(), json!({"inline_bytes": "/+8="}));
}

#[test]
fn any_of_a_well_known_type_has_a_value() {
    let given = json!({"typed_filter_metadata": {"d": {"@type": "type.googleapis.com/google.protobuf.Duration", "value": "2s"}}});
    let metadata: Metadata = from_value(&given).unwrap();
    let duration: Duration = any::unpack(&metadata.typed_filter_metadata["d"]).unwrap();
    assert_eq!(duration.seconds, 2);
    assert_eq!(to_value(&metadata).unwrap(), given);
}

#[test]
fn typed_struct_stands_for_its_message() {
    for name in ["xds.type.v3.TypedStruct", "udpa.type.v1.TypedStruct"] {
        let given = json!({"typed_filter_metadata": {"f": {
            "@type": format!("type.googleapis.com/{name}"),
            "type_url": "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault",
            "value": {"abort": {"http_status": 503, "percentage": {"numerator": 10}}},
        }}});
        let metadata: Metadata = from_value(&given).unwrap();
        let fault: HttpFault = any::unpack(&metadata.typed_filter_metadata["f"]).unwrap();
        assert_eq!(fault.abort.unwrap().percentage.unwrap().numerator, 10);
    }
}

#[test]
fn types_of_the_mesh_resolve() {
    for url in [
        Bootstrap::type_url(),
        Listener::type_url(),
        Cluster::type_url(),
        RouteConfiguration::type_url(),
        ClusterLoadAssignment::type_url(),
        HttpConnectionManager::type_url(),
        RpcProxy::type_url(),
        "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy".into(),
        "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router".into(),
        "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault".into(),
        "type.googleapis.com/envoy.extensions.filters.listener.http_inspector.v3.HttpInspector".into(),
        "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector".into(),
        "type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst".into(),
        "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog".into(),
        "type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog".into(),
        "type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StderrAccessLog".into(),
        "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions".into(),
        "type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer".into(),
        "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate".into(),
        "type.googleapis.com/envoy.admin.v3.ConfigDump".into(),
        "type.googleapis.com/envoy.admin.v3.Clusters".into(),
        "type.googleapis.com/envoy.admin.v3.ServerInfo".into(),
        "type.googleapis.com/mosn.extensions.filters.listener.protocol_inspector.v1.ProtocolInspector".into(),
        "type.googleapis.com/mosn.extensions.upstreams.rpc.v1.RpcProtocolOptions".into(),
        "type.googleapis.com/mosn.extensions.bootstrap.mesh_registry.v1.MeshRegistry".into(),
        "type.googleapis.com/google.protobuf.Struct".into(),
    ] as [String; 26]
    {
        assert!(MessageType::by_url(&url).is_some(), "{url}");
    }
}

#[test]
fn depth_is_limited_both_ways() {
    let mut value = json!(1);
    for _ in 0..1000 {
        value = json!({"a": value});
    }
    assert!(
        struct_from_value(&value)
            .unwrap_err()
            .to_string()
            .ends_with("nested deeper than 100")
    );
    let mut bytes = Vec::new();
    for _ in 0..1000 {
        let mut outer = Vec::new();
        crate::wire::put_bytes(&mut outer, 1, b"type.googleapis.com/google.protobuf.Any");
        crate::wire::put_bytes(&mut outer, 2, &bytes);
        bytes = outer;
    }
    assert!(decode("google.protobuf.Any", &bytes).is_err());
}

fn any_json() -> impl Strategy<Value = Value> {
    let name = prop_oneof![
        Just("@type".to_owned()),
        Just("static_resources".to_owned()),
        Just("clusters".to_owned()),
        Just("listeners".to_owned()),
        Just("node".to_owned()),
        Just("metadata".to_owned()),
        Just("typed_config".to_owned()),
        Just("connectTimeout".to_owned()),
        "[a-z_@A-Z]{0,6}",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
        Just(Value::from(
            "type.googleapis.com/envoy.config.cluster.v3.Cluster"
        )),
        Just(Value::from("-0.000000001s")),
    ];
    leaf.prop_recursive(6, 40, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::vec((name.clone(), inner), 0..5)
                .prop_map(|entries| Value::Object(entries.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn struct_round_trips(value in any_json()) {
        let value = json!({"v": value});
        let first = struct_from_value(&value).unwrap();
        let written = struct_to_value(&first).unwrap();
        prop_assert_eq!(struct_from_value(&written).unwrap(), first);
    }

    #[test]
    fn route_round_trips(
        name in ".{0,8}", prefix in ".{0,8}", case in any::<Option<bool>>(), key in ".{0,8}", text in ".{0,8}",
        number in any::<f64>(),
    ) {
        let mut metadata = Metadata::default();
        let fields = [(text.clone(), ProtoValue { kind: Some(prost_types::value::Kind::NumberValue(number)) })];
        metadata.filter_metadata.insert(key, Struct { fields: fields.into() });
        let route = Route {
            name,
            r#match: Some(RouteMatch {
                path_specifier: Some(crate::envoy::config::route::v3::route_match::PathSpecifier::Prefix(prefix)),
                case_sensitive: case,
                ..Default::default()
            }),
            metadata: Some(metadata),
            ..Default::default()
        };
        prop_assert_eq!(from_value::<Route>(&to_value(&route).unwrap()).unwrap(), route);
    }

    #[test]
    fn address_round_trips(host in ".{0,8}", port in any::<u32>(), named in any::<Option<String>>()) {
        use socket_address::PortSpecifier;
        let port = named.map_or(PortSpecifier::PortValue(port), PortSpecifier::NamedPort);
        let socket = SocketAddress { address: host, port_specifier: Some(port), ..Default::default() };
        let address = Address { address: Some(address::Address::SocketAddress(socket)) };
        prop_assert_eq!(from_value::<Address>(&to_value(&address).unwrap()).unwrap(), address);
    }

    #[test]
    fn random_json_never_panics(value in any_json()) {
        let _ = from_value::<Bootstrap>(&value);
        let _ = from_value::<Cluster>(&value);
        let _ = from_value::<Node>(&value);
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        for name in ["envoy.config.bootstrap.v3.Bootstrap", "google.protobuf.Any", "google.protobuf.Struct"] {
            let _ = decode(name, &bytes);
        }
    }
}
