//! What clients ask over gRPC, and the answers that they expect.

use std::sync::Arc;

use api::nacos::Payload;

use super::access::Shown;
use super::configs::{Key, Refused as ConfigRefused};
use super::directory::{Name, Owner};
use super::fuzzy::{Fuzzy, Pattern};
use super::provider::{self, Refused};
use super::written::{self, CACHE_MS, written};
use super::{Server, State, Subscriber, Target};
use crate::nacos::{
    self, BATCH_REGISTER, CONFIG_NOT_FOUND, ConfigBatchListenRequest,
    ConfigChangeBatchListenResponse, ConfigKey, ConfigPublishRequest, ConfigQueryResponse,
    ConnectionSetupRequest, DEREGISTER, FAIL, FuzzyWatchRequest, InstanceRequest, NO_HANDLER,
    NO_RIGHT, Nothing, REGISTER, Request, Response, ServerCheckResponse, ServiceInfoResponse,
    ServiceListRequest, ServiceListResponse, ServiceQueryRequest, SubscribeServiceRequest,
    TypeOnly, UN_REGISTER, answer as done, answer_with, asked, refusal,
};

/// `errorCode` of a request that cannot be read.
const UNREADABLE: i32 = 502;
/// `errorCode` of a request that says something impossible.
const INVALID: i32 = 400;
/// `errorCode` of a pattern too many.
const PATTERNS: i32 = 50_310;
/// Names on one page at most; whoever wants more turns it.
const PAGE: usize = 100_000;

/// Why a request is refused: `errorCode` and words.
struct Refusal(i32, String);

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Refusal {
        let code = match &refused {
            Refused::Malformed(_) => INVALID,
            Refused::Failed(_) => FAIL,
        };
        Refusal(code, refused.to_string())
    }
}

impl From<ConfigRefused> for Refusal {
    fn from(refused: ConfigRefused) -> Refusal {
        let code = match &refused {
            ConfigRefused::Nameless | ConfigRefused::Empty => INVALID,
            _ => FAIL,
        };
        Refusal(code, refused.to_string())
    }
}

fn invalid<T>(why: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal(INVALID, why.into()))
}

/// The set-up of a connection, if it is that.
pub(super) fn setup(payload: &Payload) -> Option<ConnectionSetupRequest> {
    match asked(payload).ok()?.request? {
        Request::ConnectionSetup(setup) => Some(setup),
        _ => None,
    }
}

/// Which request of the server's a message answers.
pub(super) fn answered_number(payload: &Payload) -> Option<String> {
    Some(nacos::answered(payload).ok()?.id)
}

fn shown(payload: &Payload) -> Shown<'_> {
    let header = |key: &str| {
        let headers = &payload.metadata.as_ref()?.headers;
        headers.get(key).map(String::as_str)
    };
    Shown {
        token: header("accessToken"),
        username: header("username"),
        password: header("password"),
    }
}

/// Answers a request of a connection.
pub(super) async fn answer(
    server: &Arc<Server>,
    id: u64,
    connection: &str,
    payload: &Payload,
) -> Payload {
    let failed =
        |number: &str, code, why: &str| refusal(&Response::Error(Nothing {}), number, code, why);
    let asked = match asked(payload) {
        Ok(asked) => asked,
        Err(error) => return failed("", UNREADABLE, &error.to_string()),
    };
    let Some(request) = asked.request else {
        return failed(&asked.id, NO_HANDLER, "RequestHandler Not Found");
    };
    if let Request::ServerCheck(_) = request {
        let check = ServerCheckResponse {
            connection_id: connection.to_owned(),
            support_ability_negotiation: true,
        };
        return done(&Response::ServerCheck(check), &asked.id);
    }
    let tenant = server
        .state()
        .connections
        .get(&id)
        .map(|c| c.tenant.clone());
    let Some(tenant) = tenant else {
        return failed(&asked.id, UN_REGISTER, "Connection is unregistered.");
    };
    let Some(empty) = empty(&request) else {
        return failed(&asked.id, NO_HANDLER, "RequestHandler Not Found");
    };
    if !matches!(request, Request::HealthCheck(_)) && !server.access.permits(shown(payload)) {
        let why = "authorization failed: user not found!";
        return refusal(&empty, &asked.id, NO_RIGHT, why);
    }
    let listed = match &request {
        Request::SubscribeService(request) => Some(subscribe(server, id, &tenant, request).await),
        Request::ServiceQuery(request) => Some(Ok(query(server, &tenant, request).await)),
        _ => None,
    };
    match listed {
        Some(Ok(info)) => return answer_with(empty.kind(), &asked.id, &info),
        Some(Err(Refusal(code, why))) => return refusal(&empty, &asked.id, code, &why),
        None => {}
    }
    match answer_to(server, id, &tenant, request).await {
        Ok(response) => done(&response, &asked.id),
        Err(Refusal(code, why)) => refusal(&empty, &asked.id, code, &why),
    }
}

/// The answer that says nothing; `None`: it is no request of a client's.
fn empty(request: &Request) -> Option<Response> {
    let type_only = TypeOnly::default;
    Some(match request {
        Request::BatchInstance(_) => Response::BatchInstance(type_only()),
        Request::ConfigBatchListen(_) => {
            Response::ConfigChangeBatchListen(ConfigChangeBatchListenResponse::default())
        }
        Request::ConfigPublish(_) => Response::ConfigPublish(Nothing {}),
        Request::ConfigQuery(_) => Response::ConfigQuery(ConfigQueryResponse::default()),
        Request::ConfigRemove(_) => Response::ConfigRemove(Nothing {}),
        Request::FuzzyWatch(_) => Response::FuzzyWatch(Nothing {}),
        Request::HealthCheck(_) => Response::HealthCheck(Nothing {}),
        Request::Instance(_) | Request::PersistentInstance(_) => Response::Instance(type_only()),
        Request::ServiceList(_) => Response::ServiceList(ServiceListResponse::default()),
        Request::ServiceQuery(_) => Response::QueryService(ServiceInfoResponse::default()),
        Request::SubscribeService(_) => Response::SubscribeService(ServiceInfoResponse::default()),
        _ => return None,
    })
}

async fn answer_to(
    server: &Arc<Server>,
    id: u64,
    tenant: &str,
    request: Request,
) -> Result<Response, Refusal> {
    match request {
        Request::HealthCheck(_) => Ok(Response::HealthCheck(Nothing {})),
        Request::Instance(request) => {
            instance(server, tenant, *request, Owner::Connection(id)).await
        }
        Request::PersistentInstance(request) => {
            instance(server, tenant, *request, Owner::Nobody).await
        }
        Request::BatchInstance(request) => {
            let name = name(
                tenant,
                &request.namespace,
                &request.group_name,
                &request.service_name,
            );
            if request.r#type != BATCH_REGISTER {
                return invalid(format!("Unsupported request type {}", request.r#type));
            }
            if request.instances.len() > server.registry.limits().batch {
                return invalid("too many instances in one batch");
            }
            provider::register(server, &name, Owner::Connection(id), request.instances).await?;
            Ok(Response::BatchInstance(TypeOnly {
                r#type: request.r#type,
            }))
        }
        Request::ServiceList(request) => Ok(list(server, tenant, &request)),
        Request::FuzzyWatch(request) => watch(server, id, &request),
        Request::ConfigQuery(request) => config(server, &request),
        Request::ConfigPublish(request) => publish(server, &request).await,
        Request::ConfigRemove(request) => {
            let key = Key::new(&request.tenant, &request.group, &request.data_id);
            server.configs.remove(&key).await?;
            Ok(Response::ConfigRemove(Nothing {}))
        }
        Request::ConfigBatchListen(request) => listen(server, id, &request),
        other => Err(Refusal(
            NO_HANDLER,
            format!("{} is no request", other.kind()),
        )),
    }
}

fn name(tenant: &str, namespace: &str, group: &str, service: &str) -> Name {
    let namespace = if namespace.is_empty() {
        tenant
    } else {
        namespace
    };
    Name::new(namespace, group, service)
}

async fn instance(
    server: &Arc<Server>,
    tenant: &str,
    request: InstanceRequest,
    owner: Owner,
) -> Result<Response, Refusal> {
    let name = name(
        tenant,
        &request.namespace,
        &request.group_name,
        &request.service_name,
    );
    match (request.r#type.as_str(), owner) {
        (REGISTER, _) => {
            provider::register(server, &name, owner, vec![request.instance]).await?;
        }
        (DEREGISTER, Owner::Connection(_)) => {
            provider::deregister(server, &name, owner, None).await;
        }
        (DEREGISTER, _) => {
            provider::deregister(server, &name, owner, Some(&request.instance)).await;
        }
        (other, _) => return invalid(format!("Unsupported request type {other}")),
    }
    Ok(Response::Instance(TypeOnly {
        r#type: request.r#type,
    }))
}

async fn subscribe(
    server: &Server,
    id: u64,
    tenant: &str,
    request: &SubscribeServiceRequest,
) -> Result<Vec<u8>, Refusal> {
    let name = name(
        tenant,
        &request.namespace,
        &request.group_name,
        &request.service_name,
    );
    if name.service.is_empty() {
        return invalid("Param 'serviceName' is required.");
    }
    let clusters = &request.clusters;
    {
        let mut state = server.state();
        let state = &mut *state;
        let subscriber = Subscriber {
            target: Target::Connection(id),
            name: name.clone(),
            clusters: clusters.clone(),
        };
        if let Some(connection) = state.connections.get_mut(&id) {
            if !request.subscribe {
                connection.unsubscribe(&name, clusters);
                state.unsubscribe(&subscriber);
            } else if connection.subscribe(&name, clusters) {
                state.subscribe(&subscriber);
            } else {
                return invalid("too many subscriptions");
            }
        }
    }
    let asked = written::Asked {
        name,
        clusters: clusters.clone(),
        healthy_only: false,
    };
    let list = written(server, &asked).await;
    if let Some(connection) = server.state().connections.get_mut(&id) {
        connection.answered(&asked.name, clusters, list.digest);
    }
    Ok(list.info(&asked, &asked.name.service, CACHE_MS))
}

async fn query(server: &Server, tenant: &str, request: &ServiceQueryRequest) -> Vec<u8> {
    let name = name(
        tenant,
        &request.namespace,
        &request.group_name,
        &request.service_name,
    );
    let asked = written::Asked {
        name,
        clusters: request.cluster.clone(),
        healthy_only: request.healthy_only,
    };
    let list = written(server, &asked).await;
    list.info(&asked, &asked.name.service, CACHE_MS)
}

fn list(server: &Server, tenant: &str, request: &ServiceListRequest) -> Response {
    let group = name(tenant, &request.namespace, &request.group_name, "");
    let names = server
        .state()
        .directory
        .names(&group.namespace, &group.group);
    let (page, size) = (request.page_no, request.page_size);
    let (from, size) = page_of(u64::from(page), u64::from(size));
    let page = names.iter().skip(from).take(size);
    Response::ServiceList(ServiceListResponse {
        count: names.len() as u64,
        service_names: page.map(ToString::to_string).collect(),
    })
}

/// Where a page begins, counted from 1, and how much is on it.
pub(super) fn page_of(number: u64, size: u64) -> (usize, usize) {
    let size = usize::try_from(size).unwrap_or(PAGE).min(PAGE);
    let number = usize::try_from(number).unwrap_or(usize::MAX).max(1);
    ((number - 1).saturating_mul(size), size)
}

fn watch(server: &Server, id: u64, request: &FuzzyWatchRequest) -> Result<Response, Refusal> {
    let text = &request.group_key_pattern;
    let Some(pattern) = Pattern::parse(text) else {
        return invalid(format!("{text} is no pattern"));
    };
    let mut state = server.state();
    let Some(connection) = state.connections.get_mut(&id) else {
        return Err(Refusal(
            UN_REGISTER,
            "Connection is unregistered.".to_owned(),
        ));
    };
    match request.watch_type.as_str() {
        "WATCH" => {
            let known = &request.received_group_keys;
            let fuzzy = Fuzzy::new(pattern, text, request.initializing, known);
            if !connection.watch(text, fuzzy) {
                let why = "fuzzy watch pattern over limit";
                return Err(Refusal(PATTERNS, why.to_owned()));
            }
            state.fuzzy.insert((id, text.clone()));
        }
        "CANCEL_WATCH" => {
            connection.unwatch(text);
            state.fuzzy.remove(&(id, text.clone()));
        }
        other => return invalid(format!("Unsupported request type {other}")),
    }
    Ok(Response::FuzzyWatch(Nothing {}))
}

fn config(server: &Server, request: &ConfigKey) -> Result<Response, Refusal> {
    let key = Key::new(&request.tenant, &request.group, &request.data_id);
    let found = server.config(&key);
    let missing = || Refusal(CONFIG_NOT_FOUND, "config data not exist".to_owned());
    let found = found.ok_or_else(missing)?;
    Ok(Response::ConfigQuery(ConfigQueryResponse {
        content: found.text.to_string(),
        content_type: found.kind.to_string(),
        md5: found.md5.to_string(),
        last_modified: i64::try_from(found.modified_ms).unwrap_or(i64::MAX),
    }))
}

async fn publish(server: &Server, request: &ConfigPublishRequest) -> Result<Response, Refusal> {
    let key = Key::new(&request.tenant, &request.group, &request.data_id);
    let kind = request.addition_map.get("type");
    let kind = kind.map(String::as_str).unwrap_or_default();
    let expected = Some(request.cas_md5.as_str()).filter(|md5| !md5.is_empty());
    server
        .configs
        .publish(&key, &request.content, kind, expected)
        .await?;
    Ok(Response::ConfigPublish(Nothing {}))
}

fn listen(
    server: &Server,
    id: u64,
    request: &ConfigBatchListenRequest,
) -> Result<Response, Refusal> {
    let mut changed_configs = Vec::new();
    let mut state = server.state();
    let state = &mut *state;
    for context in &request.config_listen_contexts {
        let key = Key::new(&context.tenant, &context.group, &context.data_id);
        let Some(connection) = state.connections.get_mut(&id) else {
            break;
        };
        if !request.listen {
            connection.unlisten(&key);
            forget_listener(state, &key, id);
            continue;
        }
        if !connection.listen(&key, &context.tenant) {
            return Err(Refusal(FAIL, "too many configurations".to_owned()));
        }
        state.listeners.entry(key.clone()).or_default().insert(id);
        if server.configs.differs(&key, &context.md5) {
            changed_configs.push(ConfigKey {
                data_id: context.data_id.clone(),
                group: context.group.clone(),
                tenant: context.tenant.clone(),
            });
        }
    }
    let response = ConfigChangeBatchListenResponse { changed_configs };
    Ok(Response::ConfigChangeBatchListen(response))
}

/// A connection does not listen to a configuration any more.
pub(super) fn forget_listener(state: &mut State, key: &Key, id: u64) {
    if let Some(known) = state.listeners.get_mut(key) {
        known.remove(&id);
        if known.is_empty() {
            state.listeners.remove(key);
        }
    }
}
