//! Makes true what the hub wants in Eureka: a copy is a lease that is renewed, so that it goes with the hub.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::{StreamExt, stream};
use tokio::time::Instant;

use super::Config;
use super::peer::Peer;
use crate::eureka::info::Info;
use crate::eureka::model;
use crate::model::Instance;
use crate::source::{Link, Report, Wanted};

/// Requests under way at a time.
const REQUESTS: usize = 16;
/// Until a copy that the server did not take is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// A copy that is to be there.
struct Copy {
    instance: Arc<Instance>,
    info: Info,
    /// The server has taken it as it is.
    registered: bool,
    /// When the server has to hear of it next.
    due: Instant,
    reported: Option<Result<(), String>>,
}

/// An instance that has to go.
struct Going {
    app: String,
    instance: String,
    /// The hub waits for it under this name.
    withdrawn: Option<Arc<str>>,
}

impl Going {
    fn of(info: &Info) -> Going {
        Going {
            app: info.app.clone(),
            instance: info.id.clone(),
            withdrawn: None,
        }
    }
}

/// The copies and the server's answers; it outlives the connection to one peer.
#[derive(Default)]
pub(super) struct Written {
    copies: HashMap<Arc<str>, Copy>,
    going: Vec<Going>,
    unfit: HashMap<Arc<str>, String>,
}

/// Writes until the hub ends.
pub(super) async fn run(config: &Config, link: &Link, peer: &Peer, written: &mut Written) {
    let mut wanted = link.wanted();
    // After a reconnect the hub asks anew.
    for copy in written.copies.values_mut() {
        copy.reported = None;
        copy.due = Instant::now();
    }
    written.unfit.clear();
    loop {
        let now = wanted.borrow_and_update().clone();
        written.take(config, link, &now).await;
        written.cancel(link, peer).await;
        loop {
            let next = written.renew(config, link, peer).await;
            tokio::select! {
                changed = wanted.changed() => match changed {
                    Ok(()) => break,
                    Err(_) => return,
                },
                () = tokio::time::sleep_until(next) => {}
            }
            written.cancel(link, peer).await;
        }
    }
}

impl Written {
    /// Compares what is there with what is wanted.
    async fn take(&mut self, config: &Config, link: &Link, wanted: &Wanted) {
        let gone = self
            .copies
            .extract_if(|id, _| !wanted.publish.contains_key(id));
        self.going
            .extend(gone.map(|(_, copy)| Going::of(&copy.info)));
        self.going.retain(|going| going.withdrawn.is_none());
        let withdrawn = wanted.withdraw.iter().map(|(id, instance)| Going {
            app: model::app(&instance.service),
            instance: instance_id(id),
            withdrawn: Some(id.clone()),
        });
        self.going.extend(withdrawn);
        self.unfit.retain(|id, _| wanted.publish.contains_key(id));
        for (id, instance) in &wanted.publish {
            let known = self.copies.get(id);
            if known.is_some_and(|copy| copy.instance.same_content(instance)) {
                continue;
            }
            if !model::is_shown(&instance.service) {
                let why = format!(
                    "Eureka has no form for protocol {}",
                    instance.service.protocol
                );
                if self.unfit.get(id) != Some(&why) {
                    self.unfit.insert(id.clone(), why.clone());
                    let (id, result) = (id.clone(), Err(why));
                    link.report(Report::Written { id, result }).await;
                }
                continue;
            }
            let info = info(config, id, instance);
            if let Some(before) = known
                && (before.info.app != info.app || before.info.id != info.id)
            {
                self.going.push(Going::of(&before.info));
            }
            let copy = Copy {
                instance: instance.clone(),
                info,
                registered: false,
                due: Instant::now(),
                reported: None,
            };
            self.copies.insert(id.clone(), copy);
        }
    }

    /// Takes out what has to go; what the server does not answer is tried again.
    async fn cancel(&mut self, link: &Link, peer: &Peer) {
        let going = std::mem::take(&mut self.going);
        let cancelled = stream::iter(going).map(|going| async move {
            if peer.cancel(&going.app, &going.instance).await.is_err() {
                return Some(going);
            }
            if let Some(id) = going.withdrawn {
                link.report(Report::Withdrawn { id }).await;
            }
            None
        });
        let left = cancelled.buffer_unordered(REQUESTS);
        self.going = left.filter_map(|left| async { left }).collect().await;
    }

    /// Registers and renews what is due, and tells when the next is.
    async fn renew(&mut self, config: &Config, link: &Link, peer: &Peer) -> Instant {
        let now = Instant::now();
        // A third of the lease, so that two requests can be lost.
        let interval = config.lease_duration() / 3;
        let due = self.copies.iter_mut().filter(|(_, copy)| copy.due <= now);
        let asked = due.map(|(id, copy)| async move {
            let result = tell(peer, &copy.info, copy.registered).await;
            copy.registered = result.is_ok();
            copy.due = Instant::now() + if result.is_ok() { interval } else { RETRY };
            if copy.reported.as_ref() == Some(&result) {
                return;
            }
            copy.reported = Some(result.clone());
            let id = id.clone();
            link.report(Report::Written { id, result }).await;
        });
        let asked: Vec<_> = asked.collect();
        stream::iter(asked)
            .buffer_unordered(REQUESTS)
            .collect::<()>()
            .await;
        let next = self.copies.values().map(|copy| copy.due).min();
        let retry = (!self.going.is_empty()).then(|| Instant::now() + RETRY);
        let next = next.into_iter().chain(retry).min();
        next.unwrap_or_else(|| Instant::now() + interval)
    }
}

async fn tell(peer: &Peer, info: &Info, registered: bool) -> Result<(), String> {
    if registered
        && peer
            .renew(&info.app, &info.id, info.status, info.last_dirty_ms)
            .await?
    {
        return Ok(());
    }
    peer.register(info).await
}

/// A copy as it is registered.
fn info(config: &Config, id: &str, instance: &Instance) -> Info {
    let mut info = model::info(instance);
    info.id = instance_id(id);
    // Clients call by this name: that of the original may be known elsewhere only.
    info.host_name = instance.address.to_string();
    let lease = config.lease_duration();
    info.lease.duration_secs = lease.as_secs();
    info.lease.renewal_secs = (lease / 3).as_secs().max(1);
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(0));
    info.last_dirty_ms = now;
    info.last_updated_ms = now;
    info
}

/// An id that can stand in a path: servers refuse slashes and what is not ASCII there, encoded or not.
fn instance_id(id: &str) -> String {
    let keeps =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | ':' | '_' | '-' | '@' | '~');
    if id.chars().all(keeps) {
        return id.to_owned();
    }
    // What was replaced could make two ids one: a number of the whole (FNV-1a) tells them apart.
    let number = id.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let kept: String = id.chars().map(|c| if keeps(c) { c } else { '_' }).collect();
    format!("{kept}-{number:016x}")
}
