//! All values at one time, summed over the threads.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::slot::{Slot, TextSlot};
use super::{HistogramValue, Inner, Kind};

/// One named value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metric<T> {
    /// Envoy's full name.
    pub name: String,
    /// The value.
    pub value: T,
    /// Whether it was ever written (`?usedonly`).
    pub used: bool,
}

/// The values of a registry, each kind sorted by name.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Counters since the last reset.
    pub counters: Vec<Metric<u64>>,
    /// Gauges; one that another thread's addition has not reached yet reads as zero rather than negative.
    pub gauges: Vec<Metric<u64>>,
    /// Histograms.
    pub histograms: Vec<Metric<HistogramValue>>,
    /// Texts.
    pub texts: Vec<Metric<Arc<str>>>,
}

/// The slots and texts that somebody holds.
type Living = (Vec<(Kind, Arc<Slot>)>, Vec<Arc<TextSlot>>);

/// The living slots. They must be dropped only after the lock is released: a slot's drop takes it.
fn living(inner: &Inner) -> Living {
    let state = inner.state();
    let slots = state
        .slots
        .iter()
        .filter_map(|((kind, _), entry)| Some((*kind, entry.slot.upgrade()?)))
        .collect();
    let texts = state
        .texts
        .values()
        .filter_map(std::sync::Weak::upgrade)
        .collect();
    drop(state);
    (slots, texts)
}

impl Snapshot {
    pub(super) fn take(inner: &Inner) -> Self {
        let (slots, texts) = living(inner);
        let mut all = Self::default();
        let state = inner.state();
        for (kind, slot) in &slots {
            let name = slot.name.to_full();
            match kind {
                Kind::Counter => {
                    let total = slot.counter_total(&state.slabs);
                    let value = total.wrapping_sub(slot.baseline.load(Ordering::Relaxed));
                    all.counters.push(Metric {
                        name,
                        value,
                        used: total != 0,
                    });
                }
                Kind::Gauge => {
                    let (value, used) = slot.gauge_total(&state.slabs);
                    let value = u64::try_from(value).unwrap_or(0);
                    all.gauges.push(Metric { name, value, used });
                }
                Kind::Histogram => {
                    let value = slot.histogram_total(&state.slabs);
                    let used = value.count() != 0;
                    all.histograms.push(Metric { name, value, used });
                }
            }
        }
        drop(state);
        for text in &texts {
            let value = text.value();
            all.texts.push(Metric {
                name: text.name.to_full(),
                used: !value.is_empty(),
                value,
            });
        }
        all.counters.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        all.gauges.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        all.histograms.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        all.texts.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// The counter of this name, if there is one.
    #[must_use]
    pub fn counter(&self, name: &str) -> Option<u64> {
        find(&self.counters, name)
    }

    /// The gauge of this name, if there is one.
    #[must_use]
    pub fn gauge(&self, name: &str) -> Option<u64> {
        find(&self.gauges, name)
    }

    /// The histogram of this name, if there is one.
    #[must_use]
    pub fn histogram(&self, name: &str) -> Option<HistogramValue> {
        find(&self.histograms, name)
    }
}

fn find<T: Clone>(sorted: &[Metric<T>], name: &str) -> Option<T> {
    let at = sorted
        .binary_search_by(|metric| metric.name.as_str().cmp(name))
        .ok()?;
    sorted.get(at).map(|metric| metric.value.clone())
}

pub(super) fn reset_counters(inner: &Inner) {
    let (slots, _texts) = living(inner);
    let state = inner.state();
    for (kind, slot) in &slots {
        if *kind == Kind::Counter {
            slot.baseline
                .store(slot.counter_total(&state.slabs), Ordering::Relaxed);
        }
    }
}
