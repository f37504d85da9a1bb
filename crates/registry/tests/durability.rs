//! What was acknowledged survives `kill -9`: a child process serves a registry and is killed while it is written to.

mod common;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{content, serve, soon};
use registry::client::{Client, Filter};
use registry::{Limits, Registry};

/// Names the file of the child's registry.
const FILE: &str = "REGISTRY_TEST_FILE";

/// Not a test of its own: what the child process runs.
#[tokio::test]
#[allow(clippy::print_stdout, reason = "the parent reads the address from it")]
async fn child_process() {
    let Some(path) = std::env::var_os(FILE) else {
        return;
    };
    let registry = Registry::open(Path::new(&path), Limits::default()).expect("a registry");
    let address = serve(&registry).await;
    println!("\nserving {address}");
    std::future::pending::<()>().await;
}

fn start_child(path: &Path) -> (Child, Client) {
    let mut child = Command::new(std::env::current_exe().expect("this program"))
        .args(["child_process", "--exact", "--nocapture"])
        .env(FILE, path)
        .stdout(Stdio::piped())
        .spawn()
        .expect("a child process");
    let output = BufReader::new(child.stdout.take().expect("its output"));
    let address = output
        .lines()
        .find_map(|line| line.ok()?.strip_prefix("serving ").map(str::to_owned));
    let client = Client::new(&address.expect("an address")).expect("an address");
    (child, client)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_writes_survive_a_kill() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("registry.redb");
    let mut expected = BTreeSet::new();
    let mut revision = 0;
    for round in 0..3_u8 {
        let (mut child, client) = start_child(&path);
        let found = soon(client.instances("bolt", "s", &Filter::default()))
            .await
            .expect("a list");
        let found_ids: BTreeSet<String> =
            found.iter().map(|instance| instance.id.clone()).collect();
        // Unanswered writes may be there too.
        assert!(
            expected.is_subset(&found_ids),
            "round {round}: lost {:?}",
            expected.difference(&found_ids)
        );
        assert!(found.iter().all(|instance| instance.ttl_seconds == 30.0));
        expected = found_ids;

        let stop = Arc::new(AtomicBool::new(false));
        let writers: Vec<_> = (0..8_u8)
            .map(|writer| {
                let (client, stop) = (client.clone(), stop.clone());
                tokio::spawn(async move {
                    let mut acknowledged = Vec::new();
                    let mut revision = 0;
                    for n in 0.. {
                        let id = format!("{round}-{writer}-{n}");
                        match client
                            .register("bolt", "s", Some(&id), &content(writer))
                            .await
                        {
                            Ok(registered) => {
                                revision = registered.revision;
                                acknowledged.push(id);
                            }
                            Err(_) => break,
                        }
                        if n == 20 && writer == 0 {
                            stop.store(true, Ordering::Relaxed);
                        }
                    }
                    (acknowledged, revision)
                })
            })
            .collect();
        soon(async {
            while !stop.load(Ordering::Relaxed) {
                tokio::task::yield_now().await;
            }
        })
        .await;
        child.kill().expect("a kill");
        child.wait().expect("an end");
        for writer in writers {
            let (acknowledged, last) = soon(writer).await.expect("a writer");
            expected.extend(acknowledged);
            revision = revision.max(last);
        }
    }
    assert!(expected.len() >= 60, "{} writes", expected.len());
    // In this process: no kill, and the revision goes on where it was.
    let registry = Registry::open(&path, Limits::default()).expect("a registry");
    let services = registry.snapshot();
    assert!(services.revision >= revision);
    let service = services
        .get(&registry::ServiceKey::new("bolt", "s"))
        .expect("a service");
    let ids: BTreeSet<String> = service.instances.iter().map(|i| i.id.to_string()).collect();
    assert!(
        expected.is_subset(&ids),
        "lost {:?}",
        expected.difference(&ids)
    );
}

#[tokio::test]
async fn a_closed_registry_opens_again_as_it_was() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("deep/registry.redb");
    let registry = Registry::open(&path, Limits::default()).expect("a registry");
    let service = registry::ServiceKey::new("dubbo", "com.foo.Bar");
    let mut instance = registry::Instance::new(service.clone(), "10.0.0.1", 20880);
    instance.id = "a".into();
    instance.group = "g".into();
    instance.weight = 0;
    instance.healthy = false;
    instance.ttl = None;
    instance.metadata = [("k", "v")].into_iter().collect();
    let mut gone = instance.clone();
    gone.id = "b".into();
    let mut earlier = instance.clone();
    earlier.weight = 7;
    let mut first = earlier.clone();
    first.weight = 8;
    registry
        .register(vec![first])
        .await
        .expect("a registration");
    let done = registry
        .register(vec![earlier, instance, gone.clone()])
        .await
        .expect("a registration");
    assert_eq!(done.revision, 4);
    registry
        .deregister(vec![gone.reference()])
        .await
        .expect("a removal");
    let before = registry.snapshot();
    let store = registry.store();
    assert!(
        Registry::open(&path, Limits::default()).is_err(),
        "one file, two registries"
    );
    registry.close().await;
    assert!(matches!(
        registry.renew(vec![]).await,
        Err(registry::Error::Stopped)
    ));

    let registry = Registry::open(&path, Limits::default()).expect("a registry");
    let after = registry.snapshot();
    assert_eq!(after.revision, 5);
    assert_eq!(after.instances(), 1);
    assert_eq!(after.get(&service), before.get(&service));
    assert_eq!(registry.store(), store);
    // No record of what was replaced comes up once the last one has gone.
    registry
        .deregister(vec![registry::InstanceRef::new(
            "dubbo",
            "com.foo.Bar",
            "a",
        )])
        .await
        .expect("a removal");
    registry.close().await;
    let registry = Registry::open(&path, Limits::default()).expect("a registry");
    assert_eq!(registry.snapshot().instances(), 0);
}

#[tokio::test]
async fn a_file_of_format_1_is_taken_over() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("registry.redb");
    let written = write_format_1(&path);
    written.expect("a file of format 1");
    let service = registry::ServiceKey::new("bolt", "s");
    for instances in [2, 1] {
        let registry = Registry::open(&path, Limits::default()).expect("a registry");
        assert_eq!(*registry.store(), "0000000000000007");
        let services = registry.snapshot();
        assert_eq!(services.instances(), instances);
        let found = services.get(&service).expect("a service");
        assert_eq!(found.instance("b").map(|b| b.revision), Some(9));
        let gone = registry::InstanceRef::new("bolt", "s", "a");
        registry.deregister(vec![gone]).await.expect("a removal");
        registry.close().await;
    }
}

/// A file as it was before records were under their revisions.
fn write_format_1(path: &Path) -> Result<(), redb::Error> {
    use prost::Message;
    const INSTANCES: redb::TableDefinition<&str, &[u8]> = redb::TableDefinition::new("instances");
    const META: redb::TableDefinition<&str, u64> = redb::TableDefinition::new("meta");
    let transaction = redb::Database::create(path)?.begin_write()?;
    {
        let mut instances = transaction.open_table(INSTANCES)?;
        for (id, revision) in [("a", 4), ("b", 9)] {
            let mut instance = common::message("s", id);
            instance.revision = revision;
            let record = instance.encode_to_vec();
            instances.insert(format!("bolt\0s\0{id}").as_str(), record.as_slice())?;
        }
        let mut meta = transaction.open_table(META)?;
        for (name, value) in [("format", 1), ("store", 7), ("revision", 9)] {
            meta.insert(name, value)?;
        }
    }
    transaction.commit()?;
    Ok(())
}

#[tokio::test]
async fn leases_begin_anew_after_a_start() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("registry.redb");
    let registry = Registry::open(&path, common::short_leases()).expect("a registry");
    let service = registry::ServiceKey::new("bolt", "s");
    let mut instance = registry::Instance::new(service.clone(), "10.0.0.1", 12200);
    let ttl = std::time::Duration::from_millis(500);
    instance.ttl = Some(ttl);
    registry
        .register(vec![instance])
        .await
        .expect("a registration");
    registry.close().await;
    // Longer than the lease: nobody could have renewed it meanwhile.
    tokio::time::sleep(ttl * 2).await;
    let opened = std::time::Instant::now();
    let registry = Registry::open(&path, common::short_leases()).expect("a registry");
    let mut changes = registry.changes().expect("a watch");
    let first = soon(changes.next()).await;
    assert!(matches!(first, Some(registry::Event::Reset(services)) if services.instances() == 1));
    let event = soon(changes.next()).await;
    assert!(opened.elapsed() >= ttl);
    let Some(registry::Event::Changes(changes)) = event else {
        panic!("no change: {event:?}");
    };
    assert_eq!(
        changes.first().map(|change| change.kind),
        Some(registry::ChangeKind::Lapsed)
    );
    registry.close().await;
    let registry = Registry::open(&path, common::short_leases()).expect("a registry");
    assert_eq!(registry.snapshot().instances(), 0);
}
