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

/// A publication of this connection. What the server does not answer it may have taken all the same.
#[derive(Clone)]
struct Written {
    id: DataInfoId,
    data: String,
    regist_id: String,
    version: i64,
    /// The number of the writing.
    revision: u64,
}

/// All publications of a copy.
#[derive(Clone)]
struct Placed {
    now: Written,
    /// Whether the server said that it has it.
    is_taken: bool,
    /// Of other names, which go after the present one is there.
    former: Vec<Written>,
}

/// What there is to do for a copy.
#[derive(Clone, Copy)]
enum Work {
    Publish,
    Unpublish,
}

struct Writer<'a> {
    config: &'a Config,
    client: &'a Client,
    link: &'a Link,
    written: HashMap<Arc<str>, Placed>,
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
        let publish = self.publications(&wanted.publish);
        let published = self.work(Work::Publish, publish).await;
        let gone = self
            .written
            .iter()
            .filter(|(id, _)| !wanted.publish.contains_key(*id))
            .map(|(id, placed)| (id.clone(), placed.clone()));
        let gone = gone.collect();
        let withdrawn = self.work(Work::Unpublish, gone).await;
        for id in wanted.withdraw.keys() {
            // What an earlier connection published went with it.
            if !self.written.contains_key(id) {
                self.link.report(Report::Withdrawn { id: id.clone() }).await;
            }
        }
        published && withdrawn
    }

    /// The copies that are not there as they are wanted.
    fn publications(
        &mut self,
        wanted: &BTreeMap<Arc<str>, Arc<Instance>>,
    ) -> Vec<(Arc<str>, Placed)> {
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
            let revision = instance.revision;
            let refused = self.refused.get(copy);
            if refused.is_some_and(|(refused, of)| *refused == id && *of == data) {
                continue;
            }
            let placed = match self.written.get(copy) {
                Some(placed) if placed.now.id == id => {
                    let now = &placed.now;
                    let is_same = placed.is_taken && now.data == data && now.revision == revision;
                    if is_same && placed.former.is_empty() {
                        continue;
                    }
                    let version = now.version + i64::from(!is_same);
                    Placed {
                        now: Written {
                            data,
                            version,
                            revision,
                            ..now.clone()
                        },
                        is_taken: is_same,
                        former: placed.former.clone(),
                    }
                }
                before => {
                    self.number += 1;
                    let mut former = before.map_or_else(Vec::new, |placed| placed.former.clone());
                    former.extend(before.map(|placed| placed.now.clone()));
                    Placed {
                        now: Written {
                            id,
                            data,
                            regist_id: format!("{}-p{}", self.prefix, self.number),
                            version: 1,
                            revision,
                        },
                        is_taken: false,
                        former,
                    }
                }
            };
            // Known before it is asked for: without an answer nobody can tell whether it is there.
            self.written.insert(copy.clone(), placed.clone());
            work.push((copy.clone(), placed));
        }
        work
    }

    /// Does all of it, and tells the hub. Whether all went well.
    async fn work(&mut self, work: Work, all: Vec<(Arc<str>, Placed)>) -> bool {
        let (config, client) = (self.config, self.client);
        let asked = all.into_iter().map(|(copy, mut placed)| async move {
            let result = match work {
                Work::Publish => placed.publish(config, client).await,
                Work::Unpublish => placed.unpublish(config, client).await,
            };
            (copy, placed, result)
        });
        let asked: Vec<_> = asked.collect();
        let mut answers = stream::iter(asked).buffer_unordered(REQUESTS);
        let mut done = true;
        while let Some((copy, mut placed, result)) = answers.next().await {
            let result = match (work, result) {
                (Work::Unpublish, Ok(())) => {
                    self.written.remove(&copy);
                    continue;
                }
                (Work::Unpublish, Err(_)) => {
                    done = false;
                    self.written.insert(copy, placed);
                    continue;
                }
                (Work::Publish, Ok(())) => {
                    done &= placed.former.is_empty();
                    self.refused.remove(&copy);
                    self.written.insert(copy.clone(), placed);
                    Ok(())
                }
                (Work::Publish, Err(Refusal { why, is_final })) => {
                    if is_final {
                        let of = (placed.now.id.clone(), placed.now.data.clone());
                        self.refused.insert(copy.clone(), of);
                    } else {
                        done = false;
                    }
                    if !is_final || placed.step_back() {
                        self.written.insert(copy.clone(), placed);
                    } else {
                        self.written.remove(&copy);
                    }
                    Err(why)
                }
            };
            let id = copy;
            self.link.report(Report::Written { id, result }).await;
        }
        done
    }
}

impl Placed {
    /// Has the present publication taken, then the former ones taken out; of those the ones are left that would not go.
    async fn publish(&mut self, config: &Config, client: &Client) -> Result<(), Refusal> {
        if !self.is_taken {
            publish(config, client, &self.now).await?;
            self.is_taken = true;
        }
        self.unpublish_former(config, client).await;
        Ok(())
    }

    /// Has all taken out.
    async fn unpublish(&mut self, config: &Config, client: &Client) -> Result<(), Refusal> {
        self.unpublish_former(config, client).await;
        // What is published again has to come after this.
        self.is_taken = false;
        self.now.version += 1;
        unpublish(config, client, &self.now).await?;
        match self.former.is_empty() {
            true => Ok(()),
            false => Err(Refusal {
                why: "a publication of another name has not gone".to_owned(),
                is_final: false,
            }),
        }
    }

    async fn unpublish_former(&mut self, config: &Config, client: &Client) {
        let mut left = Vec::new();
        for mut written in std::mem::take(&mut self.former) {
            written.version += 1;
            if unpublish(config, client, &written).await.is_err() {
                left.push(written);
            }
        }
        self.former = left;
    }

    /// The server will not have the present publication: what there was before it. Whether there was anything.
    fn step_back(&mut self) -> bool {
        if self.now.version > 1 {
            return true;
        }
        let before = self.former.pop();
        let is_there = before.is_some();
        if let Some(before) = before {
            self.now = before;
        }
        is_there
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
    let mut base = config.base(&written.id, &written.regist_id, written.version);
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

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use prost::Message;
    use serde_json::json;

    use super::*;
    use crate::model::ServiceKey;
    use crate::source::LinkEnd;

    /// What a session server holds by registration ids.
    #[derive(Default)]
    struct Server {
        held: BTreeMap<String, (i64, String)>,
        /// Publications whose answers get lost.
        unanswered: u32,
        /// Ends of publications that get lost themselves.
        lost: u32,
    }

    impl Server {
        fn take(&mut self, content: &[u8]) -> Option<Vec<u8>> {
            let publisher = pb::PublisherRegister::decode(content).unwrap();
            let base = publisher.base_register.unwrap();
            let known = self.held.get(&base.regist_id);
            assert!(known.is_none_or(|(version, _)| *version < base.version));
            let left = if base.event_type == UNREGISTER {
                if self.lost == 0 {
                    self.held.remove(&base.regist_id);
                }
                &mut self.lost
            } else {
                let held = (base.version, base.data_info_id);
                self.held.insert(base.regist_id, held);
                &mut self.unanswered
            };
            if *left > 0 {
                *left -= 1;
                return None;
            }
            let answer = pb::RegisterResponse {
                success: true,
                ..pb::RegisterResponse::default()
            };
            Some(answer.encode_to_vec())
        }
    }

    fn shown(server: &Mutex<Server>) -> Vec<String> {
        let server = server.lock().unwrap();
        let ids = server.held.values().map(|(_, id)| id.split(':').next());
        ids.map(|id| id.unwrap_or_default().to_owned()).collect()
    }

    fn copy(name: &str, weight: u32) -> Wanted {
        let mut copy = Instance::new(ServiceKey::new("rest", name), "10.0.0.1", 80);
        copy.weight = weight;
        Wanted {
            publish: [("one".into(), Arc::new(copy))].into(),
            ..Wanted::default()
        }
    }

    async fn written(end: &mut LinkEnd) -> Result<(), String> {
        match end.next().await {
            Some(Report::Written { result, .. }) => result,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_not_answered_is_there_once_and_goes_when_it_is_not_wanted() {
        let config = json!({"endpoints": ["127.0.0.1:9603"]});
        let config: Config = serde_json::from_value(config).unwrap();
        let server = Arc::new(Mutex::new(Server::default()));
        let of_client = server.clone();
        let client = Client::of(move |content| of_client.lock().unwrap().take(content));
        let (link, mut end) = Link::pair("sofa");
        let running = tokio::spawn(async move { run(&config, &link, &client).await });
        // New, changed, and under another name.
        for (name, weight) in [("shop", 100), ("shop", 30), ("cart", 30)] {
            server.lock().unwrap().unanswered = 1;
            end.want(copy(name, weight));
            assert!(written(&mut end).await.is_err());
            assert_eq!(written(&mut end).await, Ok(()));
            assert_eq!(shown(&server), [name]);
        }
        // The name of before is taken out until the server says so.
        server.lock().unwrap().lost = 2;
        end.want(copy("bill", 30));
        for expected in [&["cart", "bill"][..], &["cart", "bill"], &["bill"]] {
            assert_eq!(written(&mut end).await, Ok(()));
            assert_eq!(shown(&server), expected);
        }

        // Unwanted before it was answered.
        server.lock().unwrap().unanswered = 1;
        end.want(copy("till", 30));
        assert!(written(&mut end).await.is_err());
        let id: Arc<str> = "one".into();
        let withdraw = copy("till", 30).publish;
        end.want(Wanted {
            withdraw,
            ..Wanted::default()
        });
        match end.next().await {
            Some(Report::Withdrawn { id: gone }) => assert_eq!(gone, id),
            other => panic!("{other:?}"),
        }
        assert_eq!(shown(&server), [""; 0]);
        running.abort();
    }
}
