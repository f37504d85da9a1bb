//! Reads Services, EndpointSlices, Pods and Nodes, and what watches say has changed.

use std::collections::HashSet;
use std::time::Duration;

use futures_util::future::Either;
use futures_util::stream::{self, BoxStream, SelectAll};
use futures_util::{FutureExt, StreamExt};
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{ApiResource, DynamicObject, ListParams};
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::Config;
use super::held::{Held, Kind};
use super::objects::{Name, Object};
use crate::kubernetes::{FORBIDDEN, Failure, GONE, answered, probe, watch_failure};
use crate::source::{Link, List, Report, Skipped, Trouble};

/// How often the server is asked whether it is still there.
const PROBE_INTERVAL: Duration = Duration::from_secs(5);
/// Until it is looked again whether the hub has taken the lists before.
const LOOK_AGAIN: Duration = Duration::from_millis(1);
/// Events that become one report.
const GATHER: usize = 4096;
/// Until it is looked again whether what was forbidden may be read.
const FORBIDDEN_WAIT: Duration = Duration::from_secs(60);
/// The list of what this account may not read.
const ACCESS: &str = "access";

type Told = (usize, Result<Event<Object>, watcher::Error>);

/// One kind of objects, of one namespace or of all.
struct Watched {
    kind: Kind,
    namespace: Option<String>,
    /// Objects of the list that is being read.
    listing: HashSet<Name>,
    /// A whole list was read, or may not be read.
    is_read: bool,
    denied: Option<Skipped>,
}

/// Until the session ends.
pub(super) async fn run(config: &Config, link: &Link, client: &Client) -> Failure {
    let reading = std::pin::pin!(read(config, link, client));
    let probing = std::pin::pin!(probe(client, PROBE_INTERVAL));
    match futures_util::future::select(reading, probing).await {
        Either::Left((failure, _)) | Either::Right((failure, _)) => failure,
    }
}

/// Whether Services may be read at all.
pub(super) async fn look(config: &Config, client: &Client) -> Result<(), Failure> {
    let services: Api<PartialObjectMeta<Service>> = match config.namespaces.first() {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    };
    let one = ListParams::default().limit(1);
    answered(services.list(&one)).await.map(|_| ())
}

async fn read(config: &Config, link: &Link, client: &Client) -> Failure {
    let mut held = Held::new(&config.domain);
    let (mut watched, mut streams) = watch_all(config, client);
    let mut denied: Option<Vec<Skipped>> = None;
    let mut is_synced = false;
    let mut has_news = false;
    loop {
        let wait = async {
            if link.is_behind() {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        };
        tokio::select! {
            told = streams.next() => {
                let Some(mut told) = told else {
                    return ended("nothing of the cluster may be read".to_owned(), Trouble::Refused);
                };
                for _ in 0..GATHER {
                    if let Err(failure) = take(told, &mut watched, &mut held, is_synced) {
                        return failure;
                    }
                    match streams.next().now_or_never().flatten() {
                        Some(next) => told = next,
                        None => break,
                    }
                }
                has_news = true;
            }
            () = wait, if has_news && watched.iter().all(|w| w.is_read) => {
                has_news = link.is_behind();
                if has_news {
                    continue;
                }
                for list in held.take_dirty() {
                    link.report(Report::List(list)).await;
                }
                let now: Vec<Skipped> = watched.iter().filter_map(|w| w.denied.clone()).collect();
                if denied.as_ref() != Some(&now) {
                    link.report(Report::List(access(&now))).await;
                    denied = Some(now);
                }
                if !is_synced {
                    is_synced = true;
                    link.report(Report::Synced).await;
                }
            }
        }
    }
}

fn access(denied: &[Skipped]) -> List {
    List {
        name: ACCESS.into(),
        instances: Vec::new(),
        skipped: denied.to_vec(),
        certain: true,
    }
}

fn take(
    (index, told): Told,
    watched: &mut [Watched],
    held: &mut Held,
    is_synced: bool,
) -> Result<(), Failure> {
    let Some(of) = watched.get_mut(index) else {
        return Ok(());
    };
    match told {
        Ok(Event::Init) => of.listing.clear(),
        Ok(Event::InitApply(object)) => {
            of.listing
                .insert(Name::new(&object.namespace, &object.name));
            held.put(of.kind, &object, false);
        }
        Ok(Event::InitDone) => {
            let listing = std::mem::take(&mut of.listing);
            held.retain(of.kind, of.namespace.as_deref(), &listing);
            of.is_read = true;
            of.denied = None;
        }
        Ok(Event::Apply(object)) => held.put(of.kind, &object, is_synced),
        Ok(Event::Delete(object)) => {
            let name = Name::new(&object.namespace, &object.name);
            held.remove(of.kind, &name, is_synced);
        }
        Err(error) => return failed(error, of),
    }
    Ok(())
}

fn failed(error: watcher::Error, of: &mut Watched) -> Result<(), Failure> {
    // The server has forgotten what lies between: the watcher lists again.
    let lists_again = matches!(
        error,
        watcher::Error::WatchError(_) | watcher::Error::InitialListFailed(_)
    );
    let failure = watch_failure(error);
    if failure.code == GONE && lists_again {
        return Ok(());
    }
    // Without Pods there are no labels, without Nodes no regions; the rest goes on.
    if failure.code == FORBIDDEN && matches!(of.kind, Kind::Pod | Kind::Node) {
        of.is_read = true;
        of.denied = Some(Skipped::new(&format!("{:?}", of.kind), &failure.reason));
        return Ok(());
    }
    Err(failure)
}

fn ended(reason: String, trouble: Trouble) -> Failure {
    Failure {
        trouble,
        reason,
        code: 0,
    }
}

fn watch_all(
    config: &Config,
    client: &Client,
) -> (Vec<Watched>, SelectAll<BoxStream<'static, Told>>) {
    let mut watched = Vec::new();
    let mut streams = SelectAll::new();
    let mut add = |kind: Kind, namespace: Option<&str>| {
        let index = watched.len();
        let stream = watch(kind, namespace, config, client);
        streams.push(stream.map(move |told| (index, told)).boxed());
        watched.push(Watched {
            kind,
            namespace: namespace.map(ToOwned::to_owned),
            listing: HashSet::new(),
            is_read: false,
            denied: None,
        });
    };
    if config.namespaces.is_empty() {
        for kind in [Kind::Service, Kind::Slice, Kind::Pod] {
            add(kind, None);
        }
    }
    for namespace in &config.namespaces {
        for kind in [Kind::Service, Kind::Slice, Kind::Pod] {
            add(kind, Some(namespace));
        }
    }
    // The copies have to be seen, too.
    if let Some(namespace) = &config.write_namespace
        && !config.namespaces.is_empty()
        && !config.namespaces.contains(namespace)
    {
        add(Kind::Slice, Some(namespace));
    }
    add(Kind::Node, None);
    (watched, streams)
}

fn watch(
    kind: Kind,
    namespace: Option<&str>,
    config: &Config,
    client: &Client,
) -> BoxStream<'static, Result<Event<Object>, watcher::Error>> {
    let mut settings = watcher::Config::default();
    if let (Kind::Service, Some(selector)) = (kind, &config.label_selector) {
        settings = settings.labels(selector);
    }
    // Services and slices are read without their types: one that is malformed does not hide the others.
    let dynamic = |resource: ApiResource| -> Api<DynamicObject> {
        match namespace {
            Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
            None => Api::all_with(client.clone(), &resource),
        }
    };
    match kind {
        Kind::Service => {
            let api = dynamic(ApiResource::erase::<Service>(&()));
            told(&api, settings, of_dynamic)
        }
        Kind::Slice => {
            let api = dynamic(ApiResource::erase::<EndpointSlice>(&()));
            told(&api, settings, of_dynamic)
        }
        Kind::Pod => {
            let api: Api<PartialObjectMeta<Pod>> = match namespace {
                Some(namespace) => Api::namespaced(client.clone(), namespace),
                None => Api::all(client.clone()),
            };
            told(&api, settings, of_metadata)
        }
        Kind::Node => {
            let api: Api<PartialObjectMeta<Node>> = Api::all(client.clone());
            told(&api, settings, of_metadata)
        }
    }
}

/// What a watcher says, which asks no more often than it should: after a failure it would ask again at once.
fn told<K>(
    api: &Api<K>,
    settings: watcher::Config,
    object: fn(K) -> Object,
) -> BoxStream<'static, Result<Event<Object>, watcher::Error>>
where
    K: kube::Resource + Clone + std::fmt::Debug + DeserializeOwned + Send + Sync + 'static,
{
    let events = watcher::watcher(api.clone(), settings);
    let start = (events.boxed(), None, api.clone());
    let paced = stream::unfold(start, move |(mut events, failed, api)| async move {
        match failed {
            // The watcher writes a line into the log for each refusal.
            Some(FORBIDDEN) => until_allowed(&api).await,
            Some(_) => tokio::time::sleep(PROBE_INTERVAL / 10).await,
            None => {}
        }
        let told = events.next().await?;
        let failed = told.as_ref().err().map(code);
        Some((convert(told, object), (events, failed, api)))
    });
    paced.boxed()
}

async fn until_allowed<K>(api: &Api<K>)
where
    K: Clone + std::fmt::Debug + DeserializeOwned,
{
    loop {
        tokio::time::sleep(FORBIDDEN_WAIT).await;
        if answered(api.list(&ListParams::default().limit(1)))
            .await
            .is_ok()
        {
            return;
        }
    }
}

/// HTTP's word for a failure; 0 where there is none.
fn code(error: &watcher::Error) -> u16 {
    match error {
        watcher::Error::WatchError(status) => status.code,
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status)) => status.code,
        _ => 0,
    }
}

fn convert<K>(
    told: Result<Event<K>, watcher::Error>,
    object: fn(K) -> Object,
) -> Result<Event<Object>, watcher::Error> {
    told.map(|event| match event {
        Event::Apply(of) => Event::Apply(object(of)),
        Event::Delete(of) => Event::Delete(object(of)),
        Event::Init => Event::Init,
        Event::InitApply(of) => Event::InitApply(object(of)),
        Event::InitDone => Event::InitDone,
    })
}

pub(super) fn of_dynamic(object: DynamicObject) -> Object {
    Object {
        namespace: object.namespace().unwrap_or_default(),
        name: object.name_any(),
        labels: object.labels().clone(),
        annotations: object.annotations().clone(),
        data: object.data,
    }
}

fn of_metadata<K>(object: PartialObjectMeta<K>) -> Object {
    let metadata = object.metadata;
    Object {
        namespace: metadata.namespace.unwrap_or_default(),
        name: metadata.name.unwrap_or_default(),
        labels: metadata.labels.unwrap_or_default(),
        annotations: metadata.annotations.unwrap_or_default(),
        data: Value::Null,
    }
}
