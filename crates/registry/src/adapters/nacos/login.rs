//! Who asks: a token that servers give for a name and a password, and that is renewed before it is over.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::Full;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::{Config, Failure};
use crate::secret::{Credentials, Secret};
use crate::source::Trouble;
use crate::web::{Answer, part};

const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Where servers log in: 3.x, 1.2 and later, the first ones.
const PATHS: [&str; 3] = [
    "/v3/auth/user/login",
    "/v1/auth/users/login",
    "/v1/auth/login",
];
/// The name of the token in headers and queries.
pub(super) const TOKEN: &str = "accessToken";
/// A token that is said to be over at once is used for so long.
const TTL_MIN: Duration = Duration::from_secs(2);

/// The tokens of a registry's servers.
pub(super) struct Login {
    credentials: Option<Credentials>,
    tokens: Mutex<HashMap<String, Token>>,
}

struct Token {
    word: Secret,
    renewed_at: Instant,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Given {
    access_token: Secret,
    /// In seconds.
    #[serde(default)]
    token_ttl: u64,
}

impl Login {
    pub(super) fn new(config: &Config) -> Login {
        Login {
            credentials: config.login.clone(),
            tokens: Mutex::default(),
        }
    }

    /// Whether anybody logs in.
    pub(super) fn is_needed(&self) -> bool {
        self.credentials.is_some()
    }

    /// The token for a server as it is now.
    pub(super) async fn token(
        &self,
        config: &Config,
        server: &str,
    ) -> Result<Option<Secret>, Failure> {
        let Some(credentials) = &self.credentials else {
            return Ok(None);
        };
        // One logs in, the others wait for it.
        let mut tokens = self.tokens.lock().await;
        if let Some(token) = tokens.get(server)
            && Instant::now() < token.renewed_at
        {
            return Ok(Some(token.word.clone()));
        }
        let given = self.log_in(config, server, credentials).await?;
        // A tenth before its end.
        let ttl = Duration::from_secs(given.token_ttl.min(365 * 24 * 3600)) / 10 * 9;
        let token = Token {
            word: given.access_token.clone(),
            renewed_at: Instant::now() + ttl.max(TTL_MIN),
        };
        tokens.insert(server.to_owned(), token);
        Ok(Some(given.access_token))
    }

    /// The headers that say who asks.
    pub(super) async fn headers(
        &self,
        config: &Config,
        server: &str,
    ) -> Result<BTreeMap<String, String>, Failure> {
        let token = self.token(config, server).await?;
        let headers = token.map(|token| (TOKEN.to_owned(), token.reveal().to_owned()));
        Ok(headers.into_iter().collect())
    }

    /// The server does not take its token any more.
    pub(super) async fn forget(&self, server: &str) {
        self.tokens.lock().await.remove(server);
    }

    async fn log_in(
        &self,
        config: &Config,
        server: &str,
        credentials: &Credentials,
    ) -> Result<Given, Failure> {
        let refused = |why: String| Failure::new(Trouble::Refused, format!("{server}: {why}"));
        let password = credentials.password().map_err(refused)?;
        let form = format!(
            "username={}&password={}",
            part(&credentials.username),
            part(password.reveal())
        );
        let web = config.web(server)?;
        let mut answer = None;
        for path in PATHS {
            let request = Request::builder()
                .method(Method::POST)
                .uri(format!("{}{path}", config.url(server)))
                .header("content-type", "application/x-www-form-urlencoded")
                .body(Full::new(Bytes::from(form.clone())))
                .map_err(|e| Failure::protocol(format!("{server}: {e}")))?;
            let told = web.send(request, ANSWER_TIMEOUT).await;
            let told =
                told.map_err(|why| Failure::unreachable(format!("{server}: log-in: {why}")))?;
            let is_unknown = matches!(
                told.status,
                StatusCode::NOT_FOUND | StatusCode::GONE | StatusCode::METHOD_NOT_ALLOWED
            );
            answer = Some(told);
            if !is_unknown {
                break;
            }
        }
        match answer {
            Some(answer) => given(&answer).map_err(|failure| Failure {
                reason: format!("{server}: {}", failure.reason),
                ..failure
            }),
            None => Err(Failure::protocol("there is no place to log in")),
        }
    }
}

fn given(answer: &Answer) -> Result<Given, Failure> {
    if answer.status != StatusCode::OK {
        let text = String::from_utf8_lossy(&answer.body).to_lowercase();
        // Some say with 500 that nobody has this name.
        let is_of_login = text.contains("user") || text.contains("password");
        let trouble = match answer.status {
            status if status.is_server_error() && !is_of_login => Trouble::Unreachable,
            _ => Trouble::Refused,
        };
        let reason = format!("the log-in: {}", answer.describe());
        return Err(Failure::new(trouble, reason));
    }
    let value: Value = serde_json::from_slice(&answer.body)
        .map_err(|_| Failure::protocol("the answer to the log-in is no JSON"))?;
    // Some wrap it.
    let value = match value.get("data") {
        Some(data) if data.is_object() => data,
        _ => &value,
    };
    // What serde would say of it shows what it read.
    Given::deserialize(value)
        .map_err(|_| Failure::new(Trouble::Refused, "the log-in gives no token"))
}
