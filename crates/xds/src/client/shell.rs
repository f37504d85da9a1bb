//! The gRPC stream of an ADS client.

use std::time::Duration;

use api::envoy::service::discovery::v3::DiscoveryRequest;
use api::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient as Client;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::{Channel, Endpoint};

use super::{ClientConfig, Command, Event, Session};

/// Envoy's back-off between streams.
const BACKOFF_BASE: Duration = Duration::from_millis(500);
const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// Most bytes of one response: a mesh of 50,000 clusters fits.
const MAX_RESPONSE_BYTES: usize = 256 << 20;

pub(super) async fn run(
    config: ClientConfig,
    mut commands: mpsc::UnboundedReceiver<Command>,
    events: impl Fn(Event) + Send + Sync,
) {
    let mut session = Session::new(config.node.clone());
    let mut failures: u32 = 0;
    let mut endpoints = config.endpoints.iter().cycle();
    loop {
        let Some(endpoint) = endpoints.next() else {
            return;
        };
        let ended = one_stream(
            endpoint,
            &config,
            &mut session,
            &mut commands,
            &events,
            &mut failures,
        )
        .await;
        session.closed();
        let Some(reason) = ended else { return };
        events(Event::Disconnected {
            reason: format!("{endpoint}: {reason}"),
        });
        if !wait(backoff(failures), &mut session, &mut commands).await {
            return;
        }
        failures = failures.saturating_add(1);
    }
}

/// A random time up to the base doubled with each failure.
fn backoff(failures: u32) -> Duration {
    let most = BACKOFF_BASE
        .saturating_mul(1 << failures.min(10))
        .min(BACKOFF_MAX);
    most.mul_f64(fastrand::f64())
}

/// Waits while subscriptions go on changing; false when no handle is left.
async fn wait(
    delay: Duration,
    session: &mut Session,
    commands: &mut mpsc::UnboundedReceiver<Command>,
) -> bool {
    let deadline = tokio::time::Instant::now() + delay;
    loop {
        tokio::select! {
            () = tokio::time::sleep_until(deadline) => return true,
            command = commands.recv() => match command {
                Some(command) => { apply(command, session); }
                None => return false,
            }
        }
    }
}

fn apply(command: Command, session: &mut Session) -> Option<DiscoveryRequest> {
    match command {
        Command::Subscribe(kind, names) => session.subscribe(kind, names),
        Command::Ack(kind, version, nonce) => session.ack(kind, &version, &nonce),
        Command::Nack(kind, nonce, message) => session.nack(kind, &nonce, message),
    }
}

async fn connect(endpoint: &str, config: &ClientConfig) -> Result<Channel, String> {
    let endpoint =
        Endpoint::from_shared(format!("http://{endpoint}")).map_err(|e| e.to_string())?;
    let endpoint = endpoint
        .connect_timeout(config.connect_timeout)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(10));
    endpoint.connect().await.map_err(|e| describe(&e))
}

/// The innermost cause: what a transport error shows of itself says nothing.
fn describe(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

/// Runs one stream to its end and says why it ended; `None` when no handle is left.
async fn one_stream(
    endpoint: &str,
    config: &ClientConfig,
    session: &mut Session,
    commands: &mut mpsc::UnboundedReceiver<Command>,
    events: &(impl Fn(Event) + Sync),
    failures: &mut u32,
) -> Option<String> {
    let channel = match connect(endpoint, config).await {
        Ok(channel) => channel,
        Err(reason) => return Some(reason),
    };
    let mut client = Client::new(channel).max_decoding_message_size(MAX_RESPONSE_BYTES);
    let (requests, outgoing) = mpsc::unbounded_channel();
    // the first requests are queued before the call: some servers answer with headers only when they have seen one
    for request in session.opened() {
        let _ = requests.send(request);
    }
    let call = client.stream_aggregated_resources(UnboundedReceiverStream::new(outgoing));
    tokio::pin!(call);
    let mut responses = loop {
        tokio::select! {
            opened = &mut call => match opened {
                Ok(response) => break response.into_inner(),
                Err(status) => return Some(status.to_string()),
            },
            command = commands.recv() => {
                if let Some(request) = apply(command?, session) {
                    let _ = requests.send(request);
                }
            }
        }
    };
    events(Event::Connected);
    loop {
        tokio::select! {
            response = responses.message() => match response {
                Ok(Some(response)) => {
                    *failures = 0;
                    if let Some(event) = session.received(response) {
                        events(event);
                    }
                }
                Ok(None) => return Some("the server ended the stream".to_owned()),
                Err(status) => return Some(status.to_string()),
            },
            command = commands.recv() => {
                if let Some(request) = apply(command?, session) {
                    let _ = requests.send(request);
                }
            }
        }
    }
}
