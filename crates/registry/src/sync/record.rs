//! What becomes of one copy that this mesh wrote.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::hub::SourceView;
use crate::model::Instance;
use crate::sync::index::There;
use crate::sync::owned::OwnedCopy;

/// Registries show for a while what was taken out: Eureka for 30 s.
const LINGER: Duration = Duration::from_secs(120);

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
    /// The registry has had it.
    written: bool,
    /// The registry shows an entry without a mark in its place.
    lost_mark: bool,
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    Active,
    Going {
        /// An application, or a mesh that comes first, has registered the same itself.
        twin: bool,
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
            written: true,
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
            written: false,
            lost_mark: false,
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

    pub(crate) fn is_going(&self) -> bool {
        matches!(self.phase, Phase::Going { .. })
    }

    /// Whether an entry without a mark in its place is another's.
    pub(crate) fn is_twin(&self) -> bool {
        matches!(self.phase, Phase::Going { twin: true, .. })
    }

    /// Decides, after what the target shows in its place (`present`) and what is known of the original.
    pub(crate) fn judge(
        &mut self,
        original: Original,
        present: &There,
        target: &SourceView,
        (mesh, hold): (&str, Duration),
        now: Instant,
    ) -> Verdict {
        self.look(present, target);
        if let Phase::Going { twin, withdrawn } = &mut self.phase {
            if *twin || original != Original::There {
                if target.withdrawn.contains(&self.copy.id) {
                    withdrawn.get_or_insert(now);
                }
                let (twin, withdrawn) = (*twin, *withdrawn);
                return self.go(twin, withdrawn, present, target, now);
            }
            self.phase = Phase::Active;
        }
        if target.live && self.is_doubled(present, mesh) {
            return self.begin_to_go(true);
        }
        let is_absent = target.live && present.copy.is_none() && !present.unmarked;
        if original != Original::Unruled {
            self.unruled = None;
        }
        match original {
            Original::There | Original::DryRun => Verdict::Publish,
            Original::Away => {
                // When it returns it has to show first what it has.
                self.confirmed = false;
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

    fn look(&mut self, present: &There, target: &SourceView) {
        self.written |=
            present.copy.is_some() || target.written.get(&self.copy.id).is_some_and(Result::is_ok);
        if target.live {
            self.lost_mark = present.unmarked && present.copy.is_none();
        }
    }

    /// Whether the target has it without this mesh.
    fn is_doubled(&self, present: &There, mesh: &str) -> bool {
        // What was never written cannot have lost its mark.
        let is_other = present.unmarked && (present.copy.is_some() || !self.written);
        let foreign = present.foreign.as_deref();
        // Of two meshes the first in their order stays.
        let gives_way = foreign.is_some_and(|mark| mark.split('/').next() < Some(mesh));
        is_other || (gives_way && present.copy.is_some())
    }

    fn hold_until(&mut self, held: Held, until: Instant, now: Instant) -> Verdict {
        if now < until {
            return Verdict::Hold(held, Some(until));
        }
        self.begin_to_go(false)
    }

    fn begin_to_go(&mut self, twin: bool) -> Verdict {
        self.phase = Phase::Going {
            twin,
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
        twin: bool,
        withdrawn: Option<Instant>,
        present: &There,
        target: &SourceView,
        now: Instant,
    ) -> Verdict {
        let Some(withdrawn) = withdrawn else {
            return Verdict::Withdraw;
        };
        let is_shown = present.copy.is_some() || (self.lost_mark && !twin);
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
            _ => None,
        }
    }
}
