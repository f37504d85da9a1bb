//! Copies as objects of Kubernetes: for each service a Service without selector, and EndpointSlices with the instances. What
//! Kubernetes has no words for is kept in an annotation.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::declared::PREFIX;
use crate::model::{Instance, ServiceKey};
use crate::naming::Malformed;

/// Label that says whose an EndpointSlice is, and our value of it.
pub(super) const MANAGED_BY: (&str, &str) = ("endpointslice.kubernetes.io/managed-by", "sofamesh");
/// Kubernetes' own controllers make no larger slices.
const SLICE_ENDPOINTS: usize = 100;
/// Of the annotation; all of an object's have at most 256 KiB.
const SLICE_BYTES: usize = 160 * 1024;
/// A label of DNS.
const NAME_BYTES: usize = 63;
/// Of the digest behind a name that had to be changed: 50 bits.
const DIGEST_CHARS: usize = 10;

/// The service that an object of ours is of.
pub(super) fn service_of(annotations: &BTreeMap<String, String>) -> Option<ServiceKey> {
    let (protocol, name) = annotations.get(&of_service())?.split_once('/')?;
    Some(ServiceKey::new(protocol, name))
}

fn of_service() -> String {
    format!("{PREFIX}service")
}

fn of_instances() -> String {
    format!("{PREFIX}instances")
}

/// One copy in the annotation.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Kept {
    id: String,
    address: String,
    port: u16,
    weight: u32,
    healthy: bool,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    version: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    group: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    metadata: BTreeMap<String, String>,
}

/// The copies in the annotations of a slice; `None` where it is no slice of ours.
pub(super) fn read(
    annotations: &BTreeMap<String, String>,
) -> Option<Result<Vec<Instance>, Malformed>> {
    let kept = annotations.get(&of_instances())?;
    let service = annotations.get(&of_service());
    Some(read_kept(service.map_or("", String::as_str), kept))
}

fn read_kept(service: &str, kept: &str) -> Result<Vec<Instance>, Malformed> {
    let (protocol, name) = service
        .split_once('/')
        .ok_or_else(|| Malformed::new(format!("has no annotation {}", of_service())))?;
    let key = ServiceKey::new(protocol, name);
    let kept: Vec<Kept> = serde_json::from_str(kept)
        .map_err(|e| Malformed::new(format!("annotation {}: {e}", of_instances())))?;
    let instance = |kept: Kept| Instance {
        id: kept.id.into(),
        version: kept.version.into(),
        group: kept.group.into(),
        weight: kept.weight,
        healthy: kept.healthy,
        metadata: kept.metadata.into_iter().collect(),
        ttl: None,
        ..Instance::new(key.clone(), &kept.address, kept.port)
    };
    Ok(kept.into_iter().map(instance).collect())
}

/// The name of a service's objects: valid by RFC 1035, the same for the same service and for no other.
pub(super) fn object_name(key: &ServiceKey) -> String {
    let name: String = key
        .name
        .to_ascii_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    let is_label = name == *key.name
        && name.len() <= NAME_BYTES
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && !name.ends_with('-');
    // Applications of Spring Cloud are called by their names: those stay, unless one could be taken for a changed one.
    if &*key.protocol == "springcloud" && is_label && !ends_as_digest(&name) {
        return name;
    }
    let protocol: String = key
        .protocol
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    let mut head = format!("{protocol}-{name}");
    head.truncate(NAME_BYTES - DIGEST_CHARS - 1);
    format!("{}-{}", head.trim_end_matches('-'), digest(key))
}

fn ends_as_digest(name: &str) -> bool {
    name.rsplit_once('-')
        .is_some_and(|(_, last)| last.len() == DIGEST_CHARS)
}

/// FNV-1a in base 32. Objects say whose they are: where two services had one name the second would be refused.
fn digest(key: &ServiceKey) -> String {
    let mut number = 0xcbf2_9ce4_8422_2325u64;
    for byte in key.to_string().bytes() {
        number = (number ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    number ^= number >> 50;
    (0..DIGEST_CHARS)
        .map(|at| {
            let five = u32::try_from((number >> (5 * at)) & 31).unwrap_or(0);
            char::from_digit(five, 32).unwrap_or('0')
        })
        .collect()
}

/// Whether EndpointSlices can have the address; an error says why not.
pub(super) fn check(instance: &Instance) -> Result<(), String> {
    match instance.address.parse::<IpAddr>() {
        Ok(ip) if ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() => {
            Err(format!("Kubernetes has no endpoints with the address {ip}"))
        }
        Ok(IpAddr::V4(ip)) if ip.is_link_local() => {
            Err(format!("Kubernetes has no endpoints with the address {ip}"))
        }
        Ok(IpAddr::V6(ip)) if ip.is_unicast_link_local() => {
            Err(format!("Kubernetes has no endpoints with the address {ip}"))
        }
        Ok(_) => Ok(()),
        Err(_) => Err(format!(
            "{} is no IP address: Kubernetes' proxies do not serve host names",
            instance.address
        )),
    }
}

/// The port that callers of the Service use.
fn service_port(protocol: &str) -> u16 {
    match protocol {
        "bolt" => 12200,
        "dubbo" => 20880,
        "tri" => 50051,
        _ => 80,
    }
}

fn is_rpc(protocol: &str) -> bool {
    matches!(protocol, "bolt" | "dubbo" | "tri")
}

/// The name of the one port, which infers the protocol too.
fn port_name(protocol: &str) -> &str {
    match protocol {
        "http" | "springcloud" => "http",
        "grpc" => "grpc",
        "dubbo" => "dubbo",
        "tri" => "tri",
        "bolt" => "bolt",
        _ => "tcp",
    }
}

fn metadata(name: &str, service: &str, annotations: &Value) -> Value {
    json!({
        "name": name,
        "labels": {MANAGED_BY.0: MANAGED_BY.1, "kubernetes.io/service-name": service},
        "annotations": annotations,
    })
}

/// The Service of a service.
pub(super) fn service(key: &ServiceKey) -> Value {
    let name = object_name(key);
    let annotations = json!({of_service(): key.to_string()});
    let mut spec = json!({
        "ports": [{
            "name": port_name(&key.protocol), "port": service_port(&key.protocol), "protocol": "TCP",
        }],
    });
    // Consumers of RPC frameworks choose an instance by themselves: no address is wasted on them.
    if is_rpc(&key.protocol) {
        spec["clusterIP"] = json!("None");
    }
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": metadata(&name, &name, &annotations), "spec": spec,
    })
}

/// The slices of a service by their names.
pub(super) fn slices(
    key: &ServiceKey,
    copies: &BTreeMap<Arc<str>, Arc<Instance>>,
) -> BTreeMap<String, Value> {
    let service = object_name(key);
    let mut groups: BTreeMap<(&str, u16), Vec<&Arc<Instance>>> = BTreeMap::new();
    for copy in copies.values() {
        let family = if copy.address.contains(':') {
            "IPv6"
        } else {
            "IPv4"
        };
        groups.entry((family, copy.port)).or_default().push(copy);
    }
    let mut slices = BTreeMap::new();
    for ((family, port), copies) in groups {
        for (number, part) in parts(&copies).into_iter().enumerate() {
            let name = format!("{service}-{}-{port}-{number}", family.to_ascii_lowercase());
            // Two versions of an interface at one address are one endpoint.
            let endpoints: BTreeMap<&str, bool> =
                part.iter().fold(BTreeMap::new(), |mut all, copy| {
                    *all.entry(copy.address.as_ref()).or_default() |= copy.is_available();
                    all
                });
            let endpoints: Vec<Value> = endpoints
                .into_iter()
                .map(|(address, ready)| json!({"addresses": [address], "conditions": {"ready": ready}}))
                .collect();
            let kept: Vec<Kept> = part.iter().map(|copy| kept(copy)).collect();
            let annotations = json!({
                of_service(): key.to_string(),
                of_instances(): serde_json::to_string(&kept).unwrap_or_default(),
            });
            let slice = json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": metadata(&name, &service, &annotations),
                "addressType": family,
                "ports": [{"name": port_name(&key.protocol), "port": port, "protocol": "TCP"}],
                "endpoints": endpoints,
            });
            slices.insert(name, slice);
        }
    }
    slices
}

/// Cut so that each fits into an object.
fn parts<'a>(copies: &[&'a Arc<Instance>]) -> Vec<Vec<&'a Arc<Instance>>> {
    let mut parts: Vec<Vec<&Arc<Instance>>> = Vec::new();
    let mut bytes = 0;
    for copy in copies {
        // With room for quotes and names of fields.
        let size = 2 * copy.metadata.size_bytes() + copy.id.len() + 400;
        match parts.last_mut() {
            Some(part) if part.len() < SLICE_ENDPOINTS && bytes + size <= SLICE_BYTES => {
                bytes += size;
                part.push(copy);
            }
            _ => {
                bytes = size;
                parts.push(vec![copy]);
            }
        }
    }
    parts
}

fn kept(copy: &Instance) -> Kept {
    Kept {
        id: copy.id.to_string(),
        address: copy.address.to_string(),
        port: copy.port,
        weight: copy.weight,
        healthy: copy.healthy,
        version: copy.version.to_string(),
        group: copy.group.to_string(),
        metadata: copy
            .metadata
            .iter()
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::source::ORIGIN_MARK;

    fn copies(key: &ServiceKey, count: u16, value: &str) -> BTreeMap<Arc<str>, Arc<Instance>> {
        let copy = |n: u16| {
            let id: Arc<str> = format!("one/zk/{n:04}").into();
            let address = format!("10.0.{}.{}", n / 250, n % 250);
            let mut copy = Instance::new(key.clone(), &address, 8000 + n % 2);
            copy.id = id.clone();
            copy.ttl = None;
            copy.version = "1.0".into();
            copy.metadata = [(ORIGIN_MARK, "one/zk"), ("more", value)]
                .into_iter()
                .collect();
            (id, Arc::new(copy))
        };
        (0..count).map(copy).collect()
    }

    #[test]
    fn copies_are_read_back_as_they_were_written_from_slices_of_a_bounded_size() {
        let key = ServiceKey::new("dubbo", "com.foo.Order");
        for (count, value, expected) in [(250, "x".to_owned(), 4), (60, "\"".repeat(4000), 4)] {
            let copies = copies(&key, count, &value);
            let slices = slices(&key, &copies);
            assert_eq!(slices.len(), expected);
            let mut read_back = BTreeMap::new();
            for slice in slices.values() {
                assert!(slice["endpoints"].as_array().unwrap().len() <= SLICE_ENDPOINTS);
                let annotations: BTreeMap<String, String> =
                    serde_json::from_value(slice["metadata"]["annotations"].clone()).unwrap();
                let bytes: usize = annotations.iter().map(|(k, v)| k.len() + v.len()).sum();
                assert!(bytes < 256 * 1024, "{bytes}");
                for copy in read(&annotations).unwrap().unwrap() {
                    read_back.insert(copy.id.clone(), Arc::new(copy));
                }
            }
            assert_eq!(read_back, copies);
        }
    }

    #[test]
    fn names_are_valid_and_of_one_service_each() {
        let mut names = BTreeSet::new();
        let keys = [
            ("springcloud", "orders"),
            ("http", "orders"),
            ("springcloud", "http-orders"),
            ("springcloud", "9orders"),
            ("springcloud", "orders-0123456789"),
            ("dubbo", "com.foo.Order"),
            ("dubbo", "com.foo.order"),
            ("dubbo", "com-foo-order"),
            ("tri", "com.foo.Order"),
            ("bolt", &"long.".repeat(90)),
            ("bolt", &"long.".repeat(91)),
        ];
        for (protocol, name) in keys {
            let key = ServiceKey::new(protocol, name);
            let name = object_name(&key);
            assert!(
                name.len() <= 63 && name.starts_with(|c: char| c.is_ascii_lowercase()),
                "{name}"
            );
            assert!(
                name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-'),
                "{name}"
            );
            assert!(names.insert(name));
        }
        assert!(names.contains("orders"));
        assert_eq!(names.len(), keys.len());
    }

    proptest! {
        #[test]
        fn no_annotation_is_the_end(service in ".{0,20}", kept in ".{0,80}") {
            let _ = read_kept(&service, &kept);
        }
    }
}
