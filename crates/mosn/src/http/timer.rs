//! One timer for a whole connection: deadlines move with every request, the runtime's timer only when it must.

use std::future::Future;
use std::pin::Pin;
use std::task::Context;
use std::time::Duration;

use tokio::time::{Instant, Sleep};

/// A deadline that is cheap to put off.
///
/// The runtime's timer is armed for some moment not later than the deadline. Putting the deadline off costs nothing: the
/// timer fires early once and is armed again.
pub(super) struct Timer {
    sleep: Pin<Box<Sleep>>,
    armed: Instant,
    registered: bool,
}

/// Far enough to mean never; the runtime's timer refuses moments that are centuries away.
const NEVER: Duration = Duration::from_secs(30 * 24 * 3600);

impl Timer {
    /// A timer that is not armed.
    pub(super) fn new(now: Instant) -> Timer {
        let armed = now + NEVER;
        Timer {
            sleep: Box::pin(tokio::time::sleep_until(armed)),
            armed,
            registered: false,
        }
    }

    /// Whether `deadline` has passed; if not, the task is woken at some time not later than that.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, deadline: Option<Instant>) -> bool {
        let Some(deadline) = deadline else {
            return false;
        };
        if deadline < self.armed {
            self.arm(deadline);
        }
        if self.registered && !self.sleep.is_elapsed() {
            return false;
        }
        while self.sleep.as_mut().poll(cx).is_ready() {
            if Instant::now() >= deadline {
                return true;
            }
            self.arm(deadline);
        }
        self.registered = true;
        false
    }

    fn arm(&mut self, deadline: Instant) {
        self.sleep.as_mut().reset(deadline);
        self.armed = deadline;
        self.registered = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn wait(timer: &mut Timer, deadline: Instant) {
        std::future::poll_fn(|cx| match timer.poll(cx, Some(deadline)) {
            true => std::task::Poll::Ready(()),
            false => std::task::Poll::Pending,
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn fires_at_the_deadline_that_was_last_asked_for() {
        let start = Instant::now();
        let mut timer = Timer::new(start);
        let seconds = Duration::from_secs;
        // Armed for 10 s, but nobody waits: then put off to 20 s, then brought forward to 15 s.
        std::future::poll_fn(|cx| {
            for deadline in [10, 20] {
                assert!(!timer.poll(cx, Some(start + seconds(deadline))));
            }
            std::task::Poll::Ready(())
        })
        .await;
        wait(&mut timer, start + seconds(15)).await;
        assert_eq!(start.elapsed().as_secs(), 15);
        wait(&mut timer, start + seconds(40)).await;
        assert_eq!(start.elapsed().as_secs(), 40);
    }
}
