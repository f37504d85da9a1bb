//! Finds session servers: any of the endpoints tells all of them, with how busy each is.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::Full;

use super::Config;
use crate::naming::host_port;
use crate::web::{Answer, Web, part};

const ANSWER: Duration = Duration::from_secs(5);
/// Servers of one zone that are remembered.
const SERVERS: usize = 10_000;

/// A session server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Server {
    /// `host:port` of its Bolt.
    pub(super) address: String,
    /// Its connections: fewer are better.
    weight: u64,
}

/// The servers that are known.
#[derive(Debug)]
pub(super) struct Servers {
    web: Web,
    endpoints: Vec<String>,
    query: String,
    next: usize,
    known: Vec<Server>,
    /// Those that could not be connected to since one could.
    failed: Vec<String>,
}

impl Servers {
    pub(super) fn new(config: &Config, web: Web) -> Servers {
        // The stock client sends the word null for what is not set.
        let query = format!(
            "?instanceId={}&zone={}&dataCenter={}&appName={}&env=null",
            part(&config.instance_id),
            part(&config.zone),
            part(&config.data_center),
            part(&config.app_name)
        );
        Servers {
            web,
            endpoints: config.endpoints.clone(),
            query,
            // Hubs that start together do not all ask the first.
            next: fastrand::usize(..config.endpoints.len().max(1)),
            known: Vec::new(),
            failed: Vec::new(),
        }
    }

    /// Asks the endpoints in turn until one says servers. What was known stays when none does.
    pub(super) async fn refresh(&mut self) -> Result<(), String> {
        let mut failure = "there is no endpoint".to_owned();
        for _ in 0..self.endpoints.len() {
            let at = self.next % self.endpoints.len().max(1);
            let endpoint = self.endpoints.get(at).cloned().unwrap_or_default();
            match self.ask(&endpoint).await {
                Ok(servers) => {
                    self.known = servers;
                    return Ok(());
                }
                Err(why) => {
                    failure = format!("{endpoint}: {why}");
                    self.next = self.next.wrapping_add(1);
                }
            }
        }
        Err(failure)
    }

    async fn ask(&self, endpoint: &str) -> Result<Vec<Server>, String> {
        let base = format!("http://{endpoint}/api/servers");
        let weighted = format!("{base}/queryWithWeight{}", self.query);
        let mut answer = get(&self.web, &weighted).await?;
        if answer.status == StatusCode::NOT_FOUND {
            // Servers up to 6.3 do not weigh.
            answer = get(&self.web, &format!("{base}/query{}", self.query)).await?;
        }
        if answer.status != StatusCode::OK {
            return Err(answer.describe());
        }
        let servers = parse(&String::from_utf8_lossy(&answer.body));
        if servers.is_empty() {
            return Err("names no session server".to_owned());
        }
        Ok(servers)
    }

    /// The server to connect to: of two that are drawn the less busy one. Those that failed come last.
    pub(super) fn choose(&mut self) -> Option<String> {
        if self.known.iter().all(|s| self.failed.contains(&s.address)) {
            self.failed.clear();
        }
        let fresh: Vec<&Server> = self
            .known
            .iter()
            .filter(|server| !self.failed.contains(&server.address))
            .collect();
        let one = fastrand::usize(..fresh.len().max(1));
        // Another one, if there is another one.
        let step = 1 + fastrand::usize(..fresh.len().saturating_sub(1).max(1));
        let other = (one + step) % fresh.len().max(1);
        let drawn = [fresh.get(one), fresh.get(other)];
        let least = drawn.into_iter().flatten().min_by_key(|s| s.weight);
        least.map(|server| server.address.clone())
    }

    /// Whether the server could be connected to.
    pub(super) fn tried(&mut self, address: &str, connected: bool) {
        if connected {
            self.failed.clear();
        } else {
            self.failed.push(address.to_owned());
        }
    }
}

/// Asks for a page.
pub(super) async fn get(web: &Web, url: &str) -> Result<Answer, String> {
    let request = Request::builder().method(Method::GET).uri(url);
    let request = request.body(Full::new(Bytes::new()));
    let request = request.map_err(|error| error.to_string())?;
    web.send(request, ANSWER).await
}

/// `host:port?weight=N;…`, as a rule without `weight`; what is neither is left out.
fn parse(text: &str) -> Vec<Server> {
    let servers = text.trim().split(';').filter_map(|entry| {
        let (address, query) = entry.split_once('?').unwrap_or((entry, ""));
        host_port(address).ok()?;
        let weight = query
            .split('&')
            .find_map(|pair| pair.strip_prefix("weight="));
        Some(Server {
            address: address.to_owned(),
            weight: weight.and_then(|weight| weight.parse().ok()).unwrap_or(0),
        })
    });
    servers.take(SERVERS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn servers(known: &str) -> Servers {
        let config = Config {
            endpoints: vec!["127.0.0.1:1".to_owned()],
            ..Config::default()
        };
        let mut servers = Servers::new(&config, Web::to("http://", None).expect("a client"));
        servers.known = parse(known);
        servers
    }

    #[test]
    fn the_less_busy_of_two_is_chosen_and_one_that_failed_only_when_all_did() {
        let mut servers = servers("10.0.0.1:9600?weight=37;10.0.0.2:9600?weight=12;nonsense");
        for _ in 0..20 {
            assert_eq!(servers.choose().as_deref(), Some("10.0.0.2:9600"));
        }
        servers.tried("10.0.0.2:9600", false);
        for _ in 0..20 {
            assert_eq!(servers.choose().as_deref(), Some("10.0.0.1:9600"));
        }
        servers.tried("10.0.0.1:9600", false);
        assert_eq!(servers.choose().as_deref(), Some("10.0.0.2:9600"));
    }

    #[test]
    fn every_server_has_its_turn_where_nothing_is_weighed() {
        let mut servers = servers("10.0.0.1:9600;10.0.0.2:9600;10.0.0.3:9600");
        let chosen = (0..500).filter_map(|_| servers.choose());
        let chosen: std::collections::BTreeSet<String> = chosen.collect();
        assert_eq!(chosen.len(), 3);
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "\\PC*") {
            let mut servers = servers(&text);
            prop_assert_eq!(servers.choose().is_none(), servers.known.is_empty());
        }
    }
}
