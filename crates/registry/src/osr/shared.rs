//! A registry whose instances are in etcd, so that several serve the same. What is read comes from memory, which follows a
//! watch; what is written goes to etcd, and is answered when it has come back by the watch. A lease is etcd's: what one call
//! registers has one, or what a session holds, which any of the registries renews, and which ends without any of them.

mod address;
mod calls;
mod follow;
mod keys;
mod records;
mod renewal;
mod writes;

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, oneshot};

use super::{Command, Counters, Pending, add, answer};
use crate::adapters::etcd::client::{Client, Failure};
use crate::adapters::etcd::messages::WatchCreateRequest;
use crate::backoff::Backoff;
use crate::documents::Documents;
use crate::error::{Error, OpenError};
use crate::interfaces::Interfaces;
use crate::limits::Limits;
use crate::model::InstanceRef;
use crate::services::Services;
use crate::sessions::SessionId;
use crate::source::Trouble;
use crate::state::State;
use crate::watch::Published;
use crate::words::Words;

use calls::{Call, Outcome, Undone};
use keys::Keys;
use records::{Picture, Session};
use writes::Put;

pub use address::EtcdStore;

/// A registry that starts waits for its store at most this long.
const START_LIMIT: Duration = Duration::from_secs(30);
/// A connection that lasted so long did not fail at once.
const LASTING: Duration = Duration::from_secs(10);
/// Calls to the store at a time.
const CALLS: usize = 64;

/// How a session with the store ended.
enum End {
    Failed(Failure),
    /// Nobody needs the registry any longer.
    Closed(Option<oneshot::Sender<()>>),
}

impl From<Failure> for End {
    fn from(failure: Failure) -> End {
        End::Failed(failure)
    }
}

/// Whose lease an instance is below, and the revision of its key.
#[derive(Clone, Copy, Debug)]
struct Below {
    lease: i64,
    revision: i64,
}

/// What is below the lease of a session.
#[derive(Debug)]
struct Held {
    session: SessionId,
    instances: HashSet<InstanceRef>,
    /// The revision with which the session went.
    closed_at: Option<i64>,
}

struct Shared {
    store: EtcdStore,
    keys: Keys,
    limits: Limits,
    commands: mpsc::Receiver<Command>,
    state: State,
    published: Arc<Published>,
    counters: Arc<Counters>,
    /// Names the data that the state is of.
    name: String,
    /// The store's revision that the state is of.
    applied: i64,
    below: HashMap<InstanceRef, Below>,
    /// How many instances are below each lease.
    members: HashMap<i64, usize>,
    sessions: HashMap<SessionId, Session>,
    /// By the sessions' leases.
    held: HashMap<i64, Held>,
    interfaces: Arc<Interfaces>,
    documents: Arc<Documents>,
    calls: FuturesUnordered<Call>,
    /// What was written and has not yet come back.
    waiting: Vec<(i64, Pending)>,
}

/// Runs a registry to its end; `ready` hears when it knows what the store holds, or that it cannot.
pub(super) fn run(
    store: EtcdStore,
    limits: Limits,
    commands: mpsc::Receiver<Command>,
    (interfaces, documents): (Arc<Interfaces>, Arc<Documents>),
    counters: Arc<Counters>,
    ready: oneshot::Sender<Result<Arc<Published>, OpenError>>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        // One who does not wait for it any more does not need it; so below.
        Err(error) => return drop(ready.send(Err(error.into()))),
    };
    runtime.block_on(async {
        let keys = Keys::new(&store);
        let (client, picture) = match first(&store, &keys, &limits).await {
            Ok(first) => first,
            Err(error) => return drop(ready.send(Err(error))),
        };
        let name = picture.store.clone();
        let published = Arc::new(Published::new(
            Services::default(),
            name.clone(),
            limits.watchers,
        ));
        let mut shared = Shared {
            name,
            store,
            keys,
            state: State::following(limits.clone(), 0, Vec::new(), Words::default()),
            limits,
            commands,
            published: published.clone(),
            counters,
            applied: 0,
            below: HashMap::new(),
            members: HashMap::new(),
            sessions: HashMap::new(),
            held: HashMap::new(),
            interfaces,
            documents,
            calls: FuturesUnordered::new(),
            waiting: Vec::new(),
        };
        shared.take(picture);
        if ready.send(Ok(published)).is_ok() {
            let closed = shared.serve(client).await;
            drop(shared);
            if let Some(closed) = closed {
                let _ = closed.send(());
            }
        }
    });
}

/// The first look into the store.
async fn first(
    store: &EtcdStore,
    keys: &Keys,
    limits: &Limits,
) -> Result<(Client, Picture), OpenError> {
    let deadline = Instant::now() + START_LIMIT;
    let mut backoff = Backoff::for_registry();
    let mut next = 0;
    loop {
        let look = async {
            let client = store.connect(next).await?;
            let picture = records::read(&client, keys, limits).await?;
            Ok::<_, Failure>((client, picture))
        };
        match look.await {
            Ok(first) => return Ok(first),
            Err(failure) if Instant::now() >= deadline || failure.trouble == Trouble::Refused => {
                return Err(OpenError::Store {
                    servers: store.servers.join(","),
                    reason: failure.reason,
                });
            }
            Err(_) => {}
        }
        next += 1;
        tokio::time::sleep(backoff.next()).await;
    }
}

/// Looks whether the data are those of this name; reads them if they are not, or if the changes since are forgotten.
async fn look_again(
    store: EtcdStore,
    keys: Keys,
    limits: Limits,
    next: usize,
    (name, applied): (String, i64),
    compacted: bool,
) -> Result<(Client, Option<Picture>), Failure> {
    let client = store.connect(next).await?;
    let (named, revision) = records::name(&client, &keys).await?;
    if named == name && revision < applied {
        // They were taken from a backup: what came since is lost, and its revisions come again.
        records::rename(&client, &keys).await?;
    } else if named == name && !compacted {
        return Ok((client, None));
    }
    let picture = records::read(&client, &keys, &limits).await?;
    Ok((client, Some(picture)))
}

impl Shared {
    /// Serves until the registry is closed; reads go on from memory while the store is away, writes are refused.
    async fn serve(&mut self, client: Client) -> Option<oneshot::Sender<()>> {
        let mut backoff = Backoff::for_registry();
        let mut client = Some(client);
        let (mut next, mut compacted, mut why) = (0, false, String::new());
        loop {
            let session = match &client {
                Some(client) => {
                    let begun = Instant::now();
                    let end = self.session(client).await;
                    if begun.elapsed() > LASTING {
                        backoff.reset();
                    }
                    end
                }
                None => {
                    let look = look_again(
                        self.store.clone(),
                        self.keys.clone(),
                        self.limits.clone(),
                        next,
                        (self.name.clone(), self.applied),
                        compacted,
                    );
                    match self.meanwhile(&why, look).await {
                        Err(closed) => return closed,
                        Ok(Err(failure)) => End::Failed(failure),
                        Ok(Ok((again, picture))) => match self.resume(&again, picture).await {
                            Ok(()) => {
                                tracing::info!("the registry's store is back");
                                compacted = false;
                                client = Some(again);
                                continue;
                            }
                            Err(failure) => End::Failed(failure),
                        },
                    }
                }
            };
            let failure = match session {
                End::Closed(closed) => return closed,
                End::Failed(failure) => failure,
            };
            if client.take().is_some() {
                tracing::warn!(reason = failure.reason, "the registry's store is away");
            }
            let lost = Error::Unreachable(failure.reason.clone());
            for (_, pending) in std::mem::take(&mut self.waiting) {
                answer(&self.counters, pending, Err(lost.clone()));
            }
            next += 1;
            // Until it was read anew: the next server may not answer.
            compacted |= failure.is_gone;
            why = failure.reason;
            let sleep = tokio::time::sleep(backoff.next());
            if let Err(closed) = self.meanwhile(&why, sleep).await {
                return closed;
            }
        }
    }

    /// Refuses what comes while something else is waited for; an error says that the registry is closed.
    async fn meanwhile<T>(
        &mut self,
        why: &str,
        future: impl Future<Output = T>,
    ) -> Result<T, Option<oneshot::Sender<()>>> {
        tokio::pin!(future);
        loop {
            tokio::select! {
                done = &mut future => return Ok(done),
                Some(outcome) = self.calls.next() => self.finish(outcome),
                command = self.commands.recv() => match command {
                    None => return Err(None),
                    Some(Command::Close(closed)) => return Err(Some(closed)),
                    Some(command) => command.refuse(&Error::Unreachable(why.to_owned())),
                }
            }
        }
    }

    /// Follows the store and writes to it until it fails.
    async fn session(&mut self, client: &Client) -> End {
        let all = self.keys.all();
        let create = WatchCreateRequest {
            key: all.first,
            range_end: all.end,
            start_revision: self.applied + 1,
            progress_notify: false,
        };
        let mut events = match client.watch(create).await {
            Ok(events) => events,
            Err(failure) => return failure.into(),
        };
        loop {
            tokio::select! {
                event = events.next() => {
                    let taken = match event {
                        None => Err(Failure::new(Trouble::Unreachable, "the watch has ended")),
                        Some(Err(status)) => {
                            Err(Failure::new(Trouble::Unreachable, status.message()))
                        }
                        Some(Ok(response)) => self.follow(&response),
                    };
                    if let Err(failure) = taken {
                        return failure.into();
                    }
                }
                Some(outcome) = self.calls.next() => self.finish(outcome),
                command = self.commands.recv(), if self.calls.len() < CALLS => match command {
                    None => return End::Closed(None),
                    Some(Command::Close(closed)) => return End::Closed(Some(closed)),
                    Some(command) => self.begin(command, client),
                }
            }
        }
    }

    /// Answers a call when its outcome can be seen here.
    fn finish(&mut self, (pending, result): Outcome) {
        let error = match result {
            Ok(revision) if revision > self.applied => {
                self.waiting.push((revision, pending));
                return;
            }
            Ok(_) => {
                let revision = self.published.services.load().revision;
                return answer(&self.counters, pending, Ok(revision));
            }
            Err(Undone::Refused(error)) => error,
            Err(Undone::Store(failure)) => {
                add(&self.counters.store_errors, 1);
                match failure.trouble {
                    Trouble::Unreachable => Error::Unreachable(failure.reason),
                    Trouble::Refused | Trouble::Protocol => Error::Store(failure.reason),
                }
            }
        };
        answer(&self.counters, pending, Err(error));
    }

    fn answer_waiting(&mut self) {
        let applied = self.applied;
        let revision = self.published.services.load().revision;
        for (_, pending) in self.waiting.extract_if(.., |(at, _)| *at <= applied) {
            answer(&self.counters, pending, Ok(revision));
        }
    }

    /// Goes on with the store after it was away; with a picture if what it holds may be anything.
    async fn resume(&mut self, client: &Client, picture: Option<Picture>) -> Result<(), Failure> {
        let Some(mut picture) = picture else {
            return Ok(());
        };
        if picture.store != self.name {
            tracing::error!(
                before = self.name,
                now = picture.store,
                "the registry's store has lost its data: what is known here is written to it again"
            );
            let instances = self.state.services().iter();
            let instances = instances.flat_map(|service| service.instances.iter());
            let lost = instances.filter(|i| !picture.records.contains_key(&i.reference()));
            // Another registry may be at it too.
            let mut puts: Vec<_> = lost.map(|i| (Put::new(&self.keys, i), 0)).collect();
            let described = self.interfaces.all();
            puts.extend(described.iter().map(|i| (Put::interface(&self.keys, i), 0)));
            let documents = self.documents.all();
            let documents = documents.iter();
            puts.extend(documents.map(|(name, value)| (Put::document(&self.keys, name, value), 0)));
            writes::move_all(client, puts).await?;
            picture = records::read(client, &self.keys, &self.limits).await?;
        }
        self.take(picture);
        Ok(())
    }
}
