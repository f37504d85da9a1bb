//! Reads every service once, and again whenever a blocking query tells that it changed. Agents allow a client some two hundred
//! connections: where there are more services than questions at a time, each is asked in turn.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::Either;
use futures_util::stream::FuturesUnordered;
use serde_json::Value;

use super::agent::{Agent, Failure, Index, Services, Told};
use super::entry::{OWN_SERVICE, instance};
use crate::source::{Link, List, Report, Skipped};

/// Questions about services under way at a time.
const QUESTIONS: usize = 100;
/// How long a question may stay open.
const WAIT: Duration = Duration::from_secs(55);
/// The same where others wait for their turn.
const SHORT_WAIT: Duration = Duration::from_secs(1);
/// A server that answers at once though nothing changed is not asked more often than this.
const PAUSE: Duration = Duration::from_millis(20);
/// An answer is a whole list: the longer it is, the more changes go into one.
const PER_ENTRY: Duration = Duration::from_micros(50);

/// What is known of a service.
struct Known {
    /// Of two services of one name, one after the other, the answers to questions about the first do not count.
    number: u64,
    index: Index,
    /// The list was reported in this session.
    is_told: bool,
    entries: Vec<Value>,
}

enum Answer {
    Services(Result<Services, Failure>),
    Instances(String, u64, Result<Told<Vec<Value>>, Failure>),
}

/// Reads until the agent fails.
pub(super) async fn run(link: &Link, agent: &Agent, first: Services) -> Failure {
    let mut known: HashMap<String, Known> = HashMap::new();
    let mut queue: VecDeque<String> = VecDeque::new();
    let mut catalog = Index::default();
    let mut synced = false;
    let mut number = 0;
    let mut under_way = FuturesUnordered::new();
    let mut answer = Answer::Services(Ok(first));
    loop {
        match answer {
            Answer::Services(Ok(services)) => {
                let (next, is_anew) = catalog.next(services.index);
                catalog = next;
                forget(link, &services.content, &mut known, is_anew).await;
                for name in services.content.into_keys() {
                    if name == OWN_SERVICE || known.contains_key(&name) {
                        continue;
                    }
                    number += 1;
                    let service = Known {
                        number,
                        index: Index::default(),
                        is_told: false,
                        entries: Vec::new(),
                    };
                    known.insert(name.clone(), service);
                    queue.push_front(name);
                }
                under_way.push(Either::Left(async move {
                    tokio::time::sleep(PAUSE).await;
                    Answer::Services(agent.services(Some((next, WAIT))).await)
                }));
            }
            Answer::Instances(name, number, Ok(told)) => {
                // One that is no longer in the catalogue is no longer asked for.
                if let Some(service) = known.get_mut(&name)
                    && service.number == number
                {
                    let (next, is_anew) = service.index.next(told.index);
                    service.index = next;
                    if !service.is_told || service.entries != told.content {
                        let list = list(&name, &told.content, service.is_told && !is_anew);
                        service.entries = told.content;
                        service.is_told = true;
                        link.report(Report::List(list)).await;
                    }
                    queue.push_back(name);
                }
            }
            Answer::Services(Err(failure)) | Answer::Instances(_, _, Err(failure)) => {
                return failure;
            }
        }
        if !synced && known.values().all(|service| service.is_told) {
            synced = true;
            link.report(Report::Synced).await;
        }
        while under_way.len() <= QUESTIONS
            && let Some(name) = queue.pop_front()
        {
            let Some(service) = known.get(&name) else {
                continue;
            };
            let (number, index) = (service.number, service.index);
            let entries = u32::try_from(service.entries.len()).unwrap_or(u32::MAX);
            let pause = PAUSE + PER_ENTRY * entries;
            let wait = if known.len() > QUESTIONS {
                SHORT_WAIT
            } else {
                WAIT
            };
            under_way.push(Either::Right(async move {
                tokio::time::sleep(pause).await;
                let answer = agent.instances(&name, Some((index, wait))).await;
                Answer::Instances(name, number, answer)
            }));
        }
        answer = match under_way.next().await {
            Some(answer) => answer,
            // The question about the catalogue is always under way.
            None => {
                return Failure {
                    trouble: crate::source::Trouble::Protocol,
                    reason: "there is nothing to ask".to_owned(),
                };
            }
        };
    }
}

/// What is no longer in the catalogue is empty.
async fn forget(
    link: &Link,
    catalog: &BTreeMap<String, Value>,
    known: &mut HashMap<String, Known>,
    is_anew: bool,
) {
    let gone = known.extract_if(|name, _| !catalog.contains_key(name));
    let gone: Vec<String> = gone.map(|(name, _)| name).collect();
    for name in gone {
        link.report(Report::List(list(&name, &[], !is_anew))).await;
    }
}

fn list(name: &str, entries: &[Value], certain: bool) -> List {
    let (mut instances, mut skipped) = (Vec::new(), Vec::new());
    for value in entries {
        match instance(name, value) {
            Ok(instance) => instances.push(instance),
            Err(reason) => {
                let id = value.pointer("/Service/ID").and_then(Value::as_str);
                let entry = format!("{name}/{}", id.unwrap_or("?"));
                skipped.push(Skipped::new(&entry, &reason));
            }
        }
    }
    List {
        name: name.into(),
        instances,
        skipped,
        certain,
    }
}
