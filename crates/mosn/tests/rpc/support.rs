//! mosn as an RPC proxy between callers and servers that the tests write on the wire crate.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use testkit::process::Process;
use testkit::wait;
use wire::frame::{FrameError, Limits, Next};

pub(crate) const LIMIT: Duration = Duration::from_secs(10);

/// Finds the end of a frame.
pub(crate) type Boundary = fn(&[u8], &Limits) -> Result<Next, FrameError>;

/// A connection that is read frame by frame.
pub(crate) struct Conn {
    pub(crate) stream: TcpStream,
    boundary: Boundary,
    buffer: Vec<u8>,
}

impl Conn {
    pub(crate) fn new(stream: TcpStream, boundary: Boundary) -> Conn {
        stream.set_read_timeout(Some(LIMIT)).expect("a timeout");
        stream.set_nodelay(true).expect("no delay");
        Conn {
            stream,
            boundary,
            buffer: Vec::new(),
        }
    }

    pub(crate) fn connect(address: SocketAddr, boundary: Boundary) -> Conn {
        Conn::new(TcpStream::connect(address).expect("connect"), boundary)
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("sent");
    }

    /// The next frame; `None` at the end of the connection.
    pub(crate) fn receive(&mut self) -> Option<Vec<u8>> {
        loop {
            let next = (self.boundary)(&self.buffer, &Limits::default()).expect("a frame");
            if let Next::Frame(len) = next {
                let rest = self.buffer.split_off(len);
                return Some(std::mem::replace(&mut self.buffer, rest));
            }
            let mut chunk = [0; 65536];
            match self.stream.read(&mut chunk) {
                Ok(0) => {
                    assert!(self.buffer.is_empty(), "closed inside a frame");
                    return None;
                }
                Ok(count) => self.buffer.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("no frame: {error}"),
            }
        }
    }

    pub(crate) fn expect(&mut self) -> Vec<u8> {
        self.receive().expect("a frame, not the end")
    }
}

/// A server: `handle` gets each frame and the socket to answer on.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    connections: Arc<Mutex<Vec<TcpStream>>>,
    listener: TcpListener,
}

impl Server {
    pub(crate) fn start(
        boundary: Boundary,
        handle: impl Fn(&[u8], &mut TcpStream) + Send + Sync + 'static,
    ) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = listener.local_addr().expect("an address");
        let connections = Arc::new(Mutex::new(Vec::new()));
        let accepting = listener.try_clone().expect("a second handle");
        let known = Arc::clone(&connections);
        let handle = Arc::new(handle);
        thread::spawn(move || {
            for stream in accepting.incoming().map_while(Result::ok) {
                known
                    .lock()
                    .expect("not poisoned")
                    .push(stream.try_clone().expect("a second handle"));
                let handle = Arc::clone(&handle);
                thread::spawn(move || {
                    let mut writer = stream.try_clone().expect("a second handle");
                    let mut conn = Conn::new(stream, boundary);
                    conn.stream.set_read_timeout(None).expect("no timeout");
                    while let Some(frame) = conn.receive() {
                        handle(&frame, &mut writer);
                    }
                });
            }
        });
        Server {
            address,
            connections,
            listener,
        }
    }

    /// Number of connections so far.
    pub(crate) fn connections(&self) -> usize {
        self.connections.lock().expect("not poisoned").len()
    }

    /// Closes every connection and takes no more.
    pub(crate) fn kill(&self) {
        socket_close(&self.listener);
        for stream in self.connections.lock().expect("not poisoned").drain(..) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }
}

/// A listening socket that is shut down refuses connections, also while another thread accepts on it.
fn socket_close(listener: &TcpListener) {
    let _ = socket2::SockRef::from(listener).shutdown(std::net::Shutdown::Both);
}

/// An endpoint with its version and group, both optional.
pub(crate) fn endpoint(address: SocketAddr, metadata: &Value) -> Value {
    json!({
        "endpoint": {"address": {"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}}},
        "metadata": {"filter_metadata": {"mosn.rpc": metadata}},
    })
}

pub(crate) fn cluster(name: &str, endpoints: &[Value]) -> Value {
    json!({"name": name, "type": "STATIC", "connect_timeout": "1s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]}})
}

/// With protocol options merged in.
pub(crate) fn with(mut value: Value, more: Value) -> Value {
    if let (Value::Object(into), Value::Object(more)) = (&mut value, more) {
        into.extend(more);
    }
    value
}

/// Heartbeats of the connections of a cluster.
pub(crate) fn heartbeats(interval: &str, timeout: &str, failures: u32) -> Value {
    json!({"typed_extension_protocol_options": {"mosn.extensions.upstreams.rpc.v1.RpcProtocolOptions": {
        "@type": "type.googleapis.com/mosn.extensions.upstreams.rpc.v1.RpcProtocolOptions",
        "heartbeat_interval": interval, "heartbeat_timeout": timeout, "heartbeat_failures": failures}}})
}

/// Everything to cluster `a`.
pub(crate) fn to_a() -> Value {
    json!([{"match": {"prefix": "/"}, "route": {"cluster": "a", "timeout": "5s"}}])
}

/// mosn with one RPC listener.
pub(crate) struct Mosn {
    pub(crate) process: Process,
    pub(crate) address: SocketAddr,
    pub(crate) admin: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Mosn {
    /// `routes` belong to one virtual host for all; `proxy` is merged into the filter.
    pub(crate) fn start(clusters: &[Value], routes: &Value, proxy: Value) -> Mosn {
        let folder = tempfile::tempdir().expect("a folder");
        let port = testkit::net::free_port().expect("a port");
        let admin = testkit::net::free_port().expect("a port");
        let filter = with(
            json!({
                "@type": "type.googleapis.com/mosn.extensions.filters.network.rpc_proxy.v1.RpcProxy",
                "stat_prefix": "t",
                "route_config": {"name": "r", "validate_clusters": false, "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
            }),
            proxy,
        );
        let bootstrap = json!({
            "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": admin}}},
            "static_resources": {"clusters": clusters, "listeners": [{
                "name": "l", "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
                "filter_chains": [{"filters": [{"name": "rpc", "typed_config": filter}]}],
            }]},
        });
        let mut command = Command::new(env!("CARGO_BIN_EXE_mosn"));
        command.args([
            "--config-yaml",
            &bootstrap.to_string(),
            "--concurrency",
            "1",
            "--file-flush-interval-msec",
            "20",
        ]);
        let process = start_process(&mut command, folder.path());
        let mosn = Mosn {
            process,
            address: SocketAddr::from(([127, 0, 0, 1], port)),
            admin: SocketAddr::from(([127, 0, 0, 1], admin)),
            _folder: folder,
        };
        wait::until_ok("mosn listens", LIMIT, || {
            Ok(TcpStream::connect(mosn.address)?)
        })
        .unwrap_or_else(|error| panic!("{error:#}\n{}", mosn.process.output()));
        mosn
    }

    /// The value of a counter or gauge; 0 if it does not exist.
    pub(crate) fn stat(&self, name: &str) -> u64 {
        let answer = testkit::http::get(self.admin, "/stats").expect("stats");
        let text = answer.text();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        line.and_then(|value| value.trim().parse().ok())
            .unwrap_or(0)
    }

    /// Waits until a counter or gauge has this value.
    pub(crate) fn wait_stat(&self, name: &str, wanted: u64) {
        let mut last = 0;
        let reached = wait::until(name, LIMIT, || {
            last = self.stat(name);
            (last == wanted).then_some(())
        });
        assert!(
            reached.is_ok(),
            "{name} is {last}, want {wanted}\n{}",
            self.process.output()
        );
    }

    /// Nothing may be left in flight.
    pub(crate) fn assert_nothing_leaks(&self) {
        self.wait_stat("rpc.t.downstream_rq_active", 0);
        self.wait_stat("cluster.a.upstream_rq_active", 0);
        self.wait_stat("cluster.a.upstream_rq_pending_active", 0);
    }
}

fn start_process(command: &mut Command, folder: &Path) -> Process {
    Process::start("mosn", command, folder).expect("mosn starts")
}
