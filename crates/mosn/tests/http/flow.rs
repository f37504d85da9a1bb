//! Bytes in motion: streams both ways, slow receivers, upgrades, connections that end at the wrong moment, drain.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;

use crate::support::{
    Client, Kind, LIMIT, Proxy, Upstream, cluster, manager, read_message, request, start,
};
use serde_json::{Value, json};
use testkit::{http, wait};

/// A proxy with one route for everything, to one cluster; `extra` is merged into the connection manager.
fn proxy_to(cluster: Value, extra: Value) -> (Proxy, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let routes = json!([{"match": {"prefix": "/"}, "route": {"cluster": "b", "timeout": "0s"}}]);
    let proxy = start(
        Kind::Mosn,
        folder.path(),
        &[cluster],
        &[manager(routes, extra)],
    );
    (proxy, folder)
}

/// An upstream that hands each connection to `serve`.
fn upstream(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let serve = Arc::new(serve);
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            stream.set_read_timeout(Some(LIMIT)).unwrap();
            let serve = serve.clone();
            thread::spawn(move || serve(stream));
        }
    });
    address
}

fn assert_nothing_is_left(proxy: &Proxy) {
    for name in [
        "http.in.downstream_rq_active",
        "http.in.downstream_cx_active",
        "cluster.b.upstream_rq_active",
        "cluster.b.upstream_rq_pending_active",
    ] {
        proxy.wait_stat(name, 0);
    }
}

#[test]
fn events_arrive_as_they_are_sent() {
    let (go, waits) = mpsc::channel::<&'static str>();
    let waits = std::sync::Mutex::new(waits);
    let address = upstream(move |mut stream| {
        read_message(&mut stream, &mut Vec::new(), false).unwrap();
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
        stream.write_all(head.as_bytes()).unwrap();
        while let Ok(event) = waits.lock().unwrap().recv() {
            stream
                .write_all(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes())
                .unwrap();
        }
        stream.write_all(b"0\r\n\r\n").unwrap();
    });
    let (proxy, _folder) = proxy_to(cluster("b", address), json!({}));
    let mut client = Client::connect(proxy.listeners[0]);
    client.send(request("GET", "/events", ""));
    client.read_until("\r\n\r\n");
    for event in ["data: 1\n\n", "data: 2\n\n"] {
        // The next event is sent only after this one has been received.
        go.send(event).unwrap();
        client.read_until(event);
    }
    drop(go);
    client.read_until("0\r\n\r\n");
}

#[test]
fn a_slow_reader_holds_back_the_sender_and_loses_nothing() {
    const TOTAL: u64 = 64 * 1024 * 1024;
    let sent = Arc::new(AtomicU64::new(0));
    let count = sent.clone();
    let address = upstream(move |mut stream| {
        read_message(&mut stream, &mut Vec::new(), false).unwrap();
        stream
            .write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: {TOTAL}\r\n\r\n").as_bytes())
            .unwrap();
        let piece = [7; 64 * 1024];
        for _ in 0..TOTAL / piece.len() as u64 {
            stream.write_all(&piece).unwrap();
            count.fetch_add(piece.len() as u64, Ordering::Relaxed);
        }
    });
    let (proxy, _folder) = proxy_to(cluster("b", address), json!({}));
    let mut client = Client::connect(proxy.listeners[0]);
    client.send(request("GET", "/", ""));
    client.read_until("\r\n\r\n");
    // Sending stops when the buffers of the sockets are full; the proxy keeps little itself.
    let mut last = u64::MAX;
    let stalled = || {
        let now = sent.load(Ordering::Relaxed);
        let same = now == last;
        last = now;
        same.then_some(now)
    };
    let stalled = wait::until("the sender is held back", LIMIT, stalled).unwrap();
    assert!(
        stalled < TOTAL / 2,
        "{stalled} bytes were taken off the sender"
    );
    let mut received = 0;
    let mut piece = vec![0; 256 * 1024];
    loop {
        let read = client.stream.read(&mut piece).unwrap();
        received += read as u64;
        if received >= TOTAL - 64 * 1024 && sent.load(Ordering::Relaxed) == TOTAL {
            break;
        }
        assert!(read > 0, "closed after {received} bytes");
    }
    drop(client);
    assert_nothing_is_left(&proxy);
}

#[test]
fn both_directions_flow_at_the_same_time() {
    // Gives back each piece as it comes, long before the request has ended.
    let address = upstream(|mut stream| {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        stream
            .write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
            .unwrap();
        let mut copy = stream.try_clone().unwrap();
        let _ = std::io::copy(&mut stream, &mut copy);
    });
    let (proxy, _folder) = proxy_to(cluster("b", address), json!({}));
    let mut client = Client::connect(proxy.listeners[0]);
    client.send(request("POST", "/echo", "transfer-encoding: chunked\r\n"));
    client.read_until("\r\n\r\n");
    for round in 0..200 {
        let piece = format!("{round:08}").repeat(1000);
        client.send(format!("{:x}\r\n{piece}\r\n", piece.len()));
        // The proxy may cut the piece in chunks of its own.
        let mut got = String::new();
        while got.len() < piece.len() {
            let size = client.read_until("\r\n");
            let size = usize::from_str_radix(size.trim_end(), 16).unwrap();
            let mut rest = String::new();
            while rest.len() < size + 2 {
                rest += &client.read_until("\r\n");
            }
            got += rest.trim_end();
        }
        assert_eq!(got, piece);
    }
    client.send("0\r\n\r\n");
    client.read_until("0\r\n\r\n");
}

#[test]
fn an_upgraded_connection_carries_anything() {
    let address = upstream(|mut stream| {
        read_message(&mut stream, &mut Vec::new(), false).unwrap();
        let head = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nfirst";
        stream.write_all(head.as_bytes()).unwrap();
        let mut copy = stream.try_clone().unwrap();
        let _ = std::io::copy(&mut stream, &mut copy);
    });
    let upgrades =
        json!({"upgrade_configs": [{"upgrade_type": "websocket"}], "stream_idle_timeout": "0s"});
    let (proxy, _folder) = proxy_to(cluster("b", address), upgrades);
    let mut client = Client::connect(proxy.listeners[0]);
    // Bytes behind the request must not be lost either.
    client.send(
        request(
            "GET",
            "/ws",
            "Upgrade: websocket\r\nConnection: Upgrade\r\n",
        ) + "early",
    );
    let head = client.read_until("\r\n\r\n");
    assert!(
        head.starts_with("HTTP/1.1 101 ") && head.contains("upgrade: websocket\r\n"),
        "{head}"
    );
    assert_eq!(client.read_until("firstearly"), "firstearly");
    let big = "x".repeat(1024 * 1024);
    let mut sender = client.stream.try_clone().unwrap();
    let sending = thread::spawn(move || sender.write_all(format!("{big}!").as_bytes()));
    assert_eq!(client.read_until("!").len(), 1024 * 1024 + 1);
    sending.join().unwrap().unwrap();
    proxy.wait_stat("http.in.downstream_cx_upgrades_active", 1);
    drop(client);
    proxy.wait_stat("http.in.downstream_cx_upgrades_active", 0);
    assert_nothing_is_left(&proxy);
}

#[test]
fn a_connection_that_its_upstream_closed_while_idle_is_noticed() {
    let address = upstream(|mut stream| {
        // One request a connection, without saying so.
        let _ = read_message(&mut stream, &mut Vec::new(), false);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
    });
    let (proxy, _folder) = proxy_to(cluster("b", address), json!({}));
    let mut client = Client::connect(proxy.listeners[0]);
    for _ in 0..5 {
        client.send(request("POST", "/", "content-length: 2\r\n") + "hi");
        assert!(client.answer(false).unwrap().0.starts_with("HTTP/1.1 200 "));
        // Nobody asks for the connection, and still it is closed.
        proxy.wait_stat("cluster.b.upstream_cx_active", 0);
    }
    proxy.wait_stat("cluster.b.upstream_cx_destroy_remote", 5);
}

#[test]
fn connections_are_kept_and_shared_up_to_the_limit() {
    let shared = Upstream::start();
    let mut limited = cluster("b", shared.address);
    limited["circuit_breakers"] = json!({"thresholds": [{"max_connections": 1}]});
    let (proxy, _folder) = proxy_to(limited, json!({}));
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let address = proxy.listeners[0];
            thread::spawn(move || {
                let mut client = Client::connect(address);
                for _ in 0..50 {
                    client.send(request("GET", "/", ""));
                    assert!(client.answer(false).unwrap().1.ends_with("ok"));
                }
            })
        })
        .collect();
    clients
        .into_iter()
        .for_each(|client| client.join().unwrap());
    assert_eq!(proxy.stat("cluster.b.upstream_cx_total"), 1);
    assert_eq!(proxy.stat("cluster.b.upstream_rq_200"), 400);
    assert_nothing_is_left(&proxy);
}

#[test]
fn a_client_that_leaves_takes_its_request_along() {
    let silent = Upstream::start();
    let (proxy, _folder) = proxy_to(cluster("b", silent.address), json!({}));
    for headers in ["", "content-length: 100\r\n"] {
        let mut client = Client::connect(proxy.listeners[0]);
        client.send(request("POST", "/?mode=silent", headers));
        proxy.wait_stat("cluster.b.upstream_rq_active", 1);
        drop(client);
        assert_nothing_is_left(&proxy);
        proxy.wait_stat("cluster.b.upstream_cx_active", 0);
    }
}

#[test]
fn an_answer_that_breaks_off_ends_the_connection() {
    for answer in [
        "content-length: 20\r\n\r\npart",
        "transfer-encoding: chunked\r\n\r\n5\r\npart",
    ] {
        let address = upstream(move |mut stream| {
            read_message(&mut stream, &mut Vec::new(), false).unwrap();
            stream
                .write_all(format!("HTTP/1.1 200 OK\r\n{answer}").as_bytes())
                .unwrap();
        });
        let (proxy, _folder) = proxy_to(cluster("b", address), json!({}));
        let mut client = Client::connect(proxy.listeners[0]);
        client.send(request("GET", "/", ""));
        client.read_until("part");
        let mut rest = Vec::new();
        let _ = client.stream.read_to_end(&mut rest);
        assert!(
            !String::from_utf8_lossy(&rest).contains("0\r\n\r\n"),
            "the end was made up"
        );
        assert_nothing_is_left(&proxy);
    }
}

#[test]
fn a_retry_goes_to_a_host_that_was_not_tried() {
    let good = Upstream::start();
    let refused = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let mut both = cluster("b", good.address);
    let endpoint = |address| json!({"endpoint": {"address": crate::support::socket(address)}});
    both["load_assignment"]["endpoints"][0]["lb_endpoints"] =
        json!([endpoint(refused), endpoint(good.address)]);
    let folder = tempfile::tempdir().unwrap();
    let policy = json!({"retry_on": "connect-failure", "num_retries": 1, "retry_host_predicate": [{
        "name": "envoy.retry_host_predicates.previous_hosts", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"}}],
        "host_selection_retry_max_attempts": 5});
    let routes =
        json!([{"match": {"prefix": "/"}, "route": {"cluster": "b", "retry_policy": policy}}]);
    let proxy = start(
        Kind::Mosn,
        folder.path(),
        &[both],
        &[manager(routes, json!({}))],
    );
    let mut client = Client::connect(proxy.listeners[0]);
    for number in 0..20 {
        let body = format!("number {number}");
        client.send(request("POST", "/", &format!("content-length: {}\r\n", body.len())) + &body);
        assert!(client.answer(false).unwrap().0.starts_with("HTTP/1.1 200 "));
        let seen = good.take();
        assert!(seen.len() == 1 && seen[0].ends_with(&body), "{seen:?}");
    }
    assert!(proxy.stat("cluster.b.upstream_rq_retry") >= 5);
}

#[test]
fn a_drained_connection_ends_with_its_next_answer() {
    let good = Upstream::start();
    let (proxy, _folder) = proxy_to(cluster("b", good.address), json!({"drain_timeout": "0.2s"}));
    let mut busy = Client::connect(proxy.listeners[0]);
    let mut idle = Client::connect(proxy.listeners[0]);
    for client in [&mut busy, &mut idle] {
        client.send(request("GET", "/", ""));
        assert!(
            !client
                .answer(false)
                .unwrap()
                .0
                .contains("connection: close")
        );
    }
    http::request(proxy.admin, "POST", "/drain_listeners", &[], &[]).unwrap();
    busy.send(request("GET", "/", ""));
    assert!(busy.answer(false).unwrap().0.contains("connection: close"));
    assert!(busy.is_closed());
    assert!(idle.is_closed());
}

#[test]
fn garbage_leaves_nothing_behind() {
    let good = Upstream::start();
    let (proxy, _folder) = proxy_to(
        cluster("b", good.address),
        json!({"delayed_close_timeout": "0.01s"}),
    );
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let whole = request("POST", "/b?x", "transfer-encoding: chunked\r\nx: y\r\n")
        + "5\r\nhello\r\n0\r\n\r\n";
    for _ in 0..300 {
        let mut bytes = whole.clone().into_bytes();
        for _ in 0..random() % 4 {
            let at = (random() % bytes.len() as u64) as usize;
            bytes[at] = random() as u8;
        }
        bytes.truncate((random() % (bytes.len() as u64 * 2)) as usize);
        let mut client = Client::connect(proxy.listeners[0]);
        client.send(&bytes);
    }
    let mut client = Client::connect(proxy.listeners[0]);
    client.send(request("GET", "/", ""));
    assert!(client.answer(false).unwrap().1.ends_with("ok"));
    drop(client);
    assert_nothing_is_left(&proxy);
}
