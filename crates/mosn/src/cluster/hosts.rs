//! `envoy.config.endpoint.v3.ClusterLoadAssignment`, compiled: the endpoints of a cluster and their labels.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use api::envoy::config::core::v3::{HealthStatus, Metadata};
use api::envoy::config::endpoint::v3::{ClusterLoadAssignment, Endpoint, LbEndpoint, lb_endpoint};
use api::google::protobuf::{Struct, value::Kind};
use base::FieldError;

use crate::config;
use crate::refuse_fields;

/// Health of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// May be chosen.
    Healthy,
    /// Chosen only in panic.
    Unhealthy,
    /// Chosen when there is nothing better.
    Degraded,
}

impl Health {
    fn of(status: HealthStatus) -> Health {
        match status {
            HealthStatus::Unknown | HealthStatus::Healthy => Health::Healthy,
            HealthStatus::Degraded => Health::Degraded,
            HealthStatus::Unhealthy | HealthStatus::Draining | HealthStatus::Timeout => {
                Health::Unhealthy
            }
        }
    }
}

/// Version and group that an RPC call asks for; "" is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RpcInstance<'a> {
    /// Version; Dubbo's "0.0.0" is none.
    pub version: &'a str,
    /// Group, or Bolt's unique id.
    pub group: &'a str,
}

impl RpcInstance<'_> {
    pub(super) fn write_key(&self, key: &mut Vec<u8>) {
        key.extend_from_slice(plain_version(self.version).as_bytes());
        key.push(0);
        key.extend_from_slice(self.group.as_bytes());
    }
}

/// Dubbo writes an unset version in three ways.
fn plain_version(version: &str) -> &str {
    if version == "0.0.0" { "" } else { version }
}

/// Labels of an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostMetadata {
    /// `envoy.lb`: what subsets choose by; numbers and booleans as text.
    pub lb: BTreeMap<String, String>,
    /// `mosn.rpc` version, if the instance says one.
    pub rpc_version: Option<String>,
    /// `mosn.rpc` group, if the instance says one.
    pub rpc_group: Option<String>,
}

impl HostMetadata {
    /// Whether an instance takes calls of this version and group.
    pub fn serves(&self, call: &RpcInstance) -> bool {
        let fits = |mine: &Option<String>, asked: &str| {
            mine.as_deref().is_none_or(|mine| {
                mine == "*" || asked == "*" || plain_version(mine) == plain_version(asked)
            })
        };
        fits(&self.rpc_version, call.version) && fits(&self.rpc_group, call.group)
    }

    fn compile(metadata: Option<&Metadata>) -> HostMetadata {
        let space = |name: &str| metadata.and_then(|m| m.filter_metadata.get(name));
        let rpc = space("mosn.rpc");
        let text = |key: &str| {
            rpc.and_then(|s| s.fields.get(key))
                .and_then(|v| scalar(v.kind.as_ref()))
        };
        HostMetadata {
            lb: space("envoy.lb").map(scalars).unwrap_or_default(),
            rpc_version: text("version"),
            rpc_group: text("group"),
        }
    }
}

fn scalar(kind: Option<&Kind>) -> Option<String> {
    match kind? {
        Kind::StringValue(s) => Some(s.clone()),
        Kind::NumberValue(n) => Some(n.to_string()),
        Kind::BoolValue(b) => Some(b.to_string()),
        Kind::NullValue(_) | Kind::StructValue(_) | Kind::ListValue(_) => None,
    }
}

fn scalars(fields: &Struct) -> BTreeMap<String, String> {
    fields
        .fields
        .iter()
        .filter_map(|(k, v)| Some((k.clone(), scalar(v.kind.as_ref())?)))
        .collect()
}

/// Labels that a route asks for: `metadata_match.filter_metadata["envoy.lb"]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetadataMatch {
    wanted: BTreeMap<String, String>,
    key: Vec<u8>,
}

impl MetadataMatch {
    /// From a route's `metadata_match`; `None` if it asks for nothing.
    pub fn compile(metadata: &Metadata) -> Option<MetadataMatch> {
        MetadataMatch::of(scalars(metadata.filter_metadata.get("envoy.lb")?))
    }

    /// These labels and, where both name one, those of `over`.
    pub fn merged(&self, over: &MetadataMatch) -> MetadataMatch {
        let mut wanted = self.wanted.clone();
        wanted.extend(over.wanted.clone());
        MetadataMatch::of(wanted).unwrap_or_else(|| self.clone())
    }

    fn of(wanted: BTreeMap<String, String>) -> Option<MetadataMatch> {
        if wanted.is_empty() {
            return None;
        }
        let mut key = Vec::new();
        for (k, v) in &wanted {
            key.extend_from_slice(k.as_bytes());
            key.push(0);
            key.extend_from_slice(v.as_bytes());
            key.push(0);
        }
        Some(MetadataMatch { wanted, key })
    }

    /// Bytes that are equal for equal labels.
    pub fn key(&self) -> &[u8] {
        &self.key
    }

    /// Names of the labels, in order.
    pub fn keys(&self) -> impl Iterator<Item = &String> {
        self.wanted.keys()
    }

    /// Whether an endpoint has all of the labels.
    pub fn matches(&self, host: &HostMetadata) -> bool {
        self.wanted.iter().all(|(k, v)| host.lb.get(k) == Some(v))
    }
}

/// One endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostConfig {
    /// Where to connect.
    pub address: SocketAddr,
    /// `endpoint.hostname`, or the name that DNS resolved.
    pub hostname: Arc<str>,
    /// `load_balancing_weight`, 1 by default.
    pub weight: u32,
    /// `health_status`.
    pub health: Health,
    /// Priority of its locality.
    pub priority: u32,
    /// `region/zone/sub_zone`.
    pub locality: Arc<str>,
    /// Labels.
    pub metadata: Arc<HostMetadata>,
}

/// The endpoints of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostsConfig {
    /// Endpoints, in the order they came, each address once.
    pub hosts: Vec<HostConfig>,
}

/// An endpoint that is still a name.
#[derive(Clone, Debug)]
pub struct Named {
    /// The name to resolve.
    pub name: String,
    /// Its port.
    pub port: u16,
    /// All the rest; `address` is replaced by what DNS answers.
    pub template: HostConfig,
}

impl HostsConfig {
    /// Compiles a load assignment whose addresses are IP addresses.
    pub fn compile(assignment: &ClusterLoadAssignment) -> Result<HostsConfig, FieldError> {
        let mut hosts: Vec<HostConfig> = Vec::new();
        let mut seen = std::collections::HashSet::new();
        each_endpoint(assignment, |endpoint, template| {
            let address = endpoint
                .address
                .as_ref()
                .ok_or_else(|| FieldError::at("address", "is required"))?;
            let address = config::socket_addr(address).map_err(|e| e.in_field("address"))?;
            if seen.insert(address) {
                hosts.push(HostConfig {
                    address,
                    ..template
                });
            }
            Ok(())
        })?;
        Ok(HostsConfig { hosts })
    }

    /// Compiles a load assignment whose addresses may be names (STRICT_DNS, LOGICAL_DNS).
    pub fn compile_names(assignment: &ClusterLoadAssignment) -> Result<Vec<Named>, FieldError> {
        let mut names = Vec::new();
        each_endpoint(assignment, |endpoint, mut template| {
            use api::envoy::config::core::v3::address::Address::SocketAddress;
            let address = endpoint.address.as_ref().and_then(|a| a.address.as_ref());
            let Some(SocketAddress(socket)) = address else {
                return Err(FieldError::at("address.socket_address", "is required"));
            };
            let port =
                config::port_value(socket).map_err(|e| e.in_field("address.socket_address"))?;
            if template.hostname.is_empty() {
                template.hostname = socket.address.as_str().into();
            }
            names.push(Named {
                name: socket.address.clone(),
                port,
                template,
            });
            Ok(())
        })?;
        Ok(names)
    }
}

fn each_endpoint(
    assignment: &ClusterLoadAssignment,
    mut take: impl FnMut(&Endpoint, HostConfig) -> Result<(), FieldError>,
) -> Result<(), FieldError> {
    let unspecified = SocketAddr::from(([0, 0, 0, 0], 0));
    refuse_fields!(assignment; named_endpoints);
    if let Some(policy) = &assignment.policy {
        (|| {
            refuse_fields!(policy; drop_overloads, endpoint_stale_after, weighted_priority_health);
            Ok(())
        })()
        .map_err(|e: FieldError| e.in_field("policy"))?;
    }
    for (i, locality) in assignment.endpoints.iter().enumerate() {
        let at = |e: FieldError, j: usize| {
            e.in_index(j)
                .in_field("lb_endpoints")
                .in_index(i)
                .in_field("endpoints")
        };
        if locality.priority > 128 {
            return Err(FieldError::at("priority", "must be at most 128")
                .in_index(i)
                .in_field("endpoints"));
        }
        let name: Arc<str> = locality
            .locality
            .as_ref()
            .map(|l| format!("{}/{}/{}", l.region, l.zone, l.sub_zone))
            .unwrap_or_default()
            .into();
        for (j, lb_endpoint) in locality.lb_endpoints.iter().enumerate() {
            let endpoint = endpoint_of(lb_endpoint).map_err(|e| at(e, j))?;
            let weight = lb_endpoint.load_balancing_weight.unwrap_or(1);
            if weight == 0 {
                return Err(at(
                    FieldError::at("load_balancing_weight", "must be at least 1"),
                    j,
                ));
            }
            let template = HostConfig {
                address: unspecified,
                hostname: endpoint.hostname.as_str().into(),
                weight,
                health: Health::of(lb_endpoint.health_status()),
                priority: locality.priority,
                locality: name.clone(),
                metadata: Arc::new(HostMetadata::compile(lb_endpoint.metadata.as_ref())),
            };
            take(endpoint, template).map_err(|e| at(e.in_field("endpoint"), j))?;
        }
    }
    Ok(())
}

fn endpoint_of(lb_endpoint: &LbEndpoint) -> Result<&Endpoint, FieldError> {
    match &lb_endpoint.host_identifier {
        Some(lb_endpoint::HostIdentifier::Endpoint(endpoint)) => Ok(endpoint),
        Some(lb_endpoint::HostIdentifier::EndpointName(_)) => {
            Err(FieldError::at("endpoint_name", "is not supported"))
        }
        None => Err(FieldError::at("endpoint", "is required")),
    }
}
