//! The cells that threads write. Each registered thread has a slab, made of chunks that are allocated when the thread
//! first writes into them. A chunk starts on cache lines of its own, so two threads never share one.
//!
//! Chunks are never freed but pooled when their registry goes: so a thread can keep plain references to its own, and an
//! increment costs a look at two thread-local words.

use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::{HISTOGRAM_CELLS, Inner, Kind};

/// Cells per chunk: one page.
const CHUNK: usize = 512;
/// Histograms per chunk; one never straddles two chunks.
const HISTOGRAMS_PER_CHUNK: usize = CHUNK / HISTOGRAM_CELLS;
/// Chunks that a thread keeps at hand, of each kind: a million counters and gauges, 47 000 histograms. What is beyond is
/// counted by atomic addition.
const CHUNKS_AT_HAND: usize = 2048;

#[repr(align(128))]
pub(super) struct Chunk([AtomicU64; CHUNK]);

type Chunks = Vec<Option<&'static Chunk>>;

/// The memory of one thread as the registry sees it.
#[derive(Default)]
pub(super) struct Slab {
    /// A living thread writes here.
    owned: bool,
    scalars: Chunks,
    histograms: Chunks,
}

/// Which indices are taken.
#[derive(Default)]
pub(super) struct Indices {
    next: u32,
    free: Vec<u32>,
}

/// Gives the slab back when the thread ends.
struct Owner {
    inner: Arc<Inner>,
    slab: usize,
}

type AtHand = [Cell<Option<&'static Chunk>>; CHUNKS_AT_HAND];

thread_local! {
    /// The registry that this thread is registered with; 0 is none.
    static REGISTRY: Cell<u64> = const { Cell::new(0) };
    static SCALARS: AtHand = const { [const { Cell::new(None) }; CHUNKS_AT_HAND] };
    static HISTOGRAMS: AtHand = const { [const { Cell::new(None) }; CHUNKS_AT_HAND] };
    static OWNER: RefCell<Option<Owner>> = const { RefCell::new(None) };
}

/// Chunks of registries that are gone, all zero.
static POOL: Mutex<Vec<&'static Chunk>> = Mutex::new(Vec::new());

impl Indices {
    pub(super) fn take(&mut self) -> u32 {
        self.free.pop().unwrap_or_else(|| {
            self.next += 1;
            self.next - 1
        })
    }

    #[cfg(test)]
    pub(super) fn take_next(&self) -> u32 {
        self.next
    }

    pub(super) fn give_back(&mut self, index: u32) {
        self.free.push(index);
    }
}

impl Chunk {
    fn from_pool() -> &'static Self {
        let pooled = POOL.lock().unwrap_or_else(PoisonError::into_inner).pop();
        pooled.unwrap_or_else(|| Box::leak(Box::new(Self([const { AtomicU64::new(0) }; CHUNK]))))
    }
}

/// Chunk and offset of the first cell of a slot.
#[inline]
fn place(kind: Kind, index: u32) -> (usize, usize) {
    let index = index as usize;
    match kind {
        Kind::Counter | Kind::Gauge => (index / CHUNK, index % CHUNK),
        Kind::Histogram => (
            index / HISTOGRAMS_PER_CHUNK,
            index % HISTOGRAMS_PER_CHUNK * HISTOGRAM_CELLS,
        ),
    }
}

#[inline]
fn width(kind: Kind) -> usize {
    match kind {
        Kind::Counter | Kind::Gauge => 1,
        Kind::Histogram => HISTOGRAM_CELLS,
    }
}

impl Slab {
    /// The cells of a slot, if this thread ever wrote near them.
    pub(super) fn cells(&self, kind: Kind, index: u32) -> Option<&'static [AtomicU64]> {
        let chunks = match kind {
            Kind::Counter | Kind::Gauge => &self.scalars,
            Kind::Histogram => &self.histograms,
        };
        let (chunk, offset) = place(kind, index);
        let chunk: &'static Chunk = (*chunks.get(chunk)?)?;
        chunk.0.get(offset..offset + width(kind))
    }

    pub(super) fn zero(&self, kind: Kind, index: u32) {
        for cell in self.cells(kind, index).unwrap_or_default() {
            cell.store(0, Ordering::Relaxed);
        }
    }

    /// The chunk of this number, made if it is not there.
    fn chunk(&mut self, kind: Kind, number: usize) -> Option<&'static Chunk> {
        let chunks = match kind {
            Kind::Counter | Kind::Gauge => &mut self.scalars,
            Kind::Histogram => &mut self.histograms,
        };
        if chunks.len() <= number {
            chunks.resize(number + 1, None);
        }
        chunks
            .get_mut(number)
            .map(|chunk| *chunk.get_or_insert_with(Chunk::from_pool))
    }
}

impl Drop for Slab {
    /// Only when the registry goes, and with it every handle: nobody writes here any more.
    fn drop(&mut self) {
        let chunks = self
            .scalars
            .drain(..)
            .chain(self.histograms.drain(..))
            .flatten();
        let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
        for chunk in chunks {
            chunk
                .0
                .iter()
                .for_each(|cell| cell.store(0, Ordering::Relaxed));
            pool.push(chunk);
        }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        // Before another thread may have the slab.
        REGISTRY.set(0);
        if let Some(slab) = self.inner.state().slabs.get_mut(self.slab) {
            slab.owned = false;
        }
    }
}

/// Gives the calling thread a slab that no living thread has, and forgets the one it may have had elsewhere.
pub(super) fn adopt(inner: &Arc<Inner>) {
    if REGISTRY.get() == inner.id {
        return;
    }
    let mut state = inner.state();
    let free = state
        .slabs
        .iter()
        .position(|slab| !slab.owned)
        .unwrap_or(state.slabs.len());
    if free == state.slabs.len() {
        state.slabs.push(Slab::default());
    }
    if let Some(slab) = state.slabs.get_mut(free) {
        slab.owned = true;
    }
    drop(state);
    for at_hand in [&SCALARS, &HISTOGRAMS] {
        at_hand.with(|chunks| {
            chunks
                .iter()
                .filter(|chunk| chunk.get().is_some())
                .for_each(|chunk| chunk.set(None))
        });
    }
    let owner = Owner {
        inner: Arc::clone(inner),
        slab: free,
    };
    // Fails only while the thread ends, when nothing is counted any more; then the slab is given back at once.
    if let Ok(former) = OWNER.try_with(|place| place.replace(Some(owner))) {
        drop(former);
        REGISTRY.set(inner.id);
    }
}

/// The calling thread's own cell of a counter or gauge; none if it has no slab in this registry.
#[inline]
pub(super) fn own_scalar(registry: u64, index: u32) -> Option<&'static AtomicU64> {
    if REGISTRY.get() != registry {
        return None;
    }
    let (number, offset) = place(Kind::Counter, index);
    let chunk = match SCALARS.with(|chunks| chunks.get(number).and_then(Cell::get)) {
        Some(chunk) => chunk,
        None => fetch(Kind::Counter, number)?,
    };
    chunk.0.get(offset)
}

/// The calling thread's own cells of a histogram.
#[inline]
pub(super) fn own_histogram(registry: u64, index: u32) -> Option<&'static [AtomicU64]> {
    if REGISTRY.get() != registry {
        return None;
    }
    let (number, offset) = place(Kind::Histogram, index);
    let chunk = match HISTOGRAMS.with(|chunks| chunks.get(number).and_then(Cell::get)) {
        Some(chunk) => chunk,
        None => fetch(Kind::Histogram, number)?,
    };
    chunk.0.get(offset..offset + HISTOGRAM_CELLS)
}

/// Puts a chunk of the thread's slab at hand.
#[cold]
fn fetch(kind: Kind, number: usize) -> Option<&'static Chunk> {
    if number >= CHUNKS_AT_HAND {
        return None;
    }
    let chunk = OWNER
        .try_with(|owner| {
            let owner = owner.borrow();
            let owner = owner.as_ref()?;
            owner
                .inner
                .state()
                .slabs
                .get_mut(owner.slab)?
                .chunk(kind, number)
        })
        .ok()??;
    let at_hand = match kind {
        Kind::Counter | Kind::Gauge => &SCALARS,
        Kind::Histogram => &HISTOGRAMS,
    };
    at_hand.with(|chunks| {
        chunks
            .get(number)
            .inspect(|place| place.set(Some(chunk)))
            .map(|_| chunk)
    })
}
