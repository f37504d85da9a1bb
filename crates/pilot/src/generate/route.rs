//! Route configurations: one for each port where HTTP or RPC calls go out.
#![allow(
    deprecated,
    reason = "Istio sends max_grpc_timeout, and Envoy acts on it"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use api::envoy::config::route::v3::route_action::ClusterSpecifier;
use api::envoy::config::route::v3::{RouteAction, RouteConfiguration, VirtualHost};
use xds::server::ResourceSet;

use super::message::duration;
use super::vhost::{Context, plain_route, status_route, virtual_host};
use super::{PASSTHROUGH, set};
use crate::hosts;
use crate::istio::sidecar::OutboundMode;
use crate::protocol::Protocol;
use crate::proxy::Client;
use crate::scope::{Egress, Scope};
use crate::world::{Service, World};

/// Istio's limit of direct responses' bodies.
const DIRECT_RESPONSE_BYTES: u32 = 1 << 20;

/// Whether a listener of this protocol routes calls for this program.
pub(super) fn is_routed(client: Client, protocol: Protocol) -> bool {
    match client {
        Client::Mosn => matches!(protocol, Protocol::Http | Protocol::Bolt | Protocol::Dubbo),
        Client::Envoy => protocol.is_http(),
    }
}

/// Ports where calls are routed, with what is spoken: of the listener itself, or of its services.
pub(super) fn routed_ports(scope: &Scope, egress: &Egress) -> BTreeMap<u16, Protocol> {
    let client = scope.class.client;
    let mut ports = BTreeMap::new();
    match egress.port {
        Some(port) => {
            if is_routed(client, port.protocol) {
                ports.insert(port.number, port.protocol);
            }
        }
        None => {
            for port in egress.services.values().flat_map(|service| &service.ports) {
                if is_routed(client, port.protocol) {
                    ports.entry(port.number).or_insert(port.protocol);
                }
            }
        }
    }
    ports
}

/// All route configurations of a class, under their ports as names.
pub(super) fn routes(world: &World, scope: &Scope) -> ResourceSet {
    let mut configurations: BTreeMap<String, RouteConfiguration> = BTreeMap::new();
    for egress in &scope.egress {
        for (port, protocol) in routed_ports(scope, egress) {
            let name = port.to_string();
            configurations.entry(name.clone()).or_insert_with(|| {
                let context = Context {
                    world,
                    scope,
                    egress,
                    port,
                    protocol,
                };
                configuration(name, virtual_hosts(&context))
            });
        }
    }
    set(configurations.into_iter().collect())
}

fn configuration(name: String, virtual_hosts: Vec<VirtualHost>) -> RouteConfiguration {
    RouteConfiguration {
        name,
        virtual_hosts,
        validate_clusters: Some(false),
        max_direct_response_body_size_bytes: Some(DIRECT_RESPONSE_BYTES),
        ignore_port_in_host_matching: true,
        ..Default::default()
    }
}

fn virtual_hosts(context: &Context<'_>) -> Vec<VirtualHost> {
    let mut virtual_hosts = Vec::new();
    // Envoy refuses a configuration with a domain twice, and compares domains without case.
    let mut domains: BTreeSet<String> = BTreeSet::new();
    let mut take = |names: Vec<String>| -> Vec<String> {
        names
            .into_iter()
            .filter(|name| domains.insert(name.to_ascii_lowercase()))
            .collect()
    };
    for service in context.egress.services.values() {
        let Some(port) = context
            .egress
            .offers(service, context.port, context.protocol)
        else {
            continue;
        };
        let host = &service.id.host;
        let routes = context.routes(host, port.number);
        let domains = take(service_domains(context, service));
        if !domains.is_empty() && !routes.is_empty() {
            virtual_hosts.push(virtual_host(
                format!("{host}:{}", context.port),
                domains,
                routes,
            ));
        }
    }
    // Hosts that only a VirtualService knows.
    let rules = context.egress.virtual_services.iter();
    for host in rules
        .filter(|rule| !rule.spec.http.is_empty())
        .flat_map(|rule| &rule.hosts)
    {
        let known = context
            .egress
            .services
            .keys()
            .any(|service| service.eq_ignore_ascii_case(host));
        if known || context.world.index.services_named(host).next().is_some() {
            continue;
        }
        let routes = context.routes(host, context.port);
        let domains = take(vec![host.clone()]);
        if !domains.is_empty() && !routes.is_empty() {
            virtual_hosts.push(virtual_host(
                format!("{host}:{}", context.port),
                domains,
                routes,
            ));
        }
    }
    if context.protocol.is_http() {
        virtual_hosts.push(other_hosts(context.scope));
    }
    virtual_hosts
}

fn service_domains(context: &Context<'_>, service: &Service) -> Vec<String> {
    let host = service.id.host.to_string();
    if context.protocol.is_rpc() {
        return vec![host];
    }
    let class = &context.scope.class;
    let mut domains = vec![host.clone()];
    // The absolute form of a name, as resolvers write it; a name of one label is none.
    if host.contains('.') {
        domains.push(format!("{host}."));
    }
    domains.extend(hosts::short_names(
        &host,
        &class.namespace,
        &context.world.mesh.domain,
    ));
    let addresses = service
        .addresses
        .iter()
        .filter(|address| !address.contains('/'));
    domains.extend(addresses.map(|address| match address.contains(':') {
        true => format!("[{address}]"),
        false => address.clone(),
    }));
    domains
}

/// Calls to hosts that are no service.
fn other_hosts(scope: &Scope) -> VirtualHost {
    let any_domain = vec!["*".to_owned()];
    match scope.outbound {
        OutboundMode::AllowAny => {
            let action = RouteAction {
                cluster_specifier: Some(ClusterSpecifier::Cluster(PASSTHROUGH.to_owned())),
                timeout: Some(duration(Duration::ZERO)),
                max_grpc_timeout: Some(duration(Duration::ZERO)),
                ..Default::default()
            };
            virtual_host(
                "allow_any".to_owned(),
                any_domain,
                vec![plain_route("allow_any", action)],
            )
        }
        OutboundMode::RegistryOnly => virtual_host(
            "block_all".to_owned(),
            any_domain,
            vec![status_route("block_all", 502)],
        ),
    }
}
