//! Bolt calls through mosn, at the sockets.

use std::collections::HashSet;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::test_runner::{TestCaseError, TestRunner};
use serde_json::{Value, json};
use wire::bolt::sofarpc::{Answer, Call};
use wire::bolt::{self, Head, Headers, Kind, Parts, Version, command, status};
use wire::hessian2::Value as Hessian;

use crate::support::{Conn, LIMIT, Mosn, Server, cluster, endpoint, heartbeats, to_a, with};

fn call_with(
    id: u32,
    service: &str,
    method: &str,
    kind: Kind,
    timeout_ms: i32,
    headers: &[(&str, &str)],
) -> Vec<u8> {
    let call = Call {
        service: service.to_owned(),
        method: method.to_owned(),
        types: vec!["java.lang.String".to_owned()],
        args: vec![Hessian::from(format!("arg-{id}"))],
        props: Hessian::Null,
    };
    let mut out = Vec::new();
    call.write(&mut out, kind, timeout_ms, &Parts::v1(id), headers);
    out
}

fn call(id: u32) -> Vec<u8> {
    call_with(id, "demo.Svc:1.0", "hello", Kind::Request, 3000, &[])
}

fn head(frame: &[u8]) -> Head {
    let head = Head::parse(frame).expect("a head");
    bolt::verify(frame, &head).expect("a checksum");
    head
}

fn header(frame: &[u8], key: &str) -> Option<String> {
    let value = Headers::of(frame, &head(frame)).find(key.as_bytes())?;
    Some(String::from_utf8_lossy(value).into_owned())
}

/// Answers with the argument, so that a mixed-up answer is seen.
fn echo(frame: &[u8]) -> Vec<u8> {
    let head = head(frame);
    let call = Call::decode(&frame[head.content()]).expect("a call");
    let parts = Parts {
        switch: head.switch,
        ..Parts::answer(&head)
    };
    let mut out = Vec::new();
    Answer::ok(call.args[0].clone()).write(&mut out, &parts, false, &[]);
    out
}

fn text(frame: &[u8]) -> String {
    let answer = Answer::decode(&frame[head(frame).content()]).expect("an answer");
    answer.response.as_str().unwrap_or_default().to_owned()
}

/// A server that echoes calls and acknowledges heartbeats.
fn echo_server() -> Server {
    Server::start(bolt::next_frame, |frame, stream| {
        let head = head(frame);
        let mut out = Vec::new();
        match (head.command, head.kind) {
            (command::HEARTBEAT, _) => bolt::write_heartbeat_ack(&mut out, &head),
            (_, Kind::Request) => out = echo(frame),
            _ => {}
        }
        let _ = stream.write_all(&out);
    })
}

fn to(server: &Server) -> Vec<Value> {
    vec![cluster("a", &[endpoint(server.address, &json!({}))])]
}

fn connect(mosn: &Mosn) -> Conn {
    Conn::connect(mosn.address, bolt::next_frame)
}

#[test]
fn callers_with_equal_ids_get_their_own_answers_over_one_connection() {
    let server = echo_server();
    let mosn = Mosn::start(&to(&server), &to_a(), json!({}));
    let mut a = connect(&mosn);
    let mut b = connect(&mosn);
    for round in 0..50 {
        let mut batch = Vec::new();
        for id in 0..10 {
            batch.extend_from_slice(&call(round * 10 + id));
        }
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
    assert_eq!(mosn.stat("cluster.a.upstream_rq_200"), 1000);
    assert_eq!(mosn.stat("cluster.a.upstream_cx_total"), 1);
    mosn.assert_nothing_leaks();
}

#[test]
fn every_layout_is_answered_in_its_own_and_checksums_stay_right() {
    let server = echo_server();
    let mosn = Mosn::start(&to(&server), &to_a(), json!({}));
    let mut conn = connect(&mosn);
    for (id, version, switch) in [
        (1, Version::V1, 0),
        (2, Version::V2(1), 1),
        (3, Version::V2(2), 1),
        (4, Version::V2(2), 0),
        (5, Version::V1, 0),
    ] {
        let sent = Call {
            service: "demo.Svc:1.0".into(),
            method: "hello".into(),
            types: vec!["java.lang.String".into()],
            args: vec![Hessian::from(format!("v{id}"))],
            props: Hessian::Null,
        };
        let parts = Parts {
            version,
            switch,
            ..Parts::v1(id)
        };
        let mut out = Vec::new();
        sent.write(&mut out, Kind::Request, 3000, &parts, &[]);
        conn.send(&out);
        let frame = conn.expect();
        let head = head(&frame);
        assert_eq!((head.version, head.id, head.switch), (version, id, switch));
        assert_eq!(text(&frame), format!("v{id}"));
    }
}

#[test]
fn answers_may_come_in_any_order_and_late_ones_are_dropped() {
    // Holds calls back and answers them in reverse when the one called "flush" comes.
    let held = Mutex::new(Vec::new());
    let server = Server::start(bolt::next_frame, move |frame, stream| {
        let mut held = held.lock().expect("not poisoned");
        held.push(echo(frame));
        if header(frame, "sofa_head_method_name").as_deref() == Some("flush") {
            for answer in held.drain(..).rev() {
                stream.write_all(&answer).expect("answered");
            }
        }
    });
    let mosn = Mosn::start(&to(&server), &to_a(), json!({}));
    let mut conn = connect(&mosn);
    for id in 1..=5 {
        conn.send(&call(id));
    }
    conn.send(&call_with(
        6,
        "demo.Svc:1.0",
        "flush",
        Kind::Request,
        3000,
        &[],
    ));
    let order: Vec<u32> = (0..6).map(|_| head(&conn.expect()).id).collect();
    assert_eq!(order, [6, 5, 4, 3, 2, 1]);

    // A call whose time is over is answered with 7 and its late answer goes nowhere.
    let begin = Instant::now();
    conn.send(&call_with(
        7,
        "demo.Svc:1.0",
        "hello",
        Kind::Request,
        100,
        &[],
    ));
    let frame = conn.expect();
    assert_eq!((head(&frame).id, head(&frame).status), (7, status::TIMEOUT));
    let waited = begin.elapsed();
    assert!(
        waited >= Duration::from_millis(95) && waited < Duration::from_secs(2),
        "{waited:?}"
    );
    conn.send(&call_with(
        8,
        "demo.Svc:1.0",
        "flush",
        Kind::Request,
        3000,
        &[],
    ));
    assert_eq!(text(&conn.expect()), "arg-8");
    conn.send(&call_with(
        9,
        "demo.Svc:1.0",
        "flush",
        Kind::Request,
        3000,
        &[],
    ));
    assert_eq!(text(&conn.expect()), "arg-9");
    assert_eq!(mosn.stat("cluster.a.upstream_rq_timeout"), 1);
    mosn.assert_nothing_leaks();
}

#[test]
fn the_shorter_of_the_routes_and_the_callers_timeout_counts_and_is_passed_on() {
    let (sender, seen) = mpsc::channel();
    let sender = Mutex::new(sender);
    let server = Server::start(bolt::next_frame, move |frame, stream| {
        let _ = sender
            .lock()
            .expect("not poisoned")
            .send(head(frame).timeout_ms);
        stream.write_all(&echo(frame)).expect("answered");
    });
    let routes = json!([
        {"match": {"path": "/demo.Svc/short"}, "route": {"cluster": "a", "timeout": "0.5s"}},
        {"match": {"path": "/demo.Svc/off"}, "route": {"cluster": "a", "timeout": "0s"}},
        {"match": {"prefix": "/"}, "route": {"cluster": "a"}},
    ]);
    let mosn = Mosn::start(&to(&server), &routes, json!({"request_timeout": "7s"}));
    let mut conn = connect(&mosn);
    for (id, method, asked, expected) in [
        (1, "short", 3000, 500),
        (2, "short", 200, 200),
        (3, "off", 60_000, 60_000),
        (4, "off", -1, -1),
        (5, "other", 60_000, 60_000),
        (6, "other", 0, 7000),
    ] {
        conn.send(&call_with(
            id,
            "demo.Svc:1.0",
            method,
            Kind::Request,
            asked,
            &[],
        ));
        conn.expect();
        assert_eq!(seen.recv_timeout(LIMIT), Ok(expected), "{method} {asked}");
    }
}

#[test]
fn one_way_calls_are_passed_on_and_never_answered() {
    let (sender, seen) = mpsc::channel();
    let sender = Mutex::new(sender);
    let server = Server::start(bolt::next_frame, move |frame, stream| {
        let _ = sender.lock().expect("not poisoned").send(head(frame).kind);
        if head(frame).kind == Kind::Request {
            stream.write_all(&echo(frame)).expect("answered");
        }
    });
    let routes = json!([{"match": {"prefix": "/demo.Svc/"}, "route": {"cluster": "a"}}]);
    let mosn = Mosn::start(&to(&server), &routes, json!({}));
    let mut conn = connect(&mosn);
    conn.send(&call_with(
        1,
        "demo.Svc:1.0",
        "hello",
        Kind::OneWay,
        -1,
        &[],
    ));
    conn.send(&call_with(
        2,
        "no.Route:1.0",
        "hello",
        Kind::OneWay,
        -1,
        &[],
    ));
    conn.send(&call(3));
    assert_eq!(head(&conn.expect()).id, 3);
    assert_eq!(seen.recv_timeout(LIMIT), Ok(Kind::OneWay));
    assert_eq!(seen.recv_timeout(LIMIT), Ok(Kind::Request));
    assert_eq!(mosn.stat("rpc.t.downstream_rq_oneway"), 2);
    assert_eq!(mosn.stat("rpc.t.downstream_rq_ok"), 2);
    assert_eq!(mosn.stat("rpc.t.downstream_rq_no_route"), 1);
    mosn.assert_nothing_leaks();
}

#[test]
fn a_heartbeat_is_answered_at_once_while_a_thousand_calls_wait() {
    let held = Mutex::new(Vec::new());
    let server = Server::start(bolt::next_frame, move |frame, stream| {
        let mut held = held.lock().expect("not poisoned");
        held.push(echo(frame));
        if held.len() == 1000 {
            for answer in held.drain(..) {
                stream.write_all(&answer).expect("answered");
            }
        }
    });
    let mosn = Mosn::start(&to(&server), &to_a(), json!({}));
    let mut conn = connect(&mosn);
    for id in 0..999 {
        conn.send(&call(id));
    }
    for version in [Version::V1, Version::V2(1), Version::V2(2)] {
        let mut heartbeat = Vec::new();
        bolt::write_heartbeat(&mut heartbeat, version, 4711);
        conn.send(&heartbeat);
        let ack = head(&conn.expect());
        assert_eq!(
            (ack.id, ack.command, ack.kind, ack.version),
            (4711, command::HEARTBEAT, Kind::Response, version)
        );
    }
    conn.send(&call(999));
    let ids: HashSet<u32> = (0..1000).map(|_| head(&conn.expect()).id).collect();
    assert_eq!(ids.len(), 1000);
    mosn.assert_nothing_leaks();
}

#[test]
fn an_idle_upstream_gets_heartbeats_and_is_left_when_it_does_not_answer_them() {
    let beats = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&beats);
    let server = Server::start(bolt::next_frame, move |frame, stream| {
        let head = head(frame);
        let mut out = Vec::new();
        if head.command == command::HEARTBEAT {
            // Five are answered, then none.
            if counted.fetch_add(1, Ordering::SeqCst) < 5 {
                bolt::write_heartbeat_ack(&mut out, &head);
            }
        } else {
            out = echo(frame);
        }
        let _ = stream.write_all(&out);
    });
    let clusters = [with(to(&server).remove(0), heartbeats("0.05s", "0.05s", 2))];
    let mosn = Mosn::start(&clusters, &to_a(), json!({}));
    let mut conn = connect(&mosn);
    conn.send(&call(1));
    conn.expect();
    mosn.wait_stat("cluster.a.upstream_cx_destroy_local", 1);
    assert!(
        beats.load(Ordering::SeqCst) >= 7,
        "five answered and two not"
    );
    conn.send(&call(2));
    assert_eq!(text(&conn.expect()), "arg-2");
    assert_eq!(mosn.stat("cluster.a.upstream_cx_total"), 2);
}

#[test]
fn an_upstream_that_dies_under_load_costs_only_the_calls_it_had() {
    let first = echo_server();
    let second = echo_server();
    let endpoints = [
        endpoint(first.address, &json!({})),
        endpoint(second.address, &json!({})),
    ];
    let mosn = Mosn::start(&[cluster("a", &endpoints)], &to_a(), json!({}));
    let answered = Arc::new(AtomicUsize::new(0));
    let workers: Vec<_> = (0..4)
        .map(|_| {
            let address = mosn.address;
            let answered = Arc::clone(&answered);
            thread::spawn(move || load(address, 2000, &answered))
        })
        .collect();
    while answered.load(Ordering::SeqCst) < 1000 {
        thread::yield_now();
    }
    first.kill();
    let failed: usize = workers
        .into_iter()
        .map(|worker| worker.join().expect("answered"))
        .sum();
    // 4 connections with 8 calls in flight each: no more can have been with the server that died.
    assert!(failed <= 32, "{failed} calls failed");
    assert_eq!(answered.load(Ordering::SeqCst), 8000);
    mosn.assert_nothing_leaks();
}

/// Makes calls, 8 in flight; every one must be answered. Gives how many failed.
fn load(address: SocketAddr, calls: u32, answered: &AtomicUsize) -> usize {
    let mut conn = Conn::connect(address, bolt::next_frame);
    let (mut sent, mut failed) = (0, 0);
    for _ in 0..8 {
        conn.send(&call(sent));
        sent += 1;
    }
    for _ in 0..calls {
        let frame = conn.expect();
        if head(&frame).status != status::SUCCESS {
            assert_eq!(head(&frame).status, status::CONNECTION_CLOSED);
            failed += 1;
        }
        answered.fetch_add(1, Ordering::SeqCst);
        if sent < calls {
            conn.send(&call(sent));
            sent += 1;
        }
    }
    failed
}

#[test]
fn each_failure_has_the_status_that_a_java_client_understands() {
    let server = echo_server();
    let nobody = SocketAddr::from(([127, 0, 0, 1], testkit::net::free_port().expect("a port")));
    let closes = Server::start(bolt::next_frame, |_, stream| {
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
    let fault = |status: u32| {
        json!({"envoy.filters.http.fault": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault",
            "abort": {"http_status": status, "percentage": {"numerator": 100}}}})
    };
    let mut routes = vec![];
    for name in ["empty", "refused", "closes", "full", "missing"] {
        routes.push(
            json!({"match": {"path": format!("/demo.Svc/{name}")}, "route": {"cluster": name}}),
        );
    }
    for code in [403, 404, 429, 503, 504] {
        routes.push(json!({"match": {"path": format!("/demo.Svc/abort{code}")},
            "route": {"cluster": "a"}, "typed_per_filter_config": fault(code)}));
    }
    routes.push(json!({"match": {"path": "/demo.Svc/direct"}, "direct_response": {"status": 200, "body": {"inline_string": "canned"}}}));
    let filters = json!({"rpc_filters": [
        {"name": "envoy.filters.http.fault", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault"}},
        {"name": "envoy.filters.http.router", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}},
    ]});
    let mosn = Mosn::start(&clusters, &json!(routes), filters);
    let mut conn = connect(&mosn);
    for (id, (method, expected)) in [
        ("unrouted", status::NO_PROCESSOR),
        ("missing", status::NO_PROCESSOR),
        ("empty", status::NO_PROCESSOR),
        ("refused", status::CLIENT_SEND_ERROR),
        ("closes", status::CONNECTION_CLOSED),
        ("full", status::SERVER_BUSY),
        ("abort403", status::SERVER_EXCEPTION),
        ("abort404", status::NO_PROCESSOR),
        ("abort429", status::SERVER_BUSY),
        ("abort503", status::SERVER_BUSY),
        ("abort504", status::TIMEOUT),
    ]
    .into_iter()
    .enumerate()
    {
        let id = id as u32;
        conn.send(&call_with(
            id,
            "demo.Svc:1.0",
            method,
            Kind::Request,
            3000,
            &[],
        ));
        let frame = conn.expect();
        assert_eq!(
            (head(&frame).id, head(&frame).status),
            (id, expected),
            "{method}"
        );
    }
    conn.send(&call_with(
        99,
        "demo.Svc:1.0",
        "direct",
        Kind::Request,
        3000,
        &[],
    ));
    assert_eq!(text(&conn.expect()), "canned");
    mosn.assert_nothing_leaks();
}

#[test]
fn headers_are_changed_on_the_way_in_both_directions() {
    let server = Server::start(bolt::next_frame, |frame, stream| {
        let all: Vec<String> = Headers::of(frame, &head(frame))
            .map(|pair| {
                let (key, value) = pair.expect("a pair");
                format!(
                    "{}={}",
                    String::from_utf8_lossy(key),
                    String::from_utf8_lossy(value)
                )
            })
            .collect();
        let mut out = Vec::new();
        let answer = Answer::ok(Hessian::from(all.join(";")));
        answer.write(
            &mut out,
            &Parts::answer(&head(frame)),
            false,
            &[("X-Secret", "s")],
        );
        stream.write_all(&out).expect("answered");
    });
    let routes = json!([{
        "match": {"prefix": "/demo.Svc/", "headers": [{"name": "stage", "string_match": {"exact": "Test"}}]},
        "route": {"cluster": "a", "host_rewrite_literal": "other.Svc"},
        "request_headers_to_add": [
            {"header": {"key": "x-new", "value": "one"}},
            {"header": {"key": "x-method", "value": "%REQ(x-mesh-rpc-method)%"}}],
        "request_headers_to_remove": ["stage"],
        "response_headers_to_add": [{"header": {"key": "x-seen", "value": "yes"}}],
        "response_headers_to_remove": ["x-secret"],
    }]);
    let mosn = Mosn::start(&to(&server), &routes, json!({}));
    let mut conn = connect(&mosn);
    for (version, switch) in [(Version::V1, 0), (Version::V2(2), 1)] {
        let sent = Call {
            service: "demo.Svc:1.0:u1".into(),
            method: "hello".into(),
            types: vec![],
            args: vec![],
            props: Hessian::Null,
        };
        let parts = Parts {
            version,
            switch,
            ..Parts::v1(1)
        };
        let mut out = Vec::new();
        sent.write(
            &mut out,
            Kind::Request,
            3000,
            &parts,
            &[("Stage", "Test"), ("keep", "it")],
        );
        conn.send(&out);
        let frame = conn.expect();
        let seen = text(&frame);
        for wanted in [
            "x-new=one",
            "x-method=hello",
            "keep=it",
            "service=other.Svc:1.0:u1",
            "sofa_head_target_service=other.Svc:1.0:u1",
        ] {
            assert!(
                seen.split(';').any(|pair| pair == wanted),
                "{wanted} in {seen}"
            );
        }
        assert!(!seen.contains("Test"), "{seen}");
        assert_eq!(header(&frame, "x-seen").as_deref(), Some("yes"));
        assert_eq!(header(&frame, "X-Secret"), None);
    }
}

#[test]
fn a_call_reaches_only_instances_of_its_version_and_group() {
    let named = |name: &'static str| {
        Server::start(bolt::next_frame, move |frame, stream| {
            let mut out = Vec::new();
            Answer::ok(Hessian::from(name)).write(
                &mut out,
                &Parts::answer(&head(frame)),
                false,
                &[],
            );
            stream.write_all(&out).expect("answered");
        })
    };
    let servers = [named("v1"), named("v2"), named("v2g")];
    let endpoints = [
        endpoint(servers[0].address, &json!({"version": "1.0", "group": ""})),
        endpoint(servers[1].address, &json!({"version": "2.0", "group": ""})),
        endpoint(servers[2].address, &json!({"version": "2.0", "group": "g"})),
    ];
    let mosn = Mosn::start(&[cluster("a", &endpoints)], &to_a(), json!({}));
    let mut conn = connect(&mosn);
    for round in 0..5 {
        for (service, expected) in [
            ("demo.Svc:1.0", "v1"),
            ("demo.Svc:2.0", "v2"),
            ("demo.Svc:2.0:g", "v2g"),
            ("demo.Svc", "v1"),
        ] {
            conn.send(&call_with(
                round,
                service,
                "hello",
                Kind::Request,
                3000,
                &[],
            ));
            assert_eq!(text(&conn.expect()), expected, "{service}");
        }
    }
    conn.send(&call_with(
        9,
        "demo.Svc:3.0",
        "hello",
        Kind::Request,
        3000,
        &[],
    ));
    assert_eq!(head(&conn.expect()).status, status::NO_PROCESSOR);
}

#[test]
fn a_policy_retries_a_busy_server_elsewhere() {
    let busy = Server::start(bolt::next_frame, |frame, stream| {
        let mut out = Vec::new();
        bolt::write_status(&mut out, &head(frame), status::SERVER_BUSY);
        stream.write_all(&out).expect("answered");
    });
    let good = echo_server();
    let endpoints = [
        endpoint(busy.address, &json!({})),
        endpoint(good.address, &json!({})),
    ];
    let routes = json!([{"match": {"prefix": "/"}, "route": {"cluster": "a", "retry_policy": {
        "retry_on": "5xx", "num_retries": 2, "retry_back_off": {"base_interval": "0.001s", "max_interval": "0.002s"}}}}]);
    let mosn = Mosn::start(&[cluster("a", &endpoints)], &routes, json!({}));
    let mut conn = connect(&mosn);
    for id in 0..20 {
        conn.send(&call(id));
        assert_eq!(text(&conn.expect()), format!("arg-{id}"));
    }
    assert!(mosn.stat("cluster.a.upstream_rq_retry") >= 5);
    mosn.assert_nothing_leaks();
}

/// Consumer's mosn, two providers' mosns, one provider that is gone: what the middle could not send is
/// sent to the other.
#[test]
fn a_call_that_the_next_proxy_could_not_send_is_sent_elsewhere() {
    let good = echo_server();
    let nobody = SocketAddr::from(([127, 0, 0, 1], testkit::net::free_port().expect("a port")));
    let dead = Mosn::start(
        &[cluster("a", &[endpoint(nobody, &json!({}))])],
        &to_a(),
        json!({}),
    );
    let alive = Mosn::start(&to(&good), &to_a(), json!({}));
    let endpoints = [
        endpoint(dead.address, &json!({})),
        endpoint(alive.address, &json!({})),
    ];
    let routes = json!([{"match": {"prefix": "/"}, "route": {"cluster": "a", "timeout": "5s",
        "retry_policy": {"retry_on": "connect-failure", "num_retries": 2}}}]);
    let mosn = Mosn::start(&[cluster("a", &endpoints)], &routes, json!({}));
    let mut conn = connect(&mosn);
    for id in 0..100 {
        conn.send(&call(id));
    }
    let ids: HashSet<u32> = (0..100)
        .map(|_| {
            let frame = conn.expect();
            assert_eq!(text(&frame), format!("arg-{}", head(&frame).id));
            head(&frame).id
        })
        .collect();
    assert_eq!(ids.len(), 100);
    mosn.assert_nothing_leaks();
}

#[test]
fn bytes_that_are_no_frame_close_the_connection_and_are_counted() {
    let server = echo_server();
    let limits = json!({"max_frame_bytes": 100_000, "max_header_bytes": 1000});
    let mosn = Mosn::start(&to(&server), &to_a(), limits);
    for (garbage, name) in [
        (b"GET / HTTP/1.1\r\n\r\n".as_slice(), "http"),
        (b"\xff\xff\xff\xff\xff\xff\xff\xff", "noise"),
        (&[1, 1, 0, 1, 1], "half a head, then the end"),
    ] {
        let mut conn = connect(&mosn);
        conn.send(garbage);
        // mosn may have closed already.
        let _ = conn.stream.shutdown(std::net::Shutdown::Write);
        assert_eq!(conn.receive(), None, "{name}");
    }
    mosn.wait_stat("rpc.t.downstream_cx_protocol_error", 2);
    // After a good call: an unknown command.
    let mut conn = connect(&mosn);
    let mut bad = call(1);
    bad[3] = 9;
    conn.send(&[call(0), bad].concat());
    assert_eq!(conn.receive(), None);
    mosn.wait_stat("rpc.t.downstream_cx_protocol_error", 3);
    // Too large, id known: the caller is told, then the connection closes.
    let mut conn = connect(&mosn);
    let mut huge = call(7);
    huge[18..22].copy_from_slice(&200_000_u32.to_be_bytes());
    conn.send(&huge);
    let frame = conn.expect();
    assert_eq!(
        (head(&frame).id, head(&frame).status),
        (7, status::CODEC_EXCEPTION)
    );
    assert_eq!(conn.receive(), None);
    let mut conn = connect(&mosn);
    let value = "x".repeat(2000);
    conn.send(&call_with(
        8,
        "demo.Svc:1.0",
        "hello",
        Kind::Request,
        3000,
        &[("k", &value)],
    ));
    assert_eq!(head(&conn.expect()).status, status::CODEC_EXCEPTION);
    assert_eq!(mosn.stat("rpc.t.downstream_rq_too_large"), 2);
    // A header section that does not parse.
    let mut conn = connect(&mosn);
    let mut torn = call(9);
    let at = head(&torn).header().start;
    torn[at] = 0x7f;
    conn.send(&torn);
    assert_eq!(head(&conn.expect()).status, status::CODEC_EXCEPTION);
    conn.send(&call(10));
    assert_eq!(
        text(&conn.expect()),
        "arg-10",
        "the connection goes on: the frame's end was known"
    );
    // A checksum that is wrong.
    let mut conn = connect(&mosn);
    let mut crc = Vec::new();
    let parts = Parts {
        version: Version::V2(2),
        switch: 1,
        ..Parts::v1(1)
    };
    bolt::write_request(&mut crc, Kind::Request, 3000, &parts);
    *crc.last_mut().expect("bytes") ^= 1;
    conn.send(&crc);
    assert_eq!(conn.receive(), None);
    mosn.assert_nothing_leaks();
    // The one connection that went on is that of the torn header section.
    mosn.wait_stat("rpc.t.downstream_cx_active", 1);
}

#[test]
fn garbage_from_an_upstream_answers_every_call_in_flight() {
    let server = Server::start(bolt::next_frame, |_, stream| {
        let _ = stream.write_all(b"\x09garbage, not bolt");
    });
    let mosn = Mosn::start(&to(&server), &to_a(), json!({}));
    let mut conn = connect(&mosn);
    for id in 0..10 {
        conn.send(&call(id));
        assert_eq!(head(&conn.expect()).status, status::CONNECTION_CLOSED);
    }
    assert!(mosn.stat("cluster.a.upstream_cx_protocol_error") >= 1);
    mosn.assert_nothing_leaks();
}

#[test]
fn large_payloads_pass_and_a_slow_reader_stops_only_itself() {
    let server = Server::start(bolt::next_frame, |frame, stream| {
        let _ = stream.write_all(&echo(frame));
    });
    let routes = json!([{"match": {"prefix": "/"}, "route": {"cluster": "a", "timeout": "60s"}}]);
    let mosn = Mosn::start(&to(&server), &routes, json!({}));
    let big = |id: u32| {
        let sent = Call {
            service: "demo.Svc:1.0".into(),
            method: "hello".into(),
            types: vec!["java.lang.String".into()],
            args: vec![Hessian::from("y".repeat(1 << 20))],
            props: Hessian::Null,
        };
        let mut out = Vec::new();
        sent.write(&mut out, Kind::Request, 60_000, &Parts::v1(id), &[]);
        out
    };
    let mut slow = connect(&mosn);
    let mut writer = slow.stream.try_clone().expect("a second handle");
    let sending = thread::spawn(move || {
        for id in 0..20 {
            writer.write_all(&big(id)).expect("sent");
        }
    });
    let mut quick = connect(&mosn);
    quick.send(&call(1));
    assert_eq!(text(&quick.expect()), "arg-1");
    for _ in 0..20 {
        assert_eq!(text(&slow.expect()).len(), 1 << 20);
    }
    sending.join().expect("sent");
    mosn.assert_nothing_leaks();
}

#[test]
fn a_caller_that_goes_away_leaves_nothing_behind() {
    let server = Server::start(bolt::next_frame, |_, _: &mut TcpStream| {});
    let mosn = Mosn::start(&to(&server), &to_a(), json!({}));
    let mut conn = connect(&mosn);
    for id in 0..20 {
        conn.send(&call_with(
            id,
            "demo.Svc:1.0",
            "hello",
            Kind::Request,
            600_000,
            &[],
        ));
    }
    mosn.wait_stat("cluster.a.upstream_rq_active", 20);
    drop(conn);
    mosn.assert_nothing_leaks();
    mosn.wait_stat("cluster.a.upstream_rq_cancelled", 20);
}

/// Splits the stream anywhere: the same answers come.
#[test]
fn any_split_of_the_stream_gives_the_same_answers() {
    let server = echo_server();
    let mosn = Mosn::start(&to(&server), &to_a(), json!({}));
    let kinds = proptest::collection::vec(0..4_u8, 1..40);
    let cuts = proptest::collection::vec(any::<prop::sample::Index>(), 0..12);
    let mut runner = TestRunner::new(ProptestConfig::with_cases(48));
    runner
        .run(&(kinds, cuts), |(kinds, cuts)| split(&mosn, &kinds, &cuts))
        .expect("the same answers");
    mosn.assert_nothing_leaks();
}

fn split(mosn: &Mosn, kinds: &[u8], cuts: &[prop::sample::Index]) -> Result<(), TestCaseError> {
    let mut bytes = Vec::new();
    let mut expected = HashSet::new();
    for (id, kind) in (0..).zip(kinds) {
        match kind {
            0 => bolt::write_heartbeat(&mut bytes, Version::V1, id),
            1 => bytes.extend(call_with(
                id,
                "demo.Svc:1.0",
                "hello",
                Kind::OneWay,
                -1,
                &[],
            )),
            _ => bytes.extend(call(id)),
        }
        if *kind != 1 {
            expected.insert((id, *kind == 0));
        }
    }
    let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len())).collect();
    ends.push(bytes.len());
    ends.sort_unstable();
    let mut conn = connect(mosn);
    let mut start = 0;
    for end in ends {
        conn.send(&bytes[start..end]);
        start = end;
    }
    let mut seen = HashSet::new();
    for _ in 0..expected.len() {
        let frame = conn.expect();
        let head = head(&frame);
        if head.command != command::HEARTBEAT {
            prop_assert_eq!(text(&frame), format!("arg-{}", head.id));
        }
        seen.insert((head.id, head.command == command::HEARTBEAT));
    }
    prop_assert_eq!(seen, expected);
    Ok(())
}
