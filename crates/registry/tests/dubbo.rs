//! Stock Dubbo applications on real ZooKeepers: a provider of either level is read, and a consumer of another registry calls
//! it through the copy that the hub writes there.

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use common::{hub_of, start_shops, wanted_copy};
use registry::{Hub, Instance, ORIGIN_MARK, RegistrySource, ServiceKey, Wanted};
use serde_json::json;
use testkit::apps::{Framework, start_consumer, start_provider};
use testkit::net::{Loopback, free_port};
use testkit::netns::Site;
use testkit::registries::ZooKeeper;

const SHOP: &str = "mesh.apps.dubbo.DubboShop";
const LIMIT: Duration = Duration::from_secs(60);

fn source(name: &str, server: &ZooKeeper) -> Result<registry::SourceSpec> {
    let spec: RegistrySource = serde_json::from_value(json!({
        "zookeeper": {"servers": [server.address().to_string()]},
    }))?;
    Ok(spec.compile(name)?)
}

async fn instances(hub: &Hub, count: usize) -> Result<Vec<Arc<Instance>>> {
    let deadline = Instant::now() + LIMIT;
    loop {
        let services = hub.snapshot();
        let shop = services.get(&ServiceKey::new("dubbo", SHOP));
        let instances: Vec<_> = shop
            .iter()
            .flat_map(|s| s.instances.iter().cloned())
            .collect();
        if instances.len() == count {
            return Ok(instances);
        }
        let status = serde_json::to_string(&hub.status().await)?;
        anyhow::ensure!(Instant::now() < deadline, "{instances:?} {status}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_calls_a_provider_of_another_registry() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let loopback = Loopback::claim()?;
    loopback.write_hosts(folder.path())?;
    let (providers, consumers) = (ZooKeeper::start(folder.path())?, {
        let folder = folder.path().join("consumers");
        std::fs::create_dir(&folder)?;
        ZooKeeper::start(&folder)?
    });
    let address = |server: &ZooKeeper, mode: &str| {
        format!("zookeeper://{}?register-mode={mode}", server.address())
    };
    let provider = |label: &str, port: &str, mode: &str| {
        let flags = [
            ("host", loopback.ip(2).to_string()),
            ("port", port.to_owned()),
            ("label", label.to_owned()),
            ("group", "g".to_owned()),
            ("version", "1.0".to_owned()),
            ("registry", address(&providers, mode)),
        ];
        let flags: Vec<(&str, &str)> = flags.iter().map(|(k, v)| (*k, v.as_str())).collect();
        start_provider(Framework::Dubbo, label, &flags, folder.path())
    };
    let (first, second) = (free_port()?.to_string(), free_port()?.to_string());
    let by_application = provider("application", &first, "instance")?;
    let by_interface = provider("interface", &second, "interface")?;
    let mut by_application = by_application.provider()?;
    let _by_interface = by_interface.provider()?;

    let hub = hub_of("test");
    hub.set_sources(vec![
        source("providers", &providers)?,
        source("consumers", &consumers)?,
    ]);
    let read = instances(&hub, 2).await?;
    for instance in &read {
        assert_eq!(
            (&*instance.version, &*instance.group),
            ("1.0", "g"),
            "{instance:?}"
        );
        assert_eq!(instance.metadata.get("application"), Some("dubbo-provider"));
        let methods = instance.metadata.get("methods").context("no methods")?;
        assert!(methods.contains("echo"), "{methods}");
    }

    // What synchronisation would want. Dubbo dials the machine's own address in place of one on the loopback, but leaves
    // names alone.
    let copy = |original: &Arc<Instance>| {
        let mut copy = Instance::clone(original);
        copy.address = loopback.name(2).into();
        let mark = [(ORIGIN_MARK, "test/providers")];
        copy.metadata = copy.metadata.iter().chain(mark).collect();
        (original.id.clone(), Arc::new(copy))
    };
    let copies = |instances: &[Arc<Instance>]| Wanted {
        publish: instances.iter().map(copy).collect(),
        ..Wanted::default()
    };
    hub.set_wanted("consumers", copies(&read));
    let registry = address(&consumers, "all");
    let flags = [
        ("registry", registry.as_str()),
        ("group", "g"),
        ("version", "1.0"),
    ];
    let mut consumer =
        start_consumer(Framework::Dubbo, "consumer", &flags, folder.path())?.consumer()?;
    consumer.wait_labels(&["application", "interface"])?;

    // One that ends in an orderly way withdraws itself, and its copy goes with it.
    by_application.terminate()?;
    let left = instances(&hub, 1).await?;
    hub.set_wanted("consumers", copies(&left));
    consumer.wait_labels(&["interface"])
}

/// Copies into a registry whose own providers are at the application level are there too, for as long as those are: a consumer
/// that finds one of them asks for no others.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_is_found_beside_providers_of_the_application_level() -> Result<()> {
    let folder = tempfile::tempdir()?;
    // Consumers, and the hub that asks providers what they serve, reach the same address: Dubbo replaces those of the loopback.
    let network = Site::start("providers", folder.path())?;
    let host = network.outside().to_string();
    let server = ZooKeeper::start(folder.path())?;
    let registry = format!("zookeeper://{}", server.address());
    let (first, second) = (free_port()?, free_port()?);
    let (mut here, _elsewhere, mut consumer) = start_shops(
        Framework::Dubbo,
        (&host, [&first.to_string(), &second.to_string()]),
        ("registry", &registry),
        &[("registry", "N/A")],
        folder.path(),
    )?;
    consumer.wait_labels(&["here"])?;

    let hub = hub_of("test");
    hub.set_sources(vec![source("zk", &server)?]);
    hub.set_wanted("zk", wanted_copy(SHOP, &host, second, "test/nacos"));
    consumer.wait_labels(&["elsewhere", "here"])?;
    here.terminate()?;
    consumer.wait_labels(&["elsewhere"])?;
    // The copy has left that level: otherwise it would be the only one that is found.
    let of_interface = format!("{registry}?register-mode=interface");
    let first = first.to_string();
    let flags = [
        ("host", host.as_str()),
        ("port", &first),
        ("label", "again"),
        ("registry", &of_interface),
    ];
    let again = start_provider(Framework::Dubbo, "again", &flags, folder.path())?;
    let _again = again.provider()?;
    consumer.wait_labels(&["again", "elsewhere"])
}
