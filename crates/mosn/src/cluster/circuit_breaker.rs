//! `envoy.config.cluster.v3.CircuitBreakers`: how much of a cluster may be in use at once, over all workers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use api::envoy::config::cluster::v3::CircuitBreakers;
use api::envoy::config::core::v3::RoutingPriority;
use base::FieldError;

use crate::refuse_fields;

/// Priority of a route.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Priority {
    /// Most traffic.
    #[default]
    Default,
    /// Traffic with limits of its own.
    High,
}

/// One limit with what is in use of it.
///
/// Shared by the workers so that a limit of one means one; an atomic addition is cheap next to a request.
#[derive(Debug)]
struct Resource {
    max: u32,
    used: AtomicU32,
}

impl Resource {
    fn new(max: u32) -> Resource {
        Resource {
            max,
            used: AtomicU32::new(0),
        }
    }

    fn try_take(&self) -> bool {
        if self.used.fetch_add(1, Ordering::Relaxed) < self.max {
            return true;
        }
        self.used.fetch_sub(1, Ordering::Relaxed);
        false
    }

    fn give_back(&self) {
        self.used.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The thresholds of one priority.
#[derive(Debug)]
pub struct CircuitBreaker {
    connections: Resource,
    pending: Resource,
    requests: Resource,
    retries: Resource,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Connection,
    Pending,
    Request,
    Retry,
}

/// A used unit, given back when dropped.
#[derive(Debug)]
pub struct Permit {
    breaker: Arc<CircuitBreaker>,
    kind: Kind,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.breaker.resource(self.kind).give_back();
    }
}

impl CircuitBreaker {
    /// From limits: connections, pending requests, requests, retries.
    pub fn new(connections: u32, pending: u32, requests: u32, retries: u32) -> CircuitBreaker {
        CircuitBreaker {
            connections: Resource::new(connections),
            pending: Resource::new(pending),
            requests: Resource::new(requests),
            retries: Resource::new(retries),
        }
    }

    /// Both priorities of a cluster, with Envoy's defaults: 1024, 1024, 1024, 3.
    pub fn compile(
        config: Option<&CircuitBreakers>,
    ) -> Result<[Arc<CircuitBreaker>; 2], FieldError> {
        let mut compiled = [const { None }; 2];
        for (i, t) in config.iter().flat_map(|c| &c.thresholds).enumerate() {
            let refused = |e: FieldError| e.in_index(i).in_field("thresholds");
            (|| {
                refuse_fields!(t; retry_budget, max_connection_pools);
                Ok(())
            })()
            .map_err(refused)?;
            let slot = match t.priority() {
                RoutingPriority::Default => &mut compiled[0],
                RoutingPriority::High => &mut compiled[1],
            };
            // Envoy takes the first of several thresholds for one priority
            slot.get_or_insert_with(|| {
                Arc::new(CircuitBreaker::new(
                    t.max_connections.unwrap_or(1024),
                    t.max_pending_requests.unwrap_or(1024),
                    t.max_requests.unwrap_or(1024),
                    t.max_retries.unwrap_or(3),
                ))
            });
        }
        if config.is_some_and(|c| !c.per_host_thresholds.is_empty()) {
            return Err(FieldError::at("per_host_thresholds", "is not supported"));
        }
        Ok(compiled
            .map(|c| c.unwrap_or_else(|| Arc::new(CircuitBreaker::new(1024, 1024, 1024, 3)))))
    }

    /// A connection more, if the limit allows.
    pub fn try_connection(self: &Arc<Self>) -> Option<Permit> {
        self.try_take(Kind::Connection)
    }

    /// A request that waits for a connection.
    pub fn try_pending(self: &Arc<Self>) -> Option<Permit> {
        self.try_take(Kind::Pending)
    }

    /// A request in flight.
    pub fn try_request(self: &Arc<Self>) -> Option<Permit> {
        self.try_take(Kind::Request)
    }

    /// A retry in flight.
    pub fn try_retry(self: &Arc<Self>) -> Option<Permit> {
        self.try_take(Kind::Retry)
    }

    /// In use and limit of connections, pending requests, requests and retries.
    pub fn usage(&self) -> [(u32, u32); 4] {
        [
            &self.connections,
            &self.pending,
            &self.requests,
            &self.retries,
        ]
        .map(|r| (r.used.load(Ordering::Relaxed), r.max))
    }

    fn try_take(self: &Arc<Self>, kind: Kind) -> Option<Permit> {
        self.resource(kind).try_take().then(|| Permit {
            breaker: self.clone(),
            kind,
        })
    }

    fn resource(&self, kind: Kind) -> &Resource {
        match kind {
            Kind::Connection => &self.connections,
            Kind::Pending => &self.pending,
            Kind::Request => &self.requests,
            Kind::Retry => &self.retries,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_its_limit_and_takes_back_what_is_dropped() {
        let breaker = Arc::new(CircuitBreaker::new(1, 0, 2, 0));
        let first = breaker.try_connection();
        assert!(first.is_some());
        assert!(breaker.try_connection().is_none());
        assert!(breaker.try_pending().is_none());
        drop(first);
        assert!(breaker.try_connection().is_some());
        assert_eq!(breaker.usage()[0], (0, 1));
    }
}
