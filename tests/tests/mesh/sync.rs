//! Synchronisation between registries as the documentation's migration recipe has it, with a stock consumer.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use testkit::apps::{Framework, start_consumer, start_provider};
use testkit::http;
use testkit::mesh::Mesh;
use testkit::registries::{Etcd, Eureka, ZooKeeper};

const SHOP: &str = "mesh.apps.dubbo.DubboShop";
const RECIPE: &str = include_str!("../../../docs/registries/sync.md");

/// The recipe's documents with the addresses of this test.
fn recipe(zookeeper: &ZooKeeper, etcd: &Etcd, eureka: &Eureka, folder: &Path) -> Result<String> {
    let recipe = RECIPE
        .split("## From etcd, Eureka and hand-kept lists")
        .nth(1);
    let block = recipe.and_then(|recipe| recipe.split("```yaml\n").nth(1));
    let block = block.and_then(|rest| rest.split("```").next());
    let mut text = block.context("no recipe")?.to_owned();
    for (from, to) in [
        ("zookeeper.example:2181", zookeeper.address().to_string()),
        ("etcd.example:2379", etcd.address().to_string()),
        ("http://eureka.example:8761/eureka", eureka.url()),
        ("/etc/mesh/services", folder.display().to_string()),
    ] {
        ensure!(text.contains(from), "the recipe has no {from}");
        text = text.replace(from, &to);
    }
    // The test need not wait as long as people should.
    Ok(text.replace("pollInterval: 1s", "pollInterval: 200ms"))
}

#[test]
fn a_dubbo_3_consumer_on_zookeeper_calls_providers_of_etcd_and_of_a_file() -> Result<()> {
    let mesh = Mesh::start_keeping()?;
    let folder = mesh.folder().to_owned();
    let services = folder.join("services");
    fs::create_dir(&services)?;
    let zookeeper = ZooKeeper::start(&folder)?;
    let etcd = Etcd::start(&folder)?;
    let eureka = Eureka::start(&folder)?;
    mesh.write("sync.yaml", &recipe(&zookeeper, &etcd, &eureka, &services)?)?;

    // One provider is registered nowhere and listed by hand, one is known to etcd alone, one to ZooKeeper alone.
    let registry = format!("zookeeper://{}", zookeeper.address());
    // Where it finds providers at the application level a Dubbo 3 consumer takes no others.
    let of_interface = format!("{registry}?register-mode=interface");
    let provider = |label: &str, port: u16, registry: Option<&str>| {
        let (host, port) = (mesh.name(3), port.to_string());
        let mut flags = vec![("host", host.as_str()), ("port", &port), ("label", label)];
        flags.extend(registry.map(|registry| ("registry", registry)));
        start_provider(Framework::Dubbo, label, &flags, &folder)
    };
    let listed = provider("listed", 20881, None)?;
    let in_etcd = provider("in-etcd", 20882, None)?;
    let in_zookeeper = provider("in-zookeeper", 20883, Some(&of_interface))?;
    let host = mesh.name(3);
    let shop = format!(
        "services:\n- {{protocol: dubbo, name: {SHOP}, instances: [{{address: {host}, port: 20881}}]}}\n"
    );
    fs::write(services.join("shop.yaml"), shop)?;
    let url = format!("dubbo://{host}:20882/{SHOP}?application=a&side=provider");
    let key = STANDARD.encode(format!("/dubbo/{SHOP}/providers/{url}"));
    let put = json!({"key": key, "value": ""});
    let answer = http::post_json(etcd.address(), "/v3/kv/put", &put)?;
    ensure!(answer.status == 200, "{}", answer.text());
    let flags = [("registry", registry.as_str())];
    let consumer = start_consumer(Framework::Dubbo, "consumer", &flags, &folder)?;
    let (_listed, _in_etcd) = (listed.provider()?, in_etcd.provider()?);
    let _in_zookeeper = in_zookeeper.provider()?;
    let mut consumer = consumer.consumer()?;
    let all = ["in-etcd", "in-zookeeper", "listed"];
    consumer.wait_labels(&all)
}
