//! SOFARPC applications in the mesh: unmodified, they find each other by the registry `mesh` in their sidecars.

use std::time::Duration;

use crate::scenario;
use crate::stage::{SOFARPC, Stage};
use anyhow::{Context, Result, ensure};
use testkit::wait;

const NEWS_LIMIT: Duration = Duration::from_secs(10);

#[test]
fn sofarpc_calls_go_through_the_mesh() -> Result<()> {
    let mut stage = Stage::start(SOFARPC)?;
    let instances = stage.registered()?;
    ensure!(instances.len() == 2, "{instances:?}");
    for instance in &instances {
        // Others reach the application through its sidecar.
        ensure!(instance["port"] == SOFARPC.ingress, "{instance}");
    }

    scenario::run(&mut stage)?;

    let mut last = stage.providers.pop().context("no provider is left")?;
    last.terminate()?;
    wait::until_ok(
        "the last provider to be gone from the registry",
        NEWS_LIMIT,
        || {
            let instances = stage.registered()?;
            let v1 = stage.provider_sidecars[0].ip().to_string();
            ensure!(
                instances.iter().all(|instance| instance["address"] != v1),
                "{instances:?}"
            );
            Ok(())
        },
    )
}
