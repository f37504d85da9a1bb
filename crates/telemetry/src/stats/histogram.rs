//! Distributions: Envoy's default buckets, and quantiles estimated from them.

use std::fmt::Write as _;

/// Envoy's default upper bounds (`HistogramSettingsImpl::defaultBuckets`), the first of which is 0.5.
const BOUNDS: [f64; BUCKETS] = [
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1000.0,
    2500.0,
    5000.0,
    10000.0,
    30000.0,
    60000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
];

/// The same, for whole numbers: a value belongs to the first bound that it does not exceed.
const WHOLE_BOUNDS: [u64; BUCKETS] = [
    0, 1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000, 60000, 300_000, 600_000,
    1_800_000, 3_600_000,
];

/// The quantiles that Envoy's text form shows, as (label, share of all).
const QUANTILES: [(&str, f64); 10] = [
    ("P0", 0.0),
    ("P25", 0.25),
    ("P50", 0.5),
    ("P75", 0.75),
    ("P90", 0.9),
    ("P95", 0.95),
    ("P99", 0.99),
    ("P99.5", 0.995),
    ("P99.9", 0.999),
    ("P100", 1.0),
];

/// How many bounded buckets there are; one more takes what exceeds the last bound.
pub const BUCKETS: usize = 19;

/// The upper bounds of the buckets, inclusive.
#[must_use]
pub fn bucket_bounds() -> &'static [f64; BUCKETS] {
    &BOUNDS
}

/// The bucket that counts this value; [`BUCKETS`] if it exceeds every bound.
#[inline]
pub(super) fn bucket_of(value: u64) -> usize {
    WHOLE_BOUNDS.partition_point(|bound| *bound < value)
}

/// What a histogram has seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HistogramValue {
    /// Observations per bucket, not cumulated; the last is beyond every bound.
    pub buckets: [u64; BUCKETS + 1],
    /// Sum of all observed values.
    pub sum: u64,
}

impl HistogramValue {
    /// How many values were observed.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Estimates the value below which the share `q` of the observations lies, taking them as spread evenly over
    /// their bucket. `None` if nothing was observed.
    #[must_use]
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let count = self.count();
        if count == 0 {
            return None;
        }
        let wanted = q.clamp(0.0, 1.0) * count as f64;
        let (mut below, mut lower) = (0.0, 0.0);
        for (bucket, upper) in self.buckets.iter().zip(BOUNDS) {
            let here = *bucket as f64;
            if here > 0.0 && below + here >= wanted {
                // What the first bucket holds are zeros.
                let low = if upper == BOUNDS[0] {
                    return Some(0.0);
                } else {
                    lower
                };
                return Some(low + (upper - low) * ((wanted - below) / here));
            }
            below += here;
            lower = upper;
        }
        Some(lower)
    }

    /// The quantiles as Envoy prints them, `P0(interval,cumulative) …`. The interval half is `nan`, which is what
    /// Envoy prints for an interval without observations: only the cumulated distribution is kept.
    #[must_use]
    pub fn quantiles_text(&self) -> String {
        if self.count() == 0 {
            return "No recorded values".to_owned();
        }
        let mut text = String::new();
        for (label, q) in QUANTILES {
            let value = self.quantile(q).unwrap_or(f64::NAN);
            let space = if text.is_empty() { "" } else { " " };
            // Writing to a String cannot fail.
            let _ = write!(text, "{space}{label}(nan,{})", rounded(value));
        }
        text
    }

    /// The supported quantiles in percent with their values, for the JSON form.
    #[must_use]
    pub fn quantiles(&self) -> Vec<(f64, Option<f64>)> {
        QUANTILES
            .iter()
            .map(|(_, q)| (rounded(q * 100.0), self.quantile(*q).map(rounded)))
            .collect()
    }
}

/// Three decimals are more than the buckets can tell.
fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}
