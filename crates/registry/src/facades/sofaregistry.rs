//! The mesh as a session server of SOFARegistry: applications publish and subscribe with SOFARegistry's own client, and what
//! every other registry holds is there under the names of SOFARPC and Dubbo. What a client publishes is held by its
//! connection. Data of other names are passed on from publishers to subscribers as they are.

mod connection;
mod form;
mod http;
mod lists;
mod names;
mod requests;
mod sessions;

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::Notify;

use crate::hub::Hub;
use crate::model::{Instance, InstanceRef};
use crate::osr::Registry;
use crate::sofaregistry::DEFAULT_DATA_CENTER;
use crate::watch::Event;

use super::accept;
use super::claims::Claims;
use super::settle::{self, Holder, Settle};

use http::Reached;
use lists::Lists;
use sessions::Sessions;

/// Changes within this time are pushed as one.
const DEBOUNCE: Duration = Duration::from_millis(3);
/// After a start nothing is said to be empty before clients had this time to come back: their own reconnects take 5 s, and
/// leases of before are over by then.
const GRACE: Duration = Duration::from_secs(30);

/// How the facade is served.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the Bolt port listens.
    pub bolt_address: SocketAddr,
    /// What clients are told to connect to, `host:port`, in place of the address that they have reached.
    pub advertised: Option<String>,
    /// The data centre that lists are of.
    pub data_center: String,
    /// Connections at a time.
    pub connections: usize,
    /// Publishers and subscribers of a connection.
    pub registrations_per_connection: usize,
    /// Bytes of a request.
    pub frame_bytes: usize,
    /// Data of one publisher.
    pub boxes: usize,
    /// Bytes of one of them.
    pub box_bytes: usize,
}

impl Config {
    /// A facade whose Bolt port is there, with all defaults.
    pub fn new(bolt_address: SocketAddr) -> Config {
        Config {
            bolt_address,
            advertised: None,
            data_center: DEFAULT_DATA_CENTER.to_owned(),
            connections: 20_000,
            registrations_per_connection: 20_000,
            frame_bytes: 4 << 20,
            boxes: 1000,
            box_bytes: 64 << 10,
        }
    }
}

struct Server {
    state: Mutex<State>,
    registry: Registry,
    hub: Hub,
    config: Config,
    /// A list may have changed.
    changed: Notify,
    settle: Settle,
}

struct State {
    sessions: Sessions,
    lists: Lists,
    /// What publishers say, by registId.
    claims: Claims<Arc<str>>,
}

impl Server {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something was published or taken back: tells whom it concerns, and the registry.
    async fn changed(&self, touched: BTreeSet<InstanceRef>) -> Result<(), String> {
        self.changed.notify_one();
        self.settle.settle(touched).await
    }
}

impl Holder for Server {
    fn registry(&self) -> &Registry {
        &self.registry
    }

    fn wanted(&self, of: &BTreeSet<InstanceRef>) -> Vec<Option<Arc<Instance>>> {
        let state = self.state();
        of.iter().map(|one| state.claims.wanted(one)).collect()
    }

    fn leased(&self) -> Vec<InstanceRef> {
        self.state().claims.leased()
    }
}

/// Serves until the hub ends or a listener fails.
pub async fn serve(
    http: TcpListener,
    bolt: TcpListener,
    hub: Hub,
    registry: Registry,
    config: Config,
) -> io::Result<()> {
    tracing::info!(bolt = %config.bolt_address, "serving as SOFARegistry");
    let mut changes = hub.changes().map_err(io::Error::other)?;
    let (settle, jobs) = Settle::new();
    let server = Arc::new(Server {
        state: Mutex::new(State {
            sessions: Sessions::default(),
            lists: Lists::new(),
            claims: Claims::default(),
        }),
        registry,
        hub,
        config,
        changed: Notify::new(),
        settle,
    });
    let router = http::router(server.clone()).into_make_service_with_connect_info::<Reached>();
    let follow = async {
        while let Some(event) = changes.next().await {
            follow(&server, &event);
        }
        Ok(())
    };
    let connect = |stream, _| {
        let server = server.clone();
        async move { connection::serve(&server, stream).await }
    };
    tokio::select! {
        served = axum::serve(http, router).into_future() => served,
        never = accept(&bolt, server.config.connections, connect) => match never {},
        ended = follow => ended,
        () = deliver(&server) => Ok(()),
        () = settle::run(&*server, &server.settle, jobs) => Ok(()),
        () = become_certain(&server) => Ok(()),
    }
}

/// Notes what the hub says.
fn follow(server: &Server, event: &Event) {
    let mut state = server.state();
    match event {
        Event::Reset(_) => state.lists.touch_all(),
        Event::Changes(changes) => {
            let keys = changes.iter().map(|change| &change.instance.service);
            state.lists.touch(keys);
        }
    }
    if state.lists.is_dirty() {
        server.changed.notify_one();
    }
}

/// Tells subscribers what has changed.
async fn deliver(server: &Server) {
    loop {
        server.changed.notified().await;
        tokio::time::sleep(DEBOUNCE).await;
        let mut state = server.state();
        let services = server.hub.snapshot();
        let State {
            sessions, lists, ..
        } = &mut *state;
        for (info, version, connections) in lists.refresh_all(&services) {
            sessions.tell(&info, version, &connections);
        }
    }
}

async fn become_certain(server: &Server) {
    tokio::time::sleep(GRACE).await;
    server.state().lists.set_certain();
    server.changed.notify_one();
    std::future::pending().await
}
