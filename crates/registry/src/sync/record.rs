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
/// Metadata key of the number of such a writing.
const REWRITE_MARK: &str = "mesh.rewritten";

/// A copy that this mesh wrote, or is about to.
#[derive(Debug)]
pub(crate) struct Record {
    /// The registry that its original is in.
    pub(crate) origin: Arc<str>,
    /// As it was written last.
    pub(crate) copy: Arc<Instance>,
    /// Its original was seen since nothing gave reason to doubt it.
    confirmed: bool,
    /// Since when it is known, or in doubt.
    since: Instant,
    /// Since when there is no rule for it.
    unruled: Option<Instant>,
    seen: Seen,
    /// Since when the registry shows something else than was written.
    differs: Option<Instant>,
    /// The number of the last writing because of that, and how many in a row were to no avail.
    rewritten: u32,
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
        /// Because an application, or a mesh that comes first, has registered the same itself.
        gives_way: bool,
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
        let rewritten = copy.metadata.get(REWRITE_MARK);
        Record {
            rewritten: rewritten.and_then(|n| n.parse().ok()).unwrap_or(0),
            in_vain: 0,
            origin,
            copy,
            confirmed: false,
            since: now,
            unruled: None,
            seen: Seen::Nothing,
            differs: None,
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
        let gives_way = target.live && self.is_second(present, mesh);
        if let Phase::Going {
            gives_way: before,
            withdrawn,
        } = &mut self.phase
        {
            *before |= gives_way;
            if *before || original != Original::There {
                if target.withdrawn.contains(&self.copy.id) {
                    withdrawn.get_or_insert(now);
                }
                let withdrawn = *withdrawn;
                return self.go(withdrawn, present, target, now);
            }
            self.phase = Phase::Active;
        }
        if gives_way {
            return self.begin_to_go(true);
        }
        self.compare(present, target, now);
        let is_absent = target.live && present.copy.is_none() && !present.unmarked && !present.held;
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
            Original::Gone(_) if self.confirmed => self.begin_to_go(false),
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

    /// Takes notice of what a registry shows in its place in a live session.
    pub(crate) fn look(&mut self, present: &There) {
        self.seen = match (&present.copy, present.unmarked, self.seen) {
            (Some(_), true, _) => Seen::Others,
            (Some(_), false, _) => Seen::Marked,
            (None, true, Seen::Marked | Seen::LostMark) => Seen::LostMark,
            (None, true, Seen::Nothing | Seen::Others) => Seen::Others,
            // Not yet news.
            (None, false, seen) if present.held => seen,
            (None, false, _) => Seen::Nothing,
        };
    }

    /// Whether the target has it without this mesh.
    fn is_second(&self, present: &There, mesh: &str) -> bool {
        let foreign = present.foreign.as_deref();
        // Of two meshes the first in their order stays.
        let comes_first = foreign.is_some_and(|mark| mark.split('/').next() < Some(mesh));
        (self.seen == Seen::Others && present.unmarked) || (comes_first && present.copy.is_some())
    }

    /// Whether the target shows what was written; what it does not show for long is written again.
    fn compare(&mut self, present: &There, target: &SourceView, now: Instant) {
        let is_written = matches!(target.written.get(&self.copy.id), Some(Ok(())));
        let differs = match &present.copy {
            Some(shown) => {
                shown.weight != self.copy.weight
                    || shown.healthy != self.copy.healthy
                    || shown.metadata.get(ORIGIN_MARK) != self.copy.metadata.get(ORIGIN_MARK)
            }
            // What was never written is on its way.
            None => is_written,
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
            self.copy = Arc::new(self.as_written(&self.copy));
        }
    }

    /// What has to be written so that it is this.
    pub(crate) fn as_written(&self, copy: &Instance) -> Instance {
        if self.rewritten == 0 {
            return copy.clone();
        }
        let number = self.rewritten.to_string();
        let mark = [(REWRITE_MARK, number.as_str())];
        Instance {
            metadata: copy.metadata.iter().chain(mark).collect(),
            ..copy.clone()
        }
    }

    fn hold_until(&mut self, held: Held, until: Instant, now: Instant) -> Verdict {
        if now < until {
            return Verdict::Hold(held, Some(until));
        }
        self.begin_to_go(false)
    }

    fn begin_to_go(&mut self, gives_way: bool) -> Verdict {
        self.phase = Phase::Going {
            gives_way,
            withdrawn: None,
        };
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
        let is_shown = present.copy.is_some() || self.seen == Seen::LostMark;
        if (target.live && !is_shown) || now >= withdrawn + LINGER {
            return Verdict::Forget;
        }
        Verdict::Withdraw
    }

    /// When `judge` may say something else without any news.
    pub(crate) fn next_look(&self) -> Option<Instant> {
        match self.phase {
            Phase::Going {
                withdrawn: Some(at),
                ..
            } => Some(at + LINGER),
            _ => self.differs.map(|since| since + REWRITE),
        }
    }
}
