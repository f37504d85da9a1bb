//! What has to be registered for clients: each instance as long as somebody says it; what was said last counts.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::sync::Arc;

use crate::model::{Instance, InstanceRef};

/// Who says what, each by a name of its own.
pub(super) struct Claims<W> {
    by_instance: HashMap<InstanceRef, Vec<(W, Arc<Instance>)>>,
    by_who: HashMap<W, Vec<InstanceRef>>,
}

impl<W> Default for Claims<W> {
    fn default() -> Claims<W> {
        Claims {
            by_instance: HashMap::new(),
            by_who: HashMap::new(),
        }
    }
}

impl<W: Clone + Eq + Hash> Claims<W> {
    /// One says these from now on and nothing else; what may have changed.
    pub(super) fn put(&mut self, who: &W, instances: &[Instance]) -> BTreeSet<InstanceRef> {
        let mut touched = self.remove(who);
        for instance in instances {
            let reference = instance.reference();
            let claim = (who.clone(), Arc::new(instance.clone()));
            let claims = self.by_instance.entry(reference.clone()).or_default();
            claims.push(claim);
            let said = self.by_who.entry(who.clone()).or_default();
            said.push(reference.clone());
            touched.insert(reference);
        }
        touched
    }

    /// One says nothing any more; what may have changed.
    pub(super) fn remove(&mut self, who: &W) -> BTreeSet<InstanceRef> {
        let said = self.by_who.remove(who).unwrap_or_default();
        for reference in &said {
            if let Some(claims) = self.by_instance.get_mut(reference) {
                claims.retain(|(by, _)| by != who);
                if claims.is_empty() {
                    self.by_instance.remove(reference);
                }
            }
        }
        said.into_iter().collect()
    }

    /// What one says.
    pub(super) fn of(&self, who: &W) -> Vec<Arc<Instance>> {
        let said = self.by_who.get(who).into_iter().flatten();
        let claims = said.filter_map(|reference| self.by_instance.get(reference));
        let own = claims.flatten().filter(|(by, _)| by == who);
        own.map(|(_, instance)| instance.clone()).collect()
    }

    /// What has to be registered; `None`: nothing.
    pub(super) fn wanted(&self, reference: &InstanceRef) -> Option<Arc<Instance>> {
        let claims = self.by_instance.get(reference)?;
        claims.last().map(|(_, instance)| instance.clone())
    }

    /// All that has to be registered and has a lease.
    pub(super) fn leased(&self) -> Vec<InstanceRef> {
        let all = self.by_instance.iter();
        let last = all.filter_map(|(reference, claims)| Some((reference, claims.last()?)));
        last.filter(|(_, (_, instance))| instance.ttl.is_some())
            .map(|(reference, _)| reference.clone())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ServiceKey;

    #[test]
    fn an_instance_stays_as_long_as_somebody_says_it() {
        let with = |port, weight| {
            let mut instance = Instance::new(ServiceKey::new("bolt", "s"), "10.0.0.1", port);
            instance.id = port.to_string().into();
            instance.weight = weight;
            instance
        };
        let mut claims = Claims::default();
        let reference = with(1, 1).reference();
        let weight = |claims: &Claims<&str>| claims.wanted(&reference).map(|i| i.weight);
        claims.put(&"a", &[with(1, 1), with(2, 1)]);
        claims.put(&"b", &[with(1, 2)]);
        assert_eq!(weight(&claims), Some(2));
        // The same again is the last word.
        assert_eq!(claims.put(&"a", &[with(1, 3)]).len(), 2);
        assert_eq!(weight(&claims), Some(3));
        assert_eq!(claims.of(&"a").len(), 1);
        assert_eq!(claims.remove(&"a").len(), 1);
        assert_eq!(weight(&claims), Some(2));
        assert_eq!(claims.leased(), vec![reference.clone()]);
        claims.remove(&"b");
        assert_eq!(weight(&claims), None);
        assert!(claims.by_instance.is_empty() && claims.by_who.is_empty());
    }
}
