//! Makes the registry hold what a facade's clients say, leased for as long as they live. Whoever changed something waits for
//! it; what is waiting is done in one. The registry ends with what was said last: who moves from one connection to another is
//! never taken out by the end of the first.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use crate::error::Error;
use crate::limits::Limits;
use crate::model::{Instance, InstanceRef};
use crate::osr::Registry;

/// Leases; they are renewed three times as often.
const TTL: Duration = Duration::from_secs(30);
/// How often that is.
const RENEW: Duration = Duration::from_secs(10);
/// Instances that are renewed at a time.
const BATCH: usize = 1000;
/// Changes that may wait.
const WAITING: usize = 16_384;
/// Changes that are done in one.
const GATHER: usize = 1000;

/// The lease of what lives by its client.
pub(super) fn ttl(limits: &Limits) -> Duration {
    TTL.clamp(limits.ttl_min, limits.ttl_max)
}

/// A facade, as what its clients say is registered.
pub(super) trait Holder {
    /// Where.
    fn registry(&self) -> &Registry;
    /// What has to be registered of these; `None`: nothing.
    fn wanted(&self, of: &BTreeSet<InstanceRef>) -> Vec<Option<Arc<Instance>>>;
    /// All that has to be registered and has a lease.
    fn leased(&self) -> Vec<InstanceRef>;
}

/// A change of what has to be registered.
pub(super) struct Job {
    touched: BTreeSet<InstanceRef>,
    answer: oneshot::Sender<Result<(), String>>,
}

/// The way to what does them.
pub(super) struct Settle(mpsc::Sender<Job>);

impl Settle {
    pub(super) fn new() -> (Settle, mpsc::Receiver<Job>) {
        let (jobs, received) = mpsc::channel(WAITING);
        (Settle(jobs), received)
    }

    /// Waits until the registry holds what is wanted of these instances.
    pub(super) async fn settle(&self, touched: BTreeSet<InstanceRef>) -> Result<(), String> {
        const ENDING: &str = "the server is ending";
        if touched.is_empty() {
            return Ok(());
        }
        let (answer, answered) = oneshot::channel();
        let job = Job { touched, answer };
        self.0.send(job).await.map_err(|_| ENDING.to_owned())?;
        answered.await.unwrap_or_else(|_| Err(ENDING.to_owned()))
    }
}

/// Does what comes, one batch after the other, and renews what lives.
pub(super) async fn run(holder: &impl Holder, settle: &Settle, jobs: mpsc::Receiver<Job>) {
    tokio::select! {
        () = follow(holder, jobs) => {}
        never = renew(holder, settle) => match never {},
    }
}

async fn follow(holder: &impl Holder, mut jobs: mpsc::Receiver<Job>) {
    while let Some(first) = jobs.recv().await {
        let mut batch = vec![first];
        while batch.len() < GATHER
            && let Ok(job) = jobs.try_recv()
        {
            batch.push(job);
        }
        let touched = batch.iter().flat_map(|job| job.touched.iter().cloned());
        let together = make_true(holder, &touched.collect()).await;
        if batch.len() == 1 || together.is_ok() {
            let answer = together.map_err(|error| error.to_string());
            for job in batch {
                // One who does not wait for the answer any more does not need it.
                let _ = job.answer.send(answer.clone());
            }
            continue;
        }
        // What one did wrong is not the others' fault.
        for job in batch {
            let done = make_true(holder, &job.touched).await;
            let _ = job.answer.send(done.map_err(|error| error.to_string()));
        }
    }
}

async fn make_true(holder: &impl Holder, touched: &BTreeSet<InstanceRef>) -> Result<(), Error> {
    let mut register: Vec<Instance> = Vec::new();
    let mut deregister = Vec::new();
    for (reference, wanted) in touched.iter().zip(holder.wanted(touched)) {
        match wanted {
            Some(instance) => register.push(Arc::unwrap_or_clone(instance)),
            None => deregister.push(reference.clone()),
        }
    }
    let registry = holder.registry();
    let most = registry.limits().batch.max(1);
    for batch in register.chunks(most) {
        registry.register(batch.to_vec()).await?;
    }
    for batch in deregister.chunks(most) {
        registry.deregister(batch.to_vec()).await?;
    }
    Ok(())
}

/// Renews what lives; what the registry lost is registered again.
async fn renew(holder: &impl Holder, settle: &Settle) -> Infallible {
    let mut tick = tokio::time::interval(RENEW);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        for batch in holder.leased().chunks(BATCH) {
            let unknown = match holder.registry().renew(batch.to_vec()).await {
                Ok(done) => done.result.unknown,
                Err(error) => {
                    tracing::warn!(%error, "instances cannot be renewed");
                    break;
                }
            };
            if let Err(error) = settle.settle(unknown.into_iter().collect()).await {
                tracing::warn!(error, "instances cannot be registered again");
            }
        }
    }
}
