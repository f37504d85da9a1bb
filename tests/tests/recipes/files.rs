//! A folder of files, with `curl` as the caller.

use std::fs;

use anyhow::{Result, ensure};
use testkit::http::Server;
use testkit::mesh::Kind;
use testkit::recipe::Recipe;

#[test]
fn a_service_that_is_listed_by_hand_registers_itself_later() -> Result<()> {
    let mut recipe = Recipe::read("registries/files.md", "Moving to the mesh")?;
    let mesh = recipe.start_mesh()?;
    let services = mesh.folder().join("services");
    fs::create_dir(&services)?;
    let _payments = Server::start(mesh.address(3, 8080), "payments")?;
    recipe.place("/srv/mesh/services", services.display())?;
    recipe.place("10.0.0.2", mesh.ip(2))?;
    recipe.place("10.0.0.7", mesh.ip(3))?;

    recipe.write()?;
    recipe.write()?;
    recipe.see()?;
    recipe.write()?;
    let mut sidecar = mesh.sidecar(Kind::Mosn, "sidecar", 2, &[("app", "cart")])?;
    sidecar.wait_listening(8080)?;
    let mut call = recipe.clone();
    ensure!(recipe.run()? == "payments GET /who", "another answer");

    recipe.run()?;
    recipe.see()?;
    recipe.run()?;
    recipe.see()?;
    ensure!(call.run()? == "payments GET /who", "another answer");
    recipe.end()
}
