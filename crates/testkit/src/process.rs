//! A program that was started for a test: its output goes to a file, it ends with the value that holds it, and the
//! end of its output is then printed for whoever reads why a test failed.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::wait;

/// Lines of output that are shown of each program in the end.
const TAIL_LINES: usize = 40;

/// A running program; killed when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    conversation: Option<Conversation>,
}

#[derive(Debug)]
struct Conversation {
    stdin: ChildStdin,
    lines: Receiver<String>,
}

impl Process {
    /// Starts a program whose output goes to `folder/name.log`.
    pub fn start(name: &str, command: &mut Command, folder: &Path) -> Result<Process> {
        let log = folder.join(format!("{name}.log"));
        let file = File::create(&log).with_context(|| format!("{}", log.display()))?;
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file);
        Self::spawn(name, command, log)
    }

    /// Starts a program that is spoken to in lines over stdin and stdout; its stderr goes to `folder/name.log`.
    pub fn converse(name: &str, command: &mut Command, folder: &Path) -> Result<Process> {
        let log = folder.join(format!("{name}.log"));
        let file = File::create(&log).with_context(|| format!("{}", log.display()))?;
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(file);
        let mut process = Self::spawn(name, command, log)?;
        let stdin = process.child.stdin.take().context("no stdin")?;
        let stdout = process.child.stdout.take().context("no stdout")?;
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        process.conversation = Some(Conversation { stdin, lines });
        Ok(process)
    }

    fn spawn(name: &str, command: &mut Command, log: PathBuf) -> Result<Process> {
        let child = command
            .spawn()
            .with_context(|| format!("{name}: {command:?}"))?;
        Ok(Process {
            name: name.to_owned(),
            child,
            log,
            conversation: None,
        })
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The name it was started under.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Sends one line to a program that was started with [`Process::converse`].
    pub fn say(&mut self, line: &str) -> Result<()> {
        let conversation = self
            .conversation
            .as_mut()
            .context("started without a conversation")?;
        writeln!(conversation.stdin, "{line}")
            .and_then(|()| conversation.stdin.flush())
            .with_context(|| format!("{} no longer listens", self.name))
    }

    /// The next line that the program says; an error after `limit` or when it has ended.
    pub fn hear(&mut self, limit: Duration) -> Result<String> {
        let conversation = self
            .conversation
            .as_ref()
            .context("started without a conversation")?;
        match conversation.lines.recv_timeout(limit) {
            Ok(line) => Ok(line),
            Err(RecvTimeoutError::Timeout) => bail!("{} said nothing for {limit:?}", self.name),
            Err(RecvTimeoutError::Disconnected) => {
                bail!("{} has ended:\n{}", self.name, self.tail())
            }
        }
    }

    /// What the program answers to a line.
    pub fn ask(&mut self, line: &str, limit: Duration) -> Result<String> {
        self.say(line)?;
        self.hear(limit).with_context(|| line.to_owned())
    }

    /// Has the program do something; an error if it says that it is not done.
    pub fn tell(&mut self, line: &str, limit: Duration) -> Result<()> {
        let answer = self.ask(line, limit)?;
        ensure!(answer == "done", "{line}: {answer}");
        Ok(())
    }

    /// Asks until the answer is this.
    pub fn ask_until(&mut self, line: &str, expected: &str, limit: Duration) -> Result<()> {
        wait::until_ok(line, limit, || {
            let answer = self.ask(line, limit)?;
            ensure!(answer == expected, "{answer}, not {expected}");
            Ok(())
        })
    }

    /// An error with the end of its output when the program no longer runs.
    pub fn check(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{} has ended, {status}:\n{}", self.name, self.tail()),
        }
    }

    /// Ends it at once, as a crash would (SIGKILL), and waits for its end.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Sends a signal by its name without `SIG`, for example `TERM`.
    pub fn signal(&self, name: &str) -> Result<()> {
        let script = format!("kill -{name} {}", self.id());
        let status = Command::new("sh").args(["-c", &script]).status()?;
        if !status.success() {
            bail!("{}: {script}: {status}", self.name);
        }
        Ok(())
    }

    /// Asks it to end (SIGTERM) and waits for its end.
    pub fn terminate(&mut self, limit: Duration) -> Result<ExitStatus> {
        self.signal("TERM")?;
        let what = format!("the end of {}", self.name);
        let child = &mut self.child;
        wait::until_ok(&what, limit, || child.try_wait()?.context("still runs"))
    }

    /// What it printed so far.
    pub fn output(&self) -> String {
        fs::read(&self.log)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    fn tail(&self) -> String {
        let output = self.output();
        let lines: Vec<&str> = output.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.kill();
        // The test runner shows this only for tests that fail.
        eprintln!("--- the end of {}'s output ---\n{}", self.name, self.tail());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conversation_goes_both_ways_and_the_program_ends_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let mut cat = Process::converse("cat", &mut Command::new("cat"), folder.path()).unwrap();
        cat.say("hello").unwrap();
        assert_eq!(cat.hear(Duration::from_secs(5)).unwrap(), "hello");
        let proc_folder = PathBuf::from(format!("/proc/{}", cat.id()));
        assert!(proc_folder.is_dir());
        drop(cat);
        assert!(!proc_folder.is_dir());
    }

    #[test]
    fn a_program_that_ended_is_reported_with_its_output() {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo broken; exit 3"]);
        let mut shell = Process::start("shell", &mut command, folder.path()).unwrap();
        let limit = Duration::from_secs(5);
        let error = wait::until("its end", limit, || shell.check().err())
            .unwrap()
            .to_string();
        assert!(
            error.contains("exit status: 3") && error.contains("broken"),
            "{error}"
        );
    }
}
