//! The sidecar's side of SOFARPC's registry `mesh`: an HTTP server, on port 13330 by custom, where applications publish and
//! subscribe. What they publish is registered with the registry behind a cluster, at this sidecar's own address.
//!
//! Follows SOFARPC's `registry-mesh` (5.13) and the examples of MOSN's images.

mod agent;
mod annotations;
mod application;
mod applications;
mod bearer;
mod config;
mod health;
mod probe;
mod publications;
mod server;
mod service_id;
mod subscriptions;
mod wire;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context;
use api::envoy::config::bootstrap::v3::Bootstrap;
use base::FieldError;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::bootstrap::Flags;
use crate::manager::Manager;
use agent::Agent;
pub use config::Config;
use health::Endpoints;
use server::Face;

/// What the names of clusters behind ingress listeners begin with: `inbound|PORT||`.
const INBOUND: &str = "inbound|";

/// The running server and its connection with the registry.
pub struct Handle {
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
    address: SocketAddr,
    ingress_ports: BTreeMap<String, u16>,
    /// From the bootstrap; they win.
    given: Endpoints,
    endpoints: watch::Sender<Endpoints>,
}

impl Handle {
    /// Where the server listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Learns from the configuration where the sidecar hands the applications' calls to: the clusters that Istio's naming
    /// gives to ingress ports.
    pub fn follow(&self, manager: &Manager) {
        let mut endpoints = self.given.clone();
        for (name, entry) in manager
            .clusters()
            .filter(|(name, _)| name.starts_with(INBOUND))
        {
            let Some(port) = name
                .split('|')
                .nth(1)
                .and_then(|port| port.parse::<u16>().ok())
            else {
                continue;
            };
            let protocol = self
                .ingress_ports
                .iter()
                .find(|(_, ingress)| **ingress == port);
            if let (Some((protocol, _)), [host]) = (protocol, entry.hosts.hosts.as_slice()) {
                let endpoint = endpoints.entry(protocol.clone());
                endpoint.or_insert_with(|| host.address.to_string());
            }
        }
        self.endpoints.send_if_modified(|known| {
            let new = *known != endpoints;
            *known = endpoints;
            new
        });
    }

    /// Takes out what was published here, in at most 2 s, and ends.
    pub async fn stop(self) {
        let Handle {
            stop, mut tasks, ..
        } = self;
        // An error says that all tasks have ended.
        let _ = stop.send(true);
        while tasks.join_next().await.is_some() {}
    }
}

/// Waits until the process stops.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error says that the handle was dropped: that is a stop too.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// The cluster of the registry, if the bootstrap has the extension.
pub fn cluster_name(bootstrap: &Bootstrap) -> Result<Option<String>, FieldError> {
    Ok(Config::of(bootstrap)?.map(|config| config.cluster_name))
}

/// Starts the server, if the bootstrap has the extension.
pub async fn start(bootstrap: &Bootstrap, _flags: &Flags) -> anyhow::Result<Option<Handle>> {
    let Some(config) = Config::of(bootstrap)? else {
        return Ok(None);
    };
    let (endpoints, connect_timeout) =
        crate::xds::cluster_endpoints(bootstrap, &config.cluster_name)?;
    serve(config, endpoints, connect_timeout).await.map(Some)
}

/// Starts the server in front of a registry that is at one of the addresses `registry` (`host:port`).
pub async fn serve(
    config: Config,
    registry: Vec<String>,
    connect_timeout: Duration,
) -> anyhow::Result<Handle> {
    let listener = TcpListener::bind(config.address).await;
    let listener = listener
        .with_context(|| format!("cannot listen on {} for MeshRegistry", config.address))?;
    let address = listener.local_addr().context("MeshRegistry")?;
    let (stop, stopped) = watch::channel(false);
    let agent = Arc::new(Agent::new(config.lease_ttl, config.token_file.clone()));
    let mut tasks = JoinSet::new();
    let given = config.application_endpoints.clone();
    let (endpoints, known_endpoints) = watch::channel(given.clone());
    let ingress_ports = config.ingress_ports.clone();
    for protocol in ingress_ports.keys().cloned() {
        let known = known_endpoints.clone();
        tasks.spawn(health::watch(
            agent.clone(),
            protocol,
            known,
            stopped.clone(),
        ));
    }
    tasks.spawn(
        agent
            .clone()
            .run(registry, connect_timeout, stopped.clone()),
    );
    tasks.spawn(applications::watch(
        agent.clone(),
        config.clone(),
        stopped.clone(),
    ));
    let face = Face {
        config,
        agent,
        app_name: Mutex::default(),
        watches: Arc::new(Semaphore::new(server::WATCHES)),
    };
    tasks.spawn(server::serve(listener, Arc::new(face), stopped));
    Ok(Handle {
        stop,
        tasks,
        address,
        ingress_ports,
        given,
        endpoints,
    })
}
