//! Nacos as a registry, 2.x and 3.x over gRPC and 1.x over HTTP: every service of its namespaces subscribed, in the naming of
//! Dubbo (both levels), SOFARPC, Spring Cloud and of everybody else; copies are ephemeral instances that live as long as the
//! hub.

mod connection;
mod http;
mod listing;
mod login;
mod read;
mod services;
mod write;

use std::time::Duration;

use base::FieldError;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::adapters::application_level::ServedThere;
use crate::backoff::Backoff;
use crate::dubbo_metadata::Revisions;
use crate::model::Instance;
use crate::nacos::DEFAULT_GROUP;
use crate::naming::nacos::{Registration, registration};
use crate::registry_source::ConfigDuration;
use crate::secret::Credentials;
use crate::source::{Link, Report, Trouble};
use crate::tls::ClientTls;
use crate::web::Web;

/// How often the names of services are asked for where the server does not tell them.
const LIST_INTERVAL: Duration = Duration::from_secs(5);
const LIST_INTERVAL_LIMITS: (Duration, Duration) =
    (Duration::from_millis(100), Duration::from_secs(3600));
/// Each is a connection.
const NAMESPACES: usize = 64;
/// Stands for all groups.
const ALL_GROUPS: &str = "*";
/// What the server refused will not be other in a moment, and servers count failed log-ins.
const REFUSED_WAIT: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));

/// `nacos` of a `RegistrySource`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// `host:port` of each server, with the port of HTTP (8848); that of gRPC is 1000 higher.
    pub servers: Vec<String>,
    /// How servers are spoken to.
    #[serde(default, skip_serializing_if = "is_default")]
    pub protocol: Protocol,
    /// What is before each path of HTTP; `/nacos` when absent.
    #[serde(default = "context_path")]
    pub context_path: String,
    /// Ids of the namespaces to read; copies go to the first. The public one when absent.
    #[serde(default = "namespaces")]
    pub namespaces: Vec<String>,
    /// SOFARPC's namespace, mostly `sofa-rpc`: read too, and copies of SOFARPC's services go there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sofarpc_namespace: Option<String>,
    /// Groups to read; `DEFAULT_GROUP` when absent, `*` for all, where the server can tell them.
    #[serde(default = "groups")]
    pub groups: Vec<String>,
    /// Clusters to read; all when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub clusters: Vec<String>,
    /// Who logs in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub login: Option<Credentials>,
    /// How often the names of all services are asked for where the server does not tell which come; 5 s when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub list_interval: Option<ConfigDuration>,
    /// With it the servers are spoken to over TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<ClientTls>,
}

/// How servers are spoken to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Protocol {
    /// gRPC, and HTTP where nobody listens for it.
    #[default]
    Auto,
    /// As clients of 2.x and 3.x.
    Grpc,
    /// As clients of 1.x.
    Http,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn context_path() -> String {
    "/nacos".to_owned()
}

fn namespaces() -> Vec<String> {
    vec![String::new()]
}

fn groups() -> Vec<String> {
    vec![DEFAULT_GROUP.to_owned()]
}

impl Config {
    /// Checks what deserialisation cannot.
    pub fn validate(&self) -> Result<(), FieldError> {
        if self.servers.is_empty() {
            return Err(FieldError::at("servers", "must name a server"));
        }
        for (index, server) in self.servers.iter().enumerate() {
            let in_place = |message: &str| {
                FieldError::new(message.to_owned())
                    .in_index(index)
                    .in_field("servers")
            };
            let (_, port) =
                crate::naming::host_port(server).map_err(|e| in_place(&e.to_string()))?;
            if self.protocol != Protocol::Http && port.checked_add(GRPC_OFFSET).is_none() {
                return Err(in_place("there is no port 1000 higher for gRPC"));
            }
        }
        if !self.context_path.is_empty()
            && (!self.context_path.starts_with('/') || self.context_path.ends_with('/'))
        {
            let message = "must begin with / and not end with it";
            return Err(FieldError::at("contextPath", message));
        }
        if self.namespaces.is_empty() || self.namespaces.len() > NAMESPACES {
            let message = format!("must be 1 to {NAMESPACES} namespaces");
            return Err(FieldError::at("namespaces", message));
        }
        let is_all = self.groups.iter().any(|group| group == ALL_GROUPS);
        if self.groups.is_empty() || is_all && self.groups.len() > 1 {
            return Err(FieldError::at(
                "groups",
                "must be names of groups, or only *",
            ));
        }
        if let Some(ConfigDuration(interval)) = self.list_interval {
            let (min, max) = LIST_INTERVAL_LIMITS;
            if interval < min || interval > max {
                let message = format!("must be {min:?} to {max:?}, is {interval:?}");
                return Err(FieldError::at("listInterval", message));
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

    fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }

    /// What is before each path of HTTP.
    fn url(&self, server: &str) -> String {
        format!("{}://{server}{}", self.scheme(), self.context_path)
    }

    /// Connections for HTTP to a server.
    fn web(&self, server: &str) -> Result<Web, Failure> {
        let web = Web::to(&self.url(server), self.tls.as_ref());
        web.map_err(|why| Failure::new(Trouble::Refused, format!("{server}: {why}")))
    }

    /// The namespaces to read, each once.
    fn all_namespaces(&self) -> Vec<&str> {
        let mut all: Vec<&str> = Vec::new();
        for name in self.namespaces.iter().chain(&self.sofarpc_namespace) {
            let name = crate::nacos::namespace(name);
            if !all.contains(&name) {
                all.push(name);
            }
        }
        all
    }

    fn list_interval(&self) -> Duration {
        self.list_interval.map_or(LIST_INTERVAL, |given| given.0)
    }
}

/// The port of gRPC is this much higher than that of HTTP.
const GRPC_OFFSET: u16 = 1000;

/// Why a server is no longer spoken to.
#[derive(Clone, Debug)]
struct Failure {
    trouble: Trouble,
    reason: String,
    /// It says which server to go to.
    to: Option<String>,
}

impl Failure {
    fn new(trouble: Trouble, reason: impl Into<String>) -> Failure {
        Failure {
            trouble,
            reason: reason.into(),
            to: None,
        }
    }

    fn unreachable(reason: impl Into<String>) -> Failure {
        Failure::new(Trouble::Unreachable, reason)
    }

    fn protocol(reason: impl Into<String>) -> Failure {
        Failure::new(Trouble::Protocol, reason)
    }
}

/// How long to wait after a failure: longer when it is a matter of who asks.
struct Waits {
    failed: Backoff,
    refused: Backoff,
}

impl Waits {
    fn new() -> Waits {
        let (min, max) = REFUSED_WAIT;
        Waits {
            failed: Backoff::for_registry(),
            refused: Backoff::new(min, max),
        }
    }

    fn after(&mut self, failure: &Failure) -> Duration {
        match failure.trouble {
            Trouble::Refused => self.refused.next(),
            Trouble::Unreachable | Trouble::Protocol => self.failed.next(),
        }
    }

    fn reset(&mut self) {
        self.failed.reset();
        self.refused.reset();
    }
}

/// Where a copy has its place; an error says why there is none.
fn place<'a>(config: &'a Config, instance: &Instance) -> Result<(&'a str, Registration), String> {
    let registration = registration(instance)?;
    let own = config.sofarpc_namespace.as_ref();
    let space = own.filter(|_| registration.is_sofarpc);
    let space = space.or(config.namespaces.first());
    let space = space.map_or("", String::as_str);
    Ok((crate::nacos::namespace(space), registration))
}

/// Reads and writes Nacos.
pub async fn run(config: Config, link: Link) {
    let login = login::Login::new(&config);
    // Over HTTP the same connections read and write.
    let (by_grpc, is_by_grpc) = watch::channel(false);
    let (tell, served) = watch::channel(None);
    tokio::join!(
        keep_reading(&config, &link, &login, &by_grpc, &tell),
        write::run(&config, &link, &login, is_by_grpc, served)
    );
}

/// Reads one server after the other, as each fails.
async fn keep_reading(
    config: &Config,
    link: &Link,
    login: &login::Login,
    by_grpc: &watch::Sender<bool>,
    tell: &watch::Sender<ServedThere>,
) {
    let mut waits = Waits::new();
    let mut copies = http::Copies::default();
    let revisions = Revisions::default();
    // Hubs that start together do not all go to the first server.
    let mut next = fastrand::usize(..config.servers.len().max(1));
    loop {
        let server = config.servers.get(next % config.servers.len().max(1));
        let server = server.map(String::as_str).unwrap_or_default();
        let failure = match read::open(config, server, login).await {
            Ok(read::Opened::Grpc(connections, events)) => {
                waits.reset();
                by_grpc.send_replace(true);
                let opened = (connections, events);
                read::run(config, link, server, login, &revisions, opened, tell).await
            }
            Ok(read::Opened::Http(server, listed)) => {
                waits.reset();
                by_grpc.send_replace(false);
                http::run(&server, link, &revisions, listed, &mut copies, tell).await
            }
            Err(failure) => failure,
        };
        let wait = waits.after(&failure);
        let redirected = failure
            .to
            .and_then(|to| config.servers.iter().position(|s| *s == to));
        link.report(Report::Disconnected {
            trouble: failure.trouble,
            reason: failure.reason,
        })
        .await;
        next = redirected.unwrap_or(next.wrapping_add(1));
        tokio::time::sleep(wait).await;
    }
}
