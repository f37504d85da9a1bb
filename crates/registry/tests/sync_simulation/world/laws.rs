//! The laws that hold at every moment, and what has to be in the end.

use std::collections::BTreeMap;
use std::time::Instant;

use registry::{ORIGIN_MARK, Role};

use super::{App, SETTLED, World};
use crate::NEWS;
use crate::hub::TakenOut;
use crate::registry::{Place, place};

impl World {
    /// The application behind an entry, if it is alive and registered where the registry is fed from.
    fn living(&self, at: usize, place: &Place) -> Option<&App> {
        let app = self.apps.iter().find(|app| app.place() == *place)?;
        let feeds = |from: &usize| *from == at || self.feeds[at].contains(from);
        let steady = app.left.is_none_or(|left| left + NEWS < self.now)
            && (self.ruled == self.start || self.ruled + NEWS < self.now);
        (app.alive && steady && app.present.keys().any(feeds)).then_some(app)
    }

    pub(super) fn check_taken_out(&mut self, gone: &TakenOut) {
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

    pub(super) fn check_lapsed(&mut self, at: usize, hub: usize, place: &Place) {
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
    pub(super) fn check_copies(&mut self) {
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
