//! Nacos' HTTP interface: that of 1.x, which answers in plain words, and those of 2.x and 3.x, which wrap every answer.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use http_body_util::{BodyExt, Limited};
use percent_encoding::percent_decode_str;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::access::{Shown, TOKEN_SECS};
use super::provider::Refused;
use super::{Server, http_configs, http_naming};

/// Bytes of a request's body.
const BODY_BYTES: usize = 16 << 20;
/// Who gives wrong credentials waits.
const WRONG: Duration = Duration::from_millis(250);
/// The version that is told to who asks.
const VERSION: &str = "2.5.1";

/// Codes of wrapped answers.
pub(super) const MISSING: i32 = 10_000;
pub(super) const DENIED: i32 = 10_001;
pub(super) const INVALID: i32 = 20_002;
pub(super) const NOT_FOUND: i32 = 20_004;
pub(super) const NO_INSTANCE: i32 = 21_003;
pub(super) const FAILED: i32 = 30_000;

/// How answers are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    /// 1.x
    Plain,
    /// 2.x and 3.x
    Wrapped,
}

/// An answer that is none of the usual ones.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    /// In wrapped answers.
    code: i32,
    why: String,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, code: i32, why: impl Into<String>) -> Refusal {
        Refusal {
            status,
            code,
            why: why.into(),
        }
    }

    pub(super) fn missing(param: &str) -> Refusal {
        let why = format!("Required parameter '{param}' type String is not present");
        Refusal::new(StatusCode::BAD_REQUEST, MISSING, why)
    }

    pub(super) fn invalid(why: impl Into<String>) -> Refusal {
        Refusal::new(StatusCode::BAD_REQUEST, INVALID, why)
    }

    fn no_path() -> Refusal {
        Refusal::new(StatusCode::NOT_FOUND, NOT_FOUND, "there is no such path")
    }

    fn response(self, style: Style) -> Response {
        match style {
            Style::Plain => (self.status, format!("caused: {};", self.why)).into_response(),
            Style::Wrapped => {
                let body = json!({"code": self.code, "message": self.why, "data": Value::Null});
                (self.status, axum::Json(body)).into_response()
            }
        }
    }
}

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Refusal {
        match refused {
            Refused::Malformed(why) => Refusal::invalid(why),
            Refused::Failed(why) => Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, FAILED, why),
        }
    }
}

pub(super) type Answer = Result<Response, Refusal>;

/// Something done: `ok`, or what is said instead.
pub(super) fn said(style: Style, words: &str) -> Response {
    match style {
        Style::Plain => words.to_owned().into_response(),
        Style::Wrapped => wrapped(&words),
    }
}

/// A value in the form of 2.x and 3.x.
pub(super) fn wrapped(data: &impl Serialize) -> Response {
    axum::Json(json!({"code": 0, "message": "success", "data": data})).into_response()
}

/// The same with a value that is written already.
pub(super) fn wrapped_json(data: &[u8]) -> Response {
    let head = br#"{"code":0,"message":"success","data":"#;
    json_response([&head[..], data, b"}"].concat())
}

/// JSON that is written already.
pub(super) fn json_response(json: Vec<u8>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], json).into_response()
}

/// The parameters of a request, from its path and its body.
#[derive(Debug, Default)]
pub(super) struct Params(HashMap<String, String>);

impl Params {
    fn add(&mut self, form: &str) {
        let decode = |text: &str| {
            let text = text.replace('+', " ");
            percent_decode_str(&text).decode_utf8_lossy().into_owned()
        };
        for pair in form.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            self.0.entry(decode(key)).or_insert_with(|| decode(value));
        }
    }

    /// A parameter that is not empty, under the first of its names.
    pub(super) fn get(&self, names: &[&str]) -> Option<&str> {
        let mut values = names.iter().filter_map(|name| self.0.get(*name));
        let found = values.find(|value| !value.is_empty());
        found.map(String::as_str)
    }

    pub(super) fn text(&self, names: &[&str]) -> &str {
        self.get(names).unwrap_or_default()
    }

    pub(super) fn required(&self, names: &[&str]) -> Result<&str, Refusal> {
        let name = names.first().copied().unwrap_or_default();
        self.get(names).ok_or_else(|| Refusal::missing(name))
    }

    /// A parameter that has to be read.
    pub(super) fn read<T: std::str::FromStr>(
        &self,
        names: &[&str],
        default: T,
    ) -> Result<T, Refusal> {
        match self.get(names) {
            None => Ok(default),
            Some(text) => text.trim().parse().map_err(|_| {
                let name = names.first().copied().unwrap_or_default();
                let text = crate::naming::shorten(text);
                Refusal::invalid(format!("Param '{name}' is {text:?}"))
            }),
        }
    }

    pub(super) fn truth(&self, names: &[&str], default: bool) -> bool {
        let text = self.get(names);
        text.map_or(default, |text| text.eq_ignore_ascii_case("true"))
    }
}

/// What is asked.
pub(super) struct Asked {
    pub(super) server: Arc<Server>,
    pub(super) peer: SocketAddr,
    pub(super) headers: HeaderMap,
    pub(super) params: Params,
    pub(super) style: Style,
    /// For clients of 3.x, whose lists and configurations are of another form.
    pub(super) is_v3: bool,
}

/// Serves until the listener fails.
pub(super) async fn serve(server: &Arc<Server>, listener: TcpListener) -> io::Result<()> {
    let router = Router::new()
        .fallback(any(answer))
        .with_state(server.clone());
    let service = router.into_make_service_with_connect_info::<SocketAddr>();
    axum::serve(listener, service).await
}

async fn answer(
    State(server): State<Arc<Server>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
) -> Response {
    let path = request.uri().path().trim_end_matches('/').to_owned();
    let path = path.strip_prefix("/nacos").unwrap_or_default();
    let style = match path.starts_with("/v1/") {
        true => Style::Plain,
        false => Style::Wrapped,
    };
    match route(server, peer, path, style, request).await {
        Ok(response) => response,
        Err(refusal) => refusal.response(style),
    }
}

async fn route(
    server: Arc<Server>,
    peer: SocketAddr,
    path: &str,
    style: Style,
    request: Request,
) -> Answer {
    let method = request.method().clone();
    let headers = request.headers().clone();
    let mut params = Params::default();
    params.add(request.uri().query().unwrap_or_default());
    let body = Limited::new(request.into_body(), BODY_BYTES)
        .collect()
        .await;
    let body = body.map_err(|error| {
        let status = StatusCode::PAYLOAD_TOO_LARGE;
        Refusal::new(status, INVALID, error.to_string())
    })?;
    let kind = headers.get(header::CONTENT_TYPE);
    if kind.is_none_or(|kind| {
        kind.as_bytes()
            .starts_with(b"application/x-www-form-urlencoded")
    }) {
        params.add(&String::from_utf8_lossy(&body.to_bytes()));
    }
    let asked = Asked {
        server,
        peer,
        headers,
        params,
        style,
        is_v3: path.starts_with("/v3/"),
    };
    match (&method, path) {
        (&Method::POST, "/v1/auth/login" | "/v1/auth/users/login" | "/v3/auth/user/login") => {
            return login(&asked).await;
        }
        (
            &Method::GET,
            "/v1/console/health/readiness"
            | "/v1/console/health/liveness"
            | "/v2/console/health/readiness"
            | "/v2/console/health/liveness",
        ) => return Ok(said(style, "OK")),
        (&Method::GET, "/v1/console/server/state") => {
            let state = json!({"version": VERSION, "standalone_mode": "standalone", "function_mode": Value::Null});
            return Ok(axum::Json(state).into_response());
        }
        (&Method::GET, "/v1/ns/operator/metrics" | "/v2/ns/operator/metrics") => {
            return Ok(http_naming::metrics(&asked));
        }
        _ => {}
    }
    let header = |name: &str| asked.headers.get(name)?.to_str().ok();
    let shown = Shown {
        token: asked
            .params
            .get(&["accessToken"])
            .or_else(|| header("accessToken"))
            .or_else(|| header("authorization")?.strip_prefix("Bearer ")),
        username: asked.params.get(&["username"]),
        password: asked.params.get(&["password"]),
    };
    if !asked.server.access.permits(shown) {
        let why = "authorization failed: user not found!";
        return Err(Refusal::new(StatusCode::FORBIDDEN, DENIED, why));
    }
    if let Some(answer) = http_naming::route(&asked, &method, path).await {
        return answer;
    }
    if let Some(answer) = http_configs::route(&asked, &method, path).await {
        return answer;
    }
    Err(Refusal::no_path())
}

/// Not wrapped in any version.
async fn login(asked: &Asked) -> Answer {
    let username = asked.params.text(&["username"]);
    let password = asked.params.text(&["password"]);
    match asked.server.access.login(username, password) {
        Ok(token) => {
            let body = json!({
                "accessToken": token,
                "tokenTtl": TOKEN_SECS,
                "globalAdmin": false,
                "username": username,
            });
            Ok(axum::Json(body).into_response())
        }
        Err(why) => {
            tokio::time::sleep(WRONG).await;
            Err(Refusal::new(StatusCode::FORBIDDEN, DENIED, why))
        }
    }
}
