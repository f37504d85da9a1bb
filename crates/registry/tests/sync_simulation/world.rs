//! Registries, applications and hubs in one random history, and the laws that hold in it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fastrand::Rng;
use registry::{Instance, ORIGIN_MARK, Role, SyncRule};
use serde_json::json;

use super::hub::{Hub, TakenOut};
use super::registry::{LEASE, Owner, Place, Registry, instance, place};
use super::{HOLD, NEWS};

/// A leader that has been there for so long has read what it can.
const SETTLED: Duration = Duration::from_secs(10);

#[derive(Debug)]
struct App {
    service: &'static str,
    port: u16,
    alive: bool,
    weight: u32,
    healthy: bool,
    /// Where it registers itself, and from when on.
    registers: BTreeMap<usize, Instant>,
    /// Where it is registered, since when.
    present: BTreeMap<usize, Instant>,
    /// Where it ever was.
    registered: BTreeSet<usize>,
    /// When it last took itself out somewhere.
    left: Option<Instant>,
}

impl App {
    fn instance(&self) -> Instance {
        let mut instance = instance(self.service, self.port);
        instance.weight = self.weight;
        instance.healthy = self.healthy;
        instance.metadata = [("zone", "east")].into_iter().collect();
        instance
    }

    fn place(&self) -> Place {
        (self.service.to_owned(), self.port)
    }
}

pub(crate) struct World {
    pub(crate) rng: Rng,
    pub(crate) now: Instant,
    start: Instant,
    pub(crate) registries: Vec<Registry>,
    apps: Vec<App>,
    pub(crate) hubs: Vec<Hub>,
    /// From which registries each is fed.
    feeds: Vec<BTreeSet<usize>>,
    rules: Arc<[SyncRule]>,
    leader: Option<usize>,
    /// Who becomes leader, and when.
    elected: Option<(usize, Instant)>,
    /// The two hubs of the mesh that see who leads.
    see_lease: [bool; 2],
    /// When a hub's entry last lapsed, of which mesh.
    lapsed: BTreeMap<(usize, Place), (&'static str, Instant)>,
    /// When the rules last changed.
    ruled: Instant,
    /// A mark was lost while a hub may not have known whose it was.
    is_confused: bool,
    pub(crate) history: Vec<String>,
    pub(crate) broken: Option<String>,
}

fn rules(rng: &mut Rng) -> (Arc<[SyncRule]>, Vec<BTreeSet<usize>>) {
    let legs: &[(&str, &str, &str)] = match rng.u8(..5) {
        0 => &[("*", "*", "oneWay")],
        1 => &[("a", "b", "both"), ("b", "c", "both")],
        2 => &[
            ("a", "b", "oneWay"),
            ("b", "c", "oneWay"),
            ("c", "a", "oneWay"),
        ],
        3 => &[("a", "b", "oneWay"), ("b", "c", "oneWay")],
        _ => &[("a", "b", "both"), ("a", "c", "oneWay")],
    };
    let rule = |(at, (from, to, direction)): (usize, &(&str, &str, &str))| {
        let spec: registry::RegistrySync = serde_json::from_value(json!({
            "from": from, "to": to, "direction": direction, "orphanHold": format!("{}s", HOLD.as_secs()),
            "writesPerSecond": 5,
        }))
        .expect("a spec");
        spec.compile(&at.to_string()).expect("a rule")
    };
    let rules: Vec<SyncRule> = legs.iter().enumerate().map(rule).collect();
    let mut feeds = vec![BTreeSet::new(); 3];
    let mut feed = |from: usize, to: usize| {
        feeds[to].insert(from);
    };
    for (from, to, direction) in legs {
        let numbers = |name: &str| match name {
            "a" => vec![0],
            "b" => vec![1],
            "c" => vec![2],
            _ => vec![0, 1, 2],
        };
        for from in numbers(from) {
            for to in numbers(to).into_iter().filter(|to| *to != from) {
                feed(from, to);
                if *direction == "both" {
                    feed(to, from);
                }
            }
        }
    }
    (rules.into(), feeds)
}

impl World {
    pub(crate) fn new(seed: u64) -> World {
        let mut rng = Rng::with_seed(seed);
        let now = Instant::now();
        let registries: Vec<Registry> = ["a", "b", "c"]
            .into_iter()
            .map(|name| Registry::new(name, rng.bool(), rng.bool()))
            .collect();
        let (rules, feeds) = rules(&mut rng);
        let mut hubs = vec![
            Hub::new(0, "one", &registries, &rules, now),
            Hub::new(1, "one", &registries, &rules, now),
        ];
        if rng.u8(..4) == 0 {
            let mut other = Hub::new(2, "two", &registries, &rules, now);
            other.set_role(Role::Leader, now);
            hubs.push(other);
        }
        let ports = 1..=rng.u16(1..=8);
        let apps = ports.map(|port| App {
            service: if rng.bool() { "s" } else { "t" },
            port,
            alive: false,
            weight: 100,
            healthy: true,
            registers: BTreeMap::new(),
            present: BTreeMap::new(),
            registered: BTreeSet::new(),
            left: None,
        });
        let apps = apps.collect();
        World {
            rng,
            now,
            start: now,
            registries,
            apps,
            hubs,
            feeds,
            rules,
            leader: None,
            elected: Some((0, now)),
            see_lease: [true; 2],
            lapsed: BTreeMap::new(),
            ruled: now,
            is_confused: false,
            history: vec![format!("seed {seed}")],
            broken: None,
        }
    }

    fn note(&mut self, what: impl FnOnce() -> String) {
        let at = self.now.duration_since(self.start).as_millis();
        self.history.push(format!("{at:>7} {}", what()));
    }

    fn break_law(&mut self, what: String) {
        self.note(|| format!("BROKEN: {what}"));
        self.broken.get_or_insert(what);
    }

    /// Lets everybody live for one tick.
    pub(crate) fn tick(&mut self, passed: Duration) {
        self.now += passed;
        self.elect();
        self.renew_apps();
        self.expire();
        let mut taken_out = Vec::new();
        let order = self.rng.usize(..self.hubs.len());
        for at in 0..self.hubs.len() {
            let at = (at + order) % self.hubs.len();
            self.hubs[at].tick(
                &mut self.registries,
                &mut self.rng,
                self.now,
                &mut taken_out,
            );
            for gone in std::mem::take(&mut taken_out) {
                self.check_taken_out(&gone);
            }
        }
        self.check_copies();
    }

    fn elect(&mut self) {
        if let Some((hub, at)) = self.elected
            && at <= self.now
        {
            self.elected = None;
            if !(self.hubs[hub].up && self.see_lease[hub]) {
                return;
            }
            self.leader = Some(hub);
            self.note(|| format!("hub {hub} leads"));
            self.hubs[hub].set_role(Role::Leader, self.now);
            if self.see_lease[1 - hub] {
                self.hubs[1 - hub].set_role(Role::Follower, self.now);
            }
        }
        if self.leader.is_some_and(|leader| !self.hubs[leader].up) {
            self.leader = None;
        }
        if self.leader.is_none() && self.elected.is_none() {
            let hub = usize::from(!(self.hubs[0].up && self.see_lease[0]));
            self.elected = Some((hub, self.now + Duration::from_secs(self.rng.u64(1..6))));
        }
    }

    fn renew_apps(&mut self) {
        for (number, app) in self
            .apps
            .iter_mut()
            .enumerate()
            .filter(|(_, app)| app.alive)
        {
            for (at, from) in &app.registers {
                let registry = &mut self.registries[*at];
                if registry.up && *from <= self.now {
                    let instance = app.instance();
                    let name = registry.entry_name(&format!("app-{number}"), &instance);
                    let is_old = |key: &String, owner| owner == Owner::App(number) && *key != name;
                    let old = registry
                        .entries
                        .iter()
                        .find(|(key, e)| is_old(key, e.owner));
                    let old = old.map(|(key, _)| key.clone());
                    registry.put(name, instance, Owner::App(number), self.now);
                    if let Some(old) = old {
                        registry.remove(&old);
                    }
                    app.registered.insert(*at);
                    app.present.entry(*at).or_insert(self.now);
                }
            }
        }
    }

    fn expire(&mut self) {
        for at in 0..self.registries.len() {
            if !self.registries[at].up {
                continue;
            }
            let entries = self.registries[at].entries.iter();
            let due = entries.filter(|(_, entry)| entry.expires <= self.now);
            let due: Vec<String> = due.map(|(name, _)| name.clone()).collect();
            for name in due {
                let Some(entry) = self.registries[at].remove(&name) else {
                    continue;
                };
                if let Owner::Hub { hub, .. } = entry.owner {
                    let lapsed = (self.hubs[hub].mesh, self.now);
                    self.lapsed.insert((at, place(&entry.instance)), lapsed);
                    self.check_lapsed(at, hub, &place(&entry.instance));
                }
            }
        }
    }

    /// The application behind an entry, if it is alive and registered where the registry is fed from.
    fn living(&self, at: usize, place: &Place) -> Option<&App> {
        let app = self.apps.iter().find(|app| app.place() == *place)?;
        let feeds = |from: &usize| *from == at || self.feeds[at].contains(from);
        let steady = app.left.is_none_or(|left| left + NEWS < self.now)
            && (self.ruled == self.start || self.ruled + NEWS < self.now);
        (app.alive && steady && app.present.keys().any(feeds)).then_some(app)
    }

    fn check_taken_out(&mut self, gone: &TakenOut) {
        let registry = &self.registries[gone.registry];
        let name = registry.name.clone();
        let (service, port) = &gone.place;
        let text = format!("hub {} took {service}:{port} out of {name}", gone.by);
        let is_last = !registry.holds(&gone.place);
        let knows = |(from, since): (&usize, &Instant)| {
            let feeds = *from == gone.registry || self.feeds[gone.registry].contains(from);
            let is_origin = gone.origin.as_deref() == Some(&*self.registries[*from].name);
            let hub = &self.hubs[gone.by];
            // Nobody can know of what is registered only where he cannot look, and takes nothing out then that is from there; nor
            // of what was registered in the moment in which he asked for the copy to be taken out.
            feeds
                && (hub.can_know(*from, &gone.place, *since, self.now)
                    || (is_origin && *since + NEWS < self.now))
        };
        let lives = self
            .living(gone.registry, &gone.place)
            .is_some_and(|app| app.present.iter().any(knows));
        // Nor does he know of the end of another mesh's copy, to which his gives way, in the moment in which it lapses.
        let lapsed = self.lapsed.get(&(gone.registry, gone.place.clone()));
        let gave_way = lapsed
            .is_some_and(|(mesh, at)| *mesh < self.hubs[gone.by].mesh && *at + NEWS >= self.now);
        let broken = is_last && !self.is_confused && lives && !gave_way;
        self.note(|| text.clone());
        if broken {
            self.break_law(format!("{text}, which lives"));
        }
    }

    fn check_lapsed(&mut self, at: usize, hub: usize, place: &Place) {
        let text = format!(
            "{place:?} of hub {hub} lapsed in {}",
            self.registries[at].name
        );
        self.note(|| text.clone());
        if self.is_confused || self.registries[at].holds(place) || self.living(at, place).is_none()
        {
            return;
        }
        let mesh = self.hubs[hub].mesh;
        let settled = self.hubs.iter().any(|hub| {
            let link = hub.links[at].since;
            hub.up
                && hub.mesh == mesh
                && hub.role == Role::Leader
                && hub.role_since + SETTLED < self.now
                && link.is_some_and(|since| since + SETTLED < self.now)
        });
        if settled {
            self.break_law(format!("{text}, although there is a leader"));
        }
    }

    /// A copy is of a registry where its application put it.
    fn check_copies(&mut self) {
        if self.is_confused {
            return;
        }
        let mut broken = None;
        for registry in &self.registries {
            for entry in registry.entries.values() {
                let mark = entry.instance.metadata.get(ORIGIN_MARK);
                let Some((_, origin)) = mark.and_then(|mark| mark.split_once('/')) else {
                    continue;
                };
                let from = self.registries.iter().position(|r| *r.name == *origin);
                let place = place(&entry.instance);
                let app = self.apps.iter().find(|app| app.place() == place);
                let is_original = from
                    .zip(app)
                    .is_some_and(|(from, app)| app.registered.contains(&from));
                if !is_original {
                    broken = Some(format!(
                        "{place:?} in {} is a copy of a copy in {origin}",
                        registry.name
                    ));
                }
            }
        }
        if let Some(broken) = broken {
            self.break_law(broken);
        }
    }

    /// Something happens.
    pub(crate) fn happen(&mut self) {
        match self.rng.u8(..26) {
            0..=5 => self.app_starts_or_ends(),
            6..=8 => self.app_changes(),
            9..=10 => self.app_moves(),
            11..=14 => self.registry_goes_or_comes(),
            15..=17 => self.line_breaks_or_heals(),
            18..=19 => self.hub_dies_or_starts(),
            20..=21 => self.leader_changes(),
            22 => self.lease_is_seen_or_not(),
            23 => self.rules_change(),
            _ => self.mark_is_lost(),
        }
    }

    fn app_starts_or_ends(&mut self) {
        let number = self.rng.usize(..self.apps.len());
        let now = self.now;
        let home = self.rng.usize(..3);
        let second = self.rng.usize(..3);
        let is_double = self.rng.u8(..4) == 0;
        let is_orderly = self.rng.bool();
        let app = &mut self.apps[number];
        app.alive = !app.alive;
        app.present.clear();
        if app.alive {
            app.registers = BTreeMap::from([(home, now)]);
            if is_double {
                app.registers.insert(second, now);
            }
            let text = format!("app {number} starts in {:?}", app.registers.keys());
            self.note(|| text);
            return;
        }
        app.registers.clear();
        if is_orderly {
            for registry in self.registries.iter_mut().filter(|registry| registry.up) {
                let entries = registry.entries.iter();
                let mine = entries.filter(|(_, e)| e.owner == Owner::App(number));
                for name in mine.map(|(name, _)| name.clone()).collect::<Vec<_>>() {
                    registry.remove(&name);
                }
            }
        }
        self.note(|| format!("app {number} ends, orderly: {is_orderly}"));
    }

    fn app_changes(&mut self) {
        let number = self.rng.usize(..self.apps.len());
        let app = &mut self.apps[number];
        if self.rng.bool() {
            app.weight = self.rng.u32(0..200);
        } else {
            app.healthy = !app.healthy;
        }
        let text = format!("app {number} weighs {} healthy {}", app.weight, app.healthy);
        self.note(|| text);
    }

    /// A living application registers somewhere too, or there no more.
    fn app_moves(&mut self) {
        let number = self.rng.usize(..self.apps.len());
        let at = self.rng.usize(..3);
        let now = self.now;
        let app = &mut self.apps[number];
        if !app.alive || !self.registries[at].up {
            return;
        }
        if app.registers.remove(&at).is_none() {
            app.registers.insert(at, now);
            self.note(|| format!("app {number} registers in {at} too"));
            return;
        }
        app.left = Some(now);
        app.present.remove(&at);
        if app.registers.is_empty() {
            app.registers.insert((at + 1) % 3, now);
        }
        let registry = &mut self.registries[at];
        let entries = registry.entries.iter();
        let mine = entries.filter(|(_, e)| e.owner == Owner::App(number));
        for name in mine.map(|(name, _)| name.clone()).collect::<Vec<_>>() {
            registry.remove(&name);
        }
        self.note(|| format!("app {number} leaves {at}"));
    }

    fn registry_goes_or_comes(&mut self) {
        let at = self.rng.usize(..3);
        let now = self.now;
        let loses_all = self.rng.u8(..3) == 0;
        let registry = &mut self.registries[at];
        registry.up = !registry.up;
        if !registry.up {
            self.note(|| format!("registry {at} goes"));
            return;
        }
        registry.version += 1;
        registry
            .entries
            .values_mut()
            .for_each(|entry| entry.expires = now + LEASE);
        if loses_all {
            registry.entries.clear();
            for app in self.apps.iter_mut().filter(|app| app.alive) {
                let later = now + Duration::from_secs(self.rng.u64(..8));
                if let Some(from) = app.registers.get_mut(&at) {
                    *from = later;
                }
            }
        }
        self.note(|| format!("registry {at} comes, empty: {loses_all}"));
    }

    fn line_breaks_or_heals(&mut self) {
        let hub = self.rng.usize(..self.hubs.len());
        let at = self.rng.usize(..3);
        let link = &mut self.hubs[hub].links[at];
        link.reachable = !link.reachable;
        let text = format!("hub {hub} reaches {at}: {}", link.reachable);
        self.note(|| text);
    }

    fn hub_dies_or_starts(&mut self) {
        let number = self.rng.usize(..self.hubs.len());
        let with_disk = self.rng.u8(..3) == 0;
        let (now, rules) = (self.now, self.rules.clone());
        let hub = &mut self.hubs[number];
        if hub.up {
            hub.kill(with_disk);
            self.is_confused |= with_disk && self.registries.iter().any(has_lost_mark);
            self.note(|| format!("hub {number} dies, with its disk: {with_disk}"));
            return;
        }
        hub.start(&self.registries, &rules, now);
        if number == 2 {
            hub.set_role(Role::Leader, now);
        } else if self.leader.is_some() && self.see_lease[number] {
            hub.set_role(Role::Follower, now);
        }
        self.note(|| format!("hub {number} starts"));
    }

    fn leader_changes(&mut self) {
        let Some(leader) = self.leader.take() else {
            return;
        };
        let now = self.now;
        self.hubs[leader].set_role(Role::Unknown, now);
        let next = if self.rng.bool() { 1 - leader } else { leader };
        let can_lead = self.hubs[next].up && self.see_lease[next];
        let next = if can_lead { next } else { leader };
        self.elected = Some((next, now + Duration::from_secs(self.rng.u64(1..8))));
        self.note(|| format!("hub {leader} no longer leads"));
    }

    /// A hub is cut off from where the lease is, or no longer.
    fn lease_is_seen_or_not(&mut self) {
        let hub = self.rng.usize(..2);
        self.see_lease[hub] = !self.see_lease[hub];
        let sees = self.see_lease[hub];
        self.note(|| format!("hub {hub} sees the lease: {sees}"));
        match self.leader {
            Some(leader) if sees && self.hubs[hub].up && leader != hub => {
                self.hubs[hub].set_role(Role::Follower, self.now);
            }
            Some(leader) if !sees && leader == hub => {
                self.leader = None;
                let later = self.now + Duration::from_secs(self.rng.u64(2..8));
                self.elected = Some((1 - hub, later));
                self.hubs[hub].set_role(Role::Unknown, self.now);
            }
            _ if !sees => self.hubs[hub].set_role(Role::Unknown, self.now),
            _ => {}
        }
    }

    fn rules_change(&mut self) {
        (self.rules, self.feeds) = rules(&mut self.rng);
        self.ruled = self.now;
        for hub in self.hubs.iter_mut().filter(|hub| hub.up) {
            hub.set_rules(&self.rules, self.now);
        }
        let feeds = format!("{:?}", self.feeds);
        self.note(|| format!("new rules: fed are {feeds}"));
    }

    fn mark_is_lost(&mut self) {
        let at = self.rng.usize(..3);
        let registry = &mut self.registries[at];
        if registry.by_content || !registry.up {
            return;
        }
        let entries = registry.entries.values_mut();
        let mut copies: Vec<_> = entries
            .filter(|e| matches!(e.owner, Owner::Hub { hub, .. } if hub < 2))
            .collect();
        if copies.is_empty() {
            return;
        }
        let which = self.rng.usize(..copies.len());
        // Too young to have been seen with its mark.
        self.is_confused |= copies[which].dirty + NEWS > self.now;
        let copy = &mut copies[which].instance;
        copy.metadata = copy
            .metadata
            .iter()
            .filter(|(key, _)| *key != ORIGIN_MARK)
            .collect();
        registry.version += 1;
        // Whoever did not see the mark before cannot know; and another mesh never knows.
        let all_saw = |hub: &Hub| {
            let since = hub.links[at].since;
            hub.up && hub.mesh == "one" && since.is_some_and(|since| since + SETTLED < self.now)
        };
        self.is_confused |= !self.hubs.iter().all(all_saw);
        self.note(|| format!("a mark is lost in {at}"));
    }

    /// Everything works again.
    pub(crate) fn heal(&mut self) {
        let (now, rules) = (self.now, self.rules.clone());
        self.see_lease = [true; 2];
        for (number, hub) in self.hubs.iter_mut().enumerate().take(2) {
            if hub.up && hub.role == Role::Unknown && self.leader.is_some_and(|l| l != number) {
                hub.set_role(Role::Follower, now);
            }
        }
        for registry in &mut self.registries {
            if !registry.up {
                registry.up = true;
                registry.version += 1;
                let entries = registry.entries.values_mut();
                entries.for_each(|entry| entry.expires = now + LEASE);
            }
        }
        for number in 0..self.hubs.len() {
            let hub = &mut self.hubs[number];
            if !hub.up {
                hub.start(&self.registries, &rules, now);
                let follows = number < 2 && self.leader.is_some();
                match (number, follows) {
                    (2, _) => hub.set_role(Role::Leader, now),
                    (_, true) => hub.set_role(Role::Follower, now),
                    _ => {}
                }
            }
            hub.links.iter_mut().for_each(|link| link.reachable = true);
        }
        self.note(|| "all is well again".to_owned());
    }

    /// What registries hold is what applications make of them.
    pub(crate) fn check_end(&mut self) {
        for at in 0..self.registries.len() {
            let mut expected: BTreeMap<Place, (u32, bool)> = BTreeMap::new();
            for app in self.apps.iter().filter(|app| app.alive) {
                let feeds = |from: &usize| *from == at || self.feeds[at].contains(from);
                if app.registers.keys().any(feeds) {
                    expected.insert(app.place(), (app.weight, app.healthy));
                }
            }
            let entries = self.registries[at].entries.values();
            let found: Vec<(Place, (u32, bool))> = entries
                .map(|e| (place(&e.instance), (e.instance.weight, e.instance.healthy)))
                .collect();
            let as_map: BTreeMap<Place, (u32, bool)> = found.iter().cloned().collect();
            if as_map != expected || found.len() != expected.len() {
                let name = self.registries[at].name.clone();
                let entries: Vec<_> = self.registries[at].entries.iter().collect();
                let entries: Vec<String> = entries
                    .iter()
                    .map(|(name, e)| format!("{name} {:?}", e.owner))
                    .collect();
                for hub in 0..self.hubs.len() {
                    let status = format!("{:?}", self.hubs[hub].sync.status().targets);
                    self.note(|| status);
                    let sees = self.hubs[hub].sees();
                    self.note(|| sees);
                }
                self.break_law(format!(
                    "{name} holds {entries:?} {found:?}, not {expected:?}"
                ));
            }
        }
    }
}

fn has_lost_mark(registry: &Registry) -> bool {
    let mut entries = registry.entries.values();
    entries.any(|entry| {
        matches!(entry.owner, Owner::Hub { .. })
            && entry.instance.metadata.get(ORIGIN_MARK).is_none()
    })
}
