//! Istio's configuration kinds as plain structs: parsed strictly (an unknown field is an error with
//! its path) and validated with Istio's rules.

pub mod destination_rule;
pub mod document;
pub mod duration;
pub mod mesh_config;
pub mod service_entry;
pub mod sidecar;
pub mod validate;
pub mod virtual_service;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use registry::{RegistrySource, RegistrySync};
use serde::{Deserialize, Serialize};

use crate::protocol::Protocol;
use destination_rule::DestinationRule;
use service_entry::{ServiceEntry, WorkloadEntry};
use sidecar::Sidecar;
use virtual_service::VirtualService;

/// Key and value pairs that selectors match.
pub type Labels = BTreeMap<String, String>;

/// The `apiVersion` of this mesh's own kinds.
pub const MESH_API: &str = "mesh.sofastack.io/v1alpha1";

/// The kinds that pilot acts on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub enum Kind {
    /// `ServiceEntry`
    ServiceEntry,
    /// `WorkloadEntry`
    WorkloadEntry,
    /// `VirtualService`
    VirtualService,
    /// `DestinationRule`
    DestinationRule,
    /// `Sidecar`
    Sidecar,
    /// `RegistrySource`, a kind of this mesh.
    RegistrySource,
    /// `RegistrySync`, a kind of this mesh.
    RegistrySync,
}

const MESH_GROUP: &str = "mesh.sofastack.io";
const ISTIO_GROUP: &str = "networking.istio.io";

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 7] = [
        Kind::ServiceEntry,
        Kind::WorkloadEntry,
        Kind::VirtualService,
        Kind::DestinationRule,
        Kind::Sidecar,
        Kind::RegistrySource,
        Kind::RegistrySync,
    ];

    /// Its API group.
    pub fn group(self) -> &'static str {
        match self {
            Kind::RegistrySource | Kind::RegistrySync => MESH_GROUP,
            _ => ISTIO_GROUP,
        }
    }

    /// The versions of the group that have it, the best first.
    pub fn versions(self) -> &'static [&'static str] {
        match self {
            Kind::RegistrySource | Kind::RegistrySync => &["v1alpha1"],
            _ => &["v1", "v1beta1", "v1alpha3"],
        }
    }

    /// Its name in paths of Kubernetes.
    pub fn plural(self) -> &'static str {
        match self {
            Kind::ServiceEntry => "serviceentries",
            Kind::WorkloadEntry => "workloadentries",
            Kind::VirtualService => "virtualservices",
            Kind::DestinationRule => "destinationrules",
            Kind::Sidecar => "sidecars",
            Kind::RegistrySource => "registrysources",
            Kind::RegistrySync => "registrysyncs",
        }
    }

    /// The kind that `name` names, if pilot acts on it.
    pub fn from_name(name: &str) -> Option<Kind> {
        Some(match name {
            "ServiceEntry" => Kind::ServiceEntry,
            "WorkloadEntry" => Kind::WorkloadEntry,
            "VirtualService" => Kind::VirtualService,
            "DestinationRule" => Kind::DestinationRule,
            "Sidecar" => Kind::Sidecar,
            "RegistrySource" => Kind::RegistrySource,
            "RegistrySync" => Kind::RegistrySync,
            _ => return None,
        })
    }

    /// The `apiVersion` that objects of the kind are shown with.
    pub fn api_version(self) -> &'static str {
        match self {
            Kind::RegistrySource | Kind::RegistrySync => MESH_API,
            _ => "networking.istio.io/v1",
        }
    }

    /// Whether `version` is an `apiVersion` that has the kind.
    pub fn is_of(self, version: &str) -> bool {
        let version = version.split_once('/');
        version.is_some_and(|(group, version)| {
            group == self.group() && self.versions().contains(&version)
        })
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// The name of an object: kind, namespace and name are unique together.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectId {
    /// What it is.
    pub kind: Kind,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}

impl ObjectId {
    /// The name under which an object counts for the whole mesh: its own in the namespace `default`, else
    /// `name.namespace`.
    pub fn mesh_wide_name(&self) -> String {
        match self.namespace.as_str() {
            "default" => self.name.clone(),
            namespace => format!("{}.{namespace}", self.name),
        }
    }

    /// The path Istio writes into `filter_metadata.istio.config` of what an object made.
    pub fn resource_path(&self) -> String {
        let kind = match self.kind {
            Kind::ServiceEntry => "service-entry",
            Kind::WorkloadEntry => "workload-entry",
            Kind::VirtualService => "virtual-service",
            Kind::DestinationRule => "destination-rule",
            Kind::Sidecar => "sidecar",
            Kind::RegistrySource => "registry-source",
            Kind::RegistrySync => "registry-sync",
        };
        format!(
            "/apis/{}/namespaces/{}/{kind}/{}",
            self.kind.api_version(),
            self.namespace,
            self.name
        )
    }
}

/// A valid object: its name, its labels and its content.
#[derive(Debug, Clone, PartialEq)]
pub struct Object {
    /// Kind, namespace and name.
    pub id: ObjectId,
    /// `metadata.labels`
    pub labels: Labels,
    /// `metadata.annotations`
    pub annotations: Labels,
    /// `spec`
    pub spec: Spec,
    /// What Istio would take and pilot does not act on, for the log.
    pub warnings: Vec<String>,
}

/// The content of an object. Shared, because snapshots of the world keep it.
#[derive(Debug, Clone, PartialEq)]
pub enum Spec {
    /// A service outside any registry.
    ServiceEntry(Arc<ServiceEntry>),
    /// A workload that a ServiceEntry selects.
    WorkloadEntry(Arc<WorkloadEntry>),
    /// Routes of hosts.
    VirtualService(Arc<VirtualService>),
    /// What happens after routing.
    DestinationRule(Arc<DestinationRule>),
    /// What a proxy sees.
    Sidecar(Arc<Sidecar>),
    /// A registry that the directory reads and writes.
    RegistrySource(Arc<RegistrySource>),
    /// What is copied from registry to registry.
    RegistrySync(Arc<RegistrySync>),
}

/// A port with its protocol.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Port {
    /// Port number; 0 is refused except where Istio allows it.
    #[serde(default)]
    pub number: u32,
    /// One of Istio's protocols or an RPC protocol of ours; empty = unknown, served as TCP or HTTP by sniffing.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub protocol: String,
    /// Label of the port.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Where the endpoints listen; 0 = `number`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub target_port: u32,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl Port {
    /// The protocol: as written, or from the port's name as Istio reads it (`http-web`, `dubbo`).
    pub fn protocol(&self) -> Protocol {
        Protocol::parse(&self.protocol).unwrap_or_else(|| Protocol::from_port_name(&self.name))
    }
}

/// Selects workloads whose labels contain all of these.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WorkloadSelector {
    /// Labels that must all be there.
    #[serde(default)]
    pub labels: Labels,
}

impl WorkloadSelector {
    /// Whether `labels` has all labels of the selector.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.labels
            .iter()
            .all(|(key, value)| labels.get(key) == Some(value))
    }
}
