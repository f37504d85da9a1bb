//! The HTTP client of the adapters: bounded in time and size, with reasons that people understand.

use std::error::Error;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, PercentEncode, utf8_percent_encode};

use crate::tls::{self, ClientTls};

/// Bytes of an answer: a hundred thousand instances have 100 MB.
const ANSWER_BYTES: usize = 256 << 20;
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

/// Connections to one server of a registry.
#[derive(Clone, Debug)]
pub(crate) struct Web {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

impl Web {
    /// Reads the files of `tls` as they are now; a server whose URL begins with `https://` needs none.
    pub(crate) fn to(server: &str, tls: Option<&ClientTls>) -> Result<Web, Unanswered> {
        let system = ClientTls::default();
        let is_https = server
            .get(..8)
            .is_some_and(|scheme| scheme.eq_ignore_ascii_case("https://"));
        let tls = if is_https { tls.or(Some(&system)) } else { tls };
        let connector = tls::http1_connector(tls).map_err(|e| e.to_string())?;
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_timer(TokioTimer::new())
            .build(connector);
        Ok(Web { client })
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

/// An error with its causes.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
