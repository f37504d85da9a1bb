//! What answers look like.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;
use serde::ser::SerializeMap;
use serde_json::{Value, json};

use super::query::Page;
use crate::interfaces::{Interface, Interfaces};
use crate::metadata::Metadata;
use crate::model::{InstanceRef, Selector};
use crate::namespace::Namespace;
use crate::osr::{Done, Stats};
use crate::page;
use crate::services::{Service, Services};
use crate::sessions::{SessionId, SessionState};
use crate::state::{Registered, Renewed};

/// An instance.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Instance<'a> {
    namespace: &'a str,
    protocol: &'a str,
    service: &'a str,
    id: &'a str,
    version: &'a str,
    group: &'a str,
    address: &'a str,
    port: u16,
    weight: u32,
    healthy: bool,
    #[serde(serialize_with = "metadata")]
    metadata: &'a Metadata,
    origin: &'a str,
    ttl_seconds: Value,
    revision: u64,
}

fn metadata<S: serde::Serializer>(metadata: &Metadata, serializer: S) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(metadata.len()))?;
    for (key, value) in metadata.iter() {
        map.serialize_entry(key, value)?;
    }
    map.end()
}

/// Whole seconds without a fraction, so that 30 is not written 30.0; 0 for no lease.
fn seconds(ttl: Option<std::time::Duration>) -> Value {
    match ttl {
        None => json!(0),
        Some(ttl) if ttl.subsec_nanos() == 0 => json!(ttl.as_secs()),
        Some(ttl) => json!(ttl.as_secs_f64()),
    }
}

impl<'a> Instance<'a> {
    pub(super) fn of(instance: &'a crate::model::Instance) -> Instance<'a> {
        Instance {
            namespace: instance.service.namespace.as_str(),
            protocol: &instance.service.protocol,
            service: &instance.service.name,
            id: &instance.id,
            version: &instance.version,
            group: &instance.group,
            address: &instance.address,
            port: instance.port,
            weight: instance.weight,
            healthy: instance.healthy,
            metadata: &instance.metadata,
            origin: &instance.origin,
            ttl_seconds: seconds(instance.ttl),
            revision: instance.revision,
        }
    }
}

/// Instances of one version and group.
#[derive(Default)]
struct Counts {
    instances: usize,
    available: usize,
}

/// A service in a list: how many instances of which version and group.
fn summary(service: &Service, interfaces: &[Arc<Interface>]) -> Value {
    let mut versions: BTreeMap<(&str, &str), Counts> = BTreeMap::new();
    for instance in service.instances.iter() {
        let counts = versions
            .entry((&instance.version, &instance.group))
            .or_default();
        counts.instances += 1;
        counts.available += usize::from(instance.is_available());
    }
    let versions = versions.iter().map(|((version, group), counts)| {
        json!({
            "version": version,
            "group": group,
            "instances": counts.instances,
            "available": counts.available,
            "interface": interfaces.iter().any(|i| *i.key.version == **version && *i.key.group == **group),
        })
    });
    json!({
        "namespace": service.key.namespace.as_str(),
        "protocol": service.key.protocol,
        "service": service.key.name,
        "instances": service.instances.len(),
        "available": service.instances.iter().filter(|i| i.is_available()).count(),
        "versions": versions.collect::<Vec<_>>(),
    })
}

pub(super) fn service_list(
    services: &Services,
    interfaces: &Interfaces,
    selector: &Selector,
    page: &Page,
) -> Value {
    let (shown, next) = page::list_services(services, selector, page.after.as_deref(), page.limit);
    let summaries = shown
        .iter()
        .map(|service| summary(service, &interfaces.of_service(&service.key)));
    let mut list = json!({
        "revision": services.revision,
        "services": summaries.collect::<Vec<_>>(),
    });
    if let Some(next) = next {
        list["next"] = json!(next);
    }
    list
}

/// The namespaces that hold services, and how many.
pub(super) fn namespace_list(services: &Services, is_seen: impl Fn(&Namespace) -> bool) -> Value {
    let mut counts: BTreeMap<&Namespace, (usize, usize)> = BTreeMap::new();
    for service in services.iter() {
        let (services, instances) = counts.entry(&service.key.namespace).or_default();
        *services += 1;
        *instances += service.instances.len();
    }
    let seen = counts.iter().filter(|(namespace, _)| is_seen(namespace));
    let namespaces = seen.map(|(namespace, (services, instances))| {
        json!({ "namespace": namespace.as_str(), "services": services, "instances": instances })
    });
    json!({
        "revision": services.revision,
        "namespaces": namespaces.collect::<Vec<_>>(),
    })
}

pub(super) fn service_detail(
    revision: u64,
    service: &Service,
    interfaces: &[Arc<Interface>],
) -> Value {
    let mut detail = summary(service, interfaces);
    detail["revision"] = json!(revision);
    detail["interfaces"] = interfaces.iter().map(|i| interface(i)).collect();
    detail
}

/// A description of an interface, in short.
fn interface(interface: &Interface) -> Value {
    let key = &interface.key;
    json!({
        "namespace": key.service.namespace.as_str(),
        "protocol": key.service.protocol,
        "service": key.service.name,
        "version": key.version,
        "group": key.group,
        "methods": interface.methods,
        "types": interface.types.len(),
        "bytes": interface.bytes,
    })
}

/// A page of descriptions.
pub(super) fn interface_list(interfaces: &[Arc<Interface>], next: Option<String>) -> Value {
    let shown: Vec<Value> = interfaces.iter().map(|i| interface(i)).collect();
    let mut list = json!({ "interfaces": shown });
    if let Some(next) = next {
        list["next"] = json!(next);
    }
    list
}

/// A page of instances of many services.
#[derive(Serialize)]
pub(super) struct Everything<'a> {
    revision: u64,
    instances: Vec<Instance<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

pub(super) fn everything<'a>(
    services: &'a Services,
    selector: &Selector,
    page: &Page,
) -> Everything<'a> {
    let list = page::list_instances(services, selector, page.after.as_deref(), page.limit);
    Everything {
        revision: services.revision,
        instances: list.0.iter().map(|i| Instance::of(i)).collect(),
        next: list.1,
    }
}

/// A page of instances.
#[derive(Serialize)]
pub(super) struct InstanceList<'a> {
    revision: u64,
    instances: Vec<Instance<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<&'a str>,
}

pub(super) fn instance_list<'a>(
    services: &'a Services,
    selector: &Selector,
    page: &Page,
) -> InstanceList<'a> {
    let selected = services.select(selector).into_iter();
    let behind = |id: &str| page.after.as_ref().is_none_or(|after| id > after.as_str());
    let mut rest = selected
        .flat_map(|service| service.instances.iter())
        .filter(|instance| selector.matches(instance) && behind(&instance.id));
    let instances: Vec<_> = rest
        .by_ref()
        .take(page.limit)
        .map(|i| Instance::of(i))
        .collect();
    let more = rest.next().is_some();
    let next = instances.last().map(|last| last.id).filter(|_| more);
    InstanceList {
        revision: services.revision,
        instances,
        next,
    }
}

pub(super) fn registered(revision: u64, registered: &Registered) -> Value {
    json!({
        "id": registered.id,
        "created": registered.created,
        "ttlSeconds": seconds(registered.ttl),
        "revision": revision,
    })
}

pub(super) fn registered_list(done: &Done<Vec<Registered>>) -> Value {
    let registered = done.result.iter().map(|registered| {
        json!({
            "id": registered.id,
            "created": registered.created,
            "ttlSeconds": seconds(registered.ttl),
        })
    });
    json!({ "revision": done.revision, "registered": registered.collect::<Vec<_>>() })
}

fn reference(reference: &InstanceRef) -> Value {
    json!({
        "namespace": reference.service.namespace.as_str(),
        "protocol": reference.service.protocol,
        "service": reference.service.name,
        "id": reference.id,
    })
}

pub(super) fn renewed(done: &Done<Renewed>) -> Value {
    let unknown: Vec<Value> = done.result.unknown.iter().map(reference).collect();
    json!({ "renewed": done.result.renewed, "unknown": unknown })
}

/// A session and how long it stays; its id is only in the answer to whoever opened it.
pub(super) fn session(id: Option<SessionId>, state: SessionState) -> Value {
    let mut session = json!({
        "ttlSeconds": seconds(Some(state.ttl)),
        "instances": state.instances,
    });
    if let Some(id) = id {
        session["id"] = json!(id.to_string());
    }
    session
}

pub(super) fn deregistered(done: &Done<usize>) -> Value {
    json!({ "revision": done.revision, "removed": done.result })
}

pub(super) fn status(store: &str, stats: &Stats) -> Value {
    json!({
        "store": store,
        "revision": stats.revision,
        "services": stats.services,
        "instances": stats.instances,
        "watchers": stats.watchers,
        "registered": stats.registered,
        "renewed": stats.renewed,
        "deregistered": stats.deregistered,
        "lapsed": stats.lapsed,
        "commits": stats.commits,
        "storeErrors": stats.store_errors,
    })
}
