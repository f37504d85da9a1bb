//! Answers that a route gives by itself: redirects and direct responses.

use std::borrow::Cow;
use std::sync::Arc;

use api::envoy::config::core::v3::DataSource;
use api::envoy::config::core::v3::data_source::Specifier;
use api::envoy::config::route::v3::redirect_action::{
    PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier,
};
use api::envoy::config::route::v3::{DirectResponseAction, RedirectAction};
use base::FieldError;

use super::RequestView;
use super::rewrite::PathRewrite;
use crate::refuse_fields;

/// Sends the client elsewhere.
#[derive(Debug)]
pub struct Redirect {
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
    scheme: Option<Box<[u8]>>,
    host: Box<[u8]>,
    /// With its colon.
    port: Box<[u8]>,
    path: RedirectPath,
    strip_query: bool,
}

#[derive(Debug)]
enum RedirectPath {
    /// The request's, rewritten.
    Request(PathRewrite),
    Literal(Box<[u8]>),
}

impl Redirect {
    pub(super) fn compile(
        config: &RedirectAction,
        matched_prefix: Option<usize>,
    ) -> Result<Self, FieldError> {
        let status = match RedirectResponseCode::try_from(config.response_code) {
            Ok(RedirectResponseCode::MovedPermanently) => 301,
            Ok(RedirectResponseCode::Found) => 302,
            Ok(RedirectResponseCode::SeeOther) => 303,
            Ok(RedirectResponseCode::TemporaryRedirect) => 307,
            Ok(RedirectResponseCode::PermanentRedirect) => 308,
            Err(_) => {
                let text = format!("unknown value {}", config.response_code);
                return Err(FieldError::at("response_code", text));
            }
        };
        let scheme = match &config.scheme_rewrite_specifier {
            Some(SchemeRewriteSpecifier::HttpsRedirect(true)) => Some("https"),
            Some(SchemeRewriteSpecifier::SchemeRedirect(scheme)) if !scheme.is_empty() => {
                Some(scheme.as_str())
            }
            _ => None,
        };
        let path = match &config.path_rewrite_specifier {
            None => RedirectPath::Request(PathRewrite::None),
            Some(PathRewriteSpecifier::PathRedirect(path)) if path.is_empty() => {
                RedirectPath::Request(PathRewrite::None)
            }
            Some(PathRewriteSpecifier::PathRedirect(path)) => {
                let slash = if path.starts_with('/') { "" } else { "/" };
                RedirectPath::Literal(format!("{slash}{path}").into_bytes().into())
            }

            Some(PathRewriteSpecifier::PrefixRewrite(to)) => {
                RedirectPath::Request(PathRewrite::compile(to, None, matched_prefix)?)
            }
            Some(PathRewriteSpecifier::RegexRewrite(regex)) => {
                RedirectPath::Request(PathRewrite::compile("", Some(regex), matched_prefix)?)
            }
            Some(PathRewriteSpecifier::PathRewrite(_)) => {
                return Err(FieldError::at("path_rewrite", "is not supported"));
            }
        };
        let port = match config.port_redirect {
            0 => String::new(),
            port @ 1..=65535 => format!(":{port}"),
            port => {
                return Err(FieldError::at(
                    "port_redirect",
                    format!("{port} is no port"),
                ));
            }
        };
        Ok(Self {
            status,
            scheme: scheme.map(|scheme| scheme.as_bytes().into()),
            host: config.host_redirect.as_bytes().into(),
            port: port.into_bytes().into(),
            path,
            strip_query: config.strip_query,
        })
    }

    /// The value of `location`.
    pub fn location<R: RequestView>(&self, request: &R) -> Vec<u8> {
        let scheme = self.scheme.as_deref().unwrap_or_else(|| request.scheme());
        let host = match &*self.host {
            [] => self.request_host(request, scheme),
            host => host,
        };
        let mut location = [scheme, b"://", host, &self.port].concat();
        match &self.path {
            RedirectPath::Literal(path) => {
                location.extend_from_slice(path);
                if !path.contains(&b'?') && !self.strip_query {
                    location.extend_from_slice(query(request.path()));
                }
            }
            RedirectPath::Request(rewrite) => {
                let path = rewrite.apply(request.path());
                let path = path.as_deref().unwrap_or_else(|| request.path());
                let kept = match self.strip_query {
                    true => path.len() - query(path).len(),
                    false => path.len(),
                };
                location.extend_from_slice(path.get(..kept).unwrap_or(path));
            }
        }
        location
    }

    /// The request's host, without a port that the new scheme or the new port makes wrong.
    fn request_host<'r, R: RequestView>(&self, request: &'r R, new_scheme: &[u8]) -> &'r [u8] {
        let authority = request.authority();
        let colon = match authority.first() {
            Some(b'[') => memchr::memmem::rfind(authority, b"]:").map(|at| at + 1),
            _ => memchr::memrchr(b':', authority),
        };
        let Some((host, port)) = colon.and_then(|at| authority.split_at_checked(at)) else {
            return authority;
        };
        let was_default = match request.scheme() {
            b"https" => port == b":443",
            b"http" => port == b":80",
            _ => false,
        };
        let strip = !self.port.is_empty() || (new_scheme != request.scheme() && was_default);
        if strip { host } else { authority }
    }
}

/// The query with its question mark.
fn query(path: &[u8]) -> &[u8] {
    memchr::memchr(b'?', path)
        .and_then(|at| path.get(at..))
        .unwrap_or_default()
}

/// A fixed answer.
#[derive(Debug)]
pub struct DirectResponse {
    /// 200 to 599.
    pub status: u16,
    /// May be empty.
    pub body: Arc<[u8]>,
}

impl DirectResponse {
    pub(super) fn compile(
        config: &DirectResponseAction,
        max_body_bytes: u32,
    ) -> Result<Self, FieldError> {
        refuse_fields!(config; body_format);
        let status = u16::try_from(config.status)
            .ok()
            .filter(|status| (200..600).contains(status))
            .ok_or_else(|| {
                FieldError::at(
                    "status",
                    format!("{} is not from 200 to 599", config.status),
                )
            })?;
        let body = match &config.body {
            None => Cow::Borrowed([].as_slice()),
            Some(body) => read(body).map_err(|error| error.in_field("body"))?,
        };
        if body.len() > max_body_bytes as usize {
            let text = format!(
                "response body size is {} bytes; maximum is {max_body_bytes}",
                body.len()
            );
            return Err(FieldError::at("body", text));
        }
        Ok(Self {
            status,
            body: body.into(),
        })
    }
}

/// The bytes of a data source, as they are now.
fn read(source: &DataSource) -> Result<Cow<'_, [u8]>, FieldError> {
    match &source.specifier {
        None => Ok(Cow::Borrowed(&[])),
        Some(Specifier::InlineString(text)) => Ok(Cow::Borrowed(text.as_bytes())),
        Some(Specifier::InlineBytes(bytes)) => Ok(Cow::Borrowed(bytes)),
        Some(Specifier::Filename(path)) => std::fs::read(path)
            .map(Cow::Owned)
            .map_err(|error| FieldError::at("filename", format!("cannot read {path:?}: {error}"))),
        Some(Specifier::EnvironmentVariable(name)) => match std::env::var(name) {
            Ok(value) => Ok(Cow::Owned(value.into_bytes())),
            Err(_) => Err(FieldError::at(
                "environment_variable",
                format!("{name:?} is not set"),
            )),
        },
    }
}
