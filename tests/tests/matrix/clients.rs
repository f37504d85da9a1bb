//! Applications with the stock clients of registries: one registers, one watches.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use testkit::apps;
use testkit::netns::Site;
use testkit::process::Process;

use crate::state::{Instance, SERVICE, State, read_state};
use crate::{consul, etcd, kubernetes};

const LIMIT: Duration = Duration::from_secs(90);

/// Where an application of `tests/apps` is, and what it is told.
#[derive(Clone, Debug)]
pub(crate) struct Java {
    pub(crate) site: Arc<Site>,
    pub(crate) module: &'static str,
    pub(crate) class: &'static str,
    pub(crate) arguments: Vec<String>,
}

impl Java {
    pub(crate) fn start(&self, name: &str, folder: &Path) -> Result<apps::Starting> {
        let of = (self.module, self.class);
        apps::start_client_in(&self.site, of, name, &self.arguments, folder)
    }
}

/// An application of `tests/apps` that is up.
#[derive(Debug)]
pub(crate) struct Directory {
    process: Process,
    /// What it saw, said between answers.
    seen: VecDeque<String>,
}

impl Directory {
    pub(crate) fn new(process: Process) -> Directory {
        Directory {
            process,
            seen: VecDeque::new(),
        }
    }

    pub(crate) fn ask(&mut self, command: &str) -> Result<String> {
        self.process.say(command)?;
        let deadline = Instant::now() + LIMIT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self
                .process
                .hear(left)
                .with_context(|| command.to_owned())?;
            if line.starts_with("seen ") {
                self.seen.push_back(line);
            } else if line.starts_with("error ") {
                bail!("{}: {command}: {line}", self.process.name());
            } else {
                return Ok(line);
            }
        }
    }

    fn news(&mut self) -> Result<Vec<State>> {
        while let Ok(line) = self.process.hear(Duration::ZERO) {
            self.seen.push_back(line);
        }
        self.process.check()?;
        let prefix = format!("seen {SERVICE}");
        let lines = self.seen.drain(..);
        lines
            .map(|line| read_state(line.strip_prefix(&prefix).context(line.clone())?))
            .collect()
    }
}

/// One that registers.
#[derive(Debug)]
pub(crate) enum Registrant {
    Java(Directory),
    Etcdctl(etcd::Registrant),
    Consul(consul::Registrant),
    Kubectl(kubernetes::Registrant),
}

impl Registrant {
    /// Registers an instance, or changes it.
    pub(crate) fn register(&mut self, host: &str, instance: &Instance) -> Result<()> {
        match self {
            Registrant::Java(client) => {
                let Instance {
                    port,
                    weight,
                    color,
                    ..
                } = instance;
                let command = format!("register {SERVICE} {host} {port} {weight} {color}");
                client.ask(&command).map(|_| ())
            }
            Registrant::Etcdctl(client) => client.register(host, instance),
            Registrant::Consul(client) => client.register(host, instance),
            Registrant::Kubectl(client) => client.register(host, instance),
        }
    }

    /// Takes an instance out in an orderly way.
    pub(crate) fn deregister(&mut self, host: &str, port: u16) -> Result<()> {
        match self {
            Registrant::Java(client) => client
                .ask(&format!("deregister {SERVICE} {host} {port}"))
                .map(|_| ()),
            Registrant::Etcdctl(client) => client.deregister(port),
            Registrant::Consul(client) => client.deregister(port),
            Registrant::Kubectl(client) => client.deregister(port),
        }
    }

    /// Kills it (SIGKILL).
    pub(crate) fn kill(&mut self) -> Result<()> {
        match self {
            Registrant::Java(client) => client.process.kill(),
            Registrant::Etcdctl(client) => client.kill(),
            Registrant::Consul(client) => client.kill(),
            Registrant::Kubectl(client) => client.kill(),
        }
    }
}

/// One that watches.
#[derive(Debug)]
pub(crate) enum Watcher {
    Java(Directory),
    Etcdctl(etcd::Watcher),
    Consul(consul::Watcher),
    Kubectl(kubernetes::Watcher),
}

impl Watcher {
    /// The states that it saw since it was last asked.
    pub(crate) fn news(&mut self) -> Result<Vec<State>> {
        match self {
            Watcher::Java(client) => client.news(),
            Watcher::Etcdctl(client) => client.news(),
            Watcher::Consul(client) => client.news(),
            Watcher::Kubectl(client) => client.news(),
        }
    }
}
