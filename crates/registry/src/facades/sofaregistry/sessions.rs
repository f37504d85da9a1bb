//! Connections: who publishes and subscribes through each, and what each has still to be told. A registId belongs to the
//! connection that used it last.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use wire::sofaregistry::{Register, Scope};

use super::form::Form;
use super::names::DataInfo;
use crate::model;

/// How long a client has to answer a push before it is told again.
const ANSWER: Duration = Duration::from_secs(2);
/// Grows by this with every attempt in vain.
const LONGER: Duration = Duration::from_secs(1);
/// Attempts after which it grows no more.
const ATTEMPTS: u32 = 10;

/// What a connection is told of.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Topic {
    /// A list, as far as a scope and zone see it.
    List(DataInfo, Scope, Arc<str>),
    /// A configuration item.
    Config(DataInfo),
}

/// A publisher.
pub(super) struct Publisher {
    connection: u64,
    version: i64,
    timestamp: i64,
    pub(super) info: DataInfo,
    pub(super) instances: Vec<model::Instance>,
}

struct Subscriber {
    connection: u64,
    version: i64,
    timestamp: i64,
    topic: Topic,
}

struct Connection {
    form: Form,
    wake: Arc<Notify>,
    publishers: HashSet<Arc<str>>,
    topics: BTreeMap<Topic, Told>,
    /// Topics that have something new.
    ready: BTreeSet<Topic>,
    /// By request id.
    in_flight: HashMap<u32, Topic>,
    deadlines: BTreeSet<(Instant, u32)>,
    request_id: u32,
}

/// What a connection was told of a topic.
#[derive(Default)]
struct Told {
    subscribers: BTreeSet<Arc<str>>,
    /// The push that is not answered, and until when it should be.
    in_flight: Option<(u32, Instant)>,
    /// The version of that push, or of the last.
    version: i64,
    attempts: u32,
}

/// A push that is due.
pub(super) struct Due {
    pub(super) request_id: u32,
    pub(super) form: Form,
    pub(super) topic: Topic,
    pub(super) subscribers: Vec<Arc<str>>,
}

/// All of them.
#[derive(Default)]
pub(super) struct Sessions {
    connections: HashMap<u64, Connection>,
    publishers: HashMap<Arc<str>, Publisher>,
    subscribers: HashMap<Arc<str>, Subscriber>,
    number: u64,
}

/// Whether a registration replaces what is known under its registId.
fn replaces(register: &Register, connection: u64, known: (u64, i64, i64)) -> bool {
    let (known_connection, version, timestamp) = known;
    match register.version.cmp(&version) {
        std::cmp::Ordering::Less => false,
        std::cmp::Ordering::Greater => true,
        // After a new connection a client says again what it said.
        std::cmp::Ordering::Equal => {
            known_connection != connection || register.timestamp >= timestamp
        }
    }
}

impl Sessions {
    /// A connection is there: its number, and who wakes its writer.
    pub(super) fn open(&mut self) -> (u64, Arc<Notify>) {
        self.number += 1;
        let wake = Arc::new(Notify::new());
        let connection = Connection {
            form: Form::Hessian,
            wake: wake.clone(),
            publishers: HashSet::new(),
            topics: BTreeMap::new(),
            ready: BTreeSet::new(),
            in_flight: HashMap::new(),
            deadlines: BTreeSet::new(),
            request_id: 0,
        };
        self.connections.insert(self.number, connection);
        (self.number, wake)
    }

    pub(super) fn connections(&self) -> usize {
        self.connections.len()
    }

    /// Publishers and subscribers of a connection.
    pub(super) fn registrations(&self, connection: u64) -> usize {
        self.connections.get(&connection).map_or(0, |connection| {
            let told = connection.topics.values();
            let subscribers: usize = told.map(|told| told.subscribers.len()).sum();
            connection.publishers.len() + subscribers
        })
    }

    /// From now on the connection is told things in the form that it uses.
    pub(super) fn set_form(&mut self, connection: u64, form: Form) {
        if let Some(connection) = self.connections.get_mut(&connection) {
            connection.form = form;
        }
    }

    /// Whether a publisher's registration is news; what it replaces has to be taken out.
    pub(super) fn replace_publisher(
        &mut self,
        register: &Register,
        connection: u64,
    ) -> Option<Option<Publisher>> {
        let id = register.regist_id.as_str();
        if let Some(known) = self.publishers.get(id) {
            let known = (known.connection, known.version, known.timestamp);
            if !replaces(register, connection, known) {
                return None;
            }
        }
        Some(self.remove_publisher(id))
    }

    pub(super) fn remove_publisher(&mut self, regist_id: &str) -> Option<Publisher> {
        let (id, publisher) = self.publishers.remove_entry(regist_id)?;
        if let Some(connection) = self.connections.get_mut(&publisher.connection) {
            connection.publishers.remove(&id);
        }
        Some(publisher)
    }

    pub(super) fn put_publisher(
        &mut self,
        register: &Register,
        connection: u64,
        info: DataInfo,
        instances: Vec<model::Instance>,
    ) {
        let id: Arc<str> = register.regist_id.as_str().into();
        if let Some(connection) = self.connections.get_mut(&connection) {
            connection.publishers.insert(id.clone());
        }
        let publisher = Publisher {
            connection,
            version: register.version,
            timestamp: register.timestamp,
            info,
            instances,
        };
        self.publishers.insert(id, publisher);
    }

    /// Whether a subscriber's registration is news; the list that it leaves has to know.
    pub(super) fn replace_subscriber(
        &mut self,
        register: &Register,
        connection: u64,
    ) -> Option<Option<(u64, Topic)>> {
        let id = register.regist_id.as_str();
        if let Some(known) = self.subscribers.get(id) {
            let known = (known.connection, known.version, known.timestamp);
            if !replaces(register, connection, known) {
                return None;
            }
        }
        Some(self.remove_subscriber(id))
    }

    fn remove_subscriber(&mut self, regist_id: &str) -> Option<(u64, Topic)> {
        let (id, subscriber) = self.subscribers.remove_entry(regist_id)?;
        if let Some(connection) = self.connections.get_mut(&subscriber.connection)
            && let Some(told) = connection.topics.get_mut(&subscriber.topic)
        {
            told.subscribers.remove(&id);
            if told.subscribers.is_empty() {
                if let Some((request, deadline)) = told.in_flight {
                    connection.in_flight.remove(&request);
                    connection.deadlines.remove(&(deadline, request));
                }
                connection.topics.remove(&subscriber.topic);
                connection.ready.remove(&subscriber.topic);
            }
        }
        Some((subscriber.connection, subscriber.topic))
    }

    /// A subscriber is there and has to be told what is.
    pub(super) fn put_subscriber(&mut self, register: &Register, connection: u64, topic: Topic) {
        let id: Arc<str> = register.regist_id.as_str().into();
        if let Some(connection) = self.connections.get_mut(&connection) {
            let told = connection.topics.entry(topic.clone()).or_default();
            told.subscribers.insert(id.clone());
            connection.ready.insert(topic.clone());
        }
        let subscriber = Subscriber {
            connection,
            version: register.version,
            timestamp: register.timestamp,
            topic,
        };
        self.subscribers.insert(id, subscriber);
    }

    /// A list has this version now.
    pub(super) fn tell(&mut self, info: &DataInfo, version: i64, connections: &[u64]) {
        for connection in connections {
            let Some(connection) = self.connections.get_mut(connection) else {
                continue;
            };
            let of_list = |topic: &Topic| matches!(topic, Topic::List(of, ..) if of == info);
            let from = Topic::List(info.clone(), Scope::Zone, "".into());
            let topics = connection.topics.range(from..);
            let behind = topics
                .take_while(|(topic, _)| of_list(topic))
                .filter(|(_, told)| told.version != version)
                .map(|(topic, _)| topic.clone());
            connection.ready.extend(behind);
            connection.wake.notify_one();
        }
    }

    /// The next push of a connection.
    pub(super) fn due(&mut self, connection: u64, now: Instant) -> Option<Due> {
        let connection = self.connections.get_mut(&connection)?;
        while let Some(&(deadline, request)) = connection.deadlines.first()
            && deadline <= now
        {
            connection.deadlines.pop_first();
            if let Some(topic) = connection.in_flight.remove(&request)
                && let Some(told) = connection.topics.get_mut(&topic)
            {
                told.in_flight = None;
                told.attempts = (told.attempts + 1).min(ATTEMPTS);
                connection.ready.insert(topic);
            }
        }
        // One at a time of each: a client that is slow gets the last one next.
        let is_free = |topic: &&Topic| {
            let told = connection.topics.get(*topic);
            told.is_some_and(|told| told.in_flight.is_none())
        };
        let topic = connection.ready.iter().find(is_free)?.clone();
        connection.ready.remove(&topic);
        let told = connection.topics.get_mut(&topic)?;
        connection.request_id = connection.request_id.wrapping_add(1);
        let request_id = connection.request_id;
        let deadline = now + ANSWER + LONGER * told.attempts;
        told.in_flight = Some((request_id, deadline));
        connection.in_flight.insert(request_id, topic.clone());
        connection.deadlines.insert((deadline, request_id));
        Some(Due {
            request_id,
            form: connection.form,
            subscribers: told.subscribers.iter().cloned().collect(),
            topic,
        })
    }

    /// The push that is under way has this version.
    pub(super) fn sent(&mut self, connection: u64, topic: &Topic, version: i64) {
        let connection = self.connections.get_mut(&connection);
        if let Some(told) = connection.and_then(|connection| connection.topics.get_mut(topic)) {
            told.version = version;
        }
    }

    /// When a connection has to be looked at again, whatever happens.
    pub(super) fn next_deadline(&self, connection: u64) -> Option<Instant> {
        let connection = self.connections.get(&connection)?;
        connection.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// A client has answered a push. One that could not take it is told again when it would have been without an answer.
    pub(super) fn answered(&mut self, connection: u64, request_id: u32, success: bool) {
        let Some(connection) = self.connections.get_mut(&connection) else {
            return;
        };
        if !success {
            return;
        }
        let Some(topic) = connection.in_flight.remove(&request_id) else {
            return;
        };
        if let Some(told) = connection.topics.get_mut(&topic) {
            if let Some((request, deadline)) = told.in_flight.take() {
                connection.deadlines.remove(&(deadline, request));
            }
            told.attempts = 0;
            if connection.ready.contains(&topic) {
                connection.wake.notify_one();
            }
        }
    }

    /// A connection is gone, with what it held.
    pub(super) fn close(&mut self, number: u64) -> Closed {
        let Some(connection) = self.connections.remove(&number) else {
            return Closed::default();
        };
        let mut closed = Closed::default();
        for id in connection.publishers {
            if let Some(publisher) = self.publishers.remove(&id) {
                closed.publishers.push((id, publisher));
            }
        }
        for (topic, told) in connection.topics {
            for id in told.subscribers {
                self.subscribers.remove(&id);
                closed.topics.push(topic.clone());
            }
        }
        closed
    }
}

/// What a connection held.
#[derive(Default)]
pub(super) struct Closed {
    pub(super) publishers: Vec<(Arc<str>, Publisher)>,
    /// Once for each subscriber.
    pub(super) topics: Vec<Topic>,
}
