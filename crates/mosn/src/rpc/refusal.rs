//! Answers that the proxy gives itself: which flag, HTTP label and text each has. The protocols map
//! them to their own numbers (`protocols/xprotocol-map.md` §4).

use std::borrow::Cow;
use std::sync::Arc;

use telemetry::response_flags::ResponseFlag;

/// Why a call is answered here.
#[derive(Clone, Debug)]
pub(super) enum Refusal {
    /// No route matches.
    NoRoute,
    /// The route's cluster does not exist.
    NoCluster,
    /// No host takes the call.
    NoHealthyUpstream,
    /// The connection could not be opened.
    ConnectFailed,
    /// The connection closed before the answer.
    UpstreamClosed,
    /// A circuit breaker or a bound of ours.
    Overflow,
    /// The time is over.
    Timeout,
    /// A frame over the limits.
    TooLarge(String),
    /// A frame that cannot be read.
    Undecodable(String),
    /// A fault that was configured, by HTTP status.
    Abort(u16),
    /// A direct response: HTTP status and body.
    Direct(u16, Arc<[u8]>),
}

/// The native form of a refusal, before a protocol gives it its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Native {
    /// Nobody serves this.
    NotFound,
    /// No host.
    NoHost,
    /// No connection: the call was not sent.
    NotSent,
    /// The connection is gone.
    Closed,
    /// Too busy.
    Busy,
    /// Too late.
    Timeout,
    /// Not readable.
    BadRequest,
    /// Not allowed: must not be tried again.
    Denied,
    /// Any other failure of a server.
    ServerError,
    /// A result that is a text.
    Text,
}

impl Refusal {
    /// HTTP status in metrics and logs.
    pub(super) fn http(&self) -> u16 {
        match self {
            Refusal::NoRoute => 404,
            Refusal::NoCluster
            | Refusal::NoHealthyUpstream
            | Refusal::ConnectFailed
            | Refusal::UpstreamClosed
            | Refusal::Overflow => 503,
            Refusal::Timeout => 504,
            Refusal::TooLarge(_) => 413,
            Refusal::Undecodable(_) => 400,
            Refusal::Abort(status) | Refusal::Direct(status, _) => *status,
        }
    }

    /// Response flag.
    pub(super) fn flag(&self) -> Option<ResponseFlag> {
        Some(match self {
            Refusal::NoRoute => ResponseFlag::NoRouteFound,
            Refusal::NoCluster => ResponseFlag::NoClusterFound,
            Refusal::NoHealthyUpstream => ResponseFlag::NoHealthyUpstream,
            Refusal::ConnectFailed => ResponseFlag::UpstreamConnectionFailure,
            Refusal::UpstreamClosed => ResponseFlag::UpstreamConnectionTermination,
            Refusal::Overflow => ResponseFlag::UpstreamOverflow,
            Refusal::Timeout => ResponseFlag::UpstreamRequestTimeout,
            Refusal::TooLarge(_) | Refusal::Undecodable(_) => ResponseFlag::DownstreamProtocolError,
            Refusal::Abort(_) => ResponseFlag::FaultInjected,
            Refusal::Direct(..) => return None,
        })
    }

    /// Envoy's response code details.
    pub(super) fn details(&self) -> &'static str {
        match self {
            Refusal::NoRoute => "route_not_found",
            Refusal::NoCluster => "cluster_not_found",
            Refusal::NoHealthyUpstream => "no_healthy_upstream",
            Refusal::ConnectFailed => "upstream_reset_before_response_started{connection_failure}",
            Refusal::UpstreamClosed => {
                "upstream_reset_before_response_started{connection_termination}"
            }
            Refusal::Overflow => "upstream_reset_before_response_started{overflow}",
            Refusal::Timeout => "response_timeout",
            Refusal::TooLarge(_) => "request_payload_too_large",
            Refusal::Undecodable(_) => "codec_error",
            Refusal::Abort(_) => "fault_filter_abort",
            Refusal::Direct(..) => "direct_response",
        }
    }

    /// What happened, in words for the caller.
    pub(super) fn message(&self) -> Cow<'_, str> {
        Cow::Borrowed(match self {
            Refusal::NoRoute => "no route for this call",
            Refusal::NoCluster => "the route's cluster does not exist",
            Refusal::NoHealthyUpstream => "no healthy upstream",
            Refusal::ConnectFailed => "connection to the upstream failed",
            Refusal::UpstreamClosed => "the upstream closed the connection before it answered",
            Refusal::Overflow => "too many calls in flight",
            Refusal::Timeout => "the upstream did not answer in time",
            Refusal::TooLarge(why) | Refusal::Undecodable(why) => why,
            Refusal::Abort(status) => {
                return Cow::Owned(format!("fault injected with status {status}"));
            }
            Refusal::Direct(_, body) => return String::from_utf8_lossy(body),
        })
    }

    /// The native form.
    pub(super) fn native(&self) -> Native {
        match self {
            Refusal::NoRoute | Refusal::NoCluster => Native::NotFound,
            Refusal::NoHealthyUpstream => Native::NoHost,
            Refusal::ConnectFailed => Native::NotSent,
            Refusal::UpstreamClosed => Native::Closed,
            Refusal::Overflow => Native::Busy,
            Refusal::Timeout => Native::Timeout,
            Refusal::TooLarge(_) | Refusal::Undecodable(_) => Native::BadRequest,
            Refusal::Abort(status) | Refusal::Direct(status, _) => match status {
                200..=299 => Native::Text,
                404 => Native::NotFound,
                401 | 403 => Native::Denied,
                429 | 503 => Native::Busy,
                504 | 408 => Native::Timeout,
                400 | 413 => Native::BadRequest,
                _ => Native::ServerError,
            },
        }
    }
}
