//! The program: sources, servers and signals put together.

use std::ffi::OsString;
use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use clap::Parser;
use futures_util::TryStreamExt as _;
use registry::kubernetes::Cluster;
use registry::leader::{self, Election, LeaseObject};
use registry::{EtcdStore, HubOptions, Limits, Registry, Sync, SyncOptions};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tonic::transport::server::TcpIncoming;
use xds::server::grpc::AdsService;

use crate::args::{Cli, Command, DiscoveryArgs, RegistryName, RegistryStoreArgs, ValidateArgs};
use crate::coalesce::Coalesced;
use crate::controller::{Controller, Sources};
use crate::debug;
use crate::facades::Facades;
use crate::istio::mesh_config::MeshConfig;
use crate::metrics::Metrics;
use crate::open_registry::OpenRegistry;
use crate::push::Hub;
use crate::source::FileStore;

/// How long open streams may take to end when pilot ends.
const GRACE: Duration = Duration::from_secs(3);
/// Keep-alive probes of gRPC connections, as istiod has them.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// File of the embedded registry in its folder.
const REGISTRY_FILE: &str = "registry.redb";
/// File of what was copied into other registries in it.
const SYNC_FILE: &str = "sync.redb";
/// Folder of the other registries' last known instances in it.
const SOURCES_FOLDER: &str = "sources";

/// A pilot with its listeners bound.
pub struct Pilot {
    hub: Arc<Hub>,
    metrics: Arc<Metrics>,
    registry: Option<Registry>,
    open_registry: Option<OpenRegistry>,
    facades: Facades,
    grpc: TcpListener,
    http: TcpListener,
    monitoring: TcpListener,
    stop: watch::Sender<bool>,
    sync: Arc<Sync>,
    leadership: JoinHandle<()>,
}

impl Pilot {
    /// Opens the registry, binds the listeners and begins to read the sources.
    pub async fn start(args: &DiscoveryArgs) -> Result<Pilot> {
        let mut mesh = match &args.mesh_config {
            Some(file) => read_mesh_config(file)?,
            None => MeshConfig::default(),
        };
        mesh.domain.clone_from(&args.domain);
        let store = shared_store(&args.registry_store)?;
        let registry = match args.registries.contains(&RegistryName::Osr) {
            true => Some(open_registry(args, store.clone()).await?),
            false => None,
        };
        if let Some(folder) = &args.config_dir
            && !folder.is_dir()
        {
            anyhow::bail!("--configDir {}: there is no such folder", folder.display());
        }
        let registries = registry::Hub::start(HubOptions {
            mesh_id: mesh.trust_domain.clone(),
            registry: registry.clone(),
            limits: Limits::default(),
            data_dir: args
                .registry_dir
                .as_ref()
                .map(|dir| dir.join(SOURCES_FOLDER)),
        });
        let grpc = bind("--grpcAddr", args.grpc_addr).await?;
        let http = bind("--httpAddr", args.http_addr).await?;
        let monitoring = bind("--monitoringAddr", args.monitoring_addr).await?;
        let facades = Facades::bind(args, &registries, registry.as_ref()).await?;
        let open_registry = match &registry {
            Some(registry) => Some(OpenRegistry::bind(&args.open_registry, registry).await?),
            None => None,
        };

        let cluster = Cluster {
            kubeconfig: args.kubeconfig.clone(),
            context: None,
        };
        let election = match (&args.lease_file, &args.lease, store) {
            (Some(file), ..) => Election::File(file.clone()),
            (None, Some((namespace, name)), _) => Election::Kubernetes(LeaseObject {
                cluster: cluster.clone(),
                namespace: namespace.clone(),
                name: name.clone(),
            }),
            (None, None, Some(store)) => Election::Etcd(Box::new(store)),
            (None, None, None) => Election::Alone,
        };
        let (role, leadership) = leader::take_part(election);
        let sync = Sync::start(
            registries.clone(),
            SyncOptions {
                file: args.registry_dir.as_ref().map(|dir| dir.join(SYNC_FILE)),
                role,
            },
        );
        let sync = Arc::new(sync.context("--registryDir")?);
        let metrics = Arc::new(Metrics::default());
        let (snapshots, snapshot) = watch::channel(None);
        let (stop, stopped) = watch::channel(false);
        let (workloads, told) = mpsc::channel(64);
        let sources = Sources {
            mesh: Arc::new(mesh),
            config_dir: args.config_dir.clone(),
            cluster: args.config_kubernetes.then_some(cluster),
            registries: registries.clone(),
            sync: sync.clone(),
            workloads: told,
        };
        tokio::spawn(Controller::run(sources, snapshots, metrics.clone()));
        Ok(Pilot {
            hub: Arc::new(Hub::new(
                snapshot,
                workloads,
                stopped,
                metrics.clone(),
                registries,
                sync.clone(),
            )),
            sync,
            leadership,
            metrics,
            registry,
            open_registry,
            facades,
            grpc,
            http,
            monitoring,
            stop,
        })
    }

    /// Where xDS is served.
    pub fn grpc_addr(&self) -> Result<SocketAddr> {
        Ok(self.grpc.local_addr()?)
    }

    /// Where HTTP is served.
    pub fn http_addr(&self) -> Result<SocketAddr> {
        Ok(self.http.local_addr()?)
    }

    /// Where metrics are served.
    pub fn monitoring_addr(&self) -> Result<SocketAddr> {
        Ok(self.monitoring.local_addr()?)
    }

    /// Where the registry is served with TLS.
    pub fn registry_tls_addr(&self) -> Result<Option<SocketAddr>> {
        let tls_addr = self.open_registry.as_ref().map(OpenRegistry::tls_addr);
        Ok(tls_addr.transpose()?.flatten())
    }

    /// The embedded registry.
    pub fn registry(&self) -> Option<&Registry> {
        self.registry.as_ref()
    }

    /// Serves until `shutdown`, then ends all streams.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<()> {
        let stopped = || {
            let mut stopped = self.stop.subscribe();
            async move {
                // An error says that the sender is gone: that is the end too.
                let _ = stopped.wait_for(|stop| *stop).await;
            }
        };
        let hub = self.hub.clone();
        let ads = AdsService::new(move |incoming| hub.accept(incoming));
        let mut grpc = tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(KEEP_ALIVE))
            .http2_keepalive_timeout(Some(KEEP_ALIVE))
            .add_service(ads);
        let mut http = debug::router(self.hub.clone());
        if let Some(registry) = &self.open_registry {
            grpc = grpc.add_service(registry.on(self.grpc.local_addr()?).grpc_service());
            http = http.merge(registry.on(self.http.local_addr()?).http_router());
        }
        let open_registry = async {
            match self.open_registry {
                Some(registry) => registry.run().await,
                None => std::future::pending().await,
            }
        };
        let monitoring = debug::monitoring(self.hub.clone(), self.metrics.clone());
        let incoming = TcpIncoming::from(self.grpc).with_nodelay(Some(true));
        let incoming = incoming.map_ok(Coalesced::new);
        let servers = async {
            tokio::try_join!(
                async {
                    grpc.serve_with_incoming_shutdown(incoming, stopped())
                        .await
                        .context("xDS server")
                },
                async {
                    let http = http.into_make_service_with_connect_info::<SocketAddr>();
                    axum::serve(self.http, http)
                        .with_graceful_shutdown(stopped())
                        .await
                        .context("HTTP server")
                },
                async {
                    let served = axum::serve(self.monitoring, monitoring);
                    served
                        .with_graceful_shutdown(stopped())
                        .await
                        .context("monitoring server")
                },
            )
        };
        tokio::pin!(servers);
        tokio::select! {
            ended = &mut servers => {
                ended?;
            }
            ended = self.facades.run() => ended?,
            ended = open_registry => ended?,
            () = shutdown => {
                tracing::info!("shutting down");
                self.stop.send_replace(true);
                if tokio::time::timeout(GRACE, &mut servers).await.is_err() {
                    tracing::warn!("some connections did not end in {GRACE:?}");
                }
            }
        }
        self.sync.stop();
        // Where it cannot be given back, it ends by itself.
        let _ = tokio::time::timeout(GRACE, self.leadership).await;
        if let Some(registry) = self.registry {
            registry.close().await;
        }
        Ok(())
    }
}

async fn bind(flag: &str, address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("{flag} {address}: cannot listen"))
}

fn read_mesh_config(file: &Path) -> Result<MeshConfig> {
    let text = std::fs::read_to_string(file)
        .with_context(|| format!("--meshConfig {}", file.display()))?;
    MeshConfig::parse(&text)
        .map_err(|error| anyhow::anyhow!("--meshConfig {}: {error}", file.display()))
}

/// The store that pilots share, if they do.
fn shared_store(args: &RegistryStoreArgs) -> Result<Option<EtcdStore>> {
    let Some(url) = &args.url else {
        return Ok(None);
    };
    let mut store = EtcdStore::parse(url).map_err(|e| anyhow!("--registryStore {e}"))?;
    store.login = args.login.credentials();
    if let Some(tls) = &mut store.tls {
        tls.ca_file.clone_from(&args.ca_file);
        tls.cert_file.clone_from(&args.cert_file);
        tls.key_file.clone_from(&args.key_file);
    } else if args.ca_file.is_some() || args.cert_file.is_some() {
        anyhow::bail!("--registryStoreCaFile and --registryStoreCertFile need etcds://");
    }
    Ok(Some(store))
}

async fn open_registry(args: &DiscoveryArgs, store: Option<EtcdStore>) -> Result<Registry> {
    if let Some(store) = store {
        return Registry::open_shared(store, Limits::default())
            .await
            .context("--registryStore");
    }
    match &args.registry_dir {
        Some(folder) => {
            std::fs::create_dir_all(folder)
                .with_context(|| format!("--registryDir {}", folder.display()))?;
            Registry::open(&folder.join(REGISTRY_FILE), Limits::default())
                .with_context(|| format!("--registryDir {}", folder.display()))
        }
        None => Ok(Registry::in_memory(Limits::default())?),
    }
}

/// Runs the program with its arguments, the first of which is its name.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version go to standard output, and are no failure.
            let _ = error.print();
            return if error.use_stderr() {
                ExitCode::from(2)
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    let result = match cli.command {
        Command::Discovery(args) => discovery(&args),
        Command::Validate(args) => return validate(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pilot: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn discovery(args: &DiscoveryArgs) -> Result<()> {
    // istiod says `default:info`: the part before the colon names a scope.
    let level = args.log_level.rsplit(':').next().unwrap_or_default();
    telemetry::logging::init(level.parse()?);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let pilot = Pilot::start(args).await?;
        tracing::info!(
            grpc = %pilot.grpc_addr()?,
            http = %pilot.http_addr()?,
            monitoring = %pilot.monitoring_addr()?,
            "pilot is listening"
        );
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        pilot
            .run(async {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
            })
            .await
    })
}

/// Prints what is wrong with the files of a folder, one line a problem.
fn validate(args: &ValidateArgs) -> ExitCode {
    if !args.config_dir.is_dir() {
        eprintln!(
            "pilot: --configDir {}: there is no such folder",
            args.config_dir.display()
        );
        return ExitCode::from(2);
    }
    let mut files = FileStore::new(&args.config_dir);
    files.rescan();
    let (config, problems) = files.config();
    for (id, object) in &config {
        for warning in &object.warnings {
            eprintln!("warning: {id}: {warning}");
        }
    }
    for problem in &problems {
        eprintln!("error: {problem}");
    }
    if problems.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
