//! What the bootstrap says about the MeshRegistry server.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use api::envoy::config::bootstrap::v3::Bootstrap;
use api::google::protobuf::Value;
use api::google::protobuf::value::Kind;
use api::mosn::extensions::bootstrap::mesh_registry::v1::MeshRegistry;
use base::FieldError;

use super::annotations::{self, ANNOTATION};
use super::application::{Application, compile_applications};
use crate::config::socket_addr;

/// Name of the bootstrap extension.
const EXTENSION: &str = "mosn.bootstrap.mesh_registry";
/// Ports of a sidecar's ingress listeners, as MOSN's images have them.
const INGRESS_PORTS: [(&str, u16); 3] = [("bolt", 12200), ("dubbo", 30800), ("springcloud", 10080)];
/// SOFARPC gives up reading after 15 s.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(3);
const PUBLISH_TIMEOUT_MAX: Duration = Duration::from_secs(14);
const LEASE_TTL: Duration = Duration::from_secs(15);
const LEASE_TTL_MIN: Duration = Duration::from_secs(1);

/// The extension, checked and with every default filled in.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where applications reach the server.
    pub address: SocketAddr,
    /// The cluster of the registry.
    pub cluster_name: String,
    /// Registered in place of the application's address.
    pub instance_address: String,
    /// Ports that are registered in place of the application's, by protocol.
    pub ingress_ports: BTreeMap<String, u16>,
    /// How long a publication waits for the registry.
    pub publish_timeout: Duration,
    /// Lease of what is registered.
    pub lease_ttl: Duration,
    /// Where the application listens, by protocol.
    pub application_endpoints: BTreeMap<String, String>,
    /// Applications that register nowhere by themselves.
    pub applications: Vec<Application>,
    /// A file with more of them.
    pub applications_file: Option<PathBuf>,
    /// A file with the registry's token.
    pub token_file: Option<PathBuf>,
    /// Labels of the workload: metadata of everything that it publishes, for subsets to select.
    pub labels: BTreeMap<String, String>,
}

impl Config {
    /// Reads the extension, if the bootstrap has it.
    pub fn of(bootstrap: &Bootstrap) -> Result<Option<Config>, FieldError> {
        let extensions = bootstrap.bootstrap_extensions.iter().enumerate();
        let Some((index, extension)) = extensions.into_iter().find(|(_, e)| e.name == EXTENSION)
        else {
            return Ok(None);
        };
        let located = |e: FieldError| e.in_index(index).in_field("bootstrap_extensions");
        let compiled = match &extension.typed_config {
            None => Err(FieldError::at("typed_config", "is required")),
            Some(any) => api::any::unpack::<MeshRegistry>(any)
                .and_then(|message| Config::compile(&message))
                .map_err(|e| e.in_field("typed_config")),
        };
        let mut config = compiled.map_err(located)?;
        config.labels = metadata(bootstrap, "LABELS");
        if let Some(text) = metadata(bootstrap, "ANNOTATIONS").get(ANNOTATION) {
            match annotated(text, &config.ingress_ports) {
                Ok(applications) => config.applications.extend(applications),
                // A sidecar without these applications is better than none.
                Err(why) => tracing::error!(annotation = ANNOTATION, "{why}; it is left out"),
            }
        }
        Ok(Some(config))
    }

    /// Checks the extension's message and fills in the defaults.
    pub fn compile(message: &MeshRegistry) -> Result<Config, FieldError> {
        let address = message.address.as_ref();
        let address = address.ok_or_else(|| FieldError::at("address", "is required"))?;
        let address = socket_addr(address).map_err(|e| e.in_field("address"))?;
        if message.cluster_name.is_empty() {
            return Err(FieldError::at("cluster_name", "is required"));
        }
        let instance_address = match message.instance_address.as_str() {
            "" if address.ip().is_unspecified() => {
                let message = format!("is required, because address is {}", address.ip());
                return Err(FieldError::at("instance_address", message));
            }
            "" => address.ip().to_string(),
            named => named.to_owned(),
        };
        let defaults = INGRESS_PORTS.map(|(protocol, port)| (protocol.to_owned(), port));
        let mut ingress_ports = BTreeMap::from(defaults);
        for (protocol, port) in &message.ingress_ports {
            let port = u16::try_from(*port)
                .ok()
                .filter(|port| *port > 0)
                .ok_or_else(|| {
                    let message = format!("must be 1 to 65535, is {port}");
                    FieldError::new(message)
                        .in_key(protocol)
                        .in_field("ingress_ports")
                })?;
            ingress_ports.insert(protocol.to_ascii_lowercase(), port);
        }
        let mut application_endpoints = BTreeMap::new();
        for (protocol, endpoint) in &message.application_endpoints {
            let port = endpoint
                .rsplit_once(':')
                .and_then(|(_, port)| port.parse::<u16>().ok());
            if port.is_none() {
                let message = format!("must be host:port, is {endpoint:?}");
                return Err(FieldError::new(message)
                    .in_key(protocol)
                    .in_field("application_endpoints"));
            }
            application_endpoints.insert(protocol.to_ascii_lowercase(), endpoint.clone());
        }
        let applications = compile_applications(&message.applications, &ingress_ports)?;
        let file = |name: &String| (!name.is_empty()).then(|| PathBuf::from(name));
        Ok(Config {
            address,
            cluster_name: message.cluster_name.clone(),
            instance_address,
            ingress_ports,
            publish_timeout: duration(
                "publish_timeout",
                message.publish_timeout.as_ref(),
                PUBLISH_TIMEOUT,
                (Duration::ZERO, PUBLISH_TIMEOUT_MAX),
            )?,
            lease_ttl: duration(
                "lease_ttl",
                message.lease_ttl.as_ref(),
                LEASE_TTL,
                (LEASE_TTL_MIN, Duration::from_secs(3600)),
            )?,
            application_endpoints,
            applications,
            applications_file: file(&message.applications_file),
            token_file: file(&message.token_file),
            labels: BTreeMap::new(),
        })
    }
}

/// `node.metadata.LABELS` or `ANNOTATIONS`, where Istio's sidecars carry those of their workload.
fn metadata(bootstrap: &Bootstrap, field: &str) -> BTreeMap<String, String> {
    let metadata = bootstrap
        .node
        .as_ref()
        .and_then(|node| node.metadata.as_ref());
    let pairs = metadata.and_then(|metadata| metadata.fields.get(field));
    let Some(Kind::StructValue(pairs)) = pairs.and_then(|value| value.kind.as_ref()) else {
        return BTreeMap::new();
    };
    let text = |(key, value): (&String, &Value)| match &value.kind {
        Some(Kind::StringValue(text)) => Some((key.clone(), text.clone())),
        _ => None,
    };
    pairs.fields.iter().filter_map(text).collect()
}

/// The applications of the Pod's annotation.
fn annotated(
    text: &str,
    ingress_ports: &BTreeMap<String, u16>,
) -> Result<Vec<Application>, String> {
    let message = annotations::parse(text)?;
    compile_applications(&message.applications, ingress_ports).map_err(|error| error.to_string())
}

pub(super) fn duration(
    field: &str,
    message: Option<&api::google::protobuf::Duration>,
    default: Duration,
    (min, max): (Duration, Duration),
) -> Result<Duration, FieldError> {
    let Some(message) = message else {
        return Ok(default);
    };
    let duration = api::time::duration(message).map_err(|e| e.in_field(field))?;
    if duration < min || duration > max {
        let message = format!("must be {min:?} to {max:?}, is {duration:?}");
        return Err(FieldError::at(field, message));
    }
    Ok(duration)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[allow(
        clippy::needless_pass_by_value,
        reason = "literals of JSON are given away"
    )]
    fn compile(json: serde_json::Value) -> Result<Config, String> {
        let message: MeshRegistry = api::json::from_value(&json).map_err(|e| e.to_string())?;
        Config::compile(&message).map_err(|e| e.to_string())
    }

    #[test]
    fn fills_in_the_defaults() -> Result<(), String> {
        let config = compile(serde_json::json!({
            "address": {"socket_address": {"address": "127.0.0.5", "port_value": 13330}},
            "cluster_name": "registry",
            "ingress_ports": {"tri": 50051},
        }))?;
        assert_eq!(config.instance_address, "127.0.0.5");
        assert_eq!(config.publish_timeout, Duration::from_secs(3));
        assert_eq!(config.lease_ttl, Duration::from_secs(15));
        let ports: Vec<_> = config
            .ingress_ports
            .iter()
            .map(|(p, n)| (p.as_str(), *n))
            .collect();
        assert_eq!(
            ports,
            [
                ("bolt", 12200),
                ("dubbo", 30800),
                ("springcloud", 10080),
                ("tri", 50051)
            ]
        );
        Ok(())
    }

    #[test]
    fn takes_applications_from_the_annotation_of_the_node() -> Result<(), Box<dyn std::error::Error>>
    {
        let bootstrap = |annotation: &str| {
            let bootstrap = serde_json::json!({
                "node": {"metadata": {"ANNOTATIONS": {ANNOTATION: annotation}}},
                "bootstrap_extensions": [{"name": EXTENSION, "typed_config": {
                    "@type": "type.googleapis.com/mosn.extensions.bootstrap.mesh_registry.v1.MeshRegistry",
                    "address": {"socket_address": {"address": "127.0.0.5", "port_value": 13330}},
                    "cluster_name": "registry",
                }}],
            });
            api::json::from_value::<Bootstrap>(&bootstrap)
        };
        let good = "[{protocol: bolt, endpoint: '127.0.0.1:12199', services: [{name: a}]}]";
        for (annotation, expected) in [(good, 1), ("[{protocol: smtp}]", 0), ("'", 0)] {
            let config = Config::of(&bootstrap(annotation)?).map_err(|e| e.to_string())?;
            let applications = config.ok_or("no extension")?.applications;
            assert_eq!(applications.len(), expected, "{annotation}");
        }
        Ok(())
    }

    #[test]
    fn names_the_field_that_is_wrong() {
        let address =
            serde_json::json!({"socket_address": {"address": "0.0.0.0", "port_value": 13330}});
        let cases = [
            (
                serde_json::json!({"cluster_name": "r"}),
                "address: is required",
            ),
            (
                serde_json::json!({"address": address}),
                "cluster_name: is required",
            ),
            (
                serde_json::json!({"address": address, "cluster_name": "r"}),
                "instance_address: is required, because address is 0.0.0.0",
            ),
            (
                serde_json::json!({"address": address, "cluster_name": "r", "instance_address": "a", "lease_ttl": "0.1s"}),
                "lease_ttl: must be 1s to 3600s, is 100ms",
            ),
            (
                serde_json::json!({"address": address, "cluster_name": "r", "instance_address": "a",
                    "ingress_ports": {"bolt": 70000}}),
                "ingress_ports[\"bolt\"]: must be 1 to 65535, is 70000",
            ),
        ];
        for (json, expected) in cases {
            assert_eq!(compile(json).err().as_deref(), Some(expected));
        }
    }
}
