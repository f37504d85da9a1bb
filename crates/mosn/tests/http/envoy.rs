//! The same requests to this proxy and to the real Envoy 1.40: what the client gets, what the upstream gets, what the access log says.
//!
//! Where the two differ on purpose, the case says how.

use crate::support::{Client, Kind, LIMIT, Proxy, Upstream, cluster, manager, request, start};
use serde_json::{Value, json};
use testkit::wait;

/// How the answers may differ.
#[derive(Clone, Copy, PartialEq)]
enum Expect {
    /// They are the same.
    Same,
    /// Envoy takes it, we refuse it with 400: peers disagree about what it means.
    Stricter,
    /// The client gets the same; Envoy had sent part of the request upstream when it found the error.
    SameAnswer,
}

struct Case {
    name: String,
    listener: usize,
    bytes: Vec<u8>,
    expect: Expect,
}

fn case(listener: usize, name: &str, bytes: impl Into<Vec<u8>>) -> Case {
    Case {
        name: name.to_owned(),
        listener,
        bytes: bytes.into(),
        expect: Expect::Same,
    }
}

impl Case {
    fn but(self, expect: Expect) -> Case {
        Case { expect, ..self }
    }
}

fn routes() -> Value {
    let retry = |on: &str| {
        json!({"cluster": "b", "retry_policy": {"retry_on": on, "num_retries": 2,
        "retry_back_off": {"base_interval": "0.001s", "max_interval": "0.001s"}}})
    };
    json!([
        {"match": {"prefix": "/direct"}, "direct_response": {"status": 200, "body": {"inline_string": "hello"}}},
        {"match": {"prefix": "/redirect"}, "redirect": {"path_redirect": "/new"}},
        {"match": {"prefix": "/nocluster"}, "route": {"cluster": "nope"}},
        {"match": {"prefix": "/empty"}, "route": {"cluster": "empty"}},
        {"match": {"prefix": "/refused"}, "route": {"cluster": "refused"}},
        {"match": {"prefix": "/overflow"}, "route": {"cluster": "overflow"}},
        {"match": {"prefix": "/timeout"}, "route": {"cluster": "b", "timeout": "0.1s"}},
        {"match": {"prefix": "/idle"}, "route": {"cluster": "b", "timeout": "0s", "idle_timeout": "0.1s"}},
        {"match": {"prefix": "/pertry"}, "route": {"cluster": "b", "timeout": "5s", "retry_policy": {
            "retry_on": "5xx", "num_retries": 1, "per_try_timeout": "0.1s"}}},
        {"match": {"prefix": "/retry5xx"}, "route": retry("5xx")},
        {"match": {"prefix": "/retryreset"}, "route": retry("reset")},
        {"match": {"prefix": "/retryconnect"}, "route": retry("connect-failure")},
        {"match": {"prefix": "/gateway"}, "route": retry("gateway-error")},
        {"match": {"prefix": "/rewrite"}, "route": {"cluster": "b", "prefix_rewrite": "/rewritten",
            "host_rewrite_literal": "other.example"}},
        {"match": {"prefix": "/headers"}, "route": {"cluster": "b"},
            "request_headers_to_add": [{"header": {"key": "x-new", "value": "%REQ(:METHOD)% %PROTOCOL%"}}],
            "request_headers_to_remove": ["x-old"],
            "response_headers_to_add": [{"header": {"key": "x-code", "value": "%RESPONSE_CODE%"}}],
            "response_headers_to_remove": ["set-cookie"]},
        {"match": {"prefix": "/"}, "route": {"cluster": "b"}},
    ])
}

fn managers() -> Vec<Value> {
    let fault = |config: Value| {
        let mut config = config;
        config["@type"] =
            json!("type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault");
        json!([
            {"name": "envoy.filters.http.fault", "typed_config": config},
            {"name": "envoy.filters.http.router", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}},
        ])
    };
    let hundred = json!({"numerator": 100});
    vec![
        manager(routes(), json!({})),
        manager(
            routes(),
            json!({
                "use_remote_address": true, "xff_num_trusted_hops": 1, "always_set_request_id_in_response": true,
                "server_header_transformation": "PASS_THROUGH", "via": "me",
                "internal_address_config": {"cidr_ranges": [{"address_prefix": "127.0.0.0", "prefix_len": 8}]},
            }),
        ),
        manager(
            routes(),
            json!({
                "normalize_path": true, "merge_slashes": true, "path_with_escaped_slashes_action": "REJECT_REQUEST",
                "strip_any_host_port": true, "server_name": "foo", "generate_request_id": false,
            }),
        ),
        manager(
            routes(),
            json!({
                "normalize_path": true, "path_with_escaped_slashes_action": "UNESCAPE_AND_FORWARD",
                "http_protocol_options": {"accept_http_10": true, "default_host_for_http_10": "dflt"},
                "server_header_transformation": "APPEND_IF_ABSENT", "max_request_headers_kb": 1,
                "common_http_protocol_options": {"headers_with_underscores_action": "REJECT_REQUEST", "max_headers_count": 10,
                    "max_requests_per_connection": 2},
            }),
        ),
        manager(
            routes(),
            json!({
                "use_remote_address": true, "skip_xff_append": true, "preserve_external_request_id": true,
                "normalize_path": true, "path_with_escaped_slashes_action": "UNESCAPE_AND_REDIRECT",
                "common_http_protocol_options": {"headers_with_underscores_action": "DROP_HEADER"},
                "http_filters": fault(json!({"abort": {"header_abort": {}, "percentage": hundred},
                    "headers": [{"name": "x-want", "string_match": {"exact": "1"}}]})),
            }),
        ),
        manager(
            routes(),
            json!({
                "http_filters": fault(json!({"abort": {"http_status": 418, "percentage": hundred},
                    "delay": {"fixed_delay": "0.02s", "percentage": hundred}})),
            }),
        ),
        manager(
            routes(),
            json!({"stream_idle_timeout": "0.2s", "request_timeout": "0.1s"}),
        ),
        manager(routes(), json!({"request_headers_timeout": "0.1s"})),
    ]
}

fn bad_requests() -> Vec<Case> {
    use Expect::{SameAnswer, Stricter};
    let get = |line: &str| format!("{line}\r\nHost: a.example\r\n\r\n");
    let with = |header: &str| request("POST", "/b", &format!("{header}\r\n"));
    let chunked = |body: &str| request("POST", "/b", "Transfer-Encoding: chunked\r\n") + body;
    let mut cases = Vec::new();
    for line in [
        "GET /b HTTP/1.0",
        "GET /b HTTP/1.2",
        "GET /b HTTP/2.0",
        "GET /b http/1.1",
        "get /b HTTP/1.1",
        "FOO /b HTTP/1.1",
        "G(T /b HTTP/1.1",
        "GET /b c HTTP/1.1",
        "GET b HTTP/1.1",
        "GET * HTTP/1.1",
        "OPTIONS * HTTP/1.1",
        "GET /b#x HTTP/1.1",
        "GET ftp://o/b HTTP/1.1",
        "GET /b\u{1} HTTP/1.1",
        "GET /b\u{7f} HTTP/1.1",
        "GET /b\u{e9} HTTP/1.1",
        "CONNECT /b HTTP/1.1",
        "CONNECT a:80 HTTP/1.1",
        " GET /b HTTP/1.1",
    ] {
        cases.push(case(0, line, get(line)));
    }
    for line in ["GET  /b HTTP/1.1", "GET\t/b HTTP/1.1", "GET /b HTTP/1.1 "] {
        cases.push(case(0, line, get(line)).but(Stricter));
    }
    for header in [
        "X : a",
        "X: a\0b",
        "X: a\u{1}b",
        "X: a\u{7f}b",
        ": a",
        "X(y: a",
        "X\0y: a",
        "Xy",
        "Content-Length: 2\r\nContent-Length: 2",
        "Content-Length: 2\r\nContent-Length: 3",
        "Content-Length: 2, 2",
        "Content-Length: +2",
        "Content-Length: -2",
        "Content-Length: 0x2",
        "Content-Length:",
        "Content-Length: 2 2",
        "Content-Length: 18446744073709551616",
        "Content-Length: 7\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 7",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: gzip",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: chunked, gzip",
        "Transfer-Encoding: identity",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: chunked, chunked",
        "Transfer-Encoding:",
    ] {
        cases.push(case(0, header, with(header)));
    }
    for header in ["X: a\r\n b", "X: a\rY: b", "Host: b"] {
        cases.push(case(0, header, with(header)).but(Stricter));
    }
    for body in [
        "zz\r\nhi\r\n",
        "0x2\r\nhi\r\n",
        "\r\nhi\r\n",
        "2;a\nhi\r\n",
        "fffffffffffffffff\r\nhi",
        " 2\r\nhi\r\n",
        "2\nhi\n0\n\n",
        "2;a=\"\r\"\r\nhi\r\n",
        "2\r\nhi\r\n0\r\nX T: 1\r\n\r\n",
    ] {
        cases.push(case(0, body, chunked(body)).but(SameAnswer));
    }
    cases.push(case(0, "garbage after a chunk", chunked("2\r\nhiX\r\n0\r\n\r\n")).but(Stricter));
    cases.push(
        case(
            0,
            "trailers too large",
            chunked(&format!("0\r\nX-T: {}\r\n\r\n", "a".repeat(62_000))),
        )
        .but(SameAnswer),
    );
    for host in ["a b", "a/b"] {
        cases.push(case(
            0,
            host,
            format!("GET /b HTTP/1.1\r\nHost: {host}\r\n\r\n"),
        ));
    }
    cases.push(case(0, "no host", "GET /b HTTP/1.1\r\n\r\n"));
    cases.push(case(0, "no version", "GET /b\r\n\r\n"));
    cases.push(case(0, "TLS", b"\x16\x03\x01\x00\x00garbage\r\n\r\n".to_vec()).but(Stricter));
    cases.push(case(
        0,
        "61 KiB",
        with(&format!("X: {}", "a".repeat(62_000))),
    ));
    cases.push(case(
        0,
        "61 KiB of path",
        request("GET", &format!("/b{}", "a".repeat(62_000)), ""),
    ));
    cases.push(case(0, "101 headers", with(&["X: a"; 100].join("\r\n"))));
    cases.push(case(
        0,
        "CONNECT with a body",
        "CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\nContent-Length: 2\r\n\r\nhi",
    ));
    cases.push(case(
        0,
        "upgrade not allowed",
        with("Upgrade: websocket\r\nConnection: Upgrade"),
    ));
    cases.push(case(
        0,
        "after a good one",
        request("GET", "/b1", "") + "BAD\r\n\r\n",
    ));
    cases.push(case(2, "escaped slash", request("GET", "/a%2fb", "")));
    cases.push(case(2, "escaped NUL", request("GET", "/a%00", "")));
    cases.push(case(3, "underscore", request("GET", "/b", "x_y: 1\r\n")));
    cases.push(case(
        3,
        "11 headers",
        request("GET", "/b", &"x: 1\r\n".repeat(10)),
    ));
    cases.push(case(
        3,
        "2 KiB",
        request("GET", "/b", &format!("x: {}\r\n", "a".repeat(2000))),
    ));
    cases
}

fn good_requests() -> Vec<Case> {
    let get = |path: &str, headers: &str| request("GET", path, headers);
    let post = |path: &str, headers: &str, body: &str| request("POST", path, headers) + body;
    let internal = "x-envoy-upstream-rq-timeout-ms: 500\r\nx-envoy-max-retries: 3\r\nx-envoy-retry-on: 5xx\r\nx-request-id: abc\r\n\
        x-forwarded-proto: https\r\nx-envoy-attempt-count: 7\r\nx-envoy-decorator-operation: d\r\n\
        x-envoy-downstream-service-cluster: c\r\nx-envoy-original-path: /o\r\nx-envoy-external-address: 1.1.1.1\r\n\
        x-envoy-internal: true\r\nx-envoy-ip-tags: 9\r\nx-envoy-foo: b\r\n";
    let forwarded = "x-forwarded-for: 9.9.9.9, 10.0.0.1\r\n";
    let mut cases = vec![
        case(0, "bare line feeds", "GET /b HTTP/1.1\nHost: a\n\n"),
        case(0, "empty lines first", format!("\r\n\r\n{}", get("/b", ""))),
        case(0, "absolute target", get("http://other.example/b?x", "")),
        case(
            0,
            "absolute target without path",
            get("http://other.example", ""),
        ),
        case(
            0,
            "empty values",
            get("/b", "X-E:\r\nX-F:   \r\nX-G:  v \t \r\nx_y: a\tb\r\n"),
        ),
        case(
            0,
            "odd characters in the path",
            get("/b\"<>\\^`{|}%zz%00", ""),
        ),
        case(0, "dots stay", get("/b/../x", "")),
        case(0, "body", post("/b", "Content-Length: 002\r\n", "hi")),
        case(
            0,
            "body with GET",
            get("/b", "Content-Length: 2\r\n") + "hi",
        ),
        case(0, "no body", post("/b", "", "")),
        case(0, "no body with OPTIONS", request("OPTIONS", "/b", "")),
        case(0, "no body with DELETE", request("DELETE", "/b", "")),
        case(
            0,
            "chunks",
            post(
                "/b",
                "Transfer-Encoding: Chunked\r\n",
                "2;a=b\r\nhi\r\n0;c\r\n\r\n",
            ),
        ),
        case(
            0,
            "trailers",
            post(
                "/b",
                "Transfer-Encoding: chunked\r\n",
                "2 \r\nhi\r\n0\r\nX-T: 1\r\n\r\n",
            ),
        ),
        case(
            0,
            "60 KB",
            get("/b", &format!("X: {}\r\n", "a".repeat(60_000))),
        ),
        case(0, "100 headers", get("/b", &"X: a\r\n".repeat(99))),
        case(
            0,
            "pipelined",
            get("/b1", "") + &get("/b2", "") + &get("/b3", ""),
        ),
        case(0, "close", get("/b", "Connection: close\r\n")),
        case(0, "proxy close", get("/b", "Proxy-Connection: close\r\n")),
        case(
            0,
            "hop by hop",
            get(
                "/b",
                "Connection: keep-alive, x-foo\r\nX-Foo: a\r\nKeep-Alive: 5\r\nTE: trailers\r\n\
            Upgrade: h2c\r\nProxy-Authorization: x\r\n",
            ),
        ),
        case(
            0,
            "h2c is overlooked",
            get(
                "/b",
                "Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: x\r\n",
            ),
        ),
        case(0, "other TE", get("/b", "TE: gzip\r\n")),
        case(
            0,
            "expectation",
            post("/b", "Expect: 100-continue\r\nContent-Length: 2\r\n", "hi"),
        ),
        case(
            0,
            "other expectation",
            post("/b", "Expect: 200-ok\r\nContent-Length: 2\r\n", "hi"),
        ),
        case(0, "external", get("/b", &format!("{internal}{forwarded}"))),
        case(
            0,
            "client certificate header",
            get("/b", "x-forwarded-client-cert: By=x\r\n"),
        ),
        case(0, "direct", get("/direct", "")),
        case(0, "direct with HEAD", request("HEAD", "/direct", "")),
        case(
            0,
            "direct with a body",
            post("/direct", "Content-Length: 2\r\n", "hi"),
        ),
        case(0, "redirect", get("/redirect?x", "")),
        case(0, "no cluster", get("/nocluster", "")),
        case(0, "no host", get("/empty", "")),
        case(0, "connection refused", get("/refused", "")),
        case(0, "breaker open", get("/overflow", "")),
        case(0, "timeout", get("/timeout?mode=silent", "")),
        case(0, "idle timeout of the route", get("/idle?mode=silent", "")),
        case(0, "per-try timeout", get("/pertry?mode=silent", "")),
        case(0, "retried 500", get("/retry5xx?mode=500", "")),
        case(
            0,
            "retried 500 with a body",
            post("/retry5xx?mode=500", "Content-Length: 2\r\n", "hi"),
        ),
        case(0, "retried reset", get("/retryreset?mode=reset", "")),
        case(
            0,
            "retried reset with a body",
            post(
                "/retryreset?mode=reset",
                "Transfer-Encoding: chunked\r\n",
                "2\r\nhi\r\n0\r\n\r\n",
            ),
        ),
        case(
            0,
            "not a connect failure",
            post("/retryconnect?mode=reset", "Content-Length: 2\r\n", "hi"),
        ),
        case(0, "500 is no gateway error", get("/gateway?mode=500", "")),
        case(0, "503 is a gateway error", get("/gateway?mode=503", "")),
        case(
            0,
            "reset",
            post("/b?mode=reset", "Content-Length: 2\r\n", "hi"),
        ),
        case(0, "rewrite", get("/rewrite/x?y=z", "")),
        case(
            0,
            "header operations",
            get("/headers?mode=dup", "x-old: 1\r\n"),
        ),
        case(1, "internal", get("/b", internal)),
        case(
            1,
            "behind a trusted proxy",
            get("/b", &format!("{internal}x-forwarded-for: 10.0.0.1\r\n")),
        ),
        case(1, "via and measures", get("/b?mode=hop", forwarded)),
        case(
            1,
            "retries asked for",
            get(
                "/b?mode=500",
                "x-envoy-retry-on: 5xx\r\nx-envoy-max-retries: 1\r\n",
            ),
        ),
        case(
            1,
            "timeout asked for",
            get("/b?mode=silent", "x-envoy-upstream-rq-timeout-ms: 100\r\n"),
        ),
        case(2, "canonical path", get("/a//b/../c%2e/%7e./d?x=/../", "")),
        case(2, "above the root", get("/../x\\y", "")),
        case(
            2,
            "characters to escape",
            get("/a\"<>`{}^|[]'!$&()*+,;=:@", ""),
        ),
        case(2, "port", "GET /x HTTP/1.1\r\nHost: a.example:80\r\n\r\n"),
        case(
            2,
            "port behind brackets",
            "GET /x HTTP/1.1\r\nHost: [::1]:80\r\n\r\n",
        ),
        case(3, "unescaped slashes", get("/a%2fb%5c..%2Fz", "")),
        case(3, "HTTP/1.0", "GET /b HTTP/1.0\r\nHost: a.example\r\n\r\n"),
        case(
            3,
            "HTTP/1.0 keep-alive",
            "GET /b HTTP/1.0\r\nHost: a.example\r\nConnection: keep-alive\r\n\r\n",
        ),
        case(3, "HTTP/1.0 without host", "GET / HTTP/1.0\r\n\r\n"),
        case(
            3,
            "HTTP/1.0 and chunks",
            "GET /?mode=chunked HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n",
        ),
        case(3, "server appended if absent", get("/b?mode=hop", "")),
        case(3, "two requests of two", get("/b1", "") + &get("/b2", "")),
        case(
            4,
            "edge",
            get("/b", &format!("{internal}{forwarded}x_y: 1\r\n")),
        ),
        case(4, "redirected slashes", get("/a%2fb", "")),
        case(
            4,
            "abort by header",
            get("/b", "x-want: 1\r\nx-envoy-fault-abort-request: 503\r\n"),
        ),
        case(
            4,
            "abort not wanted",
            get("/b", "x-want: 2\r\nx-envoy-fault-abort-request: 503\r\n"),
        ),
        case(
            4,
            "abort of no percent",
            get(
                "/b",
                "x-want: 1\r\nx-envoy-fault-abort-request: 503\r\n\
            x-envoy-fault-abort-request-percentage: 0\r\n",
            ),
        ),
        case(5, "abort", get("/b", "")),
        case(6, "stream idle", get("/b?mode=silent", "")),
        case(
            6,
            "request timeout",
            post("/b", "Content-Length: 5\r\n", "h"),
        ),
        case(7, "header timeout", "GET /b HT"),
    ];
    for mode in [
        "chunked", "close", "http10", "hop", "bad", "badcl", "both", "gzip", "extra", "204", "304",
        "100", "103", "big", "many", "lf", "dup",
    ] {
        cases.push(case(
            0,
            &format!("answer {mode}"),
            get(&format!("/b?mode={mode}"), ""),
        ));
    }
    for mode in ["ok", "chunked"] {
        cases.push(case(
            0,
            &format!("HEAD {mode}"),
            request("HEAD", &format!("/b?mode={mode}"), ""),
        ));
    }
    cases
}

/// What can be compared of a head: lines in no order, without what changes from run to run.
fn comparable(head: &str, body: &str) -> String {
    let mut lines = head.trim_end().split("\r\n");
    let first = lines.next().unwrap_or_default().to_owned();
    let mut rest: Vec<String> = lines
        .map(|line| match line.split_once(':') {
            Some(("date", value)) if value.ends_with("GMT") => "date: now".to_owned(),
            Some(("x-envoy-upstream-service-time", _)) => {
                "x-envoy-upstream-service-time: N".to_owned()
            }
            Some(("x-request-id", value)) if value.len() == 37 => "x-request-id: UUID".to_owned(),
            // What is left of the timeout for a retry.
            Some(("x-envoy-expected-rq-timeout-ms", value))
                if value == " 15000" || value.starts_with(" 14") =>
            {
                "x-envoy-expected-rq-timeout-ms: at most 15 s".to_owned()
            }
            _ => line.to_owned(),
        })
        .collect();
    rest.sort();
    format!("{first}\n  {}\n  {body}", rest.join("\n  "))
}

/// Everything that one case makes visible.
#[derive(PartialEq)]
struct Seen {
    answers: Vec<String>,
    closed: bool,
    upstream: Vec<String>,
}

fn run(proxy: &Proxy, upstream: &Upstream, case: &Case) -> Seen {
    upstream.take();
    let mut client = Client::connect(proxy.listeners[case.listener]);
    client.send(&case.bytes);
    let to_head = case.bytes.starts_with(b"HEAD");
    let requests = case
        .bytes
        .windows(11)
        .filter(|window| window.starts_with(b" HTTP/1.1\r\n"))
        .count()
        .max(1);
    let mut answers = Vec::new();
    let mut closed = false;
    while answers
        .iter()
        .filter(|a: &&String| !a.starts_with("HTTP/1.1 100"))
        .count()
        < requests.max(pipelined(case))
    {
        match client.answer(to_head) {
            Some((head, body)) => answers.push(comparable(&head, &body)),
            None => {
                closed = true;
                break;
            }
        }
    }
    let announced = answers
        .last()
        .is_some_and(|a| a.contains("connection: close"));
    closed |= announced && client.is_closed();
    if !closed {
        // The connection must still be good for another request.
        client.send(request("GET", "/direct", ""));
        let (head, body) = client.answer(false).unwrap_or_default();
        let answered = head.starts_with("HTTP/1.1 200") && body == "hello";
        closed = !(answered || head.contains("418"));
    }
    let messages = upstream.take();
    let upstream = messages.iter().map(|message| {
        let (head, body) = message.split_once("\r\n\r\n").unwrap_or((message, ""));
        comparable(head, body)
    });
    Seen {
        answers,
        closed,
        upstream: upstream.collect(),
    }
}

/// The one case whose second message is no request.
fn pipelined(case: &Case) -> usize {
    if case.bytes.ends_with(b"BAD\r\n\r\n") {
        2
    } else {
        1
    }
}

#[test]
fn answers_as_envoy_does() {
    let folder = tempfile::tempdir().unwrap();
    let upstream = Upstream::start();
    let refused = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let mut overflow = cluster("overflow", upstream.address);
    overflow["circuit_breakers"] =
        json!({"thresholds": [{"max_connections": 1, "max_pending_requests": 0}]});
    let empty =
        json!({"name": "empty", "type": "STATIC", "load_assignment": {"cluster_name": "empty"}});
    let clusters = [
        cluster("b", upstream.address),
        cluster("refused", refused),
        overflow,
        empty,
    ];
    let mosn = start(Kind::Mosn, folder.path(), &clusters, &managers());
    let envoy = start(Kind::Envoy, folder.path(), &clusters, &managers());

    let mut differences = String::new();
    for case in bad_requests().iter().chain(&good_requests()) {
        let ours = run(&mosn, &upstream, case);
        let theirs = run(&envoy, &upstream, case);
        let fine = match case.expect {
            Expect::Same => ours == theirs,
            Expect::SameAnswer => ours.answers == theirs.answers && ours.closed == theirs.closed,
            Expect::Stricter => {
                ours.answers.len() == 1
                    && ours.answers[0].starts_with("HTTP/1.1 400 ")
                    && ours.closed
            }
        };
        if !fine {
            let show = |seen: &Seen| {
                let texts = seen.answers.iter().chain(&seen.upstream);
                let texts: Vec<String> =
                    texts.map(|text| text.chars().take(900).collect()).collect();
                format!("closed: {}\n{}", seen.closed, texts.join("\n"))
            };
            differences += &format!(
                "== {}\n-- mosn: {}\n-- envoy: {}\n",
                case.name,
                show(&ours),
                show(&theirs)
            );
        }
    }
    assert!(differences.is_empty(), "{differences}");

    // Every request is over: nothing may be left of it in a gauge.
    for name in [
        "http.in.downstream_rq_active",
        "cluster.b.upstream_rq_active",
        "cluster.b.upstream_rq_pending_active",
    ] {
        mosn.wait_stat(name, 0);
    }
    mosn.wait_stat("http.in.downstream_cx_active", 0);
    assert_eq!(compare_counters(&mosn, &envoy), "");
    let log = |kind: &str| {
        std::fs::read_to_string(folder.path().join(format!("{kind}.access"))).unwrap_or_default()
    };
    let lines = |kind: &str| log(kind).lines().count() as u64;
    let logged = || (lines("mosn") == mosn.stat("http.in.downstream_rq_total")).then_some(());
    wait::until("each request has its line in the access log", LIMIT, logged).unwrap();
}

/// Counters that the same requests must have left the same in both. Requests that only one of the two refuses are few and of
/// known kind, so the counters compared are those that they do not touch.
fn compare_counters(mosn: &Proxy, envoy: &Proxy) -> String {
    let names = [
        "cluster.b.upstream_rq_retry",
        "cluster.b.upstream_rq_timeout",
        "cluster.b.upstream_rq_per_try_timeout",
        "cluster.b.upstream_rq_504",
        "cluster.refused.upstream_cx_connect_fail",
        "cluster.refused.upstream_rq_503",
        "cluster.overflow.upstream_rq_pending_overflow",
        "cluster.empty.upstream_rq_503",
        "http.in.downstream_rq_idle_timeout",
        "http.in.downstream_rq_header_timeout",
        "http.in.downstream_rq_timeout",
        "http.in.no_route",
        "http.in.no_cluster",
        "http.in.downstream_rq_redirected_with_normalized_path",
        "http.in.fault.aborts_injected",
        "http.in.fault.delays_injected",
    ];
    names
        .iter()
        .map(|name| (name, mosn.stat(name), envoy.stat(name)))
        .filter(|(_, ours, theirs)| ours != theirs)
        .map(|(name, ours, theirs)| format!("{name}: {ours}, Envoy {theirs}\n"))
        .collect()
}
