//! What an adapter and the hub say to each other. An adapter reports what its registry holds, list by list, and makes true
//! what the hub wants written there.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;
use tokio::sync::{mpsc, watch};

use crate::model::Instance;

/// Metadata key of a copy that a hub wrote: `<mesh>/<source>` of the original. Adapters only carry it through, in both
/// directions.
pub const ORIGIN_MARK: &str = "mesh.origin";

/// What an adapter tells the hub.
#[derive(Clone, Debug)]
pub enum Report {
    /// A session with the registry is there: the lists that follow are read in it.
    Connected {
        /// The server, for people.
        server: String,
    },
    /// It is not there, or no longer.
    Disconnected {
        /// The kind of failure.
        trouble: Trouble,
        /// The details, without secrets.
        reason: String,
    },
    /// The whole of one of the registry's lists.
    List(List),
    /// One of the lists was given, but cannot be read: what was known of it stays.
    Unread {
        /// Its name in the registry.
        name: Arc<str>,
        /// Why it cannot be read.
        skipped: Skipped,
    },
    /// Every list was given since `Connected`: those that were not given again are gone.
    Synced,
    /// A wanted copy is in the registry, or why it is not.
    Written {
        /// The copy.
        id: Arc<str>,
        /// The registry's answer.
        result: Result<(), String>,
    },
    /// An unwanted copy is no longer in the registry.
    Withdrawn {
        /// The copy.
        id: Arc<str>,
    },
}

/// Why a registry cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Trouble {
    /// Nobody answers, or the connection broke.
    Unreachable,
    /// It does not accept the credentials, or they do not permit this.
    Refused,
    /// What it says is not understood.
    Protocol,
}

/// One list of a registry: a ZooKeeper folder, a Nacos service, a dataInfoId, a Eureka application. It replaces the
/// former one of its name.
#[derive(Clone, Debug)]
pub struct List {
    /// Its name in the registry.
    pub name: Arc<str>,
    /// What it holds. An instance without an id gets one from the hub.
    pub instances: Vec<Instance>,
    /// Entries that could not be read; they never hide the others.
    pub skipped: Vec<Skipped>,
    /// The registry itself said in a live session that what is missing was taken out.
    pub certain: bool,
}

/// An entry that could not be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Skipped {
    /// The entry, shortened.
    pub entry: String,
    /// What is wrong with it.
    pub reason: String,
}

impl Skipped {
    /// Bytes of an entry that are shown.
    const SHOWN: usize = 160;

    /// Names an entry, shortened, and what is wrong with it.
    pub fn new(entry: &str, reason: &(impl ToString + ?Sized)) -> Skipped {
        let mut end = entry.len().min(Skipped::SHOWN);
        while !entry.is_char_boundary(end) {
            end -= 1;
        }
        Skipped {
            entry: entry.get(..end).unwrap_or_default().to_owned(),
            reason: reason.to_string(),
        }
    }
}

/// What the hub wants to have in a registry. Declarative: an adapter makes it so, and again after each reconnect.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Copies that must be there, by their ids. One that comes with another revision than before is written again, even if
    /// nothing else is new.
    pub publish: BTreeMap<Arc<str>, Arc<Instance>>,
    /// Copies that were written before and must go.
    pub withdraw: BTreeMap<Arc<str>, Arc<Instance>>,
    /// Another hub writes, or nobody knows which one does: what was written is kept as long as the registry has it; nothing
    /// is made, changed or taken out.
    pub rests: bool,
}

/// An adapter's line to the hub.
#[derive(Clone, Debug)]
pub struct Link {
    name: Arc<str>,
    generation: u64,
    reports: mpsc::Sender<Reported>,
    wanted: watch::Receiver<Arc<Wanted>>,
}

/// A report on its way.
#[derive(Debug)]
pub(crate) struct Reported {
    pub(crate) source: Arc<str>,
    /// Of the adapter that sent it: one that was replaced may still have something in the queue.
    pub(crate) generation: u64,
    pub(crate) report: Report,
}

impl Link {
    pub(crate) fn new(
        name: Arc<str>,
        generation: u64,
        reports: mpsc::Sender<Reported>,
        wanted: watch::Receiver<Arc<Wanted>>,
    ) -> Link {
        Link {
            name,
            generation,
            reports,
            wanted,
        }
    }

    /// A line whose other end is a test's.
    pub fn pair(name: &str) -> (Link, LinkEnd) {
        let (reports, received) = mpsc::channel(1024);
        let (wanted, told) = watch::channel(Arc::default());
        let link = Link::new(name.into(), 0, reports, told);
        (link, LinkEnd { received, wanted })
    }

    /// The source's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Tells the hub; waits while the hub is busy.
    pub async fn report(&self, report: Report) {
        let reported = Reported {
            source: self.name.clone(),
            generation: self.generation,
            report,
        };
        // Without a hub the adapter is about to be dropped.
        let _ = self.reports.send(reported).await;
    }

    /// Whether the hub has not yet taken all that it was told. What is told as a whole each time had better wait then.
    pub fn is_behind(&self) -> bool {
        self.reports.capacity() < self.reports.max_capacity()
    }

    /// What has to be in the registry, as it changes.
    pub fn wanted(&self) -> watch::Receiver<Arc<Wanted>> {
        self.wanted.clone()
    }
}

/// The hub's end of a line, for tests of one adapter.
#[derive(Debug)]
pub struct LinkEnd {
    received: mpsc::Receiver<Reported>,
    wanted: watch::Sender<Arc<Wanted>>,
}

impl LinkEnd {
    /// The next report.
    pub async fn next(&mut self) -> Option<Report> {
        self.received.recv().await.map(|reported| reported.report)
    }

    /// Says what has to be in the registry.
    pub fn want(&self, wanted: Wanted) {
        self.wanted.send_replace(Arc::new(wanted));
    }
}
