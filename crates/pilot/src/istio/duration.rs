//! Durations as Istio reads them: Go's `1h30m`, `100ms`, `0.5s`.

use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Parses a Go duration. Negative ones are refused: no field of Istio's takes one.
pub fn parse(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is no duration such as 1h, 1m, 1s or 1ms");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest.is_empty() {
        return Err(wrong());
    }
    let mut total = 0f64;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(wrong)?;
        let (number, tail) = rest.split_at(digits);
        let number: f64 = number.parse().map_err(|_| wrong())?;
        let unit = tail
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit);
        total += number
            * match unit {
                "ns" => 1e-9,
                "us" | "µs" | "μs" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                _ => return Err(wrong()),
            };
        rest = tail;
    }
    // Nanoseconds are what floating point loses first: round to them, so that 0.3s is 300 ms.
    let nanos = (total * 1e9).round();
    if nanos > i64::MAX as f64 {
        return Err(format!("`{text}` is too long"));
    }
    Ok(Duration::from_nanos(nanos as u64))
}

/// A duration of a configuration file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ConfigDuration(pub Duration);

impl<'de> Deserialize<'de> for ConfigDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse(&text).map(ConfigDuration).map_err(D::Error::custom)
    }
}

impl Serialize for ConfigDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format!("{}s", self.0.as_secs_f64()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_go_durations() {
        for (text, expected) in [
            ("0", Some(0)),
            ("5s", Some(5_000)),
            ("0.3s", Some(300)),
            ("100ms", Some(100)),
            ("1h1m1s", Some(3_661_000)),
            (".5m", Some(30_000)),
            ("-1s", None),
            ("5", None),
            ("", None),
            ("5 s", None),
            ("1d", None),
            ("9999999999h", None),
        ] {
            assert_eq!(
                parse(text).ok(),
                expected.map(Duration::from_millis),
                "{text}"
            );
        }
    }
}
