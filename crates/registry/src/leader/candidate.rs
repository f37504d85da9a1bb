//! The rules of a lease, without a clock or a network: a leader stops before its lease ends for anybody else.

use std::time::{Duration, Instant};

use crate::sync::Role;

/// How long a lease is and how it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Timing {
    /// Others wait for so long after the last renewal that they saw.
    pub(super) lease: Duration,
    /// A leader stops when it began its last successful renewal so long ago: less than `lease`, because clocks differ in
    /// speed and a stop takes time.
    pub(super) renewed_within: Duration,
    /// Between two looks.
    pub(super) retry: Duration,
}

/// The lease as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stored {
    /// Empty for none.
    pub(super) holder: String,
    /// How long its holder wants others to wait.
    pub(super) lease: Duration,
    /// Another one after each write.
    pub(super) version: String,
}

/// One that would lead.
#[derive(Debug)]
pub(super) struct Candidate {
    identity: String,
    timing: Timing,
    /// The lease, and when it was first seen so: other clocks' times mean nothing here.
    seen: Option<(Stored, Instant)>,
    last_look: Option<Instant>,
    leads_until: Option<Instant>,
}

impl Candidate {
    pub(super) fn new(identity: String, timing: Timing) -> Candidate {
        Candidate {
            identity,
            timing,
            seen: None,
            last_look: None,
            leads_until: None,
        }
    }

    /// Takes a look at the lease. Returns whether to write one's own name into it: only in the place of what was looked at.
    pub(super) fn look(&mut self, stored: Option<Stored>, now: Instant) -> bool {
        self.last_look = Some(now);
        let Some(stored) = stored else {
            self.seen = None;
            return true;
        };
        if stored.holder != self.identity {
            self.leads_until = None;
        }
        let since = match &self.seen {
            Some((known, since)) if *known == stored => *since,
            _ => now,
        };
        let is_free = stored.holder.is_empty()
            || stored.holder == self.identity
            || now.saturating_duration_since(since) >= stored.lease;
        self.seen = Some((stored, since));
        is_free
    }

    /// One's own name was written; the write began at `began`.
    pub(super) fn wrote(&mut self, began: Instant) {
        self.leads_until = Some(began + self.timing.renewed_within);
    }

    /// When it stops to lead, if it does.
    pub(super) fn leads_until(&self) -> Option<Instant> {
        self.leads_until
    }

    pub(super) fn role(&self, now: Instant) -> Role {
        if self.leads_until.is_some_and(|until| now < until) {
            return Role::Leader;
        }
        let is_known = self
            .last_look
            .is_some_and(|look| now.saturating_duration_since(look) < self.timing.lease);
        match &self.seen {
            Some((stored, since))
                if is_known
                    && stored.holder != self.identity
                    && now.saturating_duration_since(*since) < stored.lease =>
            {
                Role::Follower
            }
            _ => Role::Unknown,
        }
    }

    pub(super) fn identity(&self) -> &str {
        &self.identity
    }

    /// Who leads, for people.
    pub(super) fn holder(&self) -> &str {
        self.seen
            .as_ref()
            .map_or("", |(stored, _)| stored.holder.as_str())
    }
}
