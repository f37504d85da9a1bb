//! The `date` header, formatted once a second and thread.

use std::cell::RefCell;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

struct Cached {
    /// The text holds until then.
    until: Option<Instant>,
    text: [u8; 29],
}

thread_local! {
    static DATE: RefCell<Cached> = const { RefCell::new(Cached { until: None, text: [0; 29] }) };
}

/// Appends the date, as of `now`, in the form of RFC 9110 §5.6.7.
pub(super) fn put(out: &mut Vec<u8>, now: Instant) {
    DATE.with_borrow_mut(|cached| {
        if cached.until.is_none_or(|until| now >= until) {
            let since = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default();
            cached.text = format(since.as_secs());
            cached.until =
                Some(now + Duration::from_nanos(u64::from(1_000_000_000 - since.subsec_nanos())));
        }
        out.extend_from_slice(&cached.text);
    });
}

fn format(unix_seconds: u64) -> [u8; 29] {
    let text = chrono::DateTime::from_timestamp(unix_seconds as i64, 0)
        .unwrap_or_default()
        .format("%a, %d %b %Y %H:%M:%S GMT")
        .to_string();
    text.into_bytes().try_into().unwrap_or([b' '; 29])
}

#[cfg(test)]
mod tests {
    #[test]
    fn looks_as_the_rfc_says() {
        assert_eq!(
            &super::format(784_111_777),
            b"Sun, 06 Nov 1994 08:49:37 GMT"
        );
    }
}
