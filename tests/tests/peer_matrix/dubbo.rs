//! A Dubbo service of ZooKeeper and of Nacos, found and called by stock consumers of both.

use anyhow::Result;
use testkit::apps::{Framework, Starting, start_consumer, start_provider};
use testkit::mesh::Mesh;
use testkit::net::free_port;
use testkit::netns::Site;
use testkit::programs::peer;
use testkit::registries::{Nacos, ZooKeeper};

/// Dubbo's providers are known in both, wherever they are registered.
fn configuration(zookeeper: &ZooKeeper, nacos: &Nacos) -> String {
    let document = |kind: &str, name: &str, spec: &str| {
        format!(
            "apiVersion: mesh.sofastack.io/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {spec}\n---\n"
        )
    };
    let (zookeeper, nacos) = (zookeeper.address(), nacos.address());
    let zookeeper = format!("{{zookeeper: {{servers: ['{zookeeper}']}}}}");
    let nacos = format!("{{nacos: {{servers: ['{nacos}'], listInterval: 300ms}}}}");
    let rule =
        "{from: '*', to: [zk, nacos], orphanHold: 5s, services: {include: [{protocol: dubbo}]}}";
    document("RegistrySource", "zk", &zookeeper)
        + &document("RegistrySource", "nacos", &nacos)
        + &document("RegistrySync", "dubbo", rule)
}

#[test]
fn dubbo_consumers_on_zookeeper_and_nacos_call_providers_of_both() -> Result<()> {
    if peer("rnacos").is_none() {
        return Ok(());
    }
    let mesh = Mesh::start_keeping()?;
    let folder = mesh.folder().to_owned();
    let zookeeper = ZooKeeper::start(&folder)?;
    let nacos = Nacos::start(&folder, None)?;
    mesh.write("sync.yaml", &configuration(&zookeeper, &nacos))?;
    let registries = [
        ("zookeeper", format!("zookeeper://{}", zookeeper.address())),
        ("nacos", format!("nacos://{}", nacos.address())),
    ];
    // Consumers, and pilot that asks providers what they serve, reach the same address: Dubbo replaces those of the loopback.
    let network = Site::start("providers", &folder)?;
    let host = network.outside().to_string();
    let provider = |name: &str, registry: &str| {
        let port = free_port()?.to_string();
        let flags = [
            ("host", host.as_str()),
            ("port", port.as_str()),
            ("label", name),
            ("registry", registry),
        ];
        start_provider(Framework::Dubbo, &format!("in-{name}"), &flags, &folder)
    };
    let mut providers = Vec::new();
    let mut consumers = Vec::new();
    for (name, registry) in &registries {
        providers.push(provider(name, registry)?);
        let name = format!("consumer-{name}");
        let flags = [("registry", registry.as_str())];
        consumers.push(start_consumer(Framework::Dubbo, &name, &flags, &folder)?);
    }
    let providers = providers.into_iter().map(Starting::provider);
    let mut providers = providers.collect::<Result<Vec<_>>>()?;
    let consumers = consumers.into_iter().map(Starting::consumer);
    let mut consumers = consumers.collect::<Result<Vec<_>>>()?;
    for consumer in &mut consumers {
        consumer.wait_labels(&["nacos", "zookeeper"])?;
    }
    // One that leaves in order is called by nobody any longer, one that crashes neither.
    let mut of_nacos = providers.pop();
    if let Some(provider) = &mut of_nacos {
        provider.terminate()?;
    }
    for consumer in &mut consumers {
        consumer.wait_labels(&["zookeeper"])?;
    }
    let mut another = provider("nacos-2", &registries[1].1)?.provider()?;
    for consumer in &mut consumers {
        consumer.wait_labels(&["nacos-2", "zookeeper"])?;
    }
    another.kill()?;
    for consumer in &mut consumers {
        consumer.wait_labels(&["zookeeper"])?;
    }
    Ok(())
}
