//! One request: from its head to the choice of a route, and the answers that need no upstream.

use std::borrow::Cow;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use telemetry::request_info::{HeaderLookup, NoHeaders};
use telemetry::response_flags::ResponseFlag;
use tokio::time::Instant;
use wire::http1::{Error, Framing};

use super::config::Config;
use super::connection::{Conn, Fate, Shared};
use super::headers::{Editor, View};
use super::record::{self, Record};
use super::reply::LocalReply;
use super::request::{Prepared, Refusal, prepare};
use super::scratch::Scratch;
use super::{forward, tunnel};
use crate::route::{Action, Entry};

/// A request in progress.
pub(super) struct Call<'c> {
    pub(super) conn: &'c mut Conn,
    pub(super) scratch: &'c mut Scratch,
    pub(super) shared: Rc<Shared>,
    pub(super) prepared: Option<Prepared>,
    pub(super) record: Record,
    /// Whether the head was parsed, so that the indexes in the scratch are of this request.
    pub(super) parsed: bool,
    /// Whether the connection ends with this request.
    pub(super) close: bool,
    /// Whether part of the request may still be under way.
    pub(super) incomplete: bool,
    /// Place among weighted clusters.
    pub(super) weighted: Option<usize>,
    /// When the upstream was first asked: what its time is measured from.
    pub(super) exchange_started: Instant,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// An answer was sent, or is in the buffer to be sent.
    Answered,
    /// The client went away.
    DownstreamGone,
    /// The answer broke off; the connection must be cut, so that the client notices.
    Broken,
    /// The connection was a tunnel, and both sides are done.
    Tunnelled,
}

/// Counts a request in progress.
struct Active(Rc<Shared>);

impl Drop for Active {
    fn drop(&mut self) {
        self.0.config.stats.downstream_rq_active.dec();
    }
}

fn begin<'c>(conn: &'c mut Conn, scratch: &'c mut Scratch, parsed: bool) -> (Call<'c>, Active) {
    let started = Instant::now();
    let shared = conn.shared.clone();
    let stats = &shared.config.stats;
    stats.downstream_rq_total.inc();
    stats.downstream_rq_http1_total.inc();
    stats.downstream_rq_active.inc();
    conn.requests += 1;
    scratch.to_downstream.clear();
    let active = Active(shared.clone());
    let record = Record::new(started);
    let call = Call {
        conn,
        scratch,
        shared,
        prepared: None,
        record,
        parsed,
        close: false,
        incomplete: false,
        weighted: None,
        exchange_started: started,
    };
    (call, active)
}

/// Serves the request whose head is the first `head_len` bytes received.
pub(super) async fn serve(conn: &mut Conn, scratch: &mut Scratch, head_len: usize) -> Fate {
    let (mut call, _active) = begin(conn, scratch, true);
    call.record.head_bytes = head_len as u64;
    call.record.http_10 = call.is_http_10();
    call.close = !call.scratch.request.keeps_alive() || call.must_close();
    let framing = call.scratch.request.framing();
    if framing != Framing::Empty {
        let Scratch { received, body, .. } = &mut *call.scratch;
        body.clear();
        body.extend(received.get(head_len..).unwrap_or_default());
        received.truncate(head_len);
    }
    let ending = call.handle(framing).await;
    call.finish(ending).await
}

/// Answers a head that breaks the protocol.
pub(super) async fn refuse(conn: &mut Conn, scratch: &mut Scratch, error: Error) -> Fate {
    let (mut call, _active) = begin(conn, scratch, false);
    call.shared.config.stats.downstream_cx_protocol_error.inc();
    if matches!(error, Error::HeadersTooLarge | Error::TooManyHeaders) {
        call.shared.config.stats.downstream_rq_too_large.inc();
    }
    tracing::debug!(remote = %call.shared.peer.remote, %error, "refused a request");
    call.answer_protocol_error(None, error);
    call.finish(Ending::Answered).await
}

/// Answers a head that did not come in time.
pub(super) async fn head_timeout(conn: &mut Conn, scratch: &mut Scratch, of_headers: bool) -> Fate {
    let (mut call, _active) = begin(conn, scratch, false);
    let stats = &call.shared.config.stats;
    let text: &[u8] = if of_headers {
        stats.downstream_rq_header_timeout.inc();
        call.record.because("request_header_timeout", None);
        b"request header timeout"
    } else {
        stats.downstream_rq_idle_timeout.inc();
        call.record
            .because("stream_idle_timeout", Some(ResponseFlag::StreamIdleTimeout));
        b"stream timeout"
    };
    call.close = true;
    call.put_local_reply(None, &LocalReply::text(408, text));
    call.finish(Ending::Answered).await;
    Fate::Close
}

impl<'c> Call<'c> {
    /// The request as routes see it.
    pub(super) fn view(&self) -> View<'_> {
        let Scratch {
            received,
            request,
            request_edits,
            path,
            authority,
            ..
        } = &*self.scratch;
        record::view(
            self.prepared.as_ref(),
            received,
            request,
            request_edits,
            path,
            authority,
        )
    }

    pub(super) fn config(&self) -> &Config {
        &self.shared.config
    }

    pub(super) fn is_head(&self) -> bool {
        self.parsed && self.scratch.request.method.of(&self.scratch.received) == b"HEAD"
    }

    /// Whether this is the last request of the connection for reasons of ours.
    fn must_close(&self) -> bool {
        let config = &self.shared.config;
        let limit = config.max_requests_per_connection;
        if limit > 0 && self.conn.requests >= limit {
            config.stats.downstream_cx_max_requests_reached.inc();
            return true;
        }
        false
    }

    async fn handle(&mut self, framing: Framing) -> Ending {
        let shared = self.shared.clone();
        let config = &shared.config;
        if self.scratch.request.expects_continue && !config.proxy_100_continue && !self.is_http_10()
        {
            self.scratch
                .to_downstream
                .buffer
                .extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
        let prepared = match prepare(config, &shared.peer, self.scratch) {
            Ok(prepared) => prepared,
            Err(refusal) => return self.answer_refusal(refusal, framing),
        };
        self.record.remote = Some(prepared.remote);
        let upgrades = prepared.upgrades;
        self.prepared = Some(prepared);
        let table = shared.routes.table();
        let random = fastrand::u64(..);
        let id = table
            .as_ref()
            .and_then(|table| table.find(&self.view(), random));
        let entry = table
            .as_ref()
            .zip(id)
            .and_then(|(table, id)| table.entry(id));
        if upgrades && !self.upgrade_allowed(entry) {
            config.stats.downstream_rq_ws_on_non_ws_route.inc();
            self.record.because("upgrade_failed", None);
            return self.answer(entry, framing, true, &LocalReply::empty(403));
        }
        let Some(entry) = entry else {
            config.stats.no_route.inc();
            self.record
                .because("route_not_found", Some(ResponseFlag::NoRouteFound));
            let connect = self.scratch.request.method.of(&self.scratch.received) == b"CONNECT";
            return self.answer(None, framing, connect, &LocalReply::empty(404));
        };
        if config.access_log.is_enabled()
            || entry.has_request_headers(None)
            || entry.has_response_headers(None)
        {
            self.record.route_name = Some(entry.route.name.clone());
            self.record.virtual_host_name = Some(entry.virtual_host.name.clone());
        }
        match &entry.route.action {
            Action::Forward(forward) => forward::run(self, entry, forward, framing, random).await,
            action => {
                if let Some(ending) = self.inject_fault(entry, None, framing).await {
                    return ending;
                }
                self.record.because("direct_response", None);
                match action {
                    Action::Redirect(redirect) => {
                        // Envoy counts what a route answers by itself in one place
                        config.stats.rq_direct_response.inc();
                        let location = redirect.location(&self.view());
                        let headers: &[(&str, &[u8])] = &[("location", &location)];
                        let reply = LocalReply {
                            status: redirect.status,
                            body: b"",
                            headers,
                        };
                        self.answer(Some(entry), framing, false, &reply)
                    }
                    Action::Direct(direct) => {
                        config.stats.rq_direct_response.inc();
                        self.answer(
                            Some(entry),
                            framing,
                            false,
                            &LocalReply::text(direct.status, &direct.body),
                        )
                    }
                    Action::Forward(_) => Ending::Answered,
                }
            }
        }
    }

    fn upgrade_allowed(&self, entry: Option<Entry<'_>>) -> bool {
        let kind = self
            .scratch
            .request
            .upgrade
            .map(|kind| kind.of(&self.scratch.received))
            .unwrap_or_default();
        let by_route = entry.and_then(|entry| match &entry.route.action {
            Action::Forward(forward) => forward
                .upgrades
                .iter()
                .find(|(name, _)| name.as_bytes().eq_ignore_ascii_case(kind)),
            _ => None,
        });
        match by_route {
            Some((_, enabled)) => *enabled,
            None => self.config().upgrade(kind).unwrap_or(false),
        }
    }

    fn answer_refusal(&mut self, refusal: Refusal, framing: Framing) -> Ending {
        let stats = &self.shared.config.stats;
        match refusal {
            Refusal::MissingHost => {
                self.record.because("missing_host_header", None);
                self.answer(None, framing, true, &LocalReply::empty(400))
            }
            Refusal::AbsolutePath => {
                stats.downstream_rq_non_relative_path.inc();
                self.record.because("absolute_path_rejected", None);
                self.answer(None, framing, false, &LocalReply::empty(404))
            }
            Refusal::Path => {
                stats.downstream_rq_failed_path_normalization.inc();
                self.record.because("path_normalization_failed", None);
                self.answer(None, framing, true, &LocalReply::empty(400))
            }
            Refusal::RedirectToCanonical => {
                stats.downstream_rq_redirected_with_normalized_path.inc();
                self.record.because("path_normalization_failed", None);
                let path = self.scratch.path.clone();
                let reply = LocalReply {
                    status: 307,
                    body: b"",
                    headers: &[("location", &path)],
                };
                self.answer(None, framing, false, &reply)
            }
            Refusal::Underscore => {
                stats.downstream_cx_protocol_error.inc();
                self.record.because(
                    "http1.unexpected_underscore",
                    Some(ResponseFlag::DownstreamProtocolError),
                );
                self.answer(None, framing, true, &LocalReply::text(400, b"Bad Request"))
            }
        }
    }

    /// Answers a breach of the protocol: the connection cannot be used any more.
    pub(super) fn answer_protocol_error(
        &mut self,
        entry: Option<Entry<'_>>,
        error: Error,
    ) -> Ending {
        self.record
            .because(error.details(), Some(ResponseFlag::DownstreamProtocolError));
        self.close = true;
        self.incomplete = true;
        let text = wire::http1::reason(error.status()).as_bytes();
        self.put_local_reply(entry, &LocalReply::text(error.status(), text));
        Ending::Answered
    }

    /// Puts a local reply in the buffer. A request whose body was not read ends its connection, as in Envoy.
    pub(super) fn answer(
        &mut self,
        entry: Option<Entry<'_>>,
        framing: Framing,
        close: bool,
        reply: &LocalReply<'_>,
    ) -> Ending {
        if framing != Framing::Empty {
            self.shared
                .config
                .stats
                .downstream_rq_response_before_rq_complete
                .inc();
        }
        self.incomplete = close || framing != Framing::Empty;
        self.close |= self.incomplete;
        self.put_local_reply(entry, reply);
        Ending::Answered
    }

    /// Applies the route's changes to the request's headers.
    pub(super) fn apply_request_headers(&mut self, entry: Entry<'_>) {
        if !entry.has_request_headers(self.weighted) {
            return;
        }
        let Call {
            scratch,
            record,
            shared,
            prepared,
            weighted,
            ..
        } = self;
        let Scratch {
            received,
            request,
            request_edits,
            path,
            authority,
            ..
        } = &mut **scratch;
        let nothing = super::headers::Edits::default();
        let outline = record::view(
            prepared.as_ref(),
            received,
            request,
            &nothing,
            path,
            authority,
        );
        let mut editor = Editor {
            buffer: received,
            fields: &request.headers,
            edits: request_edits,
        };
        entry.apply_request_headers(*weighted, &mut editor, &mut |editor, format, out| {
            let lookup = Changing { outline, editor };
            format.write(&record.info(shared, &lookup, &NoHeaders), out);
        });
    }

    /// Sends what is left, logs, and says what becomes of the connection.
    async fn finish(mut self, ending: Ending) -> Fate {
        let gone = match ending {
            Ending::Answered => !self.flush().await,
            Ending::DownstreamGone => true,
            Ending::Broken | Ending::Tunnelled => false,
        };
        if gone && ending != Ending::Answered {
            self.record.because(
                "downstream_remote_disconnect",
                Some(ResponseFlag::DownstreamConnectionTermination),
            );
            self.shared.config.stats.downstream_rq_rx_reset.inc();
            self.shared
                .config
                .stats
                .downstream_cx_destroy_remote_active_rq
                .inc();
            self.shared
                .config
                .stats
                .downstream_cx_destroy_active_rq
                .inc();
        }
        let now = self.record.ended.unwrap_or_else(Instant::now);
        self.conn.last_end = now;
        let took = now.saturating_duration_since(self.record.started);
        self.shared
            .config
            .stats
            .downstream_rq_time
            .record(took.as_millis() as u64);
        self.log();
        match ending {
            _ if gone => Fate::ClosedByPeer,
            Ending::Broken | Ending::Tunnelled => Fate::Close,
            _ if self.incomplete => Fate::Linger,
            _ if self.close => Fate::Close,
            _ => Fate::Idle,
        }
    }

    /// Writes the access log, if there is one.
    fn log(&self) {
        let logs = &self.shared.config.access_log;
        if !logs.is_enabled() {
            return;
        }
        let view;
        let request: &dyn HeaderLookup = match self.parsed {
            true => {
                view = self.view();
                &view
            }
            false => &NoHeaders,
        };
        let written = self.written_head();
        let mut info = self.record.info(&self.shared, request, &written);
        let text = |bytes: Option<Cow<'_, str>>| bytes.map(Cow::into_owned);
        let (method, path, authority) = (
            text(request.get(":method")),
            text(request.get(":path")),
            text(request.get(":authority")),
        );
        let id = text(request.get("x-request-id"));
        info.method = method.as_deref();
        info.path = path.as_deref();
        info.authority = authority.as_deref();
        info.stream_id = id.as_deref();
        logs.log(&info);
    }

    /// Sends everything that is in the buffer; `false` if the client went away or takes too long.
    async fn flush(&mut self) -> bool {
        if self.scratch.to_downstream.pending() == 0 {
            return true;
        }
        let limit = self
            .shared
            .config
            .timeouts
            .stream_idle
            .unwrap_or(Duration::from_secs(300));
        let deadline = self.record.started + limit;
        let (conn, scratch) = (&mut *self.conn, &mut *self.scratch);
        let bytes = scratch.to_downstream.pending();
        let sent = poll_fn(
            |cx| match scratch.to_downstream.poll_flush(&mut conn.stream, cx) {
                Poll::Ready(result) => Poll::Ready(result.is_ok()),
                Poll::Pending if conn.timer.poll(cx, Some(deadline)) => Poll::Ready(false),
                Poll::Pending => Poll::Pending,
            },
        )
        .await;
        self.shared
            .config
            .stats
            .downstream_cx_tx_bytes_total
            .add(bytes as u64);
        sent
    }

    /// Connects both sides after `101 Switching Protocols`.
    pub(super) async fn tunnel(
        &mut self,
        up: &mut super::upstream::Connection,
        idle: Option<Duration>,
    ) -> Ending {
        let stats = &self.shared.config.stats;
        stats.downstream_cx_upgrades_total.inc();
        stats.downstream_cx_upgrades_active.inc();
        let bytes = tunnel::run(self.conn, self.scratch, up, idle).await;
        self.record.bytes_received += bytes.received;
        self.record.bytes_sent += bytes.sent;
        self.shared.config.stats.downstream_cx_upgrades_active.dec();
        Ending::Tunnelled
    }
}

/// A request whose headers are being changed.
struct Changing<'a, 'e> {
    outline: View<'a>,
    editor: &'a Editor<'e>,
}

impl HeaderLookup for Changing<'_, '_> {
    fn get(&self, lower: &str) -> Option<Cow<'_, str>> {
        if lower.starts_with(':') || lower == "host" {
            return HeaderLookup::get(&self.outline, lower);
        }
        let value = crate::route::HeaderMap::get(self.editor, lower)?;
        Some(Cow::Owned(String::from_utf8_lossy(&value).into_owned()))
    }
}
