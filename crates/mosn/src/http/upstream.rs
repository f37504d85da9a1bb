//! HTTP/1 connections to one host: kept while they are idle, handed out last in first out.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use super::timer::Timer;
use crate::cluster::host::{Host, bump, unbump};
use crate::cluster::{Cluster, ClusterConfig, Permit, Priority};
use crate::worker::Worker;

/// The connections of one worker to one host.
#[derive(Default)]
pub struct HostPool {
    idle: RefCell<Vec<Connection>>,
    /// Open or being opened, idle or not.
    open: Cell<u32>,
    /// A connection became idle or was closed.
    released: Notify,
    /// Wakes the task that closes idle connections when their peer does; set while that task runs.
    watcher: RefCell<Option<Waker>>,
}

/// An open connection to a host.
pub(super) struct Connection {
    pub(super) stream: TcpStream,
    /// Requests that were sent on it.
    pub(super) requests: u32,
    /// Number of the connection in this process.
    pub(super) id: u64,
    pub(super) local: Option<SocketAddr>,
    /// Who closes it, for the statistics.
    pub(super) closed_by_peer: bool,
    /// Whether a request is on it.
    pub(super) in_use: bool,
    opened: Instant,
    idle_since: Instant,
    cluster: Arc<ClusterConfig>,
    host: Weak<Host>,
    _permit: Option<Permit>,
}

/// Why there is no connection for a request.
#[derive(Debug)]
pub(super) enum Failure {
    /// A circuit breaker is open.
    Overflow,
    /// The host did not answer within `connect_timeout`.
    Timeout,
    /// The host refused, or could not be reached.
    Connect(io::Error),
}

impl HostPool {
    /// Closes what is idle; what is in use closes when it would become idle, if the host is removed.
    pub fn close_idle(&self) {
        let idle = std::mem::take(&mut *self.idle.borrow_mut());
        drop(idle);
        if let Some(watcher) = self.watcher.borrow_mut().take() {
            watcher.wake();
        }
    }

    /// An idle connection that its peer has not closed.
    pub(super) fn checkout(&self) -> Option<Connection> {
        loop {
            let mut connection = self.idle.borrow_mut().pop()?;
            if connection.is_quiet(&mut Context::from_waker(Waker::noop())) {
                connection.in_use = true;
                return Some(connection);
            }
            connection.closed_by_peer = true;
        }
    }

    /// Keeps a connection for the next request, unless it has served its share or its host is gone.
    pub(super) fn checkin(&self, mut connection: Connection, worker: &Worker, now: Instant) {
        connection.in_use = false;
        let limit = connection.cluster.http.max_requests_per_connection;
        let Some(host) = connection.host.upgrade() else {
            return;
        };
        if limit > 0 && connection.requests >= limit {
            connection.cluster.stats.upstream_cx_max_requests.inc();
            return;
        }
        if host.is_removed() {
            return;
        }
        let watcher = self.watcher.borrow().clone();
        let quiet = match &watcher {
            Some(waker) => connection.is_quiet(&mut Context::from_waker(waker)),
            None => connection.is_quiet(&mut Context::from_waker(Waker::noop())),
        };
        if !quiet {
            connection.closed_by_peer = true;
            return;
        }
        connection.idle_since = now;
        self.idle.borrow_mut().push(connection);
        self.released.notify_one();
        if watcher.is_none() {
            // Until the task has run once, each turn of it would see the connection anyway.
            *self.watcher.borrow_mut() = Some(Waker::noop().clone());
            worker.spawn(watch(Rc::downgrade(&host)));
        }
    }

    /// Drops idle connections that were closed or are too old; says when the next one becomes too old.
    fn sweep(&self, cx: &mut Context<'_>, now: Instant) -> Sweep {
        let mut closed = Vec::new();
        let mut next: Option<Instant> = None;
        let mut idle = self.idle.borrow_mut();
        let mut index = 0;
        while let Some(connection) = idle.get_mut(index) {
            let expiry = connection
                .cluster
                .http
                .idle_timeout
                .map(|limit| connection.idle_since + limit);
            if expiry.is_some_and(|at| at <= now) {
                connection.cluster.stats.upstream_cx_idle_timeout.inc();
                closed.push(idle.swap_remove(index));
            } else if !connection.is_quiet(cx) {
                connection.closed_by_peer = true;
                closed.push(idle.swap_remove(index));
            } else {
                next = [next, expiry].into_iter().flatten().min();
                index += 1;
            }
        }
        let empty = idle.is_empty();
        drop(idle);
        drop(closed);
        if empty {
            Sweep::Empty
        } else {
            Sweep::Next(next)
        }
    }
}

enum Sweep {
    /// No connection is idle.
    Empty,
    /// Connections are idle, and one of them expires then.
    Next(Option<Instant>),
}

/// Closes idle connections of a host when their peer closes or their time is over.
///
/// One task for a host, woken only when something happens on an idle connection: no read is outstanding on it otherwise, and
/// without this a closed connection would stay until it is next wanted.
async fn watch(host: Weak<Host>) {
    let mut timer = Timer::new(Instant::now());
    poll_fn(|cx| {
        let Some(host) = host.upgrade() else {
            return Poll::Ready(());
        };
        let pool = &host.http1;
        *pool.watcher.borrow_mut() = Some(cx.waker().clone());
        loop {
            match pool.sweep(cx, Instant::now()) {
                Sweep::Empty => {
                    pool.watcher.borrow_mut().take();
                    return Poll::Ready(());
                }
                Sweep::Next(expiry) if timer.poll(cx, expiry) => {}
                Sweep::Next(_) => return Poll::Pending,
            }
        }
    })
    .await;
}

impl Connection {
    /// Whether nothing has come from the peer, which on an idle connection can only be its end or a protocol error.
    fn is_quiet(&mut self, cx: &mut Context<'_>) -> bool {
        loop {
            match self.stream.poll_read_ready(cx) {
                Poll::Pending => return true,
                Poll::Ready(Err(_)) => return false,
                Poll::Ready(Ok(())) => match self.stream.try_read(&mut [0]) {
                    // The readiness was left over from the last answer; it is gone now.
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    _ => return false,
                },
            }
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let stats = &self.cluster.stats;
        stats.upstream_cx_active.dec();
        stats.upstream_cx_destroy.inc();
        if self.closed_by_peer {
            stats.upstream_cx_destroy_remote.inc();
        } else {
            stats.upstream_cx_destroy_local.inc();
        }
        if self.in_use {
            stats.upstream_cx_destroy_with_active_rq.inc();
            if self.closed_by_peer {
                stats.upstream_cx_destroy_remote_with_active_rq.inc();
            } else {
                stats.upstream_cx_destroy_local_with_active_rq.inc();
            }
        }
        stats
            .upstream_cx_length_ms
            .record(self.opened.elapsed().as_millis() as u64);
        if let Some(host) = self.host.upgrade() {
            unbump(&host.stats.cx_active);
            host.http1.open.set(host.http1.open.get().saturating_sub(1));
            host.http1.released.notify_one();
        }
    }
}

/// Counts a request that waits for a connection.
struct Pending<'a> {
    cluster: &'a Cluster,
    _permit: Permit,
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.cluster.stats().upstream_rq_pending_active.dec();
    }
}

/// Opens a connection, or waits for one where no more may be opened. For use after [`HostPool::checkout`] found none.
pub(super) async fn connect(
    cluster: &Cluster,
    host: &Rc<Host>,
    priority: Priority,
) -> Result<Connection, Failure> {
    let stats = cluster.stats();
    let breaker = cluster.breaker(priority);
    let Some(permit) = breaker.try_pending() else {
        stats.upstream_rq_pending_overflow.inc();
        return Err(Failure::Overflow);
    };
    stats.upstream_rq_pending_total.inc();
    stats.upstream_rq_pending_active.inc();
    let _pending = Pending {
        cluster,
        _permit: permit,
    };
    let pool = &host.http1;
    loop {
        let permit = breaker.try_connection();
        // As in Envoy, a host without any connection gets one whatever the limit, or its requests would wait for ever.
        if permit.is_some() || pool.open.get() == 0 {
            return open(cluster, host, permit).await;
        }
        stats.upstream_cx_overflow.inc();
        let released = pin!(pool.released.notified());
        released.await;
        if let Some(connection) = pool.checkout() {
            return Ok(connection);
        }
    }
}

/// Counts a connection of a host while it is being opened.
struct Opening<'a>(&'a HostPool);

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get().saturating_sub(1));
        self.0.released.notify_one();
    }
}

async fn open(
    cluster: &Cluster,
    host: &Rc<Host>,
    permit: Option<Permit>,
) -> Result<Connection, Failure> {
    let stats = cluster.stats();
    let started = Instant::now();
    host.http1.open.set(host.http1.open.get() + 1);
    let opening = Opening(&host.http1);
    stats.upstream_cx_total.inc();
    stats.upstream_cx_http1_total.inc();
    bump(&host.stats.cx_total);
    let stream = match timeout(
        cluster.config.connect_timeout,
        TcpStream::connect(host.address),
    )
    .await
    {
        Ok(Ok(stream)) => stream,
        failed => {
            stats.upstream_cx_connect_fail.inc();
            stats.upstream_cx_destroy.inc();
            stats.upstream_rq_pending_failure_eject.inc();
            bump(&host.stats.cx_connect_fail);
            return Err(match failed {
                Ok(Err(error)) => {
                    stats.upstream_cx_destroy_remote.inc();
                    Failure::Connect(error)
                }
                _ => {
                    stats.upstream_cx_destroy_local.inc();
                    stats.upstream_cx_connect_timeout.inc();
                    Failure::Timeout
                }
            });
        }
    };
    let _ = stream.set_nodelay(true);
    std::mem::forget(opening);
    let now = Instant::now();
    stats
        .upstream_cx_connect_ms
        .record(now.duration_since(started).as_millis() as u64);
    stats.upstream_cx_active.inc();
    bump(&host.stats.cx_active);
    Ok(Connection {
        local: stream.local_addr().ok(),
        stream,
        requests: 0,
        id: next_id(),
        closed_by_peer: false,
        in_use: true,
        opened: now,
        idle_since: now,
        cluster: cluster.config.clone(),
        host: Rc::downgrade(host),
        _permit: permit,
    })
}

/// A number for a connection; each thread counts on its own in steps that keep them apart.
pub(super) fn next_id() -> u64 {
    thread_local! {
        static NEXT: Cell<u64> = const { Cell::new(0) };
    }
    NEXT.with(|next| {
        if next.get() == 0 {
            next.set(fastrand::u64(1..1 << 20) << 32);
        }
        next.set(next.get() + 1);
        next.get()
    })
}
