//! Clusters: one for each port of each service, and one for each subset of it.
#![allow(
    deprecated,
    reason = "Istio sends dns_refresh_rate, and Envoy acts on it"
)]

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use api::envoy::config::cluster::v3::circuit_breakers::Thresholds;
use api::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, CommonLbConfig, DiscoveryType, DnsLookupFamily, EdsClusterConfig,
    LbPolicy,
};
use api::envoy::config::cluster::v3::{
    CircuitBreakers, Cluster, OutlierDetection, UpstreamConnectionOptions,
};
use api::envoy::config::core::v3 as core;
use api::envoy::config::endpoint::v3 as endpoint_api;
use api::envoy::extensions::upstreams::http::v3 as upstream_http;
use api::envoy::extensions::upstreams::http::v3::http_protocol_options::{
    ExplicitHttpConfig, UpstreamProtocolOptions, UseDownstreamHttpConfig,
    explicit_http_config::ProtocolConfig,
};
use xds::server::Resource;

use super::endpoint::{self, Assignment};
use super::message::{
    address, ads, boolean, duration, list, metadata, object, socket_address, string,
};
use super::{BLACK_HOLE, PASSTHROUGH, inbound, outbound};
use crate::istio::destination_rule::{
    ConnectionPoolSettings, DestinationRule, OutlierDetection as OutlierSettings,
    SimpleLoadBalancer, Subset, TrafficPolicy,
};
use crate::istio::service_entry::Resolution;
use crate::istio::sidecar::IngressListener;
use crate::protocol::Protocol;
use crate::proxy::Client;
use crate::scope::Scope;
use crate::world::{Rule, Service, ServicePort, World};

/// Time without traffic after which connections of pass-through clusters are closed.
const PASSTHROUGH_IDLE: Duration = Duration::from_secs(300);
/// Spread of the times at which proxies resolve names.
const DNS_JITTER: Duration = Duration::from_millis(100);
/// Key of the HTTP options of a cluster.
const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// The clusters of outgoing calls of a class, and the load assignments that those of type EDS ask for.
pub(super) fn outbound_clusters(world: &World, scope: &Scope) -> (Vec<Resource>, Vec<Assignment>) {
    let mut clusters = vec![black_hole(), passthrough()];
    let mut assignments = Vec::new();
    for service in scope.services.values() {
        let rules = world.index.destination_rules_for(
            &service.id.host,
            &service.id.namespace,
            &scope.class.namespace,
            &world.mesh.root_namespace,
        );
        for port in service.ports.iter().filter(|port| is_served(scope, port)) {
            let maker = Maker {
                world,
                scope,
                service,
                port,
                rules: &rules,
            };
            clusters.push(maker.cluster(None, &mut assignments));
            let mut names = BTreeMap::new();
            for subset in rules.iter().flat_map(|rule| &rule.spec.subsets) {
                if names.insert(subset.name.as_str(), ()).is_none() {
                    clusters.push(maker.cluster(Some(subset), &mut assignments));
                }
            }
        }
    }
    let resources = clusters
        .iter()
        .map(|cluster| Resource::new(cluster.name.as_str(), cluster));
    (resources.collect(), assignments)
}

/// The clusters towards the application of a proxy at `ip`.
pub(super) fn inbound_clusters(world: &World, scope: &Scope, ip: IpAddr) -> Vec<Resource> {
    let Some(sidecar) = &scope.sidecar else {
        return Vec::new();
    };
    let pool = sidecar.spec.inbound_connection_pool.as_ref();
    let listeners = sidecar.spec.ingress.iter();
    let clusters =
        listeners.filter_map(|listener| inbound_cluster(world, scope, listener, pool, ip));
    clusters
        .map(|cluster| Resource::new(cluster.name.as_str(), &cluster))
        .collect()
}

/// Whether the class's program can call a port. A cluster that it would refuse would cost it all the others.
fn is_served(scope: &Scope, port: &ServicePort) -> bool {
    !matches!(
        (scope.class.client, port.protocol),
        (_, Protocol::Udp)
            | (Client::Mosn, Protocol::Http2 | Protocol::Tri)
            | (Client::Envoy, Protocol::Bolt | Protocol::Dubbo)
    )
}

fn kind(kind: DiscoveryType) -> Option<ClusterDiscoveryType> {
    Some(ClusterDiscoveryType::Type(kind as i32))
}

fn black_hole() -> Cluster {
    Cluster {
        name: BLACK_HOLE.to_owned(),
        alt_stat_name: format!("{BLACK_HOLE};"),
        connect_timeout: Some(duration(Duration::from_secs(10))),
        cluster_discovery_type: kind(DiscoveryType::Static),
        ..Default::default()
    }
}

fn passthrough() -> Cluster {
    let options = upstream_http::HttpProtocolOptions {
        common_http_protocol_options: Some(core::HttpProtocolOptions {
            idle_timeout: Some(duration(PASSTHROUGH_IDLE)),
            ..Default::default()
        }),
        upstream_protocol_options: Some(downstream_protocol()),
        ..Default::default()
    };
    Cluster {
        name: PASSTHROUGH.to_owned(),
        alt_stat_name: format!("{PASSTHROUGH};"),
        connect_timeout: Some(duration(Duration::from_secs(10))),
        cluster_discovery_type: kind(DiscoveryType::OriginalDst),
        lb_policy: LbPolicy::ClusterProvided as i32,
        circuit_breakers: Some(thresholds(None)),
        typed_extension_protocol_options: [(HTTP_OPTIONS.to_owned(), api::any::pack(&options))]
            .into(),
        ..Default::default()
    }
}

fn downstream_protocol() -> UpstreamProtocolOptions {
    UpstreamProtocolOptions::UseDownstreamProtocolConfig(UseDownstreamHttpConfig {
        http_protocol_options: Some(core::Http1ProtocolOptions::default()),
        http2_protocol_options: Some(core::Http2ProtocolOptions::default()),
        http3_protocol_options: None,
    })
}

/// Without settings Istio lifts Envoy's limits.
fn thresholds(pool: Option<&ConnectionPoolSettings>) -> CircuitBreakers {
    let tcp = pool.and_then(|pool| pool.tcp.as_ref());
    let http = pool.and_then(|pool| pool.http.as_ref());
    let limit = |value: Option<u32>| Some(value.filter(|value| *value != 0).unwrap_or(u32::MAX));
    CircuitBreakers {
        thresholds: vec![Thresholds {
            max_connections: limit(tcp.and_then(|tcp| tcp.max_connections)),
            max_pending_requests: limit(http.and_then(|http| http.http1_max_pending_requests)),
            max_requests: limit(http.and_then(|http| http.http2_max_requests)),
            max_retries: limit(http.and_then(|http| http.max_retries)),
            ..Default::default()
        }],
        ..Default::default()
    }
}

struct Maker<'a> {
    world: &'a World,
    scope: &'a Scope,
    service: &'a Service,
    port: &'a ServicePort,
    rules: &'a [&'a Rule<DestinationRule>],
}

impl Maker<'_> {
    fn cluster(&self, subset: Option<&Subset>, assignments: &mut Vec<Assignment>) -> Cluster {
        let (service, port) = (self.service, self.port);
        let subset_name = subset.map_or("", |subset| &subset.name);
        let name = outbound(port.number, subset_name, &service.id.host);
        let base = self
            .rules
            .iter()
            .find_map(|rule| rule.spec.traffic_policy.as_ref());
        let policy = merged(
            base,
            subset.and_then(|subset| subset.traffic_policy.as_ref()),
            port.number,
        );
        let balancer = policy
            .load_balancer
            .as_ref()
            .and_then(|balancer| balancer.simple);
        let by_address = balancer == Some(SimpleLoadBalancer::Passthrough)
            || service.resolution == Resolution::None;

        let mut cluster = Cluster {
            alt_stat_name: format!("{name};"),
            connect_timeout: Some(duration(self.world.mesh.connect_timeout.0)),
            lb_policy: lb_policy(balancer) as i32,
            common_lb_config: Some(CommonLbConfig {
                // Istio turns the panic mode off: unhealthy endpoints are not used when all are.
                healthy_panic_threshold: Some(Default::default()),
                ..Default::default()
            }),
            metadata: Some(self.metadata(subset)),
            name,
            ..Default::default()
        };
        if by_address {
            cluster.cluster_discovery_type = kind(DiscoveryType::OriginalDst);
            cluster.lb_policy = LbPolicy::ClusterProvided as i32;
        } else {
            let assignment = Assignment {
                cluster: cluster.name.as_str().into(),
                service: service.id.clone(),
                port: port.clone(),
                labels: subset
                    .map(|subset| subset.labels.clone())
                    .unwrap_or_default(),
                unix_sockets: self.scope.class.client == Client::Envoy,
            };
            match service.resolution {
                Resolution::Dns | Resolution::DnsRoundRobin => {
                    let kind_of = match service.resolution {
                        Resolution::DnsRoundRobin => DiscoveryType::LogicalDns,
                        _ => DiscoveryType::StrictDns,
                    };
                    cluster.cluster_discovery_type = kind(kind_of);
                    cluster.dns_lookup_family = DnsLookupFamily::V4Only as i32;
                    cluster.dns_refresh_rate = Some(duration(self.world.mesh.dns_refresh_rate.0));
                    if self.scope.class.client == Client::Envoy {
                        cluster.respect_dns_ttl = true;
                        cluster.dns_jitter = Some(duration(DNS_JITTER));
                    }
                    cluster.load_assignment =
                        Some(endpoint::load_assignment(self.world, &assignment));
                }
                _ => {
                    cluster.cluster_discovery_type = kind(DiscoveryType::Eds);
                    cluster.eds_cluster_config = Some(EdsClusterConfig {
                        eds_config: Some(ads()),
                        service_name: cluster.name.clone(),
                    });
                    assignments.push(assignment);
                }
            }
        }
        apply_pool(
            &mut cluster,
            policy.connection_pool.as_ref(),
            port.protocol,
            self.scope.class.client,
        );
        // mosn has no outlier detection yet, and says so by refusing it.
        if self.scope.class.client == Client::Envoy {
            cluster.outlier_detection = policy.outlier_detection.as_ref().map(outlier_detection);
        }
        if let Some(percent) = policy
            .outlier_detection
            .as_ref()
            .and_then(|outlier| outlier.min_health_percent)
            && let Some(config) = &mut cluster.common_lb_config
        {
            config.healthy_panic_threshold = Some(api::envoy::r#type::v3::Percent {
                value: f64::from(percent),
            });
        }
        cluster
    }

    fn metadata(&self, subset: Option<&Subset>) -> core::Metadata {
        let id = &self.service.id;
        let mut istio = super::message::structure([(
            "services",
            list(vec![object([
                ("host", string(id.host.as_ref())),
                ("name", string(id.host.as_ref())),
                ("namespace", string(id.namespace.as_ref())),
            ])]),
        )]);
        if self.service.external {
            istio.fields.insert("external".to_owned(), boolean(true));
        }
        if let Some(rule) = self.rules.first() {
            istio
                .fields
                .insert("config".to_owned(), string(rule.id.resource_path()));
        }
        if let Some(subset) = subset {
            istio
                .fields
                .insert("subset".to_owned(), string(subset.name.as_str()));
        }
        metadata(vec![("istio", istio)])
    }
}

/// The policy of a port: a subset's settings replace the rule's one by one, a port's replace all.
fn merged(
    base: Option<&TrafficPolicy>,
    subset: Option<&TrafficPolicy>,
    port: u16,
) -> TrafficPolicy {
    let mut policy = TrafficPolicy::default();
    for layer in [base, subset].into_iter().flatten() {
        if layer.load_balancer.is_some() {
            policy.load_balancer.clone_from(&layer.load_balancer);
        }
        if layer.connection_pool.is_some() {
            policy.connection_pool.clone_from(&layer.connection_pool);
        }
        if layer.outlier_detection.is_some() {
            policy
                .outlier_detection
                .clone_from(&layer.outlier_detection);
        }
        let of_port = layer.port_level_settings.iter().find(|item| {
            item.port
                .as_ref()
                .is_some_and(|item| item.number == u32::from(port))
        });
        if let Some(item) = of_port {
            policy.load_balancer.clone_from(&item.load_balancer);
            policy.connection_pool.clone_from(&item.connection_pool);
            policy.outlier_detection.clone_from(&item.outlier_detection);
        }
    }
    policy
}

fn lb_policy(simple: Option<SimpleLoadBalancer>) -> LbPolicy {
    match simple {
        Some(SimpleLoadBalancer::Random) => LbPolicy::Random,
        Some(SimpleLoadBalancer::RoundRobin) => LbPolicy::RoundRobin,
        _ => LbPolicy::LeastRequest,
    }
}

fn apply_pool(
    cluster: &mut Cluster,
    pool: Option<&ConnectionPoolSettings>,
    protocol: Protocol,
    client: Client,
) {
    cluster.circuit_breakers = Some(thresholds(pool));
    let tcp = pool.and_then(|pool| pool.tcp.as_ref());
    let http = pool.and_then(|pool| pool.http.as_ref());
    if let Some(timeout) = tcp.and_then(|tcp| tcp.connect_timeout) {
        cluster.connect_timeout = Some(duration(timeout.0));
    }
    if let Some(keepalive) = tcp.and_then(|tcp| tcp.tcp_keepalive.as_ref()) {
        let seconds = |value: &crate::istio::duration::ConfigDuration| {
            value.0.as_secs().try_into().unwrap_or(u32::MAX)
        };
        cluster.upstream_connection_options = Some(UpstreamConnectionOptions {
            tcp_keepalive: Some(core::TcpKeepalive {
                keepalive_probes: keepalive.probes,
                keepalive_time: keepalive.time.as_ref().map(seconds),
                keepalive_interval: keepalive.interval.as_ref().map(seconds),
            }),
            ..Default::default()
        });
    }

    let mut common = core::HttpProtocolOptions::default();
    if let Some(http) = http {
        common.idle_timeout = http.idle_timeout.map(|value| duration(value.0));
        common.max_requests_per_connection =
            http.max_requests_per_connection.filter(|value| *value > 0);
    }
    if let Some(tcp) = tcp {
        // mosn has no limit of a connection's life yet, and says so by refusing it.
        if client == Client::Envoy {
            common.max_connection_duration =
                tcp.max_connection_duration.map(|value| duration(value.0));
        }
        if common.idle_timeout.is_none() {
            common.idle_timeout = tcp.idle_timeout.map(|value| duration(value.0));
        }
    }
    let use_client_protocol = http.is_some_and(|http| http.use_client_protocol == Some(true));
    let upstream = match protocol {
        _ if use_client_protocol => Some(downstream_protocol()),
        // What is spoken is not known: what the caller speaks is right.
        Protocol::Unknown if client == Client::Envoy => Some(downstream_protocol()),
        Protocol::Http2 => Some(explicit(ProtocolConfig::Http2ProtocolOptions(
            core::Http2ProtocolOptions {
                max_concurrent_streams: http.and_then(|http| http.max_concurrent_streams),
                ..Default::default()
            },
        ))),
        _ if common != core::HttpProtocolOptions::default() => Some(explicit(
            ProtocolConfig::HttpProtocolOptions(Default::default()),
        )),
        _ => None,
    };
    if upstream.is_some() {
        let options = upstream_http::HttpProtocolOptions {
            common_http_protocol_options: (common != core::HttpProtocolOptions::default())
                .then_some(common),
            upstream_protocol_options: upstream,
            ..Default::default()
        };
        cluster.typed_extension_protocol_options =
            [(HTTP_OPTIONS.to_owned(), api::any::pack(&options))].into();
    }
}

fn explicit(protocol: ProtocolConfig) -> UpstreamProtocolOptions {
    UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
        protocol_config: Some(protocol),
    })
}

fn outlier_detection(settings: &OutlierSettings) -> OutlierDetection {
    let gateway = settings.consecutive_gateway_errors;
    let any = settings
        .consecutive_5xx_errors
        .or(settings.consecutive_errors);
    // As Istio: what is set to 0 is off, what is not set keeps Envoy's default, and success rate never ejects.
    let enforcing = |value: Option<u32>| value.map(|value| if value > 0 { 100 } else { 0 });
    OutlierDetection {
        consecutive_5xx: any,
        enforcing_consecutive_5xx: enforcing(any),
        consecutive_gateway_failure: gateway,
        enforcing_consecutive_gateway_failure: enforcing(gateway),
        enforcing_success_rate: Some(0),
        interval: settings.interval.map(|value| duration(value.0)),
        base_ejection_time: settings.base_ejection_time.map(|value| duration(value.0)),
        max_ejection_percent: settings.max_ejection_percent,
        split_external_local_origin_errors: settings
            .split_external_local_origin_errors
            .unwrap_or_default(),
        consecutive_local_origin_failure: settings.consecutive_local_origin_failures,
        enforcing_consecutive_local_origin_failure: enforcing(
            settings.consecutive_local_origin_failures,
        ),
        ..Default::default()
    }
}

/// The cluster towards the application behind an ingress listener.
fn inbound_cluster(
    world: &World,
    scope: &Scope,
    listener: &IngressListener,
    pool: Option<&ConnectionPoolSettings>,
    ip: IpAddr,
) -> Option<Cluster> {
    let port = listener.port.as_ref()?;
    let number = u16::try_from(port.number).ok()?;
    let name = inbound(number);
    let mut cluster = Cluster {
        alt_stat_name: format!("{name};"),
        connect_timeout: Some(duration(world.mesh.connect_timeout.0)),
        common_lb_config: Some(CommonLbConfig::default()),
        name: name.clone(),
        ..Default::default()
    };
    let is_mosn = scope.class.client == Client::Mosn;
    match endpoint_address(&listener.default_endpoint, number, ip) {
        // A socket that mosn cannot call: a cluster without endpoints, rather than one that it refuses with all others.
        Some(_) if is_mosn && listener.default_endpoint.starts_with("unix://") => {
            cluster.cluster_discovery_type = kind(DiscoveryType::Static);
        }
        Some(target) => {
            cluster.cluster_discovery_type = kind(DiscoveryType::Static);
            cluster.load_assignment = Some(endpoint_api::ClusterLoadAssignment {
                cluster_name: name,
                endpoints: vec![endpoint_api::LocalityLbEndpoints {
                    lb_endpoints: vec![endpoint::lb_endpoint(target)],
                    ..Default::default()
                }],
                ..Default::default()
            });
        }
        None => {
            cluster.cluster_discovery_type = kind(DiscoveryType::OriginalDst);
            cluster.lb_policy = LbPolicy::ClusterProvided as i32;
        }
    }
    let protocol = match port.protocol() {
        // What comes in over HTTP/2 goes on as such; the listener tells which it is.
        Protocol::Http2 if !is_mosn => Protocol::Http2,
        _ => Protocol::Http,
    };
    apply_pool(
        &mut cluster,
        listener.connection_pool.as_ref().or(pool),
        protocol,
        scope.class.client,
    );
    Some(cluster)
}

/// `127.0.0.1:8080`, `unix:///path`; 0.0.0.0 is the proxy's own address, as in Istio. Empty: none.
fn endpoint_address(text: &str, port: u16, proxy: IpAddr) -> Option<core::Address> {
    if text.is_empty() {
        return None;
    }
    if text.starts_with("unix://") {
        return Some(address(text, port));
    }
    let target: SocketAddr = text.parse().ok()?;
    let ip = if target.ip().is_unspecified() {
        proxy
    } else {
        target.ip()
    };
    Some(socket_address(&ip.to_string(), target.port()))
}
