//! Reads the services of all namespaces over gRPC: each is subscribed once, then its lists are pushed.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::future::Future;
use std::pin::Pin;

use futures_util::StreamExt;
use futures_util::stream::{FuturesUnordered, SelectAll, select_all};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tokio_stream::wrappers::ReceiverStream;

use super::connection::{Connection, Events};
use super::listing::{self, Change, Id, Known};
use super::login::Login;
use super::services::Services;
use super::{Config, Failure, Protocol, http};
use crate::adapters::application_level::ServedThere;
use crate::adapters::applications::{Centre, permits};
use crate::dubbo_metadata::Revisions;
use crate::nacos::{
    ConfigKey, FuzzyWatchChangeRequest, FuzzyWatchSyncRequest, Refused, Request, Response,
    ServiceInfo, SubscribeServiceRequest, namespace, split_name,
};
use crate::naming::dubbo_application::{MetadataInfo, Provider};
use crate::source::{Link, Report, Trouble};

/// Subscriptions under way at a time.
const SUBSCRIPTIONS: usize = 64;
const FINISHED: &str = "FINISH_FUZZY_WATCH_INIT_NOTIFY";

/// A server that answers.
pub(super) enum Opened<'a> {
    /// A connection for each namespace.
    Grpc(Vec<Connection>, Vec<Events>),
    /// Its services are known already.
    Http(Box<http::Server<'a>>, Vec<http::Listed>),
}

/// Connects to a server in the way that it and the configuration want.
pub(super) async fn open<'a>(
    config: &'a Config,
    server: &'a str,
    login: &'a Login,
) -> Result<Opened<'a>, Failure> {
    if config.protocol != Protocol::Http {
        let spaces = config.all_namespaces();
        let opened = spaces
            .iter()
            .map(|space| Connection::open(config, server, space, login));
        match futures_util::future::try_join_all(opened).await {
            Ok(opened) => {
                let (connections, events) = opened.into_iter().unzip();
                return Ok(Opened::Grpc(connections, events));
            }
            Err(failure) => {
                let may_be_old = failure.trouble == Trouble::Unreachable;
                if config.protocol == Protocol::Grpc
                    || !may_be_old
                    || !http::is_first_version(config, server).await
                {
                    return Err(failure);
                }
            }
        }
    }
    let (server, listed) = http::open(config, server, login).await?;
    Ok(Opened::Http(Box::new(server), listed))
}

/// Reads from a server until that is no longer possible.
pub(super) async fn run(
    config: &Config,
    link: &Link,
    server: &str,
    login: &Login,
    revisions: &Revisions,
    (connections, events): (Vec<Connection>, Vec<Events>),
    tell: &watch::Sender<ServedThere>,
) -> Failure {
    let report = Report::Connected {
        server: server.to_owned(),
    };
    link.report(report).await;
    let spaces = config.all_namespaces();
    let centre = ConfigCentre {
        config,
        login,
        connections: &connections,
    };
    let permits = permits();
    let tell = tell.clone();
    let services = Services::new(config, link, &spaces, &centre, revisions, &permits, tell);
    let numbers = 0..connections.len();
    let lists = numbers.flat_map(|space| config.groups.iter().map(move |group| (space, group)));
    let unlisted = lists.map(|(space, group)| (space, group.clone())).collect();
    let mut reading = Reading {
        config,
        login,
        connections: &connections,
        services,
        known: Known::default(),
        queue: VecDeque::new(),
        unlisted,
        polled: Vec::new(),
    };
    reading.run(events).await
}

/// Dubbo's metadata centre in Nacos: configurations.
struct ConfigCentre<'a> {
    config: &'a Config,
    login: &'a Login,
    connections: &'a [Connection],
}

impl Centre<Id> for ConfigCentre<'_> {
    async fn info(&self, id: &Id, provider: &Provider) -> Result<MetadataInfo, String> {
        let connection = self.connections.get(id.space);
        let connection = connection.ok_or("its namespace is not read")?;
        let request = Request::ConfigQuery(ConfigKey {
            data_id: provider.application.clone(),
            group: provider.revision.clone(),
            tenant: tenant(connection.namespace()).to_owned(),
        });
        let asked = connection.try_ask(self.config, self.login, &request).await;
        match asked.map_err(|failure| failure.reason)? {
            Ok(Response::ConfigQuery(found)) => {
                MetadataInfo::from_json(found.content.as_bytes()).map_err(|e| e.to_string())
            }
            Ok(other) => Err(connection.unexpected(&other).reason),
            Err(refused) => Err(format!("the revision's configuration: {refused}")),
        }
    }
}

/// To configurations the public namespace has no name.
pub(super) fn tenant(name: &str) -> &str {
    if name == namespace("") { "" } else { name }
}

/// What was asked, and the answer.
enum Done {
    Watched(usize, Result<bool, Failure>),
    Listed(usize, String, Result<Names, Failure>),
    Subscribed(Id, Result<Result<ServiceInfo, Refused>, Failure>),
    Unsubscribed(Result<(), Failure>),
}

type Names = BTreeSet<(String, String)>;
type Asking<'a> = Pin<Box<dyn Future<Output = Done> + Send + 'a>>;

enum Work {
    Subscribe(Id),
    Unsubscribe(Id),
}

struct Reading<'a, 'c> {
    config: &'a Config,
    login: &'a Login,
    connections: &'a [Connection],
    services: Services<'a, ConfigCentre<'c>>,
    known: Known,
    queue: VecDeque<Work>,
    /// Lists of services that were not given yet.
    unlisted: HashSet<(usize, String)>,
    /// Namespaces whose server has to be asked for its services.
    polled: Vec<usize>,
}

impl<'a> Reading<'a, '_> {
    async fn run(&mut self, events: Vec<Events>) -> Failure {
        let (config, login, connections) = (self.config, self.login, self.connections);
        let numbered = events.into_iter().enumerate();
        let mut events: SelectAll<_> = select_all(
            numbered.map(|(n, events)| ReceiverStream::new(events).map(move |event| (n, event))),
        );
        let over = connections
            .iter()
            .map(|connection| Box::pin(connection.watch_over(config, login)));
        let mut over: FuturesUnordered<_> = over.collect();
        let mut under_way: FuturesUnordered<Asking<'a>> = FuturesUnordered::new();
        let mut listings = 0;
        let mut subscriptions = 0;
        for (space, connection) in connections.iter().enumerate() {
            listings += 1;
            under_way.push(Box::pin(async move {
                Done::Watched(space, listing::watch(config, login, connection).await)
            }));
        }
        let every = config.list_interval();
        let mut again = interval_at(Instant::now() + every, every);
        again.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            while subscriptions < SUBSCRIPTIONS
                && let Some(work) = self.queue.pop_front()
            {
                subscriptions += 1;
                under_way.push(self.subscribe(work));
            }
            let is_done = self.unlisted.is_empty() && subscriptions == 0 && self.queue.is_empty();
            if is_done {
                self.services.synced().await;
            }
            tokio::select! {
                Some(done) = under_way.next(), if !under_way.is_empty() => match done {
                    Done::Watched(_, Ok(true)) => listings -= 1,
                    Done::Watched(space, Ok(false)) => {
                        listings -= 1;
                        self.polled.push(space);
                        listings += self.list(space, &mut under_way);
                    }
                    Done::Listed(space, group, Ok(names)) => {
                        listings -= 1;
                        self.unlisted.remove(&(space, group.clone()));
                        let changes = self.known.listed(space, &group, &names);
                        for change in changes {
                            self.change(change).await;
                        }
                    }
                    Done::Subscribed(id, Ok(answer)) => {
                        subscriptions -= 1;
                        // It may be gone again.
                        if self.known.has(&id) {
                            match answer {
                                Ok(info) => self.services.take(&id, info, false).await,
                                Err(why) => self.services.refused(&id, &why.to_string()).await,
                            }
                        }
                    }
                    Done::Unsubscribed(Ok(())) => subscriptions -= 1,
                    Done::Watched(_, Err(failure))
                    | Done::Listed(_, _, Err(failure))
                    | Done::Subscribed(_, Err(failure))
                    | Done::Unsubscribed(Err(failure)) => return failure,
                },
                Some(id) = self.services.next() => self.services.tell_more(&id).await,
                Some((space, event)) = events.next() => self.event(space, event).await,
                Some(failure) = over.next() => return failure,
                _ = again.tick() => if listings == 0 {
                    for space in self.polled.clone() {
                        listings += self.list(space, &mut under_way);
                    }
                },
            }
        }
    }

    /// Asks for the services of all groups of a namespace; how many lists that are.
    fn list(&self, space: usize, under_way: &mut FuturesUnordered<Asking<'a>>) -> usize {
        let (config, login, connections) = (self.config, self.login, self.connections);
        let Some(connection) = connections.get(space) else {
            return 0;
        };
        for group in &config.groups {
            under_way.push(Box::pin(async move {
                let names = listing::names(config, login, connection, group).await;
                Done::Listed(space, group.clone(), names)
            }));
        }
        config.groups.len()
    }

    async fn change(&mut self, change: Change) {
        match change {
            Change::Came(id) => self.queue.push_back(Work::Subscribe(id)),
            Change::Went(id, certain) => {
                self.services.went(&id, certain).await;
                self.queue.push_back(Work::Unsubscribe(id));
            }
        }
    }

    async fn event(&mut self, space: usize, event: Request) {
        match event {
            Request::NotifySubscriber(push) => {
                let info = push.service_info;
                let (group, name) = split_name(&info.group_name, &info.name);
                let id = Id {
                    space,
                    group: group.to_owned(),
                    name: name.to_owned(),
                };
                if self.known.has(&id) {
                    // Before the answer to the subscription it is as good as that.
                    let certain = self.services.is_told(&id);
                    self.services.take(&id, info, certain).await;
                }
            }
            Request::FuzzyWatchSync(FuzzyWatchSyncRequest {
                group_key_pattern,
                sync_type,
                contexts,
                ..
            }) => {
                for told in contexts {
                    let change = self
                        .known
                        .told(space, &told.service_key, &told.changed_type);
                    if let Some(change) = change {
                        self.change(change).await;
                    }
                }
                if sync_type == FINISHED {
                    let group = group_key_pattern.split(">>").nth(1);
                    let is_listed = |of: &str| group.is_none_or(|group| group == of);
                    self.unlisted
                        .retain(|(of, group)| *of != space || !is_listed(group));
                }
            }
            Request::FuzzyWatchChange(FuzzyWatchChangeRequest {
                service_key,
                changed_type,
                ..
            }) => {
                if let Some(change) = self.known.told(space, &service_key, &changed_type) {
                    self.change(change).await;
                }
            }
            _ => {}
        }
    }

    fn subscribe(&self, work: Work) -> Asking<'a> {
        let (config, login, connections) = (self.config, self.login, self.connections);
        let subscribe = matches!(work, Work::Subscribe(_));
        let (Work::Subscribe(id) | Work::Unsubscribe(id)) = work;
        Box::pin(async move {
            let Some(connection) = connections.get(id.space) else {
                return Done::Unsubscribed(Ok(()));
            };
            let request = Request::SubscribeService(SubscribeServiceRequest {
                namespace: connection.namespace().to_owned(),
                service_name: id.name.clone(),
                group_name: id.group.clone(),
                subscribe,
                clusters: String::new(),
            });
            let answer = connection.try_ask(config, login, &request).await;
            let answer = match answer {
                Ok(Ok(Response::SubscribeService(answer))) => Ok(Ok(answer.service_info)),
                Ok(Ok(other)) => Err(connection.unexpected(&other)),
                Ok(Err(refused)) if refused.is_of_access() => {
                    Err(connection.refused(&request, &refused))
                }
                Ok(Err(refused)) => Ok(Err(refused)),
                Err(failure) => Err(failure),
            };
            if subscribe {
                Done::Subscribed(id, answer)
            } else {
                // What cannot be given back goes with the connection.
                Done::Unsubscribed(answer.map(|_| ()))
            }
        })
    }
}
