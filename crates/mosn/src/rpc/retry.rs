//! Whether a call that failed is sent again.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use super::protocol::Outcome;
use crate::cluster::{Host, Permit};
use crate::route::{RetryOn, RetryPolicy};

/// Tries of a call that no server can have seen, with or without a policy.
pub(super) const SAFE_TRIES: u32 = 3;

/// What is needed to send a call again.
#[derive(Default)]
pub(super) struct Retry {
    /// The route's policy.
    pub(super) policy: Option<Arc<RetryPolicy>>,
    /// Retries that the policy has left.
    pub(super) left: u32,
    /// The frame as it was sent, kept only if the policy may want it.
    pub(super) frame: Vec<u8>,
    /// Hosts that failed.
    pub(super) tried: SmallVec<[Rc<Host>; 2]>,
    /// Whether the policy wanted another try and had none left.
    pub(super) exhausted: bool,
    /// Retries so far.
    pub(super) retries: u32,
    /// Held while a retry is in flight.
    pub(super) permit: Option<Permit>,
}

impl Retry {
    pub(super) fn with_policy(policy: &Arc<RetryPolicy>) -> Retry {
        Retry {
            left: policy.retries,
            policy: Some(Arc::clone(policy)),
            ..Retry::default()
        }
    }

    fn on(&self, wanted: RetryOn) -> bool {
        self.policy
            .as_ref()
            .is_some_and(|policy| policy.on.contains(wanted))
    }

    /// Whether the policy asks for another try after this answer.
    pub(super) fn wants_after_answer(&self, outcome: Outcome) -> bool {
        let code = outcome.http;
        (outcome.unseen && self.on(RetryOn::CONNECT_FAILURE))
            || (code >= 500 && self.on(RetryOn::SERVER_ERROR))
            || (matches!(code, 502..=504) && self.on(RetryOn::GATEWAY_ERROR))
            || (code == 409 && self.on(RetryOn::RETRIABLE_4XX))
            || (self.on(RetryOn::RETRIABLE_STATUS_CODES)
                && self
                    .policy
                    .as_ref()
                    .is_some_and(|policy| policy.retriable_status_codes.contains(&code)))
    }

    /// Whether the policy asks for another try of a call that was sent and not answered.
    pub(super) fn wants_after_reset(&self) -> bool {
        self.on(RetryOn::RESET) || self.on(RetryOn::SERVER_ERROR)
    }

    /// Whether the policy asks for another try after a try took too long.
    pub(super) fn wants_after_timeout(&self) -> bool {
        self.wants_after_reset() || self.on(RetryOn::GATEWAY_ERROR)
    }

    /// Envoy's back-off: up to `base × (2^n − 1)`, jittered over the whole range.
    pub(super) fn back_off(&self) -> Duration {
        let Some(policy) = &self.policy else {
            return Duration::ZERO;
        };
        let factor = (1_u32 << self.retries.clamp(1, 16)) - 1;
        let limit = (policy.base_interval * factor).min(policy.max_interval);
        limit.mul_f64(fastrand::f64())
    }
}
