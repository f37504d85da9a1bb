//! What the programs tell about themselves: statistics under Envoy's names, access logs with Envoy's operators, and the
//! log of the process itself. Knows nothing of sockets, routes or clusters.
//!
//! ```
//! use telemetry::stats::Registry;
//!
//! let registry = Registry::new();
//! registry.register_thread(); // once per worker
//! let requests = registry.counter("cluster.app.upstream_rq_total"); // once per configuration
//! requests.inc(); // on the path of a request
//! assert_eq!(registry.snapshot().counter("cluster.app.upstream_rq_total"), Some(1));
//! ```

pub mod access_log;
pub mod format;
pub mod logging;
pub mod prometheus;
pub mod request_info;
pub mod response_flags;
pub mod stats;
