//! ZooKeeper with Dubbo 3.

use anyhow::Result;
use testkit::apps::{Framework, Starting, start_consumer, start_provider};
use testkit::mesh::{Kind, Mesh};
use testkit::recipe::Recipe;
use testkit::registries::ZooKeeper;

const SHOP: &str = "mesh.apps.dubbo.DubboShop";
const CALL_PORT: u16 = 20_880;

#[test]
fn dubbo_applications_move_from_zookeeper() -> Result<()> {
    let mut recipe = Recipe::read("registries/zookeeper.md", "Moving to the mesh")?;
    let mesh = recipe.start_mesh()?;
    let folder = mesh.folder().to_owned();
    let mut server = ZooKeeper::start(&folder)?;
    recipe.place("zookeeper.shop.example:2181", server.address())?;
    recipe.place("pilot.shop.example:2181", mesh.address(1, 2181))?;
    // Dubbo takes a name for what it is, and replaces a loopback address.
    let (ip, name) = (mesh.ip(2), mesh.name(2));
    recipe.place("dubbo://10.0.0.2", format!("dubbo://{name}"))?;
    recipe.place("10.0.0.2", ip)?;
    recipe.place("com.foo.OrderService", SHOP)?;

    let old = recipe.setting("dubbo.registry.address")?;
    let stayed = provider(&mesh, "stayed", &old)?;
    let stays = start_consumer(Framework::Dubbo, "stays", &[("registry", &old)], &folder)?;
    let mut stayed = stayed.provider()?;
    recipe.write()?;
    recipe.see()?;

    recipe.write()?;
    let url = recipe.setting(&format!("dubbo.reference.{SHOP}.url"))?;
    let mut sidecar = mesh.sidecar(Kind::Mosn, "sidecar", 2, &[("app", "cart")])?;
    sidecar.wait_listening(CALL_PORT)?;
    let to = url.strip_prefix("dubbo://").unwrap_or(&url);
    let meshed = start_consumer(Framework::Dubbo, "meshed", &[("to", to)], &folder)?;

    let new = recipe.setting("dubbo.registry.address")?;
    let moved = provider(&mesh, "moved", &new)?;
    let moves = start_consumer(Framework::Dubbo, "moves", &[("registry", &new)], &folder)?;
    let mut moved = moved.provider()?;
    let (mut stays, mut meshed, mut moves) =
        (stays.consumer()?, meshed.consumer()?, moves.consumer()?);
    let both = ["moved", "stayed"];
    moves.wait_labels(&both)?;
    meshed.wait_labels(&both)?;
    stays.wait_labels(&["stayed"])?;

    recipe.write()?;
    recipe.see()?;
    stays.wait_labels(&both)?;

    // The registry is away: everybody goes on.
    server.kill()?;
    recipe.see()?;
    meshed.wait_labels(&both)?;
    moves.wait_labels(&both)?;
    server.restart()?;
    stays.wait_labels(&both)?;

    stayed.terminate()?;
    recipe.run()?;
    moves.wait_labels(&["moved"])?;
    meshed.wait_labels(&["moved"])?;
    recipe.end()?;
    moved.terminate()
}

fn provider(mesh: &Mesh, label: &str, registry: &str) -> Result<Starting> {
    let (host, port) = (
        mesh.ip(3).to_string(),
        testkit::net::free_port()?.to_string(),
    );
    let flags = [
        ("host", &*host),
        ("port", &port),
        ("label", label),
        ("registry", registry),
    ];
    start_provider(Framework::Dubbo, label, &flags, mesh.folder())
}
