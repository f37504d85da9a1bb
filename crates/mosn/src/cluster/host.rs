//! One endpoint on one worker: its load, its connections, its statistics.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use super::hosts::{Health, HostConfig, HostMetadata};
use crate::{http, rpc};

/// An endpoint of a cluster.
pub struct Host {
    /// Where to connect.
    pub address: SocketAddr,
    /// The name it was resolved from, or empty.
    pub hostname: Arc<str>,
    /// Load-balancing weight, 1 and up.
    pub weight: Cell<u32>,
    /// Requests in flight from this worker.
    pub active_requests: Cell<u32>,
    /// HTTP/1 connections.
    pub http1: http::upstream::HostPool,
    /// Bolt and Dubbo connections.
    pub rpc: rpc::upstream::HostPool,
    /// Counts for `/clusters`.
    pub stats: HostStats,
    metadata: RefCell<Rc<HostMetadata>>,
    health: Cell<Health>,
    removed: Cell<bool>,
    locality: RefCell<Arc<str>>,
    priority: Cell<u32>,
}

/// Counts of one host on one worker.
#[derive(Default)]
pub struct HostStats {
    /// Connections opened.
    pub cx_total: Cell<u64>,
    /// Connections open.
    pub cx_active: Cell<u64>,
    /// Connections that failed to open.
    pub cx_connect_fail: Cell<u64>,
    /// Requests sent.
    pub rq_total: Cell<u64>,
    /// Requests answered well.
    pub rq_success: Cell<u64>,
    /// Requests that failed (5xx, reset).
    pub rq_error: Cell<u64>,
    /// Requests that timed out.
    pub rq_timeout: Cell<u64>,
}

/// Adds to a host's count.
pub fn bump(cell: &Cell<u64>) {
    cell.set(cell.get().wrapping_add(1));
}

/// Takes one from a host's count.
pub fn unbump(cell: &Cell<u64>) {
    cell.set(cell.get().saturating_sub(1));
}

/// A host as the admin shows it.
pub struct HostStatus {
    /// Address.
    pub address: SocketAddr,
    /// Name, maybe empty.
    pub hostname: Arc<str>,
    /// Weight.
    pub weight: u32,
    /// Health by EDS.
    pub health: Health,
    /// Priority.
    pub priority: u32,
    /// `region/zone/sub_zone`.
    pub locality: Arc<str>,
    /// cx_active, cx_connect_fail, cx_total, rq_active, rq_error, rq_success, rq_timeout, rq_total.
    pub counts: [(&'static str, u64); 8],
}

impl Host {
    /// A host without connections.
    pub fn new(config: &HostConfig) -> Host {
        Host {
            address: config.address,
            hostname: config.hostname.clone(),
            weight: Cell::new(config.weight),
            active_requests: Cell::new(0),
            http1: Default::default(),
            rpc: Default::default(),
            stats: HostStats::default(),
            metadata: RefCell::new(Rc::new((*config.metadata).clone())),
            health: Cell::new(config.health),
            removed: Cell::new(false),
            locality: RefCell::new(config.locality.clone()),
            priority: Cell::new(config.priority),
        }
    }

    /// Takes over what may change while connections stay.
    pub fn update(&self, config: &HostConfig) {
        self.weight.set(config.weight);
        self.health.set(config.health);
        self.priority.set(config.priority);
        *self.locality.borrow_mut() = config.locality.clone();
        *self.metadata.borrow_mut() = Rc::new((*config.metadata).clone());
        self.removed.set(false);
    }

    /// Labels of the endpoint.
    pub fn metadata(&self) -> Rc<HostMetadata> {
        self.metadata.borrow().clone()
    }

    /// Health as EDS says.
    pub fn health(&self) -> Health {
        self.health.get()
    }

    /// Whether the cluster no longer lists it: its connections end with what they have in flight.
    pub fn is_removed(&self) -> bool {
        self.removed.get()
    }

    /// Takes the host out of service.
    pub fn remove(&self) {
        self.removed.set(true);
        self.http1.close_idle();
        self.rpc.close_idle();
    }

    /// Counts a request in flight until the guard drops.
    pub fn start_request(self: &Rc<Host>) -> ActiveRequest {
        self.active_requests.set(self.active_requests.get() + 1);
        bump(&self.stats.rq_total);
        ActiveRequest(self.clone())
    }

    /// For the admin.
    pub fn status(&self) -> HostStatus {
        HostStatus {
            address: self.address,
            hostname: self.hostname.clone(),
            weight: self.weight.get(),
            health: self.health.get(),
            priority: self.priority.get(),
            locality: self.locality.borrow().clone(),
            counts: [
                ("cx_active", self.stats.cx_active.get()),
                ("cx_connect_fail", self.stats.cx_connect_fail.get()),
                ("cx_total", self.stats.cx_total.get()),
                ("rq_active", u64::from(self.active_requests.get())),
                ("rq_error", self.stats.rq_error.get()),
                ("rq_success", self.stats.rq_success.get()),
                ("rq_timeout", self.stats.rq_timeout.get()),
                ("rq_total", self.stats.rq_total.get()),
            ],
        }
    }
}

/// One request in flight on a host.
pub struct ActiveRequest(Rc<Host>);

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        self.0
            .active_requests
            .set(self.0.active_requests.get().saturating_sub(1));
    }
}
