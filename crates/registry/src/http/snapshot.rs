//! Saving the whole registry to a file and restoring it into an empty one.

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use futures_util::stream;
use http_body_util::BodyExt;
use serde_json::json;

use super::problem::Problem;
use super::{Answer, Asks, json};
use crate::gate::{Api, Scope, Verb};
use crate::snapshot::{Reader, Writer};

/// The registry as it is now, whatever happens to it while it is sent.
pub(super) async fn save(State(api): State<Api>, Asks(caller): Asks) -> Answer {
    let entry = api.enter(&caller, Verb::Save, Scope::All, std::iter::empty)?;
    entry.end(Ok(()))?;
    let described = api.registry.interfaces().all();
    let pieces = Writer::new(&api.registry.snapshot(), described);
    let pieces = pieces.map(Ok::<_, std::convert::Infallible>);
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    Ok((headers, Body::from_stream(stream::iter(pieces))).into_response())
}

/// Puts all of a snapshot in, or nothing.
pub(super) async fn restore(
    State(api): State<Api>,
    Asks(caller): Asks,
    request: Request,
) -> Answer {
    let entry = api.enter(&caller, Verb::Restore, Scope::All, std::iter::empty)?;
    let mut reader = Ok(Reader::new(api.registry.limits().clone()));
    let mut body = request.into_body();
    while let Some(frame) = body.frame().await {
        let frame = frame
            .map_err(|error| Problem::bad_request(&format!("the body cannot be read: {error}")))?;
        // The rest of a bad file is passed over: the answer reaches only one who has sent all.
        if let (Ok(data), Ok(so_far)) = (frame.into_data(), &mut reader)
            && let Err(error) = so_far.push(&data)
        {
            reader = Err(error);
        }
    }
    let contents = reader
        .and_then(Reader::finish)
        .map_err(|e| Problem::bad_request(&e.to_string()))?;
    let interfaces = contents.interfaces.len();
    let restored = api
        .registry
        .restore(contents.instances, contents.interfaces);
    let done = entry.end(restored.await)?;
    let answer =
        json!({ "revision": done.revision, "instances": done.result, "interfaces": interfaces });
    json(StatusCode::OK, &answer)
}
