//! Whether and when a failed try is repeated: Envoy's `RetryStateImpl`.

use std::borrow::Cow;
use std::rc::Rc;
use std::time::Duration;

use super::request::Wishes;
use crate::cluster::host::Host;
use crate::cluster::{Cluster, Permit, Priority};
use crate::route::{RequestView, RetryOn, RetryPolicy};

/// How a try failed without an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reset {
    /// No connection could be opened.
    Connect,
    /// The connection ended, or the peer broke the protocol.
    Broken {
        /// Whether any of the request had been sent.
        sent: bool,
    },
    /// The per-try timeout passed.
    PerTryTimeout,
    /// A circuit breaker was open.
    Overflow,
}

/// What comes of a wish to retry.
#[derive(Debug)]
pub(super) enum Verdict {
    /// Again, after this time.
    Retry(Duration),
    /// Not for this failure.
    No,
    /// The tries are used up.
    LimitExceeded,
    /// Too many others are retrying.
    Overflow,
}

/// The retries of one request.
pub(super) struct Retries<'t> {
    on: RetryOn,
    left: u32,
    policy: Option<&'t RetryPolicy>,
    more_codes: Vec<u16>,
    next_interval: Duration,
    max_interval: Duration,
    permit: Option<Permit>,
    /// Hosts that failed.
    pub(super) tried: Vec<Rc<Host>>,
}

impl<'t> Retries<'t> {
    /// From the route's policy and the wishes of an internal client.
    pub(super) fn new<R: RequestView>(
        policy: Option<&'t RetryPolicy>,
        wishes: &mut Wishes,
        request: &R,
    ) -> Self {
        let mut on = policy.map(|p| p.on).unwrap_or_default() | wishes.retry_on;
        if let Some(policy) = policy
            && !policy.retriable_request_headers.is_empty()
            && !policy
                .retriable_request_headers
                .iter()
                .any(|m| m.matches(|name| request.header(name)))
        {
            on = RetryOn::default();
        }
        let base = policy.map_or(Duration::from_millis(25), |p| p.base_interval);
        Retries {
            on,
            left: wishes
                .max_retries
                .unwrap_or(policy.map_or(1, |p| p.retries)),
            policy,
            more_codes: std::mem::take(&mut wishes.retriable_status_codes),
            next_interval: base,
            max_interval: policy.map_or(base * 10, |p| p.max_interval),
            permit: None,
            tried: Vec::new(),
        }
    }

    /// Whether any failure would be retried: only then is a request kept.
    pub(super) fn possible(&self) -> bool {
        !self.on.is_empty() && self.left > 0
    }

    /// Hosts to keep away from.
    pub(super) fn avoided(&self) -> &[Rc<Host>] {
        match self.policy {
            Some(policy) if policy.avoid_previous_hosts => &self.tried,
            _ => &[],
        }
    }

    /// Whether an answer like this is to be tried again.
    pub(super) fn wants_status<'h>(
        &self,
        status: u16,
        header: impl Fn(&str) -> Option<Cow<'h, [u8]>>,
    ) -> bool {
        let on = |what| self.on.contains(what);
        if self.on.is_empty() {
            return false;
        }
        if header("x-envoy-ratelimited").is_some() {
            return on(RetryOn::ENVOY_RATELIMITED);
        }
        if (on(RetryOn::SERVER_ERROR) && (500..600).contains(&status))
            || (on(RetryOn::GATEWAY_ERROR) && (502..=504).contains(&status))
            || (on(RetryOn::RETRIABLE_4XX) && status == 409)
        {
            return true;
        }
        let listed = |codes: &[u16]| codes.contains(&status);
        if on(RetryOn::RETRIABLE_STATUS_CODES)
            && (listed(&self.more_codes)
                || self
                    .policy
                    .is_some_and(|p| listed(&p.retriable_status_codes)))
        {
            return true;
        }
        if on(RetryOn::RETRIABLE_HEADERS)
            && self
                .policy
                .is_some_and(|p| p.retriable_headers.iter().any(|m| m.matches(&header)))
        {
            return true;
        }
        let grpc = header("grpc-status")
            .and_then(|value| std::str::from_utf8(&value).ok()?.parse::<u8>().ok());
        match grpc {
            Some(1) => on(RetryOn::GRPC_CANCELLED),
            Some(4) => on(RetryOn::GRPC_DEADLINE_EXCEEDED),
            Some(8) => on(RetryOn::GRPC_RESOURCE_EXHAUSTED),
            Some(13) => on(RetryOn::GRPC_INTERNAL),
            Some(14) => on(RetryOn::GRPC_UNAVAILABLE),
            _ => false,
        }
    }

    /// Whether a try that failed like this is to be repeated.
    pub(super) fn wants_reset(&self, reset: Reset) -> bool {
        let any = RetryOn::RESET | RetryOn::SERVER_ERROR | RetryOn::GATEWAY_ERROR;
        match reset {
            Reset::Overflow => false,
            Reset::Connect => self
                .on
                .contains(any | RetryOn::CONNECT_FAILURE | RetryOn::RESET_BEFORE_REQUEST),
            Reset::Broken { sent: false } => self.on.contains(any | RetryOn::RESET_BEFORE_REQUEST),
            Reset::Broken { sent: true } | Reset::PerTryTimeout => self.on.contains(any),
        }
    }

    /// Takes one of the retries that are left, if the circuit breaker allows it.
    pub(super) fn take(&mut self, cluster: &Cluster, priority: Priority) -> Verdict {
        let stats = cluster.stats();
        if self.on.is_empty() {
            return Verdict::No;
        }
        if self.left == 0 {
            // A policy of no retries at all has no limit that could be exceeded.
            return Verdict::LimitExceeded;
        }
        // Given back first: this request's own earlier retry must not stand in its way.
        self.permit = None;
        let Some(permit) = cluster.breaker(priority).try_retry() else {
            stats.upstream_rq_retry_overflow.inc();
            return Verdict::Overflow;
        };
        self.left -= 1;
        self.permit = Some(permit);
        stats.upstream_rq_retry.inc();
        stats.upstream_rq_retry_backoff_exponential.inc();
        let interval = self.next_interval;
        self.next_interval = (interval * 2).min(self.max_interval);
        let jittered = fastrand::u64(..(interval.as_micros() as u64).max(1));
        Verdict::Retry(Duration::from_micros(jittered))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn retries(on: &str) -> Retries<'static> {
        Retries {
            on: RetryOn::parse(on),
            left: 1,
            policy: None,
            more_codes: vec![418],
            next_interval: Duration::from_millis(25),
            max_interval: Duration::from_millis(250),
            permit: None,
            tried: Vec::new(),
        }
    }

    #[test]
    fn each_word_retries_its_failures_only() {
        let cases = [
            ("5xx", 500, true),
            ("5xx", 404, false),
            ("gateway-error", 500, false),
            ("gateway-error", 503, true),
            ("retriable-4xx", 409, true),
            ("retriable-status-codes", 418, true),
            ("retriable-status-codes", 503, false),
            ("connect-failure,reset", 503, false),
            ("", 500, false),
        ];
        for (on, status, expected) in cases {
            assert_eq!(
                retries(on).wants_status(status, |_| None),
                expected,
                "{on} {status}"
            );
        }
        let (sent, unsent) = (Reset::Broken { sent: true }, Reset::Broken { sent: false });
        let cases = [
            ("connect-failure", Reset::Connect, true),
            ("connect-failure", sent, false),
            ("reset", sent, true),
            ("reset-before-request", sent, false),
            ("reset-before-request", unsent, true),
            ("5xx", Reset::PerTryTimeout, true),
            ("5xx", Reset::Overflow, false),
            ("retriable-4xx", sent, false),
        ];
        for (on, reset, expected) in cases {
            assert_eq!(retries(on).wants_reset(reset), expected, "{on} {reset:?}");
        }
    }

    #[test]
    fn grpc_words_look_at_the_status_in_the_head() {
        let status = |code: &'static str| {
            move |name: &str| (name == "grpc-status").then_some(Cow::Borrowed(code.as_bytes()))
        };
        assert!(retries("unavailable").wants_status(200, status("14")));
        assert!(!retries("unavailable").wants_status(200, status("0")));
    }
}
