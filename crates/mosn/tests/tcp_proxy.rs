//! `tcp_proxy` and the choice of a filter chain, at the sockets.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use testkit::process::Process;
use testkit::wait;

const LIMIT: Duration = Duration::from_secs(10);

/// Reads to the end, then answers its name, a colon, and all that it read.
fn answers_at_the_end(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("an address");
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || answer(stream, name));
        }
    });
    address
}

fn answer(mut stream: TcpStream, name: &str) {
    let mut read = format!("{name}:").into_bytes();
    if stream.read_to_end(&mut read).is_ok() {
        let _ = stream.write_all(&read);
    }
}

fn cluster(name: &str, endpoint: SocketAddr) -> Value {
    json!({"name": name, "type": "STATIC", "connect_timeout": "1s", "load_assignment": {"cluster_name": name,
        "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"socket_address":
            {"address": endpoint.ip().to_string(), "port_value": endpoint.port()}}}}]}]}})
}

fn tcp(cluster: &str) -> Value {
    json!([{"name": "tcp", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": cluster, "cluster": cluster}}])
}

/// mosn with one listener that sends Bolt, Dubbo, HTTP and the rest to different clusters.
fn start(folder: &std::path::Path, clusters: &[Value]) -> (Process, SocketAddr) {
    let port = testkit::net::free_port().expect("a port");
    let chain = |protocol: &str| json!({"filter_chain_match": {"application_protocols": [protocol]}, "filters": tcp(protocol.trim_end_matches("/1.1"))});
    let bootstrap = json!({"static_resources": {"clusters": clusters, "listeners": [{
        "name": "l", "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "listener_filters": [{"name": "inspector", "typed_config": {
            "@type": "type.googleapis.com/mosn.extensions.filters.listener.protocol_inspector.v1.ProtocolInspector"}}],
        "listener_filters_timeout": "0.2s", "continue_on_listener_filters_timeout": true,
        "filter_chains": [chain("bolt"), chain("dubbo"), chain("http/1.1")],
        "default_filter_chain": {"filters": tcp("other")},
    }]}});
    let mut command = Command::new(env!("CARGO_BIN_EXE_mosn"));
    command.args([
        "--config-yaml",
        &bootstrap.to_string(),
        "--concurrency",
        "1",
    ]);
    let process = Process::start("mosn", &mut command, folder).expect("mosn starts");
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    wait::until_ok("mosn listens", LIMIT, || Ok(TcpStream::connect(address)?))
        .expect("mosn listens");
    (process, address)
}

/// Sends, half-closes, and returns all that comes back.
fn exchange(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).expect("connect");
    stream.set_read_timeout(Some(LIMIT)).expect("a timeout");
    let mut sender = stream.try_clone().expect("a second handle");
    let bytes = bytes.to_vec();
    let sending = thread::spawn(move || {
        let _ = sender.write_all(&bytes);
        let _ = sender.shutdown(Shutdown::Write);
    });
    let mut read = Vec::new();
    match stream.read_to_end(&mut read) {
        // closed with our bytes unread: the kernel says it so
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        result => {
            result.expect("an answer");
        }
    }
    sending.join().expect("sent");
    read
}

#[test]
fn sends_each_protocol_down_its_own_chain_and_passes_the_end_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let clusters = [
        cluster("bolt", answers_at_the_end("bolt")),
        cluster("dubbo", answers_at_the_end("dubbo")),
        cluster("http", answers_at_the_end("http")),
        cluster("other", answers_at_the_end("other")),
    ];
    let (_mosn, address) = start(folder.path(), &clusters);
    let large: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    let cases: [(&str, Vec<u8>); 5] = [
        ("bolt", vec![1, 1, 0, 1, 9, 9]),
        ("dubbo", [&[0xda, 0xbb, 0xc2, 0][..], &large].concat()),
        ("http", b"GET / HTTP/1.1\r\nhost: a\r\n\r\n".to_vec()),
        ("other", b"\x16\x03\x01hello".to_vec()),
        ("other", large.clone()),
    ];
    for (name, bytes) in cases {
        let want = [format!("{name}:").as_bytes(), &bytes].concat();
        assert!(exchange(address, &bytes) == want, "{name}");
    }
    // a byte that could still become Dubbo: the inspector gives up after its timeout and the default chain takes it
    assert_eq!(exchange(address, &[0xda]), b"other:\xda");
}

#[test]
fn closes_when_no_endpoint_answers() {
    let folder = tempfile::tempdir().expect("a folder");
    let nobody = SocketAddr::from(([127, 0, 0, 1], testkit::net::free_port().expect("a port")));
    let (_mosn, address) = start(folder.path(), &[cluster("dubbo", nobody)]);
    assert_eq!(exchange(address, &[0xda, 0xbb]), b"", "refused upstream");
    // the cluster of this chain does not exist
    assert_eq!(exchange(address, &[1, 1, 0, 1]), b"", "no cluster");
}
