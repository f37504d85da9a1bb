//! The objects of one kind as a cluster has them, followed as long as somebody listens.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, ListParams};
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, ResourceExt};
use serde_json::Value;
use tokio::sync::mpsc;

use super::{Cluster, Failure, GONE, answered, probe, watch_failure};
use crate::backoff::Backoff;
use crate::source::Trouble;

/// Until it is looked again whether the cluster has the kind by now.
const ABSENT_WAIT: Duration = Duration::from_secs(10);
const REFUSED_WAIT: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));
/// Between two looks whether the server is still there.
const PROBE_INTERVAL: Duration = Duration::from_secs(20);
const NOT_FOUND: u16 = 404;

/// Which objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Objects {
    /// Their API group; empty for that of Kubernetes itself.
    pub group: String,
    /// Versions of it: the first that the cluster has is read.
    pub versions: Vec<String>,
    /// Their kind.
    pub kind: String,
    /// The same as a part of a path.
    pub plural: String,
    /// Those of one namespace; of all when absent.
    pub namespace: Option<String>,
    /// The one with this name; all when absent.
    pub name: Option<String>,
}

/// What a cluster says of objects. An object may hold secrets: it is not to be printed.
pub enum Told {
    /// All that there are: others are gone.
    All(Vec<Value>),
    /// One that is new or has changed.
    Changed(Value),
    /// One that is gone.
    Gone {
        /// Its namespace; empty for none.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// They cannot be read for now; what was told before stays.
    Failed {
        /// The server does not permit it.
        refused: bool,
        /// The details, without secrets.
        reason: String,
    },
}

/// Tells, each time with `tag`, what there is and what becomes of it, until nobody listens. A cluster that does not have the
/// kind has none of its objects.
pub async fn follow<T: Clone>(
    cluster: &Cluster,
    objects: &Objects,
    tag: T,
    told: mpsc::Sender<(T, Told)>,
) {
    let mut backoff = Backoff::for_registry();
    let mut refused = Backoff::new(REFUSED_WAIT.0, REFUSED_WAIT.1);
    let listener = Listener { tag, told };
    let mut last = None;
    loop {
        let began = Instant::now();
        let failure = tokio::select! {
            failure = session(cluster, objects, &listener, &mut last) => failure,
            () = listener.told.closed() => return,
        };
        // A session that ends at once was none.
        if began.elapsed() > REFUSED_WAIT.1 {
            backoff.reset();
            refused.reset();
        }
        let is_refused = failure.trouble == Trouble::Refused;
        if last.as_ref() != Some(&failure.reason) {
            last = Some(failure.reason.clone());
            let news = Told::Failed {
                refused: is_refused,
                reason: failure.reason,
            };
            listener.tell(news).await;
        }
        let wait = if is_refused {
            &mut refused
        } else {
            &mut backoff
        };
        tokio::time::sleep(wait.next()).await;
    }
}

struct Listener<T> {
    tag: T,
    told: mpsc::Sender<(T, Told)>,
}

impl<T: Clone> Listener<T> {
    async fn tell(&self, news: Told) {
        // One who has gone is noticed elsewhere.
        let _ = self.told.send((self.tag.clone(), news)).await;
    }
}

async fn session<T: Clone>(
    cluster: &Cluster,
    objects: &Objects,
    listener: &Listener<T>,
    failed: &mut Option<String>,
) -> Failure {
    let client = match cluster.client().await {
        Ok((client, _)) => client,
        Err(failure) => return failure,
    };
    let mut is_absent = false;
    let (api, resource) = loop {
        match find(&client, objects).await {
            Ok(Some(found)) => break found,
            Ok(None) => {
                if !is_absent {
                    let kind = &objects.kind;
                    tracing::info!(kind, "the cluster does not have the kind (yet)");
                    is_absent = true;
                    *failed = None;
                    listener.tell(Told::All(Vec::new())).await;
                }
                tokio::time::sleep(ABSENT_WAIT).await;
            }
            Err(failure) => return failure,
        }
    };
    let version = format!("{}{}", objects.group_prefix(), resource.version);
    let value = |mut object: DynamicObject| {
        object.metadata.managed_fields = None;
        let mut value = serde_json::to_value(object).unwrap_or_default();
        value["apiVersion"] = version.as_str().into();
        value["kind"] = objects.kind.as_str().into();
        value
    };
    let mut settings = watcher::Config::default();
    if let Some(name) = &objects.name {
        settings = settings.fields(&format!("metadata.name={name}"));
    }
    let mut events = watcher::watcher(api, settings).boxed();
    let mut listing = Vec::new();
    let mut lost = std::pin::pin!(probe(&client, PROBE_INTERVAL));
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            failure = &mut lost => return failure,
        };
        let news = match event {
            Some(Ok(Event::Init)) => {
                listing.clear();
                continue;
            }
            Some(Ok(Event::InitApply(object))) => {
                listing.push(value(object));
                continue;
            }
            Some(Ok(Event::InitDone)) => {
                *failed = None;
                Told::All(std::mem::take(&mut listing))
            }
            Some(Ok(Event::Apply(object))) => Told::Changed(value(object)),
            Some(Ok(Event::Delete(object))) => Told::Gone {
                namespace: object.namespace().unwrap_or_default(),
                name: object.name_any(),
            },
            Some(Err(error)) => match watch_failure(error) {
                // The server has forgotten what lies between: the watcher lists again.
                failure if failure.code == GONE => continue,
                failure => return failure,
            },
            None => return Failure::unreachable("the watch has ended".to_owned()),
        };
        listener.tell(news).await;
    }
}

impl Objects {
    fn group_prefix(&self) -> String {
        match self.group.as_str() {
            "" => String::new(),
            group => format!("{group}/"),
        }
    }
}

/// The version that the cluster has.
async fn find(
    client: &Client,
    objects: &Objects,
) -> Result<Option<(Api<DynamicObject>, ApiResource)>, Failure> {
    for version in &objects.versions {
        let kind = GroupVersionKind::gvk(&objects.group, version, &objects.kind);
        let resource = ApiResource::from_gvk_with_plural(&kind, &objects.plural);
        let api = match &objects.namespace {
            Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
            None => Api::all_with(client.clone(), &resource),
        };
        let mut one = ListParams::default().limit(1);
        if let Some(name) = &objects.name {
            one = one.fields(&format!("metadata.name={name}"));
        }
        match answered(api.list(&one)).await {
            Ok(_) => return Ok(Some((api, resource))),
            Err(failure) if failure.code == NOT_FOUND => {}
            Err(failure) => return Err(failure),
        }
    }
    Ok(None)
}
