//! Listeners: address, what a connection is matched by, and where it goes.

use serde_json::Value;

use super::source::Dump;
use super::{list, socket_address, text};
use crate::output::Table;

/// Which listeners are wanted; an absent part matches all.
#[derive(Default)]
pub(super) struct Filter<'a> {
    pub(super) port: Option<u16>,
    pub(super) address: Option<&'a str>,
    pub(super) name: Option<&'a str>,
}

/// The listeners that the filter lets through.
pub(super) fn select(dump: &Dump, filter: &Filter) -> Vec<Value> {
    let mut found = dump.resources("ListenersConfigDump", "listener");
    found.retain(|listener| {
        let (address, port) = socket_address(&listener["address"]);
        filter.port.is_none_or(|wanted| wanted == port)
            && filter.address.is_none_or(|wanted| wanted == address)
            && filter
                .name
                .is_none_or(|wanted| wanted == text(listener, &["name"]))
    });
    found
}

/// One row for each filter chain.
pub(super) fn table(listeners: &[Value]) -> Table {
    let mut table = Table::new(["ADDRESS", "PORT", "MATCH", "DESTINATION"]);
    for listener in listeners {
        let (address, port) = socket_address(&listener["address"]);
        let default = &listener["default_filter_chain"];
        let default = (!default.is_null()).then_some((default, true));
        let chains = list(&listener["filter_chains"]).map(|chain| (chain, false));
        for (chain, is_default) in chains.chain(default) {
            table.row([
                address.clone(),
                port.to_string(),
                matching(&chain["filter_chain_match"], is_default),
                destination(chain),
            ]);
        }
    }
    table.sort();
    table
}

fn matching(value: &Value, is_default: bool) -> String {
    let mut words = Vec::new();
    let names: Vec<&str> = list(&value["server_names"])
        .filter_map(Value::as_str)
        .collect();
    if !names.is_empty() {
        words.push(format!("SNI: {}", names.join(",")));
    }
    let transport = text(value, &["transport_protocol"]);
    if !transport.is_empty() {
        words.push(format!("Trans: {transport}"));
    }
    let protocols: Vec<&str> = list(&value["application_protocols"])
        .filter_map(Value::as_str)
        .collect();
    if !protocols.is_empty() {
        words.push(format!("App: {}", protocols.join(",")));
    }
    let ranges: Vec<String> = list(&value["prefix_ranges"])
        .map(|range| {
            let prefix = text(range, &["address_prefix"]);
            format!("{prefix}/{}", range["prefix_len"].as_u64().unwrap_or(0))
        })
        .collect();
    if !ranges.is_empty() {
        words.push(format!("Addr: {}", ranges.join(",")));
    }
    if let Some(port) = value["destination_port"].as_u64() {
        words.push(format!("Port: {port}"));
    }
    match (words.is_empty(), is_default) {
        (true, true) => "DEFAULT".to_owned(),
        (true, false) => "ALL".to_owned(),
        (false, _) => words.join("; "),
    }
}

/// The last filter decides what becomes of a connection.
fn destination(chain: &Value) -> String {
    let Some(filter) = list(&chain["filters"]).last() else {
        return "none".to_owned();
    };
    let config = &filter["typed_config"];
    let kind = text(config, &["@type"])
        .rsplit('.')
        .next()
        .unwrap_or_default();
    let routed = |prefix: &str| {
        let dynamic = text(config, &["rds", "route_config_name"]);
        if !dynamic.is_empty() {
            return format!("{prefix}Route: {dynamic}");
        }
        let inline = &config["route_config"];
        let clusters = super::routes::clusters(inline);
        match clusters.as_slice() {
            [only] => format!("{prefix}Cluster: {only}"),
            _ => format!("{prefix}Inline Route: {}", super::routes::paths(inline)),
        }
    };
    match kind {
        "HttpConnectionManager" => routed(""),
        "RpcProxy" => routed("RPC "),
        "TcpProxy" => {
            let cluster = text(config, &["cluster"]);
            if cluster.is_empty() {
                let weighted: Vec<String> = list(&config["weighted_clusters"]["clusters"])
                    .map(|c| {
                        format!(
                            "{} ({})",
                            text(c, &["name"]),
                            c["weight"].as_u64().unwrap_or(0)
                        )
                    })
                    .collect();
                format!("Clusters: {}", weighted.join(", "))
            } else {
                format!("Cluster: {cluster}")
            }
        }
        _ => text(filter, &["name"]).to_owned(),
    }
}
