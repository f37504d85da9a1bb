//! Instances as Nacos says them.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use crate::source::Skipped;

/// One instance (`com.alibaba.nacos.api.naming.pojo.Instance`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Host {
    /// Made by servers; says nothing.
    pub instance_id: String,
    /// IP address or host name.
    pub ip: String,
    /// Where it listens; 0 for nowhere.
    pub port: u16,
    /// Share of calls; usually 1, 0 takes none.
    pub weight: f64,
    /// What the server knows of it.
    pub healthy: bool,
    /// What its operator wants.
    pub enabled: bool,
    /// It lives as long as its connection or its beats.
    pub ephemeral: bool,
    /// Part of the service that it belongs to.
    pub cluster_name: String,
    /// `group@@name`, where it is said.
    pub service_name: String,
    /// Free words.
    #[serde(deserialize_with = "words")]
    pub metadata: BTreeMap<String, String>,
}

impl Default for Host {
    fn default() -> Host {
        Host {
            instance_id: String::new(),
            ip: String::new(),
            port: 0,
            weight: 1.0,
            healthy: true,
            enabled: true,
            ephemeral: true,
            cluster_name: super::DEFAULT_CLUSTER.to_owned(),
            service_name: String::new(),
            metadata: BTreeMap::new(),
        }
    }
}

/// Numbers and truth values are words too; anything else is none.
fn words<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error> {
    let values: BTreeMap<String, Value> = BTreeMap::deserialize(deserializer)?;
    let word = |value| match value {
        Value::String(text) => Some(text),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(truth) => Some(truth.to_string()),
        _ => None,
    };
    let words = values.into_iter().filter_map(|(k, v)| Some((k, word(v)?)));
    Ok(words.collect())
}

/// An instance of a list, or why it cannot be read: one never hides the others.
#[derive(Clone, Debug, PartialEq)]
pub enum Entry {
    /// It could be read.
    Host(Host),
    /// It could not.
    Broken(Skipped),
}

impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Entry, D::Error> {
        let value = Value::deserialize(deserializer)?;
        Ok(match Host::deserialize(&value) {
            Ok(host) => Entry::Host(host),
            Err(error) => Entry::Broken(Skipped::new(&value.to_string(), &error)),
        })
    }
}

impl Serialize for Entry {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Entry::Host(host) => host.serialize(serializer),
            Entry::Broken(_) => serializer.serialize_unit(),
        }
    }
}

/// The instances of a service (`com.alibaba.nacos.api.naming.pojo.ServiceInfo`): always the whole list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceInfo {
    /// The service; over HTTP `group@@name`.
    pub name: String,
    /// Its group.
    pub group_name: String,
    /// The clusters that were asked for, between commas; empty for all.
    pub clusters: String,
    /// How long HTTP clients may use the list, in milliseconds.
    pub cache_millis: u64,
    /// The instances.
    pub hosts: Vec<Entry>,
    /// Time of the last change, in milliseconds; a list with a lower one is older.
    pub last_ref_time: i64,
    /// Of the list; servers leave it empty.
    pub checksum: String,
    /// It has the disabled instances too.
    #[serde(rename = "allIPs", alias = "allIps")]
    pub all_ips: bool,
    /// So few are healthy that all are said to be.
    pub reach_protection_threshold: bool,
    /// False for what no server said.
    pub valid: bool,
}

impl ServiceInfo {
    /// The list with instances that are written already, as a JSON array, in the place of its own.
    pub(crate) fn write_with(&self, hosts: &[u8]) -> Vec<u8> {
        let fields = serde_json::to_value(self).unwrap_or_default();
        write_with(fields, "hosts", hosts)
    }
}

/// An object whose last field is written already.
pub(super) fn write_with(mut fields: Value, name: &str, value: &[u8]) -> Vec<u8> {
    if let Some(fields) = fields.as_object_mut() {
        fields.remove(name);
    }
    let mut written = fields.to_string().into_bytes();
    written.pop();
    if written.len() > 1 {
        written.push(b',');
    }
    written.reserve(name.len() + value.len() + 4);
    written.extend_from_slice(format!("\"{name}\":").as_bytes());
    written.extend_from_slice(value);
    written.push(b'}');
    written
}

impl Default for ServiceInfo {
    fn default() -> ServiceInfo {
        ServiceInfo {
            name: String::new(),
            group_name: super::DEFAULT_GROUP.to_owned(),
            clusters: String::new(),
            cache_millis: 10_000,
            hosts: Vec::new(),
            last_ref_time: 0,
            checksum: String::new(),
            all_ips: false,
            reach_protection_threshold: false,
            valid: true,
        }
    }
}
