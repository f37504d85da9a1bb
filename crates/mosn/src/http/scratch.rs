//! What a busy connection needs and an idle one does not: buffers and indexes, kept by the thread from one request to the next.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

use wire::http1::{RequestHead, ResponseHead};

use super::headers::Edits;
use super::io::{Input, Output, READ_BYTES};

/// Sets that a thread keeps; more connections than this are rarely busy in the same turn of the loop.
const KEEP: usize = 64;

/// Buffers of one request and its answer.
#[derive(Default)]
pub(super) struct Scratch {
    /// From the downstream: a request head at the front, and behind it whatever came with it.
    pub(super) received: Vec<u8>,
    /// From the downstream: the body, still framed.
    pub(super) body: Input,
    /// To the upstream.
    pub(super) to_upstream: Output,
    /// From the upstream.
    pub(super) from_upstream: Input,
    /// To the downstream.
    pub(super) to_downstream: Output,
    pub(super) request: RequestHead,
    pub(super) request_edits: Edits,
    pub(super) response: ResponseHead,
    pub(super) response_edits: Edits,
    /// The path, once it differs from the one received.
    pub(super) path: Vec<u8>,
    /// The authority, once it differs from the one received.
    pub(super) authority: Vec<u8>,
    /// The response head as written, if an access log wants it.
    pub(super) response_head: Vec<u8>,
}

thread_local! {
    #[allow(clippy::vec_box, reason = "a set is lent and given back as one pointer")]
    static FREE: RefCell<Vec<Box<Scratch>>> = const { RefCell::new(Vec::new()) };
}

/// A set on loan.
pub(super) struct Loan(Option<Box<Scratch>>);

/// Takes a set.
pub(super) fn take() -> Loan {
    Loan(Some(FREE.with_borrow_mut(Vec::pop).unwrap_or_default()))
}

impl Deref for Loan {
    type Target = Scratch;

    fn deref(&self) -> &Scratch {
        self.0.as_deref().expect("taken only on drop")
    }
}

impl DerefMut for Loan {
    fn deref_mut(&mut self) -> &mut Scratch {
        self.0.as_deref_mut().expect("taken only on drop")
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        let Some(mut scratch) = self.0.take() else {
            return;
        };
        scratch.received.clear();
        scratch.body.clear();
        scratch.to_upstream.clear();
        scratch.from_upstream.clear();
        scratch.to_downstream.clear();
        let capacity = scratch.received.capacity()
            + scratch.body.capacity()
            + scratch.to_upstream.buffer.capacity()
            + scratch.from_upstream.capacity()
            + scratch.to_downstream.buffer.capacity();
        // One large request must not leave large buffers behind.
        if capacity <= 8 * READ_BYTES {
            FREE.with_borrow_mut(|free| {
                if free.len() < KEEP {
                    free.push(scratch);
                }
            });
        }
    }
}
