//! `meshctl proxy-status`: what pilot has sent to which proxy, and what the proxy said to it.

use anyhow::bail;
use serde_json::Value;

use crate::cli::{Format, ProxyStatusOptions};
use crate::output::{self, Colour, Table};
use crate::registry_command::pilot;

/// The words of a type in pilot's answer, and its heading.
const TYPES: [&str; 4] = ["cluster", "listener", "endpoint", "route"];

/// Runs the command.
pub(crate) async fn run(options: &ProxyStatusOptions) -> anyhow::Result<()> {
    let server = pilot(&options.pilot);
    let answer = server.get("/debug/syncz").await?;
    let Value::Array(mut proxies) = answer else {
        bail!(
            "pilot at {} answered /debug/syncz with something that is no list of proxies",
            server.address
        );
    };
    if let Some(wanted) = &options.proxy {
        proxies
            .retain(|proxy| name(proxy) == wanted || name(proxy).split('.').next() == Some(wanted));
        if proxies.is_empty() {
            bail!(
                "{wanted} is not connected to pilot at {}; `meshctl proxy-status` shows those that are",
                server.address
            );
        }
    }
    if options.output != Format::Table {
        return output::document(&Value::Array(proxies), options.output);
    }
    if proxies.is_empty() {
        return output::write(&format!(
            "no proxy is connected to pilot at {}\n",
            server.address
        ));
    }
    output::table(&table(&proxies), |_, cell| match cell {
        "SYNCED" => Some(Colour::Green),
        "STALE" => Some(Colour::Yellow),
        "ERROR" => Some(Colour::Red),
        _ => None,
    })
}

fn table(proxies: &[Value]) -> Table {
    let mut table = Table::new(["NAME", "CLUSTER", "CDS", "LDS", "EDS", "RDS", "VERSION"]);
    for proxy in proxies {
        let [cds, lds, eds, rds] = TYPES.map(|kind| state(proxy, kind).to_owned());
        let or_dash = |key: &str| match text(proxy, key) {
            "" => "-".to_owned(),
            text => text.to_owned(),
        };
        table.row([
            name(proxy).to_owned(),
            or_dash("cluster_id"),
            cds,
            lds,
            eds,
            rds,
            or_dash("istio_version"),
        ]);
    }
    table.sort();
    table
}

/// How a proxy stands with one type of resources.
fn state(proxy: &Value, kind: &str) -> &'static str {
    let field = |suffix: &str| text(proxy, &format!("{kind}_{suffix}")).to_owned();
    let (sent, acknowledged) = (field("sent"), field("acked"));
    if !field("error").is_empty() {
        "ERROR"
    } else if sent.is_empty() {
        "NOT SENT"
    } else if sent == acknowledged {
        "SYNCED"
    } else {
        "STALE"
    }
}

fn name(proxy: &Value) -> &str {
    text(proxy, "proxy")
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn says_how_each_type_stands() {
        let proxy = json!({
            "proxy": "web-v1.demo",
            "cluster_sent": "a", "cluster_acked": "a",
            "listener_sent": "b", "listener_acked": "a",
            "route_sent": "c", "route_acked": "a", "route_error": "no such cluster",
        });
        assert_eq!(
            TYPES.map(|kind| state(&proxy, kind)),
            ["SYNCED", "STALE", "NOT SENT", "ERROR"]
        );
    }
}
