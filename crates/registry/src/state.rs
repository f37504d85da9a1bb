//! The registry's logic without disk, threads or clocks: commands and the time go in, changes come out.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base::FieldError;
use foldhash::{HashMap, HashMapExt};

use crate::error::Error;
use crate::leases::Leases;
use crate::limits::Limits;
use crate::model::{Change, ChangeKind, Instance, InstanceRef, ServiceKey};
use crate::namespace::Namespace;
use crate::quota::SharedQuotas;
use crate::services::{Draft, Services};
use crate::sessions::{self, SessionClaim, SessionId, SessionState, Sessions, no_session};
use crate::words::Words;

/// What became of one instance of a registration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registered {
    /// Its id, made here if the registrar gave none.
    pub id: Arc<str>,
    /// Whether it was not there before.
    pub created: bool,
    /// Its lease.
    pub ttl: Option<Duration>,
}

/// What became of a renewal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Renewed {
    /// How many instances are there.
    pub renewed: usize,
    /// The others: they have to be registered again.
    pub unknown: Vec<InstanceRef>,
}

/// All services, their leases and the limits.
pub(crate) struct State {
    limits: Limits,
    services: Services,
    leases: Leases,
    sessions: Sessions,
    counts: Arc<Counts>,
    quotas: SharedQuotas,
    words: Words,
}

/// Services and instances of each namespace.
type Counts = HashMap<Namespace, (usize, usize)>;

/// Commands gathered for one commit. Dropping it undoes them but for renewed leases, which does no harm: a lease that is
/// too long by one TTL.
pub(crate) struct Batch {
    draft: Draft,
    revision: u64,
    changes: Vec<Change>,
    /// Leases to start when the batch is committed.
    started: Vec<(InstanceRef, Hold)>,
    /// Sessions to forget when the batch is committed.
    closed: Vec<SessionId>,
    counts: Arc<Counts>,
}

/// What keeps an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hold {
    /// A lease of its own.
    Own,
    /// A session.
    Session(SessionId),
    /// What kept it before, from now on.
    Renewed,
}

impl Batch {
    pub(crate) fn changes(&self) -> &[Change] {
        &self.changes
    }

    pub(crate) fn into_changes(self) -> Vec<Change> {
        self.changes
    }

    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    pub(crate) fn get(&self, reference: &InstanceRef) -> Option<&Arc<Instance>> {
        self.draft.get(reference)
    }

    pub(crate) fn instances(&self) -> usize {
        self.draft.instances()
    }

    /// Takes an instance out at a revision of a store's; tells whether it was there.
    pub(crate) fn take_out(
        &mut self,
        reference: &InstanceRef,
        kind: ChangeKind,
        revision: u64,
    ) -> bool {
        let Some(instance) = self.draft.get(reference).cloned() else {
            return false;
        };
        self.change_at(kind, instance, revision);
        true
    }

    fn change(&mut self, kind: ChangeKind, instance: Arc<Instance>) {
        self.change_at(kind, instance, self.revision + 1);
    }

    fn change_at(&mut self, kind: ChangeKind, instance: Arc<Instance>, revision: u64) {
        self.revision = revision;
        let reference = instance.reference();
        let before = self.draft.count(&instance.service).1;
        let (instance, previous) = match kind {
            ChangeKind::Put => {
                let mut stamped = instance;
                Arc::make_mut(&mut stamped).revision = revision;
                let previous = self.draft.get(&reference).cloned();
                self.draft.put(stamped.clone());
                (stamped, previous)
            }
            ChangeKind::Deregistered | ChangeKind::Lapsed => {
                self.draft.remove(&reference);
                (instance, None)
            }
        };
        let after = self.draft.count(&instance.service).1;
        if before != after {
            let counts = Arc::make_mut(&mut self.counts);
            let namespace = instance.service.namespace.clone();
            let (services, instances) = counts.entry(namespace).or_default();
            *services = *services + usize::from(before == 0) - usize::from(after == 0);
            *instances = *instances + after - before;
            if *instances == 0 {
                counts.remove(&instance.service.namespace);
            }
        }
        self.changes.push(Change {
            kind,
            revision,
            instance,
            previous,
        });
    }
}

impl State {
    /// The state after a start: every lease begins anew, because the time of the standstill is nobody's fault.
    pub(crate) fn new(
        limits: Limits,
        revision: u64,
        instances: Vec<Arc<Instance>>,
        words: Words,
        now: Instant,
    ) -> State {
        let mut draft = Draft::of(&Services::default());
        let mut leases = Leases::new(now);
        for instance in instances {
            leases.start(&instance, instance.ttl, now);
            draft.put(instance);
        }
        let services = draft.finish(revision);
        let mut counts = Counts::new();
        for service in services.iter() {
            let count = counts.entry(service.key.namespace.clone()).or_default();
            count.0 += 1;
            count.1 += service.instances.len();
        }
        State {
            limits,
            services,
            leases,
            sessions: Sessions::default(),
            counts: Arc::new(counts),
            quotas: SharedQuotas::default(),
            words,
        }
    }

    /// The state of a store that others write too and that ends leases itself.
    pub(crate) fn following(
        limits: Limits,
        revision: u64,
        instances: Vec<Arc<Instance>>,
        words: Words,
    ) -> State {
        let now = Instant::now();
        let mut state = State::new(limits, revision, instances, words, now);
        state.leases = Leases::new(now);
        state
    }

    /// The same with bounds for each namespace.
    pub(crate) fn with_quotas(self, quotas: SharedQuotas) -> State {
        State { quotas, ..self }
    }

    pub(crate) fn services(&self) -> &Services {
        &self.services
    }

    /// Begins a batch.
    pub(crate) fn batch(&self) -> Batch {
        Batch {
            draft: Draft::of(&self.services),
            revision: self.services.revision,
            changes: Vec::new(),
            started: Vec::new(),
            closed: Vec::new(),
            counts: self.counts.clone(),
        }
    }

    /// Makes a batch the state. Call it when the batch is on disk.
    pub(crate) fn commit(&mut self, batch: Batch, now: Instant) -> Vec<Change> {
        for change in &batch.changes {
            match (change.kind, &change.previous) {
                (ChangeKind::Put, None) => {}
                (ChangeKind::Put, Some(previous)) => {
                    self.leases.end(previous);
                    self.sessions.leave(previous);
                }
                _ => {
                    self.leases.end(&change.instance);
                    self.sessions.leave(&change.instance);
                }
            }
        }
        for (reference, hold) in batch.started {
            // An instance of an earlier command may be gone by a later one of the same batch.
            let Some(instance) = batch.draft.get(&reference) else {
                continue;
            };
            match hold {
                Hold::Session(id) if self.sessions.join(id, instance) => {
                    self.leases.end(instance);
                }
                Hold::Renewed if self.sessions.has(instance) => {}
                Hold::Own | Hold::Session(_) | Hold::Renewed => {
                    self.sessions.leave(instance);
                    self.leases.start(instance, instance.ttl, now);
                }
            }
        }
        for id in batch.closed {
            self.sessions.close(id);
        }
        self.counts = batch.counts;
        self.services = batch.draft.finish(batch.revision);
        batch.changes
    }

    /// Puts instances in, each under a lease of its own; all of them or, with an error, none.
    pub(crate) fn register(
        &mut self,
        batch: &mut Batch,
        instances: Vec<Instance>,
    ) -> Result<Vec<Registered>, Error> {
        self.put(batch, instances, Hold::Own)
    }

    /// The same for instances that stay as long as a session does.
    pub(crate) fn register_in(
        &mut self,
        batch: &mut Batch,
        session: &SessionClaim,
        mut instances: Vec<Instance>,
    ) -> Result<Vec<Registered>, Error> {
        let ttl = self.session(batch, session)?.ttl;
        for instance in &mut instances {
            instance.ttl = Some(ttl);
        }
        self.put(batch, instances, Hold::Session(session.id))
    }

    fn put(
        &mut self,
        batch: &mut Batch,
        instances: Vec<Instance>,
        hold: Hold,
    ) -> Result<Vec<Registered>, Error> {
        let checked = self.prepare(batch, instances)?;
        let mut registered = Vec::with_capacity(checked.len());
        for instance in checked {
            let reference = instance.reference();
            let before = batch.draft.get(&reference);
            let created = before.is_none();
            registered.push(Registered {
                id: instance.id.clone(),
                created,
                ttl: instance.ttl,
            });
            batch.started.push((reference, hold));
            if !before.is_some_and(|before| before.same_content(&instance)) {
                batch.change(ChangeKind::Put, instance);
            }
        }
        Ok(registered)
    }

    /// Completes and checks what is to be put in.
    pub(crate) fn prepare(
        &mut self,
        batch: &Batch,
        instances: Vec<Instance>,
    ) -> Result<Vec<Arc<Instance>>, Error> {
        self.check_batch(instances.len())?;
        let mut checked = Vec::with_capacity(instances.len());
        for (index, mut instance) in instances.into_iter().enumerate() {
            if instance.id.is_empty() {
                instance.id = instance.default_id().into();
            }
            let located = |e: FieldError| e.in_index(index).in_field("instances");
            self.limits.check(&instance).map_err(located)?;
            self.words.share(&mut instance);
            checked.push(Arc::new(instance));
        }
        self.check_room(batch, &checked)?;
        Ok(checked)
    }

    /// Takes an instance as a store has it.
    pub(crate) fn apply(&mut self, batch: &mut Batch, mut instance: Instance) {
        let reference = instance.reference();
        let before = batch.draft.get(&reference);
        if before.is_some_and(|before| before.same_content(&instance)) {
            return;
        }
        self.words.share(&mut instance);
        let revision = instance.revision;
        batch.change_at(ChangeKind::Put, Arc::new(instance), revision);
    }

    /// Puts the instances of a snapshot into an empty registry, and tells how many they are.
    pub(crate) fn restore(&mut self, batch: &mut Batch, instances: Vec<Instance>) -> usize {
        let count = instances.len();
        for mut instance in instances {
            self.words.share(&mut instance);
            batch.started.push((instance.reference(), Hold::Own));
            batch.change(ChangeKind::Put, Arc::new(instance));
        }
        count
    }

    /// Starts leases anew.
    pub(crate) fn renew(
        &self,
        batch: &mut Batch,
        references: Vec<InstanceRef>,
    ) -> Result<Renewed, Error> {
        self.check_batch(references.len())?;
        let mut renewed = Renewed::default();
        for reference in references {
            match batch.draft.get(&reference) {
                Some(_) => {
                    renewed.renewed += 1;
                    batch.started.push((reference, Hold::Renewed));
                }
                None => renewed.unknown.push(reference),
            }
        }
        Ok(renewed)
    }

    /// Takes instances out and tells how many were there.
    pub(crate) fn deregister(
        &self,
        batch: &mut Batch,
        references: &[InstanceRef],
    ) -> Result<usize, Error> {
        self.check_batch(references.len())?;
        let mut removed = 0;
        for reference in references {
            if let Some(instance) = batch.draft.get(reference).cloned() {
                batch.change(ChangeKind::Deregistered, instance);
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// Begins a session.
    pub(crate) fn open_session(
        &mut self,
        claim: SessionClaim,
        ttl: Duration,
        now: Instant,
    ) -> Result<SessionState, Error> {
        sessions::check_new(&self.limits, self.sessions.len(), ttl)?;
        self.sessions.open(claim, ttl, now);
        Ok(SessionState { ttl, instances: 0 })
    }

    /// Begins the time of a session anew.
    pub(crate) fn renew_session(
        &mut self,
        claim: &SessionClaim,
        now: Instant,
    ) -> Result<SessionState, Error> {
        let renewed = self.sessions.renew(claim, now);
        renewed.ok_or_else(no_session)
    }

    /// What a session holds, as of the last commit.
    pub(crate) fn session(
        &self,
        batch: &Batch,
        claim: &SessionClaim,
    ) -> Result<SessionState, Error> {
        match self.sessions.get(claim) {
            Some(state) if !batch.closed.contains(&claim.id) => Ok(state),
            _ => Err(no_session()),
        }
    }

    /// Ends a session, takes out what it holds and tells how many that were.
    pub(crate) fn close_session(
        &self,
        batch: &mut Batch,
        claim: &SessionClaim,
    ) -> Result<usize, Error> {
        self.session(batch, claim)?;
        let held = self.sessions.members(claim);
        let held = held.iter().map(|instance| instance.reference());
        // What was given to it or taken from it by an earlier command of the same batch.
        let mut last: BTreeMap<InstanceRef, bool> =
            held.map(|reference| (reference, true)).collect();
        for (reference, hold) in &batch.started {
            match hold {
                Hold::Session(id) => drop(last.insert(reference.clone(), *id == claim.id)),
                Hold::Own => drop(last.insert(reference.clone(), false)),
                Hold::Renewed => {}
            }
        }
        let mut removed = 0;
        for (reference, _) in last.into_iter().filter(|(_, is_held)| *is_held) {
            if let Some(instance) = batch.draft.get(&reference).cloned() {
                batch.change(ChangeKind::Deregistered, instance);
                removed += 1;
            }
        }
        batch.closed.push(claim.id);
        Ok(removed)
    }

    /// Takes out what was not renewed in time, at most `limit` instances.
    pub(crate) fn lapse(&mut self, batch: &mut Batch, now: Instant, limit: usize) {
        for instance in self.leases.overdue(now, limit) {
            batch.change(ChangeKind::Lapsed, instance);
        }
        let room = limit.saturating_sub(batch.changes.len());
        for instance in self.sessions.overdue(now, room) {
            batch.change(ChangeKind::Lapsed, instance);
        }
    }

    /// Puts off what could not be taken out because the disk failed.
    pub(crate) fn put_off(&mut self, changes: &[Change], now: Instant, by: Duration) {
        for change in changes {
            self.leases.start(&change.instance, Some(by), now);
        }
    }

    /// When the next lease can lapse.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let deadlines = [self.leases.next(), self.sessions.next()];
        deadlines.into_iter().flatten().min()
    }

    fn check_batch(&self, len: usize) -> Result<(), Error> {
        if len <= self.limits.batch {
            return Ok(());
        }
        Err(Error::TooMany(format!(
            "a call may name at most {} instances, names {len}",
            self.limits.batch
        )))
    }

    /// Whether all of these fit, whatever is replaced among them.
    fn check_room(&self, batch: &Batch, instances: &[Arc<Instance>]) -> Result<(), Error> {
        let mut new: HashMap<_, usize> = HashMap::new();
        for instance in instances {
            if batch.draft.get(&instance.reference()).is_none() {
                *new.entry(&instance.service).or_default() += 1;
            }
        }
        let new_in_all: usize = new.values().sum();
        self.check_quotas(batch, &new)?;
        for (service, count) in new {
            let (all, of_service) = batch.draft.count(service);
            if all + new_in_all > self.limits.instances {
                return Err(Error::TooMany(format!(
                    "the registry holds {} instances at most",
                    self.limits.instances
                )));
            }
            if of_service + count > self.limits.instances_per_service {
                let limit = self.limits.instances_per_service;
                return Err(Error::TooMany(format!(
                    "service {service} may have {limit} instances at most"
                )));
            }
        }
        Ok(())
    }

    /// Whether the namespaces may have so many more instances of these services.
    fn check_quotas(&self, batch: &Batch, new: &HashMap<&ServiceKey, usize>) -> Result<(), Error> {
        let quotas = self.quotas.load();
        if quotas.0.is_empty() {
            return Ok(());
        }
        let mut more: HashMap<&Namespace, (usize, usize)> = HashMap::new();
        for (service, count) in new {
            let (services, instances) = more.entry(&service.namespace).or_default();
            *services += usize::from(batch.draft.count(service).1 == 0);
            *instances += count;
        }
        for (namespace, (services, instances)) in more {
            let quota = quotas.of(namespace);
            let known = batch.counts.get(namespace).copied().unwrap_or_default();
            for (what, wanted, limit) in [
                ("services", known.0 + services, quota.services),
                ("instances", known.1 + instances, quota.instances),
            ] {
                if let Some(limit) = limit
                    && wanted > limit
                {
                    return Err(Error::TooMany(format!(
                        "namespace {namespace} may have {limit} {what}, and would have {wanted}"
                    )));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
