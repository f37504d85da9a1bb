//! Eureka as a registry, over REST: read whole and then by deltas with the check of their hash, written as leases that are
//! renewed.

mod peer;
mod read;
mod write;

use std::time::Duration;

use base::FieldError;
use serde::{Deserialize, Serialize};

use crate::adapters::leases;
use crate::backoff::Backoff;
use crate::registry_source::ConfigDuration;
use crate::secret::Credentials;
use crate::source::{Link, Report, Trouble};
use crate::tls::{self, ClientTls};

use peer::Peer;
use read::Held;

const POLL_INTERVAL: Duration = Duration::from_secs(5);
const POLL_INTERVAL_LIMITS: (Duration, Duration) =
    (Duration::from_millis(100), Duration::from_secs(120));
const LEASE_DURATION: Duration = Duration::from_secs(30);
const LEASE_DURATION_LIMITS: (Duration, Duration) =
    (Duration::from_secs(3), Duration::from_secs(600));

/// `eureka` of a `RegistrySource`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// URL of each peer, with the path of the registry: `http://host:8761/eureka`, or `https`. The first that answers is used.
    pub servers: Vec<String>,
    /// How often the server is asked what has changed; 5 s when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub poll_interval: Option<ConfigDuration>,
    /// After this long without a sign of this hub the server may take its copies out; 30 s when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_duration: Option<ConfigDuration>,
    /// Who asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub basic_auth: Option<Credentials>,
    /// Of `https` servers; the system's authorities when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<ClientTls>,
}

impl Config {
    /// Checks what deserialisation cannot.
    pub fn validate(&self) -> Result<(), FieldError> {
        if self.servers.is_empty() {
            return Err(FieldError::at("servers", "must name a server"));
        }
        for (index, server) in self.servers.iter().enumerate() {
            tls::check_url(server, self.tls.as_ref())
                .map_err(|message| FieldError::new(message).in_index(index).in_field("servers"))?;
        }
        for (field, duration, (min, max)) in [
            ("pollInterval", self.poll_interval, POLL_INTERVAL_LIMITS),
            ("leaseDuration", self.lease_duration, LEASE_DURATION_LIMITS),
        ] {
            if let Some(ConfigDuration(duration)) = duration
                && (duration < min || duration > max)
            {
                let message = format!("must be {min:?} to {max:?}, is {duration:?}");
                return Err(FieldError::at(field, message));
            }
        }
        if let Some(basic_auth) = &self.basic_auth {
            basic_auth.validate().map_err(|e| e.in_field("basicAuth"))?;
        }
        match &self.tls {
            Some(tls) => tls.validate().map_err(|e| e.in_field("tls")),
            None => Ok(()),
        }
    }

    fn poll_interval(&self) -> Duration {
        self.poll_interval
            .map_or(POLL_INTERVAL, |interval| interval.0)
    }

    fn lease_duration(&self) -> Duration {
        self.lease_duration.map_or(LEASE_DURATION, |lease| lease.0)
    }
}

/// Why a peer is no longer asked.
#[derive(Clone, Debug)]
struct Failure {
    trouble: Trouble,
    reason: String,
}

/// Reads and writes Eureka; goes to the next peer when one fails.
pub async fn run(config: Config, link: Link) {
    let mut backoff = Backoff::for_registry();
    // Hubs that start together do not all go to the first peer.
    let mut next = fastrand::usize(..config.servers.len().max(1));
    // What another peer took is in this one too, or becomes so: it is only renewed.
    let mut written = leases::Written::default();
    loop {
        let failure = match connect(&config, next).await {
            Ok((peer, held)) => {
                backoff.reset();
                let server = peer.server().to_owned();
                link.report(Report::Connected { server }).await;
                held.report_all(&link).await;
                link.report(Report::Synced).await;
                let lease = config.lease_duration();
                let writer = write::Writer { peer: &peer, lease };
                tokio::select! {
                    failure = read::run(&config, &link, &peer, held) => failure,
                    // Two of three renewals may be lost.
                    () = leases::run(&writer, &link, lease / 3, &mut written) => return,
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

async fn connect(config: &Config, next: usize) -> Result<(Peer, Held), Failure> {
    let server = config.servers.get(next % config.servers.len().max(1));
    let server = server.map(String::as_str).unwrap_or_default();
    let peer = Peer::new(server, config.basic_auth.as_ref(), config.tls.as_ref())?;
    let held = Held::new(peer.applications().await?);
    Ok((peer, held))
}
