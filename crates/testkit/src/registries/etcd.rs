//! etcd, from the distribution's package.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::certificates::{Authority, Certified};
use crate::http;
use crate::netns::Site;
use crate::process::Process;
use crate::registries::place::Place;
use crate::wait;

/// Where it says how it is, without TLS.
const HEALTH_PORT: u16 = 2381;
const START_LIMIT: Duration = Duration::from_secs(60);

/// One etcd server; its data outlives [`Etcd::kill`].
#[derive(Debug)]
pub struct Etcd {
    place: Place,
    folder: PathBuf,
    tls: Vec<String>,
    process: Process,
}

impl Etcd {
    /// Starts a server with its data and its log in `folder`, and waits until it answers.
    pub fn start(folder: &Path) -> Result<Etcd> {
        Etcd::start_on(Place::loopback()?, folder, Vec::new())
    }

    /// The same in a network namespace.
    pub fn start_in(site: &Arc<Site>, folder: &Path) -> Result<Etcd> {
        Etcd::start_on(Place::Site(site.clone()), folder, Vec::new())
    }

    /// Starts a server that speaks TLS with clients that have a certificate of the authority.
    pub fn start_tls(folder: &Path, authority: &Authority) -> Result<Etcd> {
        let place = Place::loopback()?;
        let ip = place.ip().to_string();
        let Certified {
            cert_file,
            key_file,
        } = authority.issue(folder, "etcd", &[&ip], None)?;
        let tls = vec![
            format!("--cert-file={}", cert_file.display()),
            format!("--key-file={}", key_file.display()),
            format!("--trusted-ca-file={}", authority.file().display()),
            "--client-cert-auth".to_owned(),
        ];
        Etcd::start_on(place, folder, tls)
    }

    fn start_on(place: Place, folder: &Path, tls: Vec<String>) -> Result<Etcd> {
        let folder = folder.join("etcd");
        fs::create_dir_all(&folder)?;
        let process = run(&place, &folder, &tls)?;
        let mut server = Etcd {
            place,
            folder,
            tls,
            process,
        };
        server.wait_ready()?;
        Ok(server)
    }

    /// Where clients connect, with gRPC and its JSON gateway.
    pub fn address(&self) -> SocketAddr {
        self.place.address(2379)
    }

    /// Kills it (SIGKILL).
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }

    /// Starts it again on the same address with the same data.
    pub fn restart(&mut self) -> Result<()> {
        self.process = run(&self.place, &self.folder, &self.tls)?;
        self.wait_ready()
    }

    /// Starts it again on the same address with no data: what an operator gets who lost the disk.
    pub fn restart_empty(&mut self) -> Result<()> {
        fs::remove_dir_all(self.folder.join("data"))?;
        self.restart()
    }

    fn wait_ready(&mut self) -> Result<()> {
        let address = self.place.address(HEALTH_PORT);
        let process = &mut self.process;
        wait::until_ok("etcd", START_LIMIT, || {
            process.check()?;
            let answer = http::get(address, "/health")?;
            ensure!(answer.text().contains("true"), "says {}", answer.text());
            Ok(())
        })
    }
}

fn run(place: &Place, folder: &Path, tls: &[String]) -> Result<Process> {
    let scheme = if tls.is_empty() { "http" } else { "https" };
    let clients = format!("{scheme}://{}", place.address(2379));
    let health = format!("http://{}", place.address(HEALTH_PORT));
    let peers = format!("http://{}", place.address(2380));
    let mut command = Command::new("etcd");
    command
        .arg("--data-dir")
        .arg(folder.join("data"))
        .args(["--listen-client-urls", &clients])
        .args(["--advertise-client-urls", &clients])
        .args(["--listen-metrics-urls", &health])
        .args(["--listen-peer-urls", &peers])
        .args(["--initial-advertise-peer-urls", &peers])
        .args(["--initial-cluster", &format!("default={peers}")])
        .args(tls)
        .current_dir(folder);
    Process::start("etcd", &mut place.command(command), folder)
}
