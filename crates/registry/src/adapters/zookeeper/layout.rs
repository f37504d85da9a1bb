//! Where frameworks put their providers, and what a node is in the model.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

use super::Config;
use crate::adapters::applications::Node;
use crate::model::{DEFAULT_WEIGHT, Instance};
use crate::naming::dubbo::{self, Url};
use crate::naming::dubbo_application::Provider;
use crate::naming::{Malformed, sofarpc, spring};
use crate::source::ORIGIN_MARK;

/// Folders of `/dubbo` that are no interfaces.
const NO_INTERFACES: [&str; 3] = ["config", "mapping", "metadata"];
/// Metadata key of a Spring instance's id in ZooKeeper.
const SPRING_CLASS: &str = "org.springframework.cloud.zookeeper.discovery.ZookeeperInstance";

/// Whose layout a root has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Layout {
    /// `ROOT/INTERFACE/providers/URL`, every URL on its own.
    Dubbo,
    /// The same with SOFARPC's URLs.
    SofaRpc,
    /// `ROOT/APPLICATION/ID` with JSON in the nodes: Spring Cloud's, and Dubbo's application level.
    Applications,
}

impl Layout {
    /// The folder of a service's providers.
    pub(super) fn folder(self, root: &str, service: &str) -> String {
        match self {
            Layout::Dubbo | Layout::SofaRpc => format!("{root}/{service}/providers"),
            Layout::Applications => format!("{root}/{service}"),
        }
    }

    /// Whether a child of the root is a service.
    pub(super) fn is_service(self, name: &str) -> bool {
        self != Layout::Dubbo || !NO_INTERFACES.contains(&name)
    }

    /// The instance that a node's name says; of applications its data does.
    pub(super) fn instance(self, service: &str, node: &str) -> Result<Instance, Malformed> {
        let url = Url::decode(node)?;
        match self {
            Layout::SofaRpc => sofarpc::instance_of_url(service, &url),
            Layout::Dubbo | Layout::Applications => dubbo::instance(&url),
        }
    }
}

/// The roots to read, below the chroot.
pub(super) fn roots(config: &Config) -> Vec<(Layout, String)> {
    let dubbo = config.dubbo_roots.iter().map(|root| (Layout::Dubbo, root));
    let others = [
        (Layout::SofaRpc, &config.sofarpc_root),
        (Layout::Applications, &config.spring_root),
    ];
    dubbo
        .chain(others)
        .filter(|(_, root)| !root.is_empty())
        .map(|(layout, root)| (layout, format!("{}{root}", config.chroot)))
        .collect()
}

/// Curator's `ServiceInstance`.
#[derive(Deserialize)]
struct ServiceInstance {
    address: String,
    port: Option<u16>,
    #[serde(default)]
    payload: Value,
}

/// Reads a node of applications. Spring Cloud's and Dubbo's are told apart by their payload: they may share a folder.
pub(super) fn application(application: &str, data: &[u8]) -> Result<Node, Malformed> {
    let read: ServiceInstance =
        serde_json::from_slice(data).map_err(|error| Malformed::new(error.to_string()))?;
    let port = read.port.filter(|port| *port > 0);
    let port = port.ok_or_else(|| Malformed::new("it has no port"))?;
    let metadata: BTreeMap<&str, &str> = read
        .payload
        .get("metadata")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| Some((key.as_str(), value.as_str()?)))
        .collect();
    let class = read.payload.get("@class").and_then(Value::as_str);
    if class.is_some_and(|class| class.starts_with("org.apache.dubbo.")) {
        // A mesh's copy, which is there at the interface level too.
        if metadata.contains_key(ORIGIN_MARK) {
            return Ok(Node::Nothing);
        }
        let provider = Provider::read(application, &read.address, port, metadata.into_iter())?;
        return Ok(provider.map_or(Node::Nothing, Node::Application));
    }
    let status = metadata.get("instance_status").copied().unwrap_or("UP");
    let weight = spring::weight(metadata.get(spring::WEIGHT).copied());
    let mut instance = spring::instance(application, &read.address, port, metadata);
    instance.weight = weight;
    instance.healthy = status == "UP";
    Ok(Node::Instance(instance))
}

/// What a node of an application says.
pub(crate) enum Said {
    /// An instance.
    Instance(Instance),
    /// An application of Dubbo, whose services its metadata say.
    Application(Provider),
}

/// Reads the node at a path. `None`: there are no providers in such places, or it serves nothing.
pub(crate) fn said(config: &Config, path: &str, data: &[u8]) -> Option<Result<Said, Malformed>> {
    for (layout, root) in roots(config) {
        let Some(below) = path
            .strip_prefix(&root)
            .and_then(|rest| rest.strip_prefix('/'))
        else {
            continue;
        };
        let parts: Vec<&str> = below.split('/').collect();
        return match (layout, parts.as_slice()) {
            (Layout::Applications, [name, _]) => match application(name, data) {
                Ok(Node::Instance(instance)) => Some(Ok(Said::Instance(instance))),
                Ok(Node::Application(provider)) => Some(Ok(Said::Application(provider))),
                Ok(Node::Nothing) => None,
                Err(error) => Some(Err(error)),
            },
            (Layout::Dubbo | Layout::SofaRpc, [service, "providers", node])
                if layout.is_service(service) =>
            {
                Some(layout.instance(service, node).map(Said::Instance))
            }
            _ => None,
        };
    }
    None
}

/// An instance as Curator writes it into a node, under an application and an id.
pub(super) fn service_instance(
    (application, id): (&str, &str),
    instance: &Instance,
    payload: &Value,
    uri: &Value,
) -> Vec<u8> {
    let data = json!({
        "name": application,
        "id": id,
        "address": &*instance.address,
        "port": instance.port,
        "sslPort": null,
        "payload": payload,
        "registrationTimeUTC": 0,
        "serviceType": "DYNAMIC",
        "uriSpec": uri,
    });
    data.to_string().into_bytes()
}

/// Path and data of the node that says an instance to its framework; an error says why there is none.
pub(crate) fn node(
    config: &Config,
    id: &str,
    instance: &Instance,
) -> Result<(String, Vec<u8>), String> {
    let service = &instance.service;
    let below = |root: &str| format!("{}{root}", config.chroot);
    match &*service.protocol {
        "dubbo" | "tri" | "rest" => {
            let root = config.dubbo_roots.first();
            let root = root.ok_or("dubboRoots is empty: there is no place for Dubbo's services")?;
            let folder = Layout::Dubbo.folder(&below(root), &service.name);
            let name = dubbo::url(instance).encode();
            Ok((
                format!("{folder}/{name}"),
                instance.address.as_bytes().to_vec(),
            ))
        }
        "bolt" if !config.sofarpc_root.is_empty() => {
            let folder = Layout::SofaRpc.folder(&below(&config.sofarpc_root), &service.name);
            Ok((
                format!("{folder}/{}", sofarpc::url(instance).encode()),
                Vec::new(),
            ))
        }
        "springcloud" | "http" if !config.spring_root.is_empty() => {
            let folder = Layout::Applications.folder(&below(&config.spring_root), &service.name);
            let name = dubbo::encode(id);
            let weight = instance.weight.to_string();
            let says_weight = instance.weight != DEFAULT_WEIGHT
                || instance.metadata.get(spring::WEIGHT).is_some();
            let status = if instance.healthy { "UP" } else { "DOWN" };
            let metadata: BTreeMap<&str, &str> = instance
                .metadata
                .iter()
                .chain([("instance_status", status)])
                .chain(says_weight.then_some((spring::WEIGHT, weight.as_str())))
                .collect();
            let application = spring::application(instance);
            let payload = json!({
                "@class": SPRING_CLASS, "id": name, "name": application, "metadata": metadata,
            });
            let uri = json!({"parts": [
                {"value": "scheme", "variable": true},
                {"value": "://", "variable": false},
                {"value": "address", "variable": true},
                {"value": ":", "variable": false},
                {"value": "port", "variable": true},
            ]});
            let data = service_instance((application, &name), instance, &payload, &uri);
            Ok((format!("{folder}/{name}"), data))
        }
        other => Err(format!("ZooKeeper has no layout here for protocol {other}")),
    }
}
