//! The configuration in force, on the main thread: what the bootstrap and xDS gave, what is still warming, and what the
//! workers were told.

pub mod clusters;
pub mod listeners;
pub mod routes;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;

use api::google::protobuf::Any;
use base::FieldError;
use tokio::sync::mpsc;

use crate::config::{CompileContext, Options};
use crate::server::Event;
use crate::worker::Command;

pub use clusters::ClusterEntry;
pub use listeners::ListenerEntry;
pub use routes::RouteEntry;

/// Where a resource came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The bootstrap.
    Static,
    /// xDS.
    Dynamic,
}

/// A resource as it was delivered.
#[derive(Clone, Debug)]
pub struct Source {
    /// Bootstrap or xDS.
    pub origin: Origin,
    /// The encoded message with its type.
    pub resource: Any,
    /// `version_info` of the response it came in; empty for the bootstrap.
    pub version: String,
    /// When it came.
    pub updated: SystemTime,
}

/// A resource of a response that was refused, for `error_state` in the config dump and the NACK.
#[derive(Debug, thiserror::Error)]
#[error("{resource}: {error}")]
pub struct Rejected {
    /// Name of the resource.
    pub resource: String,
    /// Field and reason.
    pub error: FieldError,
}

/// All configuration of the process.
pub struct Manager {
    pub(crate) options: Options,
    pub(crate) stats: telemetry::stats::Registry,
    pub(crate) access_logs: telemetry::access_log::Sinks,
    workers: Vec<mpsc::UnboundedSender<Command>>,
    events: mpsc::UnboundedSender<Event>,
    pub(crate) clusters: BTreeMap<String, ClusterEntry>,
    pub(crate) endpoints: BTreeMap<String, clusters::EndpointsEntry>,
    pub(crate) listeners: BTreeMap<String, ListenerEntry>,
    pub(crate) routes: BTreeMap<String, RouteEntry>,
    control_clusters: BTreeSet<String>,
    /// Counts warming periods, so that a late timer does not end a newer one.
    generation: u64,
    manager_stats: ManagerStats,
}

struct ManagerStats {
    active_clusters: telemetry::stats::Gauge,
    warming_clusters: telemetry::stats::Gauge,
    cluster_added: telemetry::stats::Counter,
    cluster_modified: telemetry::stats::Counter,
    cluster_removed: telemetry::stats::Counter,
    total_listeners_active: telemetry::stats::Gauge,
    total_listeners_warming: telemetry::stats::Gauge,
    listener_added: telemetry::stats::Counter,
    listener_modified: telemetry::stats::Counter,
    listener_removed: telemetry::stats::Counter,
    listener_create_failure: telemetry::stats::Counter,
    listener_create_success: telemetry::stats::Counter,
}

impl ManagerStats {
    fn new(r: &telemetry::stats::Registry) -> ManagerStats {
        ManagerStats {
            active_clusters: r.gauge("cluster_manager.active_clusters"),
            warming_clusters: r.gauge("cluster_manager.warming_clusters"),
            cluster_added: r.counter("cluster_manager.cluster_added"),
            cluster_modified: r.counter("cluster_manager.cluster_modified"),
            cluster_removed: r.counter("cluster_manager.cluster_removed"),
            total_listeners_active: r.gauge("listener_manager.total_listeners_active"),
            total_listeners_warming: r.gauge("listener_manager.total_listeners_warming"),
            listener_added: r.counter("listener_manager.listener_added"),
            listener_modified: r.counter("listener_manager.listener_modified"),
            listener_removed: r.counter("listener_manager.listener_removed"),
            listener_create_failure: r.counter("listener_manager.listener_create_failure"),
            listener_create_success: r.counter("listener_manager.listener_create_success"),
        }
    }
}

impl Manager {
    /// An empty configuration. `control_clusters` carry xDS and may speak HTTP/2.
    pub fn new(
        options: Options,
        stats: telemetry::stats::Registry,
        access_logs: telemetry::access_log::Sinks,
        workers: Vec<mpsc::UnboundedSender<Command>>,
        events: mpsc::UnboundedSender<Event>,
        control_clusters: BTreeSet<String>,
    ) -> Manager {
        let manager_stats = ManagerStats::new(&stats);
        Manager {
            options,
            stats,
            access_logs,
            workers,
            events,
            clusters: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            listeners: BTreeMap::new(),
            routes: BTreeMap::new(),
            control_clusters,
            generation: 0,
            manager_stats,
        }
    }

    /// Clusters, by name.
    pub fn clusters(&self) -> impl Iterator<Item = (&String, &ClusterEntry)> {
        self.clusters.iter()
    }

    /// Load assignments that came by EDS, by service name.
    pub fn endpoints(&self) -> impl Iterator<Item = (&String, &clusters::EndpointsEntry)> {
        self.endpoints.iter()
    }

    /// Listeners, by name.
    pub fn listeners(&self) -> impl Iterator<Item = (&String, &ListenerEntry)> {
        self.listeners.iter()
    }

    /// Route configurations that came by RDS, by name.
    pub fn routes(&self) -> impl Iterator<Item = (&String, &RouteEntry)> {
        self.routes.iter()
    }

    /// Whether every cluster is past its first warming: listeners are asked for only then.
    pub fn clusters_initialized(&self) -> bool {
        self.clusters.values().all(|c| c.warming.is_none())
    }

    /// Whether every cluster and listener is past its first warming.
    pub fn initialized(&self) -> bool {
        self.clusters_initialized() && self.listeners.values().all(|l| l.warming.is_none())
    }

    fn context(&self) -> CompileContext<'_> {
        CompileContext {
            stats: &self.stats,
            access_logs: &self.access_logs,
            options: &self.options,
            clusters: Some(&self.clusters),
        }
    }

    /// Tells every worker; `make` is called once for each.
    fn tell(&self, make: impl Fn() -> Command) {
        for worker in &self.workers {
            let _ = worker.send(make());
        }
    }

    fn next_generation(&mut self) -> u64 {
        self.generation += 1;
        self.generation
    }

    /// Sends `event` after `delay`.
    fn later(&self, delay: std::time::Duration, event: Event) {
        let events = self.events.clone();
        tokio::spawn(async move {
            tokio::time::sleep(delay).await;
            let _ = events.send(event);
        });
    }

    fn update_gauges(&self) {
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        let s = &self.manager_stats;
        s.active_clusters.set(count(
            self.clusters
                .values()
                .filter(|c| c.active.is_some())
                .count(),
        ));
        s.warming_clusters.set(count(
            self.clusters
                .values()
                .filter(|c| c.warming.is_some())
                .count(),
        ));
        s.total_listeners_active.set(count(
            self.listeners
                .values()
                .filter(|l| l.active.is_some())
                .count(),
        ));
        s.total_listeners_warming.set(count(
            self.listeners
                .values()
                .filter(|l| l.warming.is_some())
                .count(),
        ));
    }
}

/// A cluster or listener with the resource it was compiled from.
#[derive(Clone)]
pub struct Compiled<T> {
    /// What runs.
    pub config: Arc<T>,
    /// What it was compiled from.
    pub source: Source,
}
