//! Watches in the process and over gRPC: order, slow watchers, and how fast a change arrives.

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::mesh::registry::v1 as pb;
use common::{short_leases, soon};
use pb::registry_service_client::RegistryServiceClient;
use registry::{ChangeKind, Event, Instance, InstanceRef, Limits, Registry, Selector, ServiceKey};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::Code;
use tonic::transport::{Channel, Endpoint, Server};

fn instance(service: &str, id: &str, weight: u32) -> Instance {
    let mut instance = Instance::new(ServiceKey::new("bolt", service), "10.0.0.1", 12200);
    instance.id = id.into();
    instance.weight = weight;
    instance
}

/// A watcher's picture of the registry, made of events alone.
#[derive(Default)]
struct Mirror {
    instances: BTreeMap<InstanceRef, Arc<Instance>>,
    revision: u64,
    resets: usize,
}

impl Mirror {
    fn handle(&mut self, event: Event) {
        match event {
            Event::Reset(services) => {
                self.resets += 1;
                self.revision = services.revision;
                let all = services.iter().flat_map(|s| s.instances.iter());
                self.instances = all.map(|i| (i.reference(), i.clone())).collect();
            }
            Event::Changes(changes) => {
                for change in changes.iter() {
                    assert!(change.revision > self.revision, "out of order");
                    self.revision = change.revision;
                    match change.kind {
                        ChangeKind::Put => self
                            .instances
                            .insert(change.instance.reference(), change.instance.clone()),
                        _ => self.instances.remove(&change.instance.reference()),
                    };
                }
            }
        }
    }
}

#[tokio::test]
async fn a_slow_watcher_is_reset_and_nobody_waits_for_it() {
    let registry = Registry::in_memory(Limits::default()).expect("a registry");
    let mut quick = registry.changes().expect("a watch");
    let mut slow = registry.changes().expect("a watch");
    let mut mirror = Mirror::default();
    // More commits than any buffer holds.
    for n in 0..3000_u32 {
        let changed = instance("s", &format!("i{}", n % 50), n % 7 + 1);
        registry
            .register(vec![changed])
            .await
            .expect("a registration");
        if n % 100 == 0 {
            registry
                .deregister(vec![InstanceRef::new("bolt", "s", "i0")])
                .await
                .expect("a removal");
        }
        while mirror.revision < registry.snapshot().revision {
            mirror.handle(soon(quick.next()).await.expect("an event"));
        }
    }
    assert_eq!(mirror.resets, 1);
    let mut late = Mirror::default();
    while late.revision < registry.snapshot().revision {
        late.handle(soon(slow.next()).await.expect("an event"));
    }
    assert_eq!(late.resets, 2);
    assert_eq!(late.instances, mirror.instances);
    assert_eq!(late.instances.len(), registry.snapshot().instances());
}

#[tokio::test]
async fn the_number_of_watchers_is_limited() {
    let limits = Limits {
        watchers: 2,
        ..Limits::default()
    };
    let registry = Registry::in_memory(limits).expect("a registry");
    let first = registry.watch(Selector::service(&ServiceKey::new("bolt", "s")), None);
    let _second = registry.changes();
    assert!(registry.changes().is_err());
    drop(first);
    assert!(registry.changes().is_ok());
}

async fn grpc(registry: &Registry) -> RegistryServiceClient<Channel> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a free port");
    let address = listener.local_addr().expect("an address");
    let server = Server::builder().add_service(registry.grpc_service());
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("a URL");
    RegistryServiceClient::new(endpoint.connect().await.expect("a connection"))
}

fn message(service: &str, id: &str) -> pb::Instance {
    pb::Instance {
        protocol: "bolt".to_owned(),
        service: service.to_owned(),
        id: id.to_owned(),
        address: "10.0.0.1".to_owned(),
        port: 12200,
        ..pb::Instance::default()
    }
}

#[tokio::test]
async fn serves_grpc() {
    let registry = Registry::in_memory(short_leases()).expect("a registry");
    let mut client = grpc(&registry).await;
    let mut wrong = message("s", "b");
    wrong.port = 70_000;
    let request = pb::RegisterRequest {
        instances: vec![message("s", "a"), wrong],
        ..pb::RegisterRequest::default()
    };
    let refused = client.register(request).await.expect_err("a refusal");
    assert_eq!(
        (refused.code(), refused.message()),
        (
            Code::InvalidArgument,
            "instances[1].port: must be 1 to 65535, is 70000"
        )
    );
    let mut brief = message("s", "brief");
    brief.ttl_ms = Some(100);
    brief.version = "1.0".to_owned();
    let request = pb::RegisterRequest {
        instances: vec![message("s", "a"), brief, message("s", "")],
        ..pb::RegisterRequest::default()
    };
    let registered = client
        .register(request)
        .await
        .expect("a registration")
        .into_inner();
    let ids: Vec<_> = registered
        .registered
        .iter()
        .map(|r| (r.id.as_str(), r.ttl_ms))
        .collect();
    assert_eq!(
        ids,
        [("a", 30_000), ("brief", 100), ("10.0.0.1:12200", 30_000)]
    );

    let selector = Some(pb::Selector {
        protocol: "bolt".to_owned(),
        service: "s".to_owned(),
        version: Some("1.0".to_owned()),
        ..pb::Selector::default()
    });
    let watched = client.watch(pb::WatchRequest {
        selector: selector.clone(),
        ..pb::WatchRequest::default()
    });
    let mut watch = watched.await.expect("a watch").into_inner();
    let first = soon(watch.message())
        .await
        .expect("a message")
        .expect("an open watch");
    assert!(first.reset);
    assert_eq!(first.store, *registry.store());
    let lapsed = if first.synced && first.changes.is_empty() {
        None
    } else {
        let next = soon(watch.message())
            .await
            .expect("a message")
            .expect("an open watch");
        next.changes.first().map(|change| change.kind())
    };
    assert!(matches!(lapsed, None | Some(pb::change::Kind::Lapsed)));
    let listed = client
        .list(pb::ListRequest {
            selector,
            ..pb::ListRequest::default()
        })
        .await
        .expect("a list")
        .into_inner();
    assert!(listed.instances.is_empty());

    let reference = |id: &str| pb::InstanceRef {
        protocol: "bolt".to_owned(),
        service: "s".to_owned(),
        id: id.to_owned(),
        ..pb::InstanceRef::default()
    };
    let renewed = client.renew(pb::RenewRequest {
        instances: vec![reference("a"), reference("brief")],
    });
    let renewed = renewed.await.expect("a renewal").into_inner();
    assert_eq!(
        (renewed.renewed, renewed.unknown),
        (1, vec![reference("brief")])
    );
    let got = client.get(pb::GetRequest {
        instance: Some(reference("a")),
    });
    assert_eq!(
        got.await
            .expect("an instance")
            .into_inner()
            .instance
            .and_then(|i| i.weight),
        Some(100)
    );
    let removed = client.deregister(pb::DeregisterRequest {
        instances: vec![reference("a"), reference("brief")],
    });
    assert_eq!(removed.await.expect("a removal").into_inner().removed, 1);
    let missing = client.get(pb::GetRequest {
        instance: Some(reference("a")),
    });
    assert_eq!(missing.await.expect_err("nothing").code(), Code::NotFound);
}

/// Registration to watcher, over gRPC and with a file underneath: the time of two fsyncs and two messages, not of a timer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_arrives_in_milliseconds() {
    let folder = tempfile::tempdir().expect("a folder");
    let registry = Registry::open(&folder.path().join("registry.redb"), Limits::default())
        .expect("a registry");
    let mut client = grpc(&registry).await;
    let watched = grpc(&registry)
        .await
        .watch(pb::WatchRequest::default())
        .await;
    let mut watch = watched.expect("a watch").into_inner();
    assert!(
        soon(watch.message())
            .await
            .expect("a message")
            .is_some_and(|first| first.synced)
    );
    let mut times = Vec::new();
    for n in 0..50 {
        let request = pb::RegisterRequest {
            instances: vec![message("s", &format!("i{n}"))],
            ..pb::RegisterRequest::default()
        };
        let start = Instant::now();
        let (registered, seen) = tokio::join!(client.register(request), soon(watch.message()));
        let seen = seen.expect("a message").expect("an open watch");
        times.push(start.elapsed());
        assert!(registered.is_ok());
        assert_eq!(seen.changes.len(), 1);
    }
    times.sort();
    let (median, worst) = (times[times.len() / 2], times[times.len() - 1]);
    eprintln!("change to watcher: median {median:?}, slowest of 50 {worst:?}");
    assert!(median < Duration::from_millis(250), "{median:?}");
}
