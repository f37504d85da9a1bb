//! After an upgrade: bytes in both directions until one side is done.

use std::future::poll_fn;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::Instant;

use super::connection::Conn;
use super::io::{Input, Output, READ_BYTES};
use super::scratch::Scratch;
use super::upstream;

/// Bytes that went through.
#[derive(Default)]
pub(super) struct Bytes {
    pub(super) received: u64,
    pub(super) sent: u64,
}

/// Copies until either side closes (then what it sent is still delivered) or nothing moves for `idle`.
///
/// What is in the buffers of the scratch already goes first.
pub(super) async fn run(
    conn: &mut Conn,
    scratch: &mut Scratch,
    up: &mut upstream::Connection,
    idle: Option<Duration>,
) -> Bytes {
    let mut bytes = Bytes::default();
    let mut deadline = idle.map(|limit| Instant::now() + limit);
    // What each side has sent; the other direction's rest is delivered after one side has closed.
    let (mut down_open, mut up_open) = (true, true);
    poll_fn(|cx| {
        loop {
            let Scratch {
                body,
                to_upstream,
                from_upstream,
                to_downstream,
                ..
            } = &mut *scratch;
            let towards_up = copy(
                &mut conn.stream,
                &mut up.stream,
                body,
                to_upstream,
                &mut down_open,
                cx,
            );
            let towards_down = copy(
                &mut up.stream,
                &mut conn.stream,
                from_upstream,
                to_downstream,
                &mut up_open,
                cx,
            );
            let (Ok(received), Ok(sent)) = (towards_up, towards_down) else {
                return Poll::Ready(());
            };
            bytes.received += received;
            bytes.sent += sent;
            let delivered = (down_open || to_upstream.pending() == 0)
                && (up_open || to_downstream.pending() == 0);
            if !(down_open && up_open) && delivered {
                return Poll::Ready(());
            }
            if received + sent == 0 {
                return match conn.timer.poll(cx, deadline) {
                    true => Poll::Ready(()),
                    false => Poll::Pending,
                };
            }
            deadline = idle.map(|limit| Instant::now() + limit);
        }
    })
    .await;
    bytes
}

/// Moves what can be moved from one side to the other.
fn copy(
    from: &mut TcpStream,
    to: &mut TcpStream,
    input: &mut Input,
    output: &mut Output,
    open: &mut bool,
    cx: &mut Context<'_>,
) -> std::io::Result<u64> {
    let mut moved = 0;
    if *open && output.pending() < READ_BYTES {
        match input.poll_fill(from, cx) {
            Poll::Ready(Ok(0)) => *open = false,
            Poll::Ready(Ok(_)) | Poll::Pending => {}
            Poll::Ready(Err(error)) => return Err(error),
        }
    }
    if !input.is_empty() {
        moved = input.bytes().len() as u64;
        output.buffer.extend_from_slice(input.bytes());
        input.clear();
    }
    if output.pending() > 0 {
        if let Poll::Ready(Err(error)) = output.poll_flush(to, cx) {
            return Err(error);
        }
        output.forget_sent();
    }
    Ok(moved)
}
