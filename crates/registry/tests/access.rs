//! Who may do what, over both faces: rules, quotas and the audit log.

mod common;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use api::mesh::registry::v1 as pb;
use common::{ask, grpc_of, message, serve_api, short_leases, soon, token_hash};
use pb::registry_service_client::RegistryServiceClient;
use registry::{Access, Api, Audit, AuditOptions, Registry};
use serde_json::{Value, json};
use tonic::transport::Channel;
use tonic::{Code, Request};

const RULES: &str = "
tokensFile: tokens
rules:
- {identities: ['token:shop'], namespaces: [shop], allow: write}
- {identities: ['token:guest'], namespaces: ['*'], allow: read}
- {identities: [anonymous], namespaces: [lobby], allow: read}
";

struct Guarded {
    folder: tempfile::TempDir,
    registry: Registry,
    address: SocketAddr,
    grpc: RegistryServiceClient<Channel>,
}

impl Guarded {
    async fn start(rules: &str) -> Guarded {
        let folder = tempfile::tempdir().expect("a folder");
        let registry = Registry::in_memory(short_leases()).expect("a registry");
        let tokens = ["shop", "guest"].map(|name| format!("{name} {}\n", token_hash(name)));
        std::fs::write(folder.path().join("tokens"), tokens.concat()).expect("a file");
        std::fs::write(folder.path().join("rules"), rules).expect("a file");
        let access = Access::read(&folder.path().join("rules"), &registry).expect("rules");
        let audit = Audit::open(AuditOptions {
            file: log(folder.path()),
            max_bytes: 1 << 20,
            keep: 1,
        });
        let api: Api = registry.api(access, audit.expect("a log"));
        Guarded {
            address: serve_api(&api).await,
            grpc: grpc_of(&api).await,
            registry,
            folder,
        }
    }

    async fn http(
        &self,
        token: Option<&str>,
        method: &str,
        path: &str,
        body: &str,
    ) -> (u16, Value) {
        let header = token.map(|token| format!("authorization: Bearer {token}\r\n"));
        let header = header.unwrap_or_default();
        let (status, _, body) = ask(self.address, method, path, &header, body).await;
        (status, serde_json::from_str(&body).unwrap_or_default())
    }

    /// Registers over gRPC; what was answered.
    async fn register(&self, token: Option<&str>, namespace: &str, id: &str) -> Code {
        let mut instance = message("s", id);
        instance.namespace = namespace.to_owned();
        let request = pb::RegisterRequest {
            instances: vec![instance],
            ..pb::RegisterRequest::default()
        };
        let answer = self.grpc.clone().register(with(token, request)).await;
        answer.map_or_else(|status| status.code(), |_| Code::Ok)
    }

    async fn list(&self, token: Option<&str>, namespace: &str) -> Code {
        let request = pb::ListRequest {
            selector: Some(pb::Selector {
                namespace: namespace.to_owned(),
                ..pb::Selector::default()
            }),
            ..pb::ListRequest::default()
        };
        let answer = self.grpc.clone().list(with(token, request)).await;
        answer.map_or_else(|status| status.code(), |_| Code::Ok)
    }

    /// Lines of the log, once it has one that this is true of.
    async fn logged(&self, wanted: impl Fn(&Value) -> bool) -> Vec<Value> {
        let read = async {
            loop {
                let text = std::fs::read_to_string(log(self.folder.path())).unwrap_or_default();
                let lines = text
                    .lines()
                    .filter_map(|line| serde_json::from_str(line).ok());
                let lines: Vec<Value> = lines.collect();
                if lines.iter().any(&wanted) {
                    return lines;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        soon(read).await
    }
}

fn log(folder: &Path) -> PathBuf {
    folder.join("audit.log")
}

fn with<T>(token: Option<&str>, message: T) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(token) = token {
        let value = format!("Bearer {token}").parse().expect("a header");
        request.metadata_mut().insert("authorization", value);
    }
    request
}

#[tokio::test]
async fn a_token_may_do_what_the_rules_say() {
    let guarded = Guarded::start(RULES).await;
    let content = json!({"address": "10.0.0.1", "port": 1}).to_string();
    let (shop, guest) = (Some("shop"), Some("guest"));
    let cases = [
        (shop, "shop", 201, 200, Code::Ok, Code::Ok),
        (
            shop,
            "bank",
            403,
            403,
            Code::PermissionDenied,
            Code::PermissionDenied,
        ),
        (guest, "shop", 403, 200, Code::PermissionDenied, Code::Ok),
        (
            None,
            "shop",
            401,
            401,
            Code::Unauthenticated,
            Code::Unauthenticated,
        ),
        (None, "lobby", 401, 200, Code::Unauthenticated, Code::Ok),
        (
            Some("other"),
            "lobby",
            401,
            401,
            Code::Unauthenticated,
            Code::Unauthenticated,
        ),
    ];
    for (token, namespace, put, get, register, list) in cases {
        let base = format!("/v1/namespaces/{namespace}/services");
        let path = format!("{base}/bolt/s/instances/a");
        let answers = (
            guarded.http(token, "PUT", &path, &content).await.0,
            guarded.http(token, "GET", &base, "").await.0,
            guarded.register(token, namespace, "b").await,
            guarded.list(token, namespace).await,
        );
        assert_eq!(answers, (put, get, register, list), "{token:?} {namespace}");
    }
    // One instance of a batch in another namespace refuses it whole.
    let both = json!({"instances": [
        {"namespace": "shop", "protocol": "bolt", "service": "s", "address": "::1", "port": 1},
        {"namespace": "bank", "protocol": "bolt", "service": "s", "address": "::1", "port": 1},
    ]});
    let answer = guarded
        .http(shop, "POST", "/v1/register", &both.to_string())
        .await;
    assert_eq!((answer.0, &answer.1["code"]), (403, &json!("forbidden")));
    assert_eq!(
        answer.1["message"],
        "token:shop may not write namespace bank"
    );
    assert_eq!(guarded.registry.snapshot().instances(), 2);
    // What is of no namespace.
    for (token, path, expected) in [
        (guest, "/v1/services?namespace=*", 200),
        (shop, "/v1/services?namespace=*", 403),
        (shop, "/v1/status", 200),
        (Some("other"), "/v1/status", 401),
        (None, "/v1/openapi.json", 200),
        (None, "/v1/registry.proto", 200),
    ] {
        assert_eq!(
            guarded.http(token, "GET", path, "").await.0,
            expected,
            "{path}"
        );
    }
    let seen = guarded.http(None, "GET", "/v1/namespaces", "").await.1;
    assert_eq!(seen["namespaces"], json!([]));
    let seen = guarded.http(guest, "GET", "/v1/namespaces", "").await.1;
    assert_eq!(seen["namespaces"][0]["namespace"], "shop");
}

#[tokio::test]
async fn a_watch_ends_when_the_rule_goes() {
    let guarded = Guarded::start(RULES).await;
    let request = || pb::WatchRequest {
        selector: Some(pb::Selector {
            namespace: "shop".to_owned(),
            ..pb::Selector::default()
        }),
        ..pb::WatchRequest::default()
    };
    let watch = guarded
        .grpc
        .clone()
        .watch(with(Some("guest"), request()))
        .await;
    let mut watch = watch.expect("a watch").into_inner();
    assert!(
        soon(watch.message())
            .await
            .expect("a message")
            .is_some_and(|first| first.synced)
    );
    let rules = RULES.replace("token:guest", "token:nobody");
    std::fs::write(guarded.folder.path().join("rules"), rules).expect("a file");
    let ended = async {
        // Changes come for as long as the old rules are in force.
        for number in 0_u64.. {
            assert_eq!(
                guarded
                    .register(Some("shop"), "shop", &number.to_string())
                    .await,
                Code::Ok
            );
            match watch.message().await {
                Ok(Some(_)) => tokio::time::sleep(Duration::from_millis(20)).await,
                Ok(None) => return Code::Ok,
                Err(status) => return status.code(),
            }
        }
        Code::Ok
    };
    assert_eq!(soon(ended).await, Code::PermissionDenied);
}

#[tokio::test]
async fn a_namespace_has_its_quota() {
    let quotas = "
quotas:
- {namespaces: [shop], instances: 3, services: 2, watchers: 1}
- {namespaces: [lobby], requestsPerSecond: 1}
";
    let guarded = Guarded::start(&format!("{RULES}{quotas}")).await;
    let shop = Some("shop");
    let put = |service: &'static str, id: u8| {
        let guarded = &guarded;
        async move {
            let path = format!("/v1/namespaces/shop/services/bolt/{service}/instances/{id}");
            let content = json!({"address": "10.0.0.1", "port": 1}).to_string();
            guarded.http(shop, "PUT", &path, &content).await
        }
    };
    for (service, id, expected) in [("a", 1, 201), ("b", 1, 201), ("c", 1, 429), ("a", 2, 201)] {
        assert_eq!(put(service, id).await.0, expected, "{service} {id}");
    }
    let refused = put("a", 3).await;
    assert_eq!((refused.0, &refused.1["code"]), (429, &json!("too_many")));
    assert_eq!(
        refused.1["message"],
        "namespace shop may have 3 instances, and would have 4"
    );
    assert_eq!(
        guarded.register(shop, "shop", "x").await,
        Code::ResourceExhausted
    );
    // What is there can be replaced, and what goes makes room.
    assert_eq!(put("a", 1).await.0, 200);
    let gone = "/v1/namespaces/shop/services/bolt/b/instances/1";
    assert_eq!(guarded.http(shop, "DELETE", gone, "").await.0, 204);
    assert_eq!(put("c", 1).await.0, 201);

    let watch = || {
        let request = pb::WatchRequest {
            selector: Some(pb::Selector {
                namespace: "shop".to_owned(),
                ..pb::Selector::default()
            }),
            ..pb::WatchRequest::default()
        };
        let mut client = guarded.grpc.clone();
        async move { client.watch(with(shop, request)).await }
    };
    let first = watch().await.expect("a watch");
    let second = watch().await.expect_err("one too many");
    assert_eq!(second.code(), Code::ResourceExhausted);
    drop(first);
    soon(async {
        while watch().await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;

    let path = "/v1/namespaces/lobby/services";
    let mut refused = 0;
    for _ in 0..20 {
        refused += u32::from(guarded.http(None, "GET", path, "").await.0 == 429);
    }
    assert!(refused >= 10, "{refused} of 20 refused");
}

#[tokio::test]
async fn the_log_tells_who_did_what_and_who_may_not() {
    let guarded = Guarded::start(RULES).await;
    let path = "/v1/namespaces/shop/services/bolt/s/instances/a";
    let content = json!({"address": "10.0.0.1", "port": 1}).to_string();
    guarded.http(Some("shop"), "PUT", path, &content).await;
    guarded.http(Some("shop"), "PUT", path, "{}").await;
    guarded.http(Some("guest"), "DELETE", path, "").await;
    guarded.http(Some("not-a-token"), "GET", path, "").await;
    guarded
        .http(Some("shop"), "PUT", &format!("{path}/lease"), "")
        .await;
    guarded.http(Some("shop"), "DELETE", path, "").await;
    assert_eq!(
        guarded.register(Some("guest"), "bank", "b").await,
        Code::PermissionDenied
    );
    let lines = guarded.logged(|line| line["namespaces"][0] == "bank").await;
    let told: Vec<[&str; 3]> = lines
        .iter()
        .map(|line| ["identity", "action", "result"].map(|key| line[key].as_str().unwrap_or("")))
        .collect();
    assert_eq!(
        told,
        [
            ["token:shop", "register", "ok"],
            ["token:guest", "deregister", "refused"],
            ["", "authenticate", "refused"],
            ["token:shop", "deregister", "ok"],
            ["token:guest", "register", "refused"],
        ]
    );
    assert_eq!(lines[0]["objects"], json!(["shop:bolt/s a"]));
    assert!(
        lines[0]["peer"]
            .as_str()
            .is_some_and(|peer| peer.starts_with("127.0.0.1:"))
    );
    assert!(
        lines[4]["peer"]
            .as_str()
            .is_some_and(|peer| peer.starts_with("127.0.0.1:"))
    );
    let text = std::fs::read_to_string(log(guarded.folder.path())).expect("a log");
    assert!(!text.contains("not-a-token"));
}
