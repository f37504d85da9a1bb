//! Eureka's wire as its servers and clients have it, for the adapter and the facade: instances in JSON and XML, and what they
//! are in the model.

pub(crate) mod info;
pub(crate) mod model;
pub(crate) mod xml;

use std::collections::BTreeMap;

use serde_json::Value;

use crate::naming::Malformed;
use info::{Info, Status};

/// The two forms of everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// What newer clients ask for.
    Json,
    /// What servers answer who are not asked for anything.
    Xml,
}

impl Format {
    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Format::Json => "application/json",
            Format::Xml => "application/xml",
        }
    }

    /// Reads a body: the content of its root, which must have this name.
    pub(crate) fn read(self, body: &[u8], root: &str) -> Result<Value, Malformed> {
        let mut value = match self {
            Format::Json => serde_json::from_slice(body).map_err(|e| Malformed::new(e.to_string())),
            Format::Xml => std::str::from_utf8(body)
                .map_err(|e| Malformed::new(e.to_string()))
                .and_then(xml::parse),
        }?;
        let content = value.get_mut(root).map(Value::take);
        content.ok_or_else(|| Malformed::new(format!("there is no {root:?}")))
    }

    pub(crate) fn write(self, root: &str, content: Value) -> Vec<u8> {
        match self {
            Format::Xml => xml::write(root, &content).into_bytes(),
            Format::Json => {
                let mut object = serde_json::Map::new();
                object.insert(root.to_owned(), content);
                Value::Object(object).to_string().into_bytes()
            }
        }
    }
}

/// What a server hands out: all applications, or those that changed.
#[derive(Debug, Default)]
pub(crate) struct Applications {
    /// `apps__hashcode` of all the server's applications.
    pub(crate) hash: String,
    /// Name of the application, and what is known of its instance.
    pub(crate) instances: Vec<(String, Value)>,
}

impl Applications {
    pub(crate) fn of(applications: &mut Value) -> Applications {
        let hash = applications.get("apps__hashcode").and_then(Value::as_str);
        let hash = hash.unwrap_or_default().to_owned();
        let mut instances = Vec::new();
        for mut application in list(applications.get_mut("application")) {
            let name = application.get("name").and_then(Value::as_str);
            let name = name.unwrap_or_default().to_owned();
            for instance in list(application.get_mut("instance")) {
                instances.push((name.clone(), instance));
            }
        }
        Applications { hash, instances }
    }
}

/// The elements of what is a list, or one element where some serialisers leave the list away.
fn list(value: Option<&mut Value>) -> Vec<Value> {
    match value.map(Value::take) {
        Some(Value::Array(elements)) => elements,
        Some(element @ Value::Object(_)) => vec![element],
        _ => Vec::new(),
    }
}

/// `apps__hashcode`: how many instances have which status.
pub(crate) fn hash(statuses: impl IntoIterator<Item = Status>) -> String {
    let mut counts: BTreeMap<&'static str, usize> = BTreeMap::new();
    for status in statuses {
        *counts.entry(status.name()).or_default() += 1;
    }
    let parts = counts
        .iter()
        .map(|(status, count)| format!("{status}_{count}_"));
    parts.collect()
}

/// Applications as a server writes them.
pub(crate) fn applications(
    apps: &BTreeMap<String, Vec<Info>>,
    hash: &str,
    format: Format,
) -> Value {
    let list = apps.iter().map(|(name, instances)| {
        let instances = instances.iter().map(|info| info.to_value(format)).collect();
        application(name, instances)
    });
    let mut content = serde_json::Map::new();
    content.insert("versions__delta".to_owned(), Value::from("1"));
    content.insert("apps__hashcode".to_owned(), Value::from(hash));
    content.insert("application".to_owned(), list.collect());
    Value::Object(content)
}

/// One application as a server writes it.
pub(crate) fn application(name: &str, instances: Vec<Value>) -> Value {
    let mut content = serde_json::Map::new();
    content.insert("name".to_owned(), Value::from(name));
    content.insert("instance".to_owned(), Value::Array(instances));
    Value::Object(content)
}

#[cfg(test)]
mod tests;
