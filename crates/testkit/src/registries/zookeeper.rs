//! ZooKeeper, from the distribution's package.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::certificates::Authority;
use crate::netns::Site;
use crate::process::Process;
use crate::registries::place::Place;
use crate::wait;

const JAR: &str = "/usr/share/java/zookeeper.jar";
const START_LIMIT: Duration = Duration::from_secs(60);

/// One ZooKeeper server; its data outlives [`ZooKeeper::kill`].
#[derive(Debug)]
pub struct ZooKeeper {
    place: Place,
    folder: PathBuf,
    process: Process,
}

impl ZooKeeper {
    /// Starts a server with its data and its log in `folder`, and waits until it answers.
    pub fn start(folder: &Path) -> Result<ZooKeeper> {
        ZooKeeper::start_on(Place::loopback()?, folder, "")
    }

    /// The same in a network namespace.
    pub fn start_in(site: &Arc<Site>, folder: &Path) -> Result<ZooKeeper> {
        ZooKeeper::start_on(Place::Site(site.clone()), folder, "")
    }

    /// Starts a server that also listens for clients with TLS that have a certificate of the authority.
    pub fn start_tls(folder: &Path, authority: &Authority) -> Result<ZooKeeper> {
        let place = Place::loopback()?;
        let ip = place.ip();
        let server = authority.issue(folder, "zookeeper", &[&ip.to_string()], None)?;
        let store = folder.join("zookeeper.pem");
        let both = [&server.key_file, &server.cert_file].map(fs::read_to_string);
        fs::write(&store, both.into_iter().collect::<Result<String, _>>()?)?;
        let config = format!(
            "serverCnxnFactory=org.apache.zookeeper.server.NettyServerCnxnFactory\n\
             secureClientPort=2281\nsecureClientPortAddress={ip}\nssl.hostnameVerification=false\n\
             ssl.keyStore.type=PEM\nssl.keyStore.location={}\n\
             ssl.trustStore.type=PEM\nssl.trustStore.location={}\n",
            store.display(),
            authority.file().display()
        );
        ZooKeeper::start_on(place, folder, &config)
    }

    fn start_on(place: Place, folder: &Path, more: &str) -> Result<ZooKeeper> {
        let folder = folder.join("zookeeper");
        fs::create_dir_all(folder.join("data"))?;
        let config = format!(
            "tickTime=500\nminSessionTimeout=1000\nmaxSessionTimeout=60000\nmaxClientCnxns=0\n\
             clientPort=2181\nclientPortAddress={}\ndataDir={}\nadmin.enableServer=false\n\
             4lw.commands.whitelist=*\n{more}",
            place.ip(),
            folder.join("data").display()
        );
        fs::write(folder.join("zoo.cfg"), config)?;
        let process = run(&place, &folder)?;
        let mut server = ZooKeeper {
            place,
            folder,
            process,
        };
        server.wait_ready()?;
        Ok(server)
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.place.address(2181)
    }

    /// Where clients connect with TLS, if the server was started with it.
    pub fn secure_address(&self) -> SocketAddr {
        self.place.address(2281)
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
        wait::until_ok("ZooKeeper", START_LIMIT, || {
            process.check()?;
            let mut stream = TcpStream::connect(address)?;
            stream.set_read_timeout(Some(Duration::from_secs(2)))?;
            stream.write_all(b"ruok")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            if answer != "imok" {
                bail!("says {answer:?}");
            }
            Ok(())
        })
    }
}

fn run(place: &Place, folder: &Path) -> Result<Process> {
    fs::metadata(JAR).context("ZooKeeper is not installed; `make test` installs it")?;
    let mut command = Command::new("java");
    command
        .args(["-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"])
        .args(["-Dzookeeper.jmx.log4j.disable=true", "-cp"])
        // Only TLS needs the last two.
        .arg(format!(
            "/etc/zookeeper/conf:{JAR}:/usr/share/java/netty-codec.jar:/usr/share/java/netty-resolver.jar"
        ))
        .arg("org.apache.zookeeper.server.ZooKeeperServerMain")
        .arg(folder.join("zoo.cfg"))
        .current_dir(folder);
    Process::start("zookeeper", &mut place.command(command), folder)
}
