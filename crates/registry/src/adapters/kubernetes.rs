//! Kubernetes as a registry: Services, EndpointSlices and Pods read with watches; copies are Services without selector and
//! EndpointSlices of their own.

mod copies;
mod declared;
mod held;
mod objects;
mod read;
mod write;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use base::FieldError;
use serde::{Deserialize, Serialize};

use crate::backoff::Backoff;
use crate::kubernetes::{Cluster, Failure};
use crate::source::{Link, Report, Trouble};

const REFUSED_WAIT: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));

/// `kubernetes` of a `RegistrySource`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// A file as kubectl has it; absent: the cluster that pilot runs in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubeconfig: Option<PathBuf>,
    /// One of the file's contexts; its current one when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context: Option<String>,
    /// The namespaces to read; all when there is none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<String>,
    /// Labels of the Services to read, as kubectl's `--selector`; all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label_selector: Option<String>,
    /// The domain of the cluster's services.
    #[serde(default = "domain")]
    pub domain: String,
    /// Where copies are written; absent: nowhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write_namespace: Option<String>,
}

fn domain() -> String {
    "cluster.local".to_owned()
}

impl Config {
    /// Checks what deserialisation cannot.
    pub fn validate(&self) -> Result<(), FieldError> {
        if self.context.is_some() && self.kubeconfig.is_none() {
            let message = "is one of a kubeconfig, which is not given";
            return Err(FieldError::at("context", message));
        }
        for (index, namespace) in self.namespaces.iter().enumerate() {
            check_label(namespace).map_err(|message| {
                FieldError::new(message)
                    .in_index(index)
                    .in_field("namespaces")
            })?;
        }
        if let Some(namespace) = &self.write_namespace {
            check_label(namespace).map_err(|message| FieldError::at("writeNamespace", &message))?;
        }
        if self.domain.is_empty() || !self.domain.split('.').all(|part| check_label(part).is_ok()) {
            let message = format!("must be a domain name, is {:?}", self.domain);
            return Err(FieldError::at("domain", message));
        }
        Ok(())
    }

    fn cluster(&self) -> Cluster {
        Cluster {
            kubeconfig: self.kubeconfig.clone(),
            context: self.context.clone(),
        }
    }
}

/// A label of RFC 1123, as namespaces are.
fn check_label(text: &str) -> Result<(), String> {
    let is_inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let is_right = (1..=63).contains(&text.len())
        && text.chars().all(is_inner)
        && !text.starts_with('-')
        && !text.ends_with('-');
    if is_right {
        return Ok(());
    }
    Err(format!(
        "must be up to 63 lower-case letters, digits and dashes, is {text:?}"
    ))
}

/// Reads and writes the cluster.
pub async fn run(config: Config, link: Link) {
    let mut backoff = Backoff::for_registry();
    // What the server refused will not be other in a moment.
    let mut refused = Backoff::new(REFUSED_WAIT.0, REFUSED_WAIT.1);
    let mut told = write::Told::default();
    loop {
        let began = Instant::now();
        let failure = session(&config, &link, &mut told).await;
        // One that ends at once was none.
        if began.elapsed() > REFUSED_WAIT.1 {
            backoff.reset();
            refused.reset();
        }
        let wait = match failure.trouble {
            Trouble::Refused => refused.next(),
            Trouble::Unreachable | Trouble::Protocol => backoff.next(),
        };
        link.report(Report::Disconnected {
            trouble: failure.trouble,
            reason: failure.reason,
        })
        .await;
        tokio::time::sleep(wait).await;
    }
}

/// Until it fails.
async fn session(config: &Config, link: &Link, told: &mut write::Told) -> Failure {
    let (client, server) = match config.cluster().client().await {
        Ok(connected) => connected,
        Err(failure) => return failure,
    };
    // A client is made without a word to the server, which tells everybody its version.
    if let Err(failure) = read::look(config, &client).await {
        return failure;
    }
    link.report(Report::Connected { server }).await;
    tokio::select! {
        failure = read::run(config, link, &client) => failure,
        // The hub is about to drop this.
        () = write::run(config, link, &client, told) => std::future::pending().await,
    }
}
