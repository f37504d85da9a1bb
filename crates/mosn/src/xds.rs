//! What is asked of the ADS server, in Envoy's order: clusters, their endpoints, and once all clusters are warm listeners
//! and their routes. Every response is taken whole or refused whole with the field that is wrong.

use std::collections::BTreeSet;

use ::xds::client::{self, ClientConfig, Handle, ResourceType};
use anyhow::Context;
use api::envoy::config::core::v3::address::Address;
use api::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use telemetry::stats::{Counter, Gauge, Registry, Text};
use tokio::sync::mpsc;

use crate::bootstrap::Dynamic;
use crate::config;
use crate::manager::{Manager, Rejected};
use crate::server::{Event, State};

/// The ADS stream's subscriptions and what has come of them.
pub struct Subscriptions {
    handle: Handle,
    endpoints: BTreeSet<String>,
    routes: BTreeSet<String>,
    clusters_asked: bool,
    listeners_asked: bool,
    clusters_came: bool,
    listeners_came: bool,
    connected: Gauge,
    cds: UpdateStats,
    lds: UpdateStats,
    eds: UpdateStats,
    rds: UpdateStats,
}

struct UpdateStats {
    attempt: Counter,
    success: Counter,
    rejected: Counter,
    /// The version in force.
    version: Option<Text>,
}

impl UpdateStats {
    fn new(stats: &Registry, prefix: &str) -> UpdateStats {
        UpdateStats {
            attempt: stats.counter(&format!("{prefix}.update_attempt")),
            success: stats.counter(&format!("{prefix}.update_success")),
            rejected: stats.counter(&format!("{prefix}.update_rejected")),
            version: None,
        }
    }
}

impl UpdateStats {
    /// With the text that only the types have of which there is one subscription.
    fn with_version(self, stats: &Registry, prefix: &str) -> UpdateStats {
        UpdateStats {
            version: Some(stats.text(&format!("{prefix}.version_text"))),
            ..self
        }
    }
}

impl Subscriptions {
    /// Opens the stream to the endpoints of a static cluster.
    pub fn start(
        cluster: &str,
        state: &State,
        events: mpsc::UnboundedSender<Event>,
    ) -> anyhow::Result<Subscriptions> {
        let (endpoints, connect_timeout) = cluster_endpoints(&state.bootstrap, cluster)?;
        let node = state.bootstrap.node.clone().unwrap_or_default();
        let config = ClientConfig {
            endpoints,
            node,
            connect_timeout,
        };
        let handle = client::spawn(config, move |event| {
            let _ = events.send(Event::Xds(event));
        });
        let stats = &state.manager.stats;
        Ok(Subscriptions {
            handle,
            endpoints: BTreeSet::new(),
            routes: BTreeSet::new(),
            clusters_asked: false,
            listeners_asked: false,
            clusters_came: false,
            listeners_came: false,
            connected: stats.gauge("control_plane.connected_state"),
            cds: UpdateStats::new(stats, "cluster_manager.cds")
                .with_version(stats, "cluster_manager.cds"),
            lds: UpdateStats::new(stats, "listener_manager.lds")
                .with_version(stats, "listener_manager.lds"),
            eds: UpdateStats::new(stats, "eds"),
            rds: UpdateStats::new(stats, "rds"),
        })
    }

    /// Whether every first response that was asked for has come.
    pub fn initialized(&self, dynamic: &Dynamic) -> bool {
        (!dynamic.cds || self.clusters_came) && (!dynamic.lds || self.listeners_came)
    }

    /// Asks for what the configuration needs now.
    pub fn update(&mut self, dynamic: &Dynamic, manager: &Manager) {
        if dynamic.cds && !self.clusters_asked {
            self.clusters_asked = true;
            self.cds.attempt.inc();
            self.handle.subscribe(ResourceType::Cluster, None);
        }
        let endpoints = manager.eds_names();
        if endpoints != self.endpoints {
            self.handle
                .subscribe(ResourceType::Endpoint, Some(endpoints.clone()));
            self.endpoints = endpoints;
        }
        let clusters_ready = !dynamic.cds || (self.clusters_came && manager.clusters_initialized());
        if dynamic.lds && !self.listeners_asked && clusters_ready {
            self.listeners_asked = true;
            self.lds.attempt.inc();
            self.handle.subscribe(ResourceType::Listener, None);
        }
        let routes = manager.rds_names();
        if routes != self.routes {
            self.handle
                .subscribe(ResourceType::Route, Some(routes.clone()));
            self.routes = routes;
        }
    }

    /// Applies what came and answers with ACK or NACK.
    pub fn handle(&mut self, event: client::Event, manager: &mut Manager) {
        let (kind, version, nonce, resources) = match event {
            client::Event::Connected => {
                self.connected.set(1);
                return;
            }
            client::Event::Disconnected { reason } => {
                self.connected.set(0);
                tracing::warn!(
                    reason,
                    "the ADS stream ended; the configuration in force goes on serving"
                );
                return;
            }
            client::Event::Response {
                kind,
                version,
                nonce,
                resources,
            } => (kind, version, nonce, resources),
        };
        let applied = match kind {
            ResourceType::Cluster => {
                self.cds.attempt.inc();
                self.clusters_came = true;
                manager.apply_clusters(&version, &resources)
            }
            ResourceType::Endpoint => manager.apply_endpoints(&version, &resources),
            ResourceType::Listener => {
                self.lds.attempt.inc();
                self.listeners_came = true;
                manager.apply_listeners(&version, &resources)
            }
            ResourceType::Route => manager.apply_routes(&version, &resources),
        };
        self.count(kind, &version, &applied);
        match applied {
            Ok(()) => {
                tracing::debug!(
                    ?kind,
                    version,
                    resources = resources.len(),
                    "xDS update applied"
                );
                self.handle.ack(kind, &version, &nonce);
            }
            Err(rejected) => {
                tracing::warn!(?kind, version, %rejected, "xDS update refused; the configuration in force goes on serving");
                self.handle.nack(kind, &nonce, rejected.to_string());
            }
        }
    }

    fn count(&self, kind: ResourceType, version: &str, applied: &Result<(), Rejected>) {
        let stats = match kind {
            ResourceType::Cluster => &self.cds,
            ResourceType::Listener => &self.lds,
            ResourceType::Endpoint => &self.eds,
            ResourceType::Route => &self.rds,
        };
        match applied {
            Ok(()) => {
                stats.success.inc();
                if let Some(text) = &stats.version {
                    text.set(version);
                }
            }
            Err(_) => stats.rejected.inc(),
        }
    }
}

/// The addresses (`host:port`) and the connect timeout of a cluster of the bootstrap.
pub fn cluster_endpoints(
    bootstrap: &api::envoy::config::bootstrap::v3::Bootstrap,
    name: &str,
) -> anyhow::Result<(Vec<String>, std::time::Duration)> {
    let fixed = bootstrap.static_resources.as_ref();
    let cluster = fixed.and_then(|f| f.clusters.iter().find(|c| c.name == name));
    let cluster =
        cluster.with_context(|| format!("cluster {name:?} is not in static_resources.clusters"))?;
    let lb_endpoints = cluster
        .load_assignment
        .iter()
        .flat_map(|l| &l.endpoints)
        .flat_map(|e| &e.lb_endpoints);
    let mut found = Vec::new();
    for lb_endpoint in lb_endpoints {
        if let Some(HostIdentifier::Endpoint(endpoint)) = &lb_endpoint.host_identifier
            && let Some(Address::SocketAddress(socket)) =
                endpoint.address.as_ref().and_then(|a| a.address.as_ref())
        {
            let port = config::port_value(socket)?;
            found.push(if socket.address.contains(':') {
                format!("[{}]:{port}", socket.address)
            } else {
                format!("{}:{port}", socket.address)
            });
        }
    }
    anyhow::ensure!(!found.is_empty(), "cluster {name:?} has no endpoints");
    let timeout = cluster
        .connect_timeout
        .as_ref()
        .map(config::duration)
        .transpose()?;
    Ok((found, timeout.unwrap_or(std::time::Duration::from_secs(5))))
}
