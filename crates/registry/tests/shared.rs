//! Several registries on one etcd, a real one.

mod common;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use common::{content, serve};
use registry::client::{self, Client, EventKind, Filter};
use registry::{
    Error, EtcdStore, Instance, Interface, InterfaceKey, Limits, Registry, ServiceKey,
    SessionClaim, SessionId,
};
use serde_json::json;
use testkit::registries::Etcd;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

const LIMIT: Duration = Duration::from_secs(60);
/// Names the etcd of the child's registry.
const STORE: &str = "REGISTRY_TEST_STORE";

async fn open(etcd: SocketAddr) -> Result<(Registry, Client)> {
    // A server that is not there is passed over.
    let store =
        EtcdStore::parse(&format!("etcd://127.0.0.1:1,{etcd}/test")).map_err(anyhow::Error::msg)?;
    let registry = Registry::open_shared(store, Limits::default()).await?;
    let address = serve(&registry).await;
    Ok((registry, Client::new(&address.to_string())?))
}

async fn next(watch: &mut client::Watch) -> Result<client::Event> {
    let next = tokio::time::timeout(LIMIT, async {
        loop {
            match watch.next().await? {
                // Bookmarks come whenever they come.
                Some(event) if event.kind == EventKind::Synced => {}
                Some(event) => return anyhow::Ok(event),
                None => bail!("the watch has ended"),
            }
        }
    });
    next.await.context("no event")?
}

async fn ids(client: &Client) -> Result<BTreeSet<String>> {
    let all = client.instances("bolt", "s", &Filter::default()).await?;
    Ok(all.into_iter().map(|instance| instance.id).collect())
}

fn set(ids: &[&str]) -> BTreeSet<String> {
    ids.iter().map(|id| (*id).to_owned()).collect()
}

async fn wait_ids(client: &Client, expected: &[&str]) -> Result<()> {
    let expected = set(expected);
    let seen = async {
        loop {
            let now = ids(client).await?;
            if now == expected {
                return anyhow::Ok(());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let seen = tokio::time::timeout(LIMIT, seen).await;
    seen.with_context(|| format!("never {expected:?}"))?
}

fn brief(last_byte: u8, ttl: f64) -> client::Content {
    client::Content {
        ttl_seconds: Some(ttl),
        ..content(last_byte)
    }
}

fn instance(id: &str, ttl: Option<u64>) -> Instance {
    let mut instance = Instance::new(ServiceKey::new("bolt", "s"), "10.0.0.1", 12200);
    instance.id = id.into();
    instance.ttl = ttl.map(Duration::from_secs);
    instance
}

/// The id of the first instance that lapses while something else is renewed all the time.
async fn lapsing<R, T, E>(at: &mut client::Watch, mut renew: impl FnMut() -> R) -> Result<String>
where
    R: Future<Output = Result<T, E>>,
    E: std::fmt::Debug,
{
    let renewing = async {
        loop {
            if let Err(error) = renew().await {
                return error;
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    };
    let watching = async {
        loop {
            let event = next(at).await?;
            if event.kind == EventKind::Lapsed {
                return event.instance.context("no instance");
            }
        }
    };
    tokio::select! {
        refused = renewing => bail!("a renewal was refused: {refused:?}"),
        lapsed = watching => Ok(lapsed?.id),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_registries_are_one() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let server = Etcd::start(folder.path())?;
    let (a, a_client) = open(server.address()).await?;
    let (b, b_client) = open(server.address()).await?;
    assert_eq!(a.store(), b.store());

    let mut at_b = b_client.watch(&Filter::default(), None).await?;
    assert_eq!(next(&mut at_b).await?.kind, EventKind::Reset);
    let first = a_client
        .register("bolt", "s", Some("a"), &content(1))
        .await?;
    // What was acknowledged is there for whoever asks next.
    assert_eq!(ids(&a_client).await?, set(&["a"]));
    let seen = next(&mut at_b).await?;
    assert_eq!((seen.kind, seen.revision), (EventKind::Put, first.revision));

    // More than a transaction takes.
    let many: Vec<Instance> = (0..250).map(|n| instance(&format!("i{n}"), None)).collect();
    let done = a.register(many.clone()).await?;
    assert!(done.result.iter().all(|registered| registered.created));
    let mut revision = first.revision;
    for _ in 0..many.len() {
        let seen = next(&mut at_b).await?;
        ensure!(seen.revision > revision, "{seen:?} after {revision}");
        revision = seen.revision;
    }
    assert_eq!(revision, done.revision);
    // The same again changes nothing.
    assert_eq!(b.register(many.clone()).await?.revision, done.revision);

    // A watcher that comes back to another registry goes on where it was.
    let mut back = a_client
        .watch(&Filter::default(), Some((done.revision - 1, &b.store())))
        .await?;
    assert_eq!(next(&mut back).await?.revision, done.revision);

    let gone = many.iter().map(Instance::reference).collect();
    assert_eq!(b.deregister(gone).await?.result, 250);
    for _ in 0..many.len() {
        assert_eq!(next(&mut back).await?.kind, EventKind::Deregistered);
    }
    assert_eq!(ids(&b_client).await?, set(&["a"]));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_are_those_of_their_owners() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let server = Etcd::start(folder.path())?;
    let (a, a_client) = open(server.address()).await?;
    let (_b, b_client) = open(server.address()).await?;
    let mut at_a = a_client.watch(&Filter::default(), None).await?;
    // One call, one lease; but only one of the two is renewed, and at another registry.
    a.register(vec![
        instance("renewed", Some(4)),
        instance("left", Some(4)),
    ])
    .await?;
    let renew = || b_client.renew("bolt", "s", "renewed");
    assert_eq!(lapsing(&mut at_a, renew).await?, "left");
    assert_eq!(ids(&b_client).await?, set(&["renewed"]));
    // Nobody renews it any longer.
    wait_ids(&b_client, &[]).await?;
    let refused = b_client.renew("bolt", "s", "renewed").await;
    assert!(
        matches!(&refused, Err(client::Error::Refused { code, .. }) if code == "not_found"),
        "{refused:?}"
    );
    Ok(())
}

/// Not a test of its own: what the child process runs.
#[tokio::test]
#[allow(clippy::print_stdout, reason = "the parent reads the address from it")]
async fn child_process() -> Result<()> {
    let Ok(etcd) = std::env::var(STORE) else {
        return Ok(());
    };
    let store = EtcdStore::parse(&etcd).map_err(anyhow::Error::msg)?;
    let registry = Registry::open_shared(store, Limits::default()).await?;
    println!("\nserving {}", serve(&registry).await);
    std::future::pending().await
}

/// Another process with a registry on this etcd, and where it serves it.
fn start_child(etcd: SocketAddr) -> Result<(Child, SocketAddr)> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(["child_process", "--exact", "--nocapture"])
        .env(STORE, format!("etcd://{etcd}/test"))
        .stdout(Stdio::piped())
        .spawn()?;
    let output = BufReader::new(child.stdout.take().context("no output")?);
    let address = output
        .lines()
        .find_map(|line| line.ok()?.strip_prefix("serving ").map(str::to_owned));
    Ok((child, address.context("no address")?.parse()?))
}

fn claim(session: SessionId) -> SessionClaim {
    SessionClaim {
        id: session,
        owner: "shop".into(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_the_same_at_every_registry() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let server = Etcd::start(folder.path())?;
    let (a, a_client) = open(server.address()).await?;
    let (b, b_client) = open(server.address()).await?;
    let mut at_a = a_client.watch(&Filter::default(), None).await?;
    assert_eq!(next(&mut at_a).await?.kind, EventKind::Reset);
    let ttl = Duration::from_secs(6);
    let kept = a.open_session("shop".into(), ttl).await?;
    let left = a.open_session("shop".into(), ttl).await?;
    // At once, at another registry; more than a transaction takes.
    let many: Vec<Instance> = (0..250).map(|n| instance(&format!("k{n}"), None)).collect();
    let done = b.register_in(claim(kept), many.clone()).await?;
    assert_eq!(done.result.first().and_then(|one| one.ttl), Some(ttl));
    let goes = instance("left", None);
    b.register_in(claim(left), vec![goes]).await?;
    for _ in 0..251 {
        assert_eq!(next(&mut at_a).await?.kind, EventKind::Put);
    }
    assert_eq!(a.session(claim(kept)).await?.instances, 250);
    let stranger = SessionClaim {
        owner: "other".into(),
        ..claim(kept)
    };
    assert!(matches!(
        a.renew_session(stranger.clone()).await,
        Err(Error::NotFound(_))
    ));
    assert!(matches!(
        b.register_in(stranger, many.clone()).await,
        Err(Error::NotFound(_))
    ));

    // One that nobody renews ends with what it holds, the other goes on: whichever registry renews it.
    let mut turn = 0;
    let renew = || {
        turn += 1;
        let registry = if turn % 2 == 0 { a.clone() } else { b.clone() };
        async move { registry.renew_session(claim(kept)).await.map(drop) }
    };
    assert_eq!(lapsing(&mut at_a, renew).await?, "left");
    assert!(matches!(
        b.register_in(claim(left), many.clone()).await,
        Err(Error::NotFound(_))
    ));
    // What is said again without it, or in another one, is held by it no more.
    a.renew_session(claim(kept)).await?;
    a.register(vec![instance("k0", None)]).await?;
    let other = b
        .open_session("shop".into(), Duration::from_secs(60))
        .await?;
    b.register_in(claim(other), vec![instance("k1", None)])
        .await?;
    let closed = b.close_session(claim(kept)).await?;
    assert_eq!(closed.result, 248);
    let mut gone = 0;
    while gone < 248 {
        let event = next(&mut at_a).await?;
        match event.kind {
            EventKind::Deregistered => gone += 1,
            EventKind::Put => {}
            other => bail!("{other:?} of {:?}", event.instance),
        }
    }
    wait_ids(&a_client, &["k0", "k1"]).await?;
    assert_eq!(ids(&b_client).await?, set(&["k0", "k1"]));
    assert!(a.renew_session(claim(kept)).await.is_err());
    assert_eq!(a.session(claim(other)).await?.instances, 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_outlive_a_registry_that_is_killed() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let server = Etcd::start(folder.path())?;
    let (mut child, address) = start_child(server.address())?;
    let ask = |address, method: &'static str, path: String, body: serde_json::Value| async move {
        let body = body.to_string();
        let (status, _, body) = common::ask(address, method, &path, "", &body).await;
        anyhow::Ok((status, serde_json::from_str(&body).unwrap_or_default()))
    };
    let mut opened = Vec::new();
    for ids in [["a", "b"], ["c", "d"]] {
        let ttl = json!({"ttlSeconds": 8});
        let (_, session): (u16, serde_json::Value) =
            ask(address, "POST", "/v1/sessions".into(), ttl).await?;
        let id = session["id"].as_str().context("no session")?.to_owned();
        let instances = ids.map(|id| {
            json!({"protocol": "bolt", "service": "s", "id": id, "address": "10.0.0.1", "port": 1})
        });
        let path = format!("/v1/register?session={id}");
        let (status, told) = ask(address, "POST", path, json!({"instances": instances})).await?;
        ensure!(status == 200, "{told}");
        opened.push(id);
    }
    child.kill()?;
    child.wait()?;

    let (registry, client) = open(server.address()).await?;
    let address = serve(&registry).await;
    let mut at = client.watch(&Filter::default(), None).await?;
    let [kept, left] = opened.as_slice() else {
        bail!("two sessions");
    };
    let renew = || {
        let path = format!("/v1/sessions/{kept}/lease");
        async move {
            let (status, told) = ask(address, "PUT", path, json!({})).await?;
            ensure!(status == 204, "{told}");
            anyhow::Ok(())
        }
    };
    let lapsed = lapsing(&mut at, renew).await?;
    ensure!(["c", "d"].contains(&lapsed.as_str()), "{lapsed}");
    wait_ids(&client, &["a", "b"]).await?;
    let path = format!("/v1/sessions/{left}");
    assert_eq!(ask(address, "GET", path, json!({})).await?.0, 404);
    let path = format!("/v1/sessions/{kept}");
    assert_eq!(ask(address, "DELETE", path, json!({})).await?.0, 200);
    assert_eq!(ids(&client).await?, set(&[]));
    Ok(())
}

fn description(name: &str, method: &str) -> Result<Interface> {
    let key = InterfaceKey {
        service: ServiceKey::new("dubbo", name),
        version: "1.0".into(),
        group: "".into(),
    };
    let json = json!({"methods": [{"name": method}]}).to_string();
    Ok(Interface::parse(key, json.as_bytes(), 4096)?)
}

/// Waits until a registry lists these descriptions.
async fn wait_described(address: SocketAddr, expected: &[&str]) -> Result<()> {
    let listed = async {
        loop {
            let (_, _, body) = common::ask(address, "GET", "/v1/interfaces", "", "").await;
            let listed: serde_json::Value = serde_json::from_str(&body).unwrap_or_default();
            let all = listed["interfaces"].as_array().cloned().unwrap_or_default();
            let all = all
                .iter()
                .map(|one| format!("{}/{}", one["service"], one["methods"][0]));
            let all: Vec<String> = all.map(|text| text.replace('"', "")).collect();
            if all == expected {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let listed = tokio::time::timeout(LIMIT, listed).await;
    listed.with_context(|| format!("never {expected:?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn descriptions_are_shared_kept_and_saved() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut server = Etcd::start(folder.path())?;
    let (a, _) = open(server.address()).await?;
    let (b, _) = open(server.address()).await?;
    let (at_a, at_b) = (serve(&a).await, serve(&b).await);
    assert!(a.put_interface(description("Echo", "echo")?).await?);
    assert!(!a.put_interface(description("Echo", "again")?).await?);
    assert!(b.put_interface(description("Other", "echo")?).await?);
    wait_described(at_b, &["Echo/again", "Other/echo"]).await?;
    wait_described(at_a, &["Echo/again", "Other/echo"]).await?;
    let echo = description("Echo", "echo")?;
    assert!(b.remove_interface(echo.key.clone()).await?);
    assert!(!b.remove_interface(echo.key).await?);
    wait_described(at_a, &["Other/echo"]).await?;
    a.register(vec![instance("a", None)]).await?;

    // A snapshot has them, and puts them into a registry of its own and into etcd.
    let saved = tokio::task::spawn_blocking(move || testkit::http::get(at_a, "/v1/snapshot"));
    let saved = saved.await??.body;
    server.kill()?;
    server.restart_empty()?;
    // What the disk lost is written again.
    wait_described(at_b, &["Other/echo"]).await?;
    let (c, _) = open(server.address()).await?;
    wait_described(serve(&c).await, &["Other/echo"]).await?;
    let store = EtcdStore::parse(&format!("etcd://{}/other", server.address()));
    let shared = Registry::open_shared(store.map_err(anyhow::Error::msg)?, Limits::default());
    for registry in [Registry::in_memory(Limits::default())?, shared.await?] {
        let address = serve(&registry).await;
        let file = saved.clone();
        let put = move || testkit::http::request(address, "PUT", "/v1/snapshot", &[], &file);
        let restored = tokio::task::spawn_blocking(put).await??;
        ensure!(restored.status == 200, "{}", restored.text());
        assert_eq!(restored.json()?["interfaces"], 1);
        wait_described(address, &["Other/echo"]).await?;
        assert_eq!(registry.snapshot().instances(), 1);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_outlive_a_registry_that_is_killed() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let server = Etcd::start(folder.path())?;
    let (mut child, address) = start_child(server.address())?;
    let dying = Client::new(&address.to_string())?;
    dying
        .register("bolt", "s", Some("moves"), &brief(1, 8.0))
        .await?;
    dying
        .register("bolt", "s", Some("goes"), &brief(2, 8.0))
        .await?;
    dying
        .register("bolt", "s", Some("stays"), &brief(3, 0.0))
        .await?;
    child.kill()?;
    child.wait()?;
    assert!(dying.renew("bolt", "s", "moves").await.is_err());

    let (_b, b_client) = open(server.address()).await?;
    assert_eq!(ids(&b_client).await?, set(&["goes", "moves", "stays"]));
    let mut at_b = b_client.watch(&Filter::default(), None).await?;
    let renew = || b_client.renew("bolt", "s", "moves");
    assert_eq!(lapsing(&mut at_b, renew).await?, "goes");
    assert_eq!(ids(&b_client).await?, set(&["moves", "stays"]));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_go_on_while_the_store_is_away() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut server = Etcd::start(folder.path())?;
    let (_a, a_client) = open(server.address()).await?;
    let (_b, b_client) = open(server.address()).await?;
    let lasting = brief(1, 0.0);
    a_client.register("bolt", "s", Some("a"), &lasting).await?;
    wait_ids(&b_client, &["a"]).await?;
    let mut at_b = b_client.watch(&Filter::default(), None).await?;
    assert_eq!(next(&mut at_b).await?.kind, EventKind::Reset);
    assert_eq!(next(&mut at_b).await?.kind, EventKind::Put);

    server.kill()?;
    let refused = a_client.register("bolt", "s", Some("b"), &lasting).await;
    assert!(
        matches!(&refused, Err(client::Error::Refused { code, .. }) if code == "store_unreachable"),
        "{refused:?}"
    );
    assert_eq!(ids(&a_client).await?, set(&["a"]));

    server.restart()?;
    let registered = async {
        while a_client
            .register("bolt", "s", Some("b"), &lasting)
            .await
            .is_err()
        {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(LIMIT, registered).await?;
    // The watcher lost nothing and was told nothing twice.
    let seen = next(&mut at_b).await?;
    let id = seen.instance.map(|instance| instance.id);
    assert_eq!((seen.kind, id.as_deref()), (EventKind::Put, Some("b")));

    // The disk was lost: what the registries know is written again.
    server.kill()?;
    server.restart_empty()?;
    let (_c, c_client) = open(server.address()).await?;
    wait_ids(&c_client, &["a", "b"]).await?;
    wait_ids(&a_client, &["a", "b"]).await?;
    c_client.register("bolt", "s", Some("c"), &lasting).await?;
    wait_ids(&a_client, &["a", "b", "c"]).await?;
    wait_ids(&b_client, &["a", "b", "c"]).await?;
    Ok(())
}

/// A line to etcd that can be cut.
async fn line(to: SocketAddr, whole: watch::Receiver<bool>) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let mut whole = whole.clone();
            tokio::spawn(async move {
                if !*whole.borrow() {
                    return;
                }
                let Ok(mut server) = TcpStream::connect(to).await else {
                    return;
                };
                tokio::select! {
                    // Either side may end it.
                    _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
                    () = async { drop(whole.wait_for(|whole| !*whole).await) } => {}
                }
            });
        }
    });
    Ok(address)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_store_has_forgotten_is_read_anew() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let server = Etcd::start(folder.path())?;
    let (_a, a_client) = open(server.address()).await?;
    let (cut, whole) = watch::channel(true);
    let (_b, b_client) = open(line(server.address(), whole).await?).await?;
    let lasting = brief(1, 0.0);
    a_client.register("bolt", "s", Some("a"), &lasting).await?;
    wait_ids(&b_client, &["a"]).await?;
    let mut at_b = b_client.watch(&Filter::default(), None).await?;
    assert_eq!(next(&mut at_b).await?.kind, EventKind::Reset);
    assert_eq!(next(&mut at_b).await?.kind, EventKind::Put);

    cut.send_replace(false);
    a_client.deregister("bolt", "s", "a").await?;
    a_client.register("bolt", "s", Some("b"), &lasting).await?;
    let last = a_client.register("bolt", "s", Some("c"), &lasting).await?;
    let gateway = "/v3/kv/compaction";
    let compaction = json!({"revision": last.revision / 1024, "physical": true});
    let compacted = testkit::http::post_json(server.address(), gateway, &compaction)?;
    ensure!(compacted.status == 200, "{}", compacted.text());
    assert_eq!(ids(&b_client).await?, set(&["a"]));
    cut.send_replace(true);
    wait_ids(&b_client, &["b", "c"]).await?;
    assert_eq!(next(&mut at_b).await?.kind, EventKind::Reset);
    let mut listed = BTreeSet::new();
    for _ in 0..2 {
        let event = next(&mut at_b).await?;
        listed.extend(event.instance.map(|instance| instance.id));
    }
    assert_eq!(listed, set(&["b", "c"]));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_cannot_be_read_hides_no_other() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let server = Etcd::start(folder.path())?;
    let (a, a_client) = open(server.address()).await?;
    let put = |id: &str, value: &[u8]| -> Result<()> {
        let key = STANDARD.encode(format!("/test/instances/bolt\0s\0{id}"));
        let body = json!({"key": key, "value": STANDARD.encode(value)});
        let answer = testkit::http::post_json(server.address(), "/v3/kv/put", &body)?;
        ensure!(answer.status == 200, "{}", answer.text());
        Ok(())
    };
    put("nonsense", b"\xff\xff")?;
    put("", b"")?;
    a.register(vec![instance("good", None)]).await?;
    assert_eq!(ids(&a_client).await?, set(&["good"]));
    let (_b, b_client) = open(server.address()).await?;
    assert_eq!(ids(&b_client).await?, set(&["good"]));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn many_writers_lose_nothing() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let server = Etcd::start(folder.path())?;
    let (a, _) = open(server.address()).await?;
    let (b, _) = open(server.address()).await?;
    let writers = [a.clone(), b.clone()].into_iter().enumerate();
    let writers = writers.flat_map(|(index, registry)| {
        (0..8).map(move |writer| {
            let registry = registry.clone();
            tokio::spawn(async move {
                for n in 0..20 {
                    let id = format!("{index}-{writer}-{n}");
                    registry.register(vec![instance(&id, Some(60))]).await?;
                    if n % 2 == 1 {
                        let reference = instance(&id, None).reference();
                        registry.deregister(vec![reference]).await?;
                    }
                }
                Ok::<_, registry::Error>(())
            })
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await??;
    }
    let same = async {
        loop {
            let (of_a, of_b) = (a.snapshot(), b.snapshot());
            let (of_a, of_b): (BTreeSet<Arc<str>>, BTreeSet<Arc<str>>) = (
                of_a.iter()
                    .flat_map(|s| s.instances.iter())
                    .map(|i| i.id.clone())
                    .collect(),
                of_b.iter()
                    .flat_map(|s| s.instances.iter())
                    .map(|i| i.id.clone())
                    .collect(),
            );
            if of_a.len() == 160 && of_a == of_b {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LIMIT, same).await?;
    Ok(())
}
