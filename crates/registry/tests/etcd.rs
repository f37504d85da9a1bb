//! The etcd adapter with a real server; its other client speaks to the server's JSON gateway.

mod common;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use common::{all_told, hub_of, status, until, wait_same};
use registry::{Hub, Instance, ORIGIN_MARK, RegistrySource, ServiceKey, Trouble, Wanted};
use serde_json::{Value, json};
use testkit::net::Loopback;
use testkit::process::Process;
use testkit::registries::Etcd;

const FOLDER: &str = "/dubbo/com.foo.Order/providers/";
const LIMIT: Duration = Duration::from_secs(60);

/// The server's JSON gateway.
struct Gateway(SocketAddr);

impl Gateway {
    fn ask(&self, path: &str, body: &Value) -> Result<Value> {
        let answer = testkit::http::post_json(self.0, &format!("/v3/{path}"), body)?;
        ensure!(answer.status == 200, "{path}: {}", answer.text());
        answer.json()
    }

    fn put(&self, entry: &str, lease: &Value) -> Result<()> {
        let key = STANDARD.encode(format!("{FOLDER}{entry}"));
        self.ask("kv/put", &json!({"key": key, "value": "", "lease": lease}))?;
        Ok(())
    }

    fn delete(&self, entry: &str) -> Result<()> {
        let key = STANDARD.encode(format!("{FOLDER}{entry}"));
        self.ask("kv/deleterange", &json!({"key": key}))?;
        Ok(())
    }

    fn entries(&self) -> Result<Vec<String>> {
        let end = FOLDER.replace("providers/", "providers0");
        let range = json!({"key": STANDARD.encode(FOLDER), "range_end": STANDARD.encode(end)});
        let answer = self.ask("kv/range", &range)?;
        let kvs = answer["kvs"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        kvs.iter()
            .map(|kv| {
                let key = STANDARD.decode(kv["key"].as_str().context("no key")?)?;
                let key = String::from_utf8(key)?;
                Ok(key
                    .strip_prefix(FOLDER)
                    .context("another folder")?
                    .to_owned())
            })
            .collect()
    }

    fn wait_entries(&self, count: usize) -> Result<Vec<String>> {
        testkit::wait::until_ok("the entries", LIMIT, || {
            let entries = self.entries()?;
            ensure!(entries.len() == count, "there are {entries:?}");
            Ok(entries)
        })
    }
}

fn endpoints(hub: &Hub) -> Vec<String> {
    all_told(hub, |i| format!("{}:{} v{}", i.address, i.port, i.version))
}

async fn wait_endpoints(hub: &Hub, expected: &[&str]) -> Result<()> {
    wait_same(LIMIT, || endpoints(hub), expected).await
}

fn source(server: SocketAddr, more: Value) -> Result<registry::SourceSpec> {
    // A server that is not there is passed over.
    let mut etcd = json!({"servers": ["127.0.0.1:1", server.to_string()], "leaseDuration": "2s"});
    let fields = etcd.as_object_mut().context("no object")?;
    if let Value::Object(more) = more {
        fields.extend(more);
    }
    let spec = json!({"etcd": etcd, "protection": {"hold": "2s"}});
    let spec: RegistrySource = serde_json::from_value(spec)?;
    Ok(spec.compile("etcd")?)
}

fn copy(port: u16) -> (Arc<str>, Arc<Instance>) {
    let mut copy = Instance::new(ServiceKey::new("dubbo", "com.foo.Order"), "10.9.0.1", port);
    copy.metadata = [(ORIGIN_MARK, "one/nacos"), ("methods", "place,cancel")]
        .into_iter()
        .collect();
    (format!("copy-{port}").into(), Arc::new(copy))
}

fn wanted(publish: &[u16], withdraw: &[u16]) -> Wanted {
    Wanted {
        publish: publish.iter().map(|port| copy(*port)).collect(),
        withdraw: withdraw.iter().map(|port| copy(*port)).collect(),
        ..Wanted::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn providers_are_read_and_outlive_the_server() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut server = Etcd::start(folder.path())?;
    let gateway = Gateway(server.address());
    let lease = gateway.ask("lease/grant", &json!({"TTL": 2, "ID": 0}))?;
    let lease = lease["ID"].clone();
    let encoded = "dubbo%3A%2F%2F10.0.0.1%3A20880%2Fcom.foo.Order%3Fversion%3D1.0";
    gateway.put(encoded, &json!(0))?;
    gateway.put("dubbo://10.0.0.2:20880/com.foo.Order", &json!(0))?;
    gateway.put("dubbo%3A%2F%2F10.0.0.3%3A99999%2Fcom.foo.Order", &json!(0))?;

    let hub = hub_of("one");
    hub.set_sources(vec![source(server.address(), Value::Null)?]);
    let both = ["10.0.0.1:20880 v1.0", "10.0.0.2:20880 v"];
    wait_endpoints(&hub, &both).await?;
    let broken = status(&hub).await?.skipped_entries;
    assert!(
        broken.len() == 1 && broken[0].entry.contains("99999"),
        "{broken:?}"
    );

    // What is new comes by the watch; what goes with its lease goes at once.
    gateway.put("dubbo://10.0.0.4:20880/com.foo.Order", &lease)?;
    wait_endpoints(&hub, &[both[0], both[1], "10.0.0.4:20880 v"]).await?;
    wait_endpoints(&hub, &both).await?;

    // A server that is away takes nothing with it, and what it forgot meanwhile is asked for again.
    server.kill()?;
    until(LIMIT, "the loss is known", async || {
        status(&hub).await.ok().filter(|s| !s.connected && s.stale)
    })
    .await?;
    assert_eq!(endpoints(&hub), both);
    server.restart()?;
    gateway.put("dubbo://10.0.0.5:20880/com.foo.Order", &json!(0))?;
    wait_endpoints(&hub, &[both[0], both[1], "10.0.0.5:20880 v"]).await?;
    gateway.delete(encoded)?;
    wait_endpoints(&hub, &[both[1], "10.0.0.5:20880 v"]).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_live_as_long_as_the_hub() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut server = Etcd::start(folder.path())?;
    let gateway = Gateway(server.address());
    let one = hub_of("one");
    one.set_sources(vec![source(server.address(), Value::Null)?]);
    one.set_wanted("etcd", wanted(&[1, 2], &[]));
    let entries = gateway.wait_entries(2)?;
    assert!(
        entries[0].starts_with("dubbo%3A%2F%2F10.9.0.1%3A1%2F")
            && entries[0].contains("methods%3Dplace%2Ccancel"),
        "{entries:?}"
    );
    // Its own copies are no instances of the mesh; to another mesh they are instances like others.
    let two = hub_of("two");
    two.set_sources(vec![source(server.address(), Value::Null)?]);
    let both = ["10.9.0.1:1 v", "10.9.0.1:2 v"];
    wait_endpoints(&two, &both).await?;
    assert_eq!(endpoints(&one), Vec::<String>::new());
    // They outlive their lease's length, as it is kept.
    let end = Instant::now() + Duration::from_secs(5);
    while Instant::now() < end {
        assert_eq!(endpoints(&two), both);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    // A server that lost everything gets them again.
    server.kill()?;
    server.restart_empty()?;
    gateway.wait_entries(2)?;
    one.set_wanted("etcd", wanted(&[2], &[1]));
    wait_endpoints(&two, &both[1..]).await?;
    drop(one);
    wait_endpoints(&two, &[]).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_one_page_is_read_and_written() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let server = Etcd::start(folder.path())?;
    let one = hub_of("one");
    one.set_sources(vec![source(server.address(), Value::Null)?]);
    let ports: Vec<u16> = (1..=3000).collect();
    one.set_wanted("etcd", wanted(&ports, &[]));
    until(LIMIT, "all are written", async || {
        status(&one).await.ok().filter(|s| s.copies == ports.len())
    })
    .await?;
    let two = hub_of("two");
    two.set_sources(vec![source(server.address(), Value::Null)?]);
    let read = until(LIMIT, "all are read", async || {
        status(&two)
            .await
            .ok()
            .filter(|s| s.instances == ports.len())
    })
    .await?;
    ensure!(read.sessions == 1 && read.skipped == 0, "{read:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_in_and_says_why_it_cannot() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let server = Etcd::start(folder.path())?;
    let gateway = Gateway(server.address());
    gateway.put("dubbo://10.0.0.1:1/com.foo.Order", &json!(0))?;
    for name in ["root", "mesh"] {
        gateway.ask(
            "auth/user/add",
            &json!({"name": name, "password": "s3cret-word"}),
        )?;
    }
    gateway.ask("auth/user/grant", &json!({"user": "root", "role": "root"}))?;
    gateway.ask("auth/role/add", &json!({"name": "reader"}))?;
    let reader = json!({"permType": "READ", "key": STANDARD.encode("/dubbo/"), "range_end": STANDARD.encode("/dubbo0")});
    gateway.ask(
        "auth/role/grant",
        &json!({"name": "reader", "perm": reader}),
    )?;
    gateway.ask(
        "auth/user/grant",
        &json!({"user": "mesh", "role": "reader"}),
    )?;
    gateway.ask("auth/enable", &json!({}))?;

    let hub = hub_of("one");
    for login in [
        Value::Null,
        json!({"login": {"username": "mesh", "password": "wrong-word"}}),
    ] {
        hub.set_sources(vec![source(server.address(), login)?]);
        let failed = until(LIMIT, "the refusal is known", async || {
            let refused = Some(Trouble::Refused);
            status(&hub).await.ok().filter(|s| s.trouble == refused)
        })
        .await?;
        let reason = failed.reason.unwrap_or_default();
        assert!(!reason.contains("-word"), "{reason}");
    }
    let login = json!({"login": {"username": "mesh", "password": "s3cret-word"}});
    hub.set_sources(vec![source(server.address(), login)?]);
    wait_endpoints(&hub, &["10.0.0.1:1 v"]).await?;
    // Who may only read still reads.
    hub.set_wanted("etcd", wanted(&[1], &[]));
    let why = until(LIMIT, "the refusal of the copy is known", async || {
        status(&hub).await.ok()?.failed.into_values().next()
    })
    .await?;
    assert!(why.contains("permission denied"), "{why}");
    assert!(status(&hub).await?.connected);
    Ok(())
}

/// A Dubbo 2.7 application.
fn dubbo(name: &str, server: &Etcd, flags: &[(&str, &str)], folder: &Path) -> Result<Process> {
    let registry = format!("etcd3://{}", server.address());
    let first = [("registry", registry.as_str())];
    let flags = first.iter().chain(flags);
    let arguments = flags.flat_map(|(flag, value)| [format!("--{flag}"), (*value).to_owned()]);
    let arguments: Vec<String> = arguments.collect();
    let class = "mesh.apps.dubbo2.Client";
    testkit::apps::start_client("dubbo2", class, name, &arguments, folder)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dubbo_consumer_calls_a_provider_of_another_etcd() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let elsewhere = folder.path().join("elsewhere");
    std::fs::create_dir(&elsewhere)?;
    let (providers, consumers) = (Etcd::start(folder.path())?, Etcd::start(&elsewhere)?);
    let loopback = Loopback::claim()?;
    loopback.write_hosts(folder.path())?;
    let host = loopback.ip(2).to_string();
    let flags = [("label", "v1"), ("host", &host), ("port", "20880")];
    let mut provider = dubbo("provider", &providers, &flags, folder.path())?;

    let hub = hub_of("one");
    hub.set_sources(vec![source(providers.address(), Value::Null)?]);
    let read = until(LIMIT, "the provider is read", async || {
        let services = hub.snapshot();
        let service = services.get(&ServiceKey::new("dubbo", "mesh.apps.dubbo2.Echo"))?;
        service.instances.first().cloned()
    })
    .await?;
    assert_eq!((&*read.version, read.port), ("1.0", 20880));
    let mut copy = Instance::clone(&read);
    // Dubbo dials the machine's own address in place of one on the loopback, but leaves names alone.
    copy.address = loopback.name(2).into();
    let mark = [(ORIGIN_MARK, "one/etcd")];
    copy.metadata = copy.metadata.iter().chain(mark).collect();

    let writer = self::hub_of("one");
    writer.set_sources(vec![source(consumers.address(), Value::Null)?]);
    let publish = [("copy".into(), Arc::new(copy))].into_iter().collect();
    let withdraw = std::collections::BTreeMap::new();
    writer.set_wanted(
        "etcd",
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
    writer.set_wanted("etcd", Wanted::default());
    calls(&mut consumer, "{failed=10}")
}
