//! `/stats` in text and JSON, and `/stats/prometheus`.

use std::fmt::Write as _;

use regex::Regex;
use serde_json::{Value, json};
use telemetry::prometheus;
use telemetry::stats::{Gauge, HistogramValue, Metric, Registry, Snapshot, bucket_bounds};

use super::server_info::{Life, Memory};
use super::{JSON, Query, Reply, Server};
use crate::cluster::Priority;
use crate::server::State;

/// The `server.*` gauges that are only right when somebody looks.
#[derive(Clone)]
pub(super) struct ServerGauges {
    live: Gauge,
    state: Gauge,
    uptime: Gauge,
    /// Held so that they are shown.
    _constant: [Gauge; 2],
    memory_allocated: Gauge,
    memory_heap_size: Gauge,
    memory_physical_size: Gauge,
    total_connections: Gauge,
}

impl ServerGauges {
    pub(super) fn new(stats: &Registry, state: &State) -> Self {
        let (concurrency, epoch) = (
            stats.gauge("server.concurrency"),
            stats.gauge("server.hot_restart_epoch"),
        );
        concurrency.set(state.flags.workers() as u64);
        epoch.set(0);
        Self {
            live: stats.gauge("server.live"),
            state: stats.gauge("server.state"),
            uptime: stats.gauge("server.uptime"),
            _constant: [concurrency, epoch],
            memory_allocated: stats.gauge("server.memory_allocated"),
            memory_heap_size: stats.gauge("server.memory_heap_size"),
            memory_physical_size: stats.gauge("server.memory_physical_size"),
            total_connections: stats.gauge("server.total_connections"),
        }
    }

    fn update(&self, life: Life, uptime_s: u64) {
        let memory = Memory::now();
        self.live.set(u64::from(life == Life::Live));
        self.state.set(life.number());
        self.uptime.set(uptime_s);
        self.memory_allocated.set(memory.heap);
        self.memory_heap_size.set(memory.heap);
        self.memory_physical_size.set(memory.resident);
    }
}

/// Whether circuit breakers are open: known from what is in use, so no thread has to keep gauges of it.
fn circuit_breakers(state: &State) -> Vec<Metric<u64>> {
    const NAMES: [&str; 4] = ["cx_open", "rq_pending_open", "rq_open", "rq_retry_open"];
    let mut gauges = Vec::new();
    let active = state
        .manager
        .clusters()
        .filter_map(|(_, entry)| entry.active.as_ref());
    for config in active.map(|active| &active.config) {
        for (label, priority) in [("default", Priority::Default), ("high", Priority::High)] {
            let prefix = config.stats.prefix();
            for (name, (used, limit)) in NAMES.iter().zip(config.breaker(priority).usage()) {
                gauges.push(Metric {
                    name: format!("{prefix}circuit_breakers.{label}.{name}"),
                    value: u64::from(used >= limit),
                    // Those of the usual priority are always shown, as in Envoy.
                    used: priority == Priority::Default,
                });
            }
        }
    }
    gauges
}

async fn snapshot(server: &Server) -> Option<Snapshot> {
    let (life, uptime_s, breakers) = server
        .with(|state| {
            let uptime_s = state.started.elapsed().as_secs();
            (Life::of(state), uptime_s, circuit_breakers(state))
        })
        .await?;
    server.gauges.update(life, uptime_s);
    let mut snapshot = server.stats.snapshot();
    snapshot.gauges.extend(breakers);
    snapshot.gauges.sort_by(|a, b| a.name.cmp(&b.name));
    let is_open = |gauge: &&Metric<u64>| {
        gauge.name.starts_with("listener.") && gauge.name.ends_with(".downstream_cx_active")
    };
    let open = snapshot
        .gauges
        .iter()
        .filter(is_open)
        .map(|gauge| gauge.value)
        .sum();
    server.gauges.total_connections.set(open);
    if let Some(gauge) = snapshot
        .gauges
        .iter_mut()
        .find(|gauge| gauge.name == "server.total_connections")
    {
        gauge.value = open;
    }
    Some(snapshot)
}

/// Which statistics are asked for.
struct Wanted {
    regex: Option<Regex>,
    invert: bool,
    used_only: bool,
}

impl Wanted {
    fn parse(query: &Query) -> Result<Self, Reply> {
        let regex = match query.get("filter").filter(|filter| !filter.is_empty()) {
            Some(filter) => {
                let regex = Regex::new(filter);
                Some(regex.map_err(|error| {
                    Reply::bad_request(format!("Invalid re2 regex: {}", reason(&error)))
                })?)
            }
            None => None,
        };
        Ok(Self {
            regex,
            invert: query.has("invert_filter"),
            used_only: query.has("usedonly"),
        })
    }

    fn name(&self, name: &str) -> bool {
        self.regex
            .as_ref()
            .is_none_or(|regex| regex.is_match(name) != self.invert)
    }

    fn metric<T>(&self, metric: &Metric<T>) -> bool {
        (metric.used || !self.used_only) && self.name(&metric.name)
    }
}

/// The last line of a regular expression's error: what is wrong, without the drawing of where.
pub(super) fn reason(error: &regex::Error) -> String {
    let text = error.to_string();
    let last = text.lines().last().unwrap_or_default();
    last.strip_prefix("error: ").unwrap_or(last).to_owned()
}

/// `?type=`.
#[derive(Clone, Copy)]
struct Kinds {
    counters: bool,
    gauges: bool,
    histograms: bool,
    texts: bool,
}

impl Kinds {
    fn parse(query: &Query) -> Result<Self, Reply> {
        let none = Self {
            counters: false,
            gauges: false,
            histograms: false,
            texts: false,
        };
        Ok(match query.get("type").unwrap_or("All") {
            "All" => Self {
                counters: true,
                gauges: true,
                histograms: true,
                texts: true,
            },
            "Counters" => Self {
                counters: true,
                ..none
            },
            "Gauges" => Self {
                gauges: true,
                ..none
            },
            "Histograms" => Self {
                histograms: true,
                ..none
            },
            "TextReadouts" => Self {
                texts: true,
                ..none
            },
            _ => return Err(Reply::bad_request("invalid &type= param")),
        })
    }
}

/// `?histogram_buckets=`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Buckets {
    Summary,
    Cumulative,
    Disjoint,
}

impl Buckets {
    fn parse(query: &Query) -> Result<Self, Reply> {
        Ok(match query.get("histogram_buckets") {
            None | Some("" | "none" | "summary") => Self::Summary,
            Some("cumulative") => Self::Cumulative,
            Some("disjoint") => Self::Disjoint,
            Some(_) => {
                return Err(Reply::bad_request(
                    "usage: /stats?histogram_buckets=(cumulative|disjoint|summary)\n",
                ));
            }
        })
    }
}

/// `/stats`.
pub(super) async fn stats(server: &Server, query: &Query) -> Reply {
    let format = query.get("format").unwrap_or("text");
    if format == "prometheus" {
        return prometheus(server, query).await;
    }
    let parsed = Wanted::parse(query)
        .and_then(|wanted| Ok((wanted, Kinds::parse(query)?, Buckets::parse(query)?)));
    let (wanted, kinds, buckets) = match parsed {
        Ok(parsed) => parsed,
        Err(reply) => return reply,
    };
    if !matches!(format, "text" | "json") {
        return Reply::bad_request("usage: /stats?format=(json|prometheus|text)\n\n");
    }
    let Some(snapshot) = snapshot(server).await else {
        return Reply::ending();
    };
    match format {
        "json" => json_form(&snapshot, &wanted, kinds),
        _ => text_form(&snapshot, &wanted, kinds, buckets),
    }
}

/// `/stats/prometheus`.
pub(super) async fn prometheus(server: &Server, query: &Query) -> Reply {
    let wanted = match Wanted::parse(query) {
        Ok(wanted) => wanted,
        Err(reply) => return reply,
    };
    let Some(snapshot) = snapshot(server).await else {
        return Reply::ending();
    };
    let options = prometheus::Options {
        used_only: wanted.used_only,
        texts: query.has("text_readouts"),
    };
    Reply::text(prometheus::write(&snapshot, options, |name| {
        wanted.name(name)
    }))
}

/// Counters and gauges together, sorted by name, with whether they are wanted decided.
fn numbers<'a>(snapshot: &'a Snapshot, wanted: &Wanted, kinds: Kinds) -> Vec<&'a Metric<u64>> {
    let counters = snapshot.counters.iter().filter(|_| kinds.counters);
    let gauges = snapshot.gauges.iter().filter(|_| kinds.gauges);
    let mut numbers: Vec<_> = counters
        .chain(gauges)
        .filter(|metric| wanted.metric(metric))
        .collect();
    numbers.sort_by(|a, b| a.name.cmp(&b.name));
    numbers
}

fn text_form(snapshot: &Snapshot, wanted: &Wanted, kinds: Kinds, buckets: Buckets) -> Reply {
    let mut out = String::new();
    // Writing to a String cannot fail.
    for text in snapshot
        .texts
        .iter()
        .filter(|text| kinds.texts && wanted.metric(text))
    {
        let _ = writeln!(
            out,
            "{}: \"{}\"",
            text.name,
            text.value.replace('"', "\\\"")
        );
    }
    for number in numbers(snapshot, wanted, kinds) {
        let _ = writeln!(out, "{}: {}", number.name, number.value);
    }
    for histogram in snapshot
        .histograms
        .iter()
        .filter(|histogram| kinds.histograms && wanted.metric(histogram))
    {
        let value = match buckets {
            Buckets::Summary => histogram.value.quantiles_text(),
            Buckets::Cumulative | Buckets::Disjoint => bucket_text(&histogram.value, buckets),
        };
        let _ = writeln!(out, "{}: {value}", histogram.name);
    }
    Reply::text(out)
}

/// `B0.5(interval,total) B1(…) …`.
fn bucket_text(value: &HistogramValue, buckets: Buckets) -> String {
    if value.count() == 0 {
        return "No recorded values".to_owned();
    }
    let mut below = 0;
    let counts = bucket_bounds()
        .iter()
        .zip(value.buckets)
        .map(|(bound, count)| {
            below += count;
            let shown = if buckets == Buckets::Cumulative {
                below
            } else {
                count
            };
            format!("B{bound}(0,{shown})")
        });
    counts.collect::<Vec<_>>().join(" ")
}

fn json_form(snapshot: &Snapshot, wanted: &Wanted, kinds: Kinds) -> Reply {
    let texts = snapshot
        .texts
        .iter()
        .filter(|text| kinds.texts && wanted.metric(text));
    let mut all: Vec<Value> = texts
        .map(|text| json!({"name": text.name, "value": &*text.value}))
        .collect();
    let numbers = numbers(snapshot, wanted, kinds);
    all.extend(
        numbers
            .iter()
            .map(|number| json!({"name": number.name, "value": number.value})),
    );
    let histograms = snapshot
        .histograms
        .iter()
        .filter(|histogram| kinds.histograms && wanted.metric(histogram));
    let computed: Vec<_> = histograms
        .map(|histogram| quantiles(&histogram.name, &histogram.value))
        .collect();
    if !computed.is_empty() {
        let supported = HistogramValue::default().quantiles();
        let supported: Vec<_> = supported
            .into_iter()
            .map(|(percent, _)| whole(percent))
            .collect();
        all.push(json!({"histograms": {"supported_quantiles": supported, "computed_quantiles": computed}}));
    }
    Reply {
        content_type: JSON,
        ..Reply::text(json!({"stats": all}).to_string())
    }
}

fn quantiles(name: &str, value: &HistogramValue) -> Value {
    let values = value.quantiles().into_iter();
    let values = values.map(|(_, value)| json!({"cumulative": value.map(whole), "interval": null}));
    json!({"name": name, "values": values.collect::<Vec<_>>()})
}

/// A number without a fraction is written without one.
fn whole(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 9e15 {
        json!(value as i64)
    } else {
        json!(value)
    }
}
