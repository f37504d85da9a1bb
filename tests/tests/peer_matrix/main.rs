//! The matrix with the registries that compile for long.

#[path = "../matrix/clients.rs"]
mod clients;
#[path = "../matrix/consul.rs"]
mod consul;
#[path = "../matrix/disturb.rs"]
mod disturb;
#[path = "../matrix/etcd.rs"]
mod etcd;
#[path = "../matrix/side.rs"]
mod side;
#[path = "../matrix/state.rs"]
mod state;
#[path = "../matrix/world.rs"]
mod world;

use anyhow::Result;

use side::Kind;
use world::World;

/// The first instance of each registry, and another.
const FIRST: u16 = 20_001;
const SECOND: u16 = 20_011;
fn each(first: u16) -> impl Iterator<Item = (Kind, u16)> {
    Kind::ALL.into_iter().zip(first..)
}

#[test]
fn consul_and_nacos_take_part_with_all_others() -> Result<()> {
    let mut world = World::start(&Kind::ALL, "30s")?;
    for (kind, port) in each(FIRST) {
        world.register(kind, port, 100, "red")?;
    }
    world.list(100, "red")?;
    world.converge("registered")?;
    world.call_all()?;
    world.call_from_eureka()?;

    for (kind, port) in each(FIRST) {
        world.register(kind, port, 30, "blue")?;
    }
    world.converge("changed")?;
    for (kind, port) in each(SECOND) {
        world.register(kind, port, 100, "red")?;
    }
    world.converge("registered a second time")?;
    for (kind, port) in each(FIRST) {
        world.deregister(kind, port)?;
    }
    world.converge("deregistered")?;
    world.call_all()?;

    let [consul, nacos, another] = [FIRST + 4, FIRST + 5, FIRST];
    for kind in [Kind::Consul, Kind::Nacos] {
        world.crash_server(kind, Kind::ZooKeeper, another)?;
    }
    world.kill_registrant(Kind::Nacos)?;
    world.converge("Nacos' application is killed")?;
    world.side(Kind::Nacos)?.restart_registrant()?;
    world.register(Kind::Nacos, nacos, 100, "green")?;
    world.converge("registered by another")?;

    // Nacos has what a connection registered for as long as the connection.
    world.crash_pilot(&[Kind::SofaRegistry, Kind::Nacos], |world| {
        world.deregister(Kind::Consul, SECOND + 4)?;
        world.register(Kind::Consul, consul, 100, "green")
    })?;

    world.part(&[Kind::Nacos], &[Kind::Nacos], |world| {
        world.register(Kind::Nacos, nacos, 30, "blue")?;
        world.register(Kind::ZooKeeper, another, 100, "green")?;
        world.wait_seen(Kind::Consul, another)
    })
}
