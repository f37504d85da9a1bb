//! Whatever is sent, over either face: an answer that blames the sender, and a registry that goes on.

mod common;

use api::mesh::registry::v1 as pb;
use axum::body::Body;
use axum::http::{Request, header};
use common::{grpc_of, message};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use proptest::prelude::*;
use registry::{Access, Api, Audit, Limits, Registry};
use serde_json::{Value, json};
use tonic::Code;
use tower::ServiceExt;

const PATHS: &[&str] = &[
    "services",
    "services/*/*",
    "services/*/*/instances",
    "services/*/*/instances/*",
    "services/*/*/instances/*/lease",
    "services/*/*/interface",
    "instances",
    "interfaces",
    "register",
    "renew",
    "deregister",
    "watch",
    "sessions",
    "sessions/*",
    "sessions/*/lease",
    "namespaces",
    "*",
];
const WORDS: &[&str] = &[
    "namespace",
    "protocol",
    "service",
    "servicePattern",
    "version",
    "group",
    "healthy",
    "origin",
    "metadata[a]",
    "limit",
    "after",
    "since",
    "store",
    "session",
    "instances",
    "id",
    "address",
    "port",
    "weight",
    "metadata",
    "ttlSeconds",
    "methods",
    "name",
    "parameterTypes",
    "types",
    "*",
    "bolt",
    "com.foo.Bar",
    "10.0.0.1",
    "true",
    "default",
    "shop",
];

fn word() -> impl Strategy<Value = String> {
    prop_oneof![
        proptest::sample::select(WORDS).prop_map(str::to_owned),
        any::<String>(),
        "[a-z0-9*. :/-]{0,20}",
    ]
}

fn document() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        (0_u64..70_000).prop_map(Value::from),
        word().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 40, 6, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map(word(), inner.clone(), 0..6).prop_map(|map| json!(map)),
            proptest::collection::vec(inner, 1..4).prop_map(|list| json!({ "instances": list })),
        ]
    })
}

fn body() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        document().prop_map(|value| value.to_string().into_bytes()),
        any::<Vec<u8>>(),
    ]
}

fn api() -> Api {
    let limits = Limits {
        body_bytes: 64 * 1024,
        ..Limits::default()
    };
    let registry = Registry::in_memory(limits).expect("a registry");
    registry.api(Access::open(), Audit::none())
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

#[test]
fn no_http_request_is_the_registrys_fault() {
    let (api, runtime) = (api(), runtime());
    let router = api.http_router();
    let method = proptest::sample::select(vec!["GET", "PUT", "POST", "DELETE", "PATCH"]);
    let names = proptest::collection::vec(word(), 4);
    let query = proptest::collection::vec((word(), word()), 0..4);
    let template = (any::<bool>(), proptest::sample::select(PATHS));
    proptest!(ProptestConfig::with_cases(1500), |(method in method, template in template, names in names, query in query, body in body())| {
        let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        let mut names = names.iter();
        let mut path = "/v1".to_owned();
        if template.0 {
            path.push_str("/namespaces/shop");
        }
        for part in template.1.split('/') {
            path.push('/');
            match part {
                "*" => path.push_str(&encode(names.next().map_or("", String::as_str))),
                part => path.push_str(part),
            }
        }
        for (index, (name, value)) in query.iter().enumerate() {
            path.push(if index == 0 { '?' } else { '&' });
            path.push_str(&format!("{}={}", encode(name), encode(value)));
        }
        let request = Request::builder().method(method).uri(&path).body(Body::from(body));
        let response = runtime.block_on(router.clone().oneshot(request.expect("a request")));
        let response = response.expect("an answer");
        prop_assert!(response.status().as_u16() < 500, "{method} {path}: {}", response.status());
        if response.status().is_client_error() {
            let kind = response.headers().get(header::CONTENT_TYPE);
            prop_assert_eq!(kind.map(|kind| kind.as_bytes()), Some(&b"application/problem+json"[..]));
        }
    });
}

#[test]
fn no_grpc_request_is_the_registrys_fault() {
    let (api, runtime) = (api(), runtime());
    let client = runtime.block_on(grpc_of(&api));
    let words = proptest::collection::vec(word(), 6);
    let numbers = (any::<u32>(), any::<u64>());
    proptest!(ProptestConfig::with_cases(300), |(words in words, numbers in numbers, json in document())| {
        let mut client = client.clone();
        let word = |at: usize| words.get(at).cloned().unwrap_or_default();
        let selector = Some(pb::Selector {
            namespace: word(0),
            protocol: word(1),
            service_pattern: word(2),
            metadata: [(word(3), word(4))].into(),
            ..pb::Selector::default()
        });
        let mut instance = message(&word(1), &word(2));
        instance.namespace = word(0);
        instance.port = numbers.0;
        instance.ttl_ms = Some(numbers.1);
        let interface = Some(pb::InterfaceRef {
            namespace: word(0),
            protocol: word(1),
            service: word(2),
            ..pb::InterfaceRef::default()
        });
        let list = pb::ListRequest { selector: selector.clone(), page_size: numbers.0, page_token: word(5) };
        let listed = pb::ListInterfacesRequest { selector, page_size: numbers.0, page_token: word(5) };
        let register = pb::RegisterRequest { instances: vec![instance], session: word(5) };
        let put = pb::PutInterfaceRequest { interface, json: json.to_string() };
        let open = pb::SessionRequest { id: word(5), ttl_ms: numbers.1, heartbeat_ms: numbers.1, close: true };
        let codes = runtime.block_on(async {
            fn code<T>(answer: Result<T, tonic::Status>) -> Code {
                answer.map_or_else(|status| status.code(), |_| Code::Ok)
            }
            [
                code(client.list(list).await),
                code(client.list_interfaces(listed).await),
                code(client.register(register).await),
                code(client.put_interface(put).await),
                code(client.session(tokio_stream::once(open)).await),
            ]
        });
        for code in codes {
            prop_assert!(matches!(code, Code::Ok | Code::InvalidArgument | Code::NotFound), "{code:?}");
        }
    });
}
