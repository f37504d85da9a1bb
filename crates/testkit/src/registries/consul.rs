//! Consul, built by `make peers`.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::http;
use crate::netns::Site;
use crate::process::Process;
use crate::registries::place::Place;
use crate::wait;

const START_LIMIT: Duration = Duration::from_secs(60);

/// One agent that is its own server; its data outlives [`Consul::kill`].
#[derive(Debug)]
pub struct Consul {
    place: Place,
    folder: PathBuf,
    process: Process,
}

impl Consul {
    /// Starts an agent with its data and its log in `folder`, and waits until it answers. `config` is more of its
    /// configuration, in JSON.
    pub fn start(folder: &Path, config: &str) -> Result<Consul> {
        Consul::start_at(Place::loopback()?, folder, config)
    }

    /// The same in a network namespace.
    pub fn start_in(site: &Arc<Site>, folder: &Path) -> Result<Consul> {
        Consul::start_at(Place::Site(site.clone()), folder, "{}")
    }

    fn start_at(place: Place, folder: &Path, config: &str) -> Result<Consul> {
        let folder = folder.join("consul");
        fs::create_dir_all(folder.join("data"))?;
        fs::write(folder.join("more.json"), config)?;
        let process = run(&place, &folder)?;
        let mut server = Consul {
            place,
            folder,
            process,
        };
        server.wait_ready()?;
        Ok(server)
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.place.address(8500)
    }

    /// Kills it (SIGKILL).
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }

    /// Starts it again on the same address with the same data.
    pub fn restart(&mut self) -> Result<()> {
        self.process = run(&self.place, &self.folder)?;
        self.wait_ready()
    }

    /// Starts it again on the same address with no data: what an operator gets who lost the disk.
    pub fn restart_empty(&mut self) -> Result<()> {
        fs::remove_dir_all(self.folder.join("data"))?;
        fs::create_dir_all(self.folder.join("data"))?;
        self.restart()
    }

    fn wait_ready(&mut self) -> Result<()> {
        let address = self.address();
        let process = &mut self.process;
        wait::until_ok("Consul", START_LIMIT, || {
            process.check()?;
            let answer = http::get(address, "/v1/status/leader")?;
            ensure!(answer.text().contains(':'), "says {}", answer.text());
            Ok(())
        })
    }
}

fn run(place: &Place, folder: &Path) -> Result<Process> {
    let program = crate::programs::peer("consul").context("make peers builds it")?;
    let ip = place.ip().to_string();
    let mut command = Command::new(program);
    command
        .args(["agent", "-server", "-bootstrap-expect=1", "-node=one"])
        .args(["-bind", &ip, "-client", &ip, "-data-dir"])
        .arg(folder.join("data"))
        // Elections as quick as they can be.
        .args(["-hcl", "performance { raft_multiplier = 1 }"])
        .arg("-config-file")
        .arg(folder.join("more.json"))
        .current_dir(folder);
    Process::start("consul", &mut place.command(command), folder)
}
