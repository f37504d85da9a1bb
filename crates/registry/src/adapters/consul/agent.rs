//! One agent of Consul and what is asked of it.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode};
use http_body_util::Full;
use serde_json::Value;

use super::Config;
use crate::source::Trouble;
use crate::web::{Answer, Web, part};

/// For a question that is answered at once.
const SHORT: Duration = Duration::from_secs(10);

/// Why an agent is no longer asked.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) trouble: Trouble,
    pub(super) reason: String,
}

/// The state of a list that the next question waits for the end of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Index(u64);

impl Index {
    /// The next index, and whether the server began anew: then it knows nothing of what was before.
    pub(super) fn next(self, told: u64) -> (Index, bool) {
        if told < self.0 {
            return (Index(0), true);
        }
        // A server that says 0 would answer the next question at once, and so on for ever.
        (Index(told.max(1)), false)
    }
}

/// A list with its index.
#[derive(Debug)]
pub(super) struct Told<T> {
    pub(super) index: u64,
    pub(super) content: T,
}

/// Names and tags of all services.
pub(super) type Services = Told<BTreeMap<String, Value>>;

/// One agent.
pub(super) struct Agent {
    server: String,
    datacenter: String,
    token: Option<HeaderValue>,
    web: Web,
}

impl Agent {
    pub(super) fn new(server: &str, config: &Config) -> Result<Agent, Failure> {
        let refused = |reason: String| Failure {
            trouble: Trouble::Refused,
            reason,
        };
        let token = config.token().map_err(refused)?.map(|token| {
            let mut value = HeaderValue::from_str(token.reveal())
                .map_err(|_| refused("the token has characters that no header can have".into()))?;
            value.set_sensitive(true);
            Ok(value)
        });
        let datacenter = config.datacenter.as_deref();
        let datacenter = datacenter.map_or_else(String::new, |name| format!("dc={}", part(name)));
        Ok(Agent {
            server: server.trim_end_matches('/').to_owned(),
            datacenter,
            token: token.transpose()?,
            web: Web::to(server, config.tls.as_ref()).map_err(refused)?,
        })
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
        limit: Duration,
    ) -> Result<Answer, Failure> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}/v1/{path}", self.server));
        if let Some(token) = &self.token {
            request = request.header("x-consul-token", token);
        }
        let request = request.body(Full::new(Bytes::from(body)));
        let request = request.map_err(|e| self.protocol(&e))?;
        let answer = self.web.send(request, limit).await;
        answer.map_err(|reason| Failure {
            trouble: Trouble::Unreachable,
            reason: format!("{}: {reason}", self.server),
        })
    }

    fn protocol(&self, what: &impl ToString) -> Failure {
        Failure {
            trouble: Trouble::Protocol,
            reason: format!("{}: {}", self.server, what.to_string()),
        }
    }

    /// Asks for a list; with an index and a time the answer comes when the list changes, or after that time.
    async fn list<T: serde::de::DeserializeOwned>(
        &self,
        path: &str,
        wait: Option<(Index, Duration)>,
    ) -> Result<Told<T>, Failure> {
        let mut query = vec![self.datacenter.clone()];
        let mut limit = SHORT;
        if let Some((Index(index), time)) = wait.filter(|(index, _)| index.0 > 0) {
            query.push(format!("index={index}&wait={}ms", time.as_millis()));
            // Servers add up to a sixteenth.
            limit += time + time / 8;
        }
        query.retain(|part| !part.is_empty());
        let path = format!("{path}?{}", query.join("&"));
        let answer = self.ask(Method::GET, &path, Vec::new(), limit).await?;
        if answer.status != StatusCode::OK {
            let trouble = match answer.status {
                StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => Trouble::Refused,
                status if status.is_server_error() => Trouble::Unreachable,
                _ => Trouble::Protocol,
            };
            return Err(Failure {
                trouble,
                reason: format!("{} {}", self.server, answer.describe()),
            });
        }
        let index = answer.headers.get("x-consul-index");
        let index = index.and_then(|index| index.to_str().ok()?.parse().ok());
        Ok(Told {
            index: index.unwrap_or(0),
            content: serde_json::from_slice(&answer.body).map_err(|e| self.protocol(&e))?,
        })
    }

    /// The names of all services.
    pub(super) async fn services(
        &self,
        wait: Option<(Index, Duration)>,
    ) -> Result<Services, Failure> {
        self.list("catalog/services", wait).await
    }

    /// The instances of a service with their health.
    pub(super) async fn instances(
        &self,
        service: &str,
        wait: Option<(Index, Duration)>,
    ) -> Result<Told<Vec<Value>>, Failure> {
        let path = format!("health/service/{}", part(service));
        self.list(&path, wait).await
    }

    async fn tell(&self, path: &str, body: Vec<u8>) -> Result<Answer, String> {
        let answer = self.ask(Method::PUT, path, body, SHORT).await;
        answer.map_err(|failure| failure.reason)
    }

    /// Registers a service with the agent, or replaces it.
    pub(super) async fn register(&self, service: &Value) -> Result<(), String> {
        let body = service.to_string().into_bytes();
        let answer = self.tell("agent/service/register", body).await?;
        if answer.status != StatusCode::OK {
            return Err(answer.describe());
        }
        Ok(())
    }

    /// Passes a service's TTL check, or fails it; `false`: the agent does not have it.
    pub(super) async fn renew(&self, id: &str, passing: bool) -> Result<bool, String> {
        let word = if passing { "pass" } else { "fail" };
        let path = format!("agent/check/{word}/service:{}", part(id));
        let answer = self.tell(&path, Vec::new()).await?;
        match answer.status {
            StatusCode::OK => Ok(true),
            StatusCode::FORBIDDEN => Err(answer.describe()),
            // Which status says that a check is not there depends on the version.
            _ => Ok(false),
        }
    }

    /// Takes a service out; one that is not there is as good as taken out.
    pub(super) async fn deregister(&self, id: &str) -> Result<(), String> {
        let path = format!("agent/service/deregister/{}", part(id));
        let answer = self.tell(&path, Vec::new()).await?;
        match answer.status {
            StatusCode::OK | StatusCode::NOT_FOUND => Ok(()),
            _ if String::from_utf8_lossy(&answer.body).contains("Unknown service") => Ok(()),
            _ => Err(answer.describe()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_that_goes_back_begins_anew_and_is_never_0() {
        assert_eq!(Index(7).next(9), (Index(9), false));
        assert_eq!(Index(7).next(7), (Index(7), false));
        assert_eq!(Index(7).next(3), (Index(0), true));
        assert_eq!(Index(0).next(0), (Index(1), false));
    }
}
