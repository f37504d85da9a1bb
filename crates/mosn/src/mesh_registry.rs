//! The sidecar's side of SOFARPC's registry `mesh`: an HTTP server, on port 13330 by custom, where applications publish and
//! subscribe. What they publish is registered with the registry behind a cluster, at this sidecar's own address.
//!
//! Follows SOFARPC's `registry-mesh` (5.13) and the examples of MOSN's images.

mod agent;
mod config;
mod health;
mod publications;
mod server;
mod service_id;
mod wire;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context;
use api::envoy::config::bootstrap::v3::Bootstrap;
use base::FieldError;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::bootstrap::Flags;
use agent::Agent;
pub use config::Config;
use server::Face;

/// The running server and its connection with the registry.
pub struct Handle {
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
    address: SocketAddr,
}

impl Handle {
    /// Where the server listens.
    pub fn address(&self) -> SocketAddr {
        self.address
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

/// Starts the server in front of a registry that is at one of `endpoints` (`host:port`).
pub async fn serve(
    config: Config,
    endpoints: Vec<String>,
    connect_timeout: Duration,
) -> anyhow::Result<Handle> {
    let listener = TcpListener::bind(config.address).await;
    let listener = listener
        .with_context(|| format!("cannot listen on {} for MeshRegistry", config.address))?;
    let address = listener.local_addr().context("MeshRegistry")?;
    let (stop, stopped) = watch::channel(false);
    let agent = Arc::new(Agent::new(config.lease_ttl));
    let mut tasks = JoinSet::new();
    for (protocol, endpoint) in config.application_endpoints.clone() {
        tasks.spawn(health::watch(
            agent.clone(),
            protocol,
            endpoint,
            stopped.clone(),
        ));
    }
    tasks.spawn(
        agent
            .clone()
            .run(endpoints, connect_timeout, stopped.clone()),
    );
    let face = Face {
        config,
        agent,
        app_name: Mutex::default(),
    };
    tasks.spawn(server::serve(listener, Arc::new(face), stopped));
    Ok(Handle {
        stop,
        tasks,
        address,
    })
}
