//! Spring Boot applications in the mesh.

use crate::scenario;
use crate::stage::{SPRING, Stage};

#[test]
fn spring_calls_go_through_the_mesh() -> anyhow::Result<()> {
    scenario::run(&mut Stage::start(SPRING)?)
}
