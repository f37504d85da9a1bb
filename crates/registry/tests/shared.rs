//! Several registries on one etcd, a real one.

mod common;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use common::{content, serve};
use registry::client::{self, Client, EventKind, Filter};
use registry::{EtcdStore, Instance, Limits, Registry, ServiceKey};
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
    let renewing = async {
        loop {
            b_client.renew("bolt", "s", "renewed").await?;
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    };
    let watching = async {
        loop {
            let event = next(&mut at_a).await?;
            if event.kind == EventKind::Lapsed {
                return event.instance.context("no instance");
            }
        }
    };
    let renewed: Result<(), client::Error>;
    tokio::select! {
        ended = renewing => {
            renewed = ended;
            bail!("a renewal was refused: {renewed:?}");
        }
        lapsed = watching => assert_eq!(lapsed?.id, "left"),
    }
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

#[tokio::test(flavor = "multi_thread")]
async fn leases_outlive_a_registry_that_is_killed() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let server = Etcd::start(folder.path())?;
    let mut child = Command::new(std::env::current_exe()?)
        .args(["child_process", "--exact", "--nocapture"])
        .env(STORE, format!("etcd://{}/test", server.address()))
        .stdout(Stdio::piped())
        .spawn()?;
    let output = BufReader::new(child.stdout.take().context("no output")?);
    let address = output
        .lines()
        .find_map(|line| line.ok()?.strip_prefix("serving ").map(str::to_owned));
    let dying = Client::new(&address.context("no address")?)?;
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
    let renewing = async {
        loop {
            b_client.renew("bolt", "s", "moves").await?;
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    };
    let lapsing = async {
        loop {
            let event = next(&mut at_b).await?;
            if event.kind == EventKind::Lapsed {
                return event.instance.context("no instance");
            }
        }
    };
    let renewed: Result<(), client::Error>;
    tokio::select! {
        ended = renewing => {
            renewed = ended;
            bail!("a renewal was refused: {renewed:?}");
        }
        lapsed = lapsing => assert_eq!(lapsed?.id, "goes"),
    }
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
