//! The HTTP server that applications talk to. It answers with status 200 and `success: false` where SOFARPC should log the
//! reason: of any other status its client logs the number only.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::mesh::registry::v1::{Instance, InstanceRef};
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use super::agent::{Agent, FACE};
use super::config::Config;
use super::service_id::ServiceId;
use super::stopped;
use super::subscriptions::{self, Told};
use super::wire::{Application, DATAS, Outcome, Publish, Service, Subscribed, provider_url};

/// Bytes of a body.
const BODY_BYTES: usize = 1024 * 1024;
/// Connections at one time; the others wait in the kernel's queue.
const CONNECTIONS: usize = 512;
/// Of them, those that are told of changes.
pub(super) const WATCHES: usize = 256;
/// For the header of a request, and for its body.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// After a failed accept, most likely for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the handlers share.
pub(super) struct Face {
    pub(super) config: Config,
    pub(super) agent: Arc<Agent>,
    /// As the application has introduced itself; the last of several.
    pub(super) app_name: Mutex<String>,
    /// Places for clients that are told of changes.
    pub(super) watches: Arc<Semaphore>,
}

type Answer = Result<Response, Refusal>;

/// An answer other than 200.
struct Refusal(StatusCode, String);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let Refusal(status, message) = self;
        let mut response = reply(&Outcome {
            success: false,
            error_message: message,
        });
        *response.status_mut() = status;
        response
    }
}

fn reply(document: &impl Serialize) -> Response {
    let body = serde_json::to_vec(document).unwrap_or_default();
    let mut headers = HeaderMap::new();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    (headers, body).into_response()
}

fn outcome(result: Result<(), String>) -> Response {
    reply(&Outcome {
        success: result.is_ok(),
        error_message: result.err().unwrap_or_default(),
    })
}

fn router(face: Arc<Face>) -> Router {
    Router::new()
        .route("/configs/application", post(application))
        .route("/services/publish", post(publish))
        .route("/services/unpublish", post(unpublish))
        .route("/services/subscribe", post(subscribe))
        .route("/services/unsubscribe", post(unsubscribe))
        .route("/services/watch", post(watch_service))
        .method_not_allowed_fallback(async || {
            Refusal(
                StatusCode::METHOD_NOT_ALLOWED,
                "only POST is known".to_owned(),
            )
        })
        .fallback(async |request: Request| {
            Refusal(
                StatusCode::NOT_FOUND,
                format!("there is no {}", request.uri().path()),
            )
        })
        .with_state(face)
}

/// Reads a JSON body, whatever its type is said to be: SOFARPC says `text/plain`, curl a form.
async fn read<T: DeserializeOwned>(request: Request) -> Result<T, Refusal> {
    let body = Limited::new(request.into_body(), BODY_BYTES).collect();
    let body: Bytes = match tokio::time::timeout(READ_TIMEOUT, body).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            let message = format!("a body may have {BODY_BYTES} bytes at most");
            return Err(Refusal(StatusCode::PAYLOAD_TOO_LARGE, message));
        }
        Ok(Err(error)) => {
            let message = format!("the body cannot be read: {error}");
            return Err(Refusal(StatusCode::BAD_REQUEST, message));
        }
        Err(_) => {
            let message = format!("the body did not come within {READ_TIMEOUT:?}");
            return Err(Refusal(StatusCode::REQUEST_TIMEOUT, message));
        }
    };
    let parsed = serde_json::from_slice(&body);
    parsed.map_err(|error| {
        Refusal(
            StatusCode::BAD_REQUEST,
            format!("the body is not what is expected: {error}"),
        )
    })
}

async fn application(State(face): State<Arc<Face>>, request: Request) -> Answer {
    let application: Application = read(request).await?;
    if let Some(name) = application.app_name {
        tracing::debug!(name, "an application introduced itself");
        *face.app_name.lock().unwrap_or_else(PoisonError::into_inner) = name;
    }
    Ok(outcome(Ok(())))
}

async fn publish(State(face): State<Arc<Face>>, request: Request) -> Answer {
    let publish: Publish = read(request).await?;
    let app = face
        .app_name
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    let located = publish.service().and_then(|id| Ok((face.locate(&id)?, id)));
    let result = match located {
        Err(why) => Err(why),
        Ok((located, id)) => {
            let instance = Instance {
                id: located.id,
                address: face.config.instance_address.clone(),
                port: u32::from(located.port),
                ..publish.into_instance(&id, &app, &face.config.labels)
            };
            face.agent
                .publish(FACE, instance, face.config.publish_timeout)
                .await
        }
    };
    Ok(outcome(result))
}

async fn unpublish(State(face): State<Arc<Face>>, request: Request) -> Answer {
    let service: Service = read(request).await?;
    let located = service.service().and_then(|id| Ok((face.locate(&id)?, id)));
    let result = match located {
        Err(why) => Err(why),
        Ok((located, id)) => {
            let reference = InstanceRef {
                protocol: id.protocol,
                service: id.name,
                id: located.id,
                ..InstanceRef::default()
            };
            face.agent
                .unpublish(FACE, &reference, face.config.publish_timeout)
                .await
        }
    };
    Ok(outcome(result))
}

/// A subscription succeeds without a provider and without a registry: providers may come later, and SOFARPC would not ask
/// again.
async fn subscribe(State(face): State<Arc<Face>>, request: Request) -> Answer {
    let service: Service = read(request).await?;
    let (datas, error_message) = match service.service() {
        Err(why) => (None, why),
        Ok(id) => (Some(face.agent.providers(&id).await), String::new()),
    };
    Ok(reply(&Subscribed {
        success: datas.is_some(),
        error_message,
        ..subscribed(service.name(), &datas.unwrap_or_default())
    }))
}

fn subscribed(name: &str, providers: &[Instance]) -> Subscribed {
    Subscribed {
        service_name: name.to_owned(),
        datas: providers.iter().take(DATAS).map(provider_url).collect(),
        success: true,
        error_message: String::new(),
    }
}

/// Answers as a subscription, and again in a line of its own whenever the providers change; lines between are empty.
async fn watch_service(State(face): State<Arc<Face>>, request: Request) -> Answer {
    let service: Service = read(request).await?;
    let id = service
        .service()
        .map_err(|why| Refusal(StatusCode::BAD_REQUEST, why))?;
    let Ok(place) = face.watches.clone().try_acquire_owned() else {
        let message = format!("the sidecar serves {WATCHES} watches at most");
        return Err(Refusal(StatusCode::TOO_MANY_REQUESTS, message));
    };
    let (client, told) = mpsc::channel(1);
    let agent = face.agent.clone();
    tokio::spawn(async move {
        subscriptions::tell(agent, id, client).await;
        drop(place);
    });
    let lines = ReceiverStream::new(told).map(move |told| {
        let mut line = match told {
            Told::Nothing => Vec::new(),
            Told::Providers(providers) => {
                let document = subscribed(service.name(), &providers);
                serde_json::to_vec(&document).unwrap_or_default()
            }
        };
        line.push(b'\n');
        Ok::<_, std::convert::Infallible>(line)
    });
    let kind = HeaderValue::from_static("application/x-ndjson");
    Ok(([(header::CONTENT_TYPE, kind)], Body::from_stream(lines)).into_response())
}

async fn unsubscribe(State(face): State<Arc<Face>>, request: Request) -> Answer {
    let service: Service = read(request).await?;
    let id = service.service();
    if let Ok(id) = &id {
        face.agent.unsubscribe(id);
    }
    Ok(outcome(id.map(drop)))
}

/// Where this sidecar takes the calls of a service.
struct Located {
    port: u16,
    /// The instance's id: one for each version and group at this address.
    id: String,
}

impl Face {
    fn locate(&self, id: &ServiceId) -> Result<Located, String> {
        let Some(port) = self.config.ingress_ports.get(&id.protocol) else {
            let known: Vec<&str> = self
                .config
                .ingress_ports
                .keys()
                .map(String::as_str)
                .collect();
            return Err(format!(
                "the sidecar has no ingress port for protocol {:?}; it has {}",
                id.protocol,
                known.join(", ")
            ));
        };
        let instance_id = instance_id(&self.config.instance_address, *port, &id.version, &id.group);
        Ok(Located {
            port: *port,
            id: instance_id,
        })
    }
}

/// Of one service, what makes an instance of this sidecar another than the next.
pub(super) fn instance_id(address: &str, port: u16, version: &str, group: &str) -> String {
    let mut id = format!("{address}:{port}~{version}");
    if !group.is_empty() {
        id.push('~');
        id.push_str(group);
    }
    id
}

/// Serves until `stop` becomes true.
pub(super) async fn serve(listener: TcpListener, face: Arc<Face>, mut stop: watch::Receiver<bool>) {
    let router = router(face);
    let free = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &free) => accepted,
            Some(_) = connections.join_next() => continue,
            () = stopped(&mut stop) => return,
        };
        let Some((stream, permit)) = accepted else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let service = TowerToHyperService::new(router.clone());
        connections.spawn(async move {
            let mut http = hyper::server::conn::http1::Builder::new();
            http.timer(TokioTimer::new())
                .header_read_timeout(READ_TIMEOUT);
            // An error is the client's: it has gone or sent something that is not HTTP.
            let _ = http.serve_connection(TokioIo::new(stream), service).await;
            drop(permit);
        });
    }
}

async fn accept(
    listener: &TcpListener,
    free: &Arc<Semaphore>,
) -> Option<(tokio::net::TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let permit = free.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => Some((stream, permit)),
        Err(error) => {
            tracing::warn!(%error, "the registry's server cannot accept");
            None
        }
    }
}
