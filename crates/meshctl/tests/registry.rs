//! The registry of a pilot as its flags make it: who may do what, over which address, what is logged, saved and shared.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use ::http::Request;
use anyhow::{Result, ensure};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use registry::tls::ClientTls;
use serde_json::Value;
use testkit::certificates::{Authority, Certified};
use testkit::http;
use testkit::net::Loopback;
use testkit::process::Process;
use testkit::registries::Etcd;
use testkit::wait;

/// Debug builds on a machine that does other things at the same time.
const PATIENCE: Duration = Duration::from_secs(60);

const RULES: &str = "
tokensFile: tokens
rules:
- {identities: ['token:admin'], namespaces: ['*'], allow: admin}
- {identities: ['token:shop'], namespaces: [shop], allow: write}
- {identities: ['spiffe://mesh/ns/bank/*'], namespaces: [bank], allow: write}
quotas:
- {namespaces: [shop], instances: 2}
";

fn meshctl() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_meshctl"));
    command
        .env_remove("MESHCTL_PILOT")
        .env("MESHCTL_DIR", "/nonexistent/meshctl-test");
    command
}

/// A pilot of its own on three ports of an address.
struct Pilot {
    process: Process,
    http: SocketAddr,
}

impl Pilot {
    fn start(name: &str, at: (&Loopback, u8), flags: &[&str], folder: &Path) -> Result<Pilot> {
        let (loopback, host) = at;
        let address = |port| loopback.address(host, port).to_string();
        let (grpc, http, monitoring) = (address(15010), address(8080), address(15014));
        let mut command = meshctl();
        command
            .args(["pilot", "discovery", "--grpcAddr", &grpc])
            .args(["--httpAddr", &http, "--monitoringAddr", &monitoring])
            .args(flags);
        let mut process = Process::start(name, &mut command, folder)?;
        let http: SocketAddr = http.parse()?;
        wait::until_ok("pilot is ready", PATIENCE, || {
            process.check()?;
            let ready = http::get(http, "/ready")?;
            ensure!(ready.status == 200, "{}", ready.status);
            Ok(())
        })?;
        Ok(Pilot { process, http })
    }

    /// `meshctl registry` of this pilot.
    fn registry(&self, arguments: &[&str], token: Option<&Path>) -> Result<Output> {
        let mut command = meshctl();
        let pilot = self.http.to_string();
        command
            .arg("registry")
            .args(arguments)
            .args(["--pilot", &pilot]);
        if let Some(token) = token {
            command.arg("--token-file").arg(token);
        }
        Ok(command.output()?)
    }

    fn register(&self, port: u16, namespace: &str, token: Option<&Path>) -> Result<Output> {
        let port = port.to_string();
        let arguments = [
            "register",
            "--protocol",
            "http",
            "--service",
            "stock",
            "--address",
            "10.0.0.7",
            "--port",
            &port,
            "--namespace",
            namespace,
        ];
        self.registry(&arguments, token)
    }

    fn list(&self, token: Option<&Path>) -> Result<Vec<String>> {
        let output = self.registry(&["list", "--namespace", "*", "-o", "json"], token)?;
        let listed: Vec<Value> = serde_json::from_str(done(&output)?)?;
        let id = |one: &Value| format!("{}/{}", one["namespace"], one["id"]).replace('"', "");
        let mut ids: Vec<String> = listed.iter().map(id).collect();
        ids.sort();
        Ok(ids)
    }
}

fn done(output: &Output) -> Result<&str> {
    ensure!(output.status.success(), "{}", complaint(output)?);
    Ok(std::str::from_utf8(&output.stdout)?)
}

fn complaint(output: &Output) -> Result<&str> {
    Ok(std::str::from_utf8(&output.stderr)?)
}

fn refused(output: &Output, why: &str) -> Result<()> {
    let complaint = complaint(output)?;
    ensure!(
        !output.status.success() && complaint.contains(why),
        "{complaint}"
    );
    Ok(())
}

/// The status of a registration over TLS.
fn put_over_tls(to: SocketAddr, ca: &Path, shows: Option<&Certified>) -> Result<u16> {
    let tls = ClientTls {
        ca_file: Some(ca.to_owned()),
        cert_file: shows.map(|certified| certified.cert_file.clone()),
        key_file: shows.map(|certified| certified.key_file.clone()),
        ..ClientTls::default()
    };
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(tls.config()?)
        .https_only()
        .enable_http1()
        .build();
    let path = "/v1/namespaces/bank/services/bolt/s/instances/a";
    let request = Request::put(format!("https://{to}{path}"))
        .header("content-type", "application/json")
        .body(r#"{"address":"10.0.0.9","port":1}"#.to_owned())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let client = Client::builder(TokioExecutor::new()).build(connector);
        let answer = client.request(request).await?;
        Ok(answer.status().as_u16())
    })
}

#[test]
fn rules_quotas_certificates_and_the_log_are_those_of_the_flags() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = |name: &str| folder.path().join(name);
    let text = |name: &str| path(name).to_string_lossy().into_owned();
    let loopback = Loopback::claim()?;
    let authority = Authority::new(folder.path(), "ca")?;
    let at = loopback.ip(1).to_string();
    let server = authority.issue(folder.path(), "server", &[&at], None)?;
    let bank = authority.issue(folder.path(), "bank", &["spiffe://mesh/ns/bank/a"], None)?;
    std::fs::write(path("rules.yaml"), RULES)?;
    let mut tokens = String::new();
    for name in ["admin", "shop"] {
        let token = format!("token-of-{name}");
        let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, token.as_bytes());
        let hash: String = hash.as_ref().iter().map(|b| format!("{b:02x}")).collect();
        tokens += &format!("{name} {hash}\n");
        std::fs::write(path(name), token)?;
    }
    std::fs::write(path("tokens"), tokens)?;
    let (admin, shop) = (path("admin"), path("shop"));
    let (tls, nacos, sofa) = (
        loopback.address(1, 15012),
        loopback.address(1, 8848),
        loopback.address(1, 9603),
    );
    let addresses = [tls, nacos, sofa].map(|address| address.to_string());
    let [tls_addr, nacos_addr, sofa_addr] = addresses.each_ref().map(String::as_str);
    let (cert, key) = (
        server.cert_file.to_string_lossy(),
        server.key_file.to_string_lossy(),
    );
    let ca = authority.file().to_string_lossy();
    let (dir, rules, audit) = (text("one"), text("rules.yaml"), text("audit.log"));
    let mut flags = vec!["--registryDir", &dir, "--registryAuth", &rules];
    flags.extend(["--registryAudit", &audit, "--registryTlsAddr", tls_addr]);
    flags.extend(["--registryTlsCert", &cert, "--registryTlsKey", &key]);
    flags.extend(["--registryTlsClientCa", &ca]);
    flags.extend(["--nacosAddr", nacos_addr, "--sofaRegistryAddr", sofa_addr]);
    let one = Pilot::start("one", (&loopback, 1), &flags, folder.path())?;

    refused(
        &one.register(80, "shop", None)?,
        "a token or a client certificate",
    )?;
    done(&one.register(80, "shop", Some(&shop))?)?;
    refused(&one.register(80, "bank", Some(&shop))?, "bank")?;
    done(&one.register(81, "shop", Some(&shop))?)?;
    refused(&one.register(82, "shop", Some(&shop))?, "2 instances")?;
    assert_eq!(put_over_tls(tls, authority.file(), Some(&bank))?, 201);
    assert_eq!(put_over_tls(tls, authority.file(), None)?, 401);
    // What is in the usual namespace is what other registries' clients see.
    done(&one.register(90, "default", Some(&admin))?)?;
    let path_of = "/nacos/v1/ns/instance/list?serviceName=stock";
    let listed = http::get(nacos, path_of)?.json()?;
    assert_eq!(listed["hosts"][0]["port"], 90);
    assert_eq!(listed["hosts"].as_array().map(Vec::len), Some(1));
    let session = http::get(sofa, "/api/servers/query")?.text();
    assert_eq!(session, loopback.address(1, 9604).to_string());

    // Who did what, and no token.
    let log = wait::until("the audit log", PATIENCE, || {
        let log = std::fs::read_to_string(path("audit.log")).ok()?;
        (log.contains("anonymous") && log.contains("spiffe://mesh/ns/bank/a")).then_some(log)
    })?;
    let lines: Vec<Value> = log
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let told = |identity: &str, result: &str| {
        let is_meant = |line: &&Value| line["identity"] == identity && line["result"] == result;
        lines.iter().filter(is_meant).count()
    };
    assert_eq!(told("token:shop", "ok"), 2, "{log}");
    assert_eq!(told("spiffe://mesh/ns/bank/a", "ok"), 1, "{log}");
    ensure!(!log.contains("token-of-"), "{log}");

    // All of it in another pilot.
    let file = text("saved");
    refused(&one.registry(&["snapshot", &file], Some(&shop))?, "may not")?;
    done(&one.registry(&["snapshot", &file], Some(&admin))?)?;
    let dir = text("two");
    let flags = ["--registryDir", &dir, "--registryAuth", &rules];
    let mut two = Pilot::start("two", (&loopback, 2), &flags, folder.path())?;
    let restored = two.registry(&["restore", &file], Some(&admin))?;
    ensure!(
        done(&restored)?.contains("4 instances"),
        "{}",
        done(&restored)?
    );
    let all = one.list(Some(&admin))?;
    assert_eq!(two.list(Some(&admin))?, all);
    refused(
        &two.registry(&["restore", &file], Some(&admin))?,
        "4 instances",
    )?;
    // What was acknowledged is on disk.
    two.process.kill()?;
    let two = Pilot::start("again", (&loopback, 2), &flags, folder.path())?;
    assert_eq!(two.list(Some(&admin))?, all);
    Ok(())
}

#[test]
fn pilots_that_share_a_store_are_one_registry_and_one_of_them_leads() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let etcd = Etcd::start(folder.path())?;
    let loopback = Loopback::claim()?;
    let store = format!("etcd://{}/mesh", etcd.address());
    let nacos = [1, 2].map(|host| loopback.address(host, 8848));
    let addresses = nacos.map(|address| address.to_string());
    let flags = |index: usize| ["--registryStore", &store, "--nacosAddr", &addresses[index]];
    let mut one = Pilot::start("one", (&loopback, 1), &flags(0), folder.path())?;
    let role = |pilot: &Pilot| -> Result<Value> {
        Ok(http::get(pilot.http, "/debug/registries")?.json()?["sync"]["role"].clone())
    };
    let wait_role = |pilot: &Pilot, expected: &str| {
        wait::until_ok("a role", PATIENCE, || {
            let role = role(pilot)?;
            ensure!(role == expected, "{role}, not {expected}");
            Ok(())
        })
    };
    wait_role(&one, "leader")?;
    let two = Pilot::start("two", (&loopback, 2), &flags(1), folder.path())?;
    wait_role(&two, "follower")?;
    done(&one.register(80, "default", None)?)?;
    wait::until_ok("the other sees it", PATIENCE, || {
        let seen = two.list(None)?;
        ensure!(seen.len() == 1, "{seen:?}");
        Ok(())
    })?;
    let config = "/nacos/v1/cs/configs?dataId=d&group=g";
    let published = format!("{config}&content=shared");
    let published = http::request(nacos[0], "POST", &published, &[], &[])?;
    assert_eq!(
        (published.status, published.text()),
        (200, "true".to_owned())
    );
    wait::until_ok("the other has the configuration", PATIENCE, || {
        let seen = http::get(nacos[1], config)?.text();
        ensure!(seen == "shared", "{seen}");
        Ok(())
    })?;
    one.process.kill()?;
    wait_role(&two, "leader")?;
    assert_eq!(two.list(None)?.len(), 1);
    Ok(())
}
