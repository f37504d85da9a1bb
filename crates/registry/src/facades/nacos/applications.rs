//! What clients serve at Dubbo's application level: consumers that find one there ask for no provider of an interface, so that all
//! others have to be there too.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::directory::Name;
use crate::model::Instance;
use crate::nacos::Host;
use crate::naming::dubbo_application::entry::Served;
use crate::naming::dubbo_application::served::{self, beside};
use crate::naming::nacos::in_application;

/// Where an instance is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    /// As its framework registers in any case.
    Own,
    /// As a part of an application of Dubbo.
    Application,
}

/// The applications, by the numbers of clients' entries.
#[derive(Default)]
pub(super) struct Applications(served::Applications<u64, Name>);

impl Applications {
    /// An entry of an application serves these from now on and nothing else.
    pub(super) fn put(&mut self, number: u64, name: &Name, instances: &[Instance]) {
        let served = instances.iter().filter_map(Served::by);
        let now = served.map(|served| (served, name.clone())).collect();
        self.0.put(&number, now);
    }

    /// It is no more.
    pub(super) fn remove(&mut self, number: u64) {
        self.0.remove(&number);
    }

    /// The applications beside which an instance has to be: one in each group of each namespace.
    pub(super) fn beside(&self, instance: &Instance) -> Vec<Name> {
        let served = Served::by(instance);
        let names = served.iter().flat_map(|served| self.0.that_serve(served));
        let mut groups: BTreeMap<_, BTreeSet<Arc<str>>> = BTreeMap::new();
        for name in names {
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
