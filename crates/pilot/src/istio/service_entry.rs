//! `ServiceEntry` and `WorkloadEntry`: services and workloads that no registry knows.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Labels, Port, WorkloadSelector};

/// A service: hosts, ports, and where its endpoints come from.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceEntry {
    /// Host names; for an RPC service the interface name.
    #[serde(default)]
    pub hosts: Vec<String>,
    /// Virtual addresses (IP or CIDR).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
    /// Ports of the service.
    #[serde(default)]
    pub ports: Vec<Port>,
    /// Inside or outside the mesh; default outside.
    #[serde(default)]
    pub location: Location,
    /// How endpoints are found; default NONE.
    #[serde(default)]
    pub resolution: Resolution,
    /// Endpoints, when given in place.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<WorkloadEntry>,
    /// Selects WorkloadEntries of the same namespace in place of `endpoints`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload_selector: Option<WorkloadSelector>,
    /// Namespaces that see it; empty or `*` = all, `.` = its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub export_to: Vec<String>,
    /// Names to verify in certificates.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subject_alt_names: Vec<String>,
}

/// `location` of a ServiceEntry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Location {
    /// Outside the mesh.
    #[default]
    MeshExternal,
    /// Part of the mesh.
    MeshInternal,
}

/// `resolution` of a ServiceEntry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Resolution {
    /// The address the application called.
    #[default]
    None,
    /// The endpoints given.
    Static,
    /// Names resolved by the proxy, all addresses.
    Dns,
    /// Names resolved by the proxy, the first address.
    DnsRoundRobin,
    /// Names of requests resolved by the proxy.
    DynamicDns,
}

/// An endpoint: in place in a ServiceEntry, or an object of its own.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WorkloadEntry {
    /// IP address, DNS name or `unix:///path`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub address: String,
    /// Port numbers by the service port's name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ports: BTreeMap<String, u32>,
    /// Labels for subsets and selectors.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: Labels,
    /// Network of the endpoint; only the proxy's own network is served.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub network: String,
    /// `region/zone/subzone`
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub locality: String,
    /// Share of the load; 0 = 1.
    #[serde(default)]
    pub weight: u32,
    /// Service account of the workload.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub service_account: String,
}
