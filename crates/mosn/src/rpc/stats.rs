//! Statistics of an RPC proxy below `rpc.<stat_prefix>.`.

use telemetry::stats::{Counter, Gauge, Histogram, Registry};

use super::protocol::Class;

macro_rules! stats {
    ($($(#[$doc:meta])* $field:ident: $kind:ident),+ $(,)?) => {
        /// Counters of one filter.
        pub(super) struct Stats {
            $($(#[$doc])* pub(super) $field: $kind,)+
        }

        impl Stats {
            /// Registers the names.
            pub(super) fn new(registry: &Registry, prefix: &str) -> Stats {
                Stats {
                    $($field: stats!(@make $kind registry
                        &format!("rpc.{prefix}.{}", stringify!($field))),)+
                }
            }
        }
    };
    (@make Counter $r:ident $n:expr) => { $r.counter($n) };
    (@make Gauge $r:ident $n:expr) => { $r.gauge($n) };
    (@make Histogram $r:ident $n:expr) => { $r.histogram($n) };
}

stats! {
    /// Connections accepted.
    downstream_cx_total: Counter,
    /// Connections open.
    downstream_cx_active: Gauge,
    /// Connections closed because their bytes are no protocol that is spoken here.
    downstream_cx_protocol_error: Counter,
    /// Connections without a call for too long.
    downstream_cx_idle_timeout: Counter,
    /// Connections closed because they drained.
    downstream_cx_drain_close: Counter,
    /// Connections whose peer reads too slowly to keep what waits for it.
    downstream_cx_overflow: Counter,
    /// Connections closed with calls in flight by the peer.
    downstream_cx_destroy_remote_active_rq: Counter,
    /// Bytes received.
    downstream_cx_rx_bytes_total: Counter,
    /// Bytes sent.
    downstream_cx_tx_bytes_total: Counter,
    /// Times that a connection was not read because of back-pressure.
    downstream_flow_control_paused_reading_total: Counter,
    /// Calls.
    downstream_rq_total: Counter,
    /// Calls in flight.
    downstream_rq_active: Gauge,
    /// One-way calls.
    downstream_rq_oneway: Counter,
    /// Heartbeats answered here.
    downstream_rq_heartbeat: Counter,
    /// Frames that cannot be read.
    downstream_rq_decoding_error: Counter,
    /// Frames over a limit.
    downstream_rq_too_large: Counter,
    /// Calls answered with a result.
    downstream_rq_ok: Counter,
    /// Calls answered with an exception of the application.
    downstream_rq_app_error: Counter,
    /// Calls answered with an error of framework or network, those answered here included.
    downstream_rq_transport_error: Counter,
    /// Calls answered here.
    downstream_rq_local_reply: Counter,
    /// Calls that were not answered in time.
    downstream_rq_timeout: Counter,
    /// Calls without a route.
    downstream_rq_no_route: Counter,
    /// Calls refused because a bound was reached.
    downstream_rq_overflow: Counter,
    /// Calls whose caller went away before the answer.
    downstream_rq_cancelled: Counter,
    /// Calls whose changes of headers could not be made; they were sent as they came.
    downstream_rq_edit_failed: Counter,
    /// Frames that are neither call nor heartbeat, such as answers to nothing.
    downstream_rq_unexpected: Counter,
    /// Time of a call in milliseconds.
    downstream_rq_time: Histogram,
}

impl Stats {
    /// Counts the end of a call.
    pub(super) fn count(&self, class: Class) {
        match class {
            Class::Ok => self.downstream_rq_ok.inc(),
            Class::AppError => self.downstream_rq_app_error.inc(),
            Class::TransportError => self.downstream_rq_transport_error.inc(),
        }
    }
}
