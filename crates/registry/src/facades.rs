//! The mesh as other registries: each answers the wire of one, for applications that change only the address of theirs.

mod claims;
pub mod eureka;
pub mod nacos;
mod settle;
pub mod sofaregistry;
pub mod zookeeper;

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// After a connection that could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(250);

/// Serves connections, at most so many at a time; whoever comes then is refused. They end with it.
async fn accept<S>(
    listener: &TcpListener,
    limit: usize,
    serve: impl Fn(TcpStream, SocketAddr) -> S,
) -> Infallible
where
    S: Future<Output = ()> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(limit));
    let mut tasks = JoinSet::new();
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Of one connection, or of a limit that others may free.
                tracing::warn!(%error, "a connection cannot be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            tracing::warn!(%peer, "refused: there are {limit} connections");
            continue;
        };
        let serving = serve(stream, peer);
        tasks.spawn(async move {
            serving.await;
            drop(place);
        });
        while tasks.try_join_next().is_some() {}
    }
}
