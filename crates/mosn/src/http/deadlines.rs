//! The time limits of one request, of which only the nearest needs a timer.

use std::time::Duration;

use tokio::time::Instant;

/// A limit that can pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Limit {
    /// The route's timeout: from the end of the request to the end of the answer.
    Global,
    /// From the end of the request, or the start of the try, to the head of the answer.
    PerTry,
    /// Nothing moved in this try.
    PerTryIdle,
    /// Nothing moved on the stream.
    StreamIdle,
    /// The request did not arrive in time.
    Request,
    /// The stream lasted too long.
    MaxStream,
}

/// All limits of a request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadlines {
    pub(super) started: Instant,
    pub(super) global: Option<Duration>,
    pub(super) per_try: Option<Duration>,
    pub(super) per_try_idle: Option<Duration>,
    pub(super) stream_idle: Option<Duration>,
    /// From the start to the end of the request.
    pub(super) request: Option<Duration>,
    pub(super) max_stream: Option<Duration>,
    try_started: Instant,
    last_move: Instant,
    request_done: Option<Instant>,
    responding: bool,
}

impl Deadlines {
    /// No limits at all.
    pub(super) fn new(started: Instant) -> Deadlines {
        Deadlines {
            started,
            global: None,
            per_try: None,
            per_try_idle: None,
            stream_idle: None,
            request: None,
            max_stream: None,
            try_started: started,
            last_move: started,
            request_done: None,
            responding: false,
        }
    }

    /// Something moved.
    pub(super) fn moved(&mut self, now: Instant) {
        self.last_move = now;
    }

    /// The request has been received, now or (without `now`) at the start.
    pub(super) fn request_done(&mut self, now: Option<Instant>) {
        self.request_done.get_or_insert(now.unwrap_or(self.started));
    }

    /// When the request had been received.
    pub(super) fn request_done_at(&self) -> Option<Instant> {
        self.request_done
    }

    /// A try begins.
    pub(super) fn start_try(&mut self, now: Instant) {
        self.try_started = now;
        self.responding = false;
    }

    /// The answer begins.
    pub(super) fn responding(&mut self) {
        self.responding = true;
    }

    /// What is left of the route's timeout.
    pub(super) fn global_left(&self, now: Instant) -> Option<Duration> {
        let since = self.request_done.unwrap_or(now);
        self.global
            .map(|limit| limit.saturating_sub(now.saturating_duration_since(since)))
    }

    /// The end of the route's timeout, once it runs.
    pub(super) fn global_end(&self) -> Option<Instant> {
        Some(self.request_done? + self.global?)
    }

    /// The next limit to pass.
    pub(super) fn next(&self) -> Option<(Instant, Limit)> {
        let mut next: Option<(Instant, Limit)> = None;
        let mut consider = |at: Option<Instant>, limit: Limit| {
            if let Some(at) = at
                && next.is_none_or(|(nearest, _)| at < nearest)
            {
                next = Some((at, limit));
            }
        };
        let after = |from: Instant, limit: Option<Duration>| limit.map(|limit| from + limit);
        match self.request_done {
            Some(done) => {
                consider(after(done, self.global), Limit::Global);
                if !self.responding {
                    consider(
                        after(done.max(self.try_started), self.per_try),
                        Limit::PerTry,
                    );
                }
            }
            None => consider(after(self.started, self.request), Limit::Request),
        }
        consider(
            after(self.last_move.max(self.try_started), self.per_try_idle),
            Limit::PerTryIdle,
        );
        consider(after(self.last_move, self.stream_idle), Limit::StreamIdle);
        consider(after(self.started, self.max_stream), Limit::MaxStream);
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_nearest_limit_counts() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut limits = Deadlines {
            global: Some(Duration::from_secs(10)),
            per_try: Some(Duration::from_secs(3)),
            stream_idle: Some(Duration::from_secs(5)),
            request: Some(Duration::from_secs(4)),
            ..Deadlines::new(start)
        };
        assert_eq!(limits.next(), Some((after(4), Limit::Request)));
        limits.request_done(Some(after(3)));
        limits.moved(after(3));
        assert_eq!(limits.next(), Some((after(6), Limit::PerTry)));
        limits.responding();
        assert_eq!(limits.next(), Some((after(8), Limit::StreamIdle)));
        limits.moved(after(12));
        assert_eq!(limits.next(), Some((after(13), Limit::Global)));
    }
}
