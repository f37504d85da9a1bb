//! Applications that registered in registries of their own, called through the mesh and found through pilot's faces.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::Value;
use testkit::apps::{Consumer, Framework, start_consumer, start_provider};
use testkit::http;
use testkit::mesh::{Kind, Mesh};
use testkit::registries::ZooKeeper;

use crate::stage::DUBBO;
use crate::yaml;

const LIMIT: Duration = Duration::from_secs(60);
const CONSUMER: u8 = 2;
const FACADE_PORT: u16 = 2181;

fn source(name: &str, registry: &str) -> String {
    format!(
        "apiVersion: mesh.sofastack.io/v1alpha1\nkind: RegistrySource\n\
         metadata: {{name: {name}}}\nspec:\n  {registry}\n---\n"
    )
}

/// Calls until all answers come from these.
fn wait_labels(consumer: &mut Consumer, expected: &[&str]) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    loop {
        let tally = consumer.tally("who", 20, "")?;
        let labels: Vec<&str> = tally.labels.keys().map(String::as_str).collect();
        if labels == expected && tally.failures.is_empty() {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "{expected:?} expected: {tally:?}"
        );
    }
}

#[test]
fn zookeepers_providers_are_called_and_found_through_the_mesh() -> Result<()> {
    let mesh = Mesh::start_with(&[("--zookeeperAddr", FACADE_PORT)])?;
    let folder = mesh.folder().to_owned();
    let mut zookeeper = ZooKeeper::start(&folder)?;
    let server = zookeeper.address().to_string();
    let sources = source("zk", &format!("zookeeper: {{servers: ['{server}']}}"));
    mesh.write("sources.yaml", &sources)?;
    mesh.write(
        "sidecars.yaml",
        &yaml::egress(mesh.ip(CONSUMER), DUBBO.port),
    )?;
    let registry = format!("zookeeper://{server}");
    let facade = format!("zookeeper://{}?session=4000", mesh.address(1, FACADE_PORT));
    let provider = |label: &str, registry: &str| {
        let ip = mesh.ip(3).to_string();
        let port = testkit::net::free_port()?.to_string();
        let flags = [
            ("host", &*ip),
            ("port", &port),
            ("label", label),
            ("registry", registry),
        ];
        start_provider(Framework::Dubbo, label, &flags, &folder)
    };
    // One is where it always was; of the other only the address of its registry was changed.
    let there = provider("there", &registry)?;
    let moved = provider("moved", &facade)?;
    let flags = [("registry", facade.as_str())];
    let found = start_consumer(Framework::Dubbo, "found", &flags, &folder)?;
    let mut sidecar = mesh.sidecar(Kind::Mosn, "sidecar", CONSUMER, &[("app", "consumer")])?;
    sidecar.wait_listening(DUBBO.port.number)?;
    let to = format!("{}:{}", mesh.name(CONSUMER), DUBBO.port.number);
    let meshed = start_consumer(Framework::Dubbo, "meshed", &[("to", &to)], &folder)?;
    let (mut there, mut moved) = (there.provider()?, moved.provider()?);
    let (mut found, mut meshed) = (found.consumer()?, meshed.consumer()?);

    wait_labels(&mut meshed, &["moved", "there"])?;
    wait_labels(&mut found, &["moved", "there"])?;

    // The registry is away: everybody goes on.
    zookeeper.kill()?;
    let stale = || -> Result<Value> {
        let page = http::get(mesh.pilot_http(), "/debug/registries")?.json()?;
        Ok(page["sources"][0]["stale"].clone())
    };
    testkit::wait::until("the loss to be known", LIMIT, || {
        stale().is_ok_and(|stale| stale == true).then_some(())
    })?;
    wait_labels(&mut meshed, &["moved", "there"])?;
    wait_labels(&mut found, &["moved", "there"])?;
    zookeeper.restart()?;
    testkit::wait::until("the registry to be back", LIMIT, || {
        stale().is_ok_and(|stale| stale == false).then_some(())
    })?;

    // An orderly end is heard on both sides.
    there.terminate()?;
    wait_labels(&mut meshed, &["moved"])?;
    wait_labels(&mut found, &["moved"])?;
    moved.terminate()
}
