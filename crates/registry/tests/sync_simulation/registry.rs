//! A registry as it behaves: entries with leases, two ways to name them, and clients that come and go.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use registry::{Instance, ORIGIN_MARK, ServiceKey};

/// A lease lasts this long without its owner.
pub(crate) const LEASE: Duration = Duration::from_secs(12);

/// Who keeps an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    App(usize),
    Hub { hub: usize, session: u64 },
}

#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) instance: Instance,
    pub(crate) owner: Owner,
    pub(crate) expires: Instant,
    /// When its owner made it what it is.
    pub(crate) dirty: Instant,
}

/// Service, version, address and port: what makes an instance of the model.
pub(crate) type Place = (String, u16);

pub(crate) fn place(instance: &Instance) -> Place {
    (instance.service.name.to_string(), instance.port)
}

#[derive(Debug)]
pub(crate) struct Registry {
    pub(crate) name: Arc<str>,
    pub(crate) up: bool,
    /// Entries are named by their content, as in ZooKeeper, and belong to sessions; else by their ids, as in Eureka.
    pub(crate) by_content: bool,
    /// It tells what was taken out.
    pub(crate) certain: bool,
    pub(crate) entries: BTreeMap<String, Entry>,
    pub(crate) version: u64,
}

impl Registry {
    pub(crate) fn new(name: &str, by_content: bool, certain: bool) -> Registry {
        Registry {
            name: name.into(),
            up: true,
            by_content,
            certain,
            entries: BTreeMap::new(),
            version: 1,
        }
    }

    pub(crate) fn entry_name(&self, id: &str, instance: &Instance) -> String {
        if !self.by_content {
            return id.to_owned();
        }
        let Instance {
            port,
            weight,
            healthy,
            metadata,
            ..
        } = instance;
        let name = &instance.service.name;
        let mark = metadata.get(ORIGIN_MARK).unwrap_or("-");
        let zone = metadata.get("zone").unwrap_or("-");
        format!("{name}:{port}?{weight}&{healthy}&{mark}&{zone}")
    }

    pub(crate) fn put(&mut self, name: String, instance: Instance, owner: Owner, now: Instant) {
        let known = self.entries.get(&name);
        if known.is_none_or(|known| !known.instance.same_content(&instance)) {
            self.version += 1;
        }
        let expires = now + LEASE;
        self.entries.insert(
            name,
            Entry {
                instance,
                owner,
                expires,
                dirty: now,
            },
        );
    }

    pub(crate) fn remove(&mut self, name: &str) -> Option<Entry> {
        let entry = self.entries.remove(name)?;
        self.version += 1;
        Some(entry)
    }

    pub(crate) fn holds(&self, place: &Place) -> bool {
        self.entries
            .values()
            .any(|e| self::place(&e.instance) == *place)
    }

    /// What applications put there.
    pub(crate) fn own_places(&self) -> impl Iterator<Item = Place> {
        let entries = self.entries.values();
        let own = entries.filter(|entry| matches!(entry.owner, Owner::App(_)));
        own.map(|entry| place(&entry.instance))
    }

    /// One list a service.
    pub(crate) fn lists(&self) -> BTreeMap<String, Vec<Instance>> {
        let mut lists: BTreeMap<String, Vec<Instance>> = BTreeMap::new();
        for (name, entry) in &self.entries {
            let mut instance = entry.instance.clone();
            // Only some registries have ids.
            instance.id = if self.by_content {
                "".into()
            } else {
                name.as_str().into()
            };
            let list = lists.entry(instance.service.name.to_string());
            list.or_default().push(instance);
        }
        lists
    }
}

/// An application's instance, or what a registry makes of it.
pub(crate) fn instance(service: &str, port: u16) -> Instance {
    Instance {
        ttl: None,
        ..Instance::new(ServiceKey::new("dubbo", service), "10.0.0.1", port)
    }
}
