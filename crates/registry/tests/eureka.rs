//! The Eureka adapter with a real server and Spring Cloud's stock client.

mod common;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use common::{all_told, hub_of, status, until, wait_same};
use registry::{Hub, Instance, ORIGIN_MARK, RegistrySource, ServiceKey, Wanted};
use serde_json::json;
use testkit::process::Process;
use testkit::registries::Eureka;

const LIMIT: Duration = Duration::from_secs(90);

/// A Spring Cloud application.
pub(crate) struct App(Process);

impl App {
    fn start(name: &str, servers: &str, flags: &[(&str, &str)], folder: &Path) -> Result<App> {
        let mut arguments = vec!["--name".to_owned(), name.to_owned()];
        for (flag, value) in [("servers", servers)].iter().chain(flags) {
            arguments.extend([format!("--{flag}"), (*value).to_owned()]);
        }
        let class = "mesh.apps.eureka.Client";
        testkit::apps::start_client("eureka", class, name, &arguments, folder).map(App)
    }

    fn ask(&mut self, command: &str) -> Result<String> {
        self.0.ask(command, LIMIT)
    }

    /// What the application sees, once it is this.
    fn wait(&mut self, command: &str, expected: &str) -> Result<()> {
        self.0.ask_until(command, expected, LIMIT)
    }
}

fn endpoints(hub: &Hub) -> Vec<String> {
    all_told(hub, |i| {
        let zone = i.metadata.get("zone").unwrap_or("-");
        format!(
            "{} {}:{} {} {zone}",
            i.service, i.address, i.port, i.healthy
        )
    })
}

async fn wait_endpoints(hub: &Hub, expected: &[&str]) -> Result<()> {
    wait_same(LIMIT, || endpoints(hub), expected).await
}

fn source(servers: &[String]) -> Result<registry::SourceSpec> {
    let spec: RegistrySource = serde_json::from_value(json!({
        "eureka": {"servers": servers, "pollInterval": "200ms", "leaseDuration": "3s"},
        "protection": {"hold": "2s"},
    }))?;
    Ok(spec.compile("eureka")?)
}

fn copy(port: u16) -> (Arc<str>, Arc<Instance>) {
    let key = ServiceKey::new("springcloud", "orders");
    let mut copy = Instance::new(key, "10.9.0.1", port);
    copy.metadata = [(ORIGIN_MARK, "one/zk"), ("zone", "east")]
        .into_iter()
        .collect();
    (format!("one/zk/copy-{port}").into(), Arc::new(copy))
}

fn wanted(publish: &[u16], withdraw: &[u16]) -> Wanted {
    Wanted {
        publish: publish.iter().map(|port| copy(*port)).collect(),
        withdraw: withdraw.iter().map(|port| copy(*port)).collect(),
        ..Wanted::default()
    }
}

fn seen(ports: &[u16]) -> String {
    let parts = ports
        .iter()
        .map(|port| format!("10.9.0.1:{port}{{{ORIGIN_MARK}=one/zk, zone=east}}"));
    parts.collect::<Vec<_>>().join(" ")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_spring_registers_is_read_and_copies_are_found_by_spring() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut server = Eureka::start(folder.path())?;
    let one = hub_of("one");
    // A peer that is not there is passed over.
    one.set_sources(vec![source(&[
        "http://127.0.0.1:1/eureka".to_owned(),
        server.url(),
    ])?]);
    one.set_wanted("eureka", wanted(&[8001, 8002], &[]));
    let flags = [
        ("address", "127.0.0.1"),
        ("port", "18081"),
        ("zone", "west"),
    ];
    let mut shop = App::start("shop", &server.url(), &flags, folder.path())?;
    let up = ["springcloud/shop 127.0.0.1:18081 true west"];
    wait_endpoints(&one, &up).await?;
    shop.wait("find orders", &seen(&[8001, 8002]))?;

    // To another mesh copies are instances like others.
    let two = hub_of("two");
    two.set_sources(vec![source(&[server.url()])?]);
    let of_all = [
        "springcloud/orders 10.9.0.1:8001 true east",
        "springcloud/orders 10.9.0.1:8002 true east",
        up[0],
    ];
    wait_endpoints(&two, &of_all).await?;

    // An operator's word and the application's own both count.
    let path = "/eureka/apps/SHOP/shop/status?value=OUT_OF_SERVICE";
    let answer = testkit::http::request(server.address(), "PUT", path, &[], &[])?;
    ensure!(answer.status == 200, "{}", answer.text());
    wait_endpoints(&one, &["springcloud/shop 127.0.0.1:18081 false west"]).await?;

    // A server that comes back empty gets the copies again, and nothing flaps in the mesh.
    server.kill()?;
    until(LIMIT, "the loss is known", async || {
        status(&one).await.ok().filter(|s| !s.connected && s.stale)
    })
    .await?;
    server.restart()?;
    wait_endpoints(&two, &of_all).await?;
    shop.wait("find orders", &seen(&[8001, 8002]))?;
    wait_endpoints(&one, &up).await?;

    one.set_wanted("eureka", wanted(&[8002], &[8001]));
    shop.wait("find orders", &seen(&[8002]))?;
    // An application that leaves says so: it is gone at once.
    shop.ask("quit")?;
    wait_endpoints(&one, &[]).await?;
    // The copies of a hub that is no more go with their leases.
    drop(one);
    wait_endpoints(&two, &[]).await?;
    Ok(())
}
