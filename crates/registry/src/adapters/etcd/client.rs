//! One connection to an etcd server and what is asked on it.

use std::time::Duration;

use http::uri::PathAndQuery;
use prost::Message;
use tonic::client::Grpc;
use tonic::codec::Streaming;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

use super::messages::{
    AuthenticateRequest, AuthenticateResponse, Compare, DeleteRangeRequest, Done,
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse,
    LeaseRevokeRequest, LeaseRevokeResponse, Op, PutRequest, RangeRequest, RangeResponse,
    RequestOp, TxnRequest, TxnResponse, WatchCreateRequest, WatchRequest, WatchResponse,
};
use crate::secret::Credentials;
use crate::source::Trouble;
use crate::tls::{ClientTls, http2_connector};
use crate::web::chain;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Servers end connections that ask more often than every 5 s.
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of one message; a page of keys has about 2 MB.
const MESSAGE_BYTES: usize = 64 << 20;

/// Why there is no answer (any longer).
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) trouble: Trouble,
    pub(crate) reason: String,
    /// The server no longer has what was asked for: a revision, a lease.
    pub(crate) is_gone: bool,
    /// The user may not do this; it may do other things.
    pub(crate) is_denied: bool,
}

impl Failure {
    pub(crate) fn new(trouble: Trouble, reason: impl Into<String>) -> Failure {
        Failure {
            trouble,
            reason: reason.into(),
            is_gone: false,
            is_denied: false,
        }
    }

    fn of(status: &Status) -> Failure {
        let message = status.message();
        // What concerns the log-in is said with several codes.
        let words = ["auth", "permission", "user name"];
        let of_login = words.iter().any(|word| message.contains(word));
        let trouble = match status.code() {
            Code::Unauthenticated | Code::PermissionDenied => Trouble::Refused,
            Code::InvalidArgument | Code::FailedPrecondition if of_login => Trouble::Refused,
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown => {
                Trouble::Unreachable
            }
            _ => Trouble::Protocol,
        };
        Failure {
            trouble,
            reason: format!("{:?}: {message}", status.code()),
            is_gone: matches!(status.code(), Code::NotFound | Code::OutOfRange),
            is_denied: status.code() == Code::PermissionDenied,
        }
    }
}

/// One connection; clones share it.
#[derive(Clone)]
pub(crate) struct Client {
    channel: Channel,
    token: Option<MetadataValue<Ascii>>,
}

impl Client {
    pub(crate) async fn connect(
        server: &str,
        login: Option<&Credentials>,
        tls: Option<&ClientTls>,
    ) -> Result<Client, Failure> {
        let unreachable = |why: &dyn std::error::Error| {
            Failure::new(Trouble::Unreachable, format!("{server}: {}", chain(why)))
        };
        let scheme = if tls.is_some() { "https" } else { "http" };
        let connector = http2_connector(tls)
            .map_err(|e| Failure::new(Trouble::Refused, format!("{server}: {e}")))?;
        let endpoint = Endpoint::from_shared(format!("{scheme}://{server}"))
            .map_err(|e| unreachable(&e))?
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(true);
        let connecting = endpoint.connect_with_connector(connector);
        let channel = connecting.await.map_err(|e| unreachable(&e))?;
        let mut client = Client {
            channel,
            token: None,
        };
        if let Some(login) = login {
            client.token = Some(client.log_in(login).await?);
        }
        Ok(client)
    }

    async fn log_in(&self, login: &Credentials) -> Result<MetadataValue<Ascii>, Failure> {
        let refused = |why: String| Failure::new(Trouble::Refused, why);
        let password = login.password().map_err(refused)?;
        let request = AuthenticateRequest {
            name: login.username.clone(),
            password: password.reveal().to_owned(),
        };
        let answer: AuthenticateResponse = self
            .unary("/etcdserverpb.Auth/Authenticate", request)
            .await?;
        let mut token: MetadataValue<Ascii> = answer
            .token
            .parse()
            .map_err(|_| Failure::new(Trouble::Protocol, "the server's token is none"))?;
        token.set_sensitive(true);
        Ok(token)
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let metadata = request.metadata_mut();
        if let Some(token) = &self.token {
            metadata.insert("token", token.clone());
        }
        // A server that has lost the others ends its watches instead of keeping silent.
        metadata.insert("hasleader", MetadataValue::from_static("true"));
        request
    }

    fn grpc(&self) -> Grpc<Channel> {
        Grpc::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES)
    }

    async fn unary<Q, A>(&self, path: &'static str, message: Q) -> Result<A, Failure>
    where
        Q: Message + Default + 'static,
        A: Message + Default + 'static,
    {
        let mut grpc = self.grpc();
        let call = async {
            let ready = grpc.ready().await;
            ready.map_err(|e| Failure::new(Trouble::Unreachable, e.to_string()))?;
            let codec = ProstCodec::<Q, A>::default();
            let path = PathAndQuery::from_static(path);
            let answer = grpc.unary(self.request(message), path, codec).await;
            answer
                .map(tonic::Response::into_inner)
                .map_err(|status| Failure::of(&status))
        };
        let late = Failure::new(
            Trouble::Unreachable,
            format!("no answer within {ANSWER_TIMEOUT:?}"),
        );
        tokio::time::timeout(ANSWER_TIMEOUT, call)
            .await
            .unwrap_or(Err(late))
    }

    pub(crate) async fn range(&self, request: RangeRequest) -> Result<RangeResponse, Failure> {
        self.unary("/etcdserverpb.KV/Range", request).await
    }

    pub(crate) async fn put(&self, request: PutRequest) -> Result<(), Failure> {
        let done: Result<Done, Failure> = self.unary("/etcdserverpb.KV/Put", request).await;
        done.map(|_| ())
    }

    /// A put that is only done while its key has this revision; 0: while it is not there. `None`: it was not done, else the
    /// store's revision after it.
    pub(crate) async fn put_at(
        &self,
        put: PutRequest,
        revision: i64,
    ) -> Result<Option<i64>, Failure> {
        let compare = vec![Compare::is_at(put.key.clone(), revision)];
        let success = vec![RequestOp {
            op: Some(Op::Put(put)),
        }];
        self.transact(TxnRequest { compare, success }).await
    }

    pub(crate) async fn delete(&self, key: &str) -> Result<(), Failure> {
        let request = DeleteRangeRequest {
            key: key.as_bytes().to_vec(),
        };
        let done: Result<Done, Failure> = self.unary("/etcdserverpb.KV/DeleteRange", request).await;
        done.map(|_| ())
    }

    pub(crate) async fn grant(&self, ttl: Duration) -> Result<i64, Failure> {
        let request = LeaseGrantRequest {
            ttl: i64::try_from(ttl.as_secs().max(1)).unwrap_or(i64::MAX),
        };
        let answer: LeaseGrantResponse = self
            .unary("/etcdserverpb.Lease/LeaseGrant", request)
            .await?;
        if !answer.error.is_empty() {
            return Err(Failure::new(Trouble::Protocol, answer.error));
        }
        Ok(answer.id)
    }

    /// Does all steps or none; `None` when a condition does not hold, else the store's revision after it.
    pub(crate) async fn transact(&self, request: TxnRequest) -> Result<Option<i64>, Failure> {
        let answer: TxnResponse = self.unary("/etcdserverpb.KV/Txn", request).await?;
        let revision = answer.header.map_or(0, |header| header.revision);
        Ok(answer.succeeded.then_some(revision))
    }

    /// Starts a lease anew; `false`: it is over.
    pub(crate) async fn keep_alive(&self, id: i64) -> Result<bool, Failure> {
        let request = LeaseKeepAliveRequest { id };
        let path = "/etcdserverpb.Lease/LeaseKeepAlive";
        let asked = async {
            let mut answers: Streaming<LeaseKeepAliveResponse> =
                self.streaming(path, request, false).await?;
            let answer = answers.message().await.map_err(|e| Failure::of(&e))?;
            Ok(answer.is_some_and(|answer| answer.ttl > 0))
        };
        let late = Failure::new(Trouble::Unreachable, "the lease cannot be kept alive");
        tokio::time::timeout(ANSWER_TIMEOUT, asked)
            .await
            .unwrap_or(Err(late))
    }

    /// Ends a lease, with all keys below it; tells the store's revision then. One that is over is ended.
    pub(crate) async fn revoke(&self, id: i64) -> Result<i64, Failure> {
        let request = LeaseRevokeRequest { id };
        let path = "/etcdserverpb.Lease/LeaseRevoke";
        let answer: Result<LeaseRevokeResponse, Failure> = self.unary(path, request).await;
        match answer {
            Ok(answer) => Ok(answer.header.map_or(0, |header| header.revision)),
            Err(failure) if failure.is_gone => Ok(0),
            Err(failure) => Err(failure),
        }
    }

    /// What happens below a prefix from a revision on.
    pub(crate) async fn watch(
        &self,
        create: WatchCreateRequest,
    ) -> Result<Streaming<WatchResponse>, Failure> {
        let request = WatchRequest {
            create_request: Some(create),
        };
        self.streaming("/etcdserverpb.Watch/Watch", request, true)
            .await
    }

    /// Opens a stream with one message; where more is to come from the server it stays open on this side too.
    async fn streaming<Q, A>(
        &self,
        path: &'static str,
        message: Q,
        stays: bool,
    ) -> Result<Streaming<A>, Failure>
    where
        Q: Message + Default + 'static,
        A: Message + Default + 'static,
    {
        use futures_util::StreamExt;
        let mut grpc = self.grpc();
        let ready = grpc.ready().await;
        ready.map_err(|e| Failure::new(Trouble::Unreachable, e.to_string()))?;
        let first = futures_util::stream::iter([message]);
        let rest = futures_util::stream::pending().take(usize::from(stays));
        let request = self.request(first.chain(rest));
        let codec = ProstCodec::<Q, A>::default();
        let answers = grpc
            .streaming(request, PathAndQuery::from_static(path), codec)
            .await;
        answers
            .map(tonic::Response::into_inner)
            .map_err(|status| Failure::of(&status))
    }
}
