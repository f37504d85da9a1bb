//! The admin beside the real Envoy's: the same bootstrap in both, the same requests, and what may differ written down.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use testkit::http::{Answer, get, request};
use testkit::process::Process;
use testkit::{net, programs, wait};

const LIMIT: Duration = Duration::from_secs(20);

/// One of the two, running.
struct Proxy {
    process: Process,
    admin: SocketAddr,
    listener: SocketAddr,
    http: SocketAddr,
}

/// An upstream that answers what it gets.
fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || {
                let mut copy = stream.try_clone().unwrap();
                // The caller may break off.
                let _ = std::io::copy(&mut stream, &mut copy);
            });
        }
    });
    address
}

fn socket(address: SocketAddr) -> Value {
    json!({"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}})
}

fn bootstrap([admin, listener, http]: [SocketAddr; 3], upstream: SocketAddr, log: &Path) -> Value {
    json!({
        "admin": {"address": socket(admin)},
        "node": {"id": "n1", "cluster": "c1"},
        "static_resources": {
            "clusters": [{
                "name": "up", "connect_timeout": "1s", "type": "STATIC",
                "load_assignment": {"cluster_name": "up", "endpoints": [{
                    "locality": {"region": "r", "zone": "z"},
                    "lb_endpoints": [{"endpoint": {"address": socket(upstream)}, "load_balancing_weight": 3}],
                }]},
            }, {
                "name": "web", "connect_timeout": "1s", "type": "STATIC",
                "load_assignment": {"cluster_name": "web", "endpoints": [{
                    "lb_endpoints": [{"endpoint": {"address": socket(admin)}}],
                }]},
            }],
            "listeners": [{
                "name": "l1", "address": socket(listener), "traffic_direction": "INBOUND",
                "filter_chains": [{"filters": [{"name": "envoy.filters.network.tcp_proxy", "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                    "stat_prefix": "in", "cluster": "up",
                    "access_log": [{"name": "file", "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
                        "path": log, "log_format": {"text_format_source": {"inline_string": TCP_FORMAT}},
                    }}],
                }}]}],
            }, {
                "name": "l2", "address": socket(http),
                "filter_chains": [{"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                    "stat_prefix": "ing",
                    "route_config": {"name": "r", "virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [
                        {"match": {"prefix": "/direct"}, "direct_response": {"status": 404}},
                        {"match": {"prefix": "/"}, "route": {"cluster": "web"}},
                    ]}]},
                    "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}],
                }}]}],
            }],
        },
    })
}

/// What a line of a TCP log says that does not change from run to run.
const TCP_FORMAT: &str = "%PROTOCOL% %RESPONSE_CODE% %RESPONSE_CODE_DETAILS% %RESPONSE_FLAGS% %RESPONSE_FLAGS_LONG% \
    %BYTES_RECEIVED% %BYTES_SENT% %UPSTREAM_CLUSTER% %UPSTREAM_CLUSTER_RAW% %UPSTREAM_HOST% %UPSTREAM_REMOTE_PORT% \
    %UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT% %DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% \
    %DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT(8)% %DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT% %ROUTE_NAME% \
    %REQ(:METHOD)% %RESP(X)% %TRAILER(X)% %REQUEST_DURATION% %RESPONSE_DURATION% %REQUEST_HEADERS_BYTES% \
    %REQUESTED_SERVER_NAME% %FILTER_CHAIN_NAME% %UPSTREAM_PROTOCOL% %ACCESS_LOG_TYPE% %DYNAMIC_METADATA(a)% 100%%\n";

fn start(command: &mut Command, name: &str, folder: &Path, upstream: SocketAddr) -> Proxy {
    let free = || SocketAddr::from(([127, 0, 0, 1], net::free_port().unwrap()));
    let ports @ [admin, listener, http] = [free(), free(), free()];
    let config = folder.join(format!("{name}.yaml"));
    let log = folder.join(format!("{name}.access"));
    std::fs::write(&config, bootstrap(ports, upstream, &log).to_string()).unwrap();
    command.arg("-c").arg(&config).args([
        "--concurrency",
        "1",
        "-l",
        "warning",
        "--file-flush-interval-msec",
        "20",
    ]);
    let process = Process::start(name, command, folder).unwrap();
    let live = || {
        get(admin, "/ready")
            .ok()
            .filter(|answer| answer.text() == "LIVE\n")
    };
    wait::until(&format!("{name} is live"), LIMIT, live).unwrap();
    Proxy {
        process,
        admin,
        listener,
        http,
    }
}

/// Both, after one call of 5 bytes, one HTTP request and one that is answered at once, through each.
fn both(folder: &Path) -> (Proxy, Proxy) {
    let upstream = echo();
    let mosn = start(
        &mut Command::new(env!("CARGO_BIN_EXE_mosn")),
        "mosn",
        folder,
        upstream,
    );
    let mut envoy = Command::new(programs::envoy().unwrap());
    envoy.arg("--disable-hot-restart");
    let envoy = start(&mut envoy, "envoy", folder, upstream);
    for proxy in [&mosn, &envoy] {
        let mut stream = TcpStream::connect(proxy.listener).unwrap();
        stream.write_all(b"hello").unwrap();
        let mut answer = [0; 5];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(get(proxy.http, "/ready").unwrap().text(), "LIVE\n");
        assert_eq!(get(proxy.http, "/direct").unwrap().status, 404);
    }
    (mosn, envoy)
}

fn seen(answer: &Answer) -> (u16, String, String) {
    (
        answer.status,
        answer.header("content-type").unwrap_or_default().to_owned(),
        answer.text(),
    )
}

/// Ports are the one thing in which the two bootstraps differ.
fn without_ports(proxy: &Proxy, text: &str) -> String {
    text.replace(&proxy.admin.port().to_string(), "10001")
        .replace(&proxy.listener.port().to_string(), "10002")
        .replace(&proxy.http.port().to_string(), "10003")
}

/// Every path through a JSON value, without values and with lists taken as one.
fn shape(value: &Value, at: &str, into: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => fields
            .iter()
            .for_each(|(key, value)| shape(value, &format!("{at}.{key}"), into)),
        Value::Array(items) => items
            .iter()
            .for_each(|item| shape(item, &format!("{at}[]"), into)),
        _ => {
            into.insert(at.to_owned());
        }
    }
}

fn shape_of(answer: &Answer) -> BTreeSet<String> {
    let mut into = BTreeSet::new();
    shape(&answer.json().unwrap(), "", &mut into);
    into
}

#[test]
fn answers_as_envoy_does() {
    let folder = tempfile::tempdir().unwrap();
    let (mosn, envoy) = both(folder.path());
    closed(&mosn);
    closed(&envoy);
    for path in [
        "/ready",
        "/certs",
        "/runtime",
        "/init_dump",
        "/hot_restart_version",
        "/listeners",
        "/listeners?format=json",
        "/config_dump?resource=static_clusters",
        "/config_dump?resource=static_listeners&name_regex=nothing",
        "/config_dump?resource=foo",
        "/config_dump?resource=bootstrap",
        "/stats?filter=^cluster.up.upstream_cx_total$",
        "/stats?filter=cluster.up.upstream_cx_total&format=json",
        "/stats?type=Foo",
        "/clusters?filter=(",
        "/clusters?filter=nothing",
        "/quitquitquit",
        "/healthcheck/fail",
        "/drain_listeners",
        "/logging",
        "/stats?filter=membership_total&type=Gauges",
        "/stats?filter=^listener.*worker&type=TextReadouts",
        "/stats?format=prometheus&filter=cluster.up.upstream_cx_total",
        "/clusters",
    ] {
        let [ours, theirs] = [&mosn, &envoy].map(|proxy| {
            let (status, kind, text) = seen(&get(proxy.admin, path).unwrap());
            (status, kind, undated(&without_ports(proxy, &text)))
        });
        assert_eq!((ours.0, &ours.1), (theirs.0, &theirs.1), "{path}");
        if ours.1 == "application/json" {
            // Envoy writes some keys in no certain order.
            let json = |text: &str| serde_json::from_str::<Value>(text).unwrap();
            assert_eq!(json(&ours.2), json(&theirs.2), "{path}");
        } else {
            assert_eq!(ours.2, theirs.2, "{path}");
        }
    }
    // What is wrong in a regular expression is said in other words by another library.
    for path in ["/stats?filter=(", "/config_dump?name_regex=("] {
        let [ours, theirs] = [&mosn, &envoy].map(|proxy| get(proxy.admin, path).unwrap());
        assert_eq!(
            (ours.status, ours.header("content-type")),
            (theirs.status, theirs.header("content-type")),
            "{path}"
        );
    }
    for path in [
        "/clusters?format=json",
        "/config_dump?resource=static_endpoint_configs&include_eds",
    ] {
        let [ours, theirs] =
            [&mosn, &envoy].map(|proxy| shape_of(&get(proxy.admin, path).unwrap()));
        let ours: Vec<_> = ours.symmetric_difference(&theirs).collect();
        // Envoy writes a weight of 0 for the locality, and we a host name and priority that are empty.
        let known = ["hostname", "load_balancing_weight", "priority"];
        assert!(
            ours.iter()
                .all(|path| known.iter().any(|known| path.ends_with(known))),
            "{path}: {ours:?}"
        );
    }
    let [ours, theirs] = [&mosn, &envoy].map(|proxy| {
        get(proxy.admin, "/config_dump?include_eds")
            .unwrap()
            .json()
            .unwrap()
    });
    let sections = |dump: &Value| -> Vec<_> {
        dump["configs"]
            .as_array()
            .unwrap()
            .iter()
            .map(|section| section["@type"].clone())
            .collect()
    };
    assert_eq!(sections(&ours), sections(&theirs));
    assert_eq!(get(mosn.admin, "/nope").unwrap().status, 404);
}

/// Waits until the connection of [`both`] is closed and counted.
fn closed(proxy: &Proxy) {
    let path = "/stats?filter=^cluster.up.upstream_cx_active$";
    wait::until("the connection's end", LIMIT, || {
        (get(proxy.admin, path).ok()?.text() == "cluster.up.upstream_cx_active: 0\n").then_some(())
    })
    .unwrap();
}

/// Without the times in a config dump.
fn undated(text: &str) -> String {
    const KEY: &str = "\"last_updated\": \"";
    let undated = |line: &str| match line
        .split_once(KEY)
        .and_then(|(before, time)| Some((before, time.split_once('"')?.1)))
    {
        Some((before, after)) => format!("{before}{KEY}\"{after}\n"),
        None => format!("{line}\n"),
    };
    text.lines().map(undated).collect()
}

#[test]
fn changes_what_envoy_changes() {
    let folder = tempfile::tempdir().unwrap();
    let (mosn, envoy) = both(folder.path());
    let post =
        |proxy: &Proxy, path: &str| seen(&request(proxy.admin, "POST", path, &[], &[]).unwrap());
    for (change, look) in [
        ("/healthcheck/fail", "/ready"),
        ("/healthcheck/ok", "/ready"),
        (
            "/reset_counters",
            "/stats?filter=^listener_manager.listener_added$",
        ),
        ("/reopen_logs", "/ready"),
        ("/drain_listeners?graceful&skip_exit", "/listeners"),
    ] {
        assert_eq!(post(&mosn, change), post(&envoy, change), "{change}");
        let [ours, theirs] = [&mosn, &envoy]
            .map(|proxy| without_ports(proxy, &get(proxy.admin, look).unwrap().text()));
        assert_eq!(ours, theirs, "{look} after {change}");
    }
    for (change, status, start) in [
        ("/logging?level=debug", 200, "active loggers:\n"),
        (
            "/logging?level=loud",
            400,
            "error: unknown logger level\n\nusage: /logging?<name>=<level>",
        ),
        ("/logging?nope=info", 400, "error: unknown logger name\n\n"),
        (
            "/logging?paths=http",
            400,
            "error: empty logger name or empty logger level\n\n",
        ),
        (
            "/logging?paths=http:info,admin:warning",
            200,
            "active loggers:\n",
        ),
    ] {
        for proxy in [&mosn, &envoy] {
            let (got, _, text) = post(proxy, change);
            assert_eq!(got, status, "{change}");
            assert!(text.starts_with(start), "{change}: {text}");
        }
    }
    let levels = post(&mosn, "/logging").2;
    assert!(
        levels.contains("\n  admin: warning\n") && levels.contains("\n  http: info\n"),
        "{levels}"
    );
    for mut proxy in [mosn, envoy] {
        assert_eq!(post(&proxy, "/drain_listeners?inboundonly").2, "OK\n");
        wait::until("the listener's end", LIMIT, || {
            TcpStream::connect(proxy.listener).err()
        })
        .unwrap();
        assert_eq!(post(&proxy, "/quitquitquit").2, "OK\n");
        wait::until("the end", LIMIT, || proxy.process.check().err()).unwrap();
    }
}

#[test]
fn uses_envoys_names_of_statistics() {
    let folder = tempfile::tempdir().unwrap();
    let (mosn, envoy) = both(folder.path());
    let names = |proxy: &Proxy| -> BTreeSet<String> {
        let text = without_ports(proxy, &get(proxy.admin, "/stats").unwrap().text());
        text.lines()
            .filter_map(|line| Some(line.split_once(": ")?.0.to_owned()))
            .collect()
    };
    let (ours, theirs) = (names(&mosn), names(&envoy));
    // Names of Envoy's that appear only with traffic that this test does not have.
    let later = [
        "upstream_rq_1xx",
        "upstream_rq_2xx",
        "upstream_rq_3xx",
        "upstream_rq_4xx",
        "upstream_rq_5xx",
        "upstream_rq_time",
    ];
    let own = [
        "filesystem.write_dropped",
        "accept_error",
        "cluster.up.upstream_rq_completed",
    ];
    let unknown: Vec<_> = ours
        .difference(&theirs)
        .filter(|name| {
            !own.iter().any(|own| name.ends_with(own))
                && !later.iter().any(|later| name.ends_with(later))
        })
        .collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    assert!(ours.len() > 200, "{}", ours.len());
}

#[test]
fn writes_prometheus_as_envoy_does() {
    let folder = tempfile::tempdir().unwrap();
    let (mosn, envoy) = both(folder.path());
    let series = |proxy: &Proxy| {
        let answer = get(proxy.admin, "/stats/prometheus").unwrap();
        check_exposition(&without_ports(proxy, &answer.text()))
    };
    let (ours, theirs) = (series(&mosn), series(&envoy));
    let own = [
        "envoy_filesystem_write_dropped",
        "envoy_listener_accept_error",
        "envoy_cluster_upstream_rq",
    ];
    let unknown: Vec<_> = ours
        .difference(&theirs)
        .filter(|name| !own.iter().any(|own| name.starts_with(own)))
        .collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    assert!(ours.contains("envoy_cluster_upstream_cx_length_ms_bucket{envoy_cluster_name=\"up\",le=\"+Inf\"} histogram"));
}

/// Reads the text format strictly (<https://prometheus.io/docs/instrumenting/exposition_formats/>) and gives each series
/// with its type.
fn check_exposition(text: &str) -> BTreeSet<String> {
    let mut series = BTreeSet::new();
    let mut families = BTreeSet::new();
    let (mut family, mut kind) = (String::new(), String::new());
    let mut last_bucket = (String::new(), 0u64);
    assert!(text.ends_with('\n'));
    for line in text.lines() {
        if let Some(declared) = line.strip_prefix("# TYPE ") {
            let (name, declared) = declared.split_once(' ').expect(line);
            assert!(families.insert(name.to_owned()), "{line}: declared twice");
            assert!(
                ["counter", "gauge", "histogram"].contains(&declared),
                "{line}"
            );
            (family, kind) = (name.to_owned(), declared.to_owned());
            continue;
        }
        let (name, rest) = line.split_once('{').expect(line);
        let (labels, value) = rest.rsplit_once("} ").expect(line);
        let part = name.strip_prefix(&family).expect(line);
        let parts: &[&str] = if kind == "histogram" {
            &["_bucket", "_sum", "_count"]
        } else {
            &[""]
        };
        assert!(parts.contains(&part), "{line}: outside of its family");
        assert!(
            name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'),
            "{line}"
        );
        let value: u64 = value.parse().expect(line);
        let labels = check_labels(labels);
        if let ("_bucket", Some((le, others))) = (part, labels.split_last()) {
            assert!(le.starts_with("le="), "{line}");
            let of = format!("{name}{others:?}");
            assert!(
                last_bucket.0 != of || last_bucket.1 <= value,
                "{line}: buckets must not shrink"
            );
            last_bucket = (of, value);
        }
        assert!(
            series.insert(format!("{name}{{{}}} {kind}", labels.join(","))),
            "{line}: written twice"
        );
    }
    series
}

fn check_labels(mut text: &str) -> Vec<String> {
    let mut labels = Vec::new();
    while !text.is_empty() {
        let (name, rest) = text.split_once("=\"").expect(text);
        assert!(
            name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'),
            "{text}"
        );
        let mut escaped = false;
        let end = rest.find(|c| {
            let end = c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            end
        });
        let (value, after) = rest.split_at(end.expect(text));
        labels.push(format!("{name}=\"{value}\""));
        text = after.strip_prefix('"').expect(text);
        text = text.strip_prefix(',').unwrap_or(text);
    }
    labels
}

/// What istioctl and others decode into Envoy's messages must fit them, field by field.
#[test]
fn json_is_that_of_envoys_messages() {
    use api::envoy::admin::v3::{Clusters, ConfigDump, Listeners, Memory, ServerInfo};
    fn check<M: prost::Message + prost::Name + Default>(proxy: &Proxy, path: &str) -> M {
        let json = get(proxy.admin, path).unwrap().json().unwrap();
        api::json::from_value(&json).unwrap_or_else(|error| panic!("{path}: {error}"))
    }
    let folder = tempfile::tempdir().unwrap();
    let (mosn, _envoy) = both(folder.path());
    let clusters: Clusters = check(&mosn, "/clusters?format=json");
    assert_eq!(clusters.cluster_statuses[0].host_statuses[0].weight, 3);
    assert_eq!(
        check::<ConfigDump>(&mosn, "/config_dump?include_eds")
            .configs
            .len(),
        7
    );
    assert_eq!(
        check::<Listeners>(&mosn, "/listeners?format=json").listener_statuses[0].name,
        "l1"
    );
    assert_eq!(
        check::<ServerInfo>(&mosn, "/server_info")
            .command_line_options
            .unwrap()
            .concurrency,
        1
    );
    assert!(check::<Memory>(&mosn, "/memory").total_physical_bytes > 1 << 20);
}

#[test]
fn logs_a_connection_as_envoy_does() {
    let folder = tempfile::tempdir().unwrap();
    let (_mosn, _envoy) = both(folder.path());
    let line = |name: &str| {
        wait::until("a line", LIMIT, || {
            let text =
                std::fs::read_to_string(folder.path().join(format!("{name}.access"))).ok()?;
            text.ends_with('\n').then_some(text)
        })
        .unwrap()
    };
    assert_eq!(line("mosn"), line("envoy"));
}
