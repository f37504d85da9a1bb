//! Statistics in Prometheus' text format, as Envoy writes it at `/stats/prometheus`.

use std::fmt::Write as _;

use crate::stats::tags::extract;
use crate::stats::{HistogramValue, Metric, Snapshot, bucket_bounds};

/// What of a snapshot is written.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Only statistics that were ever written.
    pub used_only: bool,
    /// Texts too, as gauges of value 0 with the text as label `text_value`.
    pub texts: bool,
}

/// One line of a family.
struct Sample<'a, T> {
    /// As they stand between braces.
    labels: String,
    value: &'a T,
}

/// Writes the statistics of which `keep` approves by their full names.
#[must_use]
pub fn write(snapshot: &Snapshot, options: Options, keep: impl Fn(&str) -> bool) -> String {
    let mut out = String::new();
    let keep = |name: &str, used: bool| (used || !options.used_only) && keep(name);
    let number = |out: &mut String, name: &str, sample: &Sample<'_, u64>| {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{name}{{{}}} {}", sample.labels, sample.value);
    };
    families(&mut out, "counter", &snapshot.counters, keep, number);
    families(&mut out, "gauge", &snapshot.gauges, keep, number);
    if options.texts {
        families(
            &mut out,
            "gauge",
            &snapshot.texts,
            keep,
            |out, name, sample| {
                let comma = if sample.labels.is_empty() { "" } else { "," };
                let _ = writeln!(
                    out,
                    "{name}{{{}{comma}text_value=\"{}\"}} 0",
                    sample.labels,
                    escaped(sample.value)
                );
            },
        );
    }
    families(&mut out, "histogram", &snapshot.histograms, keep, histogram);
    out
}

/// Groups the samples of one name below their `# TYPE` line, names in order.
fn families<T>(
    out: &mut String,
    kind: &str,
    metrics: &[Metric<T>],
    keep: impl Fn(&str, bool) -> bool,
    write: impl Fn(&mut String, &str, &Sample<'_, T>),
) {
    let mut families: Vec<(String, Sample<'_, T>)> = Vec::new();
    for metric in metrics
        .iter()
        .filter(|metric| keep(&metric.name, metric.used))
    {
        let tagged = extract(&metric.name);
        let labels: Vec<_> = tagged
            .tags
            .iter()
            .map(|(tag, value)| format!("{}=\"{}\"", sanitized(tag), escaped(value)))
            .collect();
        let name = format!("envoy_{}", sanitized(&tagged.name));
        families.push((
            name,
            Sample {
                labels: labels.join(","),
                value: &metric.value,
            },
        ));
    }
    // Stable: within a family the order of the full names stays.
    families.sort_by(|(a, _), (b, _)| a.cmp(b));
    let mut last = "";
    for (name, sample) in &families {
        if name != last {
            let _ = writeln!(out, "# TYPE {name} {kind}");
            last = name;
        }
        write(out, name, sample);
    }
}

fn histogram(out: &mut String, name: &str, sample: &Sample<'_, HistogramValue>) {
    let labels = &sample.labels;
    let comma = if labels.is_empty() { "" } else { "," };
    let mut below = 0;
    for (bound, count) in bucket_bounds().iter().zip(sample.value.buckets) {
        below += count;
        let _ = writeln!(
            out,
            "{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {below}"
        );
    }
    let count = sample.value.count();
    let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {count}");
    let _ = writeln!(out, "{name}_sum{{{labels}}} {}", sample.value.sum);
    let _ = writeln!(out, "{name}_count{{{labels}}} {count}");
}

/// A name or label with only the characters that Prometheus takes.
fn sanitized(name: &str) -> String {
    name.chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || c == '_' {
                c
            } else {
                '_'
            }
        })
        .collect()
}

fn escaped(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::Registry;

    #[test]
    fn writes_envoys_form() {
        let registry = Registry::new();
        let _codes = [
            "cluster.b.upstream_rq_200",
            "cluster.a.upstream_rq_200",
            "cluster.a.upstream_rq_503",
        ]
        .map(|name| registry.counter(name))
        .map(|counter| {
            counter.inc();
            counter
        });
        let unused = registry.counter("cluster.a.upstream_cx_overflow");
        let active = registry.gauge("server.live");
        active.set(1);
        let time = registry.histogram("http.in\"g.downstream_rq_time");
        time.record(3);
        time.record(4_000_000);
        let text = write(
            &registry.snapshot(),
            Options {
                used_only: true,
                texts: false,
            },
            |_| true,
        );
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(
            lines.get(..7).unwrap(),
            [
                "# TYPE envoy_cluster_upstream_rq counter",
                "envoy_cluster_upstream_rq{envoy_response_code=\"200\",envoy_cluster_name=\"a\"} 1",
                "envoy_cluster_upstream_rq{envoy_response_code=\"503\",envoy_cluster_name=\"a\"} 1",
                "envoy_cluster_upstream_rq{envoy_response_code=\"200\",envoy_cluster_name=\"b\"} 1",
                "# TYPE envoy_server_live gauge",
                "envoy_server_live{} 1",
                "# TYPE envoy_http_downstream_rq_time histogram",
            ]
        );
        let prefix =
            "envoy_http_downstream_rq_time_bucket{envoy_http_conn_manager_prefix=\"in\\\"g\",le=";
        for (le, count) in [("0.5", 0), ("1", 0), ("5", 1), ("3600000", 1), ("+Inf", 2)] {
            assert!(
                lines.contains(&format!("{prefix}\"{le}\"}} {count}").as_str()),
                "{le}"
            );
        }
        assert!(text.ends_with("_count{envoy_http_conn_manager_prefix=\"in\\\"g\"} 2\n"));
        let all = write(&registry.snapshot(), Options::default(), |name| {
            name.contains("overflow")
        });
        assert_eq!(all.lines().count(), 2, "{all}");
        drop(unused);
    }
}
