//! Applications that register nowhere by themselves: the sidecar registers them while they live.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use api::mosn::extensions::bootstrap::mesh_registry::v1::MeshRegistry;
use mosn::mesh_registry::{Config, Handle, serve};
use registry::{Limits, Registry};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const DEADLINE: Duration = Duration::from_secs(20);

async fn registry() -> (Registry, SocketAddr) {
    let registry = Registry::in_memory(Limits::default()).expect("a registry");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let server = tonic::transport::Server::builder()
        .add_service(registry.grpc_service())
        .serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener));
    tokio::spawn(server);
    (registry, address)
}

fn compile(edit: &Value) -> Result<Config, String> {
    let mut config = json!({
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
        "cluster_name": "registry",
        "instance_address": "10.1.1.1",
    });
    let fields = edit.as_object().cloned().unwrap_or_default();
    config.as_object_mut().expect("an object").extend(fields);
    let message: MeshRegistry = api::json::from_value(&config).map_err(|e| e.to_string())?;
    Config::compile(&message).map_err(|e| e.to_string())
}

async fn sidecar(registry: SocketAddr, edit: Value) -> Handle {
    let config = compile(&edit).expect("a configuration");
    serve(config, vec![registry.to_string()], Duration::from_secs(1))
        .await
        .expect("a server")
}

fn registered(registry: &Registry) -> Vec<String> {
    let services = registry.snapshot();
    let instances = services.iter().flat_map(|service| service.instances.iter());
    let mut all: Vec<String> = instances
        .map(|i| {
            format!(
                "{} {}:{} {}/{}",
                i.service, i.address, i.port, i.version, i.group
            )
        })
        .collect();
    all.sort();
    all
}

async fn until(registry: &Registry, expected: &[&str]) {
    let end = Instant::now() + DEADLINE;
    while registered(registry) != expected {
        assert!(
            Instant::now() < end,
            "never {expected:?}, but {:?}",
            registered(registry)
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Answers every request with the text, as QoS and actuators do over HTTP.
async fn answering(text: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 1024];
            // Whatever is asked, the answer is the same.
            let _ = stream.read(&mut request).await;
            let _ = stream.write_all(text.as_bytes()).await;
        }
    });
    address
}

#[tokio::test]
async fn a_declared_application_is_registered_while_it_listens() {
    let (registry, address) = registry().await;
    let application = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let endpoint = application.local_addr().expect("an address");
    let sidecar = sidecar(
        address,
        json!({"applications": [{
            "protocol": "dubbo", "endpoint": endpoint.to_string(), "interval": "0.05s",
            "services": [{"name": "com.foo.Bar", "version": "1.0.0", "group": "blue"}],
        }]}),
    )
    .await;
    let expected = ["dubbo/com.foo.Bar 10.1.1.1:30800 1.0.0/blue"];
    until(&registry, &expected).await;
    drop(application);
    until(&registry, &[]).await;
    let _application = TcpListener::bind(endpoint).await.expect("the port");
    until(&registry, &expected).await;
    sidecar.stop().await;
    until(&registry, &[]).await;
}

#[tokio::test]
async fn an_application_is_asked_what_it_serves() {
    let (registry, address) = registry().await;
    let qos = answering(
        "HTTP/1.1 200 OK\r\n\r\nAs Provider side:\n|Provider Service Name|PUB|\n|com.foo.Bar:2.0|N|\n",
    )
    .await;
    let actuator = answering("HTTP/1.1 200 OK\r\n\r\n{\"app\":{\"name\":\"Orders\"}}").await;
    let failing = answering("HTTP/1.1 503 Service Unavailable\r\n\r\n{\"status\":\"DOWN\"}").await;
    let _sidecar = sidecar(
        address,
        json!({"applications": [
            {"protocol": "dubbo", "endpoint": qos.to_string(), "dubbo_qos": qos.to_string()},
            {"protocol": "springcloud", "endpoint": failing.to_string(), "interval": "0.05s",
             "spring_actuator": format!("http://{failing}/actuator"), "services": [{"name": "down"}]},
            {"protocol": "springcloud", "endpoint": actuator.to_string(),
             "spring_actuator": format!("http://{actuator}/actuator")},
        ]}),
    )
    .await;
    until(
        &registry,
        &[
            "dubbo/com.foo.Bar 10.1.1.1:30800 2.0/",
            "springcloud/orders 10.1.1.1:10080 /",
        ],
    )
    .await;
}

#[tokio::test]
async fn a_file_of_applications_is_followed() {
    let (registry, address) = registry().await;
    let application = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let endpoint = application.local_addr().expect("an address");
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("applications.yaml");
    let declare = |names: &[&str]| {
        let services: Vec<Value> = names.iter().map(|name| json!({"name": name})).collect();
        let document = json!({"applications": [{
            "protocol": "bolt", "endpoint": endpoint.to_string(), "interval": "0.05s", "services": services,
        }]});
        std::fs::write(&file, document.to_string()).expect("a file");
    };
    declare(&["com.foo.A"]);
    let _sidecar = sidecar(address, json!({"applications_file": file})).await;
    until(&registry, &["bolt/com.foo.A 10.1.1.1:12200 /"]).await;
    declare(&["com.foo.A", "com.foo.B"]);
    until(
        &registry,
        &[
            "bolt/com.foo.A 10.1.1.1:12200 /",
            "bolt/com.foo.B 10.1.1.1:12200 /",
        ],
    )
    .await;
    let of_b = |registry: &Registry| {
        let services = registry.snapshot();
        let instances = services.iter().flat_map(|s| s.instances.iter());
        let b = instances.filter(|i| i.service.name.as_ref() == "com.foo.B");
        b.map(|i| i.revision).collect::<Vec<_>>()
    };
    let before = of_b(&registry);
    // Nobody has finished writing it.
    std::fs::write(&file, "").expect("a file");
    declare(&["com.foo.B"]);
    until(&registry, &["bolt/com.foo.B 10.1.1.1:12200 /"]).await;
    assert_eq!(of_b(&registry), before, "it was never gone");
}

#[tokio::test]
async fn the_annotations_of_a_pod_are_followed_and_health_may_be_on_another_port() {
    let (registry, address) = registry().await;
    let application = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let endpoint = application.local_addr().expect("an address");
    let up = answering("HTTP/1.1 200 OK\r\n\r\n{\"status\":\"UP\"}").await;
    let down = answering("HTTP/1.1 503 Service Unavailable\r\n\r\n{\"status\":\"DOWN\"}").await;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("annotations");
    // As the downward API does it: the next version takes the place of the one before at once.
    let annotate = |annotation: &Value| {
        let next = folder.path().join("next");
        let quoted = Value::from(annotation.to_string());
        let lines = format!("a.b/c=\"d\"\nmesh.sofastack.io/applications={quoted}\n");
        std::fs::write(&next, lines).expect("a file");
        std::fs::rename(&next, &file).expect("the file");
    };
    let application = |name: &str, health: SocketAddr| {
        json!({
            "protocol": "bolt", "endpoint": endpoint.to_string(), "interval": "0.05s",
            "health_path": format!("http://{health}/actuator/readiness"), "services": [{"name": name}],
        })
    };
    annotate(&json!([
        application("com.foo.A", up),
        application("com.foo.B", down)
    ]));
    let _sidecar = sidecar(address, json!({"applications_file": file})).await;
    until(&registry, &["bolt/com.foo.A 10.1.1.1:12200 /"]).await;
    annotate(&json!([application("com.foo.B", up)]));
    until(&registry, &["bolt/com.foo.B 10.1.1.1:12200 /"]).await;
    std::fs::write(&file, "a.b/c=\"d\"\n").expect("a file");
    until(&registry, &[]).await;
}

#[test]
fn names_the_field_that_is_wrong() {
    let cases = [
        (
            json!({"protocol": "smtp"}),
            "protocol: must be one that has an ingress port",
        ),
        (json!({"protocol": "bolt"}), "endpoint: must be host:port"),
        (
            json!({"protocol": "bolt", "endpoint": "a:1"}),
            "services: must name a service",
        ),
        (
            json!({"protocol": "bolt", "endpoint": "a:1", "services": [{"version": "1"}]}),
            "services[0].name: is required",
        ),
        (
            json!({"protocol": "bolt", "endpoint": "a:1", "spring_actuator": "https://a:1"}),
            "spring_actuator: must be http://host:port/path",
        ),
        (
            json!({"protocol": "bolt", "endpoint": "a:1", "services": [{"name": "a"}], "health_path": "a b"}),
            "health_path: must be a path",
        ),
    ];
    for (application, expected) in cases {
        let error = compile(&json!({"applications": [application]})).expect_err("an error");
        let expected = format!("applications[0].{expected}");
        assert!(error.starts_with(&expected), "{error}");
    }
}
