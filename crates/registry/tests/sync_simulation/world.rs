//! Registries, applications and hubs in one random history, and the laws that hold in it.

mod events;
mod laws;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fastrand::Rng;
use registry::{Instance, Role, SyncRule};
use serde_json::json;

use super::HOLD;
use super::hub::Hub;
use super::registry::{Owner, Place, Registry, instance, place};

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
}
