//! Reads Services, EndpointSlices, Pods and Nodes, and what watches say has changed.

use std::collections::HashSet;
use std::time::Duration;

use futures_util::future::Either;
use futures_util::stream::{BoxStream, SelectAll};
use futures_util::{FutureExt, StreamExt};
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{ApiResource, DynamicObject};
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, ResourceExt};
use serde_json::Value;

use super::Config;
use super::held::{Held, Kind};
use super::objects::{Name, Object};
use crate::kubernetes::{Failure, answered};
use crate::source::{Link, List, Report, Skipped, Trouble};

/// How often the server is asked whether it is still there: a watch alone would not notice for minutes.
const PROBE_INTERVAL: Duration = Duration::from_secs(5);
/// Until it is looked again whether the hub has taken the lists before.
const LOOK_AGAIN: Duration = Duration::from_millis(1);
/// Events that become one report.
const GATHER: usize = 4096;
/// The list of what this account may not read.
const ACCESS: &str = "access";

type Told = (usize, Result<Event<Object>, watcher::Error>);

/// One kind of objects, of one namespace or of all.
struct Watched {
    kind: Kind,
    namespace: Option<String>,
    /// Objects of the list that is being read.
    listing: HashSet<Name>,
    /// A whole list was read.
    is_read: bool,
}

/// Until the session ends.
pub(super) async fn run(config: &Config, link: &Link, client: &Client) -> Failure {
    let reading = std::pin::pin!(read(config, link, client));
    let probing = std::pin::pin!(probe(client));
    match futures_util::future::select(reading, probing).await {
        Either::Left((failure, _)) | Either::Right((failure, _)) => failure,
    }
}

async fn probe(client: &Client) -> Failure {
    loop {
        tokio::time::sleep(PROBE_INTERVAL).await;
        if let Err(failure) = answered(client.apiserver_version()).await
            && failure.trouble == Trouble::Unreachable
        {
            return failure;
        }
    }
}

async fn read(config: &Config, link: &Link, client: &Client) -> Failure {
    let mut held = Held::new(&config.domain);
    let (mut watched, mut streams) = watch_all(config, client);
    let mut denied: Vec<Skipped> = Vec::new();
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
                    if let Err(failure) = take(told, &mut watched, &mut held, &mut denied, is_synced) {
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
                if !is_synced {
                    is_synced = true;
                    link.report(Report::List(access(&denied))).await;
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
    denied: &mut Vec<Skipped>,
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
        }
        Ok(Event::Apply(object)) => held.put(of.kind, &object, is_synced),
        Ok(Event::Delete(object)) => {
            let name = Name::new(&object.namespace, &object.name);
            held.remove(of.kind, &name, is_synced);
        }
        Err(error) => return failed(error, of, denied),
    }
    Ok(())
}

fn failed(
    error: watcher::Error,
    of: &mut Watched,
    denied: &mut Vec<Skipped>,
) -> Result<(), Failure> {
    let failure = match error {
        // The server has forgotten what lies between: the watcher lists again.
        watcher::Error::WatchError(status) if status.code == 410 => return Ok(()),
        watcher::Error::WatchError(status) => Failure::of(&kube::Error::Api(status)),
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => Failure::of(&error),
        watcher::Error::NoResourceVersion => ended(
            "a list has no resourceVersion".to_owned(),
            Trouble::Protocol,
        ),
    };
    if failure.code == 410 {
        return Ok(());
    }
    // Without Pods there are no labels, without Nodes no regions; the rest goes on.
    if failure.code == 403 && matches!(of.kind, Kind::Pod | Kind::Node) {
        if !of.is_read {
            of.is_read = true;
            denied.push(Skipped::new(&format!("{:?}", of.kind), &failure.reason));
        }
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
    let stream = match kind {
        Kind::Service => {
            let api = dynamic(ApiResource::erase::<Service>(&()));
            watcher::watcher(api, settings)
                .map(|told| convert(told, of_dynamic))
                .boxed()
        }
        Kind::Slice => {
            let api = dynamic(ApiResource::erase::<EndpointSlice>(&()));
            watcher::watcher(api, settings)
                .map(|told| convert(told, of_dynamic))
                .boxed()
        }
        Kind::Pod => {
            let api: Api<PartialObjectMeta<Pod>> = match namespace {
                Some(namespace) => Api::namespaced(client.clone(), namespace),
                None => Api::all(client.clone()),
            };
            watcher::watcher(api, settings)
                .map(|told| convert(told, of_metadata))
                .boxed()
        }
        Kind::Node => {
            let api: Api<PartialObjectMeta<Node>> = Api::all(client.clone());
            watcher::watcher(api, settings)
                .map(|told| convert(told, of_metadata))
                .boxed()
        }
    };
    // After a failure it would ask again at once; the session ends then, or the kind cannot be read.
    stream
        .then(|told| async move {
            if told.is_err() {
                tokio::time::sleep(PROBE_INTERVAL / 10).await;
            }
            told
        })
        .boxed()
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
