//! Connections to one host: each carries the calls of many callers under ids of its own.

mod driver;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use smallvec::SmallVec;
use wire::frame::Limits;

use super::bolt::Bolt;
use super::call::{Attempt, Call, Micros};
use super::dispatch;
use super::dubbo::Dubbo;
use super::inbox::{Inbox, Step};
use super::outbox::Outbox;
use super::protocol::{Protocol, Role};
use super::refusal::Refusal;
use super::slab::Slab;
use crate::cluster::host::{bump, unbump};
use crate::cluster::{Cluster, ClusterConfig, Host, Permit, Priority};
use crate::worker::Worker;

/// How long the id of a call that was given up is kept for its late answer.
const LATE_ANSWER: Micros = 300_000_000;
/// Deadlines are looked at this often at most.
const TICK: Micros = 10_000;
/// Callers that went away are looked for this often at most.
const SWEEP: Micros = 1_000_000;

/// The connections of a host, one set for each protocol.
#[derive(Default)]
pub struct HostPool {
    pub(super) bolt: Pool<Bolt>,
    pub(super) dubbo: Pool<Dubbo>,
}

impl HostPool {
    /// Closes what is idle; what is busy closes when its calls are done.
    pub fn close_idle(&self) {
        self.bolt.drain();
        self.dubbo.drain();
    }
}

/// The connections of a host that speak one protocol.
pub(super) struct Pool<P: Protocol> {
    connections: RefCell<SmallVec<[Rc<UpConn<P>>; 1]>>,
}

impl<P: Protocol> Default for Pool<P> {
    fn default() -> Self {
        Pool {
            connections: RefCell::default(),
        }
    }
}

impl<P: Protocol> Pool<P> {
    /// The least loaded connection, opened if need be. `None` when the circuit breaker allows no
    /// connection.
    pub(super) fn get(
        &self,
        worker: &Rc<Worker>,
        cluster: &Rc<Cluster>,
        host: &Rc<Host>,
        flavour: usize,
        priority: Priority,
        now: Micros,
    ) -> Option<Rc<UpConn<P>>> {
        let mut best: Option<(usize, Rc<UpConn<P>>)> = None;
        let mut count = 0;
        for connection in self.connections.borrow().iter() {
            if connection.flavour != flavour || !connection.takes_calls() {
                continue;
            }
            count += 1;
            let load = connection.load();
            if best.as_ref().is_none_or(|(least, _)| load < *least) {
                best = Some((load, Rc::clone(connection)));
            }
        }
        let max = cluster.config.rpc.max_connections_per_host.max(1);
        if let Some((load, connection)) = best.take() {
            if load == 0 || count >= max {
                return Some(connection);
            }
            best = Some((load, connection));
        }
        let Some(permit) = cluster.breaker(priority).try_connection() else {
            cluster.stats().upstream_cx_overflow.inc();
            return best.map(|(_, connection)| connection);
        };
        let connection = UpConn::open(worker, cluster, host, flavour, permit, now);
        self.connections.borrow_mut().push(Rc::clone(&connection));
        Some(connection)
    }

    fn remove(&self, connection: &Rc<UpConn<P>>) {
        self.connections
            .borrow_mut()
            .retain(|other| !Rc::ptr_eq(other, connection));
    }

    fn drain(&self) {
        for connection in self.connections.borrow().iter() {
            connection.drain();
        }
    }
}

/// A call that waits until its connection is open.
struct Waiting {
    cluster: Arc<ClusterConfig>,
    _permit: Permit,
}

impl Waiting {
    fn new(cluster: &Arc<ClusterConfig>, priority: Priority) -> Option<Waiting> {
        let stats = &cluster.stats;
        stats.upstream_rq_pending_total.inc();
        let Some(permit) = cluster.breaker(priority).try_pending() else {
            stats.upstream_rq_pending_overflow.inc();
            return None;
        };
        stats.upstream_rq_pending_active.inc();
        Some(Waiting {
            cluster: Arc::clone(cluster),
            _permit: permit,
        })
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.cluster.stats.upstream_rq_pending_active.dec();
    }
}

/// A call that waits for its answer, or a heartbeat that does.
enum Pending<P: Protocol> {
    Call {
        call: Call<P>,
        attempt: Attempt,
        /// When this try is over; the call's deadline or earlier.
        deadline: Micros,
        /// Where its frame lies in the outbox.
        from: u64,
        to: u64,
        /// Held until the connection is open.
        waiting: Option<Waiting>,
    },
    Heartbeat,
}

/// A one-way call, and where its frame lies in the outbox.
struct OneWay<P: Protocol> {
    from: u64,
    to: u64,
    call: Call<P>,
    attempt: Attempt,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Connecting,
    Open,
    /// Takes no new calls and closes when the last one is answered.
    Draining,
    Closed,
}

/// One connection to a host.
pub(super) struct UpConn<P: Protocol> {
    worker: Rc<Worker>,
    host: Rc<Host>,
    cluster: Arc<ClusterConfig>,
    flavour: usize,
    state: Cell<State>,
    out: RefCell<Outbox>,
    calls: RefCell<Slab<Pending<P>>>,
    /// One-way calls that are not written yet.
    one_way: RefCell<VecDeque<OneWay<P>>>,
    waker: RefCell<Option<Waker>>,
    woken: Cell<bool>,
    /// Downstream connections that wait for room in the outbox.
    blocked: RefCell<Vec<Waker>>,
    /// No deadline is earlier.
    earliest: Cell<Micros>,
    next_sweep: Cell<Micros>,
    /// When bytes were last received: a peer that is written to and says nothing is asked as well.
    last_read: Cell<Micros>,
    heartbeats_missed: Cell<u32>,
    /// Id of the heartbeat that is not answered, and when it is missed.
    heartbeat_due: Cell<Option<(u64, Micros)>>,
    opened: Cell<Micros>,
    _permit: Permit,
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("cannot connect")]
    ConnectFailed,
    #[error("connect timeout")]
    ConnectTimeout,
    #[error("closed by the peer")]
    Remote,
    #[error(transparent)]
    Io(io::Error),
    #[error("{0}")]
    Protocol(String),
    #[error("heartbeats were not answered")]
    Heartbeat,
    #[error("drained")]
    Drained,
}

impl<P: Protocol> UpConn<P> {
    fn open(
        worker: &Rc<Worker>,
        cluster: &Rc<Cluster>,
        host: &Rc<Host>,
        flavour: usize,
        permit: Permit,
        now: Micros,
    ) -> Rc<UpConn<P>> {
        let stats = cluster.stats();
        stats.upstream_cx_total.inc();
        stats.upstream_cx_active.inc();
        bump(&host.stats.cx_total);
        bump(&host.stats.cx_active);
        let connection = Rc::new(UpConn {
            worker: Rc::clone(worker),
            host: Rc::clone(host),
            cluster: Arc::clone(&cluster.config),
            flavour,
            state: Cell::new(State::Connecting),
            out: RefCell::default(),
            calls: RefCell::new(Slab::new(P::ID_BITS)),
            one_way: RefCell::default(),
            waker: RefCell::default(),
            woken: Cell::new(false),
            blocked: RefCell::default(),
            earliest: Cell::new(Micros::MAX),
            next_sweep: Cell::new(now + SWEEP),
            last_read: Cell::new(now),
            heartbeats_missed: Cell::new(0),
            heartbeat_due: Cell::new(None),
            opened: Cell::new(now),
            _permit: permit,
        });
        worker.spawn(driver::run(Rc::clone(&connection)));
        connection
    }

    fn takes_calls(&self) -> bool {
        matches!(self.state.get(), State::Connecting | State::Open)
    }

    fn load(&self) -> usize {
        self.calls.borrow().len()
    }

    fn drain(&self) {
        match self.state.get() {
            State::Open => {
                self.state.set(State::Draining);
                self.wake();
            }
            // Calls already wait for it: it drains once it is open.
            State::Connecting | State::Draining | State::Closed => {}
        }
    }

    fn wake(&self) {
        if !self.woken.replace(true)
            && let Some(waker) = &*self.waker.borrow()
        {
            waker.wake_by_ref();
        }
    }

    /// Whether callers should wait before they send more.
    pub(super) fn is_congested(&self) -> bool {
        self.out.borrow().len() > self.cluster.per_connection_buffer_limit
    }

    /// Wakes this task when there is room again, or never will be.
    pub(super) fn wake_when_free(&self, waker: &Waker) {
        let mut blocked = self.blocked.borrow_mut();
        if !blocked.iter().any(|known| known.will_wake(waker)) {
            blocked.push(waker.clone());
        }
    }

    fn unblock(&self) {
        for waker in self.blocked.borrow_mut().drain(..) {
            waker.wake();
        }
    }

    /// Queues a call and gives its id. `write` appends its frame; the id is put in here.
    pub(super) fn send(
        self: &Rc<Self>,
        call: Call<P>,
        attempt: Attempt,
        deadline: Micros,
        write: impl FnOnce(&Call<P>, &mut Vec<u8>),
    ) -> Result<u64, Box<(Call<P>, Attempt)>> {
        let mut out = self.out.borrow_mut();
        let from = out.end();
        if call.one_way {
            let buffer = out.buffer(self.worker.buffers());
            write(&call, buffer);
            let to = out.end();
            drop(out);
            self.one_way.borrow_mut().push_back(OneWay {
                from,
                to,
                call,
                attempt,
            });
            self.wake();
            return Ok(u64::MAX);
        }
        let waiting = match self.state.get() {
            State::Connecting => {
                let priority = call
                    .route
                    .as_ref()
                    .map_or(Priority::Default, |route| route.priority);
                match Waiting::new(&self.cluster, priority) {
                    Some(waiting) => Some(waiting),
                    None => return Err(Box::new((call, attempt))),
                }
            }
            _ => None,
        };
        let buffer = out.buffer(self.worker.buffers());
        let start = buffer.len();
        write(&call, buffer);
        let to = from + (buffer.len() - start) as u64;
        if deadline < self.earliest.get() {
            self.earliest.set(deadline);
            // The timer of the task may be set to a later time; it looks again when it is woken.
        }
        let pending = Pending::Call {
            call,
            attempt,
            deadline,
            from,
            to,
            waiting,
        };
        match self.calls.borrow_mut().insert(pending) {
            Ok(id) => {
                if let Some(frame) = buffer.get_mut(start..)
                    && let Ok(head) = P::head_unchecked(frame)
                {
                    P::set_id(frame, &head, id);
                }
                drop(out);
                self.wake();
                Ok(id)
            }
            Err(Pending::Call { call, attempt, .. }) => {
                buffer.truncate(start);
                Err(Box::new((call, attempt)))
            }
            Err(Pending::Heartbeat) => Ok(u64::MAX),
        }
    }

    /// Keeps the frame of a call that was just sent, for the case that it is sent again.
    pub(super) fn keep_frame(&self, id: u64, frame: Vec<u8>) {
        if let Some(Pending::Call { call, .. }) = self.calls.borrow_mut().get_mut(id)
            && let Some(retry) = &mut call.retry
        {
            retry.frame = frame;
        }
    }

    fn on_frames(self: &Rc<Self>, inbox: &mut Inbox, limits: &Limits, now: Micros) -> Option<End> {
        loop {
            match inbox.next::<P>(limits) {
                Step::NeedMore => return None,
                Step::Bad(error) => return Some(End::Protocol(error.to_string())),
                Step::Frame(range) => {
                    let frame = inbox.frame(range);
                    match P::head(frame) {
                        Ok(head) => self.on_frame(frame, &head, now),
                        Err(error) => return Some(End::Protocol(error.to_string())),
                    }
                }
            }
        }
    }

    fn on_frame(self: &Rc<Self>, frame: &[u8], head: &P::Head, now: Micros) {
        match P::role(head, frame) {
            Role::Answer => {
                let pending = self.calls.borrow_mut().remove(P::id(head));
                // Otherwise the answer is late: its caller was told already.
                if let Some(Pending::Call {
                    mut call,
                    mut attempt,
                    ..
                }) = pending
                {
                    let outcome = P::outcome(frame, head);
                    if call.retry.is_some() {
                        match dispatch::retry_answer(call, attempt, outcome, now) {
                            Some(back) => (call, attempt) = back,
                            None => return,
                        }
                    }
                    attempt.answered(outcome, now);
                    call.answer(frame, head, outcome, now);
                }
            }
            Role::Heartbeat => {
                let mut out = self.out.borrow_mut();
                P::heartbeat_ack(out.buffer(self.worker.buffers()), head);
            }
            Role::HeartbeatAck => {
                self.calls.borrow_mut().remove(P::id(head));
                self.heartbeat_due.set(None);
                self.heartbeats_missed.set(0);
            }
            Role::Drain => {
                tracing::debug!(protocol = P::NAME, host = %self.host.address, "the upstream drains this connection");
                self.cluster.stats.upstream_cx_close_notify.inc();
                self.drain();
            }
            // A server that calls its client back would need a connection of one caller only.
            Role::Call => {
                let mut out = self.out.borrow_mut();
                P::refuse(out.buffer(self.worker.buffers()), head, &Refusal::NoRoute);
            }
            Role::OneWay | Role::Other => {}
        }
    }

    /// Ends calls whose time is over and forgets those whose callers went away.
    fn expire(self: &Rc<Self>, now: Micros) {
        let sweep = now >= self.next_sweep.get();
        if now < self.earliest.get() && !sweep {
            return;
        }
        self.next_sweep.set(now + SWEEP);
        let mut over = Vec::new();
        let mut earliest = Micros::MAX;
        self.calls.borrow_mut().expire(
            now,
            now + LATE_ANSWER,
            |pending| match pending {
                Pending::Call { call, deadline, .. } => {
                    let gone = *deadline <= now || call.down.is_closed();
                    if !gone {
                        earliest = earliest.min(*deadline);
                    }
                    gone
                }
                Pending::Heartbeat => false,
            },
            |pending| over.push(pending),
        );
        self.earliest.set(earliest);
        for pending in over {
            if let Pending::Call { call, attempt, .. } = pending {
                if call.down.is_closed() {
                    self.cluster.stats.upstream_rq_cancelled.inc();
                } else {
                    dispatch::timed_out(call, attempt, now);
                }
            }
        }
    }

    /// Sends a heartbeat if nothing was heard for long enough; says when to look again.
    fn heartbeat(&self, now: Micros) -> Result<Micros, End> {
        let options = &self.cluster.rpc;
        if let Some((id, due)) = self.heartbeat_due.get() {
            if now < due {
                return Ok(due);
            }
            self.calls.borrow_mut().remove(id);
            self.heartbeats_missed.set(self.heartbeats_missed.get() + 1);
            self.heartbeat_due.set(None);
            if self.heartbeats_missed.get() >= options.heartbeat_failures.max(1) {
                return Err(End::Heartbeat);
            }
        }
        let Some(interval) = options.heartbeat_interval.map(micros) else {
            return Ok(Micros::MAX);
        };
        let due = self.last_read.get() + interval;
        if now < due && self.heartbeats_missed.get() == 0 {
            return Ok(due);
        }
        let Ok(id) = self.calls.borrow_mut().insert(Pending::Heartbeat) else {
            return Ok(now + interval);
        };
        let mut out = self.out.borrow_mut();
        P::heartbeat(out.buffer(self.worker.buffers()), self.flavour, id);
        let due = now + micros(options.heartbeat_timeout);
        self.heartbeat_due.set(Some((id, due)));
        Ok(due)
    }

    fn calls_in_flight(&self) -> bool {
        self.calls.borrow().len() > 0 || !self.one_way.borrow().is_empty()
    }

    fn one_way_written(&self, now: Micros) {
        let mut one_way = self.one_way.borrow_mut();
        if one_way.is_empty() {
            return;
        }
        let written = self.out.borrow().written_to();
        while one_way.front().is_some_and(|first| first.to <= written) {
            if let Some(OneWay {
                mut call, attempt, ..
            }) = one_way.pop_front()
            {
                attempt.answered(super::protocol::Outcome::OK, now);
                call.sent(now);
            }
        }
    }

    fn is_open(&self) {
        self.state.set(if self.host.is_removed() {
            State::Draining
        } else {
            State::Open
        });
        for pending in self.calls.borrow_mut().values_mut() {
            if let Pending::Call { waiting, .. } = pending {
                *waiting = None;
            }
        }
    }

    /// Hands every call that is left back: to another host if it may be sent again, or to its caller.
    fn close(self: &Rc<Self>, end: &End) {
        let connected = !matches!(end, End::ConnectFailed | End::ConnectTimeout);
        self.state.set(State::Closed);
        P::pool(&self.host.rpc).remove(self);
        self.unblock();
        let now = super::now(&self.worker);
        let active = self.calls_in_flight();
        let stats = &self.cluster.stats;
        stats.upstream_cx_active.dec();
        stats.upstream_cx_destroy.inc();
        unbump(&self.host.stats.cx_active);
        match end {
            End::ConnectFailed | End::ConnectTimeout => {
                stats.upstream_cx_connect_fail.inc();
                bump(&self.host.stats.cx_connect_fail);
                if matches!(end, End::ConnectTimeout) {
                    stats.upstream_cx_connect_timeout.inc();
                }
            }
            End::Remote | End::Io(_) => {
                stats.upstream_cx_destroy_remote.inc();
                if active {
                    stats.upstream_cx_destroy_remote_with_active_rq.inc();
                }
            }
            End::Protocol(_) | End::Heartbeat | End::Drained => {
                stats.upstream_cx_destroy_local.inc();
                if active {
                    stats.upstream_cx_destroy_local_with_active_rq.inc();
                }
            }
        }
        if active {
            stats.upstream_cx_destroy_with_active_rq.inc();
        }
        if matches!(end, End::Protocol(_)) {
            stats.upstream_cx_protocol_error.inc();
        }
        if connected {
            let life = now.saturating_sub(self.opened.get());
            stats.upstream_cx_length_ms.record(life / 1000);
        }
        match end {
            End::Drained => {}
            End::Remote if !active => {}
            _ => {
                tracing::info!(protocol = P::NAME, cluster = %self.cluster.name, host = %self.host.address, reason = %end, calls = self.load(), "upstream connection ended");
            }
        }
        let out = std::mem::take(&mut *self.out.borrow_mut());
        let calls = self.calls.borrow_mut().drain();
        let one_way = std::mem::take(&mut *self.one_way.borrow_mut());
        let one_way = one_way
            .into_iter()
            .map(|sent| (sent.from, sent.to, sent.call, sent.attempt));
        let failure = if connected {
            Refusal::UpstreamClosed
        } else {
            Refusal::ConnectFailed
        };
        let calls = calls.into_iter().filter_map(|pending| match pending {
            Pending::Call {
                call,
                attempt,
                from,
                to,
                ..
            } => Some((from, to, call, attempt)),
            Pending::Heartbeat => None,
        });
        for (from, to, call, attempt) in calls.chain(one_way) {
            let frame = out.unwritten(from, to);
            dispatch::connection_lost(call, attempt, frame, &failure, now);
        }
    }
}

/// A duration in microseconds.
pub(super) fn micros(duration: Duration) -> Micros {
    Micros::try_from(duration.as_micros()).unwrap_or(Micros::MAX / 4)
}
