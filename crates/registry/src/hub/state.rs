//! The hub without tasks, channels and clocks: reports and the time go in, one merged picture and its changes come out.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use foldhash::{HashSet, HashSetExt};

use crate::hub::saved::Lists;
use crate::hub::source_state::{Settings, SourceState};
use crate::limits::Limits;
use crate::model::{Change, ChangeKind, Instance, OWN_ORIGIN, ServiceKey};
use crate::services::{Service, Services};
use crate::source::{Report, Trouble, Wanted};

/// What each source holds, at one moment.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// By the source's name; the embedded registry is `osr`.
    pub sources: BTreeMap<Arc<str>, SourceView>,
}

/// What one source holds.
#[derive(Clone, Debug)]
pub struct SourceView {
    /// There is a session with it.
    pub connected: bool,
    /// The number of the present or last session.
    pub session: u64,
    /// Why there is none, once that is known.
    pub trouble: Option<Trouble>,
    /// Some session has given every list since the hub began.
    pub synced: bool,
    /// The present session has given every list.
    pub live: bool,
    /// An entry without a mark never had one.
    pub marks_stay: bool,
    /// What applications put there.
    pub own: Services,
    /// Those of them that the registry no longer has, and which are held back from going.
    pub held: Services,
    /// Copies that carry this mesh's mark.
    pub copies: Services,
    /// What became of the copies that the hub wants there.
    pub written: Arc<BTreeMap<Arc<str>, Result<(), String>>>,
    /// Copies that are no longer there, as the hub wanted.
    pub withdrawn: Arc<[Arc<str>]>,
}

/// All sources and what they are together.
#[derive(Debug)]
pub struct HubState {
    mesh: Arc<str>,
    limits: Limits,
    sources: BTreeMap<Arc<str>, SourceState>,
    embedded: Option<Arc<Services>>,
    merged: Services,
    touched: HashSet<ServiceKey>,
    revision: u64,
}

impl HubState {
    /// A hub of a mesh, without sources.
    pub fn new(mesh: &str, limits: Limits) -> HubState {
        HubState {
            mesh: mesh.into(),
            limits,
            sources: BTreeMap::new(),
            embedded: None,
            merged: Services::default(),
            touched: HashSet::new(),
            revision: 0,
        }
    }

    /// Names the mesh.
    pub fn mesh(&self) -> &str {
        &self.mesh
    }

    /// Adds a source, or changes how it is treated.
    pub fn set_source(&mut self, name: &Arc<str>, settings: Settings, now: Instant) {
        match self.sources.get_mut(name) {
            Some(source) if source.settings == settings => {}
            Some(source) => {
                source.settings = settings;
                self.touched.extend(source.services().cloned());
            }
            None => {
                let source = SourceState::new(name.clone(), &self.mesh, settings, now);
                self.sources.insert(name.clone(), source);
            }
        }
    }

    /// What a source held in an earlier life of the hub.
    pub(crate) fn restore(
        &mut self,
        name: &str,
        lists: Vec<(Arc<str>, Vec<Instance>)>,
        now: Instant,
    ) {
        if let Some(source) = self.sources.get_mut(name) {
            source.restore(lists, &self.limits, now);
        }
    }

    /// The lists of sources that changed since the last time.
    pub(crate) fn take_unsaved(&mut self) -> Vec<(Arc<str>, Lists)> {
        self.sources
            .values_mut()
            .filter_map(|source| Some((source.name.clone(), source.take_unsaved()?)))
            .collect()
    }

    /// Forgets a source and what it held.
    pub fn remove_source(&mut self, name: &str) {
        if let Some(source) = self.sources.remove(name) {
            self.touched.extend(source.services().cloned());
        }
    }

    pub(crate) fn sources(&self) -> impl Iterator<Item = &SourceState> {
        self.sources.values()
    }

    /// Takes what an adapter says. A source that is not known (any longer) is not heard.
    pub fn report(&mut self, source: &str, report: Report, now: Instant) {
        let Some(source) = self.sources.get_mut(source) else {
            return;
        };
        source.last_report = Some(now);
        match report {
            Report::Connected { server } => source.connected(server),
            Report::Disconnected { trouble, reason } => {
                // What it shares with others is described by them until it is back.
                self.touched.extend(source.services().cloned());
                source.disconnected(trouble, reason, now);
            }
            Report::List(list) => source.list(list, &self.limits, now),
            Report::Unread { name, skipped } => source.unread(name, skipped),
            Report::Synced => {
                self.touched.extend(source.services().cloned());
                source.synced(&self.limits, now);
            }
            Report::Written { id, result } => {
                source.written.insert(id, result);
            }
            Report::Withdrawn { id } => {
                source.withdrawn.insert(id);
            }
        }
    }

    /// What a source is asked to hold has changed.
    pub fn wanted(&mut self, source: &str, wanted: &Wanted) {
        if let Some(source) = self.sources.get_mut(source) {
            source.wanted(wanted);
        }
    }

    /// The embedded registry's picture, and what changed in it; `None`: anything may have.
    pub fn embedded(&mut self, services: Arc<Services>, changed: Option<Vec<ServiceKey>>) {
        match changed {
            Some(keys) => self.touched.extend(keys),
            None => {
                let before = self.embedded.iter().flat_map(|services| services.iter());
                let keys = before.chain(services.iter()).map(|s| s.key.clone());
                self.touched.extend(keys);
            }
        }
        self.embedded = Some(services);
    }

    /// Lets time pass: what was held back long enough goes.
    pub fn tick(&mut self, now: Instant) {
        for source in self.sources.values_mut() {
            source.tick(now);
        }
    }

    /// When `tick` has something to do.
    pub fn next_deadline(&self) -> Option<Instant> {
        let deadlines = self.sources.values().filter_map(SourceState::next_deadline);
        deadlines.min()
    }

    /// The picture of all sources together, as of the last `commit`.
    pub fn services(&self) -> &Services {
        &self.merged
    }

    /// What each source holds, as of the last `commit`.
    pub fn view(&self) -> View {
        let mut sources: BTreeMap<Arc<str>, SourceView> = self
            .sources
            .values()
            .map(|source| {
                let view = SourceView {
                    connected: source.connected,
                    session: source.sessions(),
                    trouble: source.failure.as_ref().map(|(trouble, _)| *trouble),
                    synced: source.synced,
                    live: source.is_live(),
                    marks_stay: source.settings.marks_stay,
                    own: source.own.clone(),
                    held: source.held_back.clone(),
                    copies: source.copies.clone(),
                    written: Arc::new(source.written.clone()),
                    withdrawn: source.withdrawn.iter().cloned().collect(),
                };
                (source.name.clone(), view)
            })
            .collect();
        if let Some(services) = &self.embedded {
            let view = SourceView {
                connected: true,
                session: 1,
                trouble: None,
                synced: true,
                live: true,
                marks_stay: true,
                own: services.as_ref().clone(),
                held: Services::default(),
                copies: Services::default(),
                written: Arc::default(),
                withdrawn: Arc::default(),
            };
            sources.insert(OWN_ORIGIN.into(), view);
        }
        View { sources }
    }

    /// Merges what was reported since the last time, and tells what that changed.
    pub fn commit(&mut self) -> Vec<Change> {
        let mut touched = std::mem::take(&mut self.touched);
        for source in self.sources.values_mut() {
            touched.extend(source.take_touched(self.revision + 1));
        }
        let mut changes = Vec::new();
        let mut services = Vec::new();
        for key in touched {
            let before = self.merged.get(&key);
            let after = self.merge(&key);
            let first = changes.len();
            difference(before, after.as_ref(), &mut changes);
            if changes.len() > first {
                services.push((key, after));
            }
        }
        for change in &mut changes {
            self.revision += 1;
            change.revision = self.revision;
        }
        self.merged = self.merged.with(self.revision, services);
        changes
    }

    /// One service as all sources together have it: each endpoint once.
    fn merge(&self, key: &ServiceKey) -> Option<Arc<Service>> {
        let embedded = self.embedded.as_ref().and_then(|s| s.get(key));
        let mut sources: Vec<(&SourceState, &Arc<Service>)> = self
            .sources
            .values()
            .filter_map(|source| Some((source, source.own.get(key)?)))
            .collect();
        match (embedded, sources.as_slice()) {
            (Some(only), []) => return Some(only.clone()),
            (None, []) => return None,
            (None, [(_, only)]) if has_distinct_endpoints(only) => return Some((*only).clone()),
            _ => {}
        }
        sources.sort_by_key(|(source, _)| {
            (
                !source.is_live(),
                std::cmp::Reverse(source.settings.precedence),
            )
        });
        let mut endpoints = HashSet::new();
        let mut instances: BTreeMap<Arc<str>, Arc<Instance>> = BTreeMap::new();
        for instance in embedded.iter().flat_map(|service| service.instances.iter()) {
            endpoints.insert(endpoint(instance));
            instances.insert(instance.id.clone(), instance.clone());
        }
        for (_, service) in &sources {
            for instance in service.instances.iter() {
                if endpoints.insert(endpoint(instance)) {
                    instances
                        .entry(instance.id.clone())
                        .or_insert_with(|| instance.clone());
                }
            }
        }
        Some(Arc::new(Service {
            key: key.clone(),
            instances: instances.into_values().collect(),
        }))
    }
}

/// What makes two entries the same instance of a service.
fn endpoint(instance: &Instance) -> (&str, &str, &str, u16) {
    (
        &instance.version,
        &instance.group,
        &instance.address,
        instance.port,
    )
}

fn has_distinct_endpoints(service: &Service) -> bool {
    let mut seen = HashSet::with_capacity(service.instances.len());
    service
        .instances
        .iter()
        .all(|instance| seen.insert(endpoint(instance)))
}

/// Appends what has to happen to `before` to make it `after`; both are in the order of ids.
fn difference(
    before: Option<&Arc<Service>>,
    after: Option<&Arc<Service>>,
    changes: &mut Vec<Change>,
) {
    if let (Some(before), Some(after)) = (before, after)
        && Arc::ptr_eq(before, after)
    {
        return;
    }
    let empty: &[Arc<Instance>] = &[];
    let mut old = before.map_or(empty, |s| &s.instances).iter().peekable();
    let mut new = after.map_or(empty, |s| &s.instances).iter().peekable();
    let change = |kind, instance: &Arc<Instance>, previous: Option<&Arc<Instance>>| Change {
        kind,
        revision: 0,
        instance: instance.clone(),
        previous: previous.cloned(),
    };
    loop {
        match (old.peek(), new.peek()) {
            (None, None) => return,
            (Some(gone), next) if next.is_none_or(|next| gone.id < next.id) => {
                changes.push(change(ChangeKind::Deregistered, gone, None));
                old.next();
            }
            (known, Some(next)) if known.is_none_or(|known| next.id < known.id) => {
                changes.push(change(ChangeKind::Put, next, None));
                new.next();
            }
            (Some(known), Some(next)) => {
                if !Arc::ptr_eq(known, next) && !known.same_content(next) {
                    changes.push(change(ChangeKind::Put, next, Some(known)));
                }
                old.next();
                new.next();
            }
            // The two guards leave only the case above.
            (Some(_), None) | (None, Some(_)) => return,
        }
    }
}

#[cfg(test)]
mod tests;
