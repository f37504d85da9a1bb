//! `envoy.filters.network.tcp_proxy`: bytes from one connection to another, each direction at its own pace.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use api::envoy::extensions::filters::network::tcp_proxy::v3::{
    TcpProxy, tcp_proxy::ClusterSpecifier,
};
use base::FieldError;
use telemetry::access_log::AccessLog;
use telemetry::request_info::RequestInfo;
use telemetry::response_flags::{ResponseFlag, ResponseFlags};
use telemetry::stats::Counter;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};

use crate::cluster::host::{ActiveRequest, bump, unbump};
use crate::cluster::{Cluster, Host, LbContext, MetadataMatch, Permit, Priority};
use crate::config::{self, CompileContext};
use crate::listener::Downstream;
use crate::refuse_fields;
use crate::worker::Worker;

/// A compiled tcp_proxy.
pub struct Config {
    clusters: Vec<(Arc<str>, u32)>,
    total_weight: u64,
    metadata_match: Option<MetadataMatch>,
    idle_timeout: Option<Duration>,
    max_duration: Option<Duration>,
    max_connect_attempts: u32,
    access_log: AccessLog,
    stats: Stats,
}

struct Stats {
    downstream_cx_total: Counter,
    downstream_cx_no_route: Counter,
    downstream_cx_rx_bytes_total: Counter,
    downstream_cx_tx_bytes_total: Counter,
    idle_timeout: Counter,
    max_downstream_connection_duration: Counter,
}

impl Config {
    /// Compiles `envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy`.
    pub fn compile(proxy: &TcpProxy, ctx: &CompileContext) -> Result<Config, FieldError> {
        refuse_fields!(proxy; on_demand, hash_policy, tunneling_config, max_downstream_connection_duration_jitter_percentage,
            proxy_protocol_tlvs, upstream_connect_mode, backoff_options, access_log_options, downstream_idle_timeout,
            upstream_idle_timeout);
        if proxy.stat_prefix.is_empty() {
            return Err(FieldError::at("stat_prefix", "is required"));
        }
        let clusters: Vec<(Arc<str>, u32)> = match &proxy.cluster_specifier {
            Some(ClusterSpecifier::Cluster(name)) if !name.is_empty() => {
                vec![(name.as_str().into(), 1)]
            }
            Some(ClusterSpecifier::WeightedClusters(weighted)) => {
                let mut clusters = Vec::new();
                for (i, c) in weighted.clusters.iter().enumerate() {
                    let at = |e: FieldError| e.in_index(i).in_field("weighted_clusters.clusters");
                    if c.name.is_empty() || c.weight == 0 {
                        return Err(at(FieldError::new(
                            "name and a weight of at least 1 are required",
                        )));
                    }
                    if config::is_set(&c.metadata_match) {
                        return Err(at(FieldError::at("metadata_match", "is not supported")));
                    }
                    clusters.push((c.name.as_str().into(), c.weight));
                }
                clusters
            }
            _ => Vec::new(),
        };
        if clusters.is_empty() {
            return Err(FieldError::at("cluster", "a cluster is required"));
        }
        let idle_timeout = match &proxy.idle_timeout {
            None => Some(Duration::from_secs(3600)),
            Some(d) => Some(config::duration(d).map_err(|e| e.in_field("idle_timeout"))?)
                .filter(|d| !d.is_zero()),
        };
        let max_duration = proxy
            .max_downstream_connection_duration
            .as_ref()
            .map(config::duration)
            .transpose();
        let prefix = format!("tcp.{}.", proxy.stat_prefix);
        let counter = |name: &str| ctx.stats.counter(&format!("{prefix}{name}"));
        Ok(Config {
            total_weight: clusters.iter().map(|(_, w)| u64::from(*w)).sum(),
            clusters,
            metadata_match: proxy
                .metadata_match
                .as_ref()
                .and_then(MetadataMatch::compile),
            idle_timeout,
            max_duration: max_duration
                .map_err(|e| e.in_field("max_downstream_connection_duration"))?,
            max_connect_attempts: proxy.max_connect_attempts.unwrap_or(1).max(1),
            access_log: AccessLog::compile(&proxy.access_log, ctx.access_logs)
                .map_err(|e| e.in_field("access_log"))?,
            stats: Stats {
                downstream_cx_total: counter("downstream_cx_total"),
                downstream_cx_no_route: counter("downstream_cx_no_route"),
                downstream_cx_rx_bytes_total: counter("downstream_cx_rx_bytes_total"),
                downstream_cx_tx_bytes_total: counter("downstream_cx_tx_bytes_total"),
                idle_timeout: counter("idle_timeout"),
                max_downstream_connection_duration: counter("max_downstream_connection_duration"),
            },
        })
    }

    fn choose(&self) -> &str {
        let mut at = fastrand::u64(0..self.total_weight.max(1));
        for (name, weight) in &self.clusters {
            if at < u64::from(*weight) {
                return name;
            }
            at -= u64::from(*weight);
        }
        self.clusters.last().map_or("", |(name, _)| name)
    }
}

/// Serves one connection to its end.
pub async fn serve(conn: Downstream, config: Arc<Config>, worker: Rc<Worker>) {
    config.stats.downstream_cx_total.inc();
    let start = (SystemTime::now(), Instant::now());
    let cluster_name = config.choose();
    let cluster = worker.cluster(cluster_name);
    let mut outcome = Outcome::default();
    match &cluster {
        None => {
            config.stats.downstream_cx_no_route.inc();
            outcome.flags.set(ResponseFlag::NoClusterFound);
        }
        Some(cluster) => relay(conn.stream, cluster, &config, &worker, &mut outcome).await,
    }
    if config.access_log.is_enabled() {
        let mut info = RequestInfo::new(start.0);
        info.timing.complete = Some(start.1.elapsed());
        info.bytes_received = outcome.received.get();
        info.bytes_sent = outcome.sent.get();
        info.flags = outcome.flags;
        info.upstream_host = outcome.host;
        info.upstream_local = outcome.upstream_local;
        info.upstream_cluster = Some(cluster_name);
        info.upstream_cluster_raw = Some(cluster_name);
        info.downstream_remote = Some(conn.remote);
        info.downstream_direct_remote = Some(conn.remote);
        info.downstream_local = Some(conn.local);
        config.access_log.log(&info);
    }
}

#[derive(Default)]
struct Outcome {
    flags: ResponseFlags,
    host: Option<std::net::SocketAddr>,
    upstream_local: Option<std::net::SocketAddr>,
    received: Rc<Cell<u64>>,
    sent: Rc<Cell<u64>>,
}

/// An upstream connection with what it holds in the cluster's accounts.
struct Upstream {
    stream: TcpStream,
    host: Rc<Host>,
    cluster: Rc<Cluster>,
    _request: ActiveRequest,
    _permit: Permit,
}

impl Drop for Upstream {
    fn drop(&mut self) {
        unbump(&self.host.stats.cx_active);
        let stats = self.cluster.stats();
        stats.upstream_cx_active.dec();
        stats.upstream_rq_active.dec();
        stats.upstream_cx_destroy.inc();
    }
}

async fn relay(
    mut down: TcpStream,
    cluster: &Rc<Cluster>,
    config: &Config,
    worker: &Rc<Worker>,
    outcome: &mut Outcome,
) {
    let Some(mut up) = connect(cluster, config, outcome).await else {
        return;
    };
    outcome.host = Some(up.host.address);
    outcome.upstream_local = up.stream.local_addr().ok();
    let stats = cluster.stats();
    let activity = Activity {
        last: Cell::new(Instant::now()),
    };
    let (down_read, down_write) = down.split();
    let (up_read, up_write) = up.stream.split();
    let request = copy(down_read, up_write, worker, &activity, |n| {
        config.stats.downstream_cx_rx_bytes_total.add(n);
        stats.upstream_cx_tx_bytes_total.add(n);
        outcome.received.set(outcome.received.get() + n);
    });
    let response = copy(up_read, down_write, worker, &activity, |n| {
        config.stats.downstream_cx_tx_bytes_total.add(n);
        stats.upstream_cx_rx_bytes_total.add(n);
        outcome.sent.set(outcome.sent.get() + n);
    });
    let both = async { tokio::join!(request, response) };
    tokio::select! {
        (a, b) = both => {
            if a.is_err() || b.is_err() {
                outcome.flags.set(ResponseFlag::UpstreamConnectionTermination);
            }
        }
        () = activity.idle(config.idle_timeout) => config.stats.idle_timeout.inc(),
        () = sleep_or_never(config.max_duration) => config.stats.max_downstream_connection_duration.inc(),
    }
}

async fn sleep_or_never(limit: Option<Duration>) {
    match limit {
        Some(limit) => tokio::time::sleep(limit).await,
        None => std::future::pending().await,
    }
}

async fn connect(
    cluster: &Rc<Cluster>,
    config: &Config,
    outcome: &mut Outcome,
) -> Option<Upstream> {
    let stats = cluster.stats();
    let mut tried: Vec<Rc<Host>> = Vec::new();
    for _ in 0..config.max_connect_attempts {
        let context = LbContext {
            metadata_match: config.metadata_match.as_ref(),
            rpc: None,
            avoid: &tried,
        };
        let Some(host) = cluster.pick(&context) else {
            stats.upstream_cx_none_healthy.inc();
            outcome.flags.set(ResponseFlag::NoHealthyUpstream);
            return None;
        };
        let Some(permit) = cluster.breaker(Priority::Default).try_connection() else {
            stats.upstream_cx_overflow.inc();
            outcome.flags.set(ResponseFlag::UpstreamOverflow);
            return None;
        };
        stats.upstream_cx_total.inc();
        bump(&host.stats.cx_total);
        let started = Instant::now();
        match tokio::time::timeout(
            cluster.config.connect_timeout,
            TcpStream::connect(host.address),
        )
        .await
        {
            Ok(Ok(stream)) => {
                let _ = stream.set_nodelay(true);
                stats.upstream_cx_active.inc();
                stats
                    .upstream_cx_connect_ms
                    .record(started.elapsed().as_millis() as u64);
                bump(&host.stats.cx_active);
                // Envoy counts a connection as one request of its host too
                stats.upstream_rq_total.inc();
                stats.upstream_rq_active.inc();
                return Some(Upstream {
                    stream,
                    _request: host.start_request(),
                    host,
                    cluster: cluster.clone(),
                    _permit: permit,
                });
            }
            Ok(Err(_)) => {}
            Err(_) => stats.upstream_cx_connect_timeout.inc(),
        }
        stats.upstream_cx_connect_fail.inc();
        bump(&host.stats.cx_connect_fail);
        tried.push(host);
    }
    outcome.flags.set(ResponseFlag::UpstreamConnectionFailure);
    None
}

/// When bytes last moved.
struct Activity {
    last: Cell<Instant>,
}

impl Activity {
    async fn idle(&self, limit: Option<Duration>) {
        let Some(limit) = limit else {
            return std::future::pending().await;
        };
        loop {
            let deadline = self.last.get() + limit;
            if deadline <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(deadline.into()).await;
        }
    }
}

/// Copies to the end and passes the end on; holds a buffer only while there are bytes.
async fn copy(
    from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    worker: &Rc<Worker>,
    activity: &Activity,
    mut moved: impl FnMut(u64),
) -> std::io::Result<()> {
    loop {
        from.readable().await?;
        let mut buffer = worker.buffers().take();
        let result = match from.try_read_buf(&mut buffer) {
            Ok(0) => {
                to.shutdown().await?;
                return Ok(());
            }
            Ok(n) => {
                let written = to.write_all(&buffer).await;
                moved(n as u64);
                activity.last.set(Instant::now());
                written
            }
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => Ok(()),
            Err(e) => Err(e),
        };
        worker.buffers().put(buffer);
        result?;
    }
}
