//! The mesh as Nacos, with stock clients of three generations: 1.4 over HTTP and UDP, 2.5 and 3.0 over gRPC.

mod access;
#[path = "../common.rs"]
mod common;
mod frameworks;
mod generations;
mod requests;

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use registry::facades::nacos::{Config, GRPC_OFFSET, serve};
use registry::{Credentials, Hub, Instance, Registry, ServiceKey};
use testkit::process::Process;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

const LIMIT: Duration = Duration::from_secs(60);
const SPRING: &str = "{preserved.register.source=SPRING_CLOUD}";

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
        self.0.ask(command, LIMIT)
    }

    fn done(&mut self, command: &str) -> Result<()> {
        self.0.tell(command, LIMIT)
    }

    /// Asks until the answer is this.
    fn wait(&mut self, command: &str, expected: &str) -> Result<()> {
        self.0.ask_until(command, expected, LIMIT)
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
