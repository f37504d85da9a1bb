//! etcd with Dubbo 2.7.

use anyhow::Result;
use testkit::recipe::Recipe;
use testkit::registries::Etcd;

use crate::dubbo2;

#[test]
fn dubbo_applications_move_from_etcd() -> Result<()> {
    let mut recipe = Recipe::read("registries/etcd.md", "Moving to the mesh")?;
    let mesh = recipe.start_mesh()?;
    let server = Etcd::start(mesh.folder())?;
    recipe.place("etcd.shop.example:2379", server.address())?;
    dubbo2::move_from(recipe, &mesh)
}
