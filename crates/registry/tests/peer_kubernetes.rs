//! The Kubernetes adapter with a real API server. Where `make peers` has not built it there is nothing to test with.

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use common::{all_told, hub_of, instances, is_built, status, until, wait_same};
use registry::kubernetes::Cluster;
use registry::leader::{Election, LeaseObject, take_part};
use registry::{
    Hub, Instance, ORIGIN_MARK, RegistrySource, Role, ServiceKey, SourceSpec, Trouble, Wanted,
};
use serde_json::{Value, json};
use testkit::registries::Kubernetes;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinHandle;

const LIMIT: Duration = Duration::from_secs(60);
const REGION: &str = "topology.kubernetes.io/region";
const ZONE: &str = "topology.kubernetes.io/zone";

/// Applies an object of a namespace, or of none.
fn apply(server: &Kubernetes, object: &Value) -> Result<()> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let version = text(&object["apiVersion"]);
    let group = match version.as_str() {
        "v1" => "/api/v1".to_owned(),
        other => format!("/apis/{other}"),
    };
    let namespace = match text(&object["metadata"]["namespace"]) {
        none if none.is_empty() => none,
        name => format!("/namespaces/{name}"),
    };
    let kind = text(&object["kind"]).to_ascii_lowercase();
    let name = text(&object["metadata"]["name"]);
    let path = format!("{group}{namespace}/{kind}s/{name}");
    server.apply(&path, &object.to_string()).map(|_| ())
}

fn namespace(server: &Kubernetes, name: &str) -> Result<()> {
    let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
    apply(server, &object)
}

fn service(name: &str, annotations: &Value, ports: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": "shop", "annotations": annotations},
        "spec": {"ports": ports},
    })
}

fn slice(name: &str, service: &str, ports: &Value, endpoints: &Value) -> Value {
    let labels = json!({"kubernetes.io/service-name": service});
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": name, "namespace": "shop", "labels": labels},
        "ports": ports, "endpoints": endpoints,
    })
}

fn endpoint(address: &str, pod: &str, ready: bool) -> Value {
    json!({
        "addresses": [address], "conditions": {"ready": ready}, "nodeName": "n1",
        "targetRef": {"kind": "Pod", "name": pod, "namespace": "shop"},
    })
}

fn pod(name: &str, version: &str, annotations: &Value) -> Value {
    let labels = json!({"app": "orders", "version": version});
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop", "labels": labels, "annotations": annotations},
        "spec": {"containers": [{"name": "app", "image": "app"}]},
    })
}

fn node(name: &str, region: &str, zone: &str) -> Value {
    let labels = json!({REGION: region, ZONE: zone});
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}})
}

fn endpoints(hub: &Hub) -> Vec<String> {
    all_told(hub, |i| {
        let state = if i.healthy { "" } else { " down" };
        let version = i.metadata.get("version").unwrap_or("-");
        format!("{} {}:{} {version}{state}", i.service, i.address, i.port)
    })
}

async fn wait_endpoints(hub: &Hub, expected: &[&str]) -> Result<()> {
    wait_same(LIMIT, || endpoints(hub), expected).await
}

fn source(kubeconfig: &Path, more: &Value) -> Result<SourceSpec> {
    let mut kubernetes = json!({"kubeconfig": kubeconfig});
    if let (Some(fields), Value::Object(more)) = (kubernetes.as_object_mut(), more.clone()) {
        fields.extend(more);
    }
    let spec = json!({"kubernetes": kubernetes, "protection": {"hold": "2s"}});
    let spec: RegistrySource = serde_json::from_value(spec)?;
    Ok(spec.compile("cluster")?)
}

#[tokio::test(flavor = "multi_thread")]
async fn services_are_read_as_they_change() -> Result<()> {
    if !is_built("kube-apiserver") {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let mut server = Kubernetes::start(folder.path())?;
    namespace(&server, "shop")?;
    apply(&server, &node("n1", "east", "east-1"))?;
    apply(&server, &pod("a", "v1", &json!({})))?;
    let own = json!({"mesh.sofastack.io/dubbo": "com.foo.Order:2.0"});
    apply(&server, &pod("b", "v2", &own))?;
    let annotations = json!({"mesh.sofastack.io/dubbo": "com.foo.Order:1.0:blue@rpc"});
    let ports = json!([
        {"name": "http", "port": 80},
        {"name": "http-admin", "port": 81, "targetPort": "admin"},
        {"name": "rpc", "port": 20880, "appProtocol": "dubbo"},
        {"name": "dns", "port": 53, "protocol": "UDP"},
    ]);
    apply(&server, &service("orders", &annotations, &ports))?;
    let targets = json!([
        {"name": "http", "port": 8080}, {"name": "http-admin", "port": 9090}, {"name": "rpc", "port": 20881},
    ]);
    let both = json!([
        endpoint("10.0.0.1", "a", true),
        endpoint("10.0.0.2", "b", true)
    ]);
    apply(&server, &slice("orders-1", "orders", &targets, &both))?;
    // The API server makes a Service of its own, without endpoints.
    let hub = hub_of("one");
    let admin = server.kubeconfig(Kubernetes::ADMIN)?;
    hub.set_sources(vec![source(&admin, &json!({}))?]);
    let mut all = vec![
        "dubbo/com.foo.Order 10.0.0.1:20881 v1",
        "dubbo/com.foo.Order 10.0.0.2:20881 v2",
        "http/http-admin.orders.shop.svc.cluster.local 10.0.0.1:9090 v1",
        "http/http-admin.orders.shop.svc.cluster.local 10.0.0.2:9090 v2",
        "http/orders.shop.svc.cluster.local 10.0.0.1:8080 v1",
        "http/orders.shop.svc.cluster.local 10.0.0.2:8080 v2",
        "tcp/orders.shop.svc.cluster.local 10.0.0.1:20881 v1",
        "tcp/orders.shop.svc.cluster.local 10.0.0.2:20881 v2",
    ];
    wait_endpoints(&hub, &all).await?;
    let of = |address: &str| {
        let mut all = instances(&hub).into_iter();
        all.find(|i| &*i.address == address && &*i.service.protocol == "dubbo")
    };
    let (first, second) = (of("10.0.0.1").context("a")?, of("10.0.0.2").context("b")?);
    assert_eq!((&*first.version, &*first.group), ("1.0", "blue"));
    assert_eq!((&*second.version, &*second.group), ("2.0", ""));
    let place =
        |i: &Instance| [REGION, ZONE].map(|key| i.metadata.get(key).unwrap_or_default().to_owned());
    assert_eq!(place(&first), ["east", "east-1"]);
    assert_eq!(status(&hub).await?.skipped_entries.len(), 0);

    // Readiness, labels and places as they change.
    let started = Instant::now();
    let one = json!([
        endpoint("10.0.0.1", "a", false),
        endpoint("10.0.0.2", "b", true)
    ]);
    apply(&server, &slice("orders-1", "orders", &targets, &one))?;
    let down = "http/orders.shop.svc.cluster.local 10.0.0.1:8080 v1 down";
    until(LIMIT, "one is down", async || {
        endpoints(&hub)
            .iter()
            .any(|line| line == down)
            .then_some(())
    })
    .await?;
    apply(&server, &pod("a", "v3", &json!({})))?;
    apply(&server, &node("n1", "west", "west-1"))?;
    until(LIMIT, "it has moved", async || {
        let first = of("10.0.0.1")?;
        (place(&first) == ["west", "west-1"] && first.metadata.get("version") == Some("v3"))
            .then_some(())
    })
    .await?;
    ensure!(started.elapsed() < Duration::from_secs(20));

    // An endpoint, and a Service with all its endpoints, go at once: the server itself says so.
    let other = service("other", &json!({}), &json!([{"name": "grpc", "port": 90}]));
    apply(&server, &other)?;
    let port = json!([{"name": "grpc", "port": 90}]);
    let far = json!([{"addresses": ["10.0.0.9"], "conditions": {}}]);
    apply(&server, &slice("other-1", "other", &port, &far))?;
    let last = json!([endpoint("10.0.0.2", "b", true)]);
    apply(&server, &slice("orders-1", "orders", &targets, &last))?;
    all.retain(|line| line.contains("10.0.0.2"));
    all.insert(1, "grpc/other.shop.svc.cluster.local 10.0.0.9:90 -");
    wait_endpoints(&hub, &all).await?;
    server.delete("/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices/orders-1")?;
    wait_endpoints(&hub, &all[1..2]).await?;
    ensure!(status(&hub).await?.sessions == 1);

    // A server that is away empties nothing; what changed meanwhile is read when it is back.
    server.kill()?;
    until(LIMIT, "the loss is known", async || {
        status(&hub).await.ok().filter(|s| !s.connected && s.stale)
    })
    .await?;
    assert_eq!(endpoints(&hub), all[1..2]);
    server.restart()?;
    server.delete("/api/v1/namespaces/shop/services/other")?;
    apply(&server, &slice("orders-2", "orders", &targets, &last))?;
    all.remove(1);
    wait_endpoints(&hub, &all).await?;
    Ok(())
}

/// The rules that the documentation asks for.
fn permit(server: &Kubernetes) -> Result<()> {
    let documentation = testkit::programs::workspace().join("docs/registries/kubernetes.md");
    let text = std::fs::read_to_string(documentation)?;
    let permissions = text.split("## Permissions").nth(1).context("none")?;
    let yaml = permissions.split("```").nth(1).context("no YAML")?;
    server.permit(yaml.strip_prefix("yaml\n").context("no YAML")?, "copies")
}

fn copy(protocol: &str, name: &str, address: &str, port: u16) -> (Arc<str>, Arc<Instance>) {
    let mut copy = Instance::new(ServiceKey::new(protocol, name), address, port);
    copy.version = "1.0".into();
    copy.weight = 30;
    copy.metadata = [(ORIGIN_MARK, "one/zk"), ("methods", "create,\"cancel\"")]
        .into_iter()
        .collect();
    let id = format!("one/zk/{protocol}/{name}/{address}:{port}");
    (id.into(), Arc::new(copy))
}

fn wanted(publish: &[(Arc<str>, Arc<Instance>)], withdraw: &[(Arc<str>, Arc<Instance>)]) -> Wanted {
    Wanted {
        publish: publish.iter().cloned().collect(),
        withdraw: withdraw.iter().cloned().collect(),
        ..Wanted::default()
    }
}

/// Versions of all objects in the namespace of copies, by their names.
fn copied(server: &Kubernetes) -> Result<BTreeMap<String, String>> {
    let mut all = BTreeMap::new();
    for kind in [
        "/api/v1/namespaces/copies/services",
        "/apis/discovery.k8s.io/v1/namespaces/copies/endpointslices",
    ] {
        let list = server.read(kind)?.context("no list")?;
        for item in list["items"].as_array().into_iter().flatten() {
            let of = |key: &str| {
                item["metadata"][key]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned()
            };
            all.insert(of("name"), of("resourceVersion"));
        }
    }
    Ok(all)
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_are_written_with_the_documented_permissions() -> Result<()> {
    if !is_built("kube-apiserver") {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let mut server = Kubernetes::start(folder.path())?;
    namespace(&server, "copies")?;
    let hub_one = hub_of("one");
    // A token that the server does not know, and one whose owner may do nothing.
    let write = json!({"writeNamespace": "copies"});
    for token in ["wrong-token", Kubernetes::PILOT] {
        hub_one.set_sources(vec![source(&server.kubeconfig(token)?, &write)?]);
        let refused = until(LIMIT, "the refusal is known", async || {
            let status = status(&hub_one).await.ok()?;
            let is_it = match token {
                Kubernetes::PILOT => status.reason.as_deref()?.contains("403"),
                _ => status.reason.as_deref()?.contains("401"),
            };
            (is_it && status.trouble == Some(Trouble::Refused)).then_some(status)
        })
        .await?;
        let reason = refused.reason.unwrap_or_default();
        ensure!(
            refused.sessions == 0 && !reason.contains("token"),
            "{reason}"
        );
    }
    permit(&server)?;

    // Names that Kubernetes can have are kept; of two that are one there, each has its own.
    let copies = [
        copy("springcloud", "orders", "10.9.0.1", 8080),
        copy("dubbo", "com.foo.Order", "10.9.0.1", 20880),
        copy("dubbo", "com.foo.Order", "10.9.0.2", 20880),
        copy("dubbo", "com.foo.Order", "10.9.0.3", 20881),
        copy("dubbo", "com.foo.order", "10.9.0.4", 20880),
        copy("dubbo", "com.foo.Order", "127.0.0.1", 20880),
        copy("dubbo", "com.foo.Order", "2001:db8::1", 20880),
    ];
    hub_one.set_wanted("cluster", wanted(&copies, &[]));
    let done = until(LIMIT, "the copies are written", async || {
        let status = status(&hub_one).await.ok()?;
        (status.written == 6 && status.copies == 6 && status.failed.len() == 1).then_some(status)
    })
    .await
    .with_context(|| format!("{:?}", copied(&server)))?;
    let failed = done.failed.values().next().context("none")?;
    ensure!(failed.contains("127.0.0.1"), "{failed}");
    ensure!(endpoints(&hub_one).is_empty(), "{:?}", endpoints(&hub_one));
    let written = copied(&server)?;
    let orders = server.read("/api/v1/namespaces/copies/services/orders")?;
    let spec = &orders.context("not there")?["spec"];
    ensure!(spec["ports"][0]["port"] == 80 && spec["selector"].is_null());
    ensure!(
        spec["clusterIP"]
            .as_str()
            .is_some_and(|ip| ip.starts_with("10.96."))
    );

    // Another mesh reads them as they were written; the same mesh, started anew, writes nothing a second time.
    let hub_two = hub_of("two");
    let pilot = server.kubeconfig(Kubernetes::PILOT)?;
    hub_two.set_sources(vec![source(&pilot, &json!({}))?]);
    until(LIMIT, "the other mesh has them", async || {
        (instances(&hub_two).len() == 6).then_some(())
    })
    .await?;
    let key = ServiceKey::new("dubbo", "com.foo.order");
    let services = hub_two.snapshot();
    let read = services.get(&key).and_then(|s| s.instances.first());
    let read = read.context("gone")?;
    assert_eq!((&*read.version, read.weight), ("1.0", 30));
    assert_eq!(read.metadata.get("methods"), Some("create,\"cancel\""));
    drop(hub_one);
    let hub_one = hub_of("one");
    hub_one.set_sources(vec![source(&pilot, &write)?]);
    hub_one.set_wanted("cluster", wanted(&copies, &[]));
    until(LIMIT, "they are known", async || {
        let status = status(&hub_one).await.ok()?;
        (status.written == 6).then_some(())
    })
    .await?;
    assert_eq!(copied(&server)?, written);

    // What is not this mesh's is left alone and named; what somebody deleted comes back after a reconnect.
    let foreign = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "carts", "namespace": "copies"}, "spec": {"ports": [{"port": 1}]},
    });
    apply(&server, &foreign)?;
    let mut more = copies.to_vec();
    more.push(copy("springcloud", "carts", "10.9.0.5", 80));
    hub_one.set_wanted("cluster", wanted(&more, &[]));
    until(LIMIT, "the conflict is known", async || {
        let status = status(&hub_one).await.ok()?;
        let said = status
            .failed
            .values()
            .any(|why| why.contains("not this mesh's"));
        said.then_some(())
    })
    .await?;
    server.delete("/api/v1/namespaces/copies/services/orders")?;
    server.kill()?;
    server.restart()?;
    until(LIMIT, "it is written again", async || {
        copied(&server).ok()?.contains_key("orders").then_some(())
    })
    .await?;

    hub_one.set_wanted("cluster", wanted(&copies[..1], &more[1..]));
    until(LIMIT, "only one is left", async || {
        let left = copied(&server).ok()?;
        (left.keys().eq(["carts", "orders", "orders-ipv4-8080-0"])).then_some(())
    })
    .await
    .with_context(|| format!("{:?}", copied(&server)))?;
    until(LIMIT, "the others are known to be gone", async || {
        let view = hub_one.view().borrow().clone();
        let withdrawn = &view.sources.get("cluster")?.withdrawn;
        let mut gone = more[1..].iter().map(|(id, _)| id);
        gone.all(|id| withdrawn.contains(id)).then_some(())
    })
    .await?;
    wait_endpoints(&hub_two, &["springcloud/orders 10.9.0.1:8080 -"]).await?;
    hub_one.set_wanted("cluster", wanted(&[], &copies[..1]));
    wait_endpoints(&hub_two, &[]).await?;
    assert_eq!(copied(&server)?.into_keys().collect::<Vec<_>>(), ["carts"]);
    Ok(())
}

/// Deletes what etcd has of a Service, and everything that it remembers of former states.
fn forget(server: &mut Kubernetes, service: &str) -> Result<()> {
    use base64::Engine as _;
    let etcd = server.etcd();
    etcd.kill()?;
    etcd.restart()?;
    let to = etcd.address();
    let key = format!("/registry/services/specs/shop/{service}");
    let key = base64::engine::general_purpose::STANDARD.encode(key);
    let answer = testkit::http::post_json(to, "/v3/kv/deleterange", &json!({"key": key}))?;
    let answer = answer.json()?;
    ensure!(answer["deleted"] == "1", "{answer}");
    let revision = &answer["header"]["revision"];
    let answer = testkit::http::post_json(to, "/v3/kv/compaction", &json!({"revision": revision}))?;
    ensure!(answer.status == 200, "{}", answer.text());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_watch_missed_is_listed_again() -> Result<()> {
    if !is_built("kube-apiserver") {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let mut server = Kubernetes::start(folder.path())?;
    namespace(&server, "shop")?;
    let port = json!([{"name": "http", "port": 80}]);
    for (name, address) in [("left", "10.0.0.1"), ("gone", "10.0.0.2")] {
        apply(&server, &service(name, &json!({}), &port))?;
        let at = json!([{"addresses": [address], "conditions": {}}]);
        apply(&server, &slice(&format!("{name}-1"), name, &port, &at))?;
    }
    let hub = hub_of("one");
    hub.set_sources(vec![source(
        &server.kubeconfig(Kubernetes::ADMIN)?,
        &json!({}),
    )?]);
    let all = [
        "http/gone.shop.svc.cluster.local 10.0.0.2:80 -",
        "http/left.shop.svc.cluster.local 10.0.0.1:80 -",
    ];
    wait_endpoints(&hub, &all).await?;
    // While the API server stands still its store forgets what it has to tell of.
    server.signal("STOP")?;
    forget(&mut server, "gone")?;
    server.signal("CONT")?;
    wait_endpoints(&hub, &all[1..]).await?;
    let at = json!([{"addresses": ["10.0.0.3"], "conditions": {}}]);
    apply(&server, &slice("left-1", "left", &port, &at))?;
    wait_endpoints(&hub, &["http/left.shop.svc.cluster.local 10.0.0.3:80 -"]).await?;
    Ok(())
}

/// A process that would lead.
struct Candidate {
    runtime: Runtime,
    role: watch::Receiver<Role>,
    task: JoinHandle<()>,
}

impl Candidate {
    fn start(server: &Kubernetes) -> Result<Candidate> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let object = LeaseObject {
            cluster: Cluster {
                kubeconfig: Some(server.kubeconfig(Kubernetes::ADMIN)?),
                context: None,
            },
            namespace: "default".to_owned(),
            name: "pilot".to_owned(),
        };
        let (role, task) = runtime.block_on(async { take_part(Election::Kubernetes(object)) });
        Ok(Candidate {
            runtime,
            role,
            task,
        })
    }

    fn role(&self) -> Role {
        *self.role.borrow()
    }

    /// Ends without a word.
    fn crash(self) {
        self.runtime.shutdown_background();
    }

    /// Gives the Lease back.
    fn leave(self) -> Result<()> {
        drop(self.role);
        Ok(self.runtime.block_on(self.task)?)
    }
}

/// Waits for these roles; never do two lead meanwhile.
fn wait_roles(candidates: &[&Candidate], expected: &[Role]) -> Result<()> {
    testkit::wait::until_ok(&format!("{expected:?}"), LIMIT, || {
        let roles: Vec<Role> = candidates.iter().map(|c| c.role()).collect();
        let leaders = roles.iter().filter(|role| **role == Role::Leader).count();
        assert!(leaders <= 1, "{roles:?}");
        ensure!(roles == expected, "{roles:?}");
        Ok(())
    })
}

#[test]
fn one_leads_until_it_dies_or_the_server_does() -> Result<()> {
    if !is_built("kube-apiserver") {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let mut server = Kubernetes::start(folder.path())?;
    let lease = |server: &Kubernetes| -> Result<Value> {
        let path = "/apis/coordination.k8s.io/v1/namespaces/default/leases/pilot";
        let lease = server.read(path)?.context("no Lease")?;
        Ok(lease["spec"].clone())
    };
    let one = Candidate::start(&server)?;
    wait_roles(&[&one], &[Role::Leader])?;
    let held = lease(&server)?;
    ensure!(
        held["leaseDurationSeconds"] == 15 && held["leaseTransitions"] == 1,
        "{held}"
    );
    let two = Candidate::start(&server)?;
    wait_roles(&[&one, &two], &[Role::Leader, Role::Follower])?;

    one.crash();
    wait_roles(&[&two], &[Role::Leader])?;
    let taken = lease(&server)?;
    ensure!(taken["leaseTransitions"] == 2 && taken["holderIdentity"] != held["holderIdentity"]);
    let three = Candidate::start(&server)?;
    wait_roles(&[&two, &three], &[Role::Leader, Role::Follower])?;

    // Without the server nobody knows who leads, and nobody does.
    server.kill()?;
    wait_roles(&[&two, &three], &[Role::Unknown, Role::Unknown])?;
    server.restart()?;
    testkit::wait::until_ok("a leader", LIMIT, || {
        let mut roles = [two.role(), three.role()];
        roles.sort_by_key(|role| *role != Role::Leader);
        ensure!(roles == [Role::Leader, Role::Follower], "{roles:?}");
        Ok(())
    })?;

    // One that leaves in order is followed at once.
    let (leader, other) = match two.role() {
        Role::Leader => (two, three),
        _ => (three, two),
    };
    let started = Instant::now();
    leader.leave()?;
    wait_roles(&[&other], &[Role::Leader])?;
    ensure!(
        started.elapsed() < Duration::from_secs(10),
        "{:?}",
        started.elapsed()
    );
    other.leave()?;
    ensure!(
        lease(&server)?["holderIdentity"] == "",
        "{}",
        lease(&server)?
    );
    Ok(())
}
