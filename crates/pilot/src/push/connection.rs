//! The task of one stream.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use api::envoy::service::discovery::v3::DiscoveryRequest;
use tokio::sync::watch;
use tonic::Status;
use xds::server::grpc::Incoming;
use xds::server::{
    CLUSTER, Connection, ENDPOINTS, LISTENER, PUSH_ORDER, ROUTE, Reaction, ResourceSet, Response,
    short_name,
};

use super::{Connected, Hub, TypeState};
use crate::proxy::Proxy;
use crate::snapshot::Snapshot;

/// Clusters that routes no longer lead to are taken away this long after the proxy took the new routes: calls that were
/// routed before are still using them.
const RETIRE_AFTER: Duration = Duration::from_secs(1);
/// And at the latest this long after the push, whatever the proxy says.
const RETIRE_AT_LAST: Duration = Duration::from_secs(15);

/// Serves a stream until either side ends it.
pub(super) async fn serve(hub: Arc<Hub>, mut incoming: Incoming) {
    let first = match incoming.requests.message().await {
        Ok(Some(request)) => request,
        Ok(None) | Err(_) => return,
    };
    let proxy = match first.node.as_ref().map(Proxy::from_node) {
        Some(Ok(proxy)) => proxy,
        Some(Err(message)) => return refuse(&incoming, &message).await,
        None => return refuse(&incoming, "the first request has no node").await,
    };
    let stream = Stream::new(hub, proxy, incoming.peer);
    stream.run(first, incoming).await;
}

async fn refuse(incoming: &Incoming, message: &str) {
    tracing::warn!(peer = ?incoming.peer, "refused a proxy: {message}");
    // An error says that the proxy has gone already.
    let _ = incoming
        .responses
        .send(Err(Status::invalid_argument(message)))
        .await;
}

struct Stream {
    hub: Arc<Hub>,
    id: u64,
    proxy: Arc<Proxy>,
    connection: Connection,
    snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    /// Clusters the proxy has, as last sent.
    clusters: Arc<ResourceSet>,
    retiring: Option<Retiring>,
}

/// Clusters that are to go.
struct Retiring {
    since: Instant,
    /// When the proxy was seen to have taken everything else.
    settled: Option<Instant>,
}

impl Stream {
    fn new(hub: Arc<Hub>, proxy: Proxy, peer: Option<std::net::SocketAddr>) -> Stream {
        let id = hub.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let proxy = Arc::new(proxy);
        tracing::info!(proxy = %proxy.id, ?peer, version = %proxy.version, "a proxy connected");
        hub.metrics.add_connection(1);
        hub.connected
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(
                id,
                Connected {
                    proxy: proxy.clone(),
                    peer,
                    types: Default::default(),
                },
            );
        // What there is now is answered request by request; only what comes from here on is pushed.
        let mut snapshots = hub.snapshots.clone();
        snapshots.mark_unchanged();
        Stream {
            connection: Connection::new(format!("sofamesh-pilot-{}", env!("CARGO_PKG_VERSION"))),
            hub,
            id,
            proxy,
            snapshots,
            clusters: Arc::default(),
            retiring: None,
        }
    }

    async fn run(mut self, first: DiscoveryRequest, mut incoming: Incoming) {
        if !self.proxy.labels.is_empty() {
            let workload = (self.proxy.ip.to_string(), self.proxy.labels.clone());
            // An error says that the controller has ended, and so will this task.
            let _ = self.hub.workloads.send(workload).await;
        }
        let mut stop = self.hub.stop.clone();
        let mut responses = self.take(&first);
        loop {
            for response in responses.drain(..) {
                if incoming.responses.send(Ok(response)).await.is_err() {
                    return;
                }
            }
            self.report();
            let retire_at = self.retire_at();
            responses = tokio::select! {
                request = incoming.requests.message() => match request {
                    Ok(Some(request)) => self.take(&request),
                    Ok(None) => return,
                    Err(status) => {
                        tracing::debug!(proxy = %self.proxy.id, %status, "the stream broke");
                        return;
                    }
                },
                changed = self.snapshots.changed() => match changed {
                    Ok(()) => self.push(None),
                    Err(_) => return,
                },
                () = at(retire_at), if retire_at.is_some() => self.retire(),
                () = stopped(&mut stop) => {
                    let _ = incoming.responses.send(Err(Status::unavailable("pilot is shutting down"))).await;
                    return;
                }
            };
        }
    }

    /// The newest snapshot. There is one, or the stream would not have been taken.
    fn snapshot(&mut self) -> Option<Arc<Snapshot>> {
        self.snapshots.borrow_and_update().clone()
    }

    fn take(&mut self, request: &DiscoveryRequest) -> Vec<Response> {
        let type_url = request.type_url.as_str();
        match self.connection.on_request(request) {
            Reaction::Respond => {}
            Reaction::Rejected => {
                let detail = request
                    .error_detail
                    .as_ref()
                    .map_or("", |status| &status.message);
                let kind = short_name(type_url);
                tracing::warn!(proxy = %self.proxy.id, "{kind} was refused: {detail}");
                self.hub
                    .metrics
                    .rejected(&kind.to_ascii_lowercase(), type_url);
                return Vec::new();
            }
            Reaction::Stale => {
                self.hub.metrics.expired_nonce();
                return Vec::new();
            }
            Reaction::Acked | Reaction::Unsubscribed => return Vec::new(),
        }
        // A snapshot that came since is for the other types too: a response of one alone might refer to what the proxy
        // has not got.
        if self.snapshots.has_changed().unwrap_or(false) {
            return self.push(Some(type_url));
        }
        let snapshot = self.snapshots.borrow().clone();
        let Some(snapshot) = snapshot else {
            return Vec::new();
        };
        let set = self.resources(&snapshot, type_url);
        let response = self.connection.respond(type_url, &set);
        self.sent(type_url, response).into_iter().collect()
    }

    /// The resources of a type; of clusters also those that are to go later.
    fn resources(&mut self, snapshot: &Snapshot, type_url: &str) -> Arc<ResourceSet> {
        let set = snapshot
            .generated(&self.proxy)
            .resources(type_url, &self.proxy);
        if type_url != CLUSTER {
            return set;
        }
        let is_gone = |name: &str| set.get(name).is_none();
        let kept: Vec<_> = self
            .clusters
            .iter()
            .filter(|cluster| is_gone(&cluster.name))
            .cloned()
            .collect();
        let set = if kept.is_empty()
            || self
                .connection
                .subscription(CLUSTER)
                .is_none_or(|s| s.sent.is_none())
        {
            self.retiring = None;
            set
        } else {
            let since = self
                .retiring
                .as_ref()
                .map_or_else(Instant::now, |retiring| retiring.since);
            self.retiring = Some(Retiring {
                since,
                settled: None,
            });
            Arc::new(ResourceSet::new(set.iter().cloned().chain(kept).collect()))
        };
        self.clusters = set.clone();
        set
    }

    /// A new snapshot: everything that changed for this proxy, in the order that never refers to what it has not got;
    /// of the type that it asks for all, changed or not.
    fn push(&mut self, asked: Option<&str>) -> Vec<Response> {
        let started = Instant::now();
        let Some(snapshot) = self.snapshot() else {
            return Vec::new();
        };
        let mut responses = Vec::new();
        let mut new_clusters = false;
        for type_url in PUSH_ORDER {
            if self.connection.subscription(type_url).is_none() {
                continue;
            }
            let set = self.resources(&snapshot, type_url);
            // A proxy that gets clusters waits for their endpoints, whether it had them before or not.
            let always = asked == Some(type_url) || (type_url == ENDPOINTS && new_clusters);
            let response = if always {
                self.connection.respond(type_url, &set)
            } else {
                self.connection.push(type_url, &set)
            };
            new_clusters |= type_url == CLUSTER && response.is_some();
            responses.extend(self.sent(type_url, response));
        }
        if !responses.is_empty() {
            self.hub.metrics.push_took(started.elapsed());
            self.hub.metrics.converged(snapshot.changed_at.elapsed());
        }
        responses
    }

    fn sent(&self, type_url: &str, response: Option<Response>) -> Option<Response> {
        let response = response?;
        let kind = short_name(type_url);
        self.hub.metrics.pushed(&kind.to_ascii_lowercase());
        tracing::debug!(proxy = %self.proxy.id, resources = response.count, bytes = response.size(), "{kind} push");
        Some(response)
    }

    /// When the clusters that are to go may go.
    fn retire_at(&mut self) -> Option<Instant> {
        let settled = [CLUSTER, LISTENER, ROUTE].iter().all(|type_url| {
            self.connection
                .subscription(type_url)
                .is_none_or(|subscription| subscription.acked == subscription.sent)
        });
        let retiring = self.retiring.as_mut()?;
        if settled && retiring.settled.is_none() {
            retiring.settled = Some(Instant::now());
        }
        let last = retiring.since + RETIRE_AT_LAST;
        Some(
            retiring
                .settled
                .map_or(last, |settled| (settled + RETIRE_AFTER).min(last)),
        )
    }

    fn retire(&mut self) -> Vec<Response> {
        self.retiring = None;
        self.clusters = Arc::default();
        let Some(snapshot) = self.snapshots.borrow().clone() else {
            return Vec::new();
        };
        let set = self.resources(&snapshot, CLUSTER);
        let response = self.connection.push(CLUSTER, &set);
        self.sent(CLUSTER, response).into_iter().collect()
    }

    /// Shows the state to the debug pages.
    fn report(&self) {
        let states = self
            .connection
            .subscriptions()
            .map(|(type_url, subscription)| {
                let nonce = |sent: &Option<xds::server::Sent>| {
                    sent.as_ref()
                        .map(|sent| sent.nonce.clone())
                        .unwrap_or_default()
                };
                let state = TypeState {
                    sent: nonce(&subscription.sent),
                    acked: nonce(&subscription.acked),
                    error: subscription.nack.as_ref().map(|nack| nack.message.clone()),
                    names: match &subscription.names {
                        xds::server::Names::All => None,
                        xds::server::Names::Listed(names) => Some(names.len()),
                    },
                };
                (type_url.to_owned(), state)
            });
        let mut connected = self
            .hub
            .connected
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = connected.get_mut(&self.id) {
            entry.types = states.collect();
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let mut connected = self
            .hub
            .connected
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        connected.remove(&self.id);
        drop(connected);
        self.hub.metrics.add_connection(-1);
        tracing::info!(proxy = %self.proxy.id, "a proxy went away");
    }
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error says that pilot has ended without a word.
    let _ = stop.wait_for(|stop| *stop).await.map(drop);
}

async fn at(instant: Option<Instant>) {
    if let Some(instant) = instant {
        tokio::time::sleep_until(instant.into()).await;
    }
}
