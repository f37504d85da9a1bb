//! What applications do in one registry is seen by the applications of all others.

use anyhow::Result;

use crate::four;
use crate::side::Kind;
use crate::world::World;

/// The first instance of each registry, and the second.
const FIRST: u16 = 20_001;
const SECOND: u16 = 20_011;

fn each(first: u16) -> impl Iterator<Item = (Kind, u16)> {
    four().iter().copied().zip(first..)
}

#[test]
fn each_registrys_instances_are_seen_in_every_other_and_called_through_two_sidecars() -> Result<()>
{
    let mut world = World::start(four(), "30s")?;
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
    world.list(30, "blue")?;
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

    for kind in four() {
        world.kill_registrant(*kind)?;
    }
    world.converge("killed")?;
    for (kind, port) in each(FIRST) {
        world.side(kind)?.restart_registrant()?;
        world.register(kind, port, 100, "green")?;
    }
    world.converge("registered by others")?;
    world.call_all()
}
