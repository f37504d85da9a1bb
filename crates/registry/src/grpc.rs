//! `mesh.registry.v1.RegistryService`: the registry over gRPC.

use std::pin::Pin;

use api::mesh::registry::v1 as pb;
use base::FieldError;
use futures_util::{Stream, stream};
use pb::registry_service_server::{RegistryService, RegistryServiceServer};
use tonic::{Request, Response, Status};

use crate::convert::{
    change_to, instance_from, instance_to, reference_from, reference_to, selector_from, ttl_ms,
};
use crate::error::Error;
use crate::model::{Instance, InstanceRef};
use crate::osr::Registry;
use crate::parts::{Part, Parts};
use crate::watch::Since;

/// Bytes of a request: a registration of as many instances as one call may name.
const MESSAGE_BYTES: usize = 16 * 1024 * 1024;

impl Registry {
    /// The registry as a gRPC service, to be added to a server.
    pub fn grpc_service(&self) -> RegistryServiceServer<Grpc> {
        RegistryServiceServer::new(Grpc {
            registry: self.clone(),
        })
        .max_decoding_message_size(MESSAGE_BYTES)
    }
}

/// The gRPC face of a registry.
pub struct Grpc {
    registry: Registry,
}

fn status(error: &Error) -> Status {
    let text = error.to_string();
    match error {
        Error::Invalid(_) => Status::invalid_argument(text),
        Error::TooMany(_) => Status::resource_exhausted(text),
        Error::Overloaded(_) | Error::Stopped => Status::unavailable(text),
        Error::Store(_) => Status::internal(text),
    }
}

fn invalid(error: &FieldError) -> Status {
    Status::invalid_argument(error.to_string())
}

impl Grpc {
    fn references(&self, messages: &[pb::InstanceRef]) -> Result<Vec<InstanceRef>, Status> {
        let checked = |(index, message): (usize, &pb::InstanceRef)| {
            let reference = reference_from(message);
            let located = |e: FieldError| e.in_index(index).in_field("instances");
            let check = self.registry.limits().check_reference(&reference);
            check.map_err(located).map(|()| reference)
        };
        let references: Result<Vec<_>, FieldError> =
            messages.iter().enumerate().map(checked).collect();
        references.map_err(|e| invalid(&e))
    }
}

type WatchStream = Pin<Box<dyn Stream<Item = Result<pb::WatchResponse, Status>> + Send>>;

#[tonic::async_trait]
impl RegistryService for Grpc {
    async fn register(
        &self,
        request: Request<pb::RegisterRequest>,
    ) -> Result<Response<pb::RegisterResponse>, Status> {
        let converted = |(index, message): (usize, pb::Instance)| {
            instance_from(message).map_err(|e| e.in_index(index).in_field("instances"))
        };
        let instances = request
            .into_inner()
            .instances
            .into_iter()
            .enumerate()
            .map(converted);
        let instances: Result<Vec<Instance>, FieldError> = instances.collect();
        let instances = instances.map_err(|e| invalid(&e))?;
        let done = self
            .registry
            .register(instances)
            .await
            .map_err(|e| status(&e))?;
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

    async fn renew(
        &self,
        request: Request<pb::RenewRequest>,
    ) -> Result<Response<pb::RenewResponse>, Status> {
        let references = self.references(&request.into_inner().instances)?;
        let done = self
            .registry
            .renew(references)
            .await
            .map_err(|e| status(&e))?;
        Ok(Response::new(pb::RenewResponse {
            renewed: done.result.renewed as u64,
            unknown: done.result.unknown.iter().map(reference_to).collect(),
        }))
    }

    async fn deregister(
        &self,
        request: Request<pb::DeregisterRequest>,
    ) -> Result<Response<pb::DeregisterResponse>, Status> {
        let references = self.references(&request.into_inner().instances)?;
        let done = self
            .registry
            .deregister(references)
            .await
            .map_err(|e| status(&e))?;
        Ok(Response::new(pb::DeregisterResponse {
            revision: done.revision,
            removed: done.result as u64,
        }))
    }

    async fn list_services(
        &self,
        request: Request<pb::ListServicesRequest>,
    ) -> Result<Response<pb::ListServicesResponse>, Status> {
        let selector = selector_from(request.into_inner().selector);
        let services = self.registry.snapshot();
        let selected = services
            .select(&selector)
            .into_iter()
            .map(|service| pb::Service {
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
            services: selected.collect(),
        }))
    }

    async fn list(
        &self,
        request: Request<pb::ListRequest>,
    ) -> Result<Response<pb::ListResponse>, Status> {
        let selector = selector_from(request.into_inner().selector);
        let services = self.registry.snapshot();
        let selected = services.select(&selector);
        let instances = selected.iter().flat_map(|service| service.instances.iter());
        let instances = instances.filter(|instance| selector.matches(instance));
        Ok(Response::new(pb::ListResponse {
            revision: services.revision,
            instances: instances.map(|instance| instance_to(instance)).collect(),
        }))
    }

    async fn get(
        &self,
        request: Request<pb::GetRequest>,
    ) -> Result<Response<pb::GetResponse>, Status> {
        let message = request.into_inner().instance.unwrap_or_default();
        let reference = reference_from(&message);
        let found = self
            .registry
            .snapshot()
            .instance(&reference)
            .map(|i| instance_to(i));
        match found {
            Some(instance) => Ok(Response::new(pb::GetResponse {
                instance: Some(instance),
            })),
            None => Err(Status::not_found(format!(
                "service {} has no instance {:?}",
                reference.service, reference.id
            ))),
        }
    }

    type WatchStream = WatchStream;

    async fn watch(
        &self,
        request: Request<pb::WatchRequest>,
    ) -> Result<Response<WatchStream>, Status> {
        let request = request.into_inner();
        let since = (request.since_revision > 0).then(|| Since {
            revision: request.since_revision,
            store: Some(request.store).filter(|store| !store.is_empty()),
        });
        let selector = selector_from(request.selector);
        let watch = self
            .registry
            .watch(selector, since.as_ref())
            .map_err(|e| status(&e))?;
        let responses = stream::unfold(Parts::new(watch), |mut parts| async move {
            let part = parts.next().await?;
            Some((Ok(response(&part, parts.store())), parts))
        });
        Ok(Response::new(Box::pin(responses)))
    }
}

fn response(part: &Part, store: &str) -> pb::WatchResponse {
    pb::WatchResponse {
        revision: part.revision,
        store: store.to_owned(),
        reset: part.reset,
        synced: part.synced,
        changes: part.changes.iter().map(change_to).collect(),
    }
}
