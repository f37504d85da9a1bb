//! Waiting for a condition, with a deadline.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Time between two looks at a condition.
const STEP: Duration = Duration::from_millis(20);

/// Looks until `condition` gives a value; an error that names `what` after `limit`.
pub fn until<T>(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> Option<T>,
) -> Result<T> {
    until_ok(what, limit, || {
        condition().ok_or_else(|| anyhow::anyhow!("not yet"))
    })
}

/// Tries until `attempt` succeeds; an error that names `what` and carries the last failure after `limit`.
pub fn until_ok<T>(
    what: &str,
    limit: Duration,
    mut attempt: impl FnMut() -> Result<T>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        let failure = match attempt() {
            Ok(value) => return Ok(value),
            Err(failure) => failure,
        };
        if Instant::now() >= deadline {
            bail!("{what}: not within {limit:?}: {failure:#}");
        }
        sleep(STEP);
    }
}
