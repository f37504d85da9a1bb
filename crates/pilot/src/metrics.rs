//! Pilot's metrics under istiod's names, in Prometheus' text format.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use registry::{Role, RuleStatus, SourceStatus, Status, SyncStatus, TargetStatus};

/// Upper bounds of the histograms, in seconds: istiod's, and finer ones below, because pushes take milliseconds here.
const BOUNDS: [f64; 13] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 3.0, 5.0, 10.0, 30.0,
];

/// All metrics of a pilot.
pub(crate) struct Metrics {
    started: Instant,
    counters: Mutex<BTreeMap<(&'static str, String), u64>>,
    gauges: Mutex<BTreeMap<&'static str, f64>>,
    connections: AtomicI64,
    expired_nonces: AtomicU64,
    convergence: Histogram,
    push_time: Histogram,
    debounce_time: Histogram,
    context_init: Histogram,
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics {
            started: Instant::now(),
            counters: Mutex::default(),
            gauges: Mutex::default(),
            connections: AtomicI64::new(0),
            expired_nonces: AtomicU64::new(0),
            convergence: Histogram::default(),
            push_time: Histogram::default(),
            debounce_time: Histogram::default(),
            context_init: Histogram::default(),
        }
    }
}

#[derive(Default)]
struct Histogram(Mutex<HistogramState>);

#[derive(Default, Clone)]
struct HistogramState {
    counts: [u64; BOUNDS.len() + 1],
    sum: f64,
}

impl Histogram {
    fn observe(&self, value: Duration) {
        let seconds = value.as_secs_f64();
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bucket = BOUNDS
            .iter()
            .position(|bound| seconds <= *bound)
            .unwrap_or(BOUNDS.len());
        if let Some(count) = state.counts.get_mut(bucket) {
            *count += 1;
        }
        state.sum += seconds;
    }
}

impl Metrics {
    /// A proxy connected (1) or went away (-1).
    pub(crate) fn add_connection(&self, change: i64) {
        self.connections.fetch_add(change, Ordering::Relaxed);
    }

    /// A proxy answered a response that was not the last one.
    pub(crate) fn expired_nonce(&self) {
        self.expired_nonces.fetch_add(1, Ordering::Relaxed);
    }

    /// A response of a type (`cds`, …) was sent.
    pub(crate) fn pushed(&self, kind: &str) {
        self.count("pilot_xds_pushes", format!("type=\"{kind}\""), 1);
    }

    /// A proxy refused a response of a type (`cds`, …).
    pub(crate) fn rejected(&self, kind: &str, type_url: &str) {
        self.count("pilot_total_xds_rejects", format!("type=\"{type_url}\""), 1);
        let name = match kind {
            "cds" => "pilot_xds_cds_reject",
            "eds" => "pilot_xds_eds_reject",
            "lds" => "pilot_xds_lds_reject",
            "rds" => "pilot_xds_rds_reject",
            _ => return,
        };
        self.count(name, String::new(), 1);
    }

    /// A snapshot was made because of this: `config`, `endpoint`, `service`, `proxy`.
    pub(crate) fn triggered(&self, reason: &str) {
        self.count("pilot_push_triggers", format!("type=\"{reason}\""), 1);
    }

    /// Changes of a source: `config`, `eds`.
    pub(crate) fn inbound(&self, kind: &str) {
        self.count("pilot_inbound_updates", format!("type=\"{kind}\""), 1);
    }

    /// Time from a change to the last response that it caused at a proxy.
    pub(crate) fn converged(&self, time: Duration) {
        self.convergence.observe(time);
    }

    /// Time to generate and send.
    pub(crate) fn push_took(&self, time: Duration) {
        self.push_time.observe(time);
    }

    /// Time that changes were gathered.
    pub(crate) fn debounced(&self, time: Duration) {
        self.debounce_time.observe(time);
    }

    /// Time to make a snapshot of the world.
    pub(crate) fn built(&self, time: Duration) {
        self.context_init.observe(time);
    }

    /// Sets a gauge.
    pub(crate) fn set(&self, name: &'static str, value: usize) {
        let mut gauges = self.gauges.lock().unwrap_or_else(PoisonError::into_inner);
        gauges.insert(name, value as f64);
    }

    fn count(&self, name: &'static str, labels: String, by: u64) {
        let mut counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        *counters.entry((name, labels)).or_default() += by;
    }

    /// The text.
    pub(crate) fn render(&self) -> String {
        let mut text = String::new();
        let mut last = "";
        for ((name, labels), value) in self
            .counters
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
        {
            if *name != last {
                let _ = writeln!(text, "# TYPE {name} counter");
                last = name;
            }
            let labels = if labels.is_empty() {
                String::new()
            } else {
                format!("{{{labels}}}")
            };
            let _ = writeln!(text, "{name}{labels} {value}");
        }
        let expired = self.expired_nonces.load(Ordering::Relaxed);
        let _ = writeln!(
            text,
            "# TYPE pilot_xds_expired_nonce counter\npilot_xds_expired_nonce {expired}"
        );
        for (name, value) in self
            .gauges
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
        {
            let _ = writeln!(text, "# TYPE {name} gauge\n{name} {value}");
        }
        let version = env!("CARGO_PKG_VERSION");
        let connections = self.connections.load(Ordering::Relaxed);
        let _ = writeln!(
            text,
            "# TYPE pilot_xds gauge\npilot_xds{{version=\"{version}\"}} {connections}"
        );
        let _ = writeln!(
            text,
            "# TYPE pilot_info gauge\npilot_info{{version=\"{version}\"}} 1"
        );
        let _ = writeln!(
            text,
            "# TYPE istio_build gauge\nistio_build{{component=\"pilot\",tag=\"{version}\"}} 1"
        );
        let uptime = self.started.elapsed().as_secs_f64();
        let _ = writeln!(
            text,
            "# TYPE istiod_uptime_seconds gauge\nistiod_uptime_seconds {uptime}"
        );
        for (name, histogram) in [
            ("pilot_proxy_convergence_time", &self.convergence),
            ("pilot_xds_push_time", &self.push_time),
            ("pilot_debounce_time", &self.debounce_time),
            ("pilot_pushcontext_init_seconds", &self.context_init),
        ] {
            let state = histogram
                .0
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone();
            render_histogram(&mut text, name, &state);
        }
        text
    }
}

fn render_histogram(text: &mut String, name: &str, state: &HistogramState) {
    let _ = writeln!(text, "# TYPE {name} histogram");
    let mut total = 0;
    for (index, count) in state.counts.iter().enumerate() {
        total += count;
        let bound = BOUNDS.get(index).map_or("+Inf".to_owned(), f64::to_string);
        let _ = writeln!(text, "{name}_bucket{{le=\"{bound}\"}} {total}");
    }
    let _ = writeln!(text, "{name}_sum {}\n{name}_count {total}", state.sum);
}

/// One gauge of a registry: its name and how it is read from the status.
type RegistryGauge = (&'static str, fn(&SourceStatus) -> u64);

const REGISTRY_GAUGES: [RegistryGauge; 10] = [
    ("pilot_registry_connected", |s| s.connected.into()),
    ("pilot_registry_synced", |s| s.synced.into()),
    ("pilot_registry_stale", |s| s.stale.into()),
    ("pilot_registry_services", |s| s.services as u64),
    ("pilot_registry_instances", |s| s.instances as u64),
    ("pilot_registry_held_instances", |s| s.held as u64),
    ("pilot_registry_skipped_entries", |s| s.skipped as u64),
    ("pilot_registry_copies", |s| s.copies as u64),
    ("pilot_registry_copies_failed", |s| s.failed.len() as u64),
    ("pilot_registry_sessions", |s| s.sessions),
];

/// Adds what there is to say of each registry.
pub(crate) fn render_registries(text: &mut String, status: &Status) {
    if status.sources.is_empty() {
        return;
    }
    for (name, value) in REGISTRY_GAUGES {
        let _ = writeln!(text, "# TYPE {name} gauge");
        for source in &status.sources {
            let (registry, kind) = (&source.name, source.kind);
            let _ = writeln!(
                text,
                "{name}{{registry=\"{registry}\",kind=\"{kind}\"}} {}",
                value(source)
            );
        }
    }
}

/// One gauge of a rule, and one of a registry that is written to.
type RuleGauge = (&'static str, fn(&RuleStatus) -> usize);
type TargetGauge = (&'static str, fn(&TargetStatus) -> usize);

const RULE_GAUGES: [RuleGauge; 4] = [
    ("pilot_registry_sync_rule_copies", |s| s.copies),
    ("pilot_registry_sync_planned", |s| s.planned),
    ("pilot_registry_sync_pending", |s| s.pending),
    ("pilot_registry_sync_already_there", |s| s.already_there),
];

const TARGET_GAUGES: [TargetGauge; 4] = [
    ("pilot_registry_sync_copies", |s| s.copies),
    ("pilot_registry_sync_failed", |s| s.failed),
    ("pilot_registry_sync_held", |s| s.held),
    ("pilot_registry_sync_withdrawing", |s| s.withdrawing),
];

/// Adds what there is to say of copies between registries.
pub(crate) fn render_sync(text: &mut String, status: &SyncStatus) {
    if status.rules.is_empty() && status.targets.is_empty() {
        return;
    }
    let leads = usize::from(status.role == Role::Leader);
    let _ = writeln!(
        text,
        "# TYPE pilot_registry_sync_leader gauge\npilot_registry_sync_leader {leads}"
    );
    for (name, value) in RULE_GAUGES {
        let _ = writeln!(text, "# TYPE {name} gauge");
        for rule in &status.rules {
            let _ = writeln!(text, "{name}{{sync=\"{}\"}} {}", rule.name, value(rule));
        }
    }
    for (name, value) in TARGET_GAUGES {
        let _ = writeln!(text, "# TYPE {name} gauge");
        for (target, status) in &status.targets {
            let _ = writeln!(text, "{name}{{registry=\"{target}\"}} {}", value(status));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_are_cumulative() {
        let metrics = Metrics::default();
        metrics.converged(Duration::from_millis(2));
        metrics.converged(Duration::from_secs(60));
        metrics.pushed("cds");
        metrics.pushed("cds");
        let text = metrics.render();
        for line in [
            "pilot_proxy_convergence_time_bucket{le=\"0.001\"} 0",
            "pilot_proxy_convergence_time_bucket{le=\"0.0025\"} 1",
            "pilot_proxy_convergence_time_bucket{le=\"+Inf\"} 2",
            "pilot_proxy_convergence_time_count 2",
            "pilot_xds_pushes{type=\"cds\"} 2",
        ] {
            assert!(text.lines().any(|known| known == line), "{line} in\n{text}");
        }
    }
}
