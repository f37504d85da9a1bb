//! Small pieces that many messages need.

use std::collections::BTreeMap;
use std::time::Duration;

use api::envoy::config::core::v3 as core;
use api::envoy::r#type::matcher::v3 as matcher;
use api::envoy::r#type::v3 as envoy_type;
use prost_types::value::Kind;
use prost_types::{Struct, Value};

use crate::istio::virtual_service::{Pattern, Percent};

pub(super) fn duration(value: Duration) -> prost_types::Duration {
    api::time::to_proto(value)
}

pub(super) fn socket_address(address: &str, port: u16) -> core::Address {
    core::Address {
        address: Some(core::address::Address::SocketAddress(core::SocketAddress {
            address: address.to_owned(),
            port_specifier: Some(core::socket_address::PortSpecifier::PortValue(u32::from(
                port,
            ))),
            ..Default::default()
        })),
    }
}

/// An IP address, a name, or `unix:///path`.
pub(super) fn address(address: &str, port: u16) -> core::Address {
    match address.strip_prefix("unix://") {
        Some(path) => core::Address {
            address: Some(core::address::Address::Pipe(core::Pipe {
                path: path.to_owned(),
                mode: 0,
            })),
        },
        None => socket_address(address, port),
    }
}

/// From the same stream, waiting for it without limit.
pub(super) fn ads() -> core::ConfigSource {
    core::ConfigSource {
        initial_fetch_timeout: Some(duration(Duration::ZERO)),
        resource_api_version: core::ApiVersion::V3 as i32,
        config_source_specifier: Some(core::config_source::ConfigSourceSpecifier::Ads(
            core::AggregatedConfigSource {},
        )),
        ..Default::default()
    }
}

pub(super) fn string(text: impl Into<String>) -> Value {
    Value {
        kind: Some(Kind::StringValue(text.into())),
    }
}

pub(super) fn boolean(value: bool) -> Value {
    Value {
        kind: Some(Kind::BoolValue(value)),
    }
}

pub(super) fn list(values: Vec<Value>) -> Value {
    Value {
        kind: Some(Kind::ListValue(prost_types::ListValue { values })),
    }
}

pub(super) fn object<const N: usize>(fields: [(&str, Value); N]) -> Value {
    Value {
        kind: Some(Kind::StructValue(structure(fields))),
    }
}

pub(super) fn structure<const N: usize>(fields: [(&str, Value); N]) -> Struct {
    Struct {
        fields: fields
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect(),
    }
}

/// `filter_metadata` with these namespaces.
pub(super) fn metadata(namespaces: Vec<(&str, Struct)>) -> core::Metadata {
    let filter_metadata: BTreeMap<String, Struct> = namespaces
        .into_iter()
        .map(|(name, fields)| (name.to_owned(), fields))
        .collect();
    core::Metadata {
        filter_metadata,
        ..Default::default()
    }
}

/// What Istio notes on what an object made.
pub(super) fn config_metadata(resource_path: String) -> core::Metadata {
    metadata(vec![(
        "istio",
        structure([("config", string(resource_path))]),
    )])
}

pub(super) fn regex(pattern: &str) -> matcher::RegexMatcher {
    matcher::RegexMatcher {
        regex: pattern.to_owned(),
        ..Default::default()
    }
}

/// `None` for a pattern that is only to be there.
pub(super) fn string_matcher(pattern: Pattern<'_>) -> Option<matcher::StringMatcher> {
    use matcher::string_matcher::MatchPattern;
    let pattern = match pattern {
        Pattern::Exact(text) => MatchPattern::Exact(text.to_owned()),
        Pattern::Prefix(text) => MatchPattern::Prefix(text.to_owned()),
        Pattern::Regex(text) => MatchPattern::SafeRegex(regex(text)),
        Pattern::Present => return None,
    };
    Some(matcher::StringMatcher {
        match_pattern: Some(pattern),
        ..Default::default()
    })
}

/// Istio's percentages have four decimal places of a percent.
pub(super) fn fraction(percent: Option<Percent>) -> envoy_type::FractionalPercent {
    let value = percent.map_or(100.0, |percent| percent.value);
    envoy_type::FractionalPercent {
        numerator: (value * 10_000.0).round().clamp(0.0, 1_000_000.0) as u32,
        denominator: envoy_type::fractional_percent::DenominatorType::Million as i32,
    }
}
