//! What is read of Kubernetes' objects: only what matters here, and a part that is malformed hides no other.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use super::declared::{Declared, declared};
use crate::naming::Malformed;
use crate::source::Skipped;

/// Label of an EndpointSlice: its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Name {
    pub(super) namespace: Arc<str>,
    pub(super) name: Arc<str>,
}

impl Name {
    pub(super) fn new(namespace: &str, name: &str) -> Name {
        Name {
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    pub(super) fn path(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// Any object.
#[derive(Clone, Debug, Default)]
pub(super) struct Object {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) annotations: BTreeMap<String, String>,
    pub(super) data: Value,
}

/// A Service.
#[derive(Debug)]
pub(super) struct Service {
    pub(super) ports: Vec<ServicePort>,
    pub(super) declared: Declared,
    pub(super) skipped: Vec<Skipped>,
}

/// A port of a Service that the mesh can serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ServicePort {
    pub(super) name: String,
    pub(super) port: u16,
    /// `http`, `grpc`, `tcp`, `dubbo`, `tri` or `bolt`.
    pub(super) protocol: &'static str,
}

/// An EndpointSlice.
#[derive(Debug)]
pub(super) struct Slice {
    pub(super) service: Name,
    /// Where the ports of the Service are, by their names.
    pub(super) ports: BTreeMap<String, u16>,
    pub(super) endpoints: Vec<Endpoint>,
    pub(super) annotations: BTreeMap<String, String>,
    pub(super) skipped: Vec<Skipped>,
}

/// One endpoint.
#[derive(Debug)]
pub(super) struct Endpoint {
    pub(super) address: String,
    pub(super) healthy: bool,
    pub(super) node: Option<Arc<str>>,
    pub(super) zone: Option<Arc<str>>,
    pub(super) pod: Option<Name>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PortSpec {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    port: Option<u16>,
    #[serde(default)]
    protocol: Option<String>,
    #[serde(default)]
    app_protocol: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct EndpointSpec {
    addresses: Vec<String>,
    #[serde(default)]
    conditions: Option<Conditions>,
    #[serde(default)]
    node_name: Option<String>,
    #[serde(default)]
    zone: Option<String>,
    #[serde(default)]
    target_ref: Option<TargetRef>,
}

#[derive(Default, Deserialize)]
struct Conditions {
    #[serde(default)]
    ready: Option<bool>,
    #[serde(default)]
    terminating: Option<bool>,
}

#[derive(Deserialize)]
struct TargetRef {
    #[serde(default)]
    kind: Option<String>,
    #[serde(default)]
    namespace: Option<String>,
    #[serde(default)]
    name: Option<String>,
}

/// Reads a Service; one of the type ExternalName has no endpoints and no ports here.
pub(super) fn service(object: &Object) -> Service {
    let spec = object.data.get("spec");
    let field = |name: &str| spec.and_then(|spec| spec.get(name));
    let mut skipped = Vec::new();
    let mut ports = Vec::new();
    let is_external = field("type").and_then(Value::as_str) == Some("ExternalName");
    let entries = field("ports").and_then(Value::as_array);
    for (index, entry) in entries
        .into_iter()
        .flatten()
        .enumerate()
        .filter(|_| !is_external)
    {
        match PortSpec::deserialize(entry) {
            Ok(spec) => {
                let name = spec.name.unwrap_or_default();
                let transport = spec.protocol.as_deref().unwrap_or("TCP");
                let protocol = protocol(spec.app_protocol.as_deref(), &name, transport);
                if let (Some(protocol), Some(port)) = (protocol, spec.port) {
                    ports.push(ServicePort {
                        name,
                        port,
                        protocol,
                    });
                }
            }
            Err(error) => skipped.push(Skipped::new(&format!("ports[{index}]"), &error)),
        }
    }
    let declared = declared(&object.annotations, &mut skipped);
    Service {
        ports,
        declared,
        skipped,
    }
}

/// Reads an EndpointSlice.
pub(super) fn slice(object: &Object) -> Result<Slice, Malformed> {
    let service = object.labels.get(SERVICE_NAME);
    let service = service.ok_or_else(|| Malformed::new(format!("has no label {SERVICE_NAME}")))?;
    let mut skipped = Vec::new();
    let mut entry = |what: String, reason: &dyn ToString| {
        skipped.push(Skipped::new(
            &format!("{}: {what}", object.name),
            &reason.to_string(),
        ));
    };
    let list = |name: &str| object.data.get(name).and_then(Value::as_array);
    let mut ports = BTreeMap::new();
    for (index, value) in list("ports").into_iter().flatten().enumerate() {
        match PortSpec::deserialize(value) {
            Ok(spec) => {
                // A port without number is every port: nothing that could be called.
                if let Some(port) = spec.port {
                    ports.insert(spec.name.unwrap_or_default(), port);
                }
            }
            Err(error) => entry(format!("ports[{index}]"), &error),
        }
    }
    let mut endpoints = Vec::new();
    for (index, value) in list("endpoints").into_iter().flatten().enumerate() {
        match EndpointSpec::deserialize(value) {
            Ok(spec) => match endpoint(spec, &object.namespace) {
                Some(endpoint) => endpoints.push(endpoint),
                None => entry(format!("endpoints[{index}]"), &"has no address"),
            },
            Err(error) => entry(format!("endpoints[{index}]"), &error),
        }
    }
    Ok(Slice {
        service: Name::new(&object.namespace, service),
        ports,
        endpoints,
        annotations: object.annotations.clone(),
        skipped,
    })
}

fn endpoint(spec: EndpointSpec, namespace: &str) -> Option<Endpoint> {
    let conditions = spec.conditions.unwrap_or_default();
    let pod = spec.target_ref.and_then(|target| {
        let is_pod = target.kind.as_deref() == Some("Pod");
        let namespace = target.namespace.as_deref().unwrap_or(namespace);
        is_pod.then(|| target.name.map(|name| Name::new(namespace, &name)))?
    });
    Some(Endpoint {
        // The others are the same endpoint, and of no use to anybody.
        address: spec.addresses.into_iter().next()?,
        // What is not said is true of `ready`, and false of `terminating`.
        healthy: conditions.ready.unwrap_or(true) && !conditions.terminating.unwrap_or(false),
        node: spec.node_name.map(Into::into),
        zone: spec.zone.map(Into::into),
        pod,
    })
}

/// What is spoken on a port, by Istio's rules: `appProtocol`, then the word before the first `-` of the port's name. `None`
/// for what is not on TCP.
fn protocol(app_protocol: Option<&str>, name: &str, transport: &str) -> Option<&'static str> {
    if transport != "TCP" {
        return None;
    }
    let by_word = |word: &str| {
        Some(match word {
            "http" | "http1" | "kubernetes.io/ws" => "http",
            "grpc" | "grpc-web" | "http2" | "kubernetes.io/h2c" => "grpc",
            "dubbo" => "dubbo",
            "tri" | "triple" => "tri",
            "bolt" | "sofarpc" => "bolt",
            "tcp" | "tls" | "https" | "kubernetes.io/wss" | "mongo" | "redis" | "mysql" => "tcp",
            _ => return None,
        })
    };
    let said = app_protocol.and_then(|word| by_word(&word.to_ascii_lowercase()));
    let name = name.to_ascii_lowercase();
    let word = if name.starts_with("grpc-web") {
        "grpc-web"
    } else {
        name.split('-').next().unwrap_or_default()
    };
    said.or_else(|| by_word(word)).or(Some("tcp"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols_are_inferred_as_istio_does() {
        for (app_protocol, name, transport, expected) in [
            (None, "http-web", "TCP", Some("http")),
            (Some("HTTP2"), "web", "TCP", Some("grpc")),
            (Some("example.com/own"), "grpc", "TCP", Some("grpc")),
            (None, "grpc-web-x", "TCP", Some("grpc")),
            (None, "dubbo", "TCP", Some("dubbo")),
            (None, "", "TCP", Some("tcp")),
            (Some("http"), "dns", "UDP", None),
        ] {
            assert_eq!(protocol(app_protocol, name, transport), expected, "{name}");
        }
    }
}
