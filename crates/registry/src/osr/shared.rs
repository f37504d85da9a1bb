//! A registry whose instances are in etcd, so that several serve the same. What is read comes from memory, which follows a
//! watch; what is written goes to etcd, and is answered when it has come back by the watch. A lease is etcd's: what one call
//! registers has one, which any of the registries renews, and which ends without any of them.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::stream::{self, FuturesUnordered};
use futures_util::{StreamExt, TryStreamExt};
use tokio::sync::{mpsc, oneshot};

use super::records::{self, Keys, Picture, Put, Record};
use super::{Command, Counters, Pending, add, answer};
use crate::adapters::etcd::client::{Client, Failure};
use crate::adapters::etcd::messages::{DELETE, WatchCreateRequest, WatchResponse};
use crate::backoff::Backoff;
use crate::error::{Error, OpenError};
use crate::limits::Limits;
use crate::model::{ChangeKind, InstanceRef};
use crate::secret::Credentials;
use crate::services::Services;
use crate::source::Trouble;
use crate::state::{Batch, Registered, Renewed, State};
use crate::tls::ClientTls;
use crate::watch::Published;
use crate::words::Words;

/// A registry that starts waits for its store at most this long.
const START_LIMIT: Duration = Duration::from_secs(30);
/// A connection that lasted so long did not fail at once.
const LASTING: Duration = Duration::from_secs(10);
/// Calls to the store at a time.
const CALLS: usize = 64;
/// Requests of one call at a time.
const REQUESTS: usize = 16;

/// The etcd that several registries share.
#[derive(Clone, Debug, PartialEq)]
pub struct EtcdStore {
    /// `host:port` of each server.
    pub servers: Vec<String>,
    /// What all keys begin with; begins with `/` and does not end with it.
    pub prefix: String,
    /// Who logs in, where the servers want it.
    pub login: Option<Credentials>,
    /// How the servers are reached by TLS.
    pub tls: Option<ClientTls>,
}

impl EtcdStore {
    /// Keys of an address that names none.
    pub const PREFIX: &str = "/mesh/registry";

    /// Reads `etcd://host:port,host:port/prefix`, or `etcds://…` for TLS.
    pub fn parse(url: &str) -> Result<EtcdStore, String> {
        let wrong =
            |why: &str| format!("`{url}` is not etcd://<host>:<port>[,...][/prefix]: {why}");
        let (rest, tls) = match (url.strip_prefix("etcd://"), url.strip_prefix("etcds://")) {
            (Some(rest), _) => (rest, false),
            (None, Some(rest)) => (rest, true),
            (None, None) => return Err(wrong("it does not begin with etcd://")),
        };
        let (servers, prefix) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, EtcdStore::PREFIX),
        };
        let servers: Vec<String> = servers.split(',').map(str::to_owned).collect();
        for server in &servers {
            crate::naming::host_port(server).map_err(|e| wrong(&e.to_string()))?;
        }
        let prefix = prefix.trim_end_matches('/');
        if prefix.is_empty() || prefix.contains("//") {
            return Err(wrong("the prefix is none"));
        }
        Ok(EtcdStore {
            servers,
            prefix: prefix.to_owned(),
            login: None,
            tls: tls.then(ClientTls::default),
        })
    }
}

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

type Call = Pin<Box<dyn Future<Output = (Pending, Result<i64, Failure>)> + Send>>;

/// Whose lease an instance is below, and the revision of its key.
#[derive(Clone, Copy, Debug)]
struct Below {
    lease: i64,
    revision: i64,
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
    calls: FuturesUnordered<Call>,
    /// What was written and has not yet come back.
    waiting: Vec<(i64, Pending)>,
}

/// Runs a registry to its end; `ready` hears when it knows what the store holds, or that it cannot.
pub(super) fn run(
    store: EtcdStore,
    limits: Limits,
    commands: mpsc::Receiver<Command>,
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
            let client = connect(store, next).await?;
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
    let client = connect(&store, next).await?;
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

async fn connect(store: &EtcdStore, next: usize) -> Result<Client, Failure> {
    let server = store.servers.get(next % store.servers.len().max(1));
    let server = server.map(String::as_str).unwrap_or_default();
    Client::connect(server, store.login.as_ref(), store.tls.as_ref()).await
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
                Some((pending, result)) = self.calls.next() => self.finish(pending, result),
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
        let (key, range_end) = self.keys.all();
        let create = WatchCreateRequest {
            key,
            range_end,
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
                Some((pending, result)) = self.calls.next() => self.finish(pending, result),
                command = self.commands.recv(), if self.calls.len() < CALLS => match command {
                    None => return End::Closed(None),
                    Some(Command::Close(closed)) => return End::Closed(Some(closed)),
                    Some(command) => self.begin(command, client),
                }
            }
        }
    }

    /// Answers a call when its outcome can be seen here.
    fn finish(&mut self, pending: Pending, result: Result<i64, Failure>) {
        match result {
            Ok(revision) if revision > self.applied => self.waiting.push((revision, pending)),
            Ok(_) => {
                let revision = self.published.services.load().revision;
                answer(&self.counters, pending, Ok(revision));
            }
            Err(failure) => {
                add(&self.counters.store_errors, 1);
                let error = match failure.trouble {
                    Trouble::Unreachable => Error::Unreachable(failure.reason),
                    Trouble::Refused | Trouble::Protocol => Error::Store(failure.reason),
                };
                answer(&self.counters, pending, Err(error));
            }
        }
    }

    fn answer_waiting(&mut self) {
        let applied = self.applied;
        let revision = self.published.services.load().revision;
        for (_, pending) in self.waiting.extract_if(.., |(at, _)| *at <= applied) {
            answer(&self.counters, pending, Ok(revision));
        }
    }

    /// Begins to carry out a command.
    fn begin(&mut self, command: Command, client: &Client) {
        let client = client.clone();
        let keys = self.keys.clone();
        match command {
            Command::Register(_, Some(_), _)
            | Command::OpenSession(..)
            | Command::GetSession(..)
            | Command::RenewSession(..)
            | Command::CloseSession(..) => {
                command.refuse(&Error::Unsupported("a registry in etcd has no sessions"));
            }
            Command::PutInterface(..) | Command::RemoveInterface(..) => {
                command.refuse(&Error::Unsupported(
                    "a registry in etcd keeps no descriptions of interfaces",
                ));
            }
            Command::Register(instances, None, answer) => {
                let batch = self.state.batch();
                let instances = match self.state.prepare(&batch, instances) {
                    Ok(instances) => instances,
                    Err(error) => return drop(answer.send(Err(error))),
                };
                let (mut puts, mut same) = (HashMap::new(), Vec::new());
                let mut registered = Vec::with_capacity(instances.len());
                for instance in &instances {
                    let reference = instance.reference();
                    let before = batch.get(&reference);
                    registered.push(Registered {
                        id: instance.id.clone(),
                        created: before.is_none() && !puts.contains_key(&reference),
                        ttl: instance.ttl,
                    });
                    if before.is_some_and(|before| before.same_content(instance)) {
                        same.push(reference);
                    } else {
                        puts.insert(reference, Put::new(&self.keys, instance));
                    }
                }
                let renewal = self.renewal(&same);
                let contents: HashMap<InstanceRef, Put> = same
                    .iter()
                    .filter_map(|reference| {
                        let instance = batch.get(reference)?;
                        Some((reference.clone(), Put::new(&self.keys, instance)))
                    })
                    .collect();
                self.calls.push(Box::pin(async move {
                    let pending = Pending::Registered(answer, registered);
                    let write = async {
                        // What has lapsed in this moment is put in anew.
                        let over = renewal.carry_out(&client).await?;
                        let again = over.iter().filter_map(|gone| contents.get(gone).cloned());
                        let puts = puts.into_values().chain(again).collect();
                        records::put_all(&client, puts).await
                    };
                    (pending, write.await)
                }));
            }
            Command::Renew(references, answer) => {
                let batch = self.state.batch();
                let (known, mut unknown): (Vec<_>, Vec<_>) = references
                    .into_iter()
                    .partition(|reference| batch.get(reference).is_some());
                let renewal = self.renewal(&known);
                self.calls.push(Box::pin(async move {
                    let done = renewal.carry_out(&client).await;
                    let (over, result) = match done {
                        Ok(over) => (over, Ok(0)),
                        Err(failure) => (Vec::new(), Err(failure)),
                    };
                    let renewed = known.len().saturating_sub(over.len());
                    unknown.extend(over);
                    let renewed = Renewed { renewed, unknown };
                    (Pending::Renewed(answer, renewed), result)
                }));
            }
            Command::Deregister(references, answer) => {
                let batch = self.state.batch();
                let known: HashSet<InstanceRef> = references
                    .into_iter()
                    .filter(|reference| batch.get(reference).is_some())
                    .collect();
                let known: Vec<InstanceRef> = known.into_iter().collect();
                self.calls.push(Box::pin(async move {
                    let pending = Pending::Deregistered(answer, known.len());
                    let done = records::delete_all(&client, &keys, &known).await;
                    (pending, done)
                }));
            }
            Command::Restore(instances, answer) => {
                let there = self.state.services().instances();
                if there > 0 {
                    return drop(answer.send(Err(Error::NotEmpty(there))));
                }
                let puts = instances.iter().map(|i| Put::new(&self.keys, i)).collect();
                let count = instances.len();
                self.calls.push(Box::pin(async move {
                    let pending = Pending::Restored(answer, count);
                    (pending, records::put_all(&client, puts).await)
                }));
            }
            Command::Close(_) => {}
        }
    }

    /// What has to be done to renew these and no others.
    fn renewal(&self, references: &[InstanceRef]) -> Renewal {
        let mut named: HashMap<i64, Vec<InstanceRef>> = HashMap::new();
        let distinct: HashSet<&InstanceRef> = references.iter().collect();
        for reference in distinct {
            if let Some(below) = self.below.get(reference)
                && below.lease != 0
            {
                named
                    .entry(below.lease)
                    .or_default()
                    .push(reference.clone());
            }
        }
        let mut renewal = Renewal::default();
        for (lease, references) in named {
            let members = self.members.get(&lease).copied().unwrap_or_default();
            if references.len() >= members {
                renewal.keep.push((lease, references));
                continue;
            }
            // The others below this lease were not named: these get one of their own.
            for reference in references {
                let instance = self.state.services().instance(&reference);
                let below = self.below.get(&reference);
                if let (Some(instance), Some(below)) = (instance, below) {
                    let put = Put::new(&self.keys, instance);
                    renewal.moves.push((put, below.revision));
                }
            }
        }
        renewal
    }

    /// Takes what a watch says.
    fn follow(&mut self, response: &WatchResponse) -> Result<(), Failure> {
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
            let Some(reference) = self.keys.reference(&kv.key) else {
                continue;
            };
            if event.kind == DELETE {
                let kind = match on_request.contains(&kv.mod_revision) {
                    true => ChangeKind::Deregistered,
                    false => ChangeKind::Lapsed,
                };
                self.gone(&mut batch, &reference, kind, revision);
                continue;
            }
            let at = (kv.lease, kv.mod_revision);
            match records::record(&reference, &kv.value, at, &self.limits) {
                Ok(mut record) => {
                    record.instance.revision = revision;
                    self.put(&mut batch, &reference, record);
                }
                Err(reason) => tracing::warn!(?reference, reason, "a record in etcd is skipped"),
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
    fn take(&mut self, picture: Picture) {
        self.below.clear();
        self.members.clear();
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
            let puts: Vec<_> = lost.map(|i| (Put::new(&self.keys, i), 0)).collect();
            records::move_all(client, puts).await?;
            picture = records::read(client, &self.keys, &self.limits).await?;
        }
        self.take(picture);
        Ok(())
    }
}

/// Leases to keep alive, with the instances below them, and instances that get a lease of their own.
#[derive(Default)]
struct Renewal {
    keep: Vec<(i64, Vec<InstanceRef>)>,
    moves: Vec<(Put, i64)>,
}

impl Renewal {
    /// Does it, and tells which instances' leases are over.
    async fn carry_out(self, client: &Client) -> Result<Vec<InstanceRef>, Failure> {
        let asked = self.keep.into_iter().map(|(lease, references)| async move {
            let kept = client.keep_alive(lease).await?;
            Ok::<_, Failure>(if kept { Vec::new() } else { references })
        });
        let asked: Vec<_> = asked.collect();
        let over = stream::iter(asked).buffer_unordered(REQUESTS);
        let over: Vec<InstanceRef> = over.try_concat().await?;
        records::move_all(client, self.moves).await?;
        Ok(over)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read() {
        let store = EtcdStore::parse("etcd://a:2379,[::1]:2379/one/two/").expect("an address");
        assert_eq!(store.servers, ["a:2379", "[::1]:2379"]);
        assert_eq!(store.prefix, "/one/two");
        let store = EtcdStore::parse("etcd://a:1").expect("an address");
        assert_eq!(store.prefix, EtcdStore::PREFIX);
        for wrong in [
            "",
            "redis://a:1",
            "etcd://",
            "etcd://a",
            "etcd://a:1/",
            "etcd://a:1,/x",
        ] {
            assert!(EtcdStore::parse(wrong).is_err(), "{wrong}");
        }
    }
}
