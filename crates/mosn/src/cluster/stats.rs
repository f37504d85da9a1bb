//! Statistics below `cluster.<name>.`, under Envoy's names.

use telemetry::stats::{Counter, Gauge, Histogram, Registry};

/// Codes whose counters are found without a lock once they exist; a counter appears with its first answer, as in Envoy.
const COMMON_CODES: [u16; 20] = [
    200, 404, 503, 500, 504, 201, 202, 204, 206, 301, 302, 304, 400, 401, 403, 405, 409, 429, 502,
    501,
];

macro_rules! stats {
    ($($(#[$doc:meta])* $field:ident: $kind:ident),+ $(,)?) => {
        /// The counters of a cluster that both HTTP and RPC traffic use.
        pub struct ClusterStats {
            $($(#[$doc])* pub $field: $kind,)+
            /// `upstream_rq_1xx` … `upstream_rq_5xx`.
            pub upstream_rq_xx: [Counter; 5],
            common: [std::sync::OnceLock<Counter>; COMMON_CODES.len()],
            codes: std::sync::Mutex<std::collections::HashMap<u16, Counter>>,
            registry: Registry,
            prefix: String,
        }

        impl ClusterStats {
            /// Registers the names of cluster `name` (its `alt_stat_name` if it has one).
            pub fn new(registry: &Registry, name: &str) -> ClusterStats {
                let prefix = format!("cluster.{}.", name.replace(':', "_"));
                let of = |n: &str| format!("{prefix}{n}");
                ClusterStats {
                    $($field: stats!(@make $kind registry of(stringify!($field))),)+
                    upstream_rq_xx: [1, 2, 3, 4, 5].map(|class| registry.counter(&of(&format!("upstream_rq_{class}xx")))),
                    common: Default::default(),
                    codes: Default::default(),
                    registry: registry.clone(),
                    prefix,
                }
            }
        }
    };
    (@make Counter $r:ident $n:expr) => { $r.counter(&$n) };
    (@make Gauge $r:ident $n:expr) => { $r.gauge(&$n) };
    (@make Histogram $r:ident $n:expr) => { $r.histogram(&$n) };
}

stats! {
    /// Connections opened.
    upstream_cx_total: Counter,
    /// Connections open.
    upstream_cx_active: Gauge,
    /// HTTP/1 connections opened.
    upstream_cx_http1_total: Counter,
    /// Connections that could not be opened.
    upstream_cx_connect_fail: Counter,
    /// Connections that were not open within `connect_timeout`.
    upstream_cx_connect_timeout: Counter,
    /// Connections that were idle for too long.
    upstream_cx_idle_timeout: Counter,
    /// Connection attempts refused by the circuit breaker.
    upstream_cx_overflow: Counter,
    /// Time to open a connection, ms.
    upstream_cx_connect_ms: Histogram,
    /// Life of a connection, ms.
    upstream_cx_length_ms: Histogram,
    /// Connections closed.
    upstream_cx_destroy: Counter,
    /// Connections closed by this side.
    upstream_cx_destroy_local: Counter,
    /// Connections closed by the peer.
    upstream_cx_destroy_remote: Counter,
    /// Connections closed with a request in flight.
    upstream_cx_destroy_with_active_rq: Counter,
    /// Connections closed by this side with a request in flight.
    upstream_cx_destroy_local_with_active_rq: Counter,
    /// Connections closed by the peer with a request in flight.
    upstream_cx_destroy_remote_with_active_rq: Counter,
    /// Connections that were told to close after this answer.
    upstream_cx_close_notify: Counter,
    /// Bytes received.
    upstream_cx_rx_bytes_total: Counter,
    /// Bytes sent.
    upstream_cx_tx_bytes_total: Counter,
    /// Connections that served their most requests.
    upstream_cx_max_requests: Counter,
    /// Connections that broke the protocol.
    upstream_cx_protocol_error: Counter,
    /// Requests.
    upstream_rq_total: Counter,
    /// Requests in flight.
    upstream_rq_active: Gauge,
    /// Requests that had to wait for a connection.
    upstream_rq_pending_total: Counter,
    /// Requests that wait for a connection.
    upstream_rq_pending_active: Gauge,
    /// Requests refused because too many were in flight.
    upstream_rq_active_overflow: Counter,
    /// Requests refused by the circuit breaker.
    upstream_rq_pending_overflow: Counter,
    /// Requests that failed because their connection did not open.
    upstream_rq_pending_failure_eject: Counter,
    /// Requests given up by the caller.
    upstream_rq_cancelled: Counter,
    /// Requests for which there was no host in maintenance mode.
    upstream_rq_maintenance_mode: Counter,
    /// Requests that timed out.
    upstream_rq_timeout: Counter,
    /// Tries that timed out.
    upstream_rq_per_try_timeout: Counter,
    /// Requests reset by the peer.
    upstream_rq_rx_reset: Counter,
    /// Requests reset by this side.
    upstream_rq_tx_reset: Counter,
    /// Tries after the first.
    upstream_rq_retry: Counter,
    /// Requests that failed after all their tries.
    upstream_rq_retry_limit_exceeded: Counter,
    /// Retries refused by the circuit breaker.
    upstream_rq_retry_overflow: Counter,
    /// Retries that helped.
    upstream_rq_retry_success: Counter,
    /// Retries after exponential back-off.
    upstream_rq_retry_backoff_exponential: Counter,
    /// Answers.
    upstream_rq_completed: Counter,
    /// Time from request to answer, ms.
    upstream_rq_time: Histogram,
    /// Requests for which no host was found.
    upstream_cx_none_healthy: Counter,
    /// Members.
    membership_total: Gauge,
    /// Healthy members.
    membership_healthy: Gauge,
    /// Members by health, degraded.
    membership_degraded: Gauge,
    /// Changes of membership.
    membership_change: Counter,
    /// EDS or DNS answers that came.
    update_success: Counter,
    /// EDS or DNS updates tried.
    update_attempt: Counter,
    /// EDS or DNS updates that failed.
    update_failure: Counter,
    /// Updates that changed nothing.
    update_no_rebuild: Counter,
}

impl ClusterStats {
    /// `cluster.<name>.`, the start of every name of this cluster's statistics.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Counts an answer by its code and class; `code` is an HTTP status.
    pub fn count_response(&self, code: u16) {
        self.upstream_rq_completed.inc();
        let class = usize::from(code / 100).wrapping_sub(1);
        if let Some(counter) = self.upstream_rq_xx.get(class) {
            counter.inc();
        }
        match COMMON_CODES
            .iter()
            .position(|c| *c == code)
            .and_then(|i| self.common.get(i))
        {
            Some(counter) => counter.get_or_init(|| self.code(code)).inc(),
            None => self.code(code).inc(),
        }
    }

    fn code(&self, code: u16) -> Counter {
        let mut codes = match self.codes.lock() {
            Ok(codes) => codes,
            Err(poisoned) => poisoned.into_inner(),
        };
        codes
            .entry(code)
            .or_insert_with(|| {
                self.registry
                    .counter(&format!("{}upstream_rq_{code}", self.prefix))
            })
            .clone()
    }
}
