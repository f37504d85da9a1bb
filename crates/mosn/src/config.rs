//! What compiling configuration needs: statistics, access logs, the process's options.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use api::envoy::config::core::v3::{
    Address, SocketAddress, TransportSocket, address, socket_address, transport_socket,
};
use api::envoy::extensions::transport_sockets::raw_buffer::v3::RawBuffer;
use base::FieldError;
use prost::Name;

use crate::manager::ClusterEntry;
use crate::route;

/// Process-wide settings from flags and bootstrap.
#[derive(Clone, Debug)]
pub struct Options {
    /// Number of worker threads.
    pub concurrency: usize,
    /// `node.id`.
    pub node_id: String,
    /// `node.cluster`.
    pub node_cluster: String,
    /// How long access logs may stay in memory (`--file-flush-interval-msec`).
    pub file_flush_interval: Duration,
    /// How long connections of a removed listener may live on (`--drain-time-s`, default 600 s).
    pub drain_time: Duration,
    /// How long a stopping process waits for its connections (`--parent-shutdown-time-s` has no part in it).
    pub shutdown_time: Duration,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            concurrency: 1,
            node_id: String::new(),
            node_cluster: String::new(),
            file_flush_interval: Duration::from_millis(10_000),
            drain_time: Duration::from_secs(600),
            shutdown_time: Duration::from_secs(15),
        }
    }
}

/// Passed down while Envoy's messages are compiled.
#[derive(Clone, Copy)]
pub struct CompileContext<'a> {
    /// Where names become counters.
    pub stats: &'a telemetry::stats::Registry,
    /// Open access-log files, shared by all who name the same path.
    pub access_logs: &'a telemetry::access_log::Sinks,
    /// Process-wide settings.
    pub options: &'a Options,
    /// The clusters that there are, warming ones too; `None`: any may come.
    pub clusters: Option<&'a BTreeMap<String, ClusterEntry>>,
}

impl CompileContext<'_> {
    /// Whether there is a cluster of this name.
    pub fn knows_cluster(&self, name: &str) -> bool {
        self.clusters
            .is_none_or(|clusters| clusters.contains_key(name))
    }
}

/// Where a connection manager or RPC proxy gets its routes.
#[derive(Clone)]
pub enum RouteSource {
    /// Written in the listener.
    Inline(Arc<route::Table>),
    /// By RDS, under this name.
    Rds(Arc<str>),
}

/// Whether a field of an Envoy message carries anything.
pub fn is_set<T: Default + PartialEq>(value: &T) -> bool {
    *value != T::default()
}

/// Returns an error that names the first of these fields that is set: they would change behaviour and are not implemented.
#[macro_export]
macro_rules! refuse_fields {
    ($message:expr; $($field:ident),+ $(,)?) => {
        $(if $crate::config::is_set(&$message.$field) {
            return Err(::base::FieldError::at(stringify!($field), "is not supported"));
        })+
    };
}

/// The configuration inside an `Any`, with its type checked.
pub fn unpack<M: prost::Message + Default>(
    any: &prost_types::Any,
    full_name: &str,
) -> Result<M, FieldError> {
    if type_name(any) != full_name {
        return Err(FieldError::at(
            "@type",
            format!("want {full_name}, have {}", type_name(any)),
        ));
    }
    M::decode(any.value.as_slice())
        .map_err(|e| FieldError::at("value", format!("does not decode as {full_name}: {e}")))
}

/// Checks that a transport socket is plain TCP. As in Envoy its type says what it is, its name nothing.
pub fn raw_buffer(socket: &TransportSocket) -> Result<(), FieldError> {
    match &socket.config_type {
        Some(transport_socket::ConfigType::TypedConfig(any)) => {
            unpack::<RawBuffer>(any, &RawBuffer::full_name())
                .map(|_| ())
                .map_err(|e| e.in_field("typed_config"))
        }
        None => Err(FieldError::at("typed_config", "is required")),
    }
}

/// The full message name in a type URL.
pub fn type_name(any: &prost_types::Any) -> &str {
    any.type_url.rsplit('/').next().unwrap_or_default()
}

/// A protobuf duration that must not be negative.
pub fn duration(value: &prost_types::Duration) -> Result<Duration, FieldError> {
    let secs = u64::try_from(value.seconds);
    let nanos = u32::try_from(value.nanos);
    match (secs, nanos) {
        (Ok(secs), Ok(nanos)) if nanos < 1_000_000_000 => Ok(Duration::new(secs, nanos)),
        _ => Err(FieldError::new("must not be negative")),
    }
}

/// An IP address and port; names and Unix sockets are refused.
pub fn socket_addr(address: &Address) -> Result<SocketAddr, FieldError> {
    match &address.address {
        Some(address::Address::SocketAddress(socket)) => {
            socket_address(socket).map_err(|e| e.in_field("socket_address"))
        }
        Some(_) => Err(FieldError::new("only socket_address is supported")),
        None => Err(FieldError::at("socket_address", "is required")),
    }
}

fn socket_address(socket: &SocketAddress) -> Result<SocketAddr, FieldError> {
    if socket.protocol != 0 {
        return Err(FieldError::at("protocol", "only TCP is supported"));
    }
    let ip = socket.address.parse::<IpAddr>().map_err(|_| {
        FieldError::at(
            "address",
            format!("{:?} is not an IP address", socket.address),
        )
    })?;
    Ok(SocketAddr::new(ip, port_value(socket)?))
}

/// The numeric port of a socket address.
pub fn port_value(socket: &SocketAddress) -> Result<u16, FieldError> {
    match &socket.port_specifier {
        Some(socket_address::PortSpecifier::PortValue(port)) => u16::try_from(*port)
            .map_err(|_| FieldError::at("port_value", format!("{port} is above 65535"))),
        Some(socket_address::PortSpecifier::NamedPort(_)) => {
            Err(FieldError::at("named_port", "is not supported"))
        }
        None => Err(FieldError::at("port_value", "is required")),
    }
}
