//! Makes true what the hub wants in a registry whose entries are leases that are renewed one by one, so that copies go with
//! the hub.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use tokio::time::Instant;

use crate::model::Instance;
use crate::source::{Link, Report, Wanted};

/// Requests under way at a time.
const REQUESTS: usize = 16;
/// Copies that the server is told before it is looked what is due.
const ROUND: usize = 256;
/// Until a copy that the server did not take is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// A server that takes leases.
pub(super) trait LeaseServer {
    /// A copy as the server has it.
    type Entry;

    /// The copy as the server is to have it; an error says why it cannot.
    fn entry(&self, id: &str, instance: &Instance) -> Result<Self::Entry, String>;
    /// The entry's name in the registry.
    fn name(entry: &Self::Entry) -> String;
    /// Puts it in, or replaces it.
    fn register(&self, entry: &Self::Entry) -> impl Future<Output = Result<(), String>> + Send;
    /// Renews it; `false`: the server does not have it as it is.
    fn renew(&self, entry: &Self::Entry) -> impl Future<Output = Result<bool, String>> + Send;
    /// Takes it out; what is not there is as good as taken out.
    fn cancel(&self, entry: &Self::Entry) -> impl Future<Output = Result<(), String>> + Send;
}

/// A copy that is to be there.
struct Copy<E> {
    instance: Arc<Instance>,
    entry: E,
    /// The server has taken it as it is.
    registered: bool,
    /// When the server has to hear of it next.
    due: Instant,
    reported: Option<Result<(), String>>,
}

/// An entry that has to go.
struct Going<E> {
    entry: E,
    /// The hub waits for it under this name.
    withdrawn: Option<Arc<str>>,
}

/// The copies and the server's answers; it outlives the connection to one server.
pub(super) struct Written<E> {
    copies: HashMap<Arc<str>, Copy<E>>,
    going: Vec<Going<E>>,
    unfit: HashMap<Arc<str>, String>,
}

impl<E> Default for Written<E> {
    fn default() -> Written<E> {
        Written {
            copies: HashMap::new(),
            going: Vec::new(),
            unfit: HashMap::new(),
        }
    }
}

impl<E> Written<E> {
    /// Nothing is put in or taken out: what the server has not (any longer) is left to whoever leads.
    fn rest(&mut self) {
        self.copies.retain(|_, copy| copy.registered);
        self.going.clear();
    }

    /// When something is due.
    fn next(&self) -> Option<Instant> {
        let next = self.copies.values().map(|copy| copy.due);
        let retry = (!self.going.is_empty()).then(|| Instant::now() + RETRY);
        next.chain(retry).min()
    }
}

/// Writes until the hub ends; every copy is renewed after each interval.
pub(super) async fn run<S: LeaseServer>(
    server: &S,
    link: &Link,
    interval: Duration,
    written: &mut Written<S::Entry>,
) {
    let mut wanted = link.wanted();
    // After a reconnect the hub asks anew.
    for copy in written.copies.values_mut() {
        copy.reported = None;
        copy.due = Instant::now();
    }
    written.unfit.clear();
    loop {
        let now = wanted.borrow_and_update().clone();
        if now.rests {
            written.rest();
        } else {
            take(written, server, link, &now).await;
        }
        loop {
            // The new ones first: at no time is there none.
            renew(written, server, link, interval, now.rests).await;
            if now.rests {
                written.rest();
            }
            cancel(written, server, link).await;
            let next = written.next().unwrap_or_else(|| Instant::now() + interval);
            tokio::select! {
                changed = wanted.changed() => match changed {
                    Ok(()) => break,
                    Err(_) => return,
                },
                () = tokio::time::sleep_until(next) => {}
            }
        }
    }
}

/// Compares what is there with what is wanted.
async fn take<S: LeaseServer>(
    written: &mut Written<S::Entry>,
    server: &S,
    link: &Link,
    wanted: &Wanted,
) {
    let gone = written
        .copies
        .extract_if(|id, _| !wanted.publish.contains_key(id));
    let gone = gone.map(|(_, copy)| Going {
        entry: copy.entry,
        withdrawn: None,
    });
    written.going.retain(|going| going.withdrawn.is_none());
    written.going.extend(gone);
    for (id, instance) in &wanted.withdraw {
        match server.entry(id, instance) {
            Ok(entry) => written.going.push(Going {
                entry,
                withdrawn: Some(id.clone()),
            }),
            // What cannot be there is not there.
            Err(_) => link.report(Report::Withdrawn { id: id.clone() }).await,
        }
    }
    written
        .unfit
        .retain(|id, _| wanted.publish.contains_key(id));
    for (id, instance) in &wanted.publish {
        let known = written.copies.get(id);
        if known.is_some_and(|copy| copy.instance == *instance) {
            continue;
        }
        let entry = match server.entry(id, instance) {
            Ok(entry) => entry,
            Err(why) => {
                if written.unfit.get(id) != Some(&why) {
                    written.unfit.insert(id.clone(), why.clone());
                    let (id, result) = (id.clone(), Err(why));
                    link.report(Report::Written { id, result }).await;
                }
                continue;
            }
        };
        let name = S::name(&entry);
        // A copy is never taken out in the moment in which it is put in under the same name.
        written.going.retain(|going| S::name(&going.entry) != name);
        let copy = Copy {
            instance: instance.clone(),
            entry,
            registered: false,
            due: Instant::now(),
            reported: None,
        };
        if let Some(before) = written.copies.insert(id.clone(), copy)
            && S::name(&before.entry) != name
        {
            written.going.push(Going {
                entry: before.entry,
                withdrawn: None,
            });
        }
    }
}

/// Takes out what has to go; what the server does not answer is tried again.
async fn cancel<S: LeaseServer>(written: &mut Written<S::Entry>, server: &S, link: &Link) {
    let going = std::mem::take(&mut written.going);
    let cancelled = stream::iter(going).map(|going| async move {
        if server.cancel(&going.entry).await.is_err() {
            return Some(going);
        }
        if let Some(id) = going.withdrawn {
            link.report(Report::Withdrawn { id }).await;
        }
        None
    });
    let left = cancelled.buffer_unordered(REQUESTS);
    written.going = left.filter_map(|left| async { left }).collect().await;
}

/// Registers and renews what is due.
async fn renew<S: LeaseServer>(
    written: &mut Written<S::Entry>,
    server: &S,
    link: &Link,
    interval: Duration,
    rests: bool,
) {
    let now = Instant::now();
    let due = written
        .copies
        .iter_mut()
        .filter(|(_, copy)| copy.due <= now);
    let mut due: Vec<_> = due.collect();
    // Thousands of new ones do not keep those waiting that are there.
    due.sort_by_key(|(_, copy)| (!copy.registered, copy.due));
    due.truncate(ROUND);
    let asked = due.into_iter().map(|(id, copy)| async move {
        let result = tell(server, &copy.entry, copy.registered, rests).await;
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
}

async fn tell<S: LeaseServer>(
    server: &S,
    entry: &S::Entry,
    registered: bool,
    rests: bool,
) -> Result<(), String> {
    if registered && server.renew(entry).await? {
        return Ok(());
    }
    if rests {
        return Err("is not there, and this hub does not write".to_owned());
    }
    server.register(entry).await
}
