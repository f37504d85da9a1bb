//! `mesh.registry.v1.RegistryService`: the registry over gRPC.

mod session;
mod watch;

use std::collections::BTreeSet;
use std::pin::Pin;

use api::mesh::registry::v1 as pb;
use base::FieldError;
use futures_util::{Stream, stream};
use pb::registry_service_server::{RegistryService, RegistryServiceServer};
use tonic::{Request, Response, Status, Streaming};

use crate::access::{Access, Caller};
use crate::audit::Audit;
use crate::convert::{
    instance_from, instance_to, interface_from, interface_to, namespace_to, reference_from,
    reference_to, selector_from, ttl_ms,
};
use crate::error::Error;
use crate::gate::{self, Api, Entry, Scope, Verb};
use crate::interfaces::{Interface, InterfaceKey};
use crate::limits::check_namespace;
use crate::model::{Instance, InstanceRef, Selector};
use crate::namespace::Namespace;
use crate::osr::Registry;
use crate::page::{self, PAGE_MAX};
use crate::sessions::SessionId;

pub use watch::GrpcService;

/// The service's name, which calls begin with.
pub(crate) const NAME: &str = <RegistryServiceServer<Grpc> as tonic::server::NamedService>::NAME;
/// Bytes of a request: a registration of as many instances as one call may name.
const MESSAGE_BYTES: usize = 16 * 1024 * 1024;

impl Registry {
    /// The registry as a gRPC service for everybody: for a registry that only this machine reaches.
    pub fn grpc_service(&self) -> GrpcService {
        self.api(Access::open(), Audit::none()).grpc_service()
    }
}

impl Api {
    /// The registry as a gRPC service, to be added to a server.
    pub fn grpc_service(&self) -> GrpcService {
        GrpcService::new(Grpc { api: self.clone() })
    }
}

/// The gRPC face of a registry.
pub(crate) struct Grpc {
    api: Api,
}

impl From<Error> for Status {
    fn from(error: Error) -> Status {
        let text = error.to_string();
        match error {
            Error::Invalid(_) => Status::invalid_argument(text),
            Error::Unauthenticated(_) => Status::unauthenticated(text),
            Error::Forbidden(_) => Status::permission_denied(text),
            Error::NotFound(_) => Status::not_found(text),
            Error::TooMany(_) => Status::resource_exhausted(text),
            Error::Overloaded(_) | Error::Stopped | Error::Unreachable(_) => {
                Status::unavailable(text)
            }
            Error::NotEmpty(_) => Status::failed_precondition(text),
            Error::Store(_) => Status::internal(text),
        }
    }
}

fn invalid(error: &FieldError) -> Status {
    Status::invalid_argument(error.to_string())
}

fn session_named(text: &str) -> Result<SessionId, Status> {
    text.parse()
        .map_err(|()| invalid(&FieldError::at("session", "must be 32 hexadecimal digits")))
}

/// Entries of a page.
fn limit(size: u32) -> usize {
    match usize::try_from(size) {
        Ok(size) if size > 0 => size.min(PAGE_MAX),
        _ => PAGE_MAX,
    }
}

fn token(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}

impl Grpc {
    fn caller<T>(&self, request: &Request<T>) -> Result<Caller, Status> {
        let header = request.metadata().get("authorization");
        let header = header.map(|value| value.as_encoded_bytes());
        self.api
            .caller(header, request.extensions())
            .map_err(Status::from)
    }

    fn references(&self, messages: &[pb::InstanceRef]) -> Result<Vec<InstanceRef>, Status> {
        let checked = |(index, message): (usize, &pb::InstanceRef)| {
            let reference = reference_from(message);
            let located = |e: FieldError| e.in_index(index).in_field("instances");
            let check = self.api.registry.limits().check_reference(&reference);
            check.map_err(located).map(|()| reference)
        };
        let references: Result<Vec<_>, FieldError> =
            messages.iter().enumerate().map(checked).collect();
        references.map_err(|e| invalid(&e))
    }

    fn enter_for(
        &self,
        caller: &Caller,
        verb: Verb,
        references: &[InstanceRef],
    ) -> Result<Entry<'_>, Status> {
        let namespaces: BTreeSet<&Namespace> =
            references.iter().map(|r| &r.service.namespace).collect();
        let objects = || references.iter().map(|r| format!("{} {}", r.service, r.id));
        let entered = self
            .api
            .enter(caller, verb, Scope::Many(&namespaces), objects);
        entered.map_err(Status::from)
    }

    /// What a list or watch is of, if the caller may see it.
    fn selected(
        &self,
        caller: &Caller,
        verb: Verb,
        selector: Option<pb::Selector>,
    ) -> Result<(Selector, Entry<'_>), Status> {
        let selector = selector_from(selector);
        if let Some(namespace) = &selector.namespace {
            check_namespace(namespace).map_err(|e| invalid(&e.in_field("selector")))?;
        }
        let scope = Scope::from(selector.namespace.as_ref());
        let objects = || gate::watched(&selector).into_iter();
        let entry = self.api.enter(caller, verb, scope, objects);
        let entry = entry.map_err(Status::from)?;
        Ok((selector, entry))
    }

    fn interface_named(&self, message: Option<pb::InterfaceRef>) -> Result<InterfaceKey, Status> {
        let key = interface_from(message.unwrap_or_default());
        let checked = self.api.registry.limits().check_interface(&key);
        checked.map_err(|e| invalid(&e.in_field("interface")))?;
        Ok(key)
    }

    fn enter_interface(
        &self,
        caller: &Caller,
        verb: Verb,
        key: &InterfaceKey,
    ) -> Result<Entry<'_>, Status> {
        let objects = || std::iter::once(key.to_string());
        let scope = Scope::One(&key.service.namespace);
        let entered = self.api.enter(caller, verb, scope, objects);
        entered.map_err(Status::from)
    }
}

type SessionStream = Pin<Box<dyn Stream<Item = Result<pb::SessionResponse, Status>> + Send>>;

#[tonic::async_trait]
impl RegistryService for Grpc {
    async fn register(
        &self,
        request: Request<pb::RegisterRequest>,
    ) -> Result<Response<pb::RegisterResponse>, Status> {
        let caller = self.caller(&request)?;
        let request = request.into_inner();
        let session = match request.session.as_str() {
            "" => None,
            text => Some(caller.claim(session_named(text)?)),
        };
        let converted = |(index, message): (usize, pb::Instance)| {
            instance_from(message).map_err(|e| e.in_index(index).in_field("instances"))
        };
        let instances = request.instances.into_iter().enumerate().map(converted);
        let instances: Result<Vec<Instance>, FieldError> = instances.collect();
        let instances = instances.map_err(|e| invalid(&e))?;
        let entry = {
            let namespaces = instances.iter().map(|i| &i.service.namespace).collect();
            let objects = || instances.iter().map(gate::named);
            let scope = Scope::Many(&namespaces);
            let entered = self.api.enter(&caller, Verb::Register, scope, objects);
            entered.map_err(Status::from)?
        };
        let registry = &self.api.registry;
        let done = match session {
            None => registry.register(instances).await,
            Some(session) => registry.register_in(session, instances).await,
        };
        let done = entry.end(done).map_err(Status::from)?;
        let registered = done.result.into_iter().map(|registered| pb::Registered {
            id: registered.id.to_string(),
            created: registered.created,
            ttl_ms: ttl_ms(registered.ttl),
        });
        Ok(Response::new(pb::RegisterResponse {
            revision: done.revision,
            registered: registered.collect(),
        }))
    }

    type SessionStream = SessionStream;

    async fn session(
        &self,
        request: Request<Streaming<pb::SessionRequest>>,
    ) -> Result<Response<SessionStream>, Status> {
        let caller = self.caller(&request)?;
        let responses = session::serve(self.api.clone(), caller, request.into_inner()).await?;
        Ok(Response::new(responses))
    }

    async fn renew(
        &self,
        request: Request<pb::RenewRequest>,
    ) -> Result<Response<pb::RenewResponse>, Status> {
        let caller = self.caller(&request)?;
        let references = self.references(&request.into_inner().instances)?;
        let entry = self.enter_for(&caller, Verb::Renew, &references)?;
        let done = entry.end(self.api.registry.renew(references).await);
        let done = done.map_err(Status::from)?;
        Ok(Response::new(pb::RenewResponse {
            renewed: done.result.renewed as u64,
            unknown: done.result.unknown.iter().map(reference_to).collect(),
        }))
    }

    async fn deregister(
        &self,
        request: Request<pb::DeregisterRequest>,
    ) -> Result<Response<pb::DeregisterResponse>, Status> {
        let caller = self.caller(&request)?;
        let references = self.references(&request.into_inner().instances)?;
        let entry = self.enter_for(&caller, Verb::Deregister, &references)?;
        let done = entry.end(self.api.registry.deregister(references).await);
        let done = done.map_err(Status::from)?;
        Ok(Response::new(pb::DeregisterResponse {
            revision: done.revision,
            removed: done.result as u64,
        }))
    }

    async fn list_services(
        &self,
        request: Request<pb::ListServicesRequest>,
    ) -> Result<Response<pb::ListServicesResponse>, Status> {
        let caller = self.caller(&request)?;
        let request = request.into_inner();
        let (selector, entry) = self.selected(&caller, Verb::List, request.selector)?;
        entry.end(Ok(())).map_err(Status::from)?;
        let services = self.api.registry.snapshot();
        let (after, limit) = (token(&request.page_token), limit(request.page_size));
        let (found, next) = page::list_services(&services, &selector, after, limit);
        let found = found.into_iter().map(|service| pb::Service {
            namespace: namespace_to(&service.key.namespace),
            protocol: service.key.protocol.to_string(),
            service: service.key.name.to_string(),
            instances: service.instances.len() as u64,
            available: service
                .instances
                .iter()
                .filter(|i| i.is_available())
                .count() as u64,
        });
        Ok(Response::new(pb::ListServicesResponse {
            revision: services.revision,
            services: found.collect(),
            next_page_token: next.unwrap_or_default(),
        }))
    }

    async fn list(
        &self,
        request: Request<pb::ListRequest>,
    ) -> Result<Response<pb::ListResponse>, Status> {
        let caller = self.caller(&request)?;
        let request = request.into_inner();
        let (selector, entry) = self.selected(&caller, Verb::List, request.selector)?;
        entry.end(Ok(())).map_err(Status::from)?;
        let services = self.api.registry.snapshot();
        let (after, limit) = (token(&request.page_token), limit(request.page_size));
        let (found, next) = page::list_instances(&services, &selector, after, limit);
        Ok(Response::new(pb::ListResponse {
            revision: services.revision,
            instances: found.into_iter().map(|i| instance_to(i)).collect(),
            next_page_token: next.unwrap_or_default(),
        }))
    }

    async fn get(
        &self,
        request: Request<pb::GetRequest>,
    ) -> Result<Response<pb::GetResponse>, Status> {
        let caller = self.caller(&request)?;
        let message = request.into_inner().instance.unwrap_or_default();
        let reference = reference_from(&message);
        let references = std::slice::from_ref(&reference);
        let entry = self.enter_for(&caller, Verb::Get, references)?;
        entry.end(Ok(())).map_err(Status::from)?;
        let services = self.api.registry.snapshot();
        match services.instance(&reference) {
            Some(instance) => Ok(Response::new(pb::GetResponse {
                instance: Some(instance_to(instance)),
            })),
            None => Err(Status::not_found(format!(
                "service {} has no instance {:?}",
                reference.service, reference.id
            ))),
        }
    }

    type WatchStream = stream::Empty<Result<pb::WatchResponse, Status>>;

    /// Never called: `GrpcService` answers it.
    async fn watch(
        &self,
        _: Request<pb::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("Watch"))
    }

    async fn put_interface(
        &self,
        request: Request<pb::PutInterfaceRequest>,
    ) -> Result<Response<pb::PutInterfaceResponse>, Status> {
        let caller = self.caller(&request)?;
        let request = request.into_inner();
        let key = self.interface_named(request.interface)?;
        let entry = self.enter_interface(&caller, Verb::PutInterface, &key)?;
        let registry = &self.api.registry;
        let limit = registry.limits().interface_bytes;
        let put = match Interface::parse(key, request.json.as_bytes(), limit) {
            Ok(interface) => registry.put_interface(interface).await,
            Err(error) => Err(Error::Invalid(error.in_field("json"))),
        };
        let created = entry.end(put).map_err(Status::from)?;
        Ok(Response::new(pb::PutInterfaceResponse { created }))
    }

    async fn get_interface(
        &self,
        request: Request<pb::GetInterfaceRequest>,
    ) -> Result<Response<pb::GetInterfaceResponse>, Status> {
        let caller = self.caller(&request)?;
        let key = self.interface_named(request.into_inner().interface)?;
        let entry = self.enter_interface(&caller, Verb::Get, &key)?;
        entry.end(Ok(())).map_err(Status::from)?;
        let found = self.api.registry.interfaces().get(&key);
        let found = found.ok_or_else(|| Status::from(key.not_there()))?;
        let json = String::from_utf8_lossy(&found.json()).into_owned();
        Ok(Response::new(pb::GetInterfaceResponse { json }))
    }

    async fn list_interfaces(
        &self,
        request: Request<pb::ListInterfacesRequest>,
    ) -> Result<Response<pb::ListInterfacesResponse>, Status> {
        let caller = self.caller(&request)?;
        let request = request.into_inner();
        let (selector, entry) = self.selected(&caller, Verb::List, request.selector)?;
        entry.end(Ok(())).map_err(Status::from)?;
        let after = match token(&request.page_token) {
            None => None,
            Some(text) => Some(InterfaceKey::from_token(text).ok_or_else(|| {
                invalid(&FieldError::at(
                    "page_token",
                    "must be that of the page before",
                ))
            })?),
        };
        let interfaces = self.api.registry.interfaces();
        let (found, more) = interfaces.list(&selector, after.as_ref(), limit(request.page_size));
        let next = found.last().filter(|_| more).map(|last| last.key.token());
        Ok(Response::new(pb::ListInterfacesResponse {
            interfaces: found.iter().map(|i| interface_to(i)).collect(),
            next_page_token: next.unwrap_or_default(),
        }))
    }

    async fn delete_interface(
        &self,
        request: Request<pb::DeleteInterfaceRequest>,
    ) -> Result<Response<pb::DeleteInterfaceResponse>, Status> {
        let caller = self.caller(&request)?;
        let key = self.interface_named(request.into_inner().interface)?;
        let entry = self.enter_interface(&caller, Verb::DeleteInterface, &key)?;
        let removed = self.api.registry.remove_interface(key.clone()).await;
        let removed = removed.and_then(|was_there| match was_there {
            true => Ok(()),
            false => Err(key.not_there()),
        });
        entry.end(removed).map_err(Status::from)?;
        Ok(Response::new(pb::DeleteInterfaceResponse {}))
    }
}
