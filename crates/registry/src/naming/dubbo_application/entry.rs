//! Instances of the directory as Dubbo's application level says them: an entry of an application with a revision of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::json;

use super::{ENDPOINTS, REVISION, STORAGE};
use crate::md5;
use crate::model::{Instance, ServiceKey};
use crate::naming::dubbo;
use crate::source::ORIGIN_MARK;

/// The protocols of Dubbo's providers.
const PROTOCOLS: [&str; 3] = ["dubbo", "tri", "rest"];
/// What is different in each instance does not belong to a revision.
const OF_INSTANCES: [&str; 3] = ["pid", "timestamp", ORIGIN_MARK];
const WEIGHT: &str = "weight";
/// Of an instance: the application that it belongs to.
pub(crate) const APPLICATION: &str = "application";
/// Only lists of URLs need these.
const OF_LISTS: [&str; 3] = ["category", "dynamic", "enabled"];

/// What a consumer of Dubbo looks for. Of the providers that it finds at both levels it takes those of the application level
/// alone (`DefaultMigrationAddressComparator`), however few.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Served {
    interface: Arc<str>,
    version: Arc<str>,
    group: Arc<str>,
}

impl Served {
    /// What an instance serves, if consumers of Dubbo look for it.
    pub(crate) fn by(instance: &Instance) -> Option<Served> {
        let is_dubbo = PROTOCOLS.contains(&&*instance.service.protocol);
        is_dubbo.then(|| Served {
            interface: instance.service.name.clone(),
            version: instance.version.clone(),
            group: instance.group.clone(),
        })
    }
}

/// The services of an interface, which consumers of Dubbo find by its name alone.
pub(crate) fn of_all_protocols(key: ServiceKey) -> Vec<ServiceKey> {
    if !PROTOCOLS.contains(&&*key.protocol) {
        return vec![key];
    }
    let of = |protocol: &str| ServiceKey {
        protocol: protocol.into(),
        ..key.clone()
    };
    PROTOCOLS.map(of).into()
}

/// What the registry and its metadata centre have to hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The application.
    pub(crate) application: String,
    /// Metadata of its instance.
    pub(crate) metadata: BTreeMap<String, String>,
    /// Names what it serves.
    pub(crate) revision: String,
    /// The JSON (`MetadataInfo`) of this revision.
    pub(crate) info: String,
}

impl Entry {
    /// What says instances of one address and port. `None`: the level has no way to say it, because none is up or the
    /// application has no name that can be one of a folder.
    pub(crate) fn of(application: &str, instances: &[&Instance]) -> Option<Entry> {
        if application.is_empty() || application.contains('/') {
            return None;
        }
        let up: Vec<&&Instance> = instances.iter().filter(|i| i.healthy).collect();
        let first = up.first()?;
        let have_one_weight = up.iter().all(|i| i.weight == first.weight);
        let mut metadata = BTreeMap::new();
        let mut services = serde_json::Map::new();
        let mut protocols = BTreeSet::new();
        for instance in &up {
            let mut url = dubbo::url(instance);
            let weight = have_one_weight.then_some(WEIGHT);
            for key in OF_INSTANCES.into_iter().chain(weight) {
                if let Some(value) = url.params.remove(key) {
                    metadata.entry(key.to_owned()).or_insert(value);
                }
            }
            let (key, service) = service(instance, url);
            services.entry(key).or_insert(service);
            protocols.insert(&*instance.service.protocol);
        }
        let services = serde_json::Value::Object(services);
        let revision = md5::hex(&format!("{application}{services}"));
        let port = first.port;
        let endpoints = protocols.into_iter();
        let endpoints = endpoints.map(|protocol| json!({"port": port, "protocol": protocol}));
        let endpoints = serde_json::Value::Array(endpoints.collect());
        let said = [
            (REVISION, revision.clone()),
            (STORAGE, "remote".to_owned()),
            (ENDPOINTS, endpoints.to_string()),
        ];
        metadata.extend(said.map(|(key, value)| (key.to_owned(), value)));
        let info = json!({"app": application, "revision": revision, "services": services});
        Some(Entry {
            application: application.to_owned(),
            metadata,
            revision,
            info: info.to_string(),
        })
    }
}

/// A service of a revision, and its key there.
fn service(instance: &Instance, mut url: dubbo::Url) -> (String, serde_json::Value) {
    for key in OF_LISTS {
        url.params.remove(key);
    }
    let (name, protocol) = (&*instance.service.name, &url.protocol);
    let mut key = match &*instance.group {
        "" => name.to_owned(),
        group => format!("{group}/{name}"),
    };
    for part in [&*instance.version, protocol] {
        if !part.is_empty() {
            key.push(':');
            key.push_str(part);
        }
    }
    let said = [
        ("name", name),
        ("group", &*instance.group),
        ("version", &*instance.version),
        ("protocol", protocol),
        ("path", &*url.path),
    ];
    let said = said.into_iter().filter(|(_, value)| !value.is_empty());
    let params = ("params".to_owned(), json!(url.params));
    let service: serde_json::Map<String, serde_json::Value> = said
        .map(|(field, value)| (field.to_owned(), json!(value)))
        .chain([params])
        .collect();
    (key, service.into())
}

#[cfg(test)]
mod tests {
    use super::super::{MetadataInfo, Provider};
    use super::*;
    use crate::naming::dubbo::Url;

    const PROVIDER: &str = "dubbo://10.0.0.1:20880/com.foo.Bar?application=shop&group=g&methods=hi&pid=7&timestamp=5&version=1.0&weight=30";

    fn read(url: &str) -> Option<Instance> {
        dubbo::instance(&Url::parse(url).ok()?).ok()
    }

    #[test]
    fn an_entry_is_read_as_the_instance_that_it_was_made_of() {
        let original = read(PROVIDER).expect("a provider");
        let entry = Entry::of("shop", &[&original]).expect("an entry");
        let metadata = entry.metadata.iter();
        let metadata = metadata.map(|(key, value)| (key.as_str(), value.as_str()));
        let provider = Provider::read("shop", "10.0.0.1", 20880, metadata);
        let provider = provider.expect("well-formed").expect("a provider");
        assert!(provider.remote);
        let info = MetadataInfo::from_json(entry.info.as_bytes()).expect("well-formed");
        assert!(
            info.services.contains_key("g/com.foo.Bar:1.0:dubbo"),
            "{info:?}"
        );
        let read: Vec<_> = provider.instances(&info).into_iter().flatten().collect();
        let [read] = read.as_slice() else {
            panic!("{read:?}");
        };
        assert_eq!(Served::by(read), Served::by(&original));
        assert_eq!(
            (&read.service, &read.address, read.port, read.weight),
            (&original.service, &original.address, 20880, 30)
        );
        assert_eq!(read.metadata.get("methods"), Some("hi"));
    }

    #[test]
    fn instances_that_serve_the_same_share_a_revision() {
        let in_application =
            |name: &str, url: &str| Some(Entry::of(name, &[&read(url)?])?.revision);
        let revision = |url: &str| in_application("shop", url);
        let first = revision(PROVIDER);
        let other = PROVIDER
            .replace("10.0.0.1:20880", "10.0.0.2:20881")
            .replace("pid=7&timestamp=5", "pid=8&timestamp=6")
            .replace("weight=30", "weight=70");
        assert_eq!(revision(&other), first);
        assert_ne!(
            revision(&PROVIDER.replace("methods=hi", "methods=ho")),
            first
        );
        assert_eq!(revision(&format!("{PROVIDER}&enabled=false")), None);
        assert_eq!(in_application("a/b", PROVIDER), None);
    }

    #[test]
    fn what_is_at_one_address_is_one_entry() {
        let first = read(PROVIDER).expect("a provider");
        let other = PROVIDER
            .replace("Bar", "Baz")
            .replace("dubbo:", "tri:")
            .replace("weight=30", "weight=70");
        let other = read(&other).expect("a provider");
        let mut down = first.clone();
        (down.service, down.healthy) = (ServiceKey::new("dubbo", "com.foo.Down"), false);
        let entry = Entry::of("desk", &[&first, &other, &down]).expect("an entry");
        let metadata = entry.metadata.iter();
        let metadata = metadata.map(|(key, value)| (key.as_str(), value.as_str()));
        let provider = Provider::read("desk", "10.0.0.1", 20880, metadata);
        let provider = provider.expect("well-formed").expect("a provider");
        let info = MetadataInfo::from_json(entry.info.as_bytes()).expect("well-formed");
        let read: Vec<String> = provider
            .instances(&info)
            .iter()
            .flatten()
            .map(|i| format!("{} {} {}", i.service, i.port, i.weight))
            .collect();
        assert_eq!(
            read,
            ["dubbo/com.foo.Bar 20880 30", "tri/com.foo.Baz 20880 70"]
        );
        assert_eq!(Entry::of("desk", &[&down]), None);
    }
}
