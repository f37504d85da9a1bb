//! Registration in batches: a few calls are under way at any time, each on a connection of its own.

use std::ops::Range;
use std::time::Instant;

use anyhow::Context;
use api::mesh::registry::v1::RegisterRequest;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use hdrhistogram::Histogram;
use serde_json::{Value, json};

use crate::{connect, instances};

/// What is registered and how.
pub(crate) struct Plan {
    pub(crate) addr: String,
    pub(crate) services: usize,
    pub(crate) instances: Range<usize>,
    pub(crate) batch: usize,
    pub(crate) calls: usize,
}

/// Registers all, and tells rate and latencies of the calls.
pub(crate) async fn run(plan: &Plan) -> anyhow::Result<Value> {
    let mut clients = Vec::with_capacity(plan.calls);
    for _ in 0..plan.calls {
        clients.push(connect(&plan.addr).await?);
    }
    let starts: Vec<usize> = plan.instances.clone().step_by(plan.batch).collect();
    let begun = Instant::now();
    let calls = starts.into_iter().enumerate().map(|(index, start)| {
        let client = clients.get(index % plan.calls).cloned();
        async move {
            let mut client = client.context("no connection")?;
            let end = (start + plan.batch).min(plan.instances.end);
            let instances = (start..end).map(|n| instances::instance(n, plan.services));
            let request = RegisterRequest {
                instances: instances.collect(),
                ..RegisterRequest::default()
            };
            let sent = Instant::now();
            let answer = client.register(request).await?.into_inner();
            anyhow::ensure!(
                answer.registered.len() == end - start,
                "{} of {} were registered",
                answer.registered.len(),
                end - start
            );
            anyhow::Ok(sent.elapsed())
        }
    });
    let mut latencies = Histogram::<u64>::new(3)?;
    let mut calls = stream::iter(calls).buffer_unordered(plan.calls);
    while let Some(latency) = calls.try_next().await? {
        latencies.record(u64::try_from(latency.as_micros())?)?;
    }
    let seconds = begun.elapsed().as_secs_f64();
    let registered = plan.instances.len();
    Ok(json!({
        "instances": registered,
        "seconds": seconds,
        "rate": registered as f64 / seconds,
        "call_p50_ms": latencies.value_at_quantile(0.5) as f64 / 1000.0,
        "call_p99_ms": latencies.value_at_quantile(0.99) as f64 / 1000.0,
    }))
}
