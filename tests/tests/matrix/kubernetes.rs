//! Kubernetes with kubectl as the stock client: a plain Service, whose endpoints are Pods. No controller runs here, so the
//! registrant does what they do with slices.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use testkit::netns::Site;
use testkit::process::Process;

use crate::state::{Entry, Instance, SERVICE, State};

const NAMESPACE: &str = "prod";
/// Where the recipe has copies written.
const COPIES: &str = "mesh-copies";
/// Between two attempts to watch.
const AGAIN: Duration = Duration::from_secs(1);

/// The name of the Service in the mesh.
pub(crate) fn host() -> String {
    format!("{SERVICE}.{NAMESPACE}.svc.cluster.local")
}

/// The program, spoken to in the cluster's namespace.
#[derive(Clone, Debug)]
pub(crate) struct Kubectl {
    pub(crate) site: Arc<Site>,
    pub(crate) kubeconfig: PathBuf,
    /// Takes what is applied, and its cache.
    pub(crate) folder: PathBuf,
}

impl Kubectl {
    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("kubectl");
        command
            .arg("--kubeconfig")
            .arg(&self.kubeconfig)
            .arg("--cache-dir")
            .arg(self.folder.join("kubectl"))
            .args(words);
        self.site.enter(&command)
    }

    fn run(&self, words: &[&str]) -> Result<Vec<u8>> {
        let output = self.command(words).output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "kubectl {words:?}: {said}");
        Ok(output.stdout)
    }

    fn apply(&self, objects: &[Value]) -> Result<()> {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        let file = self.folder.join("applied.json");
        serde_json::to_writer(File::create(&file)?, &list)?;
        let file = file.display().to_string();
        let words = ["apply", "--server-side", "--validate=false", "-f", &file];
        self.run(&words).map(|_| ())
    }
}

/// What makes a Service and Pods, and their slices.
#[derive(Debug)]
pub(crate) struct Registrant {
    client: Kubectl,
    ports: BTreeSet<u16>,
}

impl Registrant {
    pub(crate) fn start(client: Kubectl) -> Result<Registrant> {
        let namespace =
            |name| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        client.apply(&[namespace(NAMESPACE), namespace(COPIES)])?;
        client.apply(&[json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": SERVICE, "namespace": NAMESPACE},
            "spec": {"ports": [{"name": "http", "port": 80}]},
        })])?;
        let ports = BTreeSet::new();
        Ok(Registrant { client, ports })
    }

    /// A Pod and its endpoint, or a change of them.
    pub(crate) fn register(&mut self, host: &str, instance: &Instance) -> Result<()> {
        let Instance {
            port,
            weight,
            color,
            ..
        } = instance;
        let name = format!("{SERVICE}-{port}");
        let weight = weight.to_string();
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": name, "namespace": NAMESPACE, "labels": {"color": color},
                "annotations": {"mesh.sofastack.io/weight": weight},
            },
            "spec": {"containers": [{"name": "app", "image": "app"}]},
        });
        // Slices say nothing of Pods' labels: these are for the watcher.
        let labels =
            json!({"kubernetes.io/service-name": SERVICE, "color": color, "weight": weight});
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": name, "namespace": NAMESPACE, "labels": labels},
            "ports": [{"name": "http", "port": port, "protocol": "TCP"}],
            "endpoints": [{
                "addresses": [host], "conditions": {"ready": true},
                "targetRef": {"kind": "Pod", "name": name, "namespace": NAMESPACE},
            }],
        });
        self.client.apply(&[pod, slice])?;
        self.ports.insert(*port);
        Ok(())
    }

    pub(crate) fn deregister(&mut self, port: u16) -> Result<()> {
        self.ports.remove(&port);
        self.delete(&[port])
    }

    /// Kubernetes' controllers take out the endpoints of Pods that crash.
    pub(crate) fn kill(&mut self) -> Result<()> {
        let ports: Vec<u16> = std::mem::take(&mut self.ports).into_iter().collect();
        self.delete(&ports)
    }

    fn delete(&self, ports: &[u16]) -> Result<()> {
        let names: Vec<String> = ports.iter().map(|p| format!("{SERVICE}-{p}")).collect();
        for kind in ["endpointslice", "pod"] {
            let words = [
                "delete",
                kind,
                "-n",
                NAMESPACE,
                "--grace-period=0",
                "--force",
            ];
            let names = names.iter().map(String::as_str);
            let words: Vec<&str> = words.into_iter().chain(names).collect();
            self.client.run(&words)?;
        }
        Ok(())
    }
}

/// A program that watches slices as kube-proxy does: one list as a whole, then what changes; again when the server was away.
#[derive(Debug)]
pub(crate) struct Watcher {
    client: Kubectl,
    folder: PathBuf,
    process: Process,
    began: Instant,
    slices: Slices,
}

type Slices = BTreeMap<String, Vec<Entry>>;

impl Watcher {
    pub(crate) fn start(client: &Kubectl, folder: &Path) -> Result<Watcher> {
        let (slices, process) = watch(client, folder)?;
        Ok(Watcher {
            client: client.clone(),
            folder: folder.to_owned(),
            process,
            began: Instant::now(),
            slices,
        })
    }

    /// The states that it saw since it was last asked.
    pub(crate) fn news(&mut self) -> Result<Vec<State>> {
        let mut states = Vec::new();
        while let Ok(line) = self.process.hear(Duration::ZERO) {
            let event: Value = serde_json::from_str(&line).with_context(|| line.clone())?;
            let object = &event["object"];
            match event["type"].as_str().context("no type")? {
                "ADDED" | "MODIFIED" => {
                    let entries = read(object).with_context(|| line.clone())?;
                    self.slices.insert(name(object), entries);
                }
                "DELETED" => drop(self.slices.remove(&name(object))),
                // The server ends the watch after an error.
                _ => continue,
            }
            states.push(self.state());
        }
        if self.process.check().is_err() && self.began.elapsed() > AGAIN {
            self.began = Instant::now();
            // The server may still be away.
            if let Ok(watched) = watch(&self.client, &self.folder) {
                (self.slices, self.process) = watched;
                states.push(self.state());
            }
        }
        Ok(states)
    }

    fn state(&self) -> State {
        let mut state: State = self.slices.values().flatten().cloned().collect();
        state.sort();
        state
    }
}

/// The whole list, and a process that tells what changes in it.
fn watch(client: &Kubectl, folder: &Path) -> Result<(Slices, Process)> {
    let path = format!(
        "/apis/discovery.k8s.io/v1/endpointslices?labelSelector=kubernetes.io%2Fservice-name%3D{SERVICE}"
    );
    let list = client.run(&["get", "--raw", &path])?;
    let list: Value = serde_json::from_slice(&list)?;
    let items = list["items"].as_array().into_iter().flatten();
    let slices = items.map(|item| Some((name(item), read(item)?)));
    let slices = slices.collect::<Option<Slices>>();
    let version = list["metadata"]["resourceVersion"].as_str();
    let path = format!(
        "{path}&watch=1&resourceVersion={}",
        version.context("no version")?
    );
    let mut command = client.command(&["get", "--raw", &path]);
    let process = Process::converse("kubernetes-watcher", &mut command, folder)?;
    Ok((slices.with_context(|| list.to_string())?, process))
}

fn name(slice: &Value) -> String {
    let of = |key: &str| slice["metadata"][key].as_str().unwrap_or_default();
    format!("{}/{}", of("namespace"), of("name"))
}

/// The endpoints that take calls; of copies also what the mesh says of them.
fn read(slice: &Value) -> Option<Vec<Entry>> {
    let port = slice["ports"][0]["port"].as_u64()?.try_into().ok()?;
    let endpoints = slice["endpoints"].as_array().into_iter().flatten();
    let ready: Vec<&Value> = endpoints
        .filter(|endpoint| endpoint["conditions"]["ready"] == true)
        .map(|endpoint| &endpoint["addresses"][0])
        .collect();
    let labels = &slice["metadata"]["labels"];
    let annotation = &slice["metadata"]["annotations"]["mesh.sofastack.io/instances"];
    let Some(copies) = annotation.as_str() else {
        let entry = Entry {
            port,
            weight: labels["weight"].as_str()?.parse().ok()?,
            color: labels["color"].as_str()?.to_owned(),
            mark: "-".to_owned(),
        };
        return Some(vec![entry; ready.len()]);
    };
    let copies: Value = serde_json::from_str(copies).ok()?;
    let copies = copies.as_array()?.iter();
    let copies = copies.filter(|copy| ready.contains(&&copy["address"]));
    let entry = |copy: &Value| {
        let word = |name: &str| copy["metadata"][name].as_str().unwrap_or("-").to_owned();
        Some(Entry {
            port,
            weight: copy["weight"].as_u64()?.try_into().ok()?,
            color: word("color"),
            mark: word("mesh.origin"),
        })
    };
    copies.map(entry).collect()
}
