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

#[cfg(test)]
mod tests {
    use super::*;

    const TIMING: Timing = Timing {
        lease: Duration::from_millis(1500),
        renewed_within: Duration::from_millis(1000),
        retry: Duration::from_millis(200),
    };

    /// Where a candidate is in its round.
    enum At {
        Idle(u64),
        /// A write that arrives at the store at a time, and whose answer comes later, if at all.
        Writing {
            began: u64,
            arrives: u64,
            answers: Option<u64>,
            over: Option<String>,
            taken: Option<bool>,
        },
        Dead,
    }

    /// Lost and late messages and crashes: whatever the order, two never lead at one time.
    #[test]
    fn two_never_lead_at_once_and_a_dead_leader_is_replaced() {
        let start = Instant::now();
        let at_ms = |ms: u64| start + Duration::from_millis(ms);
        let mut terms = 0;
        for seed in 0..300 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut store: Option<Stored> = None;
            let mut version = 0u64;
            let mut candidates: Vec<(Candidate, At)> = (0..3)
                .map(|n| {
                    let candidate = Candidate::new(n.to_string(), TIMING);
                    (candidate, At::Idle(random.u64(0..300)))
                })
                .collect();
            let mut leader_before = None;
            for now in 0..20_000u64 {
                for (candidate, at) in &mut candidates {
                    match at {
                        At::Dead => {}
                        At::Idle(until) if *until > now => {}
                        At::Idle(_) if random.u32(0..60) == 0 => {
                            // A new process on the same machine has another name.
                            let identity = format!("{}'", candidate.identity);
                            *candidate = Candidate::new(identity, TIMING);
                            *at = At::Idle(now + random.u64(1..3000));
                        }
                        At::Idle(_) => {
                            if random.u32(0..5) == 0 {
                                *at = At::Idle(now + 200);
                                continue;
                            }
                            let over = store.as_ref().map(|stored| stored.version.clone());
                            *at = if candidate.look(store.clone(), at_ms(now)) {
                                let arrives = now + random.u64(1..900);
                                let lost = random.u32(0..6) == 0;
                                At::Writing {
                                    began: now,
                                    arrives,
                                    answers: (!lost).then(|| arrives + random.u64(1..900)),
                                    over,
                                    taken: None,
                                }
                            } else {
                                At::Idle(now + random.u64(150..250))
                            };
                        }
                        At::Writing {
                            began,
                            arrives,
                            answers,
                            over,
                            taken,
                        } => {
                            if *arrives == now {
                                let fits = store.as_ref().map(|s| &s.version) == over.as_ref();
                                *taken = Some(fits);
                                if fits {
                                    version += 1;
                                    store = Some(Stored {
                                        holder: candidate.identity.clone(),
                                        lease: TIMING.lease,
                                        version: version.to_string(),
                                    });
                                }
                            }
                            match answers {
                                Some(answers) if *answers == now => {
                                    if *taken == Some(true) {
                                        candidate.wrote(at_ms(*began));
                                    }
                                    *at = At::Idle(now + 200);
                                }
                                None if now > *arrives + 1500 => *at = At::Idle(now + 200),
                                _ => {}
                            }
                        }
                    }
                }
                let leaders: Vec<&str> = candidates
                    .iter()
                    .filter(|(candidate, _)| candidate.role(at_ms(now)) == Role::Leader)
                    .map(|(candidate, _)| candidate.identity.as_str())
                    .collect();
                assert!(leaders.len() < 2, "seed {seed} at {now}: {leaders:?}");
                if let Some(leader) = leaders.first()
                    && leader_before.as_deref() != Some(*leader)
                {
                    terms += 1;
                    leader_before = Some((*leader).to_owned());
                }
                if now == 12_000 {
                    // The leader's machine goes.
                    let dead = leader_before.clone();
                    for (candidate, at) in &mut candidates {
                        if Some(&candidate.identity) == dead.as_ref() {
                            *at = At::Dead;
                        }
                    }
                }
            }
        }
        assert!(terms > 600, "only {terms} terms");
    }

    #[test]
    fn what_is_not_known_is_said_so() {
        let start = Instant::now();
        let later = |ms| start + Duration::from_millis(ms);
        let mut candidate = Candidate::new("a".into(), TIMING);
        assert_eq!(candidate.role(start), Role::Unknown);
        let held = |holder: &str, version: &str| {
            Some(Stored {
                holder: holder.into(),
                lease: TIMING.lease,
                version: version.into(),
            })
        };
        assert!(!candidate.look(held("b", "1"), start));
        assert_eq!(candidate.role(start), Role::Follower);
        assert!(!candidate.look(held("b", "2"), later(1000)));
        assert!(!candidate.look(held("b", "2"), later(2000)));
        assert!(candidate.look(held("b", "2"), later(2500)));
        candidate.wrote(later(2500));
        assert_eq!(candidate.role(later(3000)), Role::Leader);
        assert_eq!(candidate.role(later(3500)), Role::Unknown);
        // One that gave it up is not waited for.
        assert!(candidate.look(held("", "3"), later(3600)));
    }
}
