//! HTTP access logs beside the real Envoy's: the same bootstrap, the same requests, and then the same lines.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use testkit::http::{Server, get, request};
use testkit::process::Process;
use testkit::{net, programs, wait};

const LIMIT: Duration = Duration::from_secs(20);

/// Every operator whose value is the same in two runs. A line starts with the name of its request.
const FORMAT: &str = "%REQ(X-CASE)% %REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %REQ(:PATH):9% %REQ(:AUTHORITY)% \
    %REQ(X-NONE?USER-AGENT)% %REQ(X-NONE)% %PROTOCOL% %UPSTREAM_PROTOCOL% %RESPONSE_CODE% %RESPONSE_CODE_DETAILS% \
    %CONNECTION_TERMINATION_DETAILS% %RESPONSE_FLAGS% %RESPONSE_FLAGS_LONG% %BYTES_RECEIVED% %BYTES_SENT% %ROUTE_NAME% \
    %UPSTREAM_CLUSTER% %UPSTREAM_CLUSTER_RAW% %UPSTREAM_HOST% %UPSTREAM_HOST_NAME% %UPSTREAM_HOST_NAME_WITHOUT_PORT% \
    %UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %UPSTREAM_REMOTE_PORT% %UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT% \
    %UPSTREAM_REQUEST_ATTEMPT_COUNT% %UPSTREAM_TRANSPORT_FAILURE_REASON% %DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% \
    %DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT(8)% %DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT% %RESP(X-UP)% %RESP(:STATUS)% \
    %TRAILER(X)% %PATH% %PATH(NQ)% %PATH(WQ:ORIG)% %PATH(WQ:PATH)% %QUERY_PARAM(a)% %QUERY_PARAMS% \
    %RESPONSE_TRAILERS_BYTES% %REQUESTED_SERVER_NAME% %ACCESS_LOG_TYPE% %GRPC_STATUS% \
    %DYNAMIC_METADATA(a:b)% %VIRTUAL_CLUSTER_NAME% %ENVIRONMENT(HOME)% %HOSTNAME% 100%%\n";

/// A JSON log with the operators whose types matter.
fn json_format() -> Value {
    json!({
        "case": "%REQ(X-CASE)%", "code": "%RESPONSE_CODE%", "details": "%RESPONSE_CODE_DETAILS%", "flags": "%RESPONSE_FLAGS%",
        "in": "%BYTES_RECEIVED%", "out": "%BYTES_SENT%", "host": "%UPSTREAM_HOST%", "port": "%UPSTREAM_REMOTE_PORT%",
        "none": "%REQ(X-NONE)%", "mixed": "a%BYTES_SENT%b%REQ(X-NONE)%", "nested": {"path": "%PATH%", "list": ["%PROTOCOL%", 1, true]},
        "tries": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%", "quoted": "%REQ(X-QUOTED)%",
    })
}

fn socket(address: SocketAddr) -> Value {
    json!({"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}})
}

fn file_log(path: &Path, format: &Value, filter: &Value) -> Value {
    json!({"name": "file", "filter": filter, "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
        "path": path, "log_format": format,
    }})
}

fn bootstrap(
    listener: SocketAddr,
    admin: SocketAddr,
    upstream: SocketAddr,
    refused: SocketAddr,
    folder: &Path,
) -> Value {
    let cluster = |name: &str, endpoints: &[SocketAddr]| {
        let endpoints: Vec<_> = endpoints
            .iter()
            .map(|address| json!({"endpoint": {"address": socket(*address)}}))
            .collect();
        json!({"name": name, "connect_timeout": "1s", "type": "STATIC",
            "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]}})
    };
    let route = |name: &str, prefix: &str, key: &str, action: Value| json!({"name": name, "match": {"prefix": prefix}, key: action});
    let everything = json!({"or_filter": {"filters": [{"not_health_check_filter": {}}, {"response_flag_filter": {}}]}});
    let errors = json!({"status_code_filter": {"comparison": {"op": "GE", "value": {"default_value": 500, "runtime_key": "none"}}}});
    let text = json!({"text_format_source": {"inline_string": FORMAT}});
    let short = json!({"text_format_source": {"inline_string": "%REQ(X-CASE)% %RESPONSE_CODE%\n"}, "omit_empty_values": true});
    json!({
        "admin": {"address": socket(admin)},
        "node": {"id": "n1", "cluster": "c1"},
        "static_resources": {
            "clusters": [cluster("up", &[upstream]), cluster("refused", &[refused]), cluster("empty", &[])],
            "listeners": [{"name": "l1", "address": socket(listener), "filter_chains": [{"name": "chain", "filters": [{
                "name": "envoy.filters.network.http_connection_manager", "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                    "stat_prefix": "in",
                    "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}],
                    "route_config": {"name": "r", "virtual_hosts": [{"name": "v", "domains": ["known"], "routes": [
                        route("direct", "/direct", "direct_response", json!({"status": 418, "body": {"inline_string": "tea"}})),
                        route("away", "/away", "redirect", json!({"path_redirect": "/there"})),
                        route("refused", "/refused", "route", json!({"cluster": "refused"})),
                        route("empty", "/empty", "route", json!({"cluster": "empty"})),
                        route("missing", "/missing", "route", json!({"cluster_header": "x-cluster"})),
                        route("rewritten", "/old/", "route", json!({"cluster": "up", "prefix_rewrite": "/new/"})),
                        route("", "/plain", "route", json!({"cluster": "up"})),
                    ]}]},
                    "access_log": [
                        file_log(&folder.join("text"), &text, &everything),
                        file_log(&folder.join("json"), &json!({"json_format": json_format()}), &everything),
                        file_log(&folder.join("errors"), &short, &errors),
                    ],
                },
            }]}]}],
        },
    })
}

fn start(
    mut command: Command,
    name: &str,
    folder: &Path,
    upstream: SocketAddr,
    refused: SocketAddr,
) -> (Process, SocketAddr) {
    let free = || SocketAddr::from(([127, 0, 0, 1], net::free_port().unwrap()));
    let (listener, admin) = (free(), free());
    let own = folder.join(name);
    std::fs::create_dir(&own).unwrap();
    let config = own.join("bootstrap.yaml");
    std::fs::write(
        &config,
        bootstrap(listener, admin, upstream, refused, &own).to_string(),
    )
    .unwrap();
    command.arg("-c").arg(&config).args([
        "--concurrency",
        "1",
        "-l",
        "warning",
        "--file-flush-interval-msec",
        "20",
    ]);
    let process = Process::start(name, &mut command, folder).unwrap();
    let live = || {
        get(admin, "/ready")
            .ok()
            .filter(|answer| answer.text() == "LIVE\n")
    };
    wait::until(&format!("{name} is live"), LIMIT, live).unwrap();
    (process, listener)
}

/// Name, method, host, path, body and more headers.
type Case = (
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    &'static [u8],
    &'static [(&'static str, &'static str)],
);

const CASES: [Case; 10] = [
    (
        "plain",
        "GET",
        "known",
        "/plain?a=1&b=2",
        b"",
        &[("user-agent", "test")],
    ),
    (
        "body",
        "POST",
        "known",
        "/plain",
        b"hello",
        &[("x-quoted", "a\"b\\c\td")],
    ),
    ("rewritten", "GET", "known", "/old/x?a=%20", b"", &[]),
    ("direct", "GET", "known", "/direct", b"", &[]),
    ("away", "GET", "known", "/away", b"", &[]),
    ("no-route", "GET", "known", "/nowhere", b"", &[]),
    ("no-host", "GET", "unknown", "/plain", b"", &[]),
    ("refused", "GET", "known", "/refused", b"", &[]),
    ("empty", "GET", "known", "/empty", b"", &[]),
    (
        "grpc",
        "POST",
        "known",
        "/plain",
        b"12345",
        &[("content-type", "application/grpc")],
    ),
];

#[test]
fn logs_requests_as_envoy_does() {
    let folder = tempfile::tempdir().unwrap();
    let upstream = SocketAddr::from(([127, 0, 0, 1], net::free_port().unwrap()));
    let _server = Server::start(upstream, "up").unwrap();
    // Bound but never listened on, so that nobody else gets it.
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let refused = SocketAddr::from(([127, 0, 0, 9], held.local_addr().unwrap().port()));
    let mosn = start(
        Command::new(env!("CARGO_BIN_EXE_mosn")),
        "mosn",
        folder.path(),
        upstream,
        refused,
    );
    let mut envoy = Command::new(programs::envoy().unwrap());
    envoy.arg("--disable-hot-restart");
    let envoy = start(envoy, "envoy", folder.path(), upstream, refused);

    for (name, method, host, path, body, more) in CASES {
        let headers: Vec<_> = [("x-case", name), ("host", host)]
            .into_iter()
            .chain(more.iter().copied())
            .collect();
        let [ours, theirs] = [&mosn, &envoy]
            .map(|(_, listener)| request(*listener, method, path, &headers, body).unwrap());
        assert_eq!(ours.status, theirs.status, "{name}");
    }
    let lines = |proxy: &str, log: &str, count: usize| -> Vec<String> {
        wait::until(&format!("{count} lines of {proxy}'s {log}"), LIMIT, || {
            let text = std::fs::read_to_string(folder.path().join(proxy).join(log)).ok()?;
            (text.lines().count() == count && text.ends_with('\n'))
                .then(|| text.lines().map(str::to_owned).collect())
        })
        .unwrap()
    };
    let mut different = Vec::new();
    for (log, count) in [("text", CASES.len()), ("json", CASES.len()), ("errors", 2)] {
        for (ours, theirs) in lines("mosn", log, count)
            .into_iter()
            .zip(lines("envoy", log, count))
        {
            if ours != theirs {
                different.push([ours, theirs]);
            }
        }
    }
    assert!(different.is_empty(), "{different:#?}");
}
