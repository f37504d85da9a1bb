//! Watches over gRPC. The generated code would make and encode each watcher's message anew; here a commit is encoded once for
//! all who watch the same.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use api::mesh::registry::v1 as pb;
use bytes::BufMut;
use futures_util::{Stream, stream};
use pb::registry_service_server::RegistryServiceServer;
use prost::Message as _;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::{Body, BoxFuture, Service, StdError};
use tonic::server::{NamedService, ServerStreamingService};
use tonic::{Request, Response, Status};

use super::{Grpc, MESSAGE_BYTES, NAME};
use crate::access::Caller;
use crate::convert::{put_number, put_text};
use crate::gate::{Api, Verb};
use crate::namespace::Namespace;
use crate::parts::{Part, Parts};
use crate::watch::Since;

/// `RegistryService` as a server takes it.
#[derive(Clone)]
pub struct GrpcService {
    watches: Watches,
    others: RegistryServiceServer<Grpc>,
}

impl GrpcService {
    pub(super) fn new(grpc: Grpc) -> GrpcService {
        let grpc = Arc::new(grpc);
        let others = RegistryServiceServer::from_arc(grpc.clone());
        GrpcService {
            watches: Watches(grpc),
            others: others.max_decoding_message_size(MESSAGE_BYTES),
        }
    }
}

impl NamedService for GrpcService {
    const NAME: &'static str = NAME;
}

impl<B> Service<http::Request<B>> for GrpcService
where
    B: Body + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Service::<http::Request<B>>::poll_ready(&mut self.others, context)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let method = request.uri().path().rsplit('/').next();
        if method != Some("Watch") {
            return self.others.call(request);
        }
        let watches = self.watches.clone();
        Box::pin(async move {
            let grpc = tonic::server::Grpc::new(WatchCodec);
            let mut grpc = grpc.max_decoding_message_size(MESSAGE_BYTES);
            Ok(grpc.server_streaming(watches, request).await)
        })
    }
}

/// The method `Watch`.
#[derive(Clone)]
struct Watches(Arc<Grpc>);

type Messages = Pin<Box<dyn Stream<Item = Result<Message, Status>> + Send>>;

impl ServerStreamingService<pb::WatchRequest> for Watches {
    type Response = Message;
    type ResponseStream = Messages;
    type Future = BoxFuture<Response<Messages>, Status>;

    fn call(&mut self, request: Request<pb::WatchRequest>) -> Self::Future {
        let opened = open(&self.0, request);
        Box::pin(std::future::ready(opened))
    }
}

fn open(grpc: &Grpc, request: Request<pb::WatchRequest>) -> Result<Response<Messages>, Status> {
    let caller = grpc.caller(&request)?;
    let request = request.into_inner();
    let since = (request.since_revision > 0).then(|| Since {
        revision: request.since_revision,
        store: Some(request.store).filter(|store| !store.is_empty()),
    });
    let (selector, entry) = grpc.selected(&caller, Verb::Watch, request.selector)?;
    let namespace = selector.namespace.clone();
    let watch = entry.end(grpc.api.registry.watch(selector, since.as_ref()));
    let watched = Watched {
        parts: Parts::new(watch.map_err(Status::from)?),
        api: grpc.api.clone(),
        caller,
        namespace,
    };
    let messages = stream::unfold(Some(watched), |watched| async move {
        let mut watched = watched?;
        let part = watched.parts.next().await?;
        let allowed = watched
            .api
            .allow_watch(&watched.caller, watched.namespace.as_ref());
        if let Err(error) = allowed {
            return Some((Err(Status::from(error)), None));
        }
        let store = watched.parts.store();
        Some((Ok(Message { part, store }), Some(watched)))
    });
    Ok(Response::new(Box::pin(messages)))
}

struct Watched {
    parts: Parts,
    api: Api,
    caller: Caller,
    /// Where it watches, if in one namespace only.
    namespace: Option<Namespace>,
}

/// A `WatchResponse`.
struct Message {
    part: Part,
    store: Arc<String>,
}

struct WatchCodec;

impl Codec for WatchCodec {
    type Encode = Message;
    type Decode = pb::WatchRequest;
    type Encoder = WatchCodec;
    type Decoder = WatchCodec;

    fn encoder(&mut self) -> WatchCodec {
        WatchCodec
    }

    fn decoder(&mut self) -> WatchCodec {
        WatchCodec
    }
}

impl Encoder for WatchCodec {
    type Item = Message;
    type Error = Status;

    fn encode(&mut self, message: Message, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        let Message { part, store } = message;
        let mut fields = Vec::with_capacity(64);
        put_number(1, part.revision, &mut fields);
        put_text(2, &store, &mut fields);
        put_number(3, part.reset.into(), &mut fields);
        put_number(4, part.synced.into(), &mut fields);
        out.put_slice(&fields);
        part.changes.encode(out);
        Ok(())
    }
}

impl Decoder for WatchCodec {
    type Item = pb::WatchRequest;
    type Error = Status;

    fn decode(&mut self, message: &mut DecodeBuf<'_>) -> Result<Option<pb::WatchRequest>, Status> {
        let request = pb::WatchRequest::decode(message);
        let refused = |e: prost::DecodeError| Status::internal(e.to_string());
        request.map(Some).map_err(refused)
    }
}
