//! A small HTTP client for admin and debug addresses: one connection for one request.

use std::time::Duration;

use anyhow::{Context, bail};
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

/// A whole answer must have arrived within this time.
const TIMEOUT: Duration = Duration::from_secs(30);
/// The same where the answer is that a million instances are on disk.
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(600);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// A configuration of thousands of clusters has tens of MiB as JSON.
const MAX_BODY: usize = 1 << 30;

/// Type of a body of JSON.
const JSON: &str = "application/json";

/// A server, and what a person can do if it is not there.
pub(crate) struct Server {
    /// `host:port`
    pub(crate) address: String,
    /// What it is, for messages: `pilot`, `the proxy`.
    pub(crate) what: &'static str,
    /// What to do if it cannot be reached.
    pub(crate) hint: String,
    /// The token that it asks for.
    pub(crate) token: Option<String>,
}

impl Server {
    /// Asks for a path and reads the answer as JSON.
    pub(crate) async fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.json(Method::GET, path, None).await
    }

    /// Sends a request and reads the answer as JSON; an answer that is no success is an error with the server's
    /// message.
    pub(crate) async fn json(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<Value> {
        let (kind, body) = match body {
            Some(value) => (Some(JSON), Bytes::from(serde_json::to_vec(value)?)),
            None => (None, Bytes::new()),
        };
        self.exchange(method, path, kind, body, TIMEOUT).await
    }

    /// Puts the bytes of a file to a path and reads the answer as JSON.
    pub(crate) async fn upload(&self, path: &str, file: Vec<u8>) -> anyhow::Result<Value> {
        let kind = Some("application/octet-stream");
        let file = Bytes::from(file);
        self.exchange(Method::PUT, path, kind, file, UPLOAD_TIMEOUT)
            .await
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        kind: Option<&str>,
        body: Bytes,
        limit: Duration,
    ) -> anyhow::Result<Value> {
        let exchange = async {
            let response = self.send(method, path, kind, body).await?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_BODY)
                .collect()
                .await
                .map_err(|error| anyhow::anyhow!("{error}"))
                .with_context(|| format!("the answer of {} broke off", self.name()))?
                .to_bytes();
            anyhow::Ok((status, body))
        };
        let (status, body) = tokio::time::timeout(limit, exchange)
            .await
            .with_context(|| format!("{} did not answer within {limit:?}", self.name()))??;
        if !status.is_success() {
            bail!("{}", self.refusal(status, path, &body));
        }
        if body.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&body).with_context(|| {
            format!(
                "{} answered {path} with something that is not JSON",
                self.name()
            )
        })
    }

    /// Asks for a path and only looks whether the answer is a success.
    pub(crate) async fn is_ok(&self, path: &str) -> anyhow::Result<()> {
        let response = tokio::time::timeout(
            CONNECT_TIMEOUT,
            self.send(Method::GET, path, None, Bytes::new()),
        )
        .await
        .with_context(|| format!("{} did not answer {path}", self.name()))??;
        if !response.status().is_success() {
            bail!("{} answered {path} with {}", self.name(), response.status());
        }
        Ok(())
    }

    /// Asks for a path whose answer has no end, and returns its body.
    pub(crate) async fn stream(&self, path: &str) -> anyhow::Result<Incoming> {
        let response =
            tokio::time::timeout(TIMEOUT, self.send(Method::GET, path, None, Bytes::new()))
                .await
                .with_context(|| format!("{} did not answer within 30 s", self.name()))??;
        let status = response.status();
        if !status.is_success() {
            let body = response.into_body().collect().await?.to_bytes();
            bail!("{}", self.refusal(status, path, &body));
        }
        Ok(response.into_body())
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        kind: Option<&str>,
        body: Bytes,
    ) -> anyhow::Result<http::Response<Incoming>> {
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(&self.address))
            .await
            .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
            .with_context(|| format!("cannot reach {} ({})", self.name(), self.hint))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        // Ends with the connection; what goes wrong on it, the request reports.
        tokio::spawn(connection);
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, &self.address);
        if let Some(token) = &self.token {
            let value = format!("Bearer {token}");
            request = request.header(header::AUTHORIZATION, value);
        }
        if let Some(kind) = kind {
            request = request.header(header::CONTENT_TYPE, kind);
        }
        sender
            .send_request(request.body(Full::new(body))?)
            .await
            .with_context(|| format!("{} did not answer {path}", self.name()))
    }

    fn name(&self) -> String {
        format!("{} at {}", self.what, self.address)
    }

    /// The server's own words if it gave some: plain text, or the `message` or `errorMessage` of a JSON object, with
    /// the `field` that it names.
    fn refusal(&self, status: StatusCode, path: &str, body: &[u8]) -> String {
        let text = String::from_utf8_lossy(body);
        let document = serde_json::from_slice::<Value>(body).unwrap_or_default();
        let word = |key: &str| document.get(key).and_then(Value::as_str);
        let said = match (word("message").or(word("errorMessage")), word("field")) {
            (Some(message), Some(field)) => format!("{field} {message}"),
            (Some(message), None) => message.to_owned(),
            (None, _) => text.trim().chars().take(500).collect(),
        };
        let reason = if said.is_empty() {
            String::new()
        } else {
            format!(": {said}")
        };
        format!("{} answered {path} with {status}{reason}", self.name())
    }
}
