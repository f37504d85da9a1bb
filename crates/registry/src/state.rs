//! The registry's logic without disk, threads or clocks: commands and the time go in, changes come out.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use base::FieldError;

use crate::error::Error;
use crate::limits::Limits;
use crate::model::{Change, ChangeKind, Instance, InstanceRef};
use crate::services::{Draft, Services};

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
}

/// Commands gathered for one commit. Dropping it undoes them but for renewed leases, which does no harm: a lease that is
/// too long by one TTL.
pub(crate) struct Batch {
    draft: Draft,
    revision: u64,
    changes: Vec<Change>,
    /// Leases to start when the batch is committed.
    started: Vec<(InstanceRef, Option<Duration>)>,
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

    fn change(&mut self, kind: ChangeKind, instance: Arc<Instance>) {
        self.revision += 1;
        let revision = self.revision;
        let reference = instance.reference();
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
        instances: Vec<Instance>,
        now: Instant,
    ) -> State {
        let mut draft = Draft::of(&Services::default());
        let mut leases = Leases::default();
        for instance in instances {
            leases.start(instance.reference(), instance.ttl, now);
            draft.put(Arc::new(instance));
        }
        State {
            limits,
            services: draft.finish(revision),
            leases,
        }
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
        }
    }

    /// Makes a batch the state. Call it when the batch is on disk.
    pub(crate) fn commit(&mut self, batch: Batch, now: Instant) -> Vec<Change> {
        for change in &batch.changes {
            if change.kind != ChangeKind::Put {
                self.leases.end(&change.instance.reference());
            }
        }
        for (reference, ttl) in batch.started {
            // An instance of an earlier command may be gone by a later one of the same batch.
            if batch.draft.get(&reference).is_some() {
                self.leases.start(reference, ttl, now);
            }
        }
        self.services = batch.draft.finish(batch.revision);
        batch.changes
    }

    /// Puts instances in; all of them or, with an error, none.
    pub(crate) fn register(
        &self,
        batch: &mut Batch,
        instances: Vec<Instance>,
    ) -> Result<Vec<Registered>, Error> {
        self.check_batch(instances.len())?;
        let mut checked = Vec::with_capacity(instances.len());
        for (index, mut instance) in instances.into_iter().enumerate() {
            if instance.id.is_empty() {
                instance.id = instance.default_id().into();
            }
            let located = |e: FieldError| e.in_index(index).in_field("instances");
            self.limits.check(&instance).map_err(located)?;
            if let Some(service) = self.services.get(&instance.service) {
                // One copy of the name for all instances of a service.
                instance.service = service.key.clone();
            }
            checked.push(Arc::new(instance));
        }
        self.check_room(batch, &checked)?;
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
            batch.started.push((reference, instance.ttl));
            if !before.is_some_and(|before| before.same_content(&instance)) {
                batch.change(ChangeKind::Put, instance);
            }
        }
        Ok(registered)
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
                Some(instance) => {
                    renewed.renewed += 1;
                    batch.started.push((reference, instance.ttl));
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

    /// Takes out what was not renewed in time, at most `limit` instances.
    pub(crate) fn lapse(&mut self, batch: &mut Batch, now: Instant, limit: usize) {
        for reference in self.leases.overdue(now, limit) {
            if let Some(instance) = batch.draft.get(&reference).cloned() {
                batch.change(ChangeKind::Lapsed, instance);
            }
        }
    }

    /// Puts off what could not be taken out because the disk failed.
    pub(crate) fn put_off(&mut self, changes: &[Change], now: Instant, by: Duration) {
        for change in changes {
            self.leases
                .start(change.instance.reference(), Some(by), now);
        }
    }

    /// When the next lease can lapse.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.leases.next()
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
}

/// When each lease ends. The heap has one entry for a lease; a renewal only moves `deadlines`, and the entry is put
/// back when its time comes.
#[derive(Default)]
struct Leases {
    deadlines: HashMap<InstanceRef, Lease>,
    heap: BinaryHeap<Reverse<(Instant, InstanceRef)>>,
}

struct Lease {
    deadline: Instant,
    /// Time of its entry in the heap: an entry of another time is left over from an earlier life of the id.
    queued: Instant,
}

impl Leases {
    fn start(&mut self, reference: InstanceRef, ttl: Option<Duration>, now: Instant) {
        let Some(ttl) = ttl else {
            self.deadlines.remove(&reference);
            return;
        };
        let deadline = now + ttl;
        match self.deadlines.get_mut(&reference) {
            // A shorter lease than before needs an earlier entry.
            Some(lease) if lease.queued <= deadline => lease.deadline = deadline,
            _ => {
                let queued = deadline;
                self.deadlines
                    .insert(reference.clone(), Lease { deadline, queued });
                self.heap.push(Reverse((queued, reference)));
            }
        }
    }

    fn end(&mut self, reference: &InstanceRef) {
        self.deadlines.remove(reference);
    }

    fn next(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }

    /// Ends the leases that are over.
    fn overdue(&mut self, now: Instant, limit: usize) -> Vec<InstanceRef> {
        let mut overdue = Vec::new();
        while overdue.len() < limit {
            match self.heap.peek() {
                Some(Reverse((at, _))) if *at <= now => {}
                _ => break,
            }
            let Some(Reverse((at, reference))) = self.heap.pop() else {
                break;
            };
            let Some(lease) = self.deadlines.get_mut(&reference) else {
                continue;
            };
            if lease.queued != at {
                continue;
            }
            if lease.deadline > now {
                lease.queued = lease.deadline;
                self.heap.push(Reverse((lease.queued, reference)));
                continue;
            }
            self.deadlines.remove(&reference);
            overdue.push(reference);
        }
        overdue
    }
}

#[cfg(test)]
mod tests;
