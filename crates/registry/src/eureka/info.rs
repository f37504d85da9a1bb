//! One instance as Eureka's clients register it and its servers tell it.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::Format;
use crate::naming::{Malformed, shorten};

/// Data centre of everybody outside of Amazon's.
const DATA_CENTER_CLASS: &str = "com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo";
/// Where nobody says a port, clients say this one and that it is off.
const SECURE_PORT: u16 = 443;

/// What an instance says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Status {
    Up,
    Down,
    Starting,
    OutOfService,
    #[default]
    Unknown,
}

impl Status {
    /// As on the wire; what is none of the five counts as unknown, as with Eureka's own client.
    pub(crate) fn named(name: &str) -> Status {
        match name.to_ascii_uppercase().as_str() {
            "UP" => Status::Up,
            "DOWN" => Status::Down,
            "STARTING" => Status::Starting,
            "OUT_OF_SERVICE" => Status::OutOfService,
            _ => Status::Unknown,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Status::Up => "UP",
            Status::Down => "DOWN",
            Status::Starting => "STARTING",
            Status::OutOfService => "OUT_OF_SERVICE",
            Status::Unknown => "UNKNOWN",
        }
    }
}

/// What happened to an instance, in a delta.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Added,
    Modified,
    Deleted,
}

impl Action {
    fn name(self) -> &'static str {
        match self {
            Action::Added => "ADDED",
            Action::Modified => "MODIFIED",
            Action::Deleted => "DELETED",
        }
    }
}

/// One instance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Info {
    pub(crate) id: String,
    pub(crate) app: String,
    pub(crate) host_name: String,
    pub(crate) ip_address: String,
    /// What counts, with an operator's override.
    pub(crate) status: Status,
    pub(crate) overridden_status: Status,
    /// Of the ports those that are on.
    pub(crate) port: Option<u16>,
    pub(crate) secure_port: Option<u16>,
    /// The texts of `TEXTS` that it has.
    pub(crate) texts: BTreeMap<&'static str, String>,
    pub(crate) metadata: BTreeMap<String, String>,
    /// Where Amazon runs it; empty elsewhere.
    pub(crate) availability_zone: String,
    pub(crate) lease: Lease,
    pub(crate) last_dirty_ms: u64,
    pub(crate) last_updated_ms: u64,
    pub(crate) action: Option<Action>,
}

/// `leaseInfo`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lease {
    pub(crate) renewal_secs: u64,
    pub(crate) duration_secs: u64,
    pub(crate) registered_ms: u64,
}

/// Fields that are only carried through.
pub(crate) const TEXTS: [&str; 7] = [
    "appGroupName",
    "homePageUrl",
    "statusPageUrl",
    "healthCheckUrl",
    "secureHealthCheckUrl",
    "vipAddress",
    "secureVipAddress",
];

impl Info {
    /// Reads an instance; an error names the field that is wrong.
    pub(crate) fn parse(value: &Value) -> Result<Info, Malformed> {
        let fields = value
            .as_object()
            .ok_or_else(|| Malformed::new("an instance is an object"))?;
        let text = |key: &str| fields.get(key).and_then(plain).unwrap_or_default();
        let host_name = Some(text("hostName")).filter(|name| !name.is_empty());
        let host_name = host_name.unwrap_or_else(|| text("ipAddr"));
        let id = Some(text("instanceId")).filter(|id| !id.is_empty());
        let texts = TEXTS.into_iter().filter_map(|key| {
            let text = text(key);
            (!text.is_empty()).then_some((key, text))
        });
        let lease = fields.get("leaseInfo").and_then(Value::as_object);
        let lease_number = |key: &str| lease.and_then(|lease| lease.get(key)).map(number);
        let action = match text("actionType").as_str() {
            "ADDED" => Some(Action::Added),
            "MODIFIED" => Some(Action::Modified),
            "DELETED" => Some(Action::Deleted),
            _ => None,
        };
        // Old servers and XML write it in lower case.
        let overridden = [text("overriddenStatus"), text("overriddenstatus")];
        let overridden = overridden.iter().find(|status| !status.is_empty());
        Ok(Info {
            id: id.unwrap_or_else(|| host_name.clone()),
            app: text("app"),
            ip_address: text("ipAddr"),
            // A client may leave it away.
            status: match text("status").as_str() {
                "" => Status::Up,
                name => Status::named(name),
            },
            overridden_status: overridden.map_or(Status::Unknown, |name| Status::named(name)),
            port: port(fields, "port")?,
            secure_port: port(fields, "securePort")?,
            texts: texts.collect(),
            metadata: metadata(fields.get("metadata")),
            availability_zone: fields
                .get("dataCenterInfo")
                .and_then(|info| info.get("metadata")?.get("availability-zone"))
                .and_then(plain)
                .unwrap_or_default(),
            lease: Lease {
                renewal_secs: lease_number("renewalIntervalInSecs")
                    .transpose()?
                    .unwrap_or(0),
                duration_secs: lease_number("durationInSecs").transpose()?.unwrap_or(0),
                registered_ms: lease_number("registrationTimestamp")
                    .transpose()?
                    .unwrap_or(0),
            },
            last_dirty_ms: fields.get("lastDirtyTimestamp").map_or(Ok(0), number)?,
            last_updated_ms: fields.get("lastUpdatedTimestamp").map_or(Ok(0), number)?,
            host_name,
            action,
        })
    }

    /// The instance as a server writes it.
    pub(crate) fn to_value(&self, format: Format) -> Value {
        let mut out = Map::new();
        let mut put = |key: &str, value: Value| out.insert(key.to_owned(), value);
        put("instanceId", self.id.clone().into());
        put("hostName", self.host_name.clone().into());
        put("app", self.app.clone().into());
        put("ipAddr", self.ip_address.clone().into());
        put("status", self.status.name().into());
        let overridden = match format {
            Format::Json => "overriddenStatus",
            Format::Xml => "overriddenstatus",
        };
        put(overridden, self.overridden_status.name().into());
        put("port", port_value(self.port, 0));
        put("securePort", port_value(self.secure_port, SECURE_PORT));
        put("countryId", 1.into());
        put(
            "dataCenterInfo",
            json!({"@class": DATA_CENTER_CLASS, "name": "MyOwn"}),
        );
        let lease = &self.lease;
        put(
            "leaseInfo",
            json!({
                "renewalIntervalInSecs": lease.renewal_secs,
                "durationInSecs": lease.duration_secs,
                "registrationTimestamp": lease.registered_ms,
                "lastRenewalTimestamp": lease.registered_ms,
                "evictionTimestamp": 0,
                "serviceUpTimestamp": lease.registered_ms,
            }),
        );
        let metadata = self.metadata.iter();
        let metadata = metadata.map(|(key, value)| (key.clone(), Value::from(value.as_str())));
        put("metadata", Value::Object(metadata.collect()));
        for (key, text) in &self.texts {
            put(key, text.as_str().into());
        }
        put("isCoordinatingDiscoveryServer", "false".into());
        // Both are texts on the wire.
        put(
            "lastUpdatedTimestamp",
            self.last_updated_ms.to_string().into(),
        );
        put("lastDirtyTimestamp", self.last_dirty_ms.to_string().into());
        if let Some(action) = self.action {
            put("actionType", action.name().into());
        }
        Value::Object(out)
    }
}

/// What is written as text, number or boolean, or as one with attributes.
fn plain(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(is) => Some(is.to_string()),
        Value::Object(content) => plain(content.get("$")?),
        Value::Null | Value::Array(_) => None,
    }
}

fn number(value: &Value) -> Result<u64, Malformed> {
    let text = plain(value).unwrap_or_default();
    if text.is_empty() {
        return Ok(0);
    }
    // A clock before 1970 is as good as none.
    text.parse::<i64>()
        .map(|number| u64::try_from(number).unwrap_or(0))
        .map_err(|_| Malformed::new(format!("{:?} is no number", shorten(&text))))
}

fn port(fields: &Map<String, Value>, key: &str) -> Result<Option<u16>, Malformed> {
    let Some(value) = fields.get(key) else {
        return Ok(None);
    };
    let on = value.get("@enabled").and_then(plain);
    if on.is_some_and(|on| on != "true") {
        return Ok(None);
    }
    let text = plain(value).unwrap_or_default();
    text.parse()
        .ok()
        .filter(|port| *port > 0)
        .map(Some)
        .ok_or_else(|| Malformed::new(format!("its {key} is {:?}", shorten(&text))))
}

fn port_value(port: Option<u16>, off: u16) -> Value {
    let on = if port.is_some() { "true" } else { "false" };
    json!({"$": port.unwrap_or(off), "@enabled": on})
}

fn metadata(value: Option<&Value>) -> BTreeMap<String, String> {
    let fields = value.and_then(Value::as_object).into_iter().flatten();
    // `@class` says how Java holds the map.
    fields
        .filter(|(key, _)| !key.starts_with('@'))
        .filter_map(|(key, value)| Some((key.clone(), plain(value)?)))
        .collect()
}
