//! One downstream connection: waiting for requests without holding buffers, reading heads, and ending in good order.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::Instant;
use wire::http1::{Error, Parse};

use super::call;
use super::config::Config;
use super::io::poll_fill;
use super::request::Peer;
use super::scratch::{self, Loan, Scratch};
use super::timer::Timer;
use super::upstream::next_id;
use crate::listener::{Downstream, Drain, ListenerConfig};
use crate::worker::{RouteSlot, Worker};

/// HTTP/2 with prior knowledge begins like this.
const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n";

/// How long a connection stays ready for another request before it gives up all it does not need.
const LINGER: Duration = Duration::from_millis(50);

/// What does not change while a connection lives.
pub(super) struct Shared {
    pub(super) config: Arc<Config>,
    pub(super) worker: Rc<Worker>,
    pub(super) listener: Arc<ListenerConfig>,
    pub(super) drain: Rc<Drain>,
    pub(super) routes: Rc<RouteSlot>,
    pub(super) peer: Peer,
    pub(super) id: u64,
    /// When the connection began to be wound up, because of a drain or its age.
    closing_since: Cell<Option<Instant>>,
}

/// A downstream connection.
pub(super) struct Conn {
    pub(super) stream: TcpStream,
    pub(super) timer: Timer,
    pub(super) shared: Rc<Shared>,
    /// Requests that have begun.
    pub(super) requests: u32,
    opened: Instant,
    /// End of the last request, or start of the connection.
    pub(super) last_end: Instant,
}

/// What is to be done with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It waits for the next request.
    Idle,
    /// Everything is sent: close it.
    Close,
    /// Close it, but let the client read the answer first: it may still be sending, and a reset would destroy the answer.
    Linger,
    /// The client closed it.
    ClosedByPeer,
}

/// Counts a connection while it is open.
struct Open(Arc<Config>, Instant);

impl Drop for Open {
    fn drop(&mut self) {
        let stats = &self.0.stats;
        stats.downstream_cx_active.dec();
        stats.downstream_cx_http1_active.dec();
        stats.downstream_cx_destroy.inc();
        stats
            .downstream_cx_length_ms
            .record(self.1.elapsed().as_millis() as u64);
    }
}

/// Serves one downstream connection.
pub async fn serve(conn: Downstream, config: Arc<Config>, worker: Rc<Worker>) {
    let now = Instant::now();
    config.stats.downstream_cx_total.inc();
    config.stats.downstream_cx_http1_total.inc();
    config.stats.downstream_cx_active.inc();
    config.stats.downstream_cx_http1_active.inc();
    let _open = Open(config.clone(), now);
    let mut conn = Conn {
        stream: conn.stream,
        timer: Timer::new(now),
        requests: 0,
        opened: now,
        last_end: now,
        shared: Rc::new(Shared {
            routes: worker.route_slot(&config.routes),
            config,
            worker,
            listener: conn.listener,
            drain: conn.drain,
            peer: Peer {
                remote: conn.remote,
                local: conn.local,
            },
            id: next_id(),
            closing_since: Cell::new(None),
        }),
    };
    let shared = conn.shared.clone();
    // Lives as long as the connection: it is registered once, not for each request.
    let mut drained = pin!(shared.drain.wait());
    let mut drain_watched = false;
    loop {
        let readable = poll_fn(|cx| {
            if let Poll::Ready(result) = conn.stream.poll_read_ready(cx) {
                return Poll::Ready(result.is_ok());
            }
            if !drain_watched {
                drain_watched = true;
                let _ = drained.as_mut().poll(cx).is_ready();
            }
            match conn.idle_deadline() {
                Some(deadline) if conn.timer.poll(cx, Some(deadline)) => Poll::Ready(false),
                _ => Poll::Pending,
            }
        });
        if !readable.await {
            conn.count_idle_end();
            break;
        }
        // Boxed, so that an idle connection is small.
        match Box::pin(busy(&mut conn)).await {
            Fate::Idle => {}
            Fate::Linger => {
                Box::pin(linger(&mut conn)).await;
                conn.shared.config.stats.downstream_cx_destroy_local.inc();
                break;
            }
            Fate::Close => {
                conn.shared.config.stats.downstream_cx_destroy_local.inc();
                break;
            }
            Fate::ClosedByPeer => {
                conn.shared.config.stats.downstream_cx_destroy_remote.inc();
                break;
            }
        }
    }
}

impl Conn {
    /// Waits a little for another request; to come back from idleness costs more than to stay for the next one.
    async fn more_soon(&mut self) -> bool {
        let deadline = self.last_end + LINGER;
        poll_fn(|cx| {
            if self.stream.poll_read_ready(cx).is_ready() {
                return Poll::Ready(true);
            }
            match self.timer.poll(cx, Some(deadline)) {
                true => Poll::Ready(false),
                false => Poll::Pending,
            }
        })
        .await
    }

    /// Whether this connection takes no more requests after this one.
    pub(super) fn is_closing(&self, now: Instant) -> bool {
        self.closing_since(now).is_some()
    }

    fn closing_since(&self, now: Instant) -> Option<Instant> {
        let shared = &self.shared;
        if shared.closing_since.get().is_none() {
            let too_old = shared
                .config
                .timeouts
                .max_connection
                .is_some_and(|limit| now >= self.opened + limit);
            if too_old {
                shared.config.stats.downstream_cx_max_duration_reached.inc();
            }
            if too_old || shared.drain.is_draining() {
                shared.closing_since.set(Some(now));
            }
        }
        shared.closing_since.get()
    }

    /// When a connection without a request is closed.
    ///
    /// One that is wound up is given a little time: its client may be sending the next request at this very moment, and gets
    /// an answer with `connection: close`.
    fn idle_deadline(&self) -> Option<Instant> {
        let timeouts = &self.shared.config.timeouts;
        let idle = timeouts.idle.map(|limit| self.last_end + limit);
        if !self.shared.drain.is_draining() && timeouts.max_connection.is_none() {
            return idle;
        }
        let closing = match self.closing_since(Instant::now()) {
            Some(since) => Some(since + timeouts.drain),
            None => timeouts.max_connection.map(|limit| self.opened + limit),
        };
        [idle, closing].into_iter().flatten().min()
    }

    fn count_idle_end(&self) {
        let stats = &self.shared.config.stats;
        if self.shared.drain.is_draining() {
            stats.downstream_cx_drain_close.inc();
        } else {
            stats.downstream_cx_idle_timeout.inc();
        }
        stats.downstream_cx_destroy_local.inc();
    }
}

/// Serves requests until there have been none for a little while.
async fn busy(conn: &mut Conn) -> Fate {
    loop {
        let mut scratch = scratch::take();
        loop {
            let head_len = match read_head(conn, &mut scratch).await {
                Ok(head_len) => head_len,
                Err(Fate::Idle) => break,
                Err(fate) => return fate,
            };
            let fate = call::serve(conn, &mut scratch, head_len).await;
            if fate != Fate::Idle {
                return fate;
            }
            next_request(&mut scratch, head_len);
        }
        drop(scratch);
        if !conn.more_soon().await {
            return Fate::Idle;
        }
    }
}

/// Leaves only what follows the request that has been served.
fn next_request(scratch: &mut Loan, head_len: usize) {
    let Scratch { received, body, .. } = &mut **scratch;
    if received.len() > head_len {
        received.drain(..head_len);
    } else {
        received.clear();
    }
    received.extend_from_slice(body.bytes());
    body.clear();
}

/// Reads and parses a request head.
async fn read_head(conn: &mut Conn, scratch: &mut Loan) -> Result<usize, Fate> {
    let shared = conn.shared.clone();
    let mut started: Option<Instant> = None;
    // Bytes that were parsed without finding the end; a head that dribbles in is parsed again only for a new line.
    let mut seen = 0;
    loop {
        let Scratch {
            received, request, ..
        } = &mut **scratch;
        let fresh = received.get(seen..).unwrap_or_default();
        if memchr::memchr(b'\n', fresh).is_some()
            || received.len() > shared.config.limits.head_bytes
        {
            seen = received.len();
            if shared.config.codec_auto && conn.requests == 0 && received.starts_with(H2_PREFACE) {
                shared.config.stats.downstream_cx_protocol_error.inc();
                tracing::debug!(remote = %shared.peer.remote, "HTTP/2 is not served");
                return Err(Fate::Close);
            }
            match request.parse(received, &shared.config.limits) {
                Ok(Parse::Complete(len)) => return Ok(len),
                Ok(Parse::Partial) => {}
                Err(error) => return Err(call::refuse(conn, scratch, error).await),
            }
        } else if fresh
            .first()
            .is_some_and(|byte| *byte > 0x7f || (*byte < 0x20 && !matches!(byte, b'\r' | b'\n')))
        {
            // Not text at all, a TLS hello for instance: no line end need ever come.
            return Err(call::refuse(conn, scratch, Error::Codec).await);
        }
        // Empty lines before a request are no request.
        let begun = received.iter().any(|b| !matches!(b, b'\r' | b'\n'));
        let limit = begun.then(|| {
            let start = *started.get_or_insert_with(Instant::now);
            let headers = shared
                .config
                .timeouts
                .request_headers
                .map(|limit| (start + limit, true));
            let idle = shared
                .config
                .timeouts
                .stream_idle
                .map(|limit| (start + limit, false));
            [headers, idle].into_iter().flatten().min()
        });
        let limit = limit.flatten();
        let filled = poll_fn(|cx| {
            if let Poll::Ready(result) = poll_fill(received, &mut conn.stream, cx) {
                return Poll::Ready(Some(result));
            }
            match limit {
                _ if !begun => Poll::Ready(None),
                Some((deadline, _)) if conn.timer.poll(cx, Some(deadline)) => Poll::Ready(None),
                _ => Poll::Pending,
            }
        });
        match filled.await {
            Some(Ok(0)) | Some(Err(_)) => return Err(Fate::ClosedByPeer),
            Some(Ok(bytes)) => shared
                .config
                .stats
                .downstream_cx_rx_bytes_total
                .add(bytes as u64),
            None if !begun => return Err(Fate::Idle),
            None => {
                return Err(call::head_timeout(
                    conn,
                    scratch,
                    limit.is_some_and(|(_, headers)| headers),
                )
                .await);
            }
        }
    }
}

/// Waits for the client to close, but not for long.
async fn linger(conn: &mut Conn) {
    let _ = conn.stream.shutdown().await;
    let Some(limit) = conn.shared.config.timeouts.delayed_close else {
        return;
    };
    let deadline = Instant::now() + limit.min(Duration::from_secs(60));
    let mut sink = Vec::new();
    let timed_out = poll_fn(|cx| {
        loop {
            sink.clear();
            match poll_fill(&mut sink, &mut conn.stream, cx) {
                Poll::Ready(Ok(0)) | Poll::Ready(Err(_)) => return Poll::Ready(false),
                Poll::Ready(Ok(_)) => {}
                Poll::Pending => break,
            }
        }
        match conn.timer.poll(cx, Some(deadline)) {
            true => Poll::Ready(true),
            false => Poll::Pending,
        }
    });
    if timed_out.await {
        conn.shared
            .config
            .stats
            .downstream_cx_delayed_close_timeout
            .inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_connection_is_small() {
        fn size<F: Future>(_: fn(Downstream, Arc<Config>, Rc<Worker>) -> F) -> usize {
            size_of::<F>()
        }
        let total = size(serve) + size_of::<Shared>() + size_of::<tokio::time::Sleep>();
        assert!(total <= 1024, "{total} bytes");
    }
}
