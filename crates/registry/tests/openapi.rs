//! The description and the routes agree: every operation in it exists, answers as it says, and there is nothing it does not
//! describe.

mod common;

use std::collections::BTreeSet;
use std::net::SocketAddr;

use common::{ask, serve, short_leases};
use registry::Registry;
use serde_json::{Value, json};

async fn request(
    address: SocketAddr,
    method: &str,
    path: &str,
    body: &str,
) -> (u16, String, String) {
    ask(address, method, path, "", body).await
}

/// Follows `$ref`.
fn resolve<'a>(document: &'a Value, schema: &'a Value) -> &'a Value {
    match schema.get("$ref").and_then(Value::as_str) {
        Some(reference) => {
            let pointer = reference.trim_start_matches('#');
            resolve(
                document,
                document
                    .pointer(pointer)
                    .unwrap_or_else(|| panic!("{reference} is not there")),
            )
        }
        None => schema,
    }
}

/// The part of JSON Schema that the description uses.
fn validate(document: &Value, schema: &Value, value: &Value, path: &str) {
    let schema = resolve(document, schema);
    for part in schema
        .get("allOf")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        validate(document, part, value, path);
    }
    if let Some(allowed) = schema.get("enum").and_then(Value::as_array) {
        assert!(allowed.contains(value), "{path}: {value} is not allowed");
    }
    match schema.get("type").and_then(Value::as_str) {
        Some("object") => assert!(value.is_object(), "{path}: {value}"),
        Some("array") => assert!(value.is_array(), "{path}: {value}"),
        Some("string") => assert!(value.is_string(), "{path}: {value}"),
        Some("integer") => assert!(value.is_u64(), "{path}: {value}"),
        Some("number") => assert!(value.is_number(), "{path}: {value}"),
        Some("boolean") => assert!(value.is_boolean(), "{path}: {value}"),
        _ => {}
    }
    for name in schema
        .get("required")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        let name = name.as_str().unwrap_or_default();
        assert!(
            value.get(name).is_some(),
            "{path}.{name} is missing in {value}"
        );
    }
    if let (Some(properties), Some(fields)) = (
        schema.get("properties").and_then(Value::as_object),
        value.as_object(),
    ) {
        for (name, field) in fields {
            let property = properties.get(name).unwrap_or(&Value::Null);
            let within = schema.get("allOf").is_some() || path.is_empty();
            assert!(
                within || !property.is_null(),
                "{path}.{name} is not described"
            );
            validate(document, property, field, &format!("{path}.{name}"));
        }
    }
    if let (Some(items), Some(elements)) = (schema.get("items"), value.as_array()) {
        for element in elements {
            validate(document, items, element, &format!("{path}[]"));
        }
    }
}

fn check(document: &Value, operation: &str, answer: &(u16, String, String)) {
    let (status, content_type, body) = answer;
    let (method, path) = operation.split_once(' ').expect("an operation");
    let described = &document["paths"][path][method]["responses"][status.to_string()];
    assert!(
        described.is_object(),
        "{operation} answers {status}, which is not described: {body}"
    );
    let described = resolve(document, described);
    let Some(content) = described.get("content") else {
        assert!(body.is_empty(), "{operation}: {body}");
        return;
    };
    let schema = &content[content_type]["schema"];
    assert!(
        schema.is_object(),
        "{operation} answers {content_type}, which is not described"
    );
    if content_type == "application/json" || content_type == "application/problem+json" {
        let value =
            serde_json::from_str(body).unwrap_or_else(|e| panic!("{operation}: {e}: {body}"));
        validate(document, schema, &value, "");
    }
}

/// Paths that are in no namespace.
const BARE: [&str; 8] = [
    "/v1/namespaces",
    "/v1/sessions",
    "/v1/sessions/{session}",
    "/v1/sessions/{session}/lease",
    "/v1/snapshot",
    "/v1/status",
    "/v1/openapi.json",
    "/v1/registry.proto",
];

#[tokio::test]
async fn every_operation_answers_as_it_is_described() {
    let registry = Registry::in_memory(short_leases()).expect("a registry");
    let address = serve(&registry).await;
    let (status, content_type, text) = request(address, "GET", "/v1/openapi.json", "").await;
    assert_eq!((status, content_type.as_str()), (200, "application/json"));
    let document: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(document["openapi"], "3.1.0");

    let service = "/v1/services/{protocol}/{service}";
    let content = json!({"address": "10.0.0.1", "port": 12200, "metadata": {"k": "v"}}).to_string();
    let named =
        json!({"instances": [{"protocol": "bolt", "service": "s", "address": "::1", "port": 1}]})
            .to_string();
    let referred =
        json!({"instances": [{"protocol": "bolt", "service": "s", "id": "none"}]}).to_string();
    let described = r#"{"canonicalName":"s","methods":[{"name":"pay","parameterTypes":["int"],"returnType":"void"}],"types":[{"type":"int"}]}"#;
    let opened = request(address, "POST", "/v1/sessions", "").await;
    let opened: Value = serde_json::from_str(&opened.2).expect("JSON");
    let session = format!("/v1/sessions/{}", opened["id"].as_str().expect("an id"));
    let lease = format!("{session}/lease");
    let in_no_session = format!("/v1/services/bolt/s/instances/z?session={}", "0".repeat(32));
    // Operation, its path, body, expected status.
    let requests: Vec<(String, &str, &str, u16)> = vec![
        (
            format!("post {service}/instances"),
            "/v1/services/bolt/s/instances",
            &content,
            201,
        ),
        (
            format!("post {service}/instances"),
            "/v1/services/bolt/s/instances",
            &content,
            200,
        ),
        (
            format!("post {service}/instances"),
            "/v1/services/bolt/s/instances",
            "{",
            400,
        ),
        (
            format!("put {service}/instances/{{id}}"),
            "/v1/services/bolt/s/instances/a",
            &content,
            201,
        ),
        (
            format!("put {service}/instances/{{id}}"),
            "/v1/services/bolt/s/instances/a",
            &content,
            200,
        ),
        (
            format!("put {service}/instances/{{id}}"),
            "/v1/services/bolt/s/instances/a",
            "{\"x\":1}",
            400,
        ),
        (
            format!("get {service}/instances/{{id}}"),
            "/v1/services/bolt/s/instances/a",
            "",
            200,
        ),
        (
            format!("get {service}/instances/{{id}}"),
            "/v1/services/bolt/s/instances/b",
            "",
            404,
        ),
        (
            format!("put {service}/instances/{{id}}/lease"),
            "/v1/services/bolt/s/instances/a/lease",
            "",
            204,
        ),
        (
            format!("put {service}/instances/{{id}}/lease"),
            "/v1/services/bolt/s/instances/b/lease",
            "",
            404,
        ),
        (
            format!("get {service}/instances"),
            "/v1/services/bolt/s/instances?limit=1",
            "",
            200,
        ),
        (
            format!("get {service}/instances"),
            "/v1/services/bolt/s/instances?health=yes",
            "",
            400,
        ),
        (format!("get {service}"), "/v1/services/bolt/s", "", 200),
        (format!("get {service}"), "/v1/services/bolt/t", "", 404),
        ("get /v1/services".to_owned(), "/v1/services", "", 200),
        (
            "get /v1/services".to_owned(),
            "/v1/services?limit=0",
            "",
            400,
        ),
        ("post /v1/register".to_owned(), "/v1/register", &named, 200),
        (
            "post /v1/register".to_owned(),
            "/v1/register",
            &content,
            400,
        ),
        ("post /v1/renew".to_owned(), "/v1/renew", &referred, 200),
        ("post /v1/renew".to_owned(), "/v1/renew", "[]", 400),
        (
            "post /v1/deregister".to_owned(),
            "/v1/deregister",
            &referred,
            200,
        ),
        ("post /v1/deregister".to_owned(), "/v1/deregister", "", 400),
        (
            "get /v1/watch".to_owned(),
            "/v1/watch?protocol=bolt",
            "",
            200,
        ),
        ("get /v1/watch".to_owned(), "/v1/watch?since=x", "", 400),
        ("get /v1/namespaces".to_owned(), "/v1/namespaces", "", 200),
        (
            "get /v1/namespaces".to_owned(),
            "/v1/namespaces?x=1",
            "",
            400,
        ),
        (
            "get /v1/instances".to_owned(),
            "/v1/instances?servicePattern=s*&metadata[k]=v&origin=osr&limit=1",
            "",
            200,
        ),
        (
            "get /v1/instances".to_owned(),
            "/v1/instances?metadata[k=v",
            "",
            400,
        ),
        (
            format!("put {service}/interface"),
            "/v1/services/bolt/s/interface?version=1.0",
            described,
            201,
        ),
        (
            format!("put {service}/interface"),
            "/v1/services/bolt/s/interface?version=1.0",
            described,
            204,
        ),
        (
            format!("put {service}/interface"),
            "/v1/services/bolt/s/interface",
            "{}",
            400,
        ),
        (
            format!("get {service}/interface"),
            "/v1/services/bolt/s/interface?version=1.0",
            "",
            200,
        ),
        (
            format!("get {service}/interface"),
            "/v1/services/bolt/s/interface",
            "",
            404,
        ),
        (
            "get /v1/interfaces".to_owned(),
            "/v1/interfaces?protocol=bolt",
            "",
            200,
        ),
        (
            "get /v1/interfaces".to_owned(),
            "/v1/interfaces?after=x",
            "",
            400,
        ),
        (format!("get {service}"), "/v1/services/bolt/s", "", 200),
        (
            format!("delete {service}/interface"),
            "/v1/services/bolt/s/interface?version=1.0",
            "",
            204,
        ),
        (
            format!("delete {service}/interface"),
            "/v1/services/bolt/s/interface?version=1.0",
            "",
            404,
        ),
        (
            "post /v1/sessions".to_owned(),
            "/v1/sessions",
            "{\"ttlSeconds\":5}",
            201,
        ),
        ("post /v1/sessions".to_owned(), "/v1/sessions", "", 201),
        (
            "post /v1/sessions".to_owned(),
            "/v1/sessions",
            "{\"ttlSeconds\":1e9}",
            400,
        ),
        (
            "put /v1/sessions/{session}/lease".to_owned(),
            &lease,
            "",
            204,
        ),
        (
            "put /v1/sessions/{session}/lease".to_owned(),
            "/v1/sessions/1/lease",
            "",
            400,
        ),
        ("get /v1/sessions/{session}".to_owned(), &session, "", 200),
        (
            "delete /v1/sessions/{session}".to_owned(),
            &session,
            "",
            200,
        ),
        (
            "delete /v1/sessions/{session}".to_owned(),
            &session,
            "",
            404,
        ),
        ("get /v1/sessions/{session}".to_owned(), &session, "", 404),
        (
            "put /v1/sessions/{session}/lease".to_owned(),
            &lease,
            "",
            404,
        ),
        (
            format!("put {service}/instances/{{id}}"),
            &in_no_session,
            &content,
            404,
        ),
        (
            "get /v1/registry.proto".to_owned(),
            "/v1/registry.proto",
            "",
            200,
        ),
        ("get /v1/snapshot".to_owned(), "/v1/snapshot", "", 200),
        ("put /v1/snapshot".to_owned(), "/v1/snapshot", "{}", 400),
        ("get /v1/status".to_owned(), "/v1/status", "", 200),
        (
            "get /v1/openapi.json".to_owned(),
            "/v1/openapi.json",
            "",
            200,
        ),
        (
            format!("delete {service}/instances/{{id}}"),
            "/v1/services/bolt/s/instances/a",
            "",
            204,
        ),
        (
            format!("delete {service}/instances/{{id}}"),
            "/v1/services/bolt/s/instances/a",
            "",
            404,
        ),
    ];
    let mut tried = BTreeSet::new();
    // All of it again in another namespace, which is empty.
    for namespace in ["default", "shop"] {
        for (operation, path, body, expected) in &requests {
            let (method, template) = operation.split_once(' ').expect("an operation");
            let (operation, path) = match (namespace, BARE.contains(&template)) {
                ("default", _) => (operation.clone(), (*path).to_owned()),
                (_, true) => continue,
                (_, false) => (
                    operation.replace("/v1/", "/v1/namespaces/{namespace}/"),
                    path.replace("/v1/", &format!("/v1/namespaces/{namespace}/")),
                ),
            };
            let answer = request(address, &method.to_uppercase(), &path, body).await;
            assert_eq!(answer.0, *expected, "{operation}: {}", answer.2);
            check(&document, &operation, &answer);
            tried.insert(operation);
        }
    }
    let methods = ["get", "put", "post", "delete"];
    let described: BTreeSet<String> = document["paths"]
        .as_object()
        .into_iter()
        .flatten()
        .flat_map(|(path, item)| {
            methods
                .iter()
                .filter(|m| item.get(**m).is_some())
                .map(move |m| format!("{m} {path}"))
        })
        .collect();
    assert_eq!(described, tried);
}

#[tokio::test]
async fn refuses_what_it_does_not_know() {
    let registry = Registry::in_memory(short_leases()).expect("a registry");
    let address = serve(&registry).await;
    let large = format!(
        "{{\"instances\":[],\"x\":\"{}\"}}",
        "x".repeat(5 * 1024 * 1024)
    );
    let cases = [
        ("GET", "/v1/other", "", 404, "not_found"),
        ("GET", "/v1/services/a/b/c", "", 404, "not_found"),
        ("DELETE", "/v1/services", "", 405, "method_not_allowed"),
        ("GET", "/v1/services?foo=1", "", 400, "invalid_argument"),
        ("GET", "/v1/services/%ff/x", "", 400, "bad_request"),
        ("POST", "/v1/register", large.as_str(), 413, "too_large"),
        (
            "POST",
            "/v1/register",
            "{\"instances\":[{\"protocol\":1}]}",
            400,
            "invalid_argument",
        ),
        (
            "PUT",
            "/v1/services/bolt/s/instances/%00",
            "{\"address\":\"::1\",\"port\":1}",
            400,
            "invalid_argument",
        ),
    ];
    for (method, path, body, status, code) in cases {
        let answer = request(address, method, path, body).await;
        assert_eq!(answer.0, status, "{method} {path}: {}", answer.2);
        assert_eq!(answer.1, "application/problem+json", "{method} {path}");
        let problem: Value = serde_json::from_str(&answer.2).expect("JSON");
        assert_eq!(problem["code"], code, "{method} {path}");
    }
}
