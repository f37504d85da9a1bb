//! The task of an upstream connection: connects, writes what is queued, reads answers, watches the clock.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::Sleep;
use wire::frame::Limits;

use super::{End, State, TICK, UpConn};
use crate::rpc::call::Micros;
use crate::rpc::inbox::Inbox;
use crate::rpc::now as clock;
use crate::rpc::protocol::Protocol;

/// Opens a connection and drives it to its end.
pub(super) async fn run<P: Protocol>(connection: Rc<UpConn<P>>) {
    let end = match connect(&connection).await {
        Ok(stream) => {
            connection.is_open();
            Box::pin(drive(&connection, &stream)).await
        }
        Err(end) => end,
    };
    connection.close(&end);
}

async fn connect<P: Protocol>(connection: &UpConn<P>) -> Result<TcpStream, End> {
    let connecting = TcpStream::connect(connection.host.address);
    match tokio::time::timeout(connection.cluster.connect_timeout, connecting).await {
        Ok(Ok(stream)) => {
            let _ = stream.set_nodelay(true);
            let now = clock(&connection.worker);
            let took = now.saturating_sub(connection.opened.get());
            connection
                .cluster
                .stats
                .upstream_cx_connect_ms
                .record(took / 1000);
            connection.opened.set(now);
            connection.last_read.set(now);
            Ok(stream)
        }
        Ok(Err(error)) => {
            tracing::debug!(host = %connection.host.address, %error, "cannot connect");
            Err(End::ConnectFailed)
        }
        Err(_) => Err(End::ConnectTimeout),
    }
}

async fn drive<P: Protocol>(connection: &Rc<UpConn<P>>, stream: &TcpStream) -> End {
    let now = clock(&connection.worker);
    let mut driver = Driver {
        connection: Rc::clone(connection),
        stream,
        inbox: Inbox::default(),
        armed: now,
    };
    let mut timer = std::pin::pin!(tokio::time::sleep(Duration::ZERO));
    std::future::poll_fn(move |context| driver.poll(timer.as_mut(), context)).await
}

/// The task of an open connection.
struct Driver<'s, P: Protocol> {
    connection: Rc<UpConn<P>>,
    stream: &'s TcpStream,
    inbox: Inbox,
    /// When the timer fires.
    armed: Micros,
}

/// Reads that one turn may do before others get theirs.
const READS: usize = 8;

impl<P: Protocol> Driver<'_, P> {
    fn poll(&mut self, mut timer: Pin<&mut Sleep>, context: &mut Context<'_>) -> Poll<End> {
        let connection = Rc::clone(&self.connection);
        let mut waker = connection.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|w| w.will_wake(context.waker())) {
            *waker = Some(context.waker().clone());
        }
        drop(waker);
        // What is appended from here on is written below, without another turn.
        connection.woken.set(true);
        let now = clock(&connection.worker);
        let mut end = self.flush(now, context).err();
        if end.is_none() {
            end = self.read(now, context);
        }
        connection.expire(now);
        let mut wake_at = connection.earliest.get().max(now + TICK);
        if end.is_none() {
            match connection.heartbeat(now) {
                Ok(at) => wake_at = wake_at.min(at),
                Err(failed) => end = Some(failed),
            }
        }
        connection.woken.set(false);
        if end.is_none() {
            end = self.flush(now, context).err();
        }
        if end.is_none()
            && connection.state.get() == State::Draining
            && !connection.calls_in_flight()
            && connection.out.borrow().is_empty()
        {
            end = Some(End::Drained);
        }
        if let Some(end) = end {
            return Poll::Ready(end);
        }
        if connection.calls_in_flight() {
            wake_at = wake_at.min(connection.next_sweep.get().max(now + TICK));
        }
        self.arm(timer.as_mut(), wake_at, now, context);
        Poll::Pending
    }

    /// The timer is only moved when it would fire too late, or has fired.
    fn arm(
        &mut self,
        mut timer: Pin<&mut Sleep>,
        wake_at: Micros,
        now: Micros,
        context: &mut Context<'_>,
    ) {
        if self.armed <= now || wake_at < self.armed {
            // Never further away than a minute: the clock's range is not ours.
            let delay = wake_at.saturating_sub(now).min(60_000_000);
            self.armed = now + delay;
            let at = tokio::time::Instant::now() + Duration::from_micros(delay);
            timer.as_mut().reset(at);
            if timer.as_mut().poll(context).is_ready() {
                context.waker().wake_by_ref();
            }
        }
    }

    fn flush(&mut self, now: Micros, context: &mut Context<'_>) -> Result<(), End> {
        let connection = &self.connection;
        let mut out = connection.out.borrow_mut();
        if out.is_empty() {
            return Ok(());
        }
        let (count, result) = out.flush(self.stream, connection.worker.buffers(), context);
        let left = out.len();
        drop(out);
        if count > 0 {
            connection
                .cluster
                .stats
                .upstream_cx_tx_bytes_total
                .add(count as u64);
            connection.one_way_written(now);
            if left <= connection.cluster.per_connection_buffer_limit / 2 {
                connection.unblock();
            }
        }
        match result {
            Poll::Ready(Err(error)) => Err(End::Io(error)),
            _ => Ok(()),
        }
    }

    fn read(&mut self, now: Micros, context: &mut Context<'_>) -> Option<End> {
        let connection = Rc::clone(&self.connection);
        let pool = connection.worker.buffers();
        let limits = Limits::default();
        for turn in 0.. {
            match self.stream.poll_read_ready(context) {
                Poll::Pending => break,
                Poll::Ready(Err(error)) => return Some(End::Io(error)),
                Poll::Ready(Ok(())) => {}
            }
            if turn == READS {
                context.waker().wake_by_ref();
                break;
            }
            match self.inbox.read(self.stream, pool) {
                Ok(0) => return Some(End::Remote),
                Ok(count) => {
                    connection
                        .cluster
                        .stats
                        .upstream_cx_rx_bytes_total
                        .add(count as u64);
                    connection.last_read.set(now);
                    let end = connection.on_frames(&mut self.inbox, &limits, now);
                    self.inbox.release(pool);
                    if end.is_some() {
                        return end;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Some(End::Io(error)),
            }
        }
        None
    }
}
