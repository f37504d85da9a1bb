//! The main thread: starts the workers, owns the configuration, and reacts to xDS, DNS, the admin and signals.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use api::envoy::config::bootstrap::v3::Bootstrap;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::bootstrap::{self, Dynamic, Flags, Mode};
use crate::cluster::{ClusterConfig, HostsConfig};
use crate::config;
use crate::manager::Manager;
use crate::worker::{Command, WorkerHandle, spawn_worker};
use crate::{admin, mesh_registry, xds};

/// What the main loop reacts to.
pub enum Event {
    /// Something from the ADS stream.
    Xds(::xds::client::Event),
    /// A cluster's names were resolved.
    DnsResolved {
        /// Cluster.
        cluster: String,
        /// The configuration that asked, to tell an answer to an older one.
        config: Arc<ClusterConfig>,
        /// The hosts.
        hosts: HostsConfig,
    },
    /// A cluster has waited long enough for its endpoints.
    ClusterWarmingTimeout {
        /// Cluster.
        cluster: String,
        /// Which warming.
        generation: u64,
    },
    /// A listener has waited long enough for its routes.
    ListenerWarmingTimeout {
        /// Listener.
        listener: String,
        /// Which warming.
        generation: u64,
    },
    /// Work of the admin that needs the state.
    Admin(Box<dyn FnOnce(&mut State) + Send>),
}

/// Everything the main loop owns.
pub struct State {
    /// The configuration.
    pub manager: Manager,
    /// The bootstrap as it was loaded.
    pub bootstrap: Bootstrap,
    /// The flags.
    pub flags: Flags,
    /// `/healthcheck/fail` was called.
    pub health_failed: bool,
    /// The process finishes what it has and takes no more.
    pub draining: bool,
    /// All first configuration has come.
    pub live: bool,
    /// When the process started.
    pub started: Instant,
    /// When the process started, by the calendar.
    pub started_at: SystemTime,
    /// Ends the main loop.
    pub quit: bool,
    /// Commands to the workers.
    pub workers: Vec<mpsc::UnboundedSender<Command>>,
    dynamic: Dynamic,
    xds: Option<xds::Subscriptions>,
}

/// Runs the program with the arguments of `args` (the first is its name) and returns its exit code.
pub fn main(args: impl IntoIterator<Item = std::ffi::OsString>) -> ExitCode {
    let flags = match <Flags as clap::Parser>::try_parse_from(args) {
        Ok(flags) => flags,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(1));
        }
    };
    if let Err(error) = start_log(&flags) {
        eprintln!("mosn: {error:#}");
        return ExitCode::from(2);
    }
    match run(flags) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // the last word of a process that does not start must be seen whatever the log level
            eprintln!("mosn: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start_log(flags: &Flags) -> anyhow::Result<()> {
    let level = flags.log_level.parse().context("--log-level")?;
    match &flags.log_path {
        None => telemetry::logging::init(level),
        Some(path) => {
            let file = std::fs::OpenOptions::new()
                .create(true)
                .append(true)
                .open(path)
                .with_context(|| format!("--log-path {}", path.display()))?;
            telemetry::logging::init_file(level, file);
        }
    }
    Ok(())
}

fn run(flags: Flags) -> anyhow::Result<()> {
    let bootstrap = bootstrap::load(&flags)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the main loop")?;
    runtime.block_on(serve(flags, bootstrap))
}

async fn serve(flags: Flags, bootstrap: Bootstrap) -> anyhow::Result<()> {
    let stats = telemetry::stats::Registry::new();
    stats.register_thread();
    let node = bootstrap.node.clone().unwrap_or_default();
    let options = flags.options(&node);
    let access_logs = telemetry::access_log::Sinks::new(&stats, options.file_flush_interval);
    let dynamic = bootstrap::dynamic(&bootstrap)?;
    let mut control: BTreeSet<String> = dynamic.ads_cluster.iter().cloned().collect();
    control.extend(mesh_registry::cluster_name(&bootstrap)?);
    let (events, mut inbox) = mpsc::unbounded_channel();
    let serving = flags.mode == Mode::Serve;
    let workers: Vec<WorkerHandle> = if serving {
        (0..flags.workers())
            .map(|id| spawn_worker(id, stats.clone()))
            .collect::<Result<_, _>>()
            .context("cannot start workers")?
    } else {
        Vec::new()
    };
    let commands: Vec<_> = workers.iter().map(|w| w.commands.clone()).collect();
    let manager = Manager::new(
        options.clone(),
        stats.clone(),
        access_logs.clone(),
        commands.clone(),
        events.clone(),
        control,
    );
    let mut state = State {
        manager,
        bootstrap,
        flags,
        health_failed: false,
        draining: false,
        live: false,
        started: Instant::now(),
        started_at: SystemTime::now(),
        quit: false,
        workers: commands,
        dynamic,
        xds: None,
    };
    state.load_static()?;
    if !serving {
        println(&format!("configuration '{}' OK", state.config_name()));
        return Ok(());
    }
    admin::start(&state, events.clone(), stats.clone()).await?;
    let registry = mesh_registry::start(&state.bootstrap, &state.flags).await?;
    state.start_xds(&events)?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut reopen = signal(SignalKind::user_defined1())?;
    loop {
        state.update_live();
        if state.quit {
            break;
        }
        if let Some(registry) = &registry {
            registry.follow(&state.manager);
        }
        tokio::select! {
            Some(event) = inbox.recv() => state.handle(event),
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = reopen.recv() => access_logs.reopen(),
        }
    }
    state.draining = true;
    if let Some(registry) = registry {
        registry.stop().await;
    }
    tracing::info!(
        "stopping: listeners are closed, calls in flight go on for at most {:?}",
        options.shutdown_time
    );
    stop_workers(
        workers,
        options.shutdown_time,
        &mut state,
        &mut inbox,
        terminate,
        interrupt,
    )
    .await;
    access_logs.flush();
    Ok(())
}

/// Tells the workers to stop and waits for them; a second signal does not wait.
async fn stop_workers(
    workers: Vec<WorkerHandle>,
    limit: Duration,
    state: &mut State,
    inbox: &mut mpsc::UnboundedReceiver<Event>,
    mut terminate: tokio::signal::unix::Signal,
    mut interrupt: tokio::signal::unix::Signal,
) {
    for worker in &workers {
        let _ = worker.commands.send(Command::Stop(limit));
    }
    let joined = tokio::task::spawn_blocking(move || {
        for worker in workers {
            let _ = worker.thread.join();
        }
    });
    tokio::pin!(joined);
    loop {
        tokio::select! {
            _ = &mut joined => return,
            Some(event) = inbox.recv() => state.handle(event),
            _ = terminate.recv() => return,
            _ = interrupt.recv() => return,
        }
    }
}

#[allow(
    clippy::print_stdout,
    reason = "the answer of --mode validate belongs on stdout, as Envoy's does"
)]
fn println(line: &str) {
    println!("{line}");
}

impl State {
    /// Tells every worker; `make` is called once for each.
    pub fn tell(&self, make: impl Fn() -> Command) {
        for worker in &self.workers {
            // A worker that has ended needs no commands.
            let _ = worker.send(make());
        }
    }

    fn config_name(&self) -> String {
        self.flags
            .config_path
            .as_ref()
            .map(|p| p.display().to_string())
            .unwrap_or_default()
    }

    fn load_static(&mut self) -> anyhow::Result<()> {
        let fixed = self.bootstrap.static_resources.clone().unwrap_or_default();
        for (i, cluster) in fixed.clusters.iter().enumerate() {
            self.manager.add_static_cluster(cluster).map_err(|e| {
                e.in_index(i)
                    .in_field("clusters")
                    .in_field("static_resources")
            })?;
        }
        for (i, listener) in fixed.listeners.iter().enumerate() {
            self.manager.add_static_listener(listener).map_err(|e| {
                e.in_index(i)
                    .in_field("listeners")
                    .in_field("static_resources")
            })?;
        }
        if let Some(admin) = self
            .bootstrap
            .admin
            .as_ref()
            .and_then(|a| a.address.as_ref())
        {
            config::socket_addr(admin).map_err(|e| e.in_field("address").in_field("admin"))?;
        }
        Ok(())
    }

    fn start_xds(&mut self, events: &mpsc::UnboundedSender<Event>) -> anyhow::Result<()> {
        if let Some(cluster) = self.dynamic.ads_cluster.clone() {
            self.xds = Some(xds::Subscriptions::start(&cluster, self, events.clone())?);
            self.resubscribe();
        }
        Ok(())
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Xds(event) => self.handle_xds(event),
            Event::DnsResolved {
                cluster,
                config,
                hosts,
            } => self.manager.dns_resolved(&cluster, &config, hosts),
            Event::ClusterWarmingTimeout {
                cluster,
                generation,
            } => {
                self.manager.cluster_warming_timed_out(&cluster, generation);
            }
            Event::ListenerWarmingTimeout {
                listener,
                generation,
            } => {
                self.manager
                    .listener_warming_timed_out(&listener, generation);
            }
            Event::Admin(work) => work(self),
        }
        self.resubscribe();
    }

    fn handle_xds(&mut self, event: ::xds::client::Event) {
        if let Some(mut subscriptions) = self.xds.take() {
            subscriptions.handle(event, &mut self.manager);
            self.xds = Some(subscriptions);
        }
    }

    fn resubscribe(&mut self) {
        if let Some(subscriptions) = &mut self.xds {
            subscriptions.update(&self.dynamic, &self.manager);
        }
    }

    fn update_live(&mut self) {
        if self.live {
            return;
        }
        let dynamic_done = self
            .xds
            .as_ref()
            .is_none_or(|x| x.initialized(&self.dynamic));
        if dynamic_done && self.manager.initialized() {
            self.live = true;
            tracing::info!(
                "all configuration is loaded after {} ms",
                self.started.elapsed().as_millis()
            );
        }
    }
}
