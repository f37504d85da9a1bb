//! `meshctl up`: a whole mesh on this machine. It writes the configuration, starts pilot, a sidecar for each demo
//! application and the applications themselves, each as a process of its own, shows what happens, and stops
//! everything when it is told to end or when one of them ends by itself.

mod board;
pub(crate) mod child;
pub(crate) mod files;
pub(crate) mod plan;
mod processes;
mod script;
pub(crate) mod state;

use std::fs;
use std::io::IsTerminal;
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::{self, UpOptions};
use crate::http_client::Server;
use crate::output;
use board::Board;
use files::Files;
use plan::{
    ADMIN, Application, MESH_REGISTRY, PILOT_GRPC, PILOT_HTTP, PILOT_MONITORING, Plan, Protocol,
    Role,
};
use processes::{Kind, Processes};
use state::State;

/// The second number of the loopback networks that are tried, the third being 0.
const NETWORKS: std::ops::RangeInclusive<u8> = 77..=120;
/// Nothing of the mesh listens there: whoever holds it has the network. Tests that start meshes take the same.
const LOCK: (u8, u16) = (254, 64_999);
const START_DEADLINE: Duration = Duration::from_secs(30);

/// Runs the mesh until it is told to end, or through the script.
pub(crate) fn run(options: &UpOptions) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(up(options))
}

async fn up(options: &UpOptions) -> anyhow::Result<()> {
    let (network, _lock) = take_network(options.network.as_deref())?;
    let plan = Plan::new(network);
    let folder = Folder::open(options)?;
    let files = Files::create(&folder.path)?;
    files.write(&plan, options.once)?;

    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut processes = Processes::new(files.logs())?;
    let result = tokio::select! {
        result = run_mesh(options, &plan, &files, &mut processes) => result,
        _ = interrupt.recv() => interrupted(options),
        _ = terminate.recv() => interrupted(options),
    };
    State::remove(&folder.path);
    processes.stop().await;
    folder.close(result.is_ok());
    result
}

/// Being told to end is how a live mesh ends, but a script that was stopped has not passed.
fn interrupted(options: &UpOptions) -> anyhow::Result<()> {
    if options.once {
        bail!("stopped before the script was through");
    }
    output::write("\nstopping the mesh\n")
}

async fn run_mesh(
    options: &UpOptions,
    plan: &Plan,
    files: &Files,
    processes: &mut Processes,
) -> anyhow::Result<()> {
    let begin = Instant::now();
    start_pilot(plan, files, processes)?;
    let pilot = Server {
        address: plan.pilot_at(PILOT_HTTP).to_string(),
        what: "pilot",
        hint: "it has not started".to_owned(),
        token: None,
    };
    wait_ready(&pilot, "/ready", processes).await?;
    for app in &plan.applications {
        start_sidecar(files, app, processes)?;
    }
    for app in plan.of_role(Role::Provider) {
        start_provider(plan, app, processes)?;
    }
    State {
        pid: std::process::id(),
        pilot: pilot.address.clone(),
        proxies: plan
            .applications
            .iter()
            .map(|app| (app.name(), app.at(ADMIN).to_string()))
            .collect(),
    }
    .save(&files.dir)?;
    for app in &plan.applications {
        let sidecar = Server {
            address: app.at(ADMIN).to_string(),
            what: "a sidecar",
            hint: format!("it is {}", app.name()),
            token: None,
        };
        wait_ready(&sidecar, "/ready", processes).await?;
    }
    let started = begin.elapsed();

    if options.once {
        return tokio::select! {
            result = script::run(plan, files, started) => result,
            ended = processes.first_exit() => Err(ended),
        };
    }

    let live = std::io::stdout().is_terminal() && !options.plain;
    output::write(&welcome(plan, files, started))?;
    let board = Board::new(plan, live);
    for app in plan.of_role(Role::Consumer) {
        let reports = start_consumer(app, options.rate, processes)?;
        board.listen(app.protocol, reports);
    }
    tokio::select! {
        result = board.run() => result,
        ended = processes.first_exit() => Err(ended),
    }
}

fn welcome(plan: &Plan, files: &Files, started: Duration) -> String {
    format!(
        "\
The mesh is up after {:.1} s: pilot at {}, {} sidecars, {} applications.
Edit {}/*.yaml and watch the calls follow; logs are in {}.
In another terminal: meshctl proxy-status | meshctl proxy-config routes cart-v1 | meshctl registry list
Ctrl-C stops it.

",
        started.as_secs_f64(),
        plan.pilot_at(PILOT_HTTP),
        plan.applications.len(),
        plan.applications.len(),
        files.config().display(),
        files.logs().display(),
    )
}

fn start_pilot(plan: &Plan, files: &Files, processes: &mut Processes) -> anyhow::Result<()> {
    let arguments = [
        "discovery".into(),
        "--meshConfig".into(),
        files.mesh_config().into_os_string(),
        "--configDir".into(),
        files.config().into_os_string(),
        "--registryDir".into(),
        files.registry().into_os_string(),
        "--grpcAddr".into(),
        plan.pilot_at(PILOT_GRPC).to_string().into(),
        "--httpAddr".into(),
        plan.pilot_at(PILOT_HTTP).to_string().into(),
        "--monitoringAddr".into(),
        plan.pilot_at(PILOT_MONITORING).to_string().into(),
    ];
    processes.start("pilot", Kind::Pilot, "pilot", arguments)
}

fn start_sidecar(
    files: &Files,
    app: &Application,
    processes: &mut Processes,
) -> anyhow::Result<()> {
    let arguments = [
        "-c".into(),
        files.bootstrap(app).into_os_string(),
        "--concurrency".into(),
        "1".into(),
    ];
    let name = format!("{}-sidecar", app.name());
    processes.start(&name, Kind::Sidecar, "mosn", arguments)
}

fn start_provider(plan: &Plan, app: &Application, processes: &mut Processes) -> anyhow::Result<()> {
    let protocol = app.protocol;
    let name = app.name();
    let listen = app.at(protocol.application_port()).to_string();
    let mut arguments = vec!["provider".to_owned()];
    let pairs = [
        ("--name", name.as_str()),
        ("--app", app.app),
        ("--protocol", protocol.word()),
        ("--listen", &listen),
    ];
    arguments.extend(
        pairs
            .iter()
            .flat_map(|(key, value)| [(*key).to_owned(), (*value).to_owned()]),
    );
    match protocol {
        Protocol::Http => {}
        Protocol::Bolt => {
            arguments.extend(["--registry".to_owned(), app.at(MESH_REGISTRY).to_string()])
        }
        Protocol::Dubbo => arguments.extend([
            "--registry".to_owned(),
            plan.pilot_at(PILOT_HTTP).to_string(),
            "--advertise".to_owned(),
            app.at(protocol.ingress_port()).to_string(),
        ]),
    }
    processes.start(
        &name,
        Kind::Application,
        "demo",
        arguments.into_iter().map(Into::into),
    )
}

fn start_consumer(
    app: &Application,
    rate: u32,
    processes: &mut Processes,
) -> anyhow::Result<tokio::process::ChildStdout> {
    let target = app.at(app.protocol.egress_port()).to_string();
    let arguments = [
        "consumer".to_owned(),
        "--protocol".to_owned(),
        app.protocol.word().to_owned(),
        "--target".to_owned(),
        target,
        "--rate".to_owned(),
        rate.to_string(),
    ];
    let name = app.name();
    processes.start_with_output(
        &name,
        Kind::Application,
        "demo",
        arguments.into_iter().map(Into::into),
    )
}

/// Asks again and again until the answer is a success, or a process of the mesh has ended.
async fn wait_ready(server: &Server, path: &str, processes: &mut Processes) -> anyhow::Result<()> {
    let deadline = Instant::now() + START_DEADLINE;
    loop {
        let error = tokio::select! {
            ended = processes.first_exit() => return Err(ended),
            ready = server.is_ok(path) => match ready {
                Ok(()) => return Ok(()),
                Err(error) => error,
            },
        };
        if Instant::now() > deadline {
            return Err(error.context(format!(
                "{} is not ready after {} s; its log is in {}",
                server.what,
                START_DEADLINE.as_secs(),
                processes.logs().display()
            )));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A loopback network that no other mesh of `meshctl up` uses, and what keeps it so.
fn take_network(wanted: Option<&str>) -> anyhow::Result<([u8; 3], TcpListener)> {
    let lock = |network: [u8; 3]| {
        let [a, b, c] = network;
        TcpListener::bind((Ipv4Addr::new(a, b, c, LOCK.0), LOCK.1))
    };
    if let Some(text) = wanted {
        let network = cli::network(text)?;
        let lock = lock(network).with_context(|| {
            format!("--network {text}: is used by another `meshctl up`, or is no address here")
        })?;
        return Ok((network, lock));
    }
    for second in NETWORKS {
        let network = [127, second, 0];
        let pilot_is_free = [PILOT_GRPC, PILOT_HTTP]
            .iter()
            .all(|port| TcpListener::bind((Ipv4Addr::new(127, second, 0, 1), *port)).is_ok());
        if pilot_is_free && let Ok(lock) = lock(network) {
            return Ok((network, lock));
        }
    }
    bail!("no free loopback network; stop another `meshctl up`, or name a network with --network")
}

/// The folder of one `up`.
struct Folder {
    path: PathBuf,
    temporary: bool,
}

impl Folder {
    fn open(options: &UpOptions) -> anyhow::Result<Self> {
        let (path, temporary) = match &options.dir {
            Some(path) => (path.clone(), false),
            None if options.once => {
                let name = format!("meshctl-once-{}", std::process::id());
                (std::env::temp_dir().join(name), true)
            }
            None => (state::default_dir(), false),
        };
        if let Some(running) = State::load(&path) {
            bail!(
                "another `meshctl up` (process {}) uses {}; stop it, or name another folder with --dir",
                running.pid,
                path.display()
            );
        }
        // Instances of an earlier run would be called until their leases end.
        let _ = fs::remove_dir_all(path.join("registry"));
        Ok(Self { path, temporary })
    }

    /// Keeps what helps to find out why something failed.
    fn close(&self, success: bool) {
        if !self.temporary {
            return;
        }
        if success {
            let _ = fs::remove_dir_all(&self.path);
        } else {
            eprintln!("logs and configuration are kept in {}", self.path.display());
        }
    }
}
