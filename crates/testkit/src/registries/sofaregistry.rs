//! SOFARegistry's server 6.3.0, a module of `tests/apps`: meta, data and session server in one process. It listens on every
//! address and does not take loopback for its own, so it has a network namespace.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::apps;
use crate::netns::Site;
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
    site: Arc<Site>,
    folder: PathBuf,
    process: Process,
}

impl SofaRegistry {
    /// Starts it with its logs in `folder`, and waits until it is in service.
    pub fn start(folder: &Path) -> Result<SofaRegistry> {
        SofaRegistry::start_in(&Arc::new(Site::start("sofaregistry", folder)?), folder)
    }

    /// The same in a network namespace that is there.
    pub fn start_in(site: &Arc<Site>, folder: &Path) -> Result<SofaRegistry> {
        let process = run(site, folder)?;
        let mut registry = SofaRegistry {
            site: site.clone(),
            folder: folder.to_owned(),
            process,
        };
        registry.wait_ready()?;
        Ok(registry)
    }

    /// Where the session server answers over HTTP: what clients are configured with.
    pub fn http(&self) -> SocketAddr {
        SocketAddr::from((self.site.inside(), 9603))
    }

    /// Where clients connect.
    pub fn session(&self) -> SocketAddr {
        SocketAddr::from((self.site.inside(), 9600))
    }

    /// Where the data server answers over HTTP.
    pub fn data_http(&self) -> SocketAddr {
        SocketAddr::from((self.site.inside(), 9622))
    }

    /// Kills it (SIGKILL).
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }

    /// Starts it again on the same address; it knows nothing then.
    pub fn restart(&mut self) -> Result<()> {
        self.process = run(&self.site, &self.folder)?;
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

fn run(site: &Site, folder: &Path) -> Result<Process> {
    let mut options = vec!["-Xmx512m"];
    options.extend(["--add-opens", "java.base/sun.nio.ch=ALL-UNNAMED"]);
    options.extend(["--add-opens", "java.sql/java.sql=ALL-UNNAMED"]);
    options.extend(QUICK);
    let arguments = ["--address".to_owned(), site.inside().to_string()];
    let class = "mesh.apps.sofaregistryserver.Server";
    let java = apps::java("sofaregistry-server", class, &options, &arguments, folder)?;
    Process::converse("sofaregistry", &mut site.enter(&java), folder)
}
