//! The HTTP client of the adapters: bounded in time and size, with reasons that people understand.

use std::error::Error;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, PercentEncode, utf8_percent_encode};

/// Bytes of an answer: a hundred thousand instances have 100 MB.
const ANSWER_BYTES: usize = 256 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections without work are closed before most servers do it.
const IDLE_TIMEOUT: Duration = Duration::from_secs(15);
/// What stays as it is in a part of a path or a query.
const KEPT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// A part of a path or a query.
pub(crate) fn part(text: &str) -> PercentEncode<'_> {
    utf8_percent_encode(text, KEPT)
}

/// Why there is no answer.
pub(crate) type Unanswered = String;

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    /// Status and the beginning of the body.
    pub(crate) fn describe(&self) -> String {
        let body = String::from_utf8_lossy(&self.body);
        let first: String = body.trim().chars().take(160).collect();
        let first = first.replace(|c: char| c.is_control(), " ");
        if first.is_empty() {
            return format!("answers {}", self.status);
        }
        format!("answers {}: {first}", self.status)
    }
}

/// Connections to the servers of one registry.
#[derive(Clone, Debug)]
pub(crate) struct Web {
    client: Client<HttpConnector, Full<Bytes>>,
}

impl Web {
    pub(crate) fn new() -> Web {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_timer(TokioTimer::new())
            .build(connector);
        Web { client }
    }

    /// Asks and waits for the whole answer, at most for `limit`.
    pub(crate) async fn send(
        &self,
        request: Request<Full<Bytes>>,
        limit: Duration,
    ) -> Result<Answer, Unanswered> {
        let answer = async {
            let response = self.client.request(request).await.map_err(|e| chain(&e))?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, ANSWER_BYTES).collect().await;
            let body = body.map_err(|e| chain(e.as_ref()))?.to_bytes();
            Ok(Answer {
                status: head.status,
                headers: head.headers,
                body,
            })
        };
        tokio::time::timeout(limit, answer)
            .await
            .unwrap_or_else(|_| Err(format!("no answer within {limit:?}")))
    }
}

fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
