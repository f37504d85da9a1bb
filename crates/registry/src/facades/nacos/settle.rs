//! Makes the registry hold what clients' entries say. Whoever changed something waits for it; what is waiting is done in one.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use super::Server;
use crate::error::Error;
use crate::model::{Instance, InstanceRef};

/// Changes that may wait.
const WAITING: usize = 16_384;
/// Changes that are done in one.
const GATHER: usize = 1000;

/// A change of what has to be registered.
pub(super) struct Job {
    touched: Vec<InstanceRef>,
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
    pub(super) async fn settle(&self, touched: Vec<InstanceRef>) -> Result<(), String> {
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

/// Does what comes, one batch after the other: the registry ends with what was wanted last.
pub(super) async fn run(server: &Server, mut jobs: mpsc::Receiver<Job>) {
    while let Some(first) = jobs.recv().await {
        let mut batch = vec![first];
        while batch.len() < GATHER
            && let Ok(job) = jobs.try_recv()
        {
            batch.push(job);
        }
        let touched = batch.iter().flat_map(|job| job.touched.iter().cloned());
        let together = make_true(server, touched.collect()).await;
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
            let done = make_true(server, job.touched.into_iter().collect()).await;
            let _ = job.answer.send(done.map_err(|error| error.to_string()));
        }
    }
}

async fn make_true(server: &Server, touched: BTreeSet<InstanceRef>) -> Result<(), Error> {
    let mut register: Vec<Instance> = Vec::new();
    let mut deregister = Vec::new();
    {
        let state = server.state();
        for reference in touched {
            match state.holders.wanted(&reference) {
                Some(instance) => register.push(Arc::unwrap_or_clone(instance.clone())),
                None => deregister.push(reference),
            }
        }
    }
    let most = server.registry.limits().batch.max(1);
    for batch in register.chunks(most) {
        server.registry.register(batch.to_vec()).await?;
    }
    for batch in deregister.chunks(most) {
        server.registry.deregister(batch.to_vec()).await?;
    }
    Ok(())
}
