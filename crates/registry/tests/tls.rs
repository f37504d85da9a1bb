//! TLS between the hub and registries: who is trusted, who is refused, and what is said about it.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use registry::tls::{Acceptor, ClientCertificate, Identity, ServerTls};
use registry::{
    Hub, HubOptions, Instance, ORIGIN_MARK, RegistrySource, ServiceKey, SourceSpec, SourceStatus,
    Wanted,
};
use serde_json::{Value, json};
use testkit::certificates::{Authority, Certified};
use testkit::registries::{Etcd, ZooKeeper};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

const LIMIT: Duration = Duration::from_secs(60);

fn hub(mesh: &str) -> Hub {
    Hub::start(HubOptions {
        mesh_id: mesh.to_owned(),
        ..HubOptions::default()
    })
}

fn source(name: &str, registry: &Value) -> Result<SourceSpec> {
    let spec: RegistrySource = serde_json::from_value(registry.clone())?;
    Ok(spec.compile(name)?)
}

fn client(authority: &Authority, certified: Option<&Certified>) -> Value {
    json!({
        "caFile": authority.file(),
        "certFile": certified.map(|c| &c.cert_file),
        "keyFile": certified.map(|c| &c.key_file),
    })
}

async fn wait_status(
    hub: &Hub,
    name: &str,
    is_right: impl Fn(&SourceStatus) -> bool,
) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    loop {
        let status = hub.status().await.context("the hub has ended")?;
        let source = status.sources.into_iter().find(|s| &*s.name == name);
        let source = source.context("no such source")?;
        if is_right(&source) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{source:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn refusal(reason: &'static str) -> impl Fn(&SourceStatus) -> bool {
    move |status| status.reason.as_ref().is_some_and(|r| r.contains(reason))
}

fn wanted() -> Wanted {
    let mut copy = Instance::new(ServiceKey::new("dubbo", "com.foo.Order"), "10.9.0.1", 20880);
    copy.metadata = [(ORIGIN_MARK, "one/nacos")].into_iter().collect();
    Wanted {
        publish: [("one/nacos/copy".into(), Arc::new(copy))].into(),
        ..Wanted::default()
    }
}

/// Against a server that wants clients' certificates: one hub writes what the other reads; who has the wrong authority or
/// no certificate is told so.
async fn check(
    folder: &Path,
    authority: &Authority,
    registry: impl Fn(&Value) -> Value,
) -> Result<()> {
    let stranger = Authority::new(folder, "stranger")?;
    let certified = authority.issue(folder, "hub", &["hub.example"], None)?;
    let foreign = stranger.issue(folder, "foreign", &["hub.example"], None)?;
    let right = registry(&client(authority, Some(&certified)));
    let (one, two) = (hub("one"), hub("two"));
    one.set_sources(vec![source("right", &right)?]);
    one.set_wanted("right", wanted());
    let mut named = client(authority, Some(&certified));
    named["serverName"] = json!("elsewhere.example");
    two.set_sources(vec![
        source("right", &right)?,
        source("wrong", &registry(&client(&stranger, Some(&certified))))?,
        source("named", &registry(&named))?,
        source("nobody", &registry(&client(authority, None)))?,
        source("foreign", &registry(&client(authority, Some(&foreign))))?,
        source("blind", &registry(&json!({
            "insecureSkipVerify": true, "certFile": certified.cert_file, "keyFile": certified.key_file,
        })))?,
        source("missing", &registry(&json!({"caFile": folder.join("none.pem")})))?,
    ]);
    for trusting in ["right", "blind"] {
        wait_status(&two, trusting, |s| s.connected && s.instances == 1).await?;
    }
    wait_status(
        &two,
        "wrong",
        refusal("invalid peer certificate: UnknownIssuer"),
    )
    .await?;
    wait_status(&two, "named", refusal("not valid for name")).await?;
    wait_status(&two, "missing", refusal("caFile")).await?;
    // What a server says of a certificate that it does not take, if anything, is its own matter.
    for refused in ["nobody", "foreign"] {
        wait_status(&two, refused, |s| !s.connected && s.reason.is_some()).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_is_read_and_written_over_tls() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let authority = Authority::new(folder.path(), "authority")?;
    let server = Etcd::start_tls(folder.path(), &authority)?;
    let registry = |tls: &Value| json!({"etcd": {"servers": [server.address()], "tls": tls}});
    check(folder.path(), &authority, registry).await
}

#[tokio::test(flavor = "multi_thread")]
async fn zookeeper_is_read_and_written_at_its_secure_port() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let authority = Authority::new(folder.path(), "authority")?;
    let server = ZooKeeper::start_tls(folder.path(), &authority)?;
    let address = server.secure_address();
    let registry = |tls: &Value| json!({"zookeeper": {"servers": [address], "tls": tls}});
    check(folder.path(), &authority, registry).await
}

/// A Eureka without applications that tells who asks.
async fn eureka(acceptor: Acceptor) -> Result<(String, mpsc::UnboundedReceiver<Option<Identity>>)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("https://localhost:{}/eureka", listener.local_addr()?.port());
    let (asking, asked) = mpsc::unbounded_channel();
    let acceptor = Arc::new(acceptor);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, asking) = (acceptor.clone(), asking.clone());
            tokio::spawn(async move {
                let mut accepted = acceptor.accept(stream).await?;
                asking.send(accepted.peer)?;
                let mut request = [0; 4096];
                while accepted.stream.read(&mut request).await? > 0 {
                    let body = r#"{"applications":{"apps__hashcode":"","application":[]}}"#;
                    let answer = format!(
                        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
                        body.len()
                    );
                    accepted.stream.write_all(answer.as_bytes()).await?;
                    accepted.stream.flush().await?;
                }
                anyhow::Ok(())
            });
        }
    });
    Ok((url, asked))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_knows_its_client_and_takes_new_certificates_while_it_runs() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let authority = Authority::new(folder.path(), "authority")?;
    let server = authority.issue(folder.path(), "server", &["localhost"], None)?;
    let names = ["hub.example", "spiffe://mesh/ns/prod/sa/hub"];
    let certified = authority.issue(folder.path(), "hub", &names, None)?;
    let tls = ServerTls {
        cert_file: server.cert_file.clone(),
        key_file: server.key_file.clone(),
        client_ca_file: Some(authority.file().to_owned()),
        client_certificate: ClientCertificate::Optional,
    };
    tls.validate()?;
    let (url, mut asked) = eureka(Acceptor::new(tls, &[b"http/1.1"])?).await?;
    let registry =
        |tls: &Value| json!({"eureka": {"servers": [url], "pollInterval": "100ms", "tls": tls}});

    let hub = hub("one");
    hub.set_sources(vec![source(
        "a",
        &registry(&client(&authority, Some(&certified))),
    )?]);
    wait_status(&hub, "a", |s| s.synced).await?;
    let peer = asked.recv().await.context("nobody asked")?;
    let name = peer.as_ref().and_then(Identity::name);
    assert_eq!(name, Some("spiffe://mesh/ns/prod/sa/hub"));
    hub.set_sources(vec![source("b", &registry(&client(&authority, None)))?]);
    wait_status(&hub, "b", |s| s.synced).await?;
    assert_eq!(asked.recv().await.context("nobody asked")?, None);

    // The certificate is replaced where it lies: clients that connect from then on see the new one.
    let other = Authority::new(folder.path(), "other")?;
    other.issue(folder.path(), "server", &["localhost"], None)?;
    let deadline = Instant::now() + LIMIT;
    loop {
        hub.set_sources(vec![]);
        hub.set_sources(vec![source("c", &registry(&client(&other, None)))?]);
        wait_status(&hub, "c", |s| s.synced || s.reason.is_some()).await?;
        let status = hub.status().await.context("the hub has ended")?;
        if status.sources.iter().any(|s| s.synced) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{status:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[test]
fn what_is_contradictory_is_refused() -> Result<()> {
    for (registry, field) in [
        (
            json!({"eureka": {"servers": ["http://a/eureka"], "tls": {}}}),
            "servers[0]",
        ),
        (
            json!({"etcd": {"servers": ["a:1"], "tls": {"certFile": "x"}}}),
            "tls.certFile",
        ),
        (
            json!({"consul": {"servers": ["https://a:1"], "tls": {"caFile": "x", "insecureSkipVerify": true}}}),
            "tls.caFile",
        ),
        (
            json!({"zookeeper": {"servers": ["a:1"], "tls": {"serverName": "a b"}}}),
            "tls.serverName",
        ),
    ] {
        let error = source("x", &registry)
            .err()
            .context("accepted")?
            .to_string();
        assert!(error.contains(field), "{error}");
    }
    Ok(())
}
