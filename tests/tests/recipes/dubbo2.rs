//! Two Dubbo 2.7 applications that provide and call one service: one stays with the registry, one moves to pilot's ZooKeeper.

use std::time::Duration;

use anyhow::{Result, ensure};
use testkit::apps;
use testkit::mesh::Mesh;
use testkit::process::Process;
use testkit::recipe::Recipe;
use testkit::wait;

const LIMIT: Duration = Duration::from_secs(90);
const ADDRESS: &str = "dubbo.registry.address";

/// Follows a recipe whose registry runs and is in it already.
pub(crate) fn move_from(mut recipe: Recipe, mesh: &Mesh) -> Result<()> {
    recipe.place("pilot.shop.example:2181", mesh.address(1, 2181))?;
    let mut stays = start("stays", &recipe.setting(ADDRESS)?, mesh)?;
    recipe.write()?;
    recipe.see()?;

    let mut moves = start("moves", &recipe.setting(ADDRESS)?, mesh)?;
    calls(&mut moves, &["moves", "stays"])?;

    recipe.write()?;
    recipe.see()?;
    calls(&mut stays, &["moves", "stays"])?;

    stays.terminate(LIMIT)?;
    calls(&mut moves, &["moves"])?;
    recipe.run()?;
    calls(&mut moves, &["moves"])?;
    recipe.end()
}

fn start(label: &str, registry: &str, mesh: &Mesh) -> Result<Process> {
    let (host, port) = (mesh.name(3), testkit::net::free_port()?.to_string());
    let flags = [
        "--registry",
        registry,
        "--label",
        label,
        "--host",
        &host,
        "--port",
        &port,
    ];
    let flags = flags.map(str::to_owned);
    let class = "mesh.apps.dubbo2.Client";
    apps::start_client("dubbo2", class, label, &flags, mesh.folder())
}

/// Calls until these have answered, nobody else, and no call failed.
fn calls(app: &mut Process, expected: &[&str]) -> Result<()> {
    wait::until_ok(&format!("answers of {expected:?}"), LIMIT, || {
        let said = app.ask("call 20", LIMIT)?;
        let counts = said.trim_matches(['{', '}']).split(", ");
        let who = counts.filter_map(|count| count.split('=').next());
        ensure!(who.eq(expected.iter().copied()), "{said}");
        Ok(())
    })
}
