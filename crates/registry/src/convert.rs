//! Between the model and `mesh.registry.v1`, which is both the gRPC wire and the form of a record on disk.

use std::time::Duration;

use api::mesh::registry::v1 as pb;
use base::FieldError;

use crate::model::{
    Change, ChangeKind, DEFAULT_TTL, DEFAULT_WEIGHT, Instance, InstanceRef, OWN_ORIGIN, Selector,
    ServiceKey,
};

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
        service: ServiceKey::new(&message.protocol, &message.service),
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

pub(crate) fn reference_from(message: &pb::InstanceRef) -> InstanceRef {
    InstanceRef::new(&message.protocol, &message.service, &message.id)
}

pub(crate) fn reference_to(reference: &InstanceRef) -> pb::InstanceRef {
    pb::InstanceRef {
        protocol: reference.service.protocol.to_string(),
        service: reference.service.name.to_string(),
        id: reference.id.to_string(),
    }
}

pub(crate) fn selector_from(message: Option<pb::Selector>) -> Selector {
    let message = message.unwrap_or_default();
    let unless_empty = |word: String| {
        if word.is_empty() {
            None
        } else {
            Some(word.into())
        }
    };
    Selector {
        protocol: unless_empty(message.protocol),
        service: unless_empty(message.service),
        version: message.version.map(Into::into),
        group: message.group.map(Into::into),
        healthy: None,
        available_only: message.available_only,
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
