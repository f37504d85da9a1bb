//! Applications that register nowhere by themselves, as they are declared.

use std::collections::BTreeMap;
use std::time::Duration;

use api::mosn::extensions::bootstrap::mesh_registry::v1 as pb;
use base::FieldError;

use super::config::duration;

/// Between two looks at an application.
const INTERVAL: Duration = Duration::from_secs(2);
const INTERVAL_LIMITS: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(300));
/// Failures in a row after which an application is withdrawn.
const THRESHOLD: u32 = 2;

/// An application behind this sidecar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Application {
    /// What it speaks.
    pub protocol: String,
    /// Where it listens, `host:port`.
    pub endpoint: String,
    /// What it is said to serve.
    pub services: Vec<Service>,
    /// Dubbo's QoS port, `host:port`.
    pub dubbo_qos: Option<String>,
    /// Host and port, and the path, of Spring Boot's actuator.
    pub spring_actuator: Option<(String, String)>,
    /// Host and port, and the path, of what answers 2xx while it is alive.
    pub health: Option<(String, String)>,
    /// Between two looks.
    pub interval: Duration,
    /// Failures in a row after which it is withdrawn.
    pub unhealthy_threshold: u32,
}

/// What an application serves.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Service {
    /// Interface or name.
    pub name: String,
    /// Empty for none.
    pub version: String,
    /// Dubbo's group, SOFARPC's unique id; empty for none.
    pub group: String,
    /// Share of the calls; `None`: as much as others.
    pub weight: Option<u32>,
    /// Labels and whatever else is known.
    pub metadata: BTreeMap<String, String>,
}

/// Checks declared applications and fills in the defaults.
pub(super) fn compile_applications(
    messages: &[pb::Application],
    ingress_ports: &BTreeMap<String, u16>,
) -> Result<Vec<Application>, FieldError> {
    messages
        .iter()
        .enumerate()
        .map(|(index, message)| {
            compile(message, ingress_ports).map_err(|e| e.in_index(index).in_field("applications"))
        })
        .collect()
}

fn compile(
    message: &pb::Application,
    ingress_ports: &BTreeMap<String, u16>,
) -> Result<Application, FieldError> {
    let protocol = message.protocol.to_ascii_lowercase();
    if !ingress_ports.contains_key(&protocol) {
        let known: Vec<&str> = ingress_ports.keys().map(String::as_str).collect();
        let message = format!(
            "must be one that has an ingress port ({}), is {protocol:?}",
            known.join(", ")
        );
        return Err(FieldError::at("protocol", message));
    }
    let endpoint = host_port("endpoint", &message.endpoint)?;
    let dubbo_qos = match message.dubbo_qos.as_str() {
        "" => None,
        named => Some(host_port("dubbo_qos", named)?),
    };
    let spring_actuator = match message.spring_actuator.as_str() {
        "" => None,
        named => Some(actuator(named)?),
    };
    let health = match message.health_path.as_str() {
        "" => None,
        path if is_path(path) => Some((endpoint.clone(), path.to_owned())),
        // Bolt and Dubbo's ports speak no HTTP: SOFABoot answers on another one.
        url => Some(
            http_url(url)
                .filter(|(_, path)| is_path(path))
                .ok_or_else(|| {
                    let message = format!(
                        "must be a path that begins with /, or http://host:port/path, is {url:?}"
                    );
                    FieldError::at("health_path", message)
                })?,
        ),
    };
    let services: Vec<Service> = message.services.iter().map(service).collect();
    if let Some(index) = services.iter().position(|service| service.name.is_empty()) {
        let error = FieldError::at("name", "is required");
        return Err(error.in_index(index).in_field("services"));
    }
    if services.is_empty() && dubbo_qos.is_none() && spring_actuator.is_none() {
        let message = "must name a service, or dubbo_qos or spring_actuator must say whom to ask";
        return Err(FieldError::at("services", message));
    }
    Ok(Application {
        protocol,
        endpoint,
        services,
        dubbo_qos,
        spring_actuator,
        health,
        interval: duration(
            "interval",
            message.interval.as_ref(),
            INTERVAL,
            INTERVAL_LIMITS,
        )?,
        unhealthy_threshold: match message.unhealthy_threshold {
            0 => THRESHOLD,
            threshold => threshold,
        },
    })
}

fn service(message: &pb::application::Service) -> Service {
    Service {
        name: message.name.clone(),
        version: message.version.clone(),
        group: message.group.clone(),
        weight: (message.weight > 0).then_some(message.weight),
        metadata: message.metadata.clone().into_iter().collect(),
    }
}

fn host_port(field: &str, text: &str) -> Result<String, FieldError> {
    let port = text
        .rsplit_once(':')
        .and_then(|(host, port)| (!host.is_empty()).then(|| port.parse::<u16>().ok())?);
    match port {
        Some(1..) => Ok(text.to_owned()),
        _ => Err(FieldError::at(
            field,
            format!("must be host:port, is {text:?}"),
        )),
    }
}

/// Paths stand in requests as they are.
fn is_path(path: &str) -> bool {
    path.starts_with('/') && path.bytes().all(|b| b.is_ascii_graphic())
}

fn actuator(text: &str) -> Result<(String, String), FieldError> {
    let (authority, path) = http_url(text).ok_or_else(|| {
        let message = format!("must be http://host:port/path, is {text:?}");
        FieldError::at("spring_actuator", message)
    })?;
    Ok((authority, path.trim_end_matches('/').to_owned()))
}

/// Host and port, and the path, of a URL.
fn http_url(text: &str) -> Option<(String, String)> {
    let rest = text.strip_prefix("http://")?;
    let (authority, path) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, ""),
    };
    let authority = host_port("", authority).ok()?;
    (path.is_empty() || is_path(path)).then(|| (authority, path.to_owned()))
}
