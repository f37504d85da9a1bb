//! `/clusters`: hosts with their load, in Envoy's text and as `envoy.admin.v3.Clusters`.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use api::envoy::config::cluster::v3::Cluster;
use regex::Regex;
use serde_json::{Map, Value, json};
use tokio::sync::oneshot;

use super::{Query, Reply, Server, address_json, listed};
use crate::cluster::{
    ClusterConfig, ClusterStatus, Discovery, Health, HostConfig, HostsConfig, Priority,
};
use crate::manager::Origin;
use crate::worker::Command;

/// A worker that does not answer for this long is left out.
const WORKER_LIMIT: Duration = Duration::from_secs(5);

/// Counts of a host over all workers, by name.
type Counts = HashMap<&'static str, u64>;

struct View {
    name: String,
    added_via_api: bool,
    /// The name that statistics use.
    observability_name: String,
    config: Arc<ClusterConfig>,
    hosts: Arc<HostsConfig>,
}

pub(super) async fn clusters(server: &Server, query: &Query) -> Reply {
    let filter = match query
        .get("filter")
        .filter(|filter| !filter.is_empty())
        .map(Regex::new)
        .transpose()
    {
        Ok(filter) => filter,
        Err(_) => return Reply::bad_request("Invalid re2 regex"),
    };
    let asked = server.with(|state| {
        let answers: Vec<_> = state
            .workers
            .iter()
            .map(|worker| {
                let (answer, status) = oneshot::channel();
                // A worker that has ended drops the other end.
                let _ = worker.send(Command::ClusterStatus(answer));
                status
            })
            .collect();
        let views = state.manager.clusters().filter_map(|(name, entry)| {
            let active = entry.active.as_ref()?;
            let alternative = api::any::unpack::<Cluster>(&active.source.resource)
                .map(|cluster| cluster.alt_stat_name);
            Some(View {
                name: name.clone(),
                observability_name: alternative
                    .ok()
                    .filter(|name| !name.is_empty())
                    .unwrap_or_else(|| name.clone()),
                added_via_api: active.source.origin == Origin::Dynamic,
                config: active.config.clone(),
                hosts: entry.hosts.clone(),
            })
        });
        (views.collect::<Vec<_>>(), answers)
    });
    let Some((mut views, answers)) = asked.await else {
        return Reply::ending();
    };
    views.retain(|view| {
        filter
            .as_ref()
            .is_none_or(|filter| filter.is_match(&view.name))
    });
    let mut counts = HashMap::new();
    for answer in answers {
        if let Ok(Ok(statuses)) = tokio::time::timeout(WORKER_LIMIT, answer).await {
            add(&mut counts, &statuses);
        }
    }
    let none = Counts::new();
    let of = |view: &View, host: &HostConfig| {
        counts
            .get(&(Arc::clone(&view.config.name), host.address))
            .unwrap_or(&none)
            .clone()
    };
    if query.get("format") == Some("json") {
        let statuses: Vec<_> = views
            .iter()
            .map(|view| cluster_json(view, |host| of(view, host)))
            .collect();
        return Reply::json(&listed("cluster_statuses", statuses));
    }
    let mut text = String::new();
    for view in &views {
        cluster_text(&mut text, view, |host| of(view, host));
    }
    Reply::text(text)
}

fn add(counts: &mut HashMap<(Arc<str>, SocketAddr), Counts>, statuses: &[ClusterStatus]) {
    for status in statuses {
        for host in &status.hosts {
            let counts = counts
                .entry((Arc::clone(&status.config.name), host.address))
                .or_default();
            for (name, count) in host.counts {
                *counts.entry(name).or_default() += count;
            }
        }
    }
}

/// Limits of connections, pending requests, requests and retries.
fn limits(config: &ClusterConfig, priority: Priority) -> [(&'static str, u32); 4] {
    let [connections, pending, requests, retries] =
        config.breaker(priority).usage().map(|(_, limit)| limit);
    [
        ("max_connections", connections),
        ("max_pending_requests", pending),
        ("max_requests", requests),
        ("max_retries", retries),
    ]
}

fn eds_service_name(config: &ClusterConfig) -> Option<&str> {
    match &config.discovery {
        Discovery::Eds { service_name, .. } => Some(service_name),
        Discovery::Static(_) | Discovery::Dns { .. } => None,
    }
}

/// Region, zone and sub-zone.
fn locality(host: &HostConfig) -> [&str; 3] {
    let mut parts = host.locality.splitn(3, '/');
    [(); 3].map(|()| parts.next().unwrap_or_default())
}

/// The counts in the order of Envoy's text.
const TEXT_COUNTS: [&str; 9] = [
    "cx_active",
    "cx_connect_fail",
    "cx_total",
    "rq_active",
    "rq_error",
    "rq_pending_active",
    "rq_success",
    "rq_timeout",
    "rq_total",
];

// Writing to a String cannot fail.
fn cluster_text(out: &mut String, view: &View, counts: impl Fn(&HostConfig) -> Counts) {
    let name = &view.name;
    let _ = writeln!(
        out,
        "{name}::observability_name::{}",
        view.observability_name
    );
    for (label, priority) in [
        ("default_priority", Priority::Default),
        ("high_priority", Priority::High),
    ] {
        for (limit, value) in limits(&view.config, priority) {
            let _ = writeln!(out, "{name}::{label}::{limit}::{value}");
        }
    }
    let _ = writeln!(out, "{name}::added_via_api::{}", view.added_via_api);
    if let Some(service) = eds_service_name(&view.config) {
        let _ = writeln!(out, "{name}::eds_service_name::{service}");
    }
    for host in &view.hosts.hosts {
        let counts = counts(host);
        let mut line = |key: &str, value: &dyn std::fmt::Display| {
            let _ = writeln!(out, "{name}::{}::{key}::{value}", host.address);
        };
        for count in TEXT_COUNTS {
            line(count, &counts.get(count).copied().unwrap_or(0));
        }
        let flags = match host.health {
            Health::Healthy => "healthy",
            Health::Unhealthy => "/failed_eds_health",
            Health::Degraded => "/degraded_eds_health",
        };
        let [region, zone, sub_zone] = locality(host);
        line("hostname", &host.hostname);
        line("health_flags", &flags);
        line("weight", &host.weight);
        line("region", &region);
        line("zone", &zone);
        line("sub_zone", &sub_zone);
        line("canary", &false);
        line("priority", &host.priority);
        line("success_rate", &-1);
        line("local_origin_success_rate", &-1);
    }
}

fn cluster_json(view: &View, counts: impl Fn(&HostConfig) -> Counts) -> Value {
    let hosts: Vec<_> = view
        .hosts
        .hosts
        .iter()
        .map(|host| host_json(host, &counts(host)))
        .collect();
    let thresholds =
        [("DEFAULT", Priority::Default), ("HIGH", Priority::High)].map(|(label, priority)| {
            let mut threshold = Map::new();
            if priority == Priority::High {
                threshold.insert("priority".to_owned(), json!(label));
            }
            threshold.extend(
                limits(&view.config, priority)
                    .map(|(limit, value)| (limit.to_owned(), json!(value))),
            );
            Value::Object(threshold)
        });
    let mut status = Map::new();
    status.insert("name".to_owned(), json!(view.name));
    if view.added_via_api {
        status.insert("added_via_api".to_owned(), json!(true));
    }
    if !hosts.is_empty() {
        status.insert("host_statuses".to_owned(), json!(hosts));
    }
    status.insert(
        "circuit_breakers".to_owned(),
        json!({"thresholds": thresholds}),
    );
    status.insert(
        "observability_name".to_owned(),
        json!(view.observability_name),
    );
    if let Some(service) = eds_service_name(&view.config) {
        status.insert("eds_service_name".to_owned(), json!(service));
    }
    Value::Object(status)
}

/// Fields at their default are left out, as protobuf's JSON does.
fn host_json(host: &HostConfig, counts: &Counts) -> Value {
    const COUNTERS: [&str; 6] = [
        "cx_connect_fail",
        "cx_total",
        "rq_error",
        "rq_success",
        "rq_timeout",
        "rq_total",
    ];
    const GAUGES: [&str; 3] = ["cx_active", "rq_active", "rq_pending_active"];
    let metric = |name: &str, gauge: bool| {
        let mut metric = Map::new();
        if gauge {
            metric.insert("type".to_owned(), json!("GAUGE"));
        }
        if let Some(value) = counts.get(name).filter(|value| **value > 0) {
            metric.insert("value".to_owned(), json!(value.to_string()));
        }
        metric.insert("name".to_owned(), json!(name));
        Value::Object(metric)
    };
    let stats = COUNTERS
        .iter()
        .map(|name| metric(name, false))
        .chain(GAUGES.iter().map(|name| metric(name, true)));
    let health = match host.health {
        Health::Healthy => "HEALTHY",
        Health::Unhealthy => "UNHEALTHY",
        Health::Degraded => "DEGRADED",
    };
    let mut status = Map::new();
    status.insert("address".to_owned(), address_json(host.address));
    status.insert("stats".to_owned(), stats.collect());
    status.insert(
        "health_status".to_owned(),
        json!({"eds_health_status": health}),
    );
    status.insert("weight".to_owned(), json!(host.weight));
    if !host.hostname.is_empty() {
        status.insert("hostname".to_owned(), json!(host.hostname));
    }
    if host.priority > 0 {
        status.insert("priority".to_owned(), json!(host.priority));
    }
    status.insert("locality".to_owned(), locality_json(host));
    Value::Object(status)
}

/// `envoy.config.core.v3.Locality`.
pub(super) fn locality_json(host: &HostConfig) -> Value {
    let parts = ["region", "zone", "sub_zone"]
        .into_iter()
        .zip(locality(host))
        .filter(|(_, value)| !value.is_empty());
    parts
        .map(|(key, value)| (key.to_owned(), json!(value)))
        .collect::<Map<_, _>>()
        .into()
}
