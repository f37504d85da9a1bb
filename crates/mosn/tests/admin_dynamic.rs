//! The admin beside the real Envoy's when the configuration comes by xDS: one ADS server serves both.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use api::envoy::config::cluster::v3::Cluster;
use api::envoy::config::endpoint::v3::ClusterLoadAssignment;
use api::envoy::config::listener::v3::Listener;
use api::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use api::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use api::google::protobuf::Any;
use serde_json::{Value, json};
use testkit::http::get;
use testkit::process::Process;
use testkit::{net, programs, wait};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

const LIMIT: Duration = Duration::from_secs(20);

/// Answers the first request of each type with what the bootstrap's cluster says, and nothing after that.
struct Ads {
    listener_port: u16,
    endpoint: SocketAddr,
}

impl Ads {
    fn resources(&self, type_url: &str, node: &str) -> Vec<Any> {
        let any = |value: Result<Any, base::FieldError>| vec![value.unwrap()];
        match type_url.rsplit('.').next().unwrap() {
            "Cluster" => any(pack::<Cluster>(&json!({
                "name": "outbound|80||web.default.svc.cluster.local", "type": "EDS", "connect_timeout": "1s",
                "eds_cluster_config": {"eds_config": {"ads": {}, "resource_api_version": "V3"}, "service_name": "web"},
            }))),
            "ClusterLoadAssignment" => any(pack::<ClusterLoadAssignment>(&json!({
                "cluster_name": "web", "endpoints": [{
                    "locality": {"region": "r"}, "priority": 0,
                    "lb_endpoints": [{"endpoint": {"address": socket(self.endpoint)}, "load_balancing_weight": 2}],
                }],
            }))),
            "Listener" => {
                // Each of the two proxies has a port of its own.
                let port = self.listener_port + u16::from(node == "envoy");
                any(pack::<Listener>(&json!({
                    "name": "dynamic", "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
                    "filter_chains": [{"filters": [{"name": "tcp", "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                        "stat_prefix": "in", "cluster": "outbound|80||web.default.svc.cluster.local",
                    }}]}],
                })))
            }
            _ => Vec::new(),
        }
    }
}

fn pack<M: prost::Message + prost::Name + Default>(value: &Value) -> Result<Any, base::FieldError> {
    Ok(api::any::pack(&api::json::from_value::<M>(value)?))
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Ads {
    type StreamAggregatedResourcesStream = ReceiverStream<Result<DiscoveryResponse, Status>>;
    type DeltaAggregatedResourcesStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        let mut requests = request.into_inner();
        let (responses, receiver) = tokio::sync::mpsc::channel(16);
        let ads = Self { ..*self };
        tokio::spawn(async move {
            let (mut node, mut answered) = (String::new(), BTreeSet::new());
            while let Ok(Some(request)) = requests.message().await {
                if let Some(known) = request.node {
                    node = known.id;
                }
                if !answered.insert(request.type_url.clone()) {
                    continue;
                }
                let response = DiscoveryResponse {
                    version_info: "v1".to_owned(),
                    nonce: request.type_url.clone(),
                    resources: ads.resources(&request.type_url, &node),
                    type_url: request.type_url,
                    ..DiscoveryResponse::default()
                };
                if responses.send(Ok(response)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn delta_aggregated_resources(
        &self,
        _: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("state of the world only"))
    }
}

fn socket(address: SocketAddr) -> Value {
    json!({"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}})
}

fn bootstrap(name: &str, admin: SocketAddr, ads: SocketAddr) -> Value {
    json!({
        "admin": {"address": socket(admin)},
        "node": {"id": name, "cluster": "c1"},
        "dynamic_resources": {
            "ads_config": {"api_type": "GRPC", "transport_api_version": "V3",
                "grpc_services": [{"envoy_grpc": {"cluster_name": "xds"}}]},
            "cds_config": {"ads": {}, "resource_api_version": "V3"},
            "lds_config": {"ads": {}, "resource_api_version": "V3"},
        },
        "static_resources": {"clusters": [{
            "name": "xds", "connect_timeout": "1s", "type": "STATIC",
            "load_assignment": {"cluster_name": "xds", "endpoints": [{"lb_endpoints": [{"endpoint": {"address": socket(ads)}}]}]},
            "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}},
            }},
        }]},
    })
}

fn start(
    mut command: Command,
    name: &str,
    folder: &Path,
    ads: SocketAddr,
) -> (Process, SocketAddr) {
    let admin = SocketAddr::from(([127, 0, 0, 1], net::free_port().unwrap()));
    let config = folder.join(format!("{name}.yaml"));
    std::fs::write(&config, bootstrap(name, admin, ads).to_string()).unwrap();
    command
        .arg("-c")
        .arg(&config)
        .args(["--concurrency", "1", "-l", "warning"]);
    let process = Process::start(name, &mut command, folder).unwrap();
    let live = || {
        get(admin, "/ready")
            .ok()
            .filter(|answer| answer.text() == "LIVE\n")
    };
    wait::until(&format!("{name} is live"), LIMIT, live).unwrap();
    (process, admin)
}

/// Two ports in a row that were free a moment ago.
fn two_ports() -> u16 {
    wait::until("two free ports", LIMIT, || {
        let first = net::free_port().ok()?;
        TcpListener::bind(("127.0.0.1", first.checked_add(1)?))
            .ok()
            .map(|_| first)
    })
    .unwrap()
}

/// Every path through a JSON value with its value; lists are taken as one. What differs from run to run is left out.
fn facts(value: &Value, at: &str, into: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => fields
            .iter()
            .for_each(|(key, value)| facts(value, &format!("{at}.{key}"), into)),
        Value::Array(items) => items
            .iter()
            .for_each(|item| facts(item, &format!("{at}[]"), into)),
        _ if at.ends_with(".last_updated") || at.ends_with(".port_value") => {
            into.insert(at.to_owned());
        }
        value => {
            into.insert(format!("{at} = {value}"));
        }
    }
}

#[test]
fn shows_dynamic_configuration_as_envoy_does() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let listener = runtime
        .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
        .unwrap();
    let address = listener.local_addr().unwrap();
    let endpoint = TcpListener::bind("127.0.0.1:0").unwrap();
    let listener_port = two_ports();
    let ads = Ads {
        listener_port,
        endpoint: endpoint.local_addr().unwrap(),
    };
    runtime.spawn(
        tonic::transport::Server::builder()
            .add_service(AggregatedDiscoveryServiceServer::new(ads))
            .serve_with_incoming(TcpListenerStream::new(listener)),
    );
    let folder = tempfile::tempdir().unwrap();
    let (_mosn, mosn) = start(
        Command::new(env!("CARGO_BIN_EXE_mosn")),
        "mosn",
        folder.path(),
        address,
    );
    let mut envoy = Command::new(programs::envoy().unwrap());
    envoy.arg("--disable-hot-restart");
    let (_envoy, envoy) = start(envoy, "envoy", folder.path(), address);
    for port in [listener_port, listener_port + 1] {
        wait::until_ok("the listener", LIMIT, || {
            Ok(TcpStream::connect(("127.0.0.1", port))?)
        })
        .unwrap();
    }

    let dump = |admin| {
        let mut dump = get(admin, "/config_dump?include_eds")
            .unwrap()
            .json()
            .unwrap();
        // The bootstrap is each one's own.
        dump["configs"].as_array_mut().unwrap().remove(0);
        let mut into = BTreeSet::new();
        facts(&dump, "", &mut into);
        into
    };
    let (ours, theirs) = (dump(mosn), dump(envoy));
    let different: Vec<_> = ours.symmetric_difference(&theirs).collect();
    // Envoy makes endpoints up from its hosts, with every default written out, and knows scoped routes.
    let known = [
        "_endpoint_configs[]",
        "RoutesConfigDump",
        ".configs[].@type",
    ];
    let unknown: Vec<_> = different
        .iter()
        .filter(|fact| !known.iter().any(|known| fact.contains(known)))
        .collect();
    assert!(unknown.is_empty(), "{unknown:#?}");

    let texts = |admin| {
        get(
            admin,
            "/stats?type=TextReadouts&filter=^(cluster_manager|listener_manager)",
        )
        .unwrap()
        .text()
    };
    assert_eq!(texts(mosn), texts(envoy));

    let clusters = |admin| -> Vec<String> {
        let text = get(admin, "/clusters?filter=web").unwrap().text();
        let mut lines: Vec<_> = text
            .lines()
            .filter(|line| !line.contains("::rq_") && !line.contains("::cx_"))
            .map(str::to_owned)
            .collect();
        lines.sort();
        lines
    };
    assert_eq!(clusters(mosn), clusters(envoy));
}
