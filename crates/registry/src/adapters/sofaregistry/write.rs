//! Makes true what the hub wants: a copy is a publication of this connection, which goes when the connection does.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use api::sofaregistry::session::v1 as pb;
use futures_util::{StreamExt, stream};

use super::read::regist_prefix;
use super::session::Client;
use super::{Config, UNREGISTER};
use crate::model::Instance;
use crate::sofaregistry::{DataInfoId, SERVICE_GROUP, publication};
use crate::source::{Link, Report, Wanted};

/// Requests under way at a time.
const REQUESTS: usize = 128;
/// Until what the server did not take is tried again, doubled with each failure.
const AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// A publication of this connection.
#[derive(Clone)]
struct Written {
    id: DataInfoId,
    data: String,
    regist_id: String,
    version: i64,
    /// The number of the writing.
    revision: u64,
}

/// What there is to do for a copy.
enum Work {
    Publish(Written),
    /// It has another name now: the old publication goes after the new one is there.
    Move(Written, Written),
    Unpublish(Written),
}

struct Writer<'a> {
    config: &'a Config,
    client: &'a Client,
    link: &'a Link,
    written: HashMap<Arc<str>, Written>,
    /// Those that the server will not have: they are not tried again while they are the same.
    refused: HashMap<Arc<str>, (DataInfoId, String)>,
    prefix: String,
    number: u64,
}

/// Writes until the hub ends.
pub(super) async fn run(config: &Config, link: &Link, client: &Client) {
    let mut wanted = link.wanted();
    let mut writer = Writer {
        config,
        client,
        link,
        written: HashMap::new(),
        refused: HashMap::new(),
        prefix: regist_prefix(),
        number: 0,
    };
    let (min, max) = AGAIN;
    let mut again = min;
    loop {
        let now = wanted.borrow_and_update().clone();
        if now.rests {
            // The connection keeps what there is.
            match wanted.changed().await {
                Ok(()) => continue,
                Err(_) => return,
            }
        }
        let done = writer.make_true(&now).await;
        again = if done { min } else { (again * 2).min(max) };
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(again), if !done => {}
        }
    }
}

impl Writer<'_> {
    /// Whether all went well.
    async fn make_true(&mut self, wanted: &Wanted) -> bool {
        // The new ones first: at no time is there none.
        let publish = self.publications(&wanted.publish).await;
        let published = self.work(publish).await;
        let gone = self
            .written
            .iter()
            .filter(|(id, _)| !wanted.publish.contains_key(*id))
            .map(|(id, written)| (id.clone(), Work::Unpublish(written.clone())));
        let gone = gone.collect();
        let withdrawn = self.work(gone).await;
        for id in wanted.withdraw.keys() {
            // What an earlier connection published went with it.
            if !self.written.contains_key(id) {
                self.link.report(Report::Withdrawn { id: id.clone() }).await;
            }
        }
        published && withdrawn
    }

    /// The copies that are not there as they are wanted.
    async fn publications(
        &mut self,
        wanted: &BTreeMap<Arc<str>, Arc<Instance>>,
    ) -> Vec<(Arc<str>, Work)> {
        self.refused.retain(|id, _| wanted.contains_key(id));
        let groups = &self.config.groups;
        let group = groups.first().map_or(SERVICE_GROUP, String::as_str);
        let mut work = Vec::new();
        for (copy, instance) in wanted {
            let (data_id, data) = publication(instance);
            let id = DataInfoId {
                data_id,
                instance_id: self.config.instance_id.clone(),
                group: group.to_owned(),
            };
            let before = self.written.get(copy);
            let revision = instance.revision;
            let is_same = |before: &Written| {
                before.id == id && before.data == data && before.revision == revision
            };
            if before.is_some_and(is_same) {
                continue;
            }
            let refused = self.refused.get(copy);
            if refused.is_some_and(|(refused, of)| *refused == id && *of == data) {
                continue;
            }
            let next = match before {
                Some(before) if before.id == id => Work::Publish(Written {
                    data,
                    version: before.version + 1,
                    revision,
                    ..before.clone()
                }),
                before => {
                    self.number += 1;
                    let new = Written {
                        id,
                        data,
                        regist_id: format!("{}-p{}", self.prefix, self.number),
                        version: 1,
                        revision,
                    };
                    match before {
                        Some(before) => Work::Move(before.clone(), new),
                        None => Work::Publish(new),
                    }
                }
            };
            work.push((copy.clone(), next));
        }
        work
    }

    /// Does all of it, and tells the hub. Whether all went well.
    async fn work(&mut self, work: Vec<(Arc<str>, Work)>) -> bool {
        let (config, client) = (self.config, self.client);
        let asked = work.into_iter().map(|(copy, work)| async move {
            let result = match &work {
                Work::Publish(new) => publish(config, client, new).await,
                Work::Move(before, new) => match publish(config, client, new).await {
                    Ok(()) => {
                        // One that stays because this is lost goes with the connection.
                        let _ = unpublish(config, client, before).await;
                        Ok(())
                    }
                    failed => failed,
                },
                Work::Unpublish(before) => unpublish(config, client, before).await,
            };
            (copy, work, result)
        });
        let asked: Vec<_> = asked.collect();
        let mut answers = stream::iter(asked).buffer_unordered(REQUESTS);
        let mut done = true;
        while let Some((copy, work, result)) = answers.next().await {
            match (work, result) {
                (Work::Unpublish(_), result) => {
                    if result.is_ok() {
                        self.written.remove(&copy);
                    }
                    done &= result.is_ok();
                }
                (Work::Publish(new) | Work::Move(_, new), Ok(())) => {
                    self.refused.remove(&copy);
                    self.written.insert(copy.clone(), new);
                    let (id, result) = (copy, Ok(()));
                    self.link.report(Report::Written { id, result }).await;
                }
                (Work::Publish(new) | Work::Move(_, new), Err(refusal)) => {
                    let Refusal { why, is_final } = refusal;
                    if is_final {
                        self.refused.insert(copy.clone(), (new.id, new.data));
                    } else {
                        done = false;
                    }
                    let (id, result) = (copy, Err(why));
                    self.link.report(Report::Written { id, result }).await;
                }
            }
        }
        done
    }
}

/// Why the server did not take something.
struct Refusal {
    why: String,
    is_final: bool,
}

async fn publish(config: &Config, client: &Client, written: &Written) -> Result<(), Refusal> {
    let publisher = pb::PublisherRegister {
        data_list: vec![pb::DataBox {
            data: written.data.clone(),
        }],
        base_register: Some(config.base(&written.id, &written.regist_id, written.version)),
    };
    ask(client, &publisher).await
}

async fn unpublish(config: &Config, client: &Client, written: &Written) -> Result<(), Refusal> {
    let mut base = config.base(&written.id, &written.regist_id, written.version + 1);
    UNREGISTER.clone_into(&mut base.event_type);
    let publisher = pb::PublisherRegister {
        data_list: Vec::new(),
        base_register: Some(base),
    };
    ask(client, &publisher).await
}

async fn ask(client: &Client, publisher: &pb::PublisherRegister) -> Result<(), Refusal> {
    let answer = client.publish(publisher).await;
    let answer = answer.map_err(|why| Refusal {
        why,
        is_final: false,
    })?;
    if answer.success {
        return Ok(());
    }
    Err(Refusal {
        why: format!("the server refuses the publication: {}", answer.message),
        is_final: answer.refused,
    })
}
