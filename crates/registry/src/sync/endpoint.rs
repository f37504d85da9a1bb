//! What makes two entries of registries the same instance, however each registry spells it.

use std::sync::Arc;

use crate::model::{Instance, ServiceKey};
use crate::namespace::Namespace;

/// SOFARPC's version where none is said.
const SOFARPC_VERSION: &str = "1.0";

/// A service as all registries know it: applications are http to some and springcloud to others, and Eureka knows no
/// small letters.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ServiceId {
    namespace: Namespace,
    protocol: Arc<str>,
    name: Arc<str>,
}

/// An instance as all registries know it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Endpoint {
    service: ServiceId,
    version: Arc<str>,
    group: Arc<str>,
    address: Arc<str>,
    port: u16,
}

impl ServiceId {
    pub(crate) fn of(key: &ServiceKey) -> ServiceId {
        let protocol = match &*key.protocol {
            "springcloud" => "http".into(),
            _ => key.protocol.clone(),
        };
        let name = if key.name.chars().any(char::is_uppercase) {
            key.name.to_lowercase().into()
        } else {
            key.name.clone()
        };
        ServiceId {
            namespace: key.namespace.clone(),
            protocol,
            name,
        }
    }

    /// The endpoint of one of its instances.
    pub(crate) fn endpoint(&self, instance: &Instance) -> Endpoint {
        let (version, group) = match &*self.protocol {
            // Applications have neither.
            "http" => (Arc::default(), Arc::default()),
            // SOFARPC always says one.
            "bolt" | "rest" if instance.version.is_empty() => {
                (SOFARPC_VERSION.into(), instance.group.clone())
            }
            _ => (instance.version.clone(), instance.group.clone()),
        };
        Endpoint {
            service: self.clone(),
            version,
            group,
            address: instance.address.clone(),
            port: instance.port,
        }
    }
}

impl Endpoint {
    pub(crate) fn of(instance: &Instance) -> Endpoint {
        ServiceId::of(&instance.service).endpoint(instance)
    }

    /// The id of this mesh's copy: the same in every hub of the mesh, wherever the instance came from.
    pub(crate) fn copy_id(&self, mesh: &str) -> Arc<str> {
        let word = |text: &str| text.replace('%', "%25").replace('~', "%7E");
        let mut id = format!(
            "{}:{}@{}~{}~{}",
            self.address,
            self.port,
            word(mesh),
            self.service.protocol,
            word(&self.service.name)
        );
        if !self.version.is_empty() || !self.group.is_empty() {
            id.push('~');
            id.push_str(&word(&self.version));
        }
        if !self.group.is_empty() {
            id.push('~');
            id.push_str(&word(&self.group));
        }
        if !self.service.namespace.is_default() {
            id.push('~');
            id.push_str("namespace=");
            id.push_str(&word(self.service.namespace.as_str()));
        }
        id.into()
    }
}
