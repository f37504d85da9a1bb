//! Counters, gauges and histograms under Envoy's names. A worker adds to its own memory only: no lock, no atomic
//! read-modify-write and no cache line shared with another thread. Whoever asks for a [`Snapshot`] sums over the threads.
//!
//! A name is resolved to a slot once, when configuration is compiled; the handle then only knows an index. The slot is
//! given back when the last handle of its name drops, and starts at zero when it is used again.

mod histogram;
mod names;
mod slab;
mod slot;
mod snapshot;
pub mod tags;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

pub use histogram::{BUCKETS, HistogramValue, bucket_bounds};
use names::{Name, Names};
use slab::{Indices, Slab};
use slot::Slot;
pub use slot::{Counter, Gauge, Histogram, Text};
pub use snapshot::{Metric, Snapshot};

/// Gives each registry an identity, so that a thread registered with one never writes for another.
static NEXT_REGISTRY: AtomicU64 = AtomicU64::new(1);

/// Cells of one histogram: its buckets, the overflow bucket and the sum.
const HISTOGRAM_CELLS: usize = BUCKETS + 2;

/// All statistics of one server. Cloning shares it.
#[derive(Clone)]
pub struct Registry {
    inner: Arc<Inner>,
}

struct Inner {
    id: u64,
    state: Mutex<State>,
}

/// What exists now. Taken when a name is resolved, a slot freed, a slab grown or a snapshot made; never on an increment.
struct State {
    slots: HashMap<(Kind, Name), Entry>,
    texts: HashMap<Name, Weak<slot::TextSlot>>,
    names: Names,
    scalars: Indices,
    histograms: Indices,
    slabs: Vec<Slab>,
}

struct Entry {
    index: u32,
    slot: Weak<Slot>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Default for Registry {
    fn default() -> Self {
        Self::new()
    }
}

impl Registry {
    /// An empty registry.
    #[must_use]
    pub fn new() -> Self {
        let state = State {
            slots: HashMap::new(),
            texts: HashMap::new(),
            names: Names::default(),
            scalars: Indices::default(),
            histograms: Indices::default(),
            slabs: Vec::new(),
        };
        let id = NEXT_REGISTRY.fetch_add(1, Ordering::Relaxed);
        Self {
            inner: Arc::new(Inner {
                id,
                state: Mutex::new(state),
            }),
        }
    }

    /// The counter of this name; the same slot for everyone who asks for it.
    #[must_use]
    pub fn counter(&self, name: &str) -> Counter {
        Counter::new(self.slot(Kind::Counter, name))
    }

    /// The gauge of this name.
    #[must_use]
    pub fn gauge(&self, name: &str) -> Gauge {
        Gauge::new(self.slot(Kind::Gauge, name))
    }

    /// The histogram of this name, with Envoy's default buckets.
    #[must_use]
    pub fn histogram(&self, name: &str) -> Histogram {
        Histogram::new(self.slot(Kind::Histogram, name))
    }

    /// The text of this name, for instance a configuration's version.
    #[must_use]
    pub fn text(&self, name: &str) -> Text {
        let mut state = self.inner.state();
        let name = state.names.intern(name);
        if let Some(text) = state.texts.get(&name).and_then(Weak::upgrade) {
            state.names.release(&name);
            return Text::new(text);
        }
        let text = Arc::new(slot::TextSlot::new(Arc::clone(&self.inner), name.clone()));
        state.texts.insert(name, Arc::downgrade(&text));
        Text::new(text)
    }

    /// Gives the calling thread a slab of its own. Called once at the start of each worker; a thread that never calls it
    /// may use handles as well, but pays for an atomic addition. The slab outlives the thread, so no count is lost.
    pub fn register_thread(&self) {
        slab::adopt(&self.inner);
    }

    /// The sums over all threads, sorted by name.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::take(&self.inner)
    }

    /// Makes every counter read zero from here on. Nothing is written to the workers' memory: the present sums become
    /// what is subtracted.
    pub fn reset_counters(&self) {
        snapshot::reset_counters(&self.inner);
    }

    fn slot(&self, kind: Kind, name: &str) -> Arc<Slot> {
        let mut state = self.inner.state();
        let name = state.names.intern(name);
        if let Some(slot) = state
            .slots
            .get(&(kind, name.clone()))
            .and_then(|entry| entry.slot.upgrade())
        {
            state.names.release(&name);
            return slot;
        }
        let index = state.indices(kind).take();
        let slot = Arc::new(Slot::new(
            Arc::clone(&self.inner),
            kind,
            index,
            name.clone(),
        ));
        state.slots.insert(
            (kind, name),
            Entry {
                index,
                slot: Arc::downgrade(&slot),
            },
        );
        slot
    }
}

impl Inner {
    /// The state even if another thread panicked while it held it: every change leaves it whole.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn indices(&mut self, kind: Kind) -> &mut Indices {
        match kind {
            Kind::Counter | Kind::Gauge => &mut self.scalars,
            Kind::Histogram => &mut self.histograms,
        }
    }

    /// Takes back the slot of a name that nobody holds any more.
    fn free(&mut self, kind: Kind, index: u32, name: &Name) {
        // The name may have been asked for again between the last drop and this lock: then the entry is the new slot's.
        let key = (kind, name.clone());
        if self
            .slots
            .get(&key)
            .is_some_and(|entry| entry.index == index)
        {
            self.slots.remove(&key);
        }
        drop(key);
        // No handle is left, so no thread writes here: zeroing from this thread is safe, and the lock orders it before
        // the next owner's first addition.
        for slab in &self.slabs {
            slab.zero(kind, index);
        }
        self.indices(kind).give_back(index);
        self.names.release(name);
    }
}
