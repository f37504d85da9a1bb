//! One call on its way: whom it came from, where it is routed, and how it ends. However it ends, what
//! it holds of limits and gauges is given back when it is dropped.

use std::rc::Rc;

use wire::frame::Edit;

use super::downstream::Down;
use super::headers::{self, Overlay};
use super::log::Entry;
use super::protocol::{Class, Outcome, Protocol};
use super::refusal::Refusal;
use super::retry::Retry;
use crate::cluster::host::{ActiveRequest, bump};
use crate::cluster::{Cluster, Host, Permit, Priority};
use crate::route::RouteId;
use crate::worker::TableRef;

/// Microseconds since the worker started.
pub(super) type Micros = u64;

/// A call that was accepted from a downstream connection.
pub(super) struct Call<P: Protocol> {
    /// Where it came from.
    pub(super) down: Rc<Down<P>>,
    /// Its head, with the caller's id.
    pub(super) head: P::Head,
    /// Whether nobody waits for an answer.
    pub(super) one_way: bool,
    /// When it came.
    pub(super) start: Micros,
    /// When the caller gives up.
    pub(super) deadline: Micros,
    /// Where it goes.
    pub(super) route: Option<Routed>,
    /// How often it was sent or tried to be sent.
    pub(super) attempts: u32,
    /// What only calls with a retry policy, or that failed before, have.
    pub(super) retry: Option<Box<Retry>>,
    /// What only logged calls have.
    pub(super) log: Option<Box<Entry>>,
    /// Set once the caller has its answer.
    pub(super) done: bool,
}

/// The decision of a route table.
pub(super) struct Routed {
    /// Keeps the table while the call lives.
    pub(super) table: TableRef,
    /// The route.
    pub(super) id: RouteId,
    /// The random number that decided, so that a retry decides the same.
    pub(super) random: u64,
    /// Which of the route's weighted clusters.
    pub(super) weighted: Option<usize>,
    /// The cluster.
    pub(super) cluster: Rc<Cluster>,
    /// Priority of the route.
    pub(super) priority: Priority,
    /// Whether answers have to be changed.
    pub(super) edits_answer: bool,
}

impl<P: Protocol> Call<P> {
    /// Passes the answer on.
    pub(super) fn answer(&mut self, frame: &[u8], head: &P::Head, outcome: Outcome, now: Micros) {
        self.done = true;
        self.count(outcome.class, now);
        if self.down.is_closed() {
            if let Some(entry) = self.log.take() {
                entry.cancelled::<P>(self, now);
            }
            return;
        }
        let id = P::id(&self.head);
        let edited = self.edits_answer() && self.edit_answer(frame, head, id);
        if !edited {
            self.down.append(|out| {
                let start = out.len();
                out.extend_from_slice(frame);
                if let Some(copy) = out.get_mut(start..) {
                    P::set_id(copy, head, id);
                }
            });
        }
        if let Some(entry) = self.log.take() {
            entry.answered::<P>(self, frame, head, outcome, now);
        }
    }

    fn edits_answer(&self) -> bool {
        self.route.as_ref().is_some_and(|route| route.edits_answer)
    }

    fn edit_answer(&self, frame: &[u8], head: &P::Head, id: u64) -> bool {
        let Some(routed) = &self.route else {
            return false;
        };
        let Some(entry) = routed.table.entry(routed.id) else {
            return false;
        };
        let mut overlay = Overlay::<P>::new(frame, head, None);
        let info = self.down.info::<P>(&routed.cluster);
        entry.apply_response_headers(
            routed.weighted,
            &mut overlay,
            &mut |headers, format, out| {
                headers::write_format(&info, headers, format, out);
            },
        );
        let edits = overlay.into_edits();
        let edits: Vec<Edit<'_>> = edits.iter().map(headers::Change::as_edit).collect();
        let mut result = Ok(());
        self.down.append(|out| {
            let start = out.len();
            result = P::edit_answer(frame, head, &edits, out);
            if result.is_ok()
                && let Some(copy) = out.get_mut(start..)
            {
                P::set_id(copy, head, id);
            }
        });
        if let Err(error) = &result {
            self.down.config.stats.downstream_rq_edit_failed.inc();
            tracing::debug!(protocol = P::NAME, %error, "cannot change the headers of an answer");
        }
        result.is_ok()
    }

    /// Answers the call here, if it wants an answer.
    pub(super) fn refuse(&mut self, refusal: &Refusal, now: Micros) {
        self.done = true;
        let stats = &self.down.config.stats;
        match refusal {
            Refusal::NoRoute | Refusal::NoCluster => stats.downstream_rq_no_route.inc(),
            Refusal::Overflow => stats.downstream_rq_overflow.inc(),
            Refusal::Timeout => stats.downstream_rq_timeout.inc(),
            _ => {}
        }
        stats.downstream_rq_local_reply.inc();
        let class = match refusal.http() {
            200..=299 => Class::Ok,
            _ => Class::TransportError,
        };
        self.count(class, now);
        if !self.one_way && !self.down.is_closed() {
            if P::can_answer(&self.head) {
                self.down.append(|out| P::refuse(out, &self.head, refusal));
            } else {
                // Silence would leave the caller waiting; a closed connection tells it at least.
                self.down.close_after_flush();
            }
        }
        if let Some(entry) = self.log.take() {
            entry.refused::<P>(self, refusal, now);
        }
    }

    /// Ends a one-way call that was written.
    pub(super) fn sent(&mut self, now: Micros) {
        self.done = true;
        self.count(Class::Ok, now);
        if let Some(entry) = self.log.take() {
            entry.sent::<P>(self, now);
        }
    }

    fn count(&self, class: Class, now: Micros) {
        let stats = &self.down.config.stats;
        stats.count(class);
        stats
            .downstream_rq_time
            .record(now.saturating_sub(self.start) / 1000);
    }
}

impl<P: Protocol> Drop for Call<P> {
    fn drop(&mut self) {
        if !self.done {
            self.down.config.stats.downstream_rq_cancelled.inc();
        }
        self.down.call_ended();
    }
}

/// One try of a call on one host; dropping it gives back what it uses.
pub(super) struct Attempt {
    pub(super) cluster: Rc<Cluster>,
    pub(super) host: Rc<Host>,
    pub(super) sent: Micros,
    _active: ActiveRequest,
    _permit: Permit,
}

impl Attempt {
    pub(super) fn new(
        cluster: Rc<Cluster>,
        host: Rc<Host>,
        permit: Permit,
        now: Micros,
    ) -> Attempt {
        let stats = cluster.stats();
        stats.upstream_rq_total.inc();
        stats.upstream_rq_active.inc();
        Attempt {
            _active: host.start_request(),
            cluster,
            host,
            sent: now,
            _permit: permit,
        }
    }

    /// Counts an answer in the statistics of cluster and host.
    pub(super) fn answered(&self, outcome: Outcome, now: Micros) {
        let stats = self.cluster.stats();
        stats.count_response(outcome.http);
        stats
            .upstream_rq_time
            .record(now.saturating_sub(self.sent) / 1000);
        match outcome.class {
            Class::TransportError => bump(&self.host.stats.rq_error),
            _ => bump(&self.host.stats.rq_success),
        }
    }

    /// Counts a try that brought no answer.
    pub(super) fn failed(&self, refusal: &Refusal) {
        let stats = self.cluster.stats();
        bump(&self.host.stats.rq_error);
        match refusal {
            Refusal::Timeout => {
                stats.upstream_rq_timeout.inc();
                bump(&self.host.stats.rq_timeout);
            }
            Refusal::ConnectFailed => stats.upstream_rq_pending_failure_eject.inc(),
            _ => stats.upstream_rq_rx_reset.inc(),
        }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        self.cluster.stats().upstream_rq_active.dec();
    }
}
