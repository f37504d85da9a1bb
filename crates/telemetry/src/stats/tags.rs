//! Tags in names of statistics: `cluster.app.upstream_rq_200` is `cluster.upstream_rq` of the cluster `app` with the
//! response code `200`. The rules and the order of the tags are Envoy's defaults (`well_known_names.cc`).
//!
//! One rule is better than Envoy's default: names of clusters may contain dots, as Istio's do, and are taken whole, as
//! the regular expressions in Istio's bootstrap do. Where names have no dots the result is Envoy's.

/// A name without its tags.
#[derive(Debug, PartialEq, Eq)]
pub struct Tagged {
    /// What is left of the name.
    pub name: String,
    /// Tags with their values, in the order in which Envoy prints them.
    pub tags: Vec<(&'static str, String)>,
}

/// What may stand between a cluster's name and the last part of a statistic's name.
const CLUSTER_SCOPES: [&str; 10] = [
    "circuit_breakers.default",
    "circuit_breakers.high",
    "external",
    "internal",
    "http1",
    "http2",
    "default",
    "outlier_detection",
    "rpc",
    "client_ssl",
];

/// Takes the tags out of a name.
#[must_use]
pub fn extract(full: &str) -> Tagged {
    let mut name = full.to_owned();
    let mut tags = Vec::new();
    response_code(&mut name, &mut tags);
    fault_downstream(&mut name, &mut tags);
    simple_prefix("tcp.", "envoy.tcp_prefix", &mut name, &mut tags);
    simple_prefix("udp.", "envoy.udp_prefix", &mut name, &mut tags);
    worker(&mut name, &mut tags);
    cluster(&mut name, &mut tags);
    http(&mut name, &mut tags);
    listener(&mut name, &mut tags);
    first_part("rpc.", "envoy.rpc_prefix", &mut name, &mut tags);
    first_part("vhost.", "envoy.virtual_host", &mut name, &mut tags);
    Tagged { name, tags }
}

type Tags = Vec<(&'static str, String)>;

/// Takes `name[start..end]` out and keeps it under a tag.
fn take(
    name: &mut String,
    start: usize,
    end: usize,
    without: usize,
    tag: &'static str,
    tags: &mut Tags,
) {
    let value = name.get(start..end).unwrap_or_default().to_owned();
    name.replace_range(start..end + without, "");
    tags.push((tag, value));
}

/// `…_rq_200` and `…_rq_2xx`; the latter leaves `…_rq_xx`.
fn response_code(name: &mut String, tags: &mut Tags) {
    let Some((stem, code)) = name.rsplit_once("_rq_") else {
        return;
    };
    let digits =
        |text: &str, n: usize| text.len() == n && text.bytes().all(|byte| byte.is_ascii_digit());
    if digits(code, 3) {
        tags.push(("envoy.response_code", code.to_owned()));
        *name = format!("{stem}_rq");
    } else if let Some(class) = code.strip_suffix("xx").filter(|class| digits(class, 1)) {
        tags.push(("envoy.response_code_class", class.to_owned()));
        *name = format!("{stem}_rq_xx");
    }
}

/// `http.<prefix>.fault.<downstream cluster>.<statistic>`.
fn fault_downstream(name: &mut String, tags: &mut Tags) {
    const FAULT: &str = ".fault.";
    if !name.starts_with("http.") {
        return;
    }
    if let (Some(at), Some(last)) = (name.find(FAULT), name.rfind('.')) {
        let start = at + FAULT.len();
        if start < last {
            take(name, start, last, 1, "envoy.fault_downstream_cluster", tags);
        }
    }
}

/// `tcp.<prefix>.<statistic>`; the prefix may have dots.
fn simple_prefix(scope: &str, tag: &'static str, name: &mut String, tags: &mut Tags) {
    if let Some(last) = name
        .rfind('.')
        .filter(|last| name.starts_with(scope) && *last > scope.len())
    {
        take(name, scope.len(), last, 1, tag, tags);
    }
}

/// `<scope>.<prefix>.…`; the prefix ends at the first dot.
fn first_part(scope: &str, tag: &'static str, name: &mut String, tags: &mut Tags) {
    let Some(rest) = name.strip_prefix(scope) else {
        return;
    };
    if let Some(end) = rest.find('.').filter(|end| *end > 0) {
        take(name, scope.len(), scope.len() + end, 1, tag, tags);
    }
}

/// `….worker_<id>.…` leaves `….worker.…`.
fn worker(name: &mut String, tags: &mut Tags) {
    const WORKER: &str = ".worker_";
    let Some(at) = name.find(WORKER) else { return };
    let start = at + WORKER.len();
    let id = name
        .get(start..)
        .unwrap_or_default()
        .split('.')
        .next()
        .unwrap_or_default()
        .to_owned();
    if !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_digit()) {
        name.replace_range(start - 1..start + id.len(), "");
        tags.push(("envoy.worker_id", id));
    }
}

fn cluster(name: &mut String, tags: &mut Tags) {
    const CLUSTER: &str = "cluster.";
    let Some((named, _)) = name
        .strip_prefix(CLUSTER)
        .and_then(|rest| rest.rsplit_once('.'))
    else {
        return;
    };
    let scoped = CLUSTER_SCOPES
        .iter()
        .find_map(|scope| named.strip_suffix(scope)?.strip_suffix('.'));
    let end = CLUSTER.len() + scoped.unwrap_or(named).len();
    if end > CLUSTER.len() {
        take(name, CLUSTER.len(), end, 1, "envoy.cluster_name", tags);
        // Istio ends a name that replaces the cluster's own with a semicolon, so that its end can be seen.
        if let Some((_, value)) = tags.last_mut() {
            value.truncate(value.trim_end_matches(';').len());
        }
    }
}

fn http(name: &mut String, tags: &mut Tags) {
    const HTTP: &str = ".http.";
    if name.starts_with("listener.") {
        let Some(at) = name.find(HTTP) else { return };
        let start = at + HTTP.len();
        if let Some(length) = name.get(start..).and_then(|rest| rest.rfind('.')) {
            take(
                name,
                start,
                start + length,
                1,
                "envoy.http_conn_manager_prefix",
                tags,
            );
        }
        return;
    }
    // A prefix may have dots, as in Istio's `inbound_0.0.0.0_8080;`: then the semicolon ends it.
    let Some(rest) = name.strip_prefix("http.") else {
        return;
    };
    let end = rest
        .find(";.")
        .map(|at| (at, 2))
        .or_else(|| rest.find('.').map(|at| (at, 1)));
    if let Some((end, without)) = end.filter(|(end, _)| *end > 0) {
        take(
            name,
            5,
            5 + end,
            without,
            "envoy.http_conn_manager_prefix",
            tags,
        );
    }
}

/// `listener.<address>.…`; a listener that is called by a name (`admin`) keeps it.
fn listener(name: &mut String, tags: &mut Tags) {
    const LISTENER: &str = "listener.";
    let Some(rest) = name.strip_prefix(LISTENER) else {
        return;
    };
    let of_v4 = |byte: u8| byte.is_ascii_digit() || matches!(byte, b'.' | b'_');
    let of_v6 = |byte: u8| byte.is_ascii_hexdigit() || matches!(byte, b'_' | b'[' | b']');
    let v4 = rest.bytes().take_while(|byte| of_v4(*byte)).count();
    let v6 = rest.bytes().take_while(|byte| of_v6(*byte)).count();
    let end = if v4 >= 2 && rest.as_bytes().get(v4 - 1) == Some(&b'.') {
        v4 - 1
    } else if v6 >= 2 && rest.starts_with('[') && rest.as_bytes().get(v6) == Some(&b'.') {
        v6
    } else {
        return;
    };
    take(
        name,
        LISTENER.len(),
        LISTENER.len() + end,
        1,
        "envoy.listener_address",
        tags,
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extracts_what_envoy_extracts() {
        for (full, name, tags) in [
            (
                "cluster.up.upstream_rq_200",
                "cluster.upstream_rq",
                &[("envoy.response_code", "200"), ("envoy.cluster_name", "up")][..],
            ),
            (
                "cluster.up.external.upstream_rq_2xx",
                "cluster.external.upstream_rq_xx",
                &[
                    ("envoy.response_code_class", "2"),
                    ("envoy.cluster_name", "up"),
                ],
            ),
            (
                "cluster.up.circuit_breakers.default.cx_open",
                "cluster.circuit_breakers.default.cx_open",
                &[("envoy.cluster_name", "up")],
            ),
            (
                "cluster.up.upstream_rq_time",
                "cluster.upstream_rq_time",
                &[("envoy.cluster_name", "up")],
            ),
            (
                "cluster_manager.active_clusters",
                "cluster_manager.active_clusters",
                &[],
            ),
            (
                "http.ing.downstream_rq_2xx",
                "http.downstream_rq_xx",
                &[
                    ("envoy.response_code_class", "2"),
                    ("envoy.http_conn_manager_prefix", "ing"),
                ],
            ),
            (
                "http.ing.fault.shop.aborts_injected",
                "http.fault.aborts_injected",
                &[
                    ("envoy.fault_downstream_cluster", "shop"),
                    ("envoy.http_conn_manager_prefix", "ing"),
                ],
            ),
            (
                "listener.127.0.0.1_19902.http.ing.downstream_rq_5xx",
                "listener.http.downstream_rq_xx",
                &[
                    ("envoy.response_code_class", "5"),
                    ("envoy.http_conn_manager_prefix", "ing"),
                    ("envoy.listener_address", "127.0.0.1_19902"),
                ],
            ),
            (
                "listener.127.0.0.1_19902.downstream_cx_total",
                "listener.downstream_cx_total",
                &[("envoy.listener_address", "127.0.0.1_19902")],
            ),
            (
                "listener.[__1]_80.downstream_cx_total",
                "listener.downstream_cx_total",
                &[("envoy.listener_address", "[__1]_80")],
            ),
            (
                "listener.127.0.0.1_19902.worker_0.downstream_cx_total",
                "listener.worker.downstream_cx_total",
                &[
                    ("envoy.worker_id", "0"),
                    ("envoy.listener_address", "127.0.0.1_19902"),
                ],
            ),
            (
                "listener.admin.downstream_cx_total",
                "listener.admin.downstream_cx_total",
                &[],
            ),
            (
                "tcp.ingress.downstream_cx_total",
                "tcp.downstream_cx_total",
                &[("envoy.tcp_prefix", "ingress")],
            ),
            // Better than Envoy's default, as Istio's bootstrap has it.
            (
                "cluster.outbound|80||web.default.svc.cluster.local;.upstream_rq_total",
                "cluster.upstream_rq_total",
                &[(
                    "envoy.cluster_name",
                    "outbound|80||web.default.svc.cluster.local",
                )],
            ),
            (
                "http.inbound_0.0.0.0_8080;.rq_total",
                "http.rq_total",
                &[("envoy.http_conn_manager_prefix", "inbound_0.0.0.0_8080")],
            ),
        ] {
            let tags = tags
                .iter()
                .map(|(tag, value)| (*tag, (*value).to_owned()))
                .collect();
            assert_eq!(
                extract(full),
                Tagged {
                    name: name.to_owned(),
                    tags
                },
                "{full}"
            );
        }
    }

    #[test]
    fn takes_any_name() {
        for name in [
            "",
            ".",
            "cluster.",
            "cluster..x",
            "listener.",
            "listener.1",
            "listener..x",
            "http.",
            "http..a",
            "tcp.",
            "_rq_",
            "a.worker_",
            "rpc..",
            "listener.1.http.",
            "http.x.fault.",
        ] {
            let _ = extract(name);
        }
    }
}
