//! A connected proxy: who it says it is, and the class of proxies that get the same answer.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use api::envoy::config::core::v3::Node;
use prost_types::value::Kind as ValueKind;

use crate::istio::{Labels, ObjectId};
use crate::world::Index;

/// A proxy as its node says.
#[derive(Debug, Clone, PartialEq)]
pub struct Proxy {
    /// `<name>.<namespace>`: what tools call it.
    pub id: Arc<str>,
    /// Its own address.
    pub ip: IpAddr,
    /// Namespace whose configuration applies.
    pub namespace: Arc<str>,
    /// Labels that selectors match.
    pub labels: Labels,
    /// What it can do.
    pub client: Client,
    /// How traffic reaches it.
    pub interception: Interception,
    /// `node.cluster`
    pub cluster: String,
    /// Program and version.
    pub version: String,
}

/// The program at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Client {
    /// Ours: has RPC listeners, and no HTTP/2 yet.
    Mosn,
    /// Envoy, or anything that takes what Envoy takes.
    Envoy,
}

/// How the application's traffic reaches a proxy that has no `captureMode` of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Interception {
    /// By the kernel's packet filter.
    Redirect,
    /// The application calls the proxy, at each port of the services.
    None,
    /// Not said by a program that cannot be redirected to yet: only listeners that a Sidecar names.
    Unsaid,
}

impl Proxy {
    /// Reads a node. The id has Istio's form `sidecar~<ip>~<name>.<namespace>~<domain>`.
    pub fn from_node(node: &Node) -> Result<Proxy, String> {
        let parts: Vec<&str> = node.id.split('~').collect();
        let [kind, ip, name, _domain] = parts.as_slice() else {
            return Err(format!(
                "node id `{}` is not <type>~<ip>~<name>.<namespace>~<domain>",
                node.id
            ));
        };
        if *kind != "sidecar" {
            return Err(format!(
                "proxies of type `{kind}` are not served, only `sidecar`"
            ));
        }
        let ip = if ip.is_empty() {
            IpAddr::V4(Ipv4Addr::LOCALHOST)
        } else {
            ip.parse()
                .map_err(|_| format!("`{ip}` in node id `{}` is no IP address", node.id))?
        };
        let text = |key: &str| match metadata(node, key) {
            Some(ValueKind::StringValue(text)) => Some(text.clone()),
            _ => None,
        };
        let namespace = text("NAMESPACE")
            .or_else(|| {
                name.rsplit_once('.')
                    .map(|(_, namespace)| namespace.to_owned())
            })
            .unwrap_or_else(|| "default".to_owned());
        let labels = match metadata(node, "LABELS") {
            Some(ValueKind::StructValue(labels)) => labels
                .fields
                .iter()
                .filter_map(|(key, value)| match &value.kind {
                    Some(ValueKind::StringValue(value)) => Some((key.clone(), value.clone())),
                    _ => None,
                })
                .collect(),
            _ => Labels::new(),
        };
        let version = match &node.user_agent_version_type {
            Some(api::envoy::config::core::v3::node::UserAgentVersionType::UserAgentVersion(
                text,
            )) => text.clone(),
            Some(
                api::envoy::config::core::v3::node::UserAgentVersionType::UserAgentBuildVersion(
                    build,
                ),
            ) => build
                .version
                .as_ref()
                .map(|v| format!("{}.{}.{}", v.major_number, v.minor_number, v.patch))
                .unwrap_or_default(),
            None => String::new(),
        };
        Ok(Proxy {
            id: (*name).into(),
            ip,
            namespace: namespace.into(),
            labels,
            client: if node.user_agent_name == "mosn" {
                Client::Mosn
            } else {
                Client::Envoy
            },
            interception: match text("INTERCEPTION_MODE").as_deref() {
                Some("NONE") => Interception::None,
                None if node.user_agent_name == "mosn" => Interception::Unsaid,
                _ => Interception::Redirect,
            },
            cluster: node.cluster.clone(),
            version: format!("{} {version}", node.user_agent_name)
                .trim()
                .to_owned(),
        })
    }

    /// The class it is in, given the rules of the moment.
    pub fn class(&self, index: &Index, root_namespace: &str) -> Class {
        let labels = index
            .source_labels
            .iter()
            .filter_map(|key| Some((key.clone(), self.labels.get(key)?.clone())))
            .collect();
        Class {
            namespace: self.namespace.clone(),
            sidecar: self.sidecar(index, root_namespace),
            labels,
            client: self.client,
            interception: self.interception,
        }
    }

    /// The Sidecar that applies: of its namespace one that selects it, else one without selector; else the root
    /// namespace's without selector.
    fn sidecar(&self, index: &Index, root_namespace: &str) -> Option<ObjectId> {
        let of = |namespace: &str, selecting: bool| {
            index.sidecars.iter().find(|rule| {
                rule.id.namespace == namespace
                    && match &rule.spec.workload_selector {
                        Some(selector) => selecting && selector.matches(&self.labels),
                        None => !selecting,
                    }
            })
        };
        of(&self.namespace, true)
            .or_else(|| of(&self.namespace, false))
            .or_else(|| of(root_namespace, false))
            .map(|rule| rule.id.clone())
    }
}

fn metadata<'a>(node: &'a Node, key: &str) -> Option<&'a ValueKind> {
    node.metadata.as_ref()?.fields.get(key)?.kind.as_ref()
}

/// Proxies that get the same clusters, endpoints and routes. Listeners differ by the proxy's address too.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Class {
    /// Namespace whose configuration applies.
    pub namespace: Arc<str>,
    /// The Sidecar that applies.
    pub sidecar: Option<ObjectId>,
    /// The labels that some rule looks at.
    pub labels: Vec<(String, String)>,
    /// What the program can do.
    pub client: Client,
    /// How traffic reaches it.
    pub interception: Interception,
}

impl Class {
    /// Whether the caller has these labels.
    pub fn has_labels(&self, labels: &Labels) -> bool {
        labels
            .iter()
            .all(|(key, value)| self.labels.iter().any(|(k, v)| k == key && v == value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_istios_node_id() {
        let node = |id: &str| Node {
            id: id.to_owned(),
            user_agent_name: "mosn".to_owned(),
            ..Node::default()
        };
        let proxy = Proxy::from_node(&node("sidecar~127.0.0.3~shop.prod~prod.svc.cluster.local"))
            .expect("a proxy");
        assert_eq!(
            (proxy.id.as_ref(), proxy.namespace.as_ref()),
            ("shop.prod", "prod")
        );
        assert_eq!(proxy.ip, IpAddr::V4(Ipv4Addr::new(127, 0, 0, 3)));
        assert_eq!(proxy.client, Client::Mosn);
        for wrong in ["", "shop", "router~1.1.1.1~a.b~c", "sidecar~nowhere~a.b~c"] {
            assert!(Proxy::from_node(&node(wrong)).is_err(), "{wrong}");
        }
    }
}
