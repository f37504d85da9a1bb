//! Bytes that wait to be written to a connection: everything that is appended in one turn of the
//! event loop goes out in one system call.

use std::io;
use std::task::{Context, Poll};

use tokio::net::TcpStream;

use crate::worker::BufferPool;

/// Once this much of the front has been written it is cut off.
const COMPACT_BYTES: usize = 256 * 1024;

/// Bytes to be written. Positions count from the first byte ever appended.
#[derive(Default)]
pub(super) struct Outbox {
    bytes: Vec<u8>,
    /// Bytes of `bytes` that are written.
    written: usize,
    /// Position of the first byte of `bytes`.
    base: u64,
}

impl Outbox {
    /// Bytes that wait.
    pub(super) fn len(&self) -> usize {
        self.bytes.len() - self.written
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Position behind the last byte that was written.
    pub(super) fn written_to(&self) -> u64 {
        self.base + self.written as u64
    }

    /// Position behind the last byte that was appended.
    pub(super) fn end(&self) -> u64 {
        self.base + self.bytes.len() as u64
    }

    /// The buffer to append to; it is taken from the pool if there is none.
    pub(super) fn buffer(&mut self, pool: &BufferPool) -> &mut Vec<u8> {
        if self.bytes.capacity() == 0 {
            self.bytes = pool.take();
        }
        &mut self.bytes
    }

    /// The bytes between two positions, if the last of them is not written and the first is still
    /// here: a frame that its receiver cannot have understood yet.
    pub(super) fn unwritten(&self, from: u64, to: u64) -> Option<&[u8]> {
        if to <= self.written_to() {
            return None;
        }
        let start = usize::try_from(from.checked_sub(self.base)?).ok()?;
        let end = usize::try_from(to.checked_sub(self.base)?).ok()?;
        self.bytes.get(start..end)
    }

    /// Writes until nothing waits or the socket takes no more. Gives the number of bytes written;
    /// `Pending` with the waker registered when bytes are left.
    pub(super) fn flush(
        &mut self,
        stream: &TcpStream,
        pool: &BufferPool,
        context: &mut Context<'_>,
    ) -> (usize, Poll<io::Result<()>>) {
        let start = self.written;
        let mut total = 0;
        let result = loop {
            let rest = self.bytes.get(self.written..).unwrap_or_default();
            if rest.is_empty() {
                break Poll::Ready(Ok(()));
            }
            match stream.try_write(rest) {
                Ok(count) => {
                    self.written += count;
                    total = self.written - start;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    match stream.poll_write_ready(context) {
                        Poll::Ready(Ok(())) => {}
                        Poll::Ready(Err(error)) => break Poll::Ready(Err(error)),
                        Poll::Pending => break Poll::Pending,
                    }
                }
                Err(error) => break Poll::Ready(Err(error)),
            }
        };
        if self.written == self.bytes.len() {
            self.base += self.written as u64;
            self.written = 0;
            let bytes = std::mem::take(&mut self.bytes);
            if bytes.capacity() > 0 {
                pool.put(bytes);
            }
        } else if self.written >= COMPACT_BYTES && self.written >= self.bytes.len() / 2 {
            self.bytes.drain(..self.written);
            self.base += self.written as u64;
            self.written = 0;
        }
        (total, result)
    }
}
