//! The ZooKeeper adapter with a real server; its other clients are ZooKeeper's own command line.

mod common;

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use common::{all_told, status, until, wait_same};
use registry::{
    Hub, HubOptions, Instance, Limits, ORIGIN_MARK, RegistrySource, ServiceKey, Wanted,
};
use serde_json::json;
use testkit::process::Process;
use testkit::registries::ZooKeeper;

const PROVIDERS: &str = "/dubbo/com.foo.Order/providers";
const LIMIT: Duration = Duration::from_secs(60);

/// ZooKeeper's command line: one session, commands in lines.
struct Cli(Process);

impl Cli {
    fn start(server: SocketAddr, name: &str, folder: &Path) -> Result<Cli> {
        let mut command = Command::new("java");
        command
            .args(["-Xmx64m", "-XX:TieredStopAtLevel=1", "-cp"])
            .arg("/etc/zookeeper/conf:/usr/share/java/zookeeper.jar")
            .args(["-Dzookeeper.jmx.log4j.disable=true"])
            .arg("org.apache.zookeeper.ZooKeeperMain")
            .args([
                "-waitforconnection",
                "-timeout",
                // It ends when it has not connected within that: a machine may be busy.
                "15000",
                "-server",
                &server.to_string(),
            ]);
        Ok(Cli(Process::converse(name, &mut command, folder)?))
    }

    fn provider(&mut self, host: &str, port: u16, parameters: &str) -> Result<()> {
        let url =
            format!("dubbo://{host}:{port}/com.foo.Order?interface=com.foo.Order&{parameters}");
        self.create("-e ", PROVIDERS, &url)
    }

    fn create(&mut self, flags: &str, folder: &str, child: &str) -> Result<()> {
        let escaped: String = child
            .bytes()
            .map(|byte| match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'-' => {
                    char::from(byte).to_string()
                }
                _ => format!("%{byte:02X}"),
            })
            .collect();
        self.0.say(&format!("create {flags}{folder}/{escaped} x"))
    }

    fn list(&mut self) -> Result<String> {
        loop {
            let line = self.0.hear(Duration::from_secs(1))?;
            if line.starts_with('[') && line.ends_with(']') && !line.starts_with("[zk:") {
                return Ok(line);
            }
        }
    }

    /// The children of a folder, once there are as many.
    fn children(&mut self, folder: &str, count: usize) -> Result<Vec<String>> {
        let deadline = Instant::now() + LIMIT;
        loop {
            self.0.say(&format!("ls {folder}"))?;
            // Of a folder that is not there it says nothing on stdout.
            let Ok(line) = self.list() else {
                anyhow::ensure!(Instant::now() < deadline, "there is no {folder}");
                continue;
            };
            let children: Vec<String> = line
                .trim_matches(['[', ']'])
                .split(", ")
                .filter(|child| !child.is_empty())
                .map(ToOwned::to_owned)
                .collect();
            if children.len() == count {
                return Ok(children);
            }
            anyhow::ensure!(Instant::now() < deadline, "{folder} holds {children:?}");
        }
    }
}

fn hub(mesh: &str, data_dir: Option<&Path>) -> Hub {
    Hub::start(HubOptions {
        mesh_id: mesh.to_owned(),
        registry: None,
        limits: Limits::default(),
        data_dir: data_dir.map(Path::to_path_buf),
    })
}

fn endpoints(hub: &Hub) -> Vec<String> {
    all_told(hub, |i| {
        format!(
            "{}:{} w{} v{} g{}",
            i.address, i.port, i.weight, i.version, i.group
        )
    })
}

async fn wait_endpoints(hub: &Hub, expected: &[&str]) -> Result<()> {
    wait_same(LIMIT, || endpoints(hub), expected).await
}

fn source(server: SocketAddr) -> Result<registry::SourceSpec> {
    let spec: RegistrySource = serde_json::from_value(json!({
        "zookeeper": {"servers": [server.to_string()], "sessionTimeout": "2s"},
        "protection": {"hold": "3s"},
    }))?;
    Ok(spec.compile("zk")?)
}

fn copy(port: u16) -> (Arc<str>, Arc<Instance>) {
    let mut copy = Instance::new(ServiceKey::new("dubbo", "com.foo.Order"), "10.9.0.1", port);
    copy.version = "2.0".into();
    copy.metadata = [
        (ORIGIN_MARK, "one/nacos"),
        ("methods", "place,cancel"),
        ("application", "orders"),
    ]
    .into_iter()
    .collect();
    (format!("copy-{port}").into(), Arc::new(copy))
}

#[tokio::test(flavor = "multi_thread")]
async fn providers_are_read_and_outlive_the_server() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut server = ZooKeeper::start(folder.path())?;
    let mut cli = Cli::start(server.address(), "provider", folder.path())?;
    for path in ["/dubbo", "/dubbo/com.foo.Order", PROVIDERS] {
        cli.0.say(&format!("create {path} x"))?;
    }
    cli.provider("10.0.0.1", 20880, "version=1.0&group=g&weight=30")?;
    cli.provider("10.0.0.2", 20880, "")?;
    cli.create("-e ", PROVIDERS, "dubbo://10.0.0.3:99999/com.foo.Order")?;

    let hub = hub("one", Some(&folder.path().join("hub")));
    hub.set_sources(vec![source(server.address())?]);
    let both = ["10.0.0.1:20880 w30 v1.0 gg", "10.0.0.2:20880 w100 v g"];
    wait_endpoints(&hub, &both).await?;
    let broken = until(LIMIT, "the broken entry is named", async || {
        let entries = status(&hub).await.ok()?.skipped_entries;
        (entries.len() == 1).then_some(entries)
    })
    .await?;
    assert!(broken[0].entry.contains("99999"), "{broken:?}");

    // A server that is away takes nothing with it.
    server.kill()?;
    until(LIMIT, "the loss is known", async || {
        status(&hub).await.ok().filter(|s| !s.connected && s.stale)
    })
    .await?;
    assert_eq!(endpoints(&hub), both);
    server.restart()?;
    until(LIMIT, "connected again", async || {
        status(&hub).await.ok().filter(|s| s.connected && s.synced)
    })
    .await?;
    assert_eq!(endpoints(&hub), both);

    // A client that dies loses its nodes with its session. All at once is a suspicion, so they stay for `hold`.
    cli.0.kill()?;
    wait_endpoints(&hub, &[]).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_are_written_as_dubbo_writes_them() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut server = ZooKeeper::start(folder.path())?;
    let one = hub("one", None);
    one.set_sources(vec![source(server.address())?]);
    let wanted = Wanted {
        publish: [copy(1), copy(2)].into_iter().collect(),
        ..Wanted::default()
    };
    one.set_wanted("zk", wanted);

    let mut cli = Cli::start(server.address(), "reader", folder.path())?;
    let children = cli.children(PROVIDERS, 2)?;
    assert!(
        children[0].starts_with("dubbo%3A%2F%2F10.9.0.1%3A"),
        "{children:?}"
    );
    assert!(
        children[0].contains("methods%3Dplace%2Ccancel"),
        "{children:?}"
    );
    // Its own copies are no instances of the mesh; to another mesh they are instances like others.
    until(LIMIT, "its copies are seen", async || {
        status(&one).await.ok().filter(|s| s.copies == 2)
    })
    .await?;
    assert_eq!(endpoints(&one), Vec::<String>::new());
    let two = hub("two", None);
    two.set_sources(vec![source(server.address())?]);
    wait_endpoints(&two, &["10.9.0.1:1 w100 v2.0 g", "10.9.0.1:2 w100 v2.0 g"]).await?;

    // A server that lost everything gets them again.
    server.kill()?;
    server.restart_empty()?;
    let mut cli = Cli::start(server.address(), "reader", folder.path())?;
    assert_eq!(cli.children(PROVIDERS, 2)?.len(), 2);

    let wanted = Wanted {
        publish: [copy(2)].into_iter().collect(),
        withdraw: [copy(1)].into_iter().collect(),
        ..Wanted::default()
    };
    one.set_wanted("zk", wanted);
    let children = cli.children(PROVIDERS, 1)?;
    assert!(
        children[0].starts_with("dubbo%3A%2F%2F10.9.0.1%3A2%2F"),
        "{children:?}"
    );
    wait_endpoints(&two, &["10.9.0.1:2 w100 v2.0 g"]).await?;
    // Another replica takes over: the first has nothing to take away any more.
    let successor = hub("one", None);
    successor.set_sources(vec![source(server.address())?]);
    let wanted = Wanted {
        publish: [copy(2)].into_iter().collect(),
        ..Wanted::default()
    };
    successor.set_wanted("zk", wanted);
    until(LIMIT, "the successor's copy is written", async || {
        status(&successor).await.ok().filter(|s| s.written == 1)
    })
    .await?;
    one.set_wanted("zk", Wanted::default());
    until(LIMIT, "the first has let go", async || {
        status(&one).await.ok().filter(|s| s.written == 0)
    })
    .await?;
    one.set_sources(Vec::new());
    cli.children(PROVIDERS, 1)?;
    // A hub that ends in an orderly way takes its copies with it.
    successor.set_sources(Vec::new());
    cli.children(PROVIDERS, 0)?;
    Ok(())
}
