//! What an access log needs of a call. It is gathered only where a log is configured.

use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use telemetry::request_info::{HeaderLookup, RequestInfo, Timing};
use telemetry::response_flags::{ResponseFlag, ResponseFlags};

use super::call::{Call, Micros};
use super::protocol::{Class, Outcome, Protocol, Words};
use super::refusal::Refusal;
use crate::cluster::Host;

/// A call as it came.
pub(super) struct Entry {
    start: SystemTime,
    service: String,
    path: String,
    headers: Pairs,
    received: u64,
    /// Flags set before the end, such as that of a delay.
    pub(super) flags: ResponseFlags,
    /// The host of the last try.
    pub(super) host: Option<std::rc::Rc<Host>>,
    /// Time of the first try.
    pub(super) sent: Option<Micros>,
}

#[derive(Default)]
struct Pairs(Vec<(String, String)>);

impl HeaderLookup for Pairs {
    fn get(&self, lower: &str) -> Option<Cow<'_, str>> {
        let found = self.0.iter().rev();
        let mut found = found.filter(|(key, _)| key.eq_ignore_ascii_case(lower));
        found.next().map(|(_, value)| Cow::Borrowed(value.as_str()))
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl Pairs {
    fn of<P: Protocol>(frame: &[u8], head: &P::Head) -> Pairs {
        let mut pairs = Vec::new();
        P::each_header(frame, head, &mut |key, value| {
            pairs.push((text(key), text(value)));
        });
        Pairs(pairs)
    }
}

impl Entry {
    pub(super) fn new<P: Protocol>(
        frame: &[u8],
        head: &P::Head,
        words: &Words<'_>,
        path: &[u8],
    ) -> Entry {
        let mut headers = Pairs::of::<P>(frame, head);
        for (name, word) in [
            ("x-mesh-rpc-service", &words.service),
            ("x-mesh-rpc-method", &words.method),
            ("x-mesh-rpc-version", &words.version),
            ("x-mesh-rpc-group", &words.group),
        ] {
            if !word.is_empty() {
                headers.0.push((name.to_owned(), text(word)));
            }
        }
        for (name, word) in [
            (":path", path),
            (":authority", &words.service),
            (":method", b"POST"),
        ] {
            headers.0.push((name.to_owned(), text(word)));
        }
        Entry {
            start: SystemTime::now(),
            service: text(&words.service),
            path: text(path),
            headers,
            received: frame.len() as u64,
            flags: ResponseFlags::NONE,
            host: None,
            sent: None,
        }
    }

    pub(super) fn answered<P: Protocol>(
        &self,
        call: &Call<P>,
        frame: &[u8],
        head: &P::Head,
        outcome: Outcome,
        now: Micros,
    ) {
        let mut flags = self.flags;
        if outcome.class == Class::TransportError {
            flags = exhausted(call, flags);
        }
        self.write(
            call,
            now,
            &End {
                headers: Pairs::of::<P>(frame, head),
                code: Some(outcome.http),
                details: "via_upstream",
                flags,
                bytes_sent: frame.len() as u64,
                by_upstream: true,
            },
        );
    }

    pub(super) fn refused<P: Protocol>(&self, call: &Call<P>, refusal: &Refusal, now: Micros) {
        let mut flags = exhausted(call, self.flags);
        if let Some(flag) = refusal.flag() {
            flags.set(flag);
        }
        let end = End {
            code: Some(refusal.http()),
            details: refusal.details(),
            flags,
            ..End::default()
        };
        self.write(call, now, &end);
    }

    pub(super) fn sent<P: Protocol>(&self, call: &Call<P>, now: Micros) {
        let end = End {
            code: Some(200),
            details: "via_upstream",
            flags: self.flags,
            ..End::default()
        };
        self.write(call, now, &end);
    }

    /// A call whose caller went away.
    pub(super) fn cancelled<P: Protocol>(&self, call: &Call<P>, now: Micros) {
        let end = End {
            details: "downstream_remote_disconnect",
            flags: self
                .flags
                .with(ResponseFlag::DownstreamConnectionTermination),
            ..End::default()
        };
        self.write(call, now, &end);
    }

    fn write<P: Protocol>(&self, call: &Call<P>, now: Micros, end: &End) {
        let since = |at: Micros| Duration::from_micros(at.saturating_sub(call.start));
        let complete = since(now);
        let upstream_rx = end.by_upstream.then_some(complete);
        let entry = call
            .route
            .as_ref()
            .and_then(|routed| routed.table.entry(routed.id));
        let cluster = call
            .route
            .as_ref()
            .map(|routed| &*routed.cluster.config.name);
        let info = RequestInfo {
            timing: Timing {
                downstream_rx_last: Some(Duration::ZERO),
                upstream_tx_first: self.sent.map(since),
                upstream_tx_last: self.sent.map(since),
                upstream_rx_first: upstream_rx,
                upstream_rx_last: upstream_rx,
                downstream_tx_first: Some(complete),
                downstream_tx_last: Some(complete),
                complete: Some(complete),
                ..Timing::default()
            },
            protocol: Some(P::NAME),
            upstream_protocol: self.host.as_ref().map(|_| P::NAME),
            method: Some("POST"),
            path: Some(&self.path),
            authority: Some(&self.service),
            request_headers: &self.headers,
            response_headers: &end.headers,
            response_code: end.code,
            response_code_details: Some(end.details),
            flags: end.flags,
            bytes_received: self.received,
            bytes_sent: end.bytes_sent,
            downstream_wire_bytes_received: self.received,
            downstream_wire_bytes_sent: end.bytes_sent,
            upstream_wire_bytes_sent: self.received,
            upstream_wire_bytes_received: end.bytes_sent,
            upstream_host: self.host.as_ref().map(|host| host.address),
            upstream_host_name: self.host.as_ref().map(|host| &*host.hostname),
            upstream_cluster: cluster,
            upstream_cluster_raw: cluster,
            upstream_attempt_count: call.attempts,
            route_name: entry
                .map(|entry| &*entry.route.name)
                .filter(|name| !name.is_empty()),
            virtual_host_name: entry.map(|entry| &*entry.virtual_host.name),
            downstream_remote: Some(call.down.remote),
            downstream_direct_remote: Some(call.down.remote),
            downstream_local: Some(call.down.local),
            ..RequestInfo::new(self.start)
        };
        call.down.config.access_log.log(&info);
    }
}

/// How a call ended.
#[derive(Default)]
struct End {
    headers: Pairs,
    code: Option<u16>,
    details: &'static str,
    flags: ResponseFlags,
    bytes_sent: u64,
    by_upstream: bool,
}

fn exhausted<P: Protocol>(call: &Call<P>, flags: ResponseFlags) -> ResponseFlags {
    match &call.retry {
        Some(retry) if retry.exhausted => flags.with(ResponseFlag::UpstreamRetryLimitExceeded),
        _ => flags,
    }
}
