//! The cells that threads write. Each registered thread has a slab, made of chunks that are allocated when the thread
//! first writes into them. A chunk starts on a cache line of its own, so two threads never share one.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{HISTOGRAM_CELLS, Inner, Kind};

/// Cells per chunk: one page.
const CHUNK: usize = 512;
/// Histograms per chunk; one never straddles two chunks.
const HISTOGRAMS_PER_CHUNK: usize = CHUNK / HISTOGRAM_CELLS;

#[repr(align(128))]
pub(super) struct Chunk([AtomicU64; CHUNK]);

type Chunks = Vec<Option<Arc<Chunk>>>;

/// The memory of one thread as the registry sees it.
#[derive(Default)]
pub(super) struct Slab {
    /// A living thread writes here.
    pub(super) owned: bool,
    scalars: Chunks,
    histograms: Chunks,
}

/// Which indices are taken.
#[derive(Default)]
pub(super) struct Indices {
    next: u32,
    free: Vec<u32>,
}

/// What a thread keeps at hand: the chunks of its slab.
struct Local {
    registry: u64,
    inner: Option<Arc<Inner>>,
    slab: usize,
    scalars: Chunks,
    histograms: Chunks,
}

thread_local! {
    static LOCAL: RefCell<Local> = const {
        RefCell::new(Local { registry: 0, inner: None, slab: 0, scalars: Vec::new(), histograms: Vec::new() })
    };
}

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
    fn new() -> Arc<Self> {
        Arc::new(Self([const { AtomicU64::new(0) }; CHUNK]))
    }
}

/// Chunk and offset of the first cell of a slot.
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

fn width(kind: Kind) -> usize {
    match kind {
        Kind::Counter | Kind::Gauge => 1,
        Kind::Histogram => HISTOGRAM_CELLS,
    }
}

fn cells(chunks: &Chunks, kind: Kind, index: u32) -> Option<&[AtomicU64]> {
    let (chunk, offset) = place(kind, index);
    chunks
        .get(chunk)?
        .as_ref()?
        .0
        .get(offset..offset + width(kind))
}

impl Slab {
    fn chunks(&self, kind: Kind) -> &Chunks {
        match kind {
            Kind::Counter | Kind::Gauge => &self.scalars,
            Kind::Histogram => &self.histograms,
        }
    }

    /// The cells of a slot, if this thread ever wrote near them.
    pub(super) fn cells(&self, kind: Kind, index: u32) -> Option<&[AtomicU64]> {
        cells(self.chunks(kind), kind, index)
    }

    pub(super) fn zero(&self, kind: Kind, index: u32) {
        for cell in self.cells(kind, index).unwrap_or_default() {
            cell.store(0, Ordering::Relaxed);
        }
    }

    /// The chunks of this kind with the one that holds the slot in place.
    fn grown(&mut self, kind: Kind, index: u32) -> Chunks {
        let chunks = match kind {
            Kind::Counter | Kind::Gauge => &mut self.scalars,
            Kind::Histogram => &mut self.histograms,
        };
        let (chunk, _) = place(kind, index);
        if chunks.len() <= chunk {
            chunks.resize(chunk + 1, None);
        }
        if let Some(place) = chunks.get_mut(chunk) {
            place.get_or_insert_with(Chunk::new);
        }
        chunks.clone()
    }
}

impl Local {
    fn chunks(&self, kind: Kind) -> &Chunks {
        match kind {
            Kind::Counter | Kind::Gauge => &self.scalars,
            Kind::Histogram => &self.histograms,
        }
    }

    #[cold]
    fn grow(&mut self, kind: Kind, index: u32) {
        let Some(inner) = self.inner.as_ref() else {
            return;
        };
        let mut state = inner.state();
        let Some(slab) = state.slabs.get_mut(self.slab) else {
            return;
        };
        let chunks = slab.grown(kind, index);
        drop(state);
        match kind {
            Kind::Counter | Kind::Gauge => self.scalars = chunks,
            Kind::Histogram => self.histograms = chunks,
        }
    }

    /// Gives the slab back with its counts in it; the next thread that registers goes on counting there.
    fn leave(&mut self) {
        let Some(inner) = self.inner.take() else {
            return;
        };
        if let Some(slab) = inner.state().slabs.get_mut(self.slab) {
            slab.owned = false;
        }
        self.registry = 0;
        self.scalars.clear();
        self.histograms.clear();
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        self.leave();
    }
}

/// Gives the calling thread a slab that no living thread has, and forgets the one it may have had elsewhere.
pub(super) fn adopt(inner: &Arc<Inner>) {
    // Fails only while the thread ends, when nothing is counted any more.
    let _ = LOCAL.try_with(|local| {
        let mut local = local.borrow_mut();
        if local.registry == inner.id {
            return;
        }
        local.leave();
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
            local.scalars = slab.scalars.clone();
            local.histograms = slab.histograms.clone();
        }
        drop(state);
        local.slab = free;
        local.registry = inner.id;
        local.inner = Some(Arc::clone(inner));
    });
}

/// Lets the calling thread change its own cells of a slot. False if it has no slab in this registry.
#[inline]
pub(super) fn with_cells(
    registry: u64,
    kind: Kind,
    index: u32,
    change: impl Fn(&[AtomicU64]),
) -> bool {
    LOCAL
        .try_with(|local| {
            {
                let local = local.borrow();
                if local.registry != registry {
                    return false;
                }
                if let Some(cells) = cells(local.chunks(kind), kind, index) {
                    change(cells);
                    return true;
                }
            }
            let mut local = local.borrow_mut();
            local.grow(kind, index);
            match cells(local.chunks(kind), kind, index) {
                Some(cells) => {
                    change(cells);
                    true
                }
                None => false,
            }
        })
        .unwrap_or(false)
}
