//! The handles: what the rest of the server holds of a statistic.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::histogram::{HistogramValue, bucket_of};
use super::names::Name;
use super::slab::{own_histogram, own_scalar};
use super::{BUCKETS, HISTOGRAM_CELLS, Inner, Kind};

/// Set in a gauge's cell when it was ever written, so that a gauge that went back to zero still counts as used.
const USED: u64 = 1 << 63;
/// The bits of a gauge's cell that count, in two's complement.
const VALUE: u64 = USED - 1;

/// A name's place in every slab, and the cells of the threads that have no slab.
pub(super) struct Slot {
    /// The registry's number, at hand for every increment.
    registry: u64,
    inner: Arc<Inner>,
    kind: Kind,
    index: u32,
    pub(super) name: Name,
    /// Written by threads without a slab, by read-modify-write.
    shared: AtomicU64,
    /// The same for a histogram.
    shared_histogram: OnceLock<Box<[AtomicU64; HISTOGRAM_CELLS]>>,
    /// Subtracted from a counter: its sum when the counters were last reset.
    pub(super) baseline: AtomicU64,
}

/// A number that only grows.
#[derive(Clone)]
pub struct Counter(Arc<Slot>);

/// A number that grows and shrinks, or is set.
#[derive(Clone)]
pub struct Gauge(Arc<Slot>);

/// A distribution of whole numbers, usually milliseconds.
#[derive(Clone)]
pub struct Histogram(Arc<Slot>);

/// A short text, for instance the version of the configuration in force.
#[derive(Clone)]
pub struct Text(Arc<TextSlot>);

pub(super) struct TextSlot {
    inner: Arc<Inner>,
    pub(super) name: Name,
    value: Mutex<Arc<str>>,
}

impl Slot {
    pub(super) fn new(inner: Arc<Inner>, kind: Kind, index: u32, name: Name) -> Self {
        Self {
            registry: inner.id,
            inner,
            kind,
            index,
            name,
            shared: AtomicU64::new(0),
            shared_histogram: OnceLock::new(),
            baseline: AtomicU64::new(0),
        }
    }

    /// Calls `see` with the slot's cells of every thread, and with those of the threads that have no slab.
    fn for_all_cells(&self, slabs: &[super::Slab], mut see: impl FnMut(&[AtomicU64])) {
        for slab in slabs {
            if let Some(cells) = slab.cells(self.kind, self.index) {
                see(cells);
            }
        }
        match self.kind {
            Kind::Counter | Kind::Gauge => see(std::slice::from_ref(&self.shared)),
            Kind::Histogram => {
                if let Some(cells) = self.shared_histogram.get() {
                    see(&cells[..]);
                }
            }
        }
    }

    /// The sum of a counter over all threads since the slot was made.
    pub(super) fn counter_total(&self, slabs: &[super::Slab]) -> u64 {
        let mut total = 0u64;
        self.for_all_cells(slabs, |cells| {
            total = cells.iter().fold(total, |sum, cell| {
                sum.wrapping_add(cell.load(Ordering::Relaxed))
            });
        });
        total
    }

    /// The value of a gauge, and whether it was ever written.
    pub(super) fn gauge_total(&self, slabs: &[super::Slab]) -> (i64, bool) {
        let (mut total, mut used) = (0u64, false);
        self.for_all_cells(slabs, |cells| {
            for cell in cells {
                let cell = cell.load(Ordering::Relaxed);
                used |= cell & USED != 0;
                total = total.wrapping_add(cell & VALUE);
            }
        });
        // Sign-extends from bit 62.
        ((total << 1).cast_signed() >> 1, used)
    }

    pub(super) fn histogram_total(&self, slabs: &[super::Slab]) -> HistogramValue {
        let mut total = HistogramValue::default();
        self.for_all_cells(slabs, |cells| {
            for (cell, sum) in cells
                .iter()
                .zip(total.buckets.iter_mut().chain([&mut total.sum]))
            {
                *sum = sum.wrapping_add(cell.load(Ordering::Relaxed));
            }
        });
        total
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.inner.state().free(self.kind, self.index, &self.name);
    }
}

impl Drop for TextSlot {
    fn drop(&mut self) {
        let mut state = self.inner.state();
        if state
            .texts
            .get(&self.name)
            .is_some_and(|text| text.strong_count() == 0)
        {
            state.texts.remove(&self.name);
        }
        state.names.release(&self.name);
    }
}

/// Adds to a cell that no other thread writes.
#[inline]
fn add_own(cell: &AtomicU64, n: u64) {
    cell.store(
        cell.load(Ordering::Relaxed).wrapping_add(n),
        Ordering::Relaxed,
    );
}

impl Counter {
    pub(super) fn new(slot: Arc<Slot>) -> Self {
        Self(slot)
    }

    /// Adds one.
    #[inline]
    pub fn inc(&self) {
        self.add(1);
    }

    /// Adds `n`.
    #[inline]
    pub fn add(&self, n: u64) {
        match own_scalar(self.0.registry, self.0.index) {
            Some(cell) => add_own(cell, n),
            None => {
                self.0.shared.fetch_add(n, Ordering::Relaxed);
            }
        }
    }

    /// The sum over all threads since the last reset. Takes the registry's lock: not for the path of a request.
    #[must_use]
    pub fn value(&self) -> u64 {
        let total = self.0.counter_total(&self.0.inner.state().slabs);
        total.wrapping_sub(self.0.baseline.load(Ordering::Relaxed))
    }
}

impl Gauge {
    pub(super) fn new(slot: Arc<Slot>) -> Self {
        Self(slot)
    }

    /// Adds one.
    #[inline]
    pub fn inc(&self) {
        self.change(1);
    }

    /// Takes one away.
    #[inline]
    pub fn dec(&self) {
        self.change(u64::MAX);
    }

    /// Adds `n`.
    #[inline]
    pub fn add(&self, n: u64) {
        self.change(n);
    }

    /// Takes `n` away.
    #[inline]
    pub fn sub(&self, n: u64) {
        self.change(n.wrapping_neg());
    }

    /// Makes it `value`. A gauge is either set, by whoever set it last, or counted up and down: what threads have added
    /// to it stays added.
    pub fn set(&self, value: u64) {
        self.0.shared.store(value & VALUE | USED, Ordering::Relaxed);
    }

    #[inline]
    fn change(&self, n: u64) {
        let moved = |cell: u64| cell.wrapping_add(n) & VALUE | USED;
        match own_scalar(self.0.registry, self.0.index) {
            Some(cell) => cell.store(moved(cell.load(Ordering::Relaxed)), Ordering::Relaxed),
            None => {
                // Never fails: the closure always gives a value.
                let _ = self
                    .0
                    .shared
                    .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |cell| {
                        Some(moved(cell))
                    });
            }
        }
    }

    /// The value over all threads; negative only if more was taken away than added. Takes the registry's lock.
    #[must_use]
    pub fn value(&self) -> i64 {
        self.0.gauge_total(&self.0.inner.state().slabs).0
    }
}

impl Histogram {
    pub(super) fn new(slot: Arc<Slot>) -> Self {
        Self(slot)
    }

    /// Counts one observation.
    #[inline]
    pub fn record(&self, value: u64) {
        let bucket = bucket_of(value);
        if let Some(cells) = own_histogram(self.0.registry, self.0.index) {
            if let (Some(count), Some(sum)) = (cells.get(bucket), cells.get(BUCKETS + 1)) {
                add_own(count, 1);
                add_own(sum, value);
            }
            return;
        }
        let cells = self
            .0
            .shared_histogram
            .get_or_init(|| Box::new([const { AtomicU64::new(0) }; HISTOGRAM_CELLS]));
        if let (Some(count), Some(sum)) = (cells.get(bucket), cells.get(BUCKETS + 1)) {
            count.fetch_add(1, Ordering::Relaxed);
            sum.fetch_add(value, Ordering::Relaxed);
        }
    }

    /// The distribution over all threads. Takes the registry's lock.
    #[must_use]
    pub fn value(&self) -> HistogramValue {
        self.0.histogram_total(&self.0.inner.state().slabs)
    }
}

impl Text {
    pub(super) fn new(slot: Arc<TextSlot>) -> Self {
        Self(slot)
    }

    /// Makes it this text.
    pub fn set(&self, value: &str) {
        *self.0.value.lock().unwrap_or_else(PoisonError::into_inner) = Arc::from(value);
    }

    /// The text as last set; empty at first.
    #[must_use]
    pub fn value(&self) -> Arc<str> {
        self.0.value()
    }
}

impl TextSlot {
    pub(super) fn new(inner: Arc<Inner>, name: Name) -> Self {
        Self {
            inner,
            name,
            value: Mutex::new(Arc::from("")),
        }
    }

    pub(super) fn value(&self) -> Arc<str> {
        Arc::clone(&self.value.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
