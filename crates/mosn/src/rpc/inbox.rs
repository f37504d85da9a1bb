//! Bytes that were read and are not a complete frame yet. Nothing is held while a connection is idle.

use std::io;

use tokio::net::TcpStream;
use wire::frame::{FrameError, Limits, Next};

use super::protocol::Protocol;
use crate::worker::BufferPool;

/// Room that a busy connection reads into.
const BUSY_BYTES: usize = 64 * 1024;

/// Received bytes.
#[derive(Default)]
pub(super) struct Inbox {
    bytes: Vec<u8>,
    /// Start of the first frame that was not taken.
    at: usize,
    /// Length of that frame, as far as it is known.
    wanted: usize,
    /// Whether the last read filled its room: there is probably more.
    busy: bool,
}

/// What the next bytes are.
pub(super) enum Step {
    /// A complete frame, in the bytes of [`Inbox::frame`].
    Frame(std::ops::Range<usize>),
    /// More has to be read.
    NeedMore,
    /// The bytes are no frame.
    Bad(FrameError),
}

impl Inbox {
    /// Starts with bytes that were read already.
    pub(super) fn with(bytes: Vec<u8>) -> Inbox {
        Inbox {
            bytes,
            ..Inbox::default()
        }
    }

    /// Reads once. 0 is the end.
    pub(super) fn read(&mut self, stream: &TcpStream, pool: &BufferPool) -> io::Result<usize> {
        if self.bytes.capacity() == 0 {
            self.bytes = pool.take();
        }
        let have = self.bytes.len();
        // A length that was only announced is not allocated at once.
        let mut room = self.wanted.saturating_sub(have).min(have.max(BUSY_BYTES));
        if self.busy {
            room = room.max(BUSY_BYTES.saturating_sub(have));
        }
        self.bytes.reserve(room.max(4096));
        let before = self.bytes.capacity() - have;
        match stream.try_read_buf(&mut self.bytes) {
            Ok(count) => {
                self.busy = count == before;
                Ok(count)
            }
            Err(error) => {
                self.release(pool);
                Err(error)
            }
        }
    }

    /// Looks for the next frame.
    pub(super) fn next<P: Protocol>(&mut self, limits: &Limits) -> Step {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        if rest.is_empty() {
            self.wanted = 0;
            return Step::NeedMore;
        }
        match P::next_frame(rest, limits) {
            Ok(Next::Frame(len)) => {
                let start = self.at;
                self.at += len;
                Step::Frame(start..self.at)
            }
            Ok(Next::NeedMore(len)) => {
                self.wanted = len;
                Step::NeedMore
            }
            Err(error) => Step::Bad(error),
        }
    }

    /// The bytes of a frame.
    pub(super) fn frame(&self, range: std::ops::Range<usize>) -> &[u8] {
        self.bytes.get(range).unwrap_or_default()
    }

    /// Bytes that are not taken yet.
    pub(super) fn rest(&self) -> &[u8] {
        self.bytes.get(self.at..).unwrap_or_default()
    }

    /// Forgets the frames that were taken; gives the buffer back when nothing is left.
    pub(super) fn release(&mut self, pool: &BufferPool) {
        if self.at > 0 {
            if self.at >= self.bytes.len() {
                self.bytes.clear();
            } else {
                self.bytes.drain(..self.at);
            }
            self.at = 0;
        }
        if self.bytes.is_empty() {
            let bytes = std::mem::take(&mut self.bytes);
            if bytes.capacity() > 0 {
                pool.put(bytes);
            }
        }
    }
}
