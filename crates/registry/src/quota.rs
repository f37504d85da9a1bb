//! What a namespace may have: instances, services, watchers, and requests in a second.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use arc_swap::ArcSwap;

use crate::error::Error;
use crate::namespace::Namespace;
use crate::pattern::Pattern;

/// Bounds of one namespace; what is `None` is bounded by the registry's own limits alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quota {
    /// Instances of all its services.
    pub instances: Option<usize>,
    /// Services that have an instance.
    pub services: Option<usize>,
    /// Watchers at one time.
    pub watchers: Option<usize>,
    /// Requests in a second, of all clients together; as many may come at once.
    pub requests_per_second: Option<u32>,
}

/// Quotas by patterns of namespaces: of each namespace the first that matches.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Quotas(pub Vec<(Vec<Pattern>, Quota)>);

impl Quotas {
    /// What a namespace may have.
    pub fn of(&self, namespace: &Namespace) -> Quota {
        let matches = |patterns: &[Pattern]| patterns.iter().any(|p| p.matches(namespace.as_str()));
        let found = self.0.iter().find(|(patterns, _)| matches(patterns));
        found.map(|(_, quota)| *quota).unwrap_or_default()
    }
}

/// Quotas that can be replaced while the registry runs.
pub(crate) type SharedQuotas = Arc<ArcSwap<Quotas>>;

/// Requests that each namespace with such a quota still has.
#[derive(Debug, Default)]
pub(crate) struct Rates(Mutex<HashMap<Namespace, Bucket>>);

#[derive(Debug)]
struct Bucket {
    left: f64,
    at: Instant,
}

/// Namespaces that are remembered before those with a full bucket are forgotten.
const BUCKETS: usize = 4096;

impl Rates {
    /// Counts a request in a namespace.
    pub(crate) fn take(
        &self,
        quotas: &Quotas,
        namespace: &Namespace,
        now: Instant,
    ) -> Result<(), Error> {
        let Some(rate) = quotas.of(namespace).requests_per_second else {
            return Ok(());
        };
        let full = f64::from(rate);
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() > BUCKETS {
            // After a second each is full, whatever its rate.
            buckets.retain(|_, bucket| now.saturating_duration_since(bucket.at).as_secs() < 1);
        }
        let bucket = buckets.entry(namespace.clone()).or_insert(Bucket {
            left: full,
            at: now,
        });
        let passed = now.saturating_duration_since(bucket.at).as_secs_f64();
        bucket.left = (bucket.left + passed * full).min(full);
        bucket.at = now;
        if bucket.left < 1.0 {
            return Err(Error::TooMany(format!(
                "namespace {namespace} may send {rate} requests a second"
            )));
        }
        bucket.left -= 1.0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_namespace_has_its_requests_a_second() {
        let quota = Quota {
            requests_per_second: Some(2),
            ..Quota::default()
        };
        let quotas = Quotas(vec![(vec![Pattern::new("shop*")], quota)]);
        let (rates, start) = (Rates::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        let take = |name, ms| rates.take(&quotas, &Namespace::new(name), at(ms)).is_ok();
        assert_eq!(
            [take("shop", 0), take("shop", 0), take("shop", 0)],
            [true, true, false]
        );
        assert!(take("shop-b", 0));
        assert_eq!([take("shop", 600), take("shop", 600)], [true, false]);
        assert!((0..10).all(|_| take("other", 0)));
    }
}
