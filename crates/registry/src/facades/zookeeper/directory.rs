//! What the hub holds as nodes in the layouts of Dubbo, SOFARPC and Spring Cloud.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::tree::{Owner, Tree, is_path};
use crate::adapters::zookeeper::{self as layout, Config};
use crate::model::{Instance, ServiceKey};
use crate::naming::dubbo_application::entry::Served;
use crate::services::Services;

/// Which nodes say what the hub holds.
pub(super) struct Directory {
    config: Config,
    shown: HashMap<ServiceKey, BTreeMap<String, Vec<u8>>>,
    /// Instances that nodes of applications say already: by what they are, and how many nodes do.
    said: HashMap<ServiceKey, HashMap<String, usize>>,
    /// Ids that applications' nodes here registered, until the hub has them no longer.
    ids: HashMap<ServiceKey, HashSet<Arc<str>>>,
}

impl Directory {
    pub(super) fn new(config: Config) -> Directory {
        Directory {
            config,
            shown: HashMap::new(),
            said: HashMap::new(),
            ids: HashMap::new(),
        }
    }

    /// The layouts.
    pub(super) fn config(&self) -> &Config {
        &self.config
    }

    /// Shows all services.
    pub(super) fn begin(&mut self, tree: &mut Tree, services: &Services) {
        let applications = [&self.config.sofarpc_root, &self.config.spring_root];
        for root in self.config.dubbo_roots.iter().chain(applications) {
            // They are there from the second time on.
            let _ = tree.create(root, &[], Owner::Persistent, false);
        }
        let known = self.shown.keys().cloned();
        let keys: HashSet<ServiceKey> = known
            .chain(services.iter().map(|s| s.key.clone()))
            .collect();
        for key in keys {
            self.update(tree, &key, services);
        }
    }

    /// Whether a node says an instance at Dubbo's application level. Consumers do not look there: the instance has to be
    /// shown at the interface level.
    fn is_application_level(&self, path: &str, instance: &Instance) -> bool {
        let below = path.strip_prefix(&self.config.spring_root);
        below.is_some_and(|below| below.starts_with('/')) && Served::by(instance).is_some()
    }

    /// A node of an application says this instance from now on.
    pub(super) fn say(&mut self, path: &str, instance: &Instance) {
        if self.is_application_level(path, instance) {
            return;
        }
        let key = &instance.service;
        let said = self.said.entry(key.clone()).or_default();
        *said.entry(instance.default_id()).or_default() += 1;
        let ids = self.ids.entry(key.clone()).or_default();
        ids.insert(instance.id.clone());
    }

    /// It does no longer.
    pub(super) fn unsay(&mut self, path: &str, instance: &Instance) {
        if self.is_application_level(path, instance) {
            return;
        }
        let Some(said) = self.said.get_mut(&instance.service) else {
            return;
        };
        let id = instance.default_id();
        if let Some(count) = said.get_mut(&id) {
            *count -= 1;
            if *count > 0 {
                return;
            }
        }
        said.remove(&id);
        if said.is_empty() {
            self.said.remove(&instance.service);
        }
    }

    /// Shows a service as the hub has it.
    pub(super) fn update(&mut self, tree: &mut Tree, key: &ServiceKey, services: &Services) {
        // ZooKeeper's layouts know no namespaces.
        let service = services.get(key).filter(|_| key.namespace.is_default());
        let instances = service
            .map(|service| &service.instances[..])
            .unwrap_or_default();
        let mut wanted = BTreeMap::new();
        let (said, ids) = (self.said.get(key), self.ids.get(key));
        for instance in instances {
            let is_said = said.is_some_and(|said| said.contains_key(&instance.default_id()));
            // What was registered here and whose node is gone is about to go.
            if is_said || ids.is_some_and(|ids| ids.contains(&instance.id)) {
                continue;
            }
            // What no framework on ZooKeeper knows is not there.
            if let Ok((path, data)) = layout::node(&self.config, &instance.id, instance)
                && is_path(&path)
            {
                wanted.insert(path, data);
            }
        }
        if said.is_none() && instances.is_empty() {
            self.ids.remove(key);
        }
        let before = self.shown.remove(key).unwrap_or_default();
        // New ones first: at no time is there none.
        for (path, data) in &wanted {
            match before.get(path) {
                Some(known) if known == data => {}
                Some(_) if is_shown(tree, path) => {
                    let _ = tree.set_data(path, data, -1);
                }
                Some(_) => {}
                None => {
                    // A node of an application may be there, which says the same.
                    let _ = tree
                        .create_parents(path)
                        .and_then(|()| tree.create(path, data, Owner::Directory, false));
                }
            }
        }
        for path in before.keys().filter(|path| !wanted.contains_key(*path)) {
            if is_shown(tree, path) {
                let _ = tree.delete(path, -1);
            }
        }
        if !wanted.is_empty() {
            self.shown.insert(key.clone(), wanted);
        }
    }
}

fn is_shown(tree: &Tree, path: &str) -> bool {
    tree.get(path)
        .is_some_and(|node| node.owner == Owner::Directory)
}
