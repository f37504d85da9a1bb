//! The Open Service Registry, HTTP/JSON v1. `openapi/v1.json` describes it and is served with it.

mod body;
mod interfaces;
mod problem;
mod query;
mod sessions;
mod snapshot;
mod view;
mod watch;

use std::collections::BTreeSet;

use axum::Router;
use axum::extract::{DefaultBodyLimit, FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post, put};
use bytes::Bytes;
use http_body_util::BodyExt;
use serde::Serialize;

use crate::access::{Access, Caller};
use crate::audit::Audit;
use crate::error::Error;
use crate::gate::{Api, Scope, Verb};
use crate::model::{Instance, InstanceRef, Selector};
use crate::namespace::Namespace;
use crate::osr::{Done, Registry};
use crate::sessions::SessionId;
use crate::state::Registered;
use problem::Problem;
use query::{FILTERS, Names, Query};

/// The description of this interface.
const OPENAPI: &str = include_str!("../openapi/v1.json");
/// That of the other one.
const PROTO: &str = api::REGISTRY_PROTO;

impl Registry {
    /// The registry behind rules and with a log.
    pub fn api(&self, access: Access, audit: Audit) -> Api {
        Api::new(self.clone(), access, audit)
    }

    /// The routes below `/v1` for everybody: for a registry that only this machine reaches.
    pub fn http_router(&self) -> Router {
        self.api(Access::open(), Audit::none()).http_router()
    }
}

impl Api {
    /// The routes below `/v1`, and nothing elsewhere: it can be merged with others.
    pub fn http_router(&self) -> Router {
        let mut router = Router::new()
            .route("/v1/namespaces", get(list_namespaces))
            .route("/v1/sessions", post(sessions::open))
            .route(
                "/v1/sessions/{session}",
                get(sessions::show).delete(sessions::close),
            )
            .route("/v1/sessions/{session}/lease", put(sessions::renew))
            .route("/v1/snapshot", get(snapshot::save).put(snapshot::restore))
            .route("/v1/status", get(status))
            .route("/v1/openapi.json", get(openapi))
            .route("/v1/registry.proto", get(proto));
        // Without a namespace in it a URL means the default one.
        for base in ["/v1", "/v1/namespaces/{namespace}"] {
            router = add_namespace(router, base);
        }
        router
            .method_not_allowed_fallback(method_not_allowed)
            .route("/v1/", any(not_found))
            .route("/v1/{*rest}", any(not_found))
            .layer(DefaultBodyLimit::disable())
            .with_state(self.clone())
    }
}

/// The routes that a namespace has.
fn add_namespace(router: Router<Api>, base: &str) -> Router<Api> {
    let at = |path: &str| format!("{base}/{path}");
    let service = at("services/{protocol}/{service}");
    let instances = format!("{service}/instances");
    router
        .route(&at("services"), get(list_services))
        .route(&service, get(get_service))
        .route(&instances, get(list_instances).post(add_instance))
        .route(
            &format!("{instances}/{{id}}"),
            get(get_instance).put(put_instance).delete(delete_instance),
        )
        .route(&format!("{instances}/{{id}}/lease"), put(renew_lease))
        .route(
            &format!("{service}/interface"),
            get(interfaces::get)
                .put(interfaces::put)
                .delete(interfaces::delete),
        )
        .route(&at("instances"), get(list_everything))
        .route(&at("interfaces"), get(interfaces::list))
        .route(&at("register"), post(register))
        .route(&at("renew"), post(renew))
        .route(&at("deregister"), post(deregister))
        .route(&at("watch"), get(watch::watch))
}

type Answer = Result<Response, Problem>;

/// Who asks.
struct Asks(Caller);

impl FromRequestParts<Api> for Asks {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Asks, Problem> {
        let header = parts.headers.get(header::AUTHORIZATION);
        let header = header.map(|value| value.as_bytes());
        Ok(Asks(api.caller(header, &parts.extensions)?))
    }
}

fn json(status: StatusCode, value: &impl Serialize) -> Answer {
    let body = serde_json::to_vec(value).map_err(|e| Problem::internal(&e))?;
    let headers = [(header::CONTENT_TYPE, "application/json")];
    Ok((status, headers, body).into_response())
}

/// The body of a request, whatever it says its type is: `curl -d` calls everything a form.
async fn read_body(api: &Api, request: Request) -> Result<Bytes, Problem> {
    let limit = api.registry.limits().body_bytes;
    let limited = http_body_util::Limited::new(request.into_body(), limit);
    match limited.collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            Err(Problem::too_large(limit))
        }
        Err(error) => Err(Problem::bad_request(&format!(
            "the body cannot be read: {error}"
        ))),
    }
}

async fn list_namespaces(State(api): State<Api>, Asks(caller): Asks, query: Query) -> Answer {
    query.only(&[])?;
    let services = api.registry.snapshot();
    let entry = api.enter(&caller, Verb::List, Scope::Somewhere, std::iter::empty)?;
    entry.end(Ok(()))?;
    let is_seen = |namespace: &Namespace| api.sees(&caller, namespace);
    json(StatusCode::OK, &view::namespace_list(&services, is_seen))
}

/// What a list or a watch means, if the caller may see it.
fn selected(api: &Api, caller: &Caller, query: &Query, names: &Names) -> Result<Selector, Problem> {
    let selector = query.selector(names)?;
    let scope = Scope::from(selector.namespace.as_ref());
    let entry = api.enter(caller, Verb::List, scope, std::iter::empty)?;
    entry.end(Ok(()))?;
    Ok(selector)
}

async fn list_services(
    State(api): State<Api>,
    Asks(caller): Asks,
    names: Names,
    query: Query,
) -> Answer {
    let query = query.only(&[&FILTERS, &["limit", "after"]])?;
    let selector = selected(&api, &caller, &query, &names)?;
    let page = query.page()?;
    let services = api.registry.snapshot();
    let interfaces = api.registry.interfaces();
    json(
        StatusCode::OK,
        &view::service_list(&services, interfaces, &selector, &page),
    )
}

async fn list_everything(
    State(api): State<Api>,
    Asks(caller): Asks,
    names: Names,
    query: Query,
) -> Answer {
    let query = query.only(&[&FILTERS, &["limit", "after"]])?;
    let selector = selected(&api, &caller, &query, &names)?;
    let page = query.page()?;
    let services = api.registry.snapshot();
    json(
        StatusCode::OK,
        &view::everything(&services, &selector, &page),
    )
}

async fn get_service(State(api): State<Api>, Asks(caller): Asks, names: Names) -> Answer {
    let key = names.service(api.registry.limits())?;
    let scope = Scope::One(&key.namespace);
    let entry = api.enter(&caller, Verb::Get, scope, std::iter::empty)?;
    entry.end(Ok(()))?;
    let services = api.registry.snapshot();
    let interfaces = api.registry.interfaces().of_service(&key);
    match services.get(&key) {
        Some(service) => json(
            StatusCode::OK,
            &view::service_detail(services.revision, service, &interfaces),
        ),
        None => Err(Problem::not_found(format!("there is no service {key}"))),
    }
}

async fn list_instances(
    State(api): State<Api>,
    Asks(caller): Asks,
    names: Names,
    query: Query,
) -> Answer {
    let query = query.only(&[
        &["version", "group", "healthy", "origin", "metadata[KEY]"],
        &["limit", "after"],
    ])?;
    let key = names.service(api.registry.limits())?;
    let selector = Selector {
        protocol: Some(key.protocol),
        service: Some(key.name),
        ..selected(&api, &caller, &query, &names)?
    };
    let page = query.page()?;
    let services = api.registry.snapshot();
    json(
        StatusCode::OK,
        &view::instance_list(&services, &selector, &page),
    )
}

async fn get_instance(State(api): State<Api>, Asks(caller): Asks, names: Names) -> Answer {
    let reference = names.instance(api.registry.limits())?;
    let scope = Scope::One(&reference.service.namespace);
    let entry = api.enter(&caller, Verb::Get, scope, std::iter::empty)?;
    entry.end(Ok(()))?;
    match api.registry.snapshot().instance(&reference) {
        Some(instance) => json(StatusCode::OK, &view::Instance::of(instance)),
        None => Err(no_instance(&reference).into()),
    }
}

fn no_instance(reference: &InstanceRef) -> Error {
    let InstanceRef { service, id } = reference;
    Error::NotFound(format!("service {service} has no instance {id:?}"))
}

async fn put_instance(
    State(api): State<Api>,
    Asks(caller): Asks,
    names: Names,
    query: Query,
    request: Request,
) -> Answer {
    let session = query.only(&[&["session"]])?.session()?;
    let reference = names.instance(api.registry.limits())?;
    let body = read_body(&api, request).await?;
    let mut instance = body::instance(&body, reference.service)?;
    instance.id = reference.id;
    register_one(&api, &caller, instance, session).await
}

async fn add_instance(
    State(api): State<Api>,
    Asks(caller): Asks,
    names: Names,
    query: Query,
    request: Request,
) -> Answer {
    let session = query.only(&[&["session"]])?.session()?;
    let service = names.service(api.registry.limits())?;
    let body = read_body(&api, request).await?;
    let instance = body::instance(&body, service)?;
    register_one(&api, &caller, instance, session).await
}

async fn register_one(
    api: &Api,
    caller: &Caller,
    instance: Instance,
    session: Option<SessionId>,
) -> Answer {
    let done = put_in(api, caller, vec![instance], session).await;
    let done = done.map_err(|e| Problem::of_one(&e))?;
    let Some(registered) = done.result.first() else {
        return Err(Problem::internal(&"a registration had no result"));
    };
    let status = if registered.created {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    };
    json(status, &view::registered(done.revision, registered))
}

/// Registers instances of any namespaces, in a session if one is named.
async fn put_in(
    api: &Api,
    caller: &Caller,
    instances: Vec<Instance>,
    session: Option<SessionId>,
) -> Result<Done<Vec<Registered>>, Error> {
    let entry = {
        let namespaces = instances.iter().map(|i| &i.service.namespace).collect();
        let objects = || instances.iter().map(crate::gate::named);
        api.enter(caller, Verb::Register, Scope::Many(&namespaces), objects)?
    };
    entry.end(match session {
        None => api.registry.register(instances).await,
        Some(id) => api.registry.register_in(caller.claim(id), instances).await,
    })
}

/// Lets a caller change what references name.
fn enter_for<'a>(
    api: &'a Api,
    caller: &Caller,
    verb: Verb,
    references: &[InstanceRef],
) -> Result<crate::gate::Entry<'a>, Error> {
    let namespaces: BTreeSet<&Namespace> =
        references.iter().map(|r| &r.service.namespace).collect();
    let objects = || references.iter().map(|r| format!("{} {}", r.service, r.id));
    api.enter(caller, verb, Scope::Many(&namespaces), objects)
}

async fn delete_instance(State(api): State<Api>, Asks(caller): Asks, names: Names) -> Answer {
    let references = vec![names.instance(api.registry.limits())?];
    let entry = enter_for(&api, &caller, Verb::Deregister, &references)?;
    let done = api.registry.deregister(references.clone()).await;
    let gone = done.and_then(|done| match (done.result, references.first()) {
        (0, Some(reference)) => Err(no_instance(reference)),
        _ => Ok(()),
    });
    entry.end(gone)?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn renew_lease(State(api): State<Api>, Asks(caller): Asks, names: Names) -> Answer {
    let reference = names.instance(api.registry.limits())?;
    let references = vec![reference.clone()];
    let entry = enter_for(&api, &caller, Verb::Renew, &references)?;
    let done = entry.end(api.registry.renew(references).await)?;
    match done.result.renewed {
        0 => Err(no_instance(&reference).into()),
        _ => Ok(StatusCode::NO_CONTENT.into_response()),
    }
}

async fn register(
    State(api): State<Api>,
    Asks(caller): Asks,
    names: Names,
    query: Query,
    request: Request,
) -> Answer {
    let session = query.only(&[&["session"]])?.session()?;
    let namespace = names.namespace()?;
    let body = read_body(&api, request).await?;
    let instances = body::instances(&body, &namespace)?;
    let done = put_in(&api, &caller, instances, session).await?;
    json(StatusCode::OK, &view::registered_list(&done))
}

async fn renew(
    State(api): State<Api>,
    Asks(caller): Asks,
    names: Names,
    request: Request,
) -> Answer {
    let namespace = names.namespace()?;
    let body = read_body(&api, request).await?;
    let references = body::references(&body, &namespace, api.registry.limits())?;
    let entry = enter_for(&api, &caller, Verb::Renew, &references)?;
    let done = entry.end(api.registry.renew(references).await)?;
    json(StatusCode::OK, &view::renewed(&done))
}

async fn deregister(
    State(api): State<Api>,
    Asks(caller): Asks,
    names: Names,
    request: Request,
) -> Answer {
    let namespace = names.namespace()?;
    let body = read_body(&api, request).await?;
    let references = body::references(&body, &namespace, api.registry.limits())?;
    let entry = enter_for(&api, &caller, Verb::Deregister, &references)?;
    let done = entry.end(api.registry.deregister(references).await)?;
    json(StatusCode::OK, &view::deregistered(&done))
}

async fn status(State(api): State<Api>, Asks(caller): Asks) -> Answer {
    let entry = api.enter(&caller, Verb::Status, Scope::Somewhere, std::iter::empty)?;
    entry.end(Ok(()))?;
    let registry = &api.registry;
    json(
        StatusCode::OK,
        &view::status(&registry.store(), &registry.stats()),
    )
}

async fn openapi() -> Response {
    let mut headers = HeaderMap::new();
    let json = header::HeaderValue::from_static("application/json");
    headers.insert(header::CONTENT_TYPE, json);
    (headers, OPENAPI).into_response()
}

async fn proto() -> Response {
    PROTO.into_response()
}

async fn not_found(request: Request) -> Problem {
    Problem::not_found(format!("there is no {}", request.uri().path()))
}

async fn method_not_allowed(request: Request) -> Problem {
    Problem::method_not_allowed(request.method(), request.uri().path())
}
