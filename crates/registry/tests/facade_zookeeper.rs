//! The mesh as ZooKeeper, with stock clients: Dubbo, and ZooKeeper's own command line.

mod common;

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use common::start_shops;
use registry::facades::zookeeper::{Config, serve};
use registry::{Credentials, Hub, Instance, InstanceRef, Registry, RegistrySource, ServiceKey};
use serde_json::json;
use testkit::apps::{Framework, start_provider};
use testkit::net::{Loopback, free_port};
use testkit::netns::Site;
use testkit::process::Process;

const SHOP: &str = "mesh.apps.dubbo.DubboShop";
const LIMIT: Duration = Duration::from_secs(60);

struct Facade {
    hub: Hub,
    registry: Registry,
    address: SocketAddr,
    task: tokio::task::JoinHandle<std::io::Result<()>>,
}

impl Facade {
    async fn start(address: SocketAddr, digest: Option<Credentials>) -> Result<Facade> {
        let (hub, registry) = common::hub(None)?;
        let listener = tokio::net::TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let config = Config { address, digest };
        let task = tokio::spawn(serve(listener, hub.clone(), registry.clone(), config));
        Ok(Facade {
            hub,
            registry,
            address,
            task,
        })
    }

    fn endpoints(&self, key: &ServiceKey) -> Vec<String> {
        common::told(&self.hub, key, tell)
    }

    async fn wait_endpoints(&self, key: &ServiceKey, expected: &[&str]) -> Result<()> {
        common::wait_told(&self.hub, key, tell, expected).await
    }
}

fn tell(instance: &Instance) -> String {
    format!("{}:{}", instance.address, instance.port)
}

fn any() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// ZooKeeper's command line.
struct Cli(Process);

impl Cli {
    fn start(server: SocketAddr, folder: &std::path::Path) -> Result<Cli> {
        // Some of its answers go to stderr.
        let script = "exec java -Xmx64m -XX:TieredStopAtLevel=1 \
            -cp /etc/zookeeper/conf:/usr/share/java/zookeeper.jar \
            org.apache.zookeeper.ZooKeeperMain -waitforconnection -timeout 2000 -server $0 2>&1";
        let mut command = Command::new("sh");
        command.args(["-c", script, &server.to_string()]);
        Ok(Cli(Process::converse("cli", &mut command, folder)?))
    }

    /// Says a command and waits for a line that has this in it.
    fn expect(&mut self, command: &str, part: &str) -> Result<String> {
        self.0.say(command)?;
        self.hear(part).with_context(|| command.to_owned())
    }

    fn hear(&mut self, part: &str) -> Result<String> {
        loop {
            let line = self.0.hear(LIMIT)?;
            if line.contains(part) && !line.starts_with("[zk:") {
                return Ok(line);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stock_dubbo_registers_and_finds_what_other_registries_hold() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let loopback = Loopback::claim()?;
    // Consumers, and the hub that asks providers what they serve, reach the same address: Dubbo replaces those of the loopback.
    let network = Site::start("providers", folder.path())?;
    let host = network.outside().to_string();
    let (first, second) = (free_port()?, free_port()?);
    let facade = Facade::start(loopback.address(1, 2181), None).await?;
    let registry = format!("zookeeper://{}?session=4000", facade.address);
    let (mut here, _elsewhere, mut consumer) = start_shops(
        Framework::Dubbo,
        (&host, [&first.to_string(), &second.to_string()]),
        ("registry", &registry),
        &[("registry", "N/A")],
        folder.path(),
    )?;

    let shop = ServiceKey::new("dubbo", SHOP);
    let own = format!("{host}:{first}");
    facade.wait_endpoints(&shop, &[&own]).await?;
    // As if it came from Nacos: the consumer sees it at once.
    let mut other = Instance::new(shop.clone(), &host, second);
    other.ttl = None;
    facade.registry.register(vec![other]).await?;
    consumer.wait_labels(&["elsewhere", "here"])?;
    // One that registers at the application level alone is found as well.
    let third = free_port()?.to_string();
    let by_application = format!("{registry}&register-mode=instance");
    let flags = [
        ("host", host.as_str()),
        ("port", &third),
        ("label", "by-application"),
        ("registry", &by_application),
    ];
    let third = start_provider(Framework::Dubbo, "by-application", &flags, folder.path())?;
    let mut third = third.provider()?;
    consumer.wait_labels(&["by-application", "elsewhere", "here"])?;
    third.terminate()?;
    consumer.wait_labels(&["elsewhere", "here"])?;

    // A crash: its session runs out. Its entries go, the other's stay.
    here.kill()?;
    facade
        .wait_endpoints(&shop, &[&format!("{host}:{second}")])
        .await?;
    let tally = consumer.tally("who", 20, "")?;
    assert_eq!(tally.of("elsewhere"), 20, "{tally:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn zookeepers_command_line_works_on_it() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut facade = Facade::start(any(), None).await?;
    let shop = ServiceKey::new("dubbo", "com.foo.Bar");
    let mut cli = Cli::start(facade.address, folder.path())?;
    cli.expect("create /dubbo/com.foo.Bar x", "Created")?;
    cli.expect("create /dubbo/com.foo.Bar/providers x", "Created")?;
    cli.expect("ls -w /dubbo/com.foo.Bar/providers", "[]")?;
    let mut instance = Instance::new(shop.clone(), "10.0.0.1", 20880);
    instance.ttl = None;
    let registered = facade.registry.register(vec![instance]).await?;
    cli.hear("NodeChildrenChanged")?;
    cli.expect(
        "ls /dubbo/com.foo.Bar/providers",
        "dubbo%3A%2F%2F10.0.0.1%3A20880%2Fcom.foo.Bar%3F",
    )?;
    let provider = "dubbo%3A%2F%2F10.0.0.2%3A20880%2Fcom.foo.Bar%3Finterface%3Dcom.foo.Bar";
    cli.expect(
        &format!("create -e /dubbo/com.foo.Bar/providers/{provider} 10.0.0.2"),
        "Created",
    )?;
    facade
        .wait_endpoints(&shop, &["10.0.0.1:20880", "10.0.0.2:20880"])
        .await?;
    cli.expect(
        &format!("get /dubbo/com.foo.Bar/providers/{provider}"),
        "10.0.0.2",
    )?;
    cli.0.say("set /dubbo/com.foo.Bar y")?;
    cli.expect("stat /dubbo/com.foo.Bar", "dataVersion = 1")?;
    cli.expect("create -s /dubbo/n- x", "Created /dubbo/n-")?;
    // What cannot be read hides nothing.
    cli.expect(
        "create -e /dubbo/com.foo.Bar/providers/nonsense x",
        "Created",
    )?;
    assert_eq!(facade.endpoints(&shop).len(), 2);

    // The real client and ours see the same.
    let spec: RegistrySource =
        serde_json::from_value(json!({"zookeeper": {"servers": [facade.address.to_string()]}}))?;
    let reader = Facade::start(any(), None).await?;
    reader.hub.set_sources(vec![spec.compile("facade")?]);
    reader
        .wait_endpoints(&shop, &["10.0.0.1:20880", "10.0.0.2:20880"])
        .await?;
    let reference = InstanceRef {
        service: shop.clone(),
        id: registered.result[0].id.clone(),
    };
    facade.registry.deregister(vec![reference]).await?;
    facade.wait_endpoints(&shop, &["10.0.0.2:20880"]).await?;
    reader.wait_endpoints(&shop, &["10.0.0.2:20880"]).await?;

    cli.0.kill()?;
    facade.wait_endpoints(&shop, &[]).await?;
    facade.task.abort();
    let _ = (&mut facade.task).await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_credentials_nothing_is_told() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let digest: Credentials =
        serde_json::from_value(json!({"username": "mesh", "password": "s3cret"}))?;
    let facade = Facade::start(any(), Some(digest)).await?;
    let mut cli = Cli::start(facade.address, folder.path())?;
    cli.expect("ls /", "Insufficient permission")?;
    cli.0.say("addauth digest mesh:s3cret")?;
    cli.expect("ls /", "[dubbo")?;
    Ok(())
}
