//! The Nacos adapter with the mesh's own Nacos face on the other side: over gRPC, where that tells which services come, and
//! over HTTP, where it is asked.

mod common;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use common::{all_told, hub_of, status, until, wait_same};
use registry::facades::nacos::{Config, GRPC_OFFSET, serve};
use registry::{
    Credentials, Hub, HubOptions, Instance, InstanceRef, Limits, ORIGIN_MARK, Registry,
    RegistrySource, ServiceKey, Trouble, Wanted,
};
use serde_json::{Value, json};
use testkit::net::Loopback;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

const LIMIT: Duration = Duration::from_secs(60);

/// A registry that answers as Nacos.
struct Server {
    registry: Registry,
    address: SocketAddr,
    credentials: Option<Credentials>,
    task: JoinHandle<std::io::Result<()>>,
}

impl Server {
    async fn start(address: SocketAddr, credentials: Option<Credentials>) -> Result<Server> {
        let registry = Registry::in_memory(Limits::default())?;
        let task = run(address, credentials.clone(), &registry).await?;
        Ok(Server {
            registry,
            address,
            credentials,
            task,
        })
    }

    /// Its connections end, and it knows nothing when it is there again.
    async fn restart(&mut self) -> Result<()> {
        self.task.abort();
        let _ = (&mut self.task).await;
        *self = Server::start(self.address, self.credentials.clone()).await?;
        Ok(())
    }

    async fn register(&self, protocol: &str, name: &str, port: u16, group: &str) -> Result<()> {
        let mut instance = Instance::new(ServiceKey::new(protocol, name), "10.0.0.1", port);
        instance.id = port.to_string().into();
        instance.group = group.into();
        instance.ttl = None;
        instance.metadata = [("zone", "east")].into_iter().collect();
        self.registry.register(vec![instance]).await?;
        Ok(())
    }

    fn holds(&self) -> Vec<String> {
        let services = self.registry.snapshot();
        let instances = services.iter().flat_map(|s| s.instances.iter());
        let mut all: Vec<String> = instances.map(|i| describe(i)).collect();
        all.sort();
        all
    }
}

async fn run(
    address: SocketAddr,
    credentials: Option<Credentials>,
    registry: &Registry,
) -> Result<JoinHandle<std::io::Result<()>>> {
    let hub = Hub::start(HubOptions {
        mesh_id: "server".to_owned(),
        registry: Some(registry.clone()),
        ..HubOptions::default()
    });
    let http = TcpListener::bind(address).await?;
    let grpc = TcpListener::bind((address.ip(), address.port() + GRPC_OFFSET)).await?;
    let config = Config {
        address,
        credentials,
    };
    Ok(tokio::spawn(serve(
        http,
        grpc,
        hub,
        registry.clone(),
        config,
    )))
}

fn describe(instance: &Instance) -> String {
    let Instance {
        service,
        address,
        port,
        group,
        weight,
        ..
    } = instance;
    format!("{service} {address}:{port} g{group} w{weight}")
}

async fn wait_endpoints(hub: &Hub, expected: &[&str]) -> Result<()> {
    wait_same(LIMIT, || all_told(hub, describe), expected).await
}

fn source(nacos: &Value) -> Result<registry::SourceSpec> {
    let spec = json!({"nacos": nacos, "protection": {"hold": "3s"}});
    let spec: RegistrySource = serde_json::from_value(spec)?;
    Ok(spec.compile("nacos")?)
}

fn copy(protocol: &str, name: &str, port: u16) -> (Arc<str>, Arc<Instance>) {
    let mut copy = Instance::new(ServiceKey::new(protocol, name), "10.9.0.1", port);
    copy.weight = 250;
    copy.metadata = [(ORIGIN_MARK, "mesh/zk"), ("zone", "west")]
        .into_iter()
        .collect();
    (format!("{protocol}/{name}/{port}").into(), Arc::new(copy))
}

fn wanted(publish: &[(&str, &str, u16)], withdraw: &[(&str, &str, u16)]) -> Wanted {
    let copies =
        |of: &[(&str, &str, u16)]| of.iter().map(|(p, n, port)| copy(p, n, *port)).collect();
    Wanted {
        publish: copies(publish),
        withdraw: copies(withdraw),
        ..Wanted::default()
    }
}

async fn reads_and_writes(protocol: &str) -> Result<()> {
    let loopback = Loopback::claim()?;
    let mut server = Server::start(loopback.address(1, 8848), None).await?;
    server.register("dubbo", "com.foo.Order", 1, "blue").await?;
    server.register("bolt", "com.foo.Cart", 2, "uid").await?;
    server.register("springcloud", "shop", 3, "").await?;
    let hub = hub_of("mesh");
    hub.set_sources(vec![source(&json!({
        "servers": ["127.0.0.1:1", server.address.to_string()],
        "protocol": protocol,
        "listInterval": "300ms",
    }))?]);
    let mut all = vec![
        "bolt/com.foo.Cart 10.0.0.1:2 guid w100",
        "dubbo/com.foo.Order 10.0.0.1:1 gblue w100",
        "springcloud/shop 10.0.0.1:3 g w100",
    ];
    wait_endpoints(&hub, &all).await?;
    let services = hub.snapshot();
    let shop = services.get(&ServiceKey::new("springcloud", "shop"));
    let shop = shop.and_then(|s| s.instances.first()).context("gone")?;
    ensure!(shop.metadata.get("zone") == Some("east"), "{shop:?}");

    // What comes, and what goes: the last instance of a service too, which the server says itself.
    server.register("http", "late", 4, "").await?;
    all.insert(2, "http/late 10.0.0.1:4 g w100");
    wait_endpoints(&hub, &all).await?;
    let gone = InstanceRef::new("springcloud", "shop", "3");
    server.registry.deregister(vec![gone]).await?;
    all.pop();
    wait_endpoints(&hub, &all).await?;

    // Copies, two of them of one service, are what the frameworks look for; this mesh does not take them for instances.
    let (order, shop) = ("com.foo.Order", "shop");
    let copies = [
        ("dubbo", order, 11),
        ("dubbo", order, 12),
        ("springcloud", shop, 13),
    ];
    hub.set_wanted("nacos", wanted(&copies, &[]));
    let written = async |server: &Server, expected: &[&str]| {
        let holds = || -> Vec<String> {
            let all = server.holds().into_iter();
            all.filter(|line| line.contains("10.9.0.1")).collect()
        };
        until(LIMIT, "the copies", async || {
            (holds() == expected).then_some(())
        })
        .await
        .with_context(|| format!("{expected:?} expected, {:?}", server.holds()))
    };
    let lines = [
        "dubbo/com.foo.Order 10.9.0.1:11 g w250",
        "dubbo/com.foo.Order 10.9.0.1:12 g w250",
        "springcloud/shop 10.9.0.1:13 g w250",
    ];
    written(&server, &lines).await?;
    until(LIMIT, "they are known as copies", async || {
        let status = status(&hub).await.ok()?;
        (status.copies == 3 && status.instances == 3).then_some(())
    })
    .await?;

    // A server that has lost everything: what it had stays for a while, and it gets the copies again.
    server.restart().await?;
    written(&server, &lines).await?;
    server.register("http", "late", 4, "").await?;
    wait_endpoints(&hub, &["http/late 10.0.0.1:4 g w100"]).await?;

    hub.set_wanted("nacos", wanted(&copies[1..], &copies[..1]));
    written(&server, &lines[1..]).await?;
    hub.set_wanted("nacos", wanted(&[], &copies));
    written(&server, &[]).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn services_and_copies_over_grpc() -> Result<()> {
    reads_and_writes("grpc").await
}

#[tokio::test(flavor = "multi_thread")]
async fn services_and_copies_over_http() -> Result<()> {
    reads_and_writes("http").await
}

#[tokio::test(flavor = "multi_thread")]
async fn pushes_of_the_first_version_come_before_the_next_question() -> Result<()> {
    let loopback = Loopback::claim()?;
    let server = Server::start(loopback.address(1, 8848), None).await?;
    server.register("http", "shop", 1, "").await?;
    server.register("http", "shop", 2, "").await?;
    let hub = hub_of("mesh");
    hub.set_sources(vec![source(&json!({
        "servers": [server.address.to_string()],
        "protocol": "http",
        "listInterval": "1h",
    }))?]);
    let lines = [1, 2, 3].map(|port| format!("http/shop 10.0.0.1:{port} g w100"));
    let lines = lines.each_ref().map(String::as_str);
    wait_endpoints(&hub, &lines[..2]).await?;
    server.register("http", "shop", 3, "").await?;
    wait_endpoints(&hub, &lines).await?;
    let gone = InstanceRef::new("http", "shop", "3");
    server.registry.deregister(vec![gone]).await?;
    wait_endpoints(&hub, &lines[..2]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_known_as_one_and_not_shown() -> Result<()> {
    let loopback = Loopback::claim()?;
    let credentials = |password: &str| json!({"username": "mesh", "password": password});
    let right: Credentials = serde_json::from_value(credentials("right-word"))?;
    let server = Server::start(loopback.address(1, 8848), Some(right)).await?;
    server.register("http", "shop", 3, "").await?;
    for protocol in ["grpc", "http"] {
        let hub = hub_of("mesh");
        let login = |password: &str| {
            source(&json!({
                "servers": [server.address.to_string()],
                "protocol": protocol,
                "login": credentials(password),
            }))
        };
        let spec = login("wrong-word")?;
        ensure!(!format!("{spec:?}").contains("-word"), "{spec:?}");
        hub.set_sources(vec![spec]);
        let failed = until(LIMIT, "the refusal is known", async || {
            let status = status(&hub).await.ok();
            status.filter(|s| s.trouble == Some(Trouble::Refused))
        })
        .await?;
        let reason = failed.reason.unwrap_or_default();
        ensure!(!reason.contains("-word"), "{reason}");
        hub.set_sources(vec![login("right-word")?]);
        wait_endpoints(&hub, &["http/shop 10.0.0.1:3 g w100"]).await?;
    }
    Ok(())
}
