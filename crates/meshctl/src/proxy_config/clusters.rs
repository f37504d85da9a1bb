//! Clusters; their names in a mesh are `direction|port|subset|host`.

use serde_json::Value;

use super::source::Dump;
use super::text;
use crate::output::Table;

/// Which clusters are wanted; an absent part matches all.
#[derive(Default)]
pub(super) struct Filter<'a> {
    pub(super) fqdn: Option<&'a str>,
    pub(super) port: Option<u16>,
    pub(super) subset: Option<&'a str>,
    pub(super) direction: Option<&'a str>,
}

/// The parts of a cluster's name; all but the host are empty if it has not the mesh's form.
struct Name<'a> {
    direction: &'a str,
    port: &'a str,
    subset: &'a str,
    host: &'a str,
}

impl<'a> Name<'a> {
    fn of(cluster: &'a Value) -> Self {
        let name = text(cluster, &["name"]);
        match name.split('|').collect::<Vec<_>>()[..] {
            [direction, port, subset, host] => Name {
                direction,
                port,
                subset,
                host,
            },
            _ => Name {
                direction: "",
                port: "",
                subset: "",
                host: name,
            },
        }
    }
}

/// The clusters that the filter lets through.
pub(super) fn select(dump: &Dump, filter: &Filter) -> Vec<Value> {
    let mut found = dump.resources("ClustersConfigDump", "cluster");
    found.retain(|cluster| {
        let name = Name::of(cluster);
        filter.fqdn.is_none_or(|wanted| wanted == name.host)
            && filter
                .port
                .is_none_or(|wanted| wanted.to_string() == name.port)
            && filter.subset.is_none_or(|wanted| wanted == name.subset)
            && filter
                .direction
                .is_none_or(|wanted| wanted.eq_ignore_ascii_case(name.direction))
    });
    found
}

/// One row for each cluster.
pub(super) fn table(clusters: &[Value]) -> Table {
    let mut table = Table::new([
        "SERVICE FQDN",
        "PORT",
        "SUBSET",
        "DIRECTION",
        "TYPE",
        "DESTINATION RULE",
    ]);
    for cluster in clusters {
        let name = Name::of(cluster);
        let or_dash = |text: &str| if text.is_empty() { "-" } else { text }.to_owned();
        let custom = text(cluster, &["cluster_type", "name"]);
        let kind = match text(cluster, &["type"]) {
            "" if custom.is_empty() => "STATIC",
            "" => custom,
            kind => kind,
        };
        table.row([
            name.host.to_owned(),
            or_dash(name.port),
            or_dash(name.subset),
            or_dash(name.direction),
            kind.to_owned(),
            destination_rule(cluster),
        ]);
    }
    table.sort();
    table
}

/// Pilot notes in a cluster's metadata which DestinationRule shaped it, as istiod does.
fn destination_rule(cluster: &Value) -> String {
    let config = text(cluster, &["metadata", "filter_metadata", "istio", "config"]);
    match config.split('/').collect::<Vec<_>>()[..] {
        [.., namespace, "destination-rule", name] => format!("{name}.{namespace}"),
        _ => String::new(),
    }
}
