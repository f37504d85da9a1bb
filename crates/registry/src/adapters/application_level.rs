//! What a registry's own applications serve at Dubbo's application level: what else serves the same has to be said there too.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::sync::Arc;

use tokio::sync::watch;

use crate::model::Instance;
use crate::naming::dubbo_application::entry::Served;

/// All that is served at that level; `None` until all was read.
pub(super) type ServedThere = Option<Arc<HashSet<Served>>>;

/// Whether an instance has to be said at that level.
pub(super) fn has_to_be_there(served: &ServedThere, instance: &Instance) -> bool {
    served
        .as_ref()
        .is_some_and(|served| Served::by(instance).is_some_and(|by_it| served.contains(&by_it)))
}

/// The folders of a registry.
pub(super) struct ApplicationLevel<K> {
    folders: HashMap<K, HashSet<Served>>,
    /// In how many folders.
    counts: HashMap<Served, usize>,
    tell: watch::Sender<ServedThere>,
}

impl<K: Clone + Eq + Hash> ApplicationLevel<K> {
    pub(super) fn new(tell: watch::Sender<ServedThere>) -> ApplicationLevel<K> {
        ApplicationLevel {
            folders: HashMap::new(),
            counts: HashMap::new(),
            tell,
        }
    }

    /// A folder's applications are these now; `is_all`: every folder was read.
    pub(super) fn set(&mut self, folder: &K, instances: &[Instance], is_all: bool) {
        let now: HashSet<Served> = instances.iter().filter_map(Served::by).collect();
        let before = self.folders.remove(folder).unwrap_or_default();
        let known = self.counts.len();
        for served in now.difference(&before) {
            *self.counts.entry(served.clone()).or_default() += 1;
        }
        let mut is_other = self.counts.len() != known;
        for served in before.difference(&now) {
            if let Some(count) = self.counts.get_mut(served) {
                *count -= 1;
                if *count == 0 {
                    self.counts.remove(served);
                    is_other = true;
                }
            }
        }
        if !now.is_empty() {
            self.folders.insert(folder.clone(), now);
        }
        if is_all && is_other {
            self.tell();
        }
    }

    /// Tells those who write.
    pub(super) fn tell(&self) {
        let all = self.counts.keys().cloned().collect();
        self.tell.send_replace(Some(Arc::new(all)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ServiceKey;

    #[test]
    fn who_writes_is_told_what_all_folders_serve_once_all_were_read() {
        let instance = |name: &str| Instance::new(ServiceKey::new("dubbo", name), "10.0.0.1", 1);
        let (tell, mut told) = watch::channel(None);
        let mut level = ApplicationLevel::new(tell);
        let is_there = |told: &ServedThere, name: &str| has_to_be_there(told, &instance(name));
        level.set(&1, &[instance("a"), instance("b")], false);
        level.set(&2, &[instance("b")], false);
        assert!(told.borrow().is_none() && !is_there(&told.borrow(), "a"));
        level.tell();
        assert!(is_there(&told.borrow_and_update(), "a"));
        level.set(&1, &[], true);
        assert!(told.has_changed().unwrap_or_default());
        let now = told.borrow_and_update().clone();
        assert!(!is_there(&now, "a") && is_there(&now, "b"));
        level.set(&1, &[instance("b")], true);
        assert!(!told.has_changed().unwrap_or_default());
        let mut other = instance("b");
        other.version = "2".into();
        assert!(!has_to_be_there(&now, &other));
    }
}
