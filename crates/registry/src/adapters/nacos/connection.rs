//! One connection of gRPC: to Nacos it is a client of its own, with the instances and the subscriptions of that client.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use api::nacos::Payload;
use api::nacos::bi_request_stream_client::BiRequestStreamClient;
use api::nacos::request_client::RequestClient;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::login::Login;
use super::{Config, Failure, GRPC_OFFSET};
use crate::nacos::{
    self, ConnectResetRequest, ConnectionSetupRequest, FUZZY_WATCH, MESSAGE_BYTES, Nothing,
    Request, Response, UN_REGISTER,
};
use crate::naming::{authority, host_port};
use crate::source::Trouble;
use crate::tls::http2_connector;
use crate::web::chain;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// For an answer; a subscription to a service of many instances takes a while.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// For the server to know the connection.
const SETUP_TIMEOUT: Duration = Duration::from_secs(5);
const SETUP_PAUSE: Duration = Duration::from_millis(50);
/// As often the server is asked whether it still is there.
const HEALTH_INTERVAL: Duration = Duration::from_secs(5);
/// Messages of the server that may wait.
const EVENTS: usize = 256;
/// HTTP/2 windows: a push can have megabytes.
const WINDOW: u32 = 4 << 20;
const VERSION: &str = "Nacos-Rust-Client:v2.4.0";

/// What a server says by itself; it is answered already.
pub(super) type Events = mpsc::Receiver<Request>;

/// A connection that is set up; with it end the client's instances and subscriptions.
pub(super) struct Connection {
    server: String,
    namespace: String,
    requests: RequestClient<Channel>,
    number: AtomicU64,
    abilities: BTreeMap<String, bool>,
    end: watch::Receiver<Option<Failure>>,
    task: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Connection {
    /// Connects and logs in, in a namespace.
    pub(super) async fn open(
        config: &Config,
        server: &str,
        namespace: &str,
        login: &Login,
    ) -> Result<(Connection, Events), Failure> {
        let channel = connect(config, server).await?;
        // Before anything else: a wrong password is to be known as one.
        login.headers(config, server).await?;
        let requests = RequestClient::new(channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES)
            .max_encoding_message_size(MESSAGE_BYTES);
        let (end_sender, end) = watch::channel(None);
        let mut connection = Connection {
            server: server.to_owned(),
            namespace: namespace.to_owned(),
            requests,
            number: AtomicU64::new(1),
            abilities: BTreeMap::new(),
            end,
            task: tokio::spawn(std::future::pending()),
        };
        let check = connection
            .ask(config, login, Request::ServerCheck(Nothing {}))
            .await?;
        let Response::ServerCheck(check) = check else {
            return Err(connection.unexpected(&check));
        };
        let negotiates = check.support_ability_negotiation;
        let setup = ConnectionSetupRequest {
            client_version: VERSION.to_owned(),
            tenant: namespace.to_owned(),
            labels: [("source", "sdk"), ("module", "naming"), ("AppName", "mesh")]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
            ability_table: negotiates.then(|| [(FUZZY_WATCH.to_owned(), true)].into()),
        };
        let (events_sender, mut events) = mpsc::channel(EVENTS);
        let stream = BiRequestStreamClient::new(channel).max_decoding_message_size(MESSAGE_BYTES);
        let name = server.to_owned();
        connection.task.abort();
        connection.task = tokio::spawn(async move {
            let failure = follow(stream, setup, &events_sender).await;
            let reason = format!("{name}: {}", failure.reason);
            // Whoever asked is gone with the connection.
            let _ = end_sender.send(Some(Failure { reason, ..failure }));
        });
        let deadline = Instant::now() + SETUP_TIMEOUT;
        if negotiates {
            connection.abilities = connection.negotiate(&mut events, deadline).await?;
        }
        connection.wait_known(config, login, deadline).await?;
        Ok((connection, events))
    }

    async fn negotiate(
        &self,
        events: &mut Events,
        deadline: Instant,
    ) -> Result<BTreeMap<String, bool>, Failure> {
        loop {
            match tokio::time::timeout_at(deadline, events.recv()).await {
                Ok(Some(Request::SetupAck(ack))) => return Ok(ack.ability_table),
                Ok(Some(_)) => {}
                Ok(None) => return Err(self.ended().await),
                Err(_) => {
                    let reason = format!("{}: does not say what it can do", self.server);
                    return Err(Failure::protocol(reason));
                }
            }
        }
    }

    /// The server takes the stream's first message when it comes to it.
    async fn wait_known(
        &self,
        config: &Config,
        login: &Login,
        deadline: Instant,
    ) -> Result<(), Failure> {
        loop {
            let request = Request::HealthCheck(Nothing {});
            match self.try_ask(config, login, &request).await? {
                Ok(_) => return Ok(()),
                Err(refused) if refused.code == UN_REGISTER && Instant::now() < deadline => {
                    tokio::time::sleep(SETUP_PAUSE).await;
                }
                Err(refused) => return Err(self.refused(&request, &refused)),
            }
        }
    }

    /// Where it goes to.
    pub(super) fn server(&self) -> &str {
        &self.server
    }

    /// The namespace that it was set up for.
    pub(super) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Whether the server can do this.
    pub(super) fn is_able(&self, ability: &str) -> bool {
        self.abilities.get(ability).copied().unwrap_or(false)
    }

    /// Asks; what is refused ends the connection.
    pub(super) async fn ask(
        &self,
        config: &Config,
        login: &Login,
        request: Request,
    ) -> Result<Response, Failure> {
        match self.try_ask(config, login, &request).await? {
            Ok(response) => Ok(response),
            Err(refused) => Err(self.refused(&request, &refused)),
        }
    }

    /// Asks; what is refused is an answer too.
    pub(super) async fn try_ask(
        &self,
        config: &Config,
        login: &Login,
        request: &Request,
    ) -> Result<Result<Response, nacos::Refused>, Failure> {
        let answer = self.ask_once(config, login, request).await?;
        match &answer {
            // A server that was started anew may not know its own tokens.
            Err(refused) if refused.is_of_access() && login.is_needed() => {
                login.forget(&self.server).await;
                self.ask_once(config, login, request).await
            }
            _ => Ok(answer),
        }
    }

    async fn ask_once(
        &self,
        config: &Config,
        login: &Login,
        request: &Request,
    ) -> Result<Result<Response, nacos::Refused>, Failure> {
        let headers = login.headers(config, &self.server).await?;
        let id = self.number.fetch_add(1, Ordering::Relaxed).to_string();
        let payload = nacos::ask(request, &id, &headers);
        let mut requests = self.requests.clone();
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, requests.request(payload)).await;
        let unreachable = |why: &str| Failure::unreachable(format!("{}: {why}", self.server));
        let answer = match answer {
            Ok(Ok(answer)) => answer.into_inner(),
            Ok(Err(status)) => return Err(failure(&self.server, &status)),
            Err(_) => {
                let kind = request.kind();
                return Err(unreachable(&format!(
                    "no answer to {kind} in {ANSWER_TIMEOUT:?}"
                )));
            }
        };
        let answer = nacos::answered(&answer)
            .map_err(|e| Failure::protocol(format!("{}: {e}", self.server)))?;
        if let Some(refused) = answer.refused {
            return Ok(Err(refused));
        }
        match answer.response {
            Some(response) => Ok(Ok(response)),
            None => Err(Failure::protocol(format!(
                "{}: the answer to {} is not understood",
                self.server,
                request.kind()
            ))),
        }
    }

    /// What was refused as the end of the connection.
    pub(super) fn refused(&self, request: &Request, refused: &nacos::Refused) -> Failure {
        let trouble = match refused.code {
            _ if refused.is_of_access() => Trouble::Refused,
            UN_REGISTER => Trouble::Unreachable,
            _ => Trouble::Protocol,
        };
        let reason = format!("{}: {}: {refused}", self.server, request.kind());
        Failure::new(trouble, reason)
    }

    /// The answer is that to another question.
    pub(super) fn unexpected(&self, response: &Response) -> Failure {
        Failure::protocol(format!("{}: answers with {}", self.server, response.kind()))
    }

    /// Why it ended, when it has.
    pub(super) async fn ended(&self) -> Failure {
        let mut end = self.end.clone();
        match end.wait_for(Option::is_some).await {
            Ok(failure) => failure.clone(),
            Err(_) => None,
        }
        .unwrap_or_else(|| {
            Failure::unreachable(format!("{}: the connection has ended", self.server))
        })
    }

    /// Asks again and again whether the server still is there, until it is not or the connection ends.
    pub(super) async fn watch_over(&self, config: &Config, login: &Login) -> Failure {
        let health = async {
            loop {
                tokio::time::sleep(HEALTH_INTERVAL).await;
                let request = Request::HealthCheck(Nothing {});
                if let Err(failure) = self.ask(config, login, request).await {
                    return failure;
                }
            }
        };
        tokio::select! {
            failure = health => failure,
            failure = self.ended() => failure,
        }
    }
}

async fn connect(config: &Config, server: &str) -> Result<Channel, Failure> {
    let unreachable = |why: String| Failure::unreachable(format!("{server}: {why}"));
    let (host, port) = host_port(server).map_err(|e| unreachable(e.to_string()))?;
    let port = port.saturating_add(GRPC_OFFSET);
    let connector = http2_connector(config.tls.as_ref())
        .map_err(|e| Failure::new(Trouble::Refused, format!("{server}: {e}")))?;
    let url = format!("{}://{}", config.scheme(), authority(&host, port));
    let endpoint = Endpoint::from_shared(url)
        .map_err(|e| unreachable(e.to_string()))?
        .connect_timeout(CONNECT_TIMEOUT)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW);
    // A channel that reconnects would be another client to the server: it is dropped when its stream ends.
    let connecting = endpoint.connect_with_connector(connector);
    connecting
        .await
        .map_err(|e| unreachable(format!("gRPC port {port}: {}", chain(&e))))
}

fn failure(server: &str, status: &Status) -> Failure {
    let trouble = match status.code() {
        Code::Unauthenticated | Code::PermissionDenied => Trouble::Refused,
        Code::Unimplemented | Code::OutOfRange | Code::ResourceExhausted => Trouble::Protocol,
        _ => Trouble::Unreachable,
    };
    let reason = format!("{server}: {:?}: {}", status.code(), status.message());
    Failure::new(trouble, reason)
}

/// Reads the stream of a connection until it ends; every request on it is answered at once.
async fn follow(
    mut stream: BiRequestStreamClient<Channel>,
    setup: ConnectionSetupRequest,
    events: &mpsc::Sender<Request>,
) -> Failure {
    let (answers, outgoing) = mpsc::channel(EVENTS);
    let setup = nacos::ask(&Request::ConnectionSetup(setup), "0", &BTreeMap::new());
    if answers.send(setup).await.is_err() {
        return Failure::unreachable("the stream has ended");
    }
    let opened = stream
        .request_bi_stream(ReceiverStream::new(outgoing))
        .await;
    let mut incoming = match opened {
        Ok(incoming) => incoming.into_inner(),
        Err(status) => return Failure::unreachable(status.message().to_owned()),
    };
    loop {
        let payload = match incoming.message().await {
            Ok(Some(payload)) => payload,
            Ok(None) => return Failure::unreachable("the server has ended the stream"),
            Err(status) => return Failure::unreachable(status.message().to_owned()),
        };
        match take(&payload, &answers, events).await {
            Ok(()) => {}
            Err(failure) => return failure,
        }
    }
}

async fn take(
    payload: &Payload,
    answers: &mpsc::Sender<Payload>,
    events: &mpsc::Sender<Request>,
) -> Result<(), Failure> {
    let asked = nacos::asked(payload).map_err(|e| Failure::protocol(e.to_string()))?;
    // What is unknown cannot be answered; the server does without.
    let Some(request) = asked.request else {
        return Ok(());
    };
    let response = match &request {
        Request::ClientDetection(_) => Response::ClientDetection(Nothing {}),
        Request::ConfigChangeNotify(_) => Response::ConfigChangeNotify(Nothing {}),
        Request::ConnectReset(_) => Response::ConnectReset(Nothing {}),
        Request::FuzzyWatchChange(_) => Response::FuzzyWatchChange(Nothing {}),
        Request::FuzzyWatchSync(_) => Response::FuzzyWatchSync(Nothing {}),
        Request::NotifySubscriber(_) => Response::NotifySubscriber(Nothing {}),
        Request::SetupAck(_) => Response::SetupAck(Nothing {}),
        _ => return Ok(()),
    };
    let gone = || Failure::unreachable("the connection has ended");
    let answer = nacos::answer(&response, &asked.id);
    answers.send(answer).await.map_err(|_| gone())?;
    match request {
        Request::ConnectReset(ConnectResetRequest {
            server_ip,
            server_port,
            ..
        }) => {
            let reason = "the server asks to go to another one";
            Err(Failure {
                to: (!server_ip.is_empty()).then(|| format!("{server_ip}:{server_port}")),
                ..Failure::unreachable(reason)
            })
        }
        Request::ClientDetection(_) => Ok(()),
        request => {
            // Not everybody listens.
            let _ = events.send(request).await;
            Ok(())
        }
    }
}
