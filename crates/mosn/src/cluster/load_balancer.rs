//! Load balancing over a fixed list of hosts: round robin, least request and random, with weights.

use std::cell::{Cell, RefCell};
use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::rc::Rc;

use super::config::{ClusterConfig, LbPolicy};
use super::host::Host;

/// Chooses among the hosts of one priority or subset.
pub struct Balancer {
    hosts: Vec<Rc<Host>>,
    policy: LbPolicy,
    schedule: Schedule,
}

enum Schedule {
    /// All weights are equal: the index of the next host.
    Equal(Cell<usize>),
    /// Earliest deadline first.
    Weighted(RefCell<Edf>),
}

impl Balancer {
    /// A balancer over `hosts`, all of which may be chosen.
    pub fn new(config: &ClusterConfig, hosts: Vec<Rc<Host>>) -> Balancer {
        let first = hosts.first().map_or(1, |h| h.weight.get());
        let equal =
            hosts.iter().all(|h| h.weight.get() == first) || config.lb_policy == LbPolicy::Random;
        let schedule = if equal {
            // workers and restarts must not all begin with the same host
            Schedule::Equal(Cell::new(fastrand::usize(0..hosts.len().max(1))))
        } else {
            Schedule::Weighted(RefCell::new(Edf::new(&hosts)))
        };
        Balancer {
            hosts,
            policy: config.lb_policy,
            schedule,
        }
    }

    /// The hosts that may be chosen.
    pub fn hosts(&self) -> &[Rc<Host>] {
        &self.hosts
    }

    /// The next host.
    pub fn pick(&self) -> Option<Rc<Host>> {
        if let [only] = self.hosts.as_slice() {
            return Some(only.clone());
        }
        match (&self.schedule, self.policy) {
            (Schedule::Weighted(edf), policy) => {
                let index = edf.borrow_mut().next(|i| self.current_weight(i, policy))?;
                self.hosts.get(index).cloned()
            }
            (Schedule::Equal(next), LbPolicy::RoundRobin) => {
                let index = next.get();
                next.set((index + 1) % self.hosts.len().max(1));
                self.hosts.get(index).cloned()
            }
            (Schedule::Equal(_), LbPolicy::Random) => self.random().cloned(),
            (Schedule::Equal(_), LbPolicy::LeastRequest { choices }) => {
                let mut best = self.random()?;
                for _ in 1..choices {
                    let other = self.random()?;
                    if other.active_requests.get() < best.active_requests.get() {
                        best = other;
                    }
                }
                Some(best.clone())
            }
        }
    }

    fn random(&self) -> Option<&Rc<Host>> {
        if self.hosts.is_empty() {
            return None;
        }
        self.hosts.get(fastrand::usize(0..self.hosts.len()))
    }

    /// Envoy's `LeastRequestLoadBalancer`: weight / (active requests + 1) ^ bias, with a bias of 1.
    fn current_weight(&self, index: usize, policy: LbPolicy) -> f64 {
        let Some(host) = self.hosts.get(index) else {
            return 1.0;
        };
        let weight = f64::from(host.weight.get().max(1));
        match policy {
            LbPolicy::LeastRequest { .. } => weight / f64::from(host.active_requests.get() + 1),
            LbPolicy::RoundRobin | LbPolicy::Random => weight,
        }
    }
}

/// Earliest-deadline-first: a host with weight w comes every 1/w.
struct Edf {
    now: f64,
    order: u64,
    queue: BinaryHeap<Entry>,
}

struct Entry {
    deadline: f64,
    order: u64,
    index: usize,
}

impl Edf {
    fn new(hosts: &[Rc<Host>]) -> Edf {
        let mut edf = Edf {
            now: 0.0,
            order: 0,
            queue: BinaryHeap::with_capacity(hosts.len()),
        };
        for (index, host) in hosts.iter().enumerate() {
            // a random phase, so that a heavy host is not hit first by every worker
            let weight = f64::from(host.weight.get().max(1));
            edf.push(index, fastrand::f64() / weight);
        }
        edf
    }

    fn push(&mut self, index: usize, after: f64) {
        self.order += 1;
        self.queue.push(Entry {
            deadline: self.now + after,
            order: self.order,
            index,
        });
    }

    fn next(&mut self, weight: impl Fn(usize) -> f64) -> Option<usize> {
        let entry = self.queue.pop()?;
        self.now = entry.deadline;
        self.push(entry.index, 1.0 / weight(entry.index));
        Some(entry.index)
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Entry) -> Ordering {
        // the heap gives the greatest first: turned around
        other
            .deadline
            .total_cmp(&self.deadline)
            .then(other.order.cmp(&self.order))
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Entry) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Entry) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Entry {}
