//! A registry that is saved while it changes, and restored elsewhere.

mod common;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use common::serve;
use registry::{Instance, Limits, Registry, ServiceKey};
use testkit::http;

fn instance(service: usize, number: usize) -> Instance {
    let key = ServiceKey::new("dubbo", &format!("com.foo.S{service}"));
    let mut instance = Instance::new(key, "10.0.0.1", 20880);
    instance.id = format!("i{number}").into();
    instance.group = "blue".into();
    instance.weight = 7;
    instance.metadata = [("zone", "east"), ("methods", "a,b")].into_iter().collect();
    instance.ttl = Some(Duration::from_secs(60));
    instance
}

fn all(registry: &Registry) -> BTreeSet<String> {
    let services = registry.snapshot();
    let instances = services.iter().flat_map(|service| service.instances.iter());
    instances
        .map(|instance| {
            let mut content = (**instance).clone();
            content.revision = 0;
            format!("{content:?}")
        })
        .collect()
}

async fn get(address: SocketAddr) -> Result<Vec<u8>> {
    let answer = tokio::task::spawn_blocking(move || http::get(address, "/v1/snapshot")).await??;
    ensure!(answer.status == 200, "{}", answer.text());
    Ok(answer.body)
}

async fn put(address: SocketAddr, file: Vec<u8>) -> Result<(u16, String)> {
    let put = move || http::request(address, "PUT", "/v1/snapshot", &[], &file);
    let answer = tokio::task::spawn_blocking(put).await??;
    Ok((answer.status, answer.text()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_of_one_moment_and_is_restored_whole() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let registry = Registry::open(&folder.path().join("a.redb"), Limits::default())?;
    let address = serve(&registry).await;
    // Each call puts one instance into each of two services: at any moment both have as many.
    let writer = tokio::spawn({
        let registry = registry.clone();
        async move {
            for number in 0..400 {
                let both = vec![instance(0, number), instance(1, number)];
                registry.register(both).await?;
            }
            Ok::<_, registry::Error>(())
        }
    });
    let mut restored = 0;
    while restored < 3 || !writer.is_finished() {
        let file = get(address).await?;
        let copy = Registry::in_memory(Limits::default())?;
        let (status, text) = put(serve(&copy).await, file).await?;
        ensure!(status == 200, "{text}");
        let services = copy.snapshot();
        let count = |number: usize| {
            let key = ServiceKey::new("dubbo", &format!("com.foo.S{number}"));
            services
                .get(&key)
                .map_or(0, |service| service.instances.len())
        };
        assert_eq!(count(0), count(1));
        restored += 1;
    }
    writer.await??;

    let file = get(address).await?;
    let path = folder.path().join("b.redb");
    let copy = Registry::open(&path, Limits::default())?;
    let copy_address = serve(&copy).await;
    // Nothing of a bad file is believed.
    let (status, text) = put(copy_address, file[..file.len() - 1].to_vec()).await?;
    assert_eq!(status, 400);
    assert!(text.contains("cut off after 800 of 800"), "{text}");
    let mut damaged = file.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    assert_eq!(put(copy_address, damaged).await?.0, 400);
    assert_eq!(copy.snapshot().instances(), 0);

    let (status, text) = put(copy_address, file.clone()).await?;
    assert_eq!(status, 200, "{text}");
    assert_eq!(all(&copy), all(&registry));
    let (status, text) = put(copy_address, file).await?;
    assert_eq!(status, 409, "{text}");
    copy.close().await;
    let copy = Registry::open(&path, Limits::default())?;
    assert_eq!(all(&copy), all(&registry));
    Ok(())
}
