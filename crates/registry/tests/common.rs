//! A registry behind a socket, hubs and what they have, and waiting with a deadline.
#![allow(dead_code, reason = "each test file uses its part")]

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use api::mesh::registry::v1 as pb;
use pb::registry_service_client::RegistryServiceClient;
use registry::client::{Client, Content};
use registry::{
    Api, Hub, HubOptions, Instance, Limits, ORIGIN_MARK, Registry, RegistrySource, ServiceKey,
    SourceStatus, Wanted,
};
use serde_json::json;
use testkit::apps::{Consumer, Framework, Provider, start_consumer, start_provider};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Channel, Endpoint, Server};

/// Everything in these tests happens within this, on a busy machine too.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// Serves a registry over HTTP for as long as the test's runtime lives.
pub(crate) async fn serve(registry: &Registry) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    let router = registry.http_router();
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

/// Serves a registry behind rules over HTTP.
pub(crate) async fn serve_api(api: &Api) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    let service = api
        .http_router()
        .into_make_service_with_connect_info::<SocketAddr>();
    tokio::spawn(async move { axum::serve(listener, service).await });
    address
}

/// Serves it over gRPC, and connects.
pub(crate) async fn grpc_of(api: &Api) -> RegistryServiceClient<Channel> {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    let server = Server::builder().add_service(api.grpc_service());
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("a URL");
    RegistryServiceClient::new(endpoint.connect().await.expect("a connection"))
}

/// An instance of a service.
pub(crate) fn message(service: &str, id: &str) -> pb::Instance {
    pb::Instance {
        protocol: "bolt".to_owned(),
        service: service.to_owned(),
        id: id.to_owned(),
        address: "10.0.0.1".to_owned(),
        port: 12200,
        ..pb::Instance::default()
    }
}

/// What a file of tokens says of one.
pub(crate) fn token_hash(token: &str) -> String {
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, token.as_bytes());
    hash.as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

/// A request on a connection of its own; its status, content type and body. An endless body is read up to its first lines.
pub(crate) async fn ask(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &str,
    body: &str,
) -> (u16, String, String) {
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: r\r\nconnection: close\r\ncontent-length: {}\r\n{headers}\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.expect("a request");
    let mut response = Vec::new();
    let endless = path.contains("/watch");
    while !(endless && response.windows(8).any(|w| w == b"\"synced\"")) {
        let mut chunk = [0; 4096];
        match soon(stream.read(&mut chunk)).await {
            Ok(0) | Err(_) => break,
            Ok(n) => response.extend_from_slice(&chunk[..n]),
        }
    }
    let response = String::from_utf8_lossy(&response).into_owned();
    let (head, body) = response.split_once("\r\n\r\n").unwrap_or((&response, ""));
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|s| s.parse().ok())
        .unwrap_or(0);
    let content_type = head
        .lines()
        .find_map(|line| line.strip_prefix("content-type: "));
    (
        status,
        content_type.unwrap_or_default().to_owned(),
        body.to_owned(),
    )
}

/// Limits that allow leases shorter than a second.
pub(crate) fn short_leases() -> Limits {
    Limits {
        ttl_min: Duration::from_millis(10),
        ..Limits::default()
    }
}

/// A registry in memory, and a client of it over HTTP.
pub(crate) async fn registry_and_client() -> (Registry, Client) {
    let registry = Registry::in_memory(short_leases()).expect("a registry");
    let address = serve(&registry).await;
    let client = Client::new(&address.to_string()).expect("an address");
    (registry, client)
}

/// An instance at an address of its own.
pub(crate) fn content(last_byte: u8) -> Content {
    Content {
        address: format!("10.0.0.{last_byte}"),
        port: 12200,
        ..Content::default()
    }
}

/// The result of a future that must not hang.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future)
        .await
        .expect("in time")
}

/// A hub with a registry in memory, and with a folder of files as another registry if there is one.
pub(crate) fn hub(files: Option<&Path>) -> anyhow::Result<(Hub, Registry)> {
    let registry = Registry::in_memory(Limits::default())?;
    let hub = Hub::start(HubOptions {
        mesh_id: "test".to_owned(),
        registry: Some(registry.clone()),
        ..HubOptions::default()
    });
    if let Some(folder) = files {
        let files: RegistrySource = serde_json::from_value(json!({"files": {"folder": folder}}))?;
        hub.set_sources(vec![files.compile("files")?]);
    }
    Ok((hub, registry))
}

/// What a hub has of a service, each instance as it is told, in order.
pub(crate) fn told(hub: &Hub, key: &ServiceKey, tell: impl Fn(&Instance) -> String) -> Vec<String> {
    let services = hub.snapshot();
    let service = services.get(key);
    let instances = service.iter().flat_map(|s| s.instances.iter());
    let mut all: Vec<String> = instances.map(|instance| tell(instance)).collect();
    all.sort();
    all
}

/// Waits until that is this; real applications take their time.
pub(crate) async fn wait_told(
    hub: &Hub,
    key: &ServiceKey,
    tell: impl Fn(&Instance) -> String,
    expected: &[&str],
) -> anyhow::Result<()> {
    const LIMIT: Duration = Duration::from_secs(60);
    wait_same(LIMIT, || told(hub, key, &tell), expected)
        .await
        .with_context(|| key.to_string())
}

/// A hub of a mesh without a registry of its own.
pub(crate) fn hub_of(mesh: &str) -> Hub {
    Hub::start(HubOptions {
        mesh_id: mesh.to_owned(),
        ..HubOptions::default()
    })
}

/// All instances that a hub has.
pub(crate) fn instances(hub: &Hub) -> Vec<Arc<Instance>> {
    let services = hub.snapshot();
    let all = services.iter().flat_map(|s| s.instances.iter().cloned());
    all.collect()
}

/// All of them as they are told, in order.
pub(crate) fn all_told(hub: &Hub, tell: impl Fn(&Instance) -> String) -> Vec<String> {
    let mut all: Vec<String> = instances(hub).iter().map(|i| tell(i)).collect();
    all.sort();
    all
}

/// How a hub is doing with its only source.
pub(crate) async fn status(hub: &Hub) -> anyhow::Result<SourceStatus> {
    let status = hub.status().await.context("the hub has ended")?;
    status.sources.into_iter().next().context("no source")
}

/// Looks until there is something.
pub(crate) async fn until<T>(
    limit: Duration,
    what: &str,
    mut look: impl AsyncFnMut() -> Option<T>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = look().await {
            return Ok(value);
        }
        ensure!(Instant::now() < deadline, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Looks until it is this.
pub(crate) async fn wait_same(
    limit: Duration,
    look: impl Fn() -> Vec<String>,
    expected: &[&str],
) -> anyhow::Result<()> {
    until(limit, &format!("{expected:?}"), async || {
        (look() == expected).then_some(())
    })
    .await
    .with_context(|| format!("there are {:?}", look()))
}

/// Whether a program of `make peers` is there; its tests are left out without it.
pub(crate) fn is_built(program: &str) -> bool {
    let found = testkit::programs::peer(program).is_some();
    if !found {
        eprintln!("skipped: {program} is not built; make peers builds it");
    }
    found
}

/// Starts two providers, of which the first alone registers, and a consumer that looks in the same registry. The flags say
/// which that is, and that the other does not.
pub(crate) fn start_shops(
    framework: Framework,
    (host, ports): (&str, [&str; 2]),
    registry: (&str, &str),
    alone: &[(&str, &str)],
    folder: &Path,
) -> anyhow::Result<(Provider, Provider, Consumer)> {
    let provider = |label: &str, port: &str, more: &[(&str, &str)]| {
        let flags = [("host", host), ("port", port), ("label", label)];
        let flags = [&flags[..], more].concat();
        start_provider(framework, label, &flags, folder)
    };
    let here = provider("here", ports[0], &[registry])?;
    let elsewhere = provider("elsewhere", ports[1], alone)?;
    let consumer = start_consumer(framework, "consumer", &[registry], folder)?;
    Ok((
        here.provider()?,
        elsewhere.provider()?,
        consumer.consumer()?,
    ))
}

/// A copy of a provider of Dubbo that another registry has, as synchronisation would want it.
pub(crate) fn wanted_copy(interface: &str, host: &str, port: u16, mark: &str) -> Wanted {
    let mut copy = Instance::new(ServiceKey::new("dubbo", interface), host, port);
    copy.id = format!("copy@{mark}").replace('/', "-").into();
    copy.metadata = [(ORIGIN_MARK, mark), ("application", "shop")]
        .into_iter()
        .collect();
    Wanted {
        publish: [(copy.id.clone(), Arc::new(copy))].into(),
        ..Wanted::default()
    }
}
