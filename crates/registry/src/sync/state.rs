//! Synchronisation without tasks, channels and clocks: what registries hold and the time go in, what they are to hold comes
//! out.
//!
//! The laws: an instance is copied from the registry where an application put it, never from a copy; what an application
//! registered in the target itself is not copied there; only what is known to be written by this mesh is taken out, and only
//! when its origin says so in a live session, after every registry that feeds the target was read once.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::hub::{SourceView, View};
use crate::model::{Instance, OWN_ORIGIN};
use crate::source::{ORIGIN_MARK, Wanted};
use crate::sync::budget::Budget;
use crate::sync::config::{ORPHAN_HOLD, WRITES_PER_SECOND};
use crate::sync::endpoint::{Endpoint, ServiceId};
use crate::sync::index::{Index, There, Whose};
use crate::sync::owned::{OwnedChange, OwnedCopy};
use crate::sync::record::{Original, Record};
use crate::sync::round::{Candidate, Round};
use crate::sync::rule::{Leg, SyncRule};
use crate::sync::status::{RuleStatus, SyncStatus, TargetStatus};

/// After another hub leads for this long it has taken over all copies: this one lets go of its leases.
const HANDOVER: Duration = Duration::from_secs(30);

/// Which hub of a mesh writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Role {
    /// This one.
    Leader,
    /// Another one.
    Follower,
    /// Nobody knows: what is written stays as it is.
    Unknown,
}

/// What has to be done after a step, in this order.
#[derive(Debug, Default)]
pub struct Step {
    /// First to be kept for the next life of the hub.
    pub owned: Vec<OwnedChange>,
    /// What each registry is to hold; one that is not named keeps what it was told before.
    pub wanted: BTreeMap<Arc<str>, Wanted>,
    /// Registries in which this hub does no more than to keep what it wrote.
    pub rest: Vec<Arc<str>>,
    /// Registries whose leases this hub lets go of without taking anything out.
    pub release: Vec<Arc<str>>,
    /// When the next step has something to do, if nothing happens before.
    pub next: Option<Instant>,
}

/// The state of synchronisation.
#[derive(Debug)]
pub struct SyncState {
    mesh: Arc<str>,
    rules: Arc<[SyncRule]>,
    role: Role,
    /// When the role began.
    since: Instant,
    /// How often this hub began to lead.
    term: u64,
    /// Adapters write nothing.
    rests: bool,
    /// Leases are let go of, or there are none.
    released: bool,
    targets: BTreeMap<Arc<str>, Target>,
    indexes: HashMap<Arc<str>, Index>,
    /// Since when each source has been live, in which of its sessions.
    live: HashMap<Arc<str>, (u64, Instant)>,
    rule_status: Vec<RuleStatus>,
}

/// One registry that is written to.
#[derive(Debug, Default)]
pub(crate) struct Target {
    pub(crate) records: BTreeMap<Endpoint, Record>,
    pub(crate) budget: Budget,
    pub(crate) status: TargetStatus,
}

impl SyncState {
    /// Nothing is written before this hub leads and there is a rule. `owned` is what the mesh wrote in earlier lives.
    pub fn new(mesh: &str, owned: Vec<OwnedCopy>, now: Instant) -> SyncState {
        let mut targets: BTreeMap<Arc<str>, Target> = BTreeMap::new();
        for owned in owned {
            let records = &mut targets.entry(owned.target).or_default().records;
            let endpoint = Endpoint::of(&owned.copy);
            records.insert(endpoint, Record::known(owned.origin, owned.copy, now));
        }
        SyncState {
            mesh: mesh.into(),
            rules: Arc::new([]),
            role: Role::Unknown,
            since: now,
            term: 0,
            rests: true,
            released: true,
            targets,
            indexes: HashMap::new(),
            live: HashMap::new(),
            rule_status: Vec::new(),
        }
    }

    /// These are the rules from now on.
    pub fn set_rules(&mut self, rules: Arc<[SyncRule]>, now: Instant) {
        if self.rules != rules {
            self.rules = rules;
            self.doubt(now);
        }
    }

    /// Whether this hub writes from now on.
    pub fn set_role(&mut self, role: Role, now: Instant) {
        if self.role != role {
            self.role = role;
            self.since = now;
            if role == Role::Leader {
                // Another hub may have led meanwhile.
                self.term += 1;
                self.doubt(now);
            }
        }
    }

    fn doubt(&mut self, now: Instant) {
        let targets = self.targets.values_mut();
        for record in targets.flat_map(|target| target.records.values_mut()) {
            record.doubt(now);
        }
    }

    /// How it is doing, as of the last step.
    pub fn status(&self) -> SyncStatus {
        let targets = self.targets.iter();
        SyncStatus {
            role: self.role,
            store_failure: None,
            rules: self.rule_status.clone(),
            targets: targets
                .map(|(name, target)| (name.clone(), target.status.clone()))
                .collect(),
        }
    }

    /// Compares what registries hold with what they should.
    pub fn step(&mut self, view: &View, now: Instant) -> Step {
        self.live.retain(|name, (session, _)| {
            let source = view.sources.get(name);
            source.is_some_and(|source| source.live && source.session == *session)
        });
        for (name, source) in view.sources.iter().filter(|(_, source)| source.live) {
            self.live
                .entry(name.clone())
                .or_insert((source.session, now));
        }
        let mut step = Step::default();
        self.indexes
            .retain(|name, _| view.sources.contains_key(name));
        for (name, target) in &mut self.targets {
            if !view.sources.contains_key(name) {
                target.status = TargetStatus {
                    missing: true,
                    copies: target.records.len(),
                    ..TargetStatus::default()
                };
            }
        }
        let writable = view.sources.iter();
        let writable = writable.filter(|(name, _)| name.as_ref() != OWN_ORIGIN);
        let targets: Vec<(&Arc<str>, &SourceView)> = writable
            .filter(|(name, _)| {
                self.targets.contains_key(*name) || self.legs_to(name).next().is_some()
            })
            .collect();
        for (name, there) in &targets {
            let first = self.first(name, now);
            let index = self.indexes.entry((*name).clone()).or_default();
            index.update(&self.mesh, there);
            if there.live
                && let Some(target) = self.targets.get_mut(*name)
            {
                let nothing = There::default();
                for (endpoint, record) in &mut target.records {
                    record.look(index.get(endpoint).unwrap_or(&nothing), first, now);
                }
            }
        }
        let rules = self.rules.iter();
        let mut rules: Vec<RuleStatus> = rules.map(|rule| RuleStatus::new(rule, view)).collect();
        if self.role != Role::Leader {
            self.rule_status = rules;
            self.follow(&targets, &mut step, now);
            return step;
        }
        self.rests = false;
        self.released = false;
        for (name, there) in targets {
            let candidates = self.candidates(name, view);
            let first = self.first(name, now);
            let mut round = Round {
                name,
                view,
                there,
                target: self.targets.remove(name).unwrap_or_default(),
                wanted: Wanted::default(),
                status: TargetStatus::default(),
                rules: &mut rules,
                term: self.term,
                first,
                step: &mut step,
                now,
            };
            self.reconcile(&mut round, candidates);
            let Round { target, wanted, .. } = round;
            step.wanted.insert(name.clone(), wanted);
            if !target.records.is_empty() || self.legs_to(name).next().is_some() {
                self.targets.insert(name.clone(), target);
            }
        }
        self.rule_status = rules;
        step
    }

    /// While this hub does not lead it learns what the leader writes, and lets go of what it wrote itself.
    fn follow(&mut self, targets: &[(&Arc<str>, &SourceView)], step: &mut Step, now: Instant) {
        if !self.rests {
            self.rests = true;
            step.rest = self.targets.keys().cloned().collect();
        }
        if self.role != Role::Follower {
            return;
        }
        for (name, there) in targets.iter().filter(|(_, there)| there.live) {
            if let Some(index) = self.indexes.get(*name) {
                let target = self.targets.entry((*name).clone()).or_default();
                target.learn(name, index, &self.mesh, &mut step.owned, now);
                target.status = TargetStatus {
                    copies: there.copies.instances(),
                    ..TargetStatus::default()
                };
            }
        }
        if self.released {
            return;
        }
        let due = self.since + HANDOVER;
        if now < due {
            step.next = Some(due);
            return;
        }
        self.released = true;
        step.release = self.targets.keys().cloned().collect();
    }

    /// The rules and their directions that lead to a target.
    fn legs_to<'a>(
        &'a self,
        target: &'a str,
    ) -> impl Iterator<Item = (usize, &'a SyncRule, &'a Leg)> {
        let rules = self.rules.iter().enumerate();
        let legs = rules.flat_map(|(at, rule)| rule.legs.iter().map(move |leg| (at, rule, leg)));
        legs.filter(move |(_, _, leg)| leg.to.contains(target))
    }

    /// How long what a target shows, or no longer shows, is not believed.
    fn hold(&self, target: &str) -> Duration {
        let holds = self.legs_to(target).map(|(_, rule, _)| rule.orphan_hold);
        holds.max().unwrap_or(ORPHAN_HOLD)
    }

    /// When the session with a target has just begun: until when what it shows is not yet believed.
    fn first(&self, target: &str, now: Instant) -> Option<Instant> {
        let (_, since) = self.live.get(target)?;
        (*since == now).then(|| now + self.hold(target))
    }

    /// What rules want in a target, by endpoint.
    fn candidates(&self, name: &Arc<str>, view: &View) -> BTreeMap<Endpoint, Candidate> {
        let mut candidates: BTreeMap<Endpoint, Candidate> = BTreeMap::new();
        for (at, rule, leg) in self.legs_to(name) {
            let sources = view.sources.iter();
            for (source, from) in sources.filter(|(s, _)| *s != name && leg.from.contains(s)) {
                let mark = format!("{}/{source}", self.mesh);
                for service in from.own.iter().filter(|s| rule.means_service(&s.key)) {
                    let id = ServiceId::of(&service.key);
                    let held = from.held.get(&service.key);
                    for instance in service.instances.iter() {
                        if !rule.means(instance) || !self.is_original(source, from, &id, instance) {
                            continue;
                        }
                        let candidate = Candidate {
                            rule: at,
                            dry_run: rule.dry_run,
                            source: source.clone(),
                            is_read: from.synced,
                            is_live: from.live,
                            is_held: held.is_some_and(|held| held.instance(&instance.id).is_some()),
                            copy: rule.copy(leg, instance, &mark),
                        };
                        self.take_better(name, candidate, &mut candidates);
                    }
                }
            }
        }
        candidates
    }

    /// Of several the first rule's counts, but what writes before what does not, and what the copy is of already.
    fn take_better(
        &self,
        target: &str,
        mut candidate: Candidate,
        candidates: &mut BTreeMap<Endpoint, Candidate>,
    ) {
        let endpoint = Endpoint::of(&candidate.copy);
        if let Some(other) = candidates.get(&endpoint) {
            let records = self.targets.get(target).map(|target| &target.records);
            let known = records.and_then(|records| records.get(&endpoint));
            let is_known = |source: &Arc<str>| known.is_some_and(|record| record.origin == *source);
            let rank = |c: &Candidate| (!c.dry_run, is_known(&c.source));
            if rank(&candidate) <= rank(other) {
                return;
            }
        }
        candidate.copy.id = endpoint.copy_id(&self.mesh);
        candidates.insert(endpoint, candidate);
    }

    /// Whether an application put it there: not a copy of whatever mesh, and not one of this mesh that lost its mark.
    fn is_original(
        &self,
        source: &str,
        view: &SourceView,
        service: &ServiceId,
        instance: &Instance,
    ) -> bool {
        if instance.metadata.get(ORIGIN_MARK).is_some() {
            return false;
        }
        match Whose::of(instance, service, &self.mesh, view) {
            Whose::Others => return true,
            Whose::Lost => return false,
            Whose::Unknown => {}
        }
        let records = self.targets.get(source).map(|target| &target.records);
        let Some(records) = records.filter(|records| !records.is_empty()) else {
            return true;
        };
        let endpoint = service.endpoint(instance);
        records
            .get(&endpoint)
            .is_none_or(|record| !record.has_lost_mark())
    }

    /// What is known of the original of a copy that no rule wants at present.
    fn original(&self, round_name: &str, record: &Record, view: &View, all_read: bool) -> Original {
        let Some(origin) = view.sources.get(&record.origin) else {
            return Original::Unruled;
        };
        let mut legs = self.legs_to(round_name);
        let mut rules = legs
            .by_ref()
            .filter(|(_, _, leg)| leg.from.contains(&record.origin));
        match rules.next() {
            None => return Original::Unruled,
            Some((_, first, _)) => {
                if first.dry_run && rules.all(|(_, rule, _)| rule.dry_run) {
                    return Original::DryRun;
                }
            }
        }
        match self.live.get(&record.origin) {
            None => Original::Away,
            Some(_) if !origin.synced => Original::Away,
            Some(_) if !all_read => Original::Unread,
            Some((_, since)) => Original::Gone(*since),
        }
    }

    fn reconcile(&self, round: &mut Round<'_>, mut candidates: BTreeMap<Endpoint, Candidate>) {
        let rules: Vec<(&SyncRule, &Leg)> = self
            .legs_to(round.name)
            .map(|(_, rule, leg)| (rule, leg))
            .collect();
        let feeds = |source: &str| rules.iter().any(|(_, leg)| leg.from.contains(source));
        let mut sources = round.view.sources.iter();
        let all_read = sources.all(|(name, source)| !feeds(name) || source.synced);
        let hold = (self.mesh.as_ref(), self.hold(round.name));
        let rate = rules.iter().map(|(rule, _)| rule.writes_per_second).min();
        // What no rule leads to any longer has to be taken out too.
        let rate = rate.unwrap_or(WRITES_PER_SECOND);
        round.target.budget.fill(rate, round.now);
        let index = self.indexes.get(round.name);
        let nothing = There::default();
        let mut records = std::mem::take(&mut round.target.records);
        records.retain(|endpoint, record| {
            let present = index.and_then(|index| index.get(endpoint));
            let present = present.unwrap_or(&nothing);
            let candidate = candidates.remove(endpoint);
            let original = match &candidate {
                Some(candidate) => {
                    round.follow_original(record, candidate);
                    Original::There
                }
                None => self.original(round.name, record, round.view, all_read),
            };
            let was_going = record.is_going();
            let verdict = record.judge(original, present, round.there, hold, round.now);
            round.obey(record, verdict, was_going)
        });
        round.target.records = records;
        if round.there.live && rules.iter().any(|(rule, _)| !rule.dry_run) {
            let copies = index.into_iter().flat_map(Index::copies);
            for (endpoint, there, copy) in copies {
                if !candidates.contains_key(endpoint) {
                    round.adopt(&self.mesh, endpoint, there, copy);
                }
            }
        }
        for (endpoint, candidate) in candidates {
            let present = index.and_then(|index| index.get(&endpoint));
            round.begin(endpoint, candidate, present.unwrap_or(&nothing));
        }
        round.finish();
    }
}

impl Target {
    /// What has the mark of the mesh is the mesh's, also when it loses the mark later.
    fn learn(
        &mut self,
        name: &Arc<str>,
        index: &Index,
        mesh: &str,
        owned: &mut Vec<OwnedChange>,
        now: Instant,
    ) {
        for (endpoint, there, copy) in index.copies() {
            let mark = copy.metadata.get(ORIGIN_MARK).unwrap_or_default();
            let Some((_, origin)) = mark.split_once('/') else {
                continue;
            };
            let id = endpoint.copy_id(mesh);
            let copy = Instance {
                id,
                ..copy.as_ref().clone()
            };
            let known = self.records.get(endpoint);
            if known.is_none_or(|known| !known.copy.same_content(&copy)) {
                let mut record = Record::known(origin.into(), Arc::new(copy), now);
                record.look(there, None, now);
                owned.push(OwnedChange::Put(record.owned(name)));
                self.records.insert(endpoint.clone(), record);
            }
        }
        self.records.retain(|endpoint, record| {
            let there = index.get(endpoint);
            let is_there = there
                .is_some_and(|there| there.copy.is_some() || there.is_unmarked() || there.held);
            if !is_there {
                let (target, id) = (name.clone(), record.copy.id.clone());
                owned.push(OwnedChange::Forget { target, id });
            }
            is_there
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ServiceKey;

    #[test]
    fn what_was_written_into_a_registry_that_is_configured_no_longer_is_said() {
        let now = Instant::now();
        let mut copy = Instance::new(ServiceKey::new("http", "shop"), "10.0.0.1", 80);
        copy.id = "copy".into();
        let owned = OwnedCopy {
            target: "zk".into(),
            origin: "nacos".into(),
            copy: Arc::new(copy),
        };
        let mut state = SyncState::new("mesh", vec![owned], now);
        state.set_role(Role::Leader, now);
        state.step(&View::default(), now);
        let status = state.status();
        let target = status.targets.get("zk").expect("it is remembered");
        assert_eq!((target.missing, target.copies, target.held), (true, 1, 0));
    }
}
