//! Serves proxies: one task for each stream, woken by what the proxy says and by new snapshots.

mod connection;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{mpsc, watch};
use tonic::Status;
use xds::server::grpc::Incoming;

use crate::controller::Workload;
use crate::metrics::Metrics;
use crate::proxy::Proxy;
use crate::snapshot::Snapshot;

/// All connected proxies, and what they are served from.
pub struct Hub {
    snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    connected: Mutex<BTreeMap<u64, Connected>>,
    next: AtomicU64,
    workloads: mpsc::Sender<Workload>,
    stop: watch::Receiver<bool>,
    metrics: Arc<Metrics>,
    registries: registry::Hub,
    sync: Arc<registry::Sync>,
}

/// A connected proxy, for the debug pages.
#[derive(Debug, Clone)]
pub struct Connected {
    /// Who it is.
    pub proxy: Arc<Proxy>,
    /// Where it comes from.
    pub peer: Option<SocketAddr>,
    /// What it was sent and what it said to it, by type URL.
    pub types: BTreeMap<String, TypeState>,
}

/// State of one type at one proxy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TypeState {
    /// Nonce of the last response.
    pub sent: String,
    /// Nonce of the last response that it took.
    pub acked: String,
    /// Why it refused the last response.
    pub error: Option<String>,
    /// Number of names it asked for; none = all.
    pub names: Option<usize>,
}

impl Hub {
    pub(crate) fn new(
        snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
        workloads: mpsc::Sender<Workload>,
        stop: watch::Receiver<bool>,
        metrics: Arc<Metrics>,
        registries: registry::Hub,
        sync: Arc<registry::Sync>,
    ) -> Hub {
        Hub {
            snapshots,
            connected: Mutex::default(),
            next: AtomicU64::new(1),
            workloads,
            stop,
            metrics,
            registries,
            sync,
        }
    }

    /// All registries as one directory.
    pub(crate) fn registries(&self) -> &registry::Hub {
        &self.registries
    }

    /// How copies between registries are doing, as it changes.
    pub(crate) fn sync_status(&self) -> watch::Receiver<Arc<registry::SyncStatus>> {
        self.sync.status()
    }

    /// The newest snapshot, once all sources have been read.
    pub fn snapshot(&self) -> Option<Arc<Snapshot>> {
        self.snapshots.borrow().clone()
    }

    /// All connected proxies, in the order they came.
    pub fn connected(&self) -> Vec<Connected> {
        let connected = self
            .connected
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        connected.values().cloned().collect()
    }

    /// Takes a stream, and serves it in a task of its own.
    pub fn accept(self: &Arc<Self>, incoming: Incoming) -> Result<(), Status> {
        if self.snapshot().is_none() {
            return Err(Status::unavailable("the sources have not been read yet"));
        }
        tokio::spawn(connection::serve(self.clone(), incoming));
        Ok(())
    }
}
