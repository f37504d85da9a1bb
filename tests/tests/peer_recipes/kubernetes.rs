//! Kubernetes beside ZooKeeper, with Dubbo 3 and Spring Cloud's entries.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;
use testkit::apps::{self, Framework, start_consumer};
use testkit::netns::Site;
use testkit::recipe::Recipe;
use testkit::registries::{Kubernetes, ZooKeeper};

use crate::is_built;

const LIMIT: Duration = Duration::from_secs(90);
const SHOP: &str = "mesh.apps.dubbo.DubboShop";
const PAGE: &str = "registries/kubernetes.md";

#[test]
fn services_of_a_cluster_and_applications_of_zookeeper_find_each_other() -> Result<()> {
    if !is_built("kube-apiserver") {
        return Ok(());
    }
    let mut recipe = Recipe::read(PAGE, "Moving in")?;
    let mesh = recipe.start_mesh()?;
    let folder = mesh.folder();
    let cluster = Kubernetes::start(folder)?;
    for name in ["shop", "mesh-copies"] {
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        cluster.apply(&format!("/api/v1/namespaces/{name}"), &object.to_string())?;
    }
    let permissions = Recipe::read(PAGE, "Permissions")?.block("yaml")?;
    cluster.permit(&permissions, "mesh-copies")?;
    let zookeeper = ZooKeeper::start(folder)?;
    // Endpoints have no loopback addresses.
    let node = Arc::new(Site::start("node", folder)?);
    let address = node.inside().to_string();
    recipe.place(
        "/etc/pilot/kubeconfig",
        cluster.kubeconfig(Kubernetes::PILOT)?.display(),
    )?;
    recipe.place("zookeeper.shop.example:2181", zookeeper.address())?;
    recipe.place("com.foo.OrderService", SHOP)?;
    recipe.place("10.0.0.7", &address)?;

    recipe.write()?;
    recipe.see()?;
    let service = recipe.block("yaml")?;
    cluster.apply("/api/v1/namespaces/shop/services/orders", &service)?;
    let of = ("dubbo", "mesh.apps.dubbo.Provider");
    let flags = ["--host", &address, "--port", "20880", "--label", "pod"].map(str::to_owned);
    let pod = apps::start_client_in(&node, of, "pod", &flags, folder)?.provider()?;
    // What the cluster does when the Pod is there.
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "orders-1", "labels": {"kubernetes.io/service-name": "orders"}},
        "ports": [{"name": "rpc", "port": 20880}],
        "endpoints": [{"addresses": [address], "conditions": {"ready": true}}],
    });
    let path = "/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices/orders-1";
    cluster.apply(path, &slice.to_string())?;

    recipe.write()?;
    recipe.see()?;
    let registry = recipe.setting("dubbo.registry.address")?;
    let consumer = start_consumer(
        Framework::Dubbo,
        "consumer",
        &[("registry", &registry)],
        folder,
    )?;
    let class = "mesh.apps.zookeeper.ZooKeeperDirectory";
    let flags = ["--servers".to_owned(), zookeeper.address().to_string()];
    let mut stock = apps::start_client("zookeeper", class, "stock", &flags, folder)?;
    consumer.consumer()?.wait_labels(&["pod"])?;

    stock.tell(&format!("register stock {address} 8080 100 red"), LIMIT)?;
    recipe.see_as(|command| {
        let path = command.strip_prefix("kubectl get --raw ");
        let path = path.with_context(|| command.to_owned())?;
        cluster.read(path)?.context("no list")
    })?;
    drop(pod);
    recipe.end()
}
