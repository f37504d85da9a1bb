//! One downstream connection: reads frames, routes calls, writes answers.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, SystemTime};

use telemetry::request_info::RequestInfo;
use telemetry::response_flags::ResponseFlag;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use wire::frame::FrameError;

use super::call::{Call, Micros, Routed};
use super::dispatch;
use super::inbox::{Inbox, Step};
use super::log::Entry;
use super::outbox::Outbox;
use super::protocol::{Protocol, Role, Words};
use super::refusal::Refusal;
use super::upstream::{UpConn, micros};
use super::view::{View, write_path};
use super::{Accepted, Config};
use crate::cluster::Cluster;
use crate::fault;
use crate::listener::{Drain, ListenerConfig};
use crate::route::{Action, FaultOverride, Forward};
use crate::worker::{RouteSlot, Worker};

/// A draining connection closes when it was without calls for this long: a call that was on its way
/// when draining began has arrived by then.
const QUIET: Duration = Duration::from_millis(500);
/// How long a refused connection may take to read its last answer.
const LINGER: Duration = Duration::from_secs(1);
/// Reads that one turn may do before others get theirs.
const READS: usize = 4;

/// A downstream connection, shared with the calls that came from it.
pub(super) struct Down<P: Protocol> {
    pub(super) worker: Rc<Worker>,
    pub(super) config: Arc<Config>,
    pub(super) remote: SocketAddr,
    pub(super) local: SocketAddr,
    listener: Arc<ListenerConfig>,
    routes: Rc<RouteSlot>,
    out: RefCell<Outbox>,
    waker: RefCell<Option<Waker>>,
    woken: Cell<bool>,
    calls: Cell<u32>,
    state: Cell<State>,
    draining: Cell<bool>,
    /// Whether the time for draining is over: the next moment without a call ends the connection.
    drain_over: Cell<bool>,
    last_call: Cell<Micros>,
    /// The upstream connection that the call at hand filled.
    pub(super) congested: Cell<Option<Rc<UpConn<P>>>>,
    /// Room for the path of the call at hand.
    path: RefCell<Vec<u8>>,
    protocol: std::marker::PhantomData<P>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    /// Nothing is read any more; what is queued is written first.
    Closing,
    Closed,
}

impl<P: Protocol> Down<P> {
    /// Appends bytes for the peer.
    pub(super) fn append(&self, write: impl FnOnce(&mut Vec<u8>)) {
        write(self.out.borrow_mut().buffer(self.worker.buffers()));
        self.wake();
    }

    fn wake(&self) {
        if !self.woken.replace(true)
            && let Some(waker) = &*self.waker.borrow()
        {
            waker.wake_by_ref();
        }
    }

    /// Whether the peer is gone.
    pub(super) fn is_closed(&self) -> bool {
        self.state.get() == State::Closed
    }

    /// Closes when what is queued is written.
    pub(super) fn close_after_flush(&self) {
        if self.state.get() == State::Open {
            self.state.set(State::Closing);
            self.wake();
        }
    }

    /// A call from here is over.
    pub(super) fn call_ended(&self) {
        self.calls.set(self.calls.get().saturating_sub(1));
        self.config.stats.downstream_rq_active.dec();
        if self.draining.get() && self.calls.get() == 0 {
            self.wake();
        }
    }

    /// What header operators can say of a call besides its headers.
    pub(super) fn info<'a, Q: Protocol>(&'a self, cluster: &'a Cluster) -> RequestInfo<'a> {
        RequestInfo {
            protocol: Some(Q::NAME),
            method: Some("POST"),
            upstream_cluster: Some(&cluster.config.name),
            downstream_remote: Some(self.remote),
            downstream_direct_remote: Some(self.remote),
            downstream_local: Some(self.local),
            ..RequestInfo::new(SystemTime::UNIX_EPOCH)
        }
    }

    fn new_call(self: &Rc<Self>, head: P::Head, one_way: bool, now: Micros) -> Call<P> {
        let stats = &self.config.stats;
        stats.downstream_rq_total.inc();
        stats.downstream_rq_active.inc();
        if one_way {
            stats.downstream_rq_oneway.inc();
        }
        self.calls.set(self.calls.get() + 1);
        self.last_call.set(now);
        Call {
            down: Rc::clone(self),
            head,
            one_way,
            start: now,
            deadline: Micros::MAX,
            route: None,
            attempts: 0,
            retry: None,
            log: None,
            done: false,
        }
    }

    /// Handles a frame.
    fn on_frame(self: &Rc<Self>, frame: &[u8], head: &P::Head, now: Micros) {
        match P::role(head, frame) {
            Role::Call => self.on_call(frame, self.new_call(*head, false, now), now),
            Role::OneWay => self.on_call(frame, self.new_call(*head, true, now), now),
            Role::Heartbeat => {
                self.config.stats.downstream_rq_heartbeat.inc();
                self.append(|out| P::heartbeat_ack(out, head));
            }
            Role::Answer | Role::HeartbeatAck | Role::Drain | Role::Other => {
                self.config.stats.downstream_rq_unexpected.inc();
            }
        }
    }

    fn on_call(self: &Rc<Self>, frame: &[u8], mut call: Call<P>, now: Micros) {
        if self.calls.get() > self.config.max_calls {
            return call.refuse(&Refusal::Overflow, now);
        }
        let head = call.head;
        let words = match P::words(frame, &head, &self.config.limits) {
            Ok(words) => words,
            Err(error) => {
                self.config.stats.downstream_rq_decoding_error.inc();
                tracing::info!(protocol = P::NAME, remote = %self.remote, %error, "call cannot be read");
                return call.refuse(&Refusal::Undecodable(error), now);
            }
        };
        let mut path = std::mem::take(&mut *self.path.borrow_mut());
        write_path(&words, &mut path);
        self.route(frame, call, &words, &path, now);
        *self.path.borrow_mut() = path;
    }

    fn route(
        self: &Rc<Self>,
        frame: &[u8],
        mut call: Call<P>,
        words: &Words<'_>,
        path: &[u8],
        now: Micros,
    ) {
        let head = call.head;
        if self.config.access_log.is_enabled() {
            call.log = Some(Box::new(Entry::new::<P>(frame, &head, words, path)));
        }
        call.deadline = deadline(words, None, &self.config, now);
        let Some(table) = self.routes.table() else {
            return call.refuse(&Refusal::NoRoute, now);
        };
        let view = View::<P> {
            frame,
            head: &head,
            words,
            path,
        };
        let random = fastrand::u64(..);
        let found = table.find(&view, random);
        let Some((id, entry)) = found.and_then(|id| Some((id, table.entry(id)?))) else {
            return call.refuse(&Refusal::NoRoute, now);
        };
        let forward = match &entry.route.action {
            Action::Forward(forward) => forward,
            Action::Direct(direct) => {
                let refusal = Refusal::Direct(direct.status, Arc::clone(&direct.body));
                return call.refuse(&refusal, now);
            }
            // There is nowhere to send an RPC client.
            Action::Redirect(_) => return call.refuse(&Refusal::NoRoute, now),
        };
        call.deadline = deadline(words, Some(forward), &self.config, now);
        let Some(pick) = forward.choose(&view, random) else {
            return call.refuse(&Refusal::NoCluster, now);
        };
        let injected = match entry.fault(pick.weighted) {
            FaultOverride::Inherit => self.config.fault.as_ref(),
            FaultOverride::Disabled => None,
            FaultOverride::Config(fault) => self.config.fault.is_some().then_some(fault),
        }
        .map(|fault| fault.decide(&view, Some(&pick.name), || fastrand::u32(..)))
        .unwrap_or_default();
        let Some(cluster) = self.worker.cluster(&pick.name) else {
            return call.refuse(&Refusal::NoCluster, now);
        };
        call.route = Some(Routed {
            table: Rc::clone(&table),
            id,
            random,
            weighted: pick.weighted,
            cluster,
            priority: forward.priority,
            edits_answer: entry.has_response_headers(pick.weighted),
        });
        if let Some(delay) = injected.delay {
            return self.delay(frame, call, delay, injected.abort);
        }
        if let Some(status) = injected.abort {
            return self.abort(call, status, now);
        }
        dispatch::first(call, frame, words, entry, forward, path, now);
    }

    fn abort(&self, mut call: Call<P>, status: fault::Status, now: Micros) {
        self.config.fault_stats.aborts_injected.inc();
        let status = match status {
            fault::Status::Http(status) => status,
            fault::Status::Grpc(status) => http_of_grpc(status),
        };
        call.refuse(&Refusal::Abort(status), now);
    }

    /// Holds a call back. Its frame is copied: the buffer it lies in goes on to other calls.
    fn delay(
        self: &Rc<Self>,
        frame: &[u8],
        mut call: Call<P>,
        delay: Duration,
        abort: Option<fault::Status>,
    ) {
        self.config.fault_stats.delays_injected.inc();
        if let Some(log) = &mut call.log {
            log.flags.set(ResponseFlag::DelayInjected);
        }
        let down = Rc::clone(self);
        let frame = frame.to_vec();
        self.worker.spawn(async move {
            let active = ActiveFault::new(&down.config);
            tokio::time::sleep(delay).await;
            drop(active);
            let now = super::now(&down.worker);
            if down.is_closed() {
                return;
            }
            match abort {
                Some(status) => down.abort(call, status, now),
                None => down.resume(&frame, call, now),
            }
        });
    }

    fn resume(self: &Rc<Self>, frame: &[u8], mut call: Call<P>, now: Micros) {
        // Envoy's route timeout begins when the request goes on, and so does ours.
        let held = now.saturating_sub(call.start);
        call.deadline = call.deadline.saturating_add(held);
        let head = call.head;
        let Ok(words) = P::words(frame, &head, &self.config.limits) else {
            return;
        };
        let Some(routed) = &call.route else {
            return;
        };
        let table = Rc::clone(&routed.table);
        let mut path = Vec::new();
        write_path(&words, &mut path);
        if let Some(entry) = table.entry(routed.id)
            && let Action::Forward(forward) = &entry.route.action
        {
            dispatch::first(call, frame, &words, entry, forward, &path, now);
        }
    }
}

/// Counts a call that is held back.
struct ActiveFault(Arc<Config>);

impl ActiveFault {
    fn new(config: &Arc<Config>) -> ActiveFault {
        config.fault_stats.active_faults.inc();
        ActiveFault(Arc::clone(config))
    }
}

impl Drop for ActiveFault {
    fn drop(&mut self) {
        self.0.fault_stats.active_faults.dec();
    }
}

/// When a call is over: the route's time, if it says one, and the caller's; else the filter's.
fn deadline(words: &Words<'_>, forward: Option<&Forward>, config: &Config, now: Micros) -> Micros {
    let caller = words
        .timeout_ms
        .map(|ms| Duration::from_millis(u64::from(ms)));
    let route = forward.filter(|forward| forward.timeout_set);
    let time = match (caller, route.and_then(|forward| forward.timeout)) {
        (Some(caller), Some(route)) => Some(caller.min(route)),
        (Some(time), None) | (None, Some(time)) => Some(time),
        // A route that sets 0 turns the timeout off.
        (None, None) if route.is_some() => None,
        (None, None) => config.request_timeout,
    };
    time.map_or(Micros::MAX, |time| now.saturating_add(micros(time)))
}

fn http_of_grpc(status: u32) -> u16 {
    match status {
        0 => 200,
        1 => 499,
        3 | 9 | 11 => 400,
        4 => 504,
        5 | 12 => 404,
        6 | 10 => 409,
        7 => 403,
        8 => 429,
        14 => 503,
        16 => 401,
        _ => 500,
    }
}

/// Why a connection ended.
#[derive(Debug)]
enum End {
    /// The peer closed.
    Remote,
    Io(io::Error),
    /// The last answer is written and the rest of the input is not wanted.
    Refused,
    /// The peer does not read.
    Overflow,
    Drained,
}

struct Connection<P: Protocol> {
    stream: TcpStream,
    down: Rc<Down<P>>,
    inbox: Inbox,
    /// The upstream connection that has to take bytes before more calls are read.
    blocked: Option<Rc<UpConn<P>>>,
}

/// Serves a connection to its end.
pub(super) fn serve<P: Protocol>(accepted: Accepted) -> impl Future<Output = ()> {
    let Accepted {
        conn,
        config,
        worker,
        initial,
        open,
    } = accepted;
    let now = super::now(&worker);
    let routes = worker.route_slot(&config.routes);
    let down = Rc::new(Down::<P> {
        worker,
        config,
        remote: conn.remote,
        local: conn.local,
        listener: conn.listener,
        routes,
        out: RefCell::default(),
        waker: RefCell::default(),
        woken: Cell::new(false),
        calls: Cell::new(0),
        state: Cell::new(State::Open),
        draining: Cell::new(false),
        drain_over: Cell::new(false),
        last_call: Cell::new(now),
        congested: Cell::new(None),
        path: RefCell::default(),
        protocol: std::marker::PhantomData,
    });
    let drain = conn.drain;
    let mut connection = Connection {
        stream: conn.stream,
        down,
        inbox: Inbox::with(initial),
        blocked: None,
    };
    async move {
        let _open = open;
        let end = run(&mut connection, &drain).await;
        connection.ended(&end);
        if matches!(end, End::Refused) {
            // Boxed: its buffer must not be part of every idle connection.
            Box::pin(linger(&mut connection.stream)).await;
        }
    }
}

/// Lets the peer read the last answer: closing at once would reset the connection while bytes that
/// nobody reads are on their way.
async fn linger(stream: &mut TcpStream) {
    if stream.shutdown().await.is_err() {
        return;
    }
    let discard = async {
        let mut sink = [0; 4096];
        loop {
            if stream.readable().await.is_err() {
                return;
            }
            match stream.try_read(&mut sink) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
    };
    let _ = tokio::time::timeout(LINGER, discard).await;
}

async fn run<P: Protocol>(connection: &mut Connection<P>, drain: &Drain) -> End {
    let down = Rc::clone(&connection.down);
    let idle = down.config.idle_timeout;
    let first_look = idle.unwrap_or(Duration::from_secs(86_400));
    let mut timer = std::pin::pin!(tokio::time::sleep(first_look));
    let mut drain_until = Micros::MAX;
    loop {
        tokio::select! {
            biased;
            end = std::future::poll_fn(|context| connection.poll(context)) => return end,
            () = drain.wait(), if !down.draining.get() => {
                down.draining.set(true);
                drain_until = super::now(&down.worker) + micros(down.config.drain_timeout);
                // A stock client sends no new calls after this; the others are waited for.
                down.append(|out| P::drain_notice(out));
                timer.as_mut().reset(tokio::time::Instant::now() + QUIET);
            }
            () = timer.as_mut() => {
                let now = super::now(&down.worker);
                let quiet = now.saturating_sub(down.last_call.get());
                let wait = if down.draining.get() {
                    let over = now >= drain_until;
                    if down.calls.get() == 0 && (over || quiet >= micros(QUIET)) {
                        return End::Drained;
                    }
                    down.drain_over.set(over);
                    QUIET
                } else {
                    let idle = idle.unwrap_or(Duration::from_secs(86_400));
                    if down.config.idle_timeout.is_some()
                        && down.calls.get() == 0
                        && quiet >= micros(idle)
                    {
                        down.config.stats.downstream_cx_idle_timeout.inc();
                        return End::Drained;
                    }
                    idle.saturating_sub(Duration::from_micros(quiet)).max(QUIET)
                };
                timer.as_mut().reset(tokio::time::Instant::now() + wait);
            }
        }
    }
}

impl<P: Protocol> Connection<P> {
    fn ended(&mut self, end: &End) {
        let down = &self.down;
        let stats = &down.config.stats;
        if let End::Io(error) = end {
            tracing::debug!(protocol = P::NAME, remote = %down.remote, %error, "downstream connection failed");
        }
        match end {
            End::Remote | End::Io(_) if down.calls.get() > 0 => {
                stats.downstream_cx_destroy_remote_active_rq.inc();
            }
            End::Drained => stats.downstream_cx_drain_close.inc(),
            End::Overflow => stats.downstream_cx_overflow.inc(),
            _ => {}
        }
        down.state.set(State::Closed);
        self.inbox = Inbox::default();
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<End> {
        let down = Rc::clone(&self.down);
        let mut waker = down.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|w| w.will_wake(context.waker())) {
            *waker = Some(context.waker().clone());
        }
        drop(waker);
        // What is appended from here on is written below, without another turn.
        down.woken.set(true);
        let mut end = self.flush(context);
        if end.is_none() {
            end = self.read(context);
        }
        down.woken.set(false);
        if end.is_none() {
            end = self.flush(context);
        }
        let drained =
            down.drain_over.get() && down.calls.get() == 0 && down.out.borrow().is_empty();
        match end {
            Some(end) => Poll::Ready(end),
            None if drained => Poll::Ready(End::Drained),
            None => Poll::Pending,
        }
    }

    fn flush(&mut self, context: &mut Context<'_>) -> Option<End> {
        let down = &self.down;
        let mut out = down.out.borrow_mut();
        if !out.is_empty() {
            let (count, result) = out.flush(&self.stream, down.worker.buffers(), context);
            down.config
                .stats
                .downstream_cx_tx_bytes_total
                .add(count as u64);
            if let Poll::Ready(Err(error)) = result {
                return Some(End::Io(error));
            }
            let most =
                down.config.limits.frame_bytes + 4 * down.listener.per_connection_buffer_limit;
            if out.len() > most {
                return Some(End::Overflow);
            }
        }
        (down.state.get() == State::Closing && out.is_empty()).then_some(End::Refused)
    }

    fn read(&mut self, context: &mut Context<'_>) -> Option<End> {
        let down = Rc::clone(&self.down);
        let pool = down.worker.buffers();
        let mut now = None;
        let mut reads = 0;
        loop {
            if down.state.get() != State::Open {
                return None;
            }
            if let Some(upstream) = &self.blocked {
                if upstream.is_congested() {
                    upstream.wake_when_free(context.waker());
                    return None;
                }
                self.blocked = None;
            }
            // The peer has to take answers before it may ask for more.
            if down.out.borrow().len() > down.listener.per_connection_buffer_limit {
                down.config
                    .stats
                    .downstream_flow_control_paused_reading_total
                    .inc();
                return None;
            }
            if !self.inbox.rest().is_empty() {
                let now = *now.get_or_insert_with(|| super::now(&down.worker));
                let paused = self.on_frames(now);
                self.inbox.release(pool);
                if paused {
                    continue;
                }
            }
            match self.stream.poll_read_ready(context) {
                Poll::Pending => return None,
                Poll::Ready(Err(error)) => return Some(End::Io(error)),
                Poll::Ready(Ok(())) => {}
            }
            if reads == READS {
                context.waker().wake_by_ref();
                return None;
            }
            reads += 1;
            match self.inbox.read(&self.stream, pool) {
                Ok(0) => return Some(End::Remote),
                Ok(count) => down
                    .config
                    .stats
                    .downstream_cx_rx_bytes_total
                    .add(count as u64),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Some(End::Io(error)),
            }
        }
    }

    /// Handles the frames that are there; true when it stopped before the last one.
    fn on_frames(&mut self, now: Micros) -> bool {
        let down = &self.down;
        let limit = down.listener.per_connection_buffer_limit;
        loop {
            match self.inbox.next::<P>(&down.config.limits) {
                Step::NeedMore => return false,
                Step::Bad(error) => {
                    refuse_frame(down, self.inbox.rest(), &error, now);
                    return true;
                }
                Step::Frame(range) => {
                    let frame = self.inbox.frame(range);
                    match P::head(frame) {
                        Ok(head) => down.on_frame(frame, &head, now),
                        Err(error) => {
                            refuse_frame(down, &[], &error, now);
                            return true;
                        }
                    }
                }
            }
            if down.state.get() != State::Open || down.out.borrow().len() > limit {
                return true;
            }
            if let Some(upstream) = down.congested.take() {
                self.blocked = Some(upstream);
                return true;
            }
        }
    }
}

/// A frame that is refused ends the connection: where the next one begins is not known.
fn refuse_frame<P: Protocol>(down: &Rc<Down<P>>, bytes: &[u8], error: &FrameError, now: Micros) {
    let stats = &down.config.stats;
    let refusal = match error {
        FrameError::TooLarge { .. } => {
            stats.downstream_rq_too_large.inc();
            Refusal::TooLarge(error.to_string())
        }
        FrameError::Garbage { .. } | FrameError::Checksum { .. } => {
            stats.downstream_cx_protocol_error.inc();
            Refusal::Undecodable(error.to_string())
        }
    };
    stats.downstream_rq_decoding_error.inc();
    tracing::info!(protocol = P::NAME, remote = %down.remote, %error, "frame refused, closing the connection");
    if let Some(head) = P::head_of_refused(bytes)
        && P::role(&head, bytes) == Role::Call
    {
        down.new_call(head, false, now).refuse(&refusal, now);
    }
    down.close_after_flush();
}
