//! A client's connection over gRPC: requests come one by one, what the server says goes over one stream that belongs to the
//! connection. All that the client holds lives as long as the connection.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::nacos::Payload;
use api::nacos::bi_request_stream_server::{BiRequestStream, BiRequestStreamServer};
use api::nacos::request_server::{Request as UnaryRequest, RequestServer};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::Service;
use tonic::{Request, Response, Status, Streaming};

use super::configs::Key;
use super::directory::Name;
use super::fuzzy::Fuzzy;
use super::push::{self, Item};
use super::{LISTENED, Server, Subscriber, Target, now_ms, provider, requests};
use crate::nacos::{ConnectionSetupRequest, FUZZY_WATCH, SetupAckRequest, ask};

/// Bytes of a request.
const REQUEST_BYTES: usize = 16 << 20;
/// What a client may wait with its set-up.
const SETUP: Duration = Duration::from_secs(30);
/// Messages that may wait for a client to read them.
const WAITING: usize = 64;
/// Requests of a client at a time.
const STREAMS: u32 = 256;
/// Patterns that one connection watches.
const PATTERNS: usize = 100;

/// A connection while it is open.
pub(super) struct Line {
    pub(super) server: Arc<Server>,
    pub(super) id: u64,
    /// As clients know it.
    name: String,
    /// Ends it.
    closed: Notify,
}

/// What is known of a connection that has been set up.
pub(super) struct Connection {
    line: Arc<Line>,
    out: mpsc::Sender<Result<Payload, Status>>,
    pub(super) tenant: String,
    heard: Instant,
    /// Services of which it holds something.
    holds: BTreeSet<Name>,
    /// Services and clusters that it listens to, each with the digest of what it was told last.
    subscriptions: HashMap<(Name, String), u64>,
    /// Configurations that it listens to, each with the namespace as the client writes it.
    listens: BTreeMap<Key, String>,
    fuzzy: BTreeMap<String, Fuzzy>,
    todo: BTreeSet<Item>,
    wake: Arc<Notify>,
    /// What the client has yet to answer.
    asked: HashMap<String, oneshot::Sender<()>>,
    next_ask: u64,
}

impl Connection {
    pub(super) fn line(&self) -> &Arc<Line> {
        &self.line
    }

    pub(super) fn out(&self) -> mpsc::Sender<Result<Payload, Status>> {
        self.out.clone()
    }

    /// Wakes what tells it.
    pub(super) fn waker(&self) -> Arc<Notify> {
        self.wake.clone()
    }

    /// Something has to be told.
    pub(super) fn todo(&mut self, item: Item) {
        self.todo.insert(item);
        self.wake.notify_one();
    }

    /// The next of what has to be told that is not being told now.
    pub(super) fn next(&mut self, busy: &BTreeSet<Item>) -> Option<Item> {
        let item = self
            .todo
            .iter()
            .find(|item| !busy.contains(item))
            .cloned()?;
        self.todo.remove(&item);
        Some(item)
    }

    /// It holds something of a service.
    pub(super) fn holds(&mut self, name: &Name) {
        self.holds.insert(name.clone());
    }

    /// How long the client has said nothing.
    pub(super) fn silence(&self) -> Duration {
        self.heard.elapsed()
    }

    /// A number for a request to the client, and what comes when it is answered.
    pub(super) fn ask(&mut self) -> (String, oneshot::Receiver<()>) {
        self.next_ask += 1;
        let number = self.next_ask.to_string();
        let (answer, answered) = oneshot::channel();
        self.asked.insert(number.clone(), answer);
        (number, answered)
    }

    /// A request will not be answered any more.
    pub(super) fn give_up(&mut self, number: &str) {
        self.asked.remove(number);
    }

    /// Whether a subscriber was told something else, and what it is told now.
    pub(super) fn tells(&mut self, name: &Name, clusters: &str, digest: u64) -> bool {
        let key = (name.clone(), clusters.to_owned());
        let Some(known) = self.subscriptions.get_mut(&key) else {
            return false;
        };
        std::mem::replace(known, digest) != digest
    }

    /// A new subscriber was answered with this; a push may have been quicker.
    pub(super) fn answered(&mut self, name: &Name, clusters: &str, digest: u64) {
        let key = (name.clone(), clusters.to_owned());
        if let Some(known) = self
            .subscriptions
            .get_mut(&key)
            .filter(|known| **known == 0)
        {
            *known = digest;
        }
    }

    /// What a subscriber was told did not reach it.
    pub(super) fn untold(&mut self, name: &Name, clusters: &str) {
        let key = (name.clone(), clusters.to_owned());
        if let Some(known) = self.subscriptions.get_mut(&key) {
            *known = 0;
        }
    }

    /// Listens to a service; false: it listens to too many.
    pub(super) fn subscribe(&mut self, name: &Name, clusters: &str) -> bool {
        if self.subscriptions.len() >= LISTENED {
            return false;
        }
        let key = (name.clone(), clusters.to_owned());
        self.subscriptions.insert(key, 0);
        true
    }

    pub(super) fn unsubscribe(&mut self, name: &Name, clusters: &str) {
        let key = (name.clone(), clusters.to_owned());
        self.subscriptions.remove(&key);
    }

    /// Listens to a configuration; false: it listens to too many.
    pub(super) fn listen(&mut self, key: &Key, tenant: &str) -> bool {
        let fits = self.listens.len() < LISTENED;
        if fits {
            self.listens.insert(key.clone(), tenant.to_owned());
        }
        fits
    }

    /// The namespace of a configuration that it listens to, as the client writes it.
    pub(super) fn listens(&self, key: &Key) -> Option<&str> {
        self.listens.get(key).map(String::as_str)
    }

    pub(super) fn unlisten(&mut self, key: &Key) {
        self.listens.remove(key);
    }

    /// Watches the names of services; false: it watches too many patterns.
    pub(super) fn watch(&mut self, pattern: &str, fuzzy: Fuzzy) -> bool {
        if self.fuzzy.len() >= PATTERNS && !self.fuzzy.contains_key(pattern) {
            return false;
        }
        self.fuzzy.insert(pattern.to_owned(), fuzzy);
        self.todo(Item::Fuzzy(pattern.to_owned()));
        true
    }

    pub(super) fn unwatch(&mut self, pattern: &str) {
        self.fuzzy.remove(pattern);
    }

    pub(super) fn watched(&mut self, pattern: &str) -> Option<&mut Fuzzy> {
        self.fuzzy.get_mut(pattern)
    }

    /// A service has changed: it may have come or gone.
    pub(super) fn fuzzy_changed(&mut self, pattern: &str, service: &Arc<str>) {
        if let Some(fuzzy) = self.fuzzy.get_mut(pattern)
            && fuzzy.changed(service)
        {
            self.todo(Item::Fuzzy(pattern.to_owned()));
        }
    }
}

/// Serves a connection until it ends.
pub(super) async fn serve(server: &Arc<Server>, stream: TcpStream, peer: SocketAddr) {
    // Pushes are small and must not wait for others.
    let _ = stream.set_nodelay(true);
    let id = {
        let mut state = server.state();
        state.next_connection += 1;
        state.next_connection
    };
    let line = Arc::new(Line {
        server: server.clone(),
        id,
        name: format!("{}_{}_{}_{id}", now_ms(), peer.ip(), peer.port()),
        closed: Notify::new(),
    });
    let unary = RequestServer::new(Calls(line.clone()));
    let unary = unary.max_decoding_message_size(REQUEST_BYTES);
    let stream_of = BiRequestStreamServer::new(Calls(line.clone()));
    let stream_of = stream_of.max_decoding_message_size(REQUEST_BYTES);
    let service = hyper::service::service_fn(move |request: http::Request<Incoming>| {
        let (mut unary, mut stream_of) = (unary.clone(), stream_of.clone());
        async move {
            let path = request.uri().path();
            let response = if path.starts_with("/BiRequestStream/") {
                stream_of.call(request).await
            } else {
                // It answers paths that it does not know.
                unary.call(request).await
            };
            Ok::<_, Infallible>(response.unwrap_or_else(|never| match never {}))
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new()).http2_only();
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS);
    let serving = builder.serve_connection(TokioIo::new(stream), service);
    let set_up = async {
        tokio::time::sleep(SETUP).await;
        if server.state().connections.contains_key(&id) {
            std::future::pending().await
        }
    };
    tokio::select! {
        // How it ends does not matter.
        _ = serving => {}
        () = line.closed.notified() => {}
        () = set_up => tracing::debug!(%peer, "a connection has not been set up"),
    }
    end(&line).await;
}

/// What is called over a connection.
struct Calls(Arc<Line>);

#[tonic::async_trait]
impl UnaryRequest for Calls {
    async fn request(&self, request: Request<Payload>) -> Result<Response<Payload>, Status> {
        let line = &self.0;
        line.heard();
        let answer = requests::answer(&line.server, line.id, &line.name, request.get_ref()).await;
        Ok(Response::new(answer))
    }
}

#[tonic::async_trait]
impl BiRequestStream for Calls {
    type requestBiStreamStream = ReceiverStream<Result<Payload, Status>>;

    async fn request_bi_stream(
        &self,
        request: Request<Streaming<Payload>>,
    ) -> Result<Response<Self::requestBiStreamStream>, Status> {
        let (out, messages) = mpsc::channel(WAITING);
        tokio::spawn(listen(self.0.clone(), request.into_inner(), out));
        Ok(Response::new(ReceiverStream::new(messages)))
    }
}

impl Line {
    /// Ends the connection.
    pub(super) fn close(&self) {
        self.closed.notify_one();
    }

    fn heard(&self) {
        if let Some(connection) = self.server.state().connections.get_mut(&self.id) {
            connection.heard = Instant::now();
        }
    }
}

/// Takes what comes over the stream; the connection ends with it.
async fn listen(
    line: Arc<Line>,
    mut stream: Streaming<Payload>,
    out: mpsc::Sender<Result<Payload, Status>>,
) {
    let mut pushing = None;
    while let Ok(Some(payload)) = stream.message().await {
        if let Some(setup) = requests::setup(&payload) {
            if pushing.is_none() {
                set_up(&line, setup, &out).await;
                pushing = Some(tokio::spawn(push::run(line.server.clone(), line.id)));
            }
            continue;
        }
        line.heard();
        let number = requests::answered_number(&payload);
        let mut state = line.server.state();
        if let Some(connection) = state.connections.get_mut(&line.id)
            && let Some(answer) = number.and_then(|number| connection.asked.remove(&number))
        {
            // Who asked may have given up.
            let _ = answer.send(());
        }
    }
    if let Some(pushing) = pushing {
        pushing.abort();
    }
    end(&line).await;
    line.close();
}

async fn set_up(
    line: &Arc<Line>,
    setup: ConnectionSetupRequest,
    out: &mpsc::Sender<Result<Payload, Status>>,
) {
    let connection = Connection {
        line: line.clone(),
        out: out.clone(),
        tenant: setup.tenant,
        heard: Instant::now(),
        holds: BTreeSet::new(),
        subscriptions: HashMap::new(),
        listens: BTreeMap::new(),
        fuzzy: BTreeMap::new(),
        todo: BTreeSet::new(),
        wake: Arc::default(),
        asked: HashMap::new(),
        next_ask: 0,
    };
    line.server.state().connections.insert(line.id, connection);
    if setup.ability_table.is_some() {
        let abilities = ["supportPersistentInstanceByGrpc", FUZZY_WATCH];
        let ack = SetupAckRequest {
            ability_table: abilities.map(|name| (name.to_owned(), true)).into(),
        };
        let ack = ask(&crate::nacos::Request::SetupAck(ack), "0", &BTreeMap::new());
        // A client that is gone does not need it.
        let _ = out.send(Ok(ack)).await;
    }
}

/// Takes out what the connection held and listened to; the second time there is nothing.
async fn end(line: &Line) {
    let held = {
        let mut state = line.server.state();
        let Some(connection) = state.connections.remove(&line.id) else {
            return;
        };
        for (name, clusters) in connection.subscriptions.into_keys() {
            state.unsubscribe(&Subscriber {
                target: Target::Connection(line.id),
                name,
                clusters,
            });
        }
        for key in connection.listens.into_keys() {
            requests::forget_listener(&mut state, &key, line.id);
        }
        for pattern in connection.fuzzy.into_keys() {
            state.fuzzy.remove(&(line.id, pattern));
        }
        connection.holds
    };
    provider::end(&line.server, line.id, held).await;
}
