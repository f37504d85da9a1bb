//! What each operator prints for a request.

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use super::op::{
    AddressPart, Bytes, GrpcStatusForm, HeaderOp, Op, PathOp, Point, Unit, WhichPath, Who,
};
use crate::request_info::{HeaderLookup, RequestInfo};

/// What an operator has appended; JSON needs to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written {
    Nothing,
    Number,
    Text,
}

impl Op {
    /// Appends the value.
    pub(super) fn write(&self, info: &RequestInfo<'_>, out: &mut Vec<u8>) -> Written {
        match self {
            Self::Constant(value) => text(Some(value), out),
            Self::Absent => Written::Nothing,
            Self::Zero => number(0, out),
            Self::Time(clock, format) => {
                format.write(*clock, info, out);
                Written::Text
            }
            Self::RequestHeader(header) => header.write(out, |name| request_header(info, name)),
            Self::ResponseHeader(header) => header.write(out, |name| response_header(info, name)),
            Self::ResponseTrailer(header) => {
                header.write(out, |name| lookup(info.response_trailers, name))
            }
            Self::Path(path) => path.write(info, out),
            Self::QueryParam(name) => {
                decoded(query(info).and_then(|query| query_param(query, name)), out)
            }
            Self::QueryParams { decoded: false } => text(query(info), out),
            Self::QueryParams { decoded: true } => decoded(query(info), out),
            Self::Protocol => text(info.protocol, out),
            Self::UpstreamProtocol => text(info.upstream_protocol, out),
            Self::ResponseCode => number(u64::from(info.response_code.unwrap_or(0)), out),
            Self::ResponseCodeDetails { allow_spaces } => {
                details(info.response_code_details, *allow_spaces, out)
            }
            Self::ConnectionTerminationDetails => text(info.connection_termination_details, out),
            Self::ResponseFlags { long } => {
                if *long {
                    info.flags.write_long(out);
                } else {
                    info.flags.write_short(out);
                }
                Written::Text
            }
            Self::RouteName => text(info.route_name.filter(|name| !name.is_empty()), out),
            Self::Bytes(which) => number(bytes(*which, info), out),
            Self::Duration(from, to, unit) => duration(info, *from, *to, *unit, out),
            Self::Address(who, part) => address(who.of(info), *part, out),
            Self::UpstreamHostName { with_port } => host_name(info, *with_port, out),
            Self::UpstreamCluster { raw: false } => {
                text(info.upstream_cluster.or(info.upstream_cluster_raw), out)
            }
            Self::UpstreamCluster { raw: true } => {
                text(info.upstream_cluster_raw.or(info.upstream_cluster), out)
            }
            Self::UpstreamTransportFailureReason => {
                details(info.upstream_transport_failure_reason, false, out)
            }
            Self::UpstreamRequestAttemptCount => {
                number(u64::from(info.upstream_attempt_count), out)
            }
            Self::UpstreamConnectionId => number(info.upstream_connection_id.unwrap_or(0), out),
            Self::ConnectionId => number(info.connection_id, out),
            Self::StreamId => text(info.stream_id, out),
            Self::RequestedServerName => text(info.requested_server_name, out),
            Self::FilterChainName => {
                text(info.filter_chain_name.filter(|name| !name.is_empty()), out)
            }
            Self::DownstreamTransportFailureReason => {
                details(info.downstream_transport_failure_reason, false, out)
            }
            Self::GrpcStatus(form) => grpc_status(info, *form, out),
            Self::AccessLogType => text(
                Some(if info.protocol.is_some() {
                    "DownstreamEnd"
                } else {
                    "TcpConnectionEnd"
                }),
                out,
            ),
        }
    }
}

fn text(value: Option<&str>, out: &mut Vec<u8>) -> Written {
    let Some(value) = value else {
        return Written::Nothing;
    };
    out.extend_from_slice(value.as_bytes());
    Written::Text
}

fn number(value: u64, out: &mut Vec<u8>) -> Written {
    // Writing to a vector cannot fail.
    let _ = write!(out, "{value}");
    Written::Number
}

/// A header's value, borrowed or not.
type Value<'a> = std::borrow::Cow<'a, str>;

fn request_header<'a>(info: &'a RequestInfo<'_>, name: &str) -> Option<Value<'a>> {
    let known = match name {
        ":method" => info.method,
        ":path" => info.path,
        ":authority" | "host" => info.authority,
        "x-envoy-original-path" => info.original_path,
        _ => None,
    };
    known
        .map(Value::Borrowed)
        .or_else(|| lookup(info.request_headers, name))
}

fn response_header<'a>(info: &'a RequestInfo<'_>, name: &str) -> Option<Value<'a>> {
    let found = lookup(info.response_headers, name);
    if found.is_none() && name == ":status" {
        return info
            .response_code
            .map(|code| Value::Owned(code.to_string()));
    }
    found
}

fn lookup<'a>(headers: &'a dyn HeaderLookup, name: &str) -> Option<Value<'a>> {
    headers.get(name)
}

/// Cut after so many bytes, at the end of a character.
fn cut(value: &str, length: Option<usize>) -> &str {
    let end = length.map_or(value.len(), |length| value.floor_char_boundary(length));
    value.get(..end).unwrap_or(value)
}

impl HeaderOp {
    fn write<'a>(&self, out: &mut Vec<u8>, get: impl Fn(&str) -> Option<Value<'a>>) -> Written {
        let value = get(&self.name).or_else(|| self.alternative.as_deref().and_then(&get));
        text(value.as_deref().map(|value| cut(value, self.length)), out)
    }
}

impl PathOp {
    fn write(&self, info: &RequestInfo<'_>, out: &mut Vec<u8>) -> Written {
        let original = || request_header(info, "x-envoy-original-path");
        let present = || request_header(info, ":path");
        let path = match self.which {
            WhichPath::Original => original(),
            WhichPath::Present => present(),
            WhichPath::OriginalOrPresent => original().or_else(present),
        };
        let path = path.as_deref().map(|path| {
            let path = if self.with_query {
                path
            } else {
                path.split('?').next().unwrap_or(path)
            };
            cut(path, self.length)
        });
        text(path, out)
    }
}

fn query<'a>(info: &RequestInfo<'a>) -> Option<&'a str> {
    let path = info.original_path.or(info.path)?;
    path.split_once('?').map(|(_, query)| query)
}

fn query_param<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query
        .split('&')
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .find(|(key, _)| *key == name)
        .map(|(_, v)| v)
}

/// Undoes percent-encoding; what is not encoded right stays as it is.
fn decoded(value: Option<&str>, out: &mut Vec<u8>) -> Written {
    let Some(value) = value else {
        return Written::Nothing;
    };
    let hex = |digit: Option<&u8>| {
        char::from(*digit?)
            .to_digit(16)
            .and_then(|value| u8::try_from(value).ok())
    };
    let mut rest = value.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let byte = (*first == b'%')
            .then(|| hex(after.first()).zip(hex(after.get(1))))
            .flatten();
        match byte {
            Some((high, low)) => {
                out.push(high << 4 | low);
                rest = after.get(2..).unwrap_or_default();
            }
            None => {
                out.push(*first);
                rest = after;
            }
        }
    }
    Written::Text
}

fn details(value: Option<&str>, allow_spaces: bool, out: &mut Vec<u8>) -> Written {
    let Some(value) = value else {
        return Written::Nothing;
    };
    if allow_spaces {
        return text(Some(value), out);
    }
    out.extend(value.bytes().map(|byte| {
        if byte.is_ascii_whitespace() {
            b'_'
        } else {
            byte
        }
    }));
    Written::Text
}

fn bytes(which: Bytes, info: &RequestInfo<'_>) -> u64 {
    match which {
        Bytes::Received => info.bytes_received,
        Bytes::Sent => info.bytes_sent,
        Bytes::RequestHeaders => info.request_header_bytes,
        Bytes::ResponseHeaders => info.response_header_bytes,
        Bytes::ResponseTrailers => info.response_trailer_bytes,
        Bytes::UpstreamWireSent => info.upstream_wire_bytes_sent,
        Bytes::UpstreamWireReceived => info.upstream_wire_bytes_received,
        Bytes::UpstreamHeaderSent => info.upstream_header_bytes_sent,
        Bytes::UpstreamHeaderReceived => info.upstream_header_bytes_received,
        Bytes::DownstreamWireSent => info.downstream_wire_bytes_sent,
        Bytes::DownstreamWireReceived => info.downstream_wire_bytes_received,
    }
}

impl Point {
    fn of(self, info: &RequestInfo<'_>) -> Option<Duration> {
        let timing = &info.timing;
        match self {
            Self::Start => Some(Duration::ZERO),
            Self::DownstreamRxEnd => timing.downstream_rx_last,
            Self::UpstreamConnectBegin => timing.upstream_connect_start,
            Self::UpstreamConnectEnd => timing.upstream_connect_end,
            Self::UpstreamTxBegin => timing.upstream_tx_first,
            Self::UpstreamTxEnd => timing.upstream_tx_last,
            Self::UpstreamRxBegin => timing.upstream_rx_first,
            Self::UpstreamRxEnd => timing.upstream_rx_last,
            Self::DownstreamTxBegin => timing.downstream_tx_first,
            Self::DownstreamTxEnd => timing.downstream_tx_last,
            Self::Complete => timing.complete,
            Self::Never => None,
        }
    }
}

fn duration(
    info: &RequestInfo<'_>,
    from: Point,
    to: Point,
    unit: Unit,
    out: &mut Vec<u8>,
) -> Written {
    let (Some(from), Some(to)) = (from.of(info), to.of(info)) else {
        return Written::Nothing;
    };
    let in_unit = |duration: Duration| match unit {
        Unit::Milliseconds => duration.as_millis(),
        Unit::Microseconds => duration.as_micros(),
        Unit::Nanoseconds => duration.as_nanos(),
    };
    let sign = if to < from { "-" } else { "" };
    let _ = write!(out, "{sign}{}", in_unit(to.abs_diff(from)));
    Written::Number
}

impl Who {
    fn of(self, info: &RequestInfo<'_>) -> Option<SocketAddr> {
        match self {
            Self::UpstreamHost => info.upstream_host,
            // The connection's other end: none while there is no connection.
            Self::UpstreamRemote => info.upstream_host.filter(|_| info.upstream_local.is_some()),
            Self::UpstreamLocal => info.upstream_local,
            Self::DownstreamRemote => info.downstream_remote.or(info.downstream_direct_remote),
            Self::DownstreamDirectRemote => {
                info.downstream_direct_remote.or(info.downstream_remote)
            }
            Self::DownstreamLocal => info.downstream_local,
        }
    }
}

fn address(address: Option<SocketAddr>, part: AddressPart, out: &mut Vec<u8>) -> Written {
    let Some(address) = address else {
        return Written::Nothing;
    };
    let written = match part {
        AddressPart::Port => return number(u64::from(address.port()), out),
        AddressPart::Whole => write!(out, "{address}"),
        AddressPart::Ip(bits) => {
            match bits.and_then(|bits| Some((masked(address.ip(), bits)?, bits))) {
                Some((ip, bits)) => write!(out, "{ip}/{bits}"),
                None => write!(out, "{}", address.ip()),
            }
        }
    };
    debug_assert!(written.is_ok(), "writing to a vector cannot fail");
    Written::Text
}

fn masked(ip: IpAddr, bits: u8) -> Option<IpAddr> {
    Some(match ip {
        IpAddr::V4(ip) => {
            let hidden = 32u32.checked_sub(u32::from(bits))?;
            IpAddr::V4(Ipv4Addr::from_bits(
                ip.to_bits() & u32::MAX.checked_shl(hidden).unwrap_or(0),
            ))
        }
        IpAddr::V6(ip) => {
            let hidden = 128u32.checked_sub(u32::from(bits))?;
            IpAddr::V6(Ipv6Addr::from_bits(
                ip.to_bits() & u128::MAX.checked_shl(hidden).unwrap_or(0),
            ))
        }
    })
}

fn host_name(info: &RequestInfo<'_>, with_port: bool, out: &mut Vec<u8>) -> Written {
    match info.upstream_host_name.filter(|name| !name.is_empty()) {
        Some(name) if with_port => text(Some(name), out),
        Some(name) => text(
            name.rsplit_once(':')
                .map_or(Some(name), |(host, _)| Some(host)),
            out,
        ),
        None => address(
            info.upstream_host,
            if with_port {
                AddressPart::Whole
            } else {
                AddressPart::Ip(None)
            },
            out,
        ),
    }
}

/// Codes of gRPC in both spellings.
const GRPC: [(&str, &str); 17] = [
    ("OK", "OK"),
    ("Canceled", "CANCELLED"),
    ("Unknown", "UNKNOWN"),
    ("InvalidArgument", "INVALID_ARGUMENT"),
    ("DeadlineExceeded", "DEADLINE_EXCEEDED"),
    ("NotFound", "NOT_FOUND"),
    ("AlreadyExists", "ALREADY_EXISTS"),
    ("PermissionDenied", "PERMISSION_DENIED"),
    ("ResourceExhausted", "RESOURCE_EXHAUSTED"),
    ("FailedPrecondition", "FAILED_PRECONDITION"),
    ("Aborted", "ABORTED"),
    ("OutOfRange", "OUT_OF_RANGE"),
    ("Unimplemented", "UNIMPLEMENTED"),
    ("Internal", "INTERNAL"),
    ("Unavailable", "UNAVAILABLE"),
    ("DataLoss", "DATA_LOSS"),
    ("Unauthenticated", "UNAUTHENTICATED"),
];

/// What an answer without a gRPC status means to gRPC
/// (<https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md>).
fn grpc_of_http(code: u16) -> u64 {
    match code {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}

fn grpc_status(info: &RequestInfo<'_>, form: GrpcStatusForm, out: &mut Vec<u8>) -> Written {
    let is_grpc = lookup(info.request_headers, "content-type")
        .is_some_and(|kind| kind.starts_with("application/grpc"));
    if !is_grpc {
        return Written::Nothing;
    }
    let status = info
        .response_trailers
        .get("grpc-status")
        .or_else(|| lookup(info.response_headers, "grpc-status"));
    let code = status
        .and_then(|status| status.parse::<u64>().ok())
        .or_else(|| info.response_code.map(grpc_of_http));
    let Some(code) = code else {
        return Written::Nothing;
    };
    let names = usize::try_from(code)
        .ok()
        .and_then(|code| GRPC.as_slice().get(code));
    match (form, names) {
        (GrpcStatusForm::Number, _) => number(code, out),
        (GrpcStatusForm::Camel, Some((camel, _))) => text(Some(camel), out),
        (GrpcStatusForm::Snake, Some((_, snake))) => text(Some(snake), out),
        (_, None) => {
            number(code, out);
            Written::Text
        }
    }
}
