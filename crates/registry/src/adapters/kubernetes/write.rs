//! Writes copies as Services and EndpointSlices, and touches only what is marked as this mesh's.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{ApiResource, DeleteParams, DynamicObject, ListParams, PostParams, Preconditions};
use kube::{Api, Client, ResourceExt};
use serde_json::Value;

use super::Config;
use super::copies::{self, MANAGED_BY};
use crate::backoff::Backoff;
use crate::kubernetes::{FIELD_MANAGER, Failure, answered};
use crate::model::{Instance, ServiceKey};
use crate::source::{Link, Report, Wanted};

/// After this long everything is compared again: others may have changed it.
const INTERVAL: Duration = Duration::from_secs(60);
/// Until what failed is tried again: at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_secs(2), INTERVAL);
const CONFLICT: u16 = 409;
const NOT_FOUND: u16 = 404;
/// Objects of one answer.
const PAGE: u32 = 500;

/// A service's copies by their ids.
type Copies = BTreeMap<Arc<str>, Arc<Instance>>;

/// What is in the cluster of one service.
#[derive(Default)]
struct Actual {
    service: Option<DynamicObject>,
    slices: BTreeMap<String, DynamicObject>,
}

/// What was last told to the hub of each copy: whether it was withdrawn, or else written.
#[derive(Default)]
pub(super) struct Told(BTreeMap<Arc<str>, (bool, Result<(), String>)>);

/// Until the hub has ended.
pub(super) async fn run(config: &Config, link: &Link, client: &Client, told: &mut Told) {
    let mut wanted = link.wanted();
    // The hub forgets results with its source's configuration, and a new session may be with another cluster.
    told.0.clear();
    let mut retry = Backoff::new(RETRY.0, RETRY.1);
    loop {
        let now = wanted.borrow_and_update().clone();
        if now.rests {
            match wanted.changed().await {
                Ok(()) => continue,
                Err(_) => return,
            }
        }
        told.0
            .retain(|id, _| now.publish.contains_key(id) || now.withdraw.contains_key(id));
        let is_done = match &config.write_namespace {
            Some(namespace) => Writer::new(client, namespace).round(&now, link, told).await,
            None => {
                let reason = "writeNamespace does not say where copies are to be";
                for id in now.publish.keys() {
                    tell(link, told, id, Err(reason.to_owned()), false).await;
                }
                true
            }
        };
        let pause = match is_done {
            true => INTERVAL,
            false => retry.next(),
        };
        match tokio::time::timeout(pause, wanted.changed()).await {
            // Without a sender the hub is about to drop this.
            Ok(Err(_)) => return,
            Ok(Ok(())) => retry.reset(),
            Err(_) if is_done => retry.reset(),
            Err(_) => {}
        }
    }
}

async fn tell(
    link: &Link,
    told: &mut Told,
    id: &Arc<str>,
    result: Result<(), String>,
    is_withdrawn: bool,
) {
    let news = (is_withdrawn, result.clone());
    if told.0.get(id) == Some(&news) {
        return;
    }
    told.0.insert(id.clone(), news);
    let id = id.clone();
    let report = match (is_withdrawn, &result) {
        (true, Ok(())) => Report::Withdrawn { id },
        _ => Report::Written { id, result },
    };
    link.report(report).await;
}

struct Writer {
    services: Api<DynamicObject>,
    slices: Api<DynamicObject>,
}

impl Writer {
    fn new(client: &Client, namespace: &str) -> Writer {
        let api = |resource| Api::namespaced_with(client.clone(), namespace, &resource);
        Writer {
            services: api(ApiResource::erase::<Service>(&())),
            slices: api(ApiResource::erase::<EndpointSlice>(&())),
        }
    }

    /// Makes what is there what it should be. Returns whether it is.
    async fn round(&self, wanted: &Wanted, link: &Link, told: &mut Told) -> bool {
        let mut by_service: BTreeMap<ServiceKey, (Copies, BTreeSet<Arc<str>>)> = BTreeMap::new();
        for (id, copy) in &wanted.publish {
            if let Err(reason) = copies::check(copy) {
                tell(link, told, id, Err(reason), false).await;
                continue;
            }
            let of = by_service.entry(copy.service.clone()).or_default();
            of.0.insert(id.clone(), copy.clone());
        }
        for (id, copy) in &wanted.withdraw {
            let of = by_service.entry(copy.service.clone()).or_default();
            of.1.insert(id.clone());
        }
        if by_service.is_empty() {
            return true;
        }
        let mut all = match self.actual().await {
            Ok(all) => all,
            Err(failure) => {
                for id in wanted.publish.keys() {
                    tell(link, told, id, Err(failure.reason.clone()), false).await;
                }
                return false;
            }
        };
        let mut is_done = true;
        for (key, (publish, withdraw)) in by_service {
            let actual = all.remove(&key).unwrap_or_default();
            let result = self.service(&key, &publish, &withdraw, actual).await;
            let result = result.map_err(|failure| failure.reason);
            is_done &= result.is_ok();
            for id in publish.keys() {
                tell(link, told, id, result.clone(), false).await;
            }
            for id in withdraw.iter().filter(|_| result.is_ok()) {
                tell(link, told, id, Ok(()), true).await;
            }
        }
        is_done
    }

    /// The objects of this mesh, by their services.
    async fn actual(&self) -> Result<BTreeMap<ServiceKey, Actual>, Failure> {
        let mut all: BTreeMap<ServiceKey, Actual> = BTreeMap::new();
        for object in list(&self.services).await? {
            if let Some(key) = copies::service_of(object.annotations()) {
                all.entry(key).or_default().service = Some(object);
            }
        }
        for object in list(&self.slices).await? {
            if let Some(key) = copies::service_of(object.annotations()) {
                let slices = &mut all.entry(key).or_default().slices;
                slices.insert(object.name_any(), object);
            }
        }
        Ok(all)
    }

    async fn service(
        &self,
        key: &ServiceKey,
        publish: &Copies,
        withdraw: &BTreeSet<Arc<str>>,
        actual: Actual,
    ) -> Result<(), Failure> {
        // What is neither wanted nor to go may be another hub's, and stays.
        let mut copies: Copies = BTreeMap::new();
        for slice in actual.slices.values() {
            if let Some(Ok(kept)) = copies::read(slice.annotations()) {
                copies.extend(
                    kept.into_iter()
                        .map(|copy| (copy.id.clone(), Arc::new(copy))),
                );
            }
        }
        copies.retain(|id, _| !withdraw.contains(id));
        for (id, copy) in publish {
            let copy = Instance {
                id: id.clone(),
                ..copy.as_ref().clone()
            };
            copies.insert(id.clone(), Arc::new(copy));
        }
        let slices = copies::slices(key, &copies);
        if !copies.is_empty() && actual.service.is_none() {
            self.create(&self.services, &copies::service(key)).await?;
        }
        for (name, slice) in &slices {
            match actual.slices.get(name) {
                None => self.create(&self.slices, slice).await?,
                Some(there) if is_same(there, slice) => {}
                Some(there) => {
                    let mut slice = slice.clone();
                    // Only in the place of what was read: another hub may have changed it.
                    slice["metadata"]["resourceVersion"] = there.resource_version().into();
                    let slice = object(&slice)?;
                    answered(self.slices.replace(name, &parameters(), &slice)).await?;
                }
            }
        }
        for (name, there) in &actual.slices {
            if !slices.contains_key(name) {
                delete(&self.slices, name, there).await?;
            }
        }
        if let Some(there) = actual.service.filter(|_| copies.is_empty()) {
            delete(&self.services, &there.name_any(), &there).await?;
        }
        Ok(())
    }

    async fn create(&self, api: &Api<DynamicObject>, value: &Value) -> Result<(), Failure> {
        let object = object(value)?;
        match answered(api.create(&parameters(), &object)).await {
            Err(failure) if failure.code == CONFLICT => Err(Failure {
                reason: format!(
                    "{} is already there, and not this mesh's: {}",
                    object.name_any(),
                    failure.reason
                ),
                ..failure
            }),
            other => other.map(|_| ()),
        }
    }
}

async fn list(api: &Api<DynamicObject>) -> Result<Vec<DynamicObject>, Failure> {
    let selector = format!("{}={}", MANAGED_BY.0, MANAGED_BY.1);
    let mut parameters = ListParams::default().labels(&selector).limit(PAGE);
    let mut objects = Vec::new();
    loop {
        let page = answered(api.list(&parameters)).await?;
        objects.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => parameters = parameters.continue_token(&token),
            None => return Ok(objects),
        }
    }
}

fn parameters() -> PostParams {
    PostParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PostParams::default()
    }
}

fn object(value: &Value) -> Result<DynamicObject, Failure> {
    serde_json::from_value(value.clone()).map_err(|e| Failure::of(&kube::Error::SerdeError(e)))
}

/// Whether a slice says already what it should. Fields that the server adds do not matter.
fn is_same(there: &DynamicObject, wanted: &Value) -> bool {
    let same = |field: &str| there.data.get(field) == wanted.get(field);
    let annotations = &wanted["metadata"]["annotations"];
    let is_annotated = annotations.as_object().is_some_and(|wanted| {
        wanted
            .iter()
            .all(|(key, value)| there.annotations().get(key).map(String::as_str) == value.as_str())
    });
    is_annotated && same("endpoints") && same("ports") && same("addressType")
}

/// Deletes the very object that was read; one that is gone is as good as deleted.
async fn delete(
    api: &Api<DynamicObject>,
    name: &str,
    there: &DynamicObject,
) -> Result<(), Failure> {
    let parameters = DeleteParams {
        preconditions: Some(Preconditions {
            uid: there.uid(),
            resource_version: there.resource_version(),
        }),
        ..DeleteParams::default()
    };
    match answered(api.delete(name, &parameters)).await {
        Err(failure) if failure.code == NOT_FOUND => Ok(()),
        other => other.map(|_| ()),
    }
}
