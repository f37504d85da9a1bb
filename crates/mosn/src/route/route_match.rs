//! `RouteMatch`: the conditions of one route.

use api::envoy::config::core::v3::RuntimeFractionalPercent;
use api::envoy::config::route::v3::RouteMatch as Config;
use api::envoy::config::route::v3::route_match::PathSpecifier;
use api::envoy::r#type::v3::fractional_percent::DenominatorType;
use base::FieldError;
use regex::bytes::Regex;

use super::RequestView;
use super::header_match::{HeaderMatcher, QueryMatcher};
use super::text_match::full_regex;
use crate::refuse_fields;

/// Compiled conditions; all must hold.
#[derive(Debug)]
pub(super) struct RouteMatch {
    path: PathMatch,
    case_sensitive: bool,
    headers: Vec<HeaderMatcher>,
    query: Vec<QueryMatcher>,
    grpc: bool,
    fraction: Option<Fraction>,
}

#[derive(Debug)]
enum PathMatch {
    Any,
    Prefix(Box<[u8]>),
    Exact(Box<[u8]>),
    /// A prefix that ends where a path segment ends.
    Separated(Box<[u8]>),
    Regex(Regex),
}

/// A part of all requests.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fraction {
    numerator: u32,
    denominator: u32,
}

impl Fraction {
    /// There are no runtime overrides: the default value counts.
    pub(super) fn compile(config: &RuntimeFractionalPercent) -> Result<Self, FieldError> {
        let value = config
            .default_value
            .as_ref()
            .ok_or_else(|| FieldError::at("default_value", "is required"))?;
        let denominator = match DenominatorType::try_from(value.denominator) {
            Ok(DenominatorType::Hundred) => 100,
            Ok(DenominatorType::TenThousand) => 10_000,
            Ok(DenominatorType::Million) => 1_000_000,
            Err(_) => {
                let text = format!("unknown value {}", value.denominator);
                return Err(FieldError::at("denominator", text).in_field("default_value"));
            }
        };
        Ok(Self {
            numerator: value.numerator,
            denominator,
        })
    }

    pub(super) fn holds(self, random: u64) -> bool {
        random % u64::from(self.denominator) < u64::from(self.numerator)
    }
}

impl RouteMatch {
    pub(super) fn compile(config: &Config) -> Result<Self, FieldError> {
        refuse_fields!(config; cookies, tls_context, dynamic_metadata, filter_state);
        let path = match &config.path_specifier {
            None => return Err(FieldError::new("path_specifier is required")),
            Some(PathSpecifier::Prefix(prefix)) if prefix.is_empty() => PathMatch::Any,
            Some(PathSpecifier::Prefix(prefix)) => PathMatch::Prefix(prefix.as_bytes().into()),
            Some(PathSpecifier::Path(path)) => PathMatch::Exact(path.as_bytes().into()),
            Some(PathSpecifier::PathSeparatedPrefix(prefix)) => {
                if prefix.len() < 2 || prefix.ends_with('/') || prefix.contains(['?', '#']) {
                    let text = format!("\"{prefix}\" must not end with a slash nor hold ? or #");
                    return Err(FieldError::at("path_separated_prefix", text));
                }
                PathMatch::Separated(prefix.as_bytes().into())
            }
            Some(PathSpecifier::SafeRegex(regex)) => {
                PathMatch::Regex(full_regex(regex).map_err(|error| error.in_field("safe_regex"))?)
            }
            Some(PathSpecifier::ConnectMatcher(_)) => {
                return Err(FieldError::at("connect_matcher", "is not supported"));
            }
            Some(PathSpecifier::PathMatchPolicy(_)) => {
                return Err(FieldError::at("path_match_policy", "is not supported"));
            }
        };
        let mut headers = Vec::with_capacity(config.headers.len());
        for (index, matcher) in config.headers.iter().enumerate() {
            headers.push(
                HeaderMatcher::compile(matcher)
                    .map_err(|error| error.in_index(index).in_field("headers"))?,
            );
        }
        let mut query = Vec::with_capacity(config.query_parameters.len());
        for (index, matcher) in config.query_parameters.iter().enumerate() {
            let compiled = QueryMatcher::compile(matcher);
            query.push(
                compiled.map_err(|error| error.in_index(index).in_field("query_parameters"))?,
            );
        }
        let fraction = match &config.runtime_fraction {
            Some(fraction) => Some(
                Fraction::compile(fraction).map_err(|error| error.in_field("runtime_fraction"))?,
            ),
            None => None,
        };
        Ok(Self {
            path,
            case_sensitive: config.case_sensitive.unwrap_or(true),
            headers,
            query,
            grpc: config.grpc.is_some(),
            fraction,
        })
    }

    /// Length of a matched prefix; `None` where the whole path is matched.
    pub(super) fn matched_prefix(&self) -> Option<usize> {
        match &self.path {
            PathMatch::Any => Some(0),
            PathMatch::Prefix(prefix) | PathMatch::Separated(prefix) => Some(prefix.len()),
            PathMatch::Exact(_) | PathMatch::Regex(_) => None,
        }
    }

    /// `path` and `query` are the request's path without and behind its question mark.
    pub(super) fn matches<R: RequestView>(
        &self,
        request: &R,
        path: &[u8],
        query: &[u8],
        random: u64,
    ) -> bool {
        self.path_matches(path)
            && self
                .headers
                .iter()
                .all(|matcher| matcher.matches_request(request))
            && self.query.iter().all(|matcher| matcher.matches(query))
            && (!self.grpc || is_grpc(request))
            && self.fraction.is_none_or(|fraction| fraction.holds(random))
    }

    fn path_matches(&self, path: &[u8]) -> bool {
        let same = |a: &[u8], b: &[u8]| match self.case_sensitive {
            true => a == b,
            false => a.eq_ignore_ascii_case(b),
        };
        let starts = |prefix: &[u8]| {
            path.get(..prefix.len())
                .is_some_and(|start| same(start, prefix))
        };
        match &self.path {
            PathMatch::Any => true,
            PathMatch::Prefix(prefix) => starts(prefix),
            PathMatch::Exact(wanted) => same(path, wanted),
            PathMatch::Separated(prefix) => {
                starts(prefix) && matches!(path.get(prefix.len()), None | Some(b'/'))
            }
            PathMatch::Regex(regex) => regex.is_match(path),
        }
    }
}

fn is_grpc<R: RequestView>(request: &R) -> bool {
    let content_type = request.header("content-type");
    match content_type
        .as_deref()
        .and_then(|value| value.strip_prefix(b"application/grpc"))
    {
        Some(rest) => matches!(rest.first(), None | Some(b'+')),
        None => false,
    }
}
