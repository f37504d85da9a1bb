//! The mesh as a Eureka server: applications register and find each other with Eureka's own clients, and what every other
//! registry holds is there too. Answers are of this moment; there is no cache that shows what was half a minute ago.

mod directory;
mod requests;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::routing::any;
use tokio::net::TcpListener;

use crate::hub::Hub;
use crate::osr::Registry;

use directory::Directory;

/// How the facade is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where it listens.
    pub address: SocketAddr,
}

/// What requests are answered from.
struct Server {
    directory: Directory,
    registry: Registry,
    /// Changes of an instance that begin with a look at it come one after the other.
    changing: tokio::sync::Mutex<()>,
}

/// Serves until the hub ends or the listener fails. Reads are the hub's, writes go to the registry.
pub async fn serve(
    listener: TcpListener,
    hub: Hub,
    registry: Registry,
    config: Config,
) -> io::Result<()> {
    tracing::info!(address = %config.address, "serving as Eureka");
    let mut changes = hub.changes().map_err(io::Error::other)?;
    let server = Arc::new(Server {
        directory: Directory::new(hub.snapshot()),
        registry,
        changing: tokio::sync::Mutex::default(),
    });
    let router = Router::new()
        .fallback(any(requests::answer))
        .with_state(server.clone());
    let follow = async {
        while changes.next().await.is_some() {
            server.directory.update(hub.snapshot());
        }
        Ok(())
    };
    tokio::select! {
        served = axum::serve(listener, router).into_future() => served,
        ended = follow => ended,
    }
}
