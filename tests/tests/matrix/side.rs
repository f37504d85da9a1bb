//! One registry: its server in a network namespace, and beside it two applications with its stock client.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Result, bail};
use testkit::netns::Site;
use testkit::registries::{Consul, Etcd, Eureka, Kubernetes, Nacos, SofaRegistry, ZooKeeper};

use crate::clients::{Directory, Java, Registrant, Watcher};
use crate::consul::{self, Cli};
use crate::etcd::{self, Etcdctl};
use crate::kubernetes::{self, Kubectl};
use crate::state::{History, Instance, NACOS, SERVICE};

/// Which registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    ZooKeeper,
    Etcd,
    Eureka,
    SofaRegistry,
    Consul,
    Nacos,
    Kubernetes,
}

impl Kind {
    /// Those that are installed in a minute, then those that compile for long.
    pub(crate) const ALL: [Kind; 7] = [
        Kind::ZooKeeper,
        Kind::Etcd,
        Kind::Eureka,
        Kind::SofaRegistry,
        Kind::Consul,
        Kind::Nacos,
        Kind::Kubernetes,
    ];

    /// The name of its `RegistrySource`.
    pub(crate) fn source(self) -> &'static str {
        match self {
            Kind::ZooKeeper => "zk",
            Kind::Etcd => "etcd",
            Kind::Eureka => "eureka",
            Kind::SofaRegistry => "sofa",
            Kind::Consul => "consul",
            Kind::Nacos => NACOS,
            Kind::Kubernetes => "cluster",
        }
    }

    /// Whether it has after a crash what it had before.
    pub(crate) fn is_durable(self) -> bool {
        match self {
            Kind::ZooKeeper | Kind::Etcd | Kind::Consul | Kind::Kubernetes => true,
            Kind::Eureka | Kind::SofaRegistry | Kind::Nacos => false,
        }
    }
}

#[derive(Debug)]
enum Server {
    ZooKeeper(ZooKeeper),
    Etcd(Etcd),
    Eureka(Eureka),
    SofaRegistry(SofaRegistry),
    Consul(Consul),
    Nacos(Nacos),
    Kubernetes(Box<Kubernetes>),
}

/// One registry.
#[derive(Debug)]
pub(crate) struct Side {
    pub(crate) kind: Kind,
    registrant: Registrant,
    watcher: Watcher,
    pub(crate) history: History,
    server: Server,
    site: Arc<Site>,
    folder: PathBuf,
}

impl Side {
    /// Starts the server and the applications.
    pub(crate) fn start(kind: Kind, folder: &Path) -> Result<Side> {
        let name = kind.source();
        let site = Arc::new(Site::start(name, folder)?);
        let server = match kind {
            Kind::ZooKeeper => Server::ZooKeeper(ZooKeeper::start_in(&site, folder)?),
            Kind::Etcd => Server::Etcd(Etcd::start_in(&site, folder)?),
            Kind::Eureka => Server::Eureka(Eureka::start_in(&site, folder)?),
            Kind::SofaRegistry => Server::SofaRegistry(SofaRegistry::start_in(&site, folder)?),
            Kind::Consul => Server::Consul(Consul::start_in(&site, folder)?),
            Kind::Nacos => Server::Nacos(Nacos::start_in(&site, folder)?),
            Kind::Kubernetes => Server::Kubernetes(Box::new(Kubernetes::start_in(&site, folder)?)),
        };
        let (registrant, watcher) = match stock(&server, &site, folder)? {
            Stock::Java(java) => {
                let registrant = java.start(&format!("{name}-registrant"), folder)?;
                let watcher = java.start(&format!("{name}-watcher"), folder)?;
                let registrant = Registrant::Java(Directory::new(registrant.client()?));
                let mut watcher = Directory::new(watcher.client()?);
                watcher.ask(&format!("watch {SERVICE}"))?;
                (registrant, Watcher::Java(watcher))
            }
            Stock::Etcdctl(client) => {
                let watcher = etcd::Watcher::start(&client, folder)?;
                let registrant = etcd::Registrant::start(client, folder)?;
                (Registrant::Etcdctl(registrant), Watcher::Etcdctl(watcher))
            }
            Stock::Consul(client) => {
                let watcher = consul::Watcher::start(&client, folder)?;
                let registrant = consul::Registrant::start(client, 0, folder)?;
                (Registrant::Consul(registrant), Watcher::Consul(watcher))
            }
            Stock::Kubectl(client) => {
                let watcher = kubernetes::Watcher::start(&client, folder)?;
                let registrant = kubernetes::Registrant::start(client)?;
                (Registrant::Kubectl(registrant), Watcher::Kubectl(watcher))
            }
        };
        Ok(Side {
            kind,
            registrant,
            watcher,
            history: History::default(),
            server,
            site,
            folder: folder.to_owned(),
        })
    }

    /// What the recipe says in the place of its address, and its address.
    pub(crate) fn address(&self) -> Result<(&'static str, String)> {
        Ok(match &self.server {
            Server::ZooKeeper(server) => ("zookeeper.example:2181", server.address().to_string()),
            Server::Etcd(server) => ("etcd.example:2379", server.address().to_string()),
            Server::Eureka(server) => ("http://eureka.example:8761/eureka", server.url()),
            Server::SofaRegistry(server) => {
                ("sofaregistry.example:9603", server.http().to_string())
            }
            Server::Consul(server) => ("consul.example:8500", server.address().to_string()),
            Server::Nacos(server) => ("nacos.example:8848", server.address().to_string()),
            Server::Kubernetes(server) => {
                let file = server.kubeconfig(Kubernetes::ADMIN)?;
                ("/etc/pilot/kubeconfig", file.display().to_string())
            }
        })
    }

    /// The application that registers.
    pub(crate) fn registrant(&mut self) -> &mut Registrant {
        &mut self.registrant
    }

    /// Starts that application anew after it was killed.
    pub(crate) fn restart_registrant(&mut self) -> Result<()> {
        self.registrant = match stock(&self.server, &self.site, &self.folder)? {
            Stock::Java(java) => {
                let name = format!("{}-registrant-2", self.kind.source());
                let registrant = java.start(&name, &self.folder)?;
                Registrant::Java(Directory::new(registrant.client()?))
            }
            Stock::Etcdctl(client) => {
                Registrant::Etcdctl(etcd::Registrant::start(client, &self.folder)?)
            }
            Stock::Consul(client) => {
                Registrant::Consul(consul::Registrant::start(client, 1, &self.folder)?)
            }
            Stock::Kubectl(client) => Registrant::Kubectl(kubernetes::Registrant::start(client)?),
        };
        Ok(())
    }

    /// Takes in what the watching application saw.
    pub(crate) fn look(&mut self, living: &BTreeMap<u16, Instance>) -> Result<()> {
        for state in self.watcher.news()? {
            self.history.take(self.kind.source(), state, living);
        }
        Ok(())
    }

    /// Kills the server (SIGKILL).
    pub(crate) fn kill_server(&mut self) -> Result<()> {
        match &mut self.server {
            Server::ZooKeeper(server) => server.kill(),
            Server::Etcd(server) => server.kill(),
            Server::Eureka(server) => server.kill(),
            Server::SofaRegistry(server) => server.kill(),
            Server::Consul(server) => server.kill(),
            Server::Nacos(server) => server.kill(),
            Server::Kubernetes(server) => server.kill(),
        }
    }

    /// Starts it again.
    pub(crate) fn restart_server(&mut self) -> Result<()> {
        match &mut self.server {
            Server::ZooKeeper(server) => server.restart(),
            Server::Etcd(server) => server.restart(),
            Server::Eureka(server) => server.restart(),
            Server::SofaRegistry(server) => server.restart(),
            Server::Consul(server) => server.restart(),
            Server::Nacos(server) => server.restart(),
            Server::Kubernetes(server) => server.restart(),
        }
    }

    /// Where its applications reach what is outside of its namespace.
    pub(crate) fn outside(&self) -> Ipv4Addr {
        self.site.outside()
    }

    /// What the watching application says to a command of its own.
    pub(crate) fn ask_watcher(&mut self, command: &str) -> Result<String> {
        match &mut self.watcher {
            Watcher::Java(client) => client.ask(command),
            Watcher::Etcdctl(_) | Watcher::Consul(_) | Watcher::Kubectl(_) => {
                bail!("there is no command {command}")
            }
        }
    }

    /// Cuts the registry and its applications off from the hub, or mends that.
    pub(crate) fn set_cut(&self, is_cut: bool) -> Result<()> {
        self.site.set_cut(is_cut)
    }
}

/// How an application of the registry is started.
enum Stock {
    Java(Java),
    Etcdctl(Etcdctl),
    Consul(Cli),
    Kubectl(Kubectl),
}

fn stock(server: &Server, site: &Arc<Site>, folder: &Path) -> Result<Stock> {
    let (module, class, arguments) = match server {
        Server::Etcd(server) => {
            return Ok(Stock::Etcdctl(Etcdctl {
                site: site.clone(),
                server: server.address().to_string(),
            }));
        }
        Server::Consul(server) => {
            return Ok(Stock::Consul(Cli {
                site: site.clone(),
                server: server.address().to_string(),
            }));
        }
        Server::Kubernetes(server) => {
            return Ok(Stock::Kubectl(Kubectl {
                site: site.clone(),
                kubeconfig: server.kubeconfig(Kubernetes::ADMIN)?,
                folder: folder.to_owned(),
            }));
        }
        Server::ZooKeeper(server) => (
            "zookeeper",
            "mesh.apps.zookeeper.ZooKeeperDirectory",
            ["--servers".to_owned(), server.address().to_string()],
        ),
        Server::Eureka(server) => (
            "eureka",
            "mesh.apps.eureka.EurekaDirectory",
            ["--servers".to_owned(), server.url()],
        ),
        Server::SofaRegistry(server) => (
            "sofaregistry",
            "mesh.apps.sofaregistry.SofaRegistryDirectory",
            ["--host".to_owned(), server.http().ip().to_string()],
        ),
        Server::Nacos(server) => (
            "nacos",
            "mesh.apps.nacos.NacosDirectory",
            ["--server".to_owned(), server.address().to_string()],
        ),
    };
    Ok(Stock::Java(Java {
        site: site.clone(),
        module,
        class,
        arguments: arguments.to_vec(),
    }))
}
