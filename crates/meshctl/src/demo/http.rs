//! HTTP/1.1 of the demo applications.

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use http::{Request, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};

use super::client::{Call, Failure, Reply};
use crate::up::plan::Protocol;

/// Larger than the largest argument of the script.
const MAX_BODY: usize = 8 << 20;

pub(super) type Sender = hyper::client::conn::http1::SendRequest<Full<Bytes>>;

/// Takes the connection as an HTTP client's.
pub(super) async fn connect(stream: TcpStream) -> Result<Sender, Failure> {
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| broken(&error))?;
    // What goes wrong on it, the call that waits for it reports.
    tokio::spawn(connection);
    Ok(sender)
}

/// Makes a call: a POST of the argument.
pub(super) async fn call(sender: &mut Sender, call: &Call) -> Result<Reply, Failure> {
    let mut request =
        Request::post(format!("/{}", call.method)).header(header::HOST, Protocol::Http.service());
    for (name, value) in &call.headers {
        request = request.header(*name, value);
    }
    let request = request
        .body(Full::new(Bytes::from(call.argument.clone())))
        .map_err(|error| Failure::Refused(error.to_string()))?;
    sender.ready().await.map_err(|error| broken(&error))?;
    let response = sender
        .send_request(request)
        .await
        .map_err(|error| broken(&error))?;
    let status = response.status();
    let body = response
        .into_body()
        .collect()
        .await
        .map_err(|error| broken(&error))?
        .to_bytes();
    let text = String::from_utf8_lossy(&body);
    match status {
        StatusCode::OK => Reply::parse(&text),
        StatusCode::UNPROCESSABLE_ENTITY => Err(Failure::Exception(text.into_owned())),
        _ => Err(Failure::Refused(format!("{status}: {text}"))),
    }
}

fn broken(error: &hyper::Error) -> Failure {
    Failure::Connection(error.to_string())
}

/// Answers calls for ever.
pub(super) async fn serve(listener: TcpListener, name: &str) -> anyhow::Result<()> {
    let router = Router::new()
        .fallback(answer)
        .layer(axum::extract::DefaultBodyLimit::max(MAX_BODY))
        .with_state(name.to_owned());
    axum::serve(listener, router).await?;
    Ok(())
}

async fn answer(
    State(name): State<String>,
    uri: Uri,
    headers: HeaderMap,
    body: String,
) -> (StatusCode, String) {
    if uri.path() == "/fail" {
        return (StatusCode::UNPROCESSABLE_ENTITY, body);
    }
    let user = headers
        .get("demo-user")
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    (StatusCode::OK, super::answer(&name, user, &body))
}
