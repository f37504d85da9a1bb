//! What the hub knows of one source: its lists, which of their instances are held back from going, and how it is doing.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::hub::saved::Lists;
use crate::limits::Limits;
use crate::model::{Instance, ServiceKey};
use crate::services::{Service, Services};
use crate::source::{List, ORIGIN_MARK, Skipped, Trouble, Wanted};

/// How the hub treats a source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Of two sources with the same endpoint the one with the higher precedence describes it.
    pub precedence: i32,
    /// When instances may go.
    pub protection: Protection,
    /// After how long without a connection its instances go; `None`: never.
    pub stale_timeout: Option<Duration>,
    /// Entries are named by all that they say: none can lose the mark of a copy and still be there.
    pub marks_stay: bool,
}

/// A list that suddenly is nearly empty is a suspicion, not news: what is missing stays for a while, unless the
/// registry itself says that it was taken out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protection {
    /// A list that has less than this share of its former instances is suspicious; 0 trusts every list.
    pub threshold_percent: u32,
    /// How long what is missing stays.
    pub hold: Duration,
}

impl Default for Protection {
    fn default() -> Protection {
        Protection {
            threshold_percent: 50,
            hold: Duration::from_secs(120),
        }
    }
}

#[derive(Debug, Default)]
struct Listed {
    instances: Vec<Arc<Instance>>,
    /// Copies that a hub of this mesh wrote.
    copies: Vec<Arc<Instance>>,
    /// Missing in a suspicious list, and until when they stay.
    held: Vec<(Arc<Instance>, Instant)>,
    skipped: Vec<Skipped>,
    session: u64,
}

/// What the hub knows of one source.
#[derive(Debug)]
pub(crate) struct SourceState {
    pub(crate) name: Arc<str>,
    pub(crate) settings: Settings,
    /// `<mesh>/`: how the marks of this mesh's own copies begin.
    mark: Arc<str>,
    lists: HashMap<Arc<str>, Listed>,
    by_service: HashMap<ServiceKey, BTreeSet<Arc<str>>>,
    pub(crate) own: Services,
    pub(crate) copies: Services,
    /// What of its own is only held back from going.
    pub(crate) held_back: Services,
    session: u64,
    pub(crate) connected: bool,
    /// The present session has given every list.
    pub(crate) session_synced: bool,
    /// Some session has given every list.
    pub(crate) synced: bool,
    pub(crate) server: String,
    pub(crate) failure: Option<(Trouble, String)>,
    pub(crate) down_since: Option<Instant>,
    pub(crate) last_report: Option<Instant>,
    pub(crate) written: BTreeMap<Arc<str>, Result<(), String>>,
    pub(crate) withdrawn: BTreeSet<Arc<str>>,
    touched: HashSet<ServiceKey>,
    /// Its lists changed since they were saved.
    unsaved: bool,
}

impl SourceState {
    pub(crate) fn new(name: Arc<str>, mesh: &str, settings: Settings, now: Instant) -> SourceState {
        SourceState {
            name,
            settings,
            mark: format!("{mesh}/").into(),
            lists: HashMap::new(),
            by_service: HashMap::new(),
            own: Services::default(),
            copies: Services::default(),
            held_back: Services::default(),
            session: 0,
            connected: false,
            session_synced: false,
            synced: false,
            server: String::new(),
            failure: None,
            down_since: Some(now),
            last_report: None,
            written: BTreeMap::new(),
            withdrawn: BTreeSet::new(),
            touched: HashSet::new(),
            unsaved: false,
        }
    }

    /// Whether what it says is of now.
    pub(crate) fn is_live(&self) -> bool {
        self.connected && self.session_synced
    }

    pub(crate) fn sessions(&self) -> u64 {
        self.session
    }

    pub(crate) fn lists(&self) -> usize {
        self.lists.len()
    }

    pub(crate) fn held(&self) -> usize {
        self.lists.values().map(|list| list.held.len()).sum()
    }

    /// Entries that could not be read, with the list that they are in.
    pub(crate) fn skipped(&self) -> impl Iterator<Item = (&Arc<str>, &Skipped)> {
        self.lists
            .iter()
            .flat_map(|(name, list)| list.skipped.iter().map(move |skipped| (name, skipped)))
    }

    pub(crate) fn services(&self) -> impl Iterator<Item = &ServiceKey> {
        self.by_service.keys()
    }

    pub(crate) fn connected(&mut self, server: String) {
        self.session += 1;
        self.connected = true;
        self.session_synced = false;
        self.server = server;
        self.failure = None;
        self.down_since = None;
    }

    pub(crate) fn disconnected(&mut self, trouble: Trouble, reason: String, now: Instant) {
        self.connected = false;
        self.session_synced = false;
        self.failure = Some((trouble, reason));
        self.down_since.get_or_insert(now);
    }

    /// What it held in an earlier life of the hub, until it says what it holds now.
    pub(crate) fn restore(
        &mut self,
        lists: Vec<(Arc<str>, Vec<Instance>)>,
        limits: &Limits,
        now: Instant,
    ) {
        for (name, instances) in lists {
            let list = List {
                name,
                instances,
                skipped: Vec::new(),
                certain: false,
            };
            self.list(list, limits, now);
        }
        self.unsaved = false;
    }

    /// Its lists, if they changed since the last time; without copies, which are nobody's instances.
    pub(crate) fn take_unsaved(&mut self) -> Option<Lists> {
        if !std::mem::take(&mut self.unsaved) {
            return None;
        }
        let lists = self
            .lists
            .iter()
            .map(|(name, list)| (name.clone(), list.present().cloned().collect()));
        Some(lists.collect())
    }

    /// Takes a list in the place of the former one.
    pub(crate) fn list(&mut self, list: List, limits: &Limits, now: Instant) {
        let certain = list.certain && self.session_synced;
        self.unsaved = true;
        let before = self.lists.remove(&list.name).unwrap_or_default();
        for instance in before.all() {
            self.unlist(&instance.service, &list.name);
        }
        let mut skipped = list.skipped;
        let (instances, copies) = self.sort_out(list.instances, &before, limits, &mut skipped);
        // A copy that shows its mark again was taken for an instance meanwhile.
        let present = instances.iter().chain(&copies).map(|i| i.id.as_ref());
        let present: HashSet<&str> = present.collect();
        let mut held: Vec<(Arc<Instance>, Instant)> = Vec::new();
        // What was missing before is no news in a list that is certain of what has gone since.
        let kept = before.held.iter();
        let kept = kept.filter(|(instance, _)| !present.contains(instance.id.as_ref()));
        held.extend(kept.cloned());
        if !certain {
            let expected = before.instances.len() + before.held.len();
            let threshold = usize::try_from(self.settings.protection.threshold_percent);
            if instances.len() * 100 < expected * threshold.unwrap_or(100) {
                let until = now + self.settings.protection.hold;
                let missing = before
                    .instances
                    .iter()
                    .filter(|instance| !present.contains(instance.id.as_ref()));
                held.extend(missing.map(|instance| (instance.clone(), until)));
            }
        }
        let listed = Listed {
            instances,
            copies,
            held,
            skipped,
            session: self.session,
        };
        for instance in listed.all() {
            let lists = self.by_service.entry(instance.service.clone());
            lists.or_default().insert(list.name.clone());
            self.touched.insert(instance.service.clone());
        }
        if listed.all().next().is_some() || !listed.skipped.is_empty() {
            self.lists.insert(list.name, listed);
        }
    }

    /// A list that was given and cannot be read stays as it was.
    pub(crate) fn unread(&mut self, name: Arc<str>, skipped: Skipped) {
        let list = self.lists.entry(name).or_default();
        list.session = self.session;
        list.skipped = vec![skipped];
    }

    fn unlist(&mut self, service: &ServiceKey, list: &str) {
        self.touched.insert(service.clone());
        if let Some(lists) = self.by_service.get_mut(service) {
            lists.remove(list);
            if lists.is_empty() {
                self.by_service.remove(service);
            }
        }
    }

    /// Completes and checks what an adapter read, and tells this mesh's own copies from the rest.
    fn sort_out(
        &self,
        read: Vec<Instance>,
        before: &Listed,
        limits: &Limits,
        skipped: &mut Vec<Skipped>,
    ) -> (Vec<Arc<Instance>>, Vec<Arc<Instance>>) {
        let known: HashMap<(&ServiceKey, &str), &Arc<Instance>> = before
            .all()
            .map(|i| ((&i.service, i.id.as_ref()), i))
            .collect();
        let mut ids: HashSet<(ServiceKey, Arc<str>)> = HashSet::with_capacity(read.len());
        let (mut instances, mut copies) = (Vec::new(), Vec::new());
        for mut instance in read {
            if instance.id.is_empty() {
                let id = format!("{}@{}", instance.default_id(), self.name);
                // A copy is another entry than what an application put at the same address.
                instance.id = match instance.metadata.get(ORIGIN_MARK) {
                    None => id.into(),
                    Some(mark) => format!("{id}~{mark}").into(),
                };
            }
            instance.origin = self.name.clone();
            instance.ttl = None;
            instance.revision = 0;
            if let Err(error) = limits.check(&instance) {
                skipped.push(Skipped::new(
                    &format!("{} {}", instance.service, instance.id),
                    &error,
                ));
                continue;
            }
            if !ids.insert((instance.service.clone(), instance.id.clone())) {
                skipped.push(Skipped::new(
                    &format!("{} {}", instance.service, instance.id),
                    "is listed twice; the first counts",
                ));
                continue;
            }
            let is_copy = instance
                .metadata
                .get(ORIGIN_MARK)
                .is_some_and(|mark| mark.starts_with(self.mark.as_ref()));
            let instance = match known.get(&(&instance.service, instance.id.as_ref())) {
                Some(known) if known.same_content(&instance) => (*known).clone(),
                _ => Arc::new(instance),
            };
            if is_copy {
                copies.push(instance);
            } else {
                instances.push(instance);
            }
        }
        (instances, copies)
    }

    /// Every list was given: the others are as good as empty.
    pub(crate) fn synced(&mut self, limits: &Limits, now: Instant) {
        let session = self.session;
        let missing: Vec<Arc<str>> = self
            .lists
            .iter()
            .filter(|(_, list)| list.session != session)
            .map(|(name, _)| name.clone())
            .collect();
        for name in missing {
            let list = List {
                name,
                instances: Vec::new(),
                skipped: Vec::new(),
                certain: false,
            };
            self.list(list, limits, now);
        }
        self.session_synced = true;
        self.synced = true;
    }

    /// What is no longer held, and what is stale for too long.
    pub(crate) fn tick(&mut self, now: Instant) {
        if let (Some(timeout), Some(since)) = (self.settings.stale_timeout, self.down_since)
            && now.saturating_duration_since(since) >= timeout
        {
            self.clear();
        }
        let due: Vec<Arc<str>> = self
            .lists
            .iter()
            .filter(|(_, list)| list.held.iter().any(|(_, until)| *until <= now))
            .map(|(name, _)| name.clone())
            .collect();
        for name in due {
            self.unsaved = true;
            // While the registry is away nothing new is known: what is held stays.
            if !self.connected {
                continue;
            }
            let Some(list) = self.lists.get_mut(&name) else {
                continue;
            };
            let (go, stay) = std::mem::take(&mut list.held)
                .into_iter()
                .partition::<Vec<_>, _>(|(_, until)| *until <= now);
            list.held = stay;
            let left: HashSet<ServiceKey> = list.all().map(|i| i.service.clone()).collect();
            let is_empty = left.is_empty() && list.skipped.is_empty();
            for (instance, _) in go {
                if left.contains(&instance.service) {
                    self.touched.insert(instance.service.clone());
                } else {
                    self.unlist(&instance.service, &name);
                }
            }
            if is_empty {
                self.lists.remove(&name);
            }
        }
    }

    /// When `tick` has something to do.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let held = self.lists.values().flat_map(|list| list.held.iter());
        let held = held.map(|(_, until)| *until).min();
        let stale = match (self.settings.stale_timeout, self.down_since) {
            (Some(timeout), Some(since)) if !self.lists.is_empty() => Some(since + timeout),
            _ => None,
        };
        let held = held.filter(|_| self.connected);
        held.into_iter().chain(stale).min()
    }

    /// Forgets all instances.
    pub(crate) fn clear(&mut self) {
        self.unsaved = true;
        self.touched.extend(self.by_service.keys().cloned());
        self.by_service.clear();
        self.lists.clear();
    }

    /// What the hub wants written has changed: results of what it no longer wants are of no use.
    pub(crate) fn wanted(&mut self, wanted: &Wanted) {
        self.written.retain(|id, _| wanted.publish.contains_key(id));
        self.withdrawn.retain(|id| wanted.withdraw.contains_key(id));
    }

    /// Brings its two pictures up to date and names the services that may have changed.
    pub(crate) fn take_touched(&mut self, revision: u64) -> HashSet<ServiceKey> {
        let touched = std::mem::take(&mut self.touched);
        if touched.is_empty() {
            return touched;
        }
        let (mut own, mut copies, mut held) = (Vec::new(), Vec::new(), Vec::new());
        for key in &touched {
            own.push((key.clone(), self.service(key, Listed::present)));
            copies.push((key.clone(), self.service(key, Listed::copies)));
            held.push((key.clone(), self.service(key, Listed::held)));
        }
        self.own = self.own.with(revision, own);
        self.copies = self.copies.with(revision, copies);
        self.held_back = self.held_back.with(revision, held);
        touched
    }

    /// A service as all lists together have it. Of the same id in two lists (Dubbo registers on two levels) the first
    /// list's stays.
    fn service<'a>(
        &'a self,
        key: &ServiceKey,
        of: fn(&'a Listed) -> Box<dyn Iterator<Item = &'a Arc<Instance>> + 'a>,
    ) -> Option<Arc<Service>> {
        let mut instances: BTreeMap<Arc<str>, Arc<Instance>> = BTreeMap::new();
        for name in self.by_service.get(key)? {
            let Some(list) = self.lists.get(name) else {
                continue;
            };
            for instance in of(list).filter(|instance| instance.service == *key) {
                instances
                    .entry(instance.id.clone())
                    .or_insert_with(|| instance.clone());
            }
        }
        if instances.is_empty() {
            return None;
        }
        Some(Arc::new(Service {
            key: key.clone(),
            instances: instances.into_values().collect(),
        }))
    }
}

impl Listed {
    fn all(&self) -> impl Iterator<Item = &Arc<Instance>> {
        self.instances
            .iter()
            .chain(self.copies.iter())
            .chain(self.held.iter().map(|(instance, _)| instance))
    }

    fn present(&self) -> Box<dyn Iterator<Item = &Arc<Instance>> + '_> {
        let held = self.held.iter().map(|(instance, _)| instance);
        Box::new(self.instances.iter().chain(held))
    }

    fn held(&self) -> Box<dyn Iterator<Item = &Arc<Instance>> + '_> {
        Box::new(self.held.iter().map(|(instance, _)| instance))
    }

    fn copies(&self) -> Box<dyn Iterator<Item = &Arc<Instance>> + '_> {
        Box::new(self.copies.iter())
    }
}
