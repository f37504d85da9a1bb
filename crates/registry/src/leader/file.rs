//! A lock on a file that all hubs see: the system takes it from a process that ends, however it ends.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::watch;

use super::tell;
use crate::sync::Role;

/// Between two looks at the lock.
const INTERVAL: Duration = Duration::from_millis(500);
/// The file has one line.
const LINE_BYTES: u64 = 256;

/// What one look at the lock tells.
enum Look {
    Mine,
    Others(String),
    Lost(String),
}

/// Asks for the lock again and again, and keeps it.
pub(super) async fn run(path: PathBuf, role: watch::Sender<Role>) {
    let mut held: Option<File> = None;
    let mut interval = tokio::time::interval(INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while !role.is_closed() {
        interval.tick().await;
        let file = path.clone();
        let looked = tokio::task::spawn_blocking(move || look(&file, held));
        let Ok((look, file)) = looked.await else {
            return;
        };
        held = file;
        match look {
            Look::Mine => tell(
                &role,
                Role::Leader,
                "the lease file is locked by this process",
            ),
            Look::Others(holder) => tell(&role, Role::Follower, &holder),
            Look::Lost(why) => tell(&role, Role::Unknown, &format!("{}: {why}", path.display())),
        }
    }
}

fn look(path: &Path, held: Option<File>) -> (Look, Option<File>) {
    match held {
        Some(file) if is_at(&file, path) => (Look::Mine, Some(file)),
        // Somebody has put another file in its place, and another hub may have locked that.
        Some(_) => (
            Look::Lost("is no longer the file that was locked".to_owned()),
            None,
        ),
        None => match lock(path) {
            Ok(Ok(file)) => (Look::Mine, Some(file)),
            Ok(Err(holder)) => (Look::Others(holder), None),
            Err(error) => (Look::Lost(error.to_string()), None),
        },
    }
}

fn is_at(file: &File, path: &Path) -> bool {
    let same = || -> io::Result<bool> {
        let (file, path) = (file.metadata()?, std::fs::metadata(path)?);
        Ok(file.dev() == path.dev() && file.ino() == path.ino())
    };
    same().unwrap_or(false)
}

/// Locks the file and writes who did; or who has done so.
fn lock(path: &Path) -> io::Result<Result<File, String>> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let mut options = OpenOptions::new();
    let mut file = options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut line = String::new();
            // It is only for people.
            let _ = file.take(LINE_BYTES).read_to_string(&mut line);
            return Ok(Err(format!("{} does", line.trim())));
        }
        Err(TryLockError::Error(error)) => return Err(error),
    }
    let mut line = String::new();
    let _ = Read::by_ref(&mut file)
        .take(LINE_BYTES)
        .read_to_string(&mut line);
    let term: u64 = line
        .split_whitespace()
        .last()
        .and_then(|word| word.parse().ok())
        .unwrap_or(0);
    file.seek(SeekFrom::Start(0))?;
    file.set_len(0)?;
    writeln!(
        file,
        "process {} in term {}",
        std::process::id(),
        term.saturating_add(1)
    )?;
    Ok(Ok(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_leads_and_another_takes_over() -> io::Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("leases/sync");
        let start = || {
            let (role, told) = watch::channel(Role::Unknown);
            (tokio::spawn(run(path.clone(), role)), told)
        };
        let limit = Duration::from_secs(20);
        let (first, mut first_role) = start();
        let led = first_role.wait_for(|role| *role == Role::Leader);
        assert!(tokio::time::timeout(limit, led).await.is_ok());
        let (_second, mut second_role) = start();
        let followed = second_role.wait_for(|role| *role == Role::Follower);
        assert!(tokio::time::timeout(limit, followed).await.is_ok());
        assert_eq!(*first_role.borrow(), Role::Leader);
        first.abort();
        let led = second_role.wait_for(|role| *role == Role::Leader);
        assert!(tokio::time::timeout(limit, led).await.is_ok());
        assert!(std::fs::read_to_string(&path)?.ends_with("in term 2\n"));
        // A file that was put in its place is another lease.
        std::fs::remove_file(&path)?;
        let lost = second_role.wait_for(|role| *role == Role::Unknown);
        assert!(tokio::time::timeout(limit, lost).await.is_ok());
        Ok(())
    }
}
