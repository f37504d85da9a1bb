//! Folders of applications, of which an entry says no more than who it is: what the instances of a revision serve is asked
//! once, of one of them or of the metadata centre.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::hash::Hash;
use std::pin::Pin;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::Semaphore;

use crate::dubbo_metadata::{self, Revisions};
use crate::model::Instance;
use crate::naming::Malformed;
use crate::naming::dubbo_application::{MetadataInfo, Provider};
use crate::source::Skipped;

/// Applications that are asked at a time.
const ASKED: usize = 64;
/// Until a revision that nobody could say is asked for again, doubled with each failure.
const AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// What an entry of a folder says.
#[derive(Clone, Debug)]
pub(super) enum Node {
    /// An instance of any other framework.
    Instance(Instance),
    /// An application of Dubbo, whose services its metadata say.
    Application(Provider),
    /// One that serves nothing.
    Nothing,
}

/// Where applications put their metadata that do not answer for them themselves.
pub(super) trait Centre<K> {
    /// What the instances of a provider's revision serve.
    fn info(
        &self,
        folder: &K,
        provider: &Provider,
    ) -> impl Future<Output = Result<MetadataInfo, String>> + Send;
}

/// A node.
#[derive(Default)]
struct Entry {
    /// Its data were read in this session.
    read: bool,
    /// Of Dubbo's level: what it says.
    provider: Option<Provider>,
    /// What is known to be there.
    shown: Vec<Instance>,
    skipped: Vec<String>,
}

/// A revision that is being asked for.
type Revision<K> = (K, String);
type Answer<K> = (Revision<K>, usize, Result<MetadataInfo, String>);
type Asking<'a, K> = Pin<Box<dyn Future<Output = Answer<K>> + Send + 'a>>;

/// All folders of a session.
pub(super) struct Applications<'a, K, C> {
    centre: &'a C,
    revisions: &'a Revisions,
    folders: HashMap<K, BTreeMap<String, Entry>>,
    /// Failed attempts by revision.
    asked: HashMap<Revision<K>, usize>,
    answers: FuturesUnordered<Asking<'a, K>>,
    permits: &'a Semaphore,
}

/// Limits how many applications are asked at a time.
pub(super) fn permits() -> Semaphore {
    Semaphore::new(ASKED)
}

impl<'a, K, C> Applications<'a, K, C>
where
    K: Clone + Eq + Hash + Send + Sync + 'a,
    C: Centre<K> + Sync,
{
    pub(super) fn new(
        centre: &'a C,
        revisions: &'a Revisions,
        permits: &'a Semaphore,
    ) -> Applications<'a, K, C> {
        Applications {
            centre,
            revisions,
            folders: HashMap::new(),
            asked: HashMap::new(),
            answers: FuturesUnordered::new(),
            permits,
        }
    }

    /// A folder has these nodes: those to read, and those that went.
    pub(super) fn nodes(&mut self, folder: &K, names: &[String]) -> (Vec<String>, Vec<String>) {
        let entries = self.folders.entry(folder.clone()).or_default();
        let mut before = std::mem::take(entries);
        let mut new = Vec::new();
        for name in names {
            let entry = before.remove(name).unwrap_or_else(|| {
                new.push(name.clone());
                Entry::default()
            });
            entries.insert(name.clone(), entry);
        }
        (new, before.into_keys().collect())
    }

    /// A folder went.
    pub(super) fn remove(&mut self, folder: &K) {
        self.folders.remove(folder);
    }

    /// A node was read. `None`: it went meanwhile.
    pub(super) fn said(&mut self, folder: &K, name: &str, said: Option<Result<Node, Malformed>>) {
        let entries = self.folders.get_mut(folder);
        let Some(entry) = entries.and_then(|entries| entries.get_mut(name)) else {
            return;
        };
        entry.read = true;
        let Some(said) = said else { return };
        entry.provider = None;
        entry.skipped.clear();
        match said {
            Err(error) => {
                entry.shown.clear();
                entry.skipped.push(error.to_string());
            }
            Ok(Node::Nothing) => entry.shown.clear(),
            Ok(Node::Instance(instance)) => entry.shown = vec![instance],
            // Until its new revision is known it serves what it served before.
            Ok(Node::Application(provider)) => match self.revisions.get(&provider) {
                Some(info) => entry.serves(&provider, &info),
                None => {
                    let revision = (folder.clone(), provider.revision.clone());
                    entry.provider = Some(provider.clone());
                    if !self.asked.contains_key(&revision) {
                        self.ask(revision, provider, 0);
                    }
                }
            },
        }
    }

    fn ask(&mut self, revision: Revision<K>, provider: Provider, failures: usize) {
        self.asked.insert(revision.clone(), failures);
        let (centre, permits) = (self.centre, self.permits);
        self.answers.push(Box::pin(async move {
            if let Some(before) = failures.checked_sub(1) {
                let (min, max) = AGAIN;
                let wait = min.saturating_mul(1 << before.min(10)).min(max);
                tokio::time::sleep(wait).await;
            }
            // It is never closed.
            let _permit = permits.acquire().await;
            let answer = if provider.remote {
                centre.info(&revision.0, &provider).await
            } else {
                dubbo_metadata::ask(&provider).await
            };
            (revision, failures, answer)
        }));
    }

    /// Whether every revision was asked for once.
    pub(super) fn tried_all(&self) -> bool {
        self.asked.values().all(|failures| *failures > 0)
    }

    /// The next folder about which more is known; never when nothing is asked.
    pub(super) async fn next(&mut self) -> Option<K> {
        let (revision, failures, answer) = self.answers.next().await?;
        self.asked.remove(&revision);
        let (folder, name) = &revision;
        let Some(entries) = self.folders.get_mut(folder) else {
            return Some(revision.0);
        };
        let waiting: Vec<&mut Entry> = entries
            .values_mut()
            .filter(|entry| entry.provider.as_ref().is_some_and(|p| p.revision == *name))
            .collect();
        match answer {
            Ok(info) => {
                if let Some(provider) = waiting.first().and_then(|entry| entry.provider.as_ref()) {
                    self.revisions.put(provider, info.clone());
                }
                for entry in waiting {
                    if let Some(provider) = entry.provider.take() {
                        entry.serves(&provider, &info);
                    }
                }
            }
            Err(reason) => {
                // Another instance of the revision may know better.
                let count = waiting.len().max(1);
                let other = waiting.get((failures + 1) % count);
                let other = other.and_then(|entry| entry.provider.clone());
                for entry in waiting {
                    entry.skipped = vec![reason.clone()];
                }
                if let Some(provider) = other {
                    self.ask(revision.clone(), provider, failures + 1);
                }
            }
        }
        Some(revision.0)
    }

    /// What a folder holds; `None` while not all of it was read. Later on `partly` is enough.
    pub(super) fn list(&self, folder: &K, partly: bool) -> Option<(Vec<Instance>, Vec<Skipped>)> {
        let entries = self.folders.get(folder)?;
        let (mut instances, mut skipped) = (Vec::new(), Vec::new());
        for (name, entry) in entries {
            let untried = entry.provider.is_some() && entry.skipped.is_empty();
            if !partly && (!entry.read || untried) {
                return None;
            }
            instances.extend(entry.shown.iter().cloned());
            skipped.extend(
                entry
                    .skipped
                    .iter()
                    .map(|reason| Skipped::new(name, reason)),
            );
        }
        Some((instances, skipped))
    }
}

impl Entry {
    fn serves(&mut self, provider: &Provider, info: &MetadataInfo) {
        self.shown.clear();
        self.skipped.clear();
        for read in provider.instances(info) {
            match read {
                Ok(instance) => self.shown.push(instance),
                Err(error) => self.skipped.push(error.to_string()),
            }
        }
        self.provider = None;
    }
}
