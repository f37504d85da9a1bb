//! The names of keys below the prefix: `store`, the name of the data; `instances/…`; `sessions/…`; `interfaces/…`; `documents/…`; and
//! `deregistered`, which is put in every transaction that takes instances out on request, so that whoever watches tells that
//! from the end of a lease.

use std::sync::Arc;

use super::EtcdStore;
use crate::interfaces::InterfaceKey;
use crate::model::InstanceRef;
use crate::sessions::SessionId;
use crate::store::{interface_key, key_of, reference_of};

const INSTANCES: &str = "instances";
const SESSIONS: &str = "sessions";
const INTERFACES: &str = "interfaces";
const DOCUMENTS: &str = "documents";

/// What a key is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Key {
    Instance(InstanceRef),
    Session(SessionId),
    Interface(InterfaceKey),
    Document(Arc<str>),
}

/// The names of keys.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    prefix: String,
}

impl Keys {
    pub(super) fn new(store: &EtcdStore) -> Keys {
        Keys {
            prefix: store.prefix.clone(),
        }
    }

    pub(super) fn name(&self, key: &Key) -> Vec<u8> {
        let (section, name) = match key {
            Key::Instance(reference) => (INSTANCES, key_of(reference)),
            Key::Session(id) => (SESSIONS, id.to_string()),
            Key::Interface(key) => (INTERFACES, interface_key(key)),
            Key::Document(name) => (DOCUMENTS, name.to_string()),
        };
        format!("{}/{section}/{name}", self.prefix).into_bytes()
    }

    pub(super) fn read(&self, name: &[u8]) -> Option<Key> {
        let name = std::str::from_utf8(name).ok()?;
        let name = name.strip_prefix(&self.prefix)?.strip_prefix('/')?;
        let (section, name) = name.split_once('/')?;
        match section {
            INSTANCES => reference_of(name).map(Key::Instance),
            SESSIONS => name.parse().ok().map(Key::Session),
            INTERFACES => InterfaceKey::from_words(name, '\0').map(Key::Interface),
            DOCUMENTS => Some(Key::Document(name.into())),
            _ => None,
        }
    }

    pub(super) fn store(&self) -> Vec<u8> {
        format!("{}/store", self.prefix).into_bytes()
    }

    pub(super) fn deregistered(&self) -> Vec<u8> {
        format!("{}/deregistered", self.prefix).into_bytes()
    }

    /// All keys.
    pub(super) fn all(&self) -> Range {
        Range::below(&self.prefix, 2000)
    }

    /// The keys of each kind.
    pub(super) fn sections(&self) -> [Range; 4] {
        let section = |name, page| Range::below(&format!("{}/{name}", self.prefix), page);
        [
            section(SESSIONS, 2000),
            section(INSTANCES, 2000),
            // A description may have hundreds of kilobytes, a document more than a megabyte.
            section(INTERFACES, 50),
            section(DOCUMENTS, 20),
        ]
    }
}

/// All keys below one.
pub(super) struct Range {
    pub(super) first: Vec<u8>,
    pub(super) end: Vec<u8>,
    /// How many of them one answer may have.
    pub(super) page: i64,
}

impl Range {
    fn below(parent: &str, page: i64) -> Range {
        Range {
            first: format!("{parent}/").into_bytes(),
            // 0 is the character after the slash.
            end: format!("{parent}0").into_bytes(),
            page,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::ServiceKey;

    fn keys() -> Keys {
        Keys::new(&EtcdStore::parse("etcd://a:1/p").expect("an address"))
    }

    #[test]
    fn a_key_is_read_as_it_is_written() {
        let service = ServiceKey::new("dubbo", "com/foo.Bar");
        for key in [
            Key::Instance(InstanceRef::new("bolt", "s/x", "10.0.0.1:80")),
            Key::Session("00112233445566778899aabbccddeeff".parse().expect("an id")),
            Key::Interface(InterfaceKey {
                service,
                version: "1.0".into(),
                group: "".into(),
            }),
            Key::Document("nacos/a\0b".into()),
        ] {
            assert_eq!(keys().read(&keys().name(&key)), Some(key));
        }
        for none in ["/p/store", "/p/deregistered", "/p/other/x", "/q/sessions/x"] {
            assert_eq!(keys().read(none.as_bytes()), None, "{none}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_do_harm(bytes: Vec<u8>, text: String) {
            let _ = keys().read(&bytes);
            for section in [INSTANCES, SESSIONS, INTERFACES, DOCUMENTS] {
                let _ = keys().read(format!("/p/{section}/{text}").as_bytes());
            }
        }
    }
}
