//! `envoy.config.cluster.v3.Cluster`, compiled.

#![allow(
    deprecated,
    reason = "Envoy still takes the deprecated fields, and bootstraps still have them"
)]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use api::envoy::config::cluster::v3 as proto;
use api::envoy::config::core::v3 as core;
use api::envoy::extensions::upstreams::http::v3::{self as http, http_protocol_options as h};
use api::google::protobuf::Any;
use api::mosn::extensions::upstreams::rpc::v1::RpcProtocolOptions;
use base::FieldError;
use proto::cluster;

use super::circuit_breaker::{CircuitBreaker, Priority};
use super::hosts::{HostsConfig, MetadataMatch, Named};
use super::stats::ClusterStats;
use crate::config::{self, CompileContext, is_set};
use crate::refuse_fields;

/// How a host is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LbPolicy {
    /// `ROUND_ROBIN`.
    RoundRobin,
    /// `LEAST_REQUEST`.
    LeastRequest {
        /// `choice_count`, 2 by default.
        choices: u32,
    },
    /// `RANDOM`.
    Random,
}

/// Where the hosts come from.
#[derive(Clone, Debug)]
pub enum Discovery {
    /// `STATIC`: from the cluster itself.
    Static(HostsConfig),
    /// `STRICT_DNS` and `LOGICAL_DNS`.
    Dns {
        /// The names to resolve.
        names: Vec<Named>,
        /// Timing and address family.
        options: DnsOptions,
    },
    /// `EDS`, over ADS.
    Eds {
        /// `service_name`, or the cluster's name.
        service_name: String,
        /// How long warming waits for it: 15 s by default, `None` is for ever.
        initial_fetch_timeout: Option<Duration>,
    },
}

/// DNS settings of a cluster.
#[derive(Clone, Copy, Debug)]
pub struct DnsOptions {
    /// `dns_refresh_rate`, 5 s by default.
    pub refresh: Duration,
    /// `respect_dns_ttl`.
    pub respect_ttl: bool,
    /// `dns_lookup_family`.
    pub family: DnsFamily,
    /// Take only the first address (`LOGICAL_DNS`).
    pub first_only: bool,
}

/// `dns_lookup_family`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DnsFamily {
    /// IPv6, and IPv4 when there is none.
    Auto,
    /// IPv4 only.
    V4Only,
    /// IPv6 only.
    V6Only,
    /// IPv4, and IPv6 when there is none.
    V4Preferred,
    /// Both.
    All,
}

/// Options of HTTP/1 connections to the hosts.
#[derive(Clone, Copy, Debug)]
pub struct HttpOptions {
    /// Unused connections close after this: 1 h by default, `None` never.
    pub idle_timeout: Option<Duration>,
    /// Most requests of a connection; 0 is no limit.
    pub max_requests_per_connection: u32,
}

/// Options of Bolt and Dubbo connections to the hosts: `mosn.extensions.upstreams.rpc.v1.RpcProtocolOptions`.
#[derive(Clone, Copy, Debug)]
pub struct RpcOptions {
    /// A heartbeat is sent after this long without traffic: 15 s by default; `None` is off.
    pub heartbeat_interval: Option<Duration>,
    /// How long its answer may take: 3 s by default.
    pub heartbeat_timeout: Duration,
    /// Missed answers after which the connection is closed: 3 by default.
    pub heartbeat_failures: u32,
    /// Connections to a host and worker: 1 by default.
    pub max_connections_per_host: u32,
}

/// `lb_subset_config`.
#[derive(Clone, Debug)]
pub struct SubsetConfig {
    selectors: Vec<BTreeSet<String>>,
    /// Whether a request that fits no subset may go anywhere (`ANY_ENDPOINT`).
    pub fallback_any: bool,
}

impl SubsetConfig {
    /// Whether one of the selectors has just these keys.
    pub fn selects(&self, wanted: &MetadataMatch) -> bool {
        self.selectors.iter().any(|s| s.iter().eq(wanted.keys()))
    }
}

/// What a cluster is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterUse {
    /// Requests of listeners.
    Traffic,
    /// xDS and registry streams of this process, which are gRPC: HTTP/2 options are accepted.
    Control,
}

/// A compiled cluster.
pub struct ClusterConfig {
    /// `name`.
    pub name: Arc<str>,
    /// `type` and what belongs to it.
    pub discovery: Discovery,
    /// `connect_timeout`, 5 s by default.
    pub connect_timeout: Duration,
    /// `lb_policy`.
    pub lb_policy: LbPolicy,
    /// `common_lb_config.healthy_panic_threshold`, 50 by default.
    pub panic_threshold_percent: f64,
    /// `lb_subset_config`, if there are selectors.
    pub subset_lb: Option<SubsetConfig>,
    /// `per_connection_buffer_limit_bytes`, 1 MiB by default.
    pub per_connection_buffer_limit: usize,
    /// HTTP/1 options.
    pub http: HttpOptions,
    /// RPC options.
    pub rpc: RpcOptions,
    /// Statistics.
    pub stats: ClusterStats,
    breakers: [Arc<CircuitBreaker>; 2],
}

impl ClusterConfig {
    /// The circuit breaker of a priority.
    pub fn breaker(&self, priority: Priority) -> &Arc<CircuitBreaker> {
        match priority {
            Priority::Default => &self.breakers[0],
            Priority::High => &self.breakers[1],
        }
    }

    /// Compiles one cluster; every error has the field's path.
    pub fn compile(
        c: &proto::Cluster,
        usage: ClusterUse,
        ctx: &CompileContext,
    ) -> Result<ClusterConfig, FieldError> {
        if c.name.is_empty() {
            return Err(FieldError::at("name", "is required"));
        }
        refuse_fields!(c; transport_socket_matches, transport_socket_matcher, health_checks, outlier_detection,
            upstream_bind_config, filters, load_balancing_policy, upstream_config, preconnect_policy,
            connection_pool_per_downstream_connection, dns_resolvers, use_tcp_for_dns_lookups);
        if usage == ClusterUse::Traffic && is_set(&c.http2_protocol_options) {
            return Err(FieldError::at("http2_protocol_options", "is not supported"));
        }
        if let Some(socket) = &c.transport_socket {
            config::raw_buffer(socket).map_err(|e| e.in_field("transport_socket"))?;
        }
        let duration = |d: &Option<_>, name: &str| {
            d.as_ref()
                .map(config::duration)
                .transpose()
                .map_err(|e| e.in_field(name))
        };
        let stat_name = if c.alt_stat_name.is_empty() {
            &c.name
        } else {
            &c.alt_stat_name
        };
        let (http, rpc) = protocol_options(c, usage)?;
        Ok(ClusterConfig {
            name: c.name.as_str().into(),
            discovery: discovery(c)?,
            connect_timeout: duration(&c.connect_timeout, "connect_timeout")?
                .unwrap_or(Duration::from_secs(5)),
            lb_policy: lb_policy(c)?,
            panic_threshold_percent: panic_threshold(c)?,
            subset_lb: subset(c).map_err(|e| e.in_field("lb_subset_config"))?,
            per_connection_buffer_limit: c
                .per_connection_buffer_limit_bytes
                .map_or(1 << 20, |b| b as usize),
            http,
            rpc,
            stats: ClusterStats::new(ctx.stats, stat_name),
            breakers: CircuitBreaker::compile(c.circuit_breakers.as_ref())
                .map_err(|e| e.in_field("circuit_breakers"))?,
        })
    }
}

fn discovery(c: &proto::Cluster) -> Result<Discovery, FieldError> {
    use cluster::{ClusterDiscoveryType, DiscoveryType};
    let kind = match &c.cluster_discovery_type {
        Some(ClusterDiscoveryType::Type(kind)) => DiscoveryType::try_from(*kind)
            .map_err(|_| FieldError::at("type", format!("{kind} is unknown")))?,
        Some(ClusterDiscoveryType::ClusterType(t)) => {
            return Err(FieldError::at(
                "cluster_type.name",
                format!("{:?} is not supported", t.name),
            ));
        }
        None => DiscoveryType::Static,
    };
    let assignment = c.load_assignment.clone().unwrap_or_default();
    match kind {
        DiscoveryType::Static => Ok(Discovery::Static(
            HostsConfig::compile(&assignment).map_err(|e| e.in_field("load_assignment"))?,
        )),
        DiscoveryType::StrictDns | DiscoveryType::LogicalDns => {
            let names = HostsConfig::compile_names(&assignment)
                .map_err(|e| e.in_field("load_assignment"))?;
            let refresh = c
                .dns_refresh_rate
                .as_ref()
                .map(config::duration)
                .transpose();
            let refresh = refresh
                .map_err(|e| e.in_field("dns_refresh_rate"))?
                .unwrap_or(Duration::from_secs(5));
            if refresh < Duration::from_millis(1) {
                return Err(FieldError::at("dns_refresh_rate", "must be at least 1 ms"));
            }
            let family = match c.dns_lookup_family() {
                cluster::DnsLookupFamily::Auto => DnsFamily::Auto,
                cluster::DnsLookupFamily::V4Only => DnsFamily::V4Only,
                cluster::DnsLookupFamily::V6Only => DnsFamily::V6Only,
                cluster::DnsLookupFamily::V4Preferred => DnsFamily::V4Preferred,
                cluster::DnsLookupFamily::All => DnsFamily::All,
            };
            let first_only = kind == DiscoveryType::LogicalDns;
            Ok(Discovery::Dns {
                names,
                options: DnsOptions {
                    refresh,
                    respect_ttl: c.respect_dns_ttl,
                    family,
                    first_only,
                },
            })
        }
        DiscoveryType::Eds => {
            let eds = c.eds_cluster_config.clone().unwrap_or_default();
            let source = eds.eds_config.as_ref();
            let source = source
                .ok_or_else(|| FieldError::at("eds_cluster_config.eds_config", "is required"))?;
            let timeout = ads_fetch_timeout(source)
                .map_err(|e| e.in_field("eds_config").in_field("eds_cluster_config"))?;
            let service_name = if eds.service_name.is_empty() {
                c.name.clone()
            } else {
                eds.service_name
            };
            Ok(Discovery::Eds {
                service_name,
                initial_fetch_timeout: timeout,
            })
        }
        // no listener knows an original destination, and without one Envoy finds no host either
        DiscoveryType::OriginalDst => Ok(Discovery::Static(HostsConfig::default())),
    }
}

/// Checks that a config source is ADS and returns how long warming waits for it (`None`: for ever).
pub fn ads_fetch_timeout(source: &core::ConfigSource) -> Result<Option<Duration>, FieldError> {
    use core::config_source::ConfigSourceSpecifier::{Ads, Self_};
    match &source.config_source_specifier {
        Some(Ads(_) | Self_(_)) => {}
        _ => return Err(FieldError::new("only ads is supported")),
    }
    match &source.initial_fetch_timeout {
        None => Ok(Some(Duration::from_secs(15))),
        Some(d) => {
            let d = config::duration(d).map_err(|e| e.in_field("initial_fetch_timeout"))?;
            Ok(Some(d).filter(|d| !d.is_zero()))
        }
    }
}

fn lb_policy(c: &proto::Cluster) -> Result<LbPolicy, FieldError> {
    use cluster::{LbConfig, LbPolicy as P};
    match &c.lb_config {
        None | Some(LbConfig::RoundRobinLbConfig(_) | LbConfig::LeastRequestLbConfig(_)) => {}
        Some(_) => {
            return Err(FieldError::at(
                "lb_config",
                "ring hash, Maglev and original destination are not supported",
            ));
        }
    }
    let to_original_dst = matches!(
        c.cluster_discovery_type,
        Some(cluster::ClusterDiscoveryType::Type(kind)) if kind == cluster::DiscoveryType::OriginalDst as i32
    );
    if to_original_dst != (c.lb_policy() == P::ClusterProvided) {
        return Err(FieldError::at(
            "lb_policy",
            "CLUSTER_PROVIDED and type ORIGINAL_DST go together",
        ));
    }
    match c.lb_policy() {
        P::RoundRobin => {
            if let Some(LbConfig::RoundRobinLbConfig(lb)) = &c.lb_config {
                (|| {
                    refuse_fields!(lb; slow_start_config);
                    Ok(())
                })()
                .map_err(|e: FieldError| e.in_field("round_robin_lb_config"))?;
            }
            Ok(LbPolicy::RoundRobin)
        }
        P::LeastRequest => {
            let mut choices = 2;
            if let Some(LbConfig::LeastRequestLbConfig(lb)) = &c.lb_config {
                (|| {
                    refuse_fields!(lb; slow_start_config, active_request_bias);
                    Ok(())
                })()
                .map_err(|e: FieldError| e.in_field("least_request_lb_config"))?;
                choices = lb.choice_count.unwrap_or(2);
                if choices < 2 {
                    return Err(FieldError::at(
                        "least_request_lb_config.choice_count",
                        "must be at least 2",
                    ));
                }
            }
            Ok(LbPolicy::LeastRequest {
                choices: choices.min(16),
            })
        }
        P::Random => Ok(LbPolicy::Random),
        // there is nothing to choose from
        P::ClusterProvided => Ok(LbPolicy::RoundRobin),
        other => Err(FieldError::at(
            "lb_policy",
            format!("{} is not supported", other.as_str_name()),
        )),
    }
}

fn panic_threshold(c: &proto::Cluster) -> Result<f64, FieldError> {
    let Some(common) = &c.common_lb_config else {
        return Ok(50.0);
    };
    let at = |e: FieldError| e.in_field("common_lb_config");
    (|| {
        refuse_fields!(common; ignore_new_hosts_until_first_hc, close_connections_on_host_set_change,
            consistent_hashing_lb_config, override_host_status);
        Ok(())
    })()
    .map_err(at)?;
    use cluster::common_lb_config::LocalityConfigSpecifier::LocalityWeightedLbConfig;
    if let Some(LocalityWeightedLbConfig(_)) = &common.locality_config_specifier {
        return Err(at(FieldError::at(
            "locality_weighted_lb_config",
            "is not supported",
        )));
    }
    let percent = common
        .healthy_panic_threshold
        .as_ref()
        .map_or(50.0, |p| p.value);
    if !(0.0..=100.0).contains(&percent) {
        return Err(at(FieldError::at(
            "healthy_panic_threshold.value",
            "must be between 0 and 100",
        )));
    }
    Ok(percent)
}

fn subset(c: &proto::Cluster) -> Result<Option<SubsetConfig>, FieldError> {
    use cluster::lb_subset_config::LbSubsetFallbackPolicy as Fallback;
    let Some(subset) = &c.lb_subset_config else {
        return Ok(None);
    };
    refuse_fields!(subset; default_subset, locality_weight_aware, scale_locality_weight, panic_mode_any, list_as_any,
        metadata_fallback_policy);
    let fallback_any = match subset.fallback_policy() {
        Fallback::NoFallback => false,
        Fallback::AnyEndpoint => true,
        Fallback::DefaultSubset => {
            return Err(FieldError::at(
                "fallback_policy",
                "DEFAULT_SUBSET is not supported",
            ));
        }
    };
    let mut selectors = Vec::new();
    for (i, selector) in subset.subset_selectors.iter().enumerate() {
        if is_set(&selector.fallback_policy) || is_set(&selector.single_host_per_subset) {
            let what = "fallback_policy and single_host_per_subset are not supported";
            return Err(FieldError::new(what)
                .in_index(i)
                .in_field("subset_selectors"));
        }
        selectors.push(selector.keys.iter().cloned().collect());
    }
    Ok((!selectors.is_empty()).then_some(SubsetConfig {
        selectors,
        fallback_any,
    }))
}

fn protocol_options(
    c: &proto::Cluster,
    usage: ClusterUse,
) -> Result<(HttpOptions, RpcOptions), FieldError> {
    let mut http = HttpOptions {
        idle_timeout: Some(Duration::from_secs(3600)),
        max_requests_per_connection: c.max_requests_per_connection.unwrap_or(0),
    };
    if let Some(common) = &c.common_http_protocol_options {
        common_http(common, &mut http).map_err(|e| e.in_field("common_http_protocol_options"))?;
    }
    let mut rpc = RpcOptions {
        heartbeat_interval: Some(Duration::from_secs(15)),
        heartbeat_timeout: Duration::from_secs(3),
        heartbeat_failures: 3,
        max_connections_per_host: 1,
    };
    for (name, any) in &c.typed_extension_protocol_options {
        let at = |e: FieldError| e.in_field(&format!("typed_extension_protocol_options[{name:?}]"));
        match config::type_name(any) {
            HTTP_OPTIONS => http_options(any, usage, &mut http).map_err(at)?,
            RPC_OPTIONS => rpc_options(any, &mut rpc).map_err(at)?,
            other => {
                return Err(at(FieldError::at(
                    "@type",
                    format!("{other} is not supported"),
                )));
            }
        }
    }
    Ok((http, rpc))
}

const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
const RPC_OPTIONS: &str = "mosn.extensions.upstreams.rpc.v1.RpcProtocolOptions";

fn common_http(
    common: &core::HttpProtocolOptions,
    http: &mut HttpOptions,
) -> Result<(), FieldError> {
    refuse_fields!(common; max_connection_duration, max_stream_duration, headers_with_underscores_action);
    if let Some(d) = &common.idle_timeout {
        http.idle_timeout = Some(config::duration(d).map_err(|e| e.in_field("idle_timeout"))?)
            .filter(|d| !d.is_zero());
    }
    if let Some(most) = common.max_requests_per_connection {
        http.max_requests_per_connection = most;
    }
    Ok(())
}

fn http_options(any: &Any, usage: ClusterUse, http: &mut HttpOptions) -> Result<(), FieldError> {
    let options: http::HttpProtocolOptions = config::unpack(any, HTTP_OPTIONS)?;
    refuse_fields!(options; http_filters, header_validation_config, outlier_detection, request_mirror_policies,
        hash_policy, retry_policy);
    if let Some(common) = &options.common_http_protocol_options {
        common_http(common, http).map_err(|e| e.in_field("common_http_protocol_options"))?;
    }
    use h::UpstreamProtocolOptions::{AutoConfig, ExplicitHttpConfig, UseDownstreamProtocolConfig};
    use h::explicit_http_config::ProtocolConfig;
    match &options.upstream_protocol_options {
        None => Err(FieldError::at("upstream_protocol_options", "is required")),
        Some(ExplicitHttpConfig(explicit)) => match &explicit.protocol_config {
            None | Some(ProtocolConfig::HttpProtocolOptions(_)) => Ok(()),
            Some(ProtocolConfig::Http2ProtocolOptions(_)) if usage == ClusterUse::Control => Ok(()),
            Some(_) => Err(FieldError::at(
                "explicit_http_config",
                "only http_protocol_options is supported",
            )),
        },
        // downstreams are HTTP/1, so that is what goes upstream
        Some(UseDownstreamProtocolConfig(_)) => Ok(()),
        Some(AutoConfig(_)) => Err(FieldError::at("auto_config", "is not supported")),
    }
}

fn rpc_options(any: &Any, rpc: &mut RpcOptions) -> Result<(), FieldError> {
    let options: RpcProtocolOptions = config::unpack(any, RPC_OPTIONS)?;
    if let Some(d) = &options.heartbeat_interval {
        let d = config::duration(d).map_err(|e| e.in_field("heartbeat_interval"))?;
        rpc.heartbeat_interval = Some(d).filter(|d| !d.is_zero());
    }
    if let Some(d) = &options.heartbeat_timeout {
        rpc.heartbeat_timeout = config::duration(d).map_err(|e| e.in_field("heartbeat_timeout"))?;
    }
    if let Some(n) = options.heartbeat_failures {
        rpc.heartbeat_failures = n.max(1);
    }
    if let Some(n) = options.max_connections_per_host {
        if !(1..=1024).contains(&n) {
            return Err(FieldError::at(
                "max_connections_per_host",
                "must be between 1 and 1024",
            ));
        }
        rpc.max_connections_per_host = n;
    }
    Ok(())
}
