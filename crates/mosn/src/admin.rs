//! The admin interface on the bootstrap's `admin.address`: Envoy's paths, texts, statuses and content types, so that what
//! reads an Envoy (istioctl, dashboards, Prometheus, probes) reads mosn.

mod clusters;
mod config_dump;
mod control;
mod help;
mod listeners;
mod logging;
mod query;
mod server_info;
mod stats;

use std::net::SocketAddr;

use anyhow::Context;
use axum::Router;
use axum::body::Body;
use axum::extract::State as Shared;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue, SERVER};
use axum::http::{Method, Response, StatusCode, Uri};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};

use crate::config;
use crate::server::{Event, State};
use query::Query;

const TEXT: &str = "text/plain; charset=UTF-8";
const JSON: &str = "application/json";

/// What the handlers reach of the server. Whatever concerns its state is asked of the main loop as an event.
#[derive(Clone)]
struct Server {
    events: mpsc::UnboundedSender<Event>,
    stats: telemetry::stats::Registry,
    gauges: stats::ServerGauges,
}

impl Server {
    /// Runs `work` between two events of the main loop. `None` while the process ends.
    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut State) -> T + Send + 'static,
    ) -> Option<T> {
        let (answer, result) = oneshot::channel();
        let event = Event::Admin(Box::new(move |state| {
            // The client may have gone.
            let _ = answer.send(work(state));
        }));
        self.events.send(event).ok()?;
        result.await.ok()
    }
}

/// An answer before it is HTTP.
#[derive(Debug)]
struct Reply {
    status: StatusCode,
    content_type: &'static str,
    body: String,
}

impl Reply {
    fn text(body: impl Into<String>) -> Self {
        Self {
            status: StatusCode::OK,
            content_type: TEXT,
            body: body.into(),
        }
    }

    /// JSON with one space of indentation, as Envoy prints its protobufs.
    fn json(value: &Value) -> Self {
        let mut body = Vec::new();
        let format = serde_json::ser::PrettyFormatter::with_indent(b" ");
        let mut serializer = serde_json::Serializer::with_formatter(&mut body, format);
        match serde::Serialize::serialize(value, &mut serializer) {
            Ok(()) => {
                body.push(b'\n');
                let body = String::from_utf8_lossy(&body).into_owned();
                Self {
                    status: StatusCode::OK,
                    content_type: JSON,
                    body,
                }
            }
            Err(error) => Self::error(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        }
    }

    fn error(status: StatusCode, body: impl Into<String>) -> Self {
        Self {
            status,
            content_type: TEXT,
            body: body.into(),
        }
    }

    fn bad_request(body: impl Into<String>) -> Self {
        Self::error(StatusCode::BAD_REQUEST, body)
    }

    fn ok() -> Self {
        Self::text("OK\n")
    }

    /// When the main loop does not answer any more.
    fn ending() -> Self {
        Self::error(
            StatusCode::SERVICE_UNAVAILABLE,
            "the server is shutting down\n",
        )
    }

    fn into_response(self) -> Response<Body> {
        let mut response = Response::new(Body::from(self.body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(self.content_type));
        headers.insert(
            CACHE_CONTROL,
            HeaderValue::from_static("no-cache, max-age=0"),
        );
        headers.insert(
            HeaderName::from_static("x-content-type-options"),
            HeaderValue::from_static("nosniff"),
        );
        headers.insert(SERVER, HeaderValue::from_static("mosn"));
        response
    }
}

/// Listens on the admin's address, if the bootstrap has one.
pub async fn start(
    state: &State,
    events: mpsc::UnboundedSender<Event>,
    stats: telemetry::stats::Registry,
) -> anyhow::Result<()> {
    let Some(address) = state
        .bootstrap
        .admin
        .as_ref()
        .and_then(|admin| admin.address.as_ref())
    else {
        return Ok(());
    };
    let address = config::socket_addr(address)
        .map_err(|error| error.in_field("address").in_field("admin"))?;
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on the admin's address {address}"))?;
    let bound = listener
        .local_addr()
        .context("cannot tell the admin's address")?;
    if let Some(path) = &state.flags.admin_address_path {
        std::fs::write(path, bound.to_string())
            .with_context(|| format!("cannot write the admin's address to {}", path.display()))?;
    }
    let gauges = stats::ServerGauges::new(&stats, state);
    let router = Router::new().fallback(answer).with_state(Server {
        events,
        stats,
        gauges,
    });
    tracing::info!(address = %bound, "admin address");
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "the admin has stopped");
        }
    });
    Ok(())
}

async fn answer(Shared(server): Shared<Server>, method: Method, uri: Uri) -> Response<Body> {
    route(
        &server,
        &method,
        uri.path(),
        uri.query().unwrap_or_default(),
    )
    .await
    .into_response()
}

/// Whether a path changes something and so wants POST.
fn mutates(path: &str) -> bool {
    matches!(
        path,
        "/drain_listeners"
            | "/healthcheck/fail"
            | "/healthcheck/ok"
            | "/logging"
            | "/quitquitquit"
            | "/reopen_logs"
            | "/reset_counters"
    )
}

async fn route(server: &Server, method: &Method, path: &str, query: &str) -> Reply {
    if mutates(path) && *method != Method::POST {
        return Reply::error(
            StatusCode::METHOD_NOT_ALLOWED,
            format!("Method {method} not allowed, POST required."),
        );
    }
    let query = Query::parse(query);
    match path {
        "/" | "/help" => help::help(),
        "/certs" => Reply::json(&serde_json::json!({"certificates": []})),
        "/clusters" => clusters::clusters(server, &query).await,
        "/config_dump" => config_dump::config_dump(server, query).await,
        "/drain_listeners" => control::drain_listeners(server, &query).await,
        "/healthcheck/fail" => control::fail_health_check(server, true).await,
        "/healthcheck/ok" => control::fail_health_check(server, false).await,
        "/hot_restart_version" => Reply::text("disabled"),
        "/init_dump" => config_dump::init_dump(server).await,
        "/listeners" => listeners::listeners(server, &query).await,
        "/logging" => logging::logging(&query),
        "/memory" => server_info::memory(),
        "/quitquitquit" => control::quit(server).await,
        "/ready" => server_info::ready(server).await,
        "/reopen_logs" => control::reopen_logs(server).await,
        "/reset_counters" => {
            server.stats.reset_counters();
            Reply::ok()
        }
        "/runtime" => Reply::json(&serde_json::json!({"entries": {}, "layers": []})),
        "/server_info" => server_info::server_info(server).await,
        "/stats" => stats::stats(server, &query).await,
        "/stats/prometheus" => stats::prometheus(server, &query).await,
        _ => help::not_found(),
    }
}

/// An address in protobuf's JSON form.
fn address_json(address: SocketAddr) -> Value {
    serde_json::json!({"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}})
}

/// A message with one repeated field, which is left out when it is empty.
fn listed(field: &str, items: Vec<Value>) -> Value {
    if items.is_empty() {
        return serde_json::json!({});
    }
    serde_json::json!({field: Value::Array(items)})
}
