//! SOFARegistry (5.x, 6.x) as a registry: session servers are found over HTTP and spoken to over Bolt in the Protobuf form of
//! the protocol. Everything is subscribed; copies are publications of this connection, so that they go with the hub.

mod catalog;
mod push;
mod read;
mod servers;
mod session;
mod write;

use std::convert::Infallible;
use std::time::Duration;

use api::sofaregistry::session::v1 as pb;
use base::FieldError;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::naming::host_port;
use crate::registry_source::ConfigDuration;
use crate::sofaregistry::{
    DEFAULT_DATA_CENTER, DEFAULT_INSTANCE_ID, DEFAULT_ZONE, DataInfoId, SERVICE_GROUP,
};
use crate::source::{Link, Report, Trouble};
use crate::web::Web;

use catalog::Catalogs;
use read::Memory;
use servers::Servers;
use session::{Client, Events, Failure};

const POLL_INTERVAL: Duration = Duration::from_secs(5);
const POLL_INTERVAL_LIMITS: (Duration, Duration) =
    (Duration::from_millis(100), Duration::from_secs(600));
const PUSH_BYTES: usize = 64 << 20;
const PUSH_BYTES_LIMITS: (usize, usize) = (64 << 10, 1 << 30);
/// How often the stock client asks what the server shows, and which servers there are.
const SYNC_CONFIG: Duration = Duration::from_secs(30);

/// `sofaregistry` of a `RegistrySource`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// `host:port` of the HTTP of session servers, as a rule port 9603. One that answers is enough.
    pub endpoints: Vec<String>,
    /// `host:port` of the HTTP of all data servers, as a rule port 9622: they say which services there are. Those that the
    /// session servers name when absent; where these cannot be reached, the session servers are asked for the ids of their
    /// clients.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub data_endpoints: Vec<String>,
    /// DataIds to read, in each group. With them nobody is asked which there are, unless `dataEndpoints` is given too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub data_ids: Vec<String>,
    /// The groups that hold services; `SOFA` when absent. Copies go into the first.
    #[serde(default = "groups")]
    pub groups: Vec<String>,
    /// The tenant; `DEFAULT_INSTANCE_ID` when absent.
    #[serde(default = "instance_id")]
    pub instance_id: String,
    /// The data centre of the session servers; `DefaultDataCenter` when absent.
    #[serde(default = "data_center")]
    pub data_center: String,
    /// The zone whose session servers are used, and which copies are published in; `DEFAULT_ZONE` when absent.
    #[serde(default = "zone")]
    pub zone: String,
    /// What this hub calls itself; `sofamesh` when absent.
    #[serde(default = "app_name")]
    pub app_name: String,
    /// How often it is asked which services there are; 5 s when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub poll_interval: Option<ConfigDuration>,
    /// Bytes of one push, decompressed; 64 MiB when absent. A larger one is passed over: its service stays as it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub push_bytes: Option<usize>,
}

fn groups() -> Vec<String> {
    vec![SERVICE_GROUP.to_owned()]
}

fn instance_id() -> String {
    DEFAULT_INSTANCE_ID.to_owned()
}

fn data_center() -> String {
    DEFAULT_DATA_CENTER.to_owned()
}

fn zone() -> String {
    DEFAULT_ZONE.to_owned()
}

fn app_name() -> String {
    "sofamesh".to_owned()
}

impl Default for Config {
    /// What a server's own defaults fit.
    fn default() -> Config {
        Config {
            endpoints: Vec::new(),
            data_endpoints: Vec::new(),
            data_ids: Vec::new(),
            groups: groups(),
            instance_id: instance_id(),
            data_center: data_center(),
            zone: zone(),
            app_name: app_name(),
            poll_interval: None,
            push_bytes: None,
        }
    }
}

impl Config {
    /// Checks what deserialisation cannot.
    pub fn validate(&self) -> Result<(), FieldError> {
        if self.endpoints.is_empty() {
            return Err(FieldError::at("endpoints", "must name a session server"));
        }
        for (field, endpoints) in [
            ("endpoints", &self.endpoints),
            ("dataEndpoints", &self.data_endpoints),
        ] {
            for (index, endpoint) in endpoints.iter().enumerate() {
                let is_plain = !endpoint.contains(['/', '?', '#', '@']);
                if !is_plain || host_port(endpoint).is_err() {
                    let error = FieldError::new(format!("must be host:port, is {endpoint:?}"));
                    return Err(error.in_index(index).in_field(field));
                }
            }
        }
        if self.groups.is_empty() {
            return Err(FieldError::at("groups", "must name a group"));
        }
        let of_lists = [("dataIds", &self.data_ids), ("groups", &self.groups)];
        for (field, words) in of_lists {
            for (index, word) in words.iter().enumerate() {
                check_word(word).map_err(|e| e.in_index(index).in_field(field))?;
            }
        }
        for (field, word) in [
            ("instanceId", &self.instance_id),
            ("dataCenter", &self.data_center),
            ("zone", &self.zone),
            ("appName", &self.app_name),
        ] {
            check_word(word).map_err(|e| e.in_field(field))?;
        }
        if let Some(ConfigDuration(interval)) = self.poll_interval {
            let (min, max) = POLL_INTERVAL_LIMITS;
            if interval < min || interval > max {
                let message = format!("must be {min:?} to {max:?}, is {interval:?}");
                return Err(FieldError::at("pollInterval", message));
            }
        }
        if let Some(bytes) = self.push_bytes {
            let (min, max) = PUSH_BYTES_LIMITS;
            if bytes < min || bytes > max {
                let message = format!("must be {min} to {max}, is {bytes}");
                return Err(FieldError::at("pushBytes", message));
            }
        }
        Ok(())
    }

    /// What all registrations of this hub have.
    fn base(&self, id: &DataInfoId, regist_id: &str, version: i64) -> pb::BaseRegister {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let now = now.map_or(0, |now| i64::try_from(now.as_millis()).unwrap_or(i64::MAX));
        pb::BaseRegister {
            instance_id: id.instance_id.clone(),
            zone: self.zone.clone(),
            app_name: self.app_name.clone(),
            data_id: id.data_id.clone(),
            group: id.group.clone(),
            regist_id: regist_id.to_owned(),
            data_info_id: id.to_string(),
            event_type: REGISTER.to_owned(),
            version,
            timestamp: now,
            ..pb::BaseRegister::default()
        }
    }
}

/// Registers, and changes what is registered.
const REGISTER: &str = "REGISTER";
/// Ends it.
const UNREGISTER: &str = "UNREGISTER";

fn check_word(word: &str) -> Result<(), FieldError> {
    if word.trim().is_empty() || word.contains("#@#") {
        let message = format!("must be a word without #@#, is {word:?}");
        return Err(FieldError::new(message));
    }
    Ok(())
}

/// Reads and writes SOFARegistry; goes to another session server when one fails.
pub async fn run(config: Config, link: Link) {
    let mut backoff = Backoff::for_registry();
    let web = match Web::to("http://", None) {
        Ok(web) => web,
        Err(reason) => {
            let trouble = Trouble::Protocol;
            link.report(Report::Disconnected { trouble, reason }).await;
            return;
        }
    };
    let mut servers = Servers::new(&config, web.clone());
    let catalogs = Catalogs::new(&config, web);
    let mut memory = Memory::default();
    loop {
        let failure = match connect(&config, &mut servers).await {
            Ok((server, session)) => {
                let since = Instant::now();
                link.report(Report::Connected { server }).await;
                let reading = (&mut memory, &catalogs);
                let failure = serve(&config, &link, &mut servers, reading, session).await;
                // A server that takes connections only to drop them is not tried without a pause.
                if since.elapsed() > SYNC_CONFIG {
                    backoff.reset();
                }
                failure
            }
            Err(failure) => failure,
        };
        link.report(Report::Disconnected {
            trouble: failure.trouble,
            reason: failure.reason,
        })
        .await;
        tokio::time::sleep(backoff.next()).await;
    }
}

/// A connection, and what its server showed of itself.
struct Session {
    client: Client,
    events: Events,
    shown: pb::SyncConfigResponse,
}

async fn connect(config: &Config, servers: &mut Servers) -> Result<(String, Session), Failure> {
    // Without an answer those that are known are tried.
    let asked = servers.refresh().await;
    let Some(server) = servers.choose() else {
        let reason = asked.err().unwrap_or_default();
        return Err(Failure::unreachable(&reason));
    };
    let session = open(config, &server).await;
    servers.tried(&server, session.is_ok());
    Ok((server, session?))
}

async fn open(config: &Config, server: &str) -> Result<Session, Failure> {
    let limit = config.push_bytes.unwrap_or(PUSH_BYTES);
    let (client, events) = session::connect(server, limit).await?;
    let shown = sync_config(config, &client).await;
    let shown = shown.map_err(|failure| Failure {
        reason: format!("{server}: {}", failure.reason),
        ..failure
    })?;
    Ok(Session {
        client,
        events,
        shown,
    })
}

async fn sync_config(config: &Config, client: &Client) -> Result<pb::SyncConfigResponse, Failure> {
    let request = pb::SyncConfigRequest {
        data_center: config.data_center.clone(),
        zone: config.zone.clone(),
    };
    let answer = client.sync_config(&request).await;
    let answer = answer.map_err(|why| Failure::unreachable(&why))?;
    let result = answer.result.clone().unwrap_or_default();
    if !result.success {
        return Err(Failure {
            trouble: Trouble::Refused,
            reason: format!("the server refuses this client: {}", result.message),
        });
    }
    Ok(answer)
}

/// Reads and writes until the connection ends.
async fn serve(
    config: &Config,
    link: &Link,
    servers: &mut Servers,
    (memory, catalogs): (&mut Memory, &Catalogs),
    session: Session,
) -> Failure {
    let Session {
        client,
        events: Events { told, ended },
        shown,
    } = session;
    let (show, shown) = tokio::sync::watch::channel(shown.available_segments);
    tokio::select! {
        failure = read::run(config, link, &client, memory, catalogs, told, shown) => failure,
        () = write::run(config, link, &client) => Failure::unreachable("the hub has ended"),
        never = keep(config, &client, servers, &show) => match never {},
        failure = ended => failure.unwrap_or_else(|_| Failure::unreachable("the connection has ended")),
    }
}

/// Asks again and again what the server shows, and which servers there are for the time when this one is gone.
async fn keep(
    config: &Config,
    client: &Client,
    servers: &mut Servers,
    show: &tokio::sync::watch::Sender<Vec<String>>,
) -> Infallible {
    loop {
        tokio::time::sleep(SYNC_CONFIG).await;
        // A connection that is dead says so itself.
        if let Ok(answer) = sync_config(config, client).await {
            show.send_if_modified(|shown| {
                let is_news = *shown != answer.available_segments;
                *shown = answer.available_segments;
                is_news
            });
        }
        // Those that are known stay when nobody answers.
        let _ = servers.refresh().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(yaml: serde_json::Value) -> String {
        match serde_json::from_value::<Config>(yaml) {
            Ok(config) => config.validate().expect_err("wrong").to_string(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn a_wrong_configuration_says_what_is_wrong() {
        for (config, why) in [
            (serde_json::json!({"endpoints": []}), "endpoints: must name"),
            (
                serde_json::json!({"endpoints": ["http://a:1"]}),
                "endpoints[0]: must be host:port",
            ),
            (
                serde_json::json!({"endpoints": ["a:1"], "groups": []}),
                "groups: must name",
            ),
            (
                serde_json::json!({"endpoints": ["a:1"], "zone": " "}),
                "zone: must be a word",
            ),
            (
                serde_json::json!({"endpoints": ["a:1"], "pollInterval": "1ms"}),
                "pollInterval: must be 100ms",
            ),
            (
                serde_json::json!({"endpoints": ["a:1"], "pushBytes": 1}),
                "pushBytes: must be 65536",
            ),
            (
                serde_json::json!({"endpoints": ["a:1"], "servers": []}),
                "unknown field",
            ),
        ] {
            let error = wrong(config);
            assert!(error.contains(why), "{error}");
        }
    }
}
