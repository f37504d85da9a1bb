//! Pilot in a Pod: it has no kubeconfig, but the account and the address that Kubernetes gives to every Pod. Where `make peers` has
//! not built the API server there is nothing to test with.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use testkit::net::Loopback;
use testkit::process::Process;
use testkit::recipe::Recipe;
use testkit::registries::Kubernetes;
use testkit::{http, programs, wait};

const LIMIT: Duration = Duration::from_secs(60);
const COPIES: &str = "mesh-copies";
/// Where a Pod has its account, in a view of the file system of its own.
const IN_POD: &str = "mount -t tmpfs tmpfs /var/run && mkdir -p /var/run/secrets/kubernetes.io && \
    ln -s \"$0\" /var/run/secrets/kubernetes.io/serviceaccount && exec \"$@\"";
const CONFIGURATION: &str = "apiVersion: mesh.sofastack.io/v1alpha1
kind: RegistrySource
metadata: {name: cluster}
spec:
  kubernetes: {writeNamespace: mesh-copies}
---
apiVersion: mesh.sofastack.io/v1alpha1
kind: RegistrySource
metadata: {name: files}
spec:
  files: {folder: SERVICES}
---
apiVersion: mesh.sofastack.io/v1alpha1
kind: RegistrySync
metadata: {name: into-cluster}
spec:
  from: files
  to: cluster
";

fn start(server: &Kubernetes, http: SocketAddr, folder: &Path) -> Result<Process> {
    let account = server.account(Kubernetes::PILOT)?;
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--", "sh", "-c", IN_POD])
        .arg(account)
        .arg(env!("CARGO_BIN_EXE_pilot"))
        .arg("discovery")
        .args(["--httpAddr", &http.to_string()])
        .args(["--grpcAddr", "127.0.0.1:0"])
        .args(["--monitoringAddr", "127.0.0.1:0"])
        .args(["--lease", "mesh-copies/pilot"])
        .arg("--configDir")
        .arg(folder.join("config"))
        .env("KUBERNETES_SERVICE_HOST", server.address().ip().to_string())
        .env(
            "KUBERNETES_SERVICE_PORT",
            server.address().port().to_string(),
        );
    Process::start("pilot", &mut command, folder)
}

#[test]
fn pilot_reads_and_writes_the_cluster_that_it_runs_in() -> Result<()> {
    if programs::peer("kube-apiserver").is_none() {
        eprintln!("skipped: kube-apiserver is not built; make peers builds it");
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    let loopback = Loopback::claim()?;
    let server = Kubernetes::start(folder)?;
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": COPIES}});
    server.apply(
        &format!("/api/v1/namespaces/{COPIES}"),
        &namespace.to_string(),
    )?;
    let permissions = Recipe::read("registries/kubernetes.md", "Permissions")?.block("yaml")?;
    server.permit(&permissions, COPIES)?;
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "orders"},
        "spec": {"ports": [{"name": "http", "port": 80}]},
    });
    server.apply(
        "/api/v1/namespaces/default/services/orders",
        &service.to_string(),
    )?;
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "orders-1", "labels": {"kubernetes.io/service-name": "orders"}},
        "ports": [{"name": "http", "port": 8080}],
        "endpoints": [{"addresses": ["10.0.0.7"], "conditions": {"ready": true}}],
    });
    let path = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/orders-1";
    server.apply(path, &slice.to_string())?;

    let (config, services) = (folder.join("config"), folder.join("services"));
    fs::create_dir(&config)?;
    fs::create_dir(&services)?;
    let configuration = CONFIGURATION.replace("SERVICES", &services.display().to_string());
    fs::write(config.join("mesh.yaml"), configuration)?;
    let listed =
        "services: [{protocol: http, name: cart, instances: [{address: 10.0.0.9, port: 8080}]}]\n";
    fs::write(services.join("cart.yaml"), listed)?;
    let http = loopback.address(1, 8080);
    let mut pilot = start(&server, http, folder)?;

    wait::until_ok("the cluster's instance", LIMIT, || {
        pilot.check()?;
        let page: Value = http::get(http, "/debug/registries")?.json()?;
        let sources = page["sources"].as_array().context("no sources")?;
        let cluster = sources.iter().find(|source| source["name"] == "cluster");
        let cluster = cluster.context("no cluster")?;
        // The copy is its second instance, of its own namespace.
        let is_read = cluster["connected"] == true && cluster["instances"] == 1;
        ensure!(is_read && cluster["copies"] == 1, "{page:#}");
        Ok(())
    })?;
    let path = format!("/api/v1/namespaces/{COPIES}/services");
    let copies = server.read(&path)?.context("no namespace")?;
    let names: Vec<&str> = copies["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|service| service["metadata"]["name"].as_str())
        .collect();
    let [name] = names.as_slice() else {
        anyhow::bail!("not one copy: {names:?}");
    };
    ensure!(name.contains("cart"), "{name}");
    let path = format!("/apis/coordination.k8s.io/v1/namespaces/{COPIES}/leases/pilot");
    let lease = server.read(&path)?.context("no Lease")?;
    let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default();
    ensure!(!holder.is_empty(), "{lease:#}");
    Ok(())
}
