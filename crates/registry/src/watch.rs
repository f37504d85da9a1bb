//! Who is told of changes. A watcher has a bounded buffer: one that is slow loses its place and gets a full list again;
//! nobody waits for it.

use std::collections::{HashMap, VecDeque};
use std::ops::Deref;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use arc_swap::ArcSwap;
use bytes::{BufMut, Bytes};
use tokio::sync::broadcast;

use crate::convert::encode_changes;
use crate::error::Error;
use crate::model::{Change, Selector, ServiceKey};
use crate::namespace::Namespace;
use crate::quota::SharedQuotas;
use crate::services::Services;

/// Changes of one commit, all of them or those of one service.
#[derive(Debug)]
struct Commit {
    changes: Vec<Change>,
    /// As `changes` of a `WatchResponse`, made for the first watcher that is sent them.
    encoded: OnceLock<Bytes>,
}

impl Commit {
    fn new(changes: Vec<Change>) -> Arc<Commit> {
        Arc::new(Commit {
            changes,
            encoded: OnceLock::new(),
        })
    }
}

/// What a watcher is told of a commit, in order.
#[derive(Clone, Debug)]
pub struct Changes(Told);

#[derive(Clone, Debug)]
enum Told {
    /// All of it, shared with others who are told the same.
    Whole(Arc<Commit>),
    /// A part of it.
    Part(Vec<Change>),
}

impl Deref for Changes {
    type Target = [Change];

    fn deref(&self) -> &[Change] {
        match &self.0 {
            Told::Whole(commit) => &commit.changes,
            Told::Part(changes) => changes,
        }
    }
}

impl From<Vec<Change>> for Changes {
    fn from(changes: Vec<Change>) -> Changes {
        Changes(Told::Part(changes))
    }
}

impl Changes {
    /// Appends them as a `WatchResponse` has them.
    pub(crate) fn encode(&self, out: &mut impl BufMut) {
        match &self.0 {
            Told::Whole(commit) => {
                let encoded = || encode_changes(&commit.changes).into();
                out.put_slice(commit.encoded.get_or_init(encoded));
            }
            Told::Part(changes) => out.put_slice(&encode_changes(changes)),
        }
    }
}

/// Commits that a watcher of everything may be behind.
const BUFFER: usize = 1024;
/// Commits that a watcher of one service may be behind.
const SERVICE_BUFFER: usize = 32;
/// Changes that are remembered for watchers that come back.
const HISTORY: usize = 65_536;

/// Where a watcher was when it went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Since {
    /// The last revision that it handled.
    pub revision: u64,
    /// The store that the revision is of, if it knows.
    pub store: Option<String>,
}

/// What a watcher gets.
#[derive(Clone, Debug)]
pub enum Event {
    /// Everything as it is now: what the watcher knew before is void.
    Reset(Arc<Services>),
    /// What changed since the event before, in order; only what the selector means.
    Changes(Changes),
}

/// The registry as readers see it.
pub(crate) struct Published {
    pub(crate) services: ArcSwap<Services>,
    /// Names the data; see `store`.
    store: ArcSwap<String>,
    feed: Mutex<Feed>,
    watchers: AtomicUsize,
    watchers_limit: usize,
    pub(crate) quotas: SharedQuotas,
}

struct Feed {
    history: VecDeque<Arc<Commit>>,
    /// Changes in `history`.
    remembered: usize,
    all: broadcast::Sender<Arc<Commit>>,
    by_service: HashMap<ServiceKey, broadcast::Sender<Arc<Commit>>>,
    /// Watchers of one namespace or part of it.
    by_namespace: HashMap<Namespace, usize>,
}

impl Published {
    pub(crate) fn new(services: Services, store: String, watchers_limit: usize) -> Published {
        Published {
            services: ArcSwap::from_pointee(services),
            store: ArcSwap::from_pointee(store),
            feed: Mutex::new(Feed::new()),
            watchers: AtomicUsize::new(0),
            watchers_limit,
            quotas: SharedQuotas::default(),
        }
    }

    fn feed(&self) -> MutexGuard<'_, Feed> {
        // Nothing panics while it holds the lock, and the feed is whole at every step anyway.
        self.feed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn watchers(&self) -> usize {
        self.watchers.load(Ordering::Relaxed)
    }

    /// Names the data that the revisions are of.
    pub(crate) fn store(&self) -> Arc<String> {
        self.store.load_full()
    }

    /// Makes a picture visible that has nothing to do with what was told so far: all watchers begin anew.
    pub(crate) fn reset(&self, store: String, services: Services) {
        let mut feed = self.feed();
        self.store.store(Arc::new(store));
        self.services.store(Arc::new(services));
        // The receivers of the former feed hear that it has ended; those who watch stay counted.
        let by_namespace = std::mem::take(&mut feed.by_namespace);
        *feed = Feed {
            by_namespace,
            ..Feed::new()
        };
    }

    /// Makes a commit visible: first to those who look, then to those who wait.
    pub(crate) fn publish(&self, services: Services, changes: Vec<Change>) {
        let commit = Commit::new(changes);
        let mut feed = self.feed();
        self.services.store(Arc::new(services));
        feed.send(&commit);
        feed.remember(commit);
    }

    pub(crate) fn watch(
        self: &Arc<Self>,
        selector: Selector,
        since: Option<&Since>,
    ) -> Result<Watch, Error> {
        if self.watchers.fetch_add(1, Ordering::Relaxed) >= self.watchers_limit {
            self.watchers.fetch_sub(1, Ordering::Relaxed);
            return Err(Error::TooMany(format!(
                "the registry serves {} watchers at most",
                self.watchers_limit
            )));
        }
        let mut feed = self.feed();
        if let Some(namespace) = &selector.namespace
            && let Err(error) = feed.count(namespace, &self.quotas)
        {
            self.watchers.fetch_sub(1, Ordering::Relaxed);
            return Err(error);
        }
        let receiver = feed.receiver(&selector);
        let services = self.services.load_full();
        let missed = since
            .filter(|since| {
                since
                    .store
                    .as_ref()
                    .is_none_or(|store| *store == *self.store())
            })
            .and_then(|since| feed.since(since.revision, services.revision));
        drop(feed);
        let (revision, store) = (services.revision, self.store());
        let first = match missed {
            None => Event::Reset(services),
            Some(changes) => {
                let seen = changes.iter().filter_map(|c| c.seen_by(&selector));
                Event::Changes(seen.collect::<Vec<_>>().into())
            }
        };
        let takes_all = match selector.key() {
            Some(_) => !selector.is_about_instances(),
            None => selector == Selector::default(),
        };
        Ok(Watch {
            published: self.clone(),
            receiver,
            selector,
            takes_all,
            store,
            revision,
            first: Some(first),
        })
    }
}

impl Feed {
    fn new() -> Feed {
        Feed {
            history: VecDeque::new(),
            remembered: 0,
            all: broadcast::Sender::new(BUFFER),
            by_service: HashMap::new(),
            by_namespace: HashMap::new(),
        }
    }

    /// Counts one more watcher of a namespace, if it may have one.
    fn count(&mut self, namespace: &Namespace, quotas: &SharedQuotas) -> Result<(), Error> {
        let watchers = self.by_namespace.get(namespace).copied().unwrap_or(0);
        if let Some(limit) = quotas.load().of(namespace).watchers
            && watchers >= limit
        {
            return Err(Error::TooMany(format!(
                "namespace {namespace} may have {limit} watchers"
            )));
        }
        self.by_namespace.insert(namespace.clone(), watchers + 1);
        Ok(())
    }

    fn uncount(&mut self, namespace: &Namespace) {
        match self.by_namespace.get_mut(namespace) {
            Some(watchers) if *watchers > 1 => *watchers -= 1,
            _ => drop(self.by_namespace.remove(namespace)),
        }
    }

    fn send(&mut self, commit: &Arc<Commit>) {
        // An error says that nobody listens.
        let _ = self.all.send(commit.clone());
        if self.by_service.is_empty() {
            return;
        }
        let mut by_service: HashMap<&ServiceKey, Vec<Change>> = HashMap::new();
        for change in &commit.changes {
            if self.by_service.contains_key(&change.instance.service) {
                by_service
                    .entry(&change.instance.service)
                    .or_default()
                    .push(change.clone());
            }
        }
        for (service, changes) in by_service {
            if let Some(topic) = self.by_service.get(service) {
                let _ = topic.send(Commit::new(changes));
            }
        }
    }

    fn remember(&mut self, commit: Arc<Commit>) {
        self.remembered += commit.changes.len();
        self.history.push_back(commit);
        while self.remembered > HISTORY {
            match self.history.pop_front() {
                Some(oldest) => self.remembered -= oldest.changes.len(),
                None => break,
            }
        }
    }

    fn receiver(&mut self, selector: &Selector) -> broadcast::Receiver<Arc<Commit>> {
        match selector.key() {
            None => self.all.subscribe(),
            Some(key) => {
                let topic = self.by_service.entry(key);
                topic
                    .or_insert_with(|| broadcast::Sender::new(SERVICE_BUFFER))
                    .subscribe()
            }
        }
    }

    /// All changes behind a revision, if they are all remembered.
    fn since(&self, revision: u64, current: u64) -> Option<Vec<Change>> {
        if revision == current {
            return Some(Vec::new());
        }
        let oldest = self.history.front()?.changes.first()?;
        if revision > current || revision + 1 < oldest.revision {
            return None;
        }
        let changes = self.history.iter().flat_map(|commit| &commit.changes);
        Some(
            changes
                .filter(|change| change.revision > revision)
                .cloned()
                .collect(),
        )
    }
}

/// A subscription. Its first event is a full list, or the changes since the watcher went.
pub struct Watch {
    published: Arc<Published>,
    receiver: broadcast::Receiver<Arc<Commit>>,
    selector: Selector,
    /// Whether the selector means everything that the receiver gets.
    takes_all: bool,
    store: Arc<String>,
    revision: u64,
    first: Option<Event>,
}

impl Watch {
    /// The next event; `None` when the registry has gone. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<Event> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        loop {
            match self.receiver.recv().await {
                Ok(commit) => {
                    let changes = self.take(commit);
                    if !changes.is_empty() {
                        return Some(Event::Changes(changes));
                    }
                }
                Err(broadcast::error::RecvError::Lagged(_)) => {
                    let services = self.published.services.load_full();
                    self.revision = services.revision;
                    return Some(Event::Reset(services));
                }
                Err(broadcast::error::RecvError::Closed) => return Some(self.begin_anew()),
            }
        }
    }

    /// Takes a place in the feed that has replaced the one that ended.
    fn begin_anew(&mut self) -> Event {
        let mut feed = self.published.feed();
        self.receiver = feed.receiver(&self.selector);
        let services = self.published.services.load_full();
        self.store = self.published.store();
        drop(feed);
        self.revision = services.revision;
        Event::Reset(services)
    }

    /// What is new in a commit. A full list may be ahead of the buffer.
    fn take(&mut self, commit: Arc<Commit>) -> Changes {
        let known = self.revision;
        if let Some(last) = commit.changes.last() {
            self.revision = known.max(last.revision);
        }
        let is_new = |change: &&Change| change.revision > known;
        if self.takes_all && commit.changes.first().is_some_and(|first| is_new(&first)) {
            return Changes(Told::Whole(commit));
        }
        let new = commit.changes.iter().filter(is_new);
        let seen = new.filter_map(|change| change.seen_by(&self.selector));
        seen.collect::<Vec<_>>().into()
    }

    /// The revision that the watcher is at, once it has handled every event so far. It goes up without events too: by
    /// changes that the selector does not mean.
    pub fn revision(&mut self) -> u64 {
        // Under the lock no commit is between being visible and being sent.
        let feed = self.published.feed();
        if self.first.is_none() && self.receiver.is_empty() && !self.receiver.is_closed() {
            self.revision = self.revision.max(self.published.services.load().revision);
        }
        drop(feed);
        self.revision
    }

    /// Names the data that the revisions are of.
    pub fn store(&self) -> Arc<String> {
        self.store.clone()
    }

    /// What is watched.
    pub fn selector(&self) -> &Selector {
        &self.selector
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.published.watchers.fetch_sub(1, Ordering::Relaxed);
        let mut feed = self.published.feed();
        if let Some(namespace) = &self.selector.namespace {
            feed.uncount(namespace);
        }
        let Some(key) = self.selector.key() else {
            return;
        };
        // This watch is still counted.
        if feed
            .by_service
            .get(&key)
            .is_some_and(|topic| topic.receiver_count() <= 1)
        {
            feed.by_service.remove(&key);
        }
    }
}
