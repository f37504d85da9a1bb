//! Descriptions of interfaces.

use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;

use super::query::{Names, Query};
use super::{Answer, Asks, Problem, json, read_body, selected, view};
use crate::access::Caller;
use crate::error::Error;
use crate::gate::{Api, Entry, Scope, Verb};
use crate::interfaces::{Interface, InterfaceKey};

const PARAMETERS: &[&[&str]] = &[&["version", "group"]];

fn enter<'a>(
    api: &'a Api,
    caller: &Caller,
    verb: Verb,
    key: &InterfaceKey,
) -> Result<Entry<'a>, Error> {
    let objects = || std::iter::once(key.to_string());
    api.enter(caller, verb, Scope::One(&key.service.namespace), objects)
}

fn named(api: &Api, names: &Names, query: Query) -> Result<InterfaceKey, Problem> {
    let query = query.only(PARAMETERS)?;
    let limits = api.registry.limits();
    query.interface(names.service(limits)?, limits)
}

pub(super) async fn get(
    State(api): State<Api>,
    Asks(caller): Asks,
    names: Names,
    query: Query,
) -> Answer {
    let key = named(&api, &names, query)?;
    enter(&api, &caller, Verb::Get, &key)?.end(Ok(()))?;
    let found = api.registry.interfaces().get(&key);
    let interface = found.ok_or_else(|| key.not_there())?;
    let headers = [(header::CONTENT_TYPE, "application/json")];
    Ok((headers, interface.json()).into_response())
}

pub(super) async fn put(
    State(api): State<Api>,
    Asks(caller): Asks,
    names: Names,
    query: Query,
    request: Request,
) -> Answer {
    let key = named(&api, &names, query)?;
    let entry = enter(&api, &caller, Verb::PutInterface, &key)?;
    let body = read_body(&api, request).await?;
    let limit = api.registry.limits().interface_bytes;
    let put = match Interface::parse(key, &body, limit) {
        Ok(interface) => api.registry.put_interface(interface).await,
        Err(error) => Err(Error::Invalid(error)),
    };
    Ok(match entry.end(put)? {
        true => StatusCode::CREATED.into_response(),
        false => StatusCode::NO_CONTENT.into_response(),
    })
}

pub(super) async fn delete(
    State(api): State<Api>,
    Asks(caller): Asks,
    names: Names,
    query: Query,
) -> Answer {
    let key = named(&api, &names, query)?;
    let entry = enter(&api, &caller, Verb::DeleteInterface, &key)?;
    let removed = api.registry.remove_interface(key.clone()).await;
    let removed = removed.and_then(|was_there| match was_there {
        true => Ok(()),
        false => Err(key.not_there()),
    });
    entry.end(removed)?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

pub(super) async fn list(
    State(api): State<Api>,
    Asks(caller): Asks,
    names: Names,
    query: Query,
) -> Answer {
    let query = query.only(&[
        &["namespace", "protocol", "service", "servicePattern"],
        &["version", "group", "limit", "after"],
    ])?;
    let selector = selected(&api, &caller, &query, &names)?;
    let page = query.page()?;
    let after = match page.after.as_deref() {
        None => None,
        Some(text) => Some(InterfaceKey::from_token(text).ok_or_else(|| {
            let message = "must be `next` of the page before";
            Problem::invalid(base::FieldError::at("after", message))
        })?),
    };
    let (found, more) = api
        .registry
        .interfaces()
        .list(&selector, after.as_ref(), page.limit);
    let next = found.last().filter(|_| more).map(|last| last.key.token());
    json(StatusCode::OK, &view::interface_list(&found, next))
}
