//! The Java applications of `tests/apps`: built once, started as providers and consumers, spoken to in lines.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, bail};

use crate::netns::Site;
use crate::process::Process;
use crate::programs;

/// A JVM that starts while everything else does, on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(90);
/// The slowest answer to a command: a whole list of cases.
const ANSWER_LIMIT: Duration = Duration::from_secs(120);

/// A change that has to arrive from another registry.
const CHANGE_LIMIT: Duration = Duration::from_secs(90);

/// Packages of the JDK that SOFARPC's Hessian reads into; without them exceptions lose their fields.
const OPENED: [&str; 9] = [
    "java.lang",
    "java.lang.reflect",
    "java.util",
    "java.util.concurrent",
    "java.math",
    "java.io",
    "java.net",
    "java.text",
    "java.time",
];

/// A framework, which is a module of `tests/apps`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framework {
    /// Dubbo 3, protocol dubbo.
    Dubbo,
    /// SOFARPC, protocol bolt.
    Sofarpc,
    /// Spring Boot, HTTP/1.1.
    Spring,
}

impl Framework {
    fn module(self) -> &'static str {
        match self {
            Framework::Dubbo => "dubbo",
            Framework::Sofarpc => "sofarpc",
            Framework::Spring => "spring",
        }
    }

    fn consumer_class(self) -> &'static str {
        match self {
            Framework::Dubbo => "mesh.apps.dubbo.DubboConsumer",
            Framework::Sofarpc => "mesh.apps.sofarpc.SofaConsumer",
            Framework::Spring => "mesh.apps.spring.HttpConsumer",
        }
    }

    fn provider_class(self) -> String {
        format!("mesh.apps.{}.Provider", self.module())
    }
}

/// Builds the applications if their sources changed; answers the folder that holds them.
fn build() -> Result<&'static Path> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let run = || -> Result<PathBuf> {
        let script = programs::workspace().join("tests/apps/build");
        let output = Command::new(&script)
            .env("CARGO_TARGET_DIR", programs::target_folder()?)
            .stderr(Stdio::inherit())
            .output()
            .with_context(|| format!("{}", script.display()))?;
        if !output.status.success() {
            bail!("{}: {}", script.display(), output.status);
        }
        Ok(PathBuf::from(String::from_utf8(output.stdout)?.trim()))
    };
    match BUILT.get_or_init(|| run().map_err(|error| format!("{error:#}"))) {
        Ok(folder) => Ok(folder),
        Err(error) => Err(anyhow!("{error}")),
    }
}

/// The folder of a module of `tests/apps`: `app.jar` and `lib/`.
pub fn module(name: &str) -> Result<PathBuf> {
    Ok(build()?.join(name))
}

/// Starts `class` of a module of `tests/apps` that is spoken to in lines, and waits for its `READY`.
pub fn start_client(
    module: &str,
    class: &str,
    name: &str,
    arguments: &[String],
    folder: &Path,
) -> Result<Process> {
    let command = java(module, class, &[], arguments, folder)?;
    converse(name, command, folder)
}

/// The same in a network namespace; it need not be up yet.
pub fn start_client_in(
    site: &Site,
    (module, class): (&str, &str),
    name: &str,
    arguments: &[String],
    folder: &Path,
) -> Result<Starting> {
    let command = java(module, class, &[], arguments, folder)?;
    Process::converse(name, &mut site.enter(&command), folder).map(Starting)
}

/// Starts a program that is spoken to in lines, and waits for its `READY`.
pub(crate) fn converse(name: &str, mut command: Command, folder: &Path) -> Result<Process> {
    let mut process = Process::converse(name, &mut command, folder)?;
    wait_ready(&mut process)?;
    Ok(process)
}

/// The JVM for `class` of a module of `tests/apps`, with `options` of its own.
pub(crate) fn java(
    module: &str,
    class: &str,
    options: &[&str],
    arguments: &[String],
    folder: &Path,
) -> Result<Command> {
    let module = self::module(module)?;
    let mut command = Command::new("java");
    command.args([
        "-Xmx256m",
        "-XX:+UseSerialGC",
        "-XX:TieredStopAtLevel=1",
        "-Xshare:auto",
        "-Djava.net.preferIPv4Stack=true",
        "-Djdk.httpclient.allowRestrictedHeaders=host",
        "-Dinvoke.baggage.enable=true",
        "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    ]);
    // Dubbo replaces loopback addresses by the machine's own when it connects, but not names; see `Mesh::name`.
    let hosts = folder.join(crate::net::HOSTS_FILE);
    if hosts.exists() {
        command.arg(format!("-Djdk.net.hosts.file={}", hosts.display()));
    }
    for package in OPENED {
        command.args(["--add-opens", &format!("java.base/{package}=ALL-UNNAMED")]);
    }
    // Dubbo fails where another application of the test makes the folder of its caches at the same time.
    std::fs::create_dir_all(folder.join(".dubbo"))?;
    // SOFARPC and Dubbo keep logs and caches below the home folder.
    command
        .arg(format!("-Duser.home={}", folder.display()))
        .current_dir(folder);
    command
        .args(options)
        .arg("-cp")
        .arg(format!("{0}/app.jar:{0}/lib/*", module.display()));
    command.arg(class).args(arguments);
    Ok(command)
}

fn start(
    framework: Framework,
    class: &str,
    name: &str,
    arguments: &[String],
    folder: &Path,
) -> Result<Process> {
    let mut command = java(framework.module(), class, &[], arguments, folder)?;
    Process::converse(name, &mut command, folder)
}

fn wait_ready(process: &mut Process) -> Result<()> {
    let line = process.hear(START_LIMIT)?;
    if line != "READY" {
        bail!("{} said {line:?} in place of READY", process.name());
    }
    Ok(())
}

/// Applications that were started but need not be up yet: JVMs that start together are up sooner.
#[derive(Debug)]
pub struct Starting(Process);

impl Starting {
    /// Waits for a client.
    pub fn client(mut self) -> Result<Process> {
        wait_ready(&mut self.0)?;
        Ok(self.0)
    }

    /// Waits for a provider.
    pub fn provider(mut self) -> Result<Provider> {
        wait_ready(&mut self.0)?;
        Ok(Provider { process: self.0 })
    }

    /// Waits for a consumer.
    pub fn consumer(mut self) -> Result<Consumer> {
        wait_ready(&mut self.0)?;
        Ok(Consumer { process: self.0 })
    }
}

/// Starts a provider. `flags` are `--name value` pairs without the dashes; `folder` takes its logs.
pub fn start_provider(
    framework: Framework,
    name: &str,
    flags: &[(&str, &str)],
    folder: &Path,
) -> Result<Starting> {
    let class = framework.provider_class();
    Ok(Starting(start(
        framework,
        &class,
        name,
        &dashed(flags),
        folder,
    )?))
}

/// Starts a consumer, as [`start_provider`].
pub fn start_consumer(
    framework: Framework,
    name: &str,
    flags: &[(&str, &str)],
    folder: &Path,
) -> Result<Starting> {
    let class = framework.consumer_class();
    Ok(Starting(start(
        framework,
        class,
        name,
        &dashed(flags),
        folder,
    )?))
}

fn dashed(flags: &[(&str, &str)]) -> Vec<String> {
    flags
        .iter()
        .flat_map(|(name, value)| [format!("--{name}"), (*value).to_owned()])
        .collect()
}

/// A provider that is up.
#[derive(Debug)]
pub struct Provider {
    process: Process,
}

impl Provider {
    /// Kills it (SIGKILL) and waits for its end.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }

    /// Ends it in an orderly way (SIGTERM), as the framework wants it.
    pub fn terminate(&mut self) -> Result<()> {
        self.process.terminate(Duration::from_secs(30)).map(|_| ())
    }
}

/// The time in milliseconds of the epoch, as applications report it.
pub fn epoch_millis() -> Result<u64> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    Ok(u64::try_from(now.as_millis())?)
}

/// The outcome of one call.
#[derive(Debug, Clone)]
pub struct Call {
    /// The label of the provider that answered, or the chain of exceptions.
    pub outcome: Result<String, String>,
    /// What the caller waited.
    pub took: Duration,
}

/// How many calls each provider answered, and what else happened.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    /// Answers by the provider's label.
    pub labels: BTreeMap<String, u32>,
    /// Failed calls by their exceptions.
    pub failures: BTreeMap<String, u32>,
}

impl Tally {
    /// Answers of this provider.
    pub fn of(&self, label: &str) -> u32 {
        self.labels.get(label).copied().unwrap_or(0)
    }
}

/// A call of a load that failed.
#[derive(Debug, Clone)]
pub struct Failure {
    /// When the caller made it, in milliseconds of the epoch.
    pub started: u64,
    /// What the caller waited.
    pub took: Duration,
    /// The chain of exceptions.
    pub exception: String,
}

/// What a load came to.
#[derive(Debug, Clone, Default)]
pub struct Load {
    /// Calls that succeeded.
    pub ok: u64,
    /// Those that failed (at most the first hundred).
    pub failures: Vec<Failure>,
    /// How many failed.
    pub failed: u64,
    /// Answers by the provider's label.
    pub labels: BTreeMap<String, u32>,
}

/// A consumer that is up: it makes calls when told to.
#[derive(Debug)]
pub struct Consumer {
    process: Process,
}

impl Consumer {
    fn ask(&mut self, command: &str) -> Result<Vec<String>> {
        self.process.say(command)?;
        let mut lines = Vec::new();
        loop {
            let line = self
                .process
                .hear(ANSWER_LIMIT)
                .with_context(|| command.to_owned())?;
            if line == "done" {
                return Ok(lines);
            }
            if let Some(error) = line.strip_prefix("error ") {
                bail!("{command}: {error}");
            }
            lines.push(line);
        }
    }

    /// Runs these cases, or all when none is named. Answers each with its outcome.
    pub fn cases(&mut self, names: &[&str]) -> Result<Vec<(String, Call)>> {
        let lines = self.ask(&format!("cases {}", names.join(" ")))?;
        lines
            .iter()
            .filter_map(|line| line.strip_prefix("case "))
            .map(|line| {
                let (name, outcome) = line.split_once(' ').context("no outcome")?;
                Ok((name.to_owned(), parse_call(outcome)?))
            })
            .collect()
    }

    /// One call. `options` are words like `timeout=500` or `h.x-user=jo`.
    pub fn call(&mut self, method: &str, options: &str) -> Result<Call> {
        let lines = self.ask(&format!("call {method} {options}"))?;
        let line = lines.iter().find_map(|line| line.strip_prefix("result "));
        parse_call(line.context("no result")?)
    }

    /// Many calls, one after the other.
    pub fn tally(&mut self, method: &str, count: u32, options: &str) -> Result<Tally> {
        let lines = self.ask(&format!("tally {method} count={count} {options}"))?;
        let mut tally = Tally::default();
        for line in &lines {
            let words = line.strip_prefix("tally ").context("not a tally")?;
            if let Some(failure) = words.strip_prefix("! ") {
                let (count, exception) = failure.split_once(' ').context("no exception")?;
                tally.failures.insert(exception.to_owned(), count.parse()?);
            } else {
                let (label, count) = words.rsplit_once(' ').context("no count")?;
                tally.labels.insert(label.to_owned(), count.parse()?);
            }
        }
        Ok(tally)
    }

    /// Calls until all answers come from just these providers, and no call fails.
    pub fn wait_labels(&mut self, expected: &[&str]) -> Result<()> {
        let what = format!("answers of {expected:?} alone");
        crate::wait::until_ok(&what, CHANGE_LIMIT, || {
            let tally = self.tally("who", 20, "")?;
            if !tally.failures.is_empty() || !tally.labels.keys().eq(expected) {
                bail!("{tally:?}");
            }
            Ok(())
        })
    }

    /// Starts calling in the background from this many threads, each call followed by a pause.
    pub fn start_load(&mut self, method: &str, threads: u32, pause: Duration) -> Result<()> {
        let pause = pause.as_millis();
        self.ask(&format!("load {method} threads={threads} pause={pause}"))
            .map(|_| ())
    }

    /// Calls that the running load has made: those that succeeded, those that failed.
    pub fn progress(&mut self) -> Result<(u64, u64)> {
        let lines = self.ask("progress")?;
        counts(
            lines
                .first()
                .and_then(|line| line.strip_prefix("progress ")),
        )
    }

    /// Waits until the running load has made this many more calls.
    pub fn wait_for_calls(&mut self, more: u64) -> Result<()> {
        let (ok, failed) = self.progress()?;
        let goal = ok + failed + more;
        let what = format!("{more} more calls");
        crate::wait::until_ok(&what, ANSWER_LIMIT, || {
            let (ok, failed) = self.progress()?;
            if ok + failed < goal {
                bail!("{} so far", ok + failed);
            }
            Ok(())
        })
    }

    /// Ends the load.
    pub fn stop_load(&mut self) -> Result<Load> {
        let mut load = Load::default();
        for line in self.ask("stop")? {
            if let Some(failure) = line.strip_prefix("failure ") {
                let mut words = failure.splitn(3, ' ');
                let mut next = || words.next().context("a failure cut off");
                load.failures.push(Failure {
                    started: next()?.parse()?,
                    took: Duration::from_millis(next()?.parse()?),
                    exception: next()?.to_owned(),
                });
            } else if let Some(tally) = line.strip_prefix("tally ") {
                let (label, count) = tally.rsplit_once(' ').context("no count")?;
                load.labels.insert(label.to_owned(), count.parse()?);
            } else {
                (load.ok, load.failed) = counts(line.strip_prefix("load "))?;
            }
        }
        Ok(load)
    }
}

/// `ok=N failed=N`.
fn counts(words: Option<&str>) -> Result<(u64, u64)> {
    let (ok, failed) = words
        .and_then(|words| words.split_once(' '))
        .context("no counts")?;
    let number = |word: &str, name: &str| -> Result<u64> {
        Ok(word.strip_prefix(name).context("not a count")?.parse()?)
    };
    Ok((number(ok, "ok=")?, number(failed, "failed=")?))
}

/// `ok MILLIS TEXT` or `FAIL MILLIS TEXT`.
fn parse_call(line: &str) -> Result<Call> {
    let mut words = line.splitn(3, ' ');
    let verdict = words.next().unwrap_or_default();
    let took = Duration::from_millis(words.next().context("no time")?.parse()?);
    let text = words.next().unwrap_or_default().to_owned();
    let outcome = if verdict == "ok" { Ok(text) } else { Err(text) };
    Ok(Call { outcome, took })
}
