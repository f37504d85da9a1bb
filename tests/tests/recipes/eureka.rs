//! Eureka with Spring Cloud.

use std::time::Duration;

use anyhow::{Result, ensure};
use testkit::apps;
use testkit::http::Server;
use testkit::mesh::Kind;
use testkit::process::Process;
use testkit::recipe::Recipe;
use testkit::registries::Eureka;
use testkit::wait;

const LIMIT: Duration = Duration::from_secs(90);
const ADDRESS: &str = "eureka.client.serviceUrl.defaultZone";

#[test]
fn spring_applications_move_from_eureka() -> Result<()> {
    let mut recipe = Recipe::read("registries/eureka.md", "Moving to the mesh")?;
    let mesh = recipe.start_mesh()?;
    let folder = mesh.folder();
    let server = Eureka::start(folder)?;
    recipe.place("eureka.shop.example:8761", server.address())?;
    recipe.place("pilot.shop.example:8761", mesh.address(1, 8761))?;
    recipe.place("10.0.0.2", mesh.ip(2))?;
    let _stock = Server::start(mesh.address(3, 8080), "stock")?;
    let _orders = Server::start(mesh.address(4, 8080), "orders")?;

    let old = recipe.setting(ADDRESS)?;
    let class = "mesh.apps.eureka.EurekaDirectory";
    let flags = ["--servers".to_owned(), old.clone()];
    let mut apps = apps::start_client("eureka", class, "apps", &flags, folder)?;
    apps.tell(
        &format!("register stock {} 8080 100 red", mesh.ip(3)),
        LIMIT,
    )?;
    recipe.write()?;
    recipe.see()?;

    recipe.write()?;
    let mut sidecar = mesh.sidecar(Kind::Mosn, "sidecar", 2, &[("app", "cart")])?;
    sidecar.wait_listening(8080)?;
    let said = recipe.run()?;
    ensure!(said == "stock GET /who", "{said}");

    apps.tell(&format!("servers {}", recipe.setting(ADDRESS)?), LIMIT)?;
    apps.tell(
        &format!("register orders {} 8080 100 red", mesh.ip(4)),
        LIMIT,
    )?;
    call(&mut apps, "stock")?;

    recipe.write()?;
    recipe.see()?;
    apps.tell(&format!("servers {old}"), LIMIT)?;
    call(&mut apps, "orders")?;

    apps.tell(&format!("deregister stock {} 8080", mesh.ip(3)), LIMIT)?;
    recipe.run()?;
    let said = recipe.run()?;
    ensure!(said == "orders GET /who", "{said}");
    recipe.end()
}

/// Calls by its name whoever it is, until it answers.
fn call(apps: &mut Process, name: &str) -> Result<()> {
    wait::until_ok(&format!("an answer of {name}"), LIMIT, || {
        let said = apps.ask(&format!("call {name}"), LIMIT)?;
        ensure!(said == format!("{name} GET /who"), "{said}");
        Ok(())
    })
}
