//! The mesh as Nacos, with stock clients of three generations: 1.4 over HTTP and UDP, 2.5 and 3.0 over gRPC.

mod common;

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use api::google::protobuf::Any;
use api::nacos::request_client::RequestClient;
use api::nacos::{Metadata, Payload};
use registry::facades::nacos::{Config, GRPC_OFFSET, serve};
use registry::{Credentials, Hub, HubOptions, Instance, InstanceRef, Limits, Registry, ServiceKey};
use serde_json::json;
use testkit::apps::{Framework, epoch_millis, start_consumer, start_provider};
use testkit::http::request;
use testkit::net::Loopback;
use testkit::process::Process;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

const LIMIT: Duration = Duration::from_secs(60);

/// A hub with a folder of files as another registry, and the facade of it.
struct Facade {
    hub: Hub,
    registry: Registry,
    address: SocketAddr,
    task: JoinHandle<std::io::Result<()>>,
}

impl Facade {
    async fn start(
        address: SocketAddr,
        folder: &Path,
        credentials: Option<Credentials>,
    ) -> Result<Facade> {
        let (hub, registry) = common::hub(Some(folder))?;
        let http = TcpListener::bind(address).await?;
        let grpc = TcpListener::bind((address.ip(), address.port() + GRPC_OFFSET)).await?;
        let config = Config {
            address,
            credentials,
        };
        let task = tokio::spawn(serve(http, grpc, hub.clone(), registry.clone(), config));
        Ok(Facade {
            hub,
            registry,
            address,
            task,
        })
    }

    /// All that it held is forgotten, and its connections end.
    async fn stop(self) {
        self.task.abort();
        let _ = self.task.await;
    }

    fn instances(&self, protocol: &str, name: &str) -> Vec<String> {
        common::told(&self.hub, &ServiceKey::new(protocol, name), tell)
    }

    async fn wait(&self, protocol: &str, name: &str, expected: &[&str]) -> Result<()> {
        let key = ServiceKey::new(protocol, name);
        common::wait_told(&self.hub, &key, tell, expected).await
    }
}

fn tell(instance: &Instance) -> String {
    let Instance {
        address,
        port,
        weight,
        healthy,
        ..
    } = instance;
    format!("{address}:{port}/{weight}/{healthy}")
}

/// A stock client.
struct Client(Process);

impl Client {
    fn start(module: &str, server: SocketAddr, flags: &[&str], folder: &Path) -> Result<Client> {
        let server = server.to_string();
        let arguments = ["--server", server.as_str()];
        let arguments = arguments.iter().chain(flags);
        let arguments: Vec<String> = arguments.map(|word| (*word).to_owned()).collect();
        // Its home folder is its own: clients keep lists there.
        let name = format!("{module}-{}", flags.join("-").replace('-', ""));
        let folder = folder.join(&name);
        std::fs::create_dir_all(&folder)?;
        let class = "mesh.apps.nacos.Client";
        testkit::apps::start_client(module, class, &name, &arguments, &folder).map(Client)
    }

    fn ask(&mut self, command: &str) -> Result<String> {
        self.0.say(command)?;
        self.0.hear(LIMIT).with_context(|| command.to_owned())
    }

    fn done(&mut self, command: &str) -> Result<()> {
        let answer = self.ask(command)?;
        ensure!(answer == "done", "{command}: {answer}");
        Ok(())
    }

    /// Asks until the answer is this.
    fn wait(&mut self, command: &str, expected: &str) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let answer = self.ask(command)?;
            if answer == expected {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "{command}: {expected} expected, {answer}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until what was pushed is this; the time when it was.
    fn pushed(&mut self, command: &str, expected: &str) -> Result<u64> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let answer = self.ask(command)?;
            let (time, told) = answer.split_once(' ').context("no time")?;
            if told == expected {
                return Ok(time.parse()?);
            }
            ensure!(
                Instant::now() < deadline,
                "{command}: {expected} expected, {answer}"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn orders(port: u16) -> Instance {
    let key = ServiceKey::new("springcloud", "orders");
    let mut instance = Instance::new(key, "10.9.0.1", port);
    instance.ttl = None;
    instance
}

fn write(folder: &Path, ports: &[u16]) -> Result<()> {
    let instances: Vec<String> = ports
        .iter()
        .map(|port| format!("{{address: 10.9.0.2, port: {port}}}"))
        .collect();
    let text = format!(
        "services:\n- {{protocol: springcloud, name: stock, instances: [{}]}}\n",
        instances.join(", ")
    );
    std::fs::write(folder.join("new"), text)?;
    std::fs::rename(folder.join("new"), folder.join("stock.yaml"))?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_every_generation_see_each_other_and_all_registries() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let files = folder.path().join("files");
    std::fs::create_dir(&files)?;
    write(&files, &[80])?;
    let loopback = Loopback::claim()?;
    let mut facade = Facade::start(loopback.address(1, 8848), &files, None).await?;
    let server = facade.address;
    let start = |module: &'static str, flags: &'static [&'static str]| {
        let folder = folder.path().to_owned();
        std::thread::spawn(move || Client::start(module, server, flags, &folder))
    };
    let starting = [
        start("nacos", &[]),
        start("nacos1", &[]),
        start("nacos3", &[]),
        start("nacos", &["--namespace", "dev"]),
    ];
    let mut started = Vec::new();
    for client in starting {
        started.push(client.join().map_err(|_| anyhow::anyhow!("no client"))??);
    }
    let [two, one, three, dev] = started.as_mut_slice() else {
        anyhow::bail!("four clients");
    };
    for client in [&mut *one, &mut *two, &mut *three] {
        client.wait("status", "UP")?;
        client.done("subscribe stock")?;
        client.done("subscribe shop")?;
        client.pushed("seen stock", STOCK)?;
    }
    three.done("watch * DEFAULT_GROUP")?;

    // What another registry holds is pushed.
    let mut took: [Vec<u64>; 3] = Default::default();
    for port in 81..86 {
        write(&files, &[80, port])?;
        let expected = format!("{STOCK} 10.9.0.2:{port}/DEFAULT/1.0{SPRING}");
        let in_hub = [
            "10.9.0.2:80/100/true".to_owned(),
            format!("10.9.0.2:{port}/100/true"),
        ];
        let in_hub = in_hub.each_ref().map(String::as_str);
        facade.wait("springcloud", "stock", &in_hub).await?;
        let known = epoch_millis()?;
        for (client, took) in [&mut *one, &mut *two, &mut *three]
            .into_iter()
            .zip(&mut took)
        {
            let pushed = client.pushed("seen stock", &expected)?;
            took.push(pushed.saturating_sub(known));
        }
    }
    eprintln!("change in the hub -> listener of 1.4, 2.5, 3.0: {took:?} ms");
    let done = facade.registry.register(vec![orders(80)]).await?;
    three.wait(
        "watched",
        "{DEFAULT_GROUP/orders=there, DEFAULT_GROUP/stock=there}",
    )?;
    assert_eq!(two.ask("services")?, "orders stock");
    assert_eq!(one.ask("services")?, "orders stock");
    let id = &done.result.first().context("no id")?.id;
    let reference = InstanceRef::new("springcloud", "orders", id);
    facade.registry.deregister(vec![reference]).await?;
    three.wait("watched", "{DEFAULT_GROUP/stock=there}")?;

    // What clients register is there as they said it, for all of them.
    two.done("register shop 10.0.0.2 80 weight=2.5 cluster=east m.zone=e m.Odd=<&>")?;
    one.done("register shop 10.0.0.1 80 m.v=1")?;
    dev.done("register shop 10.0.0.9 80")?;
    let first = "10.0.0.1:80/DEFAULT/1.0{v=1}";
    let second = "10.0.0.2:80/east/2.5{Odd=<&>, zone=e}";
    for client in [&mut *one, &mut *two, &mut *three] {
        client.pushed("seen shop", &format!("{first} {second}"))?;
        assert_eq!(client.ask("list shop")?, format!("{first} {second}"));
    }
    let shops = ["10.0.0.1:80/100/true", "10.0.0.2:80/250/true"];
    let all = [&shops[..], &["10.0.0.9:80/100/true"]].concat();
    facade.wait("http", "shop", &all).await?;
    // A namespace of its own.
    assert_eq!(dev.ask("list shop")?, "10.0.0.9:80/DEFAULT/1.0{}");
    dev.done("deregister shop 10.0.0.9 80")?;

    // Only the weight, only the metadata.
    two.done("register shop 10.0.0.2 80 weight=1 cluster=east m.zone=e")?;
    let second = "10.0.0.2:80/east/1.0{zone=e}";
    three.pushed("seen shop", &format!("{first} {second}"))?;
    two.done("register shop 10.0.0.2 80 weight=1 cluster=east m.zone=w")?;
    let second = "10.0.0.2:80/east/1.0{zone=w}";
    one.pushed("seen shop", &format!("{first} {second}"))?;
    let again = "10.0.0.3:80/DEFAULT/1.0{}";
    // A connection has one instance of a service, unless it says all at once.
    three.done("register shop 10.0.0.4 80")?;
    three.done("register shop 10.0.0.3 80")?;
    two.pushed("seen shop", &format!("{first} {second} {again}"))?;
    three.done("deregister shop 10.0.0.3 80")?;
    three.done("batch shop 10.0.0.5:80,10.0.0.6:80")?;
    let batch = "10.0.0.5:80/DEFAULT/1.0{} 10.0.0.6:80/DEFAULT/1.0{}";
    two.pushed("seen shop", &format!("{first} {second} {batch}"))?;
    three.done("unbatch shop 10.0.0.5:80")?;
    let rest = "10.0.0.6:80/DEFAULT/1.0{}";
    one.pushed("seen shop", &format!("{first} {second} {rest}"))?;
    // One that stays.
    two.done("register depot 10.0.0.7 80 ephemeral=false")?;
    assert_eq!(
        three.ask("list depot")?,
        "10.0.0.7:80/DEFAULT/1.0/persistent{}"
    );

    // Configurations.
    for client in [&mut *one, &mut *two, &mut *three] {
        client.done("listen app.yaml g")?;
    }
    assert_eq!(two.ask("publish app.yaml g a=1")?, "true");
    for client in [&mut *one, &mut *two, &mut *three] {
        client.pushed("heard app.yaml", "a=1")?;
    }
    assert_eq!(three.ask("cas app.yaml g a=2 nonsense")?, "false");
    let md5 = "3872c9ae3f427af0be0ead09d07ae2cf";
    assert_eq!(three.ask(&format!("cas app.yaml g a=2 {md5}"))?, "true");
    one.pushed("heard app.yaml", "a=2")?;
    assert_eq!(one.ask("publish app.yaml g a=3")?, "true");
    three.pushed("heard app.yaml", "a=3")?;
    assert_eq!(two.ask("remove app.yaml g")?, "true");
    assert_eq!(three.ask("config app.yaml g")?, "null");

    // A crash: what its connection held goes at once.
    let before = Instant::now();
    three.0.kill()?;
    two.pushed("seen shop", &format!("{first} {second}"))?;
    eprintln!("kill -> listener: {:?}", before.elapsed());

    // Another hub: clients register again by themselves.
    facade.stop().await;
    facade = Facade::start(server, &files, None).await?;
    facade.wait("http", "shop", &shops_again()).await?;
    two.wait("list shop", &format!("{first} {second}"))?;
    one.ask("quit")?;
    facade
        .wait("http", "shop", &["10.0.0.2:80/100/true"])
        .await?;
    two.pushed("seen shop", second)?;
    two.ask("quit")?;
    facade.wait("http", "shop", &[]).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn stock_dubbo_registers_and_finds_what_other_registries_hold() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let loopback = Loopback::claim()?;
    loopback.write_hosts(folder.path())?;
    let files = folder.path().join("files");
    std::fs::create_dir(&files)?;
    let facade = Facade::start(loopback.address(1, 8848), &files, None).await?;
    let registry = format!("nacos://{}", facade.address);
    let host = loopback.name(2);
    let provider = |label: &str, port: &str, registry: &str| {
        let flags = [
            ("host", &*host),
            ("port", port),
            ("label", label),
            ("registry", registry),
        ];
        start_provider(Framework::Dubbo, label, &flags, folder.path())
    };
    let here = provider("here", "20881", &registry)?;
    let elsewhere = provider("elsewhere", "20882", "N/A")?;
    let consumer = start_consumer(
        Framework::Dubbo,
        "consumer",
        &[("registry", registry.as_str())],
        folder.path(),
    )?;
    let mut here = here.provider()?;
    let _elsewhere = elsewhere.provider()?;
    let mut consumer = consumer.consumer()?;

    let own = format!("{host}:20881/100/true");
    facade.wait("dubbo", SHOP, &[&own]).await?;
    // As if it came from ZooKeeper: the consumer sees it at once.
    let mut other = Instance::new(ServiceKey::new("dubbo", SHOP), &host, 20882);
    other.ttl = None;
    facade.registry.register(vec![other]).await?;
    both_answer(&mut consumer)?;

    // A crash: what its connections held goes, the other's stays.
    here.kill()?;
    let rest = format!("{host}:20882/100/true");
    facade.wait("dubbo", SHOP, &[&rest]).await?;
    let tally = consumer.tally("who", 20, "")?;
    assert_eq!(tally.of("elsewhere"), 20, "{tally:?}");
    Ok(())
}

/// Calls until both providers have answered.
fn both_answer(consumer: &mut testkit::apps::Consumer) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    loop {
        let tally = consumer.tally("who", 20, "")?;
        if tally.of("here") > 0 && tally.of("elsewhere") > 0 {
            break;
        }
        ensure!(Instant::now() < deadline, "{tally:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn stock_sofarpc_registers_and_finds_what_other_registries_hold() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let loopback = Loopback::claim()?;
    let files = folder.path().join("files");
    std::fs::create_dir(&files)?;
    let facade = Facade::start(loopback.address(1, 8848), &files, None).await?;
    let server = facade.address.to_string();
    let host = loopback.ip(2).to_string();
    let provider = |label: &'static str, port: &str, more: &[(&str, &str)]| {
        let flags = [("host", &*host), ("port", port), ("label", label)];
        let flags = [&flags[..], more].concat();
        start_provider(Framework::Sofarpc, label, &flags, folder.path())
    };
    let nacos = [("nacos", server.as_str())];
    let here = provider("here", "12201", &nacos)?;
    let elsewhere = provider("elsewhere", "12202", &[])?;
    let consumer = start_consumer(Framework::Sofarpc, "consumer", &nacos, folder.path())?;
    let mut here = here.provider()?;
    let _elsewhere = elsewhere.provider()?;
    let mut consumer = consumer.consumer()?;

    let service = "mesh.apps.sofarpc.SofaShop";
    let own = format!("{host}:12201/100/true");
    facade.wait("bolt", service, &[&own]).await?;
    // As if it came from SOFARegistry: the consumer sees it at once.
    let mut other = Instance::new(ServiceKey::new("bolt", service), &host, 12202);
    other.ttl = None;
    facade.registry.register(vec![other]).await?;
    both_answer(&mut consumer)?;
    here.kill()?;
    let rest = format!("{host}:12202/100/true");
    facade.wait("bolt", service, &[&rest]).await?;
    let deadline = Instant::now() + LIMIT;
    while consumer.tally("who", 20, "")?.of("elsewhere") < 20 {
        ensure!(Instant::now() < deadline, "calls go to what is gone");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn stock_spring_cloud_registers_and_finds_what_other_registries_hold() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let loopback = Loopback::claim()?;
    let files = folder.path().join("files");
    std::fs::create_dir(&files)?;
    let mut facade = Facade::start(loopback.address(1, 8848), &files, None).await?;
    let server = facade.address.to_string();
    let start = |name: &'static str, host: String| {
        let (server, folder) = (server.clone(), folder.path().to_owned());
        std::thread::spawn(move || {
            let arguments = [
                "--nacos", &server, "--name", name, "--host", &host, "--port", "8080",
            ];
            let arguments = arguments.map(str::to_owned);
            let class = "mesh.apps.springcloud.Application";
            testkit::apps::start_client("springcloud", class, name, &arguments, &folder).map(Client)
        })
    };
    let starting = [
        start("Shop", loopback.ip(2).to_string()),
        start("desk", loopback.ip(3).to_string()),
    ];
    let mut started = Vec::new();
    for client in starting {
        started.push(client.join().map_err(|_| anyhow::anyhow!("no client"))??);
    }
    let [shop, desk] = started.as_mut_slice() else {
        anyhow::bail!("two applications");
    };
    let own = format!("{}:8080", loopback.ip(2));
    facade
        .wait("springcloud", "shop", &[&format!("{own}/100/true")])
        .await?;
    assert_eq!(desk.ask("find Shop")?, own);
    assert_eq!(desk.ask("who Shop 3")?, "{Shop:8080=3}");

    // Another one, of another registry.
    let other = TcpListener::bind(loopback.address(4, 8080)).await?;
    let router = axum::Router::new().route("/who", axum::routing::get(|| async { "elsewhere" }));
    let _serving = tokio::spawn(async move { axum::serve(other, router).await });
    let elsewhere = format!("{}:8080", loopback.ip(4));
    let text = format!(
        "services:\n- {{protocol: springcloud, name: shop, instances: [{{address: {}, port: 8080}}]}}\n",
        loopback.ip(4)
    );
    std::fs::write(files.join("new"), text)?;
    std::fs::rename(files.join("new"), files.join("shop.yaml"))?;
    desk.wait("find Shop", &format!("{own} {elsewhere}"))?;
    assert_eq!(desk.ask("who Shop 6")?, "{Shop:8080=3, elsewhere=3}");
    assert_eq!(desk.ask("names")?, "Shop desk shop");

    // Another hub: applications register again by themselves.
    facade.stop().await;
    facade = Facade::start(server.parse()?, &files, None).await?;
    let both = [own.as_str(), elsewhere.as_str()].map(|address| format!("{address}/100/true"));
    facade
        .wait("springcloud", "shop", &both.each_ref().map(String::as_str))
        .await?;

    shop.0.kill()?;
    desk.wait("find Shop", &elsewhere)?;
    assert_eq!(desk.ask("who Shop 3")?, "{elsewhere=3}");
    Ok(())
}

const SHOP: &str = "mesh.apps.dubbo.DubboShop";
const SPRING: &str = "{preserved.register.source=SPRING_CLOUD}";
const STOCK: &str = "10.9.0.2:80/DEFAULT/1.0{preserved.register.source=SPRING_CLOUD}";

fn shops_again() -> [&'static str; 2] {
    ["10.0.0.1:80/100/true", "10.0.0.2:80/100/true"]
}

#[tokio::test(flavor = "multi_thread")]
async fn configurations_outlive_a_pilot() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let loopback = Loopback::claim()?;
    let address = loopback.address(1, 8848);
    let ask = |method: &'static str, query: &'static str| async move {
        let path = format!("/nacos/v1/cs/configs?dataId=app.yaml&group=g{query}");
        let answered = move || request(address, method, &path, &[], &[]);
        let answer = tokio::task::spawn_blocking(answered).await??;
        anyhow::Ok((answer.status, answer.text()))
    };
    for life in 0..3 {
        let registry = Registry::open(&folder.path().join("registry"), Limits::default())?;
        let hub = Hub::start(HubOptions {
            registry: Some(registry.clone()),
            ..HubOptions::default()
        });
        let http = TcpListener::bind(address).await?;
        let grpc = TcpListener::bind(loopback.address(1, 8848 + GRPC_OFFSET)).await?;
        let config = Config {
            address,
            credentials: None,
        };
        let serving = tokio::spawn(serve(http, grpc, hub, registry.clone(), config));
        match life {
            0 => assert_eq!(ask("POST", "&content=a%3D1").await?, (200, "true".into())),
            1 => {
                assert_eq!(ask("GET", "").await?, (200, "a=1".into()));
                assert_eq!(ask("DELETE", "").await?, (200, "true".into()));
            }
            _ => assert_eq!(ask("GET", "").await?.0, 404),
        }
        serving.abort();
        // It ends because it is told to.
        let _ = serving.await;
        registry.close().await;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_log_in_nothing_is_told() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let credentials: Credentials =
        serde_json::from_value(json!({"username": "mesh", "password": "s3cret"}))?;
    let loopback = Loopback::claim()?;
    let facade = Facade::start(loopback.address(1, 8848), folder.path(), Some(credentials)).await?;
    facade.registry.register(vec![orders(80)]).await?;
    let server = facade.address;
    let ask = |method: &'static str, path: &'static str| {
        tokio::task::spawn_blocking(move || request(server, method, path, &[], &[]))
    };
    for (method, path, status) in [
        ("GET", "/nacos/v1/ns/instance/list?serviceName=orders", 403),
        (
            "GET",
            "/nacos/v3/client/ns/instance/list?serviceName=orders",
            403,
        ),
        (
            "POST",
            "/nacos/v1/auth/login?username=mesh&password=wrong",
            403,
        ),
        ("GET", "/nacos/v1/ns/operator/metrics", 200),
    ] {
        let answer = ask(method, path).await??;
        assert_eq!(answer.status, status, "{path}: {}", answer.text());
    }
    let answer = ask("POST", "/nacos/v1/auth/login?username=mesh&password=s3cret").await??;
    let token = answer.json()?["accessToken"].as_str().map(str::to_owned);
    let path = format!(
        "/nacos/v1/ns/instance/list?serviceName=orders&accessToken={}",
        token.context("no token")?
    );
    let listed = tokio::task::spawn_blocking(move || request(server, "GET", &path, &[], &[]));
    assert_eq!(listed.await??.json()?["hosts"][0]["port"], 80);

    let folder = folder.path().to_owned();
    let clients = tokio::task::spawn_blocking(move || -> Result<Client> {
        let login = ["--username", "mesh", "--password", "s3cret"];
        let mut known = Client::start("nacos", server, &login, &folder)?;
        let orders = format!("10.9.0.1:80/DEFAULT/1.0{SPRING}");
        known.wait("list orders", &orders)?;
        known.done("register shop 10.0.0.1 80")?;
        let mut stranger = Client::start("nacos3", server, &[], &folder)?;
        stranger.wait("status", "UP")?;
        let refused = stranger.ask("register shop 10.0.0.2 80")?;
        ensure!(refused.contains("authorization failed"), "{refused}");
        Ok(known)
    });
    // What it registered goes with it.
    let _known = clients.await??;
    assert_eq!(facade.instances("http", "shop"), ["10.0.0.1:80/100/true"]);
    Ok(())
}

/// What a call over gRPC is answered: the name of the answer and its JSON.
async fn call(
    channel: &tonic::transport::Channel,
    kind: &str,
    body: &[u8],
) -> Result<(String, serde_json::Value)> {
    let payload = Payload {
        metadata: Some(Metadata {
            r#type: kind.to_owned(),
            ..Metadata::default()
        }),
        body: Some(Any {
            type_url: String::new(),
            value: body.to_vec(),
        }),
    };
    let answer = RequestClient::new(channel.clone()).request(payload).await?;
    let answer = answer.into_inner();
    let kind = answer.metadata.context("no metadata")?.r#type;
    let body = answer.body.context("no body")?.value;
    Ok((kind, serde_json::from_slice(&body)?))
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_are_none_are_refused() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let loopback = Loopback::claim()?;
    let facade = Facade::start(loopback.address(1, 8848), folder.path(), None).await?;
    let server = facade.address;
    let ask = |method: &'static str, path: String, body: Vec<u8>| {
        let headers = [("content-type", "application/x-www-form-urlencoded")];
        tokio::task::spawn_blocking(move || request(server, method, &path, &headers, &body))
    };
    let instance = "/nacos/v1/ns/instance";
    for (method, path, body, status, part) in [
        ("GET", "/", "", 404, "no such path"),
        ("POST", instance, "", 400, "'serviceName'"),
        ("POST", instance, "serviceName=s&ip=10.0.0.1", 400, "'port'"),
        (
            "POST",
            instance,
            "serviceName=s&ip=10.0.0.1&port=99999",
            400,
            "99999",
        ),
        (
            "POST",
            instance,
            "serviceName=s&ip=10.0.0.1&port=1&weight=-1",
            400,
            "weights",
        ),
        (
            "POST",
            instance,
            "serviceName=s&ip=10.0.0.1&port=1&weight=NaN",
            400,
            "weights",
        ),
        (
            "POST",
            instance,
            "serviceName=s&ip=0.0.0.0&port=1",
            400,
            "0.0.0.0",
        ),
        (
            "POST",
            instance,
            "serviceName=s&ip=10.0.0.1&port=1&metadata=%7B",
            400,
            "metadata",
        ),
        (
            "PUT",
            instance,
            "serviceName=s&ip=10.0.0.1&port=1",
            400,
            "no matched ip",
        ),
        (
            "GET",
            "/nacos/v1/ns/instance?serviceName=s&ip=1.1.1.1&port=1",
            "",
            404,
            "no matched ip",
        ),
        (
            "PUT",
            "/nacos/v1/ns/instance/beat",
            "serviceName=s&ip=10.0.0.1&port=1",
            200,
            "20404",
        ),
        (
            "PUT",
            "/nacos/v1/ns/instance/beat",
            "serviceName=s&beat=%7B",
            400,
            "beat",
        ),
        (
            "POST",
            "/nacos/v3/client/ns/instance",
            "serviceName=s",
            400,
            "\"code\":10000",
        ),
        (
            "GET",
            "/nacos/v1/cs/configs?dataId=d&group=g",
            "",
            404,
            "config data not exist",
        ),
        (
            "POST",
            "/nacos/v1/cs/configs",
            "dataId=d&group=g",
            400,
            "'content'",
        ),
        (
            "POST",
            "/nacos/v1/cs/configs/listener",
            "Listening-Configs=a%02b",
            400,
            "probeModify",
        ),
    ] {
        let answer = ask(method, path.to_owned(), body.as_bytes().to_vec()).await??;
        let text = answer.text();
        assert_eq!(answer.status, status, "{method} {path} {body}: {text}");
        assert!(text.contains(part), "{method} {path} {body}: {text}");
    }
    let large = format!("dataId=d&group=g&content={}", "x".repeat(5 << 20));
    let answer = ask(
        "POST",
        "/nacos/v1/cs/configs".to_owned(),
        large.into_bytes(),
    )
    .await??;
    assert_eq!(answer.status, 500, "{}", answer.text());
    assert!(answer.text().contains("over limit"));

    // One that lives by beats: it is there with the first, ill without, and gone.
    let beat = json!({"ip": "10.0.0.1", "port": 80, "serviceName": "g@@shop", "cluster": "c",
        "metadata": {"preserved.heart.beat.timeout": "300", "preserved.ip.delete.timeout": "1500"}});
    let beat = format!("serviceName=g@@shop&beat={beat}");
    let answer = ask(
        "PUT",
        "/nacos/v1/ns/instance/beat".to_owned(),
        beat.into_bytes(),
    )
    .await??;
    assert_eq!(answer.json()?["code"], 10_200);
    facade
        .wait("http", "g@@shop", &["10.0.0.1:80/100/true"])
        .await?;
    facade
        .wait("http", "g@@shop", &["10.0.0.1:80/100/false"])
        .await?;
    facade.wait("http", "g@@shop", &[]).await?;

    let mut grpc = server;
    grpc.set_port(server.port() + GRPC_OFFSET);
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{grpc}"))?;
    let channel = channel.connect().await?;
    for (kind, body, code) in [
        ("InstanceRequest", "{}", 301),
        ("InstanceRequest", "{", 502),
        ("InstanceRequest", "{\"instance\":{\"port\":-1}}", 502),
        ("NoSuchRequest", "{}", 302),
        ("ConnectionSetupRequest", "{}", 301),
        ("", "", 302),
    ] {
        let (answer, json) = call(&channel, kind, body.as_bytes()).await?;
        assert_eq!(
            (answer.as_str(), &json["errorCode"]),
            ("ErrorResponse", &json!(code)),
            "{kind} {body}"
        );
        assert_eq!(json["success"], false);
    }
    let (answer, json) = call(&channel, "ServerCheckRequest", b"{}").await?;
    assert_eq!(answer, "ServerCheckResponse");
    assert_eq!(json["supportAbilityNegotiation"], true);
    let huge = vec![b' '; 20 << 20];
    assert!(call(&channel, "InstanceRequest", &huge).await.is_err());
    Ok(())
}
