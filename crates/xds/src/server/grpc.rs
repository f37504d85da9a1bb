//! The gRPC shell: accepts streams and hands them over. It has a codec of its own, because responses are encoded already.

use std::convert::Infallible;
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::task::{Context, Poll};

use api::envoy::service::discovery::v3::DiscoveryRequest;
use bytes::Buf;
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::{Body, BoxFuture, Service, StdError, http};
use tonic::server::{Grpc, NamedService, StreamingService, UnaryService};
use tonic::{Request, Status, Streaming};

use super::Response;

/// Responses that may wait for a slow client before its connection's task waits too.
const RESPONSES: usize = 4;

/// A stream that a client opened.
pub struct Incoming {
    /// What it says.
    pub requests: Streaming<DiscoveryRequest>,
    /// What it hears. A status ends the stream.
    pub responses: mpsc::Sender<Result<Response, Status>>,
    /// Where it is.
    pub peer: Option<SocketAddr>,
}

/// `envoy.service.discovery.v3.AggregatedDiscoveryService`, state of the world only.
///
/// `F` gets each stream and serves it in a task of its own, or refuses it.
#[derive(Clone)]
pub struct AdsService<F>(F);

impl<F> AdsService<F>
where
    F: Fn(Incoming) -> Result<(), Status> + Clone + Send + Sync + 'static,
{
    /// A service that hands its streams to `accept`.
    pub fn new(accept: F) -> AdsService<F> {
        AdsService(accept)
    }
}

impl<F> NamedService for AdsService<F> {
    const NAME: &'static str = "envoy.service.discovery.v3.AggregatedDiscoveryService";
}

impl<F, B> Service<http::Request<B>> for AdsService<F>
where
    F: Fn(Incoming) -> Result<(), Status> + Clone + Send + Sync + 'static,
    B: Body + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let path = request.uri().path();
        let method = path.rsplit('/').next().unwrap_or_default();
        if method == "StreamAggregatedResources" {
            let accept = Accept(self.0.clone());
            return Box::pin(
                async move { Ok(Grpc::new(AdsCodec).streaming(accept, request).await) },
            );
        }
        let refusal = match method {
            "DeltaAggregatedResources" => {
                "incremental xDS is not served yet: use state of the world (api_type GRPC)"
            }
            _ => "no such method",
        };
        Box::pin(async move {
            let mut grpc = Grpc::new(RefusalCodec(PhantomData));
            Ok(grpc.unary(Refuse(refusal), request).await)
        })
    }
}

struct Accept<F>(F);

impl<F> StreamingService<DiscoveryRequest> for Accept<F>
where
    F: Fn(Incoming) -> Result<(), Status>,
{
    type Response = Response;
    type ResponseStream = ReceiverStream<Result<Response, Status>>;
    type Future = std::future::Ready<Result<tonic::Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<DiscoveryRequest>>) -> Self::Future {
        let peer = request.remote_addr();
        let (responses, received) = mpsc::channel(RESPONSES);
        let accepted = (self.0)(Incoming {
            requests: request.into_inner(),
            responses,
            peer,
        });
        std::future::ready(accepted.map(|()| tonic::Response::new(ReceiverStream::new(received))))
    }
}

#[derive(Clone, Copy, Default)]
struct AdsCodec;

impl Codec for AdsCodec {
    type Encode = Response;
    type Decode = DiscoveryRequest;
    type Encoder = AdsCodec;
    type Decoder = AdsCodec;

    fn encoder(&mut self) -> Self::Encoder {
        AdsCodec
    }

    fn decoder(&mut self) -> Self::Decoder {
        AdsCodec
    }
}

impl Encoder for AdsCodec {
    type Item = Response;
    type Error = Status;

    fn encode(&mut self, item: Response, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.reserve(item.size());
        item.encode(buffer);
        Ok(())
    }
}

impl Decoder for AdsCodec {
    type Item = DiscoveryRequest;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<DiscoveryRequest>, Status> {
        DiscoveryRequest::decode(buffer)
            .map(Some)
            .map_err(|error| Status::invalid_argument(error.to_string()))
    }
}

/// Answers any request with UNIMPLEMENTED, whatever is in it.
struct Refuse(&'static str);

impl UnaryService<()> for Refuse {
    type Response = ();
    type Future = std::future::Ready<Result<tonic::Response<()>, Status>>;

    fn call(&mut self, _: Request<()>) -> Self::Future {
        std::future::ready(Err(Status::unimplemented(self.0)))
    }
}

struct RefusalCodec(PhantomData<()>);

impl Codec for RefusalCodec {
    type Encode = ();
    type Decode = ();
    type Encoder = RefusalCodec;
    type Decoder = RefusalCodec;

    fn encoder(&mut self) -> Self::Encoder {
        RefusalCodec(PhantomData)
    }

    fn decoder(&mut self) -> Self::Decoder {
        RefusalCodec(PhantomData)
    }
}

impl Encoder for RefusalCodec {
    type Item = ();
    type Error = Status;

    fn encode(&mut self, _: (), _: &mut EncodeBuf<'_>) -> Result<(), Status> {
        Ok(())
    }
}

impl Decoder for RefusalCodec {
    type Item = ();
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<()>, Status> {
        buffer.advance(buffer.remaining());
        Ok(Some(()))
    }
}
