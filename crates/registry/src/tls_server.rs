//! The registry with TLS: HTTP and gRPC on one address.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tower::ServiceExt;

use crate::access::Peer;
use crate::gate::Api;
use crate::tls::{Acceptor, ServerTls, TlsError};

/// Connections at one time.
const CONNECTIONS: usize = 50_000;
/// A request's head has to be there within this time.
const HEAD_LIMIT: Duration = Duration::from_secs(30);
/// Silent connections are asked whether they live.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// When no more files can be opened, or the like.
const RETRY: Duration = Duration::from_millis(100);

/// Serves a registry on a listener; ends only with an error. The files are read again when they change.
pub async fn serve_tls(listener: TcpListener, api: &Api, tls: ServerTls) -> Result<(), TlsError> {
    let acceptor = Arc::new(Acceptor::new(tls, &[b"h2", b"http/1.1"])?);
    let router = router(api);
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        // The semaphore is never closed.
        let Ok(place) = places.clone().acquire_owned().await else {
            std::future::pending().await
        };
        let (stream, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection cannot be accepted");
                tokio::time::sleep(RETRY).await;
                continue;
            }
        };
        let (acceptor, router) = (acceptor.clone(), router.clone());
        tokio::spawn(async move {
            if let Err(error) = connection(&acceptor, router, stream, address).await {
                tracing::debug!(%address, %error, "connection to the registry ended");
            }
            drop(place);
        });
    }
}

fn router(api: &Api) -> Router {
    let grpc = format!("/{}/{{*method}}", crate::grpc::NAME);
    api.http_router().route_service(&grpc, api.grpc_service())
}

async fn connection(
    acceptor: &Acceptor,
    router: Router,
    stream: TcpStream,
    address: SocketAddr,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    stream.set_nodelay(true)?;
    let accepted = acceptor.accept(stream).await?;
    let peer = match &accepted.peer {
        Some(identity) => Peer::certified(address, identity).map_err(io::Error::other)?,
        None => Peer::at(address),
    };
    let service = service_fn(move |mut request: http::Request<Incoming>| {
        request.extensions_mut().insert(peer.clone());
        let router = router.clone();
        async move { Ok::<_, Infallible>(answer(router, request.map(Body::new)).await) }
    });
    let mut server = auto::Builder::new(TokioExecutor::new());
    server
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT);
    server
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE);
    server
        .serve_connection(TokioIo::new(accepted.stream), service)
        .await
}

async fn answer(router: Router, request: http::Request<Body>) -> axum::response::Response {
    match router.oneshot(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}
