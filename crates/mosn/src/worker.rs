//! A worker: one thread, one event loop, its own listeners, connections, pools and timers.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use crate::cluster::{Cluster, ClusterConfig, ClusterStatus, HostsConfig};
use crate::config::RouteSource;
use crate::listener::{Drain, ListenerConfig, ListenerHandle};
use crate::route;

/// A route table as a worker holds it: cloning touches no counter that another worker touches.
pub type TableRef = Rc<Arc<route::Table>>;

/// The current routes of one RDS name (or of one inline configuration) on this worker.
#[derive(Default)]
pub struct RouteSlot {
    table: RefCell<Option<TableRef>>,
}

impl RouteSlot {
    /// The routes in force, or `None` while RDS has not delivered any.
    pub fn table(&self) -> Option<TableRef> {
        self.table.borrow().clone()
    }
}

/// Buffers that connections borrow while they are busy.
pub struct BufferPool {
    free: RefCell<Vec<Vec<u8>>>,
}

/// Size of a fresh buffer from the pool, in bytes.
pub const BUFFER_BYTES: usize = 16 * 1024;

impl BufferPool {
    const KEEP: usize = 64;

    fn new() -> BufferPool {
        BufferPool {
            free: RefCell::new(Vec::new()),
        }
    }

    /// An empty buffer with at least [`BUFFER_BYTES`] of capacity.
    pub fn take(&self) -> Vec<u8> {
        self.free
            .borrow_mut()
            .pop()
            .unwrap_or_else(|| Vec::with_capacity(BUFFER_BYTES))
    }

    /// Gives a buffer back; one that grew large is dropped.
    pub fn put(&self, mut buffer: Vec<u8>) {
        let mut free = self.free.borrow_mut();
        if buffer.capacity() >= BUFFER_BYTES
            && buffer.capacity() <= 4 * BUFFER_BYTES
            && free.len() < Self::KEEP
        {
            buffer.clear();
            free.push(buffer);
        }
    }
}

/// What the main thread tells a worker. Commands take effect in the order they are sent.
pub enum Command {
    /// Adds or replaces a cluster together with its hosts.
    SetCluster(Arc<ClusterConfig>, Arc<HostsConfig>),
    /// New hosts for a cluster.
    SetHosts(Arc<str>, Arc<HostsConfig>),
    /// Removes a cluster; its connections finish what they have in flight.
    RemoveCluster(Arc<str>),
    /// Sets the routes of an RDS name.
    SetRoutes(Arc<str>, Arc<route::Table>),
    /// Forgets the routes of an RDS name.
    RemoveRoutes(Arc<str>),
    /// Starts to accept on a socket of this worker's own.
    AddListener(Arc<ListenerConfig>, std::net::TcpListener),
    /// Gives a listener on the same address a new configuration.
    UpdateListener(Arc<ListenerConfig>),
    /// Stops accepting and drains the connections of a listener.
    RemoveListener(Arc<str>),
    /// Asks every connection to finish, without closing the sockets that listen.
    DrainListeners,
    /// Asks every connection of one listener to finish, without closing its socket.
    DrainListener(Arc<str>),
    /// Answers with the state of every cluster.
    ClusterStatus(oneshot::Sender<Vec<ClusterStatus>>),
    /// Stops accepting, drains, and ends when nothing is left or after this time.
    Stop(Duration),
}

/// The main thread's end of a worker.
pub struct WorkerHandle {
    /// Sends commands.
    pub commands: mpsc::UnboundedSender<Command>,
    /// Joins at the end.
    pub thread: JoinHandle<()>,
}

/// State of one worker; lives on its thread only.
pub struct Worker {
    /// 0-based number of this worker.
    pub id: usize,
    clusters: RefCell<HashMap<Arc<str>, Rc<Cluster>>>,
    routes: RefCell<HashMap<Arc<str>, Rc<RouteSlot>>>,
    listeners: RefCell<HashMap<Arc<str>, ListenerHandle>>,
    buffers: BufferPool,
    connections: Cell<usize>,
    idle: tokio::sync::Notify,
    started: Instant,
}

impl Worker {
    /// A worker with nothing in it; [`spawn_worker`] runs one, tests may hold one.
    pub fn new(id: usize) -> Rc<Worker> {
        Rc::new(Worker {
            id,
            clusters: RefCell::default(),
            routes: RefCell::default(),
            listeners: RefCell::default(),
            buffers: BufferPool::new(),
            connections: Cell::new(0),
            idle: tokio::sync::Notify::new(),
            started: Instant::now(),
        })
    }

    /// The cluster of this name, if it is known and warm.
    pub fn cluster(&self, name: &str) -> Option<Rc<Cluster>> {
        self.clusters.borrow().get(name).cloned()
    }

    /// The slot that follows the routes of `source`.
    pub fn route_slot(&self, source: &RouteSource) -> Rc<RouteSlot> {
        match source {
            RouteSource::Inline(table) => Rc::new(RouteSlot {
                table: RefCell::new(Some(Rc::new(table.clone()))),
            }),
            RouteSource::Rds(name) => self
                .routes
                .borrow_mut()
                .entry(name.clone())
                .or_default()
                .clone(),
        }
    }

    /// Runs a task on this worker.
    pub fn spawn(&self, future: impl Future<Output = ()> + 'static) {
        tokio::task::spawn_local(future);
    }

    /// Buffers for busy connections.
    pub fn buffers(&self) -> &BufferPool {
        &self.buffers
    }

    /// When this worker started: the zero of coarse clocks.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// Number of downstream connections on this worker.
    pub fn connections(&self) -> usize {
        self.connections.get()
    }

    /// Counts a downstream connection until the guard is dropped.
    pub fn count_connection(self: &Rc<Worker>) -> ConnectionGuard {
        self.connections.set(self.connections.get() + 1);
        ConnectionGuard {
            worker: self.clone(),
        }
    }

    /// Applies one command of the main thread; `Stop` is the caller's business.
    pub fn apply(self: &Rc<Worker>, command: Command) {
        match command {
            Command::SetCluster(config, hosts) => {
                let name = config.name.clone();
                let previous = self.clusters.borrow_mut().remove(&name);
                let cluster = Rc::new(Cluster::new(config, &hosts, previous.as_deref()));
                self.clusters.borrow_mut().insert(name, cluster);
            }
            Command::SetHosts(name, hosts) => {
                if let Some(cluster) = self.cluster(&name) {
                    cluster.set_hosts(&hosts);
                }
            }
            Command::RemoveCluster(name) => {
                let removed = self.clusters.borrow_mut().remove(&name);
                if let Some(cluster) = removed {
                    cluster.close_idle();
                }
            }
            Command::SetRoutes(name, table) => {
                let slot = self.routes.borrow_mut().entry(name).or_default().clone();
                *slot.table.borrow_mut() = Some(Rc::new(table));
            }
            Command::RemoveRoutes(name) => {
                self.routes.borrow_mut().remove(&name);
            }
            Command::AddListener(config, socket) => {
                let name = config.name.clone();
                match ListenerHandle::start(self.clone(), config, socket) {
                    Ok(handle) => {
                        if let Some(old) = self.listeners.borrow_mut().insert(name, handle) {
                            old.stop();
                        }
                    }
                    Err(error) => {
                        tracing::error!(listener = %name, %error, "cannot accept on the listener's socket")
                    }
                }
            }
            Command::UpdateListener(config) => {
                if let Some(handle) = self.listeners.borrow().get(&config.name) {
                    handle.update(config);
                }
            }
            Command::RemoveListener(name) => {
                if let Some(handle) = self.listeners.borrow_mut().remove(&name) {
                    handle.stop();
                }
            }
            Command::DrainListener(name) => {
                if let Some(handle) = self.listeners.borrow().get(&name) {
                    handle.drain();
                }
            }
            Command::DrainListeners => {
                for handle in self.listeners.borrow().values() {
                    handle.drain();
                }
            }
            Command::ClusterStatus(answer) => {
                let status = self
                    .clusters
                    .borrow()
                    .values()
                    .map(|c| c.status())
                    .collect();
                let _ = answer.send(status);
            }
            Command::Stop(_) => {
                for (_, handle) in self.listeners.borrow_mut().drain() {
                    handle.stop();
                }
            }
        }
    }

    async fn run(self: Rc<Worker>, mut commands: mpsc::UnboundedReceiver<Command>) {
        while let Some(command) = commands.recv().await {
            let stop = match &command {
                Command::Stop(limit) => Some(*limit),
                _ => None,
            };
            self.apply(command);
            if let Some(limit) = stop {
                let _ = tokio::time::timeout(limit, self.wait_idle(&mut commands)).await;
                return;
            }
        }
    }

    async fn wait_idle(self: &Rc<Worker>, commands: &mut mpsc::UnboundedReceiver<Command>) {
        while self.connections.get() > 0 {
            tokio::select! {
                () = self.idle.notified() => {}
                Some(command) = commands.recv() => self.apply(command),
            }
        }
    }
}

/// Counts one downstream connection while it lives.
pub struct ConnectionGuard {
    worker: Rc<Worker>,
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        let left = self.worker.connections.get().saturating_sub(1);
        self.worker.connections.set(left);
        if left == 0 {
            self.worker.idle.notify_one();
        }
    }
}

/// Starts worker `id` on a thread of its own.
pub fn spawn_worker(id: usize, stats: telemetry::stats::Registry) -> std::io::Result<WorkerHandle> {
    let (commands, receiver) = mpsc::unbounded_channel();
    let thread = std::thread::Builder::new()
        .name(format!("wrk:{id}"))
        .stack_size(1024 * 1024)
        .spawn(move || {
            stats.register_thread();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .event_interval(61)
                .build_local(Default::default());
            match runtime {
                Ok(runtime) => runtime.block_on(async move { Worker::new(id).run(receiver).await }),
                Err(error) => tracing::error!(worker = id, %error, "cannot start the event loop"),
            }
        })?;
    Ok(WorkerHandle { commands, thread })
}

/// Whether connections of this worker should finish: kept here so that filters need not know listeners.
pub fn never_drains() -> Rc<Drain> {
    Rc::new(Drain::default())
}
