//! What clients serve at Dubbo's application level: consumers that find one there ask for no provider of an interface, so that all
//! others have to be there too.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::directory::Name;
use crate::model::Instance;
use crate::nacos::Host;
use crate::naming::dubbo_application::entry::{Served, beside};
use crate::naming::nacos::in_application;

/// Where an instance is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    /// As its framework registers in any case.
    Own,
    /// As a part of an application of Dubbo.
    Application,
}

/// The applications.
#[derive(Default)]
pub(super) struct Applications {
    /// By the numbers of clients' entries.
    entries: HashMap<u64, (Name, HashSet<Served>)>,
    /// In how many entries of each application.
    counts: HashMap<Served, BTreeMap<Name, usize>>,
}

impl Applications {
    /// An entry of an application serves these from now on and nothing else.
    pub(super) fn put(&mut self, number: u64, name: &Name, instances: &[Instance]) {
        self.remove(number);
        let served: HashSet<Served> = instances.iter().filter_map(Served::by).collect();
        for served in &served {
            let counts = self.counts.entry(served.clone()).or_default();
            *counts.entry(name.clone()).or_default() += 1;
        }
        self.entries.insert(number, (name.clone(), served));
    }

    /// It is no more.
    pub(super) fn remove(&mut self, number: u64) {
        let Some((name, served)) = self.entries.remove(&number) else {
            return;
        };
        for served in served {
            let Some(counts) = self.counts.get_mut(&served) else {
                continue;
            };
            if let Some(count) = counts.get_mut(&name) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(&name);
                }
            }
            if counts.is_empty() {
                self.counts.remove(&served);
            }
        }
    }

    /// The applications beside which an instance has to be: one in each group of each namespace.
    pub(super) fn beside(&self, instance: &Instance) -> Vec<Name> {
        let counts = Served::by(instance).and_then(|served| self.counts.get(&served));
        let mut groups: BTreeMap<_, BTreeSet<Arc<str>>> = BTreeMap::new();
        for name in counts.into_iter().flat_map(BTreeMap::keys) {
            let group = groups.entry((&name.namespace, &name.group)).or_default();
            group.insert(name.service.clone());
        }
        let names = groups.iter().filter_map(|((namespace, group), all)| {
            Some(Name {
                namespace: Arc::clone(namespace),
                group: Arc::clone(group),
                service: beside(all, instance)?.clone(),
            })
        });
        names.collect()
    }
}

/// Instances as a part of an application, each with what is served there (`MetadataInfo`) under its revision.
pub(super) fn said(
    application: &str,
    instances: &[Arc<Instance>],
) -> Vec<(Host, (String, String))> {
    let mut by_address: BTreeMap<(&str, u16), Vec<&Instance>> = BTreeMap::new();
    for instance in instances {
        let address = (&*instance.address, instance.port);
        by_address.entry(address).or_default().push(instance);
    }
    let entries = by_address.values();
    let entries = entries.filter_map(|instances| in_application(application, instances));
    entries
        .map(|(host, entry)| (host, (entry.revision, entry.info)))
        .collect()
}
