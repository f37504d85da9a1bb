//! Services and instances over HTTP.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use super::directory::{Name, Owner};
use super::http::{
    Answer, Asked, FAILED, INVALID, NO_INSTANCE, NOT_FOUND, Refusal, Style, json_response, said,
    wrapped, wrapped_json,
};
use super::provider::{self, BEAT_MS, beat_ms};
use super::requests::page_of;
use super::udp;
use super::written::{self, written};
use crate::nacos::{DEFAULT_CLUSTER, DEFAULT_GROUP, Host, grouped_name, namespace};

/// How long clients may use a list that changes are pushed to, and one that none are.
const CACHED_MS: (u64, u64) = (10_000, 3000);
/// Answers to a beat: it is known, it is not.
const KNOWN: u32 = 10_200;
const UNKNOWN: u32 = 20_404;

/// `None`: it is no path of these.
pub(super) async fn route(asked: &Asked, method: &Method, path: &str) -> Option<Answer> {
    let path = ["/v1/ns", "/v2/ns", "/v3/client/ns"]
        .into_iter()
        .find_map(|root| path.strip_prefix(root))?;
    Some(match (method, path) {
        (&Method::POST, "/instance") => register(asked).await,
        (&Method::DELETE, "/instance") => deregister(asked).await,
        (&Method::PUT | &Method::PATCH, "/instance") => update(asked).await,
        (&Method::GET, "/instance") => instance(asked),
        (&Method::GET, "/instance/list") => list(asked).await,
        (&Method::PUT, "/instance/beat") => beat(asked).await,
        (&Method::GET, "/service/list") => services(asked),
        (&Method::GET, "/service") => service(asked),
        (&Method::POST | &Method::PUT, "/service") => make_service(asked),
        (&Method::DELETE, "/service") => remove_service(asked),
        (&Method::GET, "/catalog/services") => catalog(asked),
        _ => return None,
    })
}

fn name(asked: &Asked) -> Result<Name, Refusal> {
    let service = asked.params.required(&["serviceName"])?;
    let group = asked.params.get(&["groupName"]).unwrap_or(DEFAULT_GROUP);
    Ok(Name::new(
        asked.params.text(&["namespaceId"]),
        group,
        service,
    ))
}

fn owner(host: &Host) -> Owner {
    match host.ephemeral {
        true => Owner::Beats,
        false => Owner::Nobody,
    }
}

/// The instance that parameters say.
fn host(asked: &Asked) -> Result<Host, Refusal> {
    let params = &asked.params;
    params.required(&["port"])?;
    let usual = Host::default();
    Ok(Host {
        ip: params.required(&["ip"])?.to_owned(),
        port: params.read(&["port"], 0)?,
        weight: params.read(&["weight"], usual.weight)?,
        healthy: params.truth(&["healthy"], true),
        enabled: params.truth(&["enabled", "enable"], true),
        ephemeral: params.truth(&["ephemeral"], true),
        cluster_name: params
            .get(&["clusterName", "cluster"])
            .unwrap_or(DEFAULT_CLUSTER)
            .to_owned(),
        metadata: metadata(params.text(&["metadata"]))?,
        ..usual
    })
}

/// JSON, or what was written before: `k=v,k=v`.
fn metadata(text: &str) -> Result<BTreeMap<String, String>, Refusal> {
    if text.is_empty() {
        return Ok(BTreeMap::new());
    }
    if text.trim_start().starts_with('{') {
        let read: Result<BTreeMap<String, Value>, _> = serde_json::from_str(text);
        let words = read.map_err(|error| Refusal::invalid(format!("metadata: {error}")))?;
        let word = |value| match value {
            Value::String(text) => text,
            other => other.to_string(),
        };
        let pairs = words.into_iter().filter(|(_, value)| !value.is_null());
        return Ok(pairs.map(|(key, value)| (key, word(value))).collect());
    }
    let pairs = text.split(',').map(|pair| match pair.split_once('=') {
        Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
        None => Err(Refusal::invalid("metadata: neither JSON nor k=v,k=v")),
    });
    pairs.collect()
}

fn no_instance(status: StatusCode) -> Refusal {
    Refusal::new(status, NO_INSTANCE, "no matched ip found!")
}

async fn register(asked: &Asked) -> Answer {
    let (name, host) = (name(asked)?, host(asked)?);
    if asked.is_v3 && asked.params.truth(&["heartBeat"], false) {
        return match provider::beat(&asked.server, &name, &host).await {
            Some(_) => Ok(said(asked.style, "ok")),
            None => Err(no_instance(StatusCode::OK)),
        };
    }
    provider::register(&asked.server, &name, owner(&host), vec![host]).await?;
    Ok(said(asked.style, "ok"))
}

async fn deregister(asked: &Asked) -> Answer {
    let (name, host) = (name(asked)?, host(asked)?);
    provider::deregister(&asked.server, &name, owner(&host), Some(&host)).await;
    Ok(said(asked.style, "ok"))
}

/// What is not said stays as it was.
async fn update(asked: &Asked) -> Answer {
    let (name, new) = (name(asked)?, host(asked)?);
    let params = &asked.params;
    let change = |host: &mut Host| {
        if params.get(&["weight"]).is_some() {
            host.weight = new.weight;
        }
        if params.get(&["enabled", "enable"]).is_some() {
            host.enabled = new.enabled;
        }
        if params.get(&["metadata"]).is_some() {
            host.metadata.clone_from(&new.metadata);
        }
    };
    match provider::alter(&asked.server, &name, owner(&new), &new, change).await? {
        true => Ok(said(asked.style, "ok")),
        false => Err(no_instance(StatusCode::BAD_REQUEST)),
    }
}

fn instance(asked: &Asked) -> Answer {
    let (name, host) = (name(asked)?, host(asked)?);
    let hosts = asked.server.state().directory.hosts(&name);
    let any_cluster = asked.params.get(&["clusterName", "cluster"]).is_none();
    let is_it = |known: &&Host| {
        let same_cluster = any_cluster || known.cluster_name == host.cluster_name;
        known.ip == host.ip && known.port == host.port && same_cluster
    };
    let found = hosts.iter().find(is_it);
    let found = found.ok_or_else(|| no_instance(StatusCode::NOT_FOUND))?;
    let body = json!({
        "service": found.service_name,
        "ip": found.ip,
        "port": found.port,
        "clusterName": found.cluster_name,
        "weight": found.weight,
        "healthy": found.healthy,
        "instanceId": found.instance_id,
        "metadata": found.metadata,
    });
    Ok(value(asked, &body))
}

fn value(asked: &Asked, body: &Value) -> Response {
    match asked.style {
        Style::Plain => axum::Json(body).into_response(),
        Style::Wrapped => wrapped(body),
    }
}

async fn list(asked: &Asked) -> Answer {
    let params = &asked.params;
    let wanted = written::Asked {
        name: name(asked)?,
        clusters: params.text(&["clusters", "clusterName"]).to_owned(),
        healthy_only: params.truth(&["healthyOnly"], false),
    };
    let port: u16 = params.read(&["udpPort"], 0)?;
    let list = written(&asked.server, &wanted).await;
    if port > 0 {
        let address = SocketAddr::new(asked.peer.ip(), port);
        udp::subscribe(&mut asked.server.state(), address, &wanted, &list);
    }
    if asked.is_v3 {
        return Ok(wrapped_json(&list.hosts));
    }
    let (pushed, asked_for) = CACHED_MS;
    let cache_millis = if port > 0 { pushed } else { asked_for };
    let grouped = grouped_name(&wanted.name.group, &wanted.name.service);
    let info = list.info(&wanted, &grouped, cache_millis);
    Ok(match asked.style {
        Style::Plain => json_response(info),
        Style::Wrapped => wrapped_json(&info),
    })
}

/// What old clients say of an instance with a beat.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Beat {
    ip: String,
    port: u16,
    weight: f64,
    service_name: String,
    cluster: String,
    metadata: BTreeMap<String, String>,
}

impl Default for Beat {
    fn default() -> Beat {
        Beat {
            ip: String::new(),
            port: 0,
            weight: 1.0,
            service_name: String::new(),
            cluster: DEFAULT_CLUSTER.to_owned(),
            metadata: BTreeMap::new(),
        }
    }
}

async fn beat(asked: &Asked) -> Answer {
    let params = &asked.params;
    let said: Option<Beat> = match params.get(&["beat"]) {
        None => None,
        Some(text) => {
            let read = serde_json::from_str(text);
            Some(read.map_err(|error| Refusal::invalid(format!("beat: {error}")))?)
        }
    };
    let service = match (params.get(&["serviceName"]), &said) {
        (Some(service), _) => service,
        (None, Some(beat)) => beat.service_name.as_str(),
        (None, None) => return Err(Refusal::missing("serviceName")),
    };
    let group = params.get(&["groupName"]).unwrap_or(DEFAULT_GROUP);
    let name = Name::new(params.text(&["namespaceId"]), group, service);
    let host = match said {
        None => host(asked)?,
        Some(beat) => Host {
            ip: beat.ip,
            port: beat.port,
            weight: beat.weight,
            cluster_name: beat.cluster,
            metadata: beat.metadata,
            ..Host::default()
        },
    };
    let is_whole = params.get(&["beat"]).is_some();
    let mut wait = provider::beat(&asked.server, &name, &host).await;
    if wait.is_none() && is_whole {
        wait = Some(beat_ms(&host));
        provider::register(&asked.server, &name, Owner::Beats, vec![host]).await?;
    }
    let body = json!({
        "clientBeatInterval": wait.unwrap_or(BEAT_MS),
        "code": if wait.is_some() { KNOWN } else { UNKNOWN },
        "lightBeatEnabled": true,
    });
    Ok(axum::Json(body).into_response())
}

fn page(asked: &Asked) -> Result<(usize, usize), Refusal> {
    let number = asked.params.read(&["pageNo"], 1)?;
    let size = asked.params.read(&["pageSize"], 20)?;
    Ok(page_of(number, size))
}

fn services(asked: &Asked) -> Answer {
    let (from, size) = page(asked)?;
    let group = asked.params.get(&["groupName"]).unwrap_or(DEFAULT_GROUP);
    let namespace = namespace(asked.params.text(&["namespaceId"]));
    let names = asked.server.state().directory.names(namespace, group);
    let count = names.len();
    let names: Vec<String> = names
        .into_iter()
        .skip(from)
        .take(size)
        .map(|name| name.to_string())
        .collect();
    Ok(match asked.style {
        Style::Plain => axum::Json(json!({"count": count, "doms": names})).into_response(),
        Style::Wrapped => wrapped(&json!({"count": count, "services": names})),
    })
}

fn service(asked: &Asked) -> Answer {
    let name = name(asked)?;
    let state = asked.server.state();
    if !state
        .directory
        .names(&name.namespace, &name.group)
        .contains(&name.service)
    {
        let why = format!("service not found, namespace: {}", name.namespace);
        return Err(Refusal::new(StatusCode::NOT_FOUND, NOT_FOUND, why));
    }
    let hosts = state.directory.hosts(&name);
    let mut clusters: Vec<&str> = hosts.iter().map(|h| h.cluster_name.as_str()).collect();
    clusters.sort_unstable();
    clusters.dedup();
    let clusters: Vec<Value> = clusters
        .into_iter()
        .map(|name| json!({"name": name, "healthChecker": {"type": "NONE"}, "metadata": {}}))
        .collect();
    let body = json!({
        "namespaceId": &*name.namespace,
        "groupName": &*name.group,
        "name": &*name.service,
        "protectThreshold": 0.0,
        "metadata": {},
        "selector": {"type": "none"},
        "clusters": clusters,
    });
    Ok(value(asked, &body))
}

fn make_service(asked: &Asked) -> Answer {
    let name = name(asked)?;
    let limits = asked.server.registry.limits();
    if name.service.len() + name.group.len() > limits.name_bytes {
        return Err(Refusal::new(
            StatusCode::BAD_REQUEST,
            INVALID,
            "the name is too long",
        ));
    }
    if !asked.server.state().directory.make(name) {
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        return Err(Refusal::new(status, FAILED, "there are too many services"));
    }
    Ok(said(asked.style, "ok"))
}

fn remove_service(asked: &Asked) -> Answer {
    let name = name(asked)?;
    let mut state = asked.server.state();
    if !state.directory.hosts(&name).is_empty() {
        let why = format!("Service {} is not empty", name.service);
        return Err(Refusal::new(StatusCode::BAD_REQUEST, INVALID, why));
    }
    state.directory.unmake(&name);
    Ok(said(asked.style, "ok"))
}

/// The console's list of services.
fn catalog(asked: &Asked) -> Answer {
    let (from, size) = page(asked)?;
    let params = &asked.params;
    let of_service = params.text(&["serviceNameParam"]);
    let of_group = params.text(&["groupNameParam"]);
    let state = asked.server.state();
    let all = state
        .directory
        .all(namespace(params.text(&["namespaceId"])));
    let meant: Vec<&Name> = all
        .iter()
        .filter(|name| name.service.contains(of_service) && name.group.contains(of_group))
        .collect();
    let count = meant.len();
    let page = meant.into_iter().skip(from).take(size).map(|name| {
        let hosts = state.directory.hosts(name);
        let healthy = hosts.iter().filter(|host| host.healthy).count();
        let clusters: std::collections::BTreeSet<&str> = hosts
            .iter()
            .map(|host| host.cluster_name.as_str())
            .collect();
        json!({
            "name": &*name.service,
            "groupName": &*name.group,
            "clusterCount": clusters.len(),
            "ipCount": hosts.len(),
            "healthyInstanceCount": healthy,
            "triggerFlag": "false",
        })
    });
    let page: Vec<Value> = page.collect();
    Ok(value(asked, &json!({"count": count, "serviceList": page})))
}

/// Old clients look whether the server is up.
pub(super) fn metrics(asked: &Asked) -> Response {
    let stats = asked.server.registry.stats();
    let connections = asked.server.state().connections.len();
    let body = json!({
        "status": "UP",
        "serviceCount": stats.services,
        "instanceCount": stats.instances,
        "connectionBasedClientCount": connections,
    });
    value(asked, &body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn metadata_are_read_in_both_forms() {
        let read = |text| metadata(text).expect("metadata");
        assert_eq!(read("{\"a\":\"1\",\"b\":2,\"c\":null}").len(), 2);
        assert_eq!(read("a=1,b=2").get("b").map(String::as_str), Some("2"));
        assert!(metadata("nonsense").is_err());
        assert!(metadata("{").is_err());
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "\\PC*") {
            // What is refused is refused with a reason.
            let _ = metadata(&text);
            let _ = serde_json::from_str::<Beat>(&text);
        }
    }
}
