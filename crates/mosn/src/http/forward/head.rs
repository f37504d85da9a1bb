//! The head of the request as it is sent upstream: the route's changes, and what each try adds.

use tokio::time::Instant;
use wire::http1::{put_decimal, put_request_line};

use super::super::call::Call;
use super::super::exchange::Encode;
use super::super::scratch::Scratch;
use super::Router;
use crate::cluster::host::Host;
use crate::route::{ClusterPick, Entry, Forward, HostRewrite};

/// Applies what the route changes: headers, then the host, then the path.
pub(super) fn rewrite(
    call: &mut Call<'_>,
    entry: Entry<'_>,
    forward: &Forward,
    pick: &ClusterPick<'_>,
) {
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
    /// Writes the request's head for this try.
    pub(super) fn put_head(&mut self, call: &mut Call<'_>, host: &Host) {
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
            // Methods that usually have a body say that there is none (RFC 9110 §8.6).
            Encode::Nothing
                if !upgrades && view.head.content_length().is_none() && !is_bodyless(method) =>
            {
                head.extend_from_slice(b"content-length: 0\r\n");
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
}

/// Methods whose requests usually have no body, so that none need be denied.
fn is_bodyless(method: &[u8]) -> bool {
    matches!(method, b"GET" | b"HEAD" | b"DELETE" | b"TRACE" | b"CONNECT")
}
