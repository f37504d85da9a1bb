//! SOFARegistry with SOFARPC.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use testkit::apps;
use testkit::mesh::Mesh;
use testkit::process::Process;
use testkit::recipe::Recipe;
use testkit::registries::SofaRegistry;
use testkit::wait;

const LIMIT: Duration = Duration::from_secs(90);
const ADDRESS: &str = "com.alipay.sofa.rpc.registry.address";

#[test]
fn sofarpc_applications_move_from_sofaregistry() -> Result<()> {
    let mut recipe = Recipe::read("registries/sofaregistry.md", "Moving to the mesh")?;
    let mesh = recipe.start_mesh()?;
    let server = SofaRegistry::start(mesh.folder())?;
    recipe.place("sofaregistry.shop.example:9603", server.http())?;
    recipe.place("pilot.shop.example:9603", mesh.address(1, 9603))?;

    let mut stays = start("stays", 3, &recipe.setting(ADDRESS)?, &mesh)?;
    recipe.write()?;
    recipe.see()?;

    let mut moves = start("moves", 4, &recipe.setting(ADDRESS)?, &mesh)?;
    calls(&mut moves, &["moves", "stays"])?;

    recipe.write()?;
    recipe.see()?;
    calls(&mut stays, &["moves", "stays"])?;

    stays.tell("unexport stays", LIMIT)?;
    calls(&mut moves, &["moves"])?;
    recipe.run()?;
    calls(&mut moves, &["moves"])?;
    recipe.end()
}

/// An application that provides and calls one service.
fn start(label: &str, host: u8, registry: &str, mesh: &Mesh) -> Result<Process> {
    let registry: SocketAddr = registry
        .strip_prefix("sofa://")
        .context("not sofa")?
        .parse()?;
    let (ip, port) = (registry.ip().to_string(), registry.port().to_string());
    let flags = ["--host", &ip, "--port", &port].map(str::to_owned);
    let class = "mesh.apps.sofaregistry.Client";
    let mut app = apps::start_client("sofaregistry", class, label, &flags, mesh.folder())?;
    let export = format!("export {} 12200 {label} - 100", mesh.ip(host));
    app.tell(&export, LIMIT)?;
    app.tell("refer -", LIMIT)?;
    Ok(app)
}

/// Calls until these have answered, nobody else, and no call failed.
fn calls(app: &mut Process, expected: &[&str]) -> Result<()> {
    wait::until_ok(&format!("answers of {expected:?}"), LIMIT, || {
        let said = (0..20).map(|_| app.ask("call - you", LIMIT));
        let said = said.collect::<Result<BTreeSet<String>>>()?;
        let expected = expected.iter().map(|who| format!("{who} greets you"));
        ensure!(said.iter().cloned().eq(expected), "{said:?}");
        Ok(())
    })
}
