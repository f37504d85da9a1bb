//! A client of the HTTP/JSON interface, for tools and tests.
//!
//! ```no_run
//! # async fn example() -> Result<(), registry::client::Error> {
//! let client = registry::client::Client::new("127.0.0.1:8080")?;
//! for service in client.services(None, None).await? {
//!     println!("{}/{}: {} instances", service.protocol, service.service, service.instances);
//! }
//! # Ok(())
//! # }
//! ```

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// What stays as it is in a part of a path or a query.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');
/// A line of a watch is one instance: larger ones are not the registry's.
const LINE_BYTES: usize = 1024 * 1024;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address is not one.
    #[error("{0:?} is not an address of a registry: {1}")]
    Address(String, String),
    /// Nobody answered.
    #[error("the registry at {0} cannot be reached: {1}")]
    Unreachable(String, String),
    /// The registry refused.
    #[error("{message}{}", .field.as_ref().map_or(String::new(), |field| format!(" (field {field})")))]
    Refused {
        /// Status of the answer.
        status: StatusCode,
        /// For programs: `invalid_argument`, `not_found`, …
        code: String,
        /// For people.
        message: String,
        /// Path of the field that is wrong.
        field: Option<String>,
    },
    /// The answer is none of a registry.
    #[error("the registry's answer cannot be read: {0}")]
    Answer(String),
}

/// How many instances of a version and group there are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionCounts {
    /// Version; empty for none.
    pub version: String,
    /// Group; empty for none.
    pub group: String,
    /// All.
    pub instances: u64,
    /// Those that can take calls.
    pub available: u64,
}

/// A service in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Where it is known.
    pub namespace: String,
    /// Protocol.
    pub protocol: String,
    /// Name.
    pub service: String,
    /// All instances.
    pub instances: u64,
    /// Those that can take calls.
    pub available: u64,
    /// By version and group.
    pub versions: Vec<VersionCounts>,
}

/// An instance as the registry shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Instance {
    /// Where the service is known.
    pub namespace: String,
    /// Protocol.
    pub protocol: String,
    /// Name of the service.
    pub service: String,
    /// Unique in the service.
    pub id: String,
    /// Version; empty for none.
    pub version: String,
    /// Group; empty for none.
    pub group: String,
    /// IP address or host name.
    pub address: String,
    /// Port.
    pub port: u16,
    /// Share of calls.
    pub weight: u32,
    /// What its registrar says.
    pub healthy: bool,
    /// Free words.
    pub metadata: BTreeMap<String, String>,
    /// The registry where an application put it.
    pub origin: String,
    /// Its lease in seconds; 0 for none.
    pub ttl_seconds: f64,
    /// Of its last change.
    pub revision: u64,
}

/// What is registered; what is `None` gets the registry's default.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Content {
    /// IP address or host name.
    pub address: String,
    /// Port.
    pub port: u16,
    /// Version; empty for none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub version: String,
    /// Group; empty for none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// Share of calls; 100 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// Whether it can take calls; so by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthy: Option<bool>,
    /// Free words.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// Its lease in seconds; 30 by default, 0 for none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<f64>,
}

/// What became of a registration.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Registered {
    /// Its id.
    pub id: String,
    /// Whether it was not there before.
    pub created: bool,
    /// Its lease in seconds; 0 for none.
    pub ttl_seconds: f64,
    /// The registry's revision after it.
    pub revision: u64,
}

/// What is listed or watched; what is `None` does not matter.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Protocol; only for a watch.
    pub protocol: Option<String>,
    /// Service; only for a watch.
    pub service: Option<String>,
    /// Version; `Some("")` for none.
    pub version: Option<String>,
    /// Group; `Some("")` for none.
    pub group: Option<String>,
    /// What the registrar says.
    pub healthy: Option<bool>,
}

/// Kinds of lines of a watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EventKind {
    /// A full list begins: what was known is void.
    Reset,
    /// An instance is there, new or with a new content.
    Put,
    /// It was taken out.
    Deregistered,
    /// Its lease was not renewed.
    Lapsed,
    /// The watcher is up to date.
    Synced,
}

/// A line of a watch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// What happened.
    #[serde(rename = "type")]
    pub kind: EventKind,
    /// The registry's revision.
    #[serde(default)]
    pub revision: u64,
    /// Names the data that the revision is of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<String>,
    /// To whom it happened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<Instance>,
}

/// A registry's address and the connections to it.
#[derive(Clone, Debug)]
pub struct Client {
    http: HttpClient<HttpConnector, Full<Bytes>>,
    base: String,
    /// `None`: what the registry takes when none is named.
    namespace: Option<String>,
}

impl Client {
    /// A client of the registry at `host:port` or `http://host:port`.
    pub fn new(address: &str) -> Result<Client, Error> {
        let address = address.trim_end_matches('/');
        let base = match address.contains("://") {
            true => address.to_owned(),
            false => format!("http://{address}"),
        };
        let wrong = |why: &str| Error::Address(address.to_owned(), why.to_owned());
        let uri: http::Uri = base.parse().map_err(|_| wrong("it is no URL"))?;
        if uri.scheme_str() != Some("http") {
            return Err(wrong("only http is known"));
        }
        if uri.host().is_none_or(str::is_empty) {
            return Err(wrong("the host is missing"));
        }
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(std::time::Duration::from_secs(3)));
        Ok(Client {
            http: HttpClient::builder(TokioExecutor::new()).build(connector),
            base,
            namespace: None,
        })
    }

    /// The same client for another namespace; `*` lists and watches all.
    pub fn within(&self, namespace: &str) -> Client {
        Client {
            namespace: Some(namespace.to_owned()),
            ..self.clone()
        }
    }

    fn instances_path(&self, protocol: &str, service: &str) -> String {
        let within = match &self.namespace {
            Some(namespace) => format!("/namespaces/{}", encode(namespace)),
            None => String::new(),
        };
        format!(
            "/v1{within}/services/{}/{}/instances",
            encode(protocol),
            encode(service)
        )
    }

    /// All services, in the order of their names.
    pub async fn services(
        &self,
        protocol: Option<&str>,
        service: Option<&str>,
    ) -> Result<Vec<Service>, Error> {
        #[derive(Deserialize)]
        struct Page {
            services: Vec<Service>,
            next: Option<String>,
        }
        let mut services = Vec::new();
        let mut after = None;
        loop {
            let query = query(&[
                ("namespace", self.namespace.as_deref()),
                ("protocol", protocol),
                ("service", service),
                ("after", after.as_deref()),
            ]);
            let page: Page = self.get(&format!("/v1/services{query}")).await?;
            services.extend(page.services);
            after = page.next;
            if after.is_none() {
                return Ok(services);
            }
        }
    }

    /// The instances of a service, in the order of their ids.
    pub async fn instances(
        &self,
        protocol: &str,
        service: &str,
        filter: &Filter,
    ) -> Result<Vec<Instance>, Error> {
        #[derive(Deserialize)]
        struct Page {
            instances: Vec<Instance>,
            next: Option<String>,
        }
        let path = self.instances_path(protocol, service);
        let mut instances = Vec::new();
        let mut after = None;
        loop {
            let query = query(&[
                ("version", filter.version.as_deref()),
                ("group", filter.group.as_deref()),
                ("healthy", filter.healthy.map(word)),
                ("after", after.as_deref()),
            ]);
            let page: Page = self.get(&format!("{path}{query}")).await?;
            instances.extend(page.instances);
            after = page.next;
            if after.is_none() {
                return Ok(instances);
            }
        }
    }

    /// Registers an instance, or replaces the one of the same id. Without an id one is made of address and port.
    pub async fn register(
        &self,
        protocol: &str,
        service: &str,
        id: Option<&str>,
        content: &Content,
    ) -> Result<Registered, Error> {
        let body = serde_json::to_vec(content).map_err(|e| Error::Answer(e.to_string()))?;
        let path = self.instances_path(protocol, service);
        let (method, path) = match id {
            Some(id) => (Method::PUT, format!("{path}/{}", encode(id))),
            None => (Method::POST, path),
        };
        parse(self.send(method, &path, body).await?).await
    }

    /// Starts the lease of an instance anew.
    pub async fn renew(&self, protocol: &str, service: &str, id: &str) -> Result<(), Error> {
        let path = format!(
            "{}/{}/lease",
            self.instances_path(protocol, service),
            encode(id)
        );
        self.send(Method::PUT, &path, Vec::new()).await.map(drop)
    }

    /// Takes an instance out.
    pub async fn deregister(&self, protocol: &str, service: &str, id: &str) -> Result<(), Error> {
        let path = format!("{}/{}", self.instances_path(protocol, service), encode(id));
        self.send(Method::DELETE, &path, Vec::new()).await.map(drop)
    }

    /// What is there, then every change; from behind an event, if that is remembered.
    pub async fn watch(&self, filter: &Filter, since: Option<(u64, &str)>) -> Result<Watch, Error> {
        let revision = since.map(|(revision, _)| revision.to_string());
        let query = query(&[
            ("namespace", self.namespace.as_deref()),
            ("protocol", filter.protocol.as_deref()),
            ("service", filter.service.as_deref()),
            ("version", filter.version.as_deref()),
            ("group", filter.group.as_deref()),
            ("healthy", filter.healthy.map(word)),
            ("since", revision.as_deref()),
            ("store", since.map(|(_, store)| store)),
        ]);
        let response = self
            .send(Method::GET, &format!("/v1/watch{query}"), Vec::new())
            .await?;
        Ok(Watch {
            body: response.into_body(),
            buffer: BytesMut::new(),
        })
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        parse(self.send(Method::GET, path, Vec::new()).await?).await
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<Response<Incoming>, Error> {
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|e| Error::Address(self.base.clone(), e.to_string()))?;
        let response = self.http.request(request).await.map_err(|error| {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            Error::Unreachable(
                self.base.clone(),
                cause.unwrap_or_else(|| error.to_string()),
            )
        })?;
        if response.status().is_success() {
            return Ok(response);
        }
        Err(refusal(response).await)
    }
}

/// Lines of a watch, for as long as the registry is there.
#[derive(Debug)]
pub struct Watch {
    body: Incoming,
    buffer: BytesMut,
}

impl Watch {
    /// The next line; `None` when the registry has ended the watch. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Result<Option<Event>, Error> {
        loop {
            if let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
                let line = self.buffer.split_to(end + 1);
                let event =
                    serde_json::from_slice(&line).map_err(|e| Error::Answer(e.to_string()))?;
                return Ok(Some(event));
            }
            if self.buffer.len() > LINE_BYTES {
                return Err(Error::Answer(format!(
                    "a line is longer than {LINE_BYTES} bytes"
                )));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(Error::Answer(error.to_string())),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
            }
        }
    }
}

async fn parse<T: DeserializeOwned>(response: Response<Incoming>) -> Result<T, Error> {
    let body = response
        .into_body()
        .collect()
        .await
        .map_err(|e| Error::Answer(e.to_string()))?;
    serde_json::from_slice(&body.to_bytes()).map_err(|e| Error::Answer(e.to_string()))
}

async fn refusal(response: Response<Incoming>) -> Error {
    #[derive(Deserialize)]
    struct Problem {
        code: String,
        message: String,
        field: Option<String>,
    }
    let status = response.status();
    match parse::<Problem>(response).await {
        Ok(problem) => Error::Refused {
            status,
            code: problem.code,
            message: problem.message,
            field: problem.field,
        },
        Err(_) => Error::Answer(format!("status {status}")),
    }
}

fn encode(text: &str) -> impl std::fmt::Display {
    utf8_percent_encode(text, ENCODED)
}

fn word(value: bool) -> &'static str {
    if value { "true" } else { "false" }
}

fn query(pairs: &[(&str, Option<&str>)]) -> String {
    let mut query = String::new();
    for (name, value) in pairs {
        if let Some(value) = value {
            let separator = if query.is_empty() { '?' } else { '&' };
            query.push_str(&format!("{separator}{name}={}", encode(value)));
        }
    }
    query
}
