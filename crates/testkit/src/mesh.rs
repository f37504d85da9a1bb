//! A mesh for one test: pilot with a folder of configuration, and sidecars that it configures.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tempfile::TempDir;

use crate::bootstrap::{self, Identity};
use crate::net::Loopback;
use crate::process::Process;
use crate::{http, programs, wait};

/// The namespace of all sidecars.
pub const NAMESPACE: &str = "demo";

const PILOT_HOST: u8 = 1;
const ADS_PORT: u16 = 15_010;
const PILOT_HTTP_PORT: u16 = 8_080;
const MONITORING_PORT: u16 = 15_014;
/// Debug builds on a machine that does other things at the same time.
const START_LIMIT: Duration = Duration::from_secs(30);

/// Which program a sidecar is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// This workspace's.
    Mosn,
    /// The real Envoy.
    Envoy,
}

/// Pilot and what belongs to the test. Everything ends with it.
#[derive(Debug)]
pub struct Mesh {
    pilot: Process,
    /// Pilot's command line, without the program.
    arguments: Vec<OsString>,
    loopback: Loopback,
    config: PathBuf,
    folder: TempDir,
}

impl Mesh {
    /// Starts pilot on an empty folder of configuration and waits until it is ready.
    pub fn start() -> Result<Mesh> {
        Mesh::start_with(&[])
    }

    /// The same with addresses of registries that pilot answers as: flags and ports on pilot's host.
    pub fn start_with(facades: &[(&str, u16)]) -> Result<Mesh> {
        Mesh::start_as(facades, false)
    }

    /// The same with a folder in which pilot keeps what it has to know after a restart.
    pub fn start_keeping() -> Result<Mesh> {
        Mesh::start_as(&[], true)
    }

    /// The same with both, or without the folder.
    pub fn start_as(facades: &[(&str, u16)], keeps: bool) -> Result<Mesh> {
        let loopback = Loopback::claim()?;
        let folder = tempfile::tempdir()?;
        let config = folder.path().join("config");
        fs::create_dir(&config)?;
        loopback.write_hosts(folder.path())?;
        let own = [
            ("--grpcAddr", ADS_PORT),
            ("--httpAddr", PILOT_HTTP_PORT),
            ("--monitoringAddr", MONITORING_PORT),
        ];
        let mut arguments: Vec<OsString> = vec!["discovery".into()];
        for (flag, port) in own.iter().chain(facades) {
            let address = loopback.address(PILOT_HOST, *port).to_string();
            arguments.extend([OsString::from(flag), address.into()]);
        }
        arguments.extend(["--configDir".into(), config.clone().into()]);
        if keeps {
            let kept = folder.path().join("registry");
            arguments.extend(["--registryDir".into(), kept.into()]);
        }
        let pilot = run_pilot(&arguments, folder.path())?;
        let mut mesh = Mesh {
            pilot,
            arguments,
            loopback,
            config,
            folder,
        };
        let http = mesh.pilot_http();
        wait_ready("pilot", http, &mut mesh.pilot)?;
        Ok(mesh)
    }

    /// Kills pilot (SIGKILL).
    pub fn kill_pilot(&mut self) -> Result<()> {
        self.pilot.kill()
    }

    /// Starts pilot again on the same addresses, and waits until it is ready.
    pub fn restart_pilot(&mut self) -> Result<()> {
        self.pilot = run_pilot(&self.arguments, self.folder.path())?;
        let http = self.pilot_http();
        wait_ready("pilot", http, &mut self.pilot)
    }

    /// The address with this last number; 1 is pilot's.
    pub fn ip(&self, host: u8) -> Ipv4Addr {
        self.loopback.ip(host)
    }

    /// A name for host number `host` that the test's JVMs know, for applications that take a loopback address amiss.
    pub fn name(&self, host: u8) -> String {
        self.loopback.name(host)
    }

    /// A socket address of host number `host`.
    pub fn address(&self, host: u8, port: u16) -> SocketAddr {
        self.loopback.address(host, port)
    }

    /// Where logs and bootstraps are.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Pilot's folder of configuration.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// Pilot's HTTP interface: readiness, debugging, the registry.
    pub fn pilot_http(&self) -> SocketAddr {
        self.address(PILOT_HOST, PILOT_HTTP_PORT)
    }

    /// Pilot's metrics.
    pub fn pilot_monitoring(&self) -> SocketAddr {
        self.address(PILOT_HOST, MONITORING_PORT)
    }

    /// What pilot printed so far.
    pub fn pilot_output(&self) -> String {
        self.pilot.output()
    }

    /// Puts a file into pilot's folder, at once as a whole.
    pub fn write(&self, file: &str, documents: &str) -> Result<()> {
        let new = self.folder.path().join("new.yaml");
        fs::write(&new, documents)?;
        fs::rename(&new, self.config.join(file)).with_context(|| file.to_owned())
    }

    /// Takes a file out of pilot's folder.
    pub fn remove(&self, file: &str) -> Result<()> {
        fs::remove_file(self.config.join(file)).with_context(|| file.to_owned())
    }

    /// Starts a sidecar on host number `host`; it is live when this returns, its configuration may still be on its way.
    pub fn sidecar(
        &self,
        kind: Kind,
        name: &str,
        host: u8,
        labels: &[(&str, &str)],
    ) -> Result<Sidecar> {
        let identity = Identity {
            name,
            namespace: NAMESPACE,
            ip: self.ip(host),
            labels,
        };
        let pilot = self.address(PILOT_HOST, ADS_PORT);
        let (program, bootstrap) = match kind {
            Kind::Mosn => (programs::own("mosn")?, bootstrap::mosn(&identity, pilot)),
            Kind::Envoy => (programs::envoy()?, bootstrap::common(&identity, pilot)),
        };
        let file = self.folder.path().join(format!("{name}.json"));
        fs::write(&file, serde_json::to_vec_pretty(&bootstrap)?)?;
        let mut command = Command::new(program);
        command.arg("-c").arg(&file).args(["--concurrency", "1"]);
        if kind == Kind::Envoy {
            command.args(["--disable-hot-restart", "-l", "info"]);
        }
        let process = Process::start(name, &mut command, self.folder.path())?;
        let mut sidecar = Sidecar {
            process,
            ip: self.ip(host),
        };
        let admin = sidecar.admin();
        let process = &mut sidecar.process;
        wait::until_ok(
            &format!("the admin interface of {name}"),
            START_LIMIT,
            || {
                process.check()?;
                http::get(admin, "/server_info")
            },
        )?;
        Ok(sidecar)
    }
}

fn run_pilot(arguments: &[OsString], folder: &Path) -> Result<Process> {
    let mut command = Command::new(programs::own("pilot")?);
    command.args(arguments).current_dir(folder);
    Process::start("pilot", &mut command, folder)
}

/// A running sidecar.
#[derive(Debug)]
pub struct Sidecar {
    process: Process,
    ip: Ipv4Addr,
}

impl Sidecar {
    /// Its own address.
    pub fn ip(&self) -> Ipv4Addr {
        self.ip
    }

    /// Its admin interface.
    pub fn admin(&self) -> SocketAddr {
        (self.ip, bootstrap::ADMIN_PORT).into()
    }

    /// What SOFARPC takes as the address of a registry `mesh`.
    pub fn mesh_registry(&self) -> String {
        format!("http://{}:{}", self.ip, bootstrap::MESH_REGISTRY_PORT)
    }

    /// The program itself.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Waits until the sidecar says that it has its first configuration.
    pub fn wait_ready(&mut self) -> Result<()> {
        let admin = self.admin();
        let name = self.process.name().to_owned();
        wait_ready(&name, admin, &mut self.process)
    }

    /// Waits until it listens on this port of its address.
    pub fn wait_listening(&mut self, port: u16) -> Result<()> {
        let address = SocketAddr::from((self.ip, port));
        let process = &mut self.process;
        wait::until_ok(
            &format!("{} to listen on {address}", process.name().to_owned()),
            START_LIMIT,
            || {
                process.check()?;
                Ok(std::net::TcpStream::connect(address)?)
            },
        )?;
        Ok(())
    }

    /// The whole configuration dump.
    pub fn config_dump(&self) -> Result<Value> {
        http::get(self.admin(), "/config_dump?include_eds")?.json()
    }

    /// All counters and gauges.
    pub fn stats(&self) -> Result<BTreeMap<String, u64>> {
        let text = http::get(self.admin(), "/stats")?.text();
        let numbers = text.lines().filter_map(|line| {
            let (name, value) = line.rsplit_once(": ")?;
            // Histograms and texts are no numbers.
            Some((name.to_owned(), value.parse().ok()?))
        });
        Ok(numbers.collect())
    }
}

fn wait_ready(name: &str, address: SocketAddr, process: &mut Process) -> Result<()> {
    wait::until_ok(&format!("{name} to be ready"), START_LIMIT, || {
        process.check()?;
        let answer = http::get(address, "/ready")?;
        if answer.status != 200 {
            bail!("{} {}", answer.status, answer.text());
        }
        Ok(())
    })
}
