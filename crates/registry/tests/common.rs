//! A registry behind a socket, and waiting with a deadline.
#![allow(dead_code, reason = "each test file uses its part")]

use std::net::SocketAddr;
use std::time::Duration;

use registry::client::{Client, Content};
use registry::{Limits, Registry};
use tokio::net::TcpListener;

/// Everything in these tests happens within this, on a busy machine too.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// Serves a registry over HTTP for as long as the test's runtime lives.
pub(crate) async fn serve(registry: &Registry) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    let router = registry.http_router();
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

/// Limits that allow leases shorter than a second.
pub(crate) fn short_leases() -> Limits {
    Limits {
        ttl_min: Duration::from_millis(10),
        ..Limits::default()
    }
}

/// A registry in memory, and a client of it over HTTP.
pub(crate) async fn registry_and_client() -> (Registry, Client) {
    let registry = Registry::in_memory(short_leases()).expect("a registry");
    let address = serve(&registry).await;
    let client = Client::new(&address.to_string()).expect("an address");
    (registry, client)
}

/// An instance at an address of its own.
pub(crate) fn content(last_byte: u8) -> Content {
    Content {
        address: format!("10.0.0.{last_byte}"),
        port: 12200,
        ..Content::default()
    }
}

/// The result of a future that must not hang.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future)
        .await
        .expect("in time")
}
