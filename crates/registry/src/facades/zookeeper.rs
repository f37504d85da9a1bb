//! The mesh as a ZooKeeper server: Dubbo, SOFARPC and Spring Cloud register and find each other with ZooKeeper's own clients, and
//! what every other registry holds is there in their layouts. What an application registers is held by its session.

mod connection;
mod directory;
mod provider;
mod requests;
mod session;
mod tree;

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::net::TcpListener;

use crate::adapters::zookeeper as layout;
use crate::hub::Hub;
use crate::model::{Instance, InstanceRef};
use crate::osr::Registry;
use crate::secret::Credentials;
use crate::watch::Event;

use super::accept;
use super::claims::Claims;
use super::settle::{self, Holder, Settle};

use directory::Directory;
use session::Sessions;
use tree::Tree;

/// Connections at a time.
const CONNECTIONS: usize = 20_000;
/// How often sessions are looked at.
const TICK: Duration = Duration::from_millis(250);

/// How the facade is served.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where it listens.
    pub address: SocketAddr,
    /// Clients must give these by `addauth digest`; absent: whoever reaches the address may read and register.
    pub digest: Option<Credentials>,
}

struct Server {
    state: Mutex<State>,
    registry: Registry,
    hub: Hub,
    digest: Option<Credentials>,
    settle: Settle,
}

struct State {
    tree: Tree,
    sessions: Sessions,
    directory: Directory,
    /// What nodes of applications say, by path.
    claims: Claims<String>,
}

impl Server {
    fn state(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.tree.set_now(now_ms());
        state
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

impl State {
    /// Sends what happened to watches.
    fn tell(&mut self) {
        for (session, frame) in self.tree.take_events() {
            self.sessions.send(session, frame);
        }
    }
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
    })
}

/// Serves until the hub ends or the listener fails.
pub async fn serve(
    listener: TcpListener,
    hub: Hub,
    registry: Registry,
    config: Config,
) -> io::Result<()> {
    tracing::info!(address = %config.address, "serving as ZooKeeper");
    let mut changes = hub.changes().map_err(io::Error::other)?;
    // A client that comes back must not find transactions older than those it has seen: they go on where the clock is.
    let mut tree = Tree::new(now_ms() << 20);
    let mut directory = Directory::new(layout::Config::default());
    directory.begin(&mut tree, &hub.snapshot());
    let (settle, jobs) = Settle::new();
    let server = Arc::new(Server {
        state: Mutex::new(State {
            tree,
            sessions: Sessions::default(),
            directory,
            claims: Claims::default(),
        }),
        registry,
        hub,
        digest: config.digest,
        settle,
    });
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
        never = accept(&listener, CONNECTIONS, connect) => match never {},
        ended = follow => ended,
        () = settle::run(&*server, &server.settle, jobs) => Ok(()),
        () = keep(&server) => Ok(()),
    }
}

/// Shows what the hub says.
fn follow(server: &Server, event: &Event) {
    let services = server.hub.snapshot();
    let mut state = server.state();
    let State {
        tree, directory, ..
    } = &mut *state;
    match event {
        Event::Reset(_) => directory.begin(tree, &services),
        Event::Changes(changes) => {
            let mut keys: Vec<_> = changes.iter().map(|c| c.instance.service.clone()).collect();
            keys.sort();
            keys.dedup();
            for key in keys {
                directory.update(tree, &key, &services);
            }
        }
    }
    state.tell();
}

/// Ends sessions whose clients are silent.
async fn keep(server: &Arc<Server>) {
    let mut tick = tokio::time::interval(TICK);
    loop {
        tick.tick().await;
        let silent = server.state().sessions.silent();
        for session in silent {
            end(server, session).await;
        }
    }
}

/// Ends a session: its nodes go, and what they registered.
async fn end(server: &Server, session: tree::SessionId) {
    let gone = {
        let mut state = server.state();
        let paths = state.tree.end_session(session);
        let gone = provider::withdraw(&mut state, server, &paths);
        state.tell();
        state.sessions.remove(session);
        gone
    };
    provider::deregister(server, gone).await;
}
