//! Services of the embedded registry in the form of the world.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use foldhash::HashMap;
use registry::{Event, Namespace, Service, ServiceKey, Services};

use super::{ServiceId, endpoints};
use crate::protocol::Protocol;

/// The namespace whose registered services the whole mesh sees; those of others only their own proxies see.
pub const REGISTRY_NAMESPACE: &str = "default";

/// How long a service without instances stays known, so that calls in the meantime hear "no healthy host" and a restart
/// of its last provider changes nothing but endpoints.
const EMPTY_SERVICE_KEPT: Duration = Duration::from_secs(600);

/// Protocols of services that proxies can call.
const WORDS: [&str; 9] = [
    "bolt",
    "sofarpc",
    "dubbo",
    "tri",
    "http",
    "rest",
    "springcloud",
    "grpc",
    "tcp",
];

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
    /// In the order of their protocols. One that was once there stays while the host does.
    services: Vec<HostService>,
    empty_since: Option<Instant>,
}

/// A service of a host.
#[derive(Debug)]
struct HostService {
    protocol: Protocol,
    word: &'static str,
    /// Whether an instance wants calls.
    serves: bool,
    /// `None` while it has no instances.
    service: Option<Arc<Service>>,
}

impl Host {
    fn protocols(&self) -> Vec<Protocol> {
        let mut protocols: Vec<_> = self.services.iter().map(|of| of.protocol).collect();
        protocols.dedup();
        protocols
    }
}

/// What a change of the registry changes for proxies.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct RegistryChange {
    /// Services or protocols of services came or went.
    pub services: bool,
    /// Hosts whose endpoints changed, in whatever namespace; one may come twice.
    pub hosts: Vec<Arc<str>>,
}

impl Registered {
    /// Takes an event of the registry; `services` is the registry's picture after it.
    pub fn apply(&mut self, event: &Event, services: &Services, now: Instant) -> RegistryChange {
        let mut changed: Vec<ServiceKey> = match event {
            Event::Reset(all) => {
                let known = self.hosts.iter().flat_map(|(id, host)| {
                    let services = host.services.iter();
                    services.map(|of| ServiceKey {
                        namespace: Namespace::new(&id.namespace),
                        protocol: of.word.into(),
                        name: id.host.clone(),
                    })
                });
                known.chain(all.iter().map(|s| s.key.clone())).collect()
            }
            Event::Changes(changes) => {
                let keys = changes.iter().map(|change| &change.instance.service);
                keys.cloned().collect()
            }
        };
        changed.sort_unstable();
        changed.dedup();
        let mut change = RegistryChange::default();
        for key in changed {
            if let Some(word) = WORDS.into_iter().find(|word| *word == &*key.protocol) {
                self.refresh(&key, word, services.get(&key), now, &mut change);
            }
        }
        change
    }

    /// Takes a service as it is now.
    fn refresh(
        &mut self,
        key: &ServiceKey,
        word: &'static str,
        service: Option<&Arc<Service>>,
        now: Instant,
        change: &mut RegistryChange,
    ) {
        let id = &service_id(key);
        let known = self.hosts.get(id);
        let known = known.is_some_and(|host| host.services.iter().any(|of| of.word == word));
        if service.is_none() && !known {
            return;
        }
        let serves = self.check(id, word, service);
        let host = self.hosts.entry(id.clone()).or_insert_with(|| {
            change.services = true;
            Host::default()
        });
        let protocol = protocol_of(word);
        let place = host
            .services
            .binary_search_by_key(&(protocol, word), |of| (of.protocol, of.word));
        let before = match place {
            Ok(at) => host.services.get_mut(at).and_then(|of| {
                of.serves = serves;
                std::mem::replace(&mut of.service, service.cloned())
            }),
            Err(at) => {
                change.services |= host.services.iter().all(|of| of.protocol != protocol);
                host.services.insert(
                    at,
                    HostService {
                        protocol,
                        word,
                        serves,
                        service: service.cloned(),
                    },
                );
                None
            }
        };
        let is_empty = !host.services.iter().any(|of| of.serves);
        host.empty_since = is_empty.then(|| host.empty_since.unwrap_or(now));
        let same = match (&before, service) {
            (None, None) => true,
            (Some(before), Some(now)) => are_same(before, now),
            _ => false,
        };
        if !same {
            change.hosts.push(id.host.clone());
        }
    }

    /// Notes which instances cannot be served; tells whether one can and wants to.
    fn check(&mut self, id: &ServiceId, word: &str, service: Option<&Arc<Service>>) -> bool {
        let name = || match &*id.namespace {
            REGISTRY_NAMESPACE => format!("{} {word} ", id.host),
            namespace => format!("{namespace}:{} {word} ", id.host),
        };
        if !self.skipped.is_empty() {
            let name = name();
            self.skipped
                .retain(|instance, _| !instance.starts_with(&name));
        }
        let mut serves = false;
        for instance in service.iter().flat_map(|service| service.instances.iter()) {
            match endpoints::check(instance) {
                Ok(wants) => serves |= wants,
                Err(reason) => {
                    self.skipped
                        .insert(format!("{}{}", name(), instance.id), reason);
                }
            }
        }
        serves
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
            .map(|(id, host)| (id, host.protocols()))
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
        let services = self.hosts.get(id).into_iter();
        let services = services.flat_map(|host| host.services.iter());
        services.filter_map(|of| Some((of.protocol, of.service.as_ref()?)))
    }
}

fn service_id(key: &ServiceKey) -> ServiceId {
    static DEFAULT: LazyLock<Arc<str>> = LazyLock::new(|| REGISTRY_NAMESPACE.into());
    ServiceId {
        host: key.name.clone(),
        namespace: match key.namespace.is_default() {
            true => DEFAULT.clone(),
            false => key.namespace.as_str().into(),
        },
    }
}

/// Whether services are the same to proxies.
fn are_same(before: &Arc<Service>, now: &Arc<Service>) -> bool {
    Arc::ptr_eq(before, now)
        || before.instances.len() == now.instances.len()
            && before
                .instances
                .iter()
                .zip(now.instances.iter())
                .all(|(a, b)| Arc::ptr_eq(a, b) || endpoints::is_same(a, b))
}

fn protocol_of(word: &str) -> Protocol {
    match word {
        "rest" | "springcloud" => Protocol::Http,
        word => Protocol::parse(word).unwrap_or(Protocol::Tcp),
    }
}
