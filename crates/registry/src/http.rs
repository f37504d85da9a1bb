//! The Open Service Registry, HTTP/JSON v1. `openapi/v1.json` describes it and is served with it.

mod body;
mod problem;
mod query;
mod view;
mod watch;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post, put};
use bytes::Bytes;
use http_body_util::BodyExt;
use serde::Serialize;

use crate::model::{Instance, InstanceRef, Selector, ServiceKey};
use crate::osr::Registry;
use problem::Problem;
use query::{Names, Query};

/// The description of this interface.
const OPENAPI: &str = include_str!("../openapi/v1.json");

impl Registry {
    /// The routes below `/v1`, and nothing elsewhere: it can be merged with others.
    pub fn http_router(&self) -> Router {
        let instances = "/v1/services/{protocol}/{service}/instances";
        Router::new()
            .route("/v1/services", get(list_services))
            .route("/v1/services/{protocol}/{service}", get(get_service))
            .route(instances, get(list_instances).post(add_instance))
            .route(
                &format!("{instances}/{{id}}"),
                get(get_instance).put(put_instance).delete(delete_instance),
            )
            .route(&format!("{instances}/{{id}}/lease"), put(renew_lease))
            .route("/v1/register", post(register))
            .route("/v1/renew", post(renew))
            .route("/v1/deregister", post(deregister))
            .route("/v1/watch", get(watch::watch))
            .route("/v1/status", get(status))
            .route("/v1/openapi.json", get(openapi))
            .method_not_allowed_fallback(method_not_allowed)
            .route("/v1/{*rest}", any(not_found))
            .layer(DefaultBodyLimit::disable())
            .with_state(self.clone())
    }
}

type Answer = Result<Response, Problem>;

fn json(status: StatusCode, value: &impl Serialize) -> Answer {
    let body = serde_json::to_vec(value).map_err(|e| Problem::internal(&e))?;
    let headers = [(header::CONTENT_TYPE, "application/json")];
    Ok((status, headers, body).into_response())
}

/// The body of a request, whatever it says its type is: `curl -d` calls everything a form.
async fn read_body(registry: &Registry, request: Request) -> Result<Bytes, Problem> {
    let limit = registry.limits().body_bytes;
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

fn service_named(registry: &Registry, protocol: &str, name: &str) -> Result<ServiceKey, Problem> {
    let key = ServiceKey::new(protocol, name);
    registry
        .limits()
        .check_service(&key)
        .map_err(Problem::invalid)?;
    Ok(key)
}

fn instance_named(
    registry: &Registry,
    protocol: &str,
    name: &str,
    id: &str,
) -> Result<InstanceRef, Problem> {
    let reference = InstanceRef::new(protocol, name, id);
    registry
        .limits()
        .check_reference(&reference)
        .map_err(Problem::invalid)?;
    Ok(reference)
}

async fn list_services(State(registry): State<Registry>, query: Query) -> Answer {
    let query = query.only(&["protocol", "service", "limit", "after"])?;
    let selector = query.selector()?;
    let page = query.page()?;
    let services = registry.snapshot();
    json(
        StatusCode::OK,
        &view::service_list(&services, &selector, &page),
    )
}

async fn get_service(
    State(registry): State<Registry>,
    Names((protocol, name)): Names<(String, String)>,
) -> Answer {
    let key = service_named(&registry, &protocol, &name)?;
    let services = registry.snapshot();
    match services.get(&key) {
        Some(service) => json(
            StatusCode::OK,
            &view::service_detail(services.revision, service),
        ),
        None => Err(Problem::not_found(format!("there is no service {key}"))),
    }
}

async fn list_instances(
    State(registry): State<Registry>,
    Names((protocol, name)): Names<(String, String)>,
    query: Query,
) -> Answer {
    let query = query.only(&["version", "group", "healthy", "limit", "after"])?;
    let key = service_named(&registry, &protocol, &name)?;
    let selector = Selector {
        protocol: Some(key.protocol),
        service: Some(key.name),
        ..query.selector()?
    };
    let page = query.page()?;
    let services = registry.snapshot();
    json(
        StatusCode::OK,
        &view::instance_list(&services, &selector, &page),
    )
}

async fn get_instance(
    State(registry): State<Registry>,
    Names((protocol, name, id)): Names<(String, String, String)>,
) -> Answer {
    let reference = instance_named(&registry, &protocol, &name, &id)?;
    match registry.snapshot().instance(&reference) {
        Some(instance) => json(StatusCode::OK, &view::Instance::of(instance)),
        None => Err(no_instance(&reference)),
    }
}

fn no_instance(reference: &InstanceRef) -> Problem {
    let InstanceRef { service, id } = reference;
    Problem::not_found(format!("service {service} has no instance {id:?}"))
}

async fn put_instance(
    State(registry): State<Registry>,
    Names((protocol, name, id)): Names<(String, String, String)>,
    request: Request,
) -> Answer {
    let body = read_body(&registry, request).await?;
    let mut instance = body::instance(&body, ServiceKey::new(&protocol, &name))?;
    instance.id = id.into();
    register_one(&registry, instance).await
}

async fn add_instance(
    State(registry): State<Registry>,
    Names((protocol, name)): Names<(String, String)>,
    request: Request,
) -> Answer {
    let body = read_body(&registry, request).await?;
    let instance = body::instance(&body, ServiceKey::new(&protocol, &name))?;
    register_one(&registry, instance).await
}

async fn register_one(registry: &Registry, instance: Instance) -> Answer {
    let done = registry
        .register(vec![instance])
        .await
        .map_err(|e| Problem::of_one(&e))?;
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

async fn delete_instance(
    State(registry): State<Registry>,
    Names((protocol, name, id)): Names<(String, String, String)>,
) -> Answer {
    let reference = instance_named(&registry, &protocol, &name, &id)?;
    let done = registry
        .deregister(vec![reference.clone()])
        .await
        .map_err(|e| Problem::of(&e))?;
    match done.result {
        0 => Err(no_instance(&reference)),
        _ => Ok(StatusCode::NO_CONTENT.into_response()),
    }
}

async fn renew_lease(
    State(registry): State<Registry>,
    Names((protocol, name, id)): Names<(String, String, String)>,
) -> Answer {
    let reference = instance_named(&registry, &protocol, &name, &id)?;
    let done = registry
        .renew(vec![reference.clone()])
        .await
        .map_err(|e| Problem::of(&e))?;
    match done.result.renewed {
        0 => Err(no_instance(&reference)),
        _ => Ok(StatusCode::NO_CONTENT.into_response()),
    }
}

async fn register(State(registry): State<Registry>, request: Request) -> Answer {
    let body = read_body(&registry, request).await?;
    let instances = body::instances(&body)?;
    let done = registry
        .register(instances)
        .await
        .map_err(|e| Problem::of(&e))?;
    json(StatusCode::OK, &view::registered_list(&done))
}

async fn renew(State(registry): State<Registry>, request: Request) -> Answer {
    let body = read_body(&registry, request).await?;
    let references = body::references(&body, registry.limits())?;
    let done = registry
        .renew(references)
        .await
        .map_err(|e| Problem::of(&e))?;
    json(StatusCode::OK, &view::renewed(&done))
}

async fn deregister(State(registry): State<Registry>, request: Request) -> Answer {
    let body = read_body(&registry, request).await?;
    let references = body::references(&body, registry.limits())?;
    let done = registry
        .deregister(references)
        .await
        .map_err(|e| Problem::of(&e))?;
    json(StatusCode::OK, &view::deregistered(&done))
}

async fn status(State(registry): State<Registry>) -> Answer {
    json(
        StatusCode::OK,
        &view::status(registry.store(), &registry.stats()),
    )
}

async fn openapi() -> Response {
    let mut headers = HeaderMap::new();
    let json = header::HeaderValue::from_static("application/json");
    headers.insert(header::CONTENT_TYPE, json);
    (headers, OPENAPI).into_response()
}

async fn not_found(request: Request) -> Problem {
    Problem::not_found(format!("there is no {}", request.uri().path()))
}

async fn method_not_allowed(request: Request) -> Problem {
    Problem::method_not_allowed(request.method(), request.uri().path())
}
