//! SOFARegistry's server 6.3.0, a module of `tests/apps`: meta, data and session server in one process. It listens on every
//! address and does not take loopback for its own, so it has a network namespace.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};

use crate::apps;
use crate::netns::Link;
use crate::process::Process;

/// On a machine that does other things too it took a minute and a half.
const START_LIMIT: Duration = Duration::from_secs(240);

/// Its delays are made for thousands of clients: 2 s from a publication to a push, and 0.7 s with these.
const QUICK: [&str; 5] = [
    "-Dsession.server.dataChangeDebouncingMillis=20",
    "-Dsession.server.dataChangeMaxDebouncingMillis=100",
    "-Dsession.server.pushDataTaskDebouncingMillis=20",
    "-Ddata.server.notifyIntervalMillis=20",
    "-Ddata.server.notifyTempDataIntervalMillis=20",
];

/// A whole SOFARegistry, which holds everything in memory.
#[derive(Debug)]
pub struct SofaRegistry {
    link: Link,
    folder: PathBuf,
    process: Process,
}

impl SofaRegistry {
    /// Starts it with its logs in `folder`, and waits until it is in service.
    pub fn start(folder: &Path) -> Result<SofaRegistry> {
        let link = Link::claim()?;
        let process = run(&link, folder)?;
        let mut registry = SofaRegistry {
            link,
            folder: folder.to_owned(),
            process,
        };
        registry.wait_ready()?;
        Ok(registry)
    }

    /// Where the session server answers over HTTP: what clients are configured with.
    pub fn http(&self) -> SocketAddr {
        SocketAddr::from((self.link.inside(), 9603))
    }

    /// Where clients connect.
    pub fn session(&self) -> SocketAddr {
        SocketAddr::from((self.link.inside(), 9600))
    }

    /// Where the data server answers over HTTP.
    pub fn data_http(&self) -> SocketAddr {
        SocketAddr::from((self.link.inside(), 9622))
    }

    /// The link to it.
    pub fn link(&self) -> &Link {
        &self.link
    }

    /// Kills it (SIGKILL).
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }

    /// Starts it again on the same address; it knows nothing then.
    pub fn restart(&mut self) -> Result<()> {
        self.process = run(&self.link, &self.folder)?;
        self.wait_ready()
    }

    fn wait_ready(&mut self) -> Result<()> {
        let line = self.process.hear(START_LIMIT)?;
        if line != "READY" {
            bail!("SOFARegistry said {line:?} in place of READY");
        }
        Ok(())
    }
}

fn run(link: &Link, folder: &Path) -> Result<Process> {
    let mut options = vec!["-Xmx512m"];
    options.extend(["--add-opens", "java.base/sun.nio.ch=ALL-UNNAMED"]);
    options.extend(["--add-opens", "java.sql/java.sql=ALL-UNNAMED"]);
    options.extend(QUICK);
    let arguments = ["--address".to_owned(), link.inside().to_string()];
    let class = "mesh.apps.sofaregistryserver.Server";
    let java = apps::java("sofaregistry-server", class, &options, &arguments, folder)?;
    link.converse("sofaregistry", &java, folder)
}
