//! What a registry's own applications serve at Dubbo's application level: what else serves the same has to be said there too.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::sync::Arc;

use tokio::sync::watch;

use crate::model::Instance;
use crate::naming::dubbo_application::entry::{APPLICATION, Served};
use crate::naming::dubbo_application::served::{Applications, beside};

/// All that is served at that level, and by which applications; `None` until all was read.
pub(super) type ServedThere = Option<Arc<HashMap<Served, BTreeSet<Arc<str>>>>>;

/// Beside which application an instance has to be said at that level, if it has to.
pub(super) fn application_beside<'a>(
    served: &'a ServedThere,
    instance: &Instance,
) -> Option<&'a Arc<str>> {
    let applications = served.as_ref()?.get(&Served::by(instance)?)?;
    beside(applications, instance)
}

/// The folders of a registry.
pub(super) struct ApplicationLevel<K> {
    folders: Applications<K, Arc<str>>,
    tell: watch::Sender<ServedThere>,
}

impl<K: Clone + Eq + Hash> ApplicationLevel<K> {
    pub(super) fn new(tell: watch::Sender<ServedThere>) -> ApplicationLevel<K> {
        ApplicationLevel {
            folders: Applications::default(),
            tell,
        }
    }

    /// A folder's applications are these now; `is_all`: every folder was read.
    pub(super) fn set(&mut self, folder: &K, instances: &[Instance], is_all: bool) {
        let served = |instance: &Instance| {
            let application = instance.metadata.get(APPLICATION).unwrap_or_default();
            Some((Served::by(instance)?, application.into()))
        };
        let now = instances.iter().filter_map(served).collect();
        if self.folders.put(folder, now) && is_all {
            self.tell();
        }
    }

    /// Tells those who write.
    pub(super) fn tell(&self) {
        self.tell.send_replace(Some(Arc::new(self.folders.all())));
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
        let is_there =
            |told: &ServedThere, name: &str| application_beside(told, &instance(name)).is_some();
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
        assert!(application_beside(&now, &other).is_none());
    }

    #[test]
    fn an_instance_is_beside_its_own_application_if_that_is_there() {
        let instance = |application: &str| {
            let mut instance = Instance::new(ServiceKey::new("dubbo", "a"), "10.0.0.1", 1);
            instance.metadata = [(APPLICATION, application)].into_iter().collect();
            instance
        };
        let (tell, told) = watch::channel(None);
        let mut level = ApplicationLevel::new(tell);
        level.tell();
        level.set(&1, &[instance("shop"), instance("desk")], true);
        let beside = |own: &str| {
            let told = told.borrow();
            application_beside(&told, &instance(own)).cloned()
        };
        assert_eq!(beside("shop").as_deref(), Some("shop"));
        assert_eq!(beside("elsewhere").as_deref(), Some("desk"));
        level.set(&1, &[instance("shop")], true);
        assert_eq!(beside("elsewhere").as_deref(), Some("shop"));
    }
}
