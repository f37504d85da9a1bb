//! The Eureka facade with Spring Cloud's stock client.

mod common;

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use registry::facades::eureka;
use registry::{Hub, Registry};
use serde_json::{Value, json};
use testkit::http::request;
use testkit::process::Process;
use tokio::net::TcpListener;

const LIMIT: Duration = Duration::from_secs(60);
const FILES: &str = "services:\n- {protocol: springcloud, name: orders, instances: [{address: 10.9.0.1, port: 80, metadata: {zone: east, 'no name': <&>}}]}\n";

/// A Spring Cloud application.
struct App(Process);

impl App {
    fn start(name: &str, server: SocketAddr, flags: &[&str], folder: &Path) -> Result<App> {
        let servers = format!("http://{server}/eureka");
        let fixed = ["--name", name, "--servers", &servers, "--id", name];
        let arguments = fixed.iter().chain(flags).map(|word| (*word).to_owned());
        let arguments: Vec<String> = arguments.collect();
        let class = "mesh.apps.eureka.Client";
        testkit::apps::start_client("eureka", class, name, &arguments, folder).map(App)
    }

    fn ask(&mut self, command: &str) -> Result<String> {
        self.0.ask(command, LIMIT)
    }

    /// What the application sees, once it has all these parts and none of those.
    fn wait(&mut self, command: &str, parts: &[&str], absent: &[&str]) -> Result<String> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let seen = self.ask(command)?;
            let there = parts.iter().all(|part| seen.contains(part));
            if there && !absent.iter().any(|part| seen.contains(part)) {
                return Ok(seen);
            }
            ensure!(
                Instant::now() < deadline,
                "{command}: {seen}: not {parts:?}, or {absent:?}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

async fn serve(folder: &Path) -> Result<(Registry, Hub, SocketAddr)> {
    std::fs::write(folder.join("orders.yaml"), FILES)?;
    let (hub, registry) = common::hub(Some(folder))?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let serve = eureka::serve(
        listener,
        hub.clone(),
        registry.clone(),
        eureka::Config { address },
    );
    tokio::spawn(serve);
    Ok((registry, hub, address))
}

fn get(server: SocketAddr, path: &str) -> Result<Value> {
    let answer = request(server, "GET", path, &[("accept", "application/json")], &[])?;
    ensure!(answer.status == 200, "{path}: {}", answer.status);
    answer.json()
}

#[tokio::test(flavor = "multi_thread")]
async fn spring_applications_find_each_other_and_what_other_registries_hold() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let sources = folder.path().join("sources");
    std::fs::create_dir(&sources)?;
    let (registry, _hub, server) = serve(&sources).await?;
    let mut cart = App::start("cart", server, &["--register", "false"], folder.path())?;
    cart.wait("find orders", &["10.9.0.1:80{no name=<&>, zone=east}"], &[])?;

    let flags = ["--port", "18082", "--zone", "west"];
    let mut shop = App::start("shop", server, &flags, folder.path())?;
    let found = cart.wait("find shop", &["127.0.0.1:18082{"], &[])?;
    ensure!(found.contains("zone=west"), "{found}");
    let services = registry.snapshot();
    let shops: Vec<_> = services
        .iter()
        .map(|service| service.key.to_string())
        .collect();
    ensure!(shops == ["springcloud/shop"], "{shops:?}");
    // Netflix' own XML reader sees the same; a word that is no name in XML is left out there.
    let all = cart.wait(
        "xml",
        &["SHOP/shop@127.0.0.1:18082=UP", "=UP{zone=east}"],
        &[],
    )?;
    ensure!(
        all.contains("ORDERS/10.9.0.1:80@files@10.9.0.1:80"),
        "{all}"
    );

    // What changes comes by deltas whose hash the client checks.
    shop.ask("status OUT_OF_SERVICE")?;
    cart.wait("apps", &["18082=OUT_OF_SERVICE"], &[])?;
    let delta = get(server, "/eureka/apps/delta")?;
    let delta = delta.get("applications").context("no applications")?;
    assert_eq!(delta["apps__hashcode"], "OUT_OF_SERVICE_1_UP_1_");
    assert_eq!(delta["versions__delta"], "1");
    let apps = delta["application"].as_array().context("no list")?;
    let shop_app = apps.iter().find(|app| app["name"] == "SHOP");
    let changed = &shop_app.context("no shop")?["instance"][0];
    assert_eq!(changed["actionType"], "MODIFIED");
    assert_eq!(changed["port"], json!({"$": 18082, "@enabled": "true"}));
    shop.ask("status UP")?;
    cart.wait("apps", &["18082=UP"], &[])?;

    // An operator's word stays over renewals and registrations until it is taken back.
    let path = "/eureka/apps/SHOP/shop";
    let put =
        |method: &str, query: &str| request(server, method, &format!("{path}{query}"), &[], &[]);
    assert_eq!(put("PUT", "/status?value=OUT_OF_SERVICE")?.status, 200);
    assert_eq!(put("PUT", "/metadata?blue=green")?.status, 200);
    cart.wait("apps", &["18082=OUT_OF_SERVICE", "blue=green"], &[])?;
    assert_eq!(put("DELETE", "/status?value=UP")?.status, 200);
    cart.wait("apps", &["18082=UP"], &[])?;

    // A registry that lost it gets it again with the next renewal.
    let one = registry::InstanceRef::new("springcloud", "shop", "shop");
    registry.deregister(vec![one]).await?;
    testkit::wait::until("it is there again", LIMIT, || {
        (registry.snapshot().instances() == 1).then_some(())
    })?;
    cart.wait("apps", &["18082=UP"], &[])?;

    // Who leaves is gone at once, who is killed with its lease.
    let mut twin = App::start("twin", server, &["--lease", "2"], folder.path())?;
    cart.wait("apps", &["TWIN/"], &[])?;
    shop.ask("quit")?;
    assert_eq!(put("GET", "")?.status, 404);
    cart.wait("apps", &["ORDERS/"], &["SHOP/"])?;
    twin.0.kill()?;
    cart.wait("apps", &["ORDERS/"], &["TWIN/"])?;
    Ok(())
}

#[tokio::test]
async fn requests_that_are_none_are_refused() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (_registry, _hub, server) = serve(folder.path()).await?;
    let post = |body: &'static [u8]| {
        let headers = [("content-type", "application/json")];
        tokio::task::spawn_blocking(move || {
            request(server, "POST", "/eureka/apps/SHOP", &headers, body)
        })
    };
    for (body, why) in [
        (&b"nonsense"[..], "expected"),
        (b"{}", "instance"),
        (b"{\"instance\":{\"app\":\"CART\"}}", "Mismatched"),
        (b"{\"instance\":{\"app\":\"SHOP\"}}", "ipAddr"),
        (
            b"{\"instance\":{\"app\":\"SHOP\",\"ipAddr\":\"10.0.0.1\"}}",
            "port",
        ),
    ] {
        let answer = post(body).await??;
        assert_eq!(answer.status, 400, "{}", answer.text());
        assert!(answer.text().contains(why), "{}", answer.text());
    }
    for (method, path, status) in [
        ("GET", "/", 404),
        ("GET", "/eureka/apps/%FF", 400),
        ("GET", "/eureka/apps/NONE", 404),
        ("PUT", "/eureka/apps/NONE/none?lastDirtyTimestamp=x", 404),
        ("PATCH", "/eureka/apps/NONE", 405),
        ("GET", "/eureka/v2/apps/", 200),
    ] {
        let ask = move || request(server, method, path, &[], &[]);
        let answer = tokio::task::spawn_blocking(ask).await??;
        assert_eq!(answer.status, status, "{method} {path}");
    }
    Ok(())
}
