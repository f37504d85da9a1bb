//! Between the model and `mesh.registry.v1`, which is both the gRPC wire and the form of a record on disk.

use std::sync::Arc;
use std::time::Duration;

use api::mesh::registry::v1 as pb;
use base::FieldError;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};

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

/// Appends `instance_to` in its encoded form, without making it.
pub(crate) fn encode_instance(instance: &Instance, out: &mut Vec<u8>) {
    let service = &instance.service;
    let namespace = match service.namespace.is_default() {
        true => "",
        false => service.namespace.as_str(),
    };
    put_text(1, &service.protocol, out);
    put_text(2, &service.name, out);
    put_text(3, &instance.id, out);
    put_text(4, &instance.version, out);
    put_text(5, &instance.group, out);
    put_text(6, &instance.address, out);
    put_number(7, u64::from(instance.port), out);
    put_number(8, u64::from(instance.weight), out);
    put_number(9, u64::from(instance.healthy), out);
    for (key, value) in instance.metadata.iter() {
        let length = text_len(1, key) + text_len(2, value);
        encode_key(10, WireType::LengthDelimited, out);
        encode_varint(length as u64, out);
        put_text(1, key, out);
        put_text(2, value, out);
    }
    put_text(11, &instance.origin, out);
    put_number(12, ttl_ms(instance.ttl), out);
    put_number(13, instance.revision, out);
    put_text(14, namespace, out);
}

/// Changes as the field `changes` of a `WatchResponse`.
pub(crate) fn encode_changes(changes: &[Change]) -> Vec<u8> {
    let mut out = Vec::new();
    let (mut change_bytes, mut instance_bytes) = (Vec::new(), Vec::new());
    for change in changes {
        change_bytes.clear();
        instance_bytes.clear();
        encode_instance(&change.instance, &mut instance_bytes);
        put_number(1, kind_to(change.kind) as u64, &mut change_bytes);
        put_number(2, change.revision, &mut change_bytes);
        put_bytes(3, &instance_bytes, &mut change_bytes);
        put_bytes(5, &change_bytes, &mut out);
    }
    out
}

/// Appends a text unless it is empty.
pub(crate) fn put_text(tag: u32, text: &str, out: &mut Vec<u8>) {
    if !text.is_empty() {
        put_bytes(tag, text.as_bytes(), out);
    }
}

fn put_bytes(tag: u32, bytes: &[u8], out: &mut Vec<u8>) {
    encode_key(tag, WireType::LengthDelimited, out);
    encode_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

fn text_len(tag: u32, text: &str) -> usize {
    match text.len() {
        0 => 0,
        length => key_len(tag) + encoded_len_varint(length as u64) + length,
    }
}

/// A number is written even if it is 0: of some fields that is another thing than none, and of the others the same.
pub(crate) fn put_number(tag: u32, number: u64, out: &mut Vec<u8>) {
    encode_key(tag, WireType::Varint, out);
    encode_varint(number, out);
}

fn kind_to(kind: ChangeKind) -> pb::change::Kind {
    match kind {
        ChangeKind::Put => pb::change::Kind::Put,
        ChangeKind::Deregistered => pb::change::Kind::Deregistered,
        ChangeKind::Lapsed => pb::change::Kind::Lapsed,
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message;

    use super::*;

    proptest! {
        #[test]
        fn what_is_encoded_reads_as_the_messages(
            words in proptest::collection::vec(".{0,200}", 8),
            metadata in proptest::collection::btree_map(".{0,9}", ".{0,200}", 0..5),
            (port, weight, healthy, ttl, revision)
                in any::<(u16, u32, bool, Option<u16>, u64)>(),
        ) {
            let [protocol, name, id, version, group, address, origin, namespace] =
                words.as_slice() else { panic!("eight words") };
            let instance = Instance {
                service: ServiceKey::within(Namespace::new(namespace), protocol, name),
                id: id.as_str().into(),
                version: version.as_str().into(),
                group: group.as_str().into(),
                address: address.as_str().into(),
                port,
                weight,
                healthy,
                metadata: metadata.into_iter().collect(),
                origin: origin.as_str().into(),
                ttl: ttl.map(|ms| Duration::from_millis(ms.into())),
                revision,
            };
            let mut encoded = Vec::new();
            encode_instance(&instance, &mut encoded);
            prop_assert_eq!(pb::Instance::decode(&*encoded), Ok(instance_to(&instance)));
            let kinds = [ChangeKind::Put, ChangeKind::Deregistered, ChangeKind::Lapsed];
            let instance = Arc::new(instance);
            let changes = kinds.map(|kind| {
                let instance = instance.clone();
                Change { kind, revision, instance, previous: None }
            });
            let messages = changes.each_ref().map(|change| pb::Change {
                kind: kind_to(change.kind).into(),
                revision,
                instance: Some(instance_to(&instance)),
            });
            let read = pb::WatchResponse::decode(&*encode_changes(&changes));
            prop_assert_eq!(read.map(|read| read.changes), Ok(messages.to_vec()));
        }
    }
}
