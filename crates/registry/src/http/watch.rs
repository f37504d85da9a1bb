//! The watch: a line of JSON for each event, or server-sent events for those who ask for them.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use serde_json::{Value, json};

use super::Asks;
use super::problem::Problem;
use super::query::{FILTERS, Names, Query};
use super::view;
use crate::gate::{self, Api, Scope, Verb};
use crate::model::{Change, ChangeKind};
use crate::parts::{Part, Parts};
use crate::watch::Since;

#[derive(Clone, Copy)]
enum Form {
    Lines,
    ServerSentEvents,
}

pub(super) async fn watch(
    State(api): State<Api>,
    Asks(caller): Asks,
    names: Names,
    headers: HeaderMap,
    query: Query,
) -> Result<Response, Problem> {
    let query = query.only(&[&FILTERS, &["since", "store"]])?;
    let selector = query.selector(&names)?;
    let since = query.since()?.or_else(|| last_event_id(&headers));
    let form = match headers
        .get(header::ACCEPT)
        .and_then(|accept| accept.to_str().ok())
    {
        Some(accept) if accept.contains("text/event-stream") => Form::ServerSentEvents,
        _ => Form::Lines,
    };
    let namespace = selector.namespace.clone();
    let objects = || gate::watched(&selector).into_iter();
    let scope = Scope::from(namespace.as_ref());
    let entry = api.enter(&caller, Verb::Watch, scope, objects)?;
    let watch = entry.end(api.registry.watch(selector, since.as_ref()))?;
    let first = (Parts::new(watch), api, caller, namespace);
    let chunks = stream::unfold(first, move |mut state| async move {
        let (parts, api, caller, namespace) = &mut state;
        let part = parts.next().await?;
        if api.allow_watch(caller, namespace.as_ref()).is_err() {
            return None;
        }
        let chunk = render(&part, &parts.store(), form);
        Some((Ok::<_, std::convert::Infallible>(chunk), state))
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
    for change in part.changes.iter() {
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
