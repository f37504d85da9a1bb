//! When the lease of each instance ends. A million leases cost some fifty bytes each: an instance is known here by where it is
//! in memory, and its time is a number.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::model::Instance;

/// Left-over entries that are not worth a walk over all.
const FEW: usize = 1024;

/// An instance as it was put in; the same with another content is another one.
#[derive(Clone, Debug)]
struct Held(Arc<Instance>);

impl PartialEq for Held {
    fn eq(&self, other: &Held) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Held {}

impl Hash for Held {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.0).hash(state);
    }
}

/// When it has to be looked whether a lease is over; the earliest is the greatest.
#[derive(Debug)]
struct Due {
    at: u64,
    instance: Held,
}

impl PartialEq for Due {
    fn eq(&self, other: &Due) -> bool {
        self.at == other.at
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Due) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Due) -> Ordering {
        other.at.cmp(&self.at)
    }
}

/// All leases. The heap has one entry for each; a renewal only moves `ends`, and the entry is put back when its time comes.
pub(crate) struct Leases {
    /// From which times are counted, in nanoseconds.
    epoch: Instant,
    ends: HashMap<Held, u64>,
    due: BinaryHeap<Due>,
}

impl Leases {
    /// No leases; none will begin before `now`.
    pub(crate) fn new(now: Instant) -> Leases {
        Leases {
            epoch: now,
            ends: HashMap::new(),
            due: BinaryHeap::new(),
        }
    }

    fn time(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.epoch);
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }

    /// Starts a lease, anew if there is one; `None` is for ever.
    pub(crate) fn start(&mut self, instance: &Arc<Instance>, ttl: Option<Duration>, now: Instant) {
        let Some(ttl) = ttl else {
            self.end(instance);
            return;
        };
        let at = self.time(now + ttl);
        let instance = Held(instance.clone());
        if self.ends.insert(instance.clone(), at).is_none() {
            self.due.push(Due { at, instance });
        }
    }

    /// Ends a lease.
    pub(crate) fn end(&mut self, instance: &Arc<Instance>) {
        self.ends.remove(&Held(instance.clone()));
        if self.due.len() > 2 * self.ends.len() + FEW {
            self.due.retain(|due| self.ends.contains_key(&due.instance));
        }
    }

    /// When the next lease can be over.
    pub(crate) fn next(&self) -> Option<Instant> {
        let due = self.due.peek()?;
        Some(self.epoch + Duration::from_nanos(due.at))
    }

    /// Ends the leases that are over.
    pub(crate) fn overdue(&mut self, now: Instant, limit: usize) -> Vec<Arc<Instance>> {
        let now = self.time(now);
        let mut overdue = Vec::new();
        while overdue.len() < limit
            && self.due.peek().is_some_and(|due| due.at <= now)
            && let Some(Due { instance, .. }) = self.due.pop()
        {
            match self.ends.get(&instance) {
                // It was replaced or taken out.
                None => {}
                Some(at) if *at > now => self.due.push(Due { at: *at, instance }),
                Some(_) => {
                    self.ends.remove(&instance);
                    overdue.push(instance.0);
                }
            }
        }
        overdue
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ServiceKey;

    #[test]
    fn what_comes_and_goes_leaves_nothing() {
        let now = Instant::now();
        let mut leases = Leases::new(now);
        let day = Duration::from_secs(86_400);
        for _ in 0..10 * FEW {
            let instance = Instance::new(ServiceKey::new("bolt", "s"), "10.0.0.1", 1);
            let instance = Arc::new(instance);
            leases.start(&instance, Some(day), now);
            leases.end(&instance);
        }
        assert!(leases.ends.is_empty());
        assert!(leases.due.len() <= FEW, "{}", leases.due.len());
    }
}
