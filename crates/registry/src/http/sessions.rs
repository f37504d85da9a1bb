//! Sessions: one lease for all that a client registers.

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;

use super::query::Names;
use super::{Answer, Asks, body, json, read_body, view};
use crate::access::Caller;
use crate::error::Error;
use crate::gate::{Api, Entry, Scope, Verb};
use crate::sessions::{SessionClaim, SessionState};

fn enter<'a>(
    api: &'a Api,
    caller: &Caller,
    verb: Verb,
    claim: Option<&SessionClaim>,
) -> Result<Entry<'a>, Error> {
    // Not the whole id: whoever reads the log must not be able to renew it.
    let objects = || claim.map(|claim| format!("{:?}", claim.id)).into_iter();
    api.enter(caller, verb, Scope::Somewhere, objects)
}

pub(super) async fn open(State(api): State<Api>, Asks(caller): Asks, request: Request) -> Answer {
    let ttl = body::session_ttl(&read_body(&api, request).await?)?;
    let entry = enter(&api, &caller, Verb::OpenSession, None)?;
    let opened = api.registry.open_session(caller.name().into(), ttl).await;
    let id = entry.end(opened).map_err(|e| super::Problem::of_one(&e))?;
    let state = SessionState { ttl, instances: 0 };
    json(StatusCode::CREATED, &view::session(Some(id), state))
}

pub(super) async fn show(State(api): State<Api>, Asks(caller): Asks, names: Names) -> Answer {
    let claim = caller.claim(names.session()?);
    let entry = enter(&api, &caller, Verb::GetSession, Some(&claim))?;
    let state = entry.end(api.registry.session(claim).await)?;
    json(StatusCode::OK, &view::session(None, state))
}

pub(super) async fn renew(State(api): State<Api>, Asks(caller): Asks, names: Names) -> Answer {
    let claim = caller.claim(names.session()?);
    let entry = enter(&api, &caller, Verb::RenewSession, Some(&claim))?;
    entry.end(api.registry.renew_session(claim).await)?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

pub(super) async fn close(State(api): State<Api>, Asks(caller): Asks, names: Names) -> Answer {
    let claim = caller.claim(names.session()?);
    let entry = enter(&api, &caller, Verb::CloseSession, Some(&claim))?;
    let done = entry.end(api.registry.close_session(claim).await)?;
    json(StatusCode::OK, &view::deregistered(&done))
}
