//! What a shared registry has in etcd, and how it is read: of an instance a `mesh.registry.v1.Instance`, below the lease of
//! whoever registered it; of a session its owner and its time, below the lease that all its instances are below; of an
//! interface its description as the embedded store has it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use api::mesh::registry::v1 as pb;
use bytes::Bytes;
use prost::Message;

use super::keys::{Key, Keys};
use crate::adapters::etcd::client::{Client, Failure};
use crate::adapters::etcd::messages::{KeyValue, PutRequest, RangeRequest};
use crate::convert::instance_from;
use crate::interfaces::{Interface, InterfaceKey};
use crate::limits::Limits;
use crate::model::{Instance, InstanceRef};
use crate::sessions::SessionId;

/// An instance as etcd has it.
#[derive(Clone, Debug)]
pub(super) struct Record {
    pub(super) instance: Instance,
    /// Its lease; 0 for none.
    pub(super) lease: i64,
    /// The revision of its key.
    pub(super) revision: i64,
}

/// A session as etcd has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Session {
    pub(super) owner: Arc<str>,
    pub(super) ttl: Duration,
    /// The lease that it and its instances are below.
    pub(super) lease: i64,
    /// The revision of its key, which is written once.
    pub(super) revision: i64,
}

/// The value of a session's key.
#[derive(Clone, PartialEq, prost::Message)]
struct SessionValue {
    #[prost(string, tag = "1")]
    owner: String,
    #[prost(uint64, tag = "2")]
    ttl_ms: u64,
}

/// What one key says.
#[derive(Debug)]
pub(super) enum Said {
    Instance(InstanceRef, Record),
    Session(SessionId, Session),
    Interface(Box<Interface>),
    Document(Arc<str>, Bytes),
}

/// Reads what a key says; an error says what is wrong with it.
pub(super) fn said(key: Key, kv: &KeyValue, limits: &Limits) -> Result<Said, String> {
    Ok(match key {
        Key::Instance(reference) => {
            let record = record(&reference, kv, limits)?;
            Said::Instance(reference, record)
        }
        Key::Session(id) => Said::Session(id, session(kv)?),
        Key::Interface(key) => Said::Interface(Box::new(interface(key, kv, limits)?)),
        Key::Document(name) => Said::Document(name, Bytes::copy_from_slice(&kv.value)),
    })
}

fn record(reference: &InstanceRef, kv: &KeyValue, limits: &Limits) -> Result<Record, String> {
    let message = pb::Instance::decode(kv.value.as_slice()).map_err(|e| e.to_string())?;
    let mut instance = instance_from(message).map_err(|e| e.to_string())?;
    if instance.reference() != *reference {
        return Err(format!("is the record of {:?}", instance.reference()));
    }
    limits.check(&instance).map_err(|e| e.to_string())?;
    instance.revision = self::revision(kv.mod_revision, 0);
    Ok(Record {
        instance,
        lease: kv.lease,
        revision: kv.mod_revision,
    })
}

fn session(kv: &KeyValue) -> Result<Session, String> {
    let value = SessionValue::decode(kv.value.as_slice()).map_err(|e| e.to_string())?;
    if kv.lease == 0 {
        return Err("is a session without a lease".to_owned());
    }
    Ok(Session {
        owner: value.owner.into(),
        ttl: Duration::from_millis(value.ttl_ms),
        lease: kv.lease,
        revision: kv.mod_revision,
    })
}

fn interface(key: InterfaceKey, kv: &KeyValue, limits: &Limits) -> Result<Interface, String> {
    limits.check_interface(&key).map_err(|e| e.to_string())?;
    Interface::unpack(key, &kv.value, limits.interface_bytes)
}

/// The value of a session's key.
pub(super) fn session_value(owner: &str, ttl: Duration) -> Vec<u8> {
    let value = SessionValue {
        owner: owner.to_owned(),
        ttl_ms: u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX),
    };
    value.encode_to_vec()
}

/// The registry's revision after a step of etcd's: its changes come one by one.
pub(super) fn revision(of_store: i64, step: u64) -> u64 {
    const STEPS_MAX: u64 = 1024;
    u64::try_from(of_store).unwrap_or_default() * STEPS_MAX + step.min(STEPS_MAX - 1)
}

/// Everything at one moment.
pub(super) struct Picture {
    /// Names the data: another one when the servers have lost it.
    pub(super) store: String,
    pub(super) revision: i64,
    pub(super) records: HashMap<InstanceRef, Record>,
    pub(super) sessions: Vec<(SessionId, Session)>,
    pub(super) interfaces: Vec<Interface>,
    pub(super) documents: Vec<(Arc<str>, Bytes)>,
}

/// Reads everything.
pub(super) async fn read(
    client: &Client,
    keys: &Keys,
    limits: &Limits,
) -> Result<Picture, Failure> {
    let mut picture = Picture {
        store: name(client, keys).await?.0,
        revision: 0,
        records: HashMap::new(),
        sessions: Vec::new(),
        interfaces: Vec::new(),
        documents: Vec::new(),
    };
    for section in keys.sections() {
        let mut key = section.first;
        loop {
            let request = RangeRequest {
                key,
                range_end: section.end.clone(),
                limit: section.page,
                // All pages are of one moment.
                revision: picture.revision,
                keys_only: false,
            };
            let page = client.range(request).await?;
            if picture.revision == 0 {
                picture.revision = page.header.map_or(0, |header| header.revision);
            }
            for kv in &page.kvs {
                let Some(key) = keys.read(&kv.key) else {
                    continue;
                };
                match said(key.clone(), kv, limits) {
                    Ok(Said::Instance(reference, record)) => {
                        picture.records.insert(reference, record);
                    }
                    Ok(Said::Session(id, session)) => picture.sessions.push((id, session)),
                    Ok(Said::Interface(interface)) => picture.interfaces.push(*interface),
                    Ok(Said::Document(name, value)) => picture.documents.push((name, value)),
                    Err(reason) => skipped(&key, &reason),
                }
            }
            match page.kvs.last() {
                Some(last) if page.more => {
                    key = last.key.clone();
                    key.push(0);
                }
                _ => break,
            }
        }
    }
    Ok(picture)
}

/// Says that a record is passed over.
pub(super) fn skipped(key: &Key, reason: &str) {
    tracing::warn!(?key, reason, "a record in etcd is skipped");
}

/// One session.
pub(super) async fn find_session(
    client: &Client,
    keys: &Keys,
    id: SessionId,
) -> Result<Option<Session>, Failure> {
    let request = RangeRequest {
        key: keys.name(&Key::Session(id)),
        ..RangeRequest::default()
    };
    let answer = client.range(request).await?;
    // One that cannot be read is none.
    Ok(answer.kvs.first().and_then(|kv| session(kv).ok()))
}

fn new_name(keys: &Keys) -> PutRequest {
    PutRequest {
        key: keys.store(),
        value: format!("{:016x}", fastrand::u64(1..)).into_bytes(),
        lease: 0,
    }
}

/// Gives the data another name.
pub(super) async fn rename(client: &Client, keys: &Keys) -> Result<(), Failure> {
    client.put(new_name(keys)).await
}

/// The name of the data, with that of the servers, and their revision; the data get a name here if they have none.
pub(super) async fn name(client: &Client, keys: &Keys) -> Result<(String, i64), Failure> {
    client.put_at(new_name(keys), 0).await?;
    let request = RangeRequest {
        key: keys.store(),
        ..RangeRequest::default()
    };
    let answer = client.range(request).await?;
    let header = answer.header.unwrap_or_default();
    let named = answer.kvs.first();
    let named = named.map(|kv| String::from_utf8_lossy(&kv.value));
    let name = format!("{:016x}-{}", header.cluster_id, named.unwrap_or_default());
    Ok((name, header.revision))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::ServiceKey;

    proptest! {
        #[test]
        fn no_bytes_do_harm(value: Vec<u8>, lease: i64, mod_revision: i64) {
            let kv = KeyValue { key: Vec::new(), mod_revision, value, lease };
            let interface = InterfaceKey {
                service: ServiceKey::new("dubbo", "s"),
                version: "".into(),
                group: "".into(),
            };
            let id = "00112233445566778899aabbccddeeff".parse().expect("an id");
            for key in [
                Key::Instance(InstanceRef::new("bolt", "s", "i")),
                Key::Session(id),
                Key::Interface(interface),
            ] {
                let _ = said(key, &kv, &Limits::default());
            }
        }
    }
}
