//! `envoy.config.listener.v3.Listener`, compiled.

#![allow(
    deprecated,
    reason = "a deprecated field that is set must be refused, not overlooked"
)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use api::envoy::config::listener::v3::{
    Filter, FilterChain as FilterChainProto, Listener, ListenerFilter, filter, listener_filter,
};
use api::google::protobuf::Any;
use base::FieldError;
use telemetry::stats::{Counter, Gauge};

use super::filter_chain::Match;
use super::inspector::Inspector;
use crate::config::{self, CompileContext};
use crate::{http, refuse_fields, rpc, tcp_proxy};

/// The last filter of a chain, which owns the connection.
pub enum NetworkFilter {
    /// `envoy.filters.network.http_connection_manager`.
    Http(Arc<http::Config>),
    /// `mosn.filters.network.rpc_proxy`.
    Rpc(Arc<rpc::Config>),
    /// `envoy.filters.network.tcp_proxy`.
    TcpProxy(Arc<tcp_proxy::Config>),
}

/// A filter chain.
pub struct FilterChain {
    /// Its name, maybe empty.
    pub name: String,
    /// When it is chosen.
    pub matches: Match,
    /// What it does.
    pub filter: NetworkFilter,
}

/// Statistics below `listener.<address>.`.
pub struct ListenerStats {
    /// Accepted connections.
    pub downstream_cx_total: Counter,
    /// Closed connections.
    pub downstream_cx_destroy: Counter,
    /// Open connections.
    pub downstream_cx_active: Gauge,
    /// Connections that no inspector could judge in time.
    pub downstream_pre_cx_timeout: Counter,
    /// Connections for which there was no filter chain.
    pub no_filter_chain_match: Counter,
    /// Failures of accept(2).
    pub accept_error: Counter,
}

/// A compiled listener.
pub struct ListenerConfig {
    /// `name`.
    pub name: Arc<str>,
    /// `address`.
    pub address: SocketAddr,
    /// `bind_to_port`; a listener that is not bound gets no connections.
    pub bind_to_port: bool,
    /// `tcp_backlog_size`.
    pub backlog: u32,
    /// Listener filters.
    pub inspectors: Vec<Inspector>,
    /// `listener_filters_timeout`, 15 s by default; `None` waits for ever.
    pub listener_filters_timeout: Option<Duration>,
    /// `continue_on_listener_filters_timeout`.
    pub continue_on_listener_filters_timeout: bool,
    /// `filter_chains`.
    pub filter_chains: Vec<FilterChain>,
    /// `default_filter_chain`.
    pub default_filter_chain: Option<FilterChain>,
    /// `per_connection_buffer_limit_bytes`, 1 MiB by default.
    pub per_connection_buffer_limit: usize,
    /// Whether it takes calls from other proxies (`traffic_direction: INBOUND`).
    pub inbound: bool,
    /// Statistics.
    pub stats: ListenerStats,
}

impl ListenerConfig {
    /// Compiles one listener; every error has the field's path.
    pub fn compile(
        listener: &Listener,
        ctx: &CompileContext,
    ) -> Result<ListenerConfig, FieldError> {
        refuse_fields!(listener; additional_addresses, use_original_dst, transparent, freebind, socket_options,
            udp_listener_config, api_listener, fcds_config, access_log, filter_chain_matcher, enable_mptcp);
        let address = listener
            .address
            .as_ref()
            .ok_or_else(|| FieldError::at("address", "is required"))?;
        let address = config::socket_addr(address).map_err(|e| e.in_field("address"))?;
        let name = if listener.name.is_empty() {
            address.to_string()
        } else {
            listener.name.clone()
        };
        if listener.filter_chains.is_empty() && listener.default_filter_chain.is_none() {
            return Err(FieldError::at(
                "filter_chains",
                "at least one filter chain is required",
            ));
        }
        let mut filter_chains = Vec::with_capacity(listener.filter_chains.len());
        for (i, chain) in listener.filter_chains.iter().enumerate() {
            let compiled =
                compile_chain(chain, ctx).map_err(|e| e.in_index(i).in_field("filter_chains"))?;
            if filter_chains
                .iter()
                .any(|c: &FilterChain| c.matches == compiled.matches)
            {
                return Err(
                    FieldError::new("has the same match as another filter chain")
                        .in_field("filter_chain_match")
                        .in_index(i)
                        .in_field("filter_chains"),
                );
            }
            filter_chains.push(compiled);
        }
        let default_filter_chain = listener
            .default_filter_chain
            .as_ref()
            .map(|c| compile_chain(c, ctx).map_err(|e| e.in_field("default_filter_chain")))
            .transpose()?;
        let mut inspectors = Vec::new();
        for (i, filter) in listener.listener_filters.iter().enumerate() {
            let inspector = compile_listener_filter(filter)
                .map_err(|e| e.in_index(i).in_field("listener_filters"))?;
            inspectors.push(inspector);
        }
        let timeout = match &listener.listener_filters_timeout {
            None => Some(Duration::from_secs(15)),
            Some(d) => {
                Some(config::duration(d).map_err(|e| e.in_field("listener_filters_timeout"))?)
                    .filter(|d| !d.is_zero())
            }
        };
        let prefix = if listener.stat_prefix.is_empty() {
            format!("listener.{}.", address.to_string().replace(':', "_"))
        } else {
            format!("listener.{}.", listener.stat_prefix)
        };
        Ok(ListenerConfig {
            name: name.into(),
            address,
            bind_to_port: listener.bind_to_port.is_none_or(|b| b),
            backlog: listener.tcp_backlog_size.unwrap_or(4096),
            inspectors,
            listener_filters_timeout: timeout,
            continue_on_listener_filters_timeout: listener.continue_on_listener_filters_timeout,
            filter_chains,
            default_filter_chain,
            per_connection_buffer_limit: listener
                .per_connection_buffer_limit_bytes
                .map_or(1 << 20, |b| b as usize),
            inbound: listener.traffic_direction == 1,
            stats: ListenerStats {
                downstream_cx_total: ctx.stats.counter(&format!("{prefix}downstream_cx_total")),
                downstream_cx_destroy: ctx.stats.counter(&format!("{prefix}downstream_cx_destroy")),
                downstream_cx_active: ctx.stats.gauge(&format!("{prefix}downstream_cx_active")),
                downstream_pre_cx_timeout: ctx
                    .stats
                    .counter(&format!("{prefix}downstream_pre_cx_timeout")),
                no_filter_chain_match: ctx.stats.counter(&format!("{prefix}no_filter_chain_match")),
                accept_error: ctx.stats.counter(&format!("{prefix}accept_error")),
            },
        })
    }

    /// Names of the route configurations that RDS has to deliver before this listener can start.
    pub fn rds_names(&self) -> impl Iterator<Item = &str> {
        self.chains().filter_map(|chain| match &chain.filter {
            NetworkFilter::Http(config) => config.rds_name(),
            NetworkFilter::Rpc(config) => config.rds_name(),
            NetworkFilter::TcpProxy(_) => None,
        })
    }

    fn chains(&self) -> impl Iterator<Item = &FilterChain> {
        self.filter_chains.iter().chain(&self.default_filter_chain)
    }
}

fn compile_chain(
    chain: &FilterChainProto,
    ctx: &CompileContext,
) -> Result<FilterChain, FieldError> {
    refuse_fields!(chain; use_proxy_proto);
    let matches = match &chain.filter_chain_match {
        Some(m) => Match::compile(m).map_err(|e| e.in_field("filter_chain_match"))?,
        None => Match::default(),
    };
    if let Some(socket) = &chain.transport_socket {
        config::raw_buffer(socket).map_err(|e| e.in_field("transport_socket"))?;
    }
    let filter = match chain.filters.as_slice() {
        [] => return Err(FieldError::at("filters", "a network filter is required")),
        [only] => compile_filter(only, ctx).map_err(|e| e.in_index(0).in_field("filters"))?,
        [first, ..] => {
            compile_filter(first, ctx).map_err(|e| e.in_index(0).in_field("filters"))?;
            return Err(
                FieldError::new(format!("{} must be the last filter", first.name))
                    .in_index(0)
                    .in_field("filters"),
            );
        }
    };
    Ok(FilterChain {
        name: chain.name.clone(),
        matches,
        filter,
    })
}

fn compile_filter(filter: &Filter, ctx: &CompileContext) -> Result<NetworkFilter, FieldError> {
    let Some(filter::ConfigType::TypedConfig(any)) = &filter.config_type else {
        return Err(FieldError::at("typed_config", "is required"));
    };
    compile_typed(any, ctx).map_err(|e| e.in_field("typed_config"))
}

fn compile_typed(any: &Any, ctx: &CompileContext) -> Result<NetworkFilter, FieldError> {
    const HTTP: &str =
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    const TCP: &str = "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
    const RPC: &str = "mosn.extensions.filters.network.rpc_proxy.v1.RpcProxy";
    Ok(match config::type_name(any) {
        HTTP => NetworkFilter::Http(Arc::new(http::Config::compile(
            &config::unpack(any, HTTP)?,
            ctx,
        )?)),
        TCP => NetworkFilter::TcpProxy(Arc::new(tcp_proxy::Config::compile(
            &config::unpack(any, TCP)?,
            ctx,
        )?)),
        RPC => NetworkFilter::Rpc(Arc::new(rpc::Config::compile(
            &config::unpack(any, RPC)?,
            ctx,
        )?)),
        other => {
            return Err(FieldError::at(
                "@type",
                format!("network filter {other} is not supported"),
            ));
        }
    })
}

fn compile_listener_filter(filter: &ListenerFilter) -> Result<Inspector, FieldError> {
    refuse_fields!(filter; filter_disabled);
    let Some(listener_filter::ConfigType::TypedConfig(any)) = &filter.config_type else {
        return Err(FieldError::at("typed_config", "is required"));
    };
    match config::type_name(any) {
        "envoy.extensions.filters.listener.http_inspector.v3.HttpInspector" => Ok(Inspector::Http),
        "mosn.extensions.filters.listener.protocol_inspector.v1.ProtocolInspector" => {
            Ok(Inspector::Protocol)
        }
        other => Err(FieldError::at(
            "typed_config.@type",
            format!("listener filter {other} is not supported"),
        )),
    }
}
