//! A VirtualService's `http` rules as routes of a virtual host. The same for HTTP and RPC.
#![allow(
    deprecated,
    reason = "Istio sends max_grpc_timeout, and Envoy acts on it"
)]

use std::time::Duration;

use api::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use api::envoy::config::core::v3::{
    DataSource, HeaderValue, HeaderValueOption, RuntimeFractionalPercent, data_source,
};
use api::envoy::config::route::v3 as api_route;
use api::envoy::config::route::v3::redirect_action::{
    PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier,
};
use api::envoy::config::route::v3::retry_policy::{
    RetryBackOff, RetryHostPredicate, retry_host_predicate,
};
use api::envoy::config::route::v3::route::Action;
use api::envoy::config::route::v3::route_action::{
    ClusterSpecifier, HostRewriteSpecifier, RequestMirrorPolicy,
};
use api::envoy::config::route::v3::route_match::PathSpecifier;
use api::envoy::config::route::v3::weighted_cluster::ClusterWeight;
use api::envoy::config::route::v3::{
    Decorator, DirectResponseAction, RedirectAction, RetryPolicy, Route, RouteAction, RouteMatch,
    WeightedCluster,
};
use api::envoy::extensions::filters::common::fault::v3::{FaultDelay, fault_delay};
use api::envoy::extensions::filters::http::fault::v3::{FaultAbort, HttpFault, fault_abort};
use api::envoy::extensions::retry::host::previous_hosts::v3::PreviousHostsPredicate;
use api::envoy::r#type::matcher::v3::RegexMatchAndSubstitute;

use super::message::{config_metadata, duration, fraction, regex};
use super::outbound;
use super::route_match::{any, is_catch_all, route_match};
use crate::hosts;
use crate::istio::validate::GRPC_STATUS;
use crate::istio::virtual_service::{
    DerivePort, Destination, Fault, HeaderOperations, Headers, HttpMatch, HttpRoute, Percent,
    Redirect, Retries, Rewrite, VirtualService,
};
use crate::protocol::Protocol;
use crate::proxy::Client;
use crate::scope::{Egress, Scope, resolve_host};
use crate::world::{Rule, World};

/// Name of Envoy's fault filter, which is also the key of its settings in a route.
pub(super) const FAULT: &str = "envoy.filters.http.fault";
/// Conditions of a retry that no rule sets.
const DEFAULT_RETRY_ON: &str =
    "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes";
/// Istio's number of retries that no rule sets.
const DEFAULT_RETRIES: u32 = 2;

/// Where routes are made for: a listener of a class.
pub(super) struct Context<'a> {
    pub(super) world: &'a World,
    pub(super) scope: &'a Scope,
    pub(super) egress: &'a Egress,
    /// The listener's port and what is spoken there.
    pub(super) port: u16,
    pub(super) protocol: Protocol,
}

impl Context<'_> {
    /// The VirtualService for a host: of the most precise host, the first.
    pub(super) fn virtual_service(&self, host: &str) -> Option<&Rule<VirtualService>> {
        let mut best: Option<(usize, &Rule<VirtualService>)> = None;
        for rule in &self.egress.virtual_services {
            if rule.spec.http.is_empty() {
                continue;
            }
            let patterns = rule
                .hosts
                .iter()
                .filter(|pattern| hosts::covers(pattern, host));
            if let Some(precision) = patterns.map(|pattern| hosts::precision(pattern)).max()
                && best.is_none_or(|(known, _)| precision > known)
            {
                best = Some((precision, rule));
            }
        }
        best.map(|(_, rule)| rule)
    }

    /// The routes of a host: its VirtualService's, else all calls to `cluster_port`.
    pub(super) fn routes(&self, host: &str, cluster_port: u16) -> Vec<Route> {
        match self.virtual_service(host) {
            Some(rule) => self.routes_of(rule),
            None => vec![self.default_route(host, cluster_port)],
        }
    }

    fn default_route(&self, host: &str, cluster_port: u16) -> Route {
        let action = RouteAction {
            cluster_specifier: Some(ClusterSpecifier::Cluster(outbound(cluster_port, "", host))),
            timeout: Some(duration(Duration::ZERO)),
            max_grpc_timeout: Some(duration(Duration::ZERO)),
            retry_policy: self.retry_policy(None),
            ..Default::default()
        };
        Route {
            name: "default".to_owned(),
            r#match: Some(any()),
            decorator: Some(decorator(format!("{host}:{cluster_port}/*"))),
            action: Some(Action::Route(action)),
            ..Default::default()
        }
    }

    fn routes_of(&self, rule: &Rule<VirtualService>) -> Vec<Route> {
        let mut routes = Vec::new();
        for http in &rule.spec.http {
            if http.matches.is_empty() {
                routes.push(self.route(rule, http, None));
                return routes;
            }
            for item in http.matches.iter().filter(|item| self.applies(item)) {
                let route = self.route(rule, http, Some(item));
                let catches_all = route.r#match.as_ref().is_some_and(is_catch_all);
                routes.push(route);
                // Nothing behind it can ever be reached.
                if catches_all {
                    return routes;
                }
            }
        }
        routes
    }

    /// Whether a match can hold for calls of this class to this listener.
    fn applies(&self, item: &HttpMatch) -> bool {
        (item.gateways.is_empty() || item.gateways.iter().any(|name| name == "mesh"))
            && item.port.is_none_or(|port| port == u32::from(self.port))
            && self.scope.class.has_labels(&item.source_labels)
            && (item.source_namespace.is_empty()
                || *item.source_namespace == *self.scope.class.namespace)
    }

    fn route(
        &self,
        rule: &Rule<VirtualService>,
        http: &HttpRoute,
        item: Option<&HttpMatch>,
    ) -> Route {
        let name = match item {
            Some(item) if !item.name.is_empty() && !http.name.is_empty() => {
                format!("{}.{}", http.name, item.name)
            }
            _ => http.name.clone(),
        };
        let mut route = Route {
            name,
            r#match: Some(item.map_or_else(any, route_match)),
            metadata: Some(config_metadata(rule.id.resource_path())),
            ..Default::default()
        };
        self.add_headers(&mut route, http.headers.as_ref());
        let action = if let Some(redirect) = &http.redirect {
            Action::Redirect(redirect_action(redirect))
        } else if let Some(direct) = &http.direct_response {
            let body = direct.body.as_ref().and_then(|body| {
                let text = body
                    .string
                    .clone()
                    .map(data_source::Specifier::InlineString);
                text.or_else(|| {
                    body.bytes
                        .clone()
                        .map(|bytes| data_source::Specifier::InlineBytes(bytes.into()))
                })
            });
            Action::DirectResponse(DirectResponseAction {
                status: direct.status,
                body: body.map(|specifier| DataSource {
                    specifier: Some(specifier),
                    ..Default::default()
                }),
                ..Default::default()
            })
        } else {
            Action::Route(self.forward(rule, http, &mut route))
        };
        route.decorator = Some(decorator(self.operation(
            rule,
            route.r#match.as_ref(),
            &action,
        )));
        route.action = Some(action);
        if let Some(fault) = &http.fault {
            let fault = http_fault(fault);
            route.typed_per_filter_config = [(FAULT.to_owned(), api::any::pack(&fault))].into();
        }
        route
    }

    fn forward(
        &self,
        rule: &Rule<VirtualService>,
        http: &HttpRoute,
        route: &mut Route,
    ) -> RouteAction {
        let timeout = http.timeout.map_or(Duration::ZERO, |timeout| timeout.0);
        let mut action = RouteAction {
            timeout: Some(duration(timeout)),
            max_grpc_timeout: Some(duration(timeout)),
            retry_policy: self.retry_policy(http.retries.as_ref()),
            ..Default::default()
        };
        if let Some(rewrite) = &http.rewrite {
            apply_rewrite(&mut action, rewrite);
        }
        if let Some(host) = http
            .headers
            .as_ref()
            .and_then(|headers| host_override(headers.request.as_ref()))
        {
            action.host_rewrite_specifier = Some(HostRewriteSpecifier::HostRewriteLiteral(host));
        }
        // mosn has no mirroring, and would refuse the whole route configuration.
        if self.scope.class.client == Client::Envoy {
            action.request_mirror_policies = self.mirrors(rule, http);
        }

        let weighted: Vec<_> = match http.route.as_slice() {
            [only] => vec![only],
            several => several.iter().filter(|item| item.weight > 0).collect(),
        };
        let destinations = weighted
            .iter()
            .filter_map(|item| Some((*item, self.cluster_of(rule, item.destination.as_ref()?))));
        let destinations: Vec<_> = destinations.collect();
        if let [(only, cluster)] = destinations.as_slice() {
            self.add_headers(route, only.headers.as_ref());
            action.cluster_specifier = Some(ClusterSpecifier::Cluster(cluster.clone()));
            return action;
        }
        let clusters = destinations.into_iter().map(|(item, name)| {
            let mut weight = ClusterWeight {
                name,
                weight: Some(item.weight.unsigned_abs()),
                ..Default::default()
            };
            if let Some(headers) = &item.headers {
                let request = headers.request.as_ref();
                let response = headers.response.as_ref();
                weight.request_headers_to_add = headers_to_add(request);
                weight.request_headers_to_remove = headers_to_remove(request);
                weight.response_headers_to_add = headers_to_add(response);
                weight.response_headers_to_remove = headers_to_remove(response);
            }
            weight
        });
        action.cluster_specifier = Some(ClusterSpecifier::WeightedClusters(WeightedCluster {
            clusters: clusters.collect(),
            ..Default::default()
        }));
        action
    }

    /// The cluster of a destination: its port, else the service's port that this listener would offer, else its only one,
    /// else the port that was called.
    pub(super) fn cluster_of(
        &self,
        rule: &Rule<VirtualService>,
        destination: &Destination,
    ) -> String {
        let host = resolve_host(self.world, &destination.host, &rule.id.namespace);
        let explicit = destination
            .port
            .as_ref()
            .and_then(|port| u16::try_from(port.number).ok());
        let service = self.scope.services.get(host.as_str());
        let port = explicit
            .or_else(|| {
                let service = service?;
                if let Some(port) = self.egress.offers(service, self.port, self.protocol) {
                    return Some(port.number);
                }
                match service.ports.as_slice() {
                    [only] => Some(only.number),
                    _ => None,
                }
            })
            .unwrap_or(self.port);
        // The cluster has the service's spelling of its name.
        let host = service.map_or(host.as_str(), |service| &service.id.host);
        outbound(port, &destination.subset, host)
    }

    fn mirrors(&self, rule: &Rule<VirtualService>, http: &HttpRoute) -> Vec<RequestMirrorPolicy> {
        let policy = |destination: &Destination, percentage: Option<Percent>| RequestMirrorPolicy {
            cluster: self.cluster_of(rule, destination),
            runtime_fraction: Some(RuntimeFractionalPercent {
                default_value: Some(fraction(percentage)),
                ..Default::default()
            }),
            ..Default::default()
        };
        let old = http.mirror_percent.map(|value| Percent {
            value: f64::from(value),
        });
        let single = http
            .mirror
            .as_ref()
            .map(|mirror| policy(mirror, http.mirror_percentage.or(old)));
        let several = http
            .mirrors
            .iter()
            .filter_map(|mirror| Some(policy(mirror.destination.as_ref()?, mirror.percentage)));
        single.into_iter().chain(several).collect()
    }

    fn retry_policy(&self, retries: Option<&Retries>) -> Option<RetryPolicy> {
        let retries = retries.or(self.world.mesh.default_http_retry_policy.as_ref());
        let mut policy = RetryPolicy {
            retry_on: DEFAULT_RETRY_ON.to_owned(),
            num_retries: Some(DEFAULT_RETRIES),
            host_selection_retry_max_attempts: 5,
            retry_host_predicate: vec![RetryHostPredicate {
                name: "envoy.retry_host_predicates.previous_hosts".to_owned(),
                config_type: Some(retry_host_predicate::ConfigType::TypedConfig(
                    api::any::pack(&PreviousHostsPredicate {}),
                )),
            }],
            ..Default::default()
        };
        let Some(retries) = retries else {
            return Some(policy);
        };
        if retries.attempts <= 0 {
            return None;
        }
        policy.num_retries = Some(retries.attempts.unsigned_abs());
        policy.per_try_timeout = retries.per_try_timeout.map(|timeout| duration(timeout.0));
        if !retries.retry_on.is_empty() {
            let words = retries
                .retry_on
                .split(',')
                .map(str::trim)
                .filter(|word| !word.is_empty());
            let (codes, mut words): (Vec<&str>, Vec<&str>) =
                words.partition(|word| word.parse::<u32>().is_ok());
            policy.retriable_status_codes =
                codes.iter().filter_map(|code| code.parse().ok()).collect();
            if !codes.is_empty() && !words.contains(&"retriable-status-codes") {
                words.push("retriable-status-codes");
            }
            policy.retry_on = words.join(",");
        }
        if retries.retry_ignore_previous_hosts == Some(false) {
            policy.retry_host_predicate.clear();
            policy.host_selection_retry_max_attempts = 0;
        }
        policy.retry_back_off = retries.backoff.map(|backoff| RetryBackOff {
            base_interval: Some(duration(backoff.0)),
            max_interval: None,
        });
        Some(policy)
    }

    fn add_headers(&self, route: &mut Route, headers: Option<&Headers>) {
        let Some(headers) = headers else { return };
        let (request, response) = (headers.request.as_ref(), headers.response.as_ref());
        route.request_headers_to_add.extend(headers_to_add(request));
        route
            .request_headers_to_remove
            .extend(headers_to_remove(request));
        route
            .response_headers_to_add
            .extend(headers_to_add(response));
        route
            .response_headers_to_remove
            .extend(headers_to_remove(response));
    }

    /// Istio's name of the operation: where it goes when that is one place, else the rule; and the path.
    fn operation(
        &self,
        rule: &Rule<VirtualService>,
        condition: Option<&RouteMatch>,
        action: &Action,
    ) -> String {
        let path = match condition.and_then(|condition| condition.path_specifier.as_ref()) {
            Some(PathSpecifier::Prefix(prefix)) => format!("{prefix}*"),
            Some(PathSpecifier::Path(path)) => path.clone(),
            Some(PathSpecifier::SafeRegex(regex)) => regex.regex.clone(),
            _ => "/*".to_owned(),
        };
        if let Action::Route(RouteAction {
            cluster_specifier: Some(ClusterSpecifier::Cluster(cluster)),
            ..
        }) = action
        {
            let parts: Vec<&str> = cluster.splitn(4, '|').collect();
            if let [_, port, _, host] = parts.as_slice() {
                return format!("{host}:{port}{path}");
            }
        }
        format!("{}:{}{path}", rule.id.name, self.port)
    }
}

fn decorator(operation: String) -> Decorator {
    Decorator {
        operation,
        propagate: None,
    }
}

fn is_host(name: &str) -> bool {
    name == ":authority" || name.eq_ignore_ascii_case("host")
}

/// The host that `headers.request.set` asks for: a rewrite of the host rather than a header.
fn host_override(operations: Option<&HeaderOperations>) -> Option<String> {
    let set = &operations?.set;
    set.iter()
        .find(|(name, _)| is_host(name))
        .map(|(_, value)| value.clone())
}

fn headers_to_add(operations: Option<&HeaderOperations>) -> Vec<HeaderValueOption> {
    let Some(operations) = operations else {
        return Vec::new();
    };
    let option = |(key, value): (&String, &String), action: HeaderAppendAction| HeaderValueOption {
        header: Some(HeaderValue {
            key: key.clone(),
            value: value.clone(),
            ..Default::default()
        }),
        append_action: action as i32,
        ..Default::default()
    };
    let set = operations.set.iter().filter(|(name, _)| !is_host(name));
    let set = set.map(|pair| option(pair, HeaderAppendAction::OverwriteIfExistsOrAdd));
    let add = operations.add.iter();
    set.chain(add.map(|pair| option(pair, HeaderAppendAction::AppendIfExistsOrAdd)))
        .collect()
}

fn headers_to_remove(operations: Option<&HeaderOperations>) -> Vec<String> {
    operations
        .map(|operations| operations.remove.clone())
        .unwrap_or_default()
}

fn apply_rewrite(action: &mut RouteAction, rewrite: &Rewrite) {
    if let Some(rule) = &rewrite.uri_regex_rewrite {
        action.regex_rewrite = Some(RegexMatchAndSubstitute {
            pattern: Some(regex(&rule.pattern)),
            substitution: rule.rewrite.clone(),
        });
    } else {
        action.prefix_rewrite.clone_from(&rewrite.uri);
    }
    if !rewrite.authority.is_empty() {
        action.host_rewrite_specifier = Some(HostRewriteSpecifier::HostRewriteLiteral(
            rewrite.authority.clone(),
        ));
    }
}

fn redirect_action(redirect: &Redirect) -> RedirectAction {
    let code = match redirect.redirect_code {
        302 => RedirectResponseCode::Found,
        303 => RedirectResponseCode::SeeOther,
        307 => RedirectResponseCode::TemporaryRedirect,
        308 => RedirectResponseCode::PermanentRedirect,
        _ => RedirectResponseCode::MovedPermanently,
    };
    let path = match redirect.uri.strip_prefix("%PREFIX()%") {
        Some(rest) => Some(PathRewriteSpecifier::PrefixRewrite(rest.to_owned())),
        None if redirect.uri.is_empty() => None,
        None => Some(PathRewriteSpecifier::PathRedirect(redirect.uri.clone())),
    };
    let port = match (
        redirect.port,
        redirect.derive_port,
        redirect.scheme.as_str(),
    ) {
        (Some(port), _, _) => port,
        (None, Some(DerivePort::FromProtocolDefault), "https") => 443,
        (None, Some(DerivePort::FromProtocolDefault), _) => 80,
        _ => 0,
    };
    RedirectAction {
        host_redirect: redirect.authority.clone(),
        port_redirect: port,
        response_code: code as i32,
        path_rewrite_specifier: path,
        scheme_rewrite_specifier: (!redirect.scheme.is_empty())
            .then(|| SchemeRewriteSpecifier::SchemeRedirect(redirect.scheme.clone())),
        ..Default::default()
    }
}

fn http_fault(fault: &Fault) -> HttpFault {
    let delay = fault.delay.as_ref().and_then(|delay| {
        let old = delay.percent.map(|value| Percent {
            value: f64::from(value),
        });
        Some(FaultDelay {
            percentage: Some(fraction(delay.percentage.or(old))),
            fault_delay_secifier: Some(fault_delay::FaultDelaySecifier::FixedDelay(duration(
                delay.fixed_delay?.0,
            ))),
        })
    });
    let abort = fault.abort.as_ref().and_then(|abort| {
        let by_name = |name: &String| GRPC_STATUS.iter().position(|known| known == name);
        let error = match (abort.http_status, &abort.grpc_status) {
            (Some(status), _) => fault_abort::ErrorType::HttpStatus(status.unsigned_abs()),
            (None, Some(name)) => {
                fault_abort::ErrorType::GrpcStatus(by_name(name)?.try_into().ok()?)
            }
            (None, None) => return None,
        };
        Some(FaultAbort {
            percentage: Some(fraction(abort.percentage)),
            error_type: Some(error),
            ..Default::default()
        })
    });
    HttpFault {
        delay,
        abort,
        ..Default::default()
    }
}

/// A route that sends all calls to one cluster, for listeners towards the application and for hosts that are no service.
pub(super) fn plain_route(name: &str, action: RouteAction) -> Route {
    Route {
        name: name.to_owned(),
        r#match: Some(any()),
        action: Some(Action::Route(action)),
        ..Default::default()
    }
}

/// A route that answers with a status.
pub(super) fn status_route(name: &str, status: u32) -> Route {
    Route {
        name: name.to_owned(),
        r#match: Some(any()),
        action: Some(Action::DirectResponse(DirectResponseAction {
            status,
            ..Default::default()
        })),
        ..Default::default()
    }
}

/// A virtual host of outgoing calls.
pub(super) fn virtual_host(
    name: String,
    domains: Vec<String>,
    routes: Vec<Route>,
) -> api_route::VirtualHost {
    api_route::VirtualHost {
        name,
        domains,
        routes,
        include_request_attempt_count: true,
        ..Default::default()
    }
}
