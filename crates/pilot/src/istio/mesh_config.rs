//! The mesh configuration file: the fields of Istio's `MeshConfig` that pilot acts on.

use std::collections::BTreeMap;
use std::time::Duration;

use base::FieldError;
use registry::{RegistrySource, RegistrySync};
use serde::{Deserialize, Serialize};

use super::duration::ConfigDuration;
use super::sidecar::OutboundMode;
use super::virtual_service::Retries;

/// Istio's text format of access logs.
pub const DEFAULT_ACCESS_LOG_FORMAT: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% \"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" %BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER_RAW% %UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%\n";

/// Settings of the whole mesh.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct MeshConfig {
    /// Namespace of mesh-wide defaults; `istio-system`.
    pub root_namespace: String,
    /// Trust domain of identities; `cluster.local`.
    pub trust_domain: String,
    /// Domain of Kubernetes names; not a field of Istio's file but of its flags.
    #[serde(skip)]
    pub domain: String,
    /// Calls to hosts that are no service; ALLOW_ANY.
    pub outbound_traffic_policy: MeshOutboundPolicy,
    /// Path of the access log; empty = none.
    pub access_log_file: String,
    /// Format; empty = Istio's.
    pub access_log_format: String,
    /// TEXT or JSON.
    pub access_log_encoding: AccessLogEncoding,
    /// Time to connect to endpoints; 10 s.
    pub connect_timeout: ConfigDuration,
    /// How often names are resolved; 60 s.
    pub dns_refresh_rate: ConfigDuration,
    /// Retries of routes that say nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_http_retry_policy: Option<Retries>,
    /// Settings of proxies: kept for tools, not acted on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_config: Option<serde_json::Value>,
    /// Registries by their names, as a `RegistrySource` each.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub registry_sources: BTreeMap<String, RegistrySource>,
    /// Synchronisations by their names, as a `RegistrySync` each.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub registry_syncs: BTreeMap<String, RegistrySync>,
    /// Port of the outbound capture listener; 15001.
    pub proxy_listen_port: u16,
    /// Port of the inbound capture listener; 15006.
    pub proxy_inbound_listen_port: u16,
    /// Visibility of services that say nothing.
    pub default_service_export_to: Vec<String>,
    /// Visibility of VirtualServices that say nothing.
    pub default_virtual_service_export_to: Vec<String>,
    /// Visibility of DestinationRules that say nothing.
    pub default_destination_rule_export_to: Vec<String>,
    /// Not acted on: there is no TLS between proxies yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enable_auto_mtls: Option<bool>,
    /// Not acted on: there is no tracing yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enable_tracing: Option<bool>,
    /// Not acted on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enable_prometheus_merge: Option<bool>,
}

impl Default for MeshConfig {
    fn default() -> Self {
        MeshConfig {
            root_namespace: "istio-system".to_owned(),
            trust_domain: "cluster.local".to_owned(),
            domain: "cluster.local".to_owned(),
            outbound_traffic_policy: MeshOutboundPolicy::default(),
            access_log_file: String::new(),
            access_log_format: String::new(),
            access_log_encoding: AccessLogEncoding::Text,
            connect_timeout: ConfigDuration(Duration::from_secs(10)),
            dns_refresh_rate: ConfigDuration(Duration::from_secs(60)),
            default_http_retry_policy: None,
            default_config: None,
            registry_sources: BTreeMap::new(),
            registry_syncs: BTreeMap::new(),
            proxy_listen_port: 15001,
            proxy_inbound_listen_port: 15006,
            default_service_export_to: vec!["*".to_owned()],
            default_virtual_service_export_to: vec!["*".to_owned()],
            default_destination_rule_export_to: vec!["*".to_owned()],
            enable_auto_mtls: None,
            enable_tracing: None,
            enable_prometheus_merge: None,
        }
    }
}

/// `outboundTrafficPolicy` of the mesh.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MeshOutboundPolicy {
    /// ALLOW_ANY or REGISTRY_ONLY.
    #[serde(default = "allow_any")]
    pub mode: OutboundMode,
}

fn allow_any() -> OutboundMode {
    OutboundMode::AllowAny
}

impl Default for MeshOutboundPolicy {
    fn default() -> Self {
        MeshOutboundPolicy { mode: allow_any() }
    }
}

/// `accessLogEncoding`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum AccessLogEncoding {
    /// Lines.
    #[default]
    Text,
    /// One object a line.
    Json,
}

impl MeshConfig {
    /// Parses a mesh configuration file. An empty file is the default.
    pub fn parse(text: &str) -> Result<MeshConfig, FieldError> {
        let value: serde_json::Value =
            serde_saphyr::from_str(text).map_err(|error| FieldError::new(error.to_string()))?;
        if value.is_null() {
            return Ok(MeshConfig::default());
        }
        let mesh: MeshConfig = super::document::typed(value)?;
        if mesh.access_log_encoding == AccessLogEncoding::Json
            && !mesh.access_log_format.is_empty()
            && !serde_json::from_str::<serde_json::Value>(&mesh.access_log_format)
                .is_ok_and(|format| format.is_object())
        {
            return Err(FieldError::at(
                "accessLogFormat",
                "is not a JSON object although accessLogEncoding is JSON",
            ));
        }
        for (name, source) in &mesh.registry_sources {
            source
                .compile(name)
                .map_err(|e| e.in_field(name).in_field("registrySources"))?;
        }
        for (name, sync) in &mesh.registry_syncs {
            sync.compile(name)
                .map_err(|e| e.in_field(name).in_field("registrySyncs"))?;
        }
        Ok(mesh)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_istios() {
        let mesh = MeshConfig::parse("").expect("an empty file");
        assert_eq!(mesh, MeshConfig::default());
        assert_eq!(mesh.outbound_traffic_policy.mode, OutboundMode::AllowAny);
        assert_eq!(mesh.connect_timeout.0, Duration::from_secs(10));
        assert_eq!(mesh.root_namespace, "istio-system");
    }

    #[test]
    fn names_the_unknown_field() {
        let error = MeshConfig::parse("outboundTrafficPolicy:\n  mod: ALLOW_ANY\n")
            .expect_err("a misspelt field");
        assert_eq!(error.path, "outboundTrafficPolicy.mod");
    }
}
