//! A demo consumer: calls at a steady rate and prints each second, as one line of JSON, what came of it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::time::MissedTickBehavior;

use super::ConsumerOptions;
use super::client::{Call, Client};
use crate::output;

const REPORT_INTERVAL: Duration = Duration::from_secs(1);
/// The first call waits so long at most for a mesh that is still starting; failures until then do not count.
const WARM_UP: Duration = Duration::from_secs(30);

/// What a consumer did in one interval.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Report {
    /// Calls that were answered by a provider.
    pub(crate) ok: u64,
    /// Calls that failed.
    pub(crate) failed: u64,
    /// Latency of each answered call in microseconds.
    pub(crate) latencies_us: Vec<u64>,
    /// How many calls each provider answered.
    pub(crate) providers: BTreeMap<String, u64>,
    /// Why the last of the failed calls failed.
    pub(crate) last_failure: Option<String>,
}

/// Calls until standard output or the process is closed.
pub(super) async fn run(options: &ConsumerOptions) -> anyhow::Result<()> {
    let mut client = Client::new(options.protocol, options.target);
    let call = Call::new("lookup", "a demo call").header("demo-user", "alice");
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / options.rate.max(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);

    let deadline = Instant::now() + WARM_UP;
    while client.call(&call).await.is_err() && Instant::now() < deadline {
        ticks.tick().await;
    }

    let mut report = Report::default();
    let mut due = Instant::now() + REPORT_INTERVAL;
    loop {
        ticks.tick().await;
        let start = Instant::now();
        match client.call(&call).await {
            Ok(reply) => {
                report.ok += 1;
                let micros = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
                report.latencies_us.push(micros);
                *report.providers.entry(reply.provider).or_default() += 1;
            }
            Err(failure) => {
                report.failed += 1;
                report.last_failure = Some(failure.to_string());
            }
        }
        if Instant::now() >= due {
            due = Instant::now() + REPORT_INTERVAL;
            let line = serde_json::to_string(&std::mem::take(&mut report))?;
            output::write(&format!("{line}\n"))?;
        }
    }
}
