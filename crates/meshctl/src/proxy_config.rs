//! `meshctl proxy-config`: what a proxy has as its configuration, from Envoy's admin interface, which mosn has too.

mod clusters;
mod endpoints;
mod listeners;
mod routes;
mod source;

use serde_json::Value;

use crate::cli::{Format, ProxyConfigCommand, ProxyConfigOptions};
use crate::output::{self, Colour, Table};
use source::Dump;

/// Runs the command.
pub(crate) async fn run(options: &ProxyConfigOptions) -> anyhow::Result<()> {
    match &options.what {
        ProxyConfigCommand::Listeners {
            source,
            port,
            address,
            name,
        } => {
            let filter = listeners::Filter {
                port: *port,
                address: address.as_deref(),
                name: name.as_deref(),
            };
            let found = listeners::select(&Dump::load(source).await?, &filter);
            show(found, source.output, listeners::table, |_, _| None)
        }
        ProxyConfigCommand::Routes { source, name } => {
            let found = routes::select(&Dump::load(source).await?, name.as_deref());
            show(found, source.output, routes::table, |_, _| None)
        }
        ProxyConfigCommand::Clusters {
            source,
            fqdn,
            port,
            subset,
            direction,
        } => {
            let filter = clusters::Filter {
                fqdn: fqdn.as_deref(),
                port: *port,
                subset: subset.as_deref(),
                direction: direction.as_deref(),
            };
            let found = clusters::select(&Dump::load(source).await?, &filter);
            show(found, source.output, clusters::table, |_, _| None)
        }
        ProxyConfigCommand::Endpoints {
            source,
            cluster,
            address,
            port,
            status,
        } => {
            let filter = endpoints::Filter {
                cluster: cluster.as_deref(),
                address: address.as_deref(),
                port: *port,
                status: status.as_deref(),
            };
            let found = endpoints::select(&endpoints::load(source).await?, &filter);
            show(found, source.output, endpoints::table, |column, cell| {
                (column == 1).then_some(if cell == "HEALTHY" {
                    Colour::Green
                } else {
                    Colour::Red
                })
            })
        }
    }
}

fn show(
    found: Vec<Value>,
    format: Format,
    table: impl Fn(&[Value]) -> Table,
    colour: impl Fn(usize, &str) -> Option<Colour>,
) -> anyhow::Result<()> {
    match format {
        Format::Table => output::table(&table(&found), colour),
        Format::Json | Format::Yaml => output::document(&Value::Array(found), format),
    }
}

/// The text at a path of keys; empty if there is none.
fn text<'a>(value: &'a Value, path: &[&str]) -> &'a str {
    at(value, path).as_str().unwrap_or_default()
}

/// The value at a path of keys; null if there is none.
fn at<'a>(value: &'a Value, path: &[&str]) -> &'a Value {
    path.iter().fold(value, |value, key| &value[*key])
}

/// The elements of an array; nothing if it is none.
fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// `address` and port of an `envoy.config.core.v3.Address`.
fn socket_address(address: &Value) -> (String, u16) {
    let socket = &address["socket_address"];
    if socket.is_null() {
        let path = text(address, &["pipe", "path"]);
        return (path.to_owned(), 0);
    }
    let port = socket["port_value"].as_u64().unwrap_or_default();
    (
        text(socket, &["address"]).to_owned(),
        u16::try_from(port).unwrap_or_default(),
    )
}
