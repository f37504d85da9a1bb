//! Sessions over both faces, interfaces, pages, and what a restart leaves.

mod common;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use api::mesh::registry::v1 as pb;
use common::{ask, grpc_of, message, serve, serve_api, short_leases, soon};
use registry::{Access, Audit, ChangeKind, Event, Limits, Registry, Since, Watch};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

/// Waits until so many instances have lapsed; each does once.
async fn lapsed(watch: &mut Watch, wanted: usize) {
    let mut seen = BTreeSet::new();
    while seen.len() < wanted {
        let Some(Event::Changes(changes)) = soon(watch.next()).await else {
            panic!("a list instead of changes");
        };
        for change in changes.iter() {
            assert_eq!(change.kind, ChangeKind::Lapsed);
            assert!(
                seen.insert(change.instance.reference()),
                "{:?} twice",
                change.instance
            );
        }
    }
}

/// A watch that has told what is there.
async fn watch(registry: &Registry) -> Watch {
    let mut watch = registry.changes().expect("a watch");
    assert!(matches!(soon(watch.next()).await, Some(Event::Reset(_))));
    watch
}

#[tokio::test]
async fn one_call_renews_ten_thousand_instances() {
    let registry = Registry::in_memory(Limits::default()).expect("a registry");
    let address = serve(&registry).await;
    let send = |method: &'static str, path: String, body: String| async move {
        let (status, _, body) = ask(address, method, &path, "", &body).await;
        (
            status,
            serde_json::from_str::<Value>(&body).unwrap_or_default(),
        )
    };
    let ttl = Duration::from_secs(3);
    let (status, opened) = send(
        "POST",
        "/v1/sessions".into(),
        json!({"ttlSeconds": 3}).to_string(),
    )
    .await;
    assert_eq!(status, 201, "{opened}");
    let session = opened["id"].as_str().expect("an id").to_owned();
    let instances: Vec<Value> = (0..10_000)
        .map(|n| {
            json!({"protocol": "bolt", "service": format!("s{}", n % 100), "id": n.to_string(),
                   "address": "10.0.0.1", "port": 12200})
        })
        .collect();
    let body = json!({"instances": instances}).to_string();
    let (status, registered) = send(
        "POST",
        format!("/v1/register?session={session}"),
        body.clone(),
    )
    .await;
    assert_eq!(status, 200, "{registered}");
    assert_eq!(registered["registered"][0]["ttlSeconds"], 3);
    let mut changes = watch(&registry).await;
    // Longer than the session without a renewal.
    let start = Instant::now();
    while start.elapsed() < ttl + Duration::from_secs(1) {
        let (status, _) = send(
            "PUT",
            format!("/v1/sessions/{session}/lease"),
            String::new(),
        )
        .await;
        assert_eq!(status, 204);
        tokio::time::sleep(ttl / 6).await;
    }
    let (_, state) = send("GET", format!("/v1/sessions/{session}"), String::new()).await;
    assert_eq!(state, json!({"ttlSeconds": 3, "instances": 10_000}));
    assert_eq!(registry.snapshot().instances(), 10_000);
    // Nobody renews it any more: all go, once.
    lapsed(&mut changes, 10_000).await;
    assert_eq!(registry.snapshot().instances(), 0);
    let (status, _) = send(
        "PUT",
        format!("/v1/sessions/{session}/lease"),
        String::new(),
    )
    .await;
    assert_eq!(status, 404);
    let (status, _) = send("POST", format!("/v1/register?session={session}"), body).await;
    assert_eq!(status, 404);
}

#[tokio::test]
async fn whoever_closes_a_session_takes_out_what_it_holds() {
    let registry = Registry::in_memory(Limits::default()).expect("a registry");
    let owner = |name: &str| std::sync::Arc::<str>::from(name);
    let id = registry
        .open_session(owner("a"), Duration::from_secs(30))
        .await
        .expect("a session");
    let claim = |name: &str| registry::SessionClaim {
        id,
        owner: owner(name),
    };
    let instance =
        |port| registry::Instance::new(registry::ServiceKey::new("bolt", "s"), "10.0.0.1", port);
    let held = vec![instance(1), instance(2), instance(3)];
    registry
        .register_in(claim("a"), held)
        .await
        .expect("a registration");
    // The last registration says what keeps an instance.
    registry
        .register(vec![instance(3), instance(4)])
        .await
        .expect("a registration");
    for stranger in [
        registry
            .register_in(claim("b"), vec![instance(5)])
            .await
            .map(|_| ()),
        registry.renew_session(claim("b")).await.map(|_| ()),
        registry.close_session(claim("b")).await.map(|_| ()),
    ] {
        assert!(
            matches!(stranger, Err(registry::Error::NotFound(_))),
            "{stranger:?}"
        );
    }
    let closed = registry.close_session(claim("a")).await.expect("an end");
    assert_eq!(closed.result, 2);
    assert_eq!(registry.snapshot().instances(), 2);
    assert!(registry.session(claim("a")).await.is_err());
}

#[tokio::test]
async fn a_stream_is_the_lease_of_a_session() {
    let registry = Registry::in_memory(short_leases()).expect("a registry");
    let api = registry.api(Access::open(), Audit::none());
    let mut client = grpc_of(&api).await;
    let open = |id: &str| pb::SessionRequest {
        id: id.to_owned(),
        ttl_ms: 2000,
        ..pb::SessionRequest::default()
    };
    let (requests, stream) = mpsc::channel(4);
    requests.send(open("")).await.expect("an open stream");
    let answers = client.session(ReceiverStream::new(stream)).await;
    let mut answers = answers.expect("a session").into_inner();
    let opened = soon(answers.message())
        .await
        .expect("an answer")
        .expect("an answer");
    assert_eq!(opened.ttl_ms, 2000);
    let request = pb::RegisterRequest {
        instances: (0..50).map(|n| message("s", &n.to_string())).collect(),
        session: opened.id.clone(),
    };
    client.register(request).await.expect("a registration");
    let mut changes = watch(&registry).await;
    // The stream alone keeps it, longer than its time.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(registry.snapshot().instances(), 50);

    // The client is away for less than that, and goes on with another connection.
    drop((requests, answers, client));
    tokio::time::sleep(Duration::from_millis(500)).await;
    let mut client = grpc_of(&api).await;
    let (requests, stream) = mpsc::channel(4);
    requests
        .send(open(&opened.id))
        .await
        .expect("an open stream");
    let answers = client.session(ReceiverStream::new(stream)).await;
    let mut answers = answers.expect("the session").into_inner();
    let resumed = soon(answers.message())
        .await
        .expect("an answer")
        .expect("an answer");
    assert_eq!((resumed.id, resumed.instances), (opened.id.clone(), 50));
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(registry.snapshot().instances(), 50);

    // It does not come back.
    drop((requests, answers, client));
    lapsed(&mut changes, 50).await;
    let mut client = grpc_of(&api).await;
    let again = client.session(tokio_stream::once(open(&opened.id))).await;
    assert_eq!(again.expect_err("an end").code(), Code::NotFound);
}

#[tokio::test]
async fn a_silent_stream_is_broken_if_heartbeats_were_promised() {
    let registry = Registry::in_memory(short_leases()).expect("a registry");
    let api = registry.api(Access::open(), Audit::none());
    let mut client = grpc_of(&api).await;
    let (requests, stream) = mpsc::channel(4);
    let open = pb::SessionRequest {
        ttl_ms: 100,
        heartbeat_ms: 100,
        ..pb::SessionRequest::default()
    };
    requests.send(open).await.expect("an open stream");
    let answers = client.session(ReceiverStream::new(stream)).await;
    let mut answers = answers.expect("a session").into_inner();
    let session = soon(answers.message())
        .await
        .expect("an answer")
        .expect("an answer")
        .id;
    let request = pb::RegisterRequest {
        instances: vec![message("s", "a")],
        session,
    };
    let mut changes = watch(&registry).await;
    client.register(request).await.expect("a registration");
    assert!(matches!(
        soon(changes.next()).await,
        Some(Event::Changes(_))
    ));
    lapsed(&mut changes, 1).await;
}

#[tokio::test]
async fn pages_hold_once_what_was_there_all_the_time() {
    let registry = Registry::in_memory(Limits::default()).expect("a registry");
    let address = serve(&registry).await;
    let api = registry.api(Access::open(), Audit::none());
    let mut client = grpc_of(&api).await;
    let at = |service: u32, id: u32, zone: &str| {
        let namespace =
            registry::Namespace::new(if service.is_multiple_of(2) { "" } else { "odd" });
        let key = registry::ServiceKey::within(namespace, "bolt", &format!("com.s{service:02}"));
        let mut instance = registry::Instance::new(key, "10.0.0.1", 1);
        instance.id = format!("i{id}").into();
        instance.metadata = [("zone", zone)].into_iter().collect();
        instance
    };
    let all = (0..20).flat_map(|service| (0..5).map(move |id| at(service, id, "east")));
    registry
        .register(all.collect())
        .await
        .expect("a registration");
    registry
        .register(vec![at(0, 9, "west")])
        .await
        .expect("a registration");

    let filters = "namespace=*&servicePattern=com.s*&metadata[zone]=east&healthy=true&origin=osr";
    let (mut by_http, mut after, mut pages) = (Vec::new(), String::new(), 0_u32);
    loop {
        let path = format!("/v1/instances?{filters}&limit=7{after}");
        let (status, _, body) = ask(address, "GET", &path, "", "").await;
        assert_eq!(status, 200, "{body}");
        let page: Value = serde_json::from_str(&body).expect("JSON");
        for instance in page["instances"].as_array().expect("a list") {
            let word = |key: &str| instance[key].as_str().expect("a word").to_owned();
            by_http.push((word("namespace"), word("service"), word("id")));
        }
        // Others come and go meanwhile, before and behind the place.
        pages += 1;
        let gone = at(pages % 20, 100 + pages, "east");
        registry
            .register(vec![gone.clone()])
            .await
            .expect("a registration");
        let Some(next) = page["next"].as_str() else {
            break;
        };
        after = format!("&after={}", next.replace(' ', "%20"));
        registry
            .deregister(vec![gone.reference()])
            .await
            .expect("a removal");
    }
    let unique: BTreeSet<_> = by_http.iter().filter(|(_, _, id)| id.len() == 2).collect();
    assert_eq!(unique.len(), 100);
    assert_eq!(
        by_http.iter().filter(|(_, _, id)| id.len() == 2).count(),
        100
    );

    let mut names = Vec::new();
    let mut request = pb::ListServicesRequest {
        selector: Some(pb::Selector {
            namespace: "odd".to_owned(),
            service_pattern: "com.s1*".to_owned(),
            metadata: [("zone".to_owned(), "east".to_owned())].into(),
            ..pb::Selector::default()
        }),
        page_size: 2,
        ..pb::ListServicesRequest::default()
    };
    loop {
        let page = client
            .list_services(request.clone())
            .await
            .expect("a page")
            .into_inner();
        names.extend(page.services.into_iter().map(|service| service.service));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    assert_eq!(
        names,
        ["com.s11", "com.s13", "com.s15", "com.s17", "com.s19"]
    );
}

#[tokio::test]
async fn what_a_restart_leaves() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("registry.redb");
    let registry = Registry::open(&file, short_leases()).expect("a registry");
    let owner = std::sync::Arc::<str>::from("anonymous");
    let ttl = Duration::from_secs(2);
    let id = registry
        .open_session(owner.clone(), ttl)
        .await
        .expect("a session");
    let claim = registry::SessionClaim {
        id,
        owner: owner.clone(),
    };
    let key = registry::ServiceKey::within(registry::Namespace::new("shop"), "dubbo", "mesh.Echo");
    let instance = registry::Instance::new(key.clone(), "10.0.0.1", 20880);
    let done = registry
        .register_in(claim.clone(), vec![instance.clone()])
        .await
        .expect("a registration");
    let interface = registry::InterfaceKey {
        service: key.clone(),
        version: "1.0".into(),
        group: "".into(),
    };
    let json = br#"{"methods":[{"name":"echo","parameterTypes":["java.lang.String"],"returnType":"java.lang.String"}]}"#;
    let parsed = registry::Interface::parse(interface, json, 1000).expect("a description");
    assert!(registry.put_interface(parsed).await.expect("an answer"));
    let since = Since {
        revision: done.revision,
        store: Some(registry.store().to_string()),
    };
    registry.close().await;

    let registry = Registry::open(&file, short_leases()).expect("a registry");
    // A watch goes on where it was, if nothing happened since; what happened before the start is not remembered.
    let mut resumed = registry
        .watch(registry::Selector::default(), Some(&since))
        .expect("a watch");
    assert!(
        matches!(soon(resumed.next()).await, Some(Event::Changes(missed)) if missed.is_empty())
    );
    let older = Since {
        revision: 0,
        ..since
    };
    let mut older = registry
        .watch(registry::Selector::default(), Some(&older))
        .expect("a watch");
    assert!(matches!(soon(older.next()).await, Some(Event::Reset(all)) if all.instances() == 1));
    // The session is not known, and its instance has a lease of its own.
    assert!(matches!(
        registry.renew_session(claim).await,
        Err(registry::Error::NotFound(_))
    ));
    let id = registry
        .open_session(owner.clone(), ttl)
        .await
        .expect("a session");
    let claim = registry::SessionClaim { id, owner };
    let again = registry
        .register_in(claim.clone(), vec![instance.clone()])
        .await
        .expect("a registration");
    assert_eq!(again.revision, done.revision, "the same again is no change");
    assert_eq!(
        registry.session(claim).await.expect("a session").instances,
        1
    );
    lapsed(&mut resumed, 1).await;

    // The description is there, over both faces, and goes when it is told to.
    let address = serve_api(&registry.api(Access::open(), Audit::none())).await;
    let path = "/v1/namespaces/shop/services/dubbo/mesh.Echo/interface?version=1.0";
    let (status, _, body) = ask(address, "GET", path, "", "").await;
    assert_eq!((status, body.as_bytes()), (200, &json[..]));
    let mut client = grpc_of(&registry.api(Access::open(), Audit::none())).await;
    let request = pb::ListInterfacesRequest {
        selector: Some(pb::Selector {
            namespace: "*".to_owned(),
            ..pb::Selector::default()
        }),
        ..pb::ListInterfacesRequest::default()
    };
    let listed = client
        .list_interfaces(request)
        .await
        .expect("a list")
        .into_inner();
    assert_eq!(listed.interfaces[0].methods, ["echo"]);
    let reference = listed.interfaces[0].interface.clone();
    let gone = pb::DeleteInterfaceRequest {
        interface: reference.clone(),
    };
    client
        .delete_interface(gone.clone())
        .await
        .expect("a removal");
    assert_eq!(
        client
            .delete_interface(gone)
            .await
            .expect_err("nothing")
            .code(),
        Code::NotFound
    );
    let wrong = pb::PutInterfaceRequest {
        interface: reference,
        json: "{\"methods\":[1]}".to_owned(),
    };
    let refused = client.put_interface(wrong).await.expect_err("a refusal");
    assert_eq!(
        (refused.code(), refused.message()),
        (
            Code::InvalidArgument,
            "json.methods[0].name: must be a name"
        )
    );
    assert_eq!(ask(address, "GET", path, "", "").await.0, 404);
}
