//! For the HTTP tests: a proxy on a bootstrap (ours, or the real Envoy), an upstream that answers as its path says, and a client
//! that sends bytes.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use testkit::process::Process;
use testkit::{http, net, programs, wait};

/// How long anything may take.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// A running proxy.
pub(crate) struct Proxy {
    /// Ends with the value.
    _process: Process,
    /// Its admin.
    pub(crate) admin: SocketAddr,
    /// One address for each connection manager of the bootstrap.
    pub(crate) listeners: Vec<SocketAddr>,
}

/// Which proxy to start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// This project's.
    Mosn,
    /// The real one.
    Envoy,
}

impl Kind {
    /// Its name in files and messages.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Mosn => "mosn",
            Kind::Envoy => "envoy",
        }
    }
}

/// An address in Envoy's configuration.
pub(crate) fn socket(address: SocketAddr) -> Value {
    json!({"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}})
}

/// A cluster of one host.
pub(crate) fn cluster(name: &str, host: SocketAddr) -> Value {
    json!({
        "name": name, "connect_timeout": "1s", "type": "STATIC",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": socket(host)}}]}]},
    })
}

/// A connection manager with these routes; `extra` is merged into it.
#[allow(
    clippy::needless_pass_by_value,
    reason = "literals of JSON are given away"
)]
pub(crate) fn manager(routes: Value, extra: Value) -> Value {
    let mut manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "in",
        "delayed_close_timeout": "0.05s",
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}],
        "route_config": {"name": "r", "validate_clusters": false, "virtual_hosts": [
            {"name": "v", "domains": ["*"], "routes": routes}]},
    });
    merge(&mut manager, extra);
    manager
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

/// Starts a proxy with one listener for each connection manager.
pub(crate) fn start(kind: Kind, folder: &Path, clusters: &[Value], managers: &[Value]) -> Proxy {
    let free = || SocketAddr::from(([127, 0, 0, 1], net::free_port().unwrap()));
    let admin = free();
    let listeners: Vec<SocketAddr> = managers.iter().map(|_| free()).collect();
    let log = folder.join(format!("{}.access", kind.name()));
    let format = "%REQ(:METHOD)% %REQ(:PATH)% %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% \
        %BYTES_RECEIVED% %BYTES_SENT% %PROTOCOL% %UPSTREAM_CLUSTER%\n";
    let configs: Vec<Value> = managers.iter().zip(&listeners).map(|(manager, address)| {
        let mut manager = manager.clone();
        merge(&mut manager, json!({"access_log": [{"name": "file", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
            "path": log, "log_format": {"text_format_source": {"inline_string": format}}}}]}));
        json!({"name": format!("l{}", address.port()), "address": socket(*address), "filter_chains": [{"filters": [
            {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}]})
    }).collect();
    let bootstrap = json!({
        "admin": {"address": socket(admin)},
        "static_resources": {"clusters": clusters, "listeners": configs},
    });
    let path = folder.join(format!("{}.json", kind.name()));
    std::fs::write(&path, bootstrap.to_string()).unwrap();
    let mut command = match kind {
        Kind::Mosn => Command::new(env!("CARGO_BIN_EXE_mosn")),
        Kind::Envoy => {
            let mut command = Command::new(programs::envoy().unwrap());
            command.arg("--disable-hot-restart");
            command
        }
    };
    command.arg("-c").arg(&path).args([
        "--concurrency",
        "1",
        "-l",
        "warning",
        "--file-flush-interval-msec",
        "20",
    ]);
    let process = Process::start(kind.name(), &mut command, folder).unwrap();
    let live = || {
        http::get(admin, "/ready")
            .ok()
            .filter(|answer| answer.text() == "LIVE\n")
    };
    wait::until(&format!("{} is live", kind.name()), LIMIT, live).unwrap();
    Proxy {
        _process: process,
        admin,
        listeners,
    }
}

impl Proxy {
    /// The value of a counter or gauge, 0 if it does not exist yet.
    pub(crate) fn stat(&self, name: &str) -> u64 {
        let answer = http::get(
            self.admin,
            &format!("/stats?filter=^{}$", name.replace('.', "\\.")),
        )
        .unwrap();
        answer
            .text()
            .split_whitespace()
            .last()
            .and_then(|value| value.parse().ok())
            .unwrap_or(0)
    }

    /// Waits until a counter or gauge has this value.
    pub(crate) fn wait_stat(&self, name: &str, value: u64) {
        let reached = || (self.stat(name) == value).then_some(());
        wait::until(
            &format!("{name} is {value} (is {})", self.stat(name)),
            LIMIT,
            reached,
        )
        .unwrap();
    }
}

/// An upstream that records what it gets and answers as the `mode` in the query says.
pub(crate) struct Upstream {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Vec<String>>>,
    /// Messages that have begun and are not recorded yet.
    begun: Arc<AtomicUsize>,
}

impl Upstream {
    /// Starts it.
    pub(crate) fn start() -> Upstream {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let begun = Arc::new(AtomicUsize::new(0));
        let (record, count) = (seen.clone(), begun.clone());
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (record, count) = (record.clone(), count.clone());
                // A broken connection is the end of that connection's part.
                thread::spawn(move || serve(stream, &record, &count));
            }
        });
        Upstream {
            address,
            seen,
            begun,
        }
    }

    /// What came since the last call: heads and bodies.
    pub(crate) fn take(&self) -> Vec<String> {
        // A request that its proxy gives up is recorded when its connection ends.
        let recorded = || (self.begun.load(Ordering::SeqCst) == 0).then_some(());
        wait::until("requests are recorded", LIMIT, recorded).unwrap();
        std::mem::take(&mut *self.seen.lock().unwrap())
    }
}

fn serve(
    mut stream: TcpStream,
    record: &Mutex<Vec<String>>,
    begun: &AtomicUsize,
) -> std::io::Result<()> {
    let mut buffer = Vec::new();
    loop {
        if buffer.is_empty() && stream.peek(&mut [0])? == 0 {
            return Ok(());
        }
        begun.fetch_add(1, Ordering::SeqCst);
        let message = read_message(&mut stream, &mut buffer, false);
        if let Ok(Some((head, body))) = &message {
            record.lock().unwrap().push(format!("{head}{body}"));
        }
        begun.fetch_sub(1, Ordering::SeqCst);
        let Some((head, _)) = message? else {
            return Ok(());
        };
        let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
        let mode = path
            .split("mode=")
            .nth(1)
            .map_or("ok", |rest| rest.split('&').next().unwrap_or(rest));
        let big = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-B: {}\r\n\r\nok",
            "a".repeat(70_000)
        );
        let many = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n{}\r\nok",
            "X-B: a\r\n".repeat(120)
        );
        let (answer, close) = match mode {
            "silent" => {
                // Answers only what comes after the client has given up.
                let _ = stream.read(&mut [0; 1]);
                return Ok(());
            }
            "reset" => return Ok(()),
            "500" => ("HTTP/1.1 500 X\r\nContent-Length: 2\r\n\r\nno", false),
            "503" => ("HTTP/1.1 503 X\r\nContent-Length: 2\r\n\r\nno", false),
            "chunked" => (
                "HTTP/1.1 200 Fine\r\nTransfer-Encoding: chunked\r\nTrailer: x-t\r\n\r\n5\r\nhello\r\n0\r\nX-T: v\r\n\r\n",
                false,
            ),
            "close" => ("HTTP/1.1 200 OK\r\nX-A: b\r\n\r\nuntil close", true),
            "http10" => ("HTTP/1.0 200 OK\r\n\r\nok", true),
            "hop" => (
                "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close, x-foo\r\nX-Foo: a\r\nKeep-Alive: timeout=5\r\n\
                 Server: mine\r\nDate: then\r\nx-envoy-upstream-service-time: 99\r\nProxy-Connection: keep-alive\r\n\
                 Upgrade: h2c\r\n\r\nok",
                true,
            ),
            "bad" => ("NOT HTTP\r\n\r\n", true),
            "badcl" => (
                "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
                true,
            ),
            "both" => (
                "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
                true,
            ),
            "gzip" => ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nok", true),
            "extra" => ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokEXTRA", false),
            "204" => (
                "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n",
                false,
            ),
            "304" => (
                "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
                false,
            ),
            "100" => (
                "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
                false,
            ),
            "103" => (
                "HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
                false,
            ),
            "big" => (big.as_str(), false),
            "many" => (many.as_str(), true),
            "lf" => ("HTTP/1.1 200 OK\nContent-Length: 2\n\nok", false),
            "dup" => (
                "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nSet-Cookie: a\r\nX-D: 1\r\nSet-Cookie: b\r\nx-d: 2\r\n\r\nok",
                false,
            ),
            _ if head.starts_with("HEAD ") => {
                ("HTTP/1.1 200 OK\r\nContent-Length: 55\r\n\r\n", false)
            }
            _ => ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", false),
        };
        stream.write_all(answer.as_bytes())?;
        if close {
            return Ok(());
        }
    }
}

/// Reads one message: its head and its body as on the wire. `None` at the end of the connection.
///
/// A reader of its own, so that the codec under test does not judge itself.
pub(crate) fn read_message(
    stream: &mut TcpStream,
    buffer: &mut Vec<u8>,
    to_head: bool,
) -> std::io::Result<Option<(String, String)>> {
    let head_end = loop {
        if let Some(at) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
        if fill(stream, buffer)? == 0 {
            return Ok(None);
        }
    };
    let head = String::from_utf8_lossy(&buffer[..head_end]).into_owned();
    buffer.drain(..head_end);
    let lower = head.to_ascii_lowercase();
    let status: u16 = match lower.starts_with("http/") {
        true => lower[9..12].parse().unwrap_or(0),
        false => 0,
    };
    let bodyless = to_head || matches!(status, 100..=199 | 204 | 304);
    let length = lower
        .split("\r\ncontent-length:")
        .nth(1)
        .and_then(|rest| rest.split("\r\n").next()?.trim().parse().ok());
    let end = |buffer: &[u8]| -> Option<usize> {
        if bodyless {
            return Some(0);
        }
        if lower.contains("transfer-encoding: chunked") {
            return chunked_end(buffer);
        }
        match length {
            Some(length) => (buffer.len() >= length).then_some(length),
            None if status == 0 => Some(0),
            None => None,
        }
    };
    loop {
        if let Some(end) = end(buffer) {
            let body = String::from_utf8_lossy(&buffer[..end]).into_owned();
            buffer.drain(..end);
            return Ok(Some((head, body)));
        }
        if fill(stream, buffer)? == 0 {
            return Ok(Some((
                head,
                String::from_utf8_lossy(&std::mem::take(buffer)).into_owned(),
            )));
        }
    }
}

fn chunked_end(buffer: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        let line = buffer[at..].windows(2).position(|two| two == b"\r\n")?;
        let size = std::str::from_utf8(&buffer[at..at + line]).ok()?;
        let size = usize::from_str_radix(size.split(';').next()?.trim(), 16).ok()?;
        at += line + 2;
        if size == 0 {
            loop {
                let line = buffer[at..].windows(2).position(|two| two == b"\r\n")?;
                at += line + 2;
                if line == 0 {
                    return Some(at);
                }
            }
        }
        at += size + 2;
        if at > buffer.len() {
            return None;
        }
    }
}

fn fill(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> std::io::Result<usize> {
    let mut piece = [0; 16 * 1024];
    let read = stream.read(&mut piece)?;
    buffer.extend_from_slice(&piece[..read]);
    Ok(read)
}

/// A client connection.
pub(crate) struct Client {
    /// The socket.
    pub(crate) stream: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    /// Connects.
    pub(crate) fn connect(address: SocketAddr) -> Client {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.set_nodelay(true).unwrap();
        Client {
            stream,
            buffer: Vec::new(),
        }
    }

    /// Sends bytes; the proxy may have closed already.
    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.stream.write_all(bytes.as_ref());
    }

    /// The next answer, head and body as they came; `None` at the end.
    pub(crate) fn answer(&mut self, to_head: bool) -> Option<(String, String)> {
        // A reset is an end too.
        read_message(&mut self.stream, &mut self.buffer, to_head).unwrap_or(None)
    }

    /// Whether the proxy closes now, without anything more.
    pub(crate) fn is_closed(&mut self) -> bool {
        self.buffer.is_empty() && matches!(self.stream.read(&mut [0; 1]), Ok(0) | Err(_))
    }

    /// Reads until these bytes have come.
    pub(crate) fn read_until(&mut self, wanted: &str) -> String {
        loop {
            let text = String::from_utf8_lossy(&self.buffer).into_owned();
            if let Some(at) = text.find(wanted) {
                let end = at + wanted.len();
                self.buffer.drain(..end);
                return text[..end].to_owned();
            }
            assert!(
                fill(&mut self.stream, &mut self.buffer).unwrap() > 0,
                "closed after {text:?}"
            );
        }
    }
}

/// A request with a `Host` and these header lines.
pub(crate) fn request(method: &str, path: &str, headers: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nHost: a.example\r\n{headers}\r\n")
}
