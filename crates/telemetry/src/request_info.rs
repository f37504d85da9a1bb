//! What is known of a request or connection when it is logged: one plain struct that borrows from whoever handled it.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use crate::response_flags::ResponseFlags;

/// Headers, or what a protocol has in their place, by lower-case name. Pseudo headers (`:method`, `:path`,
/// `:authority`, `:scheme`, `:status`) are answered too.
pub trait HeaderLookup {
    /// The first value of this name, where several values are joined by the holder if it wants to.
    fn get(&self, lower: &str) -> Option<Cow<'_, str>>;
}

/// No headers at all.
pub struct NoHeaders;

impl HeaderLookup for NoHeaders {
    fn get(&self, _lower: &str) -> Option<Cow<'_, str>> {
        None
    }
}

/// A list of pairs, for callers that have no map of their own.
impl HeaderLookup for [(&str, &str)] {
    fn get(&self, lower: &str) -> Option<Cow<'_, str>> {
        self.iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(lower))
            .map(|(_, value)| Cow::Borrowed(*value))
    }
}

impl<const N: usize> HeaderLookup for [(&str, &str); N] {
    fn get(&self, lower: &str) -> Option<Cow<'_, str>> {
        HeaderLookup::get(self.as_slice(), lower)
    }
}

/// When things happened, each as time since [`RequestInfo::start`]; `None` if they did not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timing {
    /// The last byte of the request was received from the downstream.
    pub downstream_rx_last: Option<Duration>,
    /// The first byte of the request was sent to the upstream.
    pub upstream_tx_first: Option<Duration>,
    /// The last byte of the request was sent to the upstream.
    pub upstream_tx_last: Option<Duration>,
    /// The first byte of the response was received from the upstream.
    pub upstream_rx_first: Option<Duration>,
    /// The last byte of the response was received from the upstream.
    pub upstream_rx_last: Option<Duration>,
    /// The first byte of the response was sent to the downstream.
    pub downstream_tx_first: Option<Duration>,
    /// The last byte of the response was sent to the downstream.
    pub downstream_tx_last: Option<Duration>,
    /// The upstream connection began to be opened (only if this request waited for it).
    pub upstream_connect_start: Option<Duration>,
    /// The upstream connection was open.
    pub upstream_connect_end: Option<Duration>,
    /// All is over.
    pub complete: Option<Duration>,
}

/// One request (HTTP, RPC) or one connection (TCP).
#[derive(Clone)]
pub struct RequestInfo<'a> {
    /// Wall clock at the first byte of the request, or at the connection's acceptance.
    pub start: SystemTime,
    /// Everything else on the clock.
    pub timing: Timing,
    /// `HTTP/1.0`, `HTTP/1.1`, `HTTP/2`, `dubbo`, `bolt`; `None` for TCP.
    pub protocol: Option<&'a str>,
    /// The protocol spoken with the upstream, likewise.
    pub upstream_protocol: Option<&'a str>,
    /// Request method.
    pub method: Option<&'a str>,
    /// Path with query, as it is sent on.
    pub path: Option<&'a str>,
    /// Path with query before it was rewritten, if it was.
    pub original_path: Option<&'a str>,
    /// Host or interface.
    pub authority: Option<&'a str>,
    /// Request headers after the route's changes to them.
    pub request_headers: &'a dyn HeaderLookup,
    /// Response headers as sent to the downstream.
    pub response_headers: &'a dyn HeaderLookup,
    /// Response trailers.
    pub response_trailers: &'a dyn HeaderLookup,
    /// Size of the request's header block in bytes.
    pub request_header_bytes: u64,
    /// Size of the response's header block in bytes.
    pub response_header_bytes: u64,
    /// Size of the response's trailers in bytes.
    pub response_trailer_bytes: u64,
    /// Status; `None` before any (Envoy prints `0`).
    pub response_code: Option<u16>,
    /// Who made the response and why, for instance `via_upstream`.
    pub response_code_details: Option<&'a str>,
    /// Why the connection ended early.
    pub connection_termination_details: Option<&'a str>,
    /// Response flags.
    pub flags: ResponseFlags,
    /// Body bytes from the downstream (TCP: all bytes).
    pub bytes_received: u64,
    /// Body bytes to the downstream (TCP: all bytes).
    pub bytes_sent: u64,
    /// Bytes on the wire from and to the downstream, headers and framing included.
    pub downstream_wire_bytes_received: u64,
    /// See [`RequestInfo::downstream_wire_bytes_received`].
    pub downstream_wire_bytes_sent: u64,
    /// Bytes on the wire from the upstream.
    pub upstream_wire_bytes_received: u64,
    /// Bytes on the wire to the upstream.
    pub upstream_wire_bytes_sent: u64,
    /// Header bytes of the request as sent to the upstream.
    pub upstream_header_bytes_sent: u64,
    /// Header bytes of the response as received from the upstream.
    pub upstream_header_bytes_received: u64,
    /// The host chosen.
    pub upstream_host: Option<SocketAddr>,
    /// The name of the host chosen, where it was found by name.
    pub upstream_host_name: Option<&'a str>,
    /// The cluster, by its alternative statistics name where it has one.
    pub upstream_cluster: Option<&'a str>,
    /// The cluster by its own name.
    pub upstream_cluster_raw: Option<&'a str>,
    /// Our address on the upstream connection.
    pub upstream_local: Option<SocketAddr>,
    /// Number of the upstream connection.
    pub upstream_connection_id: Option<u64>,
    /// Why the transport to the upstream failed.
    pub upstream_transport_failure_reason: Option<&'a str>,
    /// How often the request was sent or tried to be sent upstream.
    pub upstream_attempt_count: u32,
    /// The id under which the request was sent upstream, for protocols that number their requests.
    pub upstream_request_id: Option<u64>,
    /// Name of the route.
    pub route_name: Option<&'a str>,
    /// Name of the virtual host.
    pub virtual_host_name: Option<&'a str>,
    /// Where the request came from, proxies that are trusted looked through.
    pub downstream_remote: Option<SocketAddr>,
    /// The peer of the connection.
    pub downstream_direct_remote: Option<SocketAddr>,
    /// The address the downstream connected to.
    pub downstream_local: Option<SocketAddr>,
    /// Server name of the TLS client hello.
    pub requested_server_name: Option<&'a str>,
    /// Name of the filter chain.
    pub filter_chain_name: Option<&'a str>,
    /// Why the transport to the downstream failed.
    pub downstream_transport_failure_reason: Option<&'a str>,
    /// Number of the downstream connection.
    pub connection_id: u64,
    /// Unique id of the request (a UUID, usually that of `x-request-id`).
    pub stream_id: Option<&'a str>,
    /// Whether the health check filter answered.
    pub health_check: bool,
}

impl RequestInfo<'_> {
    /// Nothing known yet; to be completed with `RequestInfo { …, ..RequestInfo::new(start) }`.
    #[must_use]
    pub fn new(start: SystemTime) -> Self {
        Self {
            start,
            timing: Timing::default(),
            protocol: None,
            upstream_protocol: None,
            method: None,
            path: None,
            original_path: None,
            authority: None,
            request_headers: &NoHeaders,
            response_headers: &NoHeaders,
            response_trailers: &NoHeaders,
            request_header_bytes: 0,
            response_header_bytes: 0,
            response_trailer_bytes: 0,
            response_code: None,
            response_code_details: None,
            connection_termination_details: None,
            flags: ResponseFlags::NONE,
            bytes_received: 0,
            bytes_sent: 0,
            downstream_wire_bytes_received: 0,
            downstream_wire_bytes_sent: 0,
            upstream_wire_bytes_received: 0,
            upstream_wire_bytes_sent: 0,
            upstream_header_bytes_sent: 0,
            upstream_header_bytes_received: 0,
            upstream_host: None,
            upstream_host_name: None,
            upstream_cluster: None,
            upstream_cluster_raw: None,
            upstream_local: None,
            upstream_connection_id: None,
            upstream_transport_failure_reason: None,
            upstream_attempt_count: 0,
            upstream_request_id: None,
            route_name: None,
            virtual_host_name: None,
            downstream_remote: None,
            downstream_direct_remote: None,
            downstream_local: None,
            requested_server_name: None,
            filter_chain_name: None,
            downstream_transport_failure_reason: None,
            connection_id: 0,
            stream_id: None,
            health_check: false,
        }
    }
}

impl Default for RequestInfo<'_> {
    /// As [`RequestInfo::new`], at the Unix epoch.
    fn default() -> Self {
        Self::new(SystemTime::UNIX_EPOCH)
    }
}
