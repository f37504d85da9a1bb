//! What publishers here say is registered, leased for as long as their connections. The registry is brought to what is
//! wanted at the moment, one step after the other: a publisher that moves to another connection is never taken out by the
//! end of the first.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::Server;
use crate::model::{Instance, InstanceRef};

/// Leases; they are renewed three times as often.
const TTL: Duration = Duration::from_secs(30);
/// How often they are renewed.
const RENEW: Duration = Duration::from_secs(10);
/// Between two attempts to take something out.
const RETRY: Duration = Duration::from_secs(1);
/// Instances of one call.
const BATCH: usize = 1000;

/// Told when the registry has it.
type Waiter = oneshot::Sender<Result<(), String>>;
/// The other end.
pub(super) type Answer = oneshot::Receiver<Result<(), String>>;

struct Wanted {
    /// Who says it, by registId; the last one counts.
    by: Vec<(Arc<str>, Instance)>,
    /// The registry has it.
    registered: bool,
}

/// What is wanted, and what the registry does not know yet.
#[derive(Default)]
pub(super) struct Registrar {
    wanted: HashMap<InstanceRef, Wanted>,
    dirty: HashMap<InstanceRef, Vec<Waiter>>,
}

struct Work {
    register: Vec<(Instance, Vec<Waiter>)>,
    deregister: Vec<InstanceRef>,
}

impl Registrar {
    /// A publisher says these from now on.
    pub(super) fn put(&mut self, regist_id: &Arc<str>, instances: &[Instance]) -> Vec<Answer> {
        let mut answers = Vec::new();
        for instance in instances {
            let reference = instance.reference();
            let wanted = self.wanted.entry(reference.clone()).or_insert(Wanted {
                by: Vec::new(),
                registered: false,
            });
            let same = wanted.by.last().is_some_and(|(_, last)| last == instance);
            wanted.by.retain(|(who, _)| who != regist_id);
            wanted.by.push((regist_id.clone(), instance.clone()));
            if same && wanted.registered {
                continue;
            }
            wanted.registered = false;
            let (waiter, answer) = oneshot::channel();
            self.dirty.entry(reference).or_default().push(waiter);
            answers.push(answer);
        }
        answers
    }

    /// It does no longer.
    pub(super) fn remove(&mut self, regist_id: &str, instances: &[Instance]) {
        for instance in instances {
            let reference = instance.reference();
            let Some(wanted) = self.wanted.get_mut(&reference) else {
                continue;
            };
            let before = wanted.by.last().map(|(_, last)| last.clone());
            wanted.by.retain(|(who, _)| **who != *regist_id);
            let after = wanted.by.last().map(|(_, last)| last);
            if after == before.as_ref() {
                continue;
            }
            if after.is_none() {
                self.wanted.remove(&reference);
            } else {
                wanted.registered = false;
            }
            self.dirty.entry(reference).or_default();
        }
    }

    fn take(&mut self) -> Option<Work> {
        let mut work = Work {
            register: Vec::new(),
            deregister: Vec::new(),
        };
        let some: Vec<InstanceRef> = self.dirty.keys().take(BATCH).cloned().collect();
        for reference in some {
            let waiters = self.dirty.remove(&reference).unwrap_or_default();
            match self.wanted.get(&reference).and_then(|w| w.by.last()) {
                Some((_, instance)) => work.register.push((instance.clone(), waiters)),
                None => work.deregister.push(reference),
            }
        }
        (!work.register.is_empty() || !work.deregister.is_empty()).then_some(work)
    }

    fn registered(&mut self, instance: &Instance) {
        if let Some(wanted) = self.wanted.get_mut(&instance.reference()) {
            wanted.registered = true;
        }
    }

    fn leased(&self) -> Vec<InstanceRef> {
        let held = self.wanted.iter().filter(|(_, wanted)| wanted.registered);
        held.map(|(reference, _)| reference.clone()).collect()
    }

    fn lost(&mut self, references: Vec<InstanceRef>) {
        for reference in references {
            if self.wanted.contains_key(&reference) {
                self.dirty.entry(reference).or_default();
            }
        }
    }
}

/// Brings the registry to what is wanted, for ever.
pub(super) async fn run(server: &Server) {
    let mut renew = tokio::time::interval(RENEW);
    loop {
        tokio::select! {
            () = server.unregistered.notified() => {}
            _ = renew.tick() => renew_leases(server).await,
        }
        loop {
            // The lock is not held while the registry works.
            let work = server.state().registrar.take();
            let Some(work) = work else { break };
            register(server, work.register).await;
            deregister(server, work.deregister).await;
        }
    }
}

async fn register(server: &Server, wanted: Vec<(Instance, Vec<Waiter>)>) {
    if wanted.is_empty() {
        return;
    }
    let limits = server.registry.limits();
    let ttl = TTL.clamp(limits.ttl_min, limits.ttl_max);
    let leased = |instance: &Instance| Instance {
        ttl: Some(ttl),
        ..instance.clone()
    };
    let all = wanted.iter().map(|(instance, _)| leased(instance));
    if server.registry.register(all.collect()).await.is_ok() {
        let mut state = server.state();
        for (instance, waiters) in wanted {
            state.registrar.registered(&instance);
            answer(waiters, &Ok(()));
        }
        return;
    }
    // One that is refused refuses all: it is found.
    for (instance, waiters) in wanted {
        let result = server.registry.register(vec![leased(&instance)]).await;
        let result = result.map(drop).map_err(|error| error.to_string());
        match &result {
            Ok(()) => server.state().registrar.registered(&instance),
            Err(error) => {
                tracing::warn!(service = %instance.service, error, "a publication cannot be registered");
            }
        }
        answer(waiters, &result);
    }
}

fn answer(waiters: Vec<Waiter>, result: &Result<(), String>) {
    for waiter in waiters {
        // One whose client is gone needs no answer.
        let _ = waiter.send(result.clone());
    }
}

async fn deregister(server: &Server, gone: Vec<InstanceRef>) {
    if gone.is_empty() {
        return;
    }
    if let Err(error) = server.registry.deregister(gone).await {
        // Their leases run out, whatever happens.
        tracing::warn!(%error, "publications cannot be deregistered");
        tokio::time::sleep(RETRY).await;
    }
}

async fn renew_leases(server: &Server) {
    let leased = server.state().registrar.leased();
    for batch in leased.chunks(BATCH) {
        match server.registry.renew(batch.to_vec()).await {
            Ok(done) => server.state().registrar.lost(done.result.unknown),
            Err(error) => {
                tracing::warn!(%error, "publications cannot be renewed");
                return;
            }
        }
    }
}
