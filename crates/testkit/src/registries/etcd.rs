//! etcd, from the distribution's package.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::http;
use crate::net::Loopback;
use crate::process::Process;
use crate::wait;

const START_LIMIT: Duration = Duration::from_secs(60);

/// One etcd server; its data outlives [`Etcd::kill`].
#[derive(Debug)]
pub struct Etcd {
    loopback: Loopback,
    folder: PathBuf,
    process: Process,
}

impl Etcd {
    /// Starts a server with its data and its log in `folder`, and waits until it answers.
    pub fn start(folder: &Path) -> Result<Etcd> {
        let loopback = Loopback::claim()?;
        let folder = folder.join("etcd");
        fs::create_dir_all(&folder)?;
        let process = run(&loopback, &folder)?;
        let mut server = Etcd {
            loopback,
            folder,
            process,
        };
        server.wait_ready()?;
        Ok(server)
    }

    /// Where clients connect, with gRPC and its JSON gateway.
    pub fn address(&self) -> SocketAddr {
        self.loopback.address(1, 2379)
    }

    /// Kills it (SIGKILL).
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }

    /// Starts it again on the same address with the same data.
    pub fn restart(&mut self) -> Result<()> {
        self.process = run(&self.loopback, &self.folder)?;
        self.wait_ready()
    }

    /// Starts it again on the same address with no data: what an operator gets who lost the disk.
    pub fn restart_empty(&mut self) -> Result<()> {
        fs::remove_dir_all(self.folder.join("data"))?;
        self.restart()
    }

    fn wait_ready(&mut self) -> Result<()> {
        let address = self.address();
        let process = &mut self.process;
        wait::until_ok("etcd", START_LIMIT, || {
            process.check()?;
            let answer = http::get(address, "/health")?;
            ensure!(answer.text().contains("true"), "says {}", answer.text());
            Ok(())
        })
    }
}

fn run(loopback: &Loopback, folder: &Path) -> Result<Process> {
    let clients = format!("http://{}", loopback.address(1, 2379));
    let peers = format!("http://{}", loopback.address(1, 2380));
    let mut command = Command::new("etcd");
    command
        .arg("--data-dir")
        .arg(folder.join("data"))
        .args(["--listen-client-urls", &clients])
        .args(["--advertise-client-urls", &clients])
        .args(["--listen-peer-urls", &peers])
        .args(["--initial-advertise-peer-urls", &peers])
        .args(["--initial-cluster", &format!("default={peers}")])
        .current_dir(folder);
    Process::start("etcd", &mut command, folder)
}
