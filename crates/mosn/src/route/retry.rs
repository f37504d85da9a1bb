//! Retry policies.

use std::ops::{BitOr, BitOrAssign};
use std::time::Duration;

use api::envoy::config::route::v3::retry_policy::RetryHostPredicate;
use api::envoy::config::route::v3::retry_policy::retry_host_predicate::ConfigType;
use api::envoy::config::route::v3::{HeaderMatcher as Header, RetryPolicy as Config};
use base::FieldError;

use super::duration_field;
use super::header_match::HeaderMatcher;
use crate::refuse_fields;

const PREVIOUS_HOSTS: &str = "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate";
const DEFAULT_BASE: Duration = Duration::from_millis(25);
/// Shorter back-off intervals become this.
const SHORTEST_BASE: Duration = Duration::from_millis(1);

/// What a retry answers to: a set of the words of `retry_on`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RetryOn(u32);

impl RetryOn {
    /// `5xx`: a 5xx answer, or none at all.
    pub const SERVER_ERROR: Self = Self(1);
    /// `gateway-error`: 502, 503 or 504.
    pub const GATEWAY_ERROR: Self = Self(1 << 1);
    /// `connect-failure`.
    pub const CONNECT_FAILURE: Self = Self(1 << 2);
    /// `retriable-4xx`: 409.
    pub const RETRIABLE_4XX: Self = Self(1 << 3);
    /// `refused-stream`.
    pub const REFUSED_STREAM: Self = Self(1 << 4);
    /// `cancelled`: gRPC status 1.
    pub const GRPC_CANCELLED: Self = Self(1 << 5);
    /// `deadline-exceeded`: gRPC status 4.
    pub const GRPC_DEADLINE_EXCEEDED: Self = Self(1 << 6);
    /// `resource-exhausted`: gRPC status 8.
    pub const GRPC_RESOURCE_EXHAUSTED: Self = Self(1 << 7);
    /// `unavailable`: gRPC status 14.
    pub const GRPC_UNAVAILABLE: Self = Self(1 << 8);
    /// `internal`: gRPC status 13.
    pub const GRPC_INTERNAL: Self = Self(1 << 9);
    /// `retriable-status-codes`.
    pub const RETRIABLE_STATUS_CODES: Self = Self(1 << 10);
    /// `reset`: no answer at all.
    pub const RESET: Self = Self(1 << 11);
    /// `reset-before-request`: no answer, and nothing of the request was sent.
    pub const RESET_BEFORE_REQUEST: Self = Self(1 << 12);
    /// `retriable-headers`.
    pub const RETRIABLE_HEADERS: Self = Self(1 << 13);
    /// `envoy-ratelimited`: the header `x-envoy-ratelimited` is in the answer.
    pub const ENVOY_RATELIMITED: Self = Self(1 << 14);
    /// `http3-post-connect-failure`.
    pub const HTTP3_POST_CONNECT_FAILURE: Self = Self(1 << 15);

    /// The words of a comma-separated list, also that of `x-envoy-retry-on` and `x-envoy-retry-grpc-on`. As in Envoy,
    /// unknown words count for nothing.
    pub fn parse(words: &str) -> Self {
        let mut on = Self::default();
        for word in words.split(',') {
            on |= match word.trim() {
                "5xx" => Self::SERVER_ERROR,
                "gateway-error" => Self::GATEWAY_ERROR,
                "connect-failure" => Self::CONNECT_FAILURE,
                "retriable-4xx" => Self::RETRIABLE_4XX,
                "refused-stream" => Self::REFUSED_STREAM,
                "cancelled" => Self::GRPC_CANCELLED,
                "deadline-exceeded" => Self::GRPC_DEADLINE_EXCEEDED,
                "resource-exhausted" => Self::GRPC_RESOURCE_EXHAUSTED,
                "unavailable" => Self::GRPC_UNAVAILABLE,
                "internal" => Self::GRPC_INTERNAL,
                "retriable-status-codes" => Self::RETRIABLE_STATUS_CODES,
                "reset" => Self::RESET,
                "reset-before-request" => Self::RESET_BEFORE_REQUEST,
                "retriable-headers" => Self::RETRIABLE_HEADERS,
                "envoy-ratelimited" => Self::ENVOY_RATELIMITED,
                "http3-post-connect-failure" => Self::HTTP3_POST_CONNECT_FAILURE,
                _ => Self::default(),
            };
        }
        on
    }

    /// Whether any word of `other` is in the set.
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Whether nothing is retried.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl BitOr for RetryOn {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for RetryOn {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

/// When and how often a failed request is sent again.
#[derive(Debug)]
pub struct RetryPolicy {
    /// What is retried.
    pub on: RetryOn,
    /// `num_retries`: tries after the first. Default 1.
    pub retries: u32,
    /// Time for each try; `None`: the route's timeout only.
    pub per_try_timeout: Option<Duration>,
    /// Time without a byte in a try; `None`: no limit.
    pub per_try_idle_timeout: Option<Duration>,
    /// Statuses for [`RetryOn::RETRIABLE_STATUS_CODES`].
    pub retriable_status_codes: Vec<u16>,
    /// Conditions on the answer for [`RetryOn::RETRIABLE_HEADERS`]; any one suffices.
    pub retriable_headers: Vec<HeaderMatcher>,
    /// Conditions on the request without which nothing is retried; any one suffices.
    pub retriable_request_headers: Vec<HeaderMatcher>,
    /// Least back-off. Default 25 ms.
    pub base_interval: Duration,
    /// Greatest back-off. Default ten times the least.
    pub max_interval: Duration,
    /// `previous_hosts`: a retry goes to a host that was not tried, if there is one.
    pub avoid_previous_hosts: bool,
    /// How often a host is chosen anew when a tried one comes up. Default 1.
    pub host_attempts: u32,
}

impl RetryPolicy {
    /// Compiles a policy.
    pub(super) fn compile(config: &Config) -> Result<Self, FieldError> {
        refuse_fields!(config; retry_priority, retry_options_predicates, rate_limited_retry_back_off);
        let positive = |field: &str, value| {
            duration_field(field, value)
                .map(|duration| duration.filter(|duration| !duration.is_zero()))
        };
        let mut base_interval = DEFAULT_BASE;
        let mut max_interval = 10 * DEFAULT_BASE;
        if let Some(back_off) = &config.retry_back_off {
            let in_back_off = |error: FieldError| error.in_field("retry_back_off");
            base_interval = positive("base_interval", back_off.base_interval.as_ref())
                .map_err(in_back_off)?
                .ok_or_else(|| {
                    in_back_off(FieldError::at("base_interval", "must be greater than 0s"))
                })?
                .max(SHORTEST_BASE);
            max_interval = positive("max_interval", back_off.max_interval.as_ref())
                .map_err(in_back_off)?
                .map_or(10 * base_interval, |interval| interval.max(SHORTEST_BASE));
            if max_interval < base_interval {
                let text = "must be greater than or equal to base_interval";
                return Err(in_back_off(FieldError::at("max_interval", text)));
            }
        }
        for (index, predicate) in config.retry_host_predicate.iter().enumerate() {
            check_predicate(predicate)
                .map_err(|error| error.in_index(index).in_field("retry_host_predicate"))?;
        }
        let retriable_status_codes = config
            .retriable_status_codes
            .iter()
            .enumerate()
            .map(|(index, code)| {
                u16::try_from(*code)
                    .map_err(|_| FieldError::new(format!("{code} is no status")).in_index(index))
                    .map_err(|error| error.in_field("retriable_status_codes"))
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            on: RetryOn::parse(&config.retry_on),
            retries: config.num_retries.unwrap_or(1),
            per_try_timeout: positive("per_try_timeout", config.per_try_timeout.as_ref())?,
            per_try_idle_timeout: positive(
                "per_try_idle_timeout",
                config.per_try_idle_timeout.as_ref(),
            )?,
            retriable_status_codes,
            retriable_headers: matchers("retriable_headers", &config.retriable_headers)?,
            retriable_request_headers: matchers(
                "retriable_request_headers",
                &config.retriable_request_headers,
            )?,
            base_interval,
            max_interval,
            avoid_previous_hosts: !config.retry_host_predicate.is_empty(),
            host_attempts: u32::try_from(config.host_selection_retry_max_attempts)
                .unwrap_or(0)
                .max(1),
        })
    }
}

fn matchers(field: &str, configs: &[Header]) -> Result<Vec<HeaderMatcher>, FieldError> {
    let compile = |(index, config)| {
        HeaderMatcher::compile(config).map_err(|error| error.in_index(index).in_field(field))
    };
    configs.iter().enumerate().map(compile).collect()
}

fn check_predicate(predicate: &RetryHostPredicate) -> Result<(), FieldError> {
    match &predicate.config_type {
        Some(ConfigType::TypedConfig(any)) if api::any::type_name(any) == PREVIOUS_HOSTS => Ok(()),
        Some(ConfigType::TypedConfig(any)) => {
            let name = api::any::type_name(any);
            Err(FieldError::at(
                "typed_config",
                format!("{name} is not supported"),
            ))
        }
        None => Err(FieldError::at("typed_config", "is required")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn defaults_are_envoys() {
        let policy = RetryPolicy::compile(&Config::default()).unwrap();
        assert!(
            policy.on.is_empty()
                && policy.per_try_timeout.is_none()
                && !policy.avoid_previous_hosts
        );
        assert_eq!((policy.retries, policy.host_attempts), (1, 1));
        assert_eq!(
            (policy.base_interval, policy.max_interval),
            (DEFAULT_BASE, Duration::from_millis(250))
        );
    }

    #[test]
    fn words_are_a_set() {
        let on = RetryOn::parse("5xx, connect-failure,,nonsense");
        assert_eq!(on, RetryOn::SERVER_ERROR | RetryOn::CONNECT_FAILURE);
        assert!(on.contains(RetryOn::CONNECT_FAILURE) && !on.contains(RetryOn::RESET));
    }

    #[test]
    fn reads_a_full_policy_and_refuses_the_unknown() {
        let read = |value| RetryPolicy::compile(&api::json::from_value(&value).unwrap());
        let policy = read(json!({
            "retry_on": "retriable-status-codes", "num_retries": 0, "per_try_timeout": "0s", "retriable_status_codes": [503],
            "retry_back_off": {"base_interval": "0.000001s"},
            "retry_host_predicate": [{"name": "x", "typed_config": {"@type": format!("type.googleapis.com/{PREVIOUS_HOSTS}")}}],
            "host_selection_retry_max_attempts": "5",
        }))
        .unwrap();
        assert_eq!(
            (policy.retries, policy.host_attempts, policy.per_try_timeout),
            (0, 5, None)
        );
        assert_eq!(
            (policy.base_interval, policy.max_interval),
            (SHORTEST_BASE, 10 * SHORTEST_BASE)
        );
        assert!(policy.avoid_previous_hosts);
        for (value, expected) in [
            (
                json!({"retry_priority": {"name": "x"}}),
                "retry_priority: is not supported",
            ),
            (
                json!({"retry_back_off": {}}),
                "retry_back_off.base_interval: must be greater than 0s",
            ),
            (
                json!({"retry_back_off": {"base_interval": "1s", "max_interval": "0.5s"}}),
                "retry_back_off.max_interval: must be greater than or equal to base_interval",
            ),
            (
                json!({"retry_host_predicate": [{"name": "x"}]}),
                "retry_host_predicate[0].typed_config: is required",
            ),
            (
                json!({"per_try_timeout": "-1s"}),
                "per_try_timeout: expected a duration not below 0, found -1s",
            ),
        ] {
            assert_eq!(read(value).unwrap_err().to_string(), expected);
        }
    }
}
