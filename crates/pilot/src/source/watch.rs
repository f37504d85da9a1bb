//! Tells when something in the folder may have changed: by the kernel's events, and by looking every second for file
//! systems that have none.

use std::path::Path;
use std::time::Duration;

use notify::{RecursiveMode, Watcher};
use tokio::sync::mpsc;

/// How often files are looked at without any event.
const RESTAT: Duration = Duration::from_secs(1);

/// A channel that yields after each event, and every second. Bursts of events are one.
pub fn watch(folder: &Path) -> mpsc::Receiver<()> {
    let (sender, receiver) = mpsc::channel(1);
    let events = sender.clone();
    // A full channel holds a signal already.
    let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Reading the folder is an event too: a signal for it would be answered by reading again, without end.
        if !event.is_ok_and(|event| event.kind.is_access()) {
            let _ = events.try_send(());
        }
    });
    let watcher = watcher.and_then(|mut watcher| {
        watcher.watch(folder, RecursiveMode::Recursive)?;
        Ok(watcher)
    });
    if let Err(error) = &watcher {
        tracing::warn!(folder = %folder.display(), %error, "no file events, looking every second only");
    }
    tokio::spawn(async move {
        let _watcher = watcher;
        loop {
            tokio::time::sleep(RESTAT).await;
            if let Err(mpsc::error::TrySendError::Closed(())) = sender.try_send(()) {
                return;
            }
        }
    });
    receiver
}
