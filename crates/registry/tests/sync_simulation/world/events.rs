//! What happens to applications, registries and hubs.

use std::collections::BTreeMap;
use std::time::Duration;

use registry::{ORIGIN_MARK, Role};

use super::{SETTLED, World, rules};
use crate::NEWS;
use crate::hub::Hub;
use crate::registry::{LEASE, Owner, Registry};

impl World {
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
}

fn has_lost_mark(registry: &Registry) -> bool {
    let mut entries = registry.entries.values();
    entries.any(|entry| {
        matches!(entry.owner, Owner::Hub { .. })
            && entry.instance.metadata.get(ORIGIN_MARK).is_none()
    })
}
