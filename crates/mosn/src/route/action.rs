//! What a route does with a request.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use api::envoy::config::core::v3::RoutingPriority;
use api::envoy::config::route::v3::route::Action as ActionConfig;
use api::envoy::config::route::v3::route_action::{
    ClusterNotFoundResponseCode, ClusterSpecifier, UpgradeConfig,
};
use api::envoy::config::route::v3::weighted_cluster::ClusterWeight;
use api::envoy::config::route::v3::weighted_cluster::cluster_weight::HostRewriteSpecifier;
use api::envoy::config::route::v3::{RouteAction, WeightedCluster as WeightedConfig};
use base::FieldError;

use super::filter_override::FaultSetting;
use super::header_ops::HeaderOps;
use super::redirect::{DirectResponse, Redirect};
use super::retry::RetryPolicy;
use super::rewrite::{HostRewrite, PathRewrite};
use super::{RequestView, duration_field, header};
use crate::cluster::{MetadataMatch, Priority};
use crate::refuse_fields;

/// Envoy's route timeout where a route names none.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(15);

/// What a route does.
#[derive(Debug)]
pub enum Action {
    /// Sends the request to a cluster.
    Forward(Forward),
    /// Sends the client elsewhere.
    Redirect(Redirect),
    /// Answers.
    Direct(DirectResponse),
}

/// How a request is sent on.
#[derive(Debug)]
pub struct Forward {
    /// Where to.
    pub cluster: ClusterChoice,
    /// Status of the answer if the cluster does not exist.
    pub not_found_status: u16,
    /// Time for the whole answer; `None`: no limit. Default 15 s.
    pub timeout: Option<Duration>,
    /// Whether the configuration says [`Forward::timeout`]: an RPC caller's own timeout goes before the default.
    pub timeout_set: bool,
    /// Time without a byte either way: `Some(ZERO)` is no limit, `None` leaves it to the connection manager.
    pub idle_timeout: Option<Duration>,
    /// Time for the whole stream: `Some(ZERO)` is no limit, `None` leaves it to the connection manager.
    pub max_stream_duration: Option<Duration>,
    /// How the caller's `grpc-timeout` counts.
    pub grpc_timeout: Option<GrpcTimeout>,
    /// The route's, or else its virtual host's.
    pub retry: Option<Arc<RetryPolicy>>,
    /// Whether the host that was rewritten is appended to `x-forwarded-host`.
    pub append_x_forwarded_host: bool,
    /// Which circuit breakers count it.
    pub priority: Priority,
    /// Upgrades by lower-case name, and whether they are on; others are up to the connection manager.
    pub upgrades: Vec<(Box<str>, bool)>,
    path_rewrite: PathRewrite,
    host_rewrite: HostRewrite,
    metadata_match: Option<MetadataMatch>,
}

/// How far the caller's `grpc-timeout` header replaces the route's timeout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GrpcTimeout {
    /// Longest time a caller may ask for; zero: any.
    pub max: Duration,
    /// Taken off what the caller asked for, so that the proxy gives up first.
    pub offset: Duration,
}

/// Which cluster takes a request.
#[derive(Debug)]
pub enum ClusterChoice {
    /// This one.
    Named(Arc<str>),
    /// The one that a header names (lower case).
    Header(Box<str>),
    /// One of these, by weight.
    Weighted {
        /// Sum of all weights, above 0.
        total: u64,
        /// In the order of the configuration.
        clusters: Vec<WeightedCluster>,
    },
}

/// One of several clusters of a route.
#[derive(Debug)]
pub struct WeightedCluster {
    name: WeightedName,
    weight: u32,
    metadata_match: Option<MetadataMatch>,
    host_rewrite: Option<HostRewrite>,
    pub(super) request_headers: HeaderOps,
    pub(super) response_headers: HeaderOps,
    pub(super) fault: FaultSetting,
}

#[derive(Debug)]
enum WeightedName {
    Named(Arc<str>),
    Header(Box<str>),
}

/// The cluster chosen for one request.
#[derive(Debug)]
pub struct ClusterPick<'t> {
    /// Its name.
    pub name: Cow<'t, str>,
    /// Its place among the weighted clusters of the route.
    pub weighted: Option<usize>,
    /// Labels that its hosts must have.
    pub metadata_match: Option<&'t MetadataMatch>,
    /// What becomes of the authority.
    pub host_rewrite: &'t HostRewrite,
}

impl Action {
    pub(super) fn compile(
        config: &ActionConfig,
        matched_prefix: Option<usize>,
        max_body_bytes: u32,
    ) -> Result<Self, FieldError> {
        match config {
            ActionConfig::Route(action) => Forward::compile(action, matched_prefix)
                .map(Self::Forward)
                .map_err(|error| error.in_field("route")),
            ActionConfig::Redirect(action) => Redirect::compile(action, matched_prefix)
                .map(Self::Redirect)
                .map_err(|error| error.in_field("redirect")),
            ActionConfig::DirectResponse(action) => DirectResponse::compile(action, max_body_bytes)
                .map(Self::Direct)
                .map_err(|error| error.in_field("direct_response")),
            ActionConfig::FilterAction(_) => {
                Err(FieldError::at("filter_action", "is not supported"))
            }
            ActionConfig::NonForwardingAction(_) => {
                Err(FieldError::at("non_forwarding_action", "is not supported"))
            }
        }
    }
}

impl Forward {
    /// `hash_policy` is accepted: it matters to hashing load balancers only, and clusters that ask for one are refused.
    fn compile(config: &RouteAction, matched_prefix: Option<usize>) -> Result<Self, FieldError> {
        refuse_fields!(config; path_rewrite_policy, path_rewrite, flush_timeout, early_data_policy,
            retry_policy_typed_config, request_mirror_policies, rate_limits, include_vh_rate_limits,
            internal_redirect_policy, internal_redirect_action, max_internal_redirects, hedge_policy);
        let metadata_match = config
            .metadata_match
            .as_ref()
            .and_then(MetadataMatch::compile);
        let cluster = match &config.cluster_specifier {
            None => return Err(FieldError::new("cluster_specifier is required")),
            Some(ClusterSpecifier::Cluster(name)) if name.is_empty() => {
                return Err(FieldError::at("cluster", "must not be empty"));
            }
            Some(ClusterSpecifier::Cluster(name)) => ClusterChoice::Named(name.as_str().into()),
            Some(ClusterSpecifier::ClusterHeader(name)) if name.is_empty() => {
                return Err(FieldError::at("cluster_header", "must not be empty"));
            }
            Some(ClusterSpecifier::ClusterHeader(name)) => {
                ClusterChoice::Header(name.to_ascii_lowercase().into())
            }
            Some(ClusterSpecifier::WeightedClusters(weighted)) => {
                compile_weighted(weighted, metadata_match.as_ref())
                    .map_err(|error| error.in_field("weighted_clusters"))?
            }
            Some(ClusterSpecifier::ClusterSpecifierPlugin(_)) => {
                return Err(FieldError::at(
                    "cluster_specifier_plugin",
                    "is not supported",
                ));
            }
            Some(ClusterSpecifier::InlineClusterSpecifierPlugin(_)) => {
                return Err(FieldError::at(
                    "inline_cluster_specifier_plugin",
                    "is not supported",
                ));
            }
        };
        let not_found_status =
            match ClusterNotFoundResponseCode::try_from(config.cluster_not_found_response_code) {
                Ok(ClusterNotFoundResponseCode::ServiceUnavailable) => 503,
                Ok(ClusterNotFoundResponseCode::NotFound) => 404,
                Ok(ClusterNotFoundResponseCode::InternalServerError) => 500,
                Err(_) => {
                    return Err(FieldError::at(
                        "cluster_not_found_response_code",
                        "unknown value",
                    ));
                }
            };
        let timeout =
            duration_field("timeout", config.timeout.as_ref())?.unwrap_or(DEFAULT_TIMEOUT);
        let priority = match RoutingPriority::try_from(config.priority) {
            Ok(RoutingPriority::Default) => Priority::Default,
            Ok(RoutingPriority::High) => Priority::High,
            Err(_) => {
                return Err(FieldError::at(
                    "priority",
                    format!("unknown value {}", config.priority),
                ));
            }
        };
        let mut upgrades = Vec::new();
        for (index, upgrade) in config.upgrade_configs.iter().enumerate() {
            let upgrade = compile_upgrade(upgrade)
                .map_err(|error| error.in_index(index).in_field("upgrade_configs"))?;
            if upgrades.iter().any(|(name, _)| *name == upgrade.0) {
                let text = format!("duplicate upgrade {}", upgrade.0);
                return Err(FieldError::new(text)
                    .in_index(index)
                    .in_field("upgrade_configs"));
            }
            upgrades.push(upgrade);
        }
        let retry = match &config.retry_policy {
            Some(policy) => Some(Arc::new(
                RetryPolicy::compile(policy).map_err(|error| error.in_field("retry_policy"))?,
            )),
            None => None,
        };
        Ok(Self {
            cluster,
            not_found_status,
            timeout: Some(timeout).filter(|timeout| !timeout.is_zero()),
            timeout_set: config.timeout.is_some(),
            idle_timeout: duration_field("idle_timeout", config.idle_timeout.as_ref())?,
            max_stream_duration: match &config.max_stream_duration {
                Some(limits) => {
                    duration_field("max_stream_duration", limits.max_stream_duration.as_ref())
                        .map_err(|error| error.in_field("max_stream_duration"))?
                }
                None => None,
            },
            grpc_timeout: compile_grpc_timeout(config)?,
            retry,
            append_x_forwarded_host: config.append_x_forwarded_host,
            priority,
            upgrades,
            path_rewrite: PathRewrite::compile(
                &config.prefix_rewrite,
                config.regex_rewrite.as_ref(),
                matched_prefix,
            )?,
            host_rewrite: HostRewrite::compile(config.host_rewrite_specifier.as_ref())?,
            metadata_match,
        })
    }

    /// Chooses the cluster; `None` if the header that should name it is missing.
    pub fn choose<'t, R: RequestView>(
        &'t self,
        request: &R,
        random: u64,
    ) -> Option<ClusterPick<'t>> {
        let pick = |name, weighted| ClusterPick {
            name,
            weighted,
            metadata_match: self.metadata_match.as_ref(),
            host_rewrite: &self.host_rewrite,
        };
        match &self.cluster {
            ClusterChoice::Named(name) => Some(pick(Cow::Borrowed(name), None)),
            ClusterChoice::Header(name) => Some(pick(from_header(request, name)?, None)),
            ClusterChoice::Weighted { total, clusters } => {
                let mut left = random % (*total).max(1);
                let (index, chosen) = clusters.iter().enumerate().find(|(_, cluster)| {
                    let weight = u64::from(cluster.weight);
                    let found = left < weight;
                    left = left.saturating_sub(weight);
                    found
                })?;
                let name = match &chosen.name {
                    WeightedName::Named(name) => Cow::Borrowed(&**name),
                    WeightedName::Header(name) => from_header(request, name)?,
                };
                Some(ClusterPick {
                    name,
                    weighted: Some(index),
                    metadata_match: chosen
                        .metadata_match
                        .as_ref()
                        .or(self.metadata_match.as_ref()),
                    host_rewrite: chosen.host_rewrite.as_ref().unwrap_or(&self.host_rewrite),
                })
            }
        }
    }

    /// Whether [`Forward::rewrite_path`] may change anything.
    pub fn rewrites_path(&self) -> bool {
        !self.path_rewrite.is_none()
    }

    /// The path, with its query, as it is sent on; `None` if it stays.
    pub fn rewrite_path(&self, path: &[u8]) -> Option<Vec<u8>> {
        self.path_rewrite.apply(path)
    }

    /// The weighted cluster of a [`ClusterPick`].
    pub fn weighted_cluster(&self, index: usize) -> Option<&WeightedCluster> {
        match &self.cluster {
            ClusterChoice::Weighted { clusters, .. } => clusters.get(index),
            ClusterChoice::Named(_) | ClusterChoice::Header(_) => None,
        }
    }

    /// Clusters that are named in the configuration, with their field.
    pub(super) fn cluster_names(&self) -> impl Iterator<Item = (&Arc<str>, Option<usize>)> {
        let (named, weighted) = match &self.cluster {
            ClusterChoice::Named(name) => (Some((name, None)), &[][..]),
            ClusterChoice::Header(_) => (None, &[][..]),
            ClusterChoice::Weighted { clusters, .. } => (None, clusters.as_slice()),
        };
        let weighted =
            weighted
                .iter()
                .enumerate()
                .filter_map(|(index, cluster)| match &cluster.name {
                    WeightedName::Named(name) => Some((name, Some(index))),
                    WeightedName::Header(_) => None,
                });
        named.into_iter().chain(weighted)
    }
}

fn from_header<R: RequestView>(request: &R, name: &str) -> Option<Cow<'static, str>> {
    let value = header(request, name)?;
    let name = str::from_utf8(&value)
        .ok()
        .filter(|name| !name.is_empty())?;
    Some(Cow::Owned(name.to_owned()))
}

fn compile_weighted(
    config: &WeightedConfig,
    of_route: Option<&MetadataMatch>,
) -> Result<ClusterChoice, FieldError> {
    refuse_fields!(config; random_value_specifier);
    if config.clusters.is_empty() {
        return Err(FieldError::at("clusters", "must not be empty"));
    }
    let mut total = 0;
    let mut clusters = Vec::with_capacity(config.clusters.len());
    for (index, weight) in config.clusters.iter().enumerate() {
        let cluster = WeightedCluster::compile(weight, of_route)
            .map_err(|error| error.in_index(index).in_field("clusters"))?;
        total += u64::from(cluster.weight);
        clusters.push(cluster);
    }
    if total == 0 {
        return Err(FieldError::at(
            "clusters",
            "the sum of weights must be greater than 0",
        ));
    }
    if total > u64::from(u32::MAX) {
        return Err(FieldError::at(
            "clusters",
            format!("the sum of weights {total} exceeds {}", u32::MAX),
        ));
    }
    Ok(ClusterChoice::Weighted { total, clusters })
}

impl WeightedCluster {
    fn compile(
        config: &ClusterWeight,
        of_route: Option<&MetadataMatch>,
    ) -> Result<Self, FieldError> {
        let name = match (config.name.as_str(), config.cluster_header.as_str()) {
            ("", "") => {
                return Err(FieldError::new(
                    "one of name and cluster_header is required",
                ));
            }
            (name, "") => WeightedName::Named(name.into()),
            ("", header) => WeightedName::Header(header.to_ascii_lowercase().into()),
            _ => return Err(FieldError::at("cluster_header", "conflicts with name")),
        };
        let own = config
            .metadata_match
            .as_ref()
            .and_then(MetadataMatch::compile);
        let metadata_match = match (own, of_route) {
            (Some(own), Some(of_route)) => Some(of_route.merged(&own)),
            (own, _) => own,
        };
        let host_rewrite = match &config.host_rewrite_specifier {
            Some(HostRewriteSpecifier::HostRewriteLiteral(host)) => Some(
                HostRewrite::literal(host)
                    .map_err(|error| error.in_field("host_rewrite_literal"))?,
            ),
            None => None,
        };
        Ok(Self {
            name,
            weight: config
                .weight
                .ok_or_else(|| FieldError::at("weight", "is required"))?,
            metadata_match,
            host_rewrite,
            request_headers: HeaderOps::compile(
                "request",
                &config.request_headers_to_add,
                &config.request_headers_to_remove,
            )?,
            response_headers: HeaderOps::compile(
                "response",
                &config.response_headers_to_add,
                &config.response_headers_to_remove,
            )?,
            fault: FaultSetting::compile(&config.typed_per_filter_config)?,
        })
    }
}

fn compile_upgrade(config: &UpgradeConfig) -> Result<(Box<str>, bool), FieldError> {
    refuse_fields!(config; connect_config);
    let name = config.upgrade_type.to_ascii_lowercase();
    if name.is_empty() {
        return Err(FieldError::at("upgrade_type", "must not be empty"));
    }
    Ok((name.into(), config.enabled.unwrap_or(true)))
}

/// `max_stream_duration.grpc_timeout_header_max` took the place of `max_grpc_timeout`; both are read.
fn compile_grpc_timeout(config: &RouteAction) -> Result<Option<GrpcTimeout>, FieldError> {
    if let Some(limits) = &config.max_stream_duration {
        let inside = |field, value| {
            duration_field(field, value).map_err(|error| error.in_field("max_stream_duration"))
        };
        let max = inside(
            "grpc_timeout_header_max",
            limits.grpc_timeout_header_max.as_ref(),
        )?;
        let offset = inside(
            "grpc_timeout_header_offset",
            limits.grpc_timeout_header_offset.as_ref(),
        )?;
        if let Some(max) = max {
            return Ok(Some(GrpcTimeout {
                max,
                offset: offset.unwrap_or_default(),
            }));
        }
    }
    let max = duration_field("max_grpc_timeout", config.max_grpc_timeout.as_ref())?;
    let offset = duration_field("grpc_timeout_offset", config.grpc_timeout_offset.as_ref())?;
    Ok(max.map(|max| GrpcTimeout {
        max,
        offset: offset.unwrap_or_default(),
    }))
}
