//! `/listeners`: names and addresses of what is listened on.

use std::fmt::Write as _;

use serde_json::json;

use super::{Query, Reply, Server, address_json, listed};

pub(super) async fn listeners(server: &Server, query: &Query) -> Reply {
    let listeners = server.with(|state| {
        let listeners = state.manager.listeners();
        let active = listeners.filter_map(|(name, entry)| {
            let config = &entry.active.as_ref()?.config;
            Some((name.clone(), entry.bound.unwrap_or(config.address)))
        });
        active.collect::<Vec<_>>()
    });
    let Some(listeners) = listeners.await else {
        return Reply::ending();
    };
    if query.get("format") == Some("json") {
        let statuses = listeners.iter();
        let statuses = statuses
            .map(|(name, address)| json!({"name": name, "local_address": address_json(*address)}));
        return Reply::json(&listed("listener_statuses", statuses.collect()));
    }
    let mut text = String::new();
    for (name, address) in listeners {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name}::{address}");
    }
    Reply::text(text)
}
