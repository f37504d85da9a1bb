//! The lists of services as the hub is told them.

use std::collections::{HashMap, HashSet};

use tokio::sync::{Semaphore, watch};

use super::Config;
use super::listing::Id;
use crate::adapters::application_level::{ApplicationLevel, ServedThere};
use crate::adapters::applications::{Applications, Centre, Node};
use crate::dubbo_metadata::Revisions;
use crate::model::Instance;
use crate::nacos::{
    DEFAULT_CLUSTER, DEFAULT_GROUP, Entry, Host, PUBLIC, ServiceInfo, grouped_name,
};
use crate::naming::nacos::{Said, said};
use crate::source::{Link, List, Report, Skipped};

/// What was told of a service.
struct Told {
    /// An older list than this one is no news.
    last_ref_time: i64,
    is_empty: bool,
}

/// All services of a session.
pub(super) struct Services<'a, C> {
    config: &'a Config,
    link: &'a Link,
    /// Namespaces by their numbers.
    spaces: &'a [&'a str],
    told: HashMap<Id, Told>,
    /// Services that had an instance of an application in this session.
    of_applications: HashSet<Id>,
    applications: Applications<'a, Id, C>,
    level: ApplicationLevel<Id>,
    /// Every list was given: what is not yet known of one may be told later.
    synced: bool,
}

impl<'a, C: Centre<Id> + Sync> Services<'a, C> {
    pub(super) fn new(
        config: &'a Config,
        link: &'a Link,
        spaces: &'a [&'a str],
        centre: &'a C,
        revisions: &'a Revisions,
        permits: &'a Semaphore,
        tell: watch::Sender<ServedThere>,
    ) -> Services<'a, C> {
        Services {
            config,
            link,
            spaces,
            told: HashMap::new(),
            of_applications: HashSet::new(),
            applications: Applications::new(centre, revisions, permits),
            level: ApplicationLevel::new(tell),
            synced: false,
        }
    }

    /// The instances of a service. `certain`: the server told it by itself.
    pub(super) async fn take(&mut self, id: &Id, info: ServiceInfo, certain: bool) {
        let is_old = |told: &Told| told.last_ref_time > info.last_ref_time;
        if self.told.get(id).is_some_and(is_old) {
            return;
        }
        let (mut instances, mut skipped, mut nodes) = (Vec::new(), Vec::new(), Vec::new());
        for entry in info.hosts {
            let host = match entry {
                Entry::Broken(broken) => {
                    skipped.push(broken);
                    continue;
                }
                Entry::Host(host) => host,
            };
            if !self.is_of_cluster(&host) {
                continue;
            }
            match said(&id.group, &id.name, &host) {
                Ok(Said::Nothing) => nodes.push((name(&host), Node::Nothing)),
                Ok(Said::Instance(instance)) => instances.push(instance),
                Ok(Said::Application(provider)) => {
                    nodes.push((name(&host), Node::Application(provider)));
                }
                Err(error) => skipped.push(Skipped::new(&name(&host), &error)),
            }
        }
        let told = Told {
            last_ref_time: info.last_ref_time,
            is_empty: instances.is_empty() && nodes.is_empty() && skipped.is_empty(),
        };
        self.told.insert(id.clone(), told);
        let has_applications = |(_, node): &(String, Node)| matches!(node, Node::Application(_));
        if nodes.iter().any(has_applications) {
            self.of_applications.insert(id.clone());
        }
        if !self.of_applications.contains(id) {
            self.tell(id, instances, skipped, certain).await;
            return;
        }
        // Others may have registered under the application's name.
        let others = instances.into_iter().map(|instance| {
            let name = format!("{}:{}", instance.address, instance.port);
            (name, Node::Instance(instance))
        });
        nodes.extend(others);
        let names: Vec<String> = nodes.iter().map(|(name, _)| name.clone()).collect();
        self.applications.nodes(id, &names);
        for (name, node) in nodes {
            self.applications.said(id, &name, Some(Ok(node)));
        }
        self.tell_application(id, skipped, certain).await;
    }

    /// A service is no longer there.
    pub(super) async fn went(&mut self, id: &Id, certain: bool) {
        self.of_applications.remove(id);
        self.applications.remove(id);
        self.level.set(id, &[], self.synced);
        if self.told.remove(id).is_some_and(|told| !told.is_empty) {
            self.tell(id, Vec::new(), Vec::new(), certain).await;
        }
    }

    /// A service that the server does not tell.
    pub(super) async fn refused(&mut self, id: &Id, why: &str) {
        let told = Told {
            last_ref_time: 0,
            is_empty: false,
        };
        self.told.insert(id.clone(), told);
        let skipped = Skipped::new(&self.list_name(id), why);
        self.tell(id, Vec::new(), vec![skipped], false).await;
    }

    /// Whether this service was told.
    pub(super) fn is_told(&self, id: &Id) -> bool {
        self.told.contains_key(id)
    }

    /// Reports that every list was given, as soon as every application was asked once what it serves.
    pub(super) async fn synced(&mut self) {
        if !self.synced && self.applications.tried_all() {
            self.synced = true;
            self.level.tell();
            self.link.report(Report::Synced).await;
        }
    }

    /// The next service about which more is known; never when nothing is asked.
    pub(super) async fn next(&mut self) -> Option<Id> {
        self.applications.next().await
    }

    /// Tells what is known now of an application.
    pub(super) async fn tell_more(&mut self, id: &Id) {
        self.tell_application(id, Vec::new(), self.synced).await;
    }

    async fn tell_application(&mut self, id: &Id, broken: Vec<Skipped>, certain: bool) {
        // What is not known yet must not look like what is gone.
        let Some((instances, mut skipped)) = self.applications.list(id, self.synced) else {
            return;
        };
        // Where copies go.
        if id.space == 0 && id.group == DEFAULT_GROUP {
            self.level.set(id, &instances, self.synced);
        }
        skipped.extend(broken);
        self.tell(id, instances, skipped, certain).await;
    }

    async fn tell(
        &mut self,
        id: &Id,
        instances: Vec<Instance>,
        skipped: Vec<Skipped>,
        certain: bool,
    ) {
        let list = List {
            name: self.list_name(id).into(),
            instances,
            skipped,
            certain,
        };
        self.link.report(Report::List(list)).await;
    }

    fn list_name(&self, id: &Id) -> String {
        let name = grouped_name(&id.group, &id.name);
        match self.spaces.get(id.space) {
            Some(&PUBLIC) | None => name,
            Some(space) => format!("{space}/{name}"),
        }
    }

    fn is_of_cluster(&self, host: &Host) -> bool {
        let clusters = &self.config.clusters;
        let cluster = match host.cluster_name.as_str() {
            "" => DEFAULT_CLUSTER,
            cluster => cluster,
        };
        clusters.is_empty() || clusters.iter().any(|wanted| wanted == cluster)
    }
}

fn name(host: &Host) -> String {
    format!("{}:{} {}", host.ip, host.port, host.cluster_name)
}
