//! Reads all providers below the roots, then what a watch says has changed; from the beginning where the server has forgotten
//! what lies between.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::SelectAll;
use tokio::time::Instant;

use super::Config;
use super::client::{Client, Failure};
use super::messages::{DELETE, RangeRequest, WatchCreateRequest, WatchResponse};
use crate::model::Instance;
use crate::naming::Malformed;
use crate::naming::dubbo::{self, Url};
use crate::source::{Link, List, Report, Skipped, Trouble};

/// Keys of one answer.
const PAGE: i64 = 2000;
/// A list is whole each time: the longer it is, the more changes go into one.
const PER_ENTRY: Duration = Duration::from_micros(10);
/// Until it is looked again whether the hub has taken the list before, and how long at most.
const LOOK_AGAIN: Duration = Duration::from_millis(1);
const LATEST: Duration = Duration::from_secs(1);
/// The folder of an interface's providers.
const PROVIDERS: &str = "providers";

/// Folders and the entries in them, by the names of both.
#[derive(Debug, Default, PartialEq)]
struct Held(BTreeMap<String, BTreeMap<String, Result<Instance, Malformed>>>);

impl Held {
    /// Takes a key; tells the folder if that changed.
    fn put(&mut self, root: &str, key: &[u8]) -> Option<String> {
        let (folder, entry) = split(root, key)?;
        let read = instance(&entry);
        let entries = self.0.entry(folder.clone()).or_default();
        let before = entries.insert(entry, read.clone());
        (before != Some(read)).then_some(folder)
    }

    fn remove(&mut self, root: &str, key: &[u8]) -> Option<String> {
        let (folder, entry) = split(root, key)?;
        let entries = self.0.get_mut(&folder)?;
        let gone = entries.remove(&entry).is_some();
        if entries.is_empty() {
            self.0.remove(&folder);
        }
        gone.then_some(folder)
    }

    fn list(&self, folder: &str, certain: bool) -> List {
        let (mut instances, mut skipped) = (Vec::new(), Vec::new());
        for (entry, read) in self.0.get(folder).into_iter().flatten() {
            match read {
                Ok(instance) => instances.push(instance.clone()),
                Err(reason) => skipped.push(Skipped::new(entry, reason)),
            }
        }
        List {
            name: folder.into(),
            instances,
            skipped,
            certain,
        }
    }
}

/// Folder and entry of a provider's key; `None` for every other key.
fn split(root: &str, key: &[u8]) -> Option<(String, String)> {
    let key = String::from_utf8_lossy(key);
    let (interface, rest) = key.strip_prefix(root)?.strip_prefix('/')?.split_once('/')?;
    // An entry that is not encoded has slashes of its own.
    let (category, entry) = rest.split_once('/')?;
    if category != PROVIDERS || entry.is_empty() {
        return None;
    }
    Some((format!("{root}/{interface}/{PROVIDERS}"), entry.to_owned()))
}

fn instance(entry: &str) -> Result<Instance, Malformed> {
    let url = if entry.contains("://") {
        Url::parse(entry)?
    } else {
        Url::decode(entry)?
    };
    dubbo::instance(&url)
}

/// The end of the range of keys that begin with `prefix/`.
fn range_of(root: &str) -> (Vec<u8>, Vec<u8>) {
    // 0 is the character after the slash.
    (
        format!("{root}/").into_bytes(),
        format!("{root}0").into_bytes(),
    )
}

/// Reads until the connection ends.
pub(super) async fn run(config: &Config, link: &Link, client: &Client) -> Failure {
    let mut held = Held::default();
    let mut is_first = true;
    loop {
        let (read, revisions) = match read_all(config, client).await {
            Ok(read) => read,
            Err(failure) if failure.is_gone => continue,
            Err(failure) => return failure,
        };
        let before = std::mem::replace(&mut held, read);
        let folders: BTreeSet<&String> = before.0.keys().chain(held.0.keys()).collect();
        for folder in folders {
            if is_first || before.0.get(folder) != held.0.get(folder) {
                link.report(Report::List(held.list(folder, false))).await;
            }
        }
        if std::mem::take(&mut is_first) {
            link.report(Report::Synced).await;
        }
        if let Err(failure) = follow(link, client, &mut held, &revisions).await
            && !failure.is_gone
        {
            return failure;
        }
    }
}

/// Every root with the revision at which it was read.
type Revisions = Vec<(String, i64)>;

async fn read_all(config: &Config, client: &Client) -> Result<(Held, Revisions), Failure> {
    let mut held = Held::default();
    let mut revisions = Vec::new();
    for root in &config.dubbo_roots {
        let (mut key, range_end) = range_of(root);
        let mut revision = 0;
        loop {
            let request = RangeRequest {
                key,
                range_end: range_end.clone(),
                limit: PAGE,
                // All pages are of one moment.
                revision,
                keys_only: true,
            };
            let page = client.range(request).await?;
            if revision == 0 {
                revision = page.header.map_or(0, |header| header.revision);
            }
            for kv in &page.kvs {
                held.put(root, &kv.key);
            }
            match page.kvs.last() {
                Some(last) if page.more => {
                    key = last.key.clone();
                    key.push(0);
                }
                _ => break,
            }
        }
        revisions.push((root.clone(), revision));
    }
    Ok((held, revisions))
}

/// Follows the watches until one ends; `is_gone` when the server has compacted what it should tell.
async fn follow(
    link: &Link,
    client: &Client,
    held: &mut Held,
    revisions: &Revisions,
) -> Result<(), Failure> {
    let mut watches = SelectAll::new();
    for (root, revision) in revisions {
        let (key, range_end) = range_of(root);
        let create = WatchCreateRequest {
            key,
            range_end,
            start_revision: revision + 1,
            progress_notify: false,
        };
        let events = client.watch(create).await?;
        watches.push(events.map(move |event| (root, event)));
    }
    let mut changed: BTreeSet<String> = BTreeSet::new();
    let mut next_report = Instant::now();
    loop {
        tokio::select! {
            event = watches.next() => {
                let Some((root, event)) = event else {
                    return Err(Failure::new(Trouble::Unreachable, "the watch has ended"));
                };
                let response =
                    event.map_err(|e| Failure::new(Trouble::Unreachable, e.message().to_owned()))?;
                check(&response)?;
                for event in &response.events {
                    let Some(kv) = &event.kv else { continue };
                    changed.extend(if event.kind == DELETE {
                        held.remove(root, &kv.key)
                    } else {
                        held.put(root, &kv.key)
                    });
                }
            }
            () = tokio::time::sleep_until(next_report), if !changed.is_empty() => {
                if link.is_behind() && next_report.elapsed() < LATEST {
                    tokio::time::sleep(LOOK_AGAIN).await;
                    continue;
                }
                let mut entries = 0;
                for folder in std::mem::take(&mut changed) {
                    // The server itself said what went.
                    let list = held.list(&folder, true);
                    entries += list.instances.len();
                    link.report(Report::List(list)).await;
                }
                let entries = u32::try_from(entries).unwrap_or(u32::MAX);
                next_report = Instant::now() + PER_ENTRY * entries;
            }
        }
    }
}

fn check(response: &WatchResponse) -> Result<(), Failure> {
    if !response.canceled {
        return Ok(());
    }
    let mut failure = Failure::new(
        Trouble::Refused,
        format!("the watch was ended: {}", response.cancel_reason),
    );
    failure.is_gone = response.compact_revision > 0;
    Err(failure)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn entries_are_read_encoded_and_plain() {
        let mut held = Held::default();
        let folder = "/dubbo/com.foo.Order/providers";
        for entry in [
            "dubbo%3A%2F%2F10.0.0.1%3A20880%2Fcom.foo.Order%3Fversion%3D1.0",
            "dubbo://10.0.0.2:20880/com.foo.Order?version=1.0",
            "nonsense",
        ] {
            let key = format!("{folder}/{entry}");
            assert_eq!(held.put("/dubbo", key.as_bytes()).as_deref(), Some(folder));
            assert_eq!(held.put("/dubbo", key.as_bytes()), None);
        }
        for key in [
            "/dubbo/com.foo.Order/consumers/x",
            "/dubbo/mapping/a",
            "/other/a/providers/b",
        ] {
            assert_eq!(held.put("/dubbo", key.as_bytes()), None, "{key}");
        }
        let list = held.list(folder, true);
        let read: Vec<_> = list.instances.iter().map(|i| &*i.address).collect();
        assert_eq!(read, ["10.0.0.1", "10.0.0.2"]);
        assert_eq!(list.skipped.len(), 1);
        let key = format!("{folder}/nonsense");
        assert_eq!(
            held.remove("/dubbo", key.as_bytes()).as_deref(),
            Some(folder)
        );
        assert!(held.list(folder, true).skipped.is_empty());
    }

    #[test]
    fn only_a_compacted_watch_is_read_from_the_beginning() {
        let mut response = WatchResponse::default();
        assert!(check(&response).is_ok());
        response.canceled = true;
        assert!(check(&response).is_err_and(|failure| !failure.is_gone));
        response.compact_revision = 7;
        assert!(check(&response).is_err_and(|failure| failure.is_gone));
    }

    proptest! {
        #[test]
        fn nothing_panics(key in "(/dubbo|/|providers|%|\\PC){0,12}") {
            let mut held = Held::default();
            let folder = held.put("/dubbo", key.as_bytes());
            prop_assert_eq!(held.remove("/dubbo", key.as_bytes()), folder);
        }
    }
}
