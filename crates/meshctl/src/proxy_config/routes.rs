//! Route configurations: virtual hosts, what they match, and where calls go.

use serde_json::Value;

use super::source::Dump;
use super::{list, text};
use crate::output::Table;

/// The route configurations, or the one of that name.
pub(super) fn select(dump: &Dump, name: Option<&str>) -> Vec<Value> {
    let mut found = dump.resources("RoutesConfigDump", "route_config");
    found.retain(|config| name.is_none_or(|wanted| wanted == text(config, &["name"])));
    found
}

/// One row for each route, in their order: the first that matches a call is taken.
pub(super) fn table(configs: &[Value]) -> Table {
    let mut table = Table::new([
        "NAME",
        "VHOST NAME",
        "DOMAINS",
        "MATCH",
        "DESTINATION",
        "VIRTUAL SERVICE",
    ]);
    for config in configs {
        for host in list(&config["virtual_hosts"]) {
            let domains: Vec<&str> = list(&host["domains"]).filter_map(Value::as_str).collect();
            for route in list(&host["routes"]) {
                table.row([
                    text(config, &["name"]).to_owned(),
                    text(host, &["name"]).to_owned(),
                    shortened(&domains),
                    matching(&route["match"]),
                    action(route),
                    virtual_service(route),
                ]);
            }
        }
    }
    table
}

fn shortened(domains: &[&str]) -> String {
    let mut text = domains
        .iter()
        .take(2)
        .copied()
        .collect::<Vec<_>>()
        .join(", ");
    if domains.len() > 2 {
        text.push_str(&format!(" + {} more", domains.len() - 2));
    }
    text
}

fn matching(value: &Value) -> String {
    let mut text = if let Some(prefix) = value["prefix"].as_str() {
        format!("{prefix}*")
    } else if let Some(prefix) = value["path_separated_prefix"].as_str() {
        format!("{prefix}/*")
    } else if let Some(path) = value["path"].as_str() {
        path.to_owned()
    } else if let Some(regex) = value["safe_regex"]["regex"].as_str() {
        format!("~{regex}")
    } else {
        "?".to_owned()
    };
    for header in list(&value["headers"]) {
        text.push_str(&format!(" [{}]", self::text(header, &["name"])));
    }
    for parameter in list(&value["query_parameters"]) {
        text.push_str(&format!(" ?{}", self::text(parameter, &["name"])));
    }
    text
}

fn action(route: &Value) -> String {
    let forward = &route["route"];
    let fault = &route["typed_per_filter_config"]["envoy.filters.http.fault"];
    let suffix = if fault.is_null() {
        ""
    } else {
        " (with faults)"
    };
    if let Some(cluster) = forward["cluster"].as_str() {
        return format!("{cluster}{suffix}");
    }
    if let Some(header) = forward["cluster_header"].as_str() {
        return format!("header {header}{suffix}");
    }
    let weighted: Vec<String> = list(&forward["weighted_clusters"]["clusters"])
        .map(|cluster| {
            let weight = cluster["weight"].as_u64().unwrap_or(0);
            format!("{} {weight}%", text(cluster, &["name"]))
        })
        .collect();
    if !weighted.is_empty() {
        return format!("{}{suffix}", weighted.join(", "));
    }
    if let Some(status) = route["direct_response"]["status"].as_u64() {
        return format!("answer {status}");
    }
    if !route["redirect"].is_null() {
        return "redirect".to_owned();
    }
    String::new()
}

/// Pilot notes in a route's metadata which VirtualService it was made from, as istiod does.
fn virtual_service(route: &Value) -> String {
    let config = text(route, &["metadata", "filter_metadata", "istio", "config"]);
    // /apis/networking.istio.io/v1/namespaces/demo/virtual-service/stock
    match config.split('/').collect::<Vec<_>>()[..] {
        [.., namespace, "virtual-service", name] => format!("{name}.{namespace}"),
        _ => String::new(),
    }
}

/// The clusters that a route configuration names.
pub(super) fn clusters(config: &Value) -> Vec<String> {
    let mut names = Vec::new();
    for route in list(&config["virtual_hosts"]).flat_map(|host| list(&host["routes"])) {
        let forward = &route["route"];
        let weighted = list(&forward["weighted_clusters"]["clusters"]).map(|c| text(c, &["name"]));
        for name in weighted.chain(forward["cluster"].as_str()) {
            if !names.iter().any(|known| known == name) {
                names.push(name.to_owned());
            }
        }
    }
    names
}

/// What the routes of a configuration match, in short.
pub(super) fn paths(config: &Value) -> String {
    let paths: Vec<String> = list(&config["virtual_hosts"])
        .flat_map(|host| list(&host["routes"]))
        .map(|route| matching(&route["match"]))
        .collect();
    paths.join(", ")
}
