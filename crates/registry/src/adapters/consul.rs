//! Consul as a registry: the catalogue and the health of its services read with blocking queries; copies are services of the
//! agent with a TTL check that is passed as long as the hub lives.

mod agent;
mod entry;
mod meta;
mod read;
mod write;

use std::path::PathBuf;
use std::time::Duration;

use base::FieldError;
use serde::{Deserialize, Serialize};

use crate::adapters::leases;
use crate::backoff::Backoff;
use crate::registry_source::ConfigDuration;
use crate::secret::{NO_SECRETS, Secret, SecretKey};
use crate::source::{Link, Report};
use crate::tls::{self, ClientTls};

use agent::{Agent, Failure};

const LEASE_DURATION: Duration = Duration::from_secs(15);
const LEASE_DURATION_LIMITS: (Duration, Duration) =
    (Duration::from_secs(3), Duration::from_secs(600));

/// `consul` of a `RegistrySource`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// URL of each agent: `http://host:8500`, or `https`. The first that answers is used.
    pub servers: Vec<String>,
    /// The datacentre to read; the agent's own when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub datacenter: Option<String>,
    /// An ACL token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<Secret>,
    /// A file that holds it, as Kubernetes mounts a Secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// A Secret that holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_secret: Option<SecretKey>,
    /// After this long without a sign of this hub its copies are critical; 15 s when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_duration: Option<ConfigDuration>,
    /// Of `https` agents; the system's authorities when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<ClientTls>,
}

impl Config {
    /// Checks what deserialisation cannot.
    pub fn validate(&self) -> Result<(), FieldError> {
        if self.servers.is_empty() {
            return Err(FieldError::at("servers", "must name an agent"));
        }
        for (index, server) in self.servers.iter().enumerate() {
            tls::check_url(server, self.tls.as_ref())
                .map_err(|message| FieldError::new(message).in_index(index).in_field("servers"))?;
        }
        if self.token_secret.is_some() {
            return Err(FieldError::at("tokenSecret", NO_SECRETS));
        }
        if self.token.is_some() && self.token_file.is_some() {
            let message = "only one of token, tokenFile and tokenSecret can be given";
            return Err(FieldError::at("token", message));
        }
        if let Some(ConfigDuration(duration)) = self.lease_duration {
            let (min, max) = LEASE_DURATION_LIMITS;
            if duration < min || duration > max {
                let message = format!("must be {min:?} to {max:?}, is {duration:?}");
                return Err(FieldError::at("leaseDuration", message));
            }
        }
        match &self.tls {
            Some(tls) => tls.validate().map_err(|e| e.in_field("tls")),
            None => Ok(()),
        }
    }

    /// The token as it is now.
    fn token(&self) -> Result<Option<Secret>, String> {
        match (&self.token, &self.token_file) {
            (Some(token), _) => Ok(Some(token.clone())),
            (None, Some(file)) => std::fs::read_to_string(file)
                .map(|text| Some(Secret::from(text.trim().to_owned())))
                .map_err(|error| format!("tokenFile {}: {error}", file.display())),
            (None, None) => Ok(None),
        }
    }
}

/// Reads and writes Consul; goes to the next agent when one fails.
pub async fn run(config: Config, link: Link) {
    let mut backoff = Backoff::for_registry();
    // Hubs that start together do not all go to the first agent.
    let mut next = fastrand::usize(..config.servers.len().max(1));
    let ttl = config
        .lease_duration
        .map_or(LEASE_DURATION, |lease| lease.0);
    // An agent has its services by itself: on another one the copies have to be put in again.
    let mut written = (String::new(), leases::Written::default());
    loop {
        let failure = match connect(&config, next).await {
            Ok((server, agent, services)) => {
                backoff.reset();
                if written.0 != server {
                    written = (server.clone(), leases::Written::default());
                }
                link.report(Report::Connected { server }).await;
                let writer = write::Writer { agent: &agent, ttl };
                tokio::select! {
                    failure = read::run(&link, &agent, services) => failure,
                    // Two of three signs may be lost.
                    () = leases::run(&writer, &link, ttl / 3, &mut written.1) => return,
                }
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
) -> Result<(String, Agent, agent::Services), Failure> {
    let server = config.servers.get(next % config.servers.len().max(1));
    let server = server.map(String::as_str).unwrap_or_default();
    let agent = Agent::new(server, config)?;
    let services = agent.services(None).await?;
    Ok((server.to_owned(), agent, services))
}
