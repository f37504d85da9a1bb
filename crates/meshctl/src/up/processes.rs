//! The processes of a mesh: this same program, started anew for each part of it.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use futures_util::future;
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::child::ENDS_WITH_PARENT;

/// How long processes of one kind may take to end before they are killed.
const STOP_DEADLINE: Duration = Duration::from_secs(5);
/// How much of a log is shown when its process ended.
const LOG_LINES: usize = 15;

/// What a process is; they are stopped in this order, so that an application can still deregister through its
/// sidecar, and a sidecar with its pilot.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Application,
    Sidecar,
    Pilot,
}

struct Process {
    name: String,
    kind: Kind,
    child: Child,
    /// Held open as long as the process is to run (and apart from the child, whose `wait` would close it).
    _stdin: Option<ChildStdin>,
}

/// All processes of one mesh.
pub(super) struct Processes {
    program: PathBuf,
    logs: PathBuf,
    running: Vec<Process>,
}

impl Processes {
    /// None yet; they will write their logs into this folder.
    pub(super) fn new(logs: PathBuf) -> anyhow::Result<Self> {
        Ok(Self {
            program: std::env::current_exe().context("cannot find this program's own file")?,
            logs,
            running: Vec::new(),
        })
    }

    /// The folder of the logs.
    pub(super) fn logs(&self) -> &Path {
        &self.logs
    }

    /// Starts this program with a hidden command; what it prints goes to its log.
    pub(super) fn start(
        &mut self,
        name: &str,
        kind: Kind,
        command: &str,
        arguments: impl IntoIterator<Item = OsString>,
    ) -> anyhow::Result<()> {
        let log = self.log(name)?;
        self.spawn(name, kind, command, arguments, log.into())
    }

    /// The same, but its standard output comes here.
    pub(super) fn start_with_output(
        &mut self,
        name: &str,
        kind: Kind,
        command: &str,
        arguments: impl IntoIterator<Item = OsString>,
    ) -> anyhow::Result<ChildStdout> {
        self.spawn(name, kind, command, arguments, Stdio::piped())?;
        let process = self.running.last_mut();
        process
            .and_then(|process| process.child.stdout.take())
            .with_context(|| format!("{name} has no standard output"))
    }

    fn spawn(
        &mut self,
        name: &str,
        kind: Kind,
        command: &str,
        arguments: impl IntoIterator<Item = OsString>,
        output: Stdio,
    ) -> anyhow::Result<()> {
        let mut child = Command::new(&self.program)
            .arg(command)
            .args(arguments)
            .env(ENDS_WITH_PARENT, "1")
            .stdin(Stdio::piped())
            .stdout(output)
            .stderr(self.log(name)?)
            // Ctrl-C on the terminal is for `up` alone, which stops the others in their order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        self.running.push(Process {
            name: name.to_owned(),
            kind,
            _stdin: child.stdin.take(),
            child,
        });
        Ok(())
    }

    fn log(&self, name: &str) -> anyhow::Result<File> {
        let path = self.log_path(name);
        File::options()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("cannot write {}", path.display()))
    }

    fn log_path(&self, name: &str) -> PathBuf {
        self.logs.join(format!("{name}.log"))
    }

    /// Waits until a process ends, which none should, and says which and why.
    pub(super) async fn first_exit(&mut self) -> anyhow::Error {
        if self.running.is_empty() {
            return future::pending().await;
        }
        let waits = self
            .running
            .iter_mut()
            .map(|process| Box::pin(process.child.wait()));
        let (status, index, _) = future::select_all(waits).await;
        let name = self.running.swap_remove(index).name;
        let how = match status {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        };
        let log = self.log_path(&name);
        let tail = last_lines(&log);
        anyhow::anyhow!(
            "{name} ended ({how}); the last lines of {}:\n{tail}",
            log.display()
        )
    }

    /// Stops all of them.
    pub(super) async fn stop(mut self) {
        for kind in [Kind::Application, Kind::Sidecar, Kind::Pilot] {
            let (stopping, rest) = self
                .running
                .into_iter()
                .partition(|process| process.kind == kind);
            self.running = rest;
            stop(stopping).await;
        }
    }
}

async fn stop(mut processes: Vec<Process>) {
    let ids: Vec<String> = processes
        .iter()
        .filter_map(|process| process.child.id())
        .map(|id| id.to_string())
        .collect();
    if ids.is_empty() {
        return;
    }
    // The shell's kill: the standard library has no signal but KILL.
    let told = Command::new("sh")
        .args(["-c", "kill -TERM \"$@\" 2>/dev/null", "sh"])
        .args(&ids)
        .status()
        .await;
    if told.is_ok() {
        let waits = processes.iter_mut().map(|process| process.child.wait());
        // Who has not ended by then is killed below.
        let _ = tokio::time::timeout(STOP_DEADLINE, future::join_all(waits)).await;
    }
    for process in &mut processes {
        // One that has ended already cannot be killed, which is as good.
        let _ = process.child.kill().await;
    }
}

fn last_lines(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let start = lines.len().saturating_sub(LOG_LINES);
    lines.get(start..).unwrap_or_default().join("\n")
}
