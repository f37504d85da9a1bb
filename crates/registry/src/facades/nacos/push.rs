//! What the server says to a client by itself. Of each thing one message is on its way at a time, and says how it is then: a
//! client that is slow gets the last state and none of those between.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use api::nacos::Payload;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use super::Server;
use super::configs::Key;
use super::directory::Name;
use super::written::{Asked, CACHE_MS, rest, written};
use crate::nacos::{
    ConfigKey, Nothing, NotifySubscriberRequest, Request, ServiceInfo, ask, notify,
};

/// Messages of a client on their way.
const FLYING: usize = 16;
/// What a client may wait with an answer before it is told again.
const ANSWER: Duration = Duration::from_secs(5);
/// KiB of lists that are on their way to all clients together.
pub(super) const FLYING_KIB: u32 = 128 << 10;
/// After this silence a client is asked whether it is there.
const SILENCE: Duration = Duration::from_secs(20);
/// How often that is looked at.
const TICK: Duration = Duration::from_secs(3);
/// After this silence it is not.
const GONE: Duration = Duration::from_secs(35);

/// A thing that a client has to be told of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Item {
    /// The list of a service, of some clusters.
    Service(Name, String),
    /// That a configuration has changed.
    Config(Key),
    /// Names that match a pattern.
    Fuzzy(String),
    /// Whether it is there.
    Detection,
}

/// Tells a client what it has to be told, as long as its connection lives.
pub(super) async fn run(server: Arc<Server>, id: u64) {
    let Some(wake) = server.state().connections.get(&id).map(|c| c.waker()) else {
        return;
    };
    let mut flying = FuturesUnordered::new();
    let mut busy = BTreeSet::new();
    let mut tick = tokio::time::interval(TICK);
    loop {
        while flying.len() < FLYING {
            let next = {
                let mut state = server.state();
                let Some(connection) = state.connections.get_mut(&id) else {
                    return;
                };
                connection.next(&busy)
            };
            let Some(item) = next else {
                break;
            };
            busy.insert(item.clone());
            flying.push(tell(&server, id, item));
        }
        tokio::select! {
            () = wake.notified() => {}
            Some(item) = flying.next(), if !flying.is_empty() => {
                busy.remove(&item);
            }
            _ = tick.tick() => {
                let mut state = server.state();
                let Some(connection) = state.connections.get_mut(&id) else {
                    return;
                };
                if connection.silence() > GONE {
                    tracing::info!(connection = id, "a client is silent: its connection ends");
                    connection.line().close();
                    return;
                }
                if connection.silence() > SILENCE {
                    connection.todo(Item::Detection);
                }
            }
        }
    }
}

/// Tells a client one thing until it has heard it.
async fn tell(server: &Server, id: u64, item: Item) -> Item {
    if let Item::Service(name, clusters) = &item {
        if !tell_list(server, id, name, clusters).await {
            let mut state = server.state();
            if let Some(connection) = state.connections.get_mut(&id) {
                // It says how it is then.
                connection.untold(name, clusters);
                connection.todo(item.clone());
            }
        }
        return item;
    }
    let requests = requests(server, id, &item);
    for request in requests {
        while !ask_client(server, id, ANSWER, |number| {
            ask(&request, number, &BTreeMap::new())
        })
        .await
        {
            let state = server.state();
            if item == Item::Detection || !state.connections.contains_key(&id) {
                return item;
            }
        }
    }
    item
}

/// The messages that say a thing as it is now; none if the client knows.
fn requests(server: &Server, id: u64, item: &Item) -> Vec<Request> {
    let mut state = server.state();
    let state = &mut *state;
    let Some(connection) = state.connections.get_mut(&id) else {
        return Vec::new();
    };
    match item {
        // It is told by itself.
        Item::Service(..) => Vec::new(),
        Item::Config(key) => {
            let tenant = connection.listens(key);
            let notify = tenant.map(|tenant| {
                Request::ConfigChangeNotify(ConfigKey {
                    data_id: key.data_id.clone(),
                    group: key.group.clone(),
                    tenant: tenant.to_owned(),
                })
            });
            notify.into_iter().collect()
        }
        Item::Fuzzy(pattern) => {
            let fuzzy = connection.watched(pattern);
            fuzzy.map_or_else(Vec::new, |fuzzy| fuzzy.news(&state.directory))
        }
        Item::Detection => vec![Request::ClientDetection(Nothing {})],
    }
}

/// Tells a client how a list is, if it was told something else; whether it has heard it.
async fn tell_list(server: &Server, id: u64, name: &Name, clusters: &str) -> bool {
    let asked = Asked {
        name: name.clone(),
        clusters: clusters.to_owned(),
        healthy_only: false,
    };
    // Who has been told a large list a moment ago is told the next changes as one.
    let rest = rest(server, &asked);
    if !rest.is_zero() {
        tokio::time::sleep(rest).await;
    }
    let written = written(server, &asked).await;
    // What is on its way has room for a copy.
    let kib = u32::try_from(written.hosts.len() / 1024).unwrap_or(u32::MAX);
    let Ok(_room) = server.room.acquire_many(kib.min(FLYING_KIB)).await else {
        return true;
    };
    {
        let mut state = server.state();
        let connection = state.connections.get_mut(&id);
        if !connection.is_some_and(|c| c.tells(name, clusters, written.digest)) {
            return true;
        }
    }
    let patience = ANSWER + Duration::from_secs(u64::from(kib / 1024));
    ask_client(server, id, patience, |number| {
        let request = NotifySubscriberRequest {
            namespace: name.namespace.to_string(),
            service_name: name.service.to_string(),
            group_name: name.group.to_string(),
            service_info: ServiceInfo::default(),
        };
        let info = written.info(&asked, &name.service, CACHE_MS);
        notify(&request, number, &info)
    })
    .await
}

/// Sends a message; whether the client has answered in time.
async fn ask_client(
    server: &Server,
    id: u64,
    patience: Duration,
    message: impl FnOnce(&str) -> Payload,
) -> bool {
    let (number, answered, out) = {
        let mut state = server.state();
        let Some(connection) = state.connections.get_mut(&id) else {
            return false;
        };
        let (number, answered) = connection.ask();
        (number, answered, connection.out())
    };
    let payload = message(&number);
    let exchange = async { out.send(Ok(payload)).await.is_ok() && answered.await.is_ok() };
    let done = tokio::time::timeout(patience, exchange).await;
    if let Some(connection) = server.state().connections.get_mut(&id) {
        connection.give_up(&number);
    }
    done.unwrap_or(false)
}
