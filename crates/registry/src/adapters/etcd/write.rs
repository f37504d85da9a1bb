//! Makes true what the hub wants in etcd: a copy is a key below this hub's lease, so that it goes with the hub.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use super::Config;
use super::client::{Client, Failure};
use super::messages::PutRequest;
use crate::model::Instance;
use crate::naming::dubbo;
use crate::source::{Link, Report, Trouble, Wanted};

/// The lease, and the copies below it by their keys.
#[derive(Default)]
pub(super) struct Written {
    lease: Option<i64>,
    keys: HashMap<Arc<str>, String>,
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
        if !now.publish.is_empty() {
            let is_new = written.keep_lease(config, client).await?;
            again |= is_new;
        }
        written.publish(config, link, client, &now, again).await?;
        again = false;
        for (id, instance) in &now.withdraw {
            if let Ok(key) = key(config, instance) {
                client.delete(&key).await?;
            }
            link.report(Report::Withdrawn { id: id.clone() }).await;
        }
        again |= keep(client, written, &mut wanted, interval).await?;
        if wanted.has_changed().is_err() {
            return Ok(());
        }
    }
}

/// Keeps the lease until something else is wanted; `true`: the lease is over and everything below it gone.
async fn keep(
    client: &Client,
    written: &mut Written,
    wanted: &mut tokio::sync::watch::Receiver<Arc<Wanted>>,
    interval: Duration,
) -> Result<bool, Failure> {
    loop {
        tokio::select! {
            // Whether the hub has ended is asked by the caller.
            _ = wanted.changed() => return Ok(false),
            () = tokio::time::sleep(interval) => {}
        }
        if let Some(lease) = written.lease
            && !client.keep_alive(lease).await?
        {
            written.lease = None;
            return Ok(true);
        }
    }
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
        let mut made: HashMap<Arc<str>, String> = HashMap::new();
        for (id, instance) in &wanted.publish {
            let key = match key(config, instance) {
                Ok(key) => key,
                Err(why) => {
                    if self.unfit.get(id) != Some(&why) {
                        self.unfit.insert(id.clone(), why.clone());
                        let (id, result) = (id.clone(), Err(why));
                        link.report(Report::Written { id, result }).await;
                    }
                    continue;
                }
            };
            if !again && self.keys.get(id) == Some(&key) {
                made.insert(id.clone(), key);
                continue;
            }
            let request = PutRequest {
                key: key.clone().into_bytes(),
                value: instance.address.as_bytes().to_vec(),
                lease: self.lease.unwrap_or(0),
            };
            let result = match client.put(request).await {
                // Others may be permitted.
                Err(failure) if failure.is_denied => Err(failure.reason),
                done => {
                    done?;
                    made.insert(id.clone(), key);
                    Ok(())
                }
            };
            let id = id.clone();
            link.report(Report::Written { id, result }).await;
        }
        // The new ones came first: at no time is there none.
        let before = std::mem::replace(&mut self.keys, made);
        let made: HashSet<&String> = self.keys.values().collect();
        for key in before.values().filter(|key| !made.contains(key)) {
            client.delete(key).await?;
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
