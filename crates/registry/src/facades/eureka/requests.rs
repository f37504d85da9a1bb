//! What Eureka's clients ask, and the answers that they expect.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use percent_encoding::percent_decode_str;

use super::Server;
use super::directory::{self, Apps};
use crate::error::Error;
use crate::eureka::info::{Info, Lease, Status};
use crate::eureka::{Format, application, applications, hash, model};
use crate::model::{Instance, InstanceRef};
use crate::naming::spring;

/// Leases of clients that name none.
const DURATION_SECS: u64 = 90;

/// An answer that is none of the usual ones.
struct Refusal(StatusCode, String);

impl Refusal {
    fn not_found(what: &str) -> Refusal {
        Refusal(StatusCode::NOT_FOUND, format!("there is no {what}"))
    }

    fn bad_request(why: &impl ToString) -> Refusal {
        Refusal(StatusCode::BAD_REQUEST, why.to_string())
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Refusal {
        let status = match &error {
            Error::Invalid(_) => StatusCode::BAD_REQUEST,
            Error::Unauthenticated(_) => StatusCode::UNAUTHORIZED,
            Error::Forbidden(_) => StatusCode::FORBIDDEN,
            Error::NotFound(_) => StatusCode::NOT_FOUND,
            Error::TooMany(_) => StatusCode::TOO_MANY_REQUESTS,
            Error::Overloaded(_) | Error::Stopped | Error::Unreachable(_) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Error::NotEmpty(_) => StatusCode::CONFLICT,
            Error::Store(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Refusal(status, error.to_string())
    }
}

type Answer = Result<Response, Refusal>;

/// Answers any request.
pub(super) async fn answer(State(server): State<Arc<Server>>, request: Request) -> Response {
    match route(&server, request).await {
        Ok(response) => response,
        Err(Refusal(status, why)) => (status, why).into_response(),
    }
}

async fn route(server: &Server, request: Request) -> Answer {
    let uri = request.uri().clone();
    // Ids may have slashes and percent signs of their own, so that parts are decoded one by one.
    let parts: Result<Vec<String>, _> = uri
        .path()
        .split('/')
        .filter(|part| !part.is_empty())
        .map(|part| percent_decode_str(part).decode_utf8().map(String::from))
        .collect();
    let parts = parts.map_err(|e| Refusal::bad_request(&e))?;
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    // The paths of Spring Cloud's server and of Netflix' own.
    let path = match parts.as_slice() {
        ["eureka", "v2", path @ ..] | ["eureka", path @ ..] => path,
        _ => return Err(Refusal::not_found("such path")),
    };
    let query = uri.query().unwrap_or_default();
    let format = accepted(request.headers());
    match (request.method(), path) {
        (&Method::GET, ["apps"]) => Ok(content(format, server.directory.whole(format))),
        (&Method::GET, ["apps", "delta"]) => Ok(delta(server, format)),
        (&Method::GET, ["apps", app]) => app_named(server, app, format),
        (&Method::GET, ["apps", app, id]) => {
            let (apps, _) = server.directory.apps();
            let instances = apps.get(&app.to_uppercase());
            instance_named(instances.map(AsRef::as_ref).into_iter(), id, format)
        }
        (&Method::GET, ["instances", id]) => {
            let (apps, _) = server.directory.apps();
            instance_named(apps.values().map(AsRef::as_ref), id, format)
        }
        (&Method::GET, ["vips", name]) => by_name(server, "vipAddress", name, format),
        (&Method::GET, ["svips", name]) => by_name(server, "secureVipAddress", name, format),
        (&Method::POST, ["apps", app]) => register(server, app, request).await,
        (&Method::PUT, ["apps", app, id]) => renew(server, app, id, query).await,
        (&Method::DELETE, ["apps", app, id]) => cancel(server, app, id).await,
        (&Method::PUT, ["apps", app, id, "status"]) => {
            let status = parameter(query, "value");
            let status = status.ok_or_else(|| Refusal::bad_request(&"value is missing"))?;
            let overridden = Status::named(&status);
            let change = |i: &Instance| model::with_status(i, model::own_status(i), overridden);
            modify(server, app, id, change).await
        }
        (&Method::DELETE, ["apps", app, id, "status"]) => {
            // The client may say what the instance is without an operator's word.
            let status = parameter(query, "value").map(|status| Status::named(&status));
            let change = |instance: &Instance| {
                let own = status.unwrap_or_else(|| model::own_status(instance));
                model::with_status(instance, own, Status::Unknown)
            };
            modify(server, app, id, change).await
        }
        (&Method::PUT, ["apps", app, id, "metadata"]) => {
            let change = |instance: &Instance| model::with_metadata(instance, pairs(query));
            modify(server, app, id, change).await
        }
        (_, ["apps", ..]) => Err(Refusal(
            StatusCode::METHOD_NOT_ALLOWED,
            "it cannot be asked in this way".to_owned(),
        )),
        _ => Err(Refusal::not_found("such path")),
    }
}

/// XML unless JSON is asked for, as servers do it.
fn accepted(headers: &HeaderMap) -> Format {
    let mut accepted = headers.get_all(header::ACCEPT).iter();
    let is_json = |value: &[u8]| value.windows(4).any(|word| word == b"json");
    if accepted.any(|value| is_json(value.as_bytes())) {
        Format::Json
    } else {
        Format::Xml
    }
}

fn content(format: Format, body: Bytes) -> Response {
    ([(header::CONTENT_TYPE, format.content_type())], body).into_response()
}

fn delta(server: &Server, format: Format) -> Response {
    let (recent, hash) = server.directory.delta();
    let mut apps: BTreeMap<String, Vec<Info>> = BTreeMap::new();
    for recent in recent {
        let mut info = model::info(&recent.instance);
        info.action = Some(recent.action);
        apps.entry(info.app.clone()).or_default().push(info);
    }
    let content_of = applications(&apps, &hash, format);
    content(format, format.write("applications", content_of).into())
}

fn app_named(server: &Server, app: &str, format: Format) -> Answer {
    let (apps, _) = server.directory.apps();
    let app = app.to_uppercase();
    let instances = apps.get(&app);
    let instances = instances.ok_or_else(|| Refusal::not_found("such application"))?;
    let values = instances.iter().map(|i| model::info(i).to_value(format));
    let body = format.write("application", application(&app, values.collect()));
    Ok(content(format, body.into()))
}

fn instance_named<'a>(
    mut lists: impl Iterator<Item = &'a [Arc<Instance>]>,
    id: &str,
    format: Format,
) -> Answer {
    let found = lists.find_map(|list| list.iter().find(|instance| *instance.id == *id));
    let found = found.ok_or_else(|| Refusal::not_found("such instance"))?;
    let value = model::info(found).to_value(format);
    Ok(content(format, format.write("instance", value).into()))
}

/// The applications that have instances of a virtual name.
fn by_name(server: &Server, field: &str, name: &str, format: Format) -> Answer {
    let (apps, _) = server.directory.apps();
    let is_of = |instance: &Instance| {
        let info = model::info(instance);
        let names = info.texts.get(field).map_or("", String::as_str);
        names
            .split(',')
            .any(|known| known.eq_ignore_ascii_case(name))
    };
    let mut found = Apps::new();
    for (app, instances) in apps.iter() {
        let of_name: Arc<[_]> = instances.iter().filter(|i| is_of(i)).cloned().collect();
        if !of_name.is_empty() {
            found.insert(app.clone(), of_name);
        }
    }
    if found.is_empty() {
        return Err(Refusal::not_found("such name"));
    }
    let statuses = found.values().flat_map(|list| list.iter());
    let hash = hash(statuses.map(|instance| model::status(instance)));
    Ok(content(format, directory::write(&found, &hash, format)))
}

fn reference(app: &str, id: &str) -> InstanceRef {
    InstanceRef::new(spring::PROTOCOL, &app.to_lowercase(), id)
}

async fn register(server: &Server, app: &str, request: Request) -> Answer {
    let kind = request.headers().get(header::CONTENT_TYPE);
    let is_xml = kind.is_some_and(|kind| kind.as_bytes().windows(3).any(|word| word == b"xml"));
    let limit = server.registry.limits().body_bytes;
    let body = Limited::new(request.into_body(), limit).collect().await;
    let body = body.map_err(|e| Refusal::bad_request(&e))?.to_bytes();
    let format = if is_xml { Format::Xml } else { Format::Json };
    let value = format.read(&body, "instance");
    let value = value.map_err(|e| Refusal::bad_request(&e))?;
    let mut info = Info::parse(&value).map_err(|e| Refusal::bad_request(&e))?;
    if !info.app.eq_ignore_ascii_case(app) {
        let why = format!("Mismatched appName, expecting {app} but was {}", info.app);
        return Err(Refusal::bad_request(&why));
    }
    if info.lease.duration_secs == 0 {
        info.lease.duration_secs = DURATION_SECS;
    }

    let _changing = server.changing.lock().await;
    let reference = reference(app, &info.id);
    if let Some(known) = server.registry.snapshot().instance(&reference) {
        if model::last_dirty_ms(known) > info.last_dirty_ms {
            // What is known is newer than what this client thinks.
            server.registry.renew(vec![reference]).await?;
            return Ok(StatusCode::NO_CONTENT.into_response());
        }
        // An operator's word outlives the instance's own.
        if model::overridden(known) != Status::Unknown {
            info.overridden_status = model::overridden(known);
        }
    }
    let instance = model::registered(&info, now_ms()).map_err(|e| Refusal::bad_request(&e))?;
    let instance = leased(server, instance, info.lease);
    server.registry.register(vec![instance]).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// With the lease that the client wants, as far as it may have it.
fn leased(server: &Server, instance: Instance, lease: Lease) -> Instance {
    let limits = server.registry.limits();
    let wanted = std::time::Duration::from_secs(lease.duration_secs);
    Instance {
        ttl: Some(wanted.clamp(limits.ttl_min, limits.ttl_max)),
        ..instance
    }
}

/// 404 makes the client register again: it is not known, or not as it is now.
async fn renew(server: &Server, app: &str, id: &str, query: &str) -> Answer {
    let reference = reference(app, id);
    let services = server.registry.snapshot();
    let known = services.instance(&reference);
    let known = known.ok_or_else(|| Refusal::not_found("such instance"))?;
    let dirty = parameter(query, "lastDirtyTimestamp").and_then(|text| text.parse::<u64>().ok());
    if dirty.is_some_and(|dirty| dirty > model::last_dirty_ms(known)) {
        return Err(Refusal::not_found("so new an instance"));
    }
    let done = server.registry.renew(vec![reference]).await?;
    if done.result.renewed == 0 {
        return Err(Refusal::not_found("such instance"));
    }
    Ok(StatusCode::OK.into_response())
}

async fn cancel(server: &Server, app: &str, id: &str) -> Answer {
    let _changing = server.changing.lock().await;
    let done = server.registry.deregister(vec![reference(app, id)]).await?;
    if done.result == 0 {
        return Err(Refusal::not_found("such instance"));
    }
    Ok(StatusCode::OK.into_response())
}

async fn modify(
    server: &Server,
    app: &str,
    id: &str,
    change: impl FnOnce(&Instance) -> Instance,
) -> Answer {
    let _changing = server.changing.lock().await;
    let services = server.registry.snapshot();
    let known = services.instance(&reference(app, id));
    let known = known.ok_or_else(|| Refusal::not_found("such instance"))?;
    server.registry.register(vec![change(known)]).await?;
    Ok(StatusCode::OK.into_response())
}

fn pairs(query: &str) -> Vec<(String, String)> {
    let decode = |text: &str| {
        let text = text.replace('+', " ");
        percent_decode_str(&text).decode_utf8_lossy().into_owned()
    };
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(key), decode(value))
        })
        .collect()
}

fn parameter(query: &str, name: &str) -> Option<String> {
    let mut pairs = pairs(query).into_iter();
    pairs.find(|(key, _)| key == name).map(|(_, value)| value)
}

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(0))
}
