//! Services of the embedded registry in the form of the world.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use registry::{Event, Namespace, Service, ServiceKey, Services};

use super::{ServiceId, endpoints};
use crate::protocol::Protocol;

/// The namespace whose registered services the whole mesh sees; those of others only their own proxies see.
pub const REGISTRY_NAMESPACE: &str = "default";

/// How long a service without instances stays known, so that calls in the meantime hear "no healthy host" and a restart
/// of its last provider changes nothing but endpoints.
const EMPTY_SERVICE_KEPT: Duration = Duration::from_secs(600);

/// Protocols of services that proxies can call.
static PROTOCOLS: LazyLock<[Arc<str>; 9]> = LazyLock::new(|| {
    [
        "bolt",
        "sofarpc",
        "dubbo",
        "tri",
        "http",
        "rest",
        "springcloud",
        "grpc",
        "tcp",
    ]
    .map(Arc::from)
});

/// What the registry holds, host by host of each namespace.
#[derive(Debug, Default)]
pub struct Registered {
    hosts: HashMap<ServiceId, Host>,
    /// Instances that cannot be served, with the reason, for the debug page.
    pub skipped: BTreeMap<String, String>,
}

/// One host: an interface or an HTTP service.
#[derive(Debug, Default)]
struct Host {
    /// Services by protocol. A protocol once seen stays while the host does.
    protocols: BTreeMap<Protocol, Vec<Arc<Service>>>,
    empty_since: Option<Instant>,
}

/// What a change of the registry changes for proxies.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct RegistryChange {
    /// Services or protocols of services came or went.
    pub services: bool,
    /// Hosts whose endpoints changed, in whatever namespace.
    pub hosts: Vec<Arc<str>>,
}

impl Registered {
    /// Takes an event of the registry; `services` is the registry's picture after it.
    pub fn apply(&mut self, event: &Event, services: &Services, now: Instant) -> RegistryChange {
        let mut change = RegistryChange::default();
        match event {
            Event::Reset(all) => {
                let known: Vec<ServiceId> = self.hosts.keys().cloned().collect();
                let names = all.iter().map(|service| service_id(&service.key));
                let mut hosts: Vec<ServiceId> = known.into_iter().chain(names).collect();
                hosts.sort();
                hosts.dedup();
                for host in hosts {
                    self.refresh(&host, all, now, &mut change);
                }
            }
            Event::Changes(changes) => {
                let mut hosts: Vec<ServiceId> = changes
                    .iter()
                    .map(|change| service_id(&change.instance.service))
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
        id: &ServiceId,
        services: &Services,
        now: Instant,
        change: &mut RegistryChange,
    ) {
        let mut fresh: BTreeMap<Protocol, Vec<Arc<Service>>> = BTreeMap::new();
        let mut is_empty = true;
        let prefix = match &*id.namespace {
            REGISTRY_NAMESPACE => format!("{} ", id.host),
            namespace => format!("{namespace}:{} ", id.host),
        };
        let namespace = Namespace::new(&id.namespace);
        if !self.skipped.is_empty() {
            self.skipped
                .retain(|instance, _| !instance.starts_with(&prefix));
        }
        for word in PROTOCOLS.iter() {
            let key = ServiceKey {
                namespace: namespace.clone(),
                protocol: word.clone(),
                name: id.host.clone(),
            };
            let Some(service) = services.get(&key) else {
                continue;
            };
            let of_protocol = fresh.entry(protocol_of(word)).or_default();
            of_protocol.push(service.clone());
            for instance in service.instances.iter() {
                match endpoints::check(instance) {
                    Ok(serves) => is_empty &= !serves,
                    Err(reason) => {
                        self.skipped
                            .insert(format!("{prefix}{word} {}", instance.id), reason);
                    }
                }
            }
        }
        if is_empty && !self.hosts.contains_key(id) && fresh.is_empty() {
            return;
        }
        let host = self.hosts.entry(id.clone()).or_insert_with(|| {
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
        let before = std::mem::replace(&mut host.protocols, fresh);
        let same = before.len() == host.protocols.len()
            && before
                .values()
                .zip(host.protocols.values())
                .all(|(before, now)| are_same(before, now));
        if !same {
            change.hosts.push(id.host.clone());
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
    pub fn hosts(&self) -> Vec<(&ServiceId, Vec<Protocol>)> {
        let mut hosts: Vec<_> = self
            .hosts
            .iter()
            .map(|(id, host)| (id, host.protocols.keys().copied().collect()))
            .collect();
        hosts.sort_by_key(|(id, _)| *id);
        hosts
    }

    /// Whether the registry knows the host in the namespace.
    pub fn knows(&self, id: &ServiceId) -> bool {
        self.hosts.contains_key(id)
    }

    /// The services of a host in a namespace, with their protocols.
    pub(super) fn services(
        &self,
        id: &ServiceId,
    ) -> impl Iterator<Item = (Protocol, &Arc<Service>)> {
        let protocols = self.hosts.get(id).into_iter();
        let protocols = protocols.flat_map(|host| host.protocols.iter());
        protocols.flat_map(|(protocol, services)| services.iter().map(|s| (*protocol, s)))
    }
}

fn service_id(key: &ServiceKey) -> ServiceId {
    ServiceId {
        host: key.name.clone(),
        namespace: key.namespace.as_str().into(),
    }
}

/// Whether services are the same to proxies.
fn are_same(before: &[Arc<Service>], now: &[Arc<Service>]) -> bool {
    let same = |(before, now): (&Arc<Service>, &Arc<Service>)| {
        Arc::ptr_eq(before, now)
            || before.instances.len() == now.instances.len()
                && before
                    .instances
                    .iter()
                    .zip(now.instances.iter())
                    .all(|(a, b)| Arc::ptr_eq(a, b) || endpoints::is_same(a, b))
    };
    before.len() == now.len() && before.iter().zip(now).all(same)
}

fn protocol_of(word: &str) -> Protocol {
    match word {
        "rest" | "springcloud" => Protocol::Http,
        word => Protocol::parse(word).unwrap_or(Protocol::Tcp),
    }
}
