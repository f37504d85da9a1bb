//! Listeners: for the application's calls (egress), towards the application (ingress), and the one that captures.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use api::envoy::config::core::v3::TrafficDirection;
use api::envoy::config::listener::v3::{
    Filter, FilterChain, FilterChainMatch, Listener, ListenerFilter, filter, listener_filter,
};
use api::envoy::config::route::v3::route_action::{ClusterSpecifier, MaxStreamDuration};
use api::envoy::config::route::v3::{Decorator, RetryPolicy, RouteAction, RouteConfiguration, VirtualHost};
use api::envoy::extensions::filters::http::fault::v3::HttpFault;
use api::envoy::extensions::filters::http::router::v3::Router;
use api::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::{
    PathWithEscapedSlashesAction, RouteSpecifier, UpgradeConfig,
};
use api::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, Rds, http_filter,
};
use api::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::weighted_cluster::ClusterWeight;
use api::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::{ClusterSpecifier as TcpCluster, WeightedCluster};
use api::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use api::mosn::extensions::filters::listener::protocol_inspector::v1::ProtocolInspector;
use api::mosn::extensions::filters::network::rpc_proxy::v1::{RpcProxy, rpc_proxy};
use prost::{Message, Name};
use xds::server::ResourceSet;

use super::access_log::access_log;
use super::message::{ads, config_metadata, duration, socket_address};
use super::route::{is_routed, routed_ports};
use super::vhost::{Context, FAULT, plain_route};
use super::{BLACK_HOLE, PASSTHROUGH, inbound, outbound, set};
use crate::hosts;
use crate::istio::sidecar::{CaptureMode, IngressListener, OutboundMode, Sidecar};
use crate::istio::virtual_service::{L4Match, VirtualService};
use crate::protocol::Protocol;
use crate::proxy::Interception;
use crate::scope::{Egress, Scope};
use crate::world::{Rule, Service, ServicePort, World};

/// Network filter of mosn for RPC protocols.
const RPC_PROXY: &str = "mosn.filters.network.rpc_proxy";
/// Listener filter of mosn that tells protocols by their first bytes.
const PROTOCOL_INSPECTOR: &str = "mosn.filters.listener.protocol_inspector";
const HTTP_CONNECTION_MANAGER: &str = "envoy.filters.network.http_connection_manager";
const TCP_PROXY: &str = "envoy.filters.network.tcp_proxy";

/// All listeners of a proxy of the class at `ip`.
pub(super) fn listeners(world: &World, scope: &Scope, ip: IpAddr) -> ResourceSet {
    let maker = Maker { world, scope, ip };
    let mut listeners: Vec<Listener> = Vec::new();
    for egress in &scope.egress {
        listeners.extend(maker.egress(egress));
    }
    if scope
        .egress
        .iter()
        .any(|egress| egress.interception == Interception::Redirect)
    {
        listeners.push(maker.virtual_outbound());
    }
    if let Some(sidecar) = &scope.sidecar {
        let ingress = sidecar.spec.ingress.iter();
        listeners.extend(ingress.filter_map(|listener| maker.ingress(sidecar, listener)));
    }
    // Two listeners at one address would be refused with all the others: the first in the Sidecar's order stays.
    let mut names = BTreeSet::new();
    listeners.retain(|listener| names.insert(listener.name.clone()));
    set(listeners
        .into_iter()
        .map(|listener| (listener.name.clone(), listener))
        .collect())
}

struct Maker<'a> {
    world: &'a World,
    scope: &'a Scope,
    ip: IpAddr,
}

impl Maker<'_> {
    fn egress(&self, egress: &Egress) -> Vec<Listener> {
        if egress.port.is_none() && egress.interception == Interception::Unsaid {
            return Vec::new();
        }
        let mut listeners = Vec::new();
        for (port, protocol) in routed_ports(self.scope, egress) {
            listeners.push(self.routed(egress, port, protocol));
        }
        match egress.port {
            Some(port) => {
                let is_stream =
                    !port.protocol.is_rpc() && !is_routed(self.scope.class.client, port.protocol);
                let service = egress.services.values().find_map(|service| {
                    let offered = egress.offers(service, port.number, port.protocol);
                    Some((service.as_ref(), offered?))
                });
                if is_stream && let Some((service, offered)) = service {
                    let bind = self.bind(egress);
                    listeners.push(self.tcp(egress, service, offered, &bind, port.number));
                }
            }
            None => self.streams(egress, &mut listeners),
        }
        listeners
    }

    /// TCP listeners of services without a listener in the Sidecar: at the service's addresses.
    fn streams(&self, egress: &Egress, listeners: &mut Vec<Listener>) {
        for service in egress.services.values() {
            let stream = |port: &&ServicePort| {
                matches!(
                    port.protocol,
                    Protocol::Tcp | Protocol::Tls | Protocol::Unknown
                )
            };
            for port in service.ports.iter().filter(stream) {
                let addresses = service
                    .addresses
                    .iter()
                    .filter(|address| !address.contains('/'));
                let mut binds: Vec<&str> = addresses.map(String::as_str).collect();
                let own = self.bind(egress);
                if binds.is_empty() || egress.interception == Interception::None {
                    binds = vec![&own];
                }
                for bind in binds {
                    listeners.push(self.tcp(egress, service, port, bind, port.number));
                }
            }
        }
    }

    /// The address of an egress listener. Istio binds 127.0.0.1 when nothing is captured; proxies that share a machine
    /// have loopback addresses of their own, and bind those.
    fn bind(&self, egress: &Egress) -> String {
        if !egress.bind.is_empty() {
            return egress.bind.clone();
        }
        match egress.interception {
            Interception::Redirect => "0.0.0.0".to_owned(),
            _ if self.ip.is_loopback() => self.ip.to_string(),
            _ if self.ip.is_ipv6() => "::1".to_owned(),
            _ => "127.0.0.1".to_owned(),
        }
    }

    fn routed(&self, egress: &Egress, port: u16, protocol: Protocol) -> Listener {
        let bind = self.bind(egress);
        let rds = Rds {
            config_source: Some(ads()),
            route_config_name: port.to_string(),
        };
        let stat_prefix = format!("outbound_{bind}_{port};");
        let (network, listener_filters) = if protocol.is_rpc() {
            let rpc = self.rpc_proxy(stat_prefix, protocol, rpc_proxy::RouteSpecifier::Rds(rds));
            (network_filter(RPC_PROXY, &rpc), vec![inspector(protocol)])
        } else {
            let manager = self.http_manager(stat_prefix, RouteSpecifier::Rds(rds));
            (
                network_filter(HTTP_CONNECTION_MANAGER, &manager),
                Vec::new(),
            )
        };
        Listener {
            listener_filters,
            filter_chains: vec![FilterChain {
                filters: vec![network],
                ..Default::default()
            }],
            ..outbound_listener(egress, &bind, port)
        }
    }

    fn tcp(
        &self,
        egress: &Egress,
        service: &Service,
        port: &ServicePort,
        bind: &str,
        number: u16,
    ) -> Listener {
        let cluster = outbound(port.number, "", &service.id.host);
        let context = Context {
            world: self.world,
            scope: self.scope,
            egress,
            port: number,
            protocol: port.protocol,
        };
        let rule = egress.virtual_services.iter().find_map(|rule| {
            let is_for = rule
                .hosts
                .iter()
                .any(|pattern| hosts::covers(pattern, &service.id.host));
            if !is_for {
                return None;
            }
            Some((
                rule,
                rule.spec
                    .tcp
                    .iter()
                    .find(|route| self.matches(&route.matches, number))?,
            ))
        });
        let (stat_prefix, specifier) = match rule {
            Some((rule, route)) => tcp_destination(&context, rule, &route.route),
            None => (cluster.clone(), TcpCluster::Cluster(cluster)),
        };
        let proxy = TcpProxy {
            stat_prefix,
            access_log: access_log(&self.world.mesh),
            cluster_specifier: Some(specifier),
            ..Default::default()
        };
        Listener {
            filter_chains: vec![FilterChain {
                filters: vec![network_filter(TCP_PROXY, &proxy)],
                ..Default::default()
            }],
            ..outbound_listener(egress, bind, number)
        }
    }

    /// Whether connections of this class to this port can match; no condition at all matches.
    fn matches(&self, conditions: &[L4Match], port: u16) -> bool {
        conditions.is_empty()
            || conditions.iter().any(|item| {
                (item.gateways.is_empty() || item.gateways.iter().any(|name| name == "mesh"))
                    && item.port.is_none_or(|wanted| wanted == u32::from(port))
                    && self.scope.class.has_labels(&item.source_labels)
                    && (item.source_namespace.is_empty()
                        || *item.source_namespace == *self.scope.class.namespace)
            })
    }

    fn http_manager(&self, stat_prefix: String, routes: RouteSpecifier) -> HttpConnectionManager {
        HttpConnectionManager {
            stat_prefix,
            route_specifier: Some(routes),
            http_filters: call_filters(),
            access_log: access_log(&self.world.mesh),
            use_remote_address: Some(false),
            normalize_path: Some(true),
            path_with_escaped_slashes_action: PathWithEscapedSlashesAction::KeepUnchanged as i32,
            proxy_100_continue: true,
            stream_idle_timeout: Some(duration(Duration::ZERO)),
            upgrade_configs: vec![UpgradeConfig {
                upgrade_type: "websocket".to_owned(),
                ..Default::default()
            }],
            ..Default::default()
        }
    }

    fn rpc_proxy(
        &self,
        stat_prefix: String,
        protocol: Protocol,
        routes: rpc_proxy::RouteSpecifier,
    ) -> RpcProxy {
        let protocol = match protocol {
            Protocol::Bolt => rpc_proxy::Protocol::Bolt,
            Protocol::Dubbo => rpc_proxy::Protocol::Dubbo,
            _ => rpc_proxy::Protocol::Auto,
        };
        RpcProxy {
            stat_prefix,
            protocols: vec![protocol as i32],
            rpc_filters: call_filters(),
            access_log: access_log(&self.world.mesh),
            route_specifier: Some(routes),
            ..Default::default()
        }
    }

    /// The listener that captured connections reach first, and that hands them to the others.
    fn virtual_outbound(&self) -> Listener {
        let port = self.world.mesh.proxy_listen_port;
        let chain = |name: &str, cluster: &str, condition: Option<FilterChainMatch>| FilterChain {
            name: name.to_owned(),
            filter_chain_match: condition,
            filters: vec![network_filter(
                TCP_PROXY,
                &TcpProxy {
                    stat_prefix: cluster.to_owned(),
                    cluster_specifier: Some(TcpCluster::Cluster(cluster.to_owned())),
                    ..Default::default()
                },
            )],
            ..Default::default()
        };
        let other = match self.scope.outbound {
            OutboundMode::AllowAny => PASSTHROUGH,
            OutboundMode::RegistryOnly => BLACK_HOLE,
        };
        let to_itself = FilterChainMatch {
            destination_port: Some(u32::from(port)),
            ..Default::default()
        };
        Listener {
            name: "virtualOutbound".to_owned(),
            address: Some(socket_address("0.0.0.0", port)),
            use_original_dst: Some(true),
            traffic_direction: TrafficDirection::Outbound as i32,
            filter_chains: vec![
                // A connection to the capture port itself would go round in circles.
                chain("virtualOutbound-blackhole", BLACK_HOLE, Some(to_itself)),
                chain("virtualOutbound-catchall-tcp", other, None),
            ],
            ..Default::default()
        }
    }

    /// A listener towards the application. Those that would need interception are left out.
    fn ingress(&self, sidecar: &Rule<Sidecar>, listener: &IngressListener) -> Option<Listener> {
        let captured = match listener.capture_mode {
            CaptureMode::None => false,
            CaptureMode::Iptables => true,
            CaptureMode::Default => self.scope.class.interception == Interception::Redirect,
        };
        if captured {
            return None;
        }
        let port = listener.port.as_ref()?;
        let number = u16::try_from(port.number).ok()?;
        let protocol = port.protocol();
        let bind = if listener.bind.is_empty() {
            self.ip.to_string()
        } else {
            listener.bind.clone()
        };
        let name = format!("{bind}_{number}");
        let stat_prefix = format!("inbound_{name};");
        let cluster = inbound(number);
        let (network, listener_filters) = match protocol {
            protocol if protocol.is_rpc() => {
                if !is_routed(self.scope.class.client, protocol) {
                    return None;
                }
                let routes =
                    rpc_proxy::RouteSpecifier::RouteConfig(inbound_routes(sidecar, number, "rpc"));
                let rpc = self.rpc_proxy(stat_prefix, protocol, routes);
                (network_filter(RPC_PROXY, &rpc), vec![inspector(protocol)])
            }
            protocol if is_routed(self.scope.class.client, protocol) => {
                let routes = RouteSpecifier::RouteConfig(inbound_routes(sidecar, number, "http"));
                let manager = HttpConnectionManager {
                    server_name: "istio-envoy".to_owned(),
                    ..self.http_manager(stat_prefix, routes)
                };
                (
                    network_filter(HTTP_CONNECTION_MANAGER, &manager),
                    Vec::new(),
                )
            }
            _ => {
                let proxy = TcpProxy {
                    stat_prefix: cluster.clone(),
                    access_log: access_log(&self.world.mesh),
                    cluster_specifier: Some(TcpCluster::Cluster(cluster)),
                    ..Default::default()
                };
                (network_filter(TCP_PROXY, &proxy), Vec::new())
            }
        };
        Some(Listener {
            address: Some(socket_address(&bind, number)),
            traffic_direction: TrafficDirection::Inbound as i32,
            continue_on_listener_filters_timeout: true,
            listener_filters,
            filter_chains: vec![FilterChain {
                name: name.clone(),
                filters: vec![network],
                metadata: Some(config_metadata(sidecar.id.resource_path())),
                ..Default::default()
            }],
            name,
            ..Default::default()
        })
    }
}

fn outbound_listener(egress: &Egress, bind: &str, port: u16) -> Listener {
    Listener {
        name: format!("{bind}_{port}"),
        address: Some(socket_address(bind, port)),
        bind_to_port: (egress.interception == Interception::Redirect).then_some(false),
        traffic_direction: TrafficDirection::Outbound as i32,
        continue_on_listener_filters_timeout: true,
        ..Default::default()
    }
}

fn network_filter<M: Message + Name>(name: &str, config: &M) -> Filter {
    Filter {
        name: name.to_owned(),
        config_type: Some(filter::ConfigType::TypedConfig(api::any::pack(config))),
    }
}

fn inspector(protocol: Protocol) -> ListenerFilter {
    let config = ProtocolInspector {
        protocols: vec![protocol.to_string()],
    };
    ListenerFilter {
        name: PROTOCOL_INSPECTOR.to_owned(),
        config_type: Some(listener_filter::ConfigType::TypedConfig(api::any::pack(
            &config,
        ))),
        ..Default::default()
    }
}

/// Filters of calls: faults are set route by route.
fn call_filters() -> Vec<HttpFilter> {
    let filter = |name: &str, config| HttpFilter {
        name: name.to_owned(),
        config_type: Some(http_filter::ConfigType::TypedConfig(config)),
        ..Default::default()
    };
    vec![
        filter(FAULT, api::any::pack(&HttpFault::default())),
        filter(
            "envoy.filters.http.router",
            api::any::pack(&Router::default()),
        ),
    ]
}

/// Everything that comes in goes to the application.
fn inbound_routes(sidecar: &Rule<Sidecar>, port: u16, kind: &str) -> RouteConfiguration {
    let off = Some(duration(Duration::ZERO));
    let action = RouteAction {
        cluster_specifier: Some(ClusterSpecifier::Cluster(inbound(port))),
        timeout: off,
        max_stream_duration: (kind == "http").then_some(MaxStreamDuration {
            max_stream_duration: off,
            grpc_timeout_header_max: off,
            grpc_timeout_header_offset: None,
        }),
        // A connection to the application that it has just closed is no failure of the call.
        retry_policy: Some(RetryPolicy {
            retry_on: "reset-before-request".to_owned(),
            num_retries: Some(2),
            ..Default::default()
        }),
        ..Default::default()
    };
    let mut route = plain_route("default", action);
    route.decorator = Some(Decorator {
        operation: format!("{}.{}:{port}/*", sidecar.id.name, sidecar.id.namespace),
        propagate: None,
    });
    RouteConfiguration {
        name: inbound(port),
        validate_clusters: Some(false),
        virtual_hosts: vec![VirtualHost {
            name: format!("inbound|{kind}|{port}"),
            domains: vec!["*".to_owned()],
            routes: vec![route],
            ..Default::default()
        }],
        ..Default::default()
    }
}

/// Where a rule of `tcp` leads, and the prefix of its statistics.
fn tcp_destination(
    context: &Context<'_>,
    rule: &Rule<VirtualService>,
    route: &[crate::istio::virtual_service::RouteDestination],
) -> (String, TcpCluster) {
    let clusters: Vec<ClusterWeight> = route
        .iter()
        .filter(|item| route.len() == 1 || item.weight > 0)
        .filter_map(|item| {
            Some(ClusterWeight {
                name: context.cluster_of(rule, item.destination.as_ref()?),
                weight: item.weight.unsigned_abs(),
                ..Default::default()
            })
        })
        .collect();
    match clusters.as_slice() {
        [only] => (only.name.clone(), TcpCluster::Cluster(only.name.clone())),
        _ => (
            format!("{}.{}", rule.id.name, rule.id.namespace),
            TcpCluster::WeightedClusters(WeightedCluster { clusters }),
        ),
    }
}
