//! The audit log: a line of JSON for whatever was changed, watched or refused. Whoever asks never waits for it: when the disk is
//! slower than the requests, lines are lost, and the log says how many.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use chrono::{SecondsFormat, Utc};
use serde::Serialize;

/// Lines that may wait for the disk.
const QUEUE: usize = 8192;
/// Objects that a line names; the others are counted.
const OBJECTS: usize = 100;
/// Between two complaints that the log cannot be written.
const COMPLAIN: Duration = Duration::from_secs(60);

/// Where the log goes and how large it may become.
#[derive(Clone, Debug)]
pub struct AuditOptions {
    /// The file. Older ones are `FILE.1`, `FILE.2`, …
    pub file: PathBuf,
    /// Bytes of a file before the next one is begun.
    pub max_bytes: u64,
    /// Older files that are kept.
    pub keep: u32,
}

/// A line of the log.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Record {
    pub(crate) time: String,
    /// Empty when it is not known.
    pub(crate) identity: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) peer: Option<String>,
    pub(crate) action: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) namespaces: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) objects: Vec<String>,
    /// Objects, also those that are not named.
    pub(crate) count: usize,
    pub(crate) result: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) message: Option<String>,
}

pub(crate) fn now() -> String {
    Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true)
}

impl Record {
    /// Names objects up to a bound.
    pub(crate) fn name(&mut self, objects: impl Iterator<Item = String>) {
        for object in objects {
            self.count += 1;
            if self.objects.len() < OBJECTS {
                self.objects.push(object);
            }
        }
    }
}

/// A handle on the log; clones write the same one, which ends with the last of them.
#[derive(Clone, Debug, Default)]
pub struct Audit(Option<Arc<Log>>);

#[derive(Debug)]
struct Log {
    records: SyncSender<Record>,
    lost: Arc<AtomicU64>,
}

impl Audit {
    /// No log.
    pub fn none() -> Audit {
        Audit(None)
    }

    /// Opens the log and goes on behind what is there.
    pub fn open(options: AuditOptions) -> io::Result<Audit> {
        let open = Open::at(&options.file)?;
        let lost = Arc::new(AtomicU64::new(0));
        let (records, received) = sync_channel(QUEUE);
        let writer = Writer {
            received,
            lost: lost.clone(),
            options,
            open: Some(open),
            complained: None,
        };
        std::thread::Builder::new()
            .name("registry-audit".into())
            .spawn(move || writer.run())?;
        Ok(Audit(Some(Arc::new(Log { records, lost }))))
    }

    pub(crate) fn is_on(&self) -> bool {
        self.0.is_some()
    }

    pub(crate) fn write(&self, record: Record) {
        if let Some(log) = &self.0
            && log.records.try_send(record).is_err()
        {
            log.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

struct Open {
    file: BufWriter<File>,
    bytes: u64,
}

impl Open {
    fn at(path: &Path) -> io::Result<Open> {
        let mut options = OpenOptions::new();
        // What it tells is nobody's business but the administrator's.
        options.create(true).append(true).mode(0o600);
        let file = options.open(path)?;
        let bytes = file.metadata()?.len();
        Ok(Open {
            file: BufWriter::new(file),
            bytes,
        })
    }
}

struct Writer {
    received: Receiver<Record>,
    lost: Arc<AtomicU64>,
    options: AuditOptions,
    open: Option<Open>,
    complained: Option<Instant>,
}

impl Writer {
    fn run(mut self) {
        while let Ok(first) = self.received.recv() {
            let mut next = Some(first);
            while let Some(record) = next.take() {
                self.record(&record);
                next = self.received.try_recv().ok();
            }
            let lost = self.lost.swap(0, Ordering::Relaxed);
            if lost > 0 {
                let line = serde_json::json!({
                    "time": now(), "action": "lost", "count": lost, "result": "failed",
                });
                if self.line(&line).is_err() {
                    self.lost.fetch_add(lost, Ordering::Relaxed);
                }
            }
            let flushed = self.open.as_mut().map_or(Ok(()), |open| open.file.flush());
            if let Err(error) = flushed {
                self.complain(&error);
            }
        }
    }

    fn record(&mut self, record: &Record) {
        if let Err(error) = self.line(record) {
            self.lost.fetch_add(1, Ordering::Relaxed);
            self.complain(&error);
        }
    }

    fn line(&mut self, line: &impl Serialize) -> io::Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        let bytes = text.len() as u64;
        let is_full = |open: &Open| open.bytes > 0 && open.bytes + bytes > self.options.max_bytes;
        if self.open.as_ref().is_some_and(is_full)
            && let Some(mut full) = self.open.take()
        {
            full.file.flush()?;
            self.rotate()?;
        }
        let open = match &mut self.open {
            Some(open) => open,
            none => none.insert(Open::at(&self.options.file)?),
        };
        open.file.write_all(&text)?;
        open.bytes += bytes;
        Ok(())
    }

    fn rotate(&self) -> io::Result<()> {
        let file = &self.options.file;
        if self.options.keep == 0 {
            return std::fs::remove_file(file);
        }
        let older = |number: u32| {
            let mut name = file.clone().into_os_string();
            name.push(format!(".{number}"));
            PathBuf::from(name)
        };
        for number in (1..self.options.keep).rev() {
            let from = older(number);
            if from.exists() {
                std::fs::rename(from, older(number + 1))?;
            }
        }
        std::fs::rename(file, older(1))
    }

    fn complain(&mut self, error: &io::Error) {
        // The next line opens the file anew.
        self.open = None;
        let now = Instant::now();
        if self.complained.is_none_or(|said| now - said >= COMPLAIN) {
            self.complained = Some(now);
            tracing::error!(file = %self.options.file.display(), %error, "the audit log cannot be written");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_bounded_in_size_and_number() -> io::Result<()> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("audit.log");
        let options = AuditOptions {
            file: file.clone(),
            max_bytes: 1000,
            keep: 2,
        };
        let (send, received) = sync_channel(1000);
        let writer = Writer {
            received,
            lost: Arc::new(AtomicU64::new(3)),
            options,
            open: None,
            complained: None,
        };
        for number in 0..100 {
            let mut record = Record {
                time: now(),
                identity: "token:a".to_owned(),
                peer: None,
                action: "register",
                namespaces: vec!["shop".to_owned()],
                objects: Vec::new(),
                count: 0,
                result: "ok",
                message: None,
            };
            record.name([format!("bolt/s {number}")].into_iter());
            send.send(record).expect("room");
        }
        drop(send);
        writer.run();
        let mut lines = Vec::new();
        for name in ["audit.log.2", "audit.log.1", "audit.log"] {
            let text = std::fs::read_to_string(folder.path().join(name))?;
            assert!(text.len() <= 1000);
            for line in text.lines() {
                lines.push(serde_json::from_str::<serde_json::Value>(line)?);
            }
        }
        assert_eq!(std::fs::read_dir(folder.path())?.count(), 3);
        let lost = lines.pop().expect("a line");
        assert_eq!(
            (&lost["action"], &lost["count"]),
            (&"lost".into(), &3.into())
        );
        let last = lines.pop().expect("a line");
        assert_eq!(last["objects"][0], "bolt/s 99");
        Ok(())
    }
}
