//! What the server says to a client by itself. Of each thing one message is on its way at a time, and says how it is then: a
//! client that is slow gets the last state and none of those between.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use super::Server;
use super::configs::Key;
use super::directory::Name;
use crate::nacos::{ConfigKey, Nothing, NotifySubscriberRequest, Request, ServiceInfo, ask};

/// Messages of a client on their way.
const FLYING: usize = 16;
/// What a client may wait with an answer before it is told again.
const ANSWER: Duration = Duration::from_secs(5);
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

/// The digest of a list: what is not in it is the time of the change.
pub(super) fn digest(info: &ServiceInfo) -> u64 {
    let mut hasher = DefaultHasher::new();
    // What cannot be written has the digest of nothing.
    serde_json::to_string(&info.hosts)
        .unwrap_or_default()
        .hash(&mut hasher);
    // 0 is what nobody was told.
    hasher.finish().max(1)
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
    let requests = requests(server, id, &item);
    for request in requests {
        while !ask_client(server, id, &request).await {
            let mut state = server.state();
            let Some(connection) = state.connections.get_mut(&id) else {
                return item;
            };
            match &item {
                // It says how it is then.
                Item::Service(name, clusters) => {
                    connection.untold(name, clusters);
                    connection.todo(item.clone());
                    return item;
                }
                Item::Detection => return item,
                Item::Config(_) | Item::Fuzzy(_) => {}
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
        Item::Service(name, clusters) => {
            let info = state.directory.info(name, clusters, false);
            if !connection.tells(name, clusters, digest(&info)) {
                return Vec::new();
            }
            vec![Request::NotifySubscriber(Box::new(
                NotifySubscriberRequest {
                    namespace: name.namespace.to_string(),
                    service_name: name.service.to_string(),
                    group_name: name.group.to_string(),
                    service_info: info,
                },
            ))]
        }
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

/// Sends a message; whether the client has answered.
async fn ask_client(server: &Server, id: u64, request: &Request) -> bool {
    let (number, answered, out) = {
        let mut state = server.state();
        let Some(connection) = state.connections.get_mut(&id) else {
            return false;
        };
        let (number, answered) = connection.ask();
        (number, answered, connection.out())
    };
    let payload = ask(request, &number, &BTreeMap::new());
    let exchange = async { out.send(Ok(payload)).await.is_ok() && answered.await.is_ok() };
    let done = tokio::time::timeout(ANSWER, exchange).await;
    if let Some(connection) = server.state().connections.get_mut(&id) {
        connection.give_up(&number);
    }
    done.unwrap_or(false)
}
