//! Consul with its own command line as the stock client.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use testkit::netns::Site;
use testkit::process::Process;
use testkit::{programs, wait};

use crate::state::{Entry, Instance, SERVICE, State};

/// Ports of applications begin here.
const HEALTH: u16 = 7000;
const LIMIT: Duration = Duration::from_secs(20);

/// The program, spoken to in the registry's namespace.
#[derive(Clone, Debug)]
pub(crate) struct Cli {
    pub(crate) site: Arc<Site>,
    pub(crate) server: String,
}

impl Cli {
    fn command(&self, words: &[&str]) -> Result<Command> {
        let mut command = Command::new(programs::peer("consul").context("make peers builds it")?);
        command.env("CONSUL_HTTP_ADDR", &self.server).args(words);
        Ok(self.site.enter(&command))
    }

    fn run(&self, words: &[&str]) -> Result<()> {
        let output = self.command(words)?.output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "consul {words:?}: {said}");
        Ok(())
    }
}

/// An application that Consul asks whether it is well, as Spring Cloud's are: what it registered goes when it does not answer.
#[derive(Debug)]
pub(crate) struct Registrant {
    client: Cli,
    folder: PathBuf,
    /// Where it answers.
    health: SocketAddr,
    application: Process,
}

impl Registrant {
    /// Each application has a number of its own.
    pub(crate) fn start(client: Cli, number: u16, folder: &Path) -> Result<Registrant> {
        let server: SocketAddr = client.server.parse()?;
        let health = SocketAddr::new(server.ip(), HEALTH + number);
        let mut program = Command::new("python3");
        program
            .args(["-m", "http.server", "--bind", &health.ip().to_string()])
            .arg(health.port().to_string())
            .current_dir(folder);
        let mut program = client.site.enter(&program);
        let application = Process::start("consul-registrant", &mut program, folder)?;
        // Otherwise Consul may ask before it answers, and takes out what has just come.
        wait::until_ok("an application of Consul", LIMIT, || {
            Ok(TcpStream::connect(health)?)
        })?;
        Ok(Registrant {
            client,
            folder: folder.to_owned(),
            health,
            application,
        })
    }

    /// Registers an instance, or changes it.
    pub(crate) fn register(&mut self, host: &str, instance: &Instance) -> Result<()> {
        let Instance {
            port,
            weight,
            color,
            ..
        } = instance;
        let service = json!({"service": {
            "name": SERVICE, "id": port.to_string(), "address": host, "port": port,
            "meta": {"weight": weight.to_string(), "color": color},
            "check": {
                "http": format!("http://{}/", self.health), "interval": "1s", "timeout": "10s",
                "status": "passing", "deregister_critical_service_after": "1m",
            },
        }});
        let file = self.folder.join("consul-service.json");
        fs::write(&file, service.to_string())?;
        let file = file.display().to_string();
        self.client.run(&["services", "register", &file])
    }

    /// Takes an instance out.
    pub(crate) fn deregister(&mut self, port: u16) -> Result<()> {
        let id = format!("-id={port}");
        self.client.run(&["services", "deregister", &id])
    }

    /// Kills it (SIGKILL).
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.application.kill()
    }
}

/// An application that watches the instances.
#[derive(Debug)]
pub(crate) struct Watcher(Process);

impl Watcher {
    pub(crate) fn start(client: &Cli, folder: &Path) -> Result<Watcher> {
        let service = format!("-service={SERVICE}");
        let mut watch = client.command(&[
            "watch",
            "-type=service",
            &service,
            "-passingonly=true",
            "cat",
        ])?;
        Process::converse("consul-watcher", &mut watch, folder).map(Watcher)
    }

    /// The states that it saw since it was last asked.
    pub(crate) fn news(&mut self) -> Result<Vec<State>> {
        let mut states = Vec::new();
        while let Ok(line) = self.0.hear(Duration::ZERO) {
            let news: Value = serde_json::from_str(&line).with_context(|| line.clone())?;
            let entries = news.as_array().into_iter().flatten();
            let entries =
                entries.map(|entry| read(&entry["Service"]).with_context(|| entry.to_string()));
            let mut state: State = entries.collect::<Result<_>>()?;
            state.sort();
            states.push(state);
        }
        self.0.check()?;
        Ok(states)
    }
}

fn read(service: &Value) -> Option<Entry> {
    let meta = |name: &str, usual: &str| {
        let word = service["Meta"][name].as_str();
        word.unwrap_or(usual).to_owned()
    };
    // Consul's keys have no dots: the hub writes them in a way of its own.
    let words = service["Meta"].as_object()?;
    let mark = words
        .iter()
        .find(|(key, _)| key.starts_with("mesh") && key.ends_with("origin"));
    Some(Entry {
        port: service["Port"].as_u64()?.try_into().ok()?,
        weight: meta("weight", "100").parse().ok()?,
        color: meta("color", "-"),
        mark: mark
            .map_or("-", |(_, mark)| mark.as_str().unwrap_or_default())
            .to_owned(),
    })
}
