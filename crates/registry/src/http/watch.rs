//! The watch: a line of JSON for each event, or server-sent events for those who ask for them.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use serde_json::{Value, json};

use super::problem::Problem;
use super::query::Query;
use super::view;
use crate::model::{Change, ChangeKind};
use crate::osr::Registry;
use crate::parts::{Part, Parts};
use crate::watch::Since;

#[derive(Clone, Copy)]
enum Form {
    Lines,
    ServerSentEvents,
}

pub(super) async fn watch(
    State(registry): State<Registry>,
    headers: HeaderMap,
    query: Query,
) -> Result<Response, Problem> {
    let known = [
        "protocol", "service", "version", "group", "healthy", "since", "store",
    ];
    let query = query.only(&known)?;
    let selector = query.selector()?;
    let since = query.since()?.or_else(|| last_event_id(&headers));
    let form = match headers
        .get(header::ACCEPT)
        .and_then(|accept| accept.to_str().ok())
    {
        Some(accept) if accept.contains("text/event-stream") => Form::ServerSentEvents,
        _ => Form::Lines,
    };
    let watch = registry
        .watch(selector, since.as_ref())
        .map_err(|e| Problem::of(&e))?;
    let chunks = stream::unfold(Parts::new(watch), move |mut parts| async move {
        let part = parts.next().await?;
        let chunk = render(&part, parts.store(), form);
        Some((Ok::<_, std::convert::Infallible>(chunk), parts))
    });
    let content_type = match form {
        Form::Lines => "application/x-ndjson",
        Form::ServerSentEvents => "text/event-stream",
    };
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(content_type)),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    Ok((headers, Body::from_stream(chunks)).into_response())
}

/// Where a browser's event source was: `STORE:REVISION`.
fn last_event_id(headers: &HeaderMap) -> Option<Since> {
    let id = headers.get("last-event-id")?.to_str().ok()?;
    let (store, revision) = id.split_once(':')?;
    Some(Since {
        revision: revision.parse().ok()?,
        store: Some(store.to_owned()),
    })
}

fn render(part: &Part, store: &str, form: Form) -> Bytes {
    let mut text = String::new();
    if part.reset {
        line(
            &mut text,
            form,
            None,
            &json!({ "type": "reset", "store": store }),
        );
    }
    for change in &part.changes {
        let resume = (!part.listing).then(|| format!("{store}:{}", change.revision));
        line(&mut text, form, resume.as_deref(), &event(change));
    }
    let revision = part.revision;
    if part.synced && (part.listing || part.changes.is_empty()) {
        let id = format!("{store}:{revision}");
        let synced = json!({ "type": "synced", "revision": revision, "store": store });
        line(&mut text, form, Some(&id), &synced);
    }
    text.into()
}

fn event(change: &Change) -> Value {
    let kind = match change.kind {
        ChangeKind::Put => "put",
        ChangeKind::Deregistered => "deregistered",
        ChangeKind::Lapsed => "lapsed",
    };
    json!({
        "type": kind,
        "revision": change.revision,
        "instance": view::Instance::of(&change.instance),
    })
}

fn line(text: &mut String, form: Form, id: Option<&str>, event: &Value) {
    match form {
        Form::Lines => text.push_str(&format!("{event}\n")),
        Form::ServerSentEvents => {
            if let Some(id) = id {
                text.push_str(&format!("id: {id}\n"));
            }
            let name = event["type"].as_str().unwrap_or("message");
            text.push_str(&format!("event: {name}\ndata: {event}\n\n"));
        }
    }
}
