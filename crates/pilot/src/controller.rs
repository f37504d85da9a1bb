//! Turns changes of the sources into snapshots.
//!
//! Configuration is gathered as istiod does it: until nothing came for 100 ms, at most 10 s. What happens in the registry
//! goes out within milliseconds: it is gathered only as long as making the last snapshot took.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use registry::kubernetes::Cluster;
use registry::{Event, RegistrySource, RegistrySync, SourceSpec, SyncRule};
use tokio::sync::{mpsc, watch};

use crate::istio::mesh_config::MeshConfig;
use crate::istio::{Labels, Spec};
use crate::metrics::Metrics;
use crate::snapshot::Snapshot;
use crate::source::{self, ClusterStore, FileStore, News, Problem};
use crate::world::{Config, Registered, World, build};

/// Configuration is pushed after this long without another change.
const QUIET: Duration = Duration::from_millis(100);
/// And at the latest after this long.
const QUIET_MAX: Duration = Duration::from_secs(10);
/// Registrations are gathered at least this long.
const BATCH: Duration = Duration::from_millis(3);
/// And at most this long, however long snapshots take.
const BATCH_MAX: Duration = Duration::from_secs(1);
/// A whole generation is followed by so many times its own length without one.
const REST: u32 = 4;
/// The same after endpoints.
const REST_ENDPOINTS: u32 = 2;
/// Registries that neither answer nor refuse are waited for this long before the first snapshot.
const FIRST_LOOK: Duration = Duration::from_secs(3);
/// How often services that have long been empty are looked for.
const SWEEP: Duration = Duration::from_secs(60);

/// A proxy's labels, told when it connects.
pub type Workload = (String, Labels);

/// What the controller is started with.
pub struct Sources {
    /// Mesh-wide settings.
    pub mesh: Arc<MeshConfig>,
    /// The folder of configuration files.
    pub config_dir: Option<PathBuf>,
    /// The cluster whose objects are configuration too.
    pub cluster: Option<Cluster>,
    /// All registries as one directory.
    pub registries: registry::Hub,
    /// What is copied between them.
    pub sync: Arc<registry::Sync>,
    /// Labels of proxies as they connect.
    pub workloads: mpsc::Receiver<Workload>,
}

/// State of the controller's task.
pub(crate) struct Controller {
    mesh: Arc<MeshConfig>,
    files: Option<FileStore>,
    cluster: Option<ClusterStore>,
    registries: registry::Hub,
    sync: Arc<registry::Sync>,
    registered: Registered,
    workloads: Arc<HashMap<String, Labels>>,
    config: Arc<Config>,
    problems: Arc<[Problem]>,
    snapshots: watch::Sender<Option<Arc<Snapshot>>>,
    metrics: Arc<Metrics>,
    changed: Changed,
    revision: u64,
    /// Until when no whole generation is begun, so that they take a part of the time only.
    rest: Instant,
    /// The same for endpoints: those of a thousand hosts at a time cost something, too.
    rest_endpoints: Instant,
}

/// Changes that wait to become a snapshot.
#[derive(Default)]
struct Waiting {
    /// When the first of them came.
    since: Option<Instant>,
    /// When they become a snapshot.
    due: Option<Instant>,
}

impl Waiting {
    /// Something came at `now`: wait until it is quiet.
    fn for_quiet(&mut self, now: Instant) {
        let since = *self.since.get_or_insert(now);
        self.due = Some((now + QUIET).min(since + QUIET_MAX));
    }

    /// Something came at `now`: go on at the latest after `window`.
    fn within(&mut self, now: Instant, window: Duration) {
        let due = *self.since.get_or_insert(now) + window.min(BATCH_MAX);
        self.due = Some(self.due.map_or(due, |known| known.max(due)));
    }
}

/// What the registry changed since the last snapshot.
#[derive(Default)]
struct Changed {
    services: bool,
    hosts: Vec<Arc<str>>,
}

impl Controller {
    /// Runs until nobody listens any longer. The first snapshot comes when all sources have been read.
    pub(crate) async fn run(
        sources: Sources,
        snapshots: watch::Sender<Option<Arc<Snapshot>>>,
        metrics: Arc<Metrics>,
    ) {
        let mut events = match &sources.config_dir {
            Some(folder) => source::watch(folder),
            None => mpsc::channel(1).1,
        };
        let (cluster, mut news) = match sources.cluster {
            Some(cluster) => {
                let (store, news) = ClusterStore::start(cluster);
                (Some(store), news)
            }
            None => (None, mpsc::channel(1).1),
        };
        let mut workloads = sources.workloads;
        let mut controller = Controller {
            mesh: sources.mesh,
            files: sources.config_dir.as_deref().map(FileStore::new),
            cluster,
            registries: sources.registries,
            sync: sources.sync,
            registered: Registered::default(),
            workloads: Arc::default(),
            config: Arc::default(),
            problems: Arc::new([]),
            snapshots,
            metrics,
            changed: Changed::default(),
            revision: 0,
            rest: Instant::now(),
            rest_endpoints: Instant::now(),
        };
        let listeners = controller.snapshots.clone();
        tokio::select! {
            () = controller.read_cluster(&mut news) => {}
            () = listeners.closed() => return,
        }
        drop(listeners);
        let names = controller.read_config();
        // Proxies of a pilot that restarts must not hear of an empty mesh first.
        controller.registries.first_look(&names, FIRST_LOOK).await;
        let mut changes = controller.registries.changes().ok();
        if let Some(event) = next_event(&mut changes).await {
            controller.take_event(&event);
        }
        controller.changed = Changed::default();
        controller.publish_all("config", Instant::now());

        let (mut for_config, mut for_registry) = (Waiting::default(), Waiting::default());

        let mut sweep = tokio::time::interval(SWEEP);
        loop {
            let (config_due, registry_due) = (for_config.due, for_registry.due);
            tokio::select! {
                () = controller.snapshots.closed() => return,
                Some(()) = events.recv() => {
                    // Reading stamps is cheap; only a real change starts the wait.
                    if controller.files.as_mut().is_some_and(FileStore::rescan) {
                        controller.metrics.inbound("config");
                        for_config.for_quiet(Instant::now());
                    }
                }
                Some(told) = news.recv() => {
                    if controller.cluster.as_mut().is_some_and(|cluster| cluster.take(told)) {
                        controller.metrics.inbound("config");
                        for_config.for_quiet(Instant::now());
                    }
                }
                Some(event) = next_event(&mut changes) => {
                    controller.metrics.inbound("eds");
                    if let Some(window) = controller.take_event(&event) {
                        for_registry.within(Instant::now(), window);
                    }
                }
                Some((address, labels)) = workloads.recv() => {
                    if controller.workloads.get(&address) != Some(&labels) {
                        Arc::make_mut(&mut controller.workloads).insert(address, labels);
                        for_registry.within(Instant::now(), BATCH);
                    }
                }
                () = until(config_due), if config_due.is_some() => {
                    controller.publish_config(&std::mem::take(&mut for_config));
                }
                () = until(registry_due), if registry_due.is_some() => {
                    controller.publish_registry(&std::mem::take(&mut for_registry));
                }
                _ = sweep.tick() => {
                    if controller.registered.sweep(Instant::now()) {
                        controller.changed.services = true;
                        for_registry.within(Instant::now(), BATCH_MAX);
                    }
                }
            }
        }
    }

    /// Takes what the registry says. Returns how long to gather more of it, if it changes anything for proxies.
    fn take_event(&mut self, event: &Event) -> Option<Duration> {
        let services = self.registries.snapshot();
        let change = self.registered.apply(event, &services, Instant::now());
        if !change.services && change.hosts.is_empty() {
            return None;
        }
        self.changed.services |= change.services;
        self.changed.hosts.extend(change.hosts);
        let rest = match change.services {
            true => self.rest,
            false => self.rest_endpoints,
        };
        Some(BATCH.max(rest.saturating_duration_since(Instant::now())))
    }

    /// Waits until the whole cluster was read: proxies must not hear of a mesh without its rules. Until then pilot is not
    /// ready.
    async fn read_cluster(&mut self, news: &mut mpsc::Receiver<News>) {
        let Some(cluster) = &mut self.cluster else {
            return;
        };
        let mut said = None;
        while !cluster.is_read() {
            let Some(told) = news.recv().await else {
                return;
            };
            cluster.take(told);
            let failure = cluster.failure().map(str::to_owned);
            if let Some(reason) = failure.as_ref().filter(|_| failure != said) {
                tracing::error!(reason, "waits for the configuration in Kubernetes");
            }
            said = failure.or(said);
        }
    }

    /// Reads the configuration; the names of the registries in it.
    fn read_config(&mut self) -> Vec<Arc<str>> {
        if let Some(files) = &mut self.files {
            files.rescan();
        }
        self.load_config();
        self.registry_sources()
            .iter()
            .map(|spec| spec.name.clone())
            .collect()
    }

    /// The registries of the mesh configuration and of objects.
    fn registry_sources(&self) -> Vec<SourceSpec> {
        let objects = self
            .config
            .iter()
            .filter_map(|(id, object)| match &object.spec {
                Spec::RegistrySource(spec) => Some((id.mesh_wide_name(), spec.as_ref())),
                _ => None,
            });
        let named = self.mesh.registry_sources.iter();
        let named = named.map(|(name, spec)| (name.clone(), spec));
        // An object replaces what the mesh configuration says under its name.
        let all: BTreeMap<String, &RegistrySource> = named.chain(objects).collect();
        all.into_iter()
            .filter_map(|(name, spec)| spec.compile(&name).ok())
            .collect()
    }

    /// The synchronisations of the mesh configuration and of objects.
    fn registry_syncs(&self) -> Vec<SyncRule> {
        let objects = self
            .config
            .iter()
            .filter_map(|(id, object)| match &object.spec {
                Spec::RegistrySync(spec) => Some((id.mesh_wide_name(), spec.as_ref())),
                _ => None,
            });
        let named = self.mesh.registry_syncs.iter();
        let named = named.map(|(name, spec)| (name.clone(), spec));
        let all: BTreeMap<String, &RegistrySync> = named.chain(objects).collect();
        all.into_iter()
            .filter_map(|(name, spec)| spec.compile(&name).ok())
            .collect()
    }

    fn set_registries(&self) {
        self.registries.set_sources(self.registry_sources());
        self.sync.set_rules(self.registry_syncs());
    }

    fn load_config(&mut self) {
        let files = self.files.as_ref().map(FileStore::config);
        let (mut config, mut problems) = files.unwrap_or_default();
        if let Some(cluster) = &self.cluster {
            cluster.add_to(&mut config, &mut problems);
        }
        for problem in problems
            .iter()
            .filter(|problem| !self.problems.contains(problem))
        {
            tracing::error!("{problem}");
        }
        for (id, object) in &config {
            let known = self
                .config
                .get(id)
                .is_some_and(|known| Arc::ptr_eq(known, object));
            for warning in object.warnings.iter().filter(|_| !known) {
                tracing::warn!("{id}: {warning}");
            }
        }
        self.config = Arc::new(config);
        self.problems = problems.into();
        self.set_registries();
    }

    fn publish_config(&mut self, ready: &Waiting) {
        let since = ready.since.unwrap_or_else(Instant::now);
        self.metrics.debounced(since.elapsed());
        self.load_config();
        self.publish_all("config", since);
    }

    fn publish_registry(&mut self, ready: &Waiting) {
        let since = ready.since.unwrap_or_else(Instant::now);
        self.metrics.debounced(since.elapsed());
        let mut changed = std::mem::take(&mut self.changed);
        if changed.services {
            self.publish_all("service", since);
            return;
        }
        let Some(current) = self.snapshots.borrow().clone() else {
            return;
        };
        let started = Instant::now();
        self.revision += 1;
        changed.hosts.sort();
        changed.hosts.dedup();
        let mut world =
            current
                .world
                .with_endpoints(self.revision, &changed.hosts, &self.registered);
        world.workloads = self.workloads.clone();
        self.metrics.triggered(if changed.hosts.is_empty() {
            "proxy"
        } else {
            "endpoint"
        });
        self.send(current.next(Arc::new(world), self.problems.clone(), since));
        // The former world goes with this: that costs as much as making the new one.
        drop(current);
        self.rest_endpoints = Instant::now() + started.elapsed() * REST_ENDPOINTS;
    }

    fn publish_all(&mut self, reason: &str, since: Instant) {
        let started = Instant::now();
        self.revision += 1;
        let mut world: World = build(
            self.revision,
            self.mesh.clone(),
            self.config.clone(),
            &self.registered,
        );
        world.workloads = self.workloads.clone();
        self.metrics.built(started.elapsed());
        self.metrics.triggered(reason);
        self.metrics
            .set("pilot_services", world.index.services.len());
        self.metrics
            .set("pilot_virt_services", world.index.virtual_services.len());
        let subsets = world
            .index
            .destination_rules
            .iter()
            .map(|rule| rule.spec.subsets.len());
        self.metrics.set("pilot_destrule_subsets", subsets.sum());
        self.metrics
            .set("pilot_config_problems", self.problems.len());
        let world = Arc::new(world);
        let current = self.snapshots.borrow().clone();
        self.send(match current {
            Some(current) => current.next(world, self.problems.clone(), since),
            None => Snapshot::new(world, self.problems.clone(), since),
        });
        self.rest = Instant::now() + started.elapsed() * REST;
    }

    fn send(&self, snapshot: Snapshot) {
        // `send_replace` keeps the snapshot although no proxy is connected.
        self.snapshots.send_replace(Some(Arc::new(snapshot)));
    }
}

async fn until(due: Option<Instant>) {
    if let Some(due) = due {
        tokio::time::sleep_until(due.into()).await;
    }
}

async fn next_event(changes: &mut Option<registry::Watch>) -> Option<Event> {
    changes.as_mut()?.next().await
}
