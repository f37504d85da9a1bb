//! Load assignments: the endpoints of clusters.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::envoy::config::core::v3 as core;
use api::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use api::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint as ApiEndpoint, LbEndpoint, LocalityLbEndpoints,
};
use prost_types::Struct;
use xds::server::{Resource, ResourceSet};

use super::message::{address, metadata, string, structure};
use crate::istio::Labels;
use crate::world::{Endpoint, ServiceId, ServicePort, World};

/// The key in endpoints' metadata that mosn selects instances by.
const RPC_METADATA: &str = "mosn.rpc";
/// Any version or group.
const ANY: &str = "*";

/// Which endpoints a cluster has.
#[derive(Debug, Clone)]
pub(super) struct Assignment {
    pub(super) cluster: Arc<str>,
    pub(super) service: ServiceId,
    pub(super) port: ServicePort,
    /// Labels of the subset; empty = all endpoints.
    pub(super) labels: Labels,
    /// Whether the program can call unix sockets; it would refuse all endpoints because of one.
    pub(super) unix_sockets: bool,
}

/// All assignments. Those whose endpoints are the very same as in `previous` are taken from there.
pub(super) fn resources(
    world: &World,
    assignments: &[Assignment],
    previous: Option<(&World, &ResourceSet)>,
) -> ResourceSet {
    let unchanged = |assignment: &Assignment| {
        let (before, resources) = previous?;
        let same = match (
            world.endpoints.get(&assignment.service),
            before.endpoints.get(&assignment.service),
        ) {
            (Some(new), Some(old)) => new.is_same(old),
            (None, None) => true,
            _ => false,
        };
        // The labels of proxies matter to subsets only.
        let same = same
            && (assignment.labels.is_empty() || Arc::ptr_eq(&world.workloads, &before.workloads));
        if same {
            resources.get(&assignment.cluster).cloned()
        } else {
            None
        }
    };
    let resource = |assignment: &Assignment| {
        unchanged(assignment).unwrap_or_else(|| {
            Resource::new(
                assignment.cluster.clone(),
                &load_assignment(world, assignment),
            )
        })
    };
    ResourceSet::new(assignments.iter().map(resource).collect())
}

/// The endpoints of one cluster, by locality.
pub(super) fn load_assignment(world: &World, assignment: &Assignment) -> ClusterLoadAssignment {
    let mut localities: BTreeMap<Arc<str>, Vec<LbEndpoint>> = BTreeMap::new();
    for endpoint in world.endpoints_of(&assignment.service) {
        if !world.selects(&assignment.labels, &endpoint) {
            continue;
        }
        if endpoint.address.starts_with("unix://") && !assignment.unix_sockets {
            continue;
        }
        let Some(port) = endpoint.port(&assignment.port) else {
            continue;
        };
        localities
            .entry(endpoint.locality.clone())
            .or_default()
            .push(LbEndpoint {
                health_status: if endpoint.healthy {
                    core::HealthStatus::Unknown as i32
                } else {
                    core::HealthStatus::Unhealthy as i32
                },
                load_balancing_weight: Some(endpoint.weight),
                metadata: endpoint_metadata(&endpoint, &assignment.labels),
                ..lb_endpoint(address(&endpoint.address, port))
            });
    }
    let endpoints = localities
        .into_iter()
        .map(|(name, lb_endpoints)| LocalityLbEndpoints {
            locality: Some(locality(&name)),
            load_balancing_weight: Some(
                lb_endpoints
                    .iter()
                    .filter_map(|endpoint| endpoint.load_balancing_weight)
                    .fold(0u32, u32::saturating_add)
                    .max(1),
            ),
            lb_endpoints,
            ..Default::default()
        })
        .collect();
    ClusterLoadAssignment {
        cluster_name: assignment.cluster.to_string(),
        endpoints,
        ..Default::default()
    }
}

/// An endpoint with an address and nothing else.
pub(super) fn lb_endpoint(address: core::Address) -> LbEndpoint {
    LbEndpoint {
        host_identifier: Some(HostIdentifier::Endpoint(ApiEndpoint {
            address: Some(address),
            ..Default::default()
        })),
        ..Default::default()
    }
}

fn locality(name: &str) -> core::Locality {
    let mut parts = name.splitn(3, '/').map(str::to_owned);
    core::Locality {
        region: parts.next().unwrap_or_default(),
        zone: parts.next().unwrap_or_default(),
        sub_zone: parts.next().unwrap_or_default(),
    }
}

fn endpoint_metadata(endpoint: &Endpoint, subset: &Labels) -> Option<core::Metadata> {
    let mut namespaces: Vec<(&str, Struct)> = Vec::new();
    if !endpoint.workload.is_empty() {
        namespaces.push((
            "istio",
            structure([("workload", string(endpoint.workload.as_ref()))]),
        ));
    }
    if let Some(rpc) = &endpoint.rpc {
        // A subset that names the version has chosen it already, whatever the caller asked for.
        let named = |key: &str| subset.contains_key(key);
        if !(named("version") && named("group")) {
            let version = if named("version") {
                ANY
            } else {
                rpc.version.as_ref()
            };
            let group = if named("group") {
                ANY
            } else {
                rpc.group.as_ref()
            };
            let fields = structure([("version", string(version)), ("group", string(group))]);
            namespaces.push((RPC_METADATA, fields));
        }
    }
    (!namespaces.is_empty()).then(|| metadata(namespaces))
}
