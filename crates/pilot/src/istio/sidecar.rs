//! `Sidecar`: what a class of proxies sees, and where its listeners are.

use serde::{Deserialize, Serialize};

use super::{Port, WorkloadSelector};
use crate::istio::destination_rule::ConnectionPoolSettings;

/// The scope of a proxy.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Sidecar {
    /// The workloads it is for; none = all of the namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload_selector: Option<WorkloadSelector>,
    /// Listeners towards the application; none = one for each service port of the workload.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ingress: Vec<IngressListener>,
    /// Listeners for the application's calls; none = all services.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub egress: Vec<EgressListener>,
    /// Connection pools of the inbound clusters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inbound_connection_pool: Option<ConnectionPoolSettings>,
    /// Calls to hosts that are no service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outbound_traffic_policy: Option<OutboundTrafficPolicy>,
}

/// A listener for calls of the application.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EgressListener {
    /// The port; none = for all ports that have no listener of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<Port>,
    /// Address to bind.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub bind: String,
    /// Whether traffic is redirected to it or sent to it.
    #[serde(default)]
    pub capture_mode: CaptureMode,
    /// `namespace/host`; `.` own namespace, `*` any, `~` none.
    #[serde(default)]
    pub hosts: Vec<String>,
}

/// A listener towards the application.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IngressListener {
    /// The port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<Port>,
    /// Address to bind.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub bind: String,
    /// Whether traffic is redirected to it or sent to it.
    #[serde(default)]
    pub capture_mode: CaptureMode,
    /// Where the application listens: `127.0.0.1:8080`, `0.0.0.0:8080` or `unix:///path`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub default_endpoint: String,
    /// TLS of the listener: refused, there is none yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<serde_json::Value>,
    /// Connection pools of this listener's cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection_pool: Option<ConnectionPoolSettings>,
}

/// How traffic reaches a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum CaptureMode {
    /// The environment's default.
    #[default]
    Default,
    /// Redirected by the kernel's packet filter.
    Iptables,
    /// Not redirected: the application calls the listener's address.
    None,
}

/// Calls to hosts that are no service.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OutboundTrafficPolicy {
    /// Let them pass or not.
    #[serde(default)]
    pub mode: OutboundMode,
    /// Where they go instead: refused, not implemented.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress_proxy: Option<serde_json::Value>,
}

/// `outboundTrafficPolicy.mode`
///
/// In a Sidecar an absent mode is REGISTRY_ONLY, in the mesh configuration ALLOW_ANY.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum OutboundMode {
    /// Only services that pilot knows.
    #[default]
    RegistryOnly,
    /// Anything.
    AllowAny,
}
