//! Registers the applications that register nowhere by themselves while they live, and withdraws them when they do not.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use api::mesh::registry::v1::{Instance, InstanceRef};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::agent::Agent;
use super::application::{Application, Service, compile_applications};
use super::config::Config;
use super::publications::Owner;
use super::server::instance_id;
use super::{annotations, probe, stopped};

/// Between two looks at the file.
const FILE_INTERVAL: Duration = Duration::from_secs(1);
/// A file that changes within this time is still being written: half of it may look whole.
const FILE_SETTLES: Duration = Duration::from_millis(100);
/// How long what a file said before stays beside what it says now, until that was asked once.
const TAKE_OVER: Duration = Duration::from_secs(10);
/// A larger file is refused.
const FILE_BYTES: u64 = 4 * 1024 * 1024;

/// Looks after all applications until `stop` becomes true.
pub(super) async fn watch(agent: Arc<Agent>, config: Config, mut stop: watch::Receiver<bool>) {
    let config = Arc::new(config);
    let mut tasks = JoinSet::new();
    for application in config.applications.iter().cloned() {
        let (agent, config) = (agent.clone(), config.clone());
        tasks.spawn(async move { Keeper::new(agent, config, application).run(None).await });
    }
    if let Some(file) = config.applications_file.clone() {
        let (agent, config) = (agent.clone(), config.clone());
        tasks.spawn(async move { follow(&agent, &config, &file).await });
    }
    // What is registered then is taken out by the agent.
    stopped(&mut stop).await;
}

/// Runs the applications of a file, and others when it changes.
async fn follow(agent: &Arc<Agent>, config: &Arc<Config>, file: &Path) {
    let mut seen: Option<(SystemTime, u64)> = None;
    let mut running: Vec<(Application, watch::Sender<bool>)> = Vec::new();
    let mut tasks = JoinSet::new();
    let mut interval = tokio::time::interval(FILE_INTERVAL);
    let mut failure = String::new();
    loop {
        tokio::select! {
            _ = interval.tick() => {}
            Some(_) = tasks.join_next() => continue,
        }
        let stamp = stamp(file).await;
        if stamp.as_ref().ok() == seen.as_ref() && seen.is_some() {
            continue;
        }
        let read = match stamp {
            Err(error) => Err(error.to_string()),
            Ok(stamp) => match settled(file, stamp).await {
                false => continue,
                true => {
                    seen = Some(stamp);
                    read(file, config).await
                }
            },
        };
        let applications = match read {
            Ok(applications) => applications,
            Err(why) => {
                if why != failure {
                    tracing::error!(file = %file.display(), "{why}; what it said before stays");
                    failure = why;
                }
                continue;
            }
        };
        failure.clear();
        let (stay, gone): (Vec<_>, Vec<_>) = running
            .into_iter()
            .partition(|(application, _)| applications.contains(application));
        running = stay;
        let mut asked = Vec::new();
        for application in applications {
            if running.iter().any(|(known, _)| *known == application) {
                continue;
            }
            let (stop, mut ended) = watch::channel(false);
            let (first, once) = oneshot::channel();
            asked.push(once);
            let mut keeper = Keeper::new(agent.clone(), config.clone(), application.clone());
            tasks.spawn(async move {
                tokio::select! {
                    () = keeper.run(Some(first)) => {}
                    () = stopped(&mut ended) => {}
                }
                keeper.withdraw().await;
            });
            running.push((application, stop));
        }
        // What is in the old file and in the new one never goes.
        let all_asked = async {
            for once in asked {
                // An error says that it has ended, which is as good.
                let _ = once.await;
            }
        };
        if timeout(TAKE_OVER, all_asked).await.is_err() {
            tracing::warn!(file = %file.display(), "an application did not answer in {TAKE_OVER:?}");
        }
        for (_, stop) in gone {
            // Its task may have ended already.
            let _ = stop.send(true);
        }
    }
}

/// What changes when the file does.
async fn stamp(file: &Path) -> std::io::Result<(SystemTime, u64)> {
    let metadata = tokio::fs::metadata(file).await?;
    Ok((metadata.modified()?, metadata.len()))
}

/// Whether nobody writes the file just now.
async fn settled(file: &Path, before: (SystemTime, u64)) -> bool {
    tokio::time::sleep(FILE_SETTLES).await;
    stamp(file).await.is_ok_and(|after| after == before)
}

async fn read(file: &Path, config: &Config) -> Result<Vec<Application>, String> {
    let metadata = tokio::fs::metadata(file).await.map_err(|e| e.to_string())?;
    if metadata.len() > FILE_BYTES {
        return Err(format!("is larger than {FILE_BYTES} bytes"));
    }
    let text = tokio::fs::read_to_string(file)
        .await
        .map_err(|e| e.to_string())?;
    let message = match annotations::of_file(&text) {
        Some(annotated) => annotated?,
        None => {
            let document = api::yaml::to_value(&text).map_err(|e| e.to_string())?;
            annotations::document_of_applications(&document)?
        }
    };
    compile_applications(&message.applications, &config.ingress_ports).map_err(|e| e.to_string())
}

/// One application and what of it is registered.
struct Keeper {
    agent: Arc<Agent>,
    config: Arc<Config>,
    owner: Owner,
    application: Application,
    registered: BTreeMap<String, Instance>,
    failures: u32,
}

impl Keeper {
    fn new(agent: Arc<Agent>, config: Arc<Config>, application: Application) -> Keeper {
        Keeper {
            owner: agent.new_owner(),
            agent,
            config,
            application,
            registered: BTreeMap::new(),
            failures: 0,
        }
    }

    /// Looks after it for ever; says on `first` when it has looked once.
    async fn run(&mut self, mut first: Option<oneshot::Sender<()>>) {
        loop {
            match probe::ask(&self.application).await {
                Ok(services) => {
                    self.failures = 0;
                    let wanted: BTreeMap<String, Instance> = services
                        .iter()
                        .map(|service| self.instance(service))
                        .map(|instance| (format!("{}/{}", instance.service, instance.id), instance))
                        .collect();
                    self.register(wanted).await;
                }
                Err(why) => {
                    self.failures = self.failures.saturating_add(1);
                    if self.failures == self.application.unhealthy_threshold
                        && !self.registered.is_empty()
                    {
                        let endpoint = &self.application.endpoint;
                        tracing::warn!(endpoint, "the application is withdrawn: {why}");
                        self.withdraw().await;
                    }
                }
            }
            if let Some(first) = first.take() {
                // One who waits no more needs no answer.
                let _ = first.send(());
            }
            tokio::time::sleep(self.application.interval).await;
        }
    }

    fn instance(&self, service: &Service) -> Instance {
        let protocol = &self.application.protocol;
        let port = self.config.ingress_ports.get(protocol).copied();
        let port = port.unwrap_or_default();
        let address = &self.config.instance_address;
        let mut metadata = service.metadata.clone();
        metadata.extend(self.config.labels.clone());
        Instance {
            protocol: protocol.clone(),
            service: service.name.clone(),
            id: instance_id(address, port, &service.version, &service.group),
            version: service.version.clone(),
            group: service.group.clone(),
            address: address.clone(),
            port: u32::from(port),
            weight: service.weight,
            metadata: metadata.into_iter().collect(),
            origin: "mesh".to_owned(),
            ..Instance::default()
        }
    }

    async fn register(&mut self, wanted: BTreeMap<String, Instance>) {
        let gone: Vec<String> = self
            .registered
            .keys()
            .filter(|id| !wanted.contains_key(*id))
            .cloned()
            .collect();
        for id in gone {
            if let Some(instance) = self.registered.remove(&id) {
                self.take_out(&instance).await;
            }
        }
        for (id, instance) in wanted {
            if self.registered.get(&id) == Some(&instance) {
                continue;
            }
            // The agent keeps on trying: to ask is enough, even if this ends while it waits.
            self.registered.insert(id, instance.clone());
            let limit = self.config.publish_timeout;
            let service = instance.service.clone();
            if let Err(why) = self.agent.publish(self.owner, instance, limit).await {
                tracing::warn!(service, "{why}");
            }
        }
    }

    async fn withdraw(&mut self) {
        for instance in std::mem::take(&mut self.registered).into_values() {
            self.take_out(&instance).await;
        }
    }

    async fn take_out(&self, instance: &Instance) {
        let reference = InstanceRef {
            protocol: instance.protocol.clone(),
            service: instance.service.clone(),
            id: instance.id.clone(),
            ..InstanceRef::default()
        };
        let limit = self.config.publish_timeout;
        if let Err(why) = self.agent.unpublish(self.owner, &reference, limit).await {
            tracing::warn!(service = instance.service, "{why}");
        }
    }
}
