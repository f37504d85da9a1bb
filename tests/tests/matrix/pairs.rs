//! What applications do in one registry is seen by the applications of all others.

use anyhow::Result;

use crate::four;
use crate::steps::FIRST;
use crate::world::World;

#[test]
fn each_registrys_instances_are_seen_in_every_other_and_called_through_two_sidecars() -> Result<()>
{
    let mut world = World::start(four(), "30s")?;
    world.populate()?;
    world.change_all()?;
    world.kill_all()?;
    world.come_back(FIRST)
}
