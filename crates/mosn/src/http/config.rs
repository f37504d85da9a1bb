//! `envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager`, compiled.

#![allow(
    deprecated,
    reason = "a deprecated field that is set must be refused, not overlooked"
)]

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use api::envoy::config::core::v3::{
    HttpProtocolOptions, http_protocol_options::HeadersWithUnderscoresAction,
};
use api::envoy::extensions::filters::http::fault::v3::HttpFault;
use api::envoy::extensions::filters::http::router::v3::Router;
use api::envoy::extensions::filters::network::http_connection_manager::v3 as proto;
use api::google::protobuf::Any;
use base::FieldError;
use proto::HttpConnectionManager;
use proto::http_connection_manager as hcm;
use proto::http_connection_manager::{
    CodecType, ForwardClientCertDetails, PathWithEscapedSlashesAction, RouteSpecifier,
    ServerHeaderTransformation,
};
use telemetry::access_log::AccessLog;
use wire::http1::Limits;

use super::stats::Stats;
use crate::cluster::config::ads_fetch_timeout;
use crate::config::{CompileContext, RouteSource, duration, type_name};
use crate::{fault, refuse_fields, route};

/// What to do with header names that contain an underscore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Underscores {
    Allow,
    Reject,
    Drop,
}

/// What to do with `%2F` and `%5C` in a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EscapedSlashes {
    Keep,
    Reject,
    Redirect,
    Forward,
}

/// Which port is taken off the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StripPort {
    Never,
    /// That of the listener.
    Matching,
    Any,
}

/// What becomes of the upstream's `server` header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ServerHeader {
    Overwrite,
    AppendIfAbsent,
    PassThrough,
}

/// How a path is made canonical before routes see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PathOptions {
    pub(super) normalize: bool,
    pub(super) merge_slashes: bool,
    pub(super) escaped_slashes: EscapedSlashes,
}

/// Time limits; `None` is no limit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timeouts {
    /// A connection without a request: 1 h by default.
    pub(super) idle: Option<Duration>,
    pub(super) max_connection: Option<Duration>,
    pub(super) max_stream: Option<Duration>,
    /// A request on which nothing moves: 5 min by default.
    pub(super) stream_idle: Option<Duration>,
    pub(super) request: Option<Duration>,
    pub(super) request_headers: Option<Duration>,
    /// From the first `connection: close` of an old connection to its end: 5 s by default.
    pub(super) drain: Duration,
    /// How long the peer may take to close after an error: 1 s by default.
    pub(super) delayed_close: Option<Duration>,
}

/// An address range whose clients count as internal.
#[derive(Clone, Copy, Debug)]
struct Cidr {
    address: u128,
    mask: u128,
}

/// A compiled connection manager.
pub struct Config {
    pub(super) routes: RouteSource,
    pub(super) stats: Stats,
    pub(super) limits: Limits,
    pub(super) codec_auto: bool,
    pub(super) enable_trailers: bool,
    pub(super) default_host: Box<[u8]>,
    pub(super) server_name: Box<[u8]>,
    pub(super) server_header: ServerHeader,
    pub(super) timeouts: Timeouts,
    pub(super) max_requests_per_connection: u32,
    pub(super) underscores: Underscores,
    pub(super) path: PathOptions,
    pub(super) strip_port: StripPort,
    pub(super) strip_trailing_dot: bool,
    pub(super) use_remote_address: bool,
    pub(super) trusted_hops: usize,
    pub(super) skip_xff_append: bool,
    /// Stands for a client on the loopback in `x-forwarded-for`, as in Envoy.
    pub(super) local_address: IpAddr,
    internal: Vec<Cidr>,
    pub(super) via: Box<[u8]>,
    pub(super) generate_request_id: bool,
    pub(super) preserve_external_request_id: bool,
    pub(super) request_id_in_response: bool,
    pub(super) keep_client_cert_header: bool,
    pub(super) proxy_100_continue: bool,
    upgrades: Vec<(Box<str>, bool)>,
    pub(super) access_log: AccessLog,
    pub(super) fault: Option<fault::Config>,
    pub(super) fault_stats: Option<fault::Stats>,
    pub(super) suppress_envoy_headers: bool,
    pub(super) respect_expected_timeout: bool,
}

impl Config {
    /// Compiles a connection manager; every error has the field's path.
    pub fn compile(
        config: &HttpConnectionManager,
        ctx: &CompileContext,
    ) -> Result<Config, FieldError> {
        refuse(config)?;
        if config.stat_prefix.is_empty() {
            return Err(FieldError::at("stat_prefix", "is required"));
        }
        let (filters_fault, router) = filters(&config.http_filters)?;
        let common = config.common_http_protocol_options.unwrap_or_default();
        let http1 = config.http_protocol_options.clone().unwrap_or_default();
        let limits = Limits {
            head_bytes: match config.max_request_headers_kb.unwrap_or(60) {
                kb @ 1..=8192 => kb as usize * 1024,
                _ => {
                    return Err(FieldError::at(
                        "max_request_headers_kb",
                        "must be from 1 to 8192",
                    ));
                }
            },
            headers: max_headers(&common)?,
            http_10: http1.accept_http_10,
            custom_methods: http1.allow_custom_methods,
        };
        Ok(Config {
            routes: routes(config, ctx)?,
            stats: Stats::new(ctx.stats, &config.stat_prefix),
            limits,
            codec_auto: config.codec_type() == CodecType::Auto,
            enable_trailers: http1.enable_trailers,
            default_host: http1.default_host_for_http_10.as_bytes().into(),
            server_name: if config.server_name.is_empty() {
                "envoy"
            } else {
                &config.server_name
            }
            .as_bytes()
            .into(),
            server_header: match config.server_header_transformation() {
                ServerHeaderTransformation::Overwrite => ServerHeader::Overwrite,
                ServerHeaderTransformation::AppendIfAbsent => ServerHeader::AppendIfAbsent,
                ServerHeaderTransformation::PassThrough => ServerHeader::PassThrough,
            },
            timeouts: timeouts(config, &common)?,
            max_requests_per_connection: common.max_requests_per_connection.unwrap_or(0),
            underscores: match common.headers_with_underscores_action() {
                HeadersWithUnderscoresAction::Allow => Underscores::Allow,
                HeadersWithUnderscoresAction::RejectRequest => Underscores::Reject,
                HeadersWithUnderscoresAction::DropHeader => Underscores::Drop,
            },
            path: PathOptions {
                normalize: config.normalize_path.unwrap_or(false),
                merge_slashes: config.merge_slashes,
                escaped_slashes: match config.path_with_escaped_slashes_action() {
                    PathWithEscapedSlashesAction::ImplementationSpecificDefault
                    | PathWithEscapedSlashesAction::KeepUnchanged => EscapedSlashes::Keep,
                    PathWithEscapedSlashesAction::RejectRequest => EscapedSlashes::Reject,
                    PathWithEscapedSlashesAction::UnescapeAndRedirect => EscapedSlashes::Redirect,
                    PathWithEscapedSlashesAction::UnescapeAndForward => EscapedSlashes::Forward,
                },
            },
            strip_port: match config.strip_port_mode {
                Some(hcm::StripPortMode::StripAnyHostPort(true)) => StripPort::Any,
                _ if config.strip_matching_host_port => StripPort::Matching,
                _ => StripPort::Never,
            },
            strip_trailing_dot: config.strip_trailing_host_dot,
            use_remote_address: config.use_remote_address.unwrap_or(false),
            trusted_hops: config.xff_num_trusted_hops as usize,
            skip_xff_append: config.skip_xff_append,
            local_address: local_address(),
            internal: internal_ranges(config)?,
            via: config.via.as_bytes().into(),
            generate_request_id: config.generate_request_id.unwrap_or(true),
            preserve_external_request_id: config.preserve_external_request_id,
            request_id_in_response: config.always_set_request_id_in_response,
            keep_client_cert_header: config.forward_client_cert_details()
                == ForwardClientCertDetails::AlwaysForwardOnly,
            proxy_100_continue: config.proxy_100_continue,
            upgrades: upgrades(config)?,
            access_log: AccessLog::compile(&config.access_log, ctx.access_logs)
                .map_err(|e| e.in_field("access_log"))?,
            fault_stats: filters_fault
                .is_some()
                .then(|| fault::Stats::new(ctx.stats, &config.stat_prefix)),
            fault: filters_fault,
            suppress_envoy_headers: router.suppress_envoy_headers,
            respect_expected_timeout: router.respect_expected_rq_timeout,
        })
    }

    /// The name of the route configuration that comes by RDS.
    pub fn rds_name(&self) -> Option<&str> {
        match &self.routes {
            RouteSource::Rds(name) => Some(name),
            RouteSource::Inline(_) => None,
        }
    }

    /// Whether a client at this address is inside the network (`internal_address_config`).
    pub(super) fn is_internal(&self, address: IpAddr) -> bool {
        let bits = bits(address);
        self.internal
            .iter()
            .any(|range| bits & range.mask == range.address)
    }

    /// Whether this upgrade is allowed where the route does not say; `None` if it is not mentioned.
    pub(super) fn upgrade(&self, kind: &[u8]) -> Option<bool> {
        let named = self
            .upgrades
            .iter()
            .find(|(name, _)| name.as_bytes().eq_ignore_ascii_case(kind));
        named.map(|(_, enabled)| *enabled)
    }
}

/// Fields that change behaviour and that nothing here implements.
fn refuse(config: &HttpConnectionManager) -> Result<(), FieldError> {
    refuse_fields!(config; tracing, original_ip_detection_extensions, early_header_mutation_extensions,
        local_reply_config, proxy_status_config, typed_header_validation_config, path_normalization_options,
        scheme_header_transformation, access_log_flush_interval, flush_access_log_on_new_request, access_log_options,
        represent_ipv4_remote_address_as_ipv4_mapped_ipv6, append_x_forwarded_port, forward_client_cert_matcher,
        http1_safe_max_connection_duration, stream_flush_timeout, drain_timeout_jitter, forward_proto_config,
        append_local_overload);
    for (field, value) in [
        ("add_user_agent", config.add_user_agent),
        (
            "stream_error_on_invalid_http_message",
            config.stream_error_on_invalid_http_message,
        ),
    ] {
        if value == Some(true) {
            return Err(FieldError::at(field, "is not supported"));
        }
    }
    match config.codec_type() {
        CodecType::Auto | CodecType::Http1 => {}
        CodecType::Http2 | CodecType::Http3 => {
            return Err(FieldError::at(
                "codec_type",
                "only AUTO and HTTP1 are supported",
            ));
        }
    }
    if let Some(id) = config
        .request_id_extension
        .as_ref()
        .and_then(|e| e.typed_config.as_ref())
        && !type_name(id).ends_with("request_id.uuid.v3.UuidRequestIdConfig")
    {
        let message = format!("{} is not supported", type_name(id));
        return Err(FieldError::at("typed_config", message).in_field("request_id_extension"));
    }
    if let Some(common) = &config.common_http_protocol_options {
        let refused = || {
            refuse_fields!(common; max_connection_duration_jitter, max_response_headers_kb);
            Ok(())
        };
        refused().map_err(|e: FieldError| e.in_field("common_http_protocol_options"))?;
    }
    if let Some(http1) = &config.http_protocol_options {
        let refused = || {
            refuse_fields!(http1; header_key_format, allow_chunked_length, send_fully_qualified_url,
                override_stream_error_on_invalid_http_message, ignore_http_11_upgrade);
            if http1.allow_absolute_url == Some(false) {
                return Err(FieldError::at(
                    "allow_absolute_url",
                    "false is not supported",
                ));
            }
            Ok(())
        };
        refused().map_err(|e| e.in_field("http_protocol_options"))?;
    }
    Ok(())
}

fn routes(config: &HttpConnectionManager, ctx: &CompileContext) -> Result<RouteSource, FieldError> {
    match &config.route_specifier {
        Some(RouteSpecifier::RouteConfig(routes)) => {
            let table = route::Table::compile_inline(routes, ctx)
                .map_err(|e| e.in_field("route_config"))?;
            Ok(RouteSource::Inline(Arc::new(table)))
        }
        Some(RouteSpecifier::Rds(rds)) => {
            let source = rds.config_source.as_ref();
            let source =
                source.ok_or_else(|| FieldError::at("rds.config_source", "is required"))?;
            ads_fetch_timeout(source).map_err(|e| e.in_field("config_source").in_field("rds"))?;
            if rds.route_config_name.is_empty() {
                return Err(FieldError::at("rds.route_config_name", "is required"));
            }
            Ok(RouteSource::Rds(rds.route_config_name.as_str().into()))
        }
        Some(RouteSpecifier::ScopedRoutes(_)) => {
            Err(FieldError::at("scoped_routes", "is not supported"))
        }
        None => Err(FieldError::at(
            "route_config",
            "one of rds and route_config is required",
        )),
    }
}

/// The fault filter, if it is there, and the router, which must be last.
fn filters(filters: &[proto::HttpFilter]) -> Result<(Option<fault::Config>, Router), FieldError> {
    let mut fault = None;
    for (index, filter) in filters.iter().enumerate() {
        let here = |e: FieldError| e.in_index(index).in_field("http_filters");
        let config = match &filter.config_type {
            Some(proto::http_filter::ConfigType::TypedConfig(config)) => config.clone(),
            Some(proto::http_filter::ConfigType::ConfigDiscovery(_)) => {
                return Err(here(FieldError::at("config_discovery", "is not supported")));
            }
            None => Any::default(),
        };
        if filter.disabled {
            return Err(here(FieldError::at("disabled", "is not supported")));
        }
        let typed = |e: FieldError| here(e.in_field("typed_config"));
        match type_name(&config) {
            "envoy.extensions.filters.http.router.v3.Router" => {
                let router: Router = api::any::unpack(&config).map_err(typed)?;
                let refused = || {
                    refuse_fields!(router; upstream_log, upstream_log_options, strict_check_headers,
                        upstream_http_filters);
                    Ok(())
                };
                refused().map_err(typed)?;
                if index + 1 != filters.len() {
                    return Err(here(FieldError::at(
                        "name",
                        "the router must be the last filter",
                    )));
                }
                return Ok((fault, router));
            }
            "envoy.extensions.filters.http.fault.v3.HTTPFault" => {
                let message: HttpFault = api::any::unpack(&config).map_err(typed)?;
                fault = Some(fault::Config::compile(&message).map_err(typed)?);
            }
            _ if filter.is_optional => {}
            "" => return Err(here(FieldError::at("typed_config", "is required"))),
            other => {
                let message = format!("{:?} ({other}) is not supported", filter.name);
                return Err(here(FieldError::at("name", message)));
            }
        }
    }
    Err(FieldError::at(
        "http_filters",
        "the last filter must be envoy.filters.http.router",
    ))
}

fn max_headers(common: &HttpProtocolOptions) -> Result<usize, FieldError> {
    match common.max_headers_count {
        None => Ok(100),
        Some(count @ 1..=256) => Ok(count as usize),
        Some(_) => Err(FieldError::at("max_headers_count", "must be from 1 to 256")
            .in_field("common_http_protocol_options")),
    }
}

fn timeouts(
    config: &HttpConnectionManager,
    common: &HttpProtocolOptions,
) -> Result<Timeouts, FieldError> {
    let of = |field: &'static str, value: &Option<_>, default: Option<Duration>| match value {
        None => Ok(default),
        // zero turns a limit off
        Some(value) => duration(value)
            .map(|d| Some(d).filter(|d| !d.is_zero()))
            .map_err(|e| e.in_field(field)),
    };
    let common_of = |field: &'static str, value: &Option<_>, default| {
        of(field, value, default)
            .map_err(|e: FieldError| e.in_field("common_http_protocol_options"))
    };
    let hour = Some(Duration::from_secs(3600));
    Ok(Timeouts {
        idle: common_of("idle_timeout", &common.idle_timeout, hour)?,
        max_connection: common_of(
            "max_connection_duration",
            &common.max_connection_duration,
            None,
        )?,
        max_stream: common_of("max_stream_duration", &common.max_stream_duration, None)?,
        stream_idle: of(
            "stream_idle_timeout",
            &config.stream_idle_timeout,
            Some(Duration::from_secs(300)),
        )?,
        request: of("request_timeout", &config.request_timeout, None)?,
        request_headers: of(
            "request_headers_timeout",
            &config.request_headers_timeout,
            None,
        )?,
        drain: of(
            "drain_timeout",
            &config.drain_timeout,
            Some(Duration::from_secs(5)),
        )?
        .unwrap_or_default(),
        delayed_close: of(
            "delayed_close_timeout",
            &config.delayed_close_timeout,
            Some(Duration::from_secs(1)),
        )?,
    })
}

fn upgrades(config: &HttpConnectionManager) -> Result<Vec<(Box<str>, bool)>, FieldError> {
    let mut upgrades: Vec<(Box<str>, bool)> = Vec::new();
    for (index, upgrade) in config.upgrade_configs.iter().enumerate() {
        let here = |e: FieldError| e.in_index(index).in_field("upgrade_configs");
        if !upgrade.filters.is_empty() {
            return Err(here(FieldError::at("filters", "is not supported")));
        }
        if upgrade.upgrade_type.eq_ignore_ascii_case("connect") {
            return Err(here(FieldError::at(
                "upgrade_type",
                "CONNECT is not supported",
            )));
        }
        let kind: Box<str> = upgrade.upgrade_type.to_ascii_lowercase().into();
        if upgrades.iter().any(|(given, _)| *given == kind) {
            return Err(here(FieldError::at("upgrade_type", "is there twice")));
        }
        upgrades.push((kind, upgrade.enabled.unwrap_or(true)));
    }
    Ok(upgrades)
}

fn internal_ranges(config: &HttpConnectionManager) -> Result<Vec<Cidr>, FieldError> {
    let ranges = config
        .internal_address_config
        .iter()
        .flat_map(|c| &c.cidr_ranges)
        .enumerate();
    let compile = |(index, range): (usize, &api::envoy::config::core::v3::CidrRange)| {
        let here = |e: FieldError| {
            e.in_index(index)
                .in_field("cidr_ranges")
                .in_field("internal_address_config")
        };
        let address: IpAddr = range.address_prefix.parse().map_err(|_| {
            here(FieldError::at(
                "address_prefix",
                format!("{:?} is not an IP address", range.address_prefix),
            ))
        })?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        let prefix = range.prefix_len.unwrap_or(0);
        if prefix > width {
            return Err(here(FieldError::at(
                "prefix_len",
                format!("{prefix} is above {width}"),
            )));
        }
        let mask = u128::MAX.checked_shl(width - prefix).unwrap_or(0);
        Ok(Cidr {
            address: bits(address) & mask,
            mask,
        })
    };
    ranges.map(compile).collect()
}

/// IPv4 addresses as their IPv4-mapped IPv6 ones, so that one comparison serves both.
fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_ipv6_mapped()),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

/// The address with which this machine reaches others. Connecting a UDP socket sends nothing.
fn local_address() -> IpAddr {
    let find = || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
        socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
        socket
            .local_addr()
            .ok()
            .map(|address| address.ip())
            .filter(|ip| !ip.is_unspecified())
    };
    find().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
}
