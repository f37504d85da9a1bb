//! Routes: `envoy.config.route.v3.RouteConfiguration` compiled into a table that finds the route of a request.
//!
//! The table serves HTTP and RPC alike: a request is whatever has the words of [`RequestView`]. It is immutable and
//! shared by all workers.

mod action;
mod domains;
mod filter_override;
mod header_match;
mod header_ops;
mod redirect;
mod retry;
mod rewrite;
mod route_match;
#[cfg(test)]
mod tests;
mod text_match;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use api::envoy::config::route::v3::{
    Route as RouteConfig, RouteConfiguration, VirtualHost as VirtualHostConfig,
};
use base::FieldError;
use telemetry::format::Format;

pub use action::{Action, ClusterChoice, ClusterPick, Forward, GrpcTimeout, WeightedCluster};
pub use filter_override::FaultOverride;
pub use header_match::HeaderMatcher;
pub use header_ops::{HeaderMap, HeaderOps};
pub use redirect::{DirectResponse, Redirect};
pub use retry::{RetryOn, RetryPolicy};
pub use rewrite::HostRewrite;

use self::domains::Domains;
use self::filter_override::FaultSetting;
use self::route_match::RouteMatch;
use crate::config::CompileContext;
use crate::refuse_fields;

/// Envoy's default of `max_direct_response_body_size_bytes`.
const DEFAULT_DIRECT_RESPONSE_BYTES: u32 = 4096;

/// What routing reads of a request of any protocol.
pub trait RequestView {
    /// Host with port, or the interface of an RPC call.
    fn authority(&self) -> &[u8];
    /// Path with query.
    fn path(&self) -> &[u8];
    /// Method.
    fn method(&self) -> &[u8];
    /// `http` or `https`, as the client used it.
    fn scheme(&self) -> &[u8];
    /// A header by its lower-case name, several values joined by commas. Pseudo headers are not asked for.
    fn header(&self, lower: &str) -> Option<Cow<'_, [u8]>>;
    /// Whether `test` accepts any one of a header's values; `None` if there is no such header. To be implemented where
    /// a header can have several values.
    fn any_value(&self, lower: &str, test: &mut dyn FnMut(&[u8]) -> bool) -> Option<bool> {
        self.header(lower).map(|value| test(&value))
    }
}

/// A compiled route configuration.
#[derive(Debug)]
pub struct Table {
    /// Name of the configuration.
    pub name: Arc<str>,
    virtual_hosts: Vec<VirtualHost>,
    domains: Domains,
    ignore_port: bool,
    most_specific_wins: bool,
    request_headers: HeaderOps,
    response_headers: HeaderOps,
    fault: FaultSetting,
}

/// Routes of some domains.
#[derive(Debug)]
pub struct VirtualHost {
    /// Its name.
    pub name: Arc<str>,
    /// Whether the upstream is told the number of the try in `x-envoy-attempt-count`.
    pub include_request_attempt_count: bool,
    /// Whether the downstream is told the number of tries in `x-envoy-attempt-count`.
    pub include_attempt_count_in_response: bool,
    routes: Vec<Route>,
    request_headers: HeaderOps,
    response_headers: HeaderOps,
    fault: FaultSetting,
}

/// One route.
#[derive(Debug)]
pub struct Route {
    /// Its name; empty if it has none.
    pub name: Arc<str>,
    /// What it does.
    pub action: Action,
    matcher: RouteMatch,
    request_headers: HeaderOps,
    response_headers: HeaderOps,
    fault: FaultSetting,
}

/// Place of a route in its table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouteId {
    virtual_host: u32,
    route: u32,
}

/// A route with what surrounds it.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'t> {
    /// The whole configuration.
    pub table: &'t Table,
    /// Its virtual host.
    pub virtual_host: &'t VirtualHost,
    /// The route itself.
    pub route: &'t Route,
}

impl Table {
    /// Compiles a configuration that came by RDS. Its clusters may come later, unless `validate_clusters` is set.
    ///
    /// # Errors
    /// The first field that is wrong or not supported.
    pub fn compile(
        config: &RouteConfiguration,
        context: &CompileContext<'_>,
    ) -> Result<Self, FieldError> {
        let validate = config.validate_clusters.unwrap_or(false);
        Self::build(config, validate, &|name| context.knows_cluster(name))
    }

    /// Compiles a configuration that stands in a listener. Its clusters must be there, unless `validate_clusters` is
    /// false.
    ///
    /// # Errors
    /// The first field that is wrong or not supported.
    pub fn compile_inline(
        config: &RouteConfiguration,
        context: &CompileContext<'_>,
    ) -> Result<Self, FieldError> {
        let validate = config.validate_clusters.unwrap_or(true);
        Self::build(config, validate, &|name| context.knows_cluster(name))
    }

    fn build(
        config: &RouteConfiguration,
        validate_clusters: bool,
        known: &dyn Fn(&str) -> bool,
    ) -> Result<Self, FieldError> {
        refuse_fields!(config; vhds, internal_only_headers, cluster_specifier_plugins, request_mirror_policies,
            vhost_header, ignore_path_parameters_in_path_matching, route_specifiers);
        let max_body_bytes = config
            .max_direct_response_body_size_bytes
            .unwrap_or(DEFAULT_DIRECT_RESPONSE_BYTES);
        let mut domains = Domains::default();
        let mut virtual_hosts = Vec::with_capacity(config.virtual_hosts.len());
        for (index, host) in config.virtual_hosts.iter().enumerate() {
            let place = |error: FieldError| error.in_index(index).in_field("virtual_hosts");
            for (at, domain) in host.domains.iter().enumerate() {
                domains
                    .insert(domain, index as u32)
                    .map_err(|error| place(error.in_index(at).in_field("domains")))?;
            }
            let host = VirtualHost::compile(host, max_body_bytes).map_err(place)?;
            if validate_clusters {
                host.check_clusters(known).map_err(place)?;
            }
            virtual_hosts.push(host);
        }
        Ok(Self {
            name: config.name.as_str().into(),
            virtual_hosts,
            domains,
            ignore_port: config.ignore_port_in_host_matching,
            most_specific_wins: config.most_specific_header_mutations_wins,
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

    /// The route of a request: the first that matches in the virtual host of its authority. `random` decides routes
    /// that take a fraction of the requests.
    pub fn find<R: RequestView>(&self, request: &R, random: u64) -> Option<RouteId> {
        let authority = request.authority();
        let host = if self.ignore_port {
            without_port(authority)
        } else {
            authority
        };
        let index = self.domains.find(host)?;
        let virtual_host = self.virtual_hosts.get(index as usize)?;
        let whole = request.path();
        let path = without_query(whole);
        let query = match whole.get(path.len()..) {
            Some([b'?', query @ ..]) => {
                query.split(|byte| *byte == b'#').next().unwrap_or_default()
            }
            _ => &[],
        };
        let route = virtual_host
            .routes
            .iter()
            .position(|route| route.matcher.matches(request, path, query, random))?;
        Some(RouteId {
            virtual_host: index,
            route: route as u32,
        })
    }

    /// The route of an id that [`Table::find`] of this table gave.
    pub fn entry(&self, id: RouteId) -> Option<Entry<'_>> {
        let virtual_host = self.virtual_hosts.get(id.virtual_host as usize)?;
        let route = virtual_host.routes.get(id.route as usize)?;
        Some(Entry {
            table: self,
            virtual_host,
            route,
        })
    }

    /// Clusters that routes name, some more than once.
    pub fn cluster_names(&self) -> impl Iterator<Item = &str> {
        let routes = self.virtual_hosts.iter().flat_map(|host| &host.routes);
        let forwards = routes.filter_map(|route| match &route.action {
            Action::Forward(forward) => Some(forward),
            Action::Redirect(_) | Action::Direct(_) => None,
        });
        forwards.flat_map(|forward| forward.cluster_names().map(|(name, _)| &**name))
    }

    /// Number of virtual hosts.
    pub fn virtual_host_count(&self) -> usize {
        self.virtual_hosts.len()
    }
}

impl VirtualHost {
    fn compile(config: &VirtualHostConfig, max_body_bytes: u32) -> Result<Self, FieldError> {
        refuse_fields!(config; matcher, require_tls, rate_limits, hedge_policy, per_request_buffer_limit_bytes,
            request_body_buffer_limit, request_mirror_policies, retry_policy_typed_config, route_specifiers,
            include_is_timeout_retry_header);
        if config.name.is_empty() {
            return Err(FieldError::at("name", "must not be empty"));
        }
        if config.domains.is_empty() {
            return Err(FieldError::at("domains", "must not be empty"));
        }
        let retry = match &config.retry_policy {
            Some(policy) => Some(Arc::new(
                RetryPolicy::compile(policy).map_err(|error| error.in_field("retry_policy"))?,
            )),
            None => None,
        };
        let mut routes = Vec::with_capacity(config.routes.len());
        for (index, route) in config.routes.iter().enumerate() {
            let mut compiled = Route::compile(route, max_body_bytes)
                .map_err(|error| error.in_index(index).in_field("routes"))?;
            if let Action::Forward(forward) = &mut compiled.action
                && forward.retry.is_none()
            {
                forward.retry.clone_from(&retry);
            }
            routes.push(compiled);
        }
        Ok(Self {
            name: config.name.as_str().into(),
            include_request_attempt_count: config.include_request_attempt_count,
            include_attempt_count_in_response: config.include_attempt_count_in_response,
            routes,
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

    fn check_clusters(&self, known: &dyn Fn(&str) -> bool) -> Result<(), FieldError> {
        for (index, route) in self.routes.iter().enumerate() {
            let Action::Forward(forward) = &route.action else {
                continue;
            };
            let Some((name, weighted)) = forward.cluster_names().find(|(name, _)| !known(name))
            else {
                continue;
            };
            let error = FieldError::new(format!("unknown cluster \"{name}\""));
            let error = match weighted {
                Some(at) => error
                    .in_field("name")
                    .in_index(at)
                    .in_field("clusters")
                    .in_field("weighted_clusters"),
                None => error.in_field("cluster"),
            };
            return Err(error.in_field("route").in_index(index).in_field("routes"));
        }
        Ok(())
    }
}

impl Route {
    fn compile(config: &RouteConfig, max_body_bytes: u32) -> Result<Self, FieldError> {
        refuse_fields!(config; per_request_buffer_limit_bytes, request_body_buffer_limit, route_specifiers);
        let matcher = config
            .r#match
            .as_ref()
            .ok_or_else(|| FieldError::at("match", "is required"))?;
        let matcher = RouteMatch::compile(matcher).map_err(|error| error.in_field("match"))?;
        let action = config
            .action
            .as_ref()
            .ok_or_else(|| FieldError::new("action is required"))?;
        Ok(Self {
            name: config.name.as_str().into(),
            action: Action::compile(action, matcher.matched_prefix(), max_body_bytes)?,
            matcher,
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

impl<'t> Entry<'t> {
    /// Changes the headers of a request that is sent on; `weighted` is [`ClusterPick::weighted`].
    pub fn apply_request_headers<H: HeaderMap>(
        &self,
        weighted: Option<usize>,
        headers: &mut H,
        format: &mut dyn FnMut(&H, &Format, &mut Vec<u8>),
    ) {
        let levels = self.levels(
            weighted,
            |cluster| &cluster.request_headers,
            [
                &self.route.request_headers,
                &self.virtual_host.request_headers,
                &self.table.request_headers,
            ],
        );
        for ops in levels.into_iter().flatten() {
            ops.apply(headers, format);
        }
    }

    /// Changes the headers of an answer, also of one that the proxy made itself.
    pub fn apply_response_headers<H: HeaderMap>(
        &self,
        weighted: Option<usize>,
        headers: &mut H,
        format: &mut dyn FnMut(&H, &Format, &mut Vec<u8>),
    ) {
        let levels = self.levels(
            weighted,
            |cluster| &cluster.response_headers,
            [
                &self.route.response_headers,
                &self.virtual_host.response_headers,
                &self.table.response_headers,
            ],
        );
        for ops in levels.into_iter().flatten() {
            ops.apply(headers, format);
        }
    }

    /// Whether [`Entry::apply_request_headers`] has anything to do.
    pub fn has_request_headers(&self, weighted: Option<usize>) -> bool {
        !self.route.request_headers.is_empty()
            || !self.virtual_host.request_headers.is_empty()
            || !self.table.request_headers.is_empty()
            || self
                .weighted(weighted)
                .is_some_and(|cluster| !cluster.request_headers.is_empty())
    }

    /// Whether [`Entry::apply_response_headers`] has anything to do.
    pub fn has_response_headers(&self, weighted: Option<usize>) -> bool {
        !self.route.response_headers.is_empty()
            || !self.virtual_host.response_headers.is_empty()
            || !self.table.response_headers.is_empty()
            || self
                .weighted(weighted)
                .is_some_and(|cluster| !cluster.response_headers.is_empty())
    }

    /// What the most specific level says to the fault filter.
    pub fn fault(&self, weighted: Option<usize>) -> FaultOverride<'t> {
        self.weighted(weighted)
            .and_then(|cluster| cluster.fault.get())
            .or_else(|| self.route.fault.get())
            .or_else(|| self.virtual_host.fault.get())
            .or_else(|| self.table.fault.get())
            .unwrap_or(FaultOverride::Inherit)
    }

    fn weighted(&self, index: Option<usize>) -> Option<&'t WeightedCluster> {
        match &self.route.action {
            Action::Forward(forward) => forward.weighted_cluster(index?),
            Action::Redirect(_) | Action::Direct(_) => None,
        }
    }

    /// The levels in the order in which they change headers: the last one wins.
    fn levels(
        &self,
        weighted: Option<usize>,
        of_cluster: fn(&WeightedCluster) -> &HeaderOps,
        [route, virtual_host, table]: [&'t HeaderOps; 3],
    ) -> [Option<&'t HeaderOps>; 4] {
        let cluster = self.weighted(weighted).map(of_cluster);
        let mut levels = [cluster, Some(route), Some(virtual_host), Some(table)];
        if self.table.most_specific_wins {
            levels.reverse();
        }
        levels
    }
}

/// A header or, with a colon before its name, a word of the request.
fn header<'r, R: RequestView>(request: &'r R, lower: &str) -> Option<Cow<'r, [u8]>> {
    match request_word(request, lower) {
        Some(word) => Some(Cow::Borrowed(word)),
        None => request.header(lower),
    }
}

/// What a pseudo header stands for.
fn request_word<'r, R: RequestView>(request: &'r R, lower: &str) -> Option<&'r [u8]> {
    match lower {
        ":authority" | "host" => Some(request.authority()),
        ":path" => Some(request.path()),
        ":method" => Some(request.method()),
        ":scheme" => Some(request.scheme()),
        _ => None,
    }
}

fn without_query(path: &[u8]) -> &[u8] {
    match memchr::memchr2(b'?', b'#', path) {
        Some(at) => path.get(..at).unwrap_or(path),
        None => path,
    }
}

/// As Envoy does it: whatever stands behind the last colon, unless that is inside of an IPv6 address.
fn without_port(authority: &[u8]) -> &[u8] {
    match memchr::memrchr2(b':', b']', authority).and_then(|at| authority.split_at_checked(at)) {
        Some((host, [b':', ..])) => host,
        _ => authority,
    }
}

fn duration_field(
    field: &str,
    value: Option<&api::google::protobuf::Duration>,
) -> Result<Option<Duration>, FieldError> {
    value
        .map(|value| api::time::duration(value).map_err(|error| error.in_field(field)))
        .transpose()
}
