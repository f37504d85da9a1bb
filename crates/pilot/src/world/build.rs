//! Makes a world out of configuration and registrations.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::endpoints::Joined;
use super::{
    Config, Endpoint, EndpointMap, EndpointPorts, Endpoints, Index, REGISTRY_NAMESPACE, Registered,
    Rule, Service, ServiceId, ServicePort, Source, Visibility, World,
};
use crate::hosts;
use crate::istio::mesh_config::MeshConfig;
use crate::istio::service_entry::{Location, Resolution, ServiceEntry, WorkloadEntry};
use crate::istio::{Labels, Object, ObjectId, Spec};
use crate::protocol::Protocol;

/// Builds a snapshot.
pub fn build(
    revision: u64,
    mesh: Arc<MeshConfig>,
    config: Arc<Config>,
    registered: &Registered,
) -> World {
    let mut services: BTreeMap<ServiceId, Service> = BTreeMap::new();
    let mut endpoints: HashMap<ServiceId, Vec<Endpoint>> = HashMap::new();
    for object in config.values() {
        if let Spec::ServiceEntry(spec) = &object.spec {
            add_service_entry(object, spec, &config, &mesh, &mut services, &mut endpoints);
        }
    }
    for (id, protocols) in registered.hosts() {
        add_registered(id, &protocols, &mut services);
    }
    let own_endpoints: HashMap<ServiceId, Endpoints> = endpoints
        .into_iter()
        .map(|(id, endpoints)| (id, Endpoints::own(endpoints)))
        .collect();
    let mut endpoints: EndpointMap = own_endpoints.clone().into_iter().collect();
    for service in services.values() {
        join_registered(service, registered, &mut endpoints);
    }
    let services = services
        .into_iter()
        .map(|(id, mut service)| {
            service.ports.sort_by_key(|port| port.number);
            (id, Arc::new(service))
        })
        .collect();
    World {
        revision,
        index: Arc::new(index(services, own_endpoints, config, &mesh)),
        mesh,
        endpoints,
        workloads: Arc::default(),
    }
}

impl World {
    /// The next snapshot after the endpoints of some registered hosts changed, and nothing else.
    pub fn with_endpoints(
        &self,
        revision: u64,
        changed: &[Arc<str>],
        registered: &Registered,
    ) -> World {
        let mut next = World {
            revision,
            ..self.clone()
        };
        for host in changed {
            for service in self.index.services_named(host) {
                // Endpoints that configuration gives stay; those of the registry are put anew.
                match self.index.own_endpoints.get(&service.id) {
                    Some(own) => next.endpoints.insert(service.id.clone(), own.clone()),
                    None => next.endpoints.remove(&service.id),
                };
                join_registered(service, registered, &mut next.endpoints);
            }
        }
        next
    }
}

fn index(
    services: BTreeMap<ServiceId, Arc<Service>>,
    own_endpoints: HashMap<ServiceId, Endpoints>,
    config: Arc<Config>,
    mesh: &MeshConfig,
) -> Index {
    let mut index = Index {
        services,
        own_endpoints,
        ..Index::default()
    };
    let mut source_labels = BTreeSet::new();
    for object in config.values() {
        let namespace = &object.id.namespace;
        let full = |name: &String| {
            hosts::resolve(name, namespace, &mesh.domain, |name| {
                index.services_named(name).next().is_some()
            })
        };
        match &object.spec {
            Spec::VirtualService(spec) => {
                for item in &spec.http {
                    source_labels.extend(
                        item.matches
                            .iter()
                            .flat_map(|m| m.source_labels.keys().cloned()),
                    );
                }
                for item in &spec.tcp {
                    source_labels.extend(
                        item.matches
                            .iter()
                            .flat_map(|m| m.source_labels.keys().cloned()),
                    );
                }
                let rule = Rule {
                    id: object.id.clone(),
                    hosts: spec.hosts.iter().map(full).collect(),
                    visibility: Visibility::of(
                        &spec.export_to,
                        &mesh.default_virtual_service_export_to,
                        namespace,
                    ),
                    spec: spec.clone(),
                };
                index.virtual_services.push(rule);
            }
            Spec::DestinationRule(spec) => {
                let rule = Rule {
                    id: object.id.clone(),
                    hosts: vec![full(&spec.host)],
                    visibility: Visibility::of(
                        &spec.export_to,
                        &mesh.default_destination_rule_export_to,
                        namespace,
                    ),
                    spec: spec.clone(),
                };
                index.destination_rules.push(rule);
            }
            Spec::Sidecar(spec) => {
                index.sidecars.push(Rule {
                    id: object.id.clone(),
                    hosts: Vec::new(),
                    visibility: Visibility::Public,
                    spec: spec.clone(),
                });
            }
            Spec::ServiceEntry(_)
            | Spec::WorkloadEntry(_)
            | Spec::RegistrySource(_)
            | Spec::RegistrySync(_) => {}
        }
    }
    index.source_labels = source_labels.into_iter().collect();
    index.config = config;
    index
}

fn add_service_entry(
    object: &Object,
    spec: &ServiceEntry,
    config: &Config,
    mesh: &MeshConfig,
    services: &mut BTreeMap<ServiceId, Service>,
    endpoints: &mut HashMap<ServiceId, Vec<Endpoint>>,
) {
    let ports: Vec<ServicePort> = spec.ports.iter().filter_map(service_port).collect();
    let own = if spec.workload_selector.is_some() {
        selected(object, spec, &ports, config)
    } else if spec.endpoints.is_empty()
        && matches!(spec.resolution, Resolution::Dns | Resolution::DnsRoundRobin)
    {
        Vec::new()
    } else {
        let name = |index: usize| format!("{}-{index}", object.id.name);
        let workloads = spec.endpoints.iter().enumerate();
        workloads
            .map(|(i, item)| endpoint(item, &ports, &item.labels, &object.id, &name(i)))
            .collect()
    };
    for host in &spec.hosts {
        let id = ServiceId {
            host: host.as_str().into(),
            namespace: object.id.namespace.as_str().into(),
        };
        // Istio takes a name without endpoints as its own endpoint.
        let mut of_host = own.clone();
        if of_host.is_empty()
            && spec.workload_selector.is_none()
            && matches!(spec.resolution, Resolution::Dns | Resolution::DnsRoundRobin)
        {
            let entry = WorkloadEntry {
                address: host.clone(),
                ..WorkloadEntry::default()
            };
            of_host.push(endpoint(
                &entry,
                &ports,
                &Labels::new(),
                &object.id,
                &object.id.name,
            ));
        }
        endpoints.entry(id.clone()).or_default().extend(of_host);
        services
            .entry(id.clone())
            .and_modify(|service| {
                // Entries of one host are one service: the first says how, the others add ports and addresses.
                for port in &ports {
                    if service
                        .ports
                        .iter()
                        .all(|known| known.number != port.number)
                    {
                        service.ports.push(port.clone());
                    }
                }
                for address in &spec.addresses {
                    if !service.addresses.contains(address) {
                        service.addresses.push(address.clone());
                    }
                }
            })
            .or_insert_with(|| Service {
                id,
                ports: ports.clone(),
                addresses: spec.addresses.clone(),
                resolution: spec.resolution,
                external: spec.location == Location::MeshExternal,
                visibility: Visibility::of(
                    &spec.export_to,
                    &mesh.default_service_export_to,
                    &object.id.namespace,
                ),
                source: Source::Config,
            });
    }
}

fn service_port(port: &crate::istio::Port) -> Option<ServicePort> {
    let number = u16::try_from(port.number).ok()?;
    let target = u16::try_from(port.target_port)
        .ok()
        .filter(|target| *target != 0);
    Some(ServicePort {
        name: port.name.as_str().into(),
        number,
        target: target.unwrap_or(number),
        protocol: port.protocol(),
    })
}

/// Endpoints of the WorkloadEntries that a ServiceEntry selects.
fn selected(
    object: &Object,
    spec: &ServiceEntry,
    ports: &[ServicePort],
    config: &Config,
) -> Vec<Endpoint> {
    let Some(selector) = &spec.workload_selector else {
        return Vec::new();
    };
    config
        .values()
        .filter(|entry| entry.id.namespace == object.id.namespace)
        .filter_map(|entry| match &entry.spec {
            Spec::WorkloadEntry(workload) => {
                let mut labels = entry.labels.clone();
                labels.extend(workload.labels.clone());
                selector
                    .matches(&labels)
                    .then(|| endpoint(workload, ports, &labels, &entry.id, &entry.id.name))
            }
            _ => None,
        })
        .collect()
}

/// An endpoint for the ports of its ServiceEntry: where it says, else at their targets.
fn endpoint(
    entry: &WorkloadEntry,
    ports: &[ServicePort],
    labels: &Labels,
    id: &ObjectId,
    name: &str,
) -> Endpoint {
    let number = |port: &ServicePort| {
        let own = entry
            .ports
            .get(port.name.as_ref())
            .and_then(|number| u16::try_from(*number).ok());
        (port.number, own.unwrap_or(port.target))
    };
    Endpoint {
        address: entry.address.as_str().into(),
        ports: EndpointPorts::Numbered(ports.iter().map(number).collect()),
        labels: labels.clone(),
        weight: entry.weight.max(1),
        locality: entry.locality.as_str().into(),
        healthy: true,
        rpc: None,
        workload: format!("{name};{};{name};;Kubernetes", id.namespace).into(),
    }
}

fn add_registered(
    id: &ServiceId,
    protocols: &[Protocol],
    services: &mut BTreeMap<ServiceId, Service>,
) {
    // A ServiceEntry with the same host says what the service is; the registry adds endpoints: those of the default namespace
    // to an entry of any namespace, others to one of their own.
    let from = ServiceId {
        host: id.host.clone(),
        namespace: "".into(),
    };
    let is_public = &*id.namespace == REGISTRY_NAMESPACE;
    let mut known = services
        .range(from..)
        .take_while(|(known, _)| known.host == id.host)
        .filter(|(_, service)| service.source == Source::Config);
    if known.any(|(known, _)| is_public || known.namespace == id.namespace) {
        return;
    }
    let port = |protocol: &Protocol| ServicePort {
        name: protocol.as_str().into(),
        number: protocol.registry_port(),
        target: protocol.registry_port(),
        protocol: *protocol,
    };
    let mut ports: Vec<ServicePort> = protocols.iter().map(port).collect();
    ports.sort_by_key(|port| port.number);
    ports.dedup_by_key(|port| port.number);
    services.insert(
        id.clone(),
        Service {
            id: id.clone(),
            ports,
            addresses: Vec::new(),
            resolution: Resolution::Static,
            external: false,
            visibility: match is_public {
                true => Visibility::Public,
                false => Visibility::Namespaces(vec![id.namespace.to_string()]),
            },
            source: Source::Registry,
        },
    );
}

/// Adds the registry's endpoints to those that configuration gives. A registered endpoint serves the ports of its protocol.
fn join_registered(service: &Service, registered: &Registered, endpoints: &mut EndpointMap) {
    if service.resolution != Resolution::Static {
        return;
    }
    let of_all = ServiceId {
        host: service.id.host.clone(),
        namespace: REGISTRY_NAMESPACE.into(),
    };
    // What is registered in the service's own namespace is meant before what all see.
    let id = match registered.knows(&service.id) {
        true => &service.id,
        false => &of_all,
    };
    let mut joined = Vec::new();
    for (protocol, registered) in registered.services(id) {
        let ports = service.ports.iter();
        for port in ports.filter(|port| port.protocol == protocol) {
            joined.push(Joined {
                port: port.name.clone(),
                protocol,
                service: registered.clone(),
            });
        }
    }
    if joined.is_empty() {
        return;
    }
    let own = endpoints.get(&service.id).cloned().unwrap_or_default();
    endpoints.insert(service.id.clone(), own.join(joined));
}
