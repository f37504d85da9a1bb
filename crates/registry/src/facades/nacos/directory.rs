//! Nacos' services: what clients hold here, and what the hub has of all registries.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::now_ms;
use crate::model::{Instance, ServiceKey};
use crate::nacos::{self, DEFAULT_GROUP, Entry, Host, ServiceInfo};
use crate::naming::nacos::registration;
use crate::naming::spring;

/// Metadata in the model: the namespace, where it is not the public one.
pub(super) const NAMESPACE: &str = "nacos.namespace";

/// A service as clients name it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Name {
    pub(super) namespace: Arc<str>,
    pub(super) group: Arc<str>,
    pub(super) service: Arc<str>,
}

impl Name {
    /// The service's name may have its group before it; what is empty is the usual one.
    pub(super) fn new(namespace: &str, group: &str, service: &str) -> Name {
        let (group, service) = nacos::split_name(group, service);
        Name {
            namespace: nacos::namespace(namespace).into(),
            group: group.into(),
            service: service.into(),
        }
    }
}

/// By what an entry lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Owner {
    /// A connection.
    Connection(u64),
    /// Beats over HTTP.
    Beats,
    /// Itself, until it is taken out.
    Nobody,
}

/// Where an entry is among those of its service's name: no two have the same.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Slot {
    pub(super) owner: Owner,
    pub(super) namespace: Arc<str>,
    pub(super) group: Arc<str>,
    pub(super) ip: String,
    pub(super) port: u16,
    pub(super) cluster: String,
}

impl Slot {
    pub(super) fn new(owner: Owner, name: &Name, host: &Host) -> Slot {
        Slot {
            owner,
            namespace: name.namespace.clone(),
            group: name.group.clone(),
            ip: host.ip.clone(),
            port: host.port,
            cluster: host.cluster_name.clone(),
        }
    }

    fn is_of(&self, name: &Name) -> bool {
        self.namespace == name.namespace && self.group == name.group
    }
}

/// What a client holds.
#[derive(Clone, Debug)]
pub(super) struct Held {
    /// Grows with each: of two that say the same endpoint the later counts.
    pub(super) number: u64,
    pub(super) host: Host,
}

/// Where the hub's instances of a name are seen.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    /// `None`: in all; only what was registered here has one.
    namespace: Option<Arc<str>>,
    /// `None`: in all; interfaces are not known by groups of registries.
    group: Option<Arc<str>>,
}

impl Place {
    fn is_in(&self, namespace: &str) -> bool {
        self.namespace.as_ref().is_none_or(|n| **n == *namespace)
    }

    fn has_group(&self, group: &str) -> bool {
        self.group.as_ref().is_none_or(|g| **g == *group)
    }
}

/// The name of an instance's service and where it is seen; `None`: no client of Nacos can call it.
fn place(instance: &Instance) -> Option<(String, Place)> {
    let registration = registration(instance).ok()?;
    let by_interface = !matches!(
        &*instance.service.protocol,
        spring::PROTOCOL | "http" | "grpc" | "tcp"
    );
    let place = Place {
        namespace: instance.metadata.get(NAMESPACE).map(Into::into),
        group: (!by_interface).then(|| registration.group.into()),
    };
    Some((registration.service, place))
}

/// The instance as clients get it.
fn host(instance: &Instance) -> Option<Host> {
    let mut host = registration(instance).ok()?.host;
    host.metadata.remove(NAMESPACE);
    Some(host)
}

/// All services of one name, in whichever namespace and group.
#[derive(Default)]
struct Services {
    held: BTreeMap<Slot, Held>,
    hub: BTreeMap<ServiceKey, Vec<(Place, Arc<Instance>)>>,
    changed_ms: u64,
}

impl Services {
    fn is_empty(&self) -> bool {
        self.held.is_empty() && self.hub.is_empty()
    }

    fn hub(&self) -> impl Iterator<Item = &(Place, Arc<Instance>)> {
        self.hub.values().flatten()
    }

    /// The groups in which a namespace has the service. What no Nacos has given a group is in the usual one.
    fn groups(&self, namespace: &str) -> BTreeSet<Arc<str>> {
        let held = self.held.keys();
        let held = held.filter(|slot| *slot.namespace == *namespace);
        let hub = self.hub().filter(|(place, _)| place.is_in(namespace));
        let group = |place: &Place| place.group.clone().unwrap_or_else(|| DEFAULT_GROUP.into());
        held.map(|slot| slot.group.clone())
            .chain(hub.map(|(place, _)| group(place)))
            .collect()
    }
}

/// The name in lower case, if that is another one.
pub(super) fn other_case(service: &str) -> Option<String> {
    let lower = service.to_ascii_lowercase();
    (lower != service).then_some(lower)
}

/// Everything that clients can be told.
#[derive(Default)]
pub(super) struct Directory {
    by_name: BTreeMap<Arc<str>, Services>,
    /// The names under which a service of the hub is.
    shown: HashMap<ServiceKey, BTreeSet<Arc<str>>>,
    /// Services that were made without instances.
    made: BTreeSet<Name>,
    changed: BTreeSet<Arc<str>>,
    next: u64,
}

/// Services that can be made without instances.
const MADE: usize = 10_000;

impl Directory {
    fn change(&mut self, service: &Arc<str>) -> &mut Services {
        self.changed.insert(service.clone());
        let services = self.by_name.entry(service.clone()).or_default();
        // Clients ignore a list that is older than the one they have.
        services.changed_ms = now_ms().max(services.changed_ms + 1);
        services
    }

    /// The names of services that changed since the last time.
    pub(super) fn take_changed(&mut self) -> BTreeSet<Arc<str>> {
        for name in &self.changed {
            if self.by_name.get(name).is_some_and(Services::is_empty) {
                self.by_name.remove(name);
            }
        }
        std::mem::take(&mut self.changed)
    }

    /// A client holds this from now on.
    pub(super) fn hold(&mut self, name: &Name, owner: Owner, host: Host) -> Held {
        self.next += 1;
        let held = Held {
            number: self.next,
            host,
        };
        let slot = Slot::new(owner, name, &held.host);
        let services = self.change(&name.service);
        services.held.insert(slot, held.clone());
        held
    }

    /// What is in a slot.
    pub(super) fn held(&self, service: &str, slot: &Slot) -> Option<&Held> {
        self.by_name.get(service)?.held.get(slot)
    }

    /// What an owner holds of a service.
    pub(super) fn held_by(&self, owner: Owner, name: &Name) -> Vec<Slot> {
        let Some(services) = self.by_name.get(&name.service) else {
            return Vec::new();
        };
        let first = Slot {
            owner,
            namespace: "".into(),
            group: "".into(),
            ip: String::new(),
            port: 0,
            cluster: String::new(),
        };
        let of_owner = services.held.range(first..).map(|(slot, _)| slot);
        of_owner
            .take_while(|slot| slot.owner == owner)
            .filter(|slot| slot.is_of(name))
            .cloned()
            .collect()
    }

    /// Takes out what is in a slot.
    pub(super) fn release(&mut self, service: &Arc<str>, slot: &Slot) -> Option<Held> {
        self.by_name.get(service)?.held.get(slot)?;
        self.change(service).held.remove(slot)
    }

    /// Shows a service of the hub; `is_held` are the instances that clients' own entries say.
    pub(super) fn show(
        &mut self,
        key: &ServiceKey,
        instances: &[Arc<Instance>],
        is_held: impl Fn(&Instance) -> bool,
    ) {
        let mut after: BTreeMap<Arc<str>, Vec<(Place, Arc<Instance>)>> = BTreeMap::new();
        for instance in instances.iter().filter(|instance| !is_held(instance)) {
            if let Some((service, place)) = place(instance) {
                let known = after.entry(service.into()).or_default();
                known.push((place, instance.clone()));
            }
        }
        let names: BTreeSet<Arc<str>> = after.keys().cloned().collect();
        let before = self.shown.remove(key).unwrap_or_default();
        for name in before.difference(&names) {
            self.change(name).hub.remove(key);
        }
        for (name, instances) in after {
            let known = self.by_name.get(&name).and_then(|s| s.hub.get(key));
            let same = known.is_some_and(|known| {
                known.len() == instances.len()
                    && known.iter().zip(&instances).all(|((_, one), (_, other))| {
                        Arc::ptr_eq(one, other) || one.same_content(other)
                    })
            });
            if !same {
                self.change(&name).hub.insert(key.clone(), instances);
            }
        }
        if !names.is_empty() {
            self.shown.insert(key.clone(), names);
        }
    }

    /// The services of the hub that are shown.
    pub(super) fn shown(&self) -> impl Iterator<Item = &ServiceKey> {
        self.shown.keys()
    }

    /// All instances of a service.
    pub(super) fn hosts(&self, name: &Name) -> Vec<Host> {
        let nothing = Services::default();
        let services = self.by_name.get(&name.service).unwrap_or(&nothing);
        let held = services.held.iter().filter(|(slot, _)| slot.is_of(name));
        let mut latest: BTreeMap<(&str, u16, &str), &Held> = BTreeMap::new();
        for (slot, held) in held {
            let known = latest
                .entry((slot.ip.as_str(), slot.port, slot.cluster.as_str()))
                .or_insert(held);
            if known.number < held.number {
                *known = held;
            }
        }
        let mut endpoints: HashSet<(String, u16)> = HashSet::new();
        let mut hosts: Vec<Host> = Vec::with_capacity(latest.len());
        for held in latest.into_values() {
            endpoints.insert((held.host.ip.clone(), held.host.port));
            hosts.push(held.host.clone());
        }
        for (place, instance) in services.hub().chain(self.in_other_case(name)) {
            if place.is_in(&name.namespace)
                && place.has_group(&name.group)
                && endpoints.insert((instance.address.to_string(), instance.port))
            {
                hosts.extend(host(instance));
            }
        }
        let grouped = nacos::grouped_name(&name.group, &name.service);
        for host in &mut hosts {
            let (ip, port, cluster) = (&host.ip, host.port, &host.cluster_name);
            host.instance_id = format!("{ip}#{port}#{cluster}#{grouped}");
            host.service_name.clone_from(&grouped);
        }
        hosts
    }

    /// Spring Cloud's applications are the same in whichever case they are written, and in the hub in lower case.
    fn in_other_case(&self, name: &Name) -> impl Iterator<Item = &(Place, Arc<Instance>)> {
        let lower = other_case(&name.service);
        let services = lower.and_then(|lower| self.by_name.get(lower.as_str()));
        let hub = services
            .into_iter()
            .flat_map(|services| services.hub.iter());
        hub.filter(|(key, _)| *key.protocol == *spring::PROTOCOL)
            .flat_map(|(_, instances)| instances)
    }

    /// The list of a service as clients get it: enabled instances of some clusters (between commas; empty for all).
    pub(super) fn info(&self, name: &Name, clusters: &str, healthy_only: bool) -> ServiceInfo {
        let is_meant = |host: &Host| {
            let wanted = clusters.split(',').filter(|word| !word.is_empty());
            let mut wanted = wanted.peekable();
            let in_cluster = wanted.peek().is_none() || wanted.any(|c| c == host.cluster_name);
            in_cluster && host.enabled && (host.healthy || !healthy_only)
        };
        let hosts = self.hosts(name).into_iter().filter(is_meant);
        let changed_ms = |service: &str| self.by_name.get(service).map(|s| s.changed_ms);
        let other = other_case(&name.service).and_then(|lower| changed_ms(&lower));
        let changed_ms = changed_ms(&name.service).max(other);
        ServiceInfo {
            name: name.service.to_string(),
            group_name: name.group.to_string(),
            clusters: clusters.to_owned(),
            hosts: hosts.map(Entry::Host).collect(),
            last_ref_time: i64::try_from(changed_ms.unwrap_or_else(now_ms)).unwrap_or(i64::MAX),
            ..ServiceInfo::default()
        }
    }

    /// The names of a group's services.
    pub(super) fn names(&self, namespace: &str, group: &str) -> BTreeSet<Arc<str>> {
        let has = |services: &Services| {
            let held = services.held.keys();
            let mut held = held.filter(|slot| *slot.namespace == *namespace);
            held.any(|slot| *slot.group == *group)
                || services
                    .hub()
                    .any(|(place, _)| place.is_in(namespace) && place.has_group(group))
        };
        let there = self.by_name.iter().filter(|(_, services)| has(services));
        let made = self.made.iter();
        let made = made.filter(|name| *name.namespace == *namespace && *name.group == *group);
        let names = there.map(|(name, _)| name.clone());
        names.chain(made.map(|name| name.service.clone())).collect()
    }

    /// All services of a namespace.
    pub(super) fn all(&self, namespace: &str) -> BTreeSet<Name> {
        let names = self.by_name.iter().flat_map(|(service, services)| {
            let name = move |group| Name {
                namespace: namespace.into(),
                group,
                service: service.clone(),
            };
            services.groups(namespace).into_iter().map(name)
        });
        let made = self.made.iter().filter(|n| *n.namespace == *namespace);
        names.chain(made.cloned()).collect()
    }

    /// The groups in which a namespace has a service.
    pub(super) fn groups(&self, namespace: &str, service: &str) -> BTreeSet<Arc<str>> {
        let services = self.by_name.get(service);
        services.map_or_else(BTreeSet::new, |services| services.groups(namespace))
    }

    /// Makes a service without instances; false when there are too many.
    pub(super) fn make(&mut self, name: Name) -> bool {
        let fits = self.made.len() < MADE;
        if fits {
            self.made.insert(name);
        }
        fits
    }

    /// Takes back what `make` did.
    pub(super) fn unmake(&mut self, name: &Name) {
        self.made.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(directory: &Directory, name: &Name) -> Vec<String> {
        let hosts = directory.hosts(name);
        let told = hosts.iter().map(|h| format!("{}:{}", h.ip, h.port));
        told.collect()
    }

    fn instance(port: u16) -> Arc<Instance> {
        let key = ServiceKey::new("springcloud", "shop");
        let mut instance = Instance::new(key, "10.0.0.1", port);
        instance.id = format!("{port}").into();
        Arc::new(instance)
    }

    fn of_port(port: u16) -> Host {
        Host {
            ip: "10.0.0.1".to_owned(),
            port,
            ..Host::default()
        }
    }

    #[test]
    fn what_clients_hold_and_what_the_hub_has_is_one_list() {
        let mut directory = Directory::default();
        let shop = Name::new("", "", "shop");
        let other = Name::new("dev", "", "G@@shop");
        let key = ServiceKey::new("springcloud", "shop");
        directory.show(&key, &[instance(1), instance(2)], |_| false);
        assert_eq!(told(&directory, &shop), ["10.0.0.1:1", "10.0.0.1:2"]);
        // Other registries know nothing of namespaces.
        assert_eq!(told(&directory, &Name::new("dev", "", "SHOP")).len(), 2);
        assert_eq!(told(&directory, &other).len(), 0);
        assert_eq!(directory.take_changed().len(), 1);

        directory.hold(&shop, Owner::Connection(1), of_port(2));
        directory.hold(&shop, Owner::Connection(2), of_port(3));
        assert_eq!(
            told(&directory, &shop),
            ["10.0.0.1:2", "10.0.0.1:3", "10.0.0.1:1"]
        );
        assert_eq!(told(&directory, &other).len(), 0);
        let slots = directory.held_by(Owner::Connection(1), &shop);
        assert_eq!(slots.len(), 1);
        for slot in slots {
            directory.release(&shop.service, &slot);
        }
        directory.show(&key, &[instance(1)], |_| false);
        assert_eq!(told(&directory, &shop), ["10.0.0.1:3", "10.0.0.1:1"]);

        // The same once more is no change.
        directory.take_changed();
        directory.show(&key, &[instance(1)], |_| false);
        assert!(directory.take_changed().is_empty());
        directory.show(&key, &[instance(3)], |_| true);
        assert_eq!(told(&directory, &shop), ["10.0.0.1:3"]);
        assert_eq!(directory.names("dev", DEFAULT_GROUP).len(), 0);
        assert_eq!(directory.names("public", DEFAULT_GROUP).len(), 1);
    }
}
