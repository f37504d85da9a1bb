//! etcd with its own command line as the stock client, in Dubbo's layout: `rest` providers below a lease.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use testkit::netns::Site;
use testkit::process::Process;

use crate::state::{Entry, Instance, SERVICE, State};

const FOLDER: &str = "/dubbo/shop/providers/";
const LEASE_SECONDS: &str = "20";

/// The program, spoken to in the registry's namespace.
#[derive(Clone, Debug)]
pub(crate) struct Etcdctl {
    pub(crate) site: Arc<Site>,
    pub(crate) server: String,
}

impl Etcdctl {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("etcdctl");
        command
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &self.server])
            .args(arguments);
        self.site.enter(&command)
    }

    fn run(&self, arguments: &[&str]) -> Result<String> {
        let output = self.command(arguments).output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "etcdctl {arguments:?}: {said}");
        Ok(String::from_utf8(output.stdout)?)
    }
}

/// An application that keeps a lease with its providers below it.
#[derive(Debug)]
pub(crate) struct Registrant {
    client: Etcdctl,
    lease: String,
    keeper: Process,
    keys: BTreeMap<u16, String>,
}

impl Registrant {
    pub(crate) fn start(client: Etcdctl, folder: &Path) -> Result<Registrant> {
        let granted = client.run(&["lease", "grant", LEASE_SECONDS])?;
        let lease = granted.split(' ').nth(1).context("no lease")?.to_owned();
        let mut keep = client.command(&["lease", "keep-alive", &lease]);
        let keeper = Process::start("etcd-registrant", &mut keep, folder)?;
        Ok(Registrant {
            client,
            lease,
            keeper,
            keys: BTreeMap::new(),
        })
    }

    /// Puts a provider, then takes out what it was before, as Dubbo does with a changed URL.
    pub(crate) fn register(&mut self, host: &str, instance: &Instance) -> Result<()> {
        let Instance {
            port,
            weight,
            color,
            ..
        } = instance;
        let url = format!(
            "rest://{host}:{port}/{SERVICE}?application={SERVICE}&color={color}&interface={SERVICE}&side=provider&weight={weight}"
        );
        let key = format!("{FOLDER}{}", encode(&url));
        let lease = format!("--lease={}", self.lease);
        self.client.run(&["put", &lease, &key, host])?;
        if let Some(before) = self.keys.insert(*port, key.clone())
            && before != key
        {
            self.client.run(&["del", &before])?;
        }
        Ok(())
    }

    pub(crate) fn deregister(&mut self, port: u16) -> Result<()> {
        let key = self.keys.remove(&port).context("not registered")?;
        self.client.run(&["del", &key]).map(|_| ())
    }

    pub(crate) fn kill(&mut self) -> Result<()> {
        self.keeper.kill()
    }
}

/// An application that watches the providers.
#[derive(Debug)]
pub(crate) struct Watcher {
    process: Process,
    entries: BTreeMap<String, Entry>,
}

impl Watcher {
    pub(crate) fn start(client: &Etcdctl, folder: &Path) -> Result<Watcher> {
        // From the first revision on: what is there already comes as news.
        let mut watch = client.command(&["watch", "--prefix", FOLDER, "--rev=1", "-w", "json"]);
        let process = Process::converse("etcd-watcher", &mut watch, folder)?;
        Ok(Watcher {
            process,
            entries: BTreeMap::new(),
        })
    }

    /// The states that it saw since it was last asked.
    pub(crate) fn news(&mut self) -> Result<Vec<State>> {
        let mut states = Vec::new();
        while let Ok(line) = self.process.hear(Duration::ZERO) {
            let news: Value = serde_json::from_str(&line).with_context(|| line.clone())?;
            for event in news["Events"].as_array().into_iter().flatten() {
                let key = STANDARD.decode(event["kv"]["key"].as_str().context("no key")?)?;
                let key = String::from_utf8(key)?;
                if event["type"] == 1 {
                    self.entries.remove(&key);
                } else {
                    let entry = entry(&key).with_context(|| key.clone())?;
                    self.entries.insert(key, entry);
                }
            }
            let mut state: State = self.entries.values().cloned().collect();
            state.sort();
            states.push(state);
        }
        self.process.check()?;
        Ok(states)
    }
}

fn entry(key: &str) -> Option<Entry> {
    let url = decode(key.strip_prefix(FOLDER)?)?;
    let (address, query) = url.strip_prefix("rest://")?.split_once('?')?;
    let (_, port) = address.split_once('/')?.0.split_once(':')?;
    let params: BTreeMap<&str, &str> = query.split('&').filter_map(|p| p.split_once('=')).collect();
    let param = |name: &str, usual: &'static str| params.get(name).copied().unwrap_or(usual);
    Some(Entry {
        port: port.parse().ok()?,
        weight: param("weight", "100").parse().ok()?,
        color: param("color", "-").to_owned(),
        mark: param("mesh.origin", "-").to_owned(),
    })
}

/// As Java's `URLEncoder`.
fn encode(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b'*') {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('%') {
        bytes.extend_from_slice(before.as_bytes());
        bytes.push(u8::from_str_radix(after.get(..2)?, 16).ok()?);
        rest = after.get(2..)?;
    }
    bytes.extend_from_slice(rest.as_bytes());
    String::from_utf8(bytes).ok()
}
