//! Push of changes: a client that keeps its request open is told the providers of a service, and again whenever they change.
//! SOFARPC's own client asks once and calls the sidecar whatever the answer; this is for those who want to know.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::mesh::registry::v1::change::Kind;
use api::mesh::registry::v1::{Instance, WatchRequest, WatchResponse};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::agent::{Agent, Client};
use super::service_id::ServiceId;

/// Between two attempts to watch a registry that refuses it.
const RETRY: Duration = Duration::from_secs(1);
/// So often a client is told something, be it nothing: SOFARPC's HTTP client gives up reading after 15 s.
const ALIVE: Duration = Duration::from_secs(5);

/// What a client is told.
pub(super) enum Told {
    /// All providers that can take calls.
    Providers(Vec<Instance>),
    /// Nothing new.
    Nothing,
}

/// Tells `client` the providers of a service until it goes, or the subscription ends.
pub(super) async fn tell(agent: Arc<Agent>, id: ServiceId, client: mpsc::Sender<Told>) {
    let mut ended = agent.unsubscribed();
    let until_ended = async {
        loop {
            match ended.recv().await {
                Ok(other) if other != id => {}
                // One that missed some cannot know that it was not meant.
                _ => return,
            }
        }
    };
    let pushes = async {
        let mut list = List::default();
        let known = agent.providers(&id).await;
        if client.send(Told::Providers(known.clone())).await.is_err() {
            return;
        }
        list.told = known;
        loop {
            let Some(registry) = agent.registry().await else {
                return;
            };
            if follow(registry, &id, &mut list, &client).await.is_err() {
                return;
            }
            tokio::time::sleep(RETRY).await;
        }
    };
    let alive = async {
        loop {
            tokio::time::sleep(ALIVE).await;
            if client.send(Told::Nothing).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = until_ended => {}
        () = pushes => {}
        () = alive => {}
        () = client.closed() => {}
    }
}

/// The client is gone.
struct Gone;

/// Passes on what one watch of the registry brings, until it breaks.
async fn follow(
    mut registry: Client,
    id: &ServiceId,
    list: &mut List,
    client: &mpsc::Sender<Told>,
) -> Result<(), Gone> {
    let request = WatchRequest {
        selector: Some(id.selector()),
        ..WatchRequest::default()
    };
    let Ok(Ok(stream)) = timeout(ALIVE, registry.watch(request)).await else {
        return Ok(());
    };
    let mut stream = stream.into_inner();
    while let Ok(Some(response)) = stream.message().await {
        if let Some(providers) = list.apply(response) {
            let told = client.send(Told::Providers(providers)).await;
            told.map_err(|_| Gone)?;
        }
    }
    Ok(())
}

/// A list as the registry's watch makes it.
#[derive(Default)]
struct List {
    instances: BTreeMap<String, Instance>,
    told: Vec<Instance>,
}

impl List {
    /// The list, if a client has to be told.
    fn apply(&mut self, response: WatchResponse) -> Option<Vec<Instance>> {
        if response.reset {
            self.instances.clear();
        }
        for change in response.changes {
            let kind = change.kind();
            let Some(instance) = change.instance else {
                continue;
            };
            if kind == Kind::Put {
                self.instances.insert(instance.id.clone(), instance);
            } else {
                self.instances.remove(&instance.id);
            }
        }
        if !response.synced {
            return None;
        }
        let now: Vec<Instance> = self.instances.values().cloned().collect();
        if now == self.told {
            return None;
        }
        self.told.clone_from(&now);
        Some(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::mesh::registry::v1::Change;

    fn response(reset: bool, synced: bool, changes: &[(Kind, &str)]) -> WatchResponse {
        let change = |(kind, id): &(Kind, &str)| Change {
            kind: i32::from(*kind),
            instance: Some(Instance {
                id: (*id).to_owned(),
                ..Instance::default()
            }),
            ..Change::default()
        };
        WatchResponse {
            reset,
            synced,
            changes: changes.iter().map(change).collect(),
            ..WatchResponse::default()
        }
    }

    #[test]
    fn a_client_is_told_whole_lists_and_only_what_is_new() {
        let mut list = List::default();
        let mut apply = |reset, synced, changes: &[(Kind, &str)]| {
            let told = list.apply(response(reset, synced, changes))?;
            Some(told.into_iter().map(|i| i.id).collect::<Vec<_>>())
        };
        let ids = |ids: &[&str]| Some(ids.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>());
        assert_eq!(apply(true, false, &[(Kind::Put, "a")]), None);
        assert_eq!(apply(false, true, &[(Kind::Put, "b")]), ids(&["a", "b"]));
        assert_eq!(apply(false, true, &[]), None);
        assert_eq!(apply(false, true, &[(Kind::Lapsed, "a")]), ids(&["b"]));
        // After a reconnect the list begins anew; the same one is no news.
        assert_eq!(apply(true, true, &[(Kind::Put, "b")]), None);
        assert_eq!(apply(true, true, &[]), ids(&[]));
    }
}
