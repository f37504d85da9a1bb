//! What the statistics promise, threads included.

use std::sync::mpsc;
use std::thread;

use super::{BUCKETS, HistogramValue, Registry};

#[test]
fn sums_over_registered_and_other_threads() {
    let registry = Registry::new();
    let (counter, gauge, histogram) = (
        registry.counter("a.rq"),
        registry.gauge("a.active"),
        registry.histogram("a.ms"),
    );
    thread::scope(|scope| {
        for registered in [true, true, false] {
            let (registry, counter, gauge, histogram) = (&registry, &counter, &gauge, &histogram);
            scope.spawn(move || {
                if registered {
                    registry.register_thread();
                }
                for value in 0..1000 {
                    counter.inc();
                    gauge.inc();
                    histogram.record(value);
                    if value % 2 == 0 {
                        gauge.dec();
                    }
                }
            });
        }
    });
    let snapshot = registry.snapshot();
    assert_eq!(snapshot.counter("a.rq"), Some(3000));
    assert_eq!(snapshot.gauge("a.active"), Some(1500));
    let histogram = snapshot.histogram("a.ms").unwrap();
    assert_eq!((histogram.count(), histogram.sum), (3000, 3 * 999 * 500));
}

#[test]
fn one_name_is_one_slot() {
    let registry = Registry::new();
    registry.register_thread();
    let first = registry.counter("cluster.a.upstream_rq_total");
    registry.counter("cluster.a.upstream_rq_total").add(2);
    first.inc();
    assert_eq!(first.value(), 3);
    assert_eq!(registry.snapshot().counters.len(), 1);
}

#[test]
fn a_reused_slot_starts_at_zero_in_all_slabs() {
    let registry = Registry::new();
    registry.register_thread();
    let (orders, inbox) = mpsc::channel::<(super::Counter, super::Histogram)>();
    let (done, outbox) = mpsc::channel();
    let worker = thread::spawn({
        let registry = registry.clone();
        move || {
            registry.register_thread();
            for (counter, histogram) in inbox {
                counter.add(5);
                histogram.record(3);
                drop((counter, histogram));
                done.send(()).unwrap();
            }
        }
    });
    for round in 0..3 {
        let counter = registry.counter(&format!("round.{round}"));
        let histogram = registry.histogram(&format!("round.{round}"));
        counter.inc();
        histogram.record(7);
        orders.send((counter.clone(), histogram.clone())).unwrap();
        outbox.recv().unwrap();
        assert_eq!(counter.value(), 6);
        assert_eq!(histogram.value().sum, 10);
    }
    drop(orders);
    worker.join().unwrap();
    assert!(
        registry.snapshot().counters.is_empty(),
        "dropped handles leave nothing behind"
    );
    let state = registry.inner.state();
    assert_eq!(state.names.len(), 0);
    assert_eq!(
        state.scalars.take_next(),
        1,
        "the slot was reused each round"
    );
}

#[test]
fn counts_survive_their_thread_and_its_slab_is_reused() {
    let registry = Registry::new();
    let counter = registry.counter("x");
    for _ in 0..4 {
        thread::scope(|scope| {
            scope.spawn(|| {
                registry.register_thread();
                counter.inc();
            });
        });
    }
    // A thread gives its slab back when it ends, which may be after the scope has returned: how many slabs there are
    // is not promised, what they hold is.
    assert_eq!(counter.value(), 4);
}

#[test]
fn a_thread_of_one_registry_counts_in_another_too() {
    let (mine, other) = (Registry::new(), Registry::new());
    mine.register_thread();
    let (here, there) = (mine.counter("x"), other.counter("x"));
    here.inc();
    there.add(2);
    assert_eq!((here.value(), there.value()), (1, 2));
}

#[test]
fn a_thread_may_go_over_to_another_registry_and_chunks_are_used_again() {
    for round in 0..3 {
        let registry = Registry::new();
        registry.register_thread();
        let (counter, histogram) = (registry.counter("x"), registry.histogram("y"));
        assert_eq!(
            (counter.value(), histogram.value().count()),
            (0, 0),
            "round {round}"
        );
        counter.inc();
        histogram.record(1);
        assert_eq!(
            (counter.value(), histogram.value().count()),
            (1, 1),
            "round {round}"
        );
    }
}

#[test]
fn reset_makes_counters_zero_and_leaves_gauges() {
    let registry = Registry::new();
    registry.register_thread();
    let (counter, gauge) = (registry.counter("c"), registry.gauge("g"));
    counter.add(7);
    gauge.set(3);
    registry.reset_counters();
    counter.inc();
    assert_eq!(counter.value(), 1);
    assert_eq!(gauge.value(), 3);
}

#[test]
fn a_gauge_that_went_back_to_zero_is_used() {
    let registry = Registry::new();
    registry.register_thread();
    let (used, _unused) = (registry.gauge("g.used"), registry.gauge("g.unused"));
    used.inc();
    used.dec();
    let snapshot = registry.snapshot();
    let seen: Vec<_> = snapshot
        .gauges
        .iter()
        .map(|g| (g.name.as_str(), g.value, g.used))
        .collect();
    assert_eq!(seen, [("g.unused", 0, false), ("g.used", 0, true)]);
    used.sub(2);
    assert_eq!(used.value(), -2);
}

#[test]
fn many_slots_span_chunks() {
    let registry = Registry::new();
    registry.register_thread();
    let counters: Vec<_> = (0..2000)
        .map(|n| registry.counter(&format!("many.c{n}")))
        .collect();
    let histograms: Vec<_> = (0..100)
        .map(|n| registry.histogram(&format!("many.h{n}")))
        .collect();
    for (n, counter) in counters.iter().enumerate() {
        counter.add(n as u64);
    }
    for (n, histogram) in histograms.iter().enumerate() {
        histogram.record(n as u64);
    }
    assert!(
        counters
            .iter()
            .enumerate()
            .all(|(n, counter)| counter.value() == n as u64)
    );
    assert!(
        histograms
            .iter()
            .enumerate()
            .all(|(n, histogram)| histogram.value().sum == n as u64)
    );
}

#[test]
fn values_fall_into_the_first_bound_that_they_do_not_exceed() {
    let registry = Registry::new();
    let histogram = registry.histogram("h");
    for (value, bucket) in [
        (0, 0),
        (1, 1),
        (2, 2),
        (5, 2),
        (6, 3),
        (3_600_000, BUCKETS - 1),
        (3_600_001, BUCKETS),
    ] {
        let before = histogram.value();
        histogram.record(value);
        let after = histogram.value();
        let changed: Vec<_> = (0..=BUCKETS)
            .filter(|at| before.buckets[*at] != after.buckets[*at])
            .collect();
        assert_eq!(changed, [bucket], "value {value}");
    }
}

#[test]
fn quantiles_are_interpolated() {
    let mut value = HistogramValue::default();
    assert_eq!(value.quantile(0.5), None);
    assert_eq!(value.quantiles_text(), "No recorded values");
    value.buckets[5] = 100;
    assert_eq!(value.quantile(0.5), Some(37.5));
    assert_eq!(value.quantile(1.0), Some(50.0));
    assert!(
        value
            .quantiles_text()
            .starts_with("P0(nan,25) P25(nan,31.25) P50(nan,37.5) ")
    );
}

#[test]
fn a_text_says_what_was_last_set() {
    let registry = Registry::new();
    let version = registry.text("cluster_manager.cds.version_text");
    registry.text("cluster_manager.cds.version_text").set("v1");
    assert_eq!(&*version.value(), "v1");
    assert_eq!(registry.snapshot().texts.len(), 1);
    drop(version);
    assert!(registry.snapshot().texts.is_empty());
}
