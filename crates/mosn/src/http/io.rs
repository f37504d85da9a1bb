//! Polling sockets into and out of plain buffers.

use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncReadExt, AsyncWrite};
use tokio::net::TcpStream;

/// How much is read from a socket at once, in bytes.
pub(super) const READ_BYTES: usize = 16 * 1024;

/// Bytes that have been received and not yet been used.
#[derive(Default)]
pub(super) struct Input {
    buffer: Vec<u8>,
    used: usize,
}

impl Input {
    /// What is there.
    pub(super) fn bytes(&self) -> &[u8] {
        self.buffer.get(self.used..).unwrap_or_default()
    }

    /// Whether nothing is there.
    pub(super) fn is_empty(&self) -> bool {
        self.used >= self.buffer.len()
    }

    /// Takes so many bytes off the front.
    pub(super) fn consume(&mut self, bytes: usize) {
        self.used = (self.used + bytes).min(self.buffer.len());
        if self.is_empty() {
            self.clear();
        }
    }

    /// Puts bytes at the end.
    pub(super) fn extend(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.buffer.clear();
        self.used = 0;
    }

    /// Receives once; 0 bytes mean that the peer has closed.
    pub(super) fn poll_fill(
        &mut self,
        stream: &mut TcpStream,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        if self.used > 0 && self.buffer.capacity() - self.buffer.len() < READ_BYTES / 2 {
            self.buffer.drain(..self.used);
            self.used = 0;
        }
        poll_fill(&mut self.buffer, stream, cx)
    }

    /// Capacity of the buffer.
    pub(super) fn capacity(&self) -> usize {
        self.buffer.capacity()
    }
}

/// Receives once to the end of `buffer`; 0 bytes mean that the peer has closed.
///
/// The poll form of reading matters: after a short read the runtime knows without another system call that nothing is left.
pub(super) fn poll_fill(
    buffer: &mut Vec<u8>,
    stream: &mut TcpStream,
    cx: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    if buffer.capacity() - buffer.len() < READ_BYTES / 2 {
        buffer.reserve(READ_BYTES);
    }
    pin!(stream.read_buf(buffer)).poll(cx)
}

/// Bytes that are to be sent; those already sent may be kept, to be sent again.
#[derive(Default)]
pub(super) struct Output {
    /// Everything, sent or not.
    pub(super) buffer: Vec<u8>,
    sent: usize,
}

impl Output {
    /// Number of bytes that are still to be sent.
    pub(super) fn pending(&self) -> usize {
        self.buffer.len() - self.sent
    }

    /// Number of bytes that have been sent (and are kept).
    pub(super) fn sent(&self) -> usize {
        self.sent
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.buffer.clear();
        self.sent = 0;
    }

    /// Forgets what has been sent.
    pub(super) fn forget_sent(&mut self) {
        if self.pending() == 0 {
            self.clear();
        } else if self.sent >= READ_BYTES {
            self.buffer.drain(..self.sent);
            self.sent = 0;
        }
    }

    /// Starts over with a new beginning: `head` instead of the first `old_head` bytes, the rest unsent again.
    pub(super) fn restart(&mut self, old_head: usize, head: &[u8]) {
        self.buffer
            .splice(..old_head.min(self.buffer.len()), head.iter().copied());
        self.sent = 0;
    }

    /// Sends until nothing is left.
    pub(super) fn poll_flush(
        &mut self,
        stream: &mut TcpStream,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while let Some(rest) = self.buffer.get(self.sent..).filter(|rest| !rest.is_empty()) {
            match ready!(Pin::new(&mut *stream).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                sent => self.sent += sent,
            }
        }
        Poll::Ready(Ok(()))
    }
}
