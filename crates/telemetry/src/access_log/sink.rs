//! Where lines go. A worker appends to a buffer that is almost always its own; one thread per file collects the buffers
//! and writes. A file that does not keep up costs lines, which are counted, never requests.

use std::cell::Cell;
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use base::FieldError;

use crate::stats::{Counter, Registry};

/// A buffer this full wakes the writer (Envoy's `MIN_FLUSH_SIZE`).
const FLUSH_AT: usize = 64 * 1024;
/// A buffer this full takes no more lines until it has been written.
const LIMIT: usize = 4 * 1024 * 1024;
/// Buffers of one file. Threads beyond this many share.
const SHARDS: usize = 8;
/// The writer needs little.
const WRITER_STACK: usize = 128 * 1024;

/// What is written to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Target {
    File(PathBuf),
    Stdout,
    Stderr,
}

/// The open logs of a process. Cloning shares them; those who name the same path share the file.
#[derive(Clone)]
pub struct Sinks {
    inner: Arc<SinksInner>,
}

struct SinksInner {
    open: Mutex<HashMap<Target, Weak<Sink>>>,
    flush_interval: Duration,
    stats: Stats,
}

/// Envoy's `filesystem.*`, and how many lines were lost.
#[derive(Clone)]
struct Stats {
    write_completed: Counter,
    write_failed: Counter,
    flushed_by_timer: Counter,
    reopen_failed: Counter,
    dropped: Counter,
}

/// One open log. Its writer ends when the last user drops it.
pub(super) struct Sink {
    shared: Arc<Shared>,
}

struct Shared {
    target: Target,
    shards: [Shard; SHARDS],
    output: Mutex<Output>,
    wanted: Mutex<Wanted>,
    wake: Condvar,
    /// Spares the lock when the writer was already told.
    full: AtomicBool,
    stats: Stats,
}

/// On lines of its own, so that workers do not disturb each other.
#[repr(align(128))]
#[derive(Default)]
struct Shard(Mutex<Vec<u8>>);

enum Output {
    File(File),
    Stdout,
    Stderr,
}

/// What the writer is asked to do.
#[derive(Default)]
struct Wanted {
    flush: bool,
    reopen: bool,
    close: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Which shard the calling thread uses: each thread the next.
fn my_shard() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static MINE: Cell<Option<usize>> = const { Cell::new(None) };
    }
    MINE.with(|mine| {
        mine.get().unwrap_or_else(|| {
            let shard = NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS;
            mine.set(Some(shard));
            shard
        })
    })
}

impl Target {
    /// The target of a path; the names of the standard streams are those streams even where they cannot be opened again.
    pub(super) fn path(path: &str) -> Self {
        match path {
            "/dev/stdout" => Self::Stdout,
            "/dev/stderr" => Self::Stderr,
            path => Self::File(path.into()),
        }
    }

    fn open(&self) -> io::Result<Output> {
        Ok(match self {
            Self::File(path) => {
                Output::File(OpenOptions::new().append(true).create(true).open(path)?)
            }
            Self::Stdout => Output::Stdout,
            Self::Stderr => Output::Stderr,
        })
    }
}

impl Output {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::File(file) => file.write_all(bytes),
            Self::Stdout => {
                let mut stdout = io::stdout().lock();
                stdout.write_all(bytes)?;
                stdout.flush()
            }
            Self::Stderr => io::stderr().lock().write_all(bytes),
        }
    }
}

impl Sinks {
    /// No log is open yet. Lines stay in memory for at most `flush_interval` (`--file-flush-interval-msec`).
    #[must_use]
    pub fn new(stats: &Registry, flush_interval: Duration) -> Self {
        let stats = Stats {
            write_completed: stats.counter("filesystem.write_completed"),
            write_failed: stats.counter("filesystem.write_failed"),
            flushed_by_timer: stats.counter("filesystem.flushed_by_timer"),
            reopen_failed: stats.counter("filesystem.reopen_failed"),
            dropped: stats.counter("filesystem.write_dropped"),
        };
        Self {
            inner: Arc::new(SinksInner {
                open: Mutex::default(),
                flush_interval,
                stats,
            }),
        }
    }

    pub(super) fn open(&self, target: Target) -> Result<Arc<Sink>, FieldError> {
        let mut open = lock(&self.inner.open);
        if let Some(sink) = open.get(&target).and_then(Weak::upgrade) {
            return Ok(sink);
        }
        let sink = Sink::start(
            target.clone(),
            self.inner.flush_interval,
            self.inner.stats.clone(),
        )?;
        let sink = Arc::new(sink);
        open.retain(|_, sink| sink.strong_count() > 0);
        open.insert(target, Arc::downgrade(&sink));
        Ok(sink)
    }

    /// Opens every file anew, for log rotation (USR1, `POST /reopen_logs`). What was logged before goes to the old file.
    pub fn reopen(&self) {
        for sink in self.living() {
            sink.shared.want(|wanted| wanted.reopen = true);
        }
    }

    /// Writes all that is in memory and returns when it is written. For the end of the process.
    pub fn flush(&self) {
        for sink in self.living() {
            sink.shared.write();
        }
    }

    /// Collected first, so that a sink that ends here does so without the lock.
    fn living(&self) -> Vec<Arc<Sink>> {
        lock(&self.inner.open)
            .values()
            .filter_map(Weak::upgrade)
            .collect()
    }
}

impl Sink {
    fn start(target: Target, flush_interval: Duration, stats: Stats) -> Result<Self, FieldError> {
        let output = target.open().map_err(|error| match &target {
            Target::File(path) => FieldError::at(
                "path",
                format!("unable to open file '{}': {error}", path.display()),
            ),
            Target::Stdout | Target::Stderr => FieldError::new(error.to_string()),
        })?;
        let shared = Arc::new(Shared {
            target,
            shards: Default::default(),
            output: Mutex::new(output),
            wanted: Mutex::default(),
            wake: Condvar::new(),
            full: AtomicBool::new(false),
            stats,
        });
        thread::Builder::new()
            .name("access-log".to_owned())
            .stack_size(WRITER_STACK)
            .spawn({
                let shared = Arc::clone(&shared);
                move || shared.run(flush_interval)
            })
            .map_err(|error| {
                FieldError::new(format!("cannot start the access log's writer: {error}"))
            })?;
        Ok(Self { shared })
    }

    /// Appends what `line` writes, or counts it as lost if the buffer is full.
    pub(super) fn append(&self, line: impl FnOnce(&mut Vec<u8>)) {
        let Some(shard) = self.shared.shards.get(my_shard()) else {
            return;
        };
        let mut buffer = lock(&shard.0);
        if buffer.len() >= LIMIT {
            drop(buffer);
            self.shared.stats.dropped.inc();
            return;
        }
        line(&mut buffer);
        let full = buffer.len() >= FLUSH_AT;
        drop(buffer);
        if full && !self.shared.full.swap(true, Ordering::Relaxed) {
            self.shared.want(|wanted| wanted.flush = true);
        }
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.shared.want(|wanted| wanted.close = true);
    }
}

impl Shared {
    fn want(&self, change: impl FnOnce(&mut Wanted)) {
        change(&mut lock(&self.wanted));
        self.wake.notify_one();
    }

    /// The writer's life.
    fn run(&self, flush_interval: Duration) {
        loop {
            let idle = |wanted: &mut Wanted| !(wanted.flush || wanted.reopen || wanted.close);
            let (mut orders, waited) = self
                .wake
                .wait_timeout_while(lock(&self.wanted), flush_interval, idle)
                .unwrap_or_else(PoisonError::into_inner);
            let wanted = std::mem::take(&mut *orders);
            drop(orders);
            if waited.timed_out() {
                self.stats.flushed_by_timer.inc();
            }
            self.write();
            if wanted.reopen {
                self.reopen();
            }
            if wanted.close {
                return;
            }
        }
    }

    /// Writes what all threads have appended.
    fn write(&self) {
        // Held throughout, so that two writers do not swap the order of one thread's lines.
        let mut output = lock(&self.output);
        self.full.store(false, Ordering::Relaxed);
        for shard in &self.shards {
            let lines = std::mem::take(&mut *lock(&shard.0));
            if lines.is_empty() {
                continue;
            }
            match output.write_all(&lines) {
                Ok(()) => self.stats.write_completed.inc(),
                Err(_) => self.stats.write_failed.inc(),
            }
        }
    }

    fn reopen(&self) {
        // Locked first: whoever sees the new file also writes to it.
        let mut output = lock(&self.output);
        match self.target.open() {
            Ok(opened) => *output = opened,
            Err(error) => {
                self.stats.reopen_failed.inc();
                tracing::warn!(target: "telemetry::access_log", target = ?self.target, %error, "cannot reopen access log");
            }
        }
    }
}
