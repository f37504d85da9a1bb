//! Nacos with Spring Cloud Alibaba.

use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};
use testkit::apps;
use testkit::mesh::Mesh;
use testkit::process::Process;
use testkit::recipe::Recipe;
use testkit::registries::Nacos;
use testkit::wait;

use crate::is_built;

const LIMIT: Duration = Duration::from_secs(90);
const ADDRESS: &str = "spring.cloud.nacos.discovery.server-addr";

#[test]
fn spring_applications_move_from_nacos() -> Result<()> {
    if !is_built("rnacos") {
        return Ok(());
    }
    let mut recipe = Recipe::read("registries/nacos.md", "Moving to the mesh")?;
    let mesh = recipe.start_mesh()?;
    let server = Nacos::start(mesh.folder(), None)?;
    recipe.place("nacos.shop.example:8848", server.address())?;
    recipe.place("pilot.shop.example:8848", mesh.address(1, 8848))?;

    let mut stock = start("stock", 3, &recipe.setting(ADDRESS)?, &mesh)?;
    recipe.write()?;
    recipe.see()?;

    let mut orders = start("orders", 4, &recipe.setting(ADDRESS)?, &mesh)?;
    call(&mut orders, "stock")?;

    recipe.write()?;
    recipe.see()?;
    call(&mut stock, "orders")?;

    stock.tell("quit", LIMIT)?;
    recipe.run()?;
    recipe.see()?;
    call(&mut orders, "orders")?;
    recipe.end()
}

/// An application that answers with its name.
fn start(name: &str, host: u8, server: &str, mesh: &Mesh) -> Result<Process> {
    // Nacos' client keeps lists in its home.
    let home = mesh.folder().join(name);
    fs::create_dir(&home)?;
    let host = mesh.ip(host).to_string();
    let flags = [
        "--nacos", server, "--name", name, "--host", &host, "--port", "8080",
    ];
    let flags = flags.map(str::to_owned);
    let class = "mesh.apps.springcloud.Application";
    apps::start_client("springcloud", class, name, &flags, &home)
}

/// Calls another one by its name until it answers.
fn call(app: &mut Process, name: &str) -> Result<()> {
    wait::until_ok(&format!("an answer of {name}"), LIMIT, || {
        let said = app.ask(&format!("who {name} 3"), LIMIT)?;
        ensure!(said == format!("{{{name}:8080=3}}"), "{said}");
        Ok(())
    })
}
