//! Subscribes every id that there is, and tells the hub each push: the whole list of an id in one data centre.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use api::sofaregistry::session::v1 as pb;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::catalog::{Catalog, Catalogs};
use super::push::{ACCEPTED, Push, Segment, Zones};
use super::session::{Client, Failure, Told};
use super::{Config, POLL_INTERVAL, UNREGISTER};
use crate::model::Instance;
use crate::sofaregistry::{DEFAULT_ZONE, DataInfoId, instance};
use crate::source::{Link, List, Report, Skipped};

/// Subscriptions under way at a time.
const REQUESTS: usize = 128;
/// Until a subscription that the server did not take, or took and pushed nothing for, is made again.
const AGAIN: Duration = Duration::from_secs(30);
/// How often it is looked for such.
const LOOK: Duration = Duration::from_secs(2);
/// Publishers that lost their server are back after so long.
const RETURN: Duration = Duration::from_secs(120);
/// Names the catalogue among the lists.
const CATALOG: &str = "catalog";
/// Labels that say where an instance is.
const ZONE: &str = "zone";
const DATA_CENTER: &str = "dataCenter";

/// What outlives a connection: which ids there are, and what each held.
#[derive(Default)]
pub(super) struct Memory {
    known: HashMap<Arc<DataInfoId>, Known>,
}

/// An id that is subscribed.
#[derive(Default)]
struct Known {
    regist_id: String,
    version: i64,
    /// Since when the server owes an answer or a push; `None` when it owes none.
    owes_since: Option<Instant>,
    segments: Vec<Seen>,
}

/// What an id has in one data centre.
struct Seen {
    segment: String,
    /// Of the last push of this connection.
    version: Option<i64>,
    /// Endpoints as numbers, in order.
    entries: Vec<u64>,
    /// Endpoints of the connection before that are not back yet.
    missing: Vec<u64>,
}

impl Memory {
    /// A connection begins: everything is owed anew.
    fn begin(&mut self) -> VecDeque<Arc<DataInfoId>> {
        for known in self.known.values_mut() {
            known.owes_since = Some(Instant::now());
            known.regist_id.clear();
            for seen in &mut known.segments {
                seen.version = None;
                let before = std::mem::take(&mut seen.missing);
                seen.missing.clone_from(&seen.entries);
                seen.missing.extend(before);
                seen.missing.sort_unstable();
                seen.missing.dedup();
            }
        }
        self.known.keys().cloned().collect()
    }
}

struct Reader<'a> {
    config: &'a Config,
    link: &'a Link,
    client: &'a Client,
    known: &'a mut HashMap<Arc<DataInfoId>, Known>,
    queue: VecDeque<Arc<DataInfoId>>,
    /// Ids without a push in this connection.
    owed: HashSet<Arc<DataInfoId>>,
    /// Before the numbers of this connection's subscriptions.
    prefix: String,
    number: u64,
    since: Instant,
    shown: Vec<String>,
    catalog_is_whole: bool,
    catalog_failures: BTreeMap<String, String>,
    synced: bool,
}

/// A request to be sent.
struct Request {
    id: Arc<DataInfoId>,
    subscriber: pb::SubscriberRegister,
}

/// Reads until the connection ends.
pub(super) async fn run(
    config: &Config,
    link: &Link,
    client: &Client,
    memory: &mut Memory,
    catalogs: &Catalogs,
    mut told: mpsc::Receiver<Told>,
    mut shown: watch::Receiver<Vec<String>>,
) -> Failure {
    let queue = memory.begin();
    let mut reader = Reader {
        config,
        link,
        client,
        known: &mut memory.known,
        owed: queue.iter().cloned().collect(),
        queue,
        prefix: regist_prefix(),
        number: 0,
        since: Instant::now(),
        shown: shown.borrow_and_update().clone(),
        catalog_is_whole: false,
        catalog_failures: BTreeMap::new(),
        synced: false,
    };
    let interval = config.poll_interval.map_or(POLL_INTERVAL, |i| i.0);
    let mut polling = Box::pin(poll(catalogs, Duration::ZERO));
    let mut look = tokio::time::interval(LOOK);
    let mut under_way = FuturesUnordered::new();
    loop {
        while under_way.len() < REQUESTS
            && let Some(id) = reader.queue.pop_front()
        {
            if let Some(Request { id, subscriber }) = reader.subscribe(id) {
                under_way.push(async move {
                    let answer = client.subscribe(&subscriber).await;
                    (id, answer)
                });
            }
        }
        if !reader.synced && reader.catalog_is_whole && reader.owed.is_empty() {
            reader.synced = true;
            link.report(Report::Synced).await;
        }
        tokio::select! {
            event = told.recv() => match event {
                Some(Told::Push(push)) => reader.push(push).await,
                Some(Told::Unreadable(id, why)) => reader.unreadable(id, &why.to_string()).await,
                // Why is told by the connection itself.
                None => std::future::pending().await,
            },
            Some((id, answer)) = under_way.next(), if !under_way.is_empty() => {
                reader.answered(&id, answer).await;
            }
            catalog = &mut polling => {
                reader.take_catalog(catalog).await;
                polling = Box::pin(poll(catalogs, interval));
            }
            _ = look.tick() => reader.ask_again(),
            Ok(()) = shown.changed() => {
                let now = shown.borrow_and_update().clone();
                reader.show(now).await;
            }
        }
    }
}

async fn poll(catalogs: &Catalogs, wait: Duration) -> Catalog {
    tokio::time::sleep(wait).await;
    catalogs.read().await
}

/// An identity of subscriptions or publications that no other connection has: what is cleaned up of the one before must not
/// hit this one's.
pub(super) fn regist_prefix() -> String {
    format!("{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..))
}

impl Reader<'_> {
    /// The next request for an id; `None` for one that is not wanted any more.
    fn subscribe(&mut self, id: Arc<DataInfoId>) -> Option<Request> {
        let known = self.known.get_mut(&id)?;
        if known.regist_id.is_empty() {
            self.number += 1;
            known.regist_id = format!("{}-{}", self.prefix, self.number);
            known.version = 0;
        }
        known.version += 1;
        known.owes_since = Some(Instant::now());
        let base = self.config.base(&id, &known.regist_id, known.version);
        Some(Request {
            id,
            subscriber: subscriber(base),
        })
    }

    async fn answered(
        &mut self,
        id: &Arc<DataInfoId>,
        answer: Result<pb::RegisterResponse, String>,
    ) {
        match answer {
            Ok(answer) if answer.refused => {
                if let Some(known) = self.known.get_mut(id) {
                    known.owes_since = None;
                }
                let why = format!("the server refuses the subscription: {}", answer.message);
                self.unreadable(Some(DataInfoId::clone(id)), &why).await;
            }
            // One that the server did not take is made again when nothing is pushed.
            _ => {}
        }
    }

    /// Subscribes anew what the server owes for too long.
    fn ask_again(&mut self) {
        for (id, known) in self.known.iter_mut() {
            let is_late = known
                .owes_since
                .is_some_and(|since| since.elapsed() > AGAIN);
            if is_late && !known.regist_id.is_empty() {
                known.regist_id.clear();
                known.owes_since = Some(Instant::now());
                self.queue.push_back(id.clone());
            }
        }
    }

    async fn take_catalog(&mut self, catalog: Catalog) {
        let Catalog { ids, failures } = catalog;
        if failures.is_empty() {
            self.catalog_is_whole = true;
            self.forget(&ids);
        }
        for id in ids {
            if !self.known.contains_key(&id) {
                let id = Arc::new(id);
                self.known.insert(id.clone(), Known::default());
                self.queue.push_back(id.clone());
                if !self.synced {
                    self.owed.insert(id);
                }
            }
        }
        if failures == self.catalog_failures {
            return;
        }
        let named = failures.iter().map(|(url, why)| Skipped::new(url, why));
        let list = List {
            name: CATALOG.into(),
            instances: Vec::new(),
            skipped: named.collect(),
            certain: false,
        };
        self.catalog_failures = failures;
        self.link.report(Report::List(list)).await;
    }

    /// Ends the subscriptions of ids that are nowhere any more.
    fn forget(&mut self, ids: &std::collections::BTreeSet<DataInfoId>) {
        let gone = self.known.extract_if(|id, known| {
            let is_empty = known.segments.iter().all(|seen| seen.entries.is_empty());
            let is_answered = known.owes_since.is_none() && !known.regist_id.is_empty();
            is_empty && is_answered && !ids.contains(&**id)
        });
        for (id, known) in gone.collect::<Vec<_>>() {
            let mut base = self
                .config
                .base(&id, &known.regist_id, known.version.saturating_add(1));
            UNREGISTER.clone_into(&mut base.event_type);
            let (client, subscriber) = (self.client.clone(), subscriber(base));
            // A subscription that stays because this is lost costs little, and ends with the connection.
            tokio::spawn(async move { client.subscribe(&subscriber).await });
        }
    }

    async fn push(&mut self, push: Push) {
        let Some((id, _)) = self.known.get_key_value(&push.id) else {
            return;
        };
        let id = id.clone();
        let mut given: HashSet<String> = HashSet::new();
        for segment in push.segments {
            if !self.shown.is_empty() && !self.shown.contains(&segment.name) {
                continue;
            }
            given.insert(segment.name.clone());
            self.segment(&id, segment).await;
        }
        if push.is_of_all {
            self.remove_segments(&id, |name| !given.contains(name))
                .await;
        }
        self.is_given(&id);
    }

    fn is_given(&mut self, id: &Arc<DataInfoId>) {
        self.owed.remove(id);
        if let Some(known) = self.known.get_mut(id) {
            known.owes_since = None;
        }
    }

    async fn segment(&mut self, id: &Arc<DataInfoId>, segment: Segment) {
        let name = list_name(&segment.name, id);
        let zones = match segment.zones {
            Ok(zones) => zones,
            Err(why) => {
                let skipped = Skipped::new("push", &why);
                self.link.report(Report::Unread { name, skipped }).await;
                return;
            }
        };
        let is_settled = self.since.elapsed() > RETURN;
        let Some(known) = self.known.get_mut(id) else {
            return;
        };
        let at = known
            .segments
            .iter()
            .position(|s| s.segment == segment.name);
        let at = at.unwrap_or_else(|| {
            known.segments.push(Seen {
                segment: segment.name.clone(),
                version: None,
                entries: Vec::new(),
                missing: Vec::new(),
            });
            known.segments.len() - 1
        });
        let Some(seen) = known.segments.get_mut(at) else {
            return;
        };
        // A push that was repeated or overtaken.
        if seen
            .version
            .is_some_and(|version| segment.version <= version)
        {
            return;
        }
        let is_first = seen.version.replace(segment.version).is_none();
        let (instances, skipped) = self::instances(self.config, id, &segment.name, &zones);
        let mut entries: Vec<u64> = instances.iter().map(number).collect();
        entries.sort_unstable();
        entries.dedup();
        let certain = seen.replace(entries, is_first, is_settled);
        let list = List {
            name,
            instances,
            skipped,
            certain,
        };
        self.link.report(Report::List(list)).await;
    }

    /// A push that cannot be read leaves what was known.
    async fn unreadable(&mut self, id: Option<DataInfoId>, why: &str) {
        let known = id.and_then(|id| self.known.get_key_value(&id));
        let Some((id, known)) = known else {
            tracing::warn!(registry = self.link.name(), why, "a push cannot be read");
            return;
        };
        let id = id.clone();
        let mut segments: Vec<String> = known.segments.iter().map(|s| s.segment.clone()).collect();
        if segments.is_empty() {
            segments.push(self.config.data_center.clone());
        }
        for segment in segments {
            let name = list_name(&segment, &id);
            let skipped = Skipped::new("push", why);
            self.link.report(Report::Unread { name, skipped }).await;
        }
        self.is_given(&id);
    }

    /// The data centres whose data are shown are these from now on.
    async fn show(&mut self, shown: Vec<String>) {
        self.shown = shown;
        let ids: Vec<Arc<DataInfoId>> = self.known.keys().cloned().collect();
        for id in ids {
            if !self.shown.is_empty() {
                let shown = self.shown.clone();
                self.remove_segments(&id, |name| !shown.iter().any(|s| s == name))
                    .await;
            }
            // What was not shown so far is pushed to a new subscription.
            if let Some(known) = self.known.get_mut(&id) {
                known.regist_id.clear();
                known.owes_since = Some(Instant::now());
            }
            self.queue.push_back(id);
        }
    }

    async fn remove_segments(&mut self, id: &Arc<DataInfoId>, is_gone: impl Fn(&str) -> bool) {
        let Some(known) = self.known.get_mut(id) else {
            return;
        };
        let gone = known.segments.extract_if(.., |seen| is_gone(&seen.segment));
        for seen in gone.collect::<Vec<_>>() {
            let list = List {
                name: list_name(&seen.segment, id),
                instances: Vec::new(),
                skipped: Vec::new(),
                certain: false,
            };
            self.link.report(Report::List(list)).await;
        }
    }
}

impl Seen {
    /// Takes the endpoints of a push. Whether the server said with it that what is missing was taken out: a push is a whole
    /// list, but publishers that lost their server are missing until they have found another one.
    fn replace(&mut self, entries: Vec<u64>, is_first: bool, is_settled: bool) -> bool {
        self.missing
            .retain(|entry| !is_settled && entries.binary_search(entry).is_err());
        let is_gone = |entry: &u64| entries.binary_search(entry).is_err();
        let certain = !is_first && self.missing.is_empty() && self.entries.iter().any(is_gone);
        self.entries = entries;
        certain
    }
}

fn subscriber(base: pb::BaseRegister) -> pb::SubscriberRegister {
    pb::SubscriberRegister {
        scope: "global".to_owned(),
        base_register: Some(base),
        accept_encoding: ACCEPTED.to_owned(),
        accept_multi: true,
    }
}

fn list_name(segment: &str, id: &DataInfoId) -> Arc<str> {
    format!("{segment}/{id}").into()
}

/// What is published, with where it is as labels, unless the publisher said that itself.
fn instances(
    config: &Config,
    id: &DataInfoId,
    segment: &str,
    zones: &Zones,
) -> (Vec<Instance>, Vec<Skipped>) {
    let (mut instances, mut skipped) = (Vec::new(), Vec::new());
    let mut known: HashSet<&str> = HashSet::new();
    for (zone, boxes) in zones {
        for data in boxes {
            // One that registered again is there twice until its old connection is cleaned up.
            if !known.insert(data) {
                continue;
            }
            match instance(&id.data_id, data) {
                Ok(instance) => instances.push(located(instance, config, segment, zone)),
                Err(error) => skipped.push(Skipped::new(data, &error)),
            }
        }
    }
    (instances, skipped)
}

fn located(mut instance: Instance, config: &Config, segment: &str, zone: &str) -> Instance {
    let mut labels = Vec::new();
    if zone != DEFAULT_ZONE && !zone.is_empty() {
        labels.push((ZONE, zone));
    }
    if segment != config.data_center && !segment.is_empty() {
        labels.push((DATA_CENTER, segment));
    }
    labels.retain(|(key, _)| instance.metadata.get(key).is_none());
    if !labels.is_empty() {
        instance.metadata = instance.metadata.iter().chain(labels).collect();
    }
    instance
}

/// An endpoint, whatever else is said of it.
fn number(instance: &Instance) -> u64 {
    let mut hasher = DefaultHasher::new();
    instance.service.hash(&mut hasher);
    instance.default_id().hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(entries: &[u64], missing: &[u64]) -> Seen {
        Seen {
            segment: String::new(),
            version: Some(1),
            entries: entries.to_vec(),
            missing: missing.to_vec(),
        }
    }

    #[test]
    fn only_what_was_seen_to_go_is_certainly_gone() {
        // The first push of a connection says nothing of what went.
        assert!(!seen(&[1, 2], &[1, 2]).replace(vec![], true, false));
        // Neither do those while not all are back.
        let mut seen = seen(&[], &[1, 2]);
        assert!(!seen.replace(vec![1], false, false));
        assert!(!seen.replace(vec![], false, false));
        assert!(!seen.replace(vec![1, 2, 3], false, false));
        // All are back: what is missing now was taken out.
        assert!(seen.replace(vec![1, 3], false, false));
        assert!(!seen.replace(vec![1, 3, 4], false, false));
        // After a time nobody is waited for.
        seen.missing = vec![9];
        assert!(seen.replace(vec![], false, true));
    }

    #[test]
    fn zones_and_data_centres_are_labels() {
        let config = Config::default();
        let zones: Zones = [
            (
                "DEFAULT_ZONE",
                vec!["10.0.0.1:1?zone=own", "10.0.0.2:1", "x"],
            ),
            ("EAST", vec!["10.0.0.3:1", "10.0.0.2:1"]),
        ]
        .into_iter()
        .map(|(zone, data)| {
            let data = data.into_iter().map(ToOwned::to_owned).collect();
            (zone.to_owned(), data)
        })
        .collect();
        let id = DataInfoId {
            data_id: "a:1.0@DEFAULT".into(),
            instance_id: "I".into(),
            group: "SOFA".into(),
        };
        let (found, skipped) = instances(&config, &id, "other", &zones);
        let labels: Vec<_> = found
            .iter()
            .map(|i| (i.metadata.get(ZONE), i.metadata.get(DATA_CENTER)))
            .collect();
        let other = Some("other");
        assert_eq!(
            labels,
            [(Some("own"), other), (None, other), (Some("EAST"), other)]
        );
        assert_eq!(skipped.len(), 1);
    }
}
