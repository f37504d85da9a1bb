//! Nacos over HTTP: what servers of 1.x have (`/v1/ns/…`), or the client's part of 3.x (`/v3/client/ns/…`).

mod push;
mod read;
mod write;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::Full;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::login::{Login, TOKEN};
use super::{ALL_GROUPS, Config, Failure};
use crate::nacos::{Host, PUBLIC, ServiceInfo, drop_nulls, grouped_name, split_name};
use crate::source::Trouble;
use crate::web::{Answer, Web, part};

pub(super) use read::{Listed, open, run};
pub(super) use write::Copies;

const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Names of a page; some servers allow no more.
const PAGE: u64 = 500;
/// Services of a namespace.
const SERVICES: usize = 1_000_000;
/// Answers of a beat: it was taken, and there is no such instance.
const BEAT_NOT_FOUND: i64 = 20404;

/// What a server understands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Api {
    V1,
    V3,
}

/// One server.
pub(super) struct Server<'a> {
    config: &'a Config,
    login: &'a Login,
    name: &'a str,
    api: Api,
    web: Web,
}

/// A page of names, as `/v1/ns/service/list` and `/v1/ns/catalog/services` say it.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Page {
    #[serde(alias = "totalCount")]
    count: u64,
    /// Names, of some servers with the group.
    doms: Vec<String>,
    #[serde(alias = "pageItems")]
    service_list: Vec<ServiceName>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ServiceName {
    name: String,
    group_name: String,
}

/// The hosts of a service: 3.x says no more than these.
#[derive(Deserialize)]
#[serde(untagged)]
enum Hosts {
    Info(ServiceInfo),
    Only(Vec<crate::nacos::Entry>),
}

type Pairs<'a> = Vec<(&'a str, String)>;

impl<'a> Server<'a> {
    /// Looks which part of the API a server has, and whether it lets in who asks.
    async fn open(
        config: &'a Config,
        name: &'a str,
        login: &'a Login,
    ) -> Result<Server<'a>, Failure> {
        login.token(config, name).await?;
        let mut server = Server {
            config,
            login,
            name,
            api: Api::V3,
            web: config.web(name)?,
        };
        // Without the list of services the rest is of no use.
        let one = || "1".to_owned();
        let query = vec![("pageNo", one()), ("pageSize", one())];
        let answer = server
            .send(Method::GET, "/v3/admin/ns/service/list", &query)
            .await?;
        // One that does not know the path says so in several ways.
        let wrapped: Result<Value, _> = serde_json::from_slice(&answer.body);
        let is_known = wrapped.is_ok_and(|value| value.get("code").is_some());
        if answer.status != StatusCode::OK || !is_known {
            server.api = Api::V1;
        }
        Ok(server)
    }

    /// Where it may send pushes, if it is of a version that does; without them all is seen when it is asked again.
    async fn pushes(&self) -> Option<push::Pushes> {
        if self.api != Api::V1 {
            return None;
        }
        let opened = push::Pushes::open(self.name).await;
        let failed = |error| tracing::warn!(server = self.name, %error, "no pushes by UDP");
        opened.map_err(failed).ok()
    }

    async fn send(&self, method: Method, path: &str, query: &Pairs<'_>) -> Result<Answer, Failure> {
        let mut pairs: Vec<String> = query
            .iter()
            .map(|(key, value)| format!("{key}={}", part(value)))
            .collect();
        let token = self.login.token(self.config, self.name).await?;
        if let Some(token) = token {
            pairs.push(format!("{TOKEN}={}", part(token.reveal())));
        }
        let query = pairs.join("&");
        // Metadata may be longer than what servers take as a line.
        let is_form = method == Method::POST || method == Method::PUT;
        let uri = format!("{}{path}", self.config.url(self.name));
        let request = Request::builder().method(method);
        let request = if is_form {
            request
                .uri(uri)
                .header("content-type", "application/x-www-form-urlencoded")
                .body(Full::new(Bytes::from(query)))
        } else {
            request.uri(format!("{uri}?{query}")).body(Full::default())
        };
        let request = request.map_err(|e| self.protocol(&e))?;
        let answer = self.web.send(request, ANSWER_TIMEOUT).await;
        answer.map_err(|why| Failure::unreachable(format!("{}: {why}", self.name)))
    }

    /// Asks; a server that no longer takes its token is asked again with another one.
    async fn ask(&self, method: Method, path: &str, query: &Pairs<'_>) -> Result<Answer, Failure> {
        let answer = self.send(method.clone(), path, query).await?;
        if !is_of_access(&answer) || !self.login.is_needed() {
            return Ok(answer);
        }
        self.login.forget(self.name).await;
        self.send(method, path, query).await
    }

    fn protocol(&self, what: &impl ToString) -> Failure {
        Failure::protocol(format!("{}: {}", self.name, what.to_string()))
    }

    fn refused(&self, answer: &Answer) -> Failure {
        let trouble = match answer.status {
            _ if is_of_access(answer) => Trouble::Refused,
            status if status.is_server_error() => Trouble::Unreachable,
            _ => Trouble::Protocol,
        };
        Failure::new(trouble, format!("{} {}", self.name, answer.describe()))
    }

    /// Asks for something in JSON.
    async fn get<T: DeserializeOwned>(&self, path: &str, query: &Pairs<'_>) -> Result<T, Failure> {
        let answer = self.ask(Method::GET, path, query).await?;
        if answer.status != StatusCode::OK {
            return Err(self.refused(&answer));
        }
        let mut value: Value =
            serde_json::from_slice(&answer.body).map_err(|e| self.protocol(&e))?;
        drop_nulls(&mut value);
        // 3.x wraps what it says.
        let value = match self.api {
            Api::V3 => value.get_mut("data").map(Value::take).unwrap_or_default(),
            Api::V1 => value,
        };
        serde_json::from_value(value).map_err(|e| self.protocol(&e))
    }

    /// The services of a group, or of all.
    async fn names(&self, space: &str, group: &str) -> Result<BTreeSet<(String, String)>, Failure> {
        let is_all = group == ALL_GROUPS;
        let path = match (self.api, is_all) {
            (Api::V3, _) => "/v3/admin/ns/service/list",
            (Api::V1, true) => "/v1/ns/catalog/services",
            (Api::V1, false) => "/v1/ns/service/list",
        };
        let mut names = BTreeSet::new();
        for page_no in 1.. {
            let mut query = vec![
                ("pageNo", u64::to_string(&page_no)),
                ("pageSize", PAGE.to_string()),
                ("namespaceId", space.to_owned()),
            ];
            match (self.api, is_all) {
                (Api::V1, true) => query.push(("withInstances", "false".to_owned())),
                (Api::V1, false) => query.push(("groupName", group.to_owned())),
                (Api::V3, true) => {}
                (Api::V3, false) => query.push(("groupNameParam", group.to_owned())),
            }
            let page: Page = self.get(path, &query).await?;
            let len = (page.doms.len() + page.service_list.len()) as u64;
            let doms = page.doms.iter().map(|name| split_name(group, name));
            let others = page
                .service_list
                .iter()
                .map(|service| split_name(&service.group_name, &service.name));
            // 3.x finds the groups that have the word in their names.
            let wanted = |(of, _): &(&str, &str)| is_all || *of == group;
            names.extend(
                doms.chain(others)
                    .filter(wanted)
                    .map(|(group, name)| (group.to_owned(), name.to_owned())),
            );
            if len == 0 || page_no * PAGE >= page.count || names.len() >= SERVICES {
                break;
            }
        }
        Ok(names)
    }

    /// The instances of a service; its changes are pushed to this address for a while.
    async fn service(
        &self,
        space: &str,
        group: &str,
        name: &str,
        pushes: Option<SocketAddr>,
    ) -> Result<ServiceInfo, Failure> {
        let mut query = self.service_query(space, group, name);
        if let Some(address) = pushes {
            query.push(("udpPort", address.port().to_string()));
            query.push(("clientIP", address.ip().to_string()));
        }
        let path = match self.api {
            Api::V1 => "/v1/ns/instance/list",
            Api::V3 => "/v3/client/ns/instance/list",
        };
        Ok(match self.get(path, &query).await? {
            Hosts::Info(info) => info,
            Hosts::Only(hosts) => ServiceInfo {
                hosts,
                ..ServiceInfo::default()
            },
        })
    }

    /// A configuration.
    async fn config_content(&self, space: &str, group: &str, id: &str) -> Result<String, String> {
        let path = match self.api {
            Api::V1 => "/v1/cs/configs",
            Api::V3 => "/v3/client/cs/config",
        };
        let mut query = vec![("dataId", id.to_owned())];
        match self.api {
            Api::V1 => {
                let tenant = if space == PUBLIC { "" } else { space };
                query.extend([("group", group.to_owned()), ("tenant", tenant.to_owned())]);
            }
            Api::V3 => {
                query.extend([
                    ("groupName", group.to_owned()),
                    ("namespaceId", space.to_owned()),
                ]);
            }
        }
        let answer = self.ask(Method::GET, path, &query).await;
        let answer = answer.map_err(|failure| failure.reason)?;
        if answer.status != StatusCode::OK {
            return Err(format!(
                "the revision's configuration: {}",
                answer.describe()
            ));
        }
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        if self.api == Api::V1 {
            return Ok(text);
        }
        let wrapped: Value = serde_json::from_str(&text).map_err(|e| e.to_string())?;
        let content = wrapped.pointer("/data/content").and_then(Value::as_str);
        content
            .map(str::to_owned)
            .ok_or_else(|| "the revision's configuration is not there".to_owned())
    }

    fn service_query(&self, space: &str, group: &str, name: &str) -> Pairs<'static> {
        let name = match self.api {
            // The first servers do not know of groups otherwise.
            Api::V1 => grouped_name(group, name),
            Api::V3 => name.to_owned(),
        };
        vec![
            ("serviceName", name),
            ("groupName", group.to_owned()),
            ("namespaceId", space.to_owned()),
        ]
    }

    /// Puts an instance in, renews it, or takes it out.
    async fn tell(&self, what: What, copy: &Registered) -> Result<Told, String> {
        let Registered {
            space,
            group,
            service,
            host,
        } = copy;
        let mut query = self.service_query(space, group, service);
        query.extend([
            ("ip", host.ip.clone()),
            ("port", host.port.to_string()),
            ("clusterName", host.cluster_name.clone()),
            ("ephemeral", "true".to_owned()),
        ]);
        if what == What::Register || self.api == Api::V3 && what == What::Beat {
            let metadata = serde_json::to_string(&host.metadata).map_err(|e| e.to_string())?;
            query.extend([
                ("weight", host.weight.to_string()),
                ("healthy", host.healthy.to_string()),
                ("enabled", host.enabled.to_string()),
                ("enable", host.enabled.to_string()),
                ("metadata", metadata),
            ]);
        }
        if what == What::Beat {
            match self.api {
                Api::V1 => query.push(("beat", beat(copy)?)),
                Api::V3 => query.push(("heartBeat", "true".to_owned())),
            }
        }
        let (method, path) = match (self.api, what) {
            (Api::V1, What::Register) => (Method::POST, "/v1/ns/instance"),
            (Api::V1, What::Beat) => (Method::PUT, "/v1/ns/instance/beat"),
            (Api::V1, What::Deregister) => (Method::DELETE, "/v1/ns/instance"),
            (Api::V3, What::Deregister) => (Method::DELETE, "/v3/client/ns/instance"),
            (Api::V3, _) => (Method::POST, "/v3/client/ns/instance"),
        };
        let answer = self.ask(method, path, &query).await;
        let answer = answer.map_err(|failure| failure.reason)?;
        let code = serde_json::from_slice::<Value>(&answer.body).ok();
        let code = code.and_then(|value| value.get("code")?.as_i64());
        match (what, answer.status) {
            (What::Beat, StatusCode::NOT_FOUND) => Ok(Told::Unknown),
            (What::Beat, StatusCode::OK) if code == Some(BEAT_NOT_FOUND) => Ok(Told::Unknown),
            (What::Beat, StatusCode::OK) if self.api == Api::V3 && code != Some(0) => {
                Ok(Told::Unknown)
            }
            (_, StatusCode::OK) if self.api == Api::V1 || code == Some(0) => Ok(Told::Done),
            // What is not there is as good as taken out.
            (What::Deregister, status) if status.is_client_error() && !is_of_access(&answer) => {
                Ok(Told::Done)
            }
            _ => Err(answer.describe()),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Register,
    Beat,
    Deregister,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Done,
    Unknown,
}

/// A copy at its place.
pub(super) struct Registered {
    space: String,
    group: String,
    service: String,
    host: Host,
}

/// What a beat says: servers put in again what they do not have.
fn beat(copy: &Registered) -> Result<String, String> {
    let host = &copy.host;
    let beat = serde_json::json!({
        "ip": host.ip,
        "port": host.port,
        "weight": host.weight,
        "serviceName": grouped_name(&copy.group, &copy.service),
        "cluster": host.cluster_name,
        "metadata": host.metadata,
        "scheduled": true,
        "period": write::BEAT.as_millis() as u64,
        "stopped": false,
    });
    serde_json::to_string(&beat).map_err(|e| e.to_string())
}

fn is_of_access(answer: &Answer) -> bool {
    matches!(
        answer.status,
        StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED
    )
}

/// Whether a server is of 1.x: it listens for nothing but HTTP.
pub(super) async fn is_first_version(config: &Config, server: &str) -> bool {
    #[derive(Deserialize)]
    struct State {
        version: String,
    }
    let uri = format!("{}/v1/console/server/state", config.url(server));
    let Ok(request) = Request::get(uri).body(Full::default()) else {
        return false;
    };
    let Ok(web) = config.web(server) else {
        return false;
    };
    let Ok(answer) = web.send(request, ANSWER_TIMEOUT).await else {
        return false;
    };
    serde_json::from_slice::<State>(&answer.body).is_ok_and(|state| state.version.starts_with("1."))
}
