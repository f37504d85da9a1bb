//! What crashes comes back, and meanwhile takes nothing with it.

use anyhow::Result;

use crate::four;
use crate::side::Kind;
use crate::steps::{FIRST, SECOND};
use crate::world::World;

#[test]
fn a_registry_that_crashes_takes_nothing_of_the_living_with_it() -> Result<()> {
    let mut world = World::start(four(), "30s")?;
    world.populate()?;
    let others = four().iter().cycle().skip(1);
    for (kind, other) in four().iter().zip(others) {
        world.crash_server(*kind, *other, SECOND)?;
    }
    world.call_all()
}

#[test]
fn pilot_that_crashes_and_registries_out_of_reach_take_nothing_of_the_living_with_them()
-> Result<()> {
    let mut world = World::start(four(), "60s")?;
    world.populate()?;
    let [zk, etcd, eureka, sofa] = [FIRST, FIRST + 1, FIRST + 2, FIRST + 3];

    world.crash_pilot(&[Kind::SofaRegistry], |world| {
        world.register(Kind::ZooKeeper, SECOND, 100, "green")?;
        world.deregister(Kind::Etcd, etcd)?;
        world.register(Kind::Eureka, eureka, 30, "blue")
    })?;
    world.register(Kind::Etcd, etcd, 100, "red")?;
    world.deregister(Kind::ZooKeeper, SECOND)?;
    world.converge("changed after pilot came back")?;

    let others = [SECOND, SECOND + 1, SECOND + 2, SECOND + 3];
    let sofa_alone = [Kind::SofaRegistry];
    world.part(
        &[Kind::ZooKeeper, Kind::SofaRegistry],
        &sofa_alone,
        |world| {
            world.deregister(Kind::ZooKeeper, zk)?;
            world.register(Kind::ZooKeeper, others[0], 100, "green")?;
            world.register(Kind::SofaRegistry, sofa, 30, "blue")?;
            world.deregister(Kind::Etcd, etcd)?;
            world.register(Kind::Etcd, others[1], 100, "green")?;
            world.wait_seen(Kind::Eureka, others[1])
        },
    )?;
    world.part(&[Kind::Etcd, Kind::Eureka], &[], |world| {
        world.deregister(Kind::Etcd, others[1])?;
        world.register(Kind::Etcd, others[2], 100, "green")?;
        world.register(Kind::Eureka, eureka, 100, "red")?;
        world.deregister(Kind::ZooKeeper, others[0])?;
        world.register(Kind::ZooKeeper, others[3], 100, "green")?;
        world.wait_seen(Kind::SofaRegistry, others[3])
    })
}
