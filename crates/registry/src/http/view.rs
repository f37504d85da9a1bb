//! What answers look like.

use std::collections::BTreeMap;

use serde::Serialize;
use serde::ser::SerializeMap;
use serde_json::{Value, json};

use super::query::Page;
use crate::metadata::Metadata;
use crate::model::{InstanceRef, Selector};
use crate::osr::{Done, Stats};
use crate::services::{Service, Services};
use crate::state::{Registered, Renewed};

/// An instance.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Instance<'a> {
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
fn summary(service: &Service) -> Value {
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
        })
    });
    json!({
        "protocol": service.key.protocol,
        "service": service.key.name,
        "instances": service.instances.len(),
        "available": service.instances.iter().filter(|i| i.is_available()).count(),
        "versions": versions.collect::<Vec<_>>(),
    })
}

pub(super) fn service_list(services: &Services, selector: &Selector, page: &Page) -> Value {
    let name = |service: &Service| service.key.to_string();
    let selected = services.select(selector).into_iter();
    // In the order of names as they are written, so that `after` finds its place.
    let mut selected: Vec<_> = selected.map(|service| (name(service), service)).collect();
    selected.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    let start = page.after.as_ref().map_or(0, |after| {
        selected.partition_point(|(name, _)| name <= after)
    });
    let rest = selected.get(start..).unwrap_or_default();
    let shown = rest.get(..page.limit).unwrap_or(rest);
    let mut list = json!({
        "revision": services.revision,
        "services": shown.iter().map(|(_, service)| summary(service)).collect::<Vec<_>>(),
    });
    if shown.len() < rest.len()
        && let Some((last, _)) = shown.last()
    {
        list["next"] = json!(last);
    }
    list
}

pub(super) fn service_detail(revision: u64, service: &Service) -> Value {
    let mut detail = summary(service);
    detail["revision"] = json!(revision);
    detail
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
        "protocol": reference.service.protocol,
        "service": reference.service.name,
        "id": reference.id,
    })
}

pub(super) fn renewed(done: &Done<Renewed>) -> Value {
    let unknown: Vec<Value> = done.result.unknown.iter().map(reference).collect();
    json!({ "renewed": done.result.renewed, "unknown": unknown })
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
