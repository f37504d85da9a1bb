//! The lists that subscribers see: of each dataId what clients published here, and beside it what the hub holds under that
//! name.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use wire::sofaregistry::{Register, Scope};

use super::names::{DataInfo, SUFFIX};
use crate::model::{Instance, ServiceKey};
use crate::services::Services;
use crate::sofaregistry::DEFAULT_ZONE;

/// The version of a list of which nothing is known: clients that had it before keep what they had.
pub(super) const UNKNOWN: i64 = 1;
/// Versions count from here, in ms since 1970, as SOFARegistry's do.
const EPOCH_MS: i64 = 1_546_272_000_000;
/// Bits of a version that count within a millisecond.
const SEQUENCE_BITS: u32 = 15;

/// Data by zone.
pub(super) type Zones = BTreeMap<Arc<str>, Vec<Arc<str>>>;

/// One version of a list.
pub(super) struct Content {
    pub(super) version: i64,
    pub(super) zones: Zones,
    /// The zones as each form writes them, made when they are first needed: many subscribers get the same.
    written: [OnceLock<Bytes>; 2],
}

impl Content {
    pub(super) fn new(version: i64, zones: Zones) -> Content {
        Content {
            version,
            zones,
            written: [OnceLock::new(), OnceLock::new()],
        }
    }

    /// What a subscriber of this scope sees of it.
    pub(super) fn seen(&self, scope: Scope, zone: &str) -> Option<Zones> {
        if scope != Scope::Zone {
            return None;
        }
        let own = self.zones.get_key_value(zone);
        Some(
            own.map(|(k, v)| (k.clone(), v.clone()))
                .into_iter()
                .collect(),
        )
    }

    /// All zones, written by `write` the first time.
    pub(super) fn written(&self, form: usize, write: impl Fn(&Zones) -> Vec<u8>) -> Bytes {
        match self.written.get(form) {
            Some(cell) => cell.get_or_init(|| write(&self.zones).into()).clone(),
            None => write(&self.zones).into(),
        }
    }
}

struct Published {
    zone: Arc<str>,
    data: Vec<Arc<str>>,
}

struct List {
    /// By registId.
    publishers: BTreeMap<Arc<str>, Published>,
    /// Connections that have subscribers of it, and how many.
    readers: BTreeMap<u64, usize>,
    content: Arc<Content>,
}

/// Every list that somebody here publishes or subscribes.
pub(super) struct Lists {
    lists: HashMap<DataInfo, List>,
    by_service: HashMap<ServiceKey, HashSet<DataInfo>>,
    dirty: BTreeSet<DataInfo>,
    /// Looked at before their turn, and changed then.
    early: BTreeSet<DataInfo>,
    said: Said,
    version: i64,
    /// Whoever was here before a restart had the time to come back: what is not known is not there.
    certain: bool,
}

impl Lists {
    pub(super) fn new() -> Lists {
        Lists {
            lists: HashMap::new(),
            by_service: HashMap::new(),
            dirty: BTreeSet::new(),
            early: BTreeSet::new(),
            said: Said::default(),
            version: UNKNOWN,
            certain: false,
        }
    }

    fn list(&mut self, info: &DataInfo) -> &mut List {
        if !self.lists.contains_key(info) {
            for key in info.services() {
                self.by_service.entry(key).or_default().insert(info.clone());
            }
            self.dirty.insert(info.clone());
        }
        self.lists.entry(info.clone()).or_insert_with(|| List {
            publishers: BTreeMap::new(),
            readers: BTreeMap::new(),
            content: Arc::new(Content::new(UNKNOWN, Zones::new())),
        })
    }

    fn forget_unused(&mut self, info: &DataInfo) {
        let unused = self
            .lists
            .get(info)
            .is_some_and(|list| list.publishers.is_empty() && list.readers.is_empty());
        if !unused {
            return;
        }
        self.lists.remove(info);
        self.dirty.remove(info);
        for key in info.services() {
            if let Some(infos) = self.by_service.get_mut(&key) {
                infos.remove(info);
                if infos.is_empty() {
                    self.by_service.remove(&key);
                }
            }
        }
    }

    /// A publisher has these data from now on, of which these instances could be read.
    pub(super) fn publish(
        &mut self,
        info: &DataInfo,
        register: &Register,
        data: Vec<Arc<str>>,
        instances: &[Instance],
    ) {
        for instance in instances {
            self.said.say(instance);
        }
        let published = Published {
            zone: register.zone.as_str().into(),
            data,
        };
        let list = self.list(info);
        list.publishers
            .insert(register.regist_id.as_str().into(), published);
        self.dirty.insert(info.clone());
    }

    /// What a publisher said before is not what it says now.
    pub(super) fn unsay(&mut self, instances: &[Instance]) {
        for instance in instances {
            self.said.unsay(instance);
        }
    }

    /// It has them no longer.
    pub(super) fn unpublish(&mut self, info: &DataInfo, regist_id: &str, instances: &[Instance]) {
        self.unsay(instances);
        if let Some(list) = self.lists.get_mut(info) {
            list.publishers.remove(regist_id);
            self.dirty.insert(info.clone());
            if list.readers.is_empty() {
                self.forget_unused(info);
            }
        }
    }

    /// A connection has a subscriber more.
    pub(super) fn subscribe(&mut self, info: &DataInfo, connection: u64) {
        *self.list(info).readers.entry(connection).or_default() += 1;
    }

    /// It has one less.
    pub(super) fn unsubscribe(&mut self, info: &DataInfo, connection: u64) {
        let Some(list) = self.lists.get_mut(info) else {
            return;
        };
        if let Some(count) = list.readers.get_mut(&connection) {
            *count -= 1;
            if *count == 0 {
                list.readers.remove(&connection);
            }
        }
        self.forget_unused(info);
    }

    /// The hub has changed these services.
    pub(super) fn touch<'a>(&mut self, keys: impl Iterator<Item = &'a ServiceKey>) {
        for key in keys {
            let infos = self.by_service.get(key).into_iter().flatten();
            self.dirty.extend(infos.cloned());
        }
    }

    /// Everything may have changed.
    pub(super) fn touch_all(&mut self) {
        self.dirty.extend(self.lists.keys().cloned());
    }

    /// From now on what is not known is not there.
    pub(super) fn set_certain(&mut self) {
        self.certain = true;
        self.touch_all();
    }

    pub(super) fn is_dirty(&self) -> bool {
        !self.dirty.is_empty() || !self.early.is_empty()
    }

    /// The present content. One that nobody has seen yet is not told to be empty because nobody has looked at it.
    pub(super) fn content(&mut self, info: &DataInfo, services: &Services) -> Option<Arc<Content>> {
        let is_unknown = self.lists.get(info)?.content.version == UNKNOWN;
        if is_unknown && self.dirty.remove(info) && self.refresh(info, services) {
            self.early.insert(info.clone());
        }
        self.lists.get(info).map(|list| list.content.clone())
    }

    /// Looks at all lists that may have changed: those that have, with their versions and the connections that have to be told.
    pub(super) fn refresh_all(&mut self, services: &Services) -> Vec<(DataInfo, i64, Vec<u64>)> {
        let mut changed = std::mem::take(&mut self.early);
        for info in std::mem::take(&mut self.dirty) {
            if self.refresh(&info, services) {
                changed.insert(info);
            }
        }
        let told = changed.into_iter().filter_map(|info| {
            let list = self.lists.get(&info)?;
            let readers = list.readers.keys().copied().collect();
            Some((info, list.content.version, readers))
        });
        told.collect()
    }

    fn refresh(&mut self, info: &DataInfo, services: &Services) -> bool {
        let Some(list) = self.lists.get(info) else {
            return false;
        };
        let mut zones = Zones::new();
        for published in list.publishers.values() {
            let zone = zones.entry(published.zone.clone()).or_default();
            zone.extend(published.data.iter().cloned());
        }
        for key in info.services() {
            let of_hub = self.said.others(info, &key, services);
            if !of_hub.is_empty() {
                let zone = zones.entry(DEFAULT_ZONE.into()).or_default();
                zone.extend(of_hub);
            }
        }
        let before = &list.content;
        let becomes_certain = self.certain && before.version == UNKNOWN;
        if before.zones == zones && !becomes_certain {
            return false;
        }
        let version = self.next_version();
        if let Some(list) = self.lists.get_mut(info) {
            list.content = Arc::new(Content::new(version, zones));
        }
        true
    }

    fn next_version(&mut self) -> i64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let ms = since.map_or(0, |since| {
            i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
        });
        let of_clock = ms.saturating_sub(EPOCH_MS) << SEQUENCE_BITS;
        self.version = of_clock.max(self.version.saturating_add(1));
        self.version
    }
}

/// What publishers here say, so that the hub does not say it a second time.
#[derive(Default)]
struct Said {
    /// By what the instances are, and how many publishers say each.
    said: HashMap<ServiceKey, HashMap<String, usize>>,
    /// Ids that publishers here registered, until the hub has them no longer.
    ids: HashMap<ServiceKey, HashSet<Arc<str>>>,
}

impl Said {
    fn say(&mut self, instance: &Instance) {
        let key = &instance.service;
        let said = self.said.entry(key.clone()).or_default();
        *said.entry(instance.default_id()).or_default() += 1;
        let ids = self.ids.entry(key.clone()).or_default();
        ids.insert(instance.id.clone());
    }

    fn unsay(&mut self, instance: &Instance) {
        let Some(said) = self.said.get_mut(&instance.service) else {
            return;
        };
        let id = instance.default_id();
        if let Some(count) = said.get_mut(&id) {
            *count -= 1;
            if *count == 0 {
                said.remove(&id);
            }
        }
        if said.is_empty() {
            self.said.remove(&instance.service);
        }
    }

    /// The data of what the hub holds and nobody here says.
    fn others(&mut self, info: &DataInfo, key: &ServiceKey, services: &Services) -> Vec<Arc<str>> {
        // SOFARegistry's names know nothing of our namespaces.
        let service = services.get(key).filter(|_| key.namespace.is_default());
        let instances = service
            .map(|service| &service.instances[..])
            .unwrap_or_default();
        let said = self.said.get(key);
        if let Some(ids) = self.ids.get_mut(key) {
            // Of those that are said the hub may not know yet.
            let is_said = |id: &str| {
                let is_said = said.zip(id.strip_suffix(SUFFIX));
                is_said.is_some_and(|(said, id)| said.contains_key(id))
            };
            ids.retain(|id| is_said(id) || service.is_some_and(|s| s.instance(id).is_some()));
            if ids.is_empty() {
                self.ids.remove(key);
            }
        }
        let ids = self.ids.get(key);
        let others = instances.iter().filter(|instance| {
            let is_said = said.is_some_and(|said| said.contains_key(&instance.default_id()));
            // What was registered here and whose publisher is gone is about to go.
            !is_said && ids.is_none_or(|ids| !ids.contains(&instance.id))
        });
        others.filter_map(|instance| info.data(instance)).collect()
    }
}
