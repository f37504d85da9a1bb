//! Configuration from a real API server, with this mesh's manifests. Where `make peers` has not built it there is nothing to
//! test with.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser as _;
use pilot::Pilot;
use pilot::args::{Cli, Command};
use registry::facades::nacos::{Config, GRPC_OFFSET, serve};
use registry::{Credentials, Hub, HubOptions, Limits, Registry};
use serde_json::{Value, json};
use testkit::net::Loopback;
use testkit::registries::Kubernetes;
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

fn source(server: &Kubernetes, spec: &Value) -> Result<()> {
    let object = json!({
        "apiVersion": "mesh.sofastack.io/v1alpha1", "kind": "RegistrySource",
        "metadata": {"name": "nacos", "namespace": "shop"}, "spec": spec,
    });
    server.apply(
        &format!("{MESH}/registrysources/nacos"),
        &object.to_string(),
    )?;
    Ok(())
}

fn secret(server: &Kubernetes, words: &Value) -> Result<()> {
    let object = json!({
        "apiVersion": "v1", "kind": "Secret", "stringData": words,
        "metadata": {"name": "login", "namespace": "shop"},
    });
    server.apply("/api/v1/namespaces/shop/secrets/login", &object.to_string())?;
    Ok(())
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
    if testkit::programs::peer("kube-apiserver").is_none() {
        eprintln!("skipped: kube-apiserver is not built; make peers builds it");
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let mut server = Kubernetes::start(folder.path())?;
    let shop = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}});
    server.apply("/api/v1/namespaces/shop", &shop.to_string())?;
    manifest(&server, "registrysources")?;
    manifest(&server, "registrysyncs")?;
    let documentation = testkit::programs::workspace().join("docs/configuration.md");
    let documentation = std::fs::read_to_string(documentation)?;
    let roles = documentation.split("### Permissions").nth(1);
    let roles = roles.and_then(|text| text.split("```").nth(1));
    let roles = roles.and_then(|text| text.strip_prefix("yaml\n"));
    server.permit(roles.context("no roles")?, "shop")?;

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
        let error = source(&server, &spec).expect_err(expected).to_string();
        ensure!(error.contains(expected), "{error}");
    }

    // A Secret that comes later, is wrong at first, and is changed.
    source(&server, &good)?;
    let pilot = Running::start(&server).await?;
    let problem = |pilot: &Running, text: &'static str| {
        let page = pilot.http;
        async move {
            let fetch = move || testkit::http::get(page, "/debug/invalidz");
            let answer = tokio::task::spawn_blocking(fetch).await??;
            Ok(answer.text().contains(text).then_some(()))
        }
    };
    let missing = "RegistrySource shop/nacos: spec.nacos.login.passwordSecret: Secret shop/login is not there";
    pilot
        .until("the Secret is named", async |pilot| {
            problem(pilot, missing).await
        })
        .await?;
    secret(&server, &json!({"word": "wrong-word"}))?;
    let refused = pilot
        .until("the refusal", async |pilot| {
            let source = pilot.source("nacos.shop").await?;
            Ok(source.filter(|source| source["trouble"] == "refused"))
        })
        .await?;
    ensure!(!refused.to_string().contains("-word"), "{refused}");
    secret(&server, &json!({"word": "right-word"}))?;
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
        &json!({"nacos": {"servers": ["no-port"], "login": login}}),
    )?;
    let wrong = "RegistrySource shop/nacos: spec.nacos.servers[0]";
    pilot
        .until("the problem is named", async |pilot| {
            problem(pilot, wrong).await
        })
        .await?;
    let still = pilot.until("it is connected", connected).await?;
    ensure!(still["sessions"] == first["sessions"], "{still}");
    let text = pilot.page("/debug/invalidz").await?.1;
    ensure!(
        text.contains("its last good version stays in force"),
        "{text}"
    );
    source(&server, &good)?;
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
