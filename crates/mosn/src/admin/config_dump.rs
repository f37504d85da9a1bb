//! `/config_dump`: everything in force and everything that waits, in the sections of `envoy.admin.v3.ConfigDump`.

use std::time::SystemTime;

use api::envoy::config::listener::v3::{Filter, Listener, filter};
use api::envoy::config::route::v3::RouteConfiguration;
use api::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, http_connection_manager::RouteSpecifier,
};
use api::google::protobuf::Any;
use api::mosn::extensions::filters::network::rpc_proxy::v1::{RpcProxy, rpc_proxy};
use axum::http::StatusCode;
use chrono::{DateTime, SecondsFormat, Utc};
use regex::Regex;
use serde_json::{Map, Value, json};

use super::clusters::locality_json;
use super::listed;
use super::stats::reason;
use super::{Query, Reply, Server, address_json};
use crate::cluster::{Health, HostsConfig};
use crate::manager::{Origin, Source};
use crate::server::State;

const PREFIX: &str = "type.googleapis.com/envoy.admin.v3.";
const PLAIN_TEXT: &str = "text/plain";

/// The repeated fields that `?resource=` may name, with the section and the message of their elements.
const RESOURCES: [(&str, &str); 9] = [
    ("static_clusters", "ClustersConfigDump.StaticCluster"),
    (
        "dynamic_active_clusters",
        "ClustersConfigDump.DynamicCluster",
    ),
    (
        "dynamic_warming_clusters",
        "ClustersConfigDump.DynamicCluster",
    ),
    (
        "static_endpoint_configs",
        "EndpointsConfigDump.StaticEndpointConfig",
    ),
    (
        "dynamic_endpoint_configs",
        "EndpointsConfigDump.DynamicEndpointConfig",
    ),
    ("static_listeners", "ListenersConfigDump.StaticListener"),
    ("dynamic_listeners", "ListenersConfigDump.DynamicListener"),
    ("static_route_configs", "RoutesConfigDump.StaticRouteConfig"),
    (
        "dynamic_route_configs",
        "RoutesConfigDump.DynamicRouteConfig",
    ),
];

/// Which names are asked for; the whole name must match.
struct Names(Option<Regex>);

impl Names {
    fn wanted(&self, name: &str) -> bool {
        self.0.as_ref().is_none_or(|regex| regex.is_match(name))
    }
}

pub(super) async fn config_dump(server: &Server, query: Query) -> Reply {
    match server.with(move |state| dump(state, &query)).await {
        Some(Ok(value)) => Reply::json(&value),
        Some(Err(reply)) => reply,
        None => Reply::ending(),
    }
}

fn dump(state: &State, query: &Query) -> Result<Value, Reply> {
    let refuse = |status, text: String| Reply {
        content_type: PLAIN_TEXT,
        ..Reply::error(status, text)
    };
    if query.has("mask") {
        return Err(refuse(
            StatusCode::BAD_REQUEST,
            "mask is not supported; use resource or name_regex".to_owned(),
        ));
    }
    let names = match query.get("name_regex").filter(|regex| !regex.is_empty()) {
        Some(regex) => {
            let compiled = Regex::new(&format!("^(?:{regex})$")).map_err(|error| {
                let text = format!(
                    "INVALID_ARGUMENT: Error while parsing name_regex from {regex}: {}",
                    reason(&error)
                );
                refuse(StatusCode::BAD_REQUEST, text)
            });
            Names(Some(compiled?))
        }
        None => Names(None),
    };
    let sections = [
        ("BootstrapConfigDump", bootstrap(state)),
        ("ClustersConfigDump", clusters(state, &names)),
        (
            "EndpointsConfigDump",
            if query.has("include_eds") {
                endpoints(state, &names)
            } else {
                Map::new()
            },
        ),
        ("ListenersConfigDump", listeners(state, &names)),
        ("ScopedRoutesConfigDump", Map::new()),
        ("RoutesConfigDump", routes(state, &names)),
        ("SecretsConfigDump", Map::new()),
    ];
    let Some(resource) = query.get("resource") else {
        let configs = sections
            .into_iter()
            .filter(|(name, fields)| *name != "EndpointsConfigDump" || !fields.is_empty());
        return Ok(
            json!({"configs": configs.map(|(name, fields)| typed(name, fields)).collect::<Vec<_>>()}),
        );
    };
    if resource == "bootstrap" {
        let text = "bootstrap is not a repeated field. Use ?mask=bootstrap to get only this field";
        return Err(refuse(StatusCode::BAD_REQUEST, text.to_owned()));
    }
    let Some((_, element)) = RESOURCES.iter().find(|(name, _)| *name == resource) else {
        return Err(refuse(
            StatusCode::NOT_FOUND,
            format!("{resource} not found in config dump"),
        ));
    };
    let found = sections
        .into_iter()
        .find_map(|(_, mut fields)| fields.remove(resource));
    let items = match found {
        Some(Value::Array(items)) => items,
        _ => Vec::new(),
    };
    let items = items.into_iter().filter_map(|item| match item {
        Value::Object(fields) => Some(typed(element, fields)),
        _ => None,
    });
    Ok(listed("configs", items.collect()))
}

/// A message of `envoy.admin.v3` as it stands in an Any.
fn typed(name: &str, fields: Map<String, Value>) -> Value {
    let mut all = Map::new();
    all.insert("@type".to_owned(), json!(format!("{PREFIX}{name}")));
    all.extend(fields);
    Value::Object(all)
}

/// Milliseconds, as Envoy has them.
fn timestamp(time: SystemTime) -> Value {
    json!(DateTime::<Utc>::from(time).to_rfc3339_opts(SecondsFormat::Millis, true))
}

/// The message inside an Any, with its type. One that the tables do not know cannot have been loaded.
fn expanded(any: &Any) -> Value {
    let decoded = api::json::decode(api::any::type_name(any), &any.value);
    let mut all = Map::new();
    all.insert("@type".to_owned(), json!(any.type_url));
    if let Ok(Value::Object(fields)) = decoded {
        all.extend(fields);
    }
    Value::Object(all)
}

/// One resource with its version and time.
fn sourced(key: &str, source: &Source) -> Map<String, Value> {
    let mut fields = Map::new();
    if source.origin == Origin::Dynamic && !source.version.is_empty() {
        fields.insert("version_info".to_owned(), json!(source.version));
    }
    fields.insert(key.to_owned(), expanded(&source.resource));
    fields.insert("last_updated".to_owned(), timestamp(source.updated));
    fields
}

/// Puts a list in, unless it is empty.
fn list(fields: &mut Map<String, Value>, key: &str, items: Vec<Map<String, Value>>) {
    if !items.is_empty() {
        fields.insert(
            key.to_owned(),
            items.into_iter().map(Value::Object).collect(),
        );
    }
}

/// The version of the newest dynamic resource: that of the last response that changed anything.
fn version<'a>(sources: impl Iterator<Item = &'a Source>) -> Option<&'a str> {
    let newest = sources
        .filter(|source| source.origin == Origin::Dynamic)
        .max_by_key(|source| source.updated)?;
    Some(newest.version.as_str()).filter(|version| !version.is_empty())
}

fn bootstrap(state: &State) -> Map<String, Value> {
    let mut fields = Map::new();
    fields.insert(
        "bootstrap".to_owned(),
        api::json::to_value(&state.bootstrap).unwrap_or_default(),
    );
    fields.insert("last_updated".to_owned(), timestamp(state.started_at));
    fields
}

fn clusters(state: &State, names: &Names) -> Map<String, Value> {
    let (mut fixed, mut active, mut warming) = (Vec::new(), Vec::new(), Vec::new());
    let mut sources = Vec::new();
    for (name, entry) in state.manager.clusters() {
        let entries = [
            (entry.active.as_ref(), true),
            (
                entry.warming.as_ref().map(|warming| &warming.cluster),
                false,
            ),
        ];
        for (compiled, is_active) in entries {
            let Some(source) = compiled.map(|compiled| &compiled.source) else {
                continue;
            };
            sources.push(source);
            if names.wanted(name) {
                let into = match (source.origin, is_active) {
                    (Origin::Static, _) => &mut fixed,
                    (Origin::Dynamic, true) => &mut active,
                    (Origin::Dynamic, false) => &mut warming,
                };
                into.push(sourced("cluster", source));
            }
        }
    }
    let mut fields = Map::new();
    if let Some(version) = version(sources.into_iter()) {
        fields.insert("version_info".to_owned(), json!(version));
    }
    list(&mut fields, "static_clusters", fixed);
    list(&mut fields, "dynamic_active_clusters", active);
    list(&mut fields, "dynamic_warming_clusters", warming);
    fields
}

fn listeners(state: &State, names: &Names) -> Map<String, Value> {
    let (mut fixed, mut dynamic) = (Vec::new(), Vec::new());
    let mut sources = Vec::new();
    for (name, entry) in state.manager.listeners() {
        let active = entry.active.as_ref().map(|active| &active.source);
        let warming = entry
            .warming
            .as_ref()
            .map(|warming| &warming.listener.source);
        sources.extend(active.into_iter().chain(warming));
        if !names.wanted(name) {
            continue;
        }
        match active.or(warming) {
            Some(source) if source.origin == Origin::Static => {
                fixed.push(sourced("listener", source))
            }
            Some(_) => {
                let mut listener = Map::new();
                listener.insert("name".to_owned(), json!(name));
                for (key, source) in [("active_state", active), ("warming_state", warming)] {
                    if let Some(source) = source {
                        listener.insert(key.to_owned(), sourced("listener", source).into());
                    }
                }
                dynamic.push(listener);
            }
            None => {}
        }
    }
    let mut fields = Map::new();
    if let Some(version) = version(sources.into_iter()) {
        fields.insert("version_info".to_owned(), json!(version));
    }
    list(&mut fields, "static_listeners", fixed);
    list(&mut fields, "dynamic_listeners", dynamic);
    fields
}

fn routes(state: &State, names: &Names) -> Map<String, Value> {
    let mut fixed = Vec::new();
    for (_, entry) in state.manager.listeners() {
        let Some(source) = entry.active.as_ref().map(|active| &active.source) else {
            continue;
        };
        for routes in inline_routes(&source.resource) {
            if names.wanted(&routes.name) {
                let inline = Source {
                    origin: Origin::Static,
                    resource: api::any::pack(&routes),
                    ..source.clone()
                };
                fixed.push(sourced("route_config", &inline));
            }
        }
    }
    let dynamic = state
        .manager
        .routes()
        .filter(|(name, _)| names.wanted(name));
    let dynamic = dynamic
        .map(|(_, entry)| sourced("route_config", &entry.table.source))
        .collect();
    let mut fields = Map::new();
    list(&mut fields, "static_route_configs", fixed);
    list(&mut fields, "dynamic_route_configs", dynamic);
    fields
}

/// The route configurations that are written inside a listener.
fn inline_routes(listener: &Any) -> Vec<RouteConfiguration> {
    let Ok(listener) = api::any::unpack::<Listener>(listener) else {
        return Vec::new();
    };
    let chains = listener
        .filter_chains
        .iter()
        .chain(&listener.default_filter_chain);
    chains
        .flat_map(|chain| &chain.filters)
        .filter_map(inline_routes_of)
        .collect()
}

fn inline_routes_of(filter: &Filter) -> Option<RouteConfiguration> {
    let Some(filter::ConfigType::TypedConfig(config)) = &filter.config_type else {
        return None;
    };
    if api::any::is::<HttpConnectionManager>(config) {
        return match api::any::unpack::<HttpConnectionManager>(config)
            .ok()?
            .route_specifier
        {
            Some(RouteSpecifier::RouteConfig(routes)) => Some(routes),
            _ => None,
        };
    }
    if api::any::is::<RpcProxy>(config) {
        return match api::any::unpack::<RpcProxy>(config).ok()?.route_specifier {
            Some(rpc_proxy::RouteSpecifier::RouteConfig(routes)) => Some(routes),
            _ => None,
        };
    }
    None
}

fn endpoints(state: &State, names: &Names) -> Map<String, Value> {
    let (mut fixed, mut dynamic) = (Vec::new(), Vec::new());
    for (name, entry) in state.manager.endpoints() {
        if names.wanted(name) {
            dynamic.push(sourced("endpoint_config", &entry.source));
        }
    }
    let by_eds: Vec<_> = state.manager.endpoints().map(|(name, _)| name).collect();
    for (name, entry) in state.manager.clusters() {
        let Some(active) = &entry.active else {
            continue;
        };
        if names.wanted(name) && !by_eds.contains(&name) {
            let mut fields = Map::new();
            fields.insert("endpoint_config".to_owned(), assignment(name, &entry.hosts));
            match active.source.origin {
                Origin::Static => fixed.push(fields),
                Origin::Dynamic => dynamic.push(fields),
            }
        }
    }
    let mut fields = Map::new();
    list(&mut fields, "static_endpoint_configs", fixed);
    list(&mut fields, "dynamic_endpoint_configs", dynamic);
    fields
}

/// The hosts of a cluster whose endpoints did not come by EDS, as a load assignment.
fn assignment(cluster: &str, hosts: &HostsConfig) -> Value {
    let mut groups: Vec<((&str, u32), Value, Vec<Value>)> = Vec::new();
    for host in &hosts.hosts {
        let key = (&*host.locality, host.priority);
        let health = match host.health {
            Health::Healthy => "HEALTHY",
            Health::Unhealthy => "UNHEALTHY",
            Health::Degraded => "DEGRADED",
        };
        let endpoint = json!({
            "endpoint": {"address": address_json(host.address), "health_check_config": {}, "hostname": host.hostname},
            "health_status": health,
            "load_balancing_weight": host.weight,
        });
        match groups.iter_mut().find(|(known, ..)| *known == key) {
            Some((_, _, endpoints)) => endpoints.push(endpoint),
            None => groups.push((key, locality_json(host), vec![endpoint])),
        }
    }
    let groups = groups.into_iter().map(|((_, priority), locality, endpoints)| {
        json!({"locality": locality, "lb_endpoints": endpoints, "priority": priority})
    });
    json!({
        "@type": "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
        "cluster_name": cluster,
        "endpoints": groups.collect::<Vec<_>>(),
        "policy": {"overprovisioning_factor": 140},
    })
}

/// `/init_dump`: what warms, by kind.
pub(super) async fn init_dump(server: &Server) -> Reply {
    let waiting = server.with(|state| {
        let clusters = state
            .manager
            .clusters()
            .filter(|(_, entry)| entry.warming.is_some());
        let listeners = state
            .manager
            .listeners()
            .filter(|(_, entry)| entry.warming.is_some());
        let kinds = [
            (
                "cluster",
                clusters.map(|(name, _)| name.clone()).collect::<Vec<_>>(),
            ),
            (
                "listener",
                listeners.map(|(name, _)| name.clone()).collect(),
            ),
        ];
        let dumps = kinds.into_iter().filter(|(_, names)| !names.is_empty());
        dumps
            .map(|(kind, names)| json!({"name": kind, "target_names": names}))
            .collect::<Vec<_>>()
    });
    match waiting.await {
        Some(dumps) if dumps.is_empty() => Reply::json(&json!({})),
        Some(dumps) => Reply::json(&json!({"unready_targets_dumps": dumps})),
        None => Reply::ending(),
    }
}
