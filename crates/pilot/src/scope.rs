//! What a class of proxies sees: its listeners for outgoing calls, and for each the services and rules behind it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::hosts;
use crate::istio::Port;
use crate::istio::sidecar::{CaptureMode, OutboundMode, Sidecar};
use crate::istio::virtual_service::VirtualService;
use crate::protocol::Protocol;
use crate::proxy::{Class, Interception};
use crate::world::{Index, Rule, Service, ServiceId, ServicePort, Source, World};

/// The view of a class.
#[derive(Debug)]
pub struct Scope {
    /// The class.
    pub class: Class,
    /// Its Sidecar.
    pub sidecar: Option<Rule<Sidecar>>,
    /// Listeners for outgoing calls, in the Sidecar's order.
    pub egress: Vec<Egress>,
    /// Calls to hosts that are no service.
    pub outbound: OutboundMode,
    /// Services that get clusters, one for each host.
    pub services: BTreeMap<Arc<str>, Arc<Service>>,
}

/// A listener for outgoing calls, or the rule for all ports without one.
#[derive(Debug)]
pub struct Egress {
    /// Its port; `None` = one listener for each port of the services.
    pub port: Option<EgressPort>,
    /// Address to bind; empty = by capture mode.
    pub bind: String,
    /// How traffic reaches it.
    pub interception: Interception,
    /// Services behind it, one for each host.
    pub services: BTreeMap<Arc<str>, Arc<Service>>,
    /// VirtualServices that apply, in order of precedence.
    pub virtual_services: Vec<Rule<VirtualService>>,
}

/// A port that a Sidecar names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EgressPort {
    /// Its number.
    pub number: u16,
    /// What is spoken there.
    pub protocol: Protocol,
}

impl Egress {
    /// The service's port that a listener of this number and protocol offers.
    ///
    /// Services of configuration are offered on the port they have, as Istio does. RPC services, and all of the registry's,
    /// are offered on any listener of their protocol: the caller names the interface, not a port.
    pub fn offers<'a>(
        &self,
        service: &'a Service,
        number: u16,
        protocol: Protocol,
    ) -> Option<&'a ServicePort> {
        let same = |port: &&ServicePort| {
            port.protocol == protocol || (port.protocol.is_http() && protocol.is_http())
        };
        if protocol.is_rpc() || service.source == Source::Registry {
            let exact = service
                .ports
                .iter()
                .find(|port| port.number == number && same(port));
            return exact.or_else(|| service.ports.iter().find(same));
        }
        service
            .ports
            .iter()
            .find(|port| port.number == number && same(port))
    }
}

impl Scope {
    /// Computes the view of a class.
    pub fn new(world: &World, class: Class) -> Scope {
        let index = &world.index;
        let sidecar = class
            .sidecar
            .as_ref()
            .and_then(|id| index.sidecars.iter().find(|rule| rule.id == *id))
            .cloned();
        let egress = match &sidecar {
            Some(rule) if !rule.spec.egress.is_empty() => rule
                .spec
                .egress
                .iter()
                .map(|listener| {
                    let interception = match listener.capture_mode {
                        CaptureMode::None => Interception::None,
                        CaptureMode::Iptables => Interception::Redirect,
                        CaptureMode::Default => class.interception,
                    };
                    let imports: Vec<Import> = listener
                        .hosts
                        .iter()
                        .filter_map(|text| Import::parse(text, &class.namespace))
                        .collect();
                    Egress {
                        port: listener.port.as_ref().and_then(egress_port),
                        bind: listener.bind.clone(),
                        interception,
                        ..select(index, &class, &imports)
                    }
                })
                .collect(),
            _ => vec![Egress {
                interception: class.interception,
                ..select(
                    index,
                    &class,
                    &[Import {
                        namespace: None,
                        host: "*".to_owned(),
                    }],
                )
            }],
        };
        let mesh_policy = world.mesh.outbound_traffic_policy.mode;
        let outbound = sidecar
            .as_ref()
            .and_then(|rule| rule.spec.outbound_traffic_policy.as_ref())
            .map_or(mesh_policy, |policy| policy.mode);
        let mut services: BTreeMap<Arc<str>, Arc<Service>> = BTreeMap::new();
        for listener in &egress {
            for (host, service) in &listener.services {
                services
                    .entry(host.clone())
                    .or_insert_with(|| service.clone());
            }
        }
        add_destinations(world, &class, &egress, &mut services);
        Scope {
            class,
            sidecar,
            egress,
            outbound,
            services,
        }
    }
}

fn egress_port(port: &Port) -> Option<EgressPort> {
    Some(EgressPort {
        number: u16::try_from(port.number).ok()?,
        protocol: port.protocol(),
    })
}

/// `namespace/host` of a Sidecar. No namespace = any.
struct Import {
    namespace: Option<String>,
    host: String,
}

impl Import {
    /// `None` for `~/…`, which imports nothing.
    fn parse(text: &str, own_namespace: &str) -> Option<Import> {
        let (namespace, host) = text.split_once('/')?;
        let namespace = match namespace {
            "*" => None,
            "." => Some(own_namespace.to_owned()),
            "~" => return None,
            name => Some(name.to_owned()),
        };
        Some(Import {
            namespace,
            host: host.to_owned(),
        })
    }

    fn takes(&self, namespace: &str, host: &str) -> bool {
        self.namespace.as_deref().is_none_or(|own| own == namespace)
            && hosts::covers(&self.host, host)
    }
}

/// Services and VirtualServices that some import takes and the class may see.
fn select(index: &Index, class: &Class, imports: &[Import]) -> Egress {
    let mut services: BTreeMap<Arc<str>, Arc<Service>> = BTreeMap::new();
    for service in index.services.values() {
        let ServiceId { host, namespace } = &service.id;
        if !service.visibility.includes(&class.namespace)
            || !imports.iter().any(|import| import.takes(namespace, host))
        {
            continue;
        }
        // Of several services with one host the one of the proxy's namespace is meant.
        if !services.contains_key(host) || **namespace == *class.namespace {
            services.insert(host.clone(), service.clone());
        }
    }
    let virtual_services = index
        .virtual_services
        .iter()
        .filter(|rule| rule.visibility.includes(&class.namespace))
        .filter(|rule| rule.spec.gateways.is_empty() || rule.spec.gateways.iter().any(|name| name == "mesh"))
        .filter(|rule| {
            rule.hosts.iter().any(|host| {
                imports.iter().any(|import| {
                    import.takes(&rule.id.namespace, host)
                        // A wildcard VirtualService is for the hosts below it that are imported.
                        || (host.starts_with('*') && services.keys().any(|service| hosts::covers(host, service)))
                        || services.contains_key(host.as_str())
                })
            })
        })
        .cloned()
        .collect();
    Egress {
        port: None,
        bind: String::new(),
        interception: class.interception,
        services,
        virtual_services,
    }
}

/// Services that imported routes lead to get clusters too, although nobody imports them by name.
fn add_destinations(
    world: &World,
    class: &Class,
    egress: &[Egress],
    services: &mut BTreeMap<Arc<str>, Arc<Service>>,
) {
    let mut wanted = BTreeSet::new();
    for rule in egress
        .iter()
        .flat_map(|listener| &listener.virtual_services)
    {
        let http = rule.spec.http.iter().flat_map(|route| {
            let weighted = route
                .route
                .iter()
                .filter_map(|item| item.destination.as_ref());
            let mirrors = route
                .mirrors
                .iter()
                .filter_map(|item| item.destination.as_ref());
            weighted.chain(mirrors).chain(route.mirror.as_ref())
        });
        let tcp = rule.spec.tcp.iter().flat_map(|route| &route.route);
        let tcp = tcp.filter_map(|item| item.destination.as_ref());
        for destination in http.chain(tcp) {
            wanted.insert(resolve_host(world, &destination.host, &rule.id.namespace));
        }
    }
    for host in wanted {
        if services.contains_key(host.as_str()) {
            continue;
        }
        let mut candidates = world
            .index
            .services_named(&host)
            .filter(|service| service.visibility.includes(&class.namespace));
        let first = candidates.next();
        let own = candidates.find(|service| *service.id.namespace == *class.namespace);
        if let Some(service) = own.or(first) {
            services.insert(service.id.host.clone(), service.clone());
        }
    }
}

/// The full form of a destination's host in an object of `namespace`.
pub fn resolve_host(world: &World, host: &str, namespace: &str) -> String {
    hosts::resolve(host, namespace, &world.mesh.domain, |name| {
        world.index.services_named(name).next().is_some()
    })
}
