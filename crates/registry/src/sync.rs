//! Synchronisation: instances are copied from the registry where an application put them to others, by the rules of
//! `RegistrySync` objects. A reconcile loop: whatever happened, each step compares what is with what should be.

mod budget;
mod config;
mod endpoint;
mod index;
mod owned;
mod pattern;
mod record;
mod round;
mod rule;
mod state;
mod status;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::error::OpenError;
use crate::hub::Hub;
use owned::OwnedStore;

pub use config::{
    Direction, HealthPolicy, MatchSpec, MetadataSpec, NamingSpec, RegistrySync, ServicesSpec,
    SourceNames, WeightSpec,
};
pub use owned::{OwnedChange, OwnedCopy};
pub use record::Held;
pub use rule::SyncRule;
pub use state::{Role, Step, SyncState};
pub use status::{CopyName, HeldCopy, RuleStatus, SyncStatus, TargetStatus};

/// Changes of registries are gathered at least this long.
const GATHER: Duration = Duration::from_millis(10);
/// A step takes at most this share of the time: it is followed by so many times its own length without one.
const REST: u32 = 3;
/// Without any news everything is compared after this long, drawn anew each time.
const INTERVAL: Duration = Duration::from_secs(30);
/// Until what could not be kept on disk is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// What synchronisation is started with.
#[derive(Debug)]
pub struct SyncOptions {
    /// File of what the mesh wrote; without it only marks in the registries tell after a restart.
    pub file: Option<PathBuf>,
    /// Whether this hub writes, as it changes.
    pub role: watch::Receiver<Role>,
}

/// A handle on synchronisation, which ends with it.
#[derive(Debug)]
pub struct Sync {
    rules: watch::Sender<Arc<[SyncRule]>>,
    status: watch::Receiver<Arc<SyncStatus>>,
    stop: watch::Sender<bool>,
}

impl Sync {
    /// Starts it on the present runtime. A file that cannot be opened is an error.
    pub fn start(hub: Hub, options: SyncOptions) -> Result<Sync, OpenError> {
        let (store, owned) = match &options.file {
            Some(file) => OwnedStore::open(file)?,
            None => (OwnedStore::memory(), Vec::new()),
        };
        let state = SyncState::new(hub.mesh_id(), owned, Instant::now());
        let (rules, told) = watch::channel(Arc::from([]));
        let (stop, stopped) = watch::channel(false);
        let (status_sender, status) = watch::channel(Arc::new(state.status()));
        let task = Task {
            hub,
            state,
            store: Arc::new(store),
            unsaved: Vec::new(),
            failure: None,
            status: status_sender,
        };
        tokio::spawn(task.run(told, options.role, stopped));
        Ok(Sync {
            rules,
            status,
            stop,
        })
    }

    /// These are the rules from now on.
    pub fn set_rules(&self, rules: Vec<SyncRule>) {
        self.rules.send_if_modified(|known| {
            let is_new = known.as_ref() != rules.as_slice();
            if is_new {
                *known = rules.into();
            }
            is_new
        });
    }

    /// Ends it: nothing is written any more, and nobody listens to the role.
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// How it is doing, as it changes.
    pub fn status(&self) -> watch::Receiver<Arc<SyncStatus>> {
        self.status.clone()
    }
}

struct Task {
    hub: Hub,
    state: SyncState,
    store: Arc<OwnedStore>,
    /// What is owned and not yet on disk.
    unsaved: Vec<OwnedChange>,
    failure: Option<String>,
    status: watch::Sender<Arc<SyncStatus>>,
}

impl Task {
    async fn run(
        mut self,
        mut rules: watch::Receiver<Arc<[SyncRule]>>,
        mut role: watch::Receiver<Role>,
        mut stop: watch::Receiver<bool>,
    ) {
        let mut view = self.hub.view();
        loop {
            let started = Instant::now();
            self.state
                .set_rules(rules.borrow_and_update().clone(), started);
            self.state.set_role(*role.borrow_and_update(), started);
            let seen = view.borrow_and_update().clone();
            let next = self.step(&seen).await;
            let rest = GATHER.max(started.elapsed() * REST);
            tokio::time::sleep(rest).await;
            let interval = INTERVAL.mul_f64(0.75 + fastrand::f64() / 2.0);
            let next = next.unwrap_or(started + interval).min(started + interval);
            tokio::select! {
                changed = view.changed() => if changed.is_err() { return },
                changed = rules.changed() => if changed.is_err() { return },
                Ok(()) = role.changed() => {}
                _ = stop.changed() => return,
                () = tokio::time::sleep_until(next.into()) => {}
            }
        }
    }

    /// Compares once; when to look again at the latest.
    async fn step(&mut self, view: &crate::hub::View) -> Option<Instant> {
        let now = Instant::now();
        let step = self.state.step(view, now);
        for source in &step.rest {
            self.hub.rest(source);
        }
        for source in &step.release {
            self.hub.release(source);
        }
        self.unsaved.extend(step.owned);
        let saved = self.save().await;
        if saved {
            for (source, wanted) in step.wanted {
                self.hub.set_wanted(&source, wanted);
            }
        }
        let mut status = self.state.status();
        status.store_failure = self.failure.clone();
        self.status.send_replace(Arc::new(status));
        if saved { step.next } else { Some(now + RETRY) }
    }

    /// Nothing is written that is not remembered. Whether it is.
    async fn save(&mut self) -> bool {
        if self.unsaved.is_empty() {
            return true;
        }
        let store = self.store.clone();
        let changes = std::mem::take(&mut self.unsaved);
        let written = tokio::task::spawn_blocking(move || {
            let result = store.commit(&changes);
            (changes, result.map_err(|error| error.to_string()))
        });
        let Ok((changes, result)) = written.await else {
            return false;
        };
        match result {
            Ok(()) => {
                self.failure = None;
                true
            }
            Err(error) => {
                if self.failure.as_ref() != Some(&error) {
                    tracing::error!(
                        error,
                        "what is copied cannot be remembered: nothing is written"
                    );
                }
                self.failure = Some(error);
                self.unsaved = changes;
                false
            }
        }
    }
}
