//! One server of a Eureka and what is asked of it.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::Full;

use super::Failure;
use crate::eureka::info::{Info, Status};
use crate::eureka::{Applications, Format};
use crate::secret::Credentials;
use crate::source::Trouble;
use crate::tls::ClientTls;
use crate::web::{Answer, Web, part};

/// For a question about one instance, or what has changed.
const SHORT: Duration = Duration::from_secs(10);
/// For all instances.
const LONG: Duration = Duration::from_secs(60);

/// One server.
pub(super) struct Peer {
    server: String,
    authorization: Option<HeaderValue>,
    web: Web,
}

impl Peer {
    pub(super) fn new(
        server: &str,
        login: Option<&Credentials>,
        tls: Option<&ClientTls>,
    ) -> Result<Peer, Failure> {
        let authorization = login.map(authorization).transpose();
        Ok(Peer {
            server: server.trim_end_matches('/').to_owned(),
            authorization: authorization.map_err(|reason| Failure {
                trouble: Trouble::Refused,
                reason,
            })?,
            web: Web::to(server, tls).map_err(|reason| Failure {
                trouble: Trouble::Refused,
                reason,
            })?,
        })
    }

    pub(super) fn server(&self) -> &str {
        &self.server
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
        limit: Duration,
    ) -> Result<Answer, Failure> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}/{path}", self.server))
            // Some servers have only XML; they say so in the answer.
            .header(header::ACCEPT, "application/json, application/xml;q=0.5");
        if let Some(authorization) = &self.authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, Format::Json.content_type());
        }
        let request = request.body(Full::new(Bytes::from(body.unwrap_or_default())));
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

    fn refused(&self, answer: &Answer) -> Failure {
        let trouble = match answer.status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Trouble::Refused,
            status if status.is_server_error() => Trouble::Unreachable,
            _ => Trouble::Protocol,
        };
        Failure {
            trouble,
            reason: format!("{} {}", self.server, answer.describe()),
        }
    }

    /// All instances.
    pub(super) async fn applications(&self) -> Result<Applications, Failure> {
        let answer = self.ask(Method::GET, "apps", None, LONG).await?;
        self.read(&answer)
    }

    /// What has changed in the last minutes; `None` where the server is configured not to tell.
    pub(super) async fn delta(&self) -> Result<Option<Applications>, Failure> {
        let answer = self.ask(Method::GET, "apps/delta", None, SHORT).await?;
        match answer.status {
            StatusCode::FORBIDDEN | StatusCode::NOT_FOUND => Ok(None),
            _ => self.read(&answer).map(Some),
        }
    }

    fn read(&self, answer: &Answer) -> Result<Applications, Failure> {
        if answer.status != StatusCode::OK {
            return Err(self.refused(answer));
        }
        let kind = answer.headers.get(header::CONTENT_TYPE);
        let is_xml = kind.is_some_and(|kind| kind.as_bytes().windows(3).any(|word| word == b"xml"));
        let format = if is_xml { Format::Xml } else { Format::Json };
        let mut content = format
            .read(&answer.body, "applications")
            .map_err(|e| self.protocol(&e))?;
        Ok(Applications::of(&mut content))
    }

    /// Registers an instance, or replaces it.
    pub(super) async fn register(&self, info: &Info) -> Result<(), String> {
        let path = format!("apps/{}", part(&info.app));
        let body = Format::Json.write("instance", info.to_value(Format::Json));
        let answer = self.ask(Method::POST, &path, Some(body), SHORT).await;
        match answer {
            Ok(answer) if answer.status.is_success() => Ok(()),
            Ok(answer) => Err(answer.describe()),
            Err(failure) => Err(failure.reason),
        }
    }

    /// Renews a lease; `false`: the server does not have the instance, or an older state of it.
    pub(super) async fn renew(
        &self,
        app: &str,
        id: &str,
        status: Status,
        last_dirty_ms: u64,
    ) -> Result<bool, String> {
        let path = format!(
            "apps/{}/{}?status={}&lastDirtyTimestamp={last_dirty_ms}",
            part(app),
            part(id),
            status.name()
        );
        match self.ask(Method::PUT, &path, None, SHORT).await {
            Ok(answer) if answer.status.is_success() => Ok(true),
            Ok(answer) if answer.status == StatusCode::NOT_FOUND => Ok(false),
            Ok(answer) => Err(answer.describe()),
            Err(failure) => Err(failure.reason),
        }
    }

    /// Takes an instance out; one that is not there is as good as taken out.
    pub(super) async fn cancel(&self, app: &str, id: &str) -> Result<(), String> {
        let path = format!("apps/{}/{}", part(app), part(id));
        match self.ask(Method::DELETE, &path, None, SHORT).await {
            Ok(answer) if answer.status.is_success() => Ok(()),
            Ok(answer) if answer.status == StatusCode::NOT_FOUND => Ok(()),
            Ok(answer) => Err(answer.describe()),
            Err(failure) => Err(failure.reason),
        }
    }
}

fn authorization(login: &Credentials) -> Result<HeaderValue, String> {
    let password = login.password()?;
    let word = STANDARD.encode(format!("{}:{}", login.username, password.reveal()));
    let mut value = HeaderValue::from_str(&format!("Basic {word}")).map_err(|e| e.to_string())?;
    value.set_sensitive(true);
    Ok(value)
}
