//! The router: sends a request to a host of the route's cluster, again if that is allowed, and the answer back.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use telemetry::response_flags::ResponseFlag;
use tokio::time::Instant;
use wire::http1::{Framing, put_decimal, put_request_line};

use super::call::{Call, Ending, poll_gone};
use super::deadlines::{Deadlines, Limit};
use super::exchange::{Encode, Event, Exchange};
use super::reply::LocalReply;
use super::retry::{Reset, Retries, Verdict};
use super::scratch::Scratch;
use super::upstream::{self, Failure};
use crate::cluster::host::{ActiveRequest, Host, bump};
use crate::cluster::{Cluster, LbContext, Permit};
use crate::route::{ClusterPick, Entry, Forward, HostRewrite};

/// What was said about a reset before an answer; the rest of the sentence is the reason.
const RESET_TEXT: &str = "upstream connect error or disconnect/reset before headers. ";

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

/// Why there was no answer.
struct Failed {
    reset: Reset,
    status: u16,
    flag: ResponseFlag,
    /// Envoy's words for it.
    reason: &'static str,
    /// What the operating system said.
    cause: Option<String>,
    /// It may be tried again without anybody asking: the connection was closed while it was idle.
    stale: bool,
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
    call.record.bytes_received += router.exchange.request_bytes;
    call.record.bytes_sent += router.exchange.response_bytes;
    call.record.request_done = router.exchange.deadlines.request_done_at();
    call.record.ended = Some(router.exchange.now());
    ending
}

/// The time limits of a request: those of the route, unless an internal client wishes others.
fn deadlines(call: &Call<'_>, forward: &Forward) -> Deadlines {
    let timeouts = &call.config().timeouts;
    let millis = |ms: u64| Some(Duration::from_millis(ms)).filter(|d| !d.is_zero());
    let own_or = |own: Option<Duration>, default: Option<Duration>| match own {
        Some(limit) => Some(limit).filter(|d| !d.is_zero()),
        None => default,
    };
    let wishes = call.prepared.as_ref().map(|p| &p.wishes);
    let mut global = forward.timeout;
    if let Some(grpc) = forward.grpc_timeout
        && let Some(asked) = grpc_timeout(call)
    {
        let capped = if grpc.max.is_zero() {
            asked
        } else {
            asked.unwrap_or(grpc.max).min(grpc.max).into()
        };
        global = capped
            .map(|limit| limit.saturating_sub(grpc.offset))
            .filter(|d| !d.is_zero());
    }
    let mut per_try = forward
        .retry
        .as_ref()
        .and_then(|policy| policy.per_try_timeout);
    if let Some(wishes) = wishes {
        let respected = wishes
            .expected_timeout_ms
            .filter(|_| call.config().respect_expected_timeout);
        if let Some(ms) = respected.or(wishes.timeout_ms) {
            global = millis(ms);
        }
        if let Some(ms) = wishes.per_try_timeout_ms {
            per_try = millis(ms);
        }
    }
    // A try that may last longer than the request has no limit of its own.
    per_try = per_try.filter(|limit| global.is_none_or(|global| *limit < global));
    let mut deadlines = Deadlines::new(call.record.started);
    deadlines.global = global;
    deadlines.per_try = per_try;
    deadlines.per_try_idle = forward
        .retry
        .as_ref()
        .and_then(|policy| policy.per_try_idle_timeout);
    deadlines.stream_idle = own_or(forward.idle_timeout, timeouts.stream_idle);
    deadlines.request = timeouts.request;
    deadlines.max_stream = own_or(forward.max_stream_duration, timeouts.max_stream);
    deadlines
}

/// `None` if this is no gRPC request; `Some(None)` if it names no limit.
fn grpc_timeout(call: &Call<'_>) -> Option<Option<Duration>> {
    use crate::route::RequestView;
    let view = call.view();
    let content_type = view.header("content-type")?;
    if !content_type.starts_with(b"application/grpc") {
        return None;
    }
    let parse = |text: &str| {
        let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
        let value: u64 = digits.parse().ok()?;
        Some(match unit {
            "H" => Duration::from_secs(value.saturating_mul(3600)),
            "M" => Duration::from_secs(value.saturating_mul(60)),
            "S" => Duration::from_secs(value),
            "m" => Duration::from_millis(value),
            "u" => Duration::from_micros(value),
            "n" => Duration::from_nanos(value),
            _ => return None,
        })
    };
    let header = view.header("grpc-timeout");
    Some(header.and_then(|value| parse(std::str::from_utf8(&value).ok()?)))
}

/// Applies what the route changes: headers, then the host, then the path.
fn rewrite(call: &mut Call<'_>, entry: Entry<'_>, forward: &Forward, pick: &ClusterPick<'_>) {
    call.apply_request_headers(entry);
    let host = pick
        .host_rewrite
        .rewrite(&call.view())
        .map(|host| host.into_owned());
    if let Some(host) = host {
        rewrite_host(call, forward, &host);
    }
    if forward.rewrites_path() {
        let view = call.view();
        if let Some(path) = forward.rewrite_path(view.path) {
            let original = view.path.to_vec();
            let suppress = call.config().suppress_envoy_headers;
            let Scratch {
                received,
                request,
                request_edits,
                path: own,
                ..
            } = &mut *call.scratch;
            if !suppress {
                request_edits.remove(received, &request.headers, "x-envoy-original-path");
                request_edits.add("x-envoy-original-path", &original);
            }
            own.clear();
            own.extend_from_slice(&path);
            if let Some(prepared) = &mut call.prepared {
                prepared.new_path = true;
            }
        }
    }
}

fn rewrite_host(call: &mut Call<'_>, forward: &Forward, host: &[u8]) {
    let original = call.view().authority.to_vec();
    if original == host {
        return;
    }
    let suppress = call.config().suppress_envoy_headers;
    let Scratch {
        received,
        request,
        request_edits: edits,
        authority,
        ..
    } = &mut *call.scratch;
    if forward.append_x_forwarded_host {
        let before = edits
            .get(received, &request.headers, "x-forwarded-host")
            .map(|value| value.into_owned());
        let value = match before {
            Some(others) => [&others, b",".as_slice(), &original].concat(),
            None => original.clone(),
        };
        edits.remove(received, &request.headers, "x-forwarded-host");
        edits.add("x-forwarded-host", &value);
    }
    if !suppress {
        edits.remove(received, &request.headers, "x-envoy-original-host");
        edits.add("x-envoy-original-host", &original);
    }
    authority.clear();
    authority.extend_from_slice(host);
    if let Some(prepared) = &mut call.prepared {
        prepared.new_authority = true;
    }
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
                    return self.give_up(call, failed);
                }
                Try::Failed(failed) => match self.take_retry(call) {
                    Some(pause) => pause,
                    None => return self.give_up(call, failed),
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

    /// Writes the request's head for this try.
    fn put_head(&mut self, call: &mut Call<'_>, host: &Host) {
        if matches!(self.pick.host_rewrite, HostRewrite::Auto) && !host.hostname.is_empty() {
            let name = host.hostname.clone();
            rewrite_host(call, self.forward, name.as_bytes());
        }
        let shared = call.shared.clone();
        let config = &shared.config;
        let upgrades = call.prepared.as_ref().is_some_and(|p| p.upgrades);
        let retrying = self.exchange.head_bytes() > 0;
        let mut head = match retrying {
            true => Vec::with_capacity(1024),
            false => {
                call.scratch.to_upstream.clear();
                std::mem::take(&mut call.scratch.to_upstream.buffer)
            }
        };
        let include_count = self.entry.virtual_host.include_request_attempt_count;
        if include_count {
            let Scratch {
                received,
                request,
                request_edits,
                ..
            } = &mut *call.scratch;
            request_edits.remove(received, &request.headers, "x-envoy-attempt-count");
        }
        let view = call.view();
        let method = view.head.method.of(view.buffer);
        put_request_line(
            &mut head,
            method,
            if method == b"CONNECT" {
                view.authority
            } else {
                view.path
            },
        );
        head.extend_from_slice(b"host: ");
        head.extend_from_slice(view.authority);
        head.extend_from_slice(b"\r\n");
        view.edits.write(view.buffer, &view.head.headers, &mut head);
        if !config.suppress_envoy_headers {
            let limits = &self.exchange.deadlines;
            let expected = match (limits.per_try, retrying) {
                (Some(per_try), _) => Some(per_try),
                (None, false) => limits.global,
                (None, true) => limits.global_left(Instant::now()),
            };
            if let Some(expected) = expected {
                head.extend_from_slice(b"x-envoy-expected-rq-timeout-ms: ");
                put_decimal(&mut head, expected.as_millis() as u64);
                head.extend_from_slice(b"\r\n");
            }
        }
        if include_count {
            head.extend_from_slice(b"x-envoy-attempt-count: ");
            put_decimal(&mut head, u64::from(call.record.attempts));
            head.extend_from_slice(b"\r\n");
        }
        match self.exchange.request_encode() {
            Encode::Chunked => head.extend_from_slice(b"transfer-encoding: chunked\r\n"),
            Encode::Nothing if !upgrades && view.head.content_length().is_none() => {
                // Methods that usually have a body say that there is none (RFC 9110 §8.6).
                if !matches!(method, b"GET" | b"HEAD" | b"DELETE" | b"TRACE" | b"CONNECT") {
                    head.extend_from_slice(b"content-length: 0\r\n");
                }
            }
            _ => {}
        }
        head.extend_from_slice(b"\r\n");
        let head_bytes = head.len();
        if retrying {
            call.scratch
                .to_upstream
                .restart(self.exchange.head_bytes(), &head);
        } else {
            call.scratch.to_upstream.buffer = head;
        }
        let limit = call.shared.listener.per_connection_buffer_limit;
        let keep = self.retries.possible().then_some(limit);
        self.exchange.start_try(head_bytes, keep);
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

    /// A time limit has passed.
    fn expired(&mut self, call: &mut Call<'_>, limit: Limit, host: Option<&Rc<Host>>) -> Ending {
        let hcm = &call.shared.config.stats;
        let stats = self.cluster.stats();
        if limit == Limit::Global {
            stats.upstream_rq_timeout.inc();
            if let Some(host) = host {
                bump(&host.stats.rq_timeout);
            }
        }
        let (status, text, details, flag): (u16, &[u8], _, _) = match limit {
            Limit::Global => (
                504,
                b"upstream request timeout",
                "response_timeout",
                Some(ResponseFlag::UpstreamRequestTimeout),
            ),
            Limit::PerTry | Limit::PerTryIdle => (
                504,
                b"upstream request timeout",
                "upstream_per_try_timeout",
                Some(ResponseFlag::UpstreamRequestTimeout),
            ),
            Limit::StreamIdle => {
                hcm.downstream_rq_idle_timeout.inc();
                let status = if self.exchange.request_done { 504 } else { 408 };
                (
                    status,
                    b"stream timeout",
                    "stream_idle_timeout",
                    Some(ResponseFlag::StreamIdleTimeout),
                )
            }
            Limit::Request => {
                hcm.downstream_rq_timeout.inc();
                (408, b"request timeout", "request_overall_timeout", None)
            }
            Limit::MaxStream => {
                hcm.downstream_rq_max_duration_reached.inc();
                let status = if self.exchange.request_done { 504 } else { 408 };
                (
                    status,
                    b"downstream duration timeout",
                    "max_duration_timeout",
                    None,
                )
            }
        };
        let started = call.record.status.is_some();
        call.record.because(details, flag);
        if started {
            // Too late for another answer: cutting the connection is all that can be said.
            call.shared.config.stats.downstream_rq_tx_reset.inc();
            return Ending::Broken;
        }
        if limit == Limit::Global {
            stats.count_response(504);
        }
        self.answer(call, status, text, &[])
    }

    /// Tells the client that there is no answer, and why.
    fn give_up(&mut self, call: &mut Call<'_>, failed: Failed) -> Ending {
        let stats = self.cluster.stats();
        stats.count_response(failed.status);
        call.record.flags.set(failed.flag);
        let cause = failed.cause.as_ref();
        call.record.failure = cause.map(|cause| format!("delayed connect error: {cause}"));
        if failed.reset == Reset::PerTryTimeout {
            call.record.because(failed.reason, None);
            return self.answer(call, 504, b"upstream request timeout", &[]);
        }
        let code = failed.reason.replace(' ', "_");
        let details = match &failed.cause {
            Some(cause) => {
                format!(
                    "upstream_reset_before_response_started{{{code}|delayed_connect_error:_{}}}",
                    cause.replace(' ', "_")
                )
            }
            None => format!("upstream_reset_before_response_started{{{code}}}"),
        };
        call.record.because(details, None);
        let retried = if self.retried {
            "retried and the latest "
        } else {
            ""
        };
        let text = format!("{RESET_TEXT}{retried}reset reason: {}", failed.reason);
        let overloaded: &[(&str, &[u8])] = &[("x-envoy-overloaded", b"true")];
        let headers = if failed.reset == Reset::Overflow {
            overloaded
        } else {
            &[]
        };
        self.answer(call, failed.status, text.as_bytes(), headers)
    }

    fn answer(
        &mut self,
        call: &mut Call<'_>,
        status: u16,
        body: &[u8],
        headers: &[(&str, &[u8])],
    ) -> Ending {
        // What is still to come of the request's body is of no use; the connection ends with the answer.
        let framing = if self.exchange.request_done {
            Framing::Empty
        } else {
            self.framing
        };
        let reply = LocalReply {
            status,
            body,
            headers,
        };
        call.answer(Some(self.entry), framing, false, &reply)
    }
}

impl Failed {
    fn new(reset: Reset, status: u16, flag: ResponseFlag, reason: &'static str) -> Failed {
        Failed {
            reset,
            status,
            flag,
            reason,
            cause: None,
            stale: false,
        }
    }

    fn overflow() -> Failed {
        Failed::new(
            Reset::Overflow,
            503,
            ResponseFlag::UpstreamOverflow,
            "overflow",
        )
    }

    fn closed(sent: bool) -> Failed {
        let flag = ResponseFlag::UpstreamConnectionTermination;
        Failed::new(Reset::Broken { sent }, 503, flag, "connection termination")
    }

    fn protocol() -> Failed {
        Failed::new(
            Reset::Broken { sent: true },
            502,
            ResponseFlag::UpstreamProtocolError,
            "protocol error",
        )
    }

    fn per_try_timeout(details: &'static str) -> Failed {
        Failed::new(
            Reset::PerTryTimeout,
            504,
            ResponseFlag::UpstreamRequestTimeout,
            details,
        )
    }

    fn connect(failure: Failure) -> Failed {
        let flag = ResponseFlag::UpstreamConnectionFailure;
        match failure {
            Failure::Overflow => Failed::overflow(),
            Failure::Timeout => Failed::new(Reset::Connect, 503, flag, "connection timeout"),
            Failure::Connect(error) => {
                let text = error.to_string();
                let cause = text
                    .split(" (os error")
                    .next()
                    .unwrap_or_default()
                    .to_owned();
                Failed {
                    cause: Some(cause),
                    ..Failed::new(Reset::Connect, 503, flag, "remote connection failure")
                }
            }
        }
    }
}
