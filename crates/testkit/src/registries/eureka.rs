//! Spring Cloud's Eureka server, a module of `tests/apps`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;

use crate::apps;
use crate::netns::Site;
use crate::process::Process;
use crate::registries::place::Place;

const PORT: u16 = 8761;

/// One Eureka server, which holds everything in memory.
#[derive(Debug)]
pub struct Eureka {
    place: Place,
    folder: PathBuf,
    process: Process,
}

impl Eureka {
    /// Starts a server with its log in `folder`, and waits until it answers.
    pub fn start(folder: &Path) -> Result<Eureka> {
        Eureka::start_at(Place::loopback()?, folder)
    }

    /// The same in a network namespace.
    pub fn start_in(site: &Arc<Site>, folder: &Path) -> Result<Eureka> {
        Eureka::start_at(Place::Site(site.clone()), folder)
    }

    fn start_at(place: Place, folder: &Path) -> Result<Eureka> {
        let process = run(&place, folder)?;
        Ok(Eureka {
            place,
            folder: folder.to_owned(),
            process,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.place.address(PORT)
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
        self.process = run(&self.place, &self.folder)?;
        Ok(())
    }
}

fn run(place: &Place, folder: &Path) -> Result<Process> {
    let arguments = [
        "--address",
        &place.ip().to_string(),
        "--port",
        &PORT.to_string(),
    ]
    .map(ToOwned::to_owned);
    let class = "mesh.apps.eurekaserver.Server";
    let java = apps::java("eureka-server", class, &[], &arguments, folder)?;
    apps::converse("eureka-server", place.command(java), folder)
}
