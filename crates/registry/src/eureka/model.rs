//! Eureka's instances in the model and back. What the model has no field for is kept in metadata below `eureka.`, so that an
//! instance is the same after the way through the mesh.

use std::collections::BTreeMap;

use super::info::{Info, Lease, Status, TEXTS};
use crate::model::{DEFAULT_WEIGHT, Instance, ServiceKey};
use crate::naming::spring::WEIGHT;
use crate::naming::{Malformed, spring};

const PREFIX: &str = "eureka.";
const HOST_NAME: &str = "hostName";
const SECURE_PORT: &str = "securePort";
/// What the instance said last, where that is not `UP`.
const STATUS: &str = "status";
/// What an operator said instead.
const OVERRIDDEN: &str = "overriddenStatus";
const LAST_DIRTY: &str = "lastDirtyTimestamp";
const REGISTERED: &str = "registrationTimestamp";
const RENEWAL: &str = "renewalIntervalInSecs";
const AVAILABILITY_ZONE: &str = "availabilityZone";
/// Names that clients look for; the application's is the usual one.
const VIPS: [&str; 2] = ["vipAddress", "secureVipAddress"];
/// What Eureka's clients say when nobody says anything else.
const RENEWAL_SECS: u64 = 30;
const DURATION_SECS: u64 = 90;

fn key(name: &str) -> String {
    format!("{PREFIX}{name}")
}

/// Protocols whose instances Eureka's clients can call.
pub(crate) fn is_shown(service: &ServiceKey) -> bool {
    service.namespace.is_default() && matches!(&*service.protocol, "springcloud" | "http")
}

/// The name of an application, as Eureka spells it.
pub(crate) fn app(service: &ServiceKey) -> String {
    service.name.to_uppercase()
}

/// What counts of what an instance and an operator say: an operator cannot bring up what says that it is down.
pub(crate) fn effective(own: Status, overridden: Status) -> Status {
    match (own, overridden) {
        (Status::Down | Status::Starting, _) | (_, Status::Unknown) => own,
        (_, overridden) => overridden,
    }
}

/// The instance in the model; `status` is what it says itself.
pub(crate) fn instance(info: &Info, status: Status) -> Result<Instance, Malformed> {
    let address = Some(&info.ip_address).filter(|address| !address.is_empty());
    let address = address.unwrap_or(&info.host_name);
    if address.is_empty() {
        return Err(Malformed::new("it has neither ipAddr nor hostName"));
    }
    if info.id.is_empty() {
        return Err(Malformed::new("it has neither instanceId nor hostName"));
    }
    let port = info.port.or(info.secure_port);
    let port = port.ok_or_else(|| Malformed::new("none of its ports is enabled"))?;
    let mut metadata = info.metadata.clone();
    let mut keep = |name: &str, value: String| metadata.insert(key(name), value);
    for (name, text) in &info.texts {
        // The usual one is not kept: a copy under another name has another one.
        if !VIPS.contains(name) || !text.eq_ignore_ascii_case(&info.app) {
            keep(name, text.clone());
        }
    }
    if info.host_name != *address {
        keep(HOST_NAME, info.host_name.clone());
    }
    if let Some(port) = info.secure_port {
        keep(SECURE_PORT, port.to_string());
    }
    if status != Status::Up {
        keep(STATUS, status.name().to_owned());
    }
    if info.overridden_status != Status::Unknown {
        keep(OVERRIDDEN, info.overridden_status.name().to_owned());
    }
    if !info.availability_zone.is_empty() {
        keep(AVAILABILITY_ZONE, info.availability_zone.clone());
    }
    let weight = spring::weight(metadata.get(WEIGHT).map(String::as_str));
    let mut instance = spring::instance(&info.app, address, port, []);
    instance.id = info.id.as_str().into();
    instance.weight = weight;
    instance.healthy = effective(status, info.overridden_status) == Status::Up;
    instance.metadata = metadata.into_iter().collect();
    Ok(instance)
}

/// The same with what a server of the instance has to know.
pub(crate) fn registered(info: &Info, now_ms: u64) -> Result<Instance, Malformed> {
    let mut instance = instance(info, info.status)?;
    let more = [
        (key(LAST_DIRTY), info.last_dirty_ms.to_string()),
        (key(REGISTERED), now_ms.to_string()),
        (key(RENEWAL), info.lease.renewal_secs.to_string()),
    ];
    let metadata = instance.metadata.iter();
    instance.metadata = metadata
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .chain(more)
        .collect();
    Ok(instance)
}

/// What an instance says of itself, without an override.
pub(crate) fn own_status(instance: &Instance) -> Status {
    match instance.metadata.get(&key(STATUS)) {
        Some(name) => Status::named(name),
        None if overridden(instance) != Status::Unknown || instance.healthy => Status::Up,
        None => Status::Down,
    }
}

/// What an operator says of it.
pub(crate) fn overridden(instance: &Instance) -> Status {
    let name = instance.metadata.get(&key(OVERRIDDEN));
    name.map_or(Status::Unknown, Status::named)
}

/// What counts for clients.
pub(crate) fn status(instance: &Instance) -> Status {
    match effective(own_status(instance), overridden(instance)) {
        Status::Up if !instance.healthy => Status::Down,
        Status::Up if instance.weight == 0 => Status::OutOfService,
        status => status,
    }
}

/// When it last changed by its own account.
pub(crate) fn last_dirty_ms(instance: &Instance) -> u64 {
    let text = instance.metadata.get(&key(LAST_DIRTY));
    text.and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// An instance with other statuses.
pub(crate) fn with_status(instance: &Instance, own: Status, overridden: Status) -> Instance {
    let statuses = [
        (STATUS, own, Status::Up),
        (OVERRIDDEN, overridden, Status::Unknown),
    ];
    let mut metadata: BTreeMap<String, String> = pairs(instance);
    for (name, status, usual) in statuses {
        if status == usual {
            metadata.remove(&key(name));
        } else {
            metadata.insert(key(name), status.name().to_owned());
        }
    }
    Instance {
        healthy: effective(own, overridden) == Status::Up,
        metadata: metadata.into_iter().collect(),
        ..instance.clone()
    }
}

/// An instance with more metadata.
pub(crate) fn with_metadata(
    instance: &Instance,
    more: impl IntoIterator<Item = (String, String)>,
) -> Instance {
    let mut metadata = pairs(instance);
    metadata.extend(more);
    Instance {
        metadata: metadata.into_iter().collect(),
        ..instance.clone()
    }
}

fn pairs(instance: &Instance) -> BTreeMap<String, String> {
    let pairs = instance.metadata.iter();
    pairs
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

/// The instance as Eureka has it.
pub(crate) fn info(instance: &Instance) -> Info {
    let mut metadata = pairs(instance);
    let mut take = |name: &str| metadata.remove(&key(name));
    let number = |text: Option<String>| text.and_then(|text| text.parse::<u64>().ok());
    let mut texts: BTreeMap<&'static str, String> = TEXTS
        .into_iter()
        .filter_map(|name| Some((name, take(name)?)))
        .collect();
    for name in VIPS {
        texts
            .entry(name)
            .or_insert_with(|| spring::application(instance).to_owned());
    }
    let host_name = take(HOST_NAME).unwrap_or_else(|| instance.address.to_string());
    let secure_port = take(SECURE_PORT).and_then(|port| port.parse().ok());
    let registered_ms = number(take(REGISTERED)).unwrap_or(0);
    let last_dirty_ms = number(take(LAST_DIRTY)).unwrap_or(0);
    let renewal_secs = number(take(RENEWAL)).unwrap_or(RENEWAL_SECS);
    let availability_zone = take(AVAILABILITY_ZONE).unwrap_or_default();
    take(STATUS);
    take(OVERRIDDEN);
    if instance.weight != DEFAULT_WEIGHT || metadata.contains_key(WEIGHT) {
        metadata.insert(WEIGHT.to_owned(), instance.weight.to_string());
    }
    Info {
        id: instance.id.to_string(),
        app: app(&instance.service),
        host_name,
        ip_address: instance.address.to_string(),
        status: status(instance),
        overridden_status: overridden(instance),
        // The same number twice: only the secure one is on.
        port: Some(instance.port).filter(|port| secure_port != Some(*port)),
        secure_port,
        texts,
        metadata,
        availability_zone,
        lease: Lease {
            renewal_secs,
            duration_secs: instance.ttl.map_or(DURATION_SECS, |ttl| ttl.as_secs()),
            registered_ms,
        },
        last_dirty_ms,
        last_updated_ms: last_dirty_ms.max(registered_ms),
        action: None,
    }
}
