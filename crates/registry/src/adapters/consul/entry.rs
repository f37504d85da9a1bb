//! What an entry of Consul is in the model, as its framework writes it, and back.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use super::meta;
use crate::model::{DEFAULT_WEIGHT, Instance, ServiceKey};
use crate::naming::dubbo::{self, Url};
use crate::naming::{Malformed, authority, sofarpc, spring};

/// Consul's own servers.
pub(super) const OWN_SERVICE: &str = "consul";
/// Key and tag of Dubbo's registrations.
const DUBBO_URL: &str = "url";
const DUBBO_TAG: &str = "dubbo";
/// The exact weight of a copy: Consul's own weights are small whole numbers.
const WEIGHT: &str = "weight";
const WEIGHT_MAX: u32 = 65_535;
/// What Consul allows at least.
const DEREGISTER_AFTER: &str = "1m";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    node: Node,
    service: Service,
    #[serde(default)]
    checks: Option<Vec<Check>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Node {
    #[serde(default)]
    address: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Service {
    #[serde(default)]
    address: String,
    #[serde(default)]
    port: i64,
    #[serde(default)]
    tags: Option<Vec<String>>,
    #[serde(default)]
    meta: Option<BTreeMap<String, String>>,
    #[serde(default)]
    weights: Option<Weights>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Weights {
    passing: i64,
    warning: i64,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Check {
    #[serde(default)]
    status: String,
}

/// The instance that an entry of a service says.
pub(super) fn instance(name: &str, value: &Value) -> Result<Instance, Malformed> {
    let entry = Entry::deserialize(value).map_err(|e| Malformed::new(e.to_string()))?;
    let Service {
        address,
        port,
        tags,
        meta,
        weights,
    } = entry.service;
    let address = Some(address).filter(|address| !address.is_empty());
    // What has no address of its own is at its node's.
    let address = address.unwrap_or(entry.node.address);
    let tags = tags.unwrap_or_default();
    let metadata = meta::decode(&meta.unwrap_or_default());
    let port = u16::try_from(port).ok().filter(|port| *port > 0);
    let checks = entry.checks.unwrap_or_default();
    let is = |status: &str| checks.iter().any(|check| check.status == status);

    let url = metadata.get(DUBBO_URL).filter(|url| url.contains("://"));
    let data_id = tags
        .iter()
        .filter_map(|tag| sofarpc::parse_data_id(tag).ok())
        .find(|id| id.interface == name);
    let mut instance = match (url, data_id) {
        (Some(url), _) if tags.iter().any(|tag| tag == DUBBO_TAG) => {
            dubbo::instance(&Url::parse(url)?)?
        }
        (_, Some(data_id)) => {
            let port = port.ok_or_else(no_port)?;
            // Words that would break the form apart are no parameters of SOFARPC.
            let pairs = metadata
                .iter()
                .filter(|(key, value)| !key.contains(['&', '=']) && !value.contains('&'));
            let pairs: Vec<String> = pairs.map(|(key, value)| format!("{key}={value}")).collect();
            let data = format!("{}?{}", authority(&address, port), pairs.join("&"));
            sofarpc::instance(&data_id, &data)?
        }
        _ => {
            let port = port.ok_or_else(no_port)?;
            let weight = metadata.get(WEIGHT).and_then(|weight| weight.parse().ok());
            let mut instance = plain(name, &address, port, &tags, &metadata);
            instance.weight = match (weight, weights) {
                (Some(weight), _) => weight,
                (None, Some(weights)) if is("warning") => scaled(weights.warning),
                (None, Some(weights)) => scaled(weights.passing),
                (None, None) => DEFAULT_WEIGHT,
            }
            .min(WEIGHT_MAX);
            instance
        }
    };
    instance.healthy &= !is("critical") && !is("maintenance");
    instance.ttl = None;
    Ok(instance)
}

fn no_port() -> Malformed {
    Malformed::new("it has no port")
}

/// Consul's usual weight is 1.
fn scaled(weight: i64) -> u32 {
    u32::try_from(weight).map_or(DEFAULT_WEIGHT, |weight| {
        weight.saturating_mul(DEFAULT_WEIGHT)
    })
}

/// An instance that no RPC framework registered.
fn plain(
    name: &str,
    address: &str,
    port: u16,
    tags: &[String],
    metadata: &BTreeMap<String, String>,
) -> Instance {
    let of_tags = tags
        .iter()
        .map(|tag| tag.split_once('=').unwrap_or((tag, "")));
    let of_tags = of_tags.filter(|(key, _)| !key.is_empty());
    let of_meta = metadata
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_str()));
    let words: BTreeMap<&str, &str> = of_tags.chain(of_meta).collect();
    // Spring Cloud says always whether it is secure.
    if words.contains_key("secure") {
        return spring::instance(name, address, port, words);
    }
    let known = ["grpc", "tcp"];
    let protocol = known
        .into_iter()
        .find(|known| tags.iter().any(|tag| tag == known));
    let key = ServiceKey::new(protocol.unwrap_or("http"), name);
    Instance {
        metadata: words.into_iter().collect(),
        ..Instance::new(key, address, port)
    }
}

/// A URL with that first which consumers choose by: of a long one Dubbo itself sees only the beginning.
fn leading(url: &str) -> String {
    let Some((head, query)) = url.split_once('?') else {
        return url.to_owned();
    };
    let is_first = |pair: &&str| {
        let key = pair.split_once('=').map_or(*pair, |(key, _)| key);
        matches!(
            key,
            "interface" | "group" | "version" | "category" | "side" | "enabled"
        )
    };
    let (first, rest): (Vec<&str>, Vec<&str>) = query.split('&').partition(is_first);
    format!("{head}?{}", [first, rest].concat().join("&"))
}

/// A copy as it is registered with an agent; an error says why there is none.
pub(super) fn registration(id: &str, instance: &Instance, ttl: Duration) -> Result<Value, String> {
    let service = &instance.service;
    let (tags, meta) = match &*service.protocol {
        "dubbo" | "tri" | "rest" => {
            let url = leading(&dubbo::url(instance).to_string());
            (
                vec![DUBBO_TAG.to_owned()],
                meta::encode([(DUBBO_URL, url.as_str())])?,
            )
        }
        "bolt" => {
            let data = sofarpc::data(instance);
            let query = data.split_once('?').map_or("", |(_, query)| query);
            let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            (vec![sofarpc::data_id(instance)], meta::encode(pairs)?)
        }
        protocol @ ("springcloud" | "http" | "grpc" | "tcp") => {
            let weight = instance.weight.to_string();
            let mut words: BTreeMap<&str, &str> = instance.metadata.iter().collect();
            if instance.weight != DEFAULT_WEIGHT || words.contains_key(WEIGHT) {
                words.insert(WEIGHT, &weight);
            }
            if protocol == "springcloud" {
                words.entry("secure").or_insert("false");
            }
            (vec![protocol.to_owned()], meta::encode(words)?)
        }
        other => return Err(format!("Consul has no form here for protocol {other}")),
    };
    let passing = instance.weight.div_ceil(DEFAULT_WEIGHT).max(1);
    let status = if instance.is_available() {
        "passing"
    } else {
        "critical"
    };
    Ok(json!({
        "ID": id,
        "Name": &*service.name,
        "Address": &*instance.address,
        "Port": instance.port,
        "Tags": tags,
        "Meta": meta,
        "Weights": {"Passing": passing, "Warning": 1},
        "Check": {
            "TTL": format!("{}ms", ttl.as_millis()),
            "Status": status,
            "DeregisterCriticalServiceAfter": DEREGISTER_AFTER,
        },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn told(registration: &Value) -> Value {
        json!({
            "Node": {"Node": "n", "Address": "10.1.1.1"},
            "Service": {
                "Address": registration["Address"], "Port": registration["Port"],
                "Tags": registration["Tags"], "Meta": registration["Meta"],
                "Weights": registration["Weights"],
            },
            "Checks": [{"Status": "passing"}, {"Status": registration["Check"]["Status"]}],
        })
    }

    #[test]
    fn copies_of_every_framework_are_the_same_after_the_way_through_consul() -> Result<(), String> {
        for protocol in ["dubbo", "tri", "bolt", "springcloud", "http", "grpc"] {
            let key = ServiceKey::new(protocol, "com.foo.bar");
            let mut copy = Instance::new(key, "10.0.0.1", 80);
            copy.weight = 250;
            copy.ttl = None;
            let long = "m".repeat(700);
            let words = [
                ("mesh.origin", "one/nacos"),
                ("zone", "east"),
                ("long", long.as_str()),
            ];
            copy.metadata = words.into_iter().collect();
            if matches!(protocol, "dubbo" | "tri" | "bolt") {
                copy.group = "blue".into();
            }
            let registration = registration("id", &copy, Duration::from_secs(15))?;
            let read = instance("com.foo.bar", &told(&registration)).map_err(|e| e.to_string())?;
            assert_eq!(read.service, copy.service);
            assert_eq!((&read.address, read.port), (&copy.address, copy.port));
            assert_eq!((&read.group, read.weight), (&copy.group, 250), "{protocol}");
            for (key, value) in words {
                assert_eq!(read.metadata.get(key), Some(value), "{protocol}");
            }
            copy.healthy = false;
            let down = self::registration("id", &copy, Duration::from_secs(15))?;
            assert_eq!(down["Check"]["Status"], "critical");
        }
        Ok(())
    }

    #[test]
    fn an_entry_without_an_address_is_at_its_node() -> Result<(), Malformed> {
        let value = json!({
            "Node": {"Address": "10.1.1.1"},
            "Service": {"Address": "", "Port": 80, "Tags": ["secure=false", "zone=east"], "Meta": null, "Weights": {"Passing": 3, "Warning": 1}},
            "Checks": [{"Status": "warning"}],
        });
        let read = instance("Shop", &value)?;
        assert_eq!(read.service.to_string(), "springcloud/shop");
        assert_eq!(
            (&*read.address, read.weight, read.healthy),
            ("10.1.1.1", 100, true)
        );
        assert_eq!(read.metadata.get("zone"), Some("east"));
        Ok(())
    }

    proptest! {
        #[test]
        fn nothing_panics(port in any::<i64>(), weight in any::<i64>(), words in prop::collection::btree_map("(url|_x2e_|\\PC){0,4}", "(dubbo://h:1/|\\PC){0,4}", 0..5), tags in prop::collection::vec("(dubbo|s:1@|\\PC){0,4}", 0..3)) {
            let value = json!({
                "Node": {}, "Service": {"Port": port, "Meta": words, "Tags": tags, "Weights": {"Passing": weight, "Warning": weight}},
            });
            let _ = instance("s", &value);
        }
    }
}
