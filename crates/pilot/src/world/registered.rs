//! Services of the embedded registry in the form of the world.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use registry::{Event, Instance, Services};

use super::{Endpoint, EndpointPorts, RpcInstance};
use crate::istio::Labels;
use crate::protocol::Protocol;

/// The namespace that registered services are in.
pub const REGISTRY_NAMESPACE: &str = "default";

/// How long a service without instances stays known, so that calls in the meantime hear "no healthy host" and a restart
/// of its last provider changes nothing but endpoints.
const EMPTY_SERVICE_KEPT: Duration = Duration::from_secs(600);

/// What the registry holds, host by host.
#[derive(Debug, Default)]
pub struct Registered {
    hosts: HashMap<Arc<str>, Host>,
    /// Instances that cannot be served, with the reason, for the debug page.
    pub skipped: BTreeMap<String, String>,
}

/// One host: an interface or an HTTP service.
#[derive(Debug, Default)]
struct Host {
    /// Endpoints by protocol. A protocol once seen stays while the host does.
    protocols: BTreeMap<Protocol, Vec<Endpoint>>,
    empty_since: Option<Instant>,
}

/// What a change of the registry changes for proxies.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct RegistryChange {
    /// Services or protocols of services came or went.
    pub services: bool,
    /// Hosts whose endpoints changed.
    pub hosts: Vec<Arc<str>>,
}

impl Registered {
    /// Takes an event of the registry; `services` is the registry's picture after it.
    pub fn apply(&mut self, event: &Event, services: &Services, now: Instant) -> RegistryChange {
        let mut change = RegistryChange::default();
        match event {
            Event::Reset(all) => {
                let known: Vec<Arc<str>> = self.hosts.keys().cloned().collect();
                let names = all.iter().map(|service| service.key.name.clone());
                let mut hosts: Vec<Arc<str>> = known.into_iter().chain(names).collect();
                hosts.sort();
                hosts.dedup();
                for host in hosts {
                    self.refresh(&host, all, now, &mut change);
                }
            }
            Event::Changes(changes) => {
                let mut hosts: Vec<Arc<str>> = changes
                    .iter()
                    .map(|change| change.instance.service.name.clone())
                    .collect();
                hosts.sort();
                hosts.dedup();
                for host in hosts {
                    self.refresh(&host, services, now, &mut change);
                }
            }
        }
        change
    }

    fn refresh(
        &mut self,
        name: &Arc<str>,
        services: &Services,
        now: Instant,
        change: &mut RegistryChange,
    ) {
        let mut fresh: BTreeMap<Protocol, Vec<Endpoint>> = BTreeMap::new();
        let prefix = format!("{name} ");
        if !self.skipped.is_empty() {
            self.skipped
                .retain(|instance, _| !instance.starts_with(&prefix));
        }
        for word in [
            "bolt",
            "sofarpc",
            "dubbo",
            "tri",
            "http",
            "rest",
            "springcloud",
            "grpc",
            "tcp",
        ] {
            let Some(service) = services.get(&registry::ServiceKey::new(word, name)) else {
                continue;
            };
            let protocol = protocol_of(word);
            let endpoints = fresh.entry(protocol).or_default();
            for instance in service.instances.iter() {
                match endpoint(instance, protocol) {
                    Ok(Some(endpoint)) => endpoints.push(endpoint),
                    Ok(None) => {}
                    Err(reason) => {
                        self.skipped
                            .insert(format!("{prefix}{word} {}", instance.id), reason);
                    }
                }
            }
        }
        let is_empty = fresh.values().all(Vec::is_empty);
        if is_empty && !self.hosts.contains_key(name) && fresh.is_empty() {
            return;
        }
        let host = self.hosts.entry(name.clone()).or_insert_with(|| {
            change.services = true;
            Host::default()
        });
        for protocol in host.protocols.keys() {
            fresh.entry(*protocol).or_default();
        }
        if fresh.len() != host.protocols.len() {
            change.services = true;
        }
        host.empty_since = is_empty.then(|| host.empty_since.unwrap_or(now));
        if host.protocols != fresh {
            host.protocols = fresh;
            change.hosts.push(name.clone());
        }
    }

    /// Forgets services that have been empty for long. Returns whether any was.
    pub fn sweep(&mut self, now: Instant) -> bool {
        let before = self.hosts.len();
        self.hosts.retain(|_, host| {
            host.empty_since
                .is_none_or(|since| now.saturating_duration_since(since) < EMPTY_SERVICE_KEPT)
        });
        self.hosts.len() != before
    }

    /// All hosts with their protocols, in order of names.
    pub fn hosts(&self) -> Vec<(&Arc<str>, Vec<Protocol>)> {
        let mut hosts: Vec<_> = self
            .hosts
            .iter()
            .map(|(name, host)| (name, host.protocols.keys().copied().collect()))
            .collect();
        hosts.sort_by_key(|(name, _)| *name);
        hosts
    }

    /// The endpoints of a host, of all its protocols.
    pub fn endpoints(&self, host: &str) -> impl Iterator<Item = &Endpoint> {
        self.hosts
            .get(host)
            .into_iter()
            .flat_map(|host| host.protocols.values().flatten())
    }

    /// Whether the registry knows the host with the protocol.
    pub fn serves(&self, host: &str, protocol: Protocol) -> bool {
        self.hosts
            .get(host)
            .is_some_and(|host| host.protocols.contains_key(&protocol))
    }
}

fn protocol_of(word: &str) -> Protocol {
    match word {
        "rest" | "springcloud" => Protocol::Http,
        word => Protocol::parse(word).unwrap_or(Protocol::Tcp),
    }
}

/// `None` for an instance that wants no calls.
fn endpoint(instance: &Instance, protocol: Protocol) -> Result<Option<Endpoint>, String> {
    if instance.weight == 0 {
        return Ok(None);
    }
    if instance.address.parse::<IpAddr>().is_err() {
        return Err(format!("`{}` is no IP address", instance.address));
    }
    if instance.port == 0 {
        return Err("has no port".to_owned());
    }
    // What the registrar says of the instance comes before what its interface says: `version: v2` of a workload is
    // what subsets mean, whatever the interface's version.
    let mut labels: Labels = instance
        .metadata
        .iter()
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    for (key, value) in [("version", &instance.version), ("group", &instance.group)] {
        if !value.is_empty() {
            labels
                .entry(key.to_owned())
                .or_insert_with(|| value.to_string());
        }
    }
    let rpc = protocol.is_rpc().then(|| RpcInstance {
        version: instance.version.clone(),
        group: instance.group.clone(),
    });
    Ok(Some(Endpoint {
        address: instance.address.clone(),
        ports: EndpointPorts::Only(protocol.as_str().into(), instance.port),
        labels,
        weight: instance.weight,
        locality: "".into(),
        healthy: instance.healthy,
        rpc,
        workload: "".into(),
    }))
}
