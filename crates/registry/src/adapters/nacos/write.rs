//! Makes true what the hub wants in Nacos over gRPC. A connection has one entry of a service, and that goes with the connection:
//! all copies of a service are one batch of one connection, which has no other use.

mod parts;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use tokio::sync::watch;
use tokio::time::Instant;

use super::connection::Connection;
use super::login::Login;
use super::{Config, Failure, Waits, place};
use crate::adapters::application_level::ServedThere;
use crate::model::Instance;
use crate::nacos::{
    BATCH_REGISTER, BatchInstanceRequest, DEREGISTER, Entry, Host, InstanceRequest, Request,
    Response, ServiceQueryRequest,
};
use crate::source::{Link, ORIGIN_MARK, Report, Wanted};

/// Services that are written at a time.
const SERVICES: usize = 16;
/// Until what was written is shown.
const SHOWN: Duration = Duration::from_secs(5);
const SHOWN_PAUSE: Duration = Duration::from_millis(100);
/// Until what the server refused or did not show is tried again, doubled with each failure.
const AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// A service.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Place {
    space: String,
    group: String,
    service: String,
}

/// Copies of one service by their ids.
type Copies = BTreeMap<Arc<str>, Host>;

/// What has to be there, with the numbers of the writings together.
type Target = BTreeMap<Place, (Copies, u64)>;

/// What a connection has put in.
#[derive(Clone, Default)]
struct Placed {
    copies: Copies,
    /// The numbers of their writings together.
    revision: u64,
    /// The server has taken it, and shows it.
    is_done: bool,
}

/// Writes as long as the registry is spoken to over gRPC.
pub(super) async fn run(
    config: &Config,
    link: &Link,
    login: &Login,
    mut is_by_grpc: watch::Receiver<bool>,
    mut served: watch::Receiver<ServedThere>,
) {
    let mut wanted = link.wanted();
    let mut waits = Waits::new();
    let mut next = fastrand::usize(..config.servers.len().max(1));
    loop {
        let now = wanted.borrow_and_update().clone();
        let nothing = now.rests || (now.publish.is_empty() && now.withdraw.is_empty());
        if nothing || !*is_by_grpc.borrow_and_update() {
            tokio::select! {
                changed = wanted.changed() => if changed.is_err() { return },
                changed = is_by_grpc.changed() => if changed.is_err() { return },
            }
            continue;
        }
        let server = config.servers.get(next % config.servers.len().max(1));
        let server = server.map(String::as_str).unwrap_or_default();
        let failure = tokio::select! {
            failure = serve(config, link, login, server, (&mut wanted, &mut served), &mut waits) => failure,
            _ = is_by_grpc.changed() => continue,
        };
        for id in now.publish.keys() {
            let (id, result) = (id.clone(), Err(failure.reason.clone()));
            link.report(Report::Written { id, result }).await;
        }
        let wait = waits.after(&failure);
        let to = failure.to;
        let redirected = config.servers.iter().position(|s| Some(s) == to.as_ref());
        next = redirected.unwrap_or(next.wrapping_add(1));
        tokio::time::sleep(wait).await;
    }
}

/// Writes on one connection until that ends.
async fn serve(
    config: &Config,
    link: &Link,
    login: &Login,
    server: &str,
    (wanted, served): (
        &mut watch::Receiver<Arc<Wanted>>,
        &mut watch::Receiver<ServedThere>,
    ),
    waits: &mut Waits,
) -> Failure {
    let space = config.namespaces.first().map_or("", String::as_str);
    let space = crate::nacos::namespace(space);
    // Nothing is subscribed here: what the server says by itself is of no interest.
    let (connection, _) = match Connection::open(config, server, space, login).await {
        Ok(opened) => opened,
        Err(failure) => return failure,
    };
    waits.reset();
    let mut writing = Writing {
        config,
        link,
        login,
        connection: &connection,
        served: None,
        published: HashSet::new(),
        placed: HashMap::new(),
        reported: HashMap::new(),
        withdrawn: HashSet::new(),
    };
    let mut over = std::pin::pin!(connection.watch_over(config, login));
    let (min, max) = AGAIN;
    let mut again = min;
    loop {
        let now = wanted.borrow_and_update().clone();
        writing.served = served.borrow_and_update().clone();
        let done = tokio::select! {
            // The connection keeps what there is.
            () = std::future::ready(()), if now.rests => true,
            done = writing.make_true(&now), if !now.rests => match done {
                Ok(done) => done,
                Err(failure) => return failure,
            },
            failure = &mut over => return failure,
        };
        again = if done { min } else { (again * 2).min(max) };
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() {
                return Failure::unreachable("the hub has ended");
            },
            // Its sender goes with the hub.
            Ok(()) = served.changed() => {}
            () = tokio::time::sleep(again), if !done => {}
            failure = &mut over => return failure,
        }
    }
}

struct Writing<'a> {
    config: &'a Config,
    link: &'a Link,
    login: &'a Login,
    connection: &'a Connection,
    /// What the registry's own applications of Dubbo serve.
    served: ServedThere,
    /// Applications and revisions whose configurations are there.
    published: HashSet<(String, String)>,
    /// What this connection has put in.
    placed: HashMap<Place, Placed>,
    reported: HashMap<Arc<str>, Result<(), String>>,
    withdrawn: HashSet<Arc<str>>,
}

impl Writing<'_> {
    /// Whether all went well.
    async fn make_true(&mut self, wanted: &Wanted) -> Result<bool, Failure> {
        self.reported
            .retain(|id, _| wanted.publish.contains_key(id));
        self.withdrawn.retain(|id| wanted.withdraw.contains_key(id));
        let mut target = Target::new();
        for (id, instance) in &wanted.publish {
            match self.place(instance) {
                Ok((place, host)) => {
                    let (copies, revision) = target.entry(place).or_default();
                    copies.insert(id.clone(), host);
                    *revision = revision.wrapping_add(instance.revision);
                }
                Err(why) => self.say(id, Err(why)).await,
            }
        }
        let mut of_parts = Box::pin(self.add_parts(wanted, &mut target)).await?;
        let emptied = self
            .placed
            .keys()
            .filter(|place| !target.contains_key(place));
        let emptied: Vec<Place> = emptied.cloned().collect();
        target.extend(emptied.into_iter().map(|place| (place, Default::default())));
        let is_done = |place: &Place, (copies, revision): &(Copies, u64)| {
            let placed = self.placed.get(place);
            placed.is_some_and(|placed| {
                placed.is_done && placed.copies == *copies && placed.revision == *revision
            })
        };
        target.retain(|place, copies| !is_done(place, copies));
        let before = |place: &Place| self.placed.get(place).cloned().unwrap_or_default().copies;
        let jobs: Vec<_> = target
            .into_iter()
            .map(|(place, copies)| (before(&place), place, copies))
            .collect();
        let (connection, config, login) = (self.connection, self.config, self.login);
        let jobs = stream::iter(jobs).map(|(before, place, (copies, revision))| async move {
            let batch = Batch {
                connection,
                config,
                login,
                place: &place,
            };
            let written = batch.write(&copies, &before).await;
            (place, copies, revision, before, written)
        });
        let mut jobs = std::pin::pin!(jobs.buffer_unordered(SERVICES));
        let mut done = of_parts.values().all(Result::is_ok);
        while let Some((place, copies, revision, mut before, written)) = jobs.next().await {
            let result = written?;
            done &= result.is_ok();
            for id in copies.keys() {
                let failed = result.as_ref().err().and_then(|failed| failed.of(id));
                let said = failed.map_or(Ok(()), Err);
                match of_parts.get_mut(id) {
                    Some(known) if known.is_ok() => *known = said,
                    Some(_) => {}
                    None => self.say(id, said).await,
                }
            }
            match &result {
                Ok(()) if copies.is_empty() => self.placed.remove(&place),
                Ok(()) => {
                    let placed = Placed {
                        copies,
                        revision,
                        is_done: true,
                    };
                    self.placed.insert(place, placed)
                }
                // Whatever may be there has to go when it is wanted no longer.
                Err(_) => {
                    before.extend(copies);
                    let placed = Placed {
                        copies: before,
                        revision,
                        is_done: false,
                    };
                    self.placed.insert(place, placed)
                }
            };
        }
        for (id, said) in of_parts {
            self.say(&id, said).await;
        }
        done &= self.withdraw(wanted).await?;
        Ok(done)
    }

    /// Copies of an earlier connection go with that: it is only looked whether they have.
    async fn withdraw(&mut self, wanted: &Wanted) -> Result<bool, Failure> {
        let mut places: BTreeMap<Place, Vec<(Arc<str>, Host)>> = BTreeMap::new();
        for (id, instance) in &wanted.withdraw {
            if self.withdrawn.contains(id) {
                continue;
            }
            match self.place(instance) {
                Ok((place, host)) => places.entry(place).or_default().push((id.clone(), host)),
                // What has no place here was never here.
                Err(_) => self.tell_withdrawn(id).await,
            }
        }
        let mut done = true;
        for (place, copies) in places {
            let shown = self.batch(&place).shown().await?;
            for (id, host) in copies {
                let own = self.placed.get(&place);
                let is_own =
                    own.is_some_and(|own| own.copies.values().any(|is| same_address(is, &host)));
                if is_own
                    || !shown
                        .iter()
                        .any(|is| is_copy(is) && same_address(is, &host))
                {
                    self.tell_withdrawn(&id).await;
                } else {
                    done = false;
                }
            }
        }
        Ok(done)
    }

    fn batch<'p>(&'p self, place: &'p Place) -> Batch<'p> {
        Batch {
            connection: self.connection,
            config: self.config,
            login: self.login,
            place,
        }
    }

    fn place(&self, instance: &Instance) -> Result<(Place, Host), String> {
        let (space, registration) = place(self.config, instance)?;
        let place = Place {
            space: space.to_owned(),
            group: registration.group,
            service: registration.service,
        };
        // The request says it; r-nacos would take an instance's own word for it, where Nacos' client says nothing.
        let host = Host {
            service_name: String::new(),
            ..registration.host
        };
        Ok((place, host))
    }

    async fn say(&mut self, id: &Arc<str>, result: Result<(), String>) {
        if self.reported.get(id) == Some(&result) {
            return;
        }
        self.reported.insert(id.clone(), result.clone());
        let id = id.clone();
        self.link.report(Report::Written { id, result }).await;
    }

    async fn tell_withdrawn(&mut self, id: &Arc<str>) {
        self.withdrawn.insert(id.clone());
        self.link.report(Report::Withdrawn { id: id.clone() }).await;
    }
}

/// What is not in the registry as it should be.
enum Unwritten {
    /// Nothing of the batch was taken.
    All(String),
    /// It was taken, but these copies are not shown, or something that was taken out still is.
    These(BTreeSet<Arc<str>>),
}

impl Unwritten {
    /// Why a copy is not written, if it is not.
    fn of(&self, id: &Arc<str>) -> Option<String> {
        match self {
            Unwritten::All(why) => Some(why.clone()),
            Unwritten::These(ids) => ids
                .contains(id)
                .then(|| "it is written, but not shown like that".to_owned()),
        }
    }
}

/// A service that is written.
struct Batch<'a> {
    connection: &'a Connection,
    config: &'a Config,
    login: &'a Login,
    place: &'a Place,
}

impl Batch<'_> {
    /// Puts these copies in the place of those before, and looks whether they are there.
    async fn write(
        &self,
        copies: &Copies,
        before: &Copies,
    ) -> Result<Result<(), Unwritten>, Failure> {
        let gone: Vec<&Host> = before
            .values()
            .filter(|host| !copies.values().any(|copy| same_address(copy, host)))
            .collect();
        let request = match gone.first() {
            _ if !copies.is_empty() => self.batch(BATCH_REGISTER, copies.values()),
            // To Nacos this takes out all that the connection has of the service.
            Some(first) => Request::Instance(Box::new(InstanceRequest {
                namespace: self.place.space.clone(),
                service_name: self.place.service.clone(),
                group_name: self.place.group.clone(),
                r#type: DEREGISTER.to_owned(),
                instance: Host::clone(first),
            })),
            None => return Ok(Ok(())),
        };
        let asked = self.connection.try_ask(self.config, self.login, &request);
        if let Err(refused) = asked.await? {
            return Ok(Err(Unwritten::All(refused.to_string())));
        }
        let deadline = Instant::now() + SHOWN;
        let mut is_named = false;
        loop {
            let shown = self.shown().await?;
            let left = |host: &&Host| shown.iter().any(|is| is_copy(is) && same_address(is, host));
            let left: Vec<&Host> = gone.iter().copied().filter(left).collect();
            let missing = copies
                .iter()
                .filter(|(_, copy)| !shown.iter().any(|is| shows(is, copy)));
            let missing: BTreeSet<Arc<str>> = missing.map(|(id, _)| id.clone()).collect();
            if left.is_empty() && missing.is_empty() {
                return Ok(Ok(()));
            }
            // r-nacos leaves in what a batch does not name, and takes it out when it is named; Nacos knows no such request.
            if !left.is_empty() && !is_named {
                is_named = true;
                let request = self.batch(DEREGISTER, left.into_iter());
                let asked = self.connection.try_ask(self.config, self.login, &request);
                let _ = asked.await?;
                continue;
            }
            if Instant::now() >= deadline {
                return Ok(Err(Unwritten::These(missing)));
            }
            tokio::time::sleep(SHOWN_PAUSE).await;
        }
    }

    fn batch<'h>(&self, what: &str, hosts: impl Iterator<Item = &'h Host>) -> Request {
        let mut addresses = BTreeSet::new();
        // Two copies of one address are one instance.
        let hosts =
            hosts.filter(|host| addresses.insert((&host.ip, host.port, &host.cluster_name)));
        Request::BatchInstance(BatchInstanceRequest {
            namespace: self.place.space.clone(),
            service_name: self.place.service.clone(),
            group_name: self.place.group.clone(),
            r#type: what.to_owned(),
            instances: hosts.cloned().collect(),
        })
    }

    /// The instances of the service as everybody sees them.
    async fn shown(&self) -> Result<Vec<Host>, Failure> {
        let request = Request::ServiceQuery(ServiceQueryRequest {
            namespace: self.place.space.clone(),
            service_name: self.place.service.clone(),
            group_name: self.place.group.clone(),
            cluster: String::new(),
            healthy_only: false,
            udp_port: 0,
        });
        let answer = self.connection.try_ask(self.config, self.login, &request);
        let info = match answer.await? {
            Ok(Response::QueryService(answer)) => answer.service_info,
            Ok(other) => return Err(self.connection.unexpected(&other)),
            Err(refused) if refused.is_of_access() => {
                return Err(self.connection.refused(&request, &refused));
            }
            // A service without instances may be unknown.
            Err(_) => return Ok(Vec::new()),
        };
        let hosts = info.hosts.into_iter().filter_map(|entry| match entry {
            Entry::Host(host) => Some(host),
            Entry::Broken(_) => None,
        });
        Ok(hosts.collect())
    }
}

fn is_copy(host: &Host) -> bool {
    host.metadata.contains_key(ORIGIN_MARK)
}

fn same_address(a: &Host, b: &Host) -> bool {
    (&a.ip, a.port, &a.cluster_name) == (&b.ip, b.port, &b.cluster_name)
}

/// Whether a copy is shown as it was written: servers may keep an operator's weight, or words of one that was there before.
fn shows(is: &Host, copy: &Host) -> bool {
    same_address(is, copy)
        && (is.weight - copy.weight).abs() < 0.001
        && copy
            .metadata
            .iter()
            .all(|(key, value)| is.metadata.get(key) == Some(value))
}
