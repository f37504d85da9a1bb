//! Dubbo, SOFARPC and Spring Cloud with their stock clients.

use anyhow::Result;
use registry::{Instance, ServiceKey};
use testkit::apps::{Framework, start_consumer};
use testkit::net::{Loopback, free_port};
use testkit::netns::Site;
use tokio::net::TcpListener;

use crate::common::start_shops;
use crate::{Client, Facade};

const SHOP: &str = "mesh.apps.dubbo.DubboShop";

#[tokio::test(flavor = "multi_thread")]
async fn stock_dubbo_registers_and_finds_what_other_registries_hold() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let loopback = Loopback::claim()?;
    // Consumers, and the hub that asks providers what they serve, reach the same address: Dubbo replaces those of the loopback.
    let network = Site::start("providers", folder.path())?;
    let host = network.outside().to_string();
    let (first, second) = (free_port()?, free_port()?);
    let files = folder.path().join("files");
    std::fs::create_dir(&files)?;
    let facade = Facade::start(loopback.address(1, 8848), &files, None).await?;
    let registry = format!("nacos://{}", facade.address);
    // It asks for an application and takes nothing of the interface level while it finds one.
    let by_application = start_consumer(
        Framework::Dubbo,
        "by-application",
        &[("registry", &registry), ("provided-by", "dubbo-provider")],
        folder.path(),
    )?;
    let (mut here, _elsewhere, mut consumer) = start_shops(
        Framework::Dubbo,
        (&host, [&first.to_string(), &second.to_string()]),
        ("registry", &registry),
        &[("registry", "N/A")],
        folder.path(),
    )?;

    let mut by_application = by_application.consumer()?;
    let own = format!("{host}:{first}/100/true");
    facade.wait("dubbo", SHOP, &[&own]).await?;
    by_application.wait_labels(&["here"])?;
    // As if it came from ZooKeeper: consumers see it at once.
    let mut other = Instance::new(ServiceKey::new("dubbo", SHOP), &host, second);
    other.ttl = None;
    facade.registry.register(vec![other]).await?;
    consumer.wait_labels(&["elsewhere", "here"])?;
    by_application.wait_labels(&["elsewhere", "here"])?;

    // A crash: what its connections held goes, the other's stays.
    here.kill()?;
    let rest = format!("{host}:{second}/100/true");
    facade.wait("dubbo", SHOP, &[&rest]).await?;
    let tally = consumer.tally("who", 20, "")?;
    assert_eq!(tally.of("elsewhere"), 20, "{tally:?}");
    by_application.wait_labels(&["elsewhere"])
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
    let (mut here, _elsewhere, mut consumer) = start_shops(
        Framework::Sofarpc,
        (&host, ["12201", "12202"]),
        ("nacos", &server),
        &[],
        folder.path(),
    )?;

    let service = "mesh.apps.sofarpc.SofaShop";
    let own = format!("{host}:12201/100/true");
    facade.wait("bolt", service, &[&own]).await?;
    // As if it came from SOFARegistry: the consumer sees it at once.
    let mut other = Instance::new(ServiceKey::new("bolt", service), &host, 12202);
    other.ttl = None;
    facade.registry.register(vec![other]).await?;
    consumer.wait_labels(&["elsewhere", "here"])?;
    here.kill()?;
    let rest = format!("{host}:12202/100/true");
    facade.wait("bolt", service, &[&rest]).await?;
    consumer.wait_labels(&["elsewhere"])
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
