//! What pilot knows at one moment: services, their endpoints, and the rules for them. A snapshot never changes; the next
//! one shares with it whatever did not change.

mod build;
mod endpoints;
mod registered;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::hosts;
use crate::istio::destination_rule::DestinationRule;
use crate::istio::mesh_config::MeshConfig;
use crate::istio::service_entry::Resolution;
use crate::istio::sidecar::Sidecar;
use crate::istio::virtual_service::VirtualService;
use crate::istio::{Labels, Object, ObjectId};
use crate::protocol::Protocol;

pub use build::build;
pub use endpoints::{EndpointMap, Endpoints};
pub use registered::{REGISTRY_NAMESPACE, Registered};

/// All objects in force, by name.
pub type Config = BTreeMap<ObjectId, Arc<Object>>;

/// One moment.
#[derive(Debug, Clone, Default)]
pub struct World {
    /// Counts snapshots.
    pub revision: u64,
    /// Mesh-wide settings.
    pub mesh: Arc<MeshConfig>,
    /// Everything but endpoints.
    pub index: Arc<Index>,
    /// Endpoints by service.
    pub endpoints: EndpointMap,
    /// Labels of proxies by their address: what was registered through a proxy has the proxy's labels.
    pub workloads: Arc<HashMap<String, Labels>>,
}

/// Services and rules. Changes with configuration and when services come or go.
#[derive(Debug, Default)]
pub struct Index {
    /// By host and namespace.
    pub services: BTreeMap<ServiceId, Arc<Service>>,
    /// Endpoints that configuration gives, without those of the registry.
    pub own_endpoints: HashMap<ServiceId, Endpoints>,
    /// In order of their names.
    pub virtual_services: Vec<Rule<VirtualService>>,
    /// In order of their names.
    pub destination_rules: Vec<Rule<DestinationRule>>,
    /// In order of their names.
    pub sidecars: Vec<Rule<Sidecar>>,
    /// Label names that some rule looks at in the caller: proxies that differ in others are one class.
    pub source_labels: Vec<String>,
    /// The objects that all of this was made of.
    pub config: Arc<Config>,
}

/// An object's content with its name.
#[derive(Debug)]
pub struct Rule<T> {
    /// Its name.
    pub id: ObjectId,
    /// Hosts in their full form: of a VirtualService all, of a DestinationRule its one, of a Sidecar none.
    pub hosts: Vec<String>,
    /// Who sees it.
    pub visibility: Visibility,
    /// Its content.
    pub spec: Arc<T>,
}

impl<T> Clone for Rule<T> {
    fn clone(&self) -> Self {
        Rule {
            id: self.id.clone(),
            hosts: self.hosts.clone(),
            visibility: self.visibility.clone(),
            spec: self.spec.clone(),
        }
    }
}

/// Names a service.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceId {
    /// Host name; the interface name of an RPC service.
    pub host: Arc<str>,
    /// Its namespace.
    pub namespace: Arc<str>,
}

/// A service without its endpoints.
#[derive(Debug, Clone, PartialEq)]
pub struct Service {
    /// Host and namespace.
    pub id: ServiceId,
    /// Its ports, by number.
    pub ports: Vec<ServicePort>,
    /// Virtual addresses.
    pub addresses: Vec<String>,
    /// How endpoints are found.
    pub resolution: Resolution,
    /// Outside the mesh.
    pub external: bool,
    /// Who sees it.
    pub visibility: Visibility,
    /// Where it comes from.
    pub source: Source,
}

/// Where a service comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// A ServiceEntry.
    Config,
    /// The registry: it has no port number of its own and is offered on any listener of its protocol.
    Registry,
}

/// A port of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name.
    pub name: Arc<str>,
    /// Its number.
    pub number: u16,
    /// Where endpoints listen that do not say otherwise.
    pub target: u16,
    /// What is spoken.
    pub protocol: Protocol,
}

/// An address of a service.
#[derive(Debug, Clone, PartialEq)]
pub struct Endpoint {
    /// IP address, DNS name or `unix:///path`.
    pub address: Arc<str>,
    /// Where it listens.
    pub ports: EndpointPorts,
    /// Labels that subsets select.
    pub labels: Labels,
    /// Share of the load, relative to the others; at least 1.
    pub weight: u32,
    /// `region/zone/subzone`
    pub locality: Arc<str>,
    /// Whether calls should go there.
    pub healthy: bool,
    /// Version and group of the RPC service that it serves.
    pub rpc: Option<RpcInstance>,
    /// Istio's name of the workload: `name;namespace;canonical name;revision;cluster`.
    pub workload: Arc<str>,
}

/// Ports of an endpoint.
#[derive(Debug, Clone, PartialEq)]
pub enum EndpointPorts {
    /// From configuration: by the service's port number. Entries of one host may define different ports.
    Numbered(BTreeMap<u16, u16>),
    /// From the registry: it serves only the port of this name.
    Only(Arc<str>, u16),
}

/// Which version and group of an interface an endpoint serves; empty = none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RpcInstance {
    /// Version.
    pub version: Arc<str>,
    /// Group.
    pub group: Arc<str>,
}

impl Endpoint {
    /// Where it listens for a port of its service.
    pub fn port(&self, port: &ServicePort) -> Option<u16> {
        match &self.ports {
            EndpointPorts::Numbered(ports) => ports.get(&port.number).copied(),
            EndpointPorts::Only(name, number) => (*name == port.name).then_some(*number),
        }
    }
}

/// Namespaces that see something.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Visibility {
    /// All.
    #[default]
    Public,
    /// None.
    Hidden,
    /// These.
    Namespaces(Vec<String>),
}

impl Visibility {
    /// Reads `exportTo` of an object; empty means the mesh's default.
    pub fn of(export_to: &[String], default: &[String], namespace: &str) -> Visibility {
        let names = if export_to.is_empty() {
            default
        } else {
            export_to
        };
        if names.is_empty() || names.iter().any(|name| name == "*") {
            return Visibility::Public;
        }
        if names.iter().any(|name| name == "~") {
            return Visibility::Hidden;
        }
        let own = |name: &String| {
            if name == "." {
                namespace.to_owned()
            } else {
                name.clone()
            }
        };
        Visibility::Namespaces(names.iter().map(own).collect())
    }

    /// Whether proxies of `namespace` see it.
    pub fn includes(&self, namespace: &str) -> bool {
        match self {
            Visibility::Public => true,
            Visibility::Hidden => false,
            Visibility::Namespaces(names) => names.iter().any(|name| name == namespace),
        }
    }
}

impl World {
    /// Whether an endpoint has all of these labels.
    pub fn selects(&self, labels: &Labels, endpoint: &Endpoint) -> bool {
        let workload = match endpoint.ports {
            EndpointPorts::Only(..) => self.workloads.get(endpoint.address.as_ref()),
            EndpointPorts::Numbered(_) => None,
        };
        labels.iter().all(|(key, value)| {
            let of_workload = workload.and_then(|labels| labels.get(key));
            of_workload.or_else(|| endpoint.labels.get(key)) == Some(value)
        })
    }

    /// The endpoints of a service.
    pub fn endpoints_of(&self, id: &ServiceId) -> impl Iterator<Item = Cow<'_, Endpoint>> {
        self.endpoints.get(id).into_iter().flat_map(Endpoints::iter)
    }
}

impl Index {
    /// Services with exactly this host, of any namespace.
    pub fn services_named(&self, host: &str) -> impl Iterator<Item = &Arc<Service>> {
        let from = ServiceId {
            host: host.into(),
            namespace: "".into(),
        };
        self.services
            .range(from..)
            .map(|(_, service)| service)
            .take_while(move |service| service.id.host.as_ref() == host)
    }

    /// DestinationRules for `host` as a proxy of `namespace` sees them, merged as Istio does: of its own namespace, else of
    /// the service's, else of the root namespace; the most precise host; several with one host are one rule.
    pub fn destination_rules_for(
        &self,
        host: &str,
        service_namespace: &str,
        namespace: &str,
        root_namespace: &str,
    ) -> Vec<&Rule<DestinationRule>> {
        for tier in [namespace, service_namespace, root_namespace] {
            let seen = |rule: &&Rule<DestinationRule>| {
                rule.id.namespace == tier
                    && (tier == namespace || rule.visibility.includes(namespace))
                    && rule
                        .hosts
                        .iter()
                        .any(|pattern| hosts::covers(pattern, host))
            };
            let rules: Vec<_> = self.destination_rules.iter().filter(seen).collect();
            let precision = |rule: &&Rule<DestinationRule>| {
                rule.hosts
                    .iter()
                    .map(|pattern| hosts::precision(pattern))
                    .max()
            };
            if let Some(best) = rules.iter().filter_map(precision).max() {
                return rules
                    .into_iter()
                    .filter(|rule| precision(rule) == Some(best))
                    .collect();
            }
        }
        Vec::new()
    }
}
