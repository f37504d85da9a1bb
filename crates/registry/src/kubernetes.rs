//! The way to the API server of a Kubernetes cluster.

mod objects;

use std::path::PathBuf;
use std::time::Duration;

use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::watcher;

use crate::source::Trouble;
use crate::web::chain;

pub use objects::{Objects, Told, follow};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// For an answer that is no watch.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// HTTP's words for what may not be read, and for what the server has forgotten.
pub(crate) const FORBIDDEN: u16 = 403;
pub(crate) const GONE: u16 = 410;
/// Names us among the writers of an object.
pub(crate) const FIELD_MANAGER: &str = "sofamesh-pilot";

/// Which cluster, and as whom.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cluster {
    /// A file as kubectl has it; without it the cluster that this program runs in, by the account of its Pod.
    pub kubeconfig: Option<PathBuf>,
    /// One of the file's contexts; its current one when absent.
    pub context: Option<String>,
}

/// Why the API server gave no answer, or not the one asked for.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) trouble: Trouble,
    pub(crate) reason: String,
    /// HTTP's word for it; 0 without an answer.
    pub(crate) code: u16,
}

impl Failure {
    fn refused(reason: String) -> Failure {
        Failure {
            trouble: Trouble::Refused,
            reason,
            code: 0,
        }
    }

    fn unreachable(reason: String) -> Failure {
        Failure {
            trouble: Trouble::Unreachable,
            reason,
            code: 0,
        }
    }

    pub(crate) fn of(error: &kube::Error) -> Failure {
        let kube::Error::Api(status) = error else {
            let trouble = match error {
                kube::Error::SerdeError(_) | kube::Error::FromUtf8(_) => Trouble::Protocol,
                kube::Error::Auth(_) => Trouble::Refused,
                _ => Trouble::Unreachable,
            };
            return Failure {
                trouble,
                reason: chain(error),
                code: 0,
            };
        };
        let trouble = match status.code {
            401 | 403 => Trouble::Refused,
            429 | 500.. => Trouble::Unreachable,
            _ => Trouble::Protocol,
        };
        Failure {
            trouble,
            reason: format!("{} {}: {}", status.code, status.reason, status.message),
            code: status.code,
        }
    }
}

impl Cluster {
    /// A client with the credentials as they are now, and the server's URL.
    pub(crate) async fn client(&self) -> Result<(Client, String), Failure> {
        let mut config = match &self.kubeconfig {
            Some(file) => {
                let refused = |e: &dyn std::error::Error| {
                    Failure::refused(format!("kubeconfig {}: {}", file.display(), chain(e)))
                };
                let kubeconfig = Kubeconfig::read_from(file).map_err(|e| refused(&e))?;
                let options = KubeConfigOptions {
                    context: self.context.clone(),
                    ..KubeConfigOptions::default()
                };
                kube::Config::from_custom_kubeconfig(kubeconfig, &options)
                    .await
                    .map_err(|e| refused(&e))?
            }
            None => kube::Config::incluster()
                .map_err(|e| Failure::refused(format!("in no cluster: {}", chain(&e))))?,
        };
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        config.default_retry = false;
        let url = config.cluster_url.to_string();
        let client = Client::try_from(config).map_err(|e| Failure::of(&e))?;
        Ok((client, url))
    }
}

/// The answer to a question, within a bounded time.
pub(crate) async fn answered<T>(
    asking: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, Failure> {
    match tokio::time::timeout(ANSWER_TIMEOUT, asking).await {
        Ok(answer) => answer.map_err(|e| Failure::of(&e)),
        Err(_) => Err(Failure::unreachable(format!(
            "no answer within {ANSWER_TIMEOUT:?}"
        ))),
    }
}

/// Asks the server again and again whether it is still there: a watch alone would not notice for minutes.
pub(crate) async fn probe(client: &Client, interval: Duration) -> Failure {
    loop {
        tokio::time::sleep(interval).await;
        if let Err(failure) = answered(client.apiserver_version()).await
            && failure.trouble == Trouble::Unreachable
        {
            return failure;
        }
    }
}

/// Why a watch says nothing.
pub(crate) fn watch_failure(error: watcher::Error) -> Failure {
    match error {
        watcher::Error::WatchError(status) => Failure::of(&kube::Error::Api(status)),
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => Failure::of(&error),
        watcher::Error::NoResourceVersion => Failure {
            trouble: Trouble::Protocol,
            reason: "a list has no resourceVersion".to_owned(),
            code: 0,
        },
    }
}
