//! Times in which a request does not move: injected faults and back-off. The client is watched meanwhile.

use std::future::poll_fn;
use std::task::{Context, Poll};
use std::time::Duration;

use telemetry::response_flags::ResponseFlag;
use tokio::time::Instant;
use wire::http1::Framing;

use super::call::{Call, Ending};
use super::connection::Conn;
use super::io::{READ_BYTES, poll_fill};
use super::reply::LocalReply;
use super::scratch::Scratch;
use crate::fault;
use crate::route::{Entry, FaultOverride};

impl Call<'_> {
    /// Delays or answers the request if a fault is configured for it.
    pub(super) async fn inject_fault(
        &mut self,
        entry: Entry<'_>,
        cluster: Option<&str>,
        framing: Framing,
    ) -> Option<Ending> {
        let shared = self.shared.clone();
        let stats = shared.config.fault_stats.as_ref()?;
        let faults = match entry.fault(self.weighted) {
            FaultOverride::Inherit => shared.config.fault.as_ref()?,
            FaultOverride::Disabled => return None,
            FaultOverride::Config(faults) => faults,
        };
        let injected = faults.decide(&self.view(), cluster, || fastrand::u32(..));
        if let Some(delay) = injected.delay {
            stats.delays_injected.inc();
            stats.active_faults.inc();
            let gone = self.wait(delay).await;
            stats.active_faults.dec();
            self.record.flags.set(ResponseFlag::DelayInjected);
            if gone {
                return Some(Ending::DownstreamGone);
            }
        }
        let status = match injected.abort? {
            fault::Status::Http(status) => status,
            fault::Status::Grpc(_) => 200,
        };
        stats.aborts_injected.inc();
        self.record
            .because("fault_filter_abort", Some(ResponseFlag::FaultInjected));
        let reply = match injected.abort {
            Some(fault::Status::Grpc(code)) => {
                let code = code.to_string();
                let headers: &[(&str, &[u8])] = &[
                    ("content-type", b"application/grpc"),
                    ("grpc-status", code.as_bytes()),
                    ("grpc-message", b"fault filter abort"),
                ];
                self.answer(
                    Some(entry),
                    framing,
                    false,
                    &LocalReply {
                        status,
                        body: b"",
                        headers,
                    },
                )
            }
            _ => self.answer(
                Some(entry),
                framing,
                false,
                &LocalReply::text(status, b"fault filter abort"),
            ),
        };
        Some(reply)
    }

    /// Waits; says whether the client went away meanwhile.
    pub(super) async fn wait(&mut self, time: Duration) -> bool {
        let deadline = Instant::now() + time;
        let (conn, scratch) = (&mut *self.conn, &mut *self.scratch);
        poll_fn(|cx| {
            if poll_gone(conn, scratch, cx).is_ready() {
                return Poll::Ready(true);
            }
            match conn.timer.poll(cx, Some(deadline)) {
                true => Poll::Ready(false),
                false => Poll::Pending,
            }
        })
        .await
    }
}

/// Reads ahead while nothing is sent upstream: ready when the client has gone.
pub(super) fn poll_gone(conn: &mut Conn, scratch: &mut Scratch, cx: &mut Context<'_>) -> Poll<()> {
    const AHEAD: usize = READ_BYTES;
    loop {
        let with_body = scratch.request.framing() != Framing::Empty;
        let filled = match with_body {
            true if scratch.body.bytes().len() < AHEAD => {
                scratch.body.poll_fill(&mut conn.stream, cx)
            }
            false if scratch.received.len() < 4 * AHEAD => {
                poll_fill(&mut scratch.received, &mut conn.stream, cx)
            }
            _ => return Poll::Pending,
        };
        match filled {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Ok(0)) | Poll::Ready(Err(_)) => return Poll::Ready(()),
            Poll::Ready(Ok(_)) => {}
        }
    }
}
