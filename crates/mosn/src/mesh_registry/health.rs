//! Watches whether the application still listens. One that was killed cannot unpublish, and its sidecar would renew its
//! leases for ever.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;

use super::agent::Agent;
use super::stopped;

/// Between two looks.
const INTERVAL: Duration = Duration::from_millis(500);
/// Between two looks once one has failed.
const RETRY: Duration = Duration::from_millis(100);
/// For one connection.
const CONNECT: Duration = Duration::from_secs(1);
/// Failures in a row after which an application is not healthy any more; one may be a full queue.
const FAILURES: u32 = 2;

/// Looks until `stop` becomes true.
pub(super) async fn watch(
    agent: Arc<Agent>,
    protocol: String,
    endpoint: String,
    mut stop: watch::Receiver<bool>,
) {
    let mut failures = 0;
    loop {
        let pause = if failures == 0 { INTERVAL } else { RETRY };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stopped(&mut stop) => return,
        }
        if !agent.publishes(&protocol) {
            failures = 0;
            continue;
        }
        let connected = matches!(
            timeout(CONNECT, TcpStream::connect(&endpoint)).await,
            Ok(Ok(_))
        );
        let before = failures;
        failures = if connected {
            0
        } else {
            (failures + 1).min(FAILURES)
        };
        match (before, failures) {
            (FAILURES, 0) => {
                tracing::info!(protocol, endpoint, "the application is back");
                agent.set_healthy(&protocol, true);
            }
            (before, FAILURES) if before < FAILURES => {
                tracing::warn!(
                    protocol,
                    endpoint,
                    "the application does not listen any more"
                );
                agent.set_healthy(&protocol, false);
            }
            _ => {}
        }
    }
}
