//! One registry during a step: what its copies have to be, and what is done about them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::hub::{SourceView, View};
use crate::model::Instance;
use crate::source::{ORIGIN_MARK, Wanted};
use crate::sync::endpoint::Endpoint;
use crate::sync::index::There;
use crate::sync::owned::OwnedChange;
use crate::sync::record::{Record, Verdict};
use crate::sync::state::{Step, Target};
use crate::sync::status::{CopyName, RuleStatus, TargetStatus};

/// Why something has no place in a registry.
const NO_NAMESPACES: &str = "the registry knows no namespaces: the naming map has to say `namespace: default`, and perhaps another name";
/// When writes wait for their turn, until the next look.
const TURN: Duration = Duration::from_millis(100);

/// What a target should hold.
pub(crate) struct Candidate {
    pub(crate) rule: usize,
    pub(crate) dry_run: bool,
    pub(crate) source: Arc<str>,
    /// The source was read since the hub began.
    pub(crate) is_read: bool,
    pub(crate) is_live: bool,
    /// The source no longer has it, which is not yet believed.
    pub(crate) is_held: bool,
    pub(crate) copy: Instance,
}

/// One target during a step.
pub(crate) struct Round<'a> {
    pub(crate) name: &'a Arc<str>,
    pub(crate) view: &'a View,
    pub(crate) there: &'a SourceView,
    pub(crate) target: Target,
    pub(crate) wanted: Wanted,
    pub(crate) status: TargetStatus,
    pub(crate) rules: &'a mut [RuleStatus],
    /// How often this hub began to lead.
    pub(crate) term: u64,
    /// The present session has just begun: until when what it shows is not yet believed.
    pub(crate) first: Option<Instant>,
    pub(crate) step: &'a mut Step,
    pub(crate) now: Instant,
}

impl Round<'_> {
    /// Brings a copy to what its original is now.
    pub(crate) fn follow_original(&mut self, record: &mut Record, candidate: &Candidate) {
        if let Some(rule) = self.rules.get_mut(candidate.rule) {
            rule.copies += 1;
        }
        // What was kept on disk is not news.
        if !candidate.is_read {
            return;
        }
        match (candidate.is_live, candidate.is_held) {
            (true, false) => record.confirm(),
            (true, true) => {}
            (false, _) => record.unconfirm(),
        }
        let copy = &candidate.copy;
        let is_same = record.origin == candidate.source && record.copy.same_content(copy);
        if is_same || candidate.dry_run || !self.target.budget.take() {
            return;
        }
        record.origin = candidate.source.clone();
        record.copy = Arc::new(copy.clone());
        self.step
            .owned
            .push(OwnedChange::Put(record.owned(self.name)));
    }

    /// Does what was decided. Whether the copy is still to be remembered.
    pub(crate) fn obey(&mut self, record: &mut Record, verdict: Verdict, was_going: bool) -> bool {
        record.number(self.term);
        let (id, copy) = (record.copy.id.clone(), record.copy.clone());
        match verdict {
            Verdict::Publish => {
                self.wanted.publish.insert(id, copy);
                self.look_again(record.next_look(self.now));
            }
            Verdict::Hold(why, until) => {
                let name = || CopyName::new(&record.origin, self.name, &record.copy);
                self.status.hold(why, until, self.now, name);
                self.wanted.publish.insert(id, copy);
                self.look_again(until);
                self.look_again(record.next_look(self.now));
            }
            Verdict::Withdraw => {
                if was_going || self.target.budget.take() {
                    self.wanted.withdraw.insert(id, copy);
                    self.status.withdrawing += 1;
                    self.look_again(record.next_look(self.now));
                } else {
                    record.stay();
                    self.wanted.publish.insert(id, copy);
                }
            }
            Verdict::Forget => {
                let target = self.name.clone();
                self.step.owned.push(OwnedChange::Forget { target, id });
                // What is an original, and what is wanted here, depends on it.
                self.look_again(Some(self.now));
                return false;
            }
        }
        true
    }

    /// Takes over a copy of an earlier life of the mesh whose original is not known (yet).
    pub(crate) fn adopt(
        &mut self,
        mesh: &str,
        endpoint: &Endpoint,
        there: &There,
        copy: &Arc<Instance>,
    ) {
        if self.target.records.contains_key(endpoint) {
            return;
        }
        let mark = copy.metadata.get(ORIGIN_MARK).unwrap_or_default();
        let origin = mark.split_once('/').map_or("", |(_, origin)| origin);
        // What comes from registries that nobody here knows may be another's, who calls its mesh the same.
        let Some((origin, _)) = self.view.sources.get_key_value(origin) else {
            return;
        };
        let copy = Instance {
            id: endpoint.copy_id(mesh),
            ..copy.as_ref().clone()
        };
        let mut record = Record::known(origin.clone(), Arc::new(copy), self.now);
        record.look(there, self.first, self.now);
        self.remember(endpoint.clone(), record);
    }

    /// Makes a copy, or says why not yet.
    pub(crate) fn begin(&mut self, endpoint: Endpoint, candidate: Candidate, present: &There) {
        let Some(rule) = self.rules.get_mut(candidate.rule) else {
            return;
        };
        let is_ours = present.copy.is_some() || present.lost;
        // A copy of this mesh beside it has to be remembered before it can go.
        if !is_ours && (present.is_unmarked() || present.foreign.is_some()) {
            rule.already_there += 1;
            return;
        }
        if !candidate.copy.service.namespace.is_default() {
            let id = &candidate.copy.id;
            self.status.fail(id, NO_NAMESPACES);
            return;
        }
        if candidate.dry_run {
            rule.plan(|| CopyName::new(&candidate.source, self.name, &candidate.copy));
            return;
        }
        let may_write = candidate.is_read && self.there.live;
        if !may_write || !(is_ours || self.target.budget.take()) {
            rule.pending += 1;
            return;
        }
        rule.copies += 1;
        let copy = Arc::new(candidate.copy);
        let mut record = if is_ours {
            let mut record = Record::known(candidate.source, copy, self.now);
            record.look(present, self.first, self.now);
            record
        } else {
            Record::begun(candidate.source, copy, self.now)
        };
        record.confirm();
        self.remember(endpoint, record);
    }

    fn remember(&mut self, endpoint: Endpoint, mut record: Record) {
        record.number(self.term);
        let copy = record.copy.clone();
        self.step
            .owned
            .push(OwnedChange::Put(record.owned(self.name)));
        self.wanted.publish.insert(copy.id.clone(), copy);
        self.target.records.insert(endpoint, record);
    }

    fn look_again(&mut self, at: Option<Instant>) {
        self.step.next = self.step.next.into_iter().chain(at).min();
    }

    pub(crate) fn finish(&mut self) {
        if self.target.budget.is_short() {
            self.look_again(Some(self.now + TURN));
        }
        self.status.copies = self.wanted.publish.len();
        for (id, result) in self.there.written.iter() {
            if let Err(reason) = result
                && self.wanted.publish.contains_key(id)
            {
                self.status.fail(id, reason);
            }
        }
        self.target.status = std::mem::take(&mut self.status);
    }
}
