//! What faces of the registry keep beside instances, each thing by a name. The registry does not look into it.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;
use tokio::sync::broadcast;

/// Changes that a follower may be behind.
const BEHIND: usize = 4096;

type Known = BTreeMap<Arc<str>, Bytes>;

/// All of them.
#[derive(Debug)]
pub(crate) struct Documents {
    known: RwLock<Known>,
    changes: broadcast::Sender<Arc<str>>,
}

impl Documents {
    pub(crate) fn of(documents: impl IntoIterator<Item = (Arc<str>, Bytes)>) -> Documents {
        Documents {
            known: RwLock::new(documents.into_iter().collect()),
            changes: broadcast::Sender::new(BEHIND),
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Known> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Known> {
        self.known.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Names of what changes from now on.
    pub(crate) fn changes(&self) -> broadcast::Receiver<Arc<str>> {
        self.changes.subscribe()
    }

    pub(crate) fn get(&self, name: &str) -> Option<Bytes> {
        self.read().get(name).cloned()
    }

    /// The names that begin so, in order.
    pub(crate) fn names(&self, prefix: &str) -> Vec<Arc<str>> {
        let known = self.read();
        let first = (Bound::Included(prefix), Bound::Unbounded);
        let behind = known.range::<str, _>(first).map(|(name, _)| name);
        let own = behind.take_while(|name| name.starts_with(prefix));
        own.cloned().collect()
    }

    /// All of them, in order.
    pub(crate) fn all(&self) -> Vec<(Arc<str>, Bytes)> {
        let known = self.read();
        let all = known
            .iter()
            .map(|(name, value)| (name.clone(), value.clone()));
        all.collect()
    }

    pub(crate) fn put(&self, name: Arc<str>, value: Bytes) {
        self.write().insert(name.clone(), value);
        self.tell(name);
    }

    pub(crate) fn remove(&self, name: &str) {
        let gone = self.write().remove_entry(name);
        if let Some((name, _)) = gone {
            self.tell(name);
        }
    }

    /// These are all from now on.
    pub(crate) fn replace(&self, documents: impl IntoIterator<Item = (Arc<str>, Bytes)>) {
        let after: Known = documents.into_iter().collect();
        let before = std::mem::replace(&mut *self.write(), after.clone());
        let gone = before.keys().filter(|name| !after.contains_key(*name));
        let new = after
            .iter()
            .filter(|(name, value)| before.get(*name) != Some(*value));
        for name in gone.chain(new.map(|(name, _)| name)) {
            self.tell(name.clone());
        }
    }

    fn tell(&self, name: Arc<str>) {
        // An error says that nobody follows.
        let _ = self.changes.send(name);
    }
}
