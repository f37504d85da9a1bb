//! Endpoints: from `/clusters?format=json`, which says how they do; from a file, those of the configuration dump.

use serde_json::{Value, json};

use super::source::{Dump, server};
use super::{at, list, socket_address, text};
use crate::cli::ProxySource;
use crate::output::Table;

/// Which endpoints are wanted; an absent part matches all.
#[derive(Default)]
pub(super) struct Filter<'a> {
    pub(super) cluster: Option<&'a str>,
    pub(super) address: Option<&'a str>,
    pub(super) port: Option<u16>,
    pub(super) status: Option<&'a str>,
}

/// All endpoints, each as `{cluster, address, port, status, outlier_check, weight, host?}`.
pub(super) async fn load(source: &ProxySource) -> anyhow::Result<Vec<Value>> {
    if source.file.is_some() {
        return Ok(from_dump(&Dump::load(source).await?));
    }
    let answer = server(source)?.get("/clusters?format=json").await?;
    Ok(from_clusters(&answer))
}

fn from_clusters(answer: &Value) -> Vec<Value> {
    let mut found = Vec::new();
    for cluster in list(&answer["cluster_statuses"]) {
        for host in list(&cluster["host_statuses"]) {
            let (address, port) = socket_address(&host["address"]);
            let health = &host["health_status"];
            let status = match text(health, &["eds_health_status"]) {
                "" => "HEALTHY",
                status => status,
            };
            let failed_check = health["failed_active_health_check"] == Value::Bool(true);
            let outlier = health["failed_outlier_check"] == Value::Bool(true);
            found.push(json!({
                "cluster": cluster["name"],
                "address": address,
                "port": port,
                "status": if failed_check { "UNHEALTHY" } else { status },
                "outlier_check": if outlier { "FAILED" } else { "OK" },
                "weight": host["weight"],
                "host": host,
            }));
        }
    }
    found
}

fn from_dump(dump: &Dump) -> Vec<Value> {
    let assigned = dump.resources("EndpointsConfigDump", "endpoint_config");
    let clusters = dump.resources("ClustersConfigDump", "cluster");
    let fixed = clusters.iter().map(|cluster| &cluster["load_assignment"]);
    let mut found: Vec<Value> = Vec::new();
    for assignment in assigned.iter().chain(fixed) {
        for locality in list(&assignment["endpoints"]) {
            for endpoint in list(&locality["lb_endpoints"]) {
                let (address, port) = socket_address(at(endpoint, &["endpoint", "address"]));
                let status = match text(endpoint, &["health_status"]) {
                    "" | "UNKNOWN" => "HEALTHY",
                    status => status,
                };
                let cluster = &assignment["cluster_name"];
                // Envoy lists the endpoints of a static cluster in both sections.
                let known = found.iter().any(|known| {
                    known["cluster"] == *cluster
                        && known["address"] == address
                        && known["port"] == port
                });
                if !known {
                    found.push(json!({
                        "cluster": cluster,
                        "address": address,
                        "port": port,
                        "status": status,
                        "outlier_check": "OK",
                        "weight": endpoint["load_balancing_weight"],
                    }));
                }
            }
        }
    }
    found
}

/// The endpoints that the filter lets through.
pub(super) fn select(endpoints: &[Value], filter: &Filter) -> Vec<Value> {
    endpoints
        .iter()
        .filter(|endpoint| {
            filter
                .cluster
                .is_none_or(|wanted| wanted == text(endpoint, &["cluster"]))
                && filter
                    .address
                    .is_none_or(|wanted| wanted == text(endpoint, &["address"]))
                && filter
                    .port
                    .is_none_or(|wanted| endpoint["port"].as_u64() == Some(u64::from(wanted)))
                && filter
                    .status
                    .is_none_or(|wanted| wanted.eq_ignore_ascii_case(text(endpoint, &["status"])))
        })
        .cloned()
        .collect()
}

/// One row for each endpoint.
pub(super) fn table(endpoints: &[Value]) -> Table {
    let mut table = Table::new(["ENDPOINT", "STATUS", "OUTLIER CHECK", "CLUSTER"]);
    for endpoint in endpoints {
        let address = text(endpoint, &["address"]);
        let port = endpoint["port"].as_u64().unwrap_or_default();
        table.row([
            if port == 0 {
                address.to_owned()
            } else {
                format!("{address}:{port}")
            },
            text(endpoint, &["status"]).to_owned(),
            text(endpoint, &["outlier_check"]).to_owned(),
            text(endpoint, &["cluster"]).to_owned(),
        ]);
    }
    table.sort();
    table
}
