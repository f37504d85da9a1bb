//! Who may ask, and what outlives pilot.

use anyhow::{Context, Result, ensure};
use registry::facades::nacos::{Config, GRPC_OFFSET, serve};
use registry::{Credentials, Hub, HubOptions, Limits, Registry};
use serde_json::json;
use testkit::http::request;
use testkit::net::Loopback;
use tokio::net::TcpListener;

use crate::{Client, Facade, SPRING, orders};

#[tokio::test(flavor = "multi_thread")]
async fn configurations_outlive_a_pilot() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let loopback = Loopback::claim()?;
    let address = loopback.address(1, 8848);
    let ask = |method: &'static str, query: &'static str| async move {
        let path = format!("/nacos/v1/cs/configs?dataId=app.yaml&group=g{query}");
        let answered = move || request(address, method, &path, &[], &[]);
        let answer = tokio::task::spawn_blocking(answered).await??;
        anyhow::Ok((answer.status, answer.text()))
    };
    for life in 0..3 {
        let registry = Registry::open(&folder.path().join("registry"), Limits::default())?;
        let hub = Hub::start(HubOptions {
            registry: Some(registry.clone()),
            ..HubOptions::default()
        });
        let http = TcpListener::bind(address).await?;
        let grpc = TcpListener::bind(loopback.address(1, 8848 + GRPC_OFFSET)).await?;
        let config = Config {
            address,
            credentials: None,
        };
        let serving = tokio::spawn(serve(http, grpc, hub, registry.clone(), config));
        match life {
            0 => assert_eq!(ask("POST", "&content=a%3D1").await?, (200, "true".into())),
            1 => {
                assert_eq!(ask("GET", "").await?, (200, "a=1".into()));
                assert_eq!(ask("DELETE", "").await?, (200, "true".into()));
            }
            _ => assert_eq!(ask("GET", "").await?.0, 404),
        }
        serving.abort();
        // It ends because it is told to.
        let _ = serving.await;
        registry.close().await;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_log_in_nothing_is_told() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let credentials: Credentials =
        serde_json::from_value(json!({"username": "mesh", "password": "s3cret"}))?;
    let loopback = Loopback::claim()?;
    let facade = Facade::start(loopback.address(1, 8848), folder.path(), Some(credentials)).await?;
    facade.registry.register(vec![orders(80)]).await?;
    let server = facade.address;
    let ask = |method: &'static str, path: &'static str| {
        tokio::task::spawn_blocking(move || request(server, method, path, &[], &[]))
    };
    for (method, path, status) in [
        ("GET", "/nacos/v1/ns/instance/list?serviceName=orders", 403),
        (
            "GET",
            "/nacos/v3/client/ns/instance/list?serviceName=orders",
            403,
        ),
        (
            "POST",
            "/nacos/v1/auth/login?username=mesh&password=wrong",
            403,
        ),
        ("GET", "/nacos/v1/ns/operator/metrics", 200),
    ] {
        let answer = ask(method, path).await??;
        assert_eq!(answer.status, status, "{path}: {}", answer.text());
    }
    let answer = ask("POST", "/nacos/v1/auth/login?username=mesh&password=s3cret").await??;
    let token = answer.json()?["accessToken"].as_str().map(str::to_owned);
    let path = format!(
        "/nacos/v1/ns/instance/list?serviceName=orders&accessToken={}",
        token.context("no token")?
    );
    let listed = tokio::task::spawn_blocking(move || request(server, "GET", &path, &[], &[]));
    assert_eq!(listed.await??.json()?["hosts"][0]["port"], 80);

    let folder = folder.path().to_owned();
    let clients = tokio::task::spawn_blocking(move || -> Result<Client> {
        let login = ["--username", "mesh", "--password", "s3cret"];
        let mut known = Client::start("nacos", server, &login, &folder)?;
        let orders = format!("10.9.0.1:80/DEFAULT/1.0{SPRING}");
        known.wait("list orders", &orders)?;
        known.done("register shop 10.0.0.1 80")?;
        let mut stranger = Client::start("nacos3", server, &[], &folder)?;
        stranger.wait("status", "UP")?;
        let refused = stranger.ask("register shop 10.0.0.2 80")?;
        ensure!(refused.contains("authorization failed"), "{refused}");
        Ok(known)
    });
    // What it registered goes with it.
    let _known = clients.await??;
    assert_eq!(facade.instances("http", "shop"), ["10.0.0.1:80/100/true"]);
    Ok(())
}
