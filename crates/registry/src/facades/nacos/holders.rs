//! What is registered for clients: each instance as long as something of theirs says it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::applications::Level;
use crate::model::{Instance, InstanceRef, ServiceKey};

/// One that says an instance.
struct Holder {
    /// The number of the client's entry.
    number: u64,
    /// The entry itself is the instance; otherwise it is one of what an application serves.
    is_entry: bool,
    instance: Arc<Instance>,
}

/// All of them.
#[derive(Default)]
pub(super) struct Holders {
    by_instance: HashMap<InstanceRef, Vec<Holder>>,
    by_number: HashMap<u64, Vec<InstanceRef>>,
    /// Instances that nothing says any more, until the hub has them no longer.
    leaving: HashMap<ServiceKey, HashSet<Arc<str>>>,
}

impl Holders {
    /// An entry says these from now on and nothing else; what it changes.
    pub(super) fn put(
        &mut self,
        number: u64,
        instances: Vec<Instance>,
        is_entry: bool,
    ) -> Vec<InstanceRef> {
        let mut touched = self.remove(number);
        for instance in instances {
            let reference = instance.reference();
            if let Some(leaving) = self.leaving.get_mut(&reference.service) {
                leaving.remove(&reference.id);
            }
            let holders = self.by_instance.entry(reference.clone()).or_default();
            holders.push(Holder {
                number,
                is_entry,
                instance: Arc::new(instance),
            });
            let of_number = self.by_number.entry(number).or_default();
            of_number.push(reference.clone());
            touched.push(reference);
        }
        touched.sort();
        touched.dedup();
        touched
    }

    /// An entry says nothing any more; what that changes.
    pub(super) fn remove(&mut self, number: u64) -> Vec<InstanceRef> {
        let references = self.by_number.remove(&number).unwrap_or_default();
        for reference in &references {
            let Some(holders) = self.by_instance.get_mut(reference) else {
                continue;
            };
            holders.retain(|holder| holder.number != number);
            if holders.is_empty() {
                self.by_instance.remove(reference);
                let leaving = self.leaving.entry(reference.service.clone()).or_default();
                leaving.insert(reference.id.clone());
            }
        }
        references
    }

    /// What has to be registered; `None`: nothing.
    pub(super) fn wanted(&self, reference: &InstanceRef) -> Option<&Arc<Instance>> {
        let holders = self.by_instance.get(reference)?;
        // An entry says more of an instance than its application does, and the last one is the news.
        let last = holders.iter().rev();
        let best = last.max_by_key(|holder| (holder.is_entry, holder.number))?;
        Some(&best.instance)
    }

    /// All that has to be registered.
    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Instance>> {
        self.by_instance
            .keys()
            .filter_map(|reference| self.wanted(reference))
    }

    /// Whether clients' entries show an instance of the hub already at a level, or it is about to go.
    pub(super) fn hides(&self, instance: &Instance, level: Level) -> bool {
        let leaving = self.leaving.get(&instance.service);
        if leaving.is_some_and(|ids| ids.contains(&instance.id)) {
            return true;
        }
        let holders = self.by_instance.get(&instance.reference());
        let is_entry = level == Level::Own;
        holders.is_some_and(|holders| holders.iter().any(|holder| holder.is_entry == is_entry))
    }

    /// The hub has these instances of a service and no others.
    pub(super) fn seen(&mut self, key: &ServiceKey, instances: &[Arc<Instance>]) {
        let Some(leaving) = self.leaving.get_mut(key) else {
            return;
        };
        let there: HashSet<&Arc<str>> = instances.iter().map(|instance| &instance.id).collect();
        leaving.retain(|id| there.contains(id));
        if leaving.is_empty() {
            self.leaving.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_stays_as_long_as_something_says_it() {
        let key = ServiceKey::new("dubbo", "com.foo.Bar");
        let with_weight = |weight| {
            let mut instance = Instance::new(key.clone(), "10.0.0.1", 1);
            instance.id = "a".into();
            instance.weight = weight;
            instance
        };
        let mut holders = Holders::default();
        let reference = with_weight(1).reference();
        assert_eq!(holders.put(1, vec![with_weight(1)], true).len(), 1);
        assert_eq!(holders.put(2, vec![with_weight(2)], false).len(), 1);
        let weight = |holders: &Holders| holders.wanted(&reference).map(|i| i.weight);
        assert_eq!(weight(&holders), Some(1));
        assert!(holders.hides(&with_weight(1), Level::Own));
        assert!(holders.hides(&with_weight(1), Level::Application));
        assert_eq!(holders.remove(1).len(), 1);
        assert_eq!(weight(&holders), Some(2));
        assert!(!holders.hides(&with_weight(1), Level::Own));
        assert_eq!(holders.remove(2).len(), 1);
        assert_eq!(weight(&holders), None);
        // Until the hub knows, too.
        assert!(holders.hides(&with_weight(1), Level::Own));
        holders.seen(&key, &[Arc::new(with_weight(1))]);
        assert!(holders.hides(&with_weight(1), Level::Own));
        holders.seen(&key, &[]);
        assert!(!holders.hides(&with_weight(1), Level::Own));
    }
}
