//! Configurations: as much of Nacos' configuration centre as frameworks need of a registry. Metadata of Dubbo's applications are
//! kept; who listens is told.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::broadcast;

use super::{md5, now_ms};

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
}

#[derive(Default)]
struct State {
    contents: BTreeMap<Key, Content>,
    bytes: usize,
}

/// All of them.
pub(super) struct Configs {
    state: Mutex<State>,
    changes: broadcast::Sender<Key>,
}

impl Default for Configs {
    fn default() -> Configs {
        Configs {
            state: Mutex::default(),
            changes: broadcast::Sender::new(BEHIND),
        }
    }
}

impl Configs {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What changes from now on.
    pub(super) fn changes(&self) -> broadcast::Receiver<Key> {
        self.changes.subscribe()
    }

    pub(super) fn get(&self, key: &Key) -> Option<Content> {
        self.state().contents.get(key).cloned()
    }

    /// A configuration of this name, whatever its group.
    pub(super) fn find(&self, data_id: &str) -> Option<Content> {
        let state = self.state();
        let mut all = state.contents.iter();
        let found = all.find(|(key, _)| key.data_id == data_id);
        found.map(|(_, content)| content.clone())
    }

    /// Whether a listener's content is not the present one; one that is not there has an empty MD5.
    pub(super) fn differs(&self, key: &Key, md5: &str) -> bool {
        let state = self.state();
        let known = state.contents.get(key);
        known.map_or("", |content| &content.md5) != md5
    }

    /// Puts a configuration in; with `expected`, only in the place of what has this MD5.
    pub(super) fn publish(
        &self,
        key: &Key,
        text: &str,
        kind: &str,
        expected: Option<&str>,
    ) -> Result<(), Refused> {
        let size = key.tenant.len() + key.group.len() + key.data_id.len();
        if key.data_id.is_empty() || size > KEY_BYTES {
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
        let content = Content {
            text: text.into(),
            md5: md5::hex(text).into(),
            kind: if kind.is_empty() { "text" } else { kind }.into(),
            modified_ms: now_ms(),
        };
        let mut state = self.state();
        let known = state.contents.get(key);
        if let Some(expected) = expected
            && known.map_or("", |known| &known.md5) != expected
        {
            return Err(Refused::Changed);
        }
        let before = known.map_or(0, |known| known.text.len());
        let bytes = state.bytes - before + text.len();
        if bytes > ALL_BYTES || (known.is_none() && state.contents.len() >= KEPT) {
            return Err(Refused::TooMany);
        }
        state.bytes = bytes;
        state.contents.insert(key.clone(), content);
        drop(state);
        // An error says that nobody listens.
        let _ = self.changes.send(key.clone());
        Ok(())
    }

    pub(super) fn remove(&self, key: &Key) {
        let mut state = self.state();
        if let Some(gone) = state.contents.remove(key) {
            state.bytes -= gone.text.len();
            drop(state);
            let _ = self.changes.send(key.clone());
        }
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
    use proptest::prelude::*;

    #[test]
    fn a_publication_that_expects_something_else_changes_nothing() {
        let configs = Configs::default();
        let key = Key::new("public", "g", "d");
        assert_eq!(configs.publish(&key, "1", "", Some("")), Ok(()));
        assert!(configs.differs(&Key::new("", "g", "d"), ""));
        assert_eq!(
            configs.publish(&key, "2", "", Some("")),
            Err(Refused::Changed)
        );
        let md5 = configs.get(&key).map(|content| content.md5);
        let md5 = md5.as_deref().unwrap_or_default();
        assert_eq!(md5, "c4ca4238a0b923820dcc509a6f75849b");
        assert!(!configs.differs(&key, md5));
        assert_eq!(configs.publish(&key, "2", "", Some(md5)), Ok(()));
        configs.remove(&key);
        assert!(configs.get(&key).is_none());
        assert_eq!(configs.state().bytes, 0);
        assert_eq!(
            configs.publish(&key, &"x".repeat(CONTENT_BYTES + 1), "", None),
            Err(Refused::TooLarge)
        );
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
