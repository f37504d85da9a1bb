//! The mesh as a Nacos server: applications register and find each other with Nacos' own clients, over gRPC (2.x and 3.x) and HTTP
//! (1.x), and what every other registry holds is there in their frameworks' forms. What changes is pushed at once.

mod access;
mod applications;
mod configs;
mod connection;
mod directory;
mod fuzzy;
mod holders;
mod http;
mod http_configs;
mod http_naming;
mod provider;
mod push;
mod requests;
mod udp;
mod written;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::Semaphore;
use tokio::sync::broadcast::error::RecvError;

use crate::hub::Hub;
use crate::model::{Instance, InstanceRef, ServiceKey};
use crate::nacos::DEFAULT_GROUP;
use crate::osr::Registry;
use crate::secret::Credentials;
use crate::watch::Event;

use super::accept;
use super::settle::{self, Holder, Settle};

use access::Access;
use configs::{Configs, Content};
use connection::Connection;
use directory::{Directory, Name};
use holders::Holders;
use push::Item;
use udp::Udp;
use written::Kept;

/// What clients add to the port of HTTP to find that of gRPC.
pub const GRPC_OFFSET: u16 = 1000;
/// Connections at a time.
const CONNECTIONS: usize = 20_000;
/// Services, or configurations, that one connection listens to.
const LISTENED: usize = 50_000;

/// How the facade is served.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where HTTP is served.
    pub address: SocketAddr,
    /// Clients must log in with these; absent: whoever reaches the address may read and register.
    pub credentials: Option<Credentials>,
}

struct Server {
    state: Mutex<State>,
    registry: Registry,
    hub: Hub,
    settle: Settle,
    configs: Configs,
    access: Access,
    udp: Udp,
    /// Held by what writes a large list.
    writing: tokio::sync::Mutex<()>,
    /// For the lists that are on their way to clients, in KiB.
    room: Semaphore,
}

#[derive(Default)]
struct State {
    directory: Directory,
    kept: Kept,
    holders: Holders,
    connections: HashMap<u64, Connection>,
    next_connection: u64,
    /// Who has to be told of a service, by its name alone.
    subscribers: HashMap<Arc<str>, HashSet<Subscriber>>,
    /// Connections that watch which services there are, and by which pattern.
    fuzzy: BTreeSet<(u64, String)>,
    listeners: HashMap<configs::Key, BTreeSet<u64>>,
    beats: provider::Beats,
    udp: udp::Subscriptions,
}

/// Who has to be told of a service.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Subscriber {
    target: Target,
    name: Name,
    clusters: String,
}

/// The way to a subscriber.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Target {
    Connection(u64),
    Udp(SocketAddr),
}

impl Server {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows services as the hub has them, and tells who wants to know.
    fn show(&self, state: &mut State, keys: impl IntoIterator<Item = ServiceKey>) {
        let services = self.hub.snapshot();
        for key in keys {
            let service = services.get(&key).filter(|_| key.namespace.is_default());
            let instances = service.map(|s| &s.instances[..]).unwrap_or_default();
            state.holders.seen(&key, instances);
            let holders = &state.holders;
            state.directory.show(&key, instances, |instance, level| {
                holders.hides(instance, level)
            });
        }
        state.tell();
        if state.udp.is_due() {
            self.udp.wake();
        }
    }

    /// A configuration: one that was published, or what the part of the directory in an application serves.
    fn config(&self, key: &configs::Key) -> Option<Content> {
        self.configs.get(key).or_else(|| {
            let state = self.state();
            let (application, revision) = (&key.data_id, &key.group);
            let info = state.directory.info(&key.tenant, application, revision)?;
            Some(Content::json(&info))
        })
    }
}

impl Holder for Server {
    fn registry(&self) -> &Registry {
        &self.registry
    }

    fn wanted(&self, of: &BTreeSet<InstanceRef>) -> Vec<Option<Arc<Instance>>> {
        let state = self.state();
        let wanted = |reference| state.holders.wanted(reference).cloned();
        of.iter().map(wanted).collect()
    }

    fn leased(&self) -> Vec<InstanceRef> {
        let state = self.state();
        let leased = state.holders.all().filter(|i| i.ttl.is_some());
        leased.map(|instance| instance.reference()).collect()
    }
}

impl State {
    /// Has the changes of services sent to those who listen.
    fn tell(&mut self) {
        for service in self.directory.take_changed() {
            for subscriber in self.subscribers.get(&service).into_iter().flatten() {
                let (name, clusters) = (subscriber.name.clone(), subscriber.clusters.clone());
                match subscriber.target {
                    Target::Connection(id) => {
                        if let Some(connection) = self.connections.get_mut(&id) {
                            connection.todo(Item::Service(name, clusters));
                        }
                    }
                    Target::Udp(address) => self.udp.todo(address, name, clusters),
                }
            }
            for (id, pattern) in &self.fuzzy {
                if let Some(connection) = self.connections.get_mut(id) {
                    connection.fuzzy_changed(pattern, &service);
                }
            }
        }
    }

    fn subscribe(&mut self, subscriber: &Subscriber) {
        for service in names(&subscriber.name) {
            let known = self.subscribers.entry(service).or_default();
            known.insert(subscriber.clone());
        }
    }

    fn unsubscribe(&mut self, subscriber: &Subscriber) {
        for service in names(&subscriber.name) {
            if let Some(known) = self.subscribers.get_mut(&service) {
                known.remove(subscriber);
                if known.is_empty() {
                    self.subscribers.remove(&service);
                }
            }
        }
    }
}

/// The names of services whose changes can be those of a service.
fn names(name: &Name) -> impl Iterator<Item = Arc<str>> {
    let other = directory::other_case(&name.service).map(Arc::from);
    std::iter::once(name.service.clone()).chain(other)
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(0))
}

/// Serves until the hub ends or a listener fails. Reads are the hub's, writes go to the registry. `grpc` listens
/// [`GRPC_OFFSET`] above `http`.
pub async fn serve(
    http: TcpListener,
    grpc: TcpListener,
    hub: Hub,
    registry: Registry,
    config: Config,
) -> io::Result<()> {
    tracing::info!(address = %config.address, "serving as Nacos");
    let mut changes = hub.changes().map_err(io::Error::other)?;
    let socket = UdpSocket::bind((config.address.ip(), 0)).await?;
    let (settle, jobs) = Settle::new();
    let configs = Configs::new(registry.clone());
    let server = Arc::new(Server {
        state: Mutex::default(),
        registry,
        hub,
        settle,
        configs,
        access: Access::new(config.credentials),
        udp: Udp::new(socket),
        writing: tokio::sync::Mutex::default(),
        room: Semaphore::new(push::FLYING_KIB as usize),
    });
    let follow = async {
        while let Some(event) = changes.next().await {
            follow(&server, &event);
        }
        Ok(())
    };
    let connect = |stream, peer| {
        let server = server.clone();
        async move { connection::serve(&server, stream, peer).await }
    };
    tokio::select! {
        never = accept(&grpc, CONNECTIONS, connect) => match never {},
        ended = http::serve(&server, http) => ended,
        ended = follow => ended,
        () = settle::run(&*server, &server.settle, jobs) => Ok(()),
        () = provider::keep(&server) => Ok(()),
        () = udp::run(&server) => Ok(()),
        () = tell_of_configs(&server) => Ok(()),
        () = server.configs.follow() => Ok(()),
    }
}

/// Shows what the hub says.
fn follow(server: &Server, event: &Event) {
    let mut state = server.state();
    let keys: BTreeSet<ServiceKey> = match event {
        Event::Reset(services) => {
            let known = state.directory.shown().cloned();
            let there = services.iter().map(|service| service.key.clone());
            known.chain(there).collect()
        }
        Event::Changes(changes) => {
            let keys = changes.iter().map(|change| change.instance.service.clone());
            keys.collect()
        }
    };
    server.show(&mut state, keys);
}

/// Tells connections which of the configurations that they listen to have changed.
async fn tell_of_configs(server: &Server) {
    let mut changes = server.configs.changes();
    loop {
        let changed = changes.recv().await;
        let mut state = server.state();
        let State {
            connections,
            listeners,
            ..
        } = &mut *state;
        let keys: Vec<&configs::Key> = match &changed {
            Ok(key) => vec![key],
            // Clients look at what has really changed.
            Err(RecvError::Lagged(_)) => listeners.keys().collect(),
            Err(RecvError::Closed) => return,
        };
        for key in keys {
            for id in listeners.get(key).into_iter().flatten() {
                if let Some(connection) = connections.get_mut(id) {
                    connection.todo(Item::Config(key.clone()));
                }
            }
        }
    }
}
