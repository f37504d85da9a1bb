//! Request bodies. An unknown field is refused, and errors name the field.

use std::time::Duration;

use base::FieldError;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::problem::Problem;
use crate::limits::Limits;
use crate::model::{DEFAULT_TTL, DEFAULT_WEIGHT, Instance, InstanceRef, OWN_ORIGIN, ServiceKey};
use crate::namespace::Namespace;

fn default_weight() -> u32 {
    DEFAULT_WEIGHT
}

fn default_healthy() -> bool {
    true
}

fn default_origin() -> String {
    OWN_ORIGIN.to_owned()
}

fn default_ttl() -> f64 {
    DEFAULT_TTL.as_secs_f64()
}

/// An instance without its name, as `PUT` takes it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Content {
    address: String,
    port: u16,
    #[serde(default)]
    version: String,
    #[serde(default)]
    group: String,
    #[serde(default = "default_weight")]
    weight: u32,
    #[serde(default = "default_healthy")]
    healthy: bool,
    #[serde(default)]
    metadata: Map<String, Value>,
    #[serde(default = "default_origin")]
    origin: String,
    /// 0: the instance stays until it is taken out.
    #[serde(default = "default_ttl")]
    ttl_seconds: f64,
}

impl Content {
    fn into_instance(self, service: ServiceKey, id: &str) -> Result<Instance, FieldError> {
        let ttl = match Duration::try_from_secs_f64(self.ttl_seconds) {
            // What is only rounded to zero is not "no lease" but too short.
            Ok(_) if self.ttl_seconds == 0.0 => None,
            Ok(ttl) => Some(ttl),
            Err(error) => return Err(FieldError::at("ttlSeconds", error.to_string())),
        };
        let mut metadata = Vec::with_capacity(self.metadata.len());
        for (key, value) in self.metadata {
            match value {
                Value::String(value) => metadata.push((key, value)),
                other => {
                    let message = format!("must be a string, is {other}");
                    return Err(FieldError::new(message).in_key(&key).in_field("metadata"));
                }
            }
        }
        Ok(Instance {
            service,
            id: id.into(),
            version: self.version.into(),
            group: self.group.into(),
            address: self.address.into(),
            port: self.port,
            weight: self.weight,
            healthy: self.healthy,
            metadata: metadata.into_iter().collect(),
            origin: self.origin.into(),
            ttl,
            revision: 0,
        })
    }
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    let mut json = serde_json::Deserializer::from_slice(body);
    let parsed = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        let message = error.into_inner().to_string();
        Problem::invalid(FieldError {
            path: if path == "." { String::new() } else { path },
            message,
        })
    })?;
    json.end()
        .map_err(|error| Problem::invalid(FieldError::new(error.to_string())))?;
    Ok(parsed)
}

/// One instance, whose service the URL names.
pub(super) fn instance(body: &[u8], service: ServiceKey) -> Result<Instance, Problem> {
    let content: Content = parse(body)?;
    content.into_instance(service, "").map_err(Problem::invalid)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Instances {
    instances: Vec<Map<String, Value>>,
}

/// `{"instances": [...]}`, each with its name and content; in this namespace unless it names one.
pub(super) fn instances(body: &[u8], namespace: &Namespace) -> Result<Vec<Instance>, Problem> {
    let list: Instances = parse(body)?;
    let converted = list
        .instances
        .into_iter()
        .enumerate()
        .map(|(index, object)| {
            named_instance(object, namespace)
                .map_err(|e| Problem::invalid(e.in_index(index).in_field("instances")))
        });
    converted.collect()
}

fn named_instance(
    mut object: Map<String, Value>,
    namespace: &Namespace,
) -> Result<Instance, FieldError> {
    let mut word = |name: &str| match object.remove(name) {
        None => Ok(String::new()),
        Some(Value::String(word)) => Ok(word),
        Some(other) => Err(FieldError::at(
            name,
            format!("must be a string, is {other}"),
        )),
    };
    let namespace = named_or(&word("namespace")?, namespace);
    let service = ServiceKey::within(namespace, &word("protocol")?, &word("service")?);
    let id = word("id")?;
    let content: Content =
        serde_path_to_error::deserialize(Value::Object(object)).map_err(|error| {
            let path = error.path().to_string();
            FieldError {
                path: if path == "." { String::new() } else { path },
                message: error.into_inner().to_string(),
            }
        })?;
    content.into_instance(service, &id)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Session {
    #[serde(default = "default_ttl")]
    ttl_seconds: f64,
}

/// `{"ttlSeconds": …}`, or nothing at all.
pub(super) fn session_ttl(body: &[u8]) -> Result<Duration, Problem> {
    let seconds = match body.trim_ascii().is_empty() {
        true => default_ttl(),
        false => parse::<Session>(body)?.ttl_seconds,
    };
    Duration::try_from_secs_f64(seconds)
        .map_err(|error| Problem::invalid(FieldError::at("ttlSeconds", error.to_string())))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct References {
    instances: Vec<Reference>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Reference {
    #[serde(default)]
    namespace: String,
    protocol: String,
    service: String,
    id: String,
}

fn named_or(name: &str, other: &Namespace) -> Namespace {
    match name {
        "" => other.clone(),
        name => Namespace::new(name),
    }
}

/// `{"instances": [{"protocol", "service", "id"}, ...]}`; in this namespace unless one is named.
pub(super) fn references(
    body: &[u8],
    namespace: &Namespace,
    limits: &Limits,
) -> Result<Vec<InstanceRef>, Problem> {
    let list: References = parse(body)?;
    let converted = list
        .instances
        .into_iter()
        .enumerate()
        .map(|(index, reference)| {
            let within = named_or(&reference.namespace, namespace);
            let reference = InstanceRef {
                service: ServiceKey::within(within, &reference.protocol, &reference.service),
                id: reference.id.into(),
            };
            let checked = limits.check_reference(&reference);
            checked.map_err(|e| Problem::invalid(e.in_index(index).in_field("instances")))?;
            Ok(reference)
        });
    converted.collect()
}
