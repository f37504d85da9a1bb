//! Which applications serve what at Dubbo's application level.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::Hash;
use std::sync::Arc;

use super::entry::{APPLICATION, Served};
use crate::model::Instance;

/// Of the applications that serve the same as an instance the one where it is looked for too: its own, if that is one of them.
pub(crate) fn beside<'a>(
    applications: &'a BTreeSet<Arc<str>>,
    instance: &Instance,
) -> Option<&'a Arc<str>> {
    let own = instance.metadata.get(APPLICATION);
    own.and_then(|own| applications.get(own))
        .or(applications.first())
}

/// What each place, named by `K`, says that applications, named by `A`, serve.
pub(crate) struct Applications<K, A> {
    places: HashMap<K, HashSet<(Served, A)>>,
    /// In how many places.
    counts: HashMap<Served, BTreeMap<A, usize>>,
}

impl<K, A> Default for Applications<K, A> {
    fn default() -> Self {
        Applications {
            places: HashMap::new(),
            counts: HashMap::new(),
        }
    }
}

impl<K: Clone + Eq + Hash, A: Clone + Eq + Hash + Ord> Applications<K, A> {
    /// A place says these now and nothing else. Whether that changes what is served anywhere.
    pub(crate) fn put(&mut self, place: &K, now: HashSet<(Served, A)>) -> bool {
        let before = self.places.remove(place).unwrap_or_default();
        let mut is_other = false;
        for (served, application) in now.difference(&before) {
            let counts = self.counts.entry(served.clone()).or_default();
            let count = counts.entry(application.clone()).or_default();
            *count += 1;
            is_other |= *count == 1;
        }
        for (served, application) in before.difference(&now) {
            let Some(counts) = self.counts.get_mut(served) else {
                continue;
            };
            if let Some(count) = counts.get_mut(application) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(application);
                    is_other = true;
                }
            }
            if counts.is_empty() {
                self.counts.remove(served);
            }
        }
        if !now.is_empty() {
            self.places.insert(place.clone(), now);
        }
        is_other
    }

    /// A place says nothing any more.
    pub(crate) fn remove(&mut self, place: &K) {
        self.put(place, HashSet::new());
    }

    /// The applications that serve this.
    pub(crate) fn that_serve(&self, served: &Served) -> impl Iterator<Item = &A> {
        self.counts.get(served).into_iter().flat_map(BTreeMap::keys)
    }

    /// All that is served, and by which.
    pub(crate) fn all(&self) -> HashMap<Served, BTreeSet<A>> {
        let all = self.counts.iter();
        all.map(|(served, counts)| (served.clone(), counts.keys().cloned().collect()))
            .collect()
    }
}
