//! The aggregated discovery service, client side, state of the world.
//!
//! [`Session`] is the state machine: what is subscribed, which version was accepted last, which nonce is current. [`spawn`] is
//! its gRPC shell: it keeps one stream open, tries the endpoints in turn and waits longer after each failure.

mod session;
mod shell;

use std::collections::BTreeSet;
use std::time::Duration;

use api::envoy::config::core::v3::Node;
use api::google::protobuf::Any;
use tokio::sync::mpsc;

pub use session::Session;

/// The types that a proxy subscribes to, in the order in which they are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ResourceType {
    /// CDS.
    Cluster,
    /// EDS.
    Endpoint,
    /// LDS.
    Listener,
    /// RDS.
    Route,
}

impl ResourceType {
    /// All types.
    pub const ALL: [ResourceType; 4] = [
        ResourceType::Cluster,
        ResourceType::Endpoint,
        ResourceType::Listener,
        ResourceType::Route,
    ];

    /// The type URL.
    pub fn type_url(self) -> &'static str {
        match self {
            ResourceType::Cluster => crate::server::CLUSTER,
            ResourceType::Endpoint => crate::server::ENDPOINTS,
            ResourceType::Listener => crate::server::LISTENER,
            ResourceType::Route => crate::server::ROUTE,
        }
    }
}

/// What happened on the stream.
#[derive(Debug)]
pub enum Event {
    /// The stream is open.
    Connected,
    /// The stream ended or could not be opened; another try follows by itself.
    Disconnected {
        /// Why.
        reason: String,
    },
    /// Resources; to be answered with [`Handle::ack`] or [`Handle::nack`].
    Response {
        /// Their type.
        kind: ResourceType,
        /// `version_info`.
        version: String,
        /// `nonce`.
        nonce: String,
        /// The resources; all there are for CDS and LDS, maybe a part for EDS and RDS.
        resources: Vec<Any>,
    },
}

/// How to reach the server.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// `host:port` of each server, tried in turn.
    pub endpoints: Vec<String>,
    /// Sent in the first request of a stream.
    pub node: Node,
    /// For one endpoint.
    pub connect_timeout: Duration,
}

pub(crate) enum Command {
    Subscribe(ResourceType, Option<BTreeSet<String>>),
    Ack(ResourceType, String, String),
    Nack(ResourceType, String, String),
}

/// Talks to the stream's task; the stream ends when the last handle is dropped.
#[derive(Clone, Debug)]
pub struct Handle {
    commands: mpsc::UnboundedSender<Command>,
}

impl Handle {
    /// Asks for resources of a type: for all of them (`None`) or for these names.
    pub fn subscribe(&self, kind: ResourceType, names: Option<BTreeSet<String>>) {
        let _ = self.commands.send(Command::Subscribe(kind, names));
    }

    /// Accepts a response.
    pub fn ack(&self, kind: ResourceType, version: &str, nonce: &str) {
        let _ = self
            .commands
            .send(Command::Ack(kind, version.to_owned(), nonce.to_owned()));
    }

    /// Refuses a response; `message` says which resource and field.
    pub fn nack(&self, kind: ResourceType, nonce: &str, message: String) {
        let _ = self
            .commands
            .send(Command::Nack(kind, nonce.to_owned(), message));
    }
}

/// Starts the stream's task on the current runtime.
pub fn spawn(config: ClientConfig, events: impl Fn(Event) + Send + Sync + 'static) -> Handle {
    let (commands, receiver) = mpsc::unbounded_channel();
    tokio::spawn(shell::run(config, receiver, events));
    Handle { commands }
}
