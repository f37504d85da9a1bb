//! Configuration that is wrong: it is reported, and everything else goes on.

use std::net::SocketAddr;
use std::time::Duration;

use crate::yaml::{self, ServicePort};
use anyhow::{Result, bail, ensure};
use testkit::http::{self, Server};
use testkit::mesh::{Kind, Mesh, Sidecar};
use testkit::wait;

const HOST: &str = "shop.demo.svc.cluster.local";
const PORT: ServicePort = ServicePort {
    number: 10_088,
    name: "http",
    protocol: "HTTP",
};
const APP_PORT: u16 = 8_080;
const CHANGE_LIMIT: Duration = Duration::from_secs(20);

/// A consumer's sidecar, and two versions of a service right behind it.
struct Shop {
    sidecar: Sidecar,
    _servers: [Server; 2],
    entrance: SocketAddr,
    mesh: Mesh,
}

impl Shop {
    fn start(kind: Kind) -> Result<Shop> {
        let mesh = Mesh::start()?;
        let servers = [
            Server::start(mesh.address(3, APP_PORT), "v1")?,
            Server::start(mesh.address(4, APP_PORT), "v2")?,
        ];
        let endpoints = [(mesh.ip(3), APP_PORT, "v1"), (mesh.ip(4), APP_PORT, "v2")];
        mesh.write("sidecars.yaml", &yaml::egress(mesh.ip(2), PORT))?;
        mesh.write("service.yaml", &yaml::service_entry(HOST, PORT, &endpoints))?;
        mesh.write("rule.yaml", &yaml::destination_rule(HOST, ""))?;
        mesh.write("routes.yaml", &to("v1"))?;
        let mut sidecar = mesh.sidecar(kind, "consumer-sidecar", 2, &[("app", "consumer")])?;
        sidecar.wait_listening(PORT.number)?;
        let entrance = mesh.address(2, PORT.number);
        Ok(Shop {
            sidecar,
            _servers: servers,
            entrance,
            mesh,
        })
    }

    fn call(&self, path: &str) -> Result<String> {
        let answer = http::request(self.entrance, "GET", path, &[("host", HOST)], &[])?;
        Ok(format!("{} {}", answer.status, answer.text()))
    }

    fn wait_for(&self, path: &str, expected: &str) -> Result<()> {
        wait::until_ok(
            &format!("{path} to answer {expected:?}"),
            CHANGE_LIMIT,
            || {
                let answer = self.call(path)?;
                if answer != expected {
                    bail!("{answer:?}");
                }
                Ok(())
            },
        )
    }
}

fn to(version: &str) -> String {
    yaml::virtual_service(
        HOST,
        &format!("- route: [{{destination: {{host: {HOST}, subset: {version}}}}}]"),
    )
}

/// Pilot refuses the document, says which field of which file is wrong, and serves on.
#[test]
fn a_wrong_document_is_reported_and_leaves_the_others_in_force() -> Result<()> {
    let shop = Shop::start(Kind::Mosn)?;
    shop.wait_for("/a", "200 v1 GET /a")?;

    let wrong = yaml::virtual_service(HOST, "- route: [{destination: {host: x}, weight: -7}]");
    shop.mesh.write(
        "wrong.yaml",
        &(wrong + &yaml::document("VirtualService", "other", "hosts: [z]\nhttps: []")),
    )?;
    wait::until_ok("pilot to report both documents", CHANGE_LIMIT, || {
        let output = shop.mesh.pilot_output();
        let about = |words: &[&str]| {
            output
                .lines()
                .any(|line| words.iter().all(|word| line.contains(word)))
        };
        ensure!(
            about(&["wrong.yaml", "shop", "http[0].route[0].weight"]),
            "no word on the weight"
        );
        ensure!(
            about(&["wrong.yaml", "other", "https"]),
            "no word on the unknown field"
        );
        Ok(())
    })?;
    shop.wait_for("/b", "200 v1 GET /b")?;

    shop.mesh.write("routes.yaml", &to("v2"))?;
    shop.wait_for("/c", "200 v2 GET /c")?;
    let stats = shop.sidecar.stats()?;
    ensure!(
        stats.get("listener_manager.lds.update_rejected") == Some(&0),
        "{stats:?}"
    );
    Ok(())
}

/// Envoy refuses a route that pilot cannot judge; pilot knows that it did, and Envoy serves on with what it had.
#[test]
fn a_refusal_by_the_proxy_is_seen_in_pilot() -> Result<()> {
    let shop = Shop::start(Kind::Envoy)?;
    shop.wait_for("/a", "200 v1 GET /a")?;

    // Valid for Rust's regular expressions, not for RE2.
    let routes = format!(
        "- match: [{{uri: {{regex: '(?x) /a'}}}}]\n  route: [{{destination: {{host: {HOST}, subset: v2}}}}]"
    );
    shop.mesh
        .write("routes.yaml", &yaml::virtual_service(HOST, &routes))?;
    wait::until_ok("pilot to see the refusal", CHANGE_LIMIT, || {
        let syncz = http::get(shop.mesh.pilot_http(), "/debug/syncz")?.text();
        ensure!(
            syncz.contains("route_error") && syncz.contains("(?x"),
            "{syncz}"
        );
        Ok(())
    })?;
    ensure!(shop.call("/b")? == "200 v1 GET /b");

    shop.mesh.write("routes.yaml", &to("v2"))?;
    shop.wait_for("/c", "200 v2 GET /c")
}
