//! The registry as the rest of the program holds it. One thread owns state and file: it gathers what is waiting, writes it
//! with one fsync, makes it visible and answers, so that an answer means "on disk".

mod shared;
mod writer;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use crate::documents::Documents;
use crate::error::{Error, OpenError};
use crate::interfaces::{Interface, InterfaceKey, Interfaces};
use crate::limits::Limits;
use crate::model::{Instance, InstanceRef, Selector};
use crate::quota::SharedQuotas;
use crate::services::Services;
use crate::sessions::{SessionClaim, SessionId, SessionState};
use crate::state::{Registered, Renewed, State};
use crate::store::{Loaded, Store};
use crate::watch::{Published, Since, Watch};
use writer::Writer;

/// Commands that may wait for the writer.
const QUEUE: usize = 16_384;

/// A command's result and the revision from which on it is visible.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done<T> {
    /// The registry's revision after it.
    pub revision: u64,
    /// What came of it.
    pub result: T,
}

pub use shared::EtcdStore;

type Answer<T> = oneshot::Sender<Result<Done<T>, Error>>;

enum Command {
    Register(Vec<Instance>, Option<SessionClaim>, Answer<Vec<Registered>>),
    Renew(Vec<InstanceRef>, Answer<Renewed>),
    Deregister(Vec<InstanceRef>, Answer<usize>),
    OpenSession(SessionClaim, Duration, Answer<SessionState>),
    GetSession(SessionClaim, Answer<SessionState>),
    RenewSession(SessionClaim, Answer<SessionState>),
    CloseSession(SessionClaim, Answer<usize>),
    PutInterface(Box<Interface>, Answer<bool>),
    RemoveInterface(InterfaceKey, Answer<bool>),
    /// Puts a document in, or takes it out.
    SetDocument(Arc<str>, Option<Bytes>, Answer<()>),
    Restore(Vec<Instance>, Vec<Interface>, Answer<usize>),
    Close(oneshot::Sender<()>),
}

impl Command {
    /// Answers that it is not done.
    fn refuse(self, error: &Error) {
        // One who does not wait for the answer any more does not need it.
        match self {
            Command::Register(_, _, answer) => drop(answer.send(Err(error.clone()))),
            Command::OpenSession(_, _, answer)
            | Command::GetSession(_, answer)
            | Command::RenewSession(_, answer) => drop(answer.send(Err(error.clone()))),
            Command::PutInterface(_, answer) | Command::RemoveInterface(_, answer) => {
                drop(answer.send(Err(error.clone())));
            }
            Command::SetDocument(_, _, answer) => drop(answer.send(Err(error.clone()))),
            Command::Renew(_, answer) => drop(answer.send(Err(error.clone()))),
            Command::Deregister(_, answer)
            | Command::CloseSession(_, answer)
            | Command::Restore(_, _, answer) => {
                drop(answer.send(Err(error.clone())));
            }
            Command::Close(closed) => drop(closed.send(())),
        }
    }
}

/// The way to whoever carries commands out.
#[derive(Clone)]
enum Commands {
    Embedded(SyncSender<Command>),
    Shared(mpsc::Sender<Command>),
}

impl Commands {
    fn try_send(&self, command: Command) -> Result<(), TrySendError<Command>> {
        match self {
            Commands::Embedded(commands) => commands.try_send(command),
            Commands::Shared(commands) => commands.try_send(command).map_err(|error| match error {
                mpsc::error::TrySendError::Full(command) => TrySendError::Full(command),
                mpsc::error::TrySendError::Closed(command) => TrySendError::Disconnected(command),
            }),
        }
    }
}

/// What an answer waits with for the commit.
enum Pending {
    Registered(Answer<Vec<Registered>>, Vec<Registered>),
    Renewed(Answer<Renewed>, Renewed),
    Deregistered(Answer<usize>, usize),
    Restored(Answer<usize>, usize),
    Session(Answer<SessionState>, SessionState),
    Interface(Answer<bool>, bool),
    Document(Answer<()>),
}

/// Counts since the start, and sizes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// The revision now.
    pub revision: u64,
    /// Services that have an instance.
    pub services: usize,
    /// Instances of all services.
    pub instances: usize,
    /// Open watches.
    pub watchers: usize,
    /// Instances put in or replaced.
    pub registered: u64,
    /// Leases renewed.
    pub renewed: u64,
    /// Instances taken out on request.
    pub deregistered: u64,
    /// Instances taken out because nobody renewed them.
    pub lapsed: u64,
    /// Writes to the disk.
    pub commits: u64,
    /// Writes that failed.
    pub store_errors: u64,
}

#[derive(Default)]
struct Counters {
    registered: AtomicU64,
    renewed: AtomicU64,
    deregistered: AtomicU64,
    lapsed: AtomicU64,
    commits: AtomicU64,
    store_errors: AtomicU64,
}

fn add(counter: &AtomicU64, n: usize) {
    counter.fetch_add(n as u64, Ordering::Relaxed);
}

/// A handle on the registry; clones are the same registry, which ends with the last of them.
#[derive(Clone)]
pub struct Registry {
    commands: Commands,
    published: Arc<Published>,
    interfaces: Arc<Interfaces>,
    documents: Arc<Documents>,
    counters: Arc<Counters>,
    limits: Limits,
}

impl Registry {
    /// Opens the registry that lives in a file, which is made if it is not there. Every lease begins anew.
    pub fn open(path: &Path, limits: Limits) -> Result<Registry, OpenError> {
        Registry::start(Store::open(path)?, limits)
    }

    /// A registry that is forgotten when it ends.
    pub fn in_memory(limits: Limits) -> Result<Registry, OpenError> {
        Registry::start(Store::memory(), limits)
    }

    /// A registry whose instances are in etcd, where other registries put theirs. It knows them when this returns.
    pub async fn open_shared(store: EtcdStore, limits: Limits) -> Result<Registry, OpenError> {
        let counters = Arc::new(Counters::default());
        let (commands, received) = mpsc::channel(QUEUE);
        let (ready, opened) = oneshot::channel();
        let interfaces = Arc::new(Interfaces::default());
        let (its_counters, its_limits) = (counters.clone(), limits.clone());
        let documents = Arc::new(Documents::of([]));
        let its_own = (interfaces.clone(), documents.clone());
        let run = move || {
            let counters = its_counters;
            shared::run(store, its_limits, received, its_own, counters, ready);
        };
        std::thread::Builder::new()
            .name("registry".into())
            .spawn(run)?;
        let gone = || std::io::Error::other("it has ended");
        let published = opened.await.unwrap_or_else(|_| Err(gone().into()))?;
        Ok(Registry {
            commands: Commands::Shared(commands),
            published,
            interfaces,
            documents,
            counters,
            limits,
        })
    }

    fn start(loaded: Loaded, limits: Limits) -> Result<Registry, OpenError> {
        let Loaded {
            store,
            id,
            revision,
            instances,
            interfaces,
            documents,
            words,
        } = loaded;
        let state = State::new(limits.clone(), revision, instances, words, Instant::now());
        let interfaces = Arc::new(Interfaces::of(interfaces));
        let documents = Arc::new(Documents::of(documents));
        let services = state.services().clone();
        let published = Arc::new(Published::new(
            services,
            format!("{id:016x}"),
            limits.watchers,
        ));
        let state = state.with_quotas(published.quotas.clone());
        let counters = Arc::new(Counters::default());
        let (commands, received) = sync_channel(QUEUE);
        let writer = Writer {
            commands: received,
            state,
            store,
            published: published.clone(),
            interfaces: interfaces.clone(),
            documents: documents.clone(),
            limits: limits.clone(),
            counters: counters.clone(),
        };
        std::thread::Builder::new()
            .name("registry".into())
            .spawn(move || writer.run())?;
        Ok(Registry {
            commands: Commands::Embedded(commands),
            published,
            interfaces,
            documents,
            counters,
            limits,
        })
    }

    /// Puts instances in, or replaces those of the same service and id: all of them or none. They are on disk when this
    /// returns.
    pub async fn register(&self, instances: Vec<Instance>) -> Result<Done<Vec<Registered>>, Error> {
        self.command(|answer| Command::Register(instances, None, answer))
            .await
    }

    /// The same for instances that stay as long as a session does.
    pub async fn register_in(
        &self,
        session: SessionClaim,
        instances: Vec<Instance>,
    ) -> Result<Done<Vec<Registered>>, Error> {
        self.command(|answer| Command::Register(instances, Some(session), answer))
            .await
    }

    /// Begins a session: what is registered in it is taken out when nobody has renewed it for this time. In a registry of its
    /// own it is not on disk: after a restart each of its instances has a lease of its own, of the same time.
    pub async fn open_session(&self, owner: Arc<str>, ttl: Duration) -> Result<SessionId, Error> {
        let id = SessionId::draw().map_err(|e| Error::Store(format!("no random numbers: {e}")))?;
        let claim = SessionClaim { id, owner };
        self.command(|answer| Command::OpenSession(claim, ttl, answer))
            .await?;
        Ok(id)
    }

    /// What is known of a session.
    pub async fn session(&self, session: SessionClaim) -> Result<SessionState, Error> {
        let done = self.command(|answer| Command::GetSession(session, answer));
        Ok(done.await?.result)
    }

    /// Begins the time of a session anew, and so that of all its instances.
    pub async fn renew_session(&self, session: SessionClaim) -> Result<SessionState, Error> {
        let done = self.command(|answer| Command::RenewSession(session, answer));
        Ok(done.await?.result)
    }

    /// Ends a session, takes out what it holds and tells how many instances that were.
    pub async fn close_session(&self, session: SessionClaim) -> Result<Done<usize>, Error> {
        self.command(|answer| Command::CloseSession(session, answer))
            .await
    }

    /// Puts in the description of an interface, or replaces it, and tells whether there was none. It is on disk when this
    /// returns.
    pub async fn put_interface(&self, interface: Interface) -> Result<bool, Error> {
        self.limits.check_interface(&interface.key)?;
        let done = self.command(|answer| Command::PutInterface(Box::new(interface), answer));
        Ok(done.await?.result)
    }

    /// Takes out the description of an interface, and tells whether there was one.
    pub async fn remove_interface(&self, key: InterfaceKey) -> Result<bool, Error> {
        let done = self.command(|answer| Command::RemoveInterface(key, answer));
        Ok(done.await?.result)
    }

    /// Puts a document in, or takes it out. That is on disk when this returns.
    pub(crate) async fn set_document(
        &self,
        name: Arc<str>,
        value: Option<Bytes>,
    ) -> Result<(), Error> {
        let done = self.command(|answer| Command::SetDocument(name, value, answer));
        done.await.map(drop)
    }

    /// What faces of the registry keep.
    pub(crate) fn documents(&self) -> &Documents {
        &self.documents
    }

    /// The descriptions of interfaces.
    pub(crate) fn interfaces(&self) -> &Interfaces {
        &self.interfaces
    }

    /// What each namespace may have.
    pub(crate) fn quotas(&self) -> &SharedQuotas {
        &self.published.quotas
    }

    /// Starts leases anew.
    pub async fn renew(&self, instances: Vec<InstanceRef>) -> Result<Done<Renewed>, Error> {
        self.command(|answer| Command::Renew(instances, answer))
            .await
    }

    /// Takes instances out, and tells how many were there. They are gone from the disk when this returns.
    pub async fn deregister(&self, instances: Vec<InstanceRef>) -> Result<Done<usize>, Error> {
        self.command(|answer| Command::Deregister(instances, answer))
            .await
    }

    /// Puts the instances and the descriptions of a snapshot in, if nothing is registered yet; tells how many instances they
    /// are. Their leases begin anew.
    pub(crate) async fn restore(
        &self,
        instances: Vec<Instance>,
        interfaces: Vec<Interface>,
    ) -> Result<Done<usize>, Error> {
        self.command(|answer| Command::Restore(instances, interfaces, answer))
            .await
    }

    async fn command<T>(
        &self,
        command: impl FnOnce(Answer<T>) -> Command,
    ) -> Result<Done<T>, Error> {
        let (answer, answered) = oneshot::channel();
        self.commands
            .try_send(command(answer))
            .map_err(|error| match error {
                TrySendError::Full(_) => Error::Overloaded(QUEUE),
                TrySendError::Disconnected(_) => Error::Stopped,
            })?;
        answered.await.unwrap_or(Err(Error::Stopped))
    }

    /// All services as they are now. Costs next to nothing.
    pub fn snapshot(&self) -> Arc<Services> {
        self.published.services.load_full()
    }

    /// Everything, then every change to it.
    pub fn changes(&self) -> Result<Watch, Error> {
        self.watch(Selector::default(), None)
    }

    /// What a selector means, then every change to it; from where a watcher was, if that is remembered.
    pub fn watch(&self, selector: Selector, since: Option<&Since>) -> Result<Watch, Error> {
        self.published.watch(selector, since)
    }

    /// Names the registry's data: revisions of two stores cannot be compared.
    pub fn store(&self) -> Arc<String> {
        self.published.store()
    }

    /// What is taken.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Counts and sizes.
    pub fn stats(&self) -> Stats {
        let services = self.published.services.load();
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            revision: services.revision,
            services: services.len(),
            instances: services.instances(),
            watchers: self.published.watchers(),
            registered: count(&self.counters.registered),
            renewed: count(&self.counters.renewed),
            deregistered: count(&self.counters.deregistered),
            lapsed: count(&self.counters.lapsed),
            commits: count(&self.counters.commits),
            store_errors: count(&self.counters.store_errors),
        }
    }

    /// Ends the registry for all who hold it, and returns when its file is closed.
    pub async fn close(&self) {
        let (answer, closed) = oneshot::channel();
        let mut command = Command::Close(answer);
        loop {
            command = match self.commands.try_send(command) {
                Ok(()) => break,
                Err(TrySendError::Disconnected(_)) => return,
                Err(TrySendError::Full(command)) => command,
            };
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // An error says that the thread has ended by itself.
        let _ = closed.await;
    }
}

/// Answers what was written, with the revision from which on it is visible.
fn answer(counters: &Counters, pending: Pending, written: Result<u64, Error>) {
    fn done<T>(result: T, written: Result<u64, Error>) -> Result<Done<T>, Error> {
        written.map(|revision| Done { revision, result })
    }
    // One who does not wait for the answer any more does not need it.
    match pending {
        Pending::Registered(answer, registered) => {
            add(&counters.registered, registered.len());
            drop(answer.send(done(registered, written)));
        }
        Pending::Renewed(answer, renewed) => {
            add(&counters.renewed, renewed.renewed);
            drop(answer.send(done(renewed, written)));
        }
        Pending::Deregistered(answer, removed) => {
            add(&counters.deregistered, removed);
            drop(answer.send(done(removed, written)));
        }
        Pending::Restored(answer, restored) => {
            add(&counters.registered, restored);
            drop(answer.send(done(restored, written)));
        }
        Pending::Session(answer, state) => drop(answer.send(done(state, written))),
        Pending::Interface(answer, result) => drop(answer.send(done(result, written))),
        Pending::Document(answer) => drop(answer.send(done((), written))),
    }
}
