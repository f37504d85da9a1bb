//! What becomes of one copy that this mesh wrote.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::hub::SourceView;
use crate::model::Instance;
use crate::source::ORIGIN_MARK;
use crate::sync::index::There;
use crate::sync::owned::OwnedCopy;

/// Registries show for a while what was taken out: Eureka for 30 s.
const LINGER: Duration = Duration::from_secs(120);
/// A copy that is shown otherwise than it was written for so long, or not at all, is written again: another hub, which no
/// longer leads, may have written last, and took the entry with it when it ended.
const REWRITE: Duration = Duration::from_secs(45);
/// Some registries cannot show all that was written.
const REWRITES: u32 = 3;
/// Bits of the number of a writing that count within a term of this hub as leader.
const WRITING_BITS: u32 = 16;

/// A copy that this mesh wrote, or is about to.
#[derive(Debug)]
pub(crate) struct Record {
    /// The registry that its original is in.
    pub(crate) origin: Arc<str>,
    /// As it was written last; its revision is the number of the writing.
    pub(crate) copy: Arc<Instance>,
    /// Its original was seen since nothing gave reason to doubt it.
    confirmed: bool,
    /// Since when it is known, or in doubt.
    since: Instant,
    /// Since when there is no rule for it.
    unruled: Option<Instant>,
    seen: Seen,
    /// From when on an entry of others in its place counts.
    second: Option<Instant>,
    /// Since when the registry shows something else than was written.
    differs: Option<Instant>,
    /// The number of writings because of that, and how many in a row were to no avail.
    rewritten: u16,
    in_vain: u32,
    phase: Phase,
}

/// What the registry showed last in the place of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    Nothing,
    /// The copy with its mark.
    Marked,
    /// An entry without a mark where the copy was before: the copy has lost it.
    LostMark,
    /// An entry without a mark beside the copy, or where it was not before: an application's own.
    Others,
}

#[derive(Debug)]
enum Phase {
    Active,
    Going {
        /// When the registry confirmed it.
        withdrawn: Option<Instant>,
    },
}

/// What is known of the original.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Original {
    /// It is there.
    There,
    /// There is no rule (any longer) by which it would be copied.
    Unruled,
    /// The rule does not write.
    DryRun,
    /// Its registry is away.
    Away,
    /// Not every registry that may have it was read.
    Unread,
    /// Its registry, live since then, does not have it.
    Gone(Instant),
}

/// Why a copy stays without its original.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Held {
    /// Its registry is away.
    Away,
    /// Not every registry that may have it was read.
    Unread,
    /// For a while, because there is no rule for it any longer.
    Unruled,
    /// For a while, because it was not seen since the hub began to lead or the rules changed.
    Unconfirmed,
}

/// What to do with a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It has to be there.
    Publish,
    /// It stays, and until when if nothing happens.
    Hold(Held, Option<Instant>),
    /// It has to go.
    Withdraw,
    /// It is no longer there.
    Forget,
}

impl Record {
    /// One of an earlier life of the mesh.
    pub(crate) fn known(origin: Arc<str>, copy: Arc<Instance>, now: Instant) -> Record {
        Record {
            seen: Seen::Marked,
            ..Record::begun(origin, copy, now)
        }
    }

    /// A new one.
    pub(crate) fn begun(origin: Arc<str>, copy: Arc<Instance>, now: Instant) -> Record {
        Record {
            origin,
            copy,
            confirmed: false,
            since: now,
            unruled: None,
            seen: Seen::Nothing,
            second: None,
            differs: None,
            rewritten: 0,
            in_vain: 0,
            phase: Phase::Active,
        }
    }

    pub(crate) fn owned(&self, target: &Arc<str>) -> OwnedCopy {
        OwnedCopy {
            target: target.clone(),
            origin: self.origin.clone(),
            copy: self.copy.clone(),
        }
    }

    /// Numbers the writing: an adapter writes again what has another number, also if nothing else is new, because another hub
    /// may have written since.
    pub(crate) fn number(&mut self, term: u64) {
        let number = (term << WRITING_BITS) | u64::from(self.rewritten);
        if self.copy.revision != number {
            let copy = self.copy.as_ref().clone();
            self.copy = Arc::new(Instance {
                revision: number,
                ..copy
            });
        }
    }

    /// What made it certain that its original is there or not has changed.
    pub(crate) fn doubt(&mut self, now: Instant) {
        self.confirmed = false;
        self.since = now;
        self.phase = Phase::Active;
    }

    /// Its original is there, and its registry was read since the hub began.
    pub(crate) fn confirm(&mut self) {
        self.confirmed = true;
    }

    /// Its registry is away: when it returns it has to show first what it has.
    pub(crate) fn unconfirm(&mut self) {
        self.confirmed = false;
    }

    pub(crate) fn is_going(&self) -> bool {
        matches!(self.phase, Phase::Going { .. })
    }

    /// Whether an entry without a mark in its place is this one.
    pub(crate) fn has_lost_mark(&self) -> bool {
        // Until the registry was read, what was there before may be this one.
        self.seen != Seen::Others
    }

    /// Decides, after what the target shows in its place (`present`, which it has taken notice of) and what is known of the
    /// original.
    pub(crate) fn judge(
        &mut self,
        original: Original,
        present: &There,
        target: &SourceView,
        (mesh, hold): (&str, Duration),
        now: Instant,
    ) -> Verdict {
        let gives_way = target.live && self.is_second(present, mesh, now);
        if let Phase::Going { withdrawn } = &mut self.phase {
            // What became of the original since it was gone is not known.
            let is_unknown =
                matches!(original, Original::Away | Original::Unread) && withdrawn.is_none();
            if gives_way || !(original == Original::There || is_unknown) {
                if target.withdrawn.contains(&self.copy.id) {
                    withdrawn.get_or_insert(now);
                }
                let withdrawn = *withdrawn;
                return self.go(withdrawn, present, target, now);
            }
            self.phase = Phase::Active;
        }
        if gives_way {
            return self.begin_to_go();
        }
        self.compare(present, target, now);
        let is_there = present.copy.is_some() || present.is_unmarked() || present.held;
        let is_absent = target.live && !is_there && !self.is_written(target);
        if original != Original::Unruled {
            self.unruled = None;
        }
        match original {
            Original::There | Original::DryRun => Verdict::Publish,
            Original::Away => {
                self.unconfirm();
                Verdict::Hold(Held::Away, None)
            }
            Original::Unread => Verdict::Hold(Held::Unread, None),
            Original::Gone(_) if self.confirmed => self.begin_to_go(),
            Original::Gone(_) | Original::Unruled if is_absent => Verdict::Forget,
            Original::Gone(live) => {
                let until = live.max(self.since) + hold;
                self.hold_until(Held::Unconfirmed, until, now)
            }
            Original::Unruled => {
                let until = *self.unruled.get_or_insert(now) + hold;
                self.hold_until(Held::Unruled, until, now)
            }
        }
    }

    /// Takes notice of what a registry shows in its place in a live session; `first`, the end of the time in which it is not
    /// yet believed, when the session has just begun.
    pub(crate) fn look(&mut self, present: &There, first: Option<Instant>, now: Instant) {
        self.seen = match (&present.copy, present.unmarked, self.seen) {
            _ if present.others => Seen::Others,
            _ if present.lost => Seen::LostMark,
            (Some(_), true, _) => Seen::Others,
            (Some(_), false, _) => Seen::Marked,
            (None, true, Seen::Marked | Seen::LostMark) => Seen::LostMark,
            (None, true, Seen::Nothing | Seen::Others) => Seen::Others,
            // Not yet news.
            (None, false, seen) if present.held => seen,
            (None, false, _) => Seen::Nothing,
        };
        let is_there = present.is_unmarked() || present.foreign.is_some();
        self.second = match (is_there, first) {
            (false, _) => None,
            // Its owner may have ended long ago: a registry that returns keeps entries until their leases end.
            (true, Some(until)) => Some(until),
            (true, None) => self.second.or(Some(now)),
        };
    }

    /// Whether the target has it without this mesh.
    fn is_second(&self, present: &There, mesh: &str, now: Instant) -> bool {
        let counts = self.second.is_some_and(|from| from <= now);
        let is_others = self.seen == Seen::Others && present.is_unmarked();
        counts && (is_others || present.comes_first(mesh))
    }

    /// Whether the target took it, since it is wanted there.
    fn is_written(&self, target: &SourceView) -> bool {
        matches!(target.written.get(&self.copy.id), Some(Ok(())))
    }

    /// Whether the target shows what was written; what it does not show for long is written again.
    fn compare(&mut self, present: &There, target: &SourceView, now: Instant) {
        let differs = match &present.copy {
            Some(shown) => {
                shown.weight != self.copy.weight
                    || shown.healthy != self.copy.healthy
                    || shown.metadata.get(ORIGIN_MARK) != self.copy.metadata.get(ORIGIN_MARK)
            }
            // What was never written is on its way.
            None => self.is_written(target),
        };
        if !target.live {
            self.differs = None;
        } else if !differs {
            self.differs = None;
            if present.copy.is_some() {
                self.in_vain = 0;
            }
        } else if now >= *self.differs.get_or_insert(now) + REWRITE && self.in_vain < REWRITES {
            self.differs = None;
            self.in_vain += 1;
            self.rewritten = self.rewritten.wrapping_add(1);
        }
    }

    fn hold_until(&mut self, held: Held, until: Instant, now: Instant) -> Verdict {
        if now < until {
            return Verdict::Hold(held, Some(until));
        }
        self.begin_to_go()
    }

    fn begin_to_go(&mut self) -> Verdict {
        self.phase = Phase::Going { withdrawn: None };
        Verdict::Withdraw
    }

    /// Not yet: it stays for now.
    pub(crate) fn stay(&mut self) {
        self.phase = Phase::Active;
    }

    fn go(
        &self,
        withdrawn: Option<Instant>,
        present: &There,
        target: &SourceView,
        now: Instant,
    ) -> Verdict {
        let Some(withdrawn) = withdrawn else {
            return Verdict::Withdraw;
        };
        let is_shown = present.copy.is_some() || present.lost || self.seen == Seen::LostMark;
        if (target.live && !is_shown) || now >= withdrawn + LINGER {
            return Verdict::Forget;
        }
        Verdict::Withdraw
    }

    /// When `judge` may say something else without any news.
    pub(crate) fn next_look(&self, now: Instant) -> Option<Instant> {
        match self.phase {
            Phase::Going {
                withdrawn: Some(at),
            } => Some(at + LINGER),
            _ => {
                let differs = self.differs.map(|since| since + REWRITE);
                let second = self.second.filter(|from| *from > now);
                differs.into_iter().chain(second).min()
            }
        }
    }
}
