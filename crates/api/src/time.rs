//! Durations and times: their JSON text, and conversion to `std`'s types.

use std::time::Duration;

use base::FieldError;

/// Largest absolute value of a protobuf duration, in seconds (10,000 years).
const MAX_SECONDS: i64 = 315_576_000_000;
/// 9999-12-31T23:59:59Z and 0001-01-01T00:00:00Z, the range of a protobuf timestamp.
const TIMESTAMP_RANGE: std::ops::RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;
const SECONDS_PER_DAY: i64 = 86_400;

/// A configured duration that may not be negative.
pub fn duration(value: &prost_types::Duration) -> Result<Duration, FieldError> {
    match (u64::try_from(value.seconds), u32::try_from(value.nanos)) {
        (Ok(seconds), Ok(nanos)) if nanos < 1_000_000_000 && value.seconds <= MAX_SECONDS => {
            Ok(Duration::new(seconds, nanos))
        }
        _ => Err(FieldError::new(format!(
            "expected a duration not below 0, found {}",
            format_duration(value.seconds, value.nanos)
        ))),
    }
}

/// The protobuf form of a duration; longer than protobuf can hold becomes the longest.
pub fn to_proto(value: Duration) -> prost_types::Duration {
    match i64::try_from(value.as_secs()) {
        Ok(seconds) if seconds < MAX_SECONDS => prost_types::Duration {
            seconds,
            nanos: value.subsec_nanos() as i32,
        },
        _ => prost_types::Duration {
            seconds: MAX_SECONDS,
            nanos: 0,
        },
    }
}

/// Seconds and nanoseconds of a text such as `1.5s`.
pub(crate) fn parse_duration(text: &str) -> Option<(i64, i32)> {
    let number = text.strip_suffix('s')?;
    let (negative, number) = match number.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, number),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let seconds = if whole.is_empty() { 0 } else { digits(whole)? };
    let nanos = nanos(fraction)?;
    if seconds > MAX_SECONDS || (seconds == MAX_SECONDS && nanos > 0) {
        return None;
    }
    Some(if negative {
        (-seconds, -nanos)
    } else {
        (seconds, nanos)
    })
}

/// The text of a duration, with 0, 3, 6 or 9 digits after the point.
pub(crate) fn format_duration(seconds: i64, nanos: i32) -> String {
    let sign = if seconds < 0 || nanos < 0 { "-" } else { "" };
    format!(
        "{sign}{}{}s",
        seconds.unsigned_abs(),
        fraction(nanos.unsigned_abs())
    )
}

/// Seconds since 1970 and nanoseconds of an RFC 3339 time.
pub(crate) fn parse_timestamp(text: &str) -> Option<(i64, i32)> {
    let (date, rest) = text.split_once(['T', 't'])?;
    let (year, month, day) = three(date, '-', [4, 2, 2])?;
    let zone_at = rest.find(['Z', 'z', '+', '-'])?;
    let (clock, zone) = rest.split_at_checked(zone_at)?;
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, ""));
    let (hour, minute, second) = three(clock, ':', [2, 2, 2])?;
    let offset = match zone {
        "Z" | "z" => 0,
        _ => {
            let (hours, minutes) = zone.get(1..)?.split_once(':')?;
            if hours.len() != 2 || minutes.len() != 2 {
                return None;
            }
            let (hours, minutes) = (digits(hours)?, digits(minutes)?);
            let seconds = hours * 3600 + minutes * 60;
            if hours > 23 || minutes > 59 {
                return None;
            }
            if zone.starts_with('-') {
                -seconds
            } else {
                seconds
            }
        }
    };
    if !(1..=12).contains(&month) || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let days = days_from_date(year, month, day);
    if day < 1 || date_from_days(days) != (year, month, day) {
        return None;
    }
    let seconds = days * SECONDS_PER_DAY + hour * 3600 + minute * 60 + second - offset;
    TIMESTAMP_RANGE
        .contains(&seconds)
        .then_some((seconds, nanos(fraction)?))
}

/// The RFC 3339 text of a time in UTC, with 0, 3, 6 or 9 digits after the point.
pub(crate) fn format_timestamp(seconds: i64, nanos: i32) -> String {
    let seconds = seconds.clamp(*TIMESTAMP_RANGE.start(), *TIMESTAMP_RANGE.end());
    let (year, month, day) = date_from_days(seconds.div_euclid(SECONDS_PER_DAY));
    let second = seconds.rem_euclid(SECONDS_PER_DAY);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}{}Z",
        second / 3600,
        second / 60 % 60,
        second % 60,
        fraction(nanos.unsigned_abs())
    )
}

fn digits(text: &str) -> Option<i64> {
    let plain =
        !text.is_empty() && text.len() <= 18 && text.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten()
}

fn nanos(fraction: &str) -> Option<i32> {
    if fraction.is_empty() {
        return Some(0);
    }
    if fraction.len() > 9 {
        return None;
    }
    i32::try_from(digits(fraction)? * 10i64.pow(9 - fraction.len() as u32)).ok()
}

fn fraction(nanos: u32) -> String {
    if nanos == 0 {
        String::new()
    } else if nanos.is_multiple_of(1_000_000) {
        format!(".{:03}", nanos / 1_000_000)
    } else if nanos.is_multiple_of(1000) {
        format!(".{:06}", nanos / 1000)
    } else {
        format!(".{nanos:09}")
    }
}

fn three(text: &str, separator: char, widths: [usize; 3]) -> Option<(i64, i64, i64)> {
    let mut numbers = [0; 3];
    let mut parts = text.split(separator);
    for (number, width) in numbers.iter_mut().zip(widths) {
        let part = parts.next().filter(|part| part.len() == width)?;
        *number = digits(part)?;
    }
    let [first, second, third] = numbers;
    parts.next().is_none().then_some((first, second, third))
}

/// Days since 1970-01-01 in the proleptic Gregorian calendar; years start in March, so that the leap day is last.
fn days_from_date(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// The inverse of [`days_from_date`].
fn date_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_and_write() {
        for (text, expected, canonical) in [
            ("1.5s", Some((1, 500_000_000)), "1.500s"),
            ("0.000001s", Some((0, 1000)), "0.000001s"),
            ("-0.5s", Some((0, -500_000_000)), "-0.500s"),
            (".5s", Some((0, 500_000_000)), "0.500s"),
            ("15s", Some((15, 0)), "15s"),
            ("315576000000s", Some((MAX_SECONDS, 0)), "315576000000s"),
            ("315576000000.1s", None, ""),
            ("15", None, ""),
            ("15ms", None, ""),
            ("s", None, ""),
            ("+1s", None, ""),
            ("1.0000000001s", None, ""),
        ] {
            assert_eq!(parse_duration(text), expected, "{text}");
            if let Some((seconds, nanos)) = expected {
                assert_eq!(format_duration(seconds, nanos), canonical, "{text}");
            }
        }
    }

    #[test]
    fn timestamps_read_and_write() {
        for (text, expected, canonical) in [
            ("1970-01-01T00:00:00Z", Some((0, 0)), "1970-01-01T00:00:00Z"),
            (
                "2000-02-29T23:59:59.25Z",
                Some((951_868_799, 250_000_000)),
                "2000-02-29T23:59:59.250Z",
            ),
            (
                "1969-12-31T16:00:00-08:00",
                Some((0, 0)),
                "1970-01-01T00:00:00Z",
            ),
            (
                "0001-01-01T00:00:00Z",
                Some((-62_135_596_800, 0)),
                "0001-01-01T00:00:00Z",
            ),
            ("1900-02-29T00:00:00Z", None, ""),
            ("2000-13-01T00:00:00Z", None, ""),
            ("2000-01-01 00:00:00Z", None, ""),
            ("2000-01-01T00:00:00", None, ""),
        ] {
            assert_eq!(parse_timestamp(text), expected, "{text}");
            if let Some((seconds, nanos)) = expected {
                assert_eq!(format_timestamp(seconds, nanos), canonical, "{text}");
            }
        }
    }
}
