//! Endpoints of a service. Those of the registry are made of its instances whenever they are asked for: as a second form of a
//! million instances they would need more memory than the registry.

use std::borrow::Cow;
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use foldhash::HashMap;
use foldhash::fast::RandomState;
use registry::Instance;

use super::{Endpoint, EndpointPorts, RpcInstance, ServiceId};
use crate::istio::Labels;
use crate::protocol::Protocol;

/// The endpoints of a service at one moment.
#[derive(Debug, Clone, Default)]
pub struct Endpoints {
    /// Those that configuration gives.
    own: Arc<[Endpoint]>,
    registered: Arc<[Joined]>,
}

/// Instances of the registry at a port of the service.
#[derive(Debug)]
pub(super) struct Joined {
    pub(super) port: Arc<str>,
    pub(super) protocol: Protocol,
    pub(super) service: Arc<registry::Service>,
}

impl Endpoints {
    /// Endpoints that configuration gives, and no others.
    pub fn own(own: Vec<Endpoint>) -> Endpoints {
        Endpoints {
            own: own.into(),
            registered: Arc::default(),
        }
    }

    /// These and the registry's.
    pub(super) fn join(&self, registered: Vec<Joined>) -> Endpoints {
        Endpoints {
            own: self.own.clone(),
            registered: registered.into(),
        }
    }

    /// Whether both are of the very same origin; endpoints that only look the same do not count.
    pub fn is_same(&self, other: &Endpoints) -> bool {
        Arc::ptr_eq(&self.own, &other.own) && Arc::ptr_eq(&self.registered, &other.registered)
    }

    /// Each endpoint.
    pub fn iter(&self) -> impl Iterator<Item = Cow<'_, Endpoint>> {
        let registered = self.registered.iter().flat_map(|joined| {
            let instances = joined.service.instances.iter();
            instances
                .filter(|instance| check(instance) == Ok(true))
                .map(|instance| Cow::Owned(endpoint(instance, joined)))
        });
        self.own.iter().map(Cow::Borrowed).chain(registered)
    }
}

/// Parts of a map that are copied one by one.
const SHARDS: usize = 256;

/// Endpoints by service. A copy shares all but the parts that are then changed.
#[derive(Debug, Clone)]
pub struct EndpointMap(Box<[Arc<HashMap<ServiceId, Endpoints>>]>);

impl Default for EndpointMap {
    fn default() -> EndpointMap {
        EndpointMap(vec![Arc::default(); SHARDS].into())
    }
}

impl EndpointMap {
    fn shard(id: &ServiceId) -> usize {
        static STATE: LazyLock<RandomState> = LazyLock::new(RandomState::default);
        usize::try_from(STATE.hash_one(id) % SHARDS as u64).unwrap_or(0)
    }

    /// The endpoints of a service.
    pub fn get(&self, id: &ServiceId) -> Option<&Endpoints> {
        self.0.get(EndpointMap::shard(id))?.get(id)
    }

    /// Puts the endpoints of a service in the place of those that it had.
    pub fn insert(&mut self, id: ServiceId, endpoints: Endpoints) {
        if let Some(shard) = self.0.get_mut(EndpointMap::shard(&id)) {
            Arc::make_mut(shard).insert(id, endpoints);
        }
    }

    /// Takes the endpoints of a service out.
    pub fn remove(&mut self, id: &ServiceId) {
        if let Some(shard) = self.0.get_mut(EndpointMap::shard(id))
            && shard.contains_key(id)
        {
            Arc::make_mut(shard).remove(id);
        }
    }
}

impl FromIterator<(ServiceId, Endpoints)> for EndpointMap {
    fn from_iter<I: IntoIterator<Item = (ServiceId, Endpoints)>>(all: I) -> EndpointMap {
        let mut map = EndpointMap::default();
        for (id, endpoints) in all {
            map.insert(id, endpoints);
        }
        map
    }
}

/// Whether an instance can be an endpoint and wants calls; an error says why it cannot.
pub(super) fn check(instance: &Instance) -> Result<bool, String> {
    if instance.weight == 0 {
        return Ok(false);
    }
    if instance.address.parse::<IpAddr>().is_err() {
        return Err(format!("`{}` is no IP address", instance.address));
    }
    if instance.port == 0 {
        return Err("has no port".to_owned());
    }
    Ok(true)
}

/// Whether two instances are the same to proxies.
pub(super) fn is_same(a: &Instance, b: &Instance) -> bool {
    a.address == b.address
        && a.port == b.port
        && a.weight == b.weight
        && a.healthy == b.healthy
        && a.version == b.version
        && a.group == b.group
        && a.metadata == b.metadata
}

fn endpoint(instance: &Instance, joined: &Joined) -> Endpoint {
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
    let rpc = joined.protocol.is_rpc().then(|| RpcInstance {
        version: instance.version.clone(),
        group: instance.group.clone(),
    });
    Endpoint {
        address: instance.address.clone(),
        ports: EndpointPorts::Only(joined.port.clone(), instance.port),
        labels,
        weight: instance.weight,
        locality: instance.locality().into(),
        healthy: instance.healthy,
        rpc,
        workload: "".into(),
    }
}
