//! Dubbo applications in the mesh.

use crate::scenario;
use crate::stage::{DUBBO, Stage};

#[test]
fn dubbo_calls_go_through_the_mesh() -> anyhow::Result<()> {
    scenario::run(&mut Stage::start(DUBBO)?)
}
