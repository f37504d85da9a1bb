//! A hub as a process: the real state machines, and adapters that are slow, fail and lose their connections.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use fastrand::Rng;
use registry::{
    HubState, Instance, Limits, List, ORIGIN_MARK, OwnedChange, OwnedCopy, Protection, Report,
    Role, Settings, SyncRule, SyncState, Trouble, Wanted,
};

use super::registry::{LEASE, Owner, Place, Registry, place};
use super::{HOLD, NEWS, TICK};

/// An adapter.
#[derive(Debug, Default)]
pub(crate) struct Link {
    /// Nothing is between hub and registry.
    pub(crate) reachable: bool,
    pub(crate) connected: bool,
    pub(crate) since: Option<Instant>,
    session: u64,
    /// When the session was last kept alive.
    renewed: Option<Instant>,
    /// The registry's version that was read last.
    seen: u64,
    listed: BTreeSet<String>,
    /// When it last showed an application's entry.
    shown: BTreeMap<Place, Instant>,
    /// The same as of the last step: what came later nothing was decided by.
    known: BTreeMap<Place, Instant>,
    wanted: Wanted,
    written: BTreeMap<Arc<str>, Written>,
    withdrawn: BTreeSet<Arc<str>>,
}

#[derive(Debug)]
struct Written {
    name: String,
    copy: Arc<Instance>,
    at: Instant,
}

/// An entry that a hub took out on purpose.
pub(crate) struct TakenOut {
    pub(crate) registry: usize,
    pub(crate) place: Place,
    pub(crate) by: usize,
    /// The registry that it was a copy of, as the hub knew.
    pub(crate) origin: Option<String>,
}

pub(crate) struct Hub {
    pub(crate) number: usize,
    pub(crate) mesh: &'static str,
    pub(crate) up: bool,
    pub(crate) role: Role,
    pub(crate) role_since: Instant,
    state: HubState,
    pub(crate) sync: SyncState,
    disk: BTreeMap<(Arc<str>, Arc<str>), OwnedCopy>,
    pub(crate) links: Vec<Link>,
    next: Option<Instant>,
    is_dirty: bool,
    sessions: u64,
    /// Writes since the start, renewals aside.
    pub(crate) writes: u64,
}

impl Hub {
    pub(crate) fn new(
        number: usize,
        mesh: &'static str,
        registries: &[Registry],
        rules: &Arc<[SyncRule]>,
        now: Instant,
    ) -> Hub {
        let mut hub = Hub {
            number,
            mesh,
            up: true,
            role: Role::Unknown,
            role_since: now,
            state: HubState::new(mesh, Limits::default()),
            sync: SyncState::new(mesh, Vec::new(), now),
            disk: BTreeMap::new(),
            links: Vec::new(),
            next: None,
            is_dirty: true,
            sessions: 0,
            writes: 0,
        };
        hub.start(registries, rules, now);
        hub
    }

    /// Starts the process with what is on its disk.
    pub(crate) fn start(&mut self, registries: &[Registry], rules: &Arc<[SyncRule]>, now: Instant) {
        self.up = true;
        self.state = HubState::new(self.mesh, Limits::default());
        let settings = Settings {
            protection: Protection {
                hold: HOLD,
                ..Protection::default()
            },
            ..Settings::default()
        };
        for registry in registries {
            let settings = Settings {
                marks_stay: registry.by_content,
                ..settings.clone()
            };
            self.state.set_source(&registry.name, settings, now);
        }
        let owned = self.disk.values().cloned().collect();
        self.sync = SyncState::new(self.mesh, owned, now);
        self.sync.set_rules(rules.clone(), now);
        self.set_role(Role::Unknown, now);
        let reachable: Vec<bool> = self.links.iter().map(|link| link.reachable).collect();
        self.links = (0..registries.len())
            .map(|at| Link {
                reachable: reachable.get(at).copied().unwrap_or(true),
                ..Link::default()
            })
            .collect();
        self.is_dirty = true;
    }

    pub(crate) fn kill(&mut self, with_disk: bool) {
        self.up = false;
        for link in &mut self.links {
            link.connected = false;
            link.since = None;
        }
        if with_disk {
            self.disk.clear();
        }
    }

    pub(crate) fn set_role(&mut self, role: Role, now: Instant) {
        if self.role != role {
            self.role_since = now;
        }
        self.role = role;
        self.sync.set_role(role, now);
        self.is_dirty = true;
    }

    pub(crate) fn set_rules(&mut self, rules: &Arc<[SyncRule]>, now: Instant) {
        self.sync.set_rules(rules.clone(), now);
        self.is_dirty = true;
    }

    /// Lets the adapters and then the state machines do something.
    pub(crate) fn tick(
        &mut self,
        registries: &mut [Registry],
        rng: &mut Rng,
        now: Instant,
        taken_out: &mut Vec<TakenOut>,
    ) {
        if !self.up {
            return;
        }
        for link in &mut self.links {
            link.known.extend(std::mem::take(&mut link.shown));
        }
        for (at, registry) in registries.iter_mut().enumerate() {
            self.connect(at, registry, rng, now);
            if self.links[at].connected {
                self.read(at, registry, rng, now);
                self.write(at, registry, rng, now, taken_out);
            }
        }
        // What was held back goes, which is news.
        self.is_dirty |= self.state.next_deadline().is_some_and(|due| due <= now);
        self.state.tick(now);
        if self.is_dirty || self.next.is_some_and(|next| next <= now) || rng.u8(..20) == 0 {
            self.step(registries, now);
        }
    }

    /// Whether what it last decided can be blamed on it, because it knew of an application's entry that is in a registry
    /// since then, or had time enough to look.
    pub(crate) fn can_know(&self, at: usize, place: &Place, since: Instant, now: Instant) -> bool {
        let link = &self.links[at];
        let saw = link.known.get(place).is_some_and(|shown| *shown >= since);
        let looked = link
            .since
            .is_some_and(|linked| linked.max(since) + NEWS < now);
        saw || link.seen == 0 || looked
    }

    /// What it believes that registries hold, for people.
    pub(crate) fn sees(&self) -> String {
        let view = self.state.view();
        let sources = view.sources.iter().map(|(name, source)| {
            let own = source.own.iter().flat_map(|s| s.instances.iter());
            let own: Vec<Place> = own.map(|i| place(i)).collect();
            format!("{name} (live: {}) {own:?}", source.live)
        });
        format!("hub {} sees {:?}", self.number, sources.collect::<Vec<_>>())
    }

    fn report(&mut self, registry: &Registry, report: Report, now: Instant) {
        self.state.report(&registry.name, report, now);
        self.is_dirty = true;
    }

    fn connect(&mut self, at: usize, registry: &mut Registry, rng: &mut Rng, now: Instant) {
        let link = &mut self.links[at];
        let possible = registry.up && link.reachable;
        match (link.connected, possible) {
            (true, false) => {
                link.connected = false;
                link.since = None;
                let (trouble, reason) = (Trouble::Unreachable, String::new());
                self.report(registry, Report::Disconnected { trouble, reason }, now);
            }
            (false, true) if rng.u8(..3) > 0 => {
                let resumed = link.renewed.is_some_and(|at| now < at + LEASE);
                if registry.by_content && !resumed {
                    self.sessions += 1;
                    link.session = self.sessions;
                    link.written.clear();
                }
                link.connected = true;
                link.since = Some(now);
                link.withdrawn.clear();
                let server = String::new();
                self.report(registry, Report::Connected { server }, now);
                self.lists(at, registry, false, now);
                self.report(registry, Report::Synced, now);
            }
            _ => {}
        }
    }

    fn lists(&mut self, at: usize, registry: &Registry, certain: bool, now: Instant) {
        let mut lists = registry.lists();
        let link = &mut self.links[at];
        for place in registry.own_places() {
            link.shown.insert(place, now);
        }
        for known in std::mem::take(&mut link.listed) {
            lists.entry(known).or_default();
        }
        link.listed = lists.keys().cloned().collect();
        link.seen = registry.version;
        for (name, instances) in lists {
            let list = List {
                name: name.into(),
                instances,
                skipped: Vec::new(),
                certain,
            };
            self.report(registry, Report::List(list), now);
        }
    }

    fn read(&mut self, at: usize, registry: &Registry, rng: &mut Rng, now: Instant) {
        if self.links[at].seen != registry.version && rng.u8(..4) > 0 {
            self.lists(at, registry, registry.certain, now);
        }
    }

    fn write(
        &mut self,
        at: usize,
        registry: &mut Registry,
        rng: &mut Rng,
        now: Instant,
        taken_out: &mut Vec<TakenOut>,
    ) {
        let owner = Owner::Hub {
            hub: self.number,
            session: self.links[at].session,
        };
        let mut reports = Vec::new();
        let link = &mut self.links[at];
        let mut take_out = |registry: &mut Registry, name: &str, copy: &Instance| {
            if let Some(entry) = registry.remove(name) {
                let mark = copy.metadata.get(ORIGIN_MARK);
                let origin = mark.and_then(|mark| mark.split_once('/'));
                taken_out.push(TakenOut {
                    registry: at,
                    place: place(&entry.instance),
                    origin: origin.map(|(_, origin)| origin.to_owned()),
                    by: self.number,
                });
            }
        };
        let mut stale: Vec<Written> = Vec::new();
        let rests = link.wanted.rests;
        let no_copies = BTreeMap::new();
        let wanted = match rests {
            true => (&no_copies, &no_copies),
            false => (&link.wanted.publish, &link.wanted.withdraw),
        };
        for (id, copy) in wanted.0 {
            let name = registry.entry_name(id, copy);
            if link
                .written
                .get(id)
                .is_some_and(|w| w.name == name && w.copy == *copy)
            {
                continue;
            }
            // Slow, and now and then refused.
            match rng.u8(..8) {
                0 => continue,
                1 => {
                    let (id, result) = (id.clone(), Err("no".to_owned()));
                    reports.push(Report::Written { id, result });
                    continue;
                }
                _ => {}
            }
            registry.put(name.clone(), copy.as_ref().clone(), owner, now);
            self.writes += 1;
            let written = Written {
                name: name.clone(),
                copy: copy.clone(),
                at: now,
            };
            let before = link.written.insert(id.clone(), written);
            stale.extend(before.filter(|before| before.name != name));
            let (id, result) = (id.clone(), Ok(()));
            reports.push(Report::Written { id, result });
        }
        let publish = &link.wanted.publish;
        let gone = link
            .written
            .extract_if(.., |id, _| !rests && !publish.contains_key(id));
        stale.extend(gone.map(|(id, written)| {
            let copy = wanted.1.get(&id).cloned();
            Written {
                copy: copy.unwrap_or(written.copy),
                ..written
            }
        }));
        for Written { name, copy, .. } in stale {
            let is_own = registry
                .entries
                .get(&name)
                .is_some_and(|e| e.owner == owner);
            if is_own || !registry.by_content {
                self.writes += 1;
                take_out(registry, &name, &copy);
            }
        }
        for (id, copy) in wanted.1 {
            if link.withdrawn.contains(id) || rng.u8(..4) == 0 {
                continue;
            }
            self.writes += 1;
            take_out(registry, &registry.entry_name(id, copy), copy);
            link.withdrawn.insert(id.clone());
            reports.push(Report::Withdrawn { id: id.clone() });
        }
        link.renewed = Some(now);
        if registry.by_content {
            // The session keeps all its entries.
            let mine = registry.entries.values_mut().filter(|e| e.owner == owner);
            mine.for_each(|entry| entry.expires = now + LEASE);
        } else {
            link.written.retain(|_, written| {
                match registry.entries.get_mut(&written.name) {
                    // As with Eureka, who has what is newer is asked for it.
                    Some(entry) if entry.dirty >= written.at => entry.expires = now + LEASE,
                    _ if rests => return false,
                    _ => {
                        let (name, copy) = (written.name.clone(), written.copy.as_ref().clone());
                        registry.put(name.clone(), copy, owner, now);
                        if let Some(entry) = registry.entries.get_mut(&name) {
                            entry.dirty = written.at;
                        }
                    }
                }
                true
            });
        }
        for report in reports {
            self.report(registry, report, now);
        }
    }

    fn step(&mut self, registries: &mut [Registry], now: Instant) {
        self.state.commit();
        let step = self.sync.step(&self.state.view(), now);
        for change in step.owned {
            match change {
                OwnedChange::Put(owned) => {
                    let key = (owned.target.clone(), owned.copy.id.clone());
                    self.disk.insert(key, owned);
                }
                OwnedChange::Forget { target, id } => {
                    self.disk.remove(&(target, id));
                }
            }
        }
        for (at, registry) in registries.iter_mut().enumerate() {
            let link = &mut self.links[at];
            link.wanted.rests |= step.rest.contains(&registry.name);
            if let Some(wanted) = step.wanted.get(&registry.name) {
                self.state.wanted(&registry.name, wanted);
                let withdraw = &wanted.withdraw;
                link.withdrawn.retain(|id| withdraw.contains_key(id));
                link.wanted = wanted.clone();
            }
            if step.release.contains(&registry.name) {
                // The adapter ends, and a session with it.
                let mine = |owner| match owner {
                    Owner::Hub { hub, session } => hub == self.number && session == link.session,
                    Owner::App(_) => false,
                };
                if registry.by_content && link.connected {
                    let before = registry.entries.len();
                    registry.entries.retain(|_, entry| !mine(entry.owner));
                    registry.version += u64::from(registry.entries.len() < before);
                }
                self.state.wanted(&registry.name, &Wanted::default());
                *link = Link {
                    reachable: link.reachable,
                    ..Link::default()
                };
            }
        }
        self.next = step.next;
        self.is_dirty = step.next.is_some_and(|next| next <= now + TICK);
    }
}
