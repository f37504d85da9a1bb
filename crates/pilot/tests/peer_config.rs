//! Configuration from a real API server, with this mesh's manifests. Where `make peers` has not built it there is nothing to
//! test with.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser as _;
use pilot::Pilot;
use pilot::args::{Cli, Command};
use registry::facades::nacos::{Config, GRPC_OFFSET, serve};
use registry::{Credentials, Hub, HubOptions, Limits, Registry};
use serde_json::{Value, json};
use testkit::certificates::{Authority, Certified};
use testkit::net::Loopback;
use testkit::recipe::Recipe;
use testkit::registries::{Etcd, Kubernetes};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

const LIMIT: Duration = Duration::from_secs(60);
const MESH: &str = "/apis/mesh.sofastack.io/v1alpha1/namespaces/shop";

struct Running {
    http: SocketAddr,
    _stop: oneshot::Sender<()>,
}

impl Running {
    async fn start(server: &Kubernetes) -> Result<Running> {
        let kubeconfig = server.kubeconfig(Kubernetes::PILOT)?;
        let kubeconfig = kubeconfig.display().to_string();
        let any = "127.0.0.1:0";
        let cli = Cli::try_parse_from([
            "pilot",
            "discovery",
            "--configKubernetes",
            "--kubeconfig",
            &kubeconfig,
            "--grpcAddr",
            any,
            "--httpAddr",
            any,
            "--monitoringAddr",
            any,
        ]);
        let Command::Discovery(args) = cli?.command else {
            anyhow::bail!("another command");
        };
        let pilot = Pilot::start(&args).await?;
        let http = pilot.http_addr()?;
        let (stop, stopped) = oneshot::channel();
        tokio::spawn(pilot.run(async {
            let _ = stopped.await;
        }));
        Ok(Running { http, _stop: stop })
    }

    async fn page(&self, path: &str) -> Result<(u16, String)> {
        let (address, path) = (self.http, path.to_owned());
        let fetch = move || testkit::http::get(address, &path);
        let answer = tokio::task::spawn_blocking(fetch).await??;
        Ok((answer.status, answer.text()))
    }

    async fn json(&self, path: &str) -> Result<Value> {
        let (status, text) = self.page(path).await?;
        ensure!(status == 200, "{path}: {status} {text}");
        Ok(serde_json::from_str(&text)?)
    }

    /// A registry, as it is doing.
    async fn source(&self, name: &str) -> Result<Option<Value>> {
        let all = self.json("/debug/registries").await?;
        let sources = all["sources"].as_array().context("no sources")?;
        Ok(sources
            .iter()
            .find(|source| source["name"] == name)
            .cloned())
    }

    async fn until<T>(
        &self,
        what: &str,
        mut look: impl AsyncFnMut(&Running) -> Result<Option<T>>,
    ) -> Result<T> {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Ok(Some(value)) = look(self).await {
                return Ok(value);
            }
            if Instant::now() >= deadline {
                let said = self.page("/debug/registries").await?.1;
                let wrong = self.page("/debug/invalidz").await?.1;
                anyhow::bail!("not within {LIMIT:?}: {what}\n{said}\n{wrong}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn has_problem(&self, text: &str) -> Result<()> {
        self.until(text, async |pilot| {
            let (_, page) = pilot.page("/debug/invalidz").await?;
            Ok(page.contains(text).then_some(()))
        })
        .await
    }

    async fn has_config(&self, name: &str) -> Result<()> {
        self.until(name, async |pilot| {
            let all = pilot.json("/debug/configz").await?;
            let mut all = all.as_array().into_iter().flatten();
            let is_it = |object: &Value| object["metadata"]["name"] == name;
            Ok(all.any(is_it).then_some(()))
        })
        .await
    }
}

fn manifest(server: &Kubernetes, plural: &str) -> Result<()> {
    let file = format!("deploy/crds/{plural}.yaml");
    let text = std::fs::read_to_string(testkit::programs::workspace().join(file))?;
    define(server, &format!("{plural}.mesh.sofastack.io"), &text)?;
    // It answers a moment after it is established.
    testkit::wait::until_ok(plural, LIMIT, || {
        server
            .read(&format!("{MESH}/{plural}"))?
            .context("not yet")
            .map(|_| ())
    })
}

fn define(server: &Kubernetes, name: &str, text: &str) -> Result<()> {
    let path = format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}");
    server.apply(&path, text)?;
    testkit::wait::until_ok(name, LIMIT, || {
        let crd = server.read(&path)?.context("not there")?;
        let conditions = crd["status"]["conditions"].as_array();
        let is = |kind: &str| {
            let mut all = conditions.into_iter().flatten();
            all.any(|c| c["type"] == kind && c["status"] == "True")
        };
        ensure!(is("Established") && !is("NonStructuralSchema"), "{crd}");
        Ok(())
    })
}

/// Istio's kind as it may be installed, without the rules of its content.
const SERVICE_ENTRIES: &str = "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: serviceentries.networking.istio.io}
spec:
  group: networking.istio.io
  scope: Namespaced
  names: {kind: ServiceEntry, plural: serviceentries, singular: serviceentry, listKind: ServiceEntryList}
  versions:
  - name: v1beta1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
";

fn service_entry(server: &Kubernetes, name: &str) -> Result<()> {
    let object = json!({
        "apiVersion": "networking.istio.io/v1beta1", "kind": "ServiceEntry",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {
            "hosts": [format!("{name}.example")], "resolution": "DNS",
            "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}],
        },
    });
    let path = "/apis/networking.istio.io/v1beta1/namespaces/shop/serviceentries";
    server.apply(&format!("{path}/{name}"), &object.to_string())?;
    Ok(())
}

fn source(server: &Kubernetes, name: &str, spec: &Value) -> Result<()> {
    let object = json!({
        "apiVersion": "mesh.sofastack.io/v1alpha1", "kind": "RegistrySource",
        "metadata": {"name": name, "namespace": "shop"}, "spec": spec,
    });
    let path = format!("{MESH}/registrysources/{name}");
    server.apply(&path, &object.to_string()).map(|_| ())
}

fn secret(server: &Kubernetes, name: &str, words: &Value) -> Result<()> {
    let object = json!({
        "apiVersion": "v1", "kind": "Secret", "stringData": words,
        "metadata": {"name": name, "namespace": "shop"},
    });
    let path = format!("/api/v1/namespaces/shop/secrets/{name}");
    server.apply(&path, &object.to_string()).map(|_| ())
}

/// A cluster with this mesh's kinds, where pilot may do what the documentation says.
fn cluster(folder: &Path) -> Result<Kubernetes> {
    let server = Kubernetes::start(folder)?;
    let shop = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}});
    server.apply("/api/v1/namespaces/shop", &shop.to_string())?;
    manifest(&server, "registrysources")?;
    manifest(&server, "registrysyncs")?;
    let roles = Recipe::read("configuration.md", "Permissions")?.block("yaml")?;
    server.permit(&roles, "shop")?;
    Ok(server)
}

fn is_built() -> bool {
    let found = testkit::programs::peer("kube-apiserver").is_some();
    if !found {
        eprintln!("skipped: kube-apiserver is not built; make peers builds it");
    }
    found
}

/// A registry that answers as Nacos to those who log in.
async fn nacos(address: SocketAddr) -> Result<()> {
    let registry = Registry::in_memory(Limits::default())?;
    let hub = Hub::start(HubOptions {
        mesh_id: "server".to_owned(),
        registry: Some(registry.clone()),
        ..HubOptions::default()
    });
    let http = TcpListener::bind(address).await?;
    let grpc = TcpListener::bind((address.ip(), address.port() + GRPC_OFFSET)).await?;
    let credentials: Credentials =
        serde_json::from_value(json!({"username": "mesh", "password": "right-word"}))?;
    let config = Config {
        address,
        credentials: Some(credentials),
    };
    tokio::spawn(serve(http, grpc, hub, registry, config));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_in_a_cluster_are_configuration() -> Result<()> {
    if !is_built() {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let mut server = cluster(folder.path())?;

    // What the schema refuses does not come to pilot.
    let loopback = Loopback::claim()?;
    let address = loopback.address(1, 8848);
    nacos(address).await?;
    let login = json!({"username": "mesh", "passwordSecret": {"name": "login", "key": "word"}});
    let good = json!({"nacos": {"servers": [address.to_string()], "login": login}});
    for (spec, expected) in [
        (json!({}), "exactly one registry"),
        (
            json!({"nacos": {"servers": ["a:1"]}, "files": {"folder": "/a"}}),
            "exactly one registry",
        ),
        (json!({"nacos": {"servers": []}}), "spec.nacos.servers"),
        (
            json!({"nacos": {"servers": ["a:1"], "protocol": "udp"}}),
            "spec.nacos.protocol",
        ),
        (
            json!({"files": {"folder": "/a"}, "staleTimeout": "soon"}),
            "spec.staleTimeout",
        ),
        (
            json!({"files": {"folder": "/a", "colour": "red"}}),
            "colour",
        ),
    ] {
        let error = source(&server, "nacos", &spec)
            .expect_err(expected)
            .to_string();
        ensure!(error.contains(expected), "{error}");
    }

    // A Secret that comes later, is wrong at first, and is changed.
    source(&server, "nacos", &good)?;
    let pilot = Running::start(&server).await?;
    let missing = "RegistrySource shop/nacos: spec.nacos.login.passwordSecret: Secret shop/login is not there";
    pilot.has_problem(missing).await?;
    secret(&server, "login", &json!({"word": "wrong-word"}))?;
    let refused = pilot
        .until("the refusal", async |pilot| {
            let source = pilot.source("nacos.shop").await?;
            Ok(source.filter(|source| source["trouble"] == "refused"))
        })
        .await?;
    ensure!(!refused.to_string().contains("-word"), "{refused}");
    secret(&server, "login", &json!({"word": "right-word"}))?;
    let connected = async |pilot: &Running| {
        let source = pilot.source("nacos.shop").await?;
        Ok(source.filter(|source| source["synced"] == true))
    };
    let first = pilot.until("it is connected", connected).await?;
    let pages = pilot.page("/debug/configz").await?.1 + &pilot.page("/debug/invalidz").await?.1;
    ensure!(
        pages.contains("shop") && !pages.contains("-word"),
        "{pages}"
    );

    // What the schema takes and pilot does not is named, and the last good one stays.
    source(
        &server,
        "nacos",
        &json!({"nacos": {"servers": ["no-port"], "login": login}}),
    )?;
    let wrong = "RegistrySource shop/nacos: spec.nacos.servers[0]";
    pilot.has_problem(wrong).await?;
    let still = pilot.until("it is connected", connected).await?;
    ensure!(still["sessions"] == first["sessions"], "{still}");
    let text = pilot.page("/debug/invalidz").await?.1;
    ensure!(
        text.contains("its last good version stays in force"),
        "{text}"
    );
    source(&server, "nacos", &good)?;
    pilot
        .until("the problem is gone", async |pilot| {
            let wrong = pilot.json("/debug/invalidz").await?;
            Ok((wrong == json!([])).then_some(()))
        })
        .await?;

    // A kind that is installed later, in whatever version.
    define(
        &server,
        "serviceentries.networking.istio.io",
        SERVICE_ENTRIES,
    )?;
    testkit::wait::until_ok("a ServiceEntry", LIMIT, || service_entry(&server, "first"))?;
    pilot.has_config("first").await?;

    // A server that is away changes nothing; a pilot that starts meanwhile is not ready before it has read everything.
    server.kill()?;
    let second = Running::start(&server).await?;
    let is_ready = async |pilot: &Running| {
        let (status, _) = pilot.page("/ready").await?;
        Ok((status == 200).then_some(()))
    };
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        ensure!(
            is_ready(&second).await?.is_none(),
            "ready without configuration"
        );
    }
    ensure!(connected(&pilot).await?.is_some(), "not connected");
    pilot.has_config("first").await?;
    server.restart()?;
    service_entry(&server, "second")?;
    server.delete(&format!("{MESH}/registrysources/nacos"))?;
    second.until("ready", is_ready).await?;
    second.has_config("first").await?;
    for pilot in [&pilot, &second] {
        pilot.has_config("second").await?;
        pilot
            .until("the registry is gone", async |pilot| {
                let source = pilot.source("nacos.shop").await?;
                Ok(source.is_none().then_some(()))
            })
            .await?;
    }
    Ok(())
}

/// The Secret of a certificate, as Kubernetes has it.
fn certificate(server: &Kubernetes, certified: &Certified) -> Result<()> {
    let (cert, key) = (&certified.cert_file, &certified.key_file);
    let words = json!({
        "tls.crt": fs::read_to_string(cert)?, "tls.key": fs::read_to_string(key)?,
    });
    secret(server, "registry-tls", &words)
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_for_registries_are_in_secrets() -> Result<()> {
    if !is_built() {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    let server = cluster(folder)?;
    let authority = Authority::new(folder, "registry-authority")?;
    let stranger = Authority::new(folder, "stranger")?;
    let own = authority.issue(folder, "own", &["hub.example"], None)?;
    let foreign = stranger.issue(folder, "foreign", &["hub.example"], None)?;
    let etcd = Etcd::start_tls(folder, &authority)?;
    let tls = json!({
        "caSecret": {"name": "registry-ca", "key": "ca.crt"},
        "certSecret": {"name": "registry-tls", "key": "tls.crt"},
        "keySecret": {"name": "registry-tls", "key": "tls.key"},
    });
    let spec = json!({"etcd": {"servers": [etcd.address().to_string()], "tls": tls}});
    source(&server, "etcd", &spec)?;
    let pilot = Running::start(&server).await?;
    let at = "RegistrySource shop/etcd: spec.etcd.tls";
    let missing = format!("{at}.caSecret: Secret shop/registry-ca is not there");
    pilot.has_problem(&missing).await?;
    let ca = json!({"ca.crt": fs::read_to_string(authority.file())?});
    secret(&server, "registry-ca", &ca)?;
    let missing = format!("{at}.certSecret: Secret shop/registry-tls is not there");
    pilot.has_problem(&missing).await?;

    // What the Secret has now counts, for better or worse.
    for (certified, is_right) in [
        (&foreign, false),
        (&own, true),
        (&foreign, false),
        (&own, true),
    ] {
        certificate(&server, certified)?;
        let what = format!("connected: {is_right}");
        pilot
            .until(&what, async |pilot| {
                let source = pilot.source("etcd.shop").await?;
                let source = source.context("no source")?;
                let is_refused = source["connected"] == false && source["reason"] != Value::Null;
                let is_so = if is_right {
                    source["connected"] == true
                } else {
                    is_refused
                };
                Ok(is_so.then_some(()))
            })
            .await?;
    }
    let mut pages = String::new();
    for page in ["configz", "invalidz", "registries"] {
        pages += &pilot.page(&format!("/debug/{page}")).await?.1;
    }
    let shown = pages.contains("registry-authority") || pages.contains("BEGIN");
    ensure!(pages.contains("etcd") && !shown, "{pages}");
    Ok(())
}
