//! What is remembered of a request for access logs and for headers made of operators.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use telemetry::request_info::{HeaderLookup, RequestInfo, Timing};
use telemetry::response_flags::{ResponseFlag, ResponseFlags};
use tokio::time::Instant;
use wire::http1::RequestHead;

use super::connection::Shared;
use super::headers::{Edits, View};
use super::request::Prepared;
use crate::cluster::Host;

/// The story of one request.
pub(super) struct Record {
    pub(super) started: Instant,
    pub(super) status: Option<u16>,
    pub(super) details: Cow<'static, str>,
    pub(super) flags: ResponseFlags,
    pub(super) attempts: u32,
    pub(super) cluster: Option<Arc<str>>,
    pub(super) host: Option<Rc<Host>>,
    pub(super) upstream_local: Option<SocketAddr>,
    pub(super) upstream_id: Option<u64>,
    pub(super) failure: Option<String>,
    pub(super) remote: Option<SocketAddr>,
    pub(super) head_at: Option<Instant>,
    pub(super) request_done: Option<Instant>,
    /// When the last byte was in the buffer for the downstream.
    pub(super) ended: Option<Instant>,
    pub(super) bytes_received: u64,
    pub(super) bytes_sent: u64,
    pub(super) head_bytes: u64,
    pub(super) http_10: bool,
    pub(super) route_name: Option<Arc<str>>,
    pub(super) virtual_host_name: Option<Arc<str>>,
}

impl Record {
    pub(super) fn new(started: Instant) -> Record {
        Record {
            started,
            status: None,
            details: Cow::Borrowed(""),
            flags: ResponseFlags::NONE,
            attempts: 0,
            cluster: None,
            host: None,
            upstream_local: None,
            upstream_id: None,
            failure: None,
            remote: None,
            head_at: None,
            request_done: None,
            ended: None,
            bytes_received: 0,
            bytes_sent: 0,
            head_bytes: 0,
            http_10: false,
            route_name: None,
            virtual_host_name: None,
        }
    }

    /// Notes why the answer is what it is.
    pub(super) fn because(
        &mut self,
        details: impl Into<Cow<'static, str>>,
        flag: Option<ResponseFlag>,
    ) {
        self.details = details.into();
        if let Some(flag) = flag {
            self.flags.set(flag);
        }
    }

    /// What is known so far, with `request` for the headers of the request.
    pub(super) fn info<'a>(
        &'a self,
        shared: &'a Shared,
        request: &'a dyn HeaderLookup,
        response: &'a dyn HeaderLookup,
    ) -> RequestInfo<'a> {
        let now = Instant::now();
        let since = |at: Option<Instant>| at.map(|at| at.saturating_duration_since(self.started));
        let start = SystemTime::now().checked_sub(now.saturating_duration_since(self.started));
        let upstream = self.host.as_ref();
        RequestInfo {
            timing: Timing {
                downstream_rx_last: since(self.request_done),
                upstream_tx_first: upstream.and(since(Some(self.started))),
                upstream_tx_last: upstream.and(since(self.request_done)),
                upstream_rx_first: upstream.and(since(self.head_at)),
                upstream_rx_last: upstream.and(since(self.ended)),
                downstream_tx_first: since(self.head_at),
                downstream_tx_last: since(Some(now)),
                complete: since(Some(now)),
                ..Timing::default()
            },
            protocol: Some(if self.http_10 { "HTTP/1.0" } else { "HTTP/1.1" }),
            upstream_protocol: self.upstream_local.map(|_| "HTTP/1.1"),
            request_headers: request,
            response_headers: response,
            request_header_bytes: self.head_bytes,
            response_code: self.status,
            response_code_details: Some(self.details.as_ref()).filter(|text| !text.is_empty()),
            flags: self.flags,
            bytes_received: self.bytes_received,
            bytes_sent: self.bytes_sent,
            downstream_wire_bytes_received: self.head_bytes + self.bytes_received,
            upstream_host: upstream.map(|host| host.address),
            upstream_host_name: upstream
                .map(|host| host.hostname.as_ref())
                .filter(|name| !name.is_empty()),
            upstream_cluster: self.cluster.as_deref(),
            upstream_cluster_raw: self.cluster.as_deref(),
            upstream_local: self.upstream_local,
            upstream_connection_id: self.upstream_id,
            upstream_transport_failure_reason: self.failure.as_deref(),
            upstream_attempt_count: self.attempts,
            route_name: self.route_name.as_deref().filter(|name| !name.is_empty()),
            virtual_host_name: self.virtual_host_name.as_deref(),
            downstream_remote: Some(self.remote.unwrap_or(shared.peer.remote)),
            downstream_direct_remote: Some(shared.peer.remote),
            downstream_local: Some(shared.peer.local),
            connection_id: shared.id,
            ..RequestInfo::new(start.unwrap_or(SystemTime::UNIX_EPOCH))
        }
    }
}

/// The request as it is after what has been changed in it so far.
pub(super) fn view<'a>(
    prepared: Option<&Prepared>,
    received: &'a [u8],
    head: &'a RequestHead,
    edits: &'a Edits,
    path: &'a [u8],
    authority: &'a [u8],
) -> View<'a> {
    let host = head
        .authority
        .map(|host| host.of(received))
        .unwrap_or_default();
    View {
        buffer: received,
        head,
        edits,
        path: if prepared.is_some_and(|p| p.new_path) {
            path
        } else {
            head.path.of(received)
        },
        authority: if prepared.is_some_and(|p| p.new_authority) {
            authority
        } else {
            host
        },
        scheme: prepared.map_or(b"http", |p| p.scheme),
    }
}
