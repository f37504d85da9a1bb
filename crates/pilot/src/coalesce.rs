//! What a connection writes in one turn goes out together. HTTP/2 writes each frame by itself: a change that a thousand
//! streams of a connection are told would be a thousand system calls, and as many wake-ups of the reader.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

/// Bytes that wait at most.
const ROOM: usize = 64 * 1024;

/// A connection that is flushed when its task comes round again, after all other tasks that have something to do now. It is
/// for tasks that read at the beginning of each turn, as HTTP/2 connections do.
#[derive(Debug)]
pub(crate) struct Coalesced<I> {
    io: I,
    waiting: Vec<u8>,
    /// Bytes of `waiting` that are written.
    written: usize,
    /// The task comes round to write what waits.
    comes_round: bool,
}

impl<I: AsyncWrite + Unpin> Coalesced<I> {
    pub(crate) fn new(io: I) -> Coalesced<I> {
        Coalesced {
            io,
            waiting: Vec::new(),
            written: 0,
            comes_round: false,
        }
    }

    /// Writes what waits.
    fn poll_drain(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest) = self.waiting.get(self.written..)
            && !rest.is_empty()
        {
            match ready!(Pin::new(&mut self.io).poll_write(context, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.written += written,
            }
        }
        // Idle connections keep no memory.
        self.waiting = Vec::new();
        self.written = 0;
        self.comes_round = false;
        Poll::Ready(Ok(()))
    }

    fn is_full(&self) -> bool {
        self.waiting.len() >= ROOM
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> AsyncRead for Coalesced<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.comes_round
            && let Poll::Ready(Err(error)) = self.poll_drain(context)
        {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Coalesced<I> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.is_full() {
            ready!(self.poll_drain(context))?;
        }
        let before = self.waiting.len();
        for slice in slices {
            self.waiting.extend_from_slice(slice);
        }
        Poll::Ready(Ok(self.waiting.len() - before))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_full() {
            ready!(self.poll_drain(context))?;
        }
        if !self.waiting.is_empty() {
            if !self.comes_round {
                self.comes_round = true;
                context.waker().wake_by_ref();
            }
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(context))?;
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

impl<I: Connected> Connected for Coalesced<I> {
    type ConnectInfo = I::ConnectInfo;

    fn connect_info(&self) -> I::ConnectInfo {
        self.io.connect_info()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Counts what is written to it.
    #[derive(Default)]
    struct Counted {
        writes: usize,
        bytes: usize,
    }

    impl AsyncRead for Counted {
        fn poll_read(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    impl AsyncWrite for Counted {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.writes += 1;
            self.bytes += bytes.len();
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn a_turn_is_one_write_and_no_more_than_the_room_waits() {
        let mut io = Coalesced::new(Counted::default());
        for _ in 0..100 {
            io.write_all(b"frame").await.expect("a write");
            io.flush().await.expect("a flush");
        }
        assert_eq!(io.io.writes, 0);
        let read = tokio::time::timeout(std::time::Duration::from_millis(1), io.read_u8());
        read.await.expect_err("nothing to read");
        assert_eq!((io.io.writes, io.io.bytes), (1, 500));
        io.write_all(&[0; ROOM + 7]).await.expect("a write");
        io.flush().await.expect("a flush");
        io.write_all(b"end").await.expect("a write");
        io.shutdown().await.expect("an end");
        assert_eq!((io.io.writes, io.io.bytes), (3, 500 + ROOM + 7 + 3));
    }

    #[tokio::test]
    async fn a_slow_reader_gets_all_of_it() {
        let (io, mut reader) = tokio::io::duplex(1000);
        let text: Vec<u8> = (0..=255).cycle().take(3 * ROOM).collect();
        let sent = text.clone();
        let writer = tokio::spawn(async move {
            let mut io = Coalesced::new(io);
            for part in sent.chunks(700) {
                io.write_all(part).await?;
                io.flush().await?;
            }
            // As a connection's task does: it reads, and what waits goes out.
            io.read_u8().await
        });
        let mut read = vec![0; text.len()];
        reader.read_exact(&mut read).await.expect("all of it");
        assert!(read == text, "bytes were lost");
        reader.write_u8(7).await.expect("a write");
        let answer = writer.await.expect("a writer");
        assert_eq!(answer.expect("an answer"), 7);
    }
}
