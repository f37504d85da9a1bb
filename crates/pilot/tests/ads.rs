//! Pilot as a proxy sees it: a plain gRPC client on the aggregated discovery service.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use api::envoy::config::cluster::v3::Cluster;
use api::envoy::config::core::v3::Node;
use api::envoy::config::endpoint::v3::ClusterLoadAssignment;
use api::envoy::config::route::v3::RouteConfiguration;
use api::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use api::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DiscoveryRequest, DiscoveryResponse,
};
use api::google::rpc::Status;
use clap::Parser as _;
use pilot::Pilot;
use pilot::args::{Cli, Command};
use prost::{Message, Name};
use registry::{Instance, Registry, ServiceKey};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use xds::server::{CLUSTER, ENDPOINTS, ROUTE};

const LIMIT: Duration = Duration::from_secs(20);

const SIDECAR: &str = "
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: all, namespace: demo}
spec:
  egress:
  - port: {number: 12220, protocol: bolt, name: bolt}
    captureMode: NONE
    hosts: ['*/*']
";

/// A running pilot with a folder of its own.
struct Running {
    folder: tempfile::TempDir,
    grpc: String,
    http: std::net::SocketAddr,
    registry: Registry,
    stop: Option<oneshot::Sender<()>>,
    task: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl Running {
    async fn start(documents: &str) -> Running {
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(folder.path().join("mesh.yaml"), documents).expect("a file");
        let path = folder.path().display().to_string();
        let any = "127.0.0.1:0";
        let cli = Cli::try_parse_from([
            "pilot",
            "discovery",
            "--configDir",
            &path,
            "--grpcAddr",
            any,
            "--httpAddr",
            any,
            "--monitoringAddr",
            any,
        ]);
        let Command::Discovery(args) = cli.expect("valid arguments").command else {
            panic!("another command");
        };
        let pilot = Pilot::start(&args).await.expect("a pilot");
        let grpc = format!("http://{}", pilot.grpc_addr().expect("an address"));
        let http = pilot.http_addr().expect("an address");
        let registry = pilot.registry().expect("a registry").clone();
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(pilot.run(async {
            let _ = stopped.await;
        }));
        let running = Running {
            folder,
            grpc,
            http,
            registry,
            stop: Some(stop),
            task,
        };
        let deadline = Instant::now() + LIMIT;
        while running.get("/ready").await != 200 {
            assert!(Instant::now() < deadline, "pilot is not ready");
            tokio::task::yield_now().await;
        }
        running
    }

    fn write(&self, documents: &str) {
        let path: PathBuf = self.folder.path().join("new.tmp");
        std::fs::write(&path, documents).expect("a file");
        std::fs::rename(path, self.folder.path().join("mesh.yaml")).expect("a renamed file");
    }

    /// The status of a page.
    async fn get(&self, path: &str) -> u16 {
        self.page(path).await.0
    }

    /// Status and body of a page.
    async fn page(&self, path: &str) -> (u16, String) {
        let (address, path) = (self.http, path.to_owned());
        let fetched = tokio::task::spawn_blocking(move || testkit::http::get(address, &path)).await;
        let answer = fetched.expect("no panic").expect("an answer");
        (answer.status, answer.text())
    }

    async fn register(&self, instances: &[(&str, &str, u16)]) {
        let instances = instances.iter().map(|(name, address, port)| {
            Instance::new(ServiceKey::new("bolt", name), address, *port)
        });
        self.registry
            .register(instances.collect())
            .await
            .expect("well-formed instances");
    }

    async fn client(&self) -> Client {
        let mut ads = connect(&self.grpc).await;
        let (requests, sent) = mpsc::channel(16);
        // The server answers the call when it has the stream, not when it has a request.
        let responses = ads
            .stream_aggregated_resources(ReceiverStream::new(sent))
            .await
            .expect("a stream")
            .into_inner();
        Client {
            requests,
            responses,
            nonces: Default::default(),
            has_node: false,
        }
    }

    async fn stop(mut self) {
        let _ = self.stop.take().expect("not stopped yet").send(());
        tokio::time::timeout(LIMIT, self.task)
            .await
            .expect("an end in time")
            .expect("no panic")
            .expect("a clean end");
    }
}

async fn connect(url: &str) -> AggregatedDiscoveryServiceClient<Channel> {
    let endpoint = Endpoint::from_shared(url.to_owned()).expect("an address");
    AggregatedDiscoveryServiceClient::new(endpoint.connect().await.expect("a connection"))
}

struct Client {
    requests: mpsc::Sender<DiscoveryRequest>,
    responses: tonic::Streaming<DiscoveryResponse>,
    nonces: std::collections::BTreeMap<String, (String, String)>,
    has_node: bool,
}

impl Client {
    /// Asks for names of a type, or takes the last response with other names.
    async fn request(&mut self, type_url: &str, names: &[&str]) {
        self.send(type_url, names, None).await;
    }

    async fn send(&mut self, type_url: &str, names: &[&str], error: Option<&str>) {
        let (nonce, version) = self.nonces.get(type_url).cloned().unwrap_or_default();
        let node = Node {
            id: "sidecar~127.0.0.7~shop.demo~demo.svc.cluster.local".to_owned(),
            user_agent_name: "mosn".to_owned(),
            ..Node::default()
        };
        let request = DiscoveryRequest {
            type_url: type_url.to_owned(),
            resource_names: names.iter().map(|name| (*name).to_owned()).collect(),
            node: (!self.has_node).then_some(node),
            response_nonce: nonce,
            version_info: version,
            error_detail: error.map(|message| Status {
                message: message.to_owned(),
                ..Status::default()
            }),
            ..DiscoveryRequest::default()
        };
        self.has_node = true;
        self.requests.send(request).await.expect("an open stream");
    }

    async fn next(&mut self) -> DiscoveryResponse {
        let response = tokio::time::timeout(LIMIT, self.responses.message())
            .await
            .expect("a response in time");
        let response = response.expect("an open stream").expect("a response");
        let known = (response.nonce.clone(), response.version_info.clone());
        self.nonces.insert(response.type_url.clone(), known);
        response
    }

    /// The next response, which must be of this type.
    async fn expect(&mut self, type_url: &str) -> DiscoveryResponse {
        let response = self.next().await;
        assert_eq!(response.type_url, type_url);
        response
    }
}

fn messages<M: Message + Name + Default>(response: &DiscoveryResponse) -> Vec<M> {
    response
        .resources
        .iter()
        .map(|any| api::any::unpack(any).expect("a message of the type"))
        .collect()
}

fn cluster_names(response: &DiscoveryResponse) -> Vec<String> {
    let names = messages::<Cluster>(response)
        .into_iter()
        .map(|cluster| cluster.name);
    names.filter(|name| name.starts_with("outbound")).collect()
}

fn endpoint_count(response: &DiscoveryResponse) -> Vec<(String, usize)> {
    let assignments = messages::<ClusterLoadAssignment>(response).into_iter();
    let count = |assignment: &ClusterLoadAssignment| {
        assignment
            .endpoints
            .iter()
            .map(|l| l.lb_endpoints.len())
            .sum()
    };
    assignments
        .map(|assignment| (assignment.cluster_name.clone(), count(&assignment)))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn registrations_reach_a_connected_proxy() {
    let pilot = Running::start(SIDECAR).await;
    pilot.register(&[("com.foo.Bar", "10.0.0.1", 12200)]).await;
    let mut proxy = pilot.client().await;
    proxy.request(CLUSTER, &[]).await;
    let mut clusters = proxy.expect(CLUSTER).await;
    // The registration may still be on its way when the proxy asks first.
    while cluster_names(&clusters).is_empty() {
        clusters = proxy.expect(CLUSTER).await;
    }
    let bar = "outbound|12220||com.foo.Bar";
    assert_eq!(cluster_names(&clusters), [bar]);
    proxy.request(CLUSTER, &[]).await;
    proxy.request(ENDPOINTS, &[bar]).await;
    assert_eq!(
        endpoint_count(&proxy.expect(ENDPOINTS).await),
        [(bar.to_owned(), 1)]
    );
    proxy.request(ENDPOINTS, &[bar]).await;
    proxy.request(ROUTE, &["12220"]).await;
    let routes: Vec<RouteConfiguration> = messages(&proxy.expect(ROUTE).await);
    assert_eq!(routes[0].virtual_hosts[0].domains, ["com.foo.Bar"]);
    proxy.request(ROUTE, &["12220"]).await;

    // Another instance of a known service changes endpoints, and nothing else is sent.
    pilot.register(&[("com.foo.Bar", "10.0.0.2", 12200)]).await;
    assert_eq!(
        endpoint_count(&proxy.expect(ENDPOINTS).await),
        [(bar.to_owned(), 2)]
    );
    proxy.request(ENDPOINTS, &[bar]).await;

    // A new service comes as a cluster first, then as a route.
    pilot.register(&[("com.foo.Baz", "10.0.0.3", 12200)]).await;
    let clusters = proxy.expect(CLUSTER).await;
    assert_eq!(
        cluster_names(&clusters),
        [bar, "outbound|12220||com.foo.Baz"]
    );
    assert_eq!(
        endpoint_count(&proxy.expect(ENDPOINTS).await),
        [(bar.to_owned(), 2)],
        "warming needs it again"
    );
    let routes: Vec<RouteConfiguration> = messages(&proxy.expect(ROUTE).await);
    assert_eq!(routes[0].virtual_hosts.len(), 2);

    // Labels that the proxy's own workload has are those of what is registered at its address.
    let (_, connections) = pilot.page("/debug/connections").await;
    assert!(connections.contains("shop.demo"), "{connections}");
    pilot.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_is_kept_and_told() {
    let pilot = Running::start(SIDECAR).await;
    let mut proxy = pilot.client().await;
    proxy.request(CLUSTER, &[]).await;
    proxy.expect(CLUSTER).await;
    proxy
        .send(CLUSTER, &[], Some("BlackHoleCluster: field x is wrong"))
        .await;
    // The answer to another type shows that the refusal has been read.
    proxy.request(ROUTE, &["12220"]).await;
    proxy.expect(ROUTE).await;
    let (_, status) = pilot.page("/debug/syncz").await;
    let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
    assert_eq!(status[0]["proxy"], "shop.demo");
    assert_eq!(
        status[0]["cluster_error"],
        "BlackHoleCluster: field x is wrong"
    );
    assert_eq!(status[0]["cluster_acked"], "");
    assert_ne!(status[0]["cluster_sent"], "");
    pilot.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clusters_go_after_the_routes_that_led_to_them() {
    let entry = "
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: bar, namespace: demo}
spec:
  hosts: [com.foo.Bar]
  resolution: STATIC
  ports: [{number: 12220, name: bolt, protocol: bolt}]
  endpoints: [{address: 10.0.0.1}]
";
    let pilot = Running::start(&format!("{SIDECAR}{entry}")).await;
    let bar = "outbound|12220||com.foo.Bar";
    let mut proxy = pilot.client().await;
    proxy.request(CLUSTER, &[]).await;
    assert_eq!(cluster_names(&proxy.expect(CLUSTER).await), [bar]);
    proxy.request(CLUSTER, &[]).await;
    proxy.request(ROUTE, &["12220"]).await;
    proxy.expect(ROUTE).await;
    proxy.request(ROUTE, &["12220"]).await;

    pilot.write(SIDECAR);
    let routes: Vec<RouteConfiguration> = messages(&proxy.expect(ROUTE).await);
    assert!(routes[0].virtual_hosts.is_empty(), "the route goes first");
    proxy.request(ROUTE, &["12220"]).await;
    assert!(
        cluster_names(&proxy.expect(CLUSTER).await).is_empty(),
        "then the cluster"
    );

    // An invalid document changes nothing, and is told.
    proxy.request(CLUSTER, &[]).await;
    pilot.write(&SIDECAR.replace("captureMode", "captureMood"));
    let deadline = Instant::now() + LIMIT;
    loop {
        let (_, problems) = pilot.page("/debug/invalidz").await;
        if problems.contains("mesh.yaml: document 1 (line 1): Sidecar demo/all: spec.egress[0].captureMood: unknown field") {
            break;
        }
        assert!(Instant::now() < deadline, "{problems}");
    }
    let (_, config) = pilot.page("/debug/configz").await;
    assert!(config.contains("\"Sidecar\""), "{config}");
    pilot.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_served_is_refused_by_name() {
    let pilot = Running::start(SIDECAR).await;
    let mut ads = connect(&pilot.grpc).await;
    let requests = tokio_stream::iter([DeltaDiscoveryRequest {
        type_url: CLUSTER.to_owned(),
        ..Default::default()
    }]);
    let status = ads
        .delta_aggregated_resources(requests)
        .await
        .expect_err("no delta yet");
    assert_eq!(status.code(), tonic::Code::Unimplemented);

    let requests = tokio_stream::iter([DiscoveryRequest {
        type_url: CLUSTER.to_owned(),
        ..Default::default()
    }]);
    let mut responses = ads
        .stream_aggregated_resources(requests)
        .await
        .expect("a stream")
        .into_inner();
    let status = responses
        .message()
        .await
        .expect_err("a request without node");
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
    pilot.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_say_what_pilot_knows() {
    let pilot = Running::start(SIDECAR).await;
    pilot.register(&[("com.foo.Bar", "10.0.0.1", 12200)]).await;
    let deadline = Instant::now() + LIMIT;
    while !pilot.page("/debug/endpointz").await.1.contains("10.0.0.1") {
        assert!(
            Instant::now() < deadline,
            "the registration does not arrive"
        );
    }
    assert!(
        pilot
            .page("/debug/registryz")
            .await
            .1
            .contains("com.foo.Bar")
    );
    assert!(pilot.page("/debug/list").await.1.contains("/debug/syncz"));
    assert_eq!(pilot.get("/debug/config_dump").await, 400);
    assert_eq!(
        pilot.get("/debug/config_dump?proxyID=nobody.demo").await,
        404
    );
    assert_eq!(
        pilot.get("/v1/services").await,
        200,
        "the registry's own interface"
    );
    let mut proxy = pilot.client().await;
    proxy.request(CLUSTER, &[]).await;
    proxy.expect(CLUSTER).await;
    let (status, dump) = pilot.page("/debug/config_dump?proxyID=shop.demo").await;
    assert_eq!(status, 200);
    assert!(
        dump.contains("\"127.0.0.7_12220\"") && dump.contains("outbound|12220||com.foo.Bar"),
        "{dump}"
    );
    pilot.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_source_gives_endpoints() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let write = |name: &str, instances: &str| {
        let text =
            format!("services: [{{protocol: bolt, name: com.foo.Bar, instances: [{instances}]}}]");
        let temporary = folder.path().join("temporary");
        std::fs::write(&temporary, text).expect("a file");
        std::fs::rename(temporary, folder.path().join(name)).expect("a renamed file");
    };
    write(
        "bar.yaml",
        "{address: 10.0.0.1, port: 12200}, {address: nowhere at all, port: 1}",
    );
    // One nobody listens for: it must keep nothing else waiting.
    let source = format!(
        "{SIDECAR}---
apiVersion: mesh.sofastack.io/v1alpha1
kind: RegistrySource
metadata: {{name: legacy, namespace: registries}}
spec: {{files: {{folder: {}}}}}
---
apiVersion: mesh.sofastack.io/v1alpha1
kind: RegistrySource
metadata: {{name: zk}}
spec: {{zookeeper: {{servers: ['127.0.0.1:1'], digest: {{username: mesh, password: s3cret}}}}}}
---
apiVersion: mesh.sofastack.io/v1alpha1
kind: RegistrySource
metadata: {{name: none}}
spec: {{precedence: 3}}
",
        folder.path().display()
    );
    let pilot = Running::start(&source).await;
    let mut proxy = pilot.client().await;
    let bar = "outbound|12220||com.foo.Bar";
    proxy.request(CLUSTER, &[]).await;
    assert_eq!(cluster_names(&proxy.expect(CLUSTER).await), [bar]);
    proxy.request(CLUSTER, &[]).await;
    proxy.request(ENDPOINTS, &[bar]).await;
    let one = [(bar.to_owned(), 1)];
    assert_eq!(endpoint_count(&proxy.expect(ENDPOINTS).await), one);
    proxy.request(ENDPOINTS, &[bar]).await;
    write("more.yaml", "{address: 10.0.0.2, port: 12200}");
    let two = [(bar.to_owned(), 2)];
    assert_eq!(endpoint_count(&proxy.expect(ENDPOINTS).await), two);

    let (_, page) = pilot.page("/debug/registries").await;
    let page: serde_json::Value = serde_json::from_str(&page).expect("JSON");
    let legacy = &page["sources"][0];
    assert_eq!(legacy["name"], "legacy.registries");
    assert_eq!(legacy["instances"], 2);
    let skipped = legacy["skippedEntries"].to_string();
    assert!(skipped.contains("nowhere at all"), "{skipped}");
    assert_eq!(page["sources"][1]["trouble"], "unreachable", "{page}");
    let (_, invalid) = pilot.page("/debug/invalidz").await;
    assert!(invalid.contains("must name one registry"), "{invalid}");
    let (_, config) = pilot.page("/debug/configz").await;
    assert!(
        config.contains("\"***\"") && !config.contains("s3cret"),
        "{config}"
    );
    pilot.stop().await;
}
