//! The Consul adapter with a real server. Where `make peers` has not built it there is nothing to test with.

mod common;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use common::{all_told, hub_of, is_built, status, until, wait_same};
use registry::{Hub, Instance, ORIGIN_MARK, RegistrySource, ServiceKey, Trouble, Wanted};
use serde_json::{Value, json};
use testkit::net::Loopback;
use testkit::process::Process;
use testkit::registries::Consul;

const LIMIT: Duration = Duration::from_secs(60);

fn put(server: SocketAddr, path: &str, body: &Value) -> Result<()> {
    // A handler that reads no body ends the connection when there is one.
    let body = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    let path = format!("/v1/{path}");
    let answer = testkit::http::request(server, "PUT", &path, &[], body.as_bytes())?;
    ensure!(answer.status == 200, "{path}: {}", answer.text());
    Ok(())
}

fn service(id: &str, name: &str, more: Value) -> Value {
    let mut service = json!({"ID": id, "Name": name, "Address": "10.0.0.1", "Port": 80});
    if let (Some(fields), Value::Object(more)) = (service.as_object_mut(), more) {
        fields.extend(more);
    }
    service
}

/// Instances of a service, as any client of Consul sees them.
fn seen(server: SocketAddr, name: &str) -> Result<Vec<Value>> {
    let answer = testkit::http::get(server, &format!("/v1/health/service/{name}?passing=1"))?;
    Ok(serde_json::from_slice(&answer.body)?)
}

fn wait_seen(server: SocketAddr, name: &str, ports: &[u64]) -> Result<Vec<Value>> {
    testkit::wait::until_ok("the instances", LIMIT, || {
        let seen = seen(server, name)?;
        let mut of: Vec<u64> = seen
            .iter()
            .filter_map(|entry| entry["Service"]["Port"].as_u64())
            .collect();
        of.sort_unstable();
        ensure!(of == ports, "there are {of:?}");
        Ok(seen)
    })
}

fn endpoints(hub: &Hub) -> Vec<String> {
    all_told(hub, |i| {
        format!(
            "{} {}:{} w{} {}",
            i.service, i.address, i.port, i.weight, i.healthy
        )
    })
}

async fn wait_endpoints(hub: &Hub, expected: &[&str]) -> Result<()> {
    wait_same(LIMIT, || endpoints(hub), expected).await
}

fn source(server: SocketAddr, token: Option<&str>) -> Result<registry::SourceSpec> {
    let consul = json!({
        // An agent that is not there is passed over.
        "servers": ["http://127.0.0.1:1", format!("http://{server}")],
        "leaseDuration": "3s",
        "token": token,
    });
    let spec = json!({"consul": consul, "protection": {"hold": "2s"}});
    let spec: RegistrySource = serde_json::from_value(spec)?;
    Ok(spec.compile("consul")?)
}

#[tokio::test(flavor = "multi_thread")]
async fn services_are_read_as_they_change_and_outlive_the_server() -> Result<()> {
    if !is_built("consul") {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let mut server = Consul::start(folder.path(), "{}")?;
    let to = server.address();
    let register = |service: &Value| put(to, "agent/service/register", service);
    let url = "dubbo://10.0.0.2:20880/com.foo.Order?interface=com.foo.Order&weight=30";
    let spring = json!({"Meta": {"secure": "false"}, "Weights": {"Passing": 3, "Warning": 1}});
    register(&service("shop-1", "Shop", spring))?;
    let dubbo = json!({"Tags": ["dubbo"], "Meta": {"url": url}, "Check": {"TTL": "1h", "Status": "passing"}});
    register(&service("o", "com.foo.Order", dubbo))?;
    let sofa = json!({"Tags": ["com.foo.Cart:1.0:blue@DEFAULT"], "Port": 12200});
    register(&service("c", "com.foo.Cart", sofa))?;
    // On a node without an agent, without an address of its own; and one without a port.
    for (id, port) in [("r", 6379), ("none", 0)] {
        let service = json!({"ID": id, "Service": "redis", "Port": port, "Tags": ["tcp"]});
        let node = json!({"Node": "far", "Address": "10.0.0.9", "Service": service});
        put(to, "catalog/register", &node)?;
    }

    let hub = hub_of("one");
    hub.set_sources(vec![source(to, None)?]);
    let mut all = [
        "bolt/com.foo.Cart 10.0.0.1:12200 w100 true",
        "dubbo/com.foo.Order 10.0.0.2:20880 w30 true",
        "springcloud/shop 10.0.0.1:80 w300 true",
        "tcp/redis 10.0.0.9:6379 w100 true",
    ];
    wait_endpoints(&hub, &all).await?;
    let broken = status(&hub).await?.skipped_entries;
    assert!(
        broken.len() == 1 && broken[0].entry == "redis/none",
        "{broken:?}"
    );

    // Health, weights and what comes and goes are told by blocking queries.
    let started = Instant::now();
    put(to, "agent/check/fail/service:o", &Value::Null)?;
    all[1] = "dubbo/com.foo.Order 10.0.0.2:20880 w30 false";
    wait_endpoints(&hub, &all).await?;
    let more = json!({"Meta": {"secure": "false"}, "Weights": {"Passing": 5, "Warning": 1}});
    register(&service("shop-1", "Shop", more))?;
    all[2] = "springcloud/shop 10.0.0.1:80 w500 true";
    wait_endpoints(&hub, &all).await?;
    put(to, "agent/service/deregister/c", &Value::Null)?;
    wait_endpoints(&hub, &all[1..]).await?;
    assert!(
        started.elapsed() < Duration::from_secs(10),
        "{:?}",
        started.elapsed()
    );

    server.kill()?;
    until(LIMIT, "the loss is known", async || {
        status(&hub).await.ok().filter(|s| !s.connected && s.stale)
    })
    .await?;
    assert_eq!(endpoints(&hub), all[1..]);
    // Its indices begin anew with its data.
    server.restart_empty()?;
    register(&service("new", "http-shop", json!({})))?;
    wait_endpoints(&hub, &["http/http-shop 10.0.0.1:80 w100 true"]).await?;
    Ok(())
}

fn copy(port: u16) -> (Arc<str>, Arc<Instance>) {
    let mut copy = Instance::new(ServiceKey::new("dubbo", "com.foo.Order"), "10.9.0.1", port);
    let methods = (0..100).map(|n| format!("method{n}")).collect::<Vec<_>>();
    copy.version = "1.0".into();
    copy.metadata = [(ORIGIN_MARK, "one/nacos"), ("methods", &methods.join(","))]
        .into_iter()
        .collect();
    (format!("one/nacos/{port}").into(), Arc::new(copy))
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_live_as_long_as_the_hub() -> Result<()> {
    if !is_built("consul") {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let mut server = Consul::start(folder.path(), "{}")?;
    let to = server.address();
    let one = hub_of("one");
    one.set_sources(vec![source(to, None)?]);
    let wanted = |publish: &[u16], withdraw: &[u16]| Wanted {
        publish: publish.iter().map(|port| copy(*port)).collect(),
        withdraw: withdraw.iter().map(|port| copy(*port)).collect(),
        ..Wanted::default()
    };
    one.set_wanted("consul", wanted(&[1, 2], &[]));
    let copies = wait_seen(to, "com.foo.Order", &[1, 2])?;
    let service = &copies[0]["Service"];
    assert_eq!(service["Tags"], json!(["dubbo"]));
    let url = service["Meta"]["url"].as_str().context("no URL")?;
    ensure!(url.len() <= 512 && url.contains("&version=1.0&"), "{url}");

    // Its own copies are no instances of the mesh; to another mesh they are instances like others.
    let two = hub_of("two");
    two.set_sources(vec![source(to, None)?]);
    let both = [
        "dubbo/com.foo.Order 10.9.0.1:1 w100 true",
        "dubbo/com.foo.Order 10.9.0.1:2 w100 true",
    ];
    wait_endpoints(&two, &both).await?;
    assert_eq!(endpoints(&one), Vec::<String>::new());
    let services = two.snapshot();
    let read = services.get(&ServiceKey::new("dubbo", "com.foo.Order"));
    let read = read.and_then(|s| s.instances.first()).context("gone")?;
    ensure!(read.metadata.get("methods") == copy(1).1.metadata.get("methods"));

    // They outlive their lease's length, as it is renewed; a server that lost everything gets them again.
    let end = Instant::now() + Duration::from_secs(6);
    while Instant::now() < end {
        assert_eq!(endpoints(&two), both);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    server.kill()?;
    server.restart_empty()?;
    wait_seen(to, "com.foo.Order", &[1, 2])?;
    one.set_wanted("consul", wanted(&[2], &[1]));
    wait_endpoints(&two, &both[1..]).await?;
    // The copies of a hub that is no more are critical with their leases.
    drop(one);
    wait_seen(to, "com.foo.Order", &[])?;
    wait_endpoints(&two, &["dubbo/com.foo.Order 10.9.0.1:2 w100 false"]).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_sent_and_never_shown() -> Result<()> {
    if !is_built("consul") {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let acl = json!({"acl": {"enabled": true, "default_policy": "deny", "tokens": {"master": "root-word"}}});
    let server = Consul::start(folder.path(), &acl.to_string())?;
    let hub = hub_of("one");
    let spec = source(server.address(), Some("wrong-word"))?;
    ensure!(!format!("{spec:?}").contains("-word"), "the token is shown");
    hub.set_sources(vec![spec]);
    let failed = until(LIMIT, "the refusal is known", async || {
        let refused = Some(Trouble::Refused);
        status(&hub).await.ok().filter(|s| s.trouble == refused)
    })
    .await?;
    let reason = failed.reason.unwrap_or_default();
    ensure!(
        reason.contains("ACL") && !reason.contains("-word"),
        "{reason}"
    );
    hub.set_sources(vec![source(server.address(), Some("root-word"))?]);
    hub.set_wanted(
        "consul",
        Wanted {
            publish: [copy(7)].into_iter().collect(),
            ..Wanted::default()
        },
    );
    until(LIMIT, "the copy is there", async || {
        status(&hub)
            .await
            .ok()
            .filter(|s| s.connected && s.copies == 1)
    })
    .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn more_services_than_an_agent_allows_connections_are_read_in_turn() -> Result<()> {
    if !is_built("consul") {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let server = Consul::start(folder.path(), "{}")?;
    let to = server.address();
    for number in 0..300 {
        let name = format!("shop-{number}");
        put(
            to,
            "agent/service/register",
            &service(&name, &name, json!({})),
        )?;
    }
    let hub = hub_of("one");
    hub.set_sources(vec![source(to, None)?]);
    let all = until(LIMIT, "all are read", async || {
        status(&hub)
            .await
            .ok()
            .filter(|s| s.synced && s.instances == 300)
    })
    .await?;
    ensure!(all.sessions == 1, "{all:?}");
    let moved = service("shop-7", "shop-7", json!({"Port": 81}));
    put(to, "agent/service/register", &moved)?;
    until(LIMIT, "the change is read", async || {
        let services = hub.snapshot();
        let service = services.get(&ServiceKey::new("http", "shop-7"))?;
        service.instances.iter().any(|i| i.port == 81).then_some(())
    })
    .await
}

/// A Dubbo 2.7 application.
fn dubbo(name: &str, server: &Consul, flags: &[(&str, &str)], folder: &Path) -> Result<Process> {
    let registry = format!("consul://{}", server.address());
    let first = [("registry", registry.as_str())];
    let flags = first.iter().chain(flags);
    let arguments = flags.flat_map(|(flag, value)| [format!("--{flag}"), (*value).to_owned()]);
    let arguments: Vec<String> = arguments.collect();
    let class = "mesh.apps.dubbo2.Client";
    testkit::apps::start_client("dubbo2", class, name, &arguments, folder)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dubbo_consumer_calls_a_provider_of_another_consul() -> Result<()> {
    if !is_built("consul") {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let elsewhere = folder.path().join("elsewhere");
    std::fs::create_dir(&elsewhere)?;
    let providers = Consul::start(folder.path(), "{}")?;
    let consumers = Consul::start(&elsewhere, "{}")?;
    let loopback = Loopback::claim()?;
    loopback.write_hosts(folder.path())?;
    let host = loopback.ip(2).to_string();
    let flags = [("label", "v1"), ("host", &host), ("port", "20880")];
    let mut provider = dubbo("provider", &providers, &flags, folder.path())?;

    let hub = hub_of("one");
    hub.set_sources(vec![source(providers.address(), None)?]);
    let read = until(LIMIT, "the provider is read", async || {
        let services = hub.snapshot();
        let service = services.get(&ServiceKey::new("dubbo", "mesh.apps.dubbo2.Echo"))?;
        service.instances.first().filter(|i| i.healthy).cloned()
    })
    .await?;
    assert_eq!((&*read.version, read.port), ("1.0", 20880));
    let mut copy = Instance::clone(&read);
    // Dubbo dials the machine's own address in place of one on the loopback, but leaves names alone.
    copy.address = loopback.name(2).into();
    let mark = [(ORIGIN_MARK, "one/consul")];
    copy.metadata = copy.metadata.iter().chain(mark).collect();

    let writer = self::hub_of("one");
    writer.set_sources(vec![source(consumers.address(), None)?]);
    let publish = [("copy".into(), Arc::new(copy))].into_iter().collect();
    let withdraw = std::collections::BTreeMap::new();
    writer.set_wanted(
        "consul",
        Wanted {
            publish,
            withdraw,
            ..Wanted::default()
        },
    );
    let mut consumer = dubbo("consumer", &consumers, &[], folder.path())?;
    let calls = |consumer: &mut Process, expected: &str| {
        testkit::wait::until_ok("the calls", LIMIT, || {
            let answers = consumer.ask("call 10", LIMIT)?;
            ensure!(answers == expected, "{answers}");
            Ok(())
        })
    };
    calls(&mut consumer, "{v1=10}")?;

    // An orderly end is told at once; the copy goes when it is no longer wanted.
    provider.terminate(LIMIT)?;
    wait_endpoints(&hub, &[]).await?;
    writer.set_wanted("consul", Wanted::default());
    calls(&mut consumer, "{failed=10}")
}
