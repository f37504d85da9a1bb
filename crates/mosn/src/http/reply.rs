//! What is written to the downstream: heads of upstream answers, and answers of the proxy itself, both as Envoy writes them.

use telemetry::request_info::NoHeaders;
use tokio::time::Instant;
use wire::http1::{HeaderId, Version, put_status_line};

use super::call::Call;
use super::config::ServerHeader;
use super::date;
use super::exchange::Encode;
use super::headers::{Editor, Written};
use super::record;
use super::scratch::Scratch;
use crate::route::{Entry, RequestView};

/// An answer that the proxy makes.
pub(super) struct LocalReply<'a> {
    pub(super) status: u16,
    /// Plain text; none for an empty body.
    pub(super) body: &'a [u8],
    /// Further headers, before all others.
    pub(super) headers: &'a [(&'a str, &'a [u8])],
}

impl LocalReply<'_> {
    /// An answer without a body.
    pub(super) fn empty(status: u16) -> LocalReply<'static> {
        LocalReply {
            status,
            body: b"",
            headers: &[],
        }
    }

    /// An answer with a text.
    pub(super) fn text(status: u16, body: &[u8]) -> LocalReply<'_> {
        LocalReply {
            status,
            body,
            headers: &[],
        }
    }
}

impl Call<'_> {
    /// Writes a local reply to the buffer for the downstream.
    pub(super) fn put_local_reply(&mut self, entry: Option<Entry<'_>>, reply: &LocalReply<'_>) {
        let now = Instant::now();
        self.record.status = Some(reply.status);
        self.record.head_at = Some(now);
        let attempts = entry
            .filter(|e| {
                e.virtual_host.include_attempt_count_in_response && self.record.attempts > 0
            })
            .map(|_| self.record.attempts.to_string());
        self.scratch.response_edits.clear();
        self.scratch.response.headers.clear();
        let edits = &mut self.scratch.response_edits;
        for (name, value) in reply.headers {
            edits.add(name, value);
        }
        if let Some(attempts) = attempts {
            edits.add("x-envoy-attempt-count", attempts.as_bytes());
        }
        if !reply.body.is_empty() {
            edits.add("content-length", reply.body.len().to_string().as_bytes());
            edits.add("content-type", b"text/plain");
        }
        if let Some(entry) = entry {
            self.apply_response_headers(entry);
        }
        let from = self.scratch.to_downstream.buffer.len();
        let http_10 = self.is_http_10();
        let Scratch {
            to_downstream,
            response_edits,
            ..
        } = &mut *self.scratch;
        put_status_line(&mut to_downstream.buffer, reply.status, http_10);
        response_edits.write(b"", &[], &mut to_downstream.buffer);
        self.put_common_headers(now, Present::default());
        let to_head = self.is_head();
        let out = &mut self.scratch.to_downstream.buffer;
        if reply.body.is_empty() {
            out.extend_from_slice(b"content-length: 0\r\n");
        }
        out.extend_from_slice(b"\r\n");
        self.remember_head(from);
        if !to_head {
            self.scratch
                .to_downstream
                .buffer
                .extend_from_slice(reply.body);
            self.record.bytes_sent += reply.body.len() as u64;
        }
        self.shared.config.stats.count_response(reply.status);
    }

    /// Writes the head of the upstream's answer, whose bytes are at the front of the upstream's buffer.
    pub(super) fn put_upstream_head(&mut self, entry: Entry<'_>, now: Instant, encode: Encode) {
        let shared = self.shared.clone();
        let config = &shared.config;
        let http_10 = self.is_http_10();
        let mut present = Present::default();
        let status = self.scratch.response.status;
        let switching = status == 101;
        self.record.status = Some(status);
        self.record.head_at = Some(now);
        {
            let Scratch {
                from_upstream,
                response,
                response_edits: edits,
                ..
            } = &mut *self.scratch;
            let buffer = from_upstream.bytes();
            edits.clear();
            for (index, field) in response.headers.iter().enumerate() {
                match field.id {
                    HeaderId::Connection | HeaderId::Upgrade if !switching => {
                        edits.remove_at(index)
                    }
                    HeaderId::KeepAlive
                    | HeaderId::ProxyConnection
                    | HeaderId::TransferEncoding => {
                        edits.remove_at(index);
                    }
                    HeaderId::ContentLength if status == 204 || status < 200 => {
                        edits.remove_at(index)
                    }
                    HeaderId::Server if config.server_header == ServerHeader::Overwrite => {
                        edits.remove_at(index)
                    }
                    HeaderId::Server => present.server = true,
                    HeaderId::Date => present.date = true,
                    HeaderId::Via if !config.via.is_empty() => {
                        let text = [field.value.of(buffer), b", ", &config.via].concat();
                        edits.remove_at(index);
                        edits.add("via", &text);
                        present.via = true;
                    }
                    HeaderId::XEnvoy
                        if is_measure(field.name.of(buffer), config.suppress_envoy_headers) =>
                    {
                        edits.remove_at(index);
                    }
                    HeaderId::XRequestId if config.request_id_in_response => edits.remove_at(index),
                    _ => {}
                }
            }
            if !config.suppress_envoy_headers && !switching {
                let asked = self.exchange_started;
                let took = now.saturating_duration_since(asked).as_millis() as u64;
                edits.add_decimal("x-envoy-upstream-service-time", took);
            }
            if entry.virtual_host.include_attempt_count_in_response {
                edits.remove(buffer, &response.headers, "x-envoy-attempt-count");
                edits.add(
                    "x-envoy-attempt-count",
                    self.record.attempts.to_string().as_bytes(),
                );
            }
        }
        self.apply_response_headers(entry);
        let from = self.scratch.to_downstream.buffer.len();
        let Scratch {
            to_downstream,
            from_upstream,
            response,
            response_edits,
            ..
        } = &mut *self.scratch;
        put_status_line(&mut to_downstream.buffer, status, http_10);
        response_edits.write(
            from_upstream.bytes(),
            &response.headers,
            &mut to_downstream.buffer,
        );
        self.put_common_headers(now, present);
        let out = &mut self.scratch.to_downstream.buffer;
        if encode == Encode::Chunked {
            out.extend_from_slice(b"transfer-encoding: chunked\r\n");
        }
        out.extend_from_slice(b"\r\n");
        self.remember_head(from);
        config.stats.count_response(status);
    }

    /// What every answer carries: `date`, `server`, the request's id, `via`, and what becomes of the connection.
    fn put_common_headers(&mut self, now: Instant, present: Present) {
        let shared = self.shared.clone();
        let config = &shared.config;
        let request_id = match config.request_id_in_response {
            true => self.view().header("x-request-id").map(|id| id.into_owned()),
            false => None,
        };
        let http_10 = self.is_http_10();
        // A drain that began while the upstream was asked counts for this answer already.
        if !self.close && self.conn.is_closing(now) {
            config.stats.downstream_cx_drain_close.inc();
            self.close = true;
        }
        let out = &mut self.scratch.to_downstream.buffer;
        if !present.date {
            out.extend_from_slice(b"date: ");
            date::put(out, now);
            out.extend_from_slice(b"\r\n");
        }
        if !present.server && config.server_header != ServerHeader::PassThrough {
            out.extend_from_slice(b"server: ");
            out.extend_from_slice(&config.server_name);
            out.extend_from_slice(b"\r\n");
        }
        if let Some(id) = request_id {
            out.extend_from_slice(b"x-request-id: ");
            out.extend_from_slice(&id);
            out.extend_from_slice(b"\r\n");
        }
        if !config.via.is_empty() && !present.via {
            out.extend_from_slice(b"via: ");
            out.extend_from_slice(&config.via);
            out.extend_from_slice(b"\r\n");
        }
        if self.close {
            out.extend_from_slice(b"connection: close\r\n");
        } else if http_10 {
            out.extend_from_slice(b"connection: keep-alive\r\n");
        }
    }

    fn apply_response_headers(&mut self, entry: Entry<'_>) {
        let weighted = self.weighted;
        if !entry.has_response_headers(weighted) {
            return;
        }
        let Call {
            scratch,
            record,
            shared,
            prepared,
            ..
        } = self;
        let Scratch {
            received,
            request,
            request_edits,
            path,
            authority,
            from_upstream,
            response,
            response_edits,
            ..
        } = &mut **scratch;
        let view = record::view(
            prepared.as_ref(),
            received,
            request,
            request_edits,
            path,
            authority,
        );
        let mut editor = Editor {
            buffer: if response.headers.is_empty() {
                b""
            } else {
                from_upstream.bytes()
            },
            fields: &response.headers,
            edits: response_edits,
        };
        entry.apply_response_headers(weighted, &mut editor, &mut |_, format, out| {
            format.write(&record.info(shared, &view, &NoHeaders), out);
        });
    }

    /// Keeps a copy of the head that starts here, if an access log will want it.
    fn remember_head(&mut self, from: usize) {
        if self.shared.config.access_log.is_enabled() {
            let Scratch {
                to_downstream,
                response_head,
                ..
            } = &mut *self.scratch;
            response_head.clear();
            response_head.extend_from_slice(to_downstream.buffer.get(from..).unwrap_or_default());
        }
    }

    /// The head that was written, for the access log.
    pub(super) fn written_head(&self) -> Written<'_> {
        Written(&self.scratch.response_head)
    }

    pub(super) fn is_http_10(&self) -> bool {
        self.parsed && self.scratch.request.version == Version::Http10
    }
}

/// Headers that the answer has already.
#[derive(Clone, Copy, Default)]
struct Present {
    date: bool,
    server: bool,
    via: bool,
}

/// Envoy's own measure of the upstream is never passed on from another proxy.
fn is_measure(name: &[u8], suppress_all: bool) -> bool {
    suppress_all || name.eq_ignore_ascii_case(b"x-envoy-upstream-service-time")
}
