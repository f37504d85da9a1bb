//! mosn against an ADS server that the test scripts: order of subscriptions, ACK, NACK with the field, and that the old
//! configuration serves on.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use api::envoy::config::cluster::v3::Cluster;
use api::envoy::config::endpoint::v3::ClusterLoadAssignment;
use api::envoy::config::listener::v3::Listener;
use api::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use api::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

const CDS: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
const EDS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
const LDS: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
const LIMIT: Duration = Duration::from_secs(10);

/// One stream of the client: what it asked, and where to answer.
struct Stream {
    requests: Streaming<DiscoveryRequest>,
    responses: mpsc::Sender<Result<DiscoveryResponse, Status>>,
    nonce: u32,
}

struct Ads {
    streams: mpsc::Sender<Stream>,
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Ads {
    type StreamAggregatedResourcesStream = ReceiverStream<Result<DiscoveryResponse, Status>>;
    type DeltaAggregatedResourcesStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        let (responses, receiver) = mpsc::channel(16);
        let stream = Stream {
            requests: request.into_inner(),
            responses,
            nonce: 0,
        };
        self.streams
            .send(stream)
            .await
            .map_err(|_| Status::unavailable("test is over"))?;
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn delta_aggregated_resources(
        &self,
        _: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("state of the world only"))
    }
}

impl Stream {
    async fn next(&mut self) -> DiscoveryRequest {
        let next = tokio::time::timeout(LIMIT, self.requests.message());
        next.await
            .expect("a request in time")
            .expect("no gRPC error")
            .expect("the stream goes on")
    }

    /// Nothing is asked for a while that is long against loopback.
    async fn silent(&mut self) -> bool {
        tokio::time::timeout(Duration::from_millis(300), self.requests.message())
            .await
            .is_err()
    }

    async fn send(
        &mut self,
        type_url: &str,
        version: &str,
        resources: Vec<api::google::protobuf::Any>,
    ) -> String {
        self.nonce += 1;
        let nonce = format!("n{}", self.nonce);
        let response = DiscoveryResponse {
            type_url: type_url.into(),
            version_info: version.into(),
            nonce: nonce.clone(),
            resources,
            ..DiscoveryResponse::default()
        };
        self.responses
            .send(Ok(response))
            .await
            .expect("the client listens");
        nonce
    }

    async fn acked(&mut self, type_url: &str, version: &str, nonce: &str) {
        let request = self.next().await;
        assert_eq!(request.error_detail, None);
        let got = (
            request.type_url.as_str(),
            request.version_info.as_str(),
            request.response_nonce.as_str(),
        );
        assert_eq!(got, (type_url, version, nonce));
    }
}

async fn ads_server(listener: TcpListener) -> mpsc::Receiver<Stream> {
    let (streams, receiver) = mpsc::channel(4);
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(AggregatedDiscoveryServiceServer::new(Ads { streams }))
            .serve_with_incoming(TcpListenerStream::new(listener)),
    );
    receiver
}

/// A server that says its name and closes.
async fn says(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(name.as_bytes()).await;
        }
    });
    address
}

/// What is heard on a port of mosn, once it listens.
async fn hear(address: SocketAddr) -> String {
    let start = Instant::now();
    loop {
        let heard = async {
            let mut stream = TcpStream::connect(address).await.ok()?;
            let mut text = String::new();
            stream.read_to_string(&mut text).await.ok()?;
            Some(text).filter(|t| !t.is_empty())
        };
        if let Some(text) = heard.await {
            return text;
        }
        assert!(start.elapsed() < LIMIT, "nothing is heard on {address}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

struct Mosn(Child);

impl Drop for Mosn {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start_mosn(ads: SocketAddr) -> Mosn {
    let bootstrap = json!({
        "node": {"id": "sidecar~127.0.0.1~a.b~b.svc", "cluster": "a"},
        "dynamic_resources": {
            "ads_config": {"api_type": "GRPC", "transport_api_version": "V3",
                "grpc_services": [{"envoy_grpc": {"cluster_name": "xds"}}]},
            "cds_config": {"ads": {}, "resource_api_version": "V3"},
            "lds_config": {"ads": {}, "resource_api_version": "V3"},
        },
        "static_resources": {"clusters": [{
            "name": "xds", "type": "STATIC", "connect_timeout": "1s",
            "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}}}},
            "load_assignment": {"cluster_name": "xds", "endpoints": [{"lb_endpoints": [
                {"endpoint": {"address": {"socket_address": {"address": ads.ip().to_string(), "port_value": ads.port()}}}}]}]},
        }]},
    });
    let child = Command::new(env!("CARGO_BIN_EXE_mosn"))
        .args([
            "--config-yaml",
            &bootstrap.to_string(),
            "--concurrency",
            "2",
            "--log-level",
            "warning",
        ])
        .stdin(Stdio::null())
        .spawn()
        .expect("mosn starts");
    Mosn(child)
}

fn any<M: prost::Name + Default>(value: &Value) -> api::google::protobuf::Any {
    let message: M = api::json::from_value(value).expect("a valid resource");
    api::any::pack(&message)
}

fn cluster(connect_timeout: &str) -> api::google::protobuf::Any {
    any::<Cluster>(
        &json!({"name": "up", "type": "EDS", "connect_timeout": connect_timeout,
        "eds_cluster_config": {"eds_config": {"ads": {}, "initial_fetch_timeout": "0s"}, "service_name": "up-service"}}),
    )
}

fn endpoints(address: SocketAddr) -> api::google::protobuf::Any {
    any::<ClusterLoadAssignment>(
        &json!({"cluster_name": "up-service", "endpoints": [{"lb_endpoints": [{"endpoint":
        {"address": {"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}}}}]}]}),
    )
}

fn listener(name: &str, port: u16, stat_prefix: &str) -> api::google::protobuf::Any {
    any::<Listener>(&json!({"name": name,
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [{"filters": [{"name": "tcp", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": stat_prefix, "cluster": "up"}}]}]}))
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    socket.local_addr().expect("an address").port()
}

#[tokio::test]
async fn configures_itself_over_ads_and_refuses_what_is_wrong() {
    let ads = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let ads_address = ads.local_addr().expect("an address");
    let mut streams = ads_server(ads).await;
    let (first, second) = (says("first").await, says("second").await);
    let port = free_port();
    let local = SocketAddr::from(([127, 0, 0, 1], port));
    let _mosn = start_mosn(ads_address);
    let mut stream = tokio::time::timeout(LIMIT, streams.recv())
        .await
        .expect("in time")
        .expect("a stream");

    // clusters first, then their endpoints; listeners only when the clusters are warm
    let request = stream.next().await;
    assert_eq!(request.type_url, CDS);
    let node = request.node.expect("the first request names the node");
    assert_eq!(
        (node.id.as_str(), node.user_agent_name.as_str()),
        ("sidecar~127.0.0.1~a.b~b.svc", "mosn")
    );
    let nonce = stream.send(CDS, "1", vec![cluster("1s")]).await;
    stream.acked(CDS, "1", &nonce).await;
    let request = stream.next().await;
    assert_eq!(
        (request.type_url.as_str(), request.resource_names),
        (EDS, vec!["up-service".to_owned()])
    );
    assert!(
        stream.silent().await,
        "asked for listeners before the cluster was warm"
    );
    let nonce = stream.send(EDS, "1", vec![endpoints(first)]).await;
    stream.acked(EDS, "1", &nonce).await;
    assert_eq!(stream.next().await.type_url, LDS);
    let nonce = stream.send(LDS, "1", vec![listener("l", port, "p")]).await;
    stream.acked(LDS, "1", &nonce).await;
    assert_eq!(hear(local).await, "first");

    // one bad listener: the whole response is refused, with its name and field, and nothing of it is done
    let other = free_port();
    let nonce = stream
        .send(
            LDS,
            "2",
            vec![listener("l", port, "p2"), listener("m", other, "")],
        )
        .await;
    let nack = stream.next().await;
    assert_eq!(
        (nack.version_info.as_str(), nack.response_nonce.as_str()),
        ("1", nonce.as_str())
    );
    let message = nack.error_detail.expect("a NACK").message;
    assert_eq!(
        message,
        "m: filter_chains[0].filters[0].typed_config.stat_prefix: must not be empty"
    );
    assert_eq!(hear(local).await, "first");
    assert!(TcpStream::connect(("127.0.0.1", other)).await.is_err());

    // endpoints move the traffic
    let nonce = stream.send(EDS, "2", vec![endpoints(second)]).await;
    stream.acked(EDS, "2", &nonce).await;
    assert_eq!(hear(local).await, "second");

    // a changed cluster whose endpoints are known does not wait for them
    let nonce = stream.send(CDS, "2", vec![cluster("2s")]).await;
    stream.acked(CDS, "2", &nonce).await;
    assert_eq!(hear(local).await, "second");

    // a lost stream changes nothing; the next one begins with all subscriptions and the accepted versions
    drop(stream);
    let mut stream = tokio::time::timeout(LIMIT, streams.recv())
        .await
        .expect("in time")
        .expect("a stream");
    for (type_url, version) in [(CDS, "2"), (EDS, "2"), (LDS, "1")] {
        let request = stream.next().await;
        assert_eq!(
            (request.type_url.as_str(), request.version_info.as_str()),
            (type_url, version)
        );
    }
    assert_eq!(hear(local).await, "second");

    // a listener that is gone stops listening
    let nonce = stream.send(LDS, "3", vec![]).await;
    stream.acked(LDS, "3", &nonce).await;
    let start = Instant::now();
    while TcpStream::connect(local).await.is_ok() {
        assert!(
            start.elapsed() < LIMIT,
            "the removed listener still listens"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
