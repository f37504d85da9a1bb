//! Dubbo's application level: a registry holds one instance of an application, and what it serves is said by its metadata of one
//! revision (`org.apache.dubbo.metadata.MetadataInfo`), which all instances of that revision share.

pub(crate) mod entry;
pub(crate) mod served;

use std::collections::{BTreeMap, HashMap};

use serde::Deserialize;
use wire::hessian2::Value;

use super::dubbo::{Url, instance};
use super::{Malformed, scaled_weight, shorten};
use crate::model::Instance;

const REVISION: &str = "dubbo.metadata.revision";
const STORAGE: &str = "dubbo.metadata.storage-type";
const ENDPOINTS: &str = "dubbo.endpoints";
const SERVICE_PARAMS: &str = "dubbo.metadata-service.url-params";
/// Services of one application.
const SERVICES: usize = 20_000;

/// One instance of an application.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provider {
    /// The application.
    pub application: String,
    /// IP address or name.
    pub address: String,
    /// Its own port, for services whose protocol has no endpoint.
    pub port: u16,
    /// Names what it serves; opaque.
    pub revision: String,
    /// The metadata lies in the metadata centre, not with the instance.
    pub remote: bool,
    /// Port by protocol.
    pub endpoints: BTreeMap<String, u16>,
    /// Where its MetadataService is: protocol and port.
    pub metadata_service: Option<(String, u16)>,
    /// Its other metadata, which are labels.
    pub labels: BTreeMap<String, String>,
    /// Whether the registry says that calls may go to it.
    pub healthy: bool,
    /// What the registry makes of its services' weights, in per cent.
    pub weight_percent: u32,
}

#[derive(Deserialize)]
struct Endpoint {
    port: u16,
    protocol: String,
}

#[derive(Deserialize)]
struct ServiceParams {
    port: String,
    protocol: String,
}

impl Provider {
    /// Whether the metadata of an instance are those of a Dubbo application.
    pub fn is_one<'a>(mut keys: impl Iterator<Item = &'a str>) -> bool {
        keys.any(|key| key == REVISION)
    }

    /// Reads an instance. `None`: it serves nothing.
    pub fn read<'a>(
        application: &str,
        address: &str,
        port: u16,
        metadata: impl Iterator<Item = (&'a str, &'a str)>,
    ) -> Result<Option<Provider>, Malformed> {
        let metadata: BTreeMap<&str, &str> = metadata.collect();
        let revision = metadata.get(REVISION).copied().unwrap_or("0");
        if revision == "0" || revision.is_empty() {
            return Ok(None);
        }
        let json = |key: &str, error: serde_json::Error| Malformed::new(format!("{key}: {error}"));
        let endpoints: Vec<Endpoint> = match metadata.get(ENDPOINTS) {
            Some(text) => serde_json::from_str(text).map_err(|e| json(ENDPOINTS, e))?,
            None => Vec::new(),
        };
        let metadata_service = match metadata.get(SERVICE_PARAMS) {
            Some(text) => {
                let params: ServiceParams =
                    serde_json::from_str(text).map_err(|e| json(SERVICE_PARAMS, e))?;
                let port = params.port.parse().map_err(|_| {
                    let port = shorten(&params.port);
                    Malformed::new(format!("{SERVICE_PARAMS}: the port is {port:?}"))
                })?;
                Some((params.protocol, port))
            }
            None => None,
        };
        let labels = metadata
            .iter()
            .filter(|(key, _)| !key.starts_with("dubbo.") && **key != "meta-v")
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        Ok(Some(Provider {
            application: application.to_owned(),
            address: address.to_owned(),
            port,
            revision: revision.to_owned(),
            remote: metadata.get(STORAGE) == Some(&"remote"),
            endpoints: endpoints
                .into_iter()
                .map(|e| (e.protocol, e.port))
                .collect(),
            metadata_service,
            labels,
            healthy: true,
            weight_percent: 100,
        }))
    }

    /// What the instance serves. Of a service that cannot be read there is the reason.
    pub fn instances(&self, info: &MetadataInfo) -> Vec<Result<Instance, Malformed>> {
        info.services.values().map(|s| self.serves(s)).collect()
    }

    fn serves(&self, service: &ServiceInfo) -> Result<Instance, Malformed> {
        let said = u16::try_from(service.port).ok().filter(|port| *port > 0);
        let endpoint = self.endpoints.get(&service.protocol).copied();
        let mut params = self.labels.clone();
        params.extend(service.params.clone());
        let own = [
            ("interface", Some(&service.name)),
            ("version", service.version.as_ref()),
            ("group", service.group.as_ref()),
            ("application", Some(&self.application)),
        ];
        for (key, value) in own {
            match value {
                Some(value) => params.insert(key.to_owned(), value.clone()),
                None => params.remove(key),
            };
        }
        let mut instance = instance(&Url {
            protocol: service.protocol.clone(),
            host: self.address.clone(),
            port: said.or(endpoint).unwrap_or(self.port),
            path: service.path.clone().unwrap_or_else(|| service.name.clone()),
            params,
        })?;
        instance.healthy &= self.healthy;
        instance.weight = scaled_weight(instance.weight, self.weight_percent);
        Ok(instance)
    }
}

/// What all instances of one revision serve.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct MetadataInfo {
    /// By `group/interface:version:protocol`.
    #[serde(default)]
    pub services: BTreeMap<String, ServiceInfo>,
}

/// One service.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ServiceInfo {
    /// The interface.
    pub name: String,
    /// Group.
    #[serde(default)]
    pub group: Option<String>,
    /// Version.
    #[serde(default)]
    pub version: Option<String>,
    /// `dubbo`, `tri`, …
    pub protocol: String,
    /// Port; 0 or less: that of the endpoint of the protocol.
    #[serde(default)]
    pub port: i64,
    /// The interface, unless a context path is set.
    #[serde(default)]
    pub path: Option<String>,
    /// Parameters of the provider's URL.
    #[serde(default)]
    pub params: BTreeMap<String, String>,
}

impl MetadataInfo {
    /// From the JSON of the metadata centre.
    pub fn from_json(bytes: &[u8]) -> Result<MetadataInfo, Malformed> {
        let info: MetadataInfo =
            serde_json::from_slice(bytes).map_err(|error| Malformed::new(error.to_string()))?;
        info.bounded()
    }

    /// From what the method `getMetadataInfo` of the MetadataService returned.
    pub fn from_hessian(value: &Value) -> Result<MetadataInfo, Malformed> {
        let containers = containers(value);
        let services = field(value, "services", &containers);
        let Some(Value::Map { entries, .. }) = services else {
            return Err(Malformed::new("it has no map of services"));
        };
        let mut info = MetadataInfo::default();
        for (key, value) in entries.iter().take(SERVICES + 1) {
            let value = resolve(value, &containers);
            let text = |name: &str| {
                let text = field(value, name, &containers).and_then(Value::as_str);
                text.filter(|text| !text.is_empty()).map(ToOwned::to_owned)
            };
            let (Some(key), Some(name), Some(protocol)) =
                (key.as_str(), text("name"), text("protocol"))
            else {
                continue;
            };
            let params = match field(value, "params", &containers) {
                Some(Value::Map { entries, .. }) => entries
                    .iter()
                    .filter_map(|(key, value)| {
                        Some((key.as_str()?.to_owned(), value.as_str()?.to_owned()))
                    })
                    .collect(),
                _ => BTreeMap::new(),
            };
            let port = field(value, "port", &containers).and_then(Value::as_i64);
            let service = ServiceInfo {
                name,
                group: text("group"),
                version: text("version"),
                protocol,
                port: port.unwrap_or(0),
                path: text("path"),
                params,
            };
            info.services.insert(key.to_owned(), service);
        }
        info.bounded()
    }

    fn bounded(self) -> Result<MetadataInfo, Malformed> {
        if self.services.len() > SERVICES {
            let message = format!("more than {SERVICES} services in one application");
            return Err(Malformed::new(message));
        }
        Ok(self)
    }
}

/// Containers by the number that a reference to them has.
type Containers<'a> = HashMap<u32, &'a Value>;

fn containers(root: &Value) -> Containers<'_> {
    let mut found = Containers::new();
    let mut open = vec![root];
    while let Some(value) = open.pop() {
        let number = found.len() as u32;
        // The last pushed is looked at first: children go in backwards.
        match value {
            Value::List { items, .. } => open.extend(items.iter().rev()),
            Value::Map { entries, .. } => {
                open.extend(entries.iter().rev().flat_map(|(key, value)| [value, key]));
            }
            Value::Object { fields, .. } => {
                open.extend(fields.iter().rev().map(|(_, value)| value));
            }
            _ => continue,
        }
        found.insert(number, value);
    }
    found
}

fn resolve<'a>(value: &'a Value, containers: &Containers<'a>) -> &'a Value {
    match value {
        Value::Ref(number) => containers.get(number).copied().unwrap_or(value),
        value => value,
    }
}

fn field<'a>(value: &'a Value, name: &str, containers: &Containers<'a>) -> Option<&'a Value> {
    value.get(name).map(|value| resolve(value, containers))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    // As Dubbo 3.3.2 wrote it into ZooKeeper.
    const METADATA: [(&str, &str); 5] = [
        (
            "dubbo.endpoints",
            r#"[{"port":20880,"protocol":"dubbo"},{"port":50051,"protocol":"tri"}]"#,
        ),
        (
            "dubbo.metadata-service.url-params",
            r#"{"prefer.serialization":"hessian2,fastjson2","version":"1.0.0","dubbo":"2.0.2","release":"3.3.2","side":"provider","port":"20880","protocol":"dubbo"}"#,
        ),
        (
            "dubbo.metadata.revision",
            "ad28323b4f92939b57c3f3c8a73b2652",
        ),
        ("dubbo.metadata.storage-type", "local"),
        ("region", "east"),
    ];
    const INFO: &str = r#"{"app":"shop","revision":"ad28","services":{
        "grp/com.probe.Echo:1.0.0:dubbo":{"name":"com.probe.Echo","group":"grp","version":"1.0.0","protocol":"dubbo","port":-1,"path":"com.probe.Echo","params":{"methods":"echo","weight":"30"}},
        "com.probe.Echo:tri":{"name":"com.probe.Echo","protocol":"tri","port":50052,"params":{}}}}"#;

    #[test]
    fn an_application_is_what_its_revision_serves() {
        let provider = Provider::read("shop", "10.0.0.1", 9, METADATA.into_iter());
        let mut provider = provider.expect("well-formed").expect("a provider");
        provider.weight_percent = 50;
        assert_eq!(provider.metadata_service, Some(("dubbo".to_owned(), 20880)));
        let info = MetadataInfo::from_json(INFO.as_bytes()).expect("well-formed");
        let mut instances: Vec<String> = provider
            .instances(&info)
            .into_iter()
            .map(|read| {
                let i = read.expect("well-formed");
                assert_eq!(i.metadata.get("region"), Some("east"));
                assert_eq!(i.metadata.get("application"), Some("shop"));
                format!(
                    "{} {}:{} v{} g{} w{}",
                    i.service, i.address, i.port, i.version, i.group, i.weight
                )
            })
            .collect();
        instances.sort();
        assert_eq!(
            instances,
            [
                "dubbo/com.probe.Echo 10.0.0.1:20880 v1.0.0 ggrp w15",
                "tri/com.probe.Echo 10.0.0.1:50052 v g w50",
            ]
        );
        let none = [("dubbo.metadata.revision", "0")].into_iter();
        assert_eq!(Provider::read("shop", "10.0.0.1", 9, none), Ok(None));
    }

    #[test]
    fn references_in_hessian_are_followed() {
        let params = Value::string_map([("methods", "a")]);
        let service = |name: &str, params: Value| {
            let fields = [
                ("name", Value::from(name)),
                ("protocol", Value::from("dubbo")),
                ("port", Value::Int(1)),
                ("params", params),
            ];
            Value::object("org.apache.dubbo.metadata.MetadataInfo$ServiceInfo", fields)
        };
        // The containers are: the object 0, the map 1, the first service 2 and its parameters 3.
        let services = Value::map(vec![
            (Value::from("a:dubbo"), service("a", params)),
            (Value::from("b:dubbo"), service("b", Value::Ref(3))),
        ]);
        let info = Value::object(
            "org.apache.dubbo.metadata.MetadataInfo",
            [("services", services)],
        );
        let info = MetadataInfo::from_hessian(&info).expect("well-formed");
        let methods = info
            .services
            .values()
            .map(|s| s.params.get("methods").map(String::as_str));
        assert_eq!(methods.collect::<Vec<_>>(), [Some("a"), Some("a")]);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), text in ".{0,80}") {
            let _ = MetadataInfo::from_json(&bytes);
            for key in [REVISION, ENDPOINTS, SERVICE_PARAMS] {
                let metadata = [(REVISION, "1"), (key, text.as_str())];
                let _ = Provider::read("a", "b", 1, metadata.into_iter());
            }
            if let Ok(value) = wire::hessian2::Decoder::new(&bytes, wire::hessian2::Dialect::V2, wire::hessian2::Limits::DECODE).value() {
                let _ = MetadataInfo::from_hessian(&value);
            }
        }
    }
}
