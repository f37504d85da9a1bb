//! Nacos' services: what clients hold here, and what the hub has of all registries.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::applications::{self, Applications, Level};
use super::now_ms;
use crate::model::{Instance, ServiceKey};
use crate::nacos::{self, DEFAULT_GROUP, Host};
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
    pub(super) host: Arc<Host>,
}

/// Where the hub's instances of a name are seen.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    /// `None`: in all; only what was registered here has one.
    namespace: Option<Arc<str>>,
    /// `None`: in all; interfaces are not known by groups of registries.
    group: Option<Arc<str>>,
    level: Level,
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
        level: Level::Own,
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
    version: u64,
}

impl Services {
    fn is_empty(&self) -> bool {
        self.held.is_empty() && self.hub.is_empty()
    }

    fn hub(&self) -> impl Iterator<Item = &(Place, Arc<Instance>)> {
        self.hub.values().flatten()
    }

    /// Spring Cloud's applications are the same in whichever case they are written, and in the hub in lower case.
    fn of_spring(&self) -> impl Iterator<Item = &(Place, Arc<Instance>)> {
        let of_spring = |key: &ServiceKey| *key.protocol == *spring::PROTOCOL;
        let hub = self.hub.iter().filter(move |(key, _)| of_spring(key));
        hub.flat_map(|(_, instances)| instances)
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
    pub(super) applications: Applications,
    /// Services that were made without instances.
    made: BTreeSet<Name>,
    changed: BTreeSet<Arc<str>>,
    next: u64,
    versions: u64,
}

/// Another one after each change of a service, in whichever case its name is written.
pub(super) type Version = (u64, u64);

/// All instances of a service, not yet in the form that clients get.
pub(super) struct List {
    name: Name,
    held: Vec<Held>,
    hub: Vec<Arc<Instance>>,
    /// Those of the hub that are a part of an application.
    in_application: Vec<Arc<Instance>>,
    changed_ms: u64,
    version: Version,
}

impl List {
    /// How many there are at most.
    pub(super) fn len(&self) -> usize {
        self.held.len() + self.hub.len() + self.in_application.len()
    }

    /// Time of the last change, in milliseconds.
    pub(super) fn changed_ms(&self) -> u64 {
        self.changed_ms
    }

    pub(super) fn version(&self) -> Version {
        self.version
    }

    /// The instances as clients get them.
    pub(super) fn hosts(&self) -> Vec<Host> {
        let mut latest: BTreeMap<(&str, u16, &str), &Held> = BTreeMap::new();
        for held in &self.held {
            let host = &held.host;
            let known = latest
                .entry((host.ip.as_str(), host.port, host.cluster_name.as_str()))
                .or_insert(held);
            if known.number < held.number {
                *known = held;
            }
        }
        let mut endpoints: HashSet<(&str, u16)> = HashSet::with_capacity(self.len());
        let mut hosts: Vec<Host> = Vec::with_capacity(self.len());
        for held in latest.into_values() {
            endpoints.insert((held.host.ip.as_str(), held.host.port));
            hosts.push((*held.host).clone());
        }
        for instance in &self.hub {
            if endpoints.insert((&instance.address, instance.port)) {
                hosts.extend(host(instance));
            }
        }
        let Name { group, service, .. } = &self.name;
        for (host, _) in applications::said(service, &self.in_application) {
            if !endpoints.contains(&(host.ip.as_str(), host.port)) {
                hosts.push(host);
            }
        }
        let grouped = nacos::grouped_name(group, service);
        for host in &mut hosts {
            let (ip, port, cluster) = (&host.ip, host.port, &host.cluster_name);
            host.instance_id = format!("{ip}#{port}#{cluster}#{grouped}");
            host.service_name.clone_from(&grouped);
        }
        hosts
    }
}

/// Services that can be made without instances.
const MADE: usize = 10_000;

impl Directory {
    fn change(&mut self, service: &Arc<str>) -> &mut Services {
        self.changed.insert(service.clone());
        self.versions += 1;
        let services = self.by_name.entry(service.clone()).or_default();
        // Clients ignore a list that is older than the one they have.
        services.changed_ms = now_ms().max(services.changed_ms + 1);
        services.version = self.versions;
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
            host: Arc::new(host),
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

    /// Shows a service of the hub; `is_held` are the instances that clients' own entries say at a level.
    pub(super) fn show(
        &mut self,
        key: &ServiceKey,
        instances: &[Arc<Instance>],
        is_held: impl Fn(&Instance, Level) -> bool,
    ) {
        let mut after: BTreeMap<Arc<str>, Vec<(Place, Arc<Instance>)>> = BTreeMap::new();
        for instance in instances {
            let own = place(instance).filter(|_| !is_held(instance, Level::Own));
            let own = own.map(|(service, place)| (service.into(), place));
            for (service, place) in own.into_iter().chain(self.beside(instance, &is_held)) {
                let known = after.entry(service).or_default();
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
                    && known.iter().zip(&instances).all(|(one, other)| {
                        let is_there = one.0 == other.0;
                        is_there && (Arc::ptr_eq(&one.1, &other.1) || one.1.same_content(&other.1))
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

    /// Where an instance is a part of applications.
    fn beside(
        &self,
        instance: &Instance,
        is_held: impl Fn(&Instance, Level) -> bool,
    ) -> Vec<(Arc<str>, Place)> {
        let names = self.applications.beside(instance);
        if names.is_empty() || is_held(instance, Level::Application) {
            return Vec::new();
        }
        let namespace = instance.metadata.get(NAMESPACE);
        let names = names.into_iter();
        let names = names.filter(|name| namespace.is_none_or(|own| own == &*name.namespace));
        let place = |name: Name| Place {
            namespace: Some(name.namespace),
            group: Some(name.group),
            level: Level::Application,
        };
        names
            .map(|name| (name.service.clone(), place(name)))
            .collect()
    }

    /// What the part of the hub in an application serves that has this revision.
    pub(super) fn info(
        &self,
        namespace: &str,
        application: &str,
        revision: &str,
    ) -> Option<String> {
        let groups = self.groups(nacos::namespace(namespace), application);
        groups.into_iter().find_map(|group| {
            let list = self.list(&Name::new(namespace, &group, application));
            let said = applications::said(application, &list.in_application);
            let mut said = said.into_iter().map(|(_, said)| said);
            said.find(|(of, _)| of == revision).map(|(_, info)| info)
        })
    }

    /// The services of the hub that are shown.
    pub(super) fn shown(&self) -> impl Iterator<Item = &ServiceKey> {
        self.shown.keys()
    }

    /// All instances of a service.
    pub(super) fn list(&self, name: &Name) -> List {
        let services = self.by_name.get(&name.service);
        let other = other_case(&name.service);
        let other = other.and_then(|lower| self.by_name.get(lower.as_str()));
        let held = services.into_iter().flat_map(|services| &services.held);
        let held = held.filter(|(slot, _)| slot.is_of(name));
        let hub = services.into_iter().flat_map(Services::hub);
        let hub = hub.chain(other.into_iter().flat_map(Services::of_spring));
        let hub =
            hub.filter(|(place, _)| place.is_in(&name.namespace) && place.has_group(&name.group));
        let (in_application, hub): (Vec<_>, Vec<_>) =
            hub.partition(|(place, _)| place.level == Level::Application);
        let instances = |of: Vec<&(Place, Arc<Instance>)>| {
            of.into_iter()
                .map(|(_, instance)| instance.clone())
                .collect()
        };
        let changed_ms = [services, other].into_iter().flatten();
        let changed_ms = changed_ms.map(|services| services.changed_ms).max();
        List {
            name: name.clone(),
            held: held.map(|(_, held)| held.clone()).collect(),
            hub: instances(hub),
            in_application: instances(in_application),
            changed_ms: changed_ms.unwrap_or_else(now_ms),
            version: self.version(name),
        }
    }

    /// The version of a service's list.
    pub(super) fn version(&self, name: &Name) -> Version {
        let of = |service: &str| self.by_name.get(service).map_or(0, |s| s.version);
        let other = other_case(&name.service);
        (of(&name.service), other.map_or(0, |lower| of(&lower)))
    }

    /// All instances of a service as clients get them.
    pub(super) fn hosts(&self, name: &Name) -> Vec<Host> {
        self.list(name).hosts()
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
        directory.show(&key, &[instance(1), instance(2)], |_, _| false);
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
        directory.show(&key, &[instance(1)], |_, _| false);
        assert_eq!(told(&directory, &shop), ["10.0.0.1:3", "10.0.0.1:1"]);

        // The same once more is no change.
        directory.take_changed();
        directory.show(&key, &[instance(1)], |_, _| false);
        assert!(directory.take_changed().is_empty());
        directory.show(&key, &[instance(3)], |_, _| true);
        assert_eq!(told(&directory, &shop), ["10.0.0.1:3"]);
        assert_eq!(directory.names("dev", DEFAULT_GROUP).len(), 0);
        assert_eq!(directory.names("public", DEFAULT_GROUP).len(), 1);
    }
}
