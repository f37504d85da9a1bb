//! Envoy's resources for a class of proxies, with Istio's names.

mod access_log;
mod cluster;
mod endpoint;
mod listener;
mod message;
mod route;
mod route_match;
#[cfg(test)]
mod tests;
mod vhost;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use xds::server::{CLUSTER, ENDPOINTS, LISTENER, ROUTE, Resource, ResourceSet};

use crate::proxy::{Class, Proxy};
use crate::scope::Scope;
use crate::world::{Index, World};
use endpoint::Assignment;

/// `outbound|<port>|<subset>|<host>`
pub fn outbound(port: u16, subset: &str, host: &str) -> String {
    format!("outbound|{port}|{subset}|{host}")
}

/// `inbound|<port>||`
pub fn inbound(port: u16) -> String {
    format!("inbound|{port}||")
}

/// The cluster that has no endpoints.
pub const BLACK_HOLE: &str = "BlackHoleCluster";
/// The cluster of the address that the application called.
pub const PASSTHROUGH: &str = "PassthroughCluster";

/// The resources of a class at one moment.
#[derive(Debug)]
pub struct Generated {
    /// What they were made of.
    world: Arc<World>,
    scope: Arc<Scope>,
    /// Clusters of outgoing calls.
    outbound: Arc<[Resource]>,
    assignments: Arc<[Assignment]>,
    endpoints: Arc<ResourceSet>,
    routes: Arc<ResourceSet>,
    /// Listeners bind the proxy's own address, and clusters of incoming calls may lead to it: a set for each.
    by_address: Mutex<HashMap<IpAddr, ByAddress>>,
}

/// What differs between proxies of a class.
#[derive(Debug, Clone)]
struct ByAddress {
    clusters: Arc<ResourceSet>,
    listeners: Arc<ResourceSet>,
}

impl Generated {
    /// Generates everything but listeners.
    pub fn new(world: Arc<World>, class: Class) -> Generated {
        let scope = Arc::new(Scope::new(&world, class));
        let (outbound, assignments) = cluster::outbound_clusters(&world, &scope);
        let routes = route::routes(&world, &scope);
        let assignments: Arc<[Assignment]> = assignments.into();
        Generated {
            endpoints: Arc::new(endpoint::resources(&world, &assignments, None)),
            outbound: outbound.into(),
            routes: Arc::new(routes),
            assignments,
            scope,
            world,
            by_address: Mutex::default(),
        }
    }

    /// The next moment, when nothing but endpoints changed: what did not change is shared.
    pub fn with_endpoints(&self, world: Arc<World>) -> Generated {
        let previous = Some((self.world.as_ref(), self.endpoints.as_ref()));
        let endpoints = endpoint::resources(&world, &self.assignments, previous);
        Generated {
            endpoints: Arc::new(endpoints),
            outbound: self.outbound.clone(),
            routes: self.routes.clone(),
            assignments: self.assignments.clone(),
            scope: self.scope.clone(),
            world,
            by_address: Mutex::new(
                self.by_address
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .clone(),
            ),
        }
    }

    /// Whether all but endpoints would be the same with this index.
    pub fn is_of(&self, index: &Arc<Index>) -> bool {
        Arc::ptr_eq(&self.world.index, index)
    }

    /// The moment it was generated from.
    pub fn revision(&self) -> u64 {
        self.world.revision
    }

    /// The resources of a type for a proxy of the class; empty for a type that pilot does not serve.
    pub fn resources(&self, type_url: &str, proxy: &Proxy) -> Arc<ResourceSet> {
        match type_url {
            CLUSTER => self.of_address(proxy.ip).clusters,
            LISTENER => self.of_address(proxy.ip).listeners,
            ENDPOINTS => self.endpoints.clone(),
            ROUTE => self.routes.clone(),
            _ => Arc::default(),
        }
    }

    fn of_address(&self, ip: IpAddr) -> ByAddress {
        let mut by_address = self
            .by_address
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let make = || {
            let inbound = cluster::inbound_clusters(&self.world, &self.scope, ip);
            let clusters = self.outbound.iter().cloned().chain(inbound).collect();
            ByAddress {
                clusters: Arc::new(ResourceSet::new(clusters)),
                listeners: Arc::new(listener::listeners(&self.world, &self.scope, ip)),
            }
        };
        by_address.entry(ip).or_insert_with(make).clone()
    }
}

/// A set of messages under their names.
fn set<M: prost::Message + prost::Name>(messages: Vec<(String, M)>) -> ResourceSet {
    let resources = messages
        .into_iter()
        .map(|(name, message)| Resource::new(name, &message));
    ResourceSet::new(resources.collect())
}
