//! Configurations: as much of Nacos' configuration centre as frameworks need of a registry. Metadata of Dubbo's applications are
//! kept in the registry; who listens is told.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use prost::Message;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use super::now_ms;
use crate::md5;
use crate::osr::Registry;

/// Bytes of a content.
const CONTENT_BYTES: usize = 4 << 20;
/// Bytes of all contents.
const ALL_BYTES: usize = 128 << 20;
/// Configurations.
const KEPT: usize = 100_000;
/// Bytes of a key.
const KEY_BYTES: usize = 2048;
/// Changes that a listener may be behind; one that is further behind looks at all of its own.
const BEHIND: usize = 1024;
/// Where Dubbo says which applications serve an interface. Nothing is kept there: consumers would then look only at
/// applications of this registry, and never at the interface, where those of all registries are.
const MAPPING: &str = "mapping";
/// The registry's documents that are configurations begin so.
const DOCUMENTS: &str = "nacos/configs/";
/// Stands between the parts of a key there.
const BETWEEN: &str = "\0";

/// Names a configuration.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Key {
    /// Namespace; empty for the public one, as clients write it.
    pub(super) tenant: String,
    pub(super) group: String,
    pub(super) data_id: String,
}

impl Key {
    pub(super) fn new(tenant: &str, group: &str, data_id: &str) -> Key {
        let tenant = match tenant {
            "public" => "",
            other => other,
        };
        let group = match group {
            "" => super::DEFAULT_GROUP,
            group => group,
        };
        Key {
            tenant: tenant.to_owned(),
            group: group.to_owned(),
            data_id: data_id.to_owned(),
        }
    }

    /// The name of its document in the registry.
    fn document(&self) -> String {
        let parts = [&*self.tenant, &self.group, &self.data_id];
        format!("{DOCUMENTS}{}", parts.join(BETWEEN))
    }

    fn of_document(name: &str) -> Option<Key> {
        let mut parts = name.strip_prefix(DOCUMENTS)?.split(BETWEEN);
        let key = Key {
            tenant: parts.next()?.to_owned(),
            group: parts.next()?.to_owned(),
            data_id: parts.next()?.to_owned(),
        };
        parts.next().is_none().then_some(key)
    }
}

/// A configuration.
#[derive(Clone, Debug)]
pub(super) struct Content {
    pub(super) text: Arc<str>,
    pub(super) md5: Arc<str>,
    /// `text`, `json`, …
    pub(super) kind: Arc<str>,
    pub(super) modified_ms: u64,
}

impl Content {
    /// One that nobody published.
    pub(super) fn json(text: &str) -> Content {
        Content {
            text: text.into(),
            md5: md5::hex(text).into(),
            kind: "json".into(),
            modified_ms: now_ms(),
        }
    }
}

/// Why a configuration is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    #[error("Param 'dataId' is required.")]
    Nameless,
    #[error("Param 'content' is required.")]
    Empty,
    #[error("config content size is over limit")]
    TooLarge,
    #[error("configurations are over the limit")]
    TooMany,
    #[error("Cas publish fail, server md5 may have changed.")]
    Changed,
    #[error("{0}")]
    Failed(String),
}

/// A configuration as the registry keeps it.
#[derive(Clone, PartialEq, prost::Message)]
struct Value {
    #[prost(string, tag = "1")]
    text: String,
    #[prost(string, tag = "2")]
    kind: String,
    #[prost(uint64, tag = "3")]
    modified_ms: u64,
}

/// What is known of a configuration without looking at it.
struct Known {
    md5: Arc<str>,
    bytes: usize,
}

/// All of them. They are the registry's documents.
pub(super) struct Configs {
    registry: Registry,
    known: Mutex<BTreeMap<Key, Known>>,
    /// Held by what looks at a configuration and then changes it.
    changing: tokio::sync::Mutex<()>,
    changes: broadcast::Sender<Key>,
}

impl Configs {
    /// Those that the registry has.
    pub(super) fn new(registry: Registry) -> Configs {
        let configs = Configs {
            registry,
            known: Mutex::default(),
            changing: tokio::sync::Mutex::default(),
            changes: broadcast::Sender::new(BEHIND),
        };
        configs.look_at_all();
        configs
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<Key, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows what changes them elsewhere: another pilot that has the same registry.
    pub(super) async fn follow(&self) {
        let mut changes = self.registry.documents().changes();
        self.look_at_all();
        loop {
            match changes.recv().await {
                Ok(name) => {
                    if let Some(key) = Key::of_document(&name) {
                        self.look_at(&key);
                    }
                }
                Err(RecvError::Lagged(_)) => self.look_at_all(),
                Err(RecvError::Closed) => return,
            }
        }
    }

    fn look_at_all(&self) {
        let names = self.registry.documents().names(DOCUMENTS);
        let mut keys: BTreeSet<Key> = names.iter().filter_map(|n| Key::of_document(n)).collect();
        keys.extend(self.known().keys().cloned());
        for key in keys {
            self.look_at(&key);
        }
    }

    /// Takes a configuration as the registry has it now, and tells who listens if that is another.
    fn look_at(&self, key: &Key) {
        let mut all = self.known();
        let value = self.value(key);
        let known = value.map(|value| Known {
            md5: md5::hex(&value.text).into(),
            bytes: value.text.len(),
        });
        let md5 = known.as_ref().map(|known| known.md5.clone());
        let before = match known {
            Some(known) => all.insert(key.clone(), known),
            None => all.remove(key),
        };
        if before.map(|before| before.md5) != md5 {
            // An error says that nobody listens.
            let _ = self.changes.send(key.clone());
        }
    }

    fn value(&self, key: &Key) -> Option<Value> {
        let document = self.registry.documents().get(&key.document())?;
        // One that cannot be read is none.
        Value::decode(document).ok()
    }

    /// What changes from now on.
    pub(super) fn changes(&self) -> broadcast::Receiver<Key> {
        self.changes.subscribe()
    }

    pub(super) fn get(&self, key: &Key) -> Option<Content> {
        let value = self.value(key)?;
        Some(Content {
            md5: md5::hex(&value.text).into(),
            text: value.text.into(),
            kind: value.kind.into(),
            modified_ms: value.modified_ms,
        })
    }

    /// Whether a listener's content is not the present one; one that is not there has an empty MD5.
    pub(super) fn differs(&self, key: &Key, md5: &str) -> bool {
        let known = self.known();
        known.get(key).map_or("", |known| &known.md5) != md5
    }

    /// Puts a configuration in; with `expected`, only in the place of what has this MD5.
    pub(super) async fn publish(
        &self,
        key: &Key,
        text: &str,
        kind: &str,
        expected: Option<&str>,
    ) -> Result<(), Refused> {
        let parts = [&key.tenant, &key.group, &key.data_id];
        let size: usize = parts.iter().map(|part| part.len()).sum();
        let is_clean = parts.iter().all(|part| !part.contains(BETWEEN));
        if key.data_id.is_empty() || size > KEY_BYTES || !is_clean {
            return Err(Refused::Nameless);
        }
        if text.is_empty() {
            return Err(Refused::Empty);
        }
        if text.len() > CONTENT_BYTES {
            return Err(Refused::TooLarge);
        }
        if key.group == MAPPING {
            return Ok(());
        }
        let _one_by_one = self.changing.lock().await;
        {
            let all = self.known();
            let known = all.get(key);
            if let Some(expected) = expected
                && known.map_or("", |known| &known.md5) != expected
            {
                return Err(Refused::Changed);
            }
            let others: usize = all.values().map(|known| known.bytes).sum();
            let bytes = others - known.map_or(0, |known| known.bytes) + text.len();
            if bytes > ALL_BYTES || (known.is_none() && all.len() >= KEPT) {
                return Err(Refused::TooMany);
            }
        }
        let value = Value {
            text: text.to_owned(),
            kind: if kind.is_empty() { "text" } else { kind }.to_owned(),
            modified_ms: now_ms(),
        };
        self.set(key, Some(value.encode_to_vec().into())).await
    }

    pub(super) async fn remove(&self, key: &Key) -> Result<(), Refused> {
        let _one_by_one = self.changing.lock().await;
        if !self.known().contains_key(key) {
            return Ok(());
        }
        self.set(key, None).await
    }

    async fn set(&self, key: &Key, value: Option<Bytes>) -> Result<(), Refused> {
        let set = self.registry.set_document(key.document().into(), value);
        set.await
            .map_err(|error| Refused::Failed(error.to_string()))?;
        self.look_at(key);
        Ok(())
    }
}

/// Which configurations a client of the HTTP interface listens to, each with the MD5 of what it has: fields end with `\x02`,
/// entries with `\x01`.
pub(super) fn listened(text: &str) -> Option<Vec<(Key, String)>> {
    let mut all = Vec::new();
    for entry in text.split('\u{1}').filter(|entry| !entry.is_empty()) {
        let fields: Vec<&str> = entry.split('\u{2}').collect();
        let (data_id, group, md5, tenant) = match fields.as_slice() {
            [data_id, group, md5] => (data_id, group, md5, &""),
            [data_id, group, md5, tenant] => (data_id, group, md5, tenant),
            _ => return None,
        };
        if all.len() >= super::LISTENED {
            return None;
        }
        all.push((Key::new(tenant, group, data_id), (*md5).to_owned()));
    }
    Some(all)
}

/// The same of those that have changed, as the answer.
pub(super) fn changed(keys: &[Key]) -> String {
    let mut text = String::new();
    for key in keys {
        text += &key.data_id;
        text.push('\u{2}');
        text += &key.group;
        if !key.tenant.is_empty() {
            text.push('\u{2}');
            text += &key.tenant;
        }
        text.push('\u{1}');
    }
    crate::naming::dubbo::encode(&text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::Limits;
    use proptest::prelude::*;

    #[tokio::test]
    async fn a_publication_that_expects_something_else_changes_nothing() {
        const MD5: &str = "c4ca4238a0b923820dcc509a6f75849b";
        let registry = Registry::in_memory(Limits::default()).expect("a registry");
        let configs = Configs::new(registry.clone());
        let key = Key::new("public", "g", "d");
        let publish = |text: &'static str, expected: Option<&'static str>| {
            configs.publish(&key, text, "", expected)
        };
        assert_eq!(publish("1", Some("")).await, Ok(()));
        assert!(configs.differs(&Key::new("", "g", "d"), ""));
        assert_eq!(publish("2", Some("")).await, Err(Refused::Changed));
        let md5 = configs.get(&key).map(|content| content.md5);
        assert_eq!(md5.as_deref(), Some(MD5));
        assert!(!configs.differs(&key, MD5));
        assert_eq!(publish("2", Some(MD5)).await, Ok(()));
        // The registry has it.
        let again = Configs::new(registry);
        assert_eq!(again.get(&key).map(|c| c.text), Some("2".into()));
        assert_eq!(configs.remove(&key).await, Ok(()));
        assert!(configs.get(&key).is_none() && configs.known().is_empty());
        let large = "x".repeat(CONTENT_BYTES + 1);
        let refused = configs.publish(&key, &large, "", None).await;
        assert_eq!(refused, Err(Refused::TooLarge));
        let dirty = Key::new("", "g", "a\0b");
        let refused = configs.publish(&dirty, "1", "", None).await;
        assert_eq!(refused, Err(Refused::Nameless));
    }

    #[test]
    fn listeners_are_read_as_clients_write_them() {
        let read = listened("d\u{2}g\u{2}m\u{1}e\u{2}g\u{2}\u{2}t\u{1}");
        let expected = vec![
            (Key::new("", "g", "d"), "m".to_owned()),
            (Key::new("t", "g", "e"), String::new()),
        ];
        assert_eq!(read, Some(expected));
        assert_eq!(
            changed(&[Key::new("t", "g", "e")]),
            "e%02g%02t%01".to_owned()
        );
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "[\\PC\u{1}\u{2}]*") {
            // What is refused is refused.
            let _ = listened(&text);
        }
    }
}
