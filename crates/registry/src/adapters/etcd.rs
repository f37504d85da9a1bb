//! etcd (v3) as a registry in Dubbo's layout: read by ranges and one watch a root, written below a lease that is kept alive.

pub(crate) mod client;
pub(crate) mod messages;
mod read;
mod write;

use std::time::Duration;

use base::FieldError;
use serde::{Deserialize, Serialize};

use crate::backoff::Backoff;
use crate::registry_source::ConfigDuration;
use crate::secret::Credentials;
use crate::source::{Link, Report};
use crate::tls::ClientTls;

use client::{Client, Failure};

const LEASE_DURATION: Duration = Duration::from_secs(30);
const LEASE_DURATION_LIMITS: (Duration, Duration) =
    (Duration::from_secs(2), Duration::from_secs(3600));

/// `etcd` of a `RegistrySource`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// `host:port` of each server.
    pub servers: Vec<String>,
    /// Dubbo's roots (its registry parameter `group`); `/dubbo` when absent. Copies are written below the first.
    #[serde(default = "dubbo_roots")]
    pub dubbo_roots: Vec<String>,
    /// After this long without a sign of this hub the server deletes its keys; 30 s when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_duration: Option<ConfigDuration>,
    /// Who logs in, where the server wants it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub login: Option<Credentials>,
    /// With it the servers are spoken to over TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<ClientTls>,
}

fn dubbo_roots() -> Vec<String> {
    vec!["/dubbo".to_owned()]
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
        if self.dubbo_roots.is_empty() {
            return Err(FieldError::at("dubboRoots", "must name a root"));
        }
        for root in &self.dubbo_roots {
            if !root.starts_with('/') || root.ends_with('/') {
                let message = format!("must begin with / and not end with it, is {root:?}");
                return Err(FieldError::at("dubboRoots", message));
            }
        }
        if let Some(ConfigDuration(duration)) = self.lease_duration {
            let (min, max) = LEASE_DURATION_LIMITS;
            if duration < min || duration > max {
                let message = format!("must be {min:?} to {max:?}, is {duration:?}");
                return Err(FieldError::at("leaseDuration", message));
            }
        }
        if let Some(login) = &self.login {
            login.validate().map_err(|e| e.in_field("login"))?;
        }
        match &self.tls {
            Some(tls) => tls.validate().map_err(|e| e.in_field("tls")),
            None => Ok(()),
        }
    }

    fn lease_duration(&self) -> Duration {
        self.lease_duration.map_or(LEASE_DURATION, |lease| lease.0)
    }
}

/// Reads and writes etcd; goes to the next server when one fails.
pub async fn run(config: Config, link: Link) {
    let mut backoff = Backoff::for_registry();
    // Hubs that start together do not all go to the first server.
    let mut next = fastrand::usize(..config.servers.len().max(1));
    // The lease outlives a connection, as its keys do.
    let mut written = write::Written::default();
    loop {
        let failure = match connect(&config, next).await {
            Ok((server, client)) => {
                backoff.reset();
                link.report(Report::Connected { server }).await;
                tokio::select! {
                    failure = read::run(&config, &link, &client) => failure,
                    failure = write::run(&config, &link, &client, &mut written) => failure,
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

async fn connect(config: &Config, next: usize) -> Result<(String, Client), Failure> {
    let server = config.servers.get(next % config.servers.len().max(1));
    let server = server.map(String::as_str).unwrap_or_default();
    let client = Client::connect(server, config.login.as_ref(), config.tls.as_ref()).await?;
    Ok((server.to_owned(), client))
}
