//! istiod's debug pages: what pilot knows, and what each proxy has of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{Query, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use xds::server::{CLUSTER, ENDPOINTS, LISTENER, ROUTE, ResourceSet};

use crate::istio::{Object, Spec};
use crate::push::{Connected, Hub};
use crate::snapshot::Snapshot;
use crate::world::{EndpointPorts, Source};

/// Pages with what they show.
const PAGES: &[(&str, &str)] = &[
    (
        "/debug/syncz",
        "what was sent to each proxy and what it took",
    ),
    ("/debug/registryz", "all services"),
    (
        "/debug/registries",
        "each registry that is read and written, entries that were skipped, and what is copied",
    ),
    ("/debug/endpointz", "the endpoints of all services"),
    ("/debug/configz", "the configuration in force"),
    (
        "/debug/invalidz",
        "documents that are not in force as written, with the reason",
    ),
    ("/debug/connections", "the connected proxies"),
    (
        "/debug/config_dump?proxyID=<name.namespace>",
        "the resources of a proxy",
    ),
    ("/debug/mesh", "the mesh configuration"),
    ("/debug/list", "this list"),
];

/// `/ready` and `/debug/…`.
pub(crate) fn router(hub: Arc<Hub>) -> Router {
    Router::new()
        .route("/ready", get(ready))
        .route("/debug", get(list))
        .route("/debug/list", get(list))
        .route("/debug/syncz", get(syncz))
        .route("/debug/registryz", get(registryz))
        .route("/debug/registries", get(registries))
        .route("/debug/endpointz", get(endpointz))
        .route("/debug/endpointShardz", get(endpointz))
        .route("/debug/configz", get(configz))
        .route("/debug/invalidz", get(invalidz))
        .route("/debug/connections", get(connections))
        .route("/debug/config_dump", get(config_dump))
        .route("/debug/mesh", get(mesh))
        .with_state(hub)
}

async fn ready(State(hub): State<Arc<Hub>>) -> StatusCode {
    match hub.snapshot() {
        Some(_) => StatusCode::OK,
        None => StatusCode::SERVICE_UNAVAILABLE,
    }
}

async fn list() -> Response {
    let mut text = String::new();
    for (page, what) in PAGES {
        text.push_str(&format!("{page:<48} {what}\n"));
    }
    text.into_response()
}

fn not_ready() -> Response {
    (
        StatusCode::SERVICE_UNAVAILABLE,
        "the sources have not been read yet\n",
    )
        .into_response()
}

fn pretty(value: &Value) -> Response {
    let text = serde_json::to_string_pretty(value).unwrap_or_default() + "\n";
    let json = HeaderValue::from_static("application/json");
    ([(header::CONTENT_TYPE, json)], text).into_response()
}

async fn syncz(State(hub): State<Arc<Hub>>) -> Response {
    let proxies: Vec<Value> = hub.connected().iter().map(sync_status).collect();
    pretty(&Value::Array(proxies))
}

fn sync_status(connected: &Connected) -> Value {
    let mut status = json!({
        "proxy": connected.proxy.id,
        "proxy_type": "sidecar",
        "cluster_id": "Kubernetes",
        "istio_version": connected.proxy.version,
    });
    for (name, type_url) in [
        ("cluster", CLUSTER),
        ("listener", LISTENER),
        ("route", ROUTE),
        ("endpoint", ENDPOINTS),
    ] {
        let state = connected.types.get(type_url).cloned().unwrap_or_default();
        status[format!("{name}_sent")] = state.sent.into();
        status[format!("{name}_acked")] = state.acked.into();
        if let Some(error) = state.error {
            status[format!("{name}_error")] = error.into();
        }
    }
    status
}

async fn connections(State(hub): State<Arc<Hub>>) -> Response {
    let connected = hub.connected();
    let clients: Vec<Value> = connected
        .iter()
        .map(|connected| {
            let proxy = &connected.proxy;
            let watches: BTreeMap<&str, Value> = connected
                .types
                .iter()
                .map(|(type_url, state)| {
                    (
                        type_url.as_str(),
                        state.names.map_or(json!("*"), |names| json!(names)),
                    )
                })
                .collect();
            json!({
                "proxy": proxy.id,
                "address": connected.peer.map(|peer| peer.to_string()),
                "ip": proxy.ip.to_string(),
                "namespace": proxy.namespace,
                "cluster": proxy.cluster,
                "labels": proxy.labels,
                "version": proxy.version,
                "watches": watches,
            })
        })
        .collect();
    pretty(&json!({"totalClients": clients.len(), "clients": clients}))
}

async fn registryz(State(hub): State<Arc<Hub>>) -> Response {
    let Some(snapshot) = hub.snapshot() else {
        return not_ready();
    };
    let services: Vec<Value> = snapshot
        .world
        .index
        .services
        .values()
        .map(|service| {
            let ports: Vec<Value> = service
                .ports
                .iter()
                .map(|port| {
                    json!({
                        "name": port.name,
                        "port": port.number,
                        "targetPort": port.target,
                        "protocol": port.protocol.as_str(),
                    })
                })
                .collect();
            json!({
                "hostname": service.id.host,
                "ports": ports,
                "addresses": service.addresses,
                "resolution": service.resolution,
                "meshExternal": service.external,
                "source": match service.source {
                    Source::Config => "config",
                    Source::Registry => "registry",
                },
                "attributes": {"namespace": service.id.namespace, "name": service.id.host},
            })
        })
        .collect();
    pretty(&Value::Array(services))
}

async fn registries(State(hub): State<Arc<Hub>>) -> Response {
    match hub.registries().status().await {
        Some(status) => {
            let mut page = json!(status);
            page["sync"] = json!(**hub.sync_status().borrow());
            pretty(&page)
        }
        None => not_ready(),
    }
}

async fn endpointz(State(hub): State<Arc<Hub>>) -> Response {
    let Some(snapshot) = hub.snapshot() else {
        return not_ready();
    };
    let world = &snapshot.world;
    let mut all = Vec::new();
    for service in world.index.services.values() {
        for port in &service.ports {
            let endpoints = world.endpoints_of(&service.id);
            let endpoints: Vec<Value> = endpoints
                .filter_map(|endpoint| {
                    let number = endpoint.port(port)?;
                    let mut value = json!({
                        "address": endpoint.address,
                        "port": number,
                        "weight": endpoint.weight,
                        "healthy": endpoint.healthy,
                        "labels": endpoint.labels,
                        "source": match endpoint.ports {
                            EndpointPorts::Numbered(_) => "config",
                            EndpointPorts::Only(..) => "registry",
                        },
                    });
                    if let Some(labels) = world.workloads.get(endpoint.address.as_ref()) {
                        value["workloadLabels"] = json!(labels);
                    }
                    if let Some(rpc) = &endpoint.rpc {
                        value["version"] = json!(rpc.version);
                        value["group"] = json!(rpc.group);
                    }
                    Some(value)
                })
                .collect();
            all.push(json!({
                "svc": format!("{}:{}", service.id.host, port.name),
                "namespace": service.id.namespace,
                "ep": endpoints,
            }));
        }
    }
    pretty(&Value::Array(all))
}

async fn configz(State(hub): State<Arc<Hub>>) -> Response {
    let Some(snapshot) = hub.snapshot() else {
        return not_ready();
    };
    let objects = snapshot.world.index.config.values();
    pretty(&Value::Array(
        objects.map(|object| object_value(object)).collect(),
    ))
}

fn object_value(object: &Object) -> Value {
    let spec = match &object.spec {
        Spec::ServiceEntry(spec) => serde_json::to_value(spec),
        Spec::WorkloadEntry(spec) => serde_json::to_value(spec),
        Spec::VirtualService(spec) => serde_json::to_value(spec),
        Spec::DestinationRule(spec) => serde_json::to_value(spec),
        Spec::Sidecar(spec) => serde_json::to_value(spec),
        Spec::RegistrySource(spec) => serde_json::to_value(spec),
        Spec::RegistrySync(spec) => serde_json::to_value(spec),
    };
    json!({
        "apiVersion": object.id.kind.api_version(),
        "kind": object.id.kind,
        "metadata": {
            "name": object.id.name,
            "namespace": object.id.namespace,
            "labels": object.labels,
            "annotations": object.annotations,
        },
        "spec": without_nulls(spec.unwrap_or_default()),
    })
}

fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let given = fields.into_iter().filter(|(_, value)| !value.is_null());
            Value::Object(
                given
                    .map(|(key, value)| (key, without_nulls(value)))
                    .collect(),
            )
        }
        Value::Array(items) => Value::Array(items.into_iter().map(without_nulls).collect()),
        other => other,
    }
}

async fn invalidz(State(hub): State<Arc<Hub>>) -> Response {
    let Some(snapshot) = hub.snapshot() else {
        return not_ready();
    };
    let problems: Vec<Value> = snapshot
        .problems
        .iter()
        .map(|problem| {
            let mut value = json!(problem);
            value["text"] = problem.to_string().into();
            value
        })
        .collect();
    pretty(&Value::Array(problems))
}

async fn mesh(State(hub): State<Arc<Hub>>) -> Response {
    let Some(snapshot) = hub.snapshot() else {
        return not_ready();
    };
    pretty(&json!(*snapshot.world.mesh))
}

#[derive(Deserialize)]
struct DumpQuery {
    #[serde(rename = "proxyID")]
    proxy: Option<String>,
}

async fn config_dump(State(hub): State<Arc<Hub>>, Query(query): Query<DumpQuery>) -> Response {
    let Some(snapshot) = hub.snapshot() else {
        return not_ready();
    };
    let Some(wanted) = query.proxy else {
        return (
            StatusCode::BAD_REQUEST,
            "say which proxy: ?proxyID=<name.namespace>\n",
        )
            .into_response();
    };
    let connected = hub.connected();
    match connected
        .iter()
        .find(|connected| *connected.proxy.id == *wanted)
    {
        Some(connected) => pretty(&dump(&snapshot, connected)),
        None => (
            StatusCode::NOT_FOUND,
            format!("no proxy `{wanted}` is connected\n"),
        )
            .into_response(),
    }
}

/// What the proxy's class has in this snapshot, in the form of Envoy's own dump.
fn dump(snapshot: &Snapshot, connected: &Connected) -> Value {
    let generated = snapshot.generated(&connected.proxy);
    let set = |type_url: &str| generated.resources(type_url, &connected.proxy);
    let version = format!("{}", generated.revision());
    let wrapped = |type_url: &str, field: &str| -> Vec<Value> {
        decoded(&set(type_url), type_url)
            .map(|(_, message)| {
                let mut value = json!({"version_info": version});
                value[field] = message;
                value
            })
            .collect()
    };
    let listeners: Vec<Value> = decoded(&set(LISTENER), LISTENER)
        .map(|(name, message)| json!({"name": name, "active_state": {"version_info": version, "listener": message}}))
        .collect();
    json!({"configs": [
        {
            "@type": "type.googleapis.com/envoy.admin.v3.ClustersConfigDump",
            "dynamic_active_clusters": wrapped(CLUSTER, "cluster"),
        },
        {
            "@type": "type.googleapis.com/envoy.admin.v3.ListenersConfigDump",
            "dynamic_listeners": listeners,
        },
        {
            "@type": "type.googleapis.com/envoy.admin.v3.RoutesConfigDump",
            "dynamic_route_configs": wrapped(ROUTE, "route_config"),
        },
        {
            "@type": "type.googleapis.com/envoy.admin.v3.EndpointsConfigDump",
            "dynamic_endpoint_configs": wrapped(ENDPOINTS, "endpoint_config"),
        },
    ]})
}

/// The resources of a set as JSON, each with its type.
fn decoded<'a>(
    set: &'a ResourceSet,
    type_url: &'a str,
) -> impl Iterator<Item = (String, Value)> + 'a {
    let name = type_url.rsplit('/').next().unwrap_or_default();
    set.iter().map(move |resource| {
        let message = match api::json::decode(name, &resource.value()) {
            Ok(Value::Object(fields)) => {
                let mut value = json!({"@type": type_url});
                if let Value::Object(with_type) = &mut value {
                    with_type.extend(fields);
                }
                value
            }
            Ok(other) => other,
            Err(error) => json!({"error": error.to_string()}),
        };
        (resource.name.to_string(), message)
    })
}

/// `/metrics`, `/version` and the debug pages: the monitoring port.
pub(crate) fn monitoring(hub: Arc<Hub>, metrics: Arc<crate::metrics::Metrics>) -> Router {
    let (registries, sync) = (hub.registries().clone(), hub.sync_status());
    let text = move || async move {
        let kind = HeaderValue::from_static("text/plain; version=0.0.4");
        let mut text = metrics.render();
        if let Some(status) = registries.status().await {
            crate::metrics::render_registries(&mut text, &status);
        }
        crate::metrics::render_sync(&mut text, &sync.borrow());
        ([(header::CONTENT_TYPE, kind)], text)
    };
    let version =
        || async { Json(json!({"component": "pilot", "version": env!("CARGO_PKG_VERSION")})) };
    router(hub)
        .route("/metrics", get(text))
        .route("/version", get(version))
}
