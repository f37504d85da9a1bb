//! The operators and how they are read. Names, parameters and complaints are those of Envoy's substitution formatter.

use super::time::{Clock, TimeFormat};
use super::{Command, FormatError};

/// One compiled operator.
#[derive(Debug)]
pub(crate) enum Op {
    /// A value that never changes: host name, environment.
    Constant(Box<str>),
    /// A value that this program never has.
    Absent,
    /// A number that is always zero here.
    Zero,
    Time(Clock, TimeFormat),
    RequestHeader(HeaderOp),
    ResponseHeader(HeaderOp),
    ResponseTrailer(HeaderOp),
    Path(PathOp),
    QueryParam(Box<str>),
    QueryParams {
        decoded: bool,
    },
    Protocol,
    UpstreamProtocol,
    ResponseCode,
    ResponseCodeDetails {
        allow_spaces: bool,
    },
    ConnectionTerminationDetails,
    ResponseFlags {
        long: bool,
    },
    RouteName,
    Bytes(Bytes),
    /// Milliseconds from the first point to the second.
    Duration(Point, Point, Unit),
    Address(Who, AddressPart),
    UpstreamHostName {
        with_port: bool,
    },
    UpstreamCluster {
        raw: bool,
    },
    UpstreamTransportFailureReason,
    UpstreamRequestAttemptCount,
    UpstreamConnectionId,
    ConnectionId,
    StreamId,
    RequestedServerName,
    FilterChainName,
    DownstreamTransportFailureReason,
    GrpcStatus(GrpcStatusForm),
    AccessLogType,
}

/// A header with an alternative, cut to a length.
#[derive(Debug)]
pub(crate) struct HeaderOp {
    pub(super) name: Box<str>,
    pub(super) alternative: Option<Box<str>>,
    pub(super) length: Option<usize>,
}

/// `PATH(query:which)`.
#[derive(Debug)]
pub(crate) struct PathOp {
    pub(super) with_query: bool,
    pub(super) which: WhichPath,
    pub(super) length: Option<usize>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum WhichPath {
    Original,
    Present,
    OriginalOrPresent,
}

/// The numbers of bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Bytes {
    Received,
    Sent,
    RequestHeaders,
    ResponseHeaders,
    ResponseTrailers,
    UpstreamWireSent,
    UpstreamWireReceived,
    UpstreamHeaderSent,
    UpstreamHeaderReceived,
    DownstreamWireSent,
    DownstreamWireReceived,
}

/// Points in time of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Point {
    Start,
    DownstreamRxEnd,
    UpstreamConnectBegin,
    UpstreamConnectEnd,
    UpstreamTxBegin,
    UpstreamTxEnd,
    UpstreamRxBegin,
    UpstreamRxEnd,
    DownstreamTxBegin,
    DownstreamTxEnd,
    Complete,
    /// A point that nobody sets.
    Never,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Unit {
    Milliseconds,
    Microseconds,
    Nanoseconds,
}

/// Whose address.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Who {
    UpstreamHost,
    UpstreamRemote,
    UpstreamLocal,
    DownstreamRemote,
    DownstreamDirectRemote,
    DownstreamLocal,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum AddressPart {
    Whole,
    /// Without port; masked to this many bits, in CIDR form, if given.
    Ip(Option<u8>),
    Port,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum GrpcStatusForm {
    Camel,
    Snake,
    Number,
}

/// Accepted, because Envoy knows them, and never present here.
const ABSENT: [&str; 66] = [
    "TRACE_ID",
    "SPAN_ID",
    "VIRTUAL_CLUSTER_NAME",
    "LOCAL_REPLY_BODY",
    "CUSTOM_FLAGS",
    "ROUNDTRIP_DURATION",
    "DOWNSTREAM_HANDSHAKE_DURATION",
    "UPSTREAM_CONNECTION_POOL_READY_DURATION",
    "UPSTREAM_CONNECTION_IDS_ATTEMPTED",
    "UPSTREAM_DETECTED_CLOSE_TYPE",
    "DOWNSTREAM_DETECTED_CLOSE_TYPE",
    "UPSTREAM_LOCAL_CLOSE_REASON",
    "DOWNSTREAM_LOCAL_CLOSE_REASON",
    "UPSTREAM_REMOTE_ADDRESS_ENDPOINT_ID",
    "DOWNSTREAM_LOCAL_ADDRESS_ENDPOINT_ID",
    "DOWNSTREAM_DIRECT_LOCAL_ADDRESS_ENDPOINT_ID",
    "UPSTREAM_SERVER_NAME",
    "UPSTREAM_PEER_SUBJECT",
    "UPSTREAM_PEER_ISSUER",
    "UPSTREAM_PEER_CERT",
    "UPSTREAM_PEER_URI_SAN",
    "UPSTREAM_PEER_DNS_SAN",
    "UPSTREAM_PEER_IP_SAN",
    "UPSTREAM_LOCAL_URI_SAN",
    "UPSTREAM_LOCAL_DNS_SAN",
    "UPSTREAM_LOCAL_IP_SAN",
    "UPSTREAM_TLS_SESSION_ID",
    "UPSTREAM_TLS_CIPHER",
    "UPSTREAM_TLS_VERSION",
    "UPSTREAM_TLS_GROUP",
    "DOWNSTREAM_PEER_URI_SAN",
    "DOWNSTREAM_PEER_DNS_SAN",
    "DOWNSTREAM_PEER_IP_SAN",
    "DOWNSTREAM_PEER_EMAIL_SAN",
    "DOWNSTREAM_PEER_OTHERNAME_SAN",
    "DOWNSTREAM_LOCAL_URI_SAN",
    "DOWNSTREAM_LOCAL_DNS_SAN",
    "DOWNSTREAM_LOCAL_IP_SAN",
    "DOWNSTREAM_LOCAL_EMAIL_SAN",
    "DOWNSTREAM_LOCAL_OTHERNAME_SAN",
    "DOWNSTREAM_PEER_SUBJECT",
    "DOWNSTREAM_LOCAL_SUBJECT",
    "DOWNSTREAM_PEER_ISSUER",
    "DOWNSTREAM_PEER_ISSUER_FINGERPRINT_256",
    "DOWNSTREAM_PEER_ISSUER_SERIAL",
    "DOWNSTREAM_PEER_SERIAL",
    "DOWNSTREAM_PEER_CHAIN_SERIALS",
    "DOWNSTREAM_PEER_FINGERPRINT_1",
    "DOWNSTREAM_PEER_FINGERPRINT_256",
    "DOWNSTREAM_PEER_CHAIN_FINGERPRINTS_1",
    "DOWNSTREAM_PEER_CHAIN_FINGERPRINTS_256",
    "DOWNSTREAM_PEER_CERT",
    "DOWNSTREAM_TLS_SESSION_ID",
    "DOWNSTREAM_TLS_CIPHER",
    "DOWNSTREAM_TLS_VERSION",
    "DOWNSTREAM_TLS_GROUP",
    "DOWNSTREAM_CX_RTT",
    "TLS_JA3_FINGERPRINT",
    "TLS_JA4_FINGERPRINT",
    "UPSTREAM_HOSTS_ATTEMPTED",
    "UPSTREAM_HOSTS_ATTEMPTED_WITHOUT_PORT",
    "UPSTREAM_HOST_NAMES_ATTEMPTED",
    "UPSTREAM_HOST_NAMES_ATTEMPTED_WITHOUT_PORT",
    "ROUTE_RESOLUTION_COUNT",
    "ROUTE_RESOLUTION_TIME_US",
    "LISTENER_NAME",
];

/// The same for operators that may have parameters: whether they must, and whether they may have a length.
const ABSENT_WITH_PARAMETERS: [(&str, bool); 11] = [
    ("DYNAMIC_METADATA", true),
    ("CLUSTER_METADATA", true),
    ("UPSTREAM_METADATA", true),
    ("METADATA", true),
    ("FILTER_STATE", true),
    ("UPSTREAM_FILTER_STATE", true),
    ("DOWNSTREAM_PEER_CERT_V_START", false),
    ("DOWNSTREAM_PEER_CERT_V_END", false),
    ("UPSTREAM_PEER_CERT_V_START", false),
    ("UPSTREAM_PEER_CERT_V_END", false),
    ("COALESCE", true),
];

fn refuse<T>(message: String) -> Result<T, FormatError> {
    Err(FormatError(message))
}

impl Op {
    pub(super) fn parse(command: &Command<'_>) -> Result<Self, FormatError> {
        if let Some(op) = with_parameters(command)? {
            return Ok(op);
        }
        let Some(op) = plain(command.name) else {
            return refuse(format!(
                "Not supported field in StreamInfo: {}",
                command.name
            ));
        };
        if command.parameters.is_some() || command.length.is_some() {
            return refuse(format!(
                "{} does not take any parameters or length",
                command.name
            ));
        }
        Ok(op)
    }
}

/// The operators that take parameters, required or not.
fn with_parameters(command: &Command<'_>) -> Result<Option<Op>, FormatError> {
    let Command {
        name,
        parameters,
        length,
    } = *command;
    let required = || match parameters {
        Some(parameters) if !parameters.is_empty() => Ok(parameters),
        _ => refuse(format!("{name} requires parameters")),
    };
    let no_length = || match length {
        Some(_) => refuse(format!("{name} does not allow length to be specified.")),
        None => Ok(()),
    };
    let given = parameters.unwrap_or_default();
    Ok(Some(match name {
        "REQ" | "REQUEST_HEADER" => Op::RequestHeader(header(required()?, length)?),
        "RESP" | "RESPONSE_HEADER" => Op::ResponseHeader(header(required()?, length)?),
        "TRAILER" | "RESPONSE_TRAILER" => Op::ResponseTrailer(header(required()?, length)?),
        "REQUEST_TRAILER" => {
            header(required()?, length)?;
            Op::Absent
        }
        "START_TIME" | "START_TIME_LOCAL" | "EMIT_TIME" | "EMIT_TIME_LOCAL" => {
            no_length()?;
            let clock = match name {
                "START_TIME" => Clock::Start,
                "START_TIME_LOCAL" => Clock::StartLocal,
                "EMIT_TIME" => Clock::Emit,
                _ => Clock::EmitLocal,
            };
            Op::Time(clock, TimeFormat::parse(given)?)
        }
        "COMMON_DURATION" => {
            let parameters = required()?;
            no_length()?;
            common_duration(parameters)?
        }
        "PATH" => Op::Path(path(given, length)?),
        "QUERY_PARAM" => Op::QueryParam(required()?.into()),
        "QUERY_PARAMS" => match given {
            "" | "ORIG" => Op::QueryParams { decoded: false },
            "DECODED" => Op::QueryParams { decoded: true },
            other => {
                return refuse(format!(
                    "Invalid QUERY_PARAMS option: '{other}', only 'ORIG'/'DECODED' are allowed"
                ));
            }
        },
        "ENVIRONMENT" => {
            let name = required()?;
            let mut value = std::env::var(name).ok();
            if let (Some(value), Some(length)) = (&mut value, length) {
                value.truncate(value.floor_char_boundary(length));
            }
            value.map_or(Op::Absent, |value| Op::Constant(value.into()))
        }
        "RESPONSE_CODE_DETAILS" => {
            no_length()?;
            Op::ResponseCodeDetails {
                allow_spaces: given == "ALLOW_WHITESPACES",
            }
        }
        "GRPC_STATUS" => {
            no_length()?;
            Op::GrpcStatus(match given {
                "" | "CAMEL_STRING" => GrpcStatusForm::Camel,
                "SNAKE_STRING" => GrpcStatusForm::Snake,
                "NUMBER" => GrpcStatusForm::Number,
                other => {
                    return refuse(format!(
                        "GrpcStatusFormatter only supports CAMEL_STRING, SNAKE_STRING or NUMBER. Got: {other}"
                    ));
                }
            })
        }
        _ => {
            if let Some(who) = name.strip_suffix("_ADDRESS_WITHOUT_PORT").and_then(who) {
                no_length()?;
                // What is not a number of bits, or too many, leaves the address whole, as in Envoy.
                return Ok(Some(Op::Address(who, AddressPart::Ip(given.parse().ok()))));
            }
            if let Some((_, must)) = ABSENT_WITH_PARAMETERS
                .iter()
                .find(|(known, _)| *known == name)
            {
                if *must {
                    required()?;
                }
                return Ok(Some(Op::Absent));
            }
            return Ok(None);
        }
    }))
}

/// The operators without parameters.
fn plain(name: &str) -> Option<Op> {
    if ABSENT.contains(&name) {
        return Some(Op::Absent);
    }
    if let Some(who) = name.strip_suffix("_ADDRESS").and_then(who) {
        return Some(Op::Address(who, AddressPart::Whole));
    }
    if let Some(who) = name.strip_suffix("_PORT").and_then(who) {
        return Some(Op::Address(who, AddressPart::Port));
    }
    let since_start = |point| Op::Duration(Point::Start, point, Unit::Milliseconds);
    Some(match name {
        "PROTOCOL" => Op::Protocol,
        "UPSTREAM_PROTOCOL" => Op::UpstreamProtocol,
        "RESPONSE_CODE" => Op::ResponseCode,
        "CONNECTION_TERMINATION_DETAILS" => Op::ConnectionTerminationDetails,
        "RESPONSE_FLAGS" => Op::ResponseFlags { long: false },
        "RESPONSE_FLAGS_LONG" => Op::ResponseFlags { long: true },
        "ROUTE_NAME" => Op::RouteName,
        "BYTES_RECEIVED" => Op::Bytes(Bytes::Received),
        "BYTES_SENT" => Op::Bytes(Bytes::Sent),
        "REQUEST_HEADERS_BYTES" => Op::Bytes(Bytes::RequestHeaders),
        "RESPONSE_HEADERS_BYTES" => Op::Bytes(Bytes::ResponseHeaders),
        "RESPONSE_TRAILERS_BYTES" => Op::Bytes(Bytes::ResponseTrailers),
        "UPSTREAM_WIRE_BYTES_SENT" => Op::Bytes(Bytes::UpstreamWireSent),
        "UPSTREAM_WIRE_BYTES_RECEIVED" => Op::Bytes(Bytes::UpstreamWireReceived),
        "UPSTREAM_HEADER_BYTES_SENT" | "UPSTREAM_DECOMPRESSED_HEADER_BYTES_SENT" => {
            Op::Bytes(Bytes::UpstreamHeaderSent)
        }
        "UPSTREAM_HEADER_BYTES_RECEIVED" | "UPSTREAM_DECOMPRESSED_HEADER_BYTES_RECEIVED" => {
            Op::Bytes(Bytes::UpstreamHeaderReceived)
        }
        "DOWNSTREAM_WIRE_BYTES_SENT" => Op::Bytes(Bytes::DownstreamWireSent),
        "DOWNSTREAM_WIRE_BYTES_RECEIVED" => Op::Bytes(Bytes::DownstreamWireReceived),
        "DOWNSTREAM_HEADER_BYTES_SENT" | "DOWNSTREAM_DECOMPRESSED_HEADER_BYTES_SENT" => {
            Op::Bytes(Bytes::ResponseHeaders)
        }
        "DOWNSTREAM_HEADER_BYTES_RECEIVED" | "DOWNSTREAM_DECOMPRESSED_HEADER_BYTES_RECEIVED" => {
            Op::Bytes(Bytes::RequestHeaders)
        }
        "BYTES_RETRANSMITTED" | "PACKETS_RETRANSMITTED" => Op::Zero,
        "DURATION" => since_start(Point::Complete),
        "REQUEST_DURATION" => since_start(Point::DownstreamRxEnd),
        "REQUEST_TX_DURATION" => since_start(Point::UpstreamTxEnd),
        "RESPONSE_DURATION" => since_start(Point::UpstreamRxBegin),
        "RESPONSE_TX_DURATION" => Op::Duration(
            Point::UpstreamRxBegin,
            Point::DownstreamTxEnd,
            Unit::Milliseconds,
        ),
        "UPSTREAM_HOST" => Op::Address(Who::UpstreamHost, AddressPart::Whole),
        "UPSTREAM_HOST_NAME" => Op::UpstreamHostName { with_port: true },
        "UPSTREAM_HOST_NAME_WITHOUT_PORT" => Op::UpstreamHostName { with_port: false },
        "UPSTREAM_CLUSTER" => Op::UpstreamCluster { raw: false },
        "UPSTREAM_CLUSTER_RAW" => Op::UpstreamCluster { raw: true },
        "UPSTREAM_TRANSPORT_FAILURE_REASON" => Op::UpstreamTransportFailureReason,
        "UPSTREAM_REQUEST_ATTEMPT_COUNT" => Op::UpstreamRequestAttemptCount,
        "UPSTREAM_CONNECTION_ID" => Op::UpstreamConnectionId,
        "CONNECTION_ID" => Op::ConnectionId,
        "STREAM_ID" | "UNIQUE_ID" => Op::StreamId,
        "REQUESTED_SERVER_NAME" => Op::RequestedServerName,
        "FILTER_CHAIN_NAME" => Op::FilterChainName,
        "DOWNSTREAM_TRANSPORT_FAILURE_REASON" => Op::DownstreamTransportFailureReason,
        "GRPC_STATUS_NUMBER" => Op::GrpcStatus(GrpcStatusForm::Number),
        "ACCESS_LOG_TYPE" => Op::AccessLogType,
        "HOSTNAME" => hostname(),
        _ => return None,
    })
}

/// The machine's name as the kernel has it.
fn hostname() -> Op {
    match std::fs::read_to_string("/proc/sys/kernel/hostname") {
        Ok(name) => Op::Constant(name.trim_end().into()),
        Err(_) => Op::Absent,
    }
}

fn who(prefix: &str) -> Option<Who> {
    Some(match prefix {
        "UPSTREAM_REMOTE" => Who::UpstreamRemote,
        "UPSTREAM_LOCAL" => Who::UpstreamLocal,
        "DOWNSTREAM_REMOTE" => Who::DownstreamRemote,
        "DOWNSTREAM_DIRECT_REMOTE" => Who::DownstreamDirectRemote,
        // The direct one differs only where a listener filter restores an address.
        "DOWNSTREAM_LOCAL" | "DOWNSTREAM_DIRECT_LOCAL" => Who::DownstreamLocal,
        _ => return None,
    })
}

fn header(parameters: &str, length: Option<usize>) -> Result<HeaderOp, FormatError> {
    let mut names = parameters.split('?');
    let name = names.next().unwrap_or_default();
    let alternative = names.next();
    if names.next().is_some() {
        return refuse(format!(
            "More than 1 alternative header specified in token: {parameters}"
        ));
    }
    Ok(HeaderOp {
        name: name.to_ascii_lowercase().into(),
        alternative: alternative
            .filter(|name| !name.is_empty())
            .map(|name| name.to_ascii_lowercase().into()),
        length,
    })
}

fn path(parameters: &str, length: Option<usize>) -> Result<PathOp, FormatError> {
    let mut options = parameters.split(':');
    let with_query = match options.next().unwrap_or_default() {
        "" | "WQ" => true,
        "NQ" => false,
        other => {
            return refuse(format!(
                "Invalid PATH option: '{other}', only 'WQ'/'NQ' are allowed"
            ));
        }
    };
    let which = match options.next().unwrap_or_default() {
        "" | "ORIG_OR_PATH" => WhichPath::OriginalOrPresent,
        "ORIG" => WhichPath::Original,
        "PATH" => WhichPath::Present,
        other => {
            return refuse(format!(
                "Invalid PATH option: '{other}', only 'ORIG'/'PATH'/'ORIG_OR_PATH' are allowed"
            ));
        }
    };
    Ok(PathOp {
        with_query,
        which,
        length,
    })
}

fn common_duration(parameters: &str) -> Result<Op, FormatError> {
    let parts: Vec<_> = parameters.split(':').collect();
    let [from, to, unit] = parts.as_slice() else {
        return refuse(format!(
            "Invalid common duration configuration: {parameters}."
        ));
    };
    let unit = match *unit {
        "ms" => Unit::Milliseconds,
        "us" => Unit::Microseconds,
        "ns" => Unit::Nanoseconds,
        other => return refuse(format!("Invalid common duration precision: {other}.")),
    };
    Ok(Op::Duration(point(from), point(to), unit))
}

fn point(name: &str) -> Point {
    match name {
        "DS_RX_BEG" | "DS_CX_BEG" => Point::Start,
        "DS_RX_END" => Point::DownstreamRxEnd,
        "US_CX_BEG" => Point::UpstreamConnectBegin,
        "US_CX_END" => Point::UpstreamConnectEnd,
        "US_TX_BEG" => Point::UpstreamTxBegin,
        "US_TX_END" => Point::UpstreamTxEnd,
        "US_RX_BEG" => Point::UpstreamRxBegin,
        "US_RX_END" => Point::UpstreamRxEnd,
        "DS_TX_BEG" => Point::DownstreamTxBegin,
        "DS_TX_END" => Point::DownstreamTxEnd,
        "DS_CX_END" => Point::Complete,
        // Envoy takes any other name as a point that a filter may set.
        _ => Point::Never,
    }
}
