//! Between the model and `mesh.registry.v1`, which is both the gRPC wire and the form of a record on disk.

use std::sync::Arc;
use std::time::Duration;

use api::mesh::registry::v1 as pb;
use base::FieldError;

use crate::interfaces::{Interface, InterfaceKey};
use crate::model::{
    Change, ChangeKind, DEFAULT_TTL, DEFAULT_WEIGHT, Instance, InstanceRef, OWN_ORIGIN, Selector,
    ServiceKey,
};
use crate::namespace::Namespace;
use crate::pattern::Pattern;

/// The instance that a registrar sent. Only what the model cannot hold is refused; the rest is for the limits.
pub fn instance_from(message: pb::Instance) -> Result<Instance, FieldError> {
    let port = u16::try_from(message.port).map_err(|_| {
        let text = format!("must be 1 to 65535, is {}", message.port);
        FieldError::new(text).in_field("port")
    })?;
    let ttl = match message.ttl_ms {
        None => Some(DEFAULT_TTL),
        Some(0) => None,
        Some(ms) => Some(Duration::from_millis(ms)),
    };
    let origin = if message.origin.is_empty() {
        OWN_ORIGIN
    } else {
        &message.origin
    };
    Ok(Instance {
        service: ServiceKey::within(
            Namespace::new(&message.namespace),
            &message.protocol,
            &message.service,
        ),
        id: message.id.into(),
        version: message.version.into(),
        group: message.group.into(),
        address: message.address.into(),
        port,
        weight: message.weight.unwrap_or(DEFAULT_WEIGHT),
        healthy: message.healthy.unwrap_or(true),
        metadata: message.metadata.into_iter().collect(),
        origin: origin.into(),
        ttl,
        revision: message.revision,
    })
}

/// Everything of an instance.
pub fn instance_to(instance: &Instance) -> pb::Instance {
    pb::Instance {
        namespace: namespace_to(&instance.service.namespace),
        protocol: instance.service.protocol.to_string(),
        service: instance.service.name.to_string(),
        id: instance.id.to_string(),
        version: instance.version.to_string(),
        group: instance.group.to_string(),
        address: instance.address.to_string(),
        port: u32::from(instance.port),
        weight: Some(instance.weight),
        healthy: Some(instance.healthy),
        metadata: instance
            .metadata
            .iter()
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .collect(),
        origin: instance.origin.to_string(),
        ttl_ms: Some(ttl_ms(instance.ttl)),
        revision: instance.revision,
    }
}

/// A lease in milliseconds; 0 for none.
pub(crate) fn ttl_ms(ttl: Option<Duration>) -> u64 {
    ttl.map_or(0, |ttl| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX))
}

/// The default namespace is written as none, as it was before there were others.
pub(crate) fn namespace_to(namespace: &Namespace) -> String {
    match namespace.is_default() {
        true => String::new(),
        false => namespace.to_string(),
    }
}

pub(crate) fn reference_from(message: &pb::InstanceRef) -> InstanceRef {
    let namespace = Namespace::new(&message.namespace);
    InstanceRef {
        service: ServiceKey::within(namespace, &message.protocol, &message.service),
        id: message.id.as_str().into(),
    }
}

pub(crate) fn reference_to(reference: &InstanceRef) -> pb::InstanceRef {
    pb::InstanceRef {
        namespace: namespace_to(&reference.service.namespace),
        protocol: reference.service.protocol.to_string(),
        service: reference.service.name.to_string(),
        id: reference.id.to_string(),
    }
}

/// Names all namespaces where one could be named.
pub(crate) const ALL_NAMESPACES: &str = "*";

pub(crate) fn selector_from(message: Option<pb::Selector>) -> Selector {
    let message = message.unwrap_or_default();
    let unless_empty = |word: String| {
        if word.is_empty() {
            None
        } else {
            Some(word.into())
        }
    };
    let namespace = match message.namespace.as_str() {
        ALL_NAMESPACES => None,
        name => Some(Namespace::new(name)),
    };
    Selector {
        namespace,
        protocol: unless_empty(message.protocol),
        service: unless_empty(message.service),
        version: message.version.map(Into::into),
        group: message.group.map(Into::into),
        service_pattern: unless_empty(message.service_pattern).map(|p: Arc<str>| Pattern::new(&p)),
        healthy: message.healthy,
        origin: unless_empty(message.origin),
        metadata: message.metadata.into_iter().collect(),
        available_only: message.available_only,
    }
}

pub(crate) fn interface_from(message: pb::InterfaceRef) -> InterfaceKey {
    let namespace = Namespace::new(&message.namespace);
    InterfaceKey {
        service: ServiceKey::within(namespace, &message.protocol, &message.service),
        version: message.version.into(),
        group: message.group.into(),
    }
}

pub(crate) fn interface_to(interface: &Interface) -> pb::Interface {
    let InterfaceKey {
        service,
        version,
        group,
    } = &interface.key;
    let names = |names: &[Box<str>]| names.iter().map(|name| name.to_string()).collect();
    pb::Interface {
        interface: Some(pb::InterfaceRef {
            namespace: namespace_to(&service.namespace),
            protocol: service.protocol.to_string(),
            service: service.name.to_string(),
            version: version.to_string(),
            group: group.to_string(),
        }),
        methods: names(&interface.methods),
        types: names(&interface.types),
    }
}

pub(crate) fn change_to(change: &Change) -> pb::Change {
    let kind = match change.kind {
        ChangeKind::Put => pb::change::Kind::Put,
        ChangeKind::Deregistered => pb::change::Kind::Deregistered,
        ChangeKind::Lapsed => pb::change::Kind::Lapsed,
    };
    pb::Change {
        kind: kind.into(),
        revision: change.revision,
        instance: Some(instance_to(&change.instance)),
    }
}
