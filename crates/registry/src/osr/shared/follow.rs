//! What etcd says has changed, and what is known here because of it.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use super::super::add;
use super::keys::Key;
use super::records::{self, Picture, Record, Said, Session};
use super::{Below, Held, Shared};
use crate::adapters::etcd::client::Failure;
use crate::adapters::etcd::messages::{DELETE, WatchResponse};
use crate::model::{ChangeKind, InstanceRef};
use crate::sessions::SessionId;
use crate::source::Trouble;
use crate::state::{Batch, State};
use crate::words::Words;

impl Shared {
    /// Takes what a watch says.
    pub(super) fn follow(&mut self, response: &WatchResponse) -> Result<(), Failure> {
        if response.canceled {
            let reason = format!("the watch was ended: {}", response.cancel_reason);
            let mut failure = Failure::new(Trouble::Unreachable, reason);
            failure.is_gone = response.compact_revision > 0;
            return Err(failure);
        }
        let mark = self.keys.deregistered();
        let kvs = || response.events.iter().filter_map(|event| event.kv.as_ref());
        let on_request: HashSet<i64> = kvs()
            .filter(|kv| kv.key == mark)
            .map(|kv| kv.mod_revision)
            .collect();
        let mut batch = self.state.batch();
        let mut within = 0;
        for event in &response.events {
            let Some(kv) = &event.kv else { continue };
            // A response has whole transactions.
            within = if self.applied == kv.mod_revision {
                within + 1
            } else {
                0
            };
            self.applied = kv.mod_revision;
            let revision = records::revision(kv.mod_revision, within);
            let Some(key) = self.keys.read(&kv.key) else {
                continue;
            };
            if event.kind == DELETE {
                match key {
                    Key::Instance(reference) => {
                        let is_closed = self.is_closed(&reference, kv.mod_revision);
                        let kind = match is_closed || on_request.contains(&kv.mod_revision) {
                            true => ChangeKind::Deregistered,
                            false => ChangeKind::Lapsed,
                        };
                        self.gone(&mut batch, &reference, kind, revision);
                    }
                    Key::Session(id) => self.end_session(id, kv.mod_revision),
                    Key::Interface(key) => self.interfaces.remove(&key),
                    Key::Document(name) => self.documents.remove(&name),
                }
                continue;
            }
            match records::said(key.clone(), kv, &self.limits) {
                Ok(Said::Instance(reference, mut record)) => {
                    record.instance.revision = revision;
                    self.put(&mut batch, &reference, record);
                }
                Ok(Said::Session(id, session)) => self.begin_session(id, session),
                Ok(Said::Interface(interface)) => drop(self.interfaces.put(*interface)),
                Ok(Said::Document(name, value)) => self.documents.put(name, value),
                Err(reason) => records::skipped(&key, &reason),
            }
        }
        self.publish(batch);
        self.answer_waiting();
        Ok(())
    }

    fn put(&mut self, batch: &mut Batch, reference: &InstanceRef, record: Record) {
        let Record {
            instance,
            lease,
            revision,
        } = record;
        self.leave(reference);
        self.stay(reference, lease, revision);
        self.state.apply(batch, instance);
    }

    fn stay(&mut self, reference: &InstanceRef, lease: i64, revision: i64) {
        self.below
            .insert(reference.clone(), Below { lease, revision });
        *self.members.entry(lease).or_default() += 1;
        if let Some(held) = self.held.get_mut(&lease) {
            held.instances.insert(reference.clone());
        }
    }

    fn gone(
        &mut self,
        batch: &mut Batch,
        reference: &InstanceRef,
        kind: ChangeKind,
        revision: u64,
    ) {
        self.leave(reference);
        let was_there = batch.take_out(reference, kind, revision);
        if was_there && kind == ChangeKind::Lapsed {
            add(&self.counters.lapsed, 1);
        }
    }

    fn leave(&mut self, reference: &InstanceRef) {
        let Some(below) = self.below.remove(reference) else {
            return;
        };
        if let Some(members) = self.members.get_mut(&below.lease) {
            *members -= 1;
            if *members == 0 {
                self.members.remove(&below.lease);
            }
        }
        if let Some(held) = self.held.get_mut(&below.lease) {
            held.instances.remove(reference);
            if held.instances.is_empty() && held.closed_at.is_some() {
                self.held.remove(&below.lease);
            }
        }
    }

    fn begin_session(&mut self, id: SessionId, session: Session) {
        self.held.entry(session.lease).or_insert_with(|| Held {
            session: id,
            instances: HashSet::new(),
            closed_at: None,
        });
        self.sessions.insert(id, session);
    }

    fn end_session(&mut self, id: SessionId, revision: i64) {
        let Some(session) = self.sessions.remove(&id) else {
            return;
        };
        if let Some(held) = self.held.get_mut(&session.lease) {
            held.closed_at = Some(revision);
            if held.instances.is_empty() {
                self.held.remove(&session.lease);
            }
        }
    }

    /// The session that holds an instance.
    pub(super) fn session_of(&self, reference: &InstanceRef) -> Option<SessionId> {
        let below = self.below.get(reference)?;
        self.held.get(&below.lease).map(|held| held.session)
    }

    /// Whether the session that held an instance was closed; one that nobody renewed ends at once with all that it holds.
    fn is_closed(&self, reference: &InstanceRef, revision: i64) -> bool {
        let below = self.below.get(reference);
        let held = below.and_then(|below| self.held.get(&below.lease));
        let closed_at = held.and_then(|held| held.closed_at);
        closed_at.is_some_and(|closed_at| closed_at < revision)
    }

    fn publish(&mut self, batch: Batch) {
        let changes = self.state.commit(batch, Instant::now());
        if !changes.is_empty() {
            add(&self.counters.commits, 1);
            self.published
                .publish(self.state.services().clone(), changes);
        }
    }

    /// Takes a whole picture; what was known before is void.
    pub(super) fn take(&mut self, picture: Picture) {
        self.below.clear();
        self.members.clear();
        self.sessions.clear();
        self.held.clear();
        for (id, session) in picture.sessions {
            self.begin_session(id, session);
        }
        self.interfaces.replace(picture.interfaces);
        self.documents.replace(picture.documents);
        let (mut instances, mut words) =
            (Vec::with_capacity(picture.records.len()), Words::default());
        for (reference, record) in picture.records {
            let mut instance = record.instance;
            words.share(&mut instance);
            self.stay(&reference, record.lease, record.revision);
            instances.push(Arc::new(instance));
        }
        let revision = records::revision(picture.revision, 0);
        self.applied = picture.revision;
        self.state = State::following(self.limits.clone(), revision, instances, words)
            .with_quotas(self.published.quotas.clone());
        self.name = picture.store;
        self.published
            .reset(self.name.clone(), self.state.services().clone());
    }
}
