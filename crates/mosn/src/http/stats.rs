//! Statistics below `http.<stat_prefix>.`, under Envoy's names.

use telemetry::stats::{Counter, Gauge, Histogram, Registry};

macro_rules! stats {
    ($($(#[$doc:meta])* $field:ident: $kind:ident),+ $(,)?) => {
        /// The counters of a connection manager.
        pub(super) struct Stats {
            $($(#[$doc])* pub(super) $field: $kind,)+
            /// `downstream_rq_1xx` … `downstream_rq_5xx`.
            downstream_rq_xx: [Counter; 5],
        }

        impl Stats {
            /// Registers the names.
            pub(super) fn new(registry: &Registry, stat_prefix: &str) -> Stats {
                let of = |name: &str| format!("http.{}.{name}", stat_prefix.replace(':', "_"));
                Stats {
                    $($field: stats!(@make $kind registry of(stringify!($field))),)+
                    downstream_rq_xx: [1, 2, 3, 4, 5]
                        .map(|class| registry.counter(&of(&format!("downstream_rq_{class}xx")))),
                }
            }
        }
    };
    (@make Counter $r:ident $n:expr) => { $r.counter(&$n) };
    (@make Gauge $r:ident $n:expr) => { $r.gauge(&$n) };
    (@make Histogram $r:ident $n:expr) => { $r.histogram(&$n) };
}

stats! {
    downstream_cx_total: Counter,
    downstream_cx_active: Gauge,
    downstream_cx_http1_total: Counter,
    downstream_cx_http1_active: Gauge,
    downstream_cx_destroy: Counter,
    downstream_cx_destroy_local: Counter,
    downstream_cx_destroy_remote: Counter,
    downstream_cx_destroy_active_rq: Counter,
    downstream_cx_destroy_remote_active_rq: Counter,
    downstream_cx_drain_close: Counter,
    downstream_cx_idle_timeout: Counter,
    downstream_cx_delayed_close_timeout: Counter,
    downstream_cx_max_duration_reached: Counter,
    downstream_cx_max_requests_reached: Counter,
    downstream_cx_protocol_error: Counter,
    downstream_cx_length_ms: Histogram,
    downstream_cx_rx_bytes_total: Counter,
    downstream_cx_tx_bytes_total: Counter,
    downstream_cx_upgrades_total: Counter,
    downstream_cx_upgrades_active: Gauge,
    downstream_rq_total: Counter,
    downstream_rq_http1_total: Counter,
    downstream_rq_active: Gauge,
    downstream_rq_completed: Counter,
    downstream_rq_time: Histogram,
    downstream_rq_timeout: Counter,
    downstream_rq_header_timeout: Counter,
    downstream_rq_idle_timeout: Counter,
    downstream_rq_max_duration_reached: Counter,
    downstream_rq_rx_reset: Counter,
    downstream_rq_tx_reset: Counter,
    downstream_rq_too_large: Counter,
    downstream_rq_non_relative_path: Counter,
    downstream_rq_ws_on_non_ws_route: Counter,
    downstream_rq_failed_path_normalization: Counter,
    downstream_rq_redirected_with_normalized_path: Counter,
    downstream_rq_response_before_rq_complete: Counter,
    no_route: Counter,
    no_cluster: Counter,
    rq_direct_response: Counter,
    rq_total: Counter,
    rq_reset_after_downstream_response_started: Counter,
}

impl Stats {
    /// Counts an answer by its class.
    pub(super) fn count_response(&self, status: u16) {
        self.downstream_rq_completed.inc();
        if let Some(class) = self
            .downstream_rq_xx
            .get(usize::from(status / 100).wrapping_sub(1))
        {
            class.inc();
        }
    }
}
