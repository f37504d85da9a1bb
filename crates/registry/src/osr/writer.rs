//! The thread that owns an embedded registry's state and file.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::{Answer, Command, Counters, Done, Pending, add, answer};
use crate::documents::Documents;
use crate::error::Error;
use crate::interfaces::{Interface, InterfaceKey, Interfaces};
use crate::limits::Limits;
use crate::model::{Change, Instance};
use crate::state::{Batch, State};
use crate::store::Store;
use crate::watch::Published;

/// Commands of one commit.
const GATHER: usize = 4096;
/// Lapsed leases of one commit.
const LAPSES: usize = 10_000;
/// After a failed write of lapsed leases.
const RETRY_LAPSE: Duration = Duration::from_secs(1);

/// What could not be written.
struct Lost {
    why: String,
    changes: Vec<Change>,
}

pub(super) struct Writer {
    pub(super) commands: Receiver<Command>,
    pub(super) state: State,
    pub(super) store: Store,
    pub(super) published: Arc<Published>,
    pub(super) interfaces: Arc<Interfaces>,
    pub(super) documents: Arc<Documents>,
    pub(super) limits: Limits,
    pub(super) counters: Arc<Counters>,
}

impl Writer {
    pub(super) fn run(mut self) {
        loop {
            let closed = match self.wait() {
                Ok(first) => self.serve(first),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            if let Some(closed) = closed {
                drop(self);
                let _ = closed.send(());
                return;
            }
            self.lapse();
        }
    }

    /// Sleeps until a command comes or a lease may be over.
    fn wait(&self) -> Result<Command, RecvTimeoutError> {
        match self.state.next_deadline() {
            None => self
                .commands
                .recv()
                .map_err(|_| RecvTimeoutError::Disconnected),
            Some(at) => self
                .commands
                .recv_timeout(at.saturating_duration_since(Instant::now())),
        }
    }

    /// Carries out all commands that are waiting, in one commit.
    fn serve(&mut self, first: Command) -> Option<oneshot::Sender<()>> {
        let mut batch = self.state.batch();
        let mut pending = Vec::new();
        let mut closed = None;
        let mut next = Some(first);
        while let Some(command) = next.take() {
            match command {
                Command::Register(instances, session, answer) => {
                    let registered = match &session {
                        None => self.state.register(&mut batch, instances),
                        Some(claim) => self.state.register_in(&mut batch, claim, instances),
                    };
                    match registered {
                        Ok(registered) => pending.push(Pending::Registered(answer, registered)),
                        Err(error) => drop(answer.send(Err(error))),
                    }
                }
                Command::Renew(references, answer) => {
                    match self.state.renew(&mut batch, references) {
                        Ok(renewed) => pending.push(Pending::Renewed(answer, renewed)),
                        Err(error) => drop(answer.send(Err(error))),
                    }
                }
                Command::Deregister(references, answer) => {
                    match self.state.deregister(&mut batch, &references) {
                        Ok(removed) => pending.push(Pending::Deregistered(answer, removed)),
                        Err(error) => drop(answer.send(Err(error))),
                    }
                }
                // What changes no instance is not on disk and need not wait for it.
                Command::OpenSession(claim, ttl, answer) => {
                    let opened = self.state.open_session(claim, ttl, Instant::now());
                    self.answer_now(answer, opened);
                }
                Command::GetSession(claim, answer) => {
                    let found = self.state.session(&batch, &claim);
                    self.answer_now(answer, found);
                }
                Command::RenewSession(claim, answer) => {
                    let renewed = self.state.renew_session(&claim, Instant::now());
                    self.answer_now(answer, renewed);
                }
                Command::CloseSession(claim, answer) => {
                    match self.state.close_session(&mut batch, &claim) {
                        Ok(removed) => pending.push(Pending::Deregistered(answer, removed)),
                        Err(error) => drop(answer.send(Err(error))),
                    }
                }
                Command::PutInterface(interface, answer) => {
                    let put = self.put_interface(*interface);
                    self.answer_now(answer, put);
                }
                Command::RemoveInterface(key, answer) => {
                    let removed = self.remove_interface(&key);
                    self.answer_now(answer, removed);
                }
                Command::SetDocument(name, value, answer) => {
                    let set = self.set_document(name, value);
                    self.answer_now(answer, set);
                }
                Command::Restore(instances, interfaces, answer) => {
                    match self.restore(&mut batch, instances, interfaces) {
                        Ok(restored) => pending.push(Pending::Restored(answer, restored)),
                        Err(error) => drop(answer.send(Err(error))),
                    }
                }
                Command::Close(answer) => {
                    closed = Some(answer);
                    break;
                }
            }
            if pending.len() < GATHER {
                next = self.commands.try_recv().ok();
            }
        }
        let written = self.write(batch).map_err(|lost| Error::Store(lost.why));
        for pending in pending {
            answer(&self.counters, pending, written.clone());
        }
        closed
    }

    fn answer_now<T>(&self, answer: Answer<T>, result: Result<T, Error>) {
        let revision = self.state.services().revision;
        drop(answer.send(result.map(|result| Done { revision, result })));
    }

    fn put_interface(&mut self, interface: Interface) -> Result<bool, Error> {
        self.put_interfaces(std::slice::from_ref(&interface))?;
        Ok(self.interfaces.put(interface))
    }

    fn put_interfaces(&mut self, interfaces: &[Interface]) -> Result<(), Error> {
        let keys: Vec<&InterfaceKey> = interfaces.iter().map(|i| &i.key).collect();
        self.interfaces.check_room(&keys, self.limits.interfaces)?;
        let stored = self.store.put_interfaces(interfaces);
        self.stored(stored)
    }

    fn restore(
        &mut self,
        batch: &mut Batch,
        instances: Vec<Instance>,
        interfaces: Vec<Interface>,
    ) -> Result<usize, Error> {
        let there = batch.instances();
        if there > 0 {
            return Err(Error::NotEmpty(there));
        }
        if !interfaces.is_empty() {
            self.put_interfaces(&interfaces)?;
        }
        for interface in interfaces {
            self.interfaces.put(interface);
        }
        Ok(self.state.restore(batch, instances))
    }

    fn set_document(&mut self, name: Arc<str>, value: Option<Bytes>) -> Result<(), Error> {
        let stored = self.store.set_document(&name, value.as_deref());
        self.stored(stored)?;
        match value {
            Some(value) => self.documents.put(name, value),
            None => self.documents.remove(&name),
        }
        Ok(())
    }

    fn remove_interface(&mut self, key: &InterfaceKey) -> Result<bool, Error> {
        if self.interfaces.get(key).is_none() {
            return Ok(false);
        }
        let stored = self.store.remove_interface(key);
        self.stored(stored)?;
        self.interfaces.remove(key);
        Ok(true)
    }

    fn stored(&self, result: Result<(), redb::Error>) -> Result<(), Error> {
        add(&self.counters.commits, 1);
        result.map_err(|error| {
            add(&self.counters.store_errors, 1);
            tracing::error!(%error, store = ?self.store, "registry write failed");
            Error::Store(error.to_string())
        })
    }

    /// Brings a batch to the disk and into sight, and returns the revision then.
    fn write(&mut self, batch: Batch) -> Result<u64, Lost> {
        if !batch.changes().is_empty() {
            add(&self.counters.commits, 1);
            if let Err(error) = self.store.commit(batch.changes(), batch.revision()) {
                add(&self.counters.store_errors, 1);
                tracing::error!(%error, store = ?self.store, "registry write failed");
                return Err(Lost {
                    why: error.to_string(),
                    changes: batch.into_changes(),
                });
            }
        }
        let changes = self.state.commit(batch, Instant::now());
        let services = self.state.services();
        if !changes.is_empty() {
            self.published.publish(services.clone(), changes);
        }
        Ok(services.revision)
    }

    fn lapse(&mut self) {
        let now = Instant::now();
        let mut batch = self.state.batch();
        self.state.lapse(&mut batch, now, LAPSES);
        if batch.changes().is_empty() {
            return;
        }
        for change in batch.changes() {
            let instance = &change.instance;
            tracing::info!(service = %instance.service, id = %instance.id, "lease lapsed");
        }
        let lapsed = batch.changes().len();
        match self.write(batch) {
            Ok(_) => add(&self.counters.lapsed, lapsed),
            Err(lost) => self.state.put_off(&lost.changes, now, RETRY_LAPSE),
        }
    }
}
