//! Conditions of routes.

use api::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use api::envoy::config::route::v3::query_parameter_matcher::QueryParameterMatchSpecifier;
use api::envoy::config::route::v3::route_match::PathSpecifier;
use api::envoy::config::route::v3::{HeaderMatcher, QueryParameterMatcher, RouteMatch};

use super::message::{regex, string_matcher};
use crate::istio::virtual_service::{HttpMatch, Pattern};

/// Every call.
pub(super) fn any() -> RouteMatch {
    RouteMatch {
        path_specifier: Some(PathSpecifier::Prefix("/".to_owned())),
        ..Default::default()
    }
}

/// Whether it holds for every call.
pub(super) fn is_catch_all(condition: &RouteMatch) -> bool {
    let any_path = match &condition.path_specifier {
        Some(PathSpecifier::Prefix(prefix)) => prefix == "/",
        Some(PathSpecifier::SafeRegex(regex)) => regex.regex == "*" || regex.regex == ".*",
        _ => false,
    };
    any_path && condition.headers.is_empty() && condition.query_parameters.is_empty()
}

/// A match of a VirtualService as Envoy's.
pub(super) fn route_match(item: &HttpMatch) -> RouteMatch {
    let mut condition = any();
    if let Some(uri) = &item.uri {
        condition.path_specifier = Some(match uri.pattern() {
            Pattern::Exact(path) => PathSpecifier::Path(path.to_owned()),
            Pattern::Prefix(prefix) => PathSpecifier::Prefix(prefix.to_owned()),
            Pattern::Regex(pattern) => PathSpecifier::SafeRegex(regex(pattern)),
            Pattern::Present => PathSpecifier::Prefix("/".to_owned()),
        });
    }
    condition.case_sensitive = Some(!item.ignore_uri_case);
    for (name, value) in &item.headers {
        condition
            .headers
            .push(header_matcher(name, value.pattern()));
    }
    for (name, value) in &item.without_headers {
        let pattern = value.pattern();
        condition.headers.push(HeaderMatcher {
            invert_match: true,
            // A call that lacks the header is one without it.
            treat_missing_header_as_empty: pattern != Pattern::Present,
            ..header_matcher(name, pattern)
        });
    }
    for (name, value) in [
        (":method", &item.method),
        (":authority", &item.authority),
        (":scheme", &item.scheme),
    ] {
        if let Some(value) = value {
            condition
                .headers
                .push(header_matcher(name, value.pattern()));
        }
    }
    for (name, value) in &item.query_params {
        let specifier = match string_matcher(value.pattern()) {
            Some(matcher) => QueryParameterMatchSpecifier::StringMatch(matcher),
            None => QueryParameterMatchSpecifier::PresentMatch(true),
        };
        condition.query_parameters.push(QueryParameterMatcher {
            name: name.clone(),
            query_parameter_match_specifier: Some(specifier),
        });
    }
    condition
}

fn header_matcher(name: &str, pattern: Pattern<'_>) -> HeaderMatcher {
    let specifier = match string_matcher(pattern) {
        Some(matcher) => HeaderMatchSpecifier::StringMatch(matcher),
        None => HeaderMatchSpecifier::PresentMatch(true),
    };
    HeaderMatcher {
        name: name.to_owned(),
        header_match_specifier: Some(specifier),
        ..Default::default()
    }
}
