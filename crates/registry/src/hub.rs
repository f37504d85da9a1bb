//! One service directory over every registry. Adapters read their registries and report; the hub merges what they say with
//! the embedded registry's instances, and tells whoever watches.

mod saved;
mod source_state;
mod state;
mod status;

use std::collections::{BTreeMap, HashMap};
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::adapters;
use crate::backoff::Backoff;
use crate::error::Error;
use crate::limits::Limits;
use crate::model::Selector;
use crate::osr::Registry;
use crate::services::Services;
use crate::source::{Link, Report, Reported, Trouble, Wanted};
use crate::watch::{Event, Published, Since, Watch};

pub use source_state::{Protection, Settings};
pub use state::{HubState, SourceView, View};
pub use status::{SkippedEntry, SourceStatus, Status};

/// Reports that may wait for the hub.
const REPORTS: usize = 1024;
/// Reports of one commit.
const GATHER: usize = 1024;
/// How often what registries hold is written to the disk.
const SAVE: Duration = Duration::from_secs(5);

/// What a hub is started with.
#[derive(Clone, Default)]
pub struct HubOptions {
    /// Names the mesh in the marks of copies; several hubs of one mesh have the same.
    pub mesh_id: String,
    /// The embedded registry.
    pub registry: Option<Registry>,
    /// What is taken.
    pub limits: Limits,
    /// Folder where the last known instances of each registry are kept; without it a hub that starts while a registry is
    /// away knows nothing of it.
    pub data_dir: Option<PathBuf>,
}

/// A registry that the hub reads and writes.
#[derive(Clone, Debug, PartialEq)]
pub struct SourceSpec {
    /// Its name, unique in the mesh.
    pub name: Arc<str>,
    /// How the hub treats it.
    pub settings: Settings,
    /// Which registry it is.
    pub adapter: adapters::Config,
}

enum Command {
    Sources(Vec<SourceSpec>),
    Wanted(Arc<str>, Wanted),
    Rest(Arc<str>),
    Release(Arc<str>),
    Status(oneshot::Sender<Status>),
}

/// A handle on the hub; clones are the same hub, which ends with the last of them.
#[derive(Clone)]
pub struct Hub {
    commands: mpsc::UnboundedSender<Command>,
    published: Arc<Published>,
    view: watch::Receiver<Arc<View>>,
    mesh: Arc<str>,
}

impl Hub {
    /// Starts a hub on the present runtime.
    pub fn start(options: HubOptions) -> Hub {
        let HubOptions {
            mesh_id,
            registry,
            limits,
            data_dir,
        } = options;
        let mut state = HubState::new(&mesh_id, limits.clone());
        let changes = registry.as_ref().and_then(|r| r.changes().ok());
        if let Some(registry) = &registry {
            state.embedded(registry.snapshot(), None);
            state.commit();
        }
        let published = Arc::new(Published::new(
            state.services().clone(),
            format!("{:016x}", fastrand::u64(1..)),
            limits.watchers,
        ));
        let (view_sender, view) = watch::channel(Arc::new(state.view()));
        let (reports, received) = mpsc::channel(REPORTS);
        let (commands, told) = mpsc::unbounded_channel();
        let task = Task {
            state,
            registry,
            changes,
            reports,
            published: published.clone(),
            view: view_sender,
            adapters: HashMap::new(),
            generation: 0,
            data_dir,
        };
        tokio::spawn(task.run(received, told));
        Hub {
            commands,
            published,
            view,
            mesh: mesh_id.into(),
        }
    }

    /// Names the mesh in the marks of copies.
    pub fn mesh_id(&self) -> &str {
        &self.mesh
    }

    /// These are the registries from now on: what is new is started, what is no longer there is stopped.
    pub fn set_sources(&self, sources: Vec<SourceSpec>) {
        // Without its task the runtime is ending.
        let _ = self.commands.send(Command::Sources(sources));
    }

    /// Says what has to be written to a registry.
    pub fn set_wanted(&self, source: &str, wanted: Wanted) {
        let _ = self.commands.send(Command::Wanted(source.into(), wanted));
    }

    /// Does no more in a registry than to keep what was written to it, until it is said again what has to be there.
    pub fn rest(&self, source: &str) {
        let _ = self.commands.send(Command::Rest(source.into()));
    }

    /// Lets go of what was written to a registry without taking it out: another hub keeps it from now on.
    pub fn release(&self, source: &str) {
        let _ = self.commands.send(Command::Release(source.into()));
    }

    /// All services of all registries as they are now. Costs next to nothing.
    pub fn snapshot(&self) -> Arc<Services> {
        self.published.services.load_full()
    }

    /// Everything, then every change to it.
    pub fn changes(&self) -> Result<Watch, Error> {
        self.watch(Selector::default(), None)
    }

    /// What a selector means, then every change to it.
    pub fn watch(&self, selector: Selector, since: Option<&Since>) -> Result<Watch, Error> {
        self.published.watch(selector, since)
    }

    /// What each registry holds by itself, as it changes.
    pub fn view(&self) -> watch::Receiver<Arc<View>> {
        self.view.clone()
    }

    /// Waits until each of these registries was read once or is known to be out of reach, at most for `limit`.
    pub async fn first_look(&self, sources: &[Arc<str>], limit: Duration) {
        let mut view = self.view.clone();
        let known = view.wait_for(|view| {
            sources.iter().all(|name| {
                let source = view.sources.get(name);
                source.is_some_and(|source| source.synced || source.trouble.is_some())
            })
        });
        // Whoever is slower than that is waited for no longer.
        let _ = tokio::time::timeout(limit, known).await;
    }

    /// How each registry is doing; `None` when the hub has ended.
    pub async fn status(&self) -> Option<Status> {
        let (answer, answered) = oneshot::channel();
        self.commands.send(Command::Status(answer)).ok()?;
        answered.await.ok()
    }
}

/// A running adapter.
struct Adapter {
    spec: SourceSpec,
    generation: u64,
    wanted: watch::Sender<Arc<Wanted>>,
    task: JoinHandle<()>,
}

struct Task {
    state: HubState,
    registry: Option<Registry>,
    changes: Option<Watch>,
    reports: mpsc::Sender<Reported>,
    published: Arc<Published>,
    view: watch::Sender<Arc<View>>,
    adapters: HashMap<Arc<str>, Adapter>,
    generation: u64,
    data_dir: Option<PathBuf>,
}

impl Task {
    async fn run(
        mut self,
        mut reports: mpsc::Receiver<Reported>,
        mut commands: mpsc::UnboundedReceiver<Command>,
    ) {
        let mut save = tokio::time::interval(SAVE);
        save.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let deadline = self.state.next_deadline();
            tokio::select! {
                command = commands.recv() => match command {
                    Some(command) => self.command(command),
                    None => break,
                },
                Some(reported) = reports.recv() => {
                    self.report(reported);
                    for _ in 1..GATHER {
                        match reports.try_recv() {
                            Ok(reported) => self.report(reported),
                            Err(_) => break,
                        }
                    }
                }
                Some(event) = next_event(&mut self.changes) => self.embedded(&event),
                () = until(deadline), if deadline.is_some() => self.state.tick(Instant::now()),
                _ = save.tick() => {
                    self.save().await;
                    continue;
                }
            }
            self.publish();
        }
        self.save().await;
        for adapter in self.adapters.values() {
            adapter.task.abort();
        }
    }

    /// Writes what changed. The hub waits for the disk meanwhile: reports wait in their queue, readers do not.
    async fn save(&mut self) {
        let Some(folder) = self.data_dir.clone() else {
            return;
        };
        let unsaved = self.state.take_unsaved();
        if unsaved.is_empty() {
            return;
        }
        let written = tokio::task::spawn_blocking(move || {
            for (source, lists) in unsaved {
                if let Err(error) = saved::write(&folder, &source, &lists) {
                    tracing::warn!(registry = %source, %error, "last known instances cannot be kept");
                }
            }
        });
        // It can only fail with the runtime.
        let _ = written.await;
    }

    fn publish(&mut self) {
        let changes = self.state.commit();
        if !changes.is_empty() {
            self.published
                .publish(self.state.services().clone(), changes);
        }
        self.view.send_replace(Arc::new(self.state.view()));
    }

    fn report(&mut self, reported: Reported) {
        let Reported {
            source,
            generation,
            report,
        } = reported;
        let Some(adapter) = self.adapters.get(&source) else {
            return;
        };
        if adapter.generation != generation {
            return;
        }
        match &report {
            Report::Connected { server } => {
                tracing::info!(registry = %source, server, "connected to the registry");
            }
            // The first failure is logged; adapters report each, and a registry can be away for days.
            Report::Disconnected { reason, .. } if self.is_news(&source, reason) => {
                tracing::warn!(registry = %source, reason, "the registry cannot be read");
            }
            _ => {}
        }
        self.state.report(&source, report, Instant::now());
    }

    fn is_news(&self, source: &Arc<str>, reason: &str) -> bool {
        let mut sources = self.state.sources();
        let known = sources.find(|known| known.name == *source);
        known.is_some_and(|known| {
            known.connected || known.failure.as_ref().is_none_or(|(_, why)| why != reason)
        })
    }

    fn embedded(&mut self, event: &Event) {
        let Some(registry) = &self.registry else {
            return;
        };
        let changed = match event {
            Event::Reset(_) => None,
            Event::Changes(changes) => Some(
                changes
                    .iter()
                    .map(|change| change.instance.service.clone())
                    .collect(),
            ),
        };
        self.state.embedded(registry.snapshot(), changed);
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Sources(sources) => self.set_sources(sources),
            Command::Wanted(source, wanted) => {
                self.state.wanted(&source, &wanted);
                if let Some(adapter) = self.adapters.get(&source)
                    && **adapter.wanted.borrow() != wanted
                {
                    adapter.wanted.send_replace(Arc::new(wanted));
                }
            }
            Command::Rest(source) => {
                if let Some(adapter) = self.adapters.get(&source) {
                    adapter
                        .wanted
                        .send_modify(|wanted| Arc::make_mut(wanted).rests = true);
                }
            }
            Command::Release(source) => {
                self.state.wanted(&source, &Wanted::default());
                // Leases and sessions end with the adapter; entries that another hub took over are under that one's.
                if let Some(adapter) = self.adapters.remove(&source) {
                    adapter.task.abort();
                    self.start_adapter(adapter.spec);
                }
            }
            Command::Status(answer) => {
                let kinds: BTreeMap<Arc<str>, &'static str> = self
                    .adapters
                    .iter()
                    .map(|(name, adapter)| (name.clone(), adapter.spec.adapter.kind()))
                    .collect();
                // One who does not wait for the answer any more does not need it.
                let _ = answer.send(Status::of(&self.state, &kinds, Instant::now()));
            }
        }
    }

    fn set_sources(&mut self, sources: Vec<SourceSpec>) {
        let now = Instant::now();
        let gone: Vec<Arc<str>> = self
            .adapters
            .keys()
            .filter(|name| !sources.iter().any(|spec| spec.name == **name))
            .cloned()
            .collect();
        for name in gone {
            if let Some(adapter) = self.adapters.remove(&name) {
                adapter.task.abort();
            }
            self.state.remove_source(&name);
            if let Some(folder) = &self.data_dir {
                saved::remove(folder, &name);
            }
        }
        for spec in sources {
            self.state
                .set_source(&spec.name, spec.settings.clone(), now);
            if let Some(folder) = &self.data_dir
                && !self.adapters.contains_key(&spec.name)
            {
                let lists = saved::read(folder, &spec.name);
                self.state.restore(&spec.name, lists, now);
            }
            if let Some(running) = self.adapters.get_mut(&spec.name) {
                if running.spec.adapter == spec.adapter {
                    running.spec = spec;
                    continue;
                }
                running.task.abort();
            }
            self.start_adapter(spec);
        }
    }

    /// Starts an adapter, in the place of one whose configuration changed: what that one read stays until this one has
    /// read it all.
    fn start_adapter(&mut self, spec: SourceSpec) {
        self.generation += 1;
        let generation = self.generation;
        let before = self.adapters.remove(&spec.name);
        let known = before.map_or_else(Arc::default, |a| a.wanted.borrow().clone());
        let (wanted, told) = watch::channel(known);
        let link = Link::new(spec.name.clone(), generation, self.reports.clone(), told);
        let task = tokio::spawn(supervise(spec.adapter.clone(), link));
        let name = spec.name.clone();
        let adapter = Adapter {
            spec,
            generation,
            wanted,
            task,
        };
        self.adapters.insert(name, adapter);
    }
}

/// Keeps an adapter running: one that fails in a way it should not takes nothing else down.
async fn supervise(config: adapters::Config, link: Link) {
    let mut backoff = Backoff::for_registry();
    loop {
        let run = AssertUnwindSafe(adapters::run(config.clone(), link.clone()));
        let reason = match run.catch_unwind().await {
            Ok(()) => "the adapter has ended",
            Err(_) => "the adapter has failed",
        };
        tracing::error!(registry = link.name(), reason);
        link.report(Report::Disconnected {
            trouble: Trouble::Protocol,
            reason: reason.to_owned(),
        })
        .await;
        tokio::time::sleep(backoff.next()).await;
    }
}

async fn until(deadline: Option<Instant>) {
    if let Some(deadline) = deadline {
        tokio::time::sleep_until(deadline.into()).await;
    }
}

async fn next_event(changes: &mut Option<Watch>) -> Option<Event> {
    changes.as_mut()?.next().await
}
