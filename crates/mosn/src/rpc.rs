//! The RPC proxy (`mosn.filters.network.rpc_proxy`): one engine for every protocol whose calls and
//! answers carry an id.
//!
//! A call is read from its downstream connection, routed in the words of an HTTP request, copied once
//! into the outbox of an upstream connection under an id of that connection, and its answer is copied
//! once into the outbox of the downstream connection under the caller's id. Everything that was
//! appended in one turn of the event loop is written in one system call.

mod bolt;
mod call;
mod dispatch;
mod downstream;
mod dubbo;
mod headers;
mod inbox;
mod log;
mod outbox;
mod protocol;
mod refusal;
mod retry;
mod slab;
mod stats;
pub mod upstream;
mod view;

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use api::any;
use api::envoy::config::route::v3::RouteConfiguration;
use api::envoy::extensions::filters::http::fault::v3::HttpFault;
use api::envoy::extensions::filters::http::router::v3::Router;
use api::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpFilter, http_filter::ConfigType,
};
use api::mosn::extensions::filters::network::rpc_proxy::v1::RpcProxy;
use api::mosn::extensions::filters::network::rpc_proxy::v1::rpc_proxy::{
    Protocol as ProtocolName, RouteSpecifier,
};
use base::FieldError;
use telemetry::access_log::AccessLog;
use tokio::net::TcpStream;
use wire::frame::Limits;

use crate::config::{self, CompileContext, RouteSource};
use crate::listener::{Downstream, Protocol};
use crate::worker::Worker;
use crate::{fault, route};
use call::Micros;
use stats::Stats;

/// How long a connection may take to show its protocol.
const DETECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Bytes that tell every protocol.
const DETECT_BYTES: usize = 8;

/// A compiled RPC proxy.
pub struct Config {
    routes: RouteSource,
    bolt: bool,
    dubbo: bool,
    limits: Limits,
    idle_timeout: Option<Duration>,
    request_timeout: Option<Duration>,
    drain_timeout: Duration,
    max_calls: u32,
    access_log: AccessLog,
    fault: Option<fault::Config>,
    fault_stats: fault::Stats,
    stats: Stats,
}

impl Config {
    /// Compiles the filter's configuration; every error has the field's path.
    pub fn compile(proxy: &RpcProxy, ctx: &CompileContext) -> Result<Config, FieldError> {
        if proxy.stat_prefix.is_empty() {
            return Err(FieldError::at("stat_prefix", "is required"));
        }
        let routes = match &proxy.route_specifier {
            Some(RouteSpecifier::RouteConfig(routes)) => {
                RouteSource::Inline(compile_routes(routes, ctx)?)
            }
            Some(RouteSpecifier::Rds(rds)) if rds.route_config_name.is_empty() => {
                return Err(FieldError::at("rds.route_config_name", "is required"));
            }
            Some(RouteSpecifier::Rds(rds)) => {
                RouteSource::Rds(rds.route_config_name.as_str().into())
            }
            None => {
                return Err(FieldError::at(
                    "route_config",
                    "route_config or rds is required",
                ));
            }
        };
        let (mut bolt, mut dubbo) = (proxy.protocols.is_empty(), proxy.protocols.is_empty());
        for (index, protocol) in proxy.protocols.iter().enumerate() {
            match ProtocolName::try_from(*protocol) {
                Ok(ProtocolName::Auto) => (bolt, dubbo) = (true, true),
                Ok(ProtocolName::Bolt) => bolt = true,
                Ok(ProtocolName::Dubbo) => dubbo = true,
                Err(_) => {
                    let error = FieldError::new(format!("{protocol} is unknown"));
                    return Err(error.in_index(index).in_field("protocols"));
                }
            }
        }
        let defaults = Limits::default();
        let bytes = |field: &str, value: Option<u32>, default: usize| match value {
            Some(0) => Err(FieldError::at(field, "must be at least 1")),
            Some(bytes) => Ok(bytes as usize),
            None => Ok(default),
        };
        let time = |field: &str, value: &Option<prost_types::Duration>, default: Duration| {
            let time = value.as_ref().map(config::duration).transpose();
            time.map_err(|error| error.in_field(field))
                .map(|time| time.unwrap_or(default))
        };
        Ok(Config {
            routes,
            bolt,
            dubbo,
            limits: Limits {
                frame_bytes: bytes(
                    "max_frame_bytes",
                    proxy.max_frame_bytes,
                    defaults.frame_bytes,
                )?,
                header_bytes: bytes(
                    "max_header_bytes",
                    proxy.max_header_bytes,
                    defaults.header_bytes,
                )?,
            },
            idle_timeout: Some(time(
                "idle_timeout",
                &proxy.idle_timeout,
                Duration::from_secs(3600),
            )?)
            .filter(|time| !time.is_zero()),
            request_timeout: Some(time(
                "request_timeout",
                &proxy.request_timeout,
                Duration::from_secs(15),
            )?)
            .filter(|time| !time.is_zero()),
            drain_timeout: time(
                "drain_timeout",
                &proxy.drain_timeout,
                Duration::from_secs(5),
            )?,
            max_calls: proxy.max_concurrent_calls.unwrap_or(65_536),
            access_log: AccessLog::compile(&proxy.access_log, ctx.access_logs)
                .map_err(|error| error.in_field("access_log"))?,
            fault: compile_filters(&proxy.rpc_filters)?,
            fault_stats: fault::Stats::new(ctx.stats, &proxy.stat_prefix),
            stats: Stats::new(ctx.stats, &proxy.stat_prefix),
        })
    }

    /// The name of the route configuration that comes by RDS.
    pub fn rds_name(&self) -> Option<&str> {
        match &self.routes {
            RouteSource::Rds(name) => Some(name),
            RouteSource::Inline(_) => None,
        }
    }
}

fn compile_routes(
    routes: &RouteConfiguration,
    ctx: &CompileContext,
) -> Result<Arc<route::Table>, FieldError> {
    route::Table::compile_inline(routes, ctx)
        .map(Arc::new)
        .map_err(|error| error.in_field("route_config"))
}

/// The filters before the router, of which fault injection is the only one.
fn compile_filters(filters: &[HttpFilter]) -> Result<Option<fault::Config>, FieldError> {
    let mut fault = None;
    for (index, filter) in filters.iter().enumerate() {
        let compiled = compile_filter(filter, index + 1 == filters.len());
        let compiled = compiled.map_err(|error| error.in_index(index).in_field("rpc_filters"))?;
        fault = compiled.or(fault);
    }
    Ok(fault)
}

fn compile_filter(filter: &HttpFilter, last: bool) -> Result<Option<fault::Config>, FieldError> {
    let Some(ConfigType::TypedConfig(config)) = &filter.config_type else {
        return Err(FieldError::at("typed_config", "is required"));
    };
    let in_config = |error: FieldError| error.in_field("typed_config");
    if any::is::<Router>(config) {
        if !last {
            return Err(FieldError::new("the router must be the last filter"));
        }
        return Ok(None);
    }
    if any::is::<HttpFault>(config) {
        let config: HttpFault = any::unpack(config).map_err(in_config)?;
        return fault::Config::compile(&config).map(Some).map_err(in_config);
    }
    let error = format!("filter {} is not supported", any::type_name(config));
    Err(in_config(FieldError::at("@type", error)))
}

/// Microseconds since the worker started.
fn now(worker: &Worker) -> Micros {
    upstream::micros(worker.started().elapsed())
}

/// Counts an open connection.
struct OpenConnection(Arc<Config>);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.stats.downstream_cx_active.dec();
    }
}

/// A connection whose protocol is not known yet.
struct Accepted {
    conn: Downstream,
    config: Arc<Config>,
    worker: Rc<Worker>,
    /// Bytes that were read to recognise the protocol.
    initial: Vec<u8>,
    open: OpenConnection,
}

/// Serves one downstream connection.
///
/// The arguments go to the heap before the future begins: a future keeps its arguments to its end, and
/// this one lives as long as an idle connection.
pub fn serve(
    conn: Downstream,
    config: Arc<Config>,
    worker: Rc<Worker>,
) -> impl Future<Output = ()> {
    config.stats.downstream_cx_total.inc();
    config.stats.downstream_cx_active.inc();
    let accepted = Box::new(Accepted {
        conn,
        open: OpenConnection(Arc::clone(&config)),
        config,
        worker,
        initial: Vec::new(),
    });
    async move {
        // Boxed: what recognition needs is not part of a connection that is served.
        let Some((accepted, protocol)) = Box::pin(recognise(accepted)).await else {
            return;
        };
        match protocol {
            Protocol::Dubbo => downstream::serve::<dubbo::Dubbo>(*accepted).await,
            _ => downstream::serve::<bolt::Bolt>(*accepted).await,
        }
    }
}

/// Recognises the protocol; `None` ends the connection.
async fn recognise(mut accepted: Box<Accepted>) -> Option<(Box<Accepted>, Protocol)> {
    let protocol = match accepted.conn.detected {
        Some(protocol) => Some(protocol),
        None => {
            let detecting = detect(&accepted.conn.stream, &mut accepted.initial);
            // Closed or silent before its first frame: nothing was asked of us.
            let detected = tokio::time::timeout(DETECT_TIMEOUT, detecting).await;
            detected.ok()?.ok()?
        }
    };
    let config = &accepted.config;
    match protocol {
        Some(Protocol::Bolt) if config.bolt => Some((accepted, Protocol::Bolt)),
        Some(Protocol::Dubbo) if config.dubbo => Some((accepted, Protocol::Dubbo)),
        other => {
            config.stats.downstream_cx_protocol_error.inc();
            tracing::info!(remote = %accepted.conn.remote, protocol = ?other, first_bytes = ?accepted.initial, "closing a connection whose protocol is not spoken here");
            None
        }
    }
}

/// Reads until the first bytes tell the protocol; `None` when they are none of ours.
async fn detect(stream: &TcpStream, bytes: &mut Vec<u8>) -> std::io::Result<Option<Protocol>> {
    bytes.reserve_exact(DETECT_BYTES);
    loop {
        stream.readable().await?;
        match stream.try_read_buf(&mut bytes_limit(bytes)) {
            Ok(0) => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        }
        match (wire::bolt::detect(bytes), wire::dubbo::detect(bytes)) {
            (Some(true), _) => return Ok(Some(Protocol::Bolt)),
            (_, Some(true)) => return Ok(Some(Protocol::Dubbo)),
            (Some(false), Some(false)) => return Ok(None),
            _ => {}
        }
    }
}

fn bytes_limit(bytes: &mut Vec<u8>) -> bytes::buf::Limit<&mut Vec<u8>> {
    let room = DETECT_BYTES.saturating_sub(bytes.len());
    bytes::BufMut::limit(bytes, room)
}
