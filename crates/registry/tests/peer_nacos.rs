//! The Nacos adapter with r-nacos and the stock client, over gRPC and over HTTP at the same time. Where `make peers` has not
//! built it there is nothing to test with.

mod common;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use common::{
    all_told, hub_of, instances, is_built, start_shops, status, until, wait_same, wanted_copy,
};
use registry::{
    Hub, Instance, ORIGIN_MARK, RegistrySource, ServiceKey, SourceSpec, Trouble, Wanted,
};
use serde_json::{Value, json};
use testkit::apps::Framework;
use testkit::net::free_port;
use testkit::netns::Site;
use testkit::process::Process;
use testkit::registries::Nacos;

const LIMIT: Duration = Duration::from_secs(60);
const PROTOCOLS: [&str; 2] = ["grpc", "http"];

/// A stock client.
struct Client(Process);

impl Client {
    fn start(name: &str, server: SocketAddr, flags: &[&str], folder: &Path) -> Result<Client> {
        let server = server.to_string();
        let arguments = ["--server", server.as_str()];
        let arguments = arguments.iter().chain(flags);
        let arguments: Vec<String> = arguments.map(|word| (*word).to_owned()).collect();
        // Its home folder is its own: clients keep lists there.
        let folder = folder.join(name);
        std::fs::create_dir_all(&folder)?;
        let class = "mesh.apps.nacos.Client";
        testkit::apps::start_client("nacos", class, name, &arguments, &folder).map(Client)
    }

    fn ask(&mut self, command: &str) -> Result<String> {
        self.0.ask(command, LIMIT)
    }

    /// Says it until it is done: the stock client refuses for a while after its server was away.
    fn done(&mut self, command: &str) -> Result<()> {
        testkit::wait::until_ok(command, LIMIT, || {
            let answer = self.ask(command)?;
            ensure!(answer == "done", "{answer}");
            Ok(())
        })
    }

    /// Asks until the answer has these addresses and no others.
    fn wait(&mut self, command: &str, expected: &[&str]) -> Result<()> {
        testkit::wait::until_ok(command, LIMIT, || {
            let answer = self.ask(command)?;
            let words = answer.split(' ').filter(|word| word.contains('/'));
            let mut found: Vec<&str> = words.filter_map(|word| word.split('/').next()).collect();
            found.sort_unstable();
            ensure!(found == expected, "{expected:?} expected, {answer}");
            Ok(())
        })
    }
}

fn endpoints(hub: &Hub) -> Vec<String> {
    all_told(hub, |i| {
        let state = if i.healthy { "" } else { " down" };
        let (group, weight) = (&i.group, i.weight);
        let place = i.locality();
        format!(
            "{} {}:{} g{group} w{weight} {place}{state}",
            i.service, i.address, i.port
        )
    })
}

async fn wait_endpoints(hubs: &[Hub], expected: &[&str]) -> Result<()> {
    for hub in hubs {
        wait_same(LIMIT, || endpoints(hub), expected)
            .await
            .with_context(|| hub.mesh_id().to_owned())?;
    }
    Ok(())
}

fn source(server: SocketAddr, protocol: &str, more: &Value) -> Result<SourceSpec> {
    let mut nacos = json!({
        "servers": ["127.0.0.1:1", server.to_string()],
        "protocol": protocol,
        "listInterval": "300ms",
    });
    if let (Some(fields), Value::Object(more)) = (nacos.as_object_mut(), more.clone()) {
        fields.extend(more);
    }
    let spec = json!({"nacos": nacos, "protection": {"hold": "2s"}});
    let spec: RegistrySource = serde_json::from_value(spec)?;
    Ok(spec.compile("nacos")?)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stock_clients_register_is_read() -> Result<()> {
    if !is_built("rnacos") {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let mut server = Nacos::start(folder.path(), None)?;
    let to = server.address();
    let mut client = Client::start("one", to, &[], folder.path())?;
    client.done("register shop 10.0.0.1 80 weight=2 cluster=SH m.release=7")?;
    client.done(
        "register providers:com.foo.Order:1.0:blue 10.0.0.2 20880 m.protocol=dubbo m.zone=east",
    )?;
    client.done("register com.foo.Bill:uid:DEFAULT 10.0.0.3 12200 m.protocol=bolt")?;
    client.done("register carts 10.0.0.4 81 group=OTHER")?;
    client.done("register Orders 10.0.0.5 82 m.preserved.register.source=SPRING_CLOUD")?;
    client.done("register stays 10.0.0.6 83 ephemeral=false")?;
    let hubs = PROTOCOLS.map(hub_of);
    let groups = json!({"groups": ["DEFAULT_GROUP", "OTHER"]});
    for (hub, protocol) in hubs.iter().zip(PROTOCOLS) {
        hub.set_sources(vec![source(to, protocol, &groups)?]);
    }
    let mut all = vec![
        "bolt/com.foo.Bill 10.0.0.3:12200 guid w100 ",
        "dubbo/com.foo.Order 10.0.0.2:20880 gblue w100 /east",
        "http/OTHER@@carts 10.0.0.4:81 g w100 ",
        "http/shop 10.0.0.1:80 g w200 /SH",
        "http/stays 10.0.0.6:83 g w100 ",
        "springcloud/orders 10.0.0.5:82 g w100 ",
    ];
    wait_endpoints(&hubs, &all).await?;
    for hub in &hubs {
        let all = instances(hub);
        let shop = all.iter().find(|i| &*i.service.name == "shop");
        assert_eq!(
            shop.context("gone")?.metadata.get("release"),
            Some("7"),
            "{}",
            hub.mesh_id()
        );
    }

    // Weights, switched-off instances, more and fewer of a service.
    client.done("register shop 10.0.0.1 80 weight=5 cluster=SH m.release=7")?;
    client.done("register carts 10.0.0.4 81 group=OTHER enabled=false")?;
    all[3] = "http/shop 10.0.0.1:80 g w500 /SH";
    // The server does not tell of those that are switched off.
    all.remove(2);
    wait_endpoints(&hubs, &all).await?;
    client.done("deregister com.foo.Bill:uid:DEFAULT 10.0.0.3 12200")?;
    wait_endpoints(&hubs, &all[1..]).await?;

    // A client that crashes is gone with all that it had, but not what is there for good.
    let mut other = Client::start("two", to, &[], folder.path())?;
    other.done("register shop 10.0.0.7 80")?;
    until(LIMIT, "both are read", async || {
        let both = |hub: &Hub| endpoints(hub).iter().any(|line| line.contains("10.0.0.7"));
        hubs.iter().all(both).then_some(())
    })
    .await?;
    client.0.kill()?;
    let left = [
        "http/shop 10.0.0.7:80 g w100 ",
        "http/stays 10.0.0.6:83 g w100 ",
    ];
    wait_endpoints(&hubs, &left).await?;

    // A server that is away, and what its clients put in again when it is back.
    server.kill()?;
    for hub in &hubs {
        until(LIMIT, "the loss is known", async || {
            status(hub).await.ok().filter(|s| !s.connected && s.stale)
        })
        .await?;
    }
    wait_endpoints(&hubs, &left).await?;
    server.restart()?;
    other.done("register new 10.0.0.8 84")?;
    let again = ["http/new 10.0.0.8:84 g w100 ", left[0], left[1]];
    wait_endpoints(&hubs, &again).await?;

    // One that sends no beats goes.
    let silent = "/nacos/v1/ns/instance?serviceName=silent&ip=10.0.0.9&port=85&ephemeral=true";
    let answer = testkit::http::request(to, "POST", silent, &[], &[])?;
    ensure!(answer.status == 200, "{}", answer.text());
    let seen = [
        again[0],
        again[1],
        "http/silent 10.0.0.9:85 g w100 ",
        again[2],
    ];
    wait_endpoints(&hubs, &seen).await?;
    wait_endpoints(&hubs, &again).await?;
    Ok(())
}

fn copy(name: &str, port: u16) -> (Arc<str>, Arc<Instance>) {
    let mut copy = Instance::new(ServiceKey::new("springcloud", name), "10.9.0.1", port);
    copy.weight = 250;
    copy.metadata = [(ORIGIN_MARK, "mesh/zk"), ("zone", "west")]
        .into_iter()
        .collect();
    (format!("{name}/{port}").into(), Arc::new(copy))
}

fn wanted(name: &str, publish: &[u16], withdraw: &[u16]) -> Wanted {
    Wanted {
        publish: publish.iter().map(|port| copy(name, *port)).collect(),
        withdraw: withdraw.iter().map(|port| copy(name, *port)).collect(),
        ..Wanted::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stock_clients_find_the_copies() -> Result<()> {
    if !is_built("rnacos") {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let mut server = Nacos::start(folder.path(), None)?;
    let to = server.address();
    let mut client = Client::start("one", to, &[], folder.path())?;
    // One mesh whose hubs write each its own service, as if each led another synchronisation.
    let mut hubs: Vec<Hub> = PROTOCOLS.iter().map(|_| hub_of("mesh")).collect();
    for (hub, protocol) in hubs.iter().zip(PROTOCOLS) {
        client.done(&format!("subscribe {protocol}"))?;
        hub.set_sources(vec![source(to, protocol, &json!({}))?]);
        hub.set_wanted("nacos", wanted(protocol, &[1, 2], &[]));
    }
    for protocol in PROTOCOLS {
        client.wait(&format!("list {protocol}"), &["10.9.0.1:1", "10.9.0.1:2"])?;
        client.wait(&format!("seen {protocol}"), &["10.9.0.1:1", "10.9.0.1:2"])?;
        let line = client.ask(&format!("list {protocol}"))?;
        ensure!(
            line.contains("/2.5") && line.contains("zone=west"),
            "{line}"
        );
    }
    for hub in &hubs {
        let done = until(LIMIT, "they are known as copies", async || {
            let status = status(hub).await.ok()?;
            (status.copies == 4 && status.written == 2).then_some(status)
        })
        .await?;
        ensure!(done.instances == 0 && done.failed.is_empty(), "{done:?}");
    }
    // To another mesh they are instances.
    let other = hub_of("other");
    other.set_sources(vec![source(to, "auto", &json!({}))?]);
    until(LIMIT, "the other mesh has them", async || {
        (instances(&other).len() == 4).then_some(())
    })
    .await?;

    // Fewer, others, and a server that lost all of them.
    for (hub, protocol) in hubs.iter().zip(PROTOCOLS) {
        hub.set_wanted("nacos", wanted(protocol, &[2, 3], &[1]));
    }
    for protocol in PROTOCOLS {
        client.wait(&format!("list {protocol}"), &["10.9.0.1:2", "10.9.0.1:3"])?;
    }
    server.kill()?;
    server.restart()?;
    for protocol in PROTOCOLS {
        client.wait(&format!("list {protocol}"), &["10.9.0.1:2", "10.9.0.1:3"])?;
    }

    // What is no longer wanted goes, and with a hub that is no more all that it wrote over gRPC.
    if let Some(hub) = hubs.get(1) {
        hub.set_wanted("nacos", wanted("http", &[], &[2, 3]));
    }
    client.wait("list http", &[])?;
    hubs.clear();
    client.wait("list grpc", &[])?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn namespaces_and_passwords() -> Result<()> {
    if !is_built("rnacos") {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let server = Nacos::start(folder.path(), Some("right-word"))?;
    let to = server.address();
    let login = ["--username", "mesh", "--password", "right-word"];
    let in_dev = [&login[..], &["--namespace", "dev"]].concat();
    let mut client = Client::start("one", to, &login, folder.path())?;
    let mut dev = Client::start("dev", to, &in_dev, folder.path())?;
    client.done("register shop 10.0.0.1 80")?;
    dev.done("register shop 10.0.0.2 80")?;
    for protocol in PROTOCOLS {
        let hub = hub_of("mesh");
        let with = |password: &str| {
            let login = json!({"username": "mesh", "password": password});
            source(
                to,
                protocol,
                &json!({"login": login, "namespaces": ["dev"]}),
            )
        };
        for wrong in [with("wrong-word")?, source(to, protocol, &json!({}))?] {
            ensure!(!format!("{wrong:?}").contains("-word"), "{wrong:?}");
            hub.set_sources(vec![wrong]);
            let failed = until(LIMIT, "the refusal is known", async || {
                let status = status(&hub).await.ok();
                status.filter(|s| s.trouble == Some(Trouble::Refused))
            })
            .await
            .with_context(|| protocol)?;
            let reason = failed.reason.unwrap_or_default();
            ensure!(!reason.contains("-word"), "{reason}");
            hub.set_sources(Vec::new());
        }
        hub.set_sources(vec![with("right-word")?]);
        hub.set_wanted("nacos", wanted(protocol, &[9], &[]));
        wait_endpoints(
            std::slice::from_ref(&hub),
            &["http/shop 10.0.0.2:80 g w100 "],
        )
        .await?;
        dev.wait(&format!("list {protocol}"), &["10.9.0.1:9"])?;
        client.wait(&format!("list {protocol}"), &[])?;
    }
    Ok(())
}

/// Copies are parts of the applications of Dubbo that serve the same, for as long as those do: a consumer that finds a provider
/// in an application asks for no others.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_is_found_beside_providers_of_the_application_level() -> Result<()> {
    const SHOP: &str = "mesh.apps.dubbo.DubboShop";
    if !is_built("rnacos") {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    // Consumers, and the hub that asks providers what they serve, reach the same address: Dubbo replaces those of the loopback.
    let network = Site::start("providers", folder.path())?;
    let host = network.outside().to_string();
    let server = Nacos::start(folder.path(), None)?;
    let registry = format!("nacos://{}", server.address());
    let (first, second) = (free_port()?, free_port()?);
    let (mut here, _elsewhere, mut consumer) = start_shops(
        Framework::Dubbo,
        (&host, [&first.to_string(), &second.to_string()]),
        ("registry", &registry),
        &[("registry", "N/A")],
        folder.path(),
    )?;
    consumer.wait_labels(&["here"])?;

    let hub = hub_of("mesh");
    hub.set_sources(vec![source(server.address(), "grpc", &json!({}))?]);
    hub.set_wanted("nacos", wanted_copy(SHOP, &host, second, "mesh/zk"));
    consumer.wait_labels(&["elsewhere", "here"])?;
    // What the hub wrote in the application is nothing that it reads.
    let own = format!("dubbo/{SHOP} {host}:{first} g w100 ");
    wait_endpoints(std::slice::from_ref(&hub), &[&own]).await?;

    let application =
        "/nacos/v1/ns/instance/list?serviceName=dubbo-provider&groupName=DEFAULT_GROUP";
    let parts = || -> Result<usize> {
        let answer = testkit::http::request(server.address(), "GET", application, &[], &[])?;
        Ok(answer.text().matches(ORIGIN_MARK).count())
    };
    ensure!(parts()? == 1, "one part of the application");
    here.terminate()?;
    consumer.wait_labels(&["elsewhere"])?;
    testkit::wait::until_ok("no part of an application that is gone", LIMIT, || {
        ensure!(parts()? == 0, "it is still there");
        Ok(())
    })
}
