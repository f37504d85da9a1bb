//! Many watchers, and changes at a fixed rate: how long from the call that makes a change until a watcher has it.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Context;
use api::mesh::registry::v1::{RegisterRequest, Selector, WatchRequest, WatchResponse};
use hdrhistogram::Histogram;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::LocalSet;
use tonic::Streaming;

use crate::{Client, connect, instances};

/// Metadata key of the time at which a change was due, in microseconds since the start.
const DUE: &str = "due";
/// Calls at a time in which changes are made.
const CALLS: usize = 64;
/// How long stragglers may take in the end.
const LATEST: Duration = Duration::from_secs(5);

/// Who watches, and what changes.
pub(crate) struct Plan {
    pub(crate) addr: String,
    pub(crate) services: usize,
    pub(crate) watchers: usize,
    pub(crate) fan_out: usize,
    pub(crate) connections: usize,
    pub(crate) rate: u32,
    pub(crate) duration: Duration,
}

struct Seen {
    latencies: Histogram<u64>,
    begun: Instant,
    problems: u64,
}

/// Opens the watches, changes instances, and tells the latencies.
pub(crate) async fn run(plan: Plan) -> anyhow::Result<Value> {
    LocalSet::new().run_until(measure(plan)).await
}

async fn measure(plan: Plan) -> anyhow::Result<Value> {
    let begun = Instant::now();
    let seen = Rc::new(RefCell::new(Seen {
        latencies: Histogram::new(3)?,
        begun,
        problems: 0,
    }));
    let watched = plan.watchers.div_ceil(plan.fan_out).min(plan.services);
    let mut clients = Vec::with_capacity(plan.connections);
    for _ in 0..plan.connections {
        clients.push(connect(&plan.addr).await?);
    }
    let mut writer = connect(&plan.addr).await?;
    // One instance of each watched service that changes all the time.
    for start in (0..watched).step_by(1000) {
        let numbers = start..(start + 1000).min(watched);
        let changed = numbers.map(|number| changed(number, &plan, None));
        register(&mut writer, changed.collect()).await?;
    }
    let (synced, mut are_synced) = mpsc::unbounded_channel();
    let opening = Instant::now();
    for number in 0..plan.watchers {
        let mut client = clients
            .get(number % plan.connections)
            .cloned()
            .context("no connection")?;
        let request = WatchRequest {
            selector: Some(Selector {
                protocol: "dubbo".to_owned(),
                service: instances::service(number % watched),
                ..Selector::default()
            }),
            ..WatchRequest::default()
        };
        let (seen, synced) = (seen.clone(), synced.clone());
        tokio::task::spawn_local(async move {
            let watch = async {
                let stream = client.watch(request).await?.into_inner();
                follow(stream, &seen, &synced).await
            };
            if watch.await.is_err() {
                seen.borrow_mut().problems += 1;
                // The one who counts has gone: nothing is measured any more.
                let _ = synced.send(());
            }
        });
        // Openings under way are bounded by the connections' own limits on streams.
        if number % 64 == 63 {
            tokio::task::yield_now().await;
        }
    }
    for _ in 0..plan.watchers {
        are_synced.recv().await.context("no watcher is left")?;
    }
    let opened = opening.elapsed();
    anyhow::ensure!(
        seen.borrow().problems == 0,
        "{} watches were refused",
        seen.borrow().problems
    );

    seen.borrow_mut().latencies.reset();
    let changes = change(&plan, &writer, watched, begun).await?;
    let expected = changes * (plan.watchers / watched) as u64;
    let deadline = Instant::now() + LATEST;
    while seen.borrow().latencies.len() < expected && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let seen = seen.borrow();
    let ms = |quantile: f64| seen.latencies.value_at_quantile(quantile) as f64 / 1000.0;
    Ok(json!({
        "watchers": plan.watchers,
        "connections": plan.connections,
        "open_seconds": opened.as_secs_f64(),
        "changes": changes,
        "rate": plan.rate,
        "expected": expected,
        "delivered": seen.latencies.len(),
        "problems": seen.problems,
        "p50_ms": ms(0.5),
        "p99_ms": ms(0.99),
        "max_ms": seen.latencies.max() as f64 / 1000.0,
    }))
}

/// The instance of a watched service that changes; it is none of those that `fill` makes.
fn changed(number: usize, plan: &Plan, due: Option<u64>) -> api::mesh::registry::v1::Instance {
    let mut instance = instances::instance(number, plan.services);
    instance.id = "changing".to_owned();
    instance.port = 20881;
    if let Some(due) = due {
        instance.metadata.insert(DUE.to_owned(), due.to_string());
    }
    instance
}

async fn register(
    client: &mut Client,
    instances: Vec<api::mesh::registry::v1::Instance>,
) -> anyhow::Result<()> {
    let request = RegisterRequest {
        instances,
        ..RegisterRequest::default()
    };
    client.register(request).await?;
    Ok(())
}

/// Makes changes at their times, whether or not those before are answered.
async fn change(
    plan: &Plan,
    writer: &Client,
    watched: usize,
    begun: Instant,
) -> anyhow::Result<u64> {
    let slots = std::sync::Arc::new(tokio::sync::Semaphore::new(CALLS));
    let first = Instant::now() + Duration::from_millis(10);
    let changes = u64::from(plan.rate) * plan.duration.as_millis() as u64 / 1000;
    let mut calls = tokio::task::JoinSet::new();
    for number in 0..changes {
        let at = first + Duration::from_micros(number * 1_000_000 / u64::from(plan.rate));
        tokio::time::sleep_until(at.into()).await;
        let slot = slots.clone().acquire_owned().await?;
        let due = u64::try_from((at - begun).as_micros())?;
        let instance = changed(fastrand::usize(..watched), plan, Some(due));
        let mut writer = writer.clone();
        calls.spawn_local(async move {
            let done = register(&mut writer, vec![instance]).await;
            drop(slot);
            done
        });
        while let Some(done) = calls.try_join_next() {
            done??;
        }
    }
    while let Some(done) = calls.join_next().await {
        done??;
    }
    Ok(changes)
}

async fn follow(
    mut stream: Streaming<WatchResponse>,
    seen: &RefCell<Seen>,
    synced: &mpsc::UnboundedSender<()>,
) -> anyhow::Result<()> {
    let mut is_synced = false;
    while let Some(response) = stream.message().await? {
        if is_synced {
            let mut seen = seen.borrow_mut();
            let now = u64::try_from(seen.begun.elapsed().as_micros())?;
            for change in &response.changes {
                let instance = change.instance.as_ref().context("no instance")?;
                let due: u64 = instance.metadata.get(DUE).context("no time")?.parse()?;
                seen.latencies.record(now.saturating_sub(due).max(1))?;
            }
        } else if response.synced {
            is_synced = true;
            synced.send(())?;
        }
    }
    anyhow::bail!("the watch has ended")
}
