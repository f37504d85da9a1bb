//! SOFARPC's registry protocol against a real registry: what the sidecar answers, and what it keeps registered.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use api::mosn::extensions::bootstrap::mesh_registry::v1::MeshRegistry;
use mosn::mesh_registry::{Config, Handle, serve};
use registry::{Instance, Limits, Registry};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

const DEADLINE: Duration = Duration::from_secs(20);

/// Binds an address that a server before may still be letting go of.
fn bind(address: &str) -> std::net::TcpListener {
    let end = Instant::now() + DEADLINE;
    loop {
        match std::net::TcpListener::bind(address) {
            Ok(socket) => return socket,
            Err(error) => assert!(Instant::now() < end, "{address}: {error}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A registry's gRPC server in a runtime of its own, so that its end closes every connection as the end of a process does.
struct Server {
    registry: Registry,
    address: SocketAddr,
    runtime: Option<Runtime>,
}

impl Server {
    fn start(registry: Registry, address: &str) -> Server {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let socket = bind(address);
        socket.set_nonblocking(true).expect("a socket");
        let address = socket.local_addr().expect("an address");
        let service = registry.grpc_service();
        runtime.spawn(async move {
            let listener = TcpListener::from_std(socket).expect("a listener");
            let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(incoming)
                .await
        });
        Server {
            registry,
            address,
            runtime: Some(runtime),
        }
    }

    fn in_memory() -> Server {
        // An address of its own, so that nobody takes the port while the server is stopped.
        let (a, b) = (fastrand::u8(1..), fastrand::u8(1..));
        Server::start(
            Registry::in_memory(Limits::default()).expect("a registry"),
            &format!("127.{a}.{b}.9:0"),
        )
    }

    fn stop(mut self) -> (Registry, SocketAddr) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        (self.registry.clone(), self.address)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn sidecar(registry: SocketAddr, edit: impl FnOnce(&mut Value)) -> Handle {
    let mut config = json!({
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
        "cluster_name": "registry",
        "instance_address": "10.1.1.1",
    });
    edit(&mut config);
    let message: MeshRegistry = api::json::from_value(&config).expect("a message");
    let mut config = Config::compile(&message).expect("a configuration");
    config.labels.insert("version".to_owned(), "v2".to_owned());
    serve(config, vec![registry.to_string()], Duration::from_secs(1))
        .await
        .expect("a server")
}

/// A request as SOFARPC sends it; returns the status and the document.
async fn request(sidecar: &Handle, method: &str, path: &str, body: &str) -> (u16, Value) {
    let exchange = async {
        let mut stream = TcpStream::connect(sidecar.address()).await?;
        let head = format!(
            "{method} {path} HTTP/1.1\r\nContent-Type: text/plain\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await?;
        // A refused body is not read to its end.
        let _ = stream.write_all(body.as_bytes()).await;
        let mut response = String::new();
        stream.read_to_string(&mut response).await?;
        std::io::Result::Ok(response)
    };
    let response = tokio::time::timeout(DEADLINE, exchange)
        .await
        .expect("in time")
        .expect("an answer");
    let (head, body) = response.split_once("\r\n\r\n").expect("a head");
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .expect("a status");
    (status, serde_json::from_str(body).expect("JSON"))
}

async fn post(sidecar: &Handle, path: &str, body: &Value) -> Value {
    let (status, document) = request(sidecar, "POST", path, &body.to_string()).await;
    assert_eq!(status, 200, "{path}: {document}");
    document
}

/// As captured from SOFARPC 5.13.2.
fn publication(service: &str) -> Value {
    json!({
        "serviceName": service,
        "protocolType": "bolt",
        "providerMetaInfo": {
            "protocol": "bolt", "version": "4.0", "serializeType": "hessian2", "appName": "sofa-provider",
            "properties": {"release": "blue"},
        },
        "onlyPublishInCloud": false,
        "group": null,
    })
}

fn subscription(service: &str) -> Value {
    json!({"serviceName": service, "protocolType": "bolt", "targetAppAddress": null, "vipEnforce": false, "vipOnly": false,
        "localCloudFirst": false, "group": null, "properties": null})
}

fn success() -> Value {
    json!({"success": true, "errorMessage": ""})
}

fn instances(registry: &Registry) -> Vec<Instance> {
    let services = registry.snapshot();
    services
        .iter()
        .flat_map(|s| s.instances.iter())
        .map(|i| Instance::clone(i))
        .collect()
}

async fn until(registry: &Registry, what: &str, condition: impl Fn(&[Instance]) -> bool) {
    let end = Instant::now() + DEADLINE;
    while !condition(&instances(registry)) {
        assert!(
            Instant::now() < end,
            "never: {what}; {:?}",
            instances(registry)
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_publication_is_registered_at_the_sidecar() {
    let server = Server::in_memory();
    let sidecar = sidecar(server.address, |_| {}).await;
    let name = "mesh.apps.SofaShop:1.0:blue";
    assert_eq!(
        post(
            &sidecar,
            "/configs/application",
            &json!({"appName": "sofa-provider"})
        )
        .await,
        success()
    );
    assert_eq!(
        post(&sidecar, "/services/publish", &publication(name)).await,
        success()
    );
    let registered = instances(&server.registry);
    assert_eq!(registered.len(), 1);
    let instance = &registered[0];
    assert_eq!(
        (
            instance.service.protocol.as_ref(),
            instance.service.name.as_ref()
        ),
        ("bolt", "mesh.apps.SofaShop")
    );
    assert_eq!(
        (instance.version.as_ref(), instance.group.as_ref()),
        ("1.0", "blue")
    );
    assert_eq!(
        (instance.address.as_ref(), instance.port),
        ("10.1.1.1", 12200)
    );
    assert_eq!(
        (instance.weight, instance.healthy, instance.ttl),
        (100, true, Some(Duration::from_secs(15)))
    );
    let metadata: Vec<_> = instance.metadata.iter().collect();
    assert_eq!(
        metadata,
        [
            ("app", "sofa-provider"),
            ("release", "blue"),
            ("serialization", "hessian2"),
            ("sofa.version", "4.0"),
            ("version", "v2")
        ]
    );
    // Once more changes nothing.
    assert_eq!(
        post(&sidecar, "/services/publish", &publication(name)).await,
        success()
    );
    assert_eq!(server.registry.snapshot().revision, 1);

    let subscribed = post(&sidecar, "/services/subscribe", &subscription(name)).await;
    let url = "bolt://10.1.1.1:12200?app_name=sofa-provider&release=blue&_SERIALIZETYPE=hessian2&v=4.0&version=v2";
    assert_eq!(
        subscribed,
        json!({"serviceName": name, "datas": [url], "success": true, "errorMessage": ""})
    );
    let other = post(
        &sidecar,
        "/services/subscribe",
        &subscription("mesh.apps.SofaShop:2.0"),
    )
    .await;
    assert_eq!(
        (&other["success"], &other["datas"]),
        (&json!(true), &json!([]))
    );
    assert_eq!(
        post(&sidecar, "/services/unsubscribe", &subscription(name)).await,
        success()
    );

    for _ in 0..2 {
        let unpublication = json!({"serviceName": name, "protocolType": "bolt", "group": null});
        assert_eq!(
            post(&sidecar, "/services/unpublish", &unpublication).await,
            success()
        );
        assert!(instances(&server.registry).is_empty());
    }
}

/// The next line with something in it; `None` when the answer has ended.
async fn next_line(lines: &mut Lines<BufReader<TcpStream>>) -> Option<String> {
    let next = async {
        // Chunks of HTTP stand between the lines.
        while let Some(line) = lines.next_line().await.expect("a line") {
            if line.starts_with('{') {
                return Some(line);
            }
        }
        None
    };
    tokio::time::timeout(DEADLINE, next).await.expect("in time")
}

#[tokio::test]
async fn who_asks_for_it_is_told_of_changes() {
    let server = Server::in_memory();
    let sidecar = sidecar(server.address, |_| {}).await;
    let name = "mesh.apps.SofaShop:1.0";
    let mut stream = TcpStream::connect(sidecar.address())
        .await
        .expect("a connection");
    let body = subscription(name).to_string();
    let request = format!(
        "POST /services/watch HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream
        .write_all(request.as_bytes())
        .await
        .expect("a request");
    let mut lines = BufReader::new(stream).lines();
    let told = |line: Option<String>| {
        let line: Value = serde_json::from_str(&line.expect("a line")).expect("JSON");
        assert_eq!(
            (&line["serviceName"], &line["success"]),
            (&json!(name), &json!(true))
        );
        line["datas"].as_array().map_or(0, Vec::len)
    };
    assert_eq!(told(next_line(&mut lines).await), 0);
    post(&sidecar, "/services/publish", &publication(name)).await;
    assert_eq!(told(next_line(&mut lines).await), 1);

    // A registry that comes back with nothing is told what was published, and then tells it.
    let (_, address) = server.stop();
    let empty = Registry::in_memory(Limits::default()).expect("a registry");
    let server = Server::start(empty, &address.to_string());
    until(&server.registry, "registered again", |all| all.len() == 1).await;
    let unpublication = json!({"serviceName": name, "protocolType": "bolt", "group": null});
    post(&sidecar, "/services/unpublish", &unpublication).await;
    while told(next_line(&mut lines).await) > 0 {}
    post(&sidecar, "/services/unsubscribe", &subscription(name)).await;
    // It ends.
    while next_line(&mut lines).await.is_some() {}
}

#[tokio::test]
async fn a_graceful_stop_takes_everything_out() {
    let server = Server::in_memory();
    let sidecar = sidecar(server.address, |_| {}).await;
    for service in ["a:1.0", "b:1.0@DEFAULT"] {
        assert_eq!(
            post(&sidecar, "/services/publish", &publication(service)).await,
            success()
        );
    }
    assert_eq!(instances(&server.registry).len(), 2);
    sidecar.stop().await;
    assert!(instances(&server.registry).is_empty());
}

#[tokio::test]
async fn without_a_registry_subscriptions_succeed_and_publications_are_kept() {
    let (registry, address) = Server::in_memory().stop();
    let sidecar = sidecar(address, |config| config["publish_timeout"] = json!("0.2s")).await;
    assert_eq!(
        post(&sidecar, "/configs/application", &json!({"appName": null})).await,
        success()
    );
    let subscribed = post(&sidecar, "/services/subscribe", &subscription("a:1.0")).await;
    assert_eq!(
        (&subscribed["success"], &subscribed["datas"]),
        (&json!(true), &json!([]))
    );
    let published = post(&sidecar, "/services/publish", &publication("a:1.0")).await;
    assert_eq!(published["success"], json!(false));
    let message = published["errorMessage"].as_str().unwrap_or_default();
    assert!(
        message.contains("cannot be reached within 200ms"),
        "{message}"
    );
    let server = Server::start(registry, &address.to_string());
    until(
        &server.registry,
        "registered when the registry came",
        |all| all.len() == 1,
    )
    .await;
}

#[tokio::test]
async fn a_registry_that_forgot_everything_is_told_again_at_once() {
    let server = Server::in_memory();
    let sidecar = sidecar(server.address, |config| config["lease_ttl"] = json!("600s")).await;
    assert_eq!(
        post(&sidecar, "/services/publish", &publication("a:1.0")).await,
        success()
    );
    let known = post(&sidecar, "/services/subscribe", &subscription("a:1.0")).await;
    let (_, address) = server.stop();
    // The last known providers are served meanwhile.
    assert_eq!(
        post(&sidecar, "/services/subscribe", &subscription("a:1.0")).await,
        known
    );
    let start = Instant::now();
    let empty = Registry::in_memory(Limits::default()).expect("a registry");
    let server = Server::start(empty, &address.to_string());
    until(&server.registry, "registered again", |all| all.len() == 1).await;
    // Long before a renewal would have shown it.
    assert!(start.elapsed() < Duration::from_secs(20));
}

#[tokio::test]
async fn leases_are_renewed() {
    let server = Server::in_memory();
    let sidecar = sidecar(server.address, |config| config["lease_ttl"] = json!("3s")).await;
    assert_eq!(
        post(&sidecar, "/services/publish", &publication("a:1.0")).await,
        success()
    );
    let end = Instant::now() + DEADLINE;
    while server.registry.stats().renewed < 2 {
        assert!(Instant::now() < end, "not renewed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let stats = server.registry.stats();
    assert_eq!((stats.lapsed, stats.instances, stats.revision), (0, 1, 1));
}

#[tokio::test]
async fn an_application_that_died_takes_no_calls() {
    let application = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let endpoint = application.local_addr().expect("an address");
    let server = Server::in_memory();
    let bolt = json!({"bolt": endpoint.to_string()});
    let sidecar = sidecar(server.address, |config| {
        config["application_endpoints"] = bolt
    })
    .await;
    assert_eq!(
        post(&sidecar, "/services/publish", &publication("a:1.0")).await,
        success()
    );
    drop(application);
    until(&server.registry, "unhealthy", |all| {
        all.iter().all(|i| !i.healthy)
    })
    .await;
    let subscribed = post(&sidecar, "/services/subscribe", &subscription("a:1.0")).await;
    assert_eq!(
        (&subscribed["success"], &subscribed["datas"]),
        (&json!(true), &json!([]))
    );
    let _application = TcpListener::bind(endpoint).await.expect("the port");
    until(&server.registry, "healthy", |all| {
        all.iter().all(|i| i.healthy)
    })
    .await;
}

#[tokio::test]
async fn answers_bad_requests_with_a_reason() {
    let server = Server::in_memory();
    let sidecar = sidecar(server.address, |_| {}).await;
    let large = format!("{{\"serviceName\":\"{}\"}}", "x".repeat(1024 * 1024));
    let cases = [
        ("POST", "/services/publish", "{", 400),
        ("POST", "/services/publish", "[1]", 400),
        ("POST", "/services/publish", "{\"serviceName\":1}", 400),
        ("POST", "/services/publish", large.as_str(), 413),
        ("POST", "/services/other", "{}", 404),
        ("GET", "/services/publish", "", 405),
        ("POST", "/services/publish", "{}", 200),
        ("POST", "/services/unpublish", "{\"serviceName\":null}", 200),
        (
            "POST",
            "/services/subscribe",
            "{\"serviceName\":\"@DEFAULT\"}",
            200,
        ),
        (
            "POST",
            "/services/publish",
            "{\"serviceName\":\"a:1.0\",\"protocolType\":\"tr\"}",
            200,
        ),
        (
            "POST",
            "/services/publish",
            "{\"serviceName\":\"a b:1.0\",\"protocolType\":\"bolt\"}",
            200,
        ),
    ];
    for (method, path, body, expected) in cases {
        let (status, document) = request(&sidecar, method, path, body).await;
        let short = &body[..body.len().min(60)];
        assert_eq!(status, expected, "{path} {short}: {document}");
        assert_eq!(document["success"], json!(false), "{path} {short}");
        assert!(
            document["errorMessage"]
                .as_str()
                .is_some_and(|m| !m.is_empty()),
            "{path} {short}"
        );
    }
    assert!(instances(&server.registry).is_empty());
    // It still serves.
    assert_eq!(
        post(&sidecar, "/services/publish", &publication("a:1.0")).await,
        success()
    );
}
