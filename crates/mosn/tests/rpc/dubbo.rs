//! Dubbo calls through mosn, at the sockets.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use wire::dubbo::message::{Invocation, Reply};
use wire::dubbo::write::{Kind, write_frame};
use wire::dubbo::{self, Call, Head, Serialization, status};
use wire::hessian2::Value as Hessian;

use crate::support::{Conn, LIMIT, Mosn, Server, cluster, endpoint, heartbeats, to_a, with};

fn invocation(method: &str, argument: &str, attachments: &[(&str, &str)]) -> Invocation {
    let mut all = vec![("path", "demo.Svc"), ("interface", "demo.Svc")];
    all.extend_from_slice(attachments);
    let own = |text: &str| text.to_owned();
    Invocation {
        path: own("demo.Svc"),
        version: own("0.0.0"),
        method: own(method),
        descriptor: own("Ljava/lang/String;"),
        args: vec![argument.into()],
        attachments: all
            .into_iter()
            .map(|(key, value)| (own(key), own(value)))
            .collect(),
    }
}

fn frame_of(invocation: &Invocation, kind: Kind, id: u64) -> Vec<u8> {
    let mut out = Vec::new();
    invocation.write(&mut out, kind, id);
    out
}

fn call(id: u64) -> Vec<u8> {
    let argument = format!("arg-{id}");
    frame_of(
        &invocation("hello", &argument, &[("timeout", "3000")]),
        Kind::Call,
        id,
    )
}

fn head(frame: &[u8]) -> Head {
    Head::parse(frame).expect("a head")
}

fn reply(frame: &[u8]) -> Reply {
    Reply::read(frame, &head(frame)).expect("a reply")
}

fn text(frame: &[u8]) -> String {
    match reply(frame) {
        Reply::Value(Hessian::String(text)) => text,
        other => panic!("{other:?}"),
    }
}

fn echo(frame: &[u8]) -> Vec<u8> {
    let head = head(frame);
    let call = Invocation::read(frame, &head).expect("a call");
    let mut out = Vec::new();
    Reply::Value(call.args[0].clone()).write(&mut out, head.id, &[("dubbo", "2.0.2")]);
    out
}

fn echo_server() -> Server {
    Server::start(dubbo::next_frame, |frame, stream| {
        let head = head(frame);
        let mut out = Vec::new();
        if head.is_heartbeat(frame) && head.is_request() {
            dubbo::write_heartbeat_ack(&mut out, &head);
        } else if head.is_request() && head.is_two_way() {
            out = echo(frame);
        }
        let _ = stream.write_all(&out);
    })
}

fn to(server: &Server) -> Vec<Value> {
    vec![cluster("a", &[endpoint(server.address, &json!({}))])]
}

fn connect(mosn: &Mosn) -> Conn {
    Conn::connect(mosn.address, dubbo::next_frame)
}

#[test]
fn callers_with_equal_ids_get_their_own_answers_over_one_connection() {
    let server = echo_server();
    let mosn = Mosn::start(&to(&server), &to_a(), json!({}));
    let mut a = connect(&mosn);
    let mut b = connect(&mosn);
    for round in 0..50 {
        // Ids of real consumers begin anywhere and go through negative numbers.
        let base = (u64::MAX - 5).wrapping_add(round * 10);
        let batch: Vec<u8> = (0..10).flat_map(|id| call(base.wrapping_add(id))).collect();
        a.send(&batch);
        b.send(&batch);
        for conn in [&mut a, &mut b] {
            for _ in 0..10 {
                let frame = conn.expect();
                assert_eq!(text(&frame), format!("arg-{}", head(&frame).id));
            }
        }
    }
    assert_eq!(server.connections(), 1);
    assert_eq!(mosn.stat("rpc.t.downstream_rq_ok"), 1000);
    mosn.assert_nothing_leaks();
}

#[test]
fn outcomes_are_told_apart_and_exceptions_pass_unchanged() {
    let server = Server::start(dubbo::next_frame, |frame, stream| {
        let head = head(frame);
        let call = Invocation::read(frame, &head).expect("a call");
        let answer = match call.method.as_str() {
            "throws" => Reply::exception("java.lang.IllegalStateException", "bang"),
            "fails" => Reply::Failed(status::SERVICE_ERROR, "no such service".into()),
            _ => Reply::Value(Hessian::Null),
        };
        let mut out = Vec::new();
        answer.write(&mut out, head.id, &[]);
        stream.write_all(&out).expect("answered");
    });
    let mosn = Mosn::start(&to(&server), &to_a(), json!({}));
    let mut conn = connect(&mosn);
    for (id, method) in ["throws", "fails", "null"].into_iter().enumerate() {
        conn.send(&frame_of(
            &invocation(method, "x", &[]),
            Kind::Call,
            id as u64,
        ));
        let frame = conn.expect();
        match (method, reply(&frame)) {
            ("throws", Reply::Exception(value)) => {
                assert_eq!(value.get("detailMessage"), Some(&Hessian::from("bang")));
            }
            ("fails", Reply::Failed(status::SERVICE_ERROR, text)) => {
                assert_eq!(text, "no such service")
            }
            ("null", Reply::Value(Hessian::Null)) => {}
            (_, other) => panic!("{method}: {other:?}"),
        }
    }
    for (name, count) in [("ok", 1), ("app_error", 1), ("transport_error", 1)] {
        assert_eq!(
            mosn.stat(&format!("rpc.t.downstream_rq_{name}")),
            count,
            "{name}"
        );
    }
    assert_eq!(mosn.stat("cluster.a.upstream_rq_200"), 2);
    assert_eq!(mosn.stat("cluster.a.upstream_rq_500"), 1);
}

#[test]
fn routes_on_method_group_attachments_and_unwraps_generic_calls() {
    let named = |name: &'static str| {
        Server::start(dubbo::next_frame, move |frame, stream| {
            let mut out = Vec::new();
            Reply::Value(name.into()).write(&mut out, head(frame).id, &[]);
            stream.write_all(&out).expect("answered");
        })
    };
    let servers = ["method", "group", "stage", "rest"].map(|name| (name, named(name)));
    let clusters: Vec<Value> = servers
        .iter()
        .map(|(name, server)| cluster(name, &[endpoint(server.address, &json!({}))]))
        .collect();
    let header =
        |name: &str, value: &str| json!([{"name": name, "string_match": {"exact": value}}]);
    let routes = json!([
        {"match": {"path": "/demo.Svc/special"}, "route": {"cluster": "method"}},
        {"match": {"prefix": "/", "headers": header("x-mesh-rpc-group", "g1")}, "route": {"cluster": "group"}},
        {"match": {"prefix": "/", "headers": header("dubbo.tag", "stage")}, "route": {"cluster": "stage"}},
        {"match": {"prefix": "/"}, "route": {"cluster": "rest"}},
    ]);
    let mosn = Mosn::start(&clusters, &routes, json!({}));
    let mut conn = connect(&mosn);
    let generic = Invocation {
        descriptor: "Ljava/lang/String;[Ljava/lang/String;[Ljava/lang/Object;".into(),
        args: vec![
            "special".into(),
            Hessian::string_array(["java.lang.String"]),
            Hessian::list(vec!["x".into()]),
        ],
        ..invocation("$invoke", "", &[])
    };
    for (call, expected) in [
        (invocation("special", "x", &[]), "method"),
        (generic, "method"),
        (invocation("hello", "x", &[("group", "g1")]), "group"),
        (invocation("hello", "x", &[("dubbo.tag", "stage")]), "stage"),
        (invocation("hello", "x", &[]), "rest"),
    ] {
        conn.send(&frame_of(&call, Kind::Call, 1));
        assert_eq!(text(&conn.expect()), expected);
    }
    // The same call in fastjson2, which is routed as well and answered by its server's own bytes.
    let mut json2 = Vec::new();
    write_frame(&mut json2, Kind::Call, Serialization::FASTJSON2, 2, |out| {
        for item in ["2.0.2", "demo.Svc", "0.0.0", "special", ""] {
            out.extend_from_slice(&(item.len() as u32 + 1).to_be_bytes());
            out.push(0x49 + item.len() as u8);
            out.extend_from_slice(item.as_bytes());
        }
        out.extend_from_slice(&[0, 0, 0, 2, 0xa6, 0xa5]);
    });
    conn.send(&json2);
    assert_eq!(text(&conn.expect()), "method");
}

#[test]
fn versions_and_groups_are_not_mixed() {
    let named = |name: &'static str| {
        Server::start(dubbo::next_frame, move |frame, stream| {
            let mut out = Vec::new();
            Reply::Value(name.into()).write(&mut out, head(frame).id, &[]);
            stream.write_all(&out).expect("answered");
        })
    };
    let servers = [named("plain"), named("v2"), named("g1")];
    let endpoints = [
        endpoint(servers[0].address, &json!({"version": "", "group": ""})),
        endpoint(
            servers[1].address,
            &json!({"version": "2.0.0", "group": ""}),
        ),
        endpoint(
            servers[2].address,
            &json!({"version": "0.0.0", "group": "g1"}),
        ),
    ];
    let mosn = Mosn::start(&[cluster("a", &endpoints)], &to_a(), json!({}));
    let mut conn = connect(&mosn);
    for id in 0..5 {
        for (version, group, expected) in [
            ("0.0.0", "", "plain"),
            ("", "", "plain"),
            ("2.0.0", "", "v2"),
            ("0.0.0", "g1", "g1"),
        ] {
            let mut call = invocation("hello", "x", &[]);
            call.version = version.into();
            if !group.is_empty() {
                call.attachments.push(("group".into(), group.into()));
            }
            conn.send(&frame_of(&call, Kind::Call, id));
            assert_eq!(text(&conn.expect()), expected, "{version} {group}");
        }
    }
    let mut call = invocation("hello", "x", &[]);
    call.version = "9.9.9".into();
    conn.send(&frame_of(&call, Kind::Call, 9));
    assert!(matches!(
        reply(&conn.expect()),
        Reply::Failed(status::CHANNEL_INACTIVE, _)
    ));
}

#[test]
fn the_callers_timeout_attachment_ends_the_call() {
    let server = Server::start(dubbo::next_frame, |_, _| {});
    let mosn = Mosn::start(
        &to(&server),
        &json!([{"match": {"prefix": "/"}, "route": {"cluster": "a"}}]),
        json!({}),
    );
    let mut conn = connect(&mosn);
    conn.send(&frame_of(
        &invocation("hello", "x", &[("timeout", "80")]),
        Kind::Call,
        5,
    ));
    let frame = conn.expect();
    assert_eq!(head(&frame).id, 5);
    assert!(matches!(
        reply(&frame),
        Reply::Failed(status::SERVER_TIMEOUT, _)
    ));
    mosn.assert_nothing_leaks();
}

#[test]
fn attachments_are_changed_on_the_way_in_both_directions() {
    let server = Server::start(dubbo::next_frame, |frame, stream| {
        let head = head(frame);
        let call = Invocation::read(frame, &head).expect("a call");
        let mut all: Vec<String> = call
            .attachments
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        all.push(format!("itself={}", call.path));
        let mut out = Vec::new();
        Reply::Value(all.join(";").into()).write(
            &mut out,
            head.id,
            &[("dubbo", "2.0.2"), ("secret", "s")],
        );
        stream.write_all(&out).expect("answered");
    });
    let routes = json!([{
        "match": {"prefix": "/"}, "route": {"cluster": "a", "host_rewrite_literal": "other.Svc"},
        "request_headers_to_add": [{"header": {"key": "x-new", "value": "one"}}],
        "request_headers_to_remove": ["stage"],
        "response_headers_to_add": [{"header": {"key": "x-seen", "value": "yes"}}],
        "response_headers_to_remove": ["secret"],
    }]);
    let mosn = Mosn::start(&to(&server), &routes, json!({}));
    let mut conn = connect(&mosn);
    conn.send(&frame_of(
        &invocation("hello", "x", &[("Stage", "t"), ("keep", "it")]),
        Kind::Call,
        1,
    ));
    let frame = conn.expect();
    let seen = text(&frame);
    for wanted in [
        "x-new=one",
        "keep=it",
        "path=other.Svc",
        "interface=other.Svc",
        "itself=other.Svc",
    ] {
        assert!(
            seen.split(';').any(|pair| pair == wanted),
            "{wanted} in {seen}"
        );
    }
    assert!(!seen.contains("Stage"), "{seen}");
    let attachments = dubbo::call::response_attachments(&frame, &head(&frame))
        .expect("readable")
        .expect("there");
    assert_eq!(
        attachments.clone().find(b"x-seen").as_deref(),
        Some(b"yes".as_slice())
    );
    assert_eq!(attachments.find(b"secret"), None);
}

#[test]
fn events_are_handled_here_and_a_read_only_upstream_gets_no_new_calls() {
    let (sender, seen) = mpsc::channel();
    let sender = Mutex::new(sender);
    let server = Server::start(dubbo::next_frame, move |frame, stream| {
        let head = head(frame);
        let mut out = Vec::new();
        if head.is_event() {
            let _ = sender.lock().expect("not poisoned").send("event");
            dubbo::write_heartbeat_ack(&mut out, &head);
        } else if Invocation::read(frame, &head).expect("a call").method == "last" {
            // Asks for no new calls, then answers this one.
            dubbo::write_readonly(&mut out, Serialization::HESSIAN2, 77);
            stream.write_all(&out).expect("sent");
            thread::sleep(Duration::from_millis(50));
            out = echo(frame);
        } else {
            out = echo(frame);
        }
        let _ = stream.write_all(&out);
    });
    let mosn = Mosn::start(&to(&server), &to_a(), json!({}));
    let mut conn = connect(&mosn);
    let mut heartbeat = Vec::new();
    dubbo::write_heartbeat(&mut heartbeat, Serialization::HESSIAN2, 42);
    conn.send(&heartbeat);
    let mut ack = Vec::new();
    dubbo::write_heartbeat_ack(&mut ack, &head(&heartbeat));
    assert_eq!(conn.expect(), ack);
    assert!(
        seen.try_recv().is_err(),
        "heartbeats stay on their connection"
    );
    conn.send(&frame_of(&invocation("last", "x", &[]), Kind::Call, 1));
    assert_eq!(text(&conn.expect()), "x");
    mosn.wait_stat("cluster.a.upstream_cx_active", 0);
    conn.send(&call(2));
    assert_eq!(text(&conn.expect()), "arg-2");
    assert_eq!(mosn.stat("cluster.a.upstream_cx_total"), 2);
    assert_eq!(mosn.stat("cluster.a.upstream_cx_close_notify"), 1);
}

#[test]
fn each_failure_has_the_status_that_a_java_client_understands() {
    let server = echo_server();
    let nobody = SocketAddr::from(([127, 0, 0, 1], testkit::net::free_port().expect("a port")));
    let closes = Server::start(dubbo::next_frame, |_, stream| {
        let _ = stream.shutdown(std::net::Shutdown::Both);
    });
    let mut clusters = to(&server);
    clusters.push(cluster("empty", &[]));
    clusters.push(cluster("refused", &[endpoint(nobody, &json!({}))]));
    clusters.push(cluster("closes", &[endpoint(closes.address, &json!({}))]));
    let none = json!({"circuit_breakers": {"thresholds": [{"max_requests": 0}]}});
    clusters.push(with(
        cluster("full", &[endpoint(server.address, &json!({}))]),
        none,
    ));
    let fault = |config: Value| {
        with(
            json!({"@type": "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault"}),
            config,
        )
    };
    let abort = fault(json!({"abort": {"http_status": 403, "percentage": {"numerator": 100}}}));
    let delay = fault(json!({"delay": {"fixed_delay": "0.2s", "percentage": {"numerator": 100}}}));
    let mut routes = vec![];
    for name in ["empty", "refused", "closes", "full", "missing"] {
        routes.push(
            json!({"match": {"path": format!("/demo.Svc/{name}")}, "route": {"cluster": name}}),
        );
    }
    for (name, config) in [("denied", abort), ("delayed", delay)] {
        routes.push(
            json!({"match": {"path": format!("/demo.Svc/{name}")}, "route": {"cluster": "a"},
            "typed_per_filter_config": {"envoy.filters.http.fault": config}}),
        );
    }
    let filters = json!({"rpc_filters": [{"name": "envoy.filters.http.fault", "typed_config": fault(json!({}))}]});
    let mosn = Mosn::start(&clusters, &json!(routes), filters);
    let mut conn = connect(&mosn);
    for (id, (method, expected)) in [
        ("unrouted", status::SERVICE_NOT_FOUND),
        ("missing", status::SERVICE_NOT_FOUND),
        ("empty", status::CHANNEL_INACTIVE),
        ("refused", status::CHANNEL_INACTIVE),
        ("closes", status::SERVER_ERROR),
        ("full", status::THREADPOOL_EXHAUSTED),
    ]
    .into_iter()
    .enumerate()
    {
        let id = id as u64;
        conn.send(&frame_of(&invocation(method, "x", &[]), Kind::Call, id));
        let frame = conn.expect();
        assert_eq!(
            (head(&frame).id, head(&frame).status),
            (id, expected),
            "{method}"
        );
        assert!(
            matches!(reply(&frame), Reply::Failed(_, text) if !text.is_empty()),
            "{method}"
        );
    }
    conn.send(&frame_of(&invocation("denied", "x", &[]), Kind::Call, 50));
    assert!(
        matches!(reply(&conn.expect()), Reply::Exception(_)),
        "not tried again by the consumer"
    );
    // A delayed call does not hold up the next one.
    conn.send(&frame_of(
        &invocation("delayed", "slow", &[]),
        Kind::Call,
        51,
    ));
    conn.send(&frame_of(&invocation("missing", "x", &[]), Kind::Call, 52));
    assert_eq!(head(&conn.expect()).id, 52);
    let frame = conn.expect();
    assert_eq!((head(&frame).id, text(&frame).as_str()), (51, "slow"));
    mosn.assert_nothing_leaks();
}

#[test]
fn a_draining_listener_says_so_and_closes_when_the_last_call_is_answered() {
    let server = Server::start(dubbo::next_frame, |frame, stream| {
        thread::sleep(Duration::from_millis(200));
        let _ = stream.write_all(&echo(frame));
    });
    let mosn = Mosn::start(&to(&server), &to_a(), json!({}));
    let mut conn = connect(&mosn);
    conn.send(&call(1));
    mosn.wait_stat("cluster.a.upstream_rq_active", 1);
    let answer = testkit::http::request(mosn.admin, "POST", "/drain_listeners", &[], b"");
    assert_eq!(answer.expect("an answer").status, 200);
    let readonly = conn.expect();
    assert!(head(&readonly).is_readonly(&readonly));
    assert_eq!(text(&conn.expect()), "arg-1");
    assert_eq!(conn.receive(), None);
    mosn.wait_stat("rpc.t.downstream_cx_drain_close", 1);
}

#[test]
fn idle_upstream_connections_are_kept_by_heartbeats() {
    let (sender, seen) = mpsc::channel();
    let sender = Mutex::new(sender);
    let server = Server::start(dubbo::next_frame, move |frame, stream| {
        let head = head(frame);
        let mut out = Vec::new();
        if head.is_heartbeat(frame) {
            let _ = sender.lock().expect("not poisoned").send(());
            dubbo::write_heartbeat_ack(&mut out, &head);
        } else {
            out = echo(frame);
        }
        let _ = stream.write_all(&out);
    });
    let clusters = [with(to(&server).remove(0), heartbeats("0.05s", "1s", 2))];
    let mosn = Mosn::start(&clusters, &to_a(), json!({}));
    let mut conn = connect(&mosn);
    conn.send(&call(1));
    conn.expect();
    for _ in 0..5 {
        assert_eq!(seen.recv_timeout(LIMIT), Ok(()));
    }
    conn.send(&call(2));
    assert_eq!(text(&conn.expect()), "arg-2");
    assert_eq!(mosn.stat("cluster.a.upstream_cx_total"), 1);
}

#[test]
fn what_cannot_be_read_is_refused_with_status_40_or_the_end() {
    let server = echo_server();
    let limits =
        json!({"max_frame_bytes": 100_000, "max_header_bytes": 1000, "protocols": ["DUBBO"]});
    let mosn = Mosn::start(&to(&server), &to_a(), limits);
    let mut conn = connect(&mosn);
    let mut empty = Vec::new();
    write_frame(&mut empty, Kind::Call, Serialization::HESSIAN2, 3, |_| {});
    conn.send(&empty);
    let frame = conn.expect();
    assert_eq!(
        (head(&frame).id, head(&frame).status),
        (3, status::BAD_REQUEST)
    );
    // The frame's end was known, so the connection goes on.
    conn.send(&call(4));
    assert_eq!(text(&conn.expect()), "arg-4");
    let value = "x".repeat(2000);
    conn.send(&frame_of(
        &invocation("hello", "x", &[("k", &value)]),
        Kind::Call,
        5,
    ));
    assert_eq!(head(&conn.expect()).status, status::BAD_REQUEST);
    let mut huge = call(6);
    huge[12..16].copy_from_slice(&200_000_u32.to_be_bytes());
    conn.send(&huge);
    let frame = conn.expect();
    assert_eq!(
        (head(&frame).id, head(&frame).status),
        (6, status::BAD_REQUEST)
    );
    assert_eq!(conn.receive(), None);
    // An unknown serialization cannot be answered in itself, so the connection ends.
    let mut conn = connect(&mosn);
    let mut kryo = Vec::new();
    write_frame(&mut kryo, Kind::Call, Serialization(8), 7, |out| {
        out.extend_from_slice(b"opaque")
    });
    conn.send(&kryo);
    assert_eq!(conn.receive(), None);
    // Bolt on a listener for Dubbo.
    let mut conn = connect(&mosn);
    conn.send(&[1, 1, 0, 1, 1, 0, 0, 0, 1]);
    assert_eq!(conn.receive(), None);
    // Arguments that cannot be walked over do not keep the call from its service.
    let mut conn = connect(&mosn);
    let mut odd = Vec::new();
    write_frame(&mut odd, Kind::OneWay, Serialization::HESSIAN2, 8, |out| {
        out.extend_from_slice(b"\x052.0.2\x08demo.Svc\x00\x05hello\x01I\x40");
    });
    assert!(Call::read(&odd, &head(&odd)).is_ok());
    conn.send(&odd);
    conn.send(&call(9));
    assert_eq!(text(&conn.expect()), "arg-9");
    mosn.assert_nothing_leaks();
}

#[test]
fn an_access_log_shows_calls_in_the_words_of_http() {
    let server = echo_server();
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("log");
    let format = "%REQ(:METHOD)% %REQ(:AUTHORITY)% %REQ(:PATH)% %PROTOCOL% %RESPONSE_CODE% %RESPONSE_FLAGS% \
        %UPSTREAM_CLUSTER% %UPSTREAM_HOST% %REQ(k)% %RESP(dubbo)% %RESPONSE_CODE_DETAILS% %ROUTE_NAME%\n";
    let log = json!({"access_log": [{"name": "file", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
        "path": path, "log_format": {"text_format_source": {"inline_string": format}}}}]});
    let routes =
        json!([{"name": "only", "match": {"path": "/demo.Svc/hello"}, "route": {"cluster": "a"}}]);
    let mosn = Mosn::start(&to(&server), &routes, log);
    let mut conn = connect(&mosn);
    for (id, method) in ["hello", "other"].into_iter().enumerate() {
        conn.send(&frame_of(
            &invocation(method, "x", &[("k", "v")]),
            Kind::Call,
            id as u64,
        ));
        conn.expect();
    }
    let expected = format!(
        "POST demo.Svc /demo.Svc/hello dubbo 200 - a {} v 2.0.2 via_upstream only\n\
         POST demo.Svc /demo.Svc/other dubbo 404 NR - - v - route_not_found -\n",
        server.address
    );
    let read = || {
        std::fs::read_to_string(&path)
            .ok()
            .filter(|text| text.lines().count() >= 2)
    };
    let text = testkit::wait::until("two lines", LIMIT, read).expect("two lines");
    assert_eq!(text, expected);
}
