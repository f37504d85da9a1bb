//! The HTTP port: where clients ask for the addresses of session servers. There is one, this one.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::Router;
use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, State};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::serve::IncomingStream;
use axum::{Json, http::StatusCode};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::Server;
use crate::naming::authority;

/// The address that a client has reached.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reached(Option<SocketAddr>);

impl Connected<IncomingStream<'_, TcpListener>> for Reached {
    fn connect_info(stream: IncomingStream<'_, TcpListener>) -> Reached {
        Reached(stream.io().local_addr().ok())
    }
}

type Asked = (State<Arc<Server>>, ConnectInfo<Reached>);

pub(super) fn router(server: Arc<Server>) -> Router {
    Router::new()
        .route("/api/servers/queryWithWeight", get(query_with_weight))
        .route("/api/servers/query", get(query))
        .route("/api/servers/query.json", get(query_json))
        .route("/api/servers/dataCenter", get(query_json))
        .route("/api/servers/alive", get(async || "OK"))
        .route("/health/check", get(health))
        .fallback(async || (StatusCode::NOT_FOUND, "there is nothing"))
        .with_state(server)
}

/// Where the Bolt port is, as a client can reach it: it has just reached this one.
fn bolt_address(server: &Server, reached: Reached) -> String {
    if let Some(advertised) = &server.config.advertised {
        return advertised.clone();
    }
    let address = server.config.bolt_address;
    let ip = match reached {
        Reached(Some(reached)) if address.ip().is_unspecified() => reached.ip(),
        _ => address.ip(),
    };
    let ip = match ip {
        IpAddr::V6(ip) => ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), IpAddr::V4),
        IpAddr::V4(_) => ip,
    };
    authority(&ip.to_string(), address.port())
}

async fn query((State(server), ConnectInfo(reached)): Asked) -> String {
    bolt_address(&server, reached)
}

/// The weight is the load: of two servers clients take the lighter.
async fn query_with_weight((State(server), ConnectInfo(reached)): Asked) -> String {
    let connections = server.state().sessions.connections();
    format!("{}?weight={connections}", bolt_address(&server, reached))
}

async fn query_json((State(server), ConnectInfo(reached)): Asked) -> Json<Value> {
    Json(json!([bolt_address(&server, reached)]))
}

async fn health() -> impl IntoResponse {
    Json(json!({"success": true, "message": "ok"}))
}
