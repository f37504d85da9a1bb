//! The real Envoy as a sidecar of the same pilot.

use crate::scenario;
use crate::stage::{SPRING, Stage};
use anyhow::{Result, ensure};
use testkit::http;
use testkit::mesh::Kind;

/// Envoy at the consumer and at one provider, mosn at the other.
#[test]
fn envoy_and_mosn_share_a_mesh() -> Result<()> {
    let mut plan = SPRING;
    plan.sidecars = [Kind::Envoy, Kind::Mosn, Kind::Envoy];
    let mut stage = Stage::start(plan)?;
    scenario::cases(&mut stage)?;
    scenario::route_on_method(&mut stage)?;
    scenario::split(&mut stage)?;

    let answer = http::request(stage.entrance(), "GET", "/who", &[("host", plan.host)], &[])?;
    ensure!(answer.status == 200, "{answer:?}");
    ensure!(
        answer.header("server") == Some("envoy"),
        "not Envoy: {answer:?}"
    );
    let nobody = http::request(stage.entrance(), "GET", "/who", &[("host", "nobody")], &[])?;
    ensure!(nobody.status >= 400, "{nobody:?}");
    Ok(())
}
