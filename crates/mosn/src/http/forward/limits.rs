//! How long a request may take: what the route says, unless an internal client wishes otherwise.

use std::time::Duration;

use super::super::call::Call;
use super::super::deadlines::Deadlines;
use crate::route::{Forward, RequestView};

/// The time limits of a request: those of the route, unless an internal client wishes others.
pub(super) fn deadlines(call: &Call<'_>, forward: &Forward) -> Deadlines {
    let timeouts = &call.config().timeouts;
    let millis = |ms: u64| Some(Duration::from_millis(ms)).filter(|d| !d.is_zero());
    let own_or = |own: Option<Duration>, default: Option<Duration>| match own {
        Some(limit) => Some(limit).filter(|d| !d.is_zero()),
        None => default,
    };
    let wishes = call.prepared.as_ref().map(|p| &p.wishes);
    let mut global = forward.timeout;
    if let Some(grpc) = forward.grpc_timeout
        && let Some(asked) = grpc_timeout(call)
    {
        let capped = if grpc.max.is_zero() {
            asked
        } else {
            asked.unwrap_or(grpc.max).min(grpc.max).into()
        };
        global = capped
            .map(|limit| limit.saturating_sub(grpc.offset))
            .filter(|d| !d.is_zero());
    }
    let mut per_try = forward
        .retry
        .as_ref()
        .and_then(|policy| policy.per_try_timeout);
    if let Some(wishes) = wishes {
        let respected = wishes
            .expected_timeout_ms
            .filter(|_| call.config().respect_expected_timeout);
        if let Some(ms) = respected.or(wishes.timeout_ms) {
            global = millis(ms);
        }
        if let Some(ms) = wishes.per_try_timeout_ms {
            per_try = millis(ms);
        }
    }
    // A try that may last longer than the request has no limit of its own.
    per_try = per_try.filter(|limit| global.is_none_or(|global| *limit < global));
    let mut deadlines = Deadlines::new(call.record.started);
    deadlines.global = global;
    deadlines.per_try = per_try;
    deadlines.per_try_idle = forward
        .retry
        .as_ref()
        .and_then(|policy| policy.per_try_idle_timeout);
    deadlines.stream_idle = own_or(forward.idle_timeout, timeouts.stream_idle);
    deadlines.request = timeouts.request;
    deadlines.max_stream = own_or(forward.max_stream_duration, timeouts.max_stream);
    deadlines
}

/// `None` if this is no gRPC request; `Some(None)` if it names no limit.
fn grpc_timeout(call: &Call<'_>) -> Option<Option<Duration>> {
    let view = call.view();
    let content_type = view.header("content-type")?;
    if !content_type.starts_with(b"application/grpc") {
        return None;
    }
    let parse = |text: &str| {
        let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
        let value: u64 = digits.parse().ok()?;
        Some(match unit {
            "H" => Duration::from_secs(value.saturating_mul(3600)),
            "M" => Duration::from_secs(value.saturating_mul(60)),
            "S" => Duration::from_secs(value),
            "m" => Duration::from_millis(value),
            "u" => Duration::from_micros(value),
            "n" => Duration::from_nanos(value),
            _ => return None,
        })
    };
    let header = view.header("grpc-timeout");
    Some(header.and_then(|value| parse(std::str::from_utf8(&value).ok()?)))
}
