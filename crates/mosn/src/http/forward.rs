//! The router: sends a request to a host of the route's cluster, again if that is allowed, and the answer back.

mod failure;
mod head;
mod limits;

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use telemetry::response_flags::ResponseFlag;
use tokio::time::Instant;
use wire::http1::Framing;

use super::call::{Call, Ending};
use super::deadlines::Limit;
use super::exchange::{Encode, Event, Exchange};
use super::pause::poll_gone;
use super::reply::LocalReply;
use super::retry::{Retries, Verdict};
use super::scratch::Scratch;
use super::upstream::{self, Failure};
use crate::cluster::host::{ActiveRequest, Host, bump};
use crate::cluster::{Cluster, LbContext, Permit};
use crate::route::{ClusterPick, Entry, Forward};
use failure::Failed;
use head::rewrite;
use limits::deadlines;

/// One request on its way through one cluster.
struct Router<'r, 't> {
    entry: Entry<'t>,
    forward: &'t Forward,
    pick: &'r ClusterPick<'t>,
    cluster: Rc<Cluster>,
    exchange: Exchange,
    retries: Retries<'t>,
    framing: Framing,
    /// Whether the request was already sent a second time because an idle connection turned out to be closed.
    refreshed: bool,
    /// Whether it was sent again because the policy says so.
    retried: bool,
}

/// How a try ended.
enum Try {
    /// The request is over.
    Over(Ending),
    /// No answer.
    Failed(Failed),
    /// An answer that is to be tried again, after this time.
    Unwanted(Duration),
}

/// Counts a request that is on an upstream connection.
struct Attached<'a> {
    cluster: &'a Cluster,
    _host: ActiveRequest,
    _permit: Permit,
}

impl Drop for Attached<'_> {
    fn drop(&mut self) {
        self.cluster.stats().upstream_rq_active.dec();
    }
}

/// Forwards the request and leaves the answer, or what Envoy says instead of one, sent or in the buffer.
pub(super) async fn run<'t>(
    call: &mut Call<'_>,
    entry: Entry<'t>,
    forward: &'t Forward,
    framing: Framing,
    random: u64,
) -> Ending {
    let shared = call.shared.clone();
    let stats = &shared.config.stats;
    stats.rq_total.inc();
    let pick = forward.choose(&call.view(), random);
    call.weighted = pick.as_ref().and_then(|pick| pick.weighted);
    let cluster = pick
        .as_ref()
        .and_then(|pick| shared.worker.cluster(&pick.name));
    let name = pick.as_ref().map(|pick| pick.name.as_ref());
    if let Some(ending) = call.inject_fault(entry, name, framing).await {
        return ending;
    }
    let (Some(pick), Some(cluster)) = (&pick, cluster) else {
        stats.no_cluster.inc();
        call.record
            .because("cluster_not_found", Some(ResponseFlag::NoClusterFound));
        return call.answer(
            Some(entry),
            framing,
            false,
            &LocalReply::empty(forward.not_found_status),
        );
    };
    if shared.config.access_log.is_enabled() {
        call.record.cluster = Some(cluster.config.name.clone());
    }
    let deadlines = deadlines(call, forward);
    let trailer_bytes = shared.config.limits.head_bytes;
    let mut exchange = Exchange::new(
        framing,
        trailer_bytes,
        shared.config.enable_trailers,
        deadlines,
    );
    exchange.pass_continue =
        shared.config.proxy_100_continue && call.scratch.request.expects_continue;
    let retries = match call
        .prepared
        .as_mut()
        .map(|p| std::mem::take(&mut p.wishes))
    {
        Some(mut wishes) => Retries::new(forward.retry.as_deref(), &mut wishes, &call.view()),
        None => return Ending::Broken,
    };
    rewrite(call, entry, forward, pick);
    let mut router = Router {
        entry,
        forward,
        pick,
        cluster,
        exchange,
        retries,
        framing,
        refreshed: false,
        retried: false,
    };
    let ending = router.run(call).await;
    let cluster = router.cluster.stats();
    cluster
        .upstream_cx_tx_bytes_total
        .add(router.exchange.upstream_sent);
    cluster
        .upstream_cx_rx_bytes_total
        .add(router.exchange.upstream_received);
    call.record.bytes_received += router.exchange.request_bytes;
    call.record.bytes_sent += router.exchange.response_bytes;
    call.record.request_done = router.exchange.deadlines.request_done_at();
    call.record.ended = Some(router.exchange.now());
    ending
}

impl Router<'_, '_> {
    async fn run(&mut self, call: &mut Call<'_>) -> Ending {
        loop {
            let pause = match self.attempt(call).await {
                Try::Over(ending) => return ending,
                Try::Unwanted(pause) => pause,
                Try::Failed(failed)
                    if failed.stale
                        && !self.refreshed
                        && !self.retries.wants_reset(failed.reset) =>
                {
                    self.refreshed = true;
                    call.record.attempts -= 1;
                    continue;
                }
                Try::Failed(failed)
                    if !self.retries.wants_reset(failed.reset) || !self.can_repeat() =>
                {
                    return self.give_up(call, &failed);
                }
                Try::Failed(failed) => match self.take_retry(call) {
                    Some(pause) => pause,
                    None => return self.give_up(call, &failed),
                },
            };
            if let Some(ending) = self.back_off(call, pause).await {
                return ending;
            }
        }
    }

    /// Takes one of the retries; the time to wait before it.
    fn take_retry(&mut self, call: &mut Call<'_>) -> Option<Duration> {
        match self.retries.take(&self.cluster, self.forward.priority) {
            Verdict::Retry(pause) => {
                self.retried = true;
                self.retries.tried.extend(call.record.host.clone());
                return Some(pause);
            }
            Verdict::LimitExceeded => {
                self.cluster.stats().upstream_rq_retry_limit_exceeded.inc();
                call.record
                    .flags
                    .set(ResponseFlag::UpstreamRetryLimitExceeded);
            }
            Verdict::Overflow => call.record.flags.set(ResponseFlag::UpstreamOverflow),
            Verdict::No => {}
        }
        None
    }

    /// Whether nothing of the request has been lost.
    fn can_repeat(&self) -> bool {
        self.framing == Framing::Empty
            || self.exchange.can_repeat()
            || self.exchange.head_bytes() == 0
    }

    async fn back_off(&mut self, call: &mut Call<'_>, pause: Duration) -> Option<Ending> {
        let now = Instant::now();
        let left = self.exchange.deadlines.global_left(now);
        if left.is_some_and(|left| left <= pause) {
            if call.wait(left.unwrap_or_default()).await {
                return Some(Ending::DownstreamGone);
            }
            return Some(self.expired(call, Limit::Global, None));
        }
        call.wait(pause).await.then_some(Ending::DownstreamGone)
    }

    async fn attempt(&mut self, call: &mut Call<'_>) -> Try {
        call.record.attempts += 1;
        let cluster = self.cluster.clone();
        let stats = cluster.stats();
        let context = LbContext {
            metadata_match: self.pick.metadata_match,
            rpc: None,
            avoid: self.retries.avoided(),
        };
        let Some(host) = self.cluster.pick(&context) else {
            stats.upstream_cx_none_healthy.inc();
            stats.count_response(503);
            call.record
                .because("no_healthy_upstream", Some(ResponseFlag::NoHealthyUpstream));
            return Try::Over(self.answer(call, 503, b"no healthy upstream", &[]));
        };
        call.record.host = Some(host.clone());
        let Some(permit) = self.cluster.breaker(self.forward.priority).try_request() else {
            stats.upstream_rq_active_overflow.inc();
            return Try::Failed(Failed::overflow());
        };
        let connection = match host.http1.checkout() {
            Some(connection) => connection,
            None => match self.connect(call, &host).await {
                Ok(connection) => connection,
                Err(outcome) => return outcome,
            },
        };
        stats.upstream_rq_total.inc();
        stats.upstream_rq_active.inc();
        let _attached = Attached {
            cluster: &cluster,
            _host: host.start_request(),
            _permit: permit,
        };
        self.exchange_on(call, &host, connection).await
    }

    /// Waits for a connection, and meanwhile for the client to go away and for the request's time to pass.
    async fn connect(
        &mut self,
        call: &mut Call<'_>,
        host: &Rc<Host>,
    ) -> Result<upstream::Connection, Try> {
        let deadline = self.exchange.deadlines.global_end();
        let opened = {
            let (conn, scratch) = (&mut *call.conn, &mut *call.scratch);
            // Boxed: most requests find an idle connection and must not carry this.
            let mut opening = pin!(Box::pin(upstream::connect(
                &self.cluster,
                host,
                self.forward.priority
            )));
            poll_fn(|cx| {
                if let Poll::Ready(result) = opening.as_mut().poll(cx) {
                    return Poll::Ready(Some(Some(result)));
                }
                if poll_gone(conn, scratch, cx).is_ready() {
                    return Poll::Ready(None);
                }
                match conn.timer.poll(cx, deadline) {
                    true => Poll::Ready(Some(None)),
                    false => Poll::Pending,
                }
            })
            .await
        };
        let stats = self.cluster.stats();
        match opened {
            Some(Some(Ok(connection))) => Ok(connection),
            Some(Some(Err(failure))) => {
                if !matches!(failure, Failure::Overflow) {
                    bump(&host.stats.rq_error);
                }
                Err(Try::Failed(Failed::connect(failure)))
            }
            Some(None) => Err(Try::Over(self.expired(call, Limit::Global, Some(host)))),
            None => {
                stats.upstream_rq_cancelled.inc();
                Err(Try::Over(Ending::DownstreamGone))
            }
        }
    }

    async fn exchange_on(
        &mut self,
        call: &mut Call<'_>,
        host: &Rc<Host>,
        mut up: upstream::Connection,
    ) -> Try {
        let reused = up.requests > 0;
        up.requests += 1;
        if call.record.attempts > 1 {
            self.exchange.deadlines.start_try(Instant::now());
        }
        call.record.upstream_local = up.local;
        call.record.upstream_id = Some(up.id);
        self.put_head(call, host);
        call.scratch.from_upstream.clear();
        loop {
            let event = self.exchange.run(call.conn, call.scratch, &mut up).await;
            match event {
                Event::Head => {
                    if let Some(outcome) = self.head(call, host, &mut up).await {
                        return outcome;
                    }
                }
                Event::Done => {
                    self.done(call, up);
                    return Try::Over(Ending::Answered);
                }
                Event::DownstreamGone => {
                    self.cluster.stats().upstream_rq_tx_reset.inc();
                    return Try::Over(Ending::DownstreamGone);
                }
                Event::BadRequest(error) => {
                    self.cluster.stats().upstream_rq_tx_reset.inc();
                    call.shared.config.stats.downstream_cx_protocol_error.inc();
                    if call.record.status.is_some() {
                        return Try::Over(Ending::Broken);
                    }
                    return Try::Over(call.answer_protocol_error(Some(self.entry), error));
                }
                Event::UpstreamGone => {
                    up.closed_by_peer = true;
                    bump(&host.stats.rq_error);
                    let sent = call.scratch.to_upstream.sent() > 0;
                    let mut failed = Failed::closed(sent);
                    failed.stale = reused && !self.exchange.heard && self.is_safe(call);
                    return Try::Failed(failed);
                }
                Event::BadUpstream => {
                    self.cluster.stats().upstream_cx_protocol_error.inc();
                    bump(&host.stats.rq_error);
                    if call.record.status.is_some() {
                        call.shared
                            .config
                            .stats
                            .rq_reset_after_downstream_response_started
                            .inc();
                        call.record.because(
                            "upstream_reset_after_response_started{protocol_error}",
                            Some(ResponseFlag::UpstreamProtocolError),
                        );
                        return Try::Over(self.broken(call).await);
                    }
                    return Try::Failed(Failed::protocol());
                }
                Event::Expired(Limit::PerTry) if call.record.status.is_none() => {
                    self.cluster.stats().upstream_rq_per_try_timeout.inc();
                    self.cluster.stats().upstream_rq_tx_reset.inc();
                    bump(&host.stats.rq_timeout);
                    return Try::Failed(Failed::per_try_timeout("upstream_per_try_timeout"));
                }
                Event::Expired(Limit::PerTryIdle) if call.record.status.is_none() => {
                    self.cluster.stats().upstream_rq_tx_reset.inc();
                    return Try::Failed(Failed::per_try_timeout("upstream_per_try_idle_timeout"));
                }
                Event::Expired(limit) => {
                    self.cluster.stats().upstream_rq_tx_reset.inc();
                    return Try::Over(self.expired(call, limit, Some(host)));
                }
            }
        }
    }

    /// Whether a request that may have been sent can be sent again without anybody noticing (RFC 9110 §9.2.2).
    fn is_safe(&self, call: &Call<'_>) -> bool {
        let method = call.scratch.request.method.of(&call.scratch.received);
        self.framing == Framing::Empty && matches!(method, b"GET" | b"HEAD" | b"OPTIONS" | b"TRACE")
    }

    /// The head of an answer is there: passes it on, or decides to try again.
    async fn head(
        &mut self,
        call: &mut Call<'_>,
        host: &Rc<Host>,
        up: &mut upstream::Connection,
    ) -> Option<Try> {
        let status = call.scratch.response.status;
        let stats = self.cluster.stats();
        let now = self.exchange.head_at.unwrap_or_else(Instant::now);
        let upgrades = call.prepared.as_ref().is_some_and(|p| p.upgrades);
        if status == 101 && !upgrades {
            stats.upstream_cx_protocol_error.inc();
            return Some(Try::Failed(Failed::protocol()));
        }
        let wanted = self.retries.wants_status(status, |name| {
            let fields = &call.scratch.response.headers;
            let buffer = call.scratch.from_upstream.bytes();
            let found = fields
                .iter()
                .find(|f| f.name.of(buffer).eq_ignore_ascii_case(name.as_bytes()));
            found.map(|f| std::borrow::Cow::Borrowed(f.value.of(buffer)))
        });
        if wanted
            && self.can_repeat()
            && let Some(pause) = self.take_retry(call)
        {
            let stats = self.cluster.stats();
            stats.count_response(status);
            bump(&host.stats.rq_error);
            return Some(Try::Unwanted(pause));
        }
        let stats = self.cluster.stats();
        if call.record.attempts > 1 && status < 500 {
            stats.upstream_rq_retry_success.inc();
        }
        bump(if status >= 500 {
            &host.stats.rq_error
        } else {
            &host.stats.rq_success
        });
        stats.count_response(status);
        self.exchange.deadlines.responding();
        call.record.because("via_upstream", None);
        if !self.exchange.request_done {
            call.shared
                .config
                .stats
                .downstream_rq_response_before_rq_complete
                .inc();
            call.incomplete = true;
            call.close = true;
        }
        call.exchange_started = self
            .exchange
            .deadlines
            .request_done_at()
            .unwrap_or(call.record.started);
        if status == 101 {
            call.put_upstream_head(self.entry, now, Encode::Nothing);
            return Some(Try::Over(self.tunnel(call, up).await));
        }
        let framing = call.scratch.response.framing(call.is_head());
        let http_10 = call.is_http_10();
        let encode = match framing {
            Framing::Empty => Encode::Nothing,
            Framing::Length(_) => Encode::Raw,
            Framing::Chunked | Framing::UntilClose if http_10 => {
                // HTTP/1.0 has no chunks: the end of the connection is the end of the body.
                call.close = true;
                Encode::Raw
            }
            Framing::Chunked | Framing::UntilClose => Encode::Chunked,
        };
        if upgrades {
            // The client expected another protocol on this connection and cannot go on with this one.
            call.close = true;
            call.record
                .because("websocket_handshake_unsuccessful", None);
        }
        let announce = if call.is_head() && call.scratch.response.chunked() && !http_10 {
            Encode::Chunked
        } else {
            encode
        };
        call.put_upstream_head(self.entry, now, announce);
        call.scratch.from_upstream.consume(self.exchange.head_len);
        self.exchange
            .respond(framing, encode, call.config().limits.head_bytes);
        None
    }

    async fn tunnel(&mut self, call: &mut Call<'_>, up: &mut upstream::Connection) -> Ending {
        call.scratch.from_upstream.consume(self.exchange.head_len);
        let head_len = call.record.head_bytes as usize;
        let Scratch {
            received,
            body,
            to_upstream,
            ..
        } = &mut *call.scratch;
        body.extend(received.get(head_len..).unwrap_or_default());
        received.truncate(head_len);
        to_upstream.forget_sent();
        let idle = self.exchange.deadlines.stream_idle;
        call.tunnel(up, idle).await
    }

    /// The answer is complete: counts it and keeps the connection if it can be used again.
    fn done(&mut self, call: &mut Call<'_>, mut up: upstream::Connection) {
        let now = self.exchange.now();
        let asked = self
            .exchange
            .deadlines
            .request_done_at()
            .unwrap_or(call.record.started);
        let stats = self.cluster.stats();
        stats
            .upstream_rq_time
            .record(now.saturating_duration_since(asked).as_millis() as u64);
        let complete = self.exchange.request_done && call.scratch.to_upstream.pending() == 0;
        if !call.scratch.response.keeps_alive() {
            stats.upstream_cx_close_notify.inc();
        }
        let reusable = complete
            && call.scratch.response.keeps_alive()
            && call.scratch.response.framing(call.is_head()) != Framing::UntilClose
            && call.scratch.from_upstream.is_empty();
        up.in_use = !complete;
        call.scratch.to_upstream.clear();
        let host = call.record.host.clone();
        if let Some(host) = host.filter(|_| reusable) {
            host.http1.checkin(up, &call.shared.worker, now);
        }
    }

    /// Lets the client see as much of a broken answer as there is.
    async fn broken(&mut self, call: &mut Call<'_>) -> Ending {
        let (conn, scratch) = (&mut *call.conn, &mut *call.scratch);
        poll_fn(
            |cx| match scratch.to_downstream.poll_flush(&mut conn.stream, cx) {
                Poll::Ready(_) => Poll::Ready(()),
                // A client that does not read gets no more.
                Poll::Pending => Poll::Ready(()),
            },
        )
        .await;
        Ending::Broken
    }
}
