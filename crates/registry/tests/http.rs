//! The HTTP/JSON interface over a socket.

mod common;

use std::time::{Duration, Instant};

use common::{content, registry_and_client, soon};
use registry::client::{Content, Error, Event, EventKind, Filter, Watch};

async fn next(watch: &mut Watch) -> Event {
    soon(watch.next())
        .await
        .expect("an event")
        .expect("a watch that goes on")
}

/// Reads up to the first `synced` and returns the ids that were put.
async fn listed(watch: &mut Watch) -> Vec<String> {
    let mut ids = Vec::new();
    loop {
        let event = next(watch).await;
        match event.kind {
            EventKind::Synced => return ids,
            EventKind::Reset => ids.clear(),
            _ => ids.push(event.instance.expect("an instance").id),
        }
    }
}

#[tokio::test]
async fn registers_lists_renews_and_deregisters() -> Result<(), Error> {
    let (_registry, client) = registry_and_client().await;
    let mut blue = content(1);
    blue.version = "1.0".into();
    blue.metadata.insert("zone".into(), "a".into());
    blue.ttl_seconds = Some(0.0);
    let first = client
        .register("bolt", "com.foo.Bar", Some("one"), &blue)
        .await?;
    assert!(first.created);
    assert_eq!(first.ttl_seconds, 0.0);
    // The same again is a renewal and no change.
    let again = client
        .register("bolt", "com.foo.Bar", Some("one"), &blue)
        .await?;
    assert!(!again.created);
    assert_eq!(again.revision, first.revision);
    let second = client
        .register("bolt", "com.foo.Bar", None, &content(2))
        .await?;
    assert_eq!(second.id, "10.0.0.2:12200");
    client
        .register(
            "dubbo",
            "a/b",
            Some("x/y z".replace(' ', "_").as_str()),
            &content(3),
        )
        .await?;

    let services = client.services(None, None).await?;
    let names: Vec<_> = services
        .iter()
        .map(|s| (s.protocol.as_str(), s.service.as_str(), s.instances))
        .collect();
    assert_eq!(names, [("bolt", "com.foo.Bar", 2), ("dubbo", "a/b", 1)]);
    assert_eq!(services[0].versions.len(), 2);
    let versioned = Filter {
        version: Some("1.0".into()),
        ..Filter::default()
    };
    let found = client.instances("bolt", "com.foo.Bar", &versioned).await?;
    assert_eq!(found.len(), 1);
    assert_eq!(
        (found[0].id.as_str(), found[0].weight, found[0].ttl_seconds),
        ("one", 100, 0.0)
    );
    assert_eq!(found[0].metadata, blue.metadata);

    client.renew("bolt", "com.foo.Bar", "one").await?;
    client.deregister("bolt", "com.foo.Bar", "one").await?;
    for result in [
        client.renew("bolt", "com.foo.Bar", "one").await,
        client.deregister("bolt", "com.foo.Bar", "one").await,
    ] {
        assert!(matches!(result, Err(Error::Refused { status, .. }) if status == 404));
    }
    client.deregister("dubbo", "a/b", "x/y_z").await?;
    assert_eq!(client.services(Some("dubbo"), None).await?.len(), 0);
    Ok(())
}

#[tokio::test]
async fn says_which_field_is_wrong() {
    let (_registry, client) = registry_and_client().await;
    type Edit = fn(&mut Content);
    let cases: [(&str, Edit); 5] = [
        ("port", |c| c.port = 0),
        ("address", |c| c.address = "no address".into()),
        ("weight", |c| c.weight = Some(70_000)),
        ("ttlSeconds", |c| c.ttl_seconds = Some(-1.0)),
        ("ttlSeconds", |c| c.ttl_seconds = Some(1e-42)),
    ];
    for (expected, edit) in cases {
        let mut wrong = content(1);
        edit(&mut wrong);
        let refused = client.register("bolt", "s", Some("i"), &wrong).await;
        assert!(
            matches!(&refused, Err(Error::Refused { field: Some(field), .. }) if field == expected),
            "{expected}: {refused:?}"
        );
    }
    let refused = client.register("Bolt", "s", Some("i"), &content(1)).await;
    assert!(
        matches!(refused, Err(Error::Refused { field: Some(field), .. }) if field == "protocol")
    );
}

#[tokio::test]
async fn a_watch_begins_with_everything_and_tells_every_change_at_once() -> Result<(), Error> {
    let (_registry, client) = registry_and_client().await;
    client.register("bolt", "s", Some("a"), &content(1)).await?;
    client
        .register("bolt", "other", Some("a"), &content(1))
        .await?;
    let filter = Filter {
        protocol: Some("bolt".into()),
        service: Some("s".into()),
        ..Filter::default()
    };
    let mut watch = client.watch(&filter, None).await?;
    assert_eq!(listed(&mut watch).await, ["a"]);
    client
        .register("bolt", "other", Some("b"), &content(2))
        .await?;
    client.register("bolt", "s", Some("b"), &content(2)).await?;
    let put = next(&mut watch).await;
    assert_eq!(
        (put.kind, put.instance.map(|i| i.id)),
        (EventKind::Put, Some("b".into()))
    );
    client.deregister("bolt", "s", "a").await?;
    let gone = next(&mut watch).await;
    assert_eq!(
        (gone.kind, gone.instance.map(|i| i.id)),
        (EventKind::Deregistered, Some("a".into()))
    );
    Ok(())
}

#[tokio::test]
async fn a_filtered_watcher_sees_an_instance_go_that_no_longer_matches() -> Result<(), Error> {
    let (_registry, client) = registry_and_client().await;
    client.register("bolt", "s", Some("a"), &content(1)).await?;
    let filter = Filter {
        healthy: Some(true),
        ..Filter::default()
    };
    let mut watch = client.watch(&filter, None).await?;
    assert_eq!(listed(&mut watch).await, ["a"]);
    let mut ill = content(1);
    ill.healthy = Some(false);
    client.register("bolt", "s", Some("a"), &ill).await?;
    assert_eq!(next(&mut watch).await.kind, EventKind::Deregistered);
    Ok(())
}

#[tokio::test]
async fn a_watch_resumes_where_it_was() -> Result<(), Error> {
    let (registry, client) = registry_and_client().await;
    client.register("bolt", "s", Some("a"), &content(1)).await?;
    let revision = client
        .register("bolt", "s", Some("b"), &content(2))
        .await?
        .revision;
    client.deregister("bolt", "s", "a").await?;
    let mut watch = client
        .watch(&Filter::default(), Some((revision, &registry.store())))
        .await?;
    let missed = next(&mut watch).await;
    assert_eq!(
        (missed.kind, missed.revision),
        (EventKind::Deregistered, revision + 1)
    );
    // Revisions of another store say nothing, and neither do those of the future.
    for (since, store) in [
        (revision, "another"),
        (revision + 100, registry.store().as_str()),
    ] {
        let mut watch = client
            .watch(&Filter::default(), Some((since, store)))
            .await?;
        assert_eq!(next(&mut watch).await.kind, EventKind::Reset);
        assert_eq!(listed(&mut watch).await, ["b"]);
    }
    Ok(())
}

#[tokio::test]
async fn what_is_not_renewed_lapses() -> Result<(), Error> {
    let (_registry, client) = registry_and_client().await;
    let mut brief = content(1);
    brief.ttl_seconds = Some(1.5);
    let mut watch = client.watch(&Filter::default(), None).await?;
    assert!(listed(&mut watch).await.is_empty());
    let start = Instant::now();
    client
        .register("bolt", "s", Some("renewed"), &brief)
        .await?;
    client.register("bolt", "s", Some("left"), &brief).await?;
    let mut lapsed = Vec::new();
    let mut renewals = tokio::time::interval(Duration::from_millis(100));
    while lapsed.is_empty() {
        tokio::select! {
            _ = renewals.tick() => client.renew("bolt", "s", "renewed").await?,
            event = watch.next() => {
                let event = event?.expect("a watch that goes on");
                if event.kind == EventKind::Lapsed {
                    lapsed.push(event.instance.expect("an instance").id);
                }
            }
        }
    }
    assert_eq!(lapsed, ["left"]);
    assert!(
        start.elapsed() >= Duration::from_millis(1500),
        "{:?}",
        start.elapsed()
    );
    // Now the other one is left too.
    let event = next(&mut watch).await;
    assert_eq!(
        (event.kind, event.instance.map(|i| i.id)),
        (EventKind::Lapsed, Some("renewed".into()))
    );
    assert!(client.services(None, None).await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn pages_follow_each_other() -> Result<(), Error> {
    let (registry, client) = registry_and_client().await;
    let instances = (0..2500_u16).map(|n| {
        let service = registry::ServiceKey::new("bolt", if n % 2 == 0 { "even" } else { "odd" });
        let mut instance = registry::Instance::new(service, "10.0.0.1", 12200);
        instance.id = format!("i{n}").into();
        instance
    });
    let done = registry.register(instances.collect()).await;
    assert_eq!(done.map(|done| done.revision).ok(), Some(2500));
    assert_eq!(
        client
            .instances("bolt", "even", &Filter::default())
            .await?
            .len(),
        1250
    );
    let mut watch = client.watch(&Filter::default(), None).await?;
    assert_eq!(listed(&mut watch).await.len(), 2500);
    Ok(())
}

#[tokio::test]
async fn a_name_in_two_namespaces_is_two_services() -> Result<(), Error> {
    let (registry, client) = registry_and_client().await;
    let shop = client.within("shop");
    let bank = client.within("bank");
    client.register("bolt", "s", Some("a"), &content(1)).await?;
    shop.register("bolt", "s", Some("a"), &content(2)).await?;
    shop.register("bolt", "s", Some("b"), &content(3)).await?;
    let addresses = |found: Vec<registry::client::Instance>| -> Vec<String> {
        found.into_iter().map(|i| i.address).collect()
    };
    let all = Filter::default();
    for (client, expected) in [
        (&client, vec!["10.0.0.1"]),
        (&client.within("default"), vec!["10.0.0.1"]),
        (&shop, vec!["10.0.0.2", "10.0.0.3"]),
        (&bank, vec![]),
    ] {
        assert_eq!(
            addresses(client.instances("bolt", "s", &all).await?),
            expected
        );
    }
    // A watch sees its namespace, and `*` all of them.
    let mut of_shop = shop.watch(&all, None).await?;
    let mut of_all = client.within("*").watch(&all, None).await?;
    assert_eq!(listed(&mut of_shop).await, ["a", "b"]);
    assert_eq!(listed(&mut of_all).await.len(), 3);
    client.deregister("bolt", "s", "a").await?;
    shop.deregister("bolt", "s", "b").await?;
    let gone = next(&mut of_shop).await.instance.expect("an instance");
    assert_eq!((gone.namespace.as_str(), gone.id.as_str()), ("shop", "b"));
    for expected in ["default", "shop"] {
        let gone = next(&mut of_all).await.instance.expect("an instance");
        assert_eq!(gone.namespace, expected);
    }
    assert_eq!(registry.snapshot().len(), 1);
    let refused = client.within("no_name").services(None, None).await;
    assert!(
        matches!(&refused, Err(Error::Refused { field: Some(field), .. }) if field == "namespace"),
        "{refused:?}"
    );
    Ok(())
}
