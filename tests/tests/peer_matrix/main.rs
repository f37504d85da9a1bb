//! The matrix with the registries that compile for long: every registry with every other.
//!
//! r-nacos keeps the metadata that an address had first, a copy's mark among them, and takes the weight 100 only from new
//! instances: here no address moves to another registry, and none gets that weight back.

#[path = "../matrix/clients.rs"]
mod clients;
#[path = "../matrix/consul.rs"]
mod consul;
#[path = "../matrix/disturb.rs"]
mod disturb;
mod dubbo;
#[path = "../matrix/etcd.rs"]
mod etcd;
#[path = "../matrix/kubernetes.rs"]
mod kubernetes;
#[path = "../matrix/side.rs"]
mod side;
#[path = "../matrix/state.rs"]
mod state;
#[path = "../matrix/steps.rs"]
mod steps;
#[path = "../matrix/world.rs"]
mod world;

use anyhow::Result;

use side::Kind;
use steps::{FIRST, SECOND};
use testkit::programs::peer;
use world::World;

/// All registries with an instance in each, if `make peers` has built them.
fn populated(lease: &str) -> Result<Option<World>> {
    if ["consul", "rnacos", "kube-apiserver"]
        .iter()
        .any(|name| peer(name).is_none())
    {
        return Ok(None);
    }
    let mut world = World::start(&Kind::ALL, lease)?;
    world.populate()?;
    Ok(Some(world))
}

#[test]
fn every_registrys_instances_are_seen_in_every_other_and_called_through_two_sidecars() -> Result<()>
{
    let Some(mut world) = populated("30s")? else {
        return Ok(());
    };
    world.change_all()?;
    world.kill_all()
}

#[test]
fn applications_that_were_killed_come_back() -> Result<()> {
    let Some(mut world) = populated("30s")? else {
        return Ok(());
    };
    world.kill_all()?;
    // At other addresses: r-nacos may still have the metadata of the former ones.
    world.come_back(SECOND)
}

#[test]
fn a_registry_that_crashes_takes_nothing_of_the_living_with_it() -> Result<()> {
    let Some(mut world) = populated("30s")? else {
        return Ok(());
    };
    let seconds = world.each(SECOND);
    let others = seconds.into_iter().cycle().skip(1);
    for (kind, (other, port)) in Kind::ALL.into_iter().zip(others) {
        world.crash_server(kind, other, port)?;
    }
    world.call_all()
}

#[test]
fn pilot_that_crashes_and_registries_out_of_reach_take_nothing_of_the_living_with_them()
-> Result<()> {
    let Some(mut world) = populated("60s")? else {
        return Ok(());
    };
    let number = |kind: Kind| {
        let mut numbered = (0..).zip(Kind::ALL);
        numbered.find_map(|(number, of)| (of == kind).then_some(number))
    };
    let first = |kind: Kind| FIRST + number(kind).unwrap_or(0);
    let second = |kind: Kind| SECOND + number(kind).unwrap_or(0);
    // They have what a connection registered for as long as the connection.
    world.crash_pilot(&[Kind::SofaRegistry, Kind::Nacos], |world| {
        world.deregister(Kind::Consul, first(Kind::Consul))?;
        world.register(Kind::Nacos, first(Kind::Nacos), 30, "blue")?;
        world.register(Kind::Kubernetes, second(Kind::Kubernetes), 100, "green")
    })?;
    world.deregister(Kind::Kubernetes, second(Kind::Kubernetes))?;
    world.register(Kind::Consul, first(Kind::Consul), 50, "red")?;
    world.converge("changed after pilot came back")?;

    world.part(&[Kind::Consul, Kind::Nacos], &[Kind::Nacos], |world| {
        world.deregister(Kind::Consul, first(Kind::Consul))?;
        world.register(Kind::Consul, second(Kind::Consul), 100, "green")?;
        world.register(Kind::Nacos, first(Kind::Nacos), 50, "red")?;
        // Its copy in r-nacos has gone with the connection, and the first color with it.
        world.register(Kind::Kubernetes, first(Kind::Kubernetes), 30, "red")?;
        world.register(Kind::ZooKeeper, second(Kind::ZooKeeper), 100, "green")?;
        world.wait_seen(Kind::Kubernetes, second(Kind::ZooKeeper))
    })?;
    world.part(&[Kind::Kubernetes], &[], |world| {
        world.deregister(Kind::Kubernetes, first(Kind::Kubernetes))?;
        world.register(Kind::Kubernetes, second(Kind::Kubernetes), 100, "green")?;
        world.deregister(Kind::Consul, second(Kind::Consul))?;
        world.register(Kind::Nacos, second(Kind::Nacos), 100, "green")?;
        world.wait_seen(Kind::Consul, second(Kind::Nacos))
    })
}
