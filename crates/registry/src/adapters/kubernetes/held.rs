//! The objects of a cluster as they were read last, and what they are together: the instances of each Service.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::copies;
use super::declared::{Declared, Interface, declared};
use super::objects::{self, Endpoint, Name, Object, Service, ServicePort, Slice};
use crate::model::{Instance, ServiceKey};
use crate::naming::Malformed;
use crate::source::{List, Skipped};

const REGION: &str = "topology.kubernetes.io/region";
const ZONE: &str = "topology.kubernetes.io/zone";

/// The kinds of objects that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Service,
    Slice,
    Pod,
    Node,
}

#[derive(Debug)]
struct Pod {
    labels: BTreeMap<String, String>,
    declared: Declared,
    skipped: Vec<Skipped>,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Node {
    region: Option<String>,
    zone: Option<String>,
}

/// All objects.
#[derive(Default)]
pub(super) struct Held {
    domain: String,
    services: HashMap<Name, Service>,
    slices: HashMap<Name, Result<Slice, Malformed>>,
    pods: HashMap<Name, Pod>,
    nodes: HashMap<Arc<str>, Node>,
    /// Slices of a Service, and of a Pod.
    of_service: HashMap<Name, BTreeSet<Name>>,
    of_pod: HashMap<Name, BTreeSet<Name>>,
    /// Services whose list may have changed, and whether the server itself said how.
    dirty: BTreeMap<Name, bool>,
}

impl Held {
    pub(super) fn new(domain: &str) -> Held {
        Held {
            domain: domain.to_owned(),
            ..Held::default()
        }
    }

    /// Takes an object in the place of the former one of its name.
    pub(super) fn put(&mut self, kind: Kind, object: &Object, certain: bool) {
        let name = Name::new(&object.namespace, &object.name);
        match kind {
            Kind::Service => {
                self.services.insert(name.clone(), objects::service(object));
                self.touch(name, certain);
            }
            Kind::Slice => {
                self.remove_slice(&name, certain);
                let slice = objects::slice(object);
                if let Ok(slice) = &slice {
                    let of_service = self.of_service.entry(slice.service.clone());
                    of_service.or_default().insert(name.clone());
                    for pod in slice.endpoints.iter().filter_map(|e| e.pod.as_ref()) {
                        let of_pod = self.of_pod.entry(pod.clone());
                        of_pod.or_default().insert(name.clone());
                    }
                }
                let list = slice.as_ref().map_or(&name, |slice| &slice.service).clone();
                self.slices.insert(name, slice);
                self.touch(list, certain);
            }
            Kind::Pod => {
                let mut skipped = Vec::new();
                let pod = Pod {
                    labels: object.labels.clone(),
                    declared: declared(&object.annotations, &mut skipped),
                    skipped,
                };
                self.pods.insert(name.clone(), pod);
                self.touch_pod(&name, certain);
            }
            Kind::Node => {
                let node = Node {
                    region: object.labels.get(REGION).cloned(),
                    zone: object.labels.get(ZONE).cloned(),
                };
                if self.nodes.get(&name.name) != Some(&node) {
                    self.nodes.insert(name.name, node);
                    self.touch_all();
                }
            }
        }
    }

    pub(super) fn remove(&mut self, kind: Kind, name: &Name, certain: bool) {
        match kind {
            Kind::Service => {
                if self.services.remove(name).is_some() {
                    self.touch(name.clone(), certain);
                }
            }
            Kind::Slice => self.remove_slice(name, certain),
            Kind::Pod => {
                if self.pods.remove(name).is_some() {
                    self.touch_pod(name, certain);
                }
            }
            Kind::Node => {
                // Its endpoints go by themselves.
                self.nodes.remove(&name.name);
            }
        }
    }

    /// Of a kind and a namespace only these are left.
    pub(super) fn retain(&mut self, kind: Kind, namespace: Option<&str>, left: &HashSet<Name>) {
        let gone = |name: &&Name| {
            namespace.is_none_or(|namespace| &*name.namespace == namespace) && !left.contains(*name)
        };
        let gone: Vec<Name> = match kind {
            Kind::Service => self.services.keys().filter(gone).cloned().collect(),
            Kind::Slice => self.slices.keys().filter(gone).cloned().collect(),
            Kind::Pod => self.pods.keys().filter(gone).cloned().collect(),
            Kind::Node => Vec::new(),
        };
        for name in gone {
            self.remove(kind, &name, false);
        }
    }

    fn remove_slice(&mut self, name: &Name, certain: bool) {
        match self.slices.remove(name) {
            Some(Ok(slice)) => {
                unlist(&mut self.of_service, &slice.service, name);
                for pod in slice.endpoints.iter().filter_map(|e| e.pod.as_ref()) {
                    unlist(&mut self.of_pod, pod, name);
                }
                self.touch(slice.service, certain);
            }
            Some(Err(_)) => self.touch(name.clone(), certain),
            None => {}
        }
    }

    fn touch(&mut self, list: Name, certain: bool) {
        let known = self.dirty.entry(list).or_insert(true);
        *known &= certain;
    }

    fn touch_pod(&mut self, pod: &Name, certain: bool) {
        let slices = self.of_pod.get(pod).into_iter().flatten();
        let services = slices.filter_map(|name| self.slices.get(name)?.as_ref().ok());
        let services: Vec<Name> = services.map(|slice| slice.service.clone()).collect();
        for service in services {
            self.touch(service, certain);
        }
    }

    fn touch_all(&mut self) {
        let services: Vec<Name> = self.of_service.keys().cloned().collect();
        for service in services {
            self.touch(service, true);
        }
    }

    /// The lists that may have changed since the last time.
    pub(super) fn take_dirty(&mut self) -> Vec<List> {
        let dirty = std::mem::take(&mut self.dirty);
        dirty
            .into_iter()
            .map(|(name, certain)| self.list(&name, certain))
            .collect()
    }

    fn list(&self, name: &Name, certain: bool) -> List {
        let mut list = List {
            name: name.path().into(),
            instances: Vec::new(),
            skipped: Vec::new(),
            certain,
        };
        // A slice that says no Service is a list of its own.
        if let Some(Err(error)) = self.slices.get(name) {
            list.skipped.push(Skipped::new(&name.name, error));
        }
        let service = self.services.get(name);
        let slices = self.of_service.get(name).into_iter().flatten();
        let slices = slices.filter_map(|name| self.slices.get(name)?.as_ref().ok());
        let mut plain = Vec::new();
        for slice in slices {
            list.skipped.extend(slice.skipped.iter().cloned());
            match copies::read(&slice.annotations) {
                Some(Ok(copies)) => list.instances.extend(copies),
                Some(Err(error)) => list.skipped.push(Skipped::new(&name.name, &error)),
                None => plain.push(slice),
            }
        }
        if let Some(service) = service.filter(|_| !plain.is_empty()) {
            list.skipped.extend(service.skipped.iter().cloned());
            self.instances(name, service, &plain, &mut list);
        }
        list
    }

    /// Each endpoint of each port, and the interfaces that are declared for it. An endpoint may be in two slices for a
    /// while: the first counts.
    fn instances(&self, name: &Name, service: &Service, slices: &[&Slice], list: &mut List) {
        let hosts = self.hosts(name, &service.ports);
        let mut seen: HashSet<(ServiceKey, String, String, &str, u16)> = HashSet::new();
        for slice in slices {
            for endpoint in &slice.endpoints {
                let pod = endpoint.pod.as_ref().and_then(|name| self.pods.get(name));
                let said = pod.map(|pod| &pod.declared);
                list.skipped
                    .extend(pod.into_iter().flat_map(|pod| pod.skipped.iter().cloned()));
                let metadata = self.metadata(endpoint, pod);
                let mut add = |key: ServiceKey, version: &str, group: &str, port: u16, more| {
                    let id = (
                        key,
                        version.to_owned(),
                        group.to_owned(),
                        endpoint.address.as_str(),
                        port,
                    );
                    if !seen.insert(id.clone()) {
                        return;
                    }
                    let mut instance = Instance::new(id.0, &endpoint.address, port);
                    let own = metadata.iter().map(|(k, v)| (k.as_str(), v.as_str()));
                    let more: &[(String, String)] = more;
                    let more = more.iter().map(|(k, v)| (k.as_str(), v.as_str()));
                    instance.metadata = own.chain(more).collect();
                    instance.version = version.into();
                    instance.group = group.into();
                    instance.healthy = endpoint.healthy;
                    instance.ttl = None;
                    let weight = said
                        .and_then(|said| said.weight)
                        .or(service.declared.weight);
                    instance.weight = weight.unwrap_or(instance.weight);
                    list.instances.push(instance);
                };
                for (port, key) in &hosts {
                    if let Some(number) = slice.ports.get(&port.name) {
                        add(key.clone(), "", "", *number, &[]);
                    }
                }
                // A Pod's own word comes before its Service's: two versions may be behind one Service.
                let declared = said.filter(|said| !said.interfaces.is_empty());
                let declared = declared.unwrap_or(&service.declared);
                for interface in &declared.interfaces {
                    let port = port_of(interface, &service.ports);
                    match port.map(|port| slice.ports.get(&port.name)) {
                        Ok(Some(number)) => {
                            let key = ServiceKey::new(interface.protocol, &interface.name);
                            let (version, group) = (&interface.version, &interface.group);
                            add(key, version, group, *number, &declared.parameters);
                        }
                        // The ports of this Service are in another slice.
                        Ok(None) => {}
                        Err(reason) => {
                            let entry = format!("{}: {}", interface.protocol, interface.name);
                            list.skipped.push(Skipped::new(&entry, &reason));
                        }
                    }
                }
            }
        }
        // What is wrong with a declaration is so for all endpoints.
        list.skipped
            .sort_by(|a, b| (&a.entry, &a.reason).cmp(&(&b.entry, &b.reason)));
        list.skipped.dedup();
    }

    /// The mesh's name of each port. The first port of a protocol has the Service's host name; another one of the same
    /// protocol has its own name in front of it.
    fn hosts<'a>(
        &self,
        name: &Name,
        ports: &'a [ServicePort],
    ) -> Vec<(&'a ServicePort, ServiceKey)> {
        let host = format!("{}.{}.svc.{}", name.name, name.namespace, self.domain);
        let mut taken: HashSet<&str> = HashSet::new();
        ports
            .iter()
            .map(|port| {
                // What an RPC framework serves is known by interfaces; by a host it is a stream.
                let protocol = match port.protocol {
                    word @ ("http" | "grpc") => word,
                    _ => "tcp",
                };
                let key = if taken.insert(protocol) {
                    ServiceKey::new(protocol, &host)
                } else {
                    ServiceKey::new(protocol, &format!("{}.{host}", port.name))
                };
                (port, key)
            })
            .collect()
    }

    /// Labels of the Pod, and where it runs.
    fn metadata(&self, endpoint: &Endpoint, pod: Option<&Pod>) -> BTreeMap<String, String> {
        let mut metadata = pod.map_or_else(BTreeMap::new, |pod| pod.labels.clone());
        let node = endpoint.node.as_ref().and_then(|name| self.nodes.get(name));
        let zone = endpoint.zone.as_ref().map(ToString::to_string);
        let zone = zone.or_else(|| node?.zone.clone());
        for (key, value) in [
            (REGION, node.and_then(|node| node.region.clone())),
            (ZONE, zone),
        ] {
            if let Some(value) = value {
                metadata.insert(key.to_owned(), value);
            }
        }
        metadata
    }
}

fn unlist(lists: &mut HashMap<Name, BTreeSet<Name>>, of: &Name, name: &Name) {
    if let Some(names) = lists.get_mut(of) {
        names.remove(name);
        if names.is_empty() {
            lists.remove(of);
        }
    }
}

/// The port of a Service that an interface is served on.
fn port_of<'a>(interface: &Interface, ports: &'a [ServicePort]) -> Result<&'a ServicePort, String> {
    if let Some(wanted) = &interface.port {
        let found = ports
            .iter()
            .find(|port| port.name == *wanted || port.port.to_string() == *wanted);
        return found.ok_or_else(|| format!("the Service has no port {wanted}"));
    }
    let spoken = match interface.protocol {
        "springcloud" => "http",
        other => other,
    };
    match (ports.iter().find(|port| port.protocol == spoken), ports) {
        (Some(port), _) | (None, [port]) => Ok(port),
        _ => Err(format!(
            "no port of the Service is one of {spoken}: @ and its name can say which it is"
        )),
    }
}

#[cfg(test)]
mod tests;
