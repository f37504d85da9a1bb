//! Watches whether the application still listens where its sidecar hands calls to. One that was killed cannot unpublish, and
//! its sidecar would renew its leases for ever.

use std::collections::BTreeMap;
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

/// Where applications listen, by protocol.
pub(super) type Endpoints = BTreeMap<String, String>;

/// Looks after one protocol until `stop` becomes true. Without an endpoint nothing is known, and the application is taken
/// for healthy.
pub(super) async fn watch(
    agent: Arc<Agent>,
    protocol: String,
    endpoints: watch::Receiver<Endpoints>,
    mut stop: watch::Receiver<bool>,
) {
    let mut failures = 0;
    loop {
        let pause = if failures == 0 { INTERVAL } else { RETRY };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stopped(&mut stop) => return,
        }
        let endpoint = endpoints.borrow().get(&protocol).cloned();
        let before = failures;
        failures = match &endpoint {
            Some(endpoint) if agent.publishes(&protocol) && !connects(endpoint).await => {
                (failures + 1).min(FAILURES)
            }
            _ => 0,
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

async fn connects(endpoint: &str) -> bool {
    matches!(
        timeout(CONNECT, TcpStream::connect(endpoint)).await,
        Ok(Ok(_))
    )
}
