//! Spring Cloud's Eureka server, a module of `tests/apps`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::apps;
use crate::net::Loopback;
use crate::process::Process;

/// One Eureka server, which holds everything in memory.
#[derive(Debug)]
pub struct Eureka {
    loopback: Loopback,
    folder: PathBuf,
    process: Process,
}

impl Eureka {
    /// Starts a server with its log in `folder`, and waits until it answers.
    pub fn start(folder: &Path) -> Result<Eureka> {
        let loopback = Loopback::claim()?;
        let process = run(loopback.address(1, 8761), folder)?;
        Ok(Eureka {
            loopback,
            folder: folder.to_owned(),
            process,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.loopback.address(1, 8761)
    }

    /// What clients are configured with.
    pub fn url(&self) -> String {
        format!("http://{}/eureka", self.address())
    }

    /// Kills it (SIGKILL).
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }

    /// Starts it again on the same address; it knows nothing then.
    pub fn restart(&mut self) -> Result<()> {
        self.process = run(self.address(), &self.folder)?;
        Ok(())
    }
}

fn run(address: SocketAddr, folder: &Path) -> Result<Process> {
    let arguments = [
        "--address",
        &address.ip().to_string(),
        "--port",
        &address.port().to_string(),
    ]
    .map(ToOwned::to_owned);
    let class = "mesh.apps.eurekaserver.Server";
    apps::start_client("eureka-server", class, "eureka-server", &arguments, folder)
}
