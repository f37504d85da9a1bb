//! What changes the server: draining, health, logs, the end.

use crate::listener::ListenerConfig;
use crate::manager::ListenerEntry;
use crate::server::Event;
use crate::worker::Command;

use super::{Query, Reply, Server};

/// `/healthcheck/fail` and `/healthcheck/ok`.
pub(super) async fn fail_health_check(server: &Server, fail: bool) -> Reply {
    done(server.with(move |state| state.health_failed = fail).await)
}

/// `/quitquitquit`.
pub(super) async fn quit(server: &Server) -> Reply {
    done(server.with(|state| state.quit = true).await)
}

/// `/reopen_logs`.
pub(super) async fn reopen_logs(server: &Server) -> Reply {
    done(
        server
            .with(|state| state.manager.access_logs.reopen())
            .await,
    )
}

/// `/drain_listeners`: the listeners stop at once; with `graceful` their connections are asked to finish first, for the
/// drain time; with `skip_exit` they only are asked.
pub(super) async fn drain_listeners(server: &Server, query: &Query) -> Reply {
    let (graceful, skip_exit) = (query.has("graceful"), query.has("skip_exit"));
    let inbound_only = query.has("inboundonly");
    let events = server.events.clone();
    let drained = server.with(move |state| {
        let listeners = state.manager.listeners().map(|(_, entry)| entry);
        let names: Vec<_> = listeners
            .filter_map(config)
            .filter(|config| config.inbound || !inbound_only)
            .map(|config| config.name.clone())
            .collect();
        let command = if graceful || skip_exit {
            Command::DrainListener
        } else {
            Command::RemoveListener
        };
        for name in &names {
            state.tell(|| command(name.clone()));
        }
        if graceful && !skip_exit {
            let wait = state.manager.options.drain_time;
            tokio::spawn(async move {
                tokio::time::sleep(wait).await;
                let stop = Event::Admin(Box::new(move |state| {
                    for name in &names {
                        state.tell(|| Command::RemoveListener(name.clone()));
                    }
                }));
                // Nobody listens once the process ends, and nothing is left to stop.
                let _ = events.send(stop);
            });
        }
    });
    done(drained.await)
}

fn config(entry: &ListenerEntry) -> Option<&ListenerConfig> {
    entry.active.as_ref().map(|active| &*active.config)
}

fn done(result: Option<()>) -> Reply {
    match result {
        Some(()) => Reply::ok(),
        None => Reply::ending(),
    }
}
