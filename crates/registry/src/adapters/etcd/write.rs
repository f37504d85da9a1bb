//! Makes true what the hub wants in etcd: a copy is a key below this hub's lease, so that it goes with the hub.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, stream};

use super::Config;
use super::client::{Client, Failure};
use super::messages::PutRequest;
use crate::model::Instance;
use crate::naming::dubbo;
use crate::source::{Link, Report, Trouble, Wanted};

/// Requests under way at a time.
const REQUESTS: usize = 32;

/// The lease, and the copies below it by their keys.
#[derive(Default)]
pub(super) struct Written {
    lease: Option<i64>,
    keys: HashMap<Arc<str>, String>,
    /// The numbers of their writings.
    revisions: HashMap<Arc<str>, u64>,
    /// Keys that may be there and have to go.
    stale: HashSet<String>,
    unfit: HashMap<Arc<str>, String>,
}

/// Writes until the connection ends.
pub(super) async fn run(
    config: &Config,
    link: &Link,
    client: &Client,
    written: &mut Written,
) -> Failure {
    match write(config, link, client, written).await {
        Ok(()) => Failure::new(Trouble::Unreachable, "the hub has ended"),
        Err(failure) => failure,
    }
}

async fn write(
    config: &Config,
    link: &Link,
    client: &Client,
    written: &mut Written,
) -> Result<(), Failure> {
    let mut wanted = link.wanted();
    // Two of three signs may be lost.
    let interval = config.lease_duration() / 3;
    // Another connection knows nothing of what became of the keys meanwhile: all are written again.
    let mut again = true;
    written.unfit.clear();
    loop {
        let now = wanted.borrow_and_update().clone();
        if !now.rests && !now.publish.is_empty() {
            again |= written.keep_lease(config, client).await?;
        }
        let lease = written.lease;
        if !now.rests {
            tokio::select! {
                done = make_true(config, link, client, written, &now, again) => {
                    done?;
                    again = false;
                }
                // Thousands of copies take longer than a lease.
                over = keep(client, lease, interval) => {
                    over?;
                    again = true;
                    continue;
                }
            }
        }
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() {
                return Ok(());
            },
            over = keep(client, lease, interval) => {
                over?;
                again = true;
            }
        }
    }
}

/// Keeps the lease alive until it is over, and everything below it gone.
async fn keep(client: &Client, lease: Option<i64>, interval: Duration) -> Result<(), Failure> {
    let Some(lease) = lease else {
        return std::future::pending().await;
    };
    loop {
        tokio::time::sleep(interval).await;
        if !client.keep_alive(lease).await? {
            return Ok(());
        }
    }
}

async fn make_true(
    config: &Config,
    link: &Link,
    client: &Client,
    written: &mut Written,
    wanted: &Wanted,
    again: bool,
) -> Result<(), Failure> {
    written.publish(config, link, client, wanted, again).await?;
    for (id, instance) in &wanted.withdraw {
        if let Ok(key) = key(config, instance) {
            client.delete(&key).await?;
        }
        link.report(Report::Withdrawn { id: id.clone() }).await;
    }
    Ok(())
}

impl Written {
    /// Makes sure that there is a lease; `true`: it is a new one.
    async fn keep_lease(&mut self, config: &Config, client: &Client) -> Result<bool, Failure> {
        if let Some(lease) = self.lease
            && client.keep_alive(lease).await?
        {
            return Ok(false);
        }
        self.lease = Some(client.grant(config.lease_duration()).await?);
        Ok(true)
    }

    async fn publish(
        &mut self,
        config: &Config,
        link: &Link,
        client: &Client,
        wanted: &Wanted,
        again: bool,
    ) -> Result<(), Failure> {
        let gone = self
            .keys
            .extract_if(|id, _| !wanted.publish.contains_key(id));
        self.stale.extend(gone.map(|(_, key)| key));
        self.revisions
            .retain(|id, _| wanted.publish.contains_key(id));
        let mut missing: Vec<(&Arc<str>, &Instance, String)> = Vec::new();
        for (id, instance) in &wanted.publish {
            match key(config, instance) {
                Ok(key)
                    if !again
                        && self.keys.get(id) == Some(&key)
                        && self.revisions.get(id) == Some(&instance.revision) => {}
                Ok(key) => {
                    self.revisions.insert(id.clone(), instance.revision);
                    let before = self.keys.insert(id.clone(), key.clone());
                    self.stale.extend(before);
                    missing.push((id, instance, key));
                }
                Err(why) => {
                    if self.unfit.get(id) != Some(&why) {
                        self.unfit.insert(id.clone(), why.clone());
                        let (id, result) = (id.clone(), Err(why));
                        link.report(Report::Written { id, result }).await;
                    }
                }
            }
        }
        let lease = self.lease.unwrap_or(0);
        let puts = missing.into_iter().map(|(id, instance, key)| async move {
            let request = PutRequest {
                key: key.into_bytes(),
                value: instance.address.as_bytes().to_vec(),
                lease,
            };
            (id, client.put(request).await)
        });
        let puts: Vec<_> = puts.collect();
        let mut puts = stream::iter(puts).buffer_unordered(REQUESTS);
        while let Some((id, done)) = puts.next().await {
            let result = match done {
                // Others may be permitted.
                Err(failure) if failure.is_denied => {
                    self.keys.remove(id);
                    Err(failure.reason)
                }
                done => Ok(done?),
            };
            let id = id.clone();
            link.report(Report::Written { id, result }).await;
        }
        // The new ones came first: at no time is there none.
        let made: HashSet<&String> = self.keys.values().collect();
        self.stale.retain(|key| !made.contains(key));
        for key in self.stale.clone() {
            client.delete(&key).await?;
            self.stale.remove(&key);
        }
        self.unfit.retain(|id, _| wanted.publish.contains_key(id));
        Ok(())
    }
}

/// The key that says an instance to Dubbo; an error says why there is none.
fn key(config: &Config, instance: &Instance) -> Result<String, String> {
    let service = &instance.service;
    if !matches!(&*service.protocol, "dubbo" | "tri" | "rest") {
        return Err(format!(
            "etcd has no layout here for protocol {}",
            service.protocol
        ));
    }
    let root = config.dubbo_roots.first().map_or("", String::as_str);
    let entry = dubbo::url(instance).encode();
    Ok(format!("{root}/{}/providers/{entry}", service.name))
}
