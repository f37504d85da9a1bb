//! Consul with Dubbo 2.7.

use anyhow::Result;
use testkit::recipe::Recipe;
use testkit::registries::Consul;

use crate::{dubbo2, is_built};

#[test]
fn dubbo_applications_move_from_consul() -> Result<()> {
    if !is_built("consul") {
        return Ok(());
    }
    let mut recipe = Recipe::read("registries/consul.md", "Moving to the mesh")?;
    let mesh = recipe.start_mesh()?;
    let server = Consul::start(mesh.folder(), "{}")?;
    recipe.place("consul.shop.example:8500", server.address())?;
    dubbo2::move_from(recipe, &mesh)
}
