//! The registry with TLS: HTTP and gRPC on one address, and who a client certificate says its client is.

mod common;

use std::net::SocketAddr;
use std::path::Path;

use api::mesh::registry::v1 as pb;
use bytes::Bytes;
use common::{message, soon, token_hash};
use http::Request;
use http_body_util::Full;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use pb::registry_service_client::RegistryServiceClient;
use registry::tls::{ClientCertificate, ClientTls, ServerTls};
use registry::{Access, Audit, Limits, Registry};
use testkit::certificates::{Authority, Certified};
use tokio::net::TcpListener;
use tonic::Code;
use tonic::transport::Endpoint;

const RULES: &str = "
tokensFile: tokens
rules:
- {identities: ['spiffe://mesh/ns/shop/*'], namespaces: [shop], allow: write}
- {identities: ['dns:agent.example', 'token:bank'], namespaces: [bank], allow: write}
";

/// A client that trusts the server, and shows a certificate if it has one.
fn connector(
    ca: &Path,
    certified: Option<&Certified>,
    http2: bool,
) -> HttpsConnector<HttpConnector> {
    let tls = ClientTls {
        ca_file: Some(ca.to_owned()),
        cert_file: certified.map(|certified| certified.cert_file.clone()),
        key_file: certified.map(|certified| certified.key_file.clone()),
        ..ClientTls::default()
    };
    let config = tls.config().expect("certificates");
    let builder = HttpsConnectorBuilder::new()
        .with_tls_config(config)
        .https_only();
    match http2 {
        true => builder.enable_http2().build(),
        false => builder.enable_http1().build(),
    }
}

/// The status of a registration over HTTP, and its code over gRPC.
async fn register(
    address: SocketAddr,
    ca: &Path,
    certified: Option<&Certified>,
    token: Option<&str>,
    namespace: &str,
) -> (u16, Code) {
    let port = address.port();
    let client = Client::builder(TokioExecutor::new()).build(connector(ca, certified, false));
    let path = format!("/v1/namespaces/{namespace}/services/bolt/s/instances/a");
    let mut request = Request::put(format!("https://localhost:{port}{path}"));
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let content = r#"{"address":"10.0.0.1","port":1}"#;
    let request = request
        .body(Full::new(Bytes::from(content)))
        .expect("a request");
    let answer = soon(client.request(request)).await.expect("an answer");

    let endpoint = Endpoint::from_shared(format!("https://localhost:{port}")).expect("a URL");
    let channel = soon(endpoint.connect_with_connector(connector(ca, certified, true))).await;
    let mut client = RegistryServiceClient::new(channel.expect("a connection"));
    let mut instance = message("s", "b");
    instance.namespace = namespace.to_owned();
    let mut request = tonic::Request::new(pb::RegisterRequest {
        instances: vec![instance],
        ..pb::RegisterRequest::default()
    });
    if let Some(token) = token {
        let value = format!("Bearer {token}").parse().expect("a header");
        request.metadata_mut().insert("authorization", value);
    }
    let registered = soon(client.register(request)).await;
    let code = registered.map_or_else(|status| status.code(), |_| Code::Ok);
    (answer.status().as_u16(), code)
}

#[tokio::test]
async fn a_certificate_is_who_its_client_is() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let authority = Authority::new(folder, "ca").expect("an authority");
    let issue = |name: &str, names: &[&str]| authority.issue(folder, name, names, None);
    let server = issue("server", &["localhost"]).expect("a certificate");
    let shop = issue("shop", &["spiffe://mesh/ns/shop/sa/web", "agent.example"]);
    let agent = issue("agent", &["agent.example"]).expect("a certificate");
    let shop = shop.expect("a certificate");
    std::fs::write(
        folder.join("tokens"),
        format!("bank {}", token_hash("secret")),
    )
    .expect("a file");
    std::fs::write(folder.join("rules"), RULES).expect("a file");
    let registry = Registry::in_memory(Limits::default()).expect("a registry");
    let access = Access::read(&folder.join("rules"), &registry).expect("rules");
    let api = registry.api(access, Audit::none());
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    let tls = ServerTls {
        cert_file: server.cert_file,
        key_file: server.key_file,
        client_ca_file: Some(authority.file().to_owned()),
        client_certificate: ClientCertificate::Optional,
    };
    tokio::spawn(async move { registry::serve_tls(listener, &api, tls).await });
    let ca = authority.file();
    let cases = [
        (Some(&shop), None, "shop", (201, Code::Ok)),
        // Its SPIFFE id stands before its host name.
        (Some(&shop), None, "bank", (403, Code::PermissionDenied)),
        (Some(&agent), None, "bank", (201, Code::Ok)),
        (Some(&agent), None, "shop", (403, Code::PermissionDenied)),
        (Some(&shop), Some("secret"), "bank", (200, Code::Ok)),
        (None, Some("secret"), "bank", (200, Code::Ok)),
        (None, None, "shop", (401, Code::Unauthenticated)),
        // A token that is wrong is not made good by a certificate.
        (
            Some(&shop),
            Some("wrong"),
            "shop",
            (401, Code::Unauthenticated),
        ),
    ];
    for (certified, token, namespace, expected) in cases {
        let answers = register(address, ca, certified, token, namespace).await;
        let who = certified.map(|certified| certified.cert_file.display().to_string());
        assert_eq!(answers, expected, "{who:?} {token:?} {namespace}");
    }
}
