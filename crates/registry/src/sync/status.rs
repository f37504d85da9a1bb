//! How synchronisation is doing, for `/debug/registries` and the metrics.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;

use crate::hub::View;
use crate::model::Instance;
use crate::sync::record::Held;
use crate::sync::rule::SyncRule;
use crate::sync::state::Role;

/// Entries of each list that are shown.
const SHOWN: usize = 100;

/// All rules and registries.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SyncStatus {
    /// Whether this hub writes.
    pub role: Role,
    /// Why what is written cannot be remembered, and thus nothing is written.
    pub store_failure: Option<String>,
    /// By their names.
    pub rules: Vec<RuleStatus>,
    /// The registries that are written to.
    pub targets: BTreeMap<Arc<str>, TargetStatus>,
}

/// One rule.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleStatus {
    /// Its name.
    pub name: Arc<str>,
    /// It writes nothing.
    pub dry_run: bool,
    /// Names in it that no source has.
    pub unknown_sources: Vec<Arc<str>>,
    /// Copies whose originals are there.
    pub copies: usize,
    /// Copies that a dry run would make.
    pub planned: usize,
    /// The first of them.
    pub plan: Vec<CopyName>,
    /// Instances that wait for their turn or for a registry that was not read yet.
    pub pending: usize,
    /// Instances that the target has without this mesh.
    pub already_there: usize,
}

/// One registry that is written to.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TargetStatus {
    /// No source has this name (any longer): what was written there can be taken out when one has it again.
    pub missing: bool,
    /// Copies that it has to have.
    pub copies: usize,
    /// Copies that it did not take.
    pub failed: usize,
    /// The first of them, with its answer.
    pub failures: BTreeMap<Arc<str>, String>,
    /// Copies that are being taken out.
    pub withdrawing: usize,
    /// Copies that stay without their originals.
    pub held: usize,
    /// The first of them.
    pub held_copies: Vec<HeldCopy>,
}

/// A copy.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CopyName {
    /// Where it is copied from.
    pub from: Arc<str>,
    /// Where it is copied to.
    pub to: Arc<str>,
    /// `protocol/name`, as in the target.
    pub service: String,
    /// Its version.
    pub version: Arc<str>,
    /// Its group.
    pub group: Arc<str>,
    /// `host:port`
    pub address: String,
}

/// A copy that stays without its original.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HeldCopy {
    /// Which.
    #[serde(flatten)]
    pub copy: CopyName,
    /// Why.
    pub why: Held,
    /// For how long if nothing happens.
    pub for_ms: Option<u64>,
}

impl CopyName {
    pub(crate) fn new(from: &Arc<str>, to: &Arc<str>, copy: &Instance) -> CopyName {
        CopyName {
            from: from.clone(),
            to: to.clone(),
            service: copy.service.to_string(),
            version: copy.version.clone(),
            group: copy.group.clone(),
            address: crate::naming::authority(&copy.address, copy.port),
        }
    }
}

impl RuleStatus {
    pub(crate) fn new(rule: &SyncRule, view: &View) -> RuleStatus {
        let named = rule.legs.first().into_iter();
        let named = named.flat_map(|leg| leg.from.names().iter().chain(leg.to.names()));
        RuleStatus {
            name: rule.name.clone(),
            dry_run: rule.dry_run,
            unknown_sources: named
                .filter(|name| !view.sources.contains_key(*name))
                .cloned()
                .collect(),
            ..RuleStatus::default()
        }
    }

    pub(crate) fn plan(&mut self, copy: impl FnOnce() -> CopyName) {
        self.planned += 1;
        if self.plan.len() < SHOWN {
            self.plan.push(copy());
        }
    }
}

impl TargetStatus {
    pub(crate) fn hold(
        &mut self,
        why: Held,
        until: Option<Instant>,
        now: Instant,
        copy: impl FnOnce() -> CopyName,
    ) {
        self.held += 1;
        if self.held_copies.len() < SHOWN {
            let left = until.map(|until| until.saturating_duration_since(now).as_millis());
            self.held_copies.push(HeldCopy {
                copy: copy(),
                why,
                for_ms: left.map(|ms| u64::try_from(ms).unwrap_or(u64::MAX)),
            });
        }
    }

    pub(crate) fn fail(&mut self, id: &Arc<str>, reason: &str) {
        self.failed += 1;
        if self.failures.len() < SHOWN {
            self.failures.insert(id.clone(), reason.to_owned());
        }
    }
}
