//! ZooKeeper (3.5 to 3.9) as a registry: Dubbo's interface level, SOFARPC's and Spring Cloud's layouts, read with watches, and
//! written as ephemeral nodes.

mod application_level;
mod centre;
mod layout;
mod nodes;
mod read;
mod session;
mod write;

use std::time::Duration;

use base::FieldError;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::backoff::Backoff;
use crate::dubbo_metadata::Revisions;
use crate::registry_source::ConfigDuration;
use crate::secret::Credentials;
use crate::source::{Link, Report};
use crate::tls::ClientTls;

pub(crate) use layout::{Said, node, said};
use session::{Client, Events, Failure};

const SESSION_TIMEOUT: Duration = Duration::from_secs(30);
/// What servers take by default is 2 to 20 of their ticks of 2 s.
const SESSION_TIMEOUT_LIMITS: (Duration, Duration) =
    (Duration::from_secs(1), Duration::from_secs(600));

/// `zookeeper` of a `RegistrySource`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// `host:port` of each server.
    pub servers: Vec<String>,
    /// A path that all others are below.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub chroot: String,
    /// Dubbo's roots (its registry parameter `group`); `/dubbo` when absent.
    #[serde(default = "dubbo_roots")]
    pub dubbo_roots: Vec<String>,
    /// SOFARPC's root; `/sofa-rpc` when absent, empty for none.
    #[serde(default = "sofarpc_root")]
    pub sofarpc_root: String,
    /// Root of Spring Cloud's applications; `/services` when absent, empty for none.
    #[serde(default = "spring_root")]
    pub spring_root: String,
    /// After this long without a sign of this hub the server deletes its nodes; 30 s when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_timeout: Option<ConfigDuration>,
    /// For the scheme `digest`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Credentials>,
    /// With it the servers are spoken to over TLS, at their `secureClientPort`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<ClientTls>,
}

fn dubbo_roots() -> Vec<String> {
    vec!["/dubbo".to_owned()]
}

fn sofarpc_root() -> String {
    "/sofa-rpc".to_owned()
}

fn spring_root() -> String {
    "/services".to_owned()
}

impl Default for Config {
    /// The layouts at their usual places.
    fn default() -> Config {
        Config {
            servers: Vec::new(),
            chroot: String::new(),
            dubbo_roots: dubbo_roots(),
            sofarpc_root: sofarpc_root(),
            spring_root: spring_root(),
            session_timeout: None,
            digest: None,
            tls: None,
        }
    }
}

impl Config {
    /// Checks what deserialisation cannot.
    pub fn validate(&self) -> Result<(), FieldError> {
        if self.servers.is_empty() {
            return Err(FieldError::at("servers", "must name a server"));
        }
        for (index, server) in self.servers.iter().enumerate() {
            crate::naming::host_port(server).map_err(|e| {
                FieldError::new(e.to_string())
                    .in_index(index)
                    .in_field("servers")
            })?;
        }
        let roots = self.dubbo_roots.iter().map(|root| ("dubboRoots", root));
        let paths = roots.chain([
            ("sofarpcRoot", &self.sofarpc_root),
            ("springRoot", &self.spring_root),
            ("chroot", &self.chroot),
        ]);
        for (field, path) in paths.filter(|(_, path)| !path.is_empty()) {
            if !path.starts_with('/') || path.ends_with('/') {
                let message = format!("must begin with / and not end with it, is {path:?}");
                return Err(FieldError::at(field, message));
            }
        }
        if let Some(ConfigDuration(timeout)) = self.session_timeout {
            let (min, max) = SESSION_TIMEOUT_LIMITS;
            if timeout < min || timeout > max {
                let message = format!("must be {min:?} to {max:?}, is {timeout:?}");
                return Err(FieldError::at("sessionTimeout", message));
            }
        }
        if let Some(digest) = &self.digest {
            digest.validate().map_err(|e| e.in_field("digest"))?;
        }
        match &self.tls {
            Some(tls) => tls.validate().map_err(|e| e.in_field("tls")),
            None => Ok(()),
        }
    }
}

/// Reads and writes ZooKeeper; goes on in the same session after a lost connection while the server still has it.
pub async fn run(config: Config, link: Link) {
    let mut backoff = Backoff::for_registry();
    let revisions = Revisions::default();
    let mut resume = None;
    let mut nodes = write::Nodes::default();
    // Hubs that start together do not all go to the first server.
    let mut next = fastrand::usize(..config.servers.len().max(1));
    loop {
        let failure = match connect(&config, next, resume.take()).await {
            Ok((server, client, events)) => {
                backoff.reset();
                link.report(Report::Connected { server }).await;
                let failure = serve(&config, &link, &client, &revisions, events, &mut nodes).await;
                resume = Some(client.resume());
                failure
            }
            Err(failure) => failure,
        };
        link.report(Report::Disconnected {
            trouble: failure.trouble,
            reason: failure.reason,
        })
        .await;
        next = next.wrapping_add(1);
        tokio::time::sleep(backoff.next()).await;
    }
}

async fn connect(
    config: &Config,
    next: usize,
    resume: Option<session::Resume>,
) -> Result<(String, Client, Events), Failure> {
    let server = config.servers.get(next % config.servers.len().max(1));
    let server = server.ok_or_else(|| Failure::unreachable("there is no server"))?;
    let auth = match &config.digest {
        None => None,
        Some(digest) => {
            let password = digest
                .password()
                .map_err(|error| Failure::unreachable(&error))?;
            Some(format!("{}:{}", digest.username, password.reveal()))
        }
    };
    let timeout = config.session_timeout.map_or(SESSION_TIMEOUT, |t| t.0);
    let (client, events) =
        session::connect(server, config.tls.as_ref(), timeout, resume, auth).await?;
    Ok((server.clone(), client, events))
}

/// Reads and writes until the connection ends.
async fn serve(
    config: &Config,
    link: &Link,
    client: &Client,
    revisions: &Revisions,
    events: Events,
    nodes: &mut write::Nodes,
) -> Failure {
    let Events { events, ended } = events;
    let (tell, served) = watch::channel(None);
    let reading = read::run(config, link, client, revisions, events, tell);
    let writing = write::run(config, link, client, served, nodes);
    tokio::select! {
        failure = reading => failure,
        () = writing => Failure::unreachable("the hub has ended"),
        failure = ended => failure.unwrap_or_else(|_| Failure::unreachable("the connection has ended")),
    }
}
