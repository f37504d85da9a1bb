//! A folder of YAML files as a registry: for services that register nowhere, and for tests. A file is a list of its own: one
//! that cannot be read keeps what it said before.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base::FieldError;
use serde::{Deserialize, Serialize};

use crate::model::{DEFAULT_WEIGHT, Instance, ServiceKey};
use crate::source::{Link, List, Report, Skipped, Trouble};

/// Between two looks at the folder.
const INTERVAL: Duration = Duration::from_millis(500);
/// A larger file is refused.
const FILE_BYTES: u64 = 16 << 20;

/// `files` of a `RegistrySource`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// The folder; `*.yaml`, `*.yml` and `*.json` in it are read.
    pub folder: PathBuf,
}

impl Config {
    /// Checks what deserialisation cannot.
    pub fn validate(&self) -> Result<(), FieldError> {
        if self.folder.as_os_str().is_empty() {
            return Err(FieldError::at("folder", "is required"));
        }
        Ok(())
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    services: Vec<serde_json::Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Service {
    protocol: String,
    name: String,
    #[serde(default)]
    version: String,
    #[serde(default)]
    group: String,
    #[serde(default)]
    metadata: BTreeMap<String, String>,
    instances: Vec<serde_json::Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    address: String,
    port: u16,
    #[serde(default)]
    version: Option<String>,
    #[serde(default)]
    group: Option<String>,
    #[serde(default)]
    weight: Option<u32>,
    #[serde(default)]
    healthy: Option<bool>,
    #[serde(default)]
    metadata: BTreeMap<String, String>,
}

type Stamp = (SystemTime, u64);

/// Reads the folder, and again what changes.
pub async fn run(config: Config, link: Link) {
    let mut seen: HashMap<PathBuf, Stamp> = HashMap::new();
    let mut connected = false;
    let mut interval = tokio::time::interval(INTERVAL);
    loop {
        interval.tick().await;
        let found = match find(&config.folder) {
            Ok(found) => found,
            Err(error) => {
                connected = false;
                link.report(Report::Disconnected {
                    trouble: Trouble::Unreachable,
                    reason: format!("{}: {error}", config.folder.display()),
                })
                .await;
                continue;
            }
        };
        if !connected {
            seen.clear();
            let server = config.folder.display().to_string();
            link.report(Report::Connected { server }).await;
        }
        let gone: Vec<PathBuf> = seen
            .keys()
            .filter(|path| !found.contains_key(*path))
            .cloned()
            .collect();
        for path in gone {
            seen.remove(&path);
            let list = List {
                name: name_of(&path),
                instances: Vec::new(),
                skipped: Vec::new(),
                certain: true,
            };
            link.report(Report::List(list)).await;
        }
        for (path, stamp) in found {
            if seen.get(&path) == Some(&stamp) {
                continue;
            }
            match read(&path) {
                Ok((instances, skipped)) => {
                    let list = List {
                        name: name_of(&path),
                        instances,
                        skipped,
                        certain: true,
                    };
                    link.report(Report::List(list)).await;
                }
                Err(why) => {
                    tracing::error!(registry = link.name(), file = %path.display(), "{why}; what it said before stays");
                }
            }
            seen.insert(path, stamp);
        }
        if !connected {
            connected = true;
            link.report(Report::Synced).await;
        }
    }
}

fn name_of(path: &Path) -> Arc<str> {
    let name = path.file_name().unwrap_or(path.as_os_str());
    name.to_string_lossy().into()
}

fn find(folder: &Path) -> std::io::Result<BTreeMap<PathBuf, Stamp>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let extension = path.extension().and_then(|e| e.to_str());
        if name.starts_with('.') || !matches!(extension, Some("yaml" | "yml" | "json")) {
            continue;
        }
        // A file that goes while one looks is gone at the next look.
        if let Ok(metadata) = std::fs::metadata(&path)
            && metadata.is_file()
            && let Ok(modified) = metadata.modified()
        {
            found.insert(path, (modified, metadata.len()));
        }
    }
    Ok(found)
}

fn read(path: &Path) -> Result<(Vec<Instance>, Vec<Skipped>), String> {
    let bytes = std::fs::metadata(path).map_err(|e| e.to_string())?.len();
    if bytes > FILE_BYTES {
        return Err(format!("is larger than {FILE_BYTES} bytes"));
    }
    let text = std::fs::read_to_string(path).map_err(|e| e.to_string())?;
    parse(&text)
}

fn parse(text: &str) -> Result<(Vec<Instance>, Vec<Skipped>), String> {
    let value = api::yaml::to_value(text).map_err(|e| e.to_string())?;
    let document: Document = serde_path_to_error::deserialize(value).map_err(|e| e.to_string())?;
    let (mut instances, mut skipped) = (Vec::new(), Vec::new());
    for value in document.services {
        let shown = value.to_string();
        let service: Service = match serde_path_to_error::deserialize(value) {
            Ok(service) => service,
            Err(error) => {
                skipped.push(Skipped::new(&shown, &error));
                continue;
            }
        };
        let key = ServiceKey::new(&service.protocol, &service.name);
        for value in &service.instances {
            let shown = format!("{key} {value}");
            match serde_path_to_error::deserialize::<_, Entry>(value) {
                Ok(entry) => instances.push(instance(&key, &service, entry)),
                Err(error) => skipped.push(Skipped::new(&shown, &error)),
            }
        }
    }
    Ok((instances, skipped))
}

fn instance(key: &ServiceKey, service: &Service, entry: Entry) -> Instance {
    let mut metadata = service.metadata.clone();
    metadata.extend(entry.metadata);
    Instance {
        version: entry.version.as_deref().unwrap_or(&service.version).into(),
        group: entry.group.as_deref().unwrap_or(&service.group).into(),
        weight: entry.weight.unwrap_or(DEFAULT_WEIGHT),
        healthy: entry.healthy.unwrap_or(true),
        metadata: metadata.into_iter().collect(),
        ttl: None,
        ..Instance::new(key.clone(), &entry.address, entry.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_malformed_entry_hides_no_other() -> Result<(), String> {
        let (instances, skipped) = parse(
            "services:\n\
             - {protocol: dubbo, name: com.foo.Bar, version: 1.0.0, metadata: {zone: east},\n\
             \x20  instances: [{address: 10.0.0.1, port: 20880}, {address: 10.0.0.2, port: x}, {address: 10.0.0.3, port: 1, version: '2', weight: 5}]}\n\
             - {name: a}\n",
        )?;
        let read: Vec<_> = instances
            .iter()
            .map(|i| (i.address.as_ref(), i.version.as_ref(), i.weight))
            .collect();
        assert_eq!(read, [("10.0.0.1", "1.0.0", 100), ("10.0.0.3", "2", 5)]);
        assert_eq!(skipped.len(), 2);
        assert!(skipped[0].reason.contains("port"), "{skipped:?}");
        assert!(parse("services: [").is_err());
        assert!(parse("service: []").is_err());
        Ok(())
    }
}
