//! What is registered: services (a protocol and a name) and their instances. Version and group belong to an instance, so
//! that two versions of an interface are one service.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::metadata::Metadata;
use crate::namespace::Namespace;
use crate::pattern::Pattern;

/// Weight of an instance that names none.
pub const DEFAULT_WEIGHT: u32 = 100;
/// Lease of an instance that names none.
pub const DEFAULT_TTL: Duration = Duration::from_secs(30);
/// `origin` of what was registered with this registry itself.
pub const OWN_ORIGIN: &str = "osr";

/// Names a service.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceKey {
    /// Where it is known.
    pub namespace: Namespace,
    /// `bolt`, `dubbo`, `http`, …: a lower-case word.
    pub protocol: Arc<str>,
    /// Interface or name, without version and group.
    pub name: Arc<str>,
}

impl ServiceKey {
    /// A service of the default namespace.
    pub fn new(protocol: &str, name: &str) -> ServiceKey {
        ServiceKey::within(Namespace::default(), protocol, name)
    }

    /// A service of a namespace.
    pub fn within(namespace: Namespace, protocol: &str, name: &str) -> ServiceKey {
        ServiceKey {
            namespace,
            protocol: protocol.into(),
            name: name.into(),
        }
    }
}

/// `protocol/name`, with `namespace:` before it if it is not the default one; no part has a colon before the name.
impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.namespace.is_default() {
            write!(f, "{}:", self.namespace)?;
        }
        write!(f, "{}/{}", self.protocol, self.name)
    }
}

/// Names an instance.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InstanceRef {
    /// Its service.
    pub service: ServiceKey,
    /// Unique in the service.
    pub id: Arc<str>,
}

impl InstanceRef {
    /// An instance of a service of the default namespace.
    pub fn new(protocol: &str, name: &str, id: &str) -> InstanceRef {
        InstanceRef {
            service: ServiceKey::new(protocol, name),
            id: id.into(),
        }
    }
}

/// One address where a service can be called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// Its service.
    pub service: ServiceKey,
    /// Unique in the service.
    pub id: Arc<str>,
    /// Version of the interface; empty for none.
    pub version: Arc<str>,
    /// Group of the interface (SOFARPC's unique id); empty for none.
    pub group: Arc<str>,
    /// IP address or host name.
    pub address: Arc<str>,
    /// Where it listens.
    pub port: u16,
    /// Share of calls in relation to the other instances; 0 takes none.
    pub weight: u32,
    /// What its registrar says of it.
    pub healthy: bool,
    /// Free words of the registrar and of the framework.
    pub metadata: Metadata,
    /// The registry where an application put it.
    pub origin: Arc<str>,
    /// How long it stays without being renewed; `None`: until it is taken out.
    pub ttl: Option<Duration>,
    /// The registry's revision of its last change; 0 before it is registered.
    pub revision: u64,
}

impl Instance {
    /// A healthy instance with all defaults.
    pub fn new(service: ServiceKey, address: &str, port: u16) -> Instance {
        Instance {
            service,
            id: "".into(),
            version: "".into(),
            group: "".into(),
            address: address.into(),
            port,
            weight: DEFAULT_WEIGHT,
            healthy: true,
            metadata: Metadata::default(),
            origin: OWN_ORIGIN.into(),
            ttl: Some(DEFAULT_TTL),
            revision: 0,
        }
    }

    /// Its name.
    pub fn reference(&self) -> InstanceRef {
        InstanceRef {
            service: self.service.clone(),
            id: self.id.clone(),
        }
    }

    /// Whether calls may go to it.
    pub fn is_available(&self) -> bool {
        self.healthy && self.weight > 0
    }

    /// Equal in everything but the revision.
    pub fn same_content(&self, other: &Instance) -> bool {
        self.service == other.service
            && self.id == other.id
            && self.version == other.version
            && self.group == other.group
            && self.address == other.address
            && self.port == other.port
            && self.weight == other.weight
            && self.healthy == other.healthy
            && self.metadata == other.metadata
            && self.origin == other.origin
            && self.ttl == other.ttl
    }

    /// The id of an instance whose registrar gave none: two versions or groups at one address stay two instances.
    pub fn default_id(&self) -> String {
        let mut id = format!("{}:{}", self.address, self.port);
        if !self.version.is_empty() || !self.group.is_empty() {
            id.push('~');
            id.push_str(&self.version);
        }
        if !self.group.is_empty() {
            id.push('~');
            id.push_str(&self.group);
        }
        id
    }
}

/// Which instances are meant. What is `None` matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    /// The namespace, exactly.
    pub namespace: Option<Namespace>,
    /// The protocol, exactly.
    pub protocol: Option<Arc<str>>,
    /// The service's name, exactly.
    pub service: Option<Arc<str>>,
    /// A pattern of the service's name.
    pub service_pattern: Option<Pattern>,
    /// The version, exactly; empty for those that have none.
    pub version: Option<Arc<str>>,
    /// The group, exactly; empty for those that have none.
    pub group: Option<Arc<str>>,
    /// Only the instances whose health is this.
    pub healthy: Option<bool>,
    /// The registry where an application put it, exactly.
    pub origin: Option<Arc<str>>,
    /// Words that its metadata has, each with this value.
    pub metadata: Vec<(String, String)>,
    /// Only the instances that calls may go to.
    pub available_only: bool,
}

impl Selector {
    /// All instances of one service.
    pub fn service(key: &ServiceKey) -> Selector {
        Selector {
            namespace: Some(key.namespace.clone()),
            protocol: Some(key.protocol.clone()),
            service: Some(key.name.clone()),
            ..Selector::default()
        }
    }

    /// The one service that can match, if there is only one.
    pub fn key(&self) -> Option<ServiceKey> {
        Some(ServiceKey {
            namespace: self.namespace.clone()?,
            protocol: self.protocol.clone()?,
            name: self.service.clone()?,
        })
    }

    /// Whether instances of this service can match.
    pub fn matches_service(&self, key: &ServiceKey) -> bool {
        let equal =
            |wanted: &Option<Arc<str>>, is: &Arc<str>| wanted.as_ref().is_none_or(|w| w == is);
        self.namespace
            .as_ref()
            .is_none_or(|wanted| *wanted == key.namespace)
            && equal(&self.protocol, &key.protocol)
            && equal(&self.service, &key.name)
            && (self.service_pattern.as_ref()).is_none_or(|pattern| pattern.matches(&key.name))
    }

    /// Whether it says more than which services are meant.
    pub(crate) fn is_about_instances(&self) -> bool {
        self.version.is_some()
            || self.group.is_some()
            || self.healthy.is_some()
            || self.origin.is_some()
            || !self.metadata.is_empty()
            || self.available_only
    }

    /// Whether this instance is meant.
    pub fn matches(&self, instance: &Instance) -> bool {
        let equal =
            |wanted: &Option<Arc<str>>, is: &Arc<str>| wanted.as_ref().is_none_or(|w| w == is);
        self.matches_service(&instance.service)
            && equal(&self.version, &instance.version)
            && equal(&self.group, &instance.group)
            && self
                .healthy
                .is_none_or(|healthy| healthy == instance.healthy)
            && equal(&self.origin, &instance.origin)
            && (self.metadata.iter()).all(|(k, v)| instance.metadata.get(k) == Some(v.as_str()))
            && (!self.available_only || instance.is_available())
    }
}

/// Why an instance changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// It is new or its content is.
    Put,
    /// It was taken out.
    Deregistered,
    /// Its lease was not renewed.
    Lapsed,
}

/// One step of the registry's history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// What happened.
    pub kind: ChangeKind,
    /// The registry's revision from here on.
    pub revision: u64,
    /// As it is now, or as it was before it was taken out.
    pub instance: Arc<Instance>,
    /// What a `Put` replaced.
    pub previous: Option<Arc<Instance>>,
}

impl Change {
    /// The change as one sees it who sees only what a selector means: an instance that ceases to be meant is gone.
    pub fn seen_by(&self, selector: &Selector) -> Option<Change> {
        if selector.matches(&self.instance) {
            return Some(self.clone());
        }
        let previous = self
            .previous
            .as_ref()
            .filter(|previous| selector.matches(previous))?;
        Some(Change {
            kind: ChangeKind::Deregistered,
            revision: self.revision,
            instance: previous.clone(),
            previous: None,
        })
    }
}
