//! Listeners of one worker: accepting, listener filters, the choice of a filter chain, and draining.

pub mod config;
pub mod filter_chain;
pub mod inspector;

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

pub use config::{ListenerConfig, ListenerStats, NetworkFilter};
pub use inspector::Protocol;

use crate::worker::Worker;

/// Tells connections to finish what they are doing and close.
#[derive(Default)]
pub struct Drain {
    draining: Cell<bool>,
    notify: Notify,
}

impl Drain {
    /// Whether connections should finish.
    pub fn is_draining(&self) -> bool {
        self.draining.get()
    }

    /// Resolves when connections should finish.
    pub async fn wait(&self) {
        while !self.draining.get() {
            self.notify.notified().await;
        }
    }

    /// Starts draining.
    pub fn start(&self) {
        self.draining.set(true);
        self.notify.notify_waiters();
    }
}

/// An accepted connection, as its network filter gets it.
pub struct Downstream {
    /// The socket; bytes that inspectors looked at are still in it.
    pub stream: TcpStream,
    /// The peer.
    pub remote: SocketAddr,
    /// This end.
    pub local: SocketAddr,
    /// What an inspector recognised.
    pub detected: Option<Protocol>,
    /// Says when to finish.
    pub drain: Rc<Drain>,
    /// The listener's configuration and statistics.
    pub listener: Arc<ListenerConfig>,
}

/// One listener on one worker.
pub struct ListenerHandle {
    shared: Rc<Shared>,
}

struct Shared {
    worker: Rc<Worker>,
    config: RefCell<Arc<ListenerConfig>>,
    drain: RefCell<Rc<Drain>>,
    stop: Drain,
}

impl ListenerHandle {
    /// Begins to accept on `socket`.
    pub fn start(
        worker: Rc<Worker>,
        config: Arc<ListenerConfig>,
        socket: std::net::TcpListener,
    ) -> std::io::Result<ListenerHandle> {
        socket.set_nonblocking(true)?;
        let socket = TcpListener::from_std(socket)?;
        let shared = Rc::new(Shared {
            worker,
            config: RefCell::new(config),
            drain: RefCell::default(),
            stop: Drain::default(),
        });
        shared.worker.spawn(accept_loop(socket, shared.clone()));
        Ok(ListenerHandle { shared })
    }

    /// New connections get the new configuration; those of the old one are drained.
    pub fn update(&self, config: Arc<ListenerConfig>) {
        *self.shared.config.borrow_mut() = config;
        self.shared.drain.replace(Rc::default()).start();
    }

    /// Connections finish; the socket goes on accepting.
    pub fn drain(&self) {
        self.shared.drain.borrow().start();
    }

    /// Closes the socket and drains the connections.
    pub fn stop(self) {
        self.shared.stop.start();
        self.shared.drain.borrow().start();
    }
}

async fn accept_loop(socket: TcpListener, shared: Rc<Shared>) {
    loop {
        let accepted = tokio::select! {
            biased;
            () = shared.stop.wait() => return,
            accepted = socket.accept() => accepted,
        };
        match accepted {
            Ok((stream, remote)) => shared.accepted(stream, remote),
            // out of descriptors, or the peer left before we took it: never spin on it
            Err(error) => {
                shared.config.borrow().stats.accept_error.inc();
                tracing::warn!(listener = %shared.config.borrow().name, %error, "accept failed");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

impl Shared {
    fn accepted(&self, stream: TcpStream, remote: SocketAddr) {
        let listener = self.config.borrow().clone();
        let Ok(local) = stream.local_addr() else {
            return;
        };
        let _ = stream.set_nodelay(true);
        listener.stats.downstream_cx_total.inc();
        let conn = Downstream {
            stream,
            remote: unmap(remote),
            local: unmap(local),
            detected: None,
            drain: self.drain.borrow().clone(),
            listener,
        };
        self.worker.spawn(serve(conn, self.worker.clone()));
    }
}

/// An IPv4-mapped IPv6 address as the IPv4 address it stands for.
fn unmap(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Counts an open connection in the listener's statistics.
struct ActiveConnection(Arc<ListenerConfig>);

impl ActiveConnection {
    fn new(listener: &Arc<ListenerConfig>) -> ActiveConnection {
        listener.stats.downstream_cx_active.inc();
        ActiveConnection(listener.clone())
    }
}

impl Drop for ActiveConnection {
    fn drop(&mut self) {
        self.0.stats.downstream_cx_active.dec();
        self.0.stats.downstream_cx_destroy.inc();
    }
}

/// Keeps `guards` while `serving` runs.
fn serving_with<G>(guards: G, serving: impl Future<Output = ()>) -> impl Future<Output = ()> {
    let mut serving = Box::pin(serving);
    std::future::poll_fn(move |context| {
        let _ = &guards;
        serving.as_mut().poll(context)
    })
}

async fn serve(mut conn: Downstream, worker: Rc<Worker>) {
    let open = worker.count_connection();
    let active = ActiveConnection::new(&conn.listener);
    let listener = conn.listener.clone();
    if !listener.inspectors.is_empty() {
        // boxed: an idle connection must not carry the inspectors' state
        match Box::pin(inspector::inspect(&conn.stream, &listener)).await {
            Ok(detected) => conn.detected = detected,
            Err(inspector::Failed::Timeout) => {
                listener.stats.downstream_pre_cx_timeout.inc();
                return;
            }
            Err(inspector::Failed::Closed) => return,
        }
    }
    let Some(chain) = filter_chain::find(&listener, &conn) else {
        listener.stats.no_filter_chain_match.inc();
        return;
    };
    match &chain.filter {
        NetworkFilter::Http(config) => crate::http::serve(conn, config.clone(), worker).await,
        // a task of its own: this one is as large as the largest filter's future
        NetworkFilter::Rpc(config) => {
            let serving = crate::rpc::serve(conn, config.clone(), worker.clone());
            worker.spawn(serving_with((open, active), serving));
        }
        NetworkFilter::TcpProxy(config) => {
            Box::pin(crate::tcp_proxy::serve(conn, config.clone(), worker)).await
        }
    }
}
