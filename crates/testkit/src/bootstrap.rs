//! The bootstrap of a sidecar under test: the same for mosn and Envoy, but for mosn's registry extension.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde_json::{Map, Value, json};

/// Port of the admin interface, on the sidecar's own address.
pub(crate) const ADMIN_PORT: u16 = 15_000;
/// Port of the MeshRegistry interface, SOFARPC's default.
pub(crate) const MESH_REGISTRY_PORT: u16 = 13_330;

/// Who the sidecar is.
pub(crate) struct Identity<'a> {
    pub(crate) name: &'a str,
    pub(crate) namespace: &'a str,
    pub(crate) ip: Ipv4Addr,
    pub(crate) labels: &'a [(&'a str, &'a str)],
}

fn address(ip: impl Into<IpAddr>, port: u16) -> Value {
    json!({ "socket_address": { "address": ip.into().to_string(), "port_value": port } })
}

/// The part that Envoy takes, too.
pub(crate) fn common(identity: &Identity<'_>, pilot: SocketAddr) -> Value {
    let Identity {
        name,
        namespace,
        ip,
        labels,
    } = identity;
    let labels: Map<String, Value> = labels
        .iter()
        .map(|(key, value)| ((*key).to_owned(), json!(value)))
        .collect();
    let ads = json!({ "ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s" });
    let http2 = json!({
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": { "http2_protocol_options": {} },
    });
    json!({
        "node": {
            "id": format!("sidecar~{ip}~{name}.{namespace}~{namespace}.svc.cluster.local"),
            "cluster": format!("{name}.{namespace}"),
            "metadata": {
                "NAMESPACE": namespace,
                "NAME": name,
                "INSTANCE_IPS": ip.to_string(),
                "INTERCEPTION_MODE": "NONE",
                "LABELS": labels,
            },
        },
        "admin": { "address": address(*ip, ADMIN_PORT) },
        "dynamic_resources": {
            "ads_config": {
                "api_type": "GRPC",
                "transport_api_version": "V3",
                "grpc_services": [{ "envoy_grpc": { "cluster_name": "xds-grpc" } }],
            },
            "lds_config": ads,
            "cds_config": ads,
        },
        "static_resources": {
            "clusters": [{
                "name": "xds-grpc",
                "type": "STATIC",
                "connect_timeout": "1s",
                "typed_extension_protocol_options": {
                    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2,
                },
                "load_assignment": {
                    "cluster_name": "xds-grpc",
                    "endpoints": [{ "lb_endpoints": [
                        { "endpoint": { "address": address(pilot.ip(), pilot.port()) } },
                    ] }],
                },
            }],
        },
    })
}

/// As [`common`], with the MeshRegistry interface on the sidecar's address.
pub(crate) fn mosn(identity: &Identity<'_>, pilot: SocketAddr) -> Value {
    let mut bootstrap = common(identity, pilot);
    bootstrap["bootstrap_extensions"] = json!([{
        "name": "mosn.bootstrap.mesh_registry",
        "typed_config": {
            "@type": "type.googleapis.com/mosn.extensions.bootstrap.mesh_registry.v1.MeshRegistry",
            "address": address(identity.ip, MESH_REGISTRY_PORT),
            "cluster_name": "xds-grpc",
            "lease_ttl": "3s",
        },
    }]);
    bootstrap
}
