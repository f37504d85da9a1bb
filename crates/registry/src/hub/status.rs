//! How each registry is doing, for `/debug/registries` and the metrics.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;

use crate::hub::source_state::SourceState;
use crate::hub::state::HubState;
use crate::source::Trouble;

/// Skipped entries that are named.
const SKIPPED_SHOWN: usize = 100;

/// All registries.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Names the mesh in the marks of copies.
    pub mesh: String,
    /// Services of all registries together.
    pub services: usize,
    /// Their instances, each endpoint once.
    pub instances: usize,
    /// By name.
    pub sources: Vec<SourceStatus>,
}

/// One registry.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceStatus {
    /// Its name.
    pub name: Arc<str>,
    /// Which registry it is.
    pub kind: &'static str,
    /// There is a session with it.
    pub connected: bool,
    /// The present session has given every list.
    pub synced: bool,
    /// It is away: its instances are the last known.
    pub stale: bool,
    /// The server of the session, or of the last one.
    pub server: String,
    /// Why it cannot be read.
    pub trouble: Option<Trouble>,
    /// The same, for people.
    pub reason: Option<String>,
    /// How long it has been away.
    pub down_ms: Option<u64>,
    /// Since it last said anything.
    pub last_event_ms: Option<u64>,
    /// Sessions since the start.
    pub sessions: u64,
    /// Lists that it gave.
    pub lists: usize,
    /// Its services.
    pub services: usize,
    /// What applications put there.
    pub instances: usize,
    /// Copies of this mesh.
    pub copies: usize,
    /// Missing in a suspicious list, and kept for a while.
    pub held: usize,
    /// Copies that it took.
    pub written: usize,
    /// Copies that it did not take, with its answer.
    pub failed: BTreeMap<Arc<str>, String>,
    /// Entries that could not be read.
    pub skipped: usize,
    /// The first of them.
    pub skipped_entries: Vec<SkippedEntry>,
}

/// An entry that could not be read.
#[derive(Clone, Debug, Serialize)]
pub struct SkippedEntry {
    /// The list that it is in.
    pub list: Arc<str>,
    /// The entry, shortened.
    pub entry: String,
    /// What is wrong with it.
    pub reason: String,
}

impl Status {
    pub(crate) fn of(
        state: &HubState,
        kinds: &BTreeMap<Arc<str>, &'static str>,
        now: Instant,
    ) -> Status {
        let source = |source: &SourceState| SourceStatus::of(source, kinds, now);
        Status {
            mesh: state.mesh().to_owned(),
            services: state.services().len(),
            instances: state.services().instances(),
            sources: state.sources().map(source).collect(),
        }
    }
}

impl SourceStatus {
    fn of(
        source: &SourceState,
        kinds: &BTreeMap<Arc<str>, &'static str>,
        now: Instant,
    ) -> SourceStatus {
        let age = |since: Instant| {
            u64::try_from(now.saturating_duration_since(since).as_millis()).unwrap_or(u64::MAX)
        };
        let mut entries: Vec<SkippedEntry> = source
            .skipped()
            .map(|(list, skipped)| SkippedEntry {
                list: list.clone(),
                entry: skipped.entry.clone(),
                reason: skipped.reason.clone(),
            })
            .collect();
        let skipped = entries.len();
        entries.sort_by(|a, b| (&a.list, &a.entry).cmp(&(&b.list, &b.entry)));
        entries.truncate(SKIPPED_SHOWN);
        let failed = source.written.iter().filter_map(|(id, result)| {
            let reason = result.as_ref().err()?;
            Some((id.clone(), reason.clone()))
        });
        let failed: BTreeMap<Arc<str>, String> = failed.collect();
        SourceStatus {
            name: source.name.clone(),
            kind: kinds.get(&source.name).copied().unwrap_or_default(),
            connected: source.connected,
            synced: source.session_synced,
            stale: !source.connected && source.own.instances() > 0,
            server: source.server.clone(),
            trouble: source.failure.as_ref().map(|(trouble, _)| *trouble),
            reason: source.failure.as_ref().map(|(_, reason)| reason.clone()),
            down_ms: source.down_since.map(age),
            last_event_ms: source.last_report.map(age),
            sessions: source.sessions(),
            lists: source.lists(),
            services: source.own.len(),
            instances: source.own.instances(),
            copies: source.copies.instances(),
            held: source.held(),
            written: source.written.len() - failed.len(),
            failed,
            skipped,
            skipped_entries: entries,
        }
    }
}
