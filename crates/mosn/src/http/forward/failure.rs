//! Requests that get no answer: why, and what the client is told in Envoy's words.

use std::rc::Rc;

use telemetry::response_flags::ResponseFlag;
use wire::http1::Framing;

use super::super::call::{Call, Ending};
use super::super::deadlines::Limit;
use super::super::reply::LocalReply;
use super::super::retry::Reset;
use super::super::upstream::Failure;
use super::Router;
use crate::cluster::host::{Host, bump};

/// What was said about a reset before an answer; the rest of the sentence is the reason.
const RESET_TEXT: &str = "upstream connect error or disconnect/reset before headers. ";

/// Why there was no answer.
pub(super) struct Failed {
    pub(super) reset: Reset,
    pub(super) status: u16,
    pub(super) flag: ResponseFlag,
    /// Envoy's words for it.
    pub(super) reason: &'static str,
    /// What the operating system said.
    pub(super) cause: Option<String>,
    /// It may be tried again without anybody asking: the connection was closed while it was idle.
    pub(super) stale: bool,
}

impl Router<'_, '_> {
    /// A time limit has passed.
    pub(super) fn expired(
        &mut self,
        call: &mut Call<'_>,
        limit: Limit,
        host: Option<&Rc<Host>>,
    ) -> Ending {
        let hcm = &call.shared.config.stats;
        let stats = self.cluster.stats();
        if limit == Limit::Global {
            stats.upstream_rq_timeout.inc();
            if let Some(host) = host {
                bump(&host.stats.rq_timeout);
            }
        }
        let (status, text, details, flag): (u16, &[u8], _, _) = match limit {
            Limit::Global => (
                504,
                b"upstream request timeout",
                "response_timeout",
                Some(ResponseFlag::UpstreamRequestTimeout),
            ),
            Limit::PerTry | Limit::PerTryIdle => (
                504,
                b"upstream request timeout",
                "upstream_per_try_timeout",
                Some(ResponseFlag::UpstreamRequestTimeout),
            ),
            Limit::StreamIdle => {
                hcm.downstream_rq_idle_timeout.inc();
                let status = if self.exchange.request_done { 504 } else { 408 };
                (
                    status,
                    b"stream timeout",
                    "stream_idle_timeout",
                    Some(ResponseFlag::StreamIdleTimeout),
                )
            }
            Limit::Request => {
                hcm.downstream_rq_timeout.inc();
                (408, b"request timeout", "request_overall_timeout", None)
            }
            Limit::MaxStream => {
                hcm.downstream_rq_max_duration_reached.inc();
                let status = if self.exchange.request_done { 504 } else { 408 };
                (
                    status,
                    b"downstream duration timeout",
                    "max_duration_timeout",
                    None,
                )
            }
        };
        let started = call.record.status.is_some();
        call.record.because(details, flag);
        if started {
            // Too late for another answer: cutting the connection is all that can be said.
            call.shared.config.stats.downstream_rq_tx_reset.inc();
            return Ending::Broken;
        }
        if limit == Limit::Global {
            stats.count_response(504);
        }
        self.answer(call, status, text, &[])
    }

    /// Tells the client that there is no answer, and why.
    pub(super) fn give_up(&mut self, call: &mut Call<'_>, failed: &Failed) -> Ending {
        let stats = self.cluster.stats();
        stats.count_response(failed.status);
        call.record.flags.set(failed.flag);
        let cause = failed.cause.as_ref();
        call.record.failure = cause.map(|cause| format!("delayed connect error: {cause}"));
        if failed.reset == Reset::PerTryTimeout {
            call.record.because(failed.reason, None);
            return self.answer(call, 504, b"upstream request timeout", &[]);
        }
        let code = failed.reason.replace(' ', "_");
        let details = match &failed.cause {
            Some(cause) => {
                format!(
                    "upstream_reset_before_response_started{{{code}|delayed_connect_error:_{}}}",
                    cause.replace(' ', "_")
                )
            }
            None => format!("upstream_reset_before_response_started{{{code}}}"),
        };
        call.record.because(details, None);
        let retried = if self.retried {
            "retried and the latest "
        } else {
            ""
        };
        let text = format!("{RESET_TEXT}{retried}reset reason: {}", failed.reason);
        let overloaded: &[(&str, &[u8])] = &[("x-envoy-overloaded", b"true")];
        let headers = if failed.reset == Reset::Overflow {
            overloaded
        } else {
            &[]
        };
        self.answer(call, failed.status, text.as_bytes(), headers)
    }

    pub(super) fn answer(
        &mut self,
        call: &mut Call<'_>,
        status: u16,
        body: &[u8],
        headers: &[(&str, &[u8])],
    ) -> Ending {
        // What is still to come of the request's body is of no use; the connection ends with the answer.
        let framing = if self.exchange.request_done {
            Framing::Empty
        } else {
            self.framing
        };
        let reply = LocalReply {
            status,
            body,
            headers,
        };
        call.answer(Some(self.entry), framing, false, &reply)
    }
}

impl Failed {
    fn new(reset: Reset, status: u16, flag: ResponseFlag, reason: &'static str) -> Failed {
        Failed {
            reset,
            status,
            flag,
            reason,
            cause: None,
            stale: false,
        }
    }

    pub(super) fn overflow() -> Failed {
        Failed::new(
            Reset::Overflow,
            503,
            ResponseFlag::UpstreamOverflow,
            "overflow",
        )
    }

    pub(super) fn closed(sent: bool) -> Failed {
        let flag = ResponseFlag::UpstreamConnectionTermination;
        Failed::new(Reset::Broken { sent }, 503, flag, "connection termination")
    }

    pub(super) fn protocol() -> Failed {
        Failed::new(
            Reset::Broken { sent: true },
            502,
            ResponseFlag::UpstreamProtocolError,
            "protocol error",
        )
    }

    pub(super) fn per_try_timeout(details: &'static str) -> Failed {
        Failed::new(
            Reset::PerTryTimeout,
            504,
            ResponseFlag::UpstreamRequestTimeout,
            details,
        )
    }

    pub(super) fn connect(failure: Failure) -> Failed {
        let flag = ResponseFlag::UpstreamConnectionFailure;
        match failure {
            Failure::Overflow => Failed::overflow(),
            Failure::Timeout => Failed::new(Reset::Connect, 503, flag, "connection timeout"),
            Failure::Connect(error) => {
                let text = error.to_string();
                let cause = text
                    .split(" (os error")
                    .next()
                    .unwrap_or_default()
                    .to_owned();
                Failed {
                    cause: Some(cause),
                    ..Failed::new(Reset::Connect, 503, flag, "remote connection failure")
                }
            }
        }
    }
}
