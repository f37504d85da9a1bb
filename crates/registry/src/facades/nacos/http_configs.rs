//! Configurations over HTTP.

use std::time::Duration;

use axum::http::{HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Instant, timeout_at};

use super::configs::{self, Key, Refused};
use super::http::{Answer, Asked, FAILED, NOT_FOUND, Refusal, Style, said, wrapped};

/// How long a listener is kept waiting at most, and how much earlier than it wants it is answered.
const WAIT: Duration = Duration::from_secs(60);
const EARLIER: Duration = Duration::from_millis(500);
/// What a listener wants that says nothing.
const USUAL_MS: u64 = 30_000;

/// `None`: it is no path of these.
pub(super) async fn route(asked: &Asked, method: &Method, path: &str) -> Option<Answer> {
    Some(match (method, path) {
        (&Method::GET, "/v1/cs/configs" | "/v2/cs/config" | "/v3/client/cs/config") => get(asked),
        (&Method::POST, "/v1/cs/configs" | "/v2/cs/config") => publish(asked).await,
        (&Method::DELETE, "/v1/cs/configs" | "/v2/cs/config") => remove(asked).await,
        (&Method::POST, "/v1/cs/configs/listener") => listen(asked).await,
        _ => return None,
    })
}

fn key(asked: &Asked) -> Result<Key, Refusal> {
    let params = &asked.params;
    let data_id = params.required(&["dataId"])?;
    let tenant = params.text(&["tenant", "namespaceId"]);
    Ok(Key::new(
        tenant,
        params.text(&["group", "groupName"]),
        data_id,
    ))
}

fn get(asked: &Asked) -> Answer {
    let found = asked.server.config(&key(asked)?);
    let found = found
        .ok_or_else(|| Refusal::new(StatusCode::NOT_FOUND, NOT_FOUND, "config data not exist"))?;
    if asked.style == Style::Wrapped {
        if !asked.is_v3 {
            return Ok(wrapped(&found.text.as_ref()));
        }
        return Ok(wrapped(&json!({
            "content": &*found.text,
            "contentType": &*found.kind,
            "md5": &*found.md5,
            "lastModified": found.modified_ms,
            "beta": false,
            "resultCode": 200,
            "success": true,
        })));
    }
    let mut response: Response = found.text.to_string().into_response();
    for (name, value) in [("content-md5", &found.md5), ("config-type", &found.kind)] {
        if let Ok(value) = HeaderValue::from_str(value) {
            response.headers_mut().insert(name, value);
        }
    }
    Ok(response)
}

async fn publish(asked: &Asked) -> Answer {
    let key = key(asked)?;
    let content = asked.params.required(&["content"])?;
    let kind = asked.params.text(&["type"]);
    let expected = asked
        .headers
        .get("casmd5")
        .and_then(|md5| md5.to_str().ok());
    let expected = expected.filter(|md5| !md5.is_empty());
    let published = asked.server.configs.publish(&key, content, kind, expected);
    published.await.map_err(|refused| refusal(&refused))?;
    Ok(done(asked))
}

fn refusal(refused: &Refused) -> Refusal {
    let why = refused.to_string();
    match refused {
        Refused::Nameless | Refused::Empty => Refusal::invalid(why),
        _ => Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, FAILED, why),
    }
}

async fn remove(asked: &Asked) -> Answer {
    let key = key(asked)?;
    let removed = asked.server.configs.remove(&key);
    removed.await.map_err(|refused| refusal(&refused))?;
    Ok(done(asked))
}

fn done(asked: &Asked) -> Response {
    match asked.style {
        Style::Plain => said(Style::Plain, "true"),
        Style::Wrapped => wrapped(&true),
    }
}

/// Waits until one of the listed is not as the client has it.
async fn listen(asked: &Asked) -> Answer {
    let text = asked.params.required(&["Listening-Configs"])?;
    let listened = configs::listened(text);
    let listened = listened.ok_or_else(|| Refusal::invalid("invalid probeModify"))?;
    let header = |name: &str| {
        asked
            .headers
            .get(name)
            .and_then(|value| value.to_str().ok())
    };
    let wanted = header("long-pulling-timeout").and_then(|text| text.parse().ok());
    let wanted = Duration::from_millis(wanted.unwrap_or(USUAL_MS));
    let wait = match header("long-pulling-timeout-no-hangup") {
        Some("true") => Duration::ZERO,
        _ => wanted.min(WAIT).saturating_sub(EARLIER),
    };
    let until = Instant::now() + wait;
    let configs = &asked.server.configs;
    let mut changes = configs.changes();
    loop {
        let changed = listened
            .iter()
            .filter(|(key, md5)| configs.differs(key, md5));
        let changed: Vec<Key> = changed.map(|(key, _)| key.clone()).collect();
        if !changed.is_empty() {
            return Ok(configs::changed(&changed).into_response());
        }
        // What is another's change is not looked at.
        loop {
            match timeout_at(until, changes.recv()).await {
                Err(_) | Ok(Err(RecvError::Closed)) => return Ok("".into_response()),
                Ok(Ok(key)) if listened.iter().all(|(listened, _)| *listened != key) => {}
                Ok(_) => break,
            }
        }
    }
}
