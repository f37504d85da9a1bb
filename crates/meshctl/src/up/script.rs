//! `meshctl up --once`: a fixed script of calls through the mesh, and whether each did what it should.

use std::collections::BTreeMap;
use std::fmt;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use anyhow::bail;

use super::files::{self, Files};
use super::plan::{PROTOCOLS, Plan, Protocol};
use crate::demo::client::{Call, Client, Failure, Reply};
use crate::output::{self, Colour};

/// The first call of a protocol waits so long for its provider to be registered and its sidecars to know it.
const FIRST_CALL: Duration = Duration::from_secs(20);
const SPLIT_CALLS: u32 = 200;
/// Shares of v2 that 200 calls with a chance of 20 % have in all but one of some thousand runs.
const SPLIT_RANGE: std::ops::RangeInclusive<u32> = 10..=31;
const LARGE: usize = 1 << 20;
/// The delay that the routes inject, and a change of configuration may take at most this long.
const DELAY: Duration = Duration::from_millis(300);
const CHANGE: Duration = Duration::from_secs(10);
/// So many answers in a row from v2 say that v1 gets none any more.
const SETTLED: u32 = 50;

/// What a step saw: a word for the report, or why it failed.
type Outcome = Result<String, Problem>;

struct Problem(String);

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        Problem(failure.to_string())
    }
}

/// Makes the calls, prints a line for each step, and fails if one of them failed.
pub(super) async fn run(plan: &Plan, files: &Files, started: Duration) -> anyhow::Result<()> {
    let begin = Instant::now();
    let mut report = Report {
        colours: output::colours(&std::io::stdout()) && std::io::stdout().is_terminal(),
        passed: 0,
        failed: 0,
    };
    report.line(
        "mesh",
        "pilot, sidecars and applications start",
        &Ok(format!(
            "{} sidecars in {:.1} s",
            plan.applications.len(),
            started.as_secs_f64()
        )),
    )?;
    for protocol in PROTOCOLS {
        let Some(consumer) = plan.consumer(protocol) else {
            continue;
        };
        let mut client = Client::new(protocol, consumer.at(protocol.egress_port()));
        let first = first_call(&mut client).await;
        let reached = first.is_ok();
        report.line(protocol, "first call, through two sidecars", &first)?;
        if !reached {
            continue;
        }
        report.line(
            protocol,
            "argument and header arrive intact",
            &intact(&mut client).await,
        )?;
        report.line(protocol, "1 MiB there and back", &large(&mut client).await)?;
        report.line(
            protocol,
            "exception of the provider",
            &exception(&mut client).await,
        )?;
        report.line(
            protocol,
            "80/20 split of the VirtualService",
            &split(&mut client).await,
        )?;
        report.line(protocol, "aborted call", &aborted(&mut client).await)?;
        report.line(protocol, "delayed call", &delayed(&mut client).await)?;
        report.line(
            protocol,
            "routes changed under load",
            &change(&mut client, files, protocol).await,
        )?;
    }
    let (passed, all) = (report.passed, report.passed + report.failed);
    output::write(&format!(
        "{passed} of {all} steps passed in {:.1} s\n",
        (started + begin.elapsed()).as_secs_f64()
    ))?;
    if report.failed > 0 {
        bail!("{} of {all} steps failed", report.failed);
    }
    Ok(())
}

struct Report {
    colours: bool,
    passed: usize,
    failed: usize,
}

impl Report {
    fn line(
        &mut self,
        who: impl fmt::Display,
        what: &str,
        outcome: &Outcome,
    ) -> anyhow::Result<()> {
        let (word, colour, detail) = match outcome {
            Ok(detail) => {
                self.passed += 1;
                ("ok  ", Colour::Green, detail)
            }
            Err(Problem(reason)) => {
                self.failed += 1;
                ("FAIL", Colour::Red, reason)
            }
        };
        let word = if self.colours {
            output::paint(word, colour)
        } else {
            word.to_owned()
        };
        output::write(&format!("{word} {who:<5} {what:<38} {detail}\n"))
    }
}

async fn first_call(client: &mut Client) -> Outcome {
    let begin = Instant::now();
    loop {
        match client.call(&Call::new("lookup", "first")).await {
            Ok(reply) => {
                return Ok(format!(
                    "{} answered after {} ms",
                    reply.provider,
                    begin.elapsed().as_millis()
                ));
            }
            Err(failure) if begin.elapsed() > FIRST_CALL => return Err(failure.into()),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

async fn intact(client: &mut Client) -> Outcome {
    let begin = Instant::now();
    let call = Call::new("lookup", "größe|=%: 7").header("demo-user", "alice");
    let reply = client.call(&call).await?;
    let took = begin.elapsed();
    expect_eq("argument", &reply.argument, &call.argument)?;
    expect_eq("header", &reply.user, "alice")?;
    Ok(format!("{:.1} ms", took.as_secs_f64() * 1e3))
}

async fn large(client: &mut Client) -> Outcome {
    let argument: String = ('a'..='z').cycle().take(LARGE).collect();
    let begin = Instant::now();
    let reply = client.call(&Call::new("lookup", &argument)).await?;
    if reply.argument != argument {
        return Err(Problem(format!(
            "{} bytes came back, or not the same",
            reply.argument.len()
        )));
    }
    Ok(format!("{:.1} ms", begin.elapsed().as_secs_f64() * 1e3))
}

async fn exception(client: &mut Client) -> Outcome {
    match client.call(&Call::new("fail", "out of stock")).await {
        Err(Failure::Exception(message)) => {
            expect_eq("message", &message, "out of stock")?;
            Ok(format!("\"{message}\""))
        }
        other => Err(unexpected(other)),
    }
}

async fn split(client: &mut Client) -> Outcome {
    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    for _ in 0..SPLIT_CALLS {
        let reply = client.call(&Call::new("lookup", "split")).await?;
        *counts.entry(reply.provider).or_default() += 1;
    }
    let v2: u32 = counts
        .iter()
        .filter(|(name, _)| name.ends_with("-v2"))
        .map(|(_, count)| count)
        .sum();
    let text: Vec<String> = counts
        .iter()
        .map(|(name, count)| format!("{name} {count}"))
        .collect();
    let text = text.join(", ");
    if SPLIT_RANGE.contains(&(v2 * 100 / SPLIT_CALLS)) {
        Ok(text)
    } else {
        Err(Problem(text))
    }
}

async fn aborted(client: &mut Client) -> Outcome {
    match client
        .call(&Call::new("lookup", "").header("demo-fault", "abort"))
        .await
    {
        Err(Failure::Refused(reason)) => Ok(reason.lines().collect::<Vec<_>>().join(" ")),
        // An abort that the framework's client must not try again comes as an exception.
        Err(Failure::Exception(reason)) => Ok(reason),
        other => Err(unexpected(other)),
    }
}

async fn delayed(client: &mut Client) -> Outcome {
    let begin = Instant::now();
    client.call(&Call::new("slow", "")).await?;
    let took = begin.elapsed();
    if took < DELAY {
        return Err(Problem(format!("answered after {} ms", took.as_millis())));
    }
    Ok(format!("{} ms", took.as_millis()))
}

/// Sends all calls to v2 while calls are made: none may fail, and from some moment on v1 gets none.
async fn change(client: &mut Client, files: &Files, protocol: Protocol) -> Outcome {
    let write = |percent| {
        files::write(&files.split(protocol), &files::routes(protocol, percent))
            .map_err(|error| Problem(format!("{error:#}")))
    };
    let begin = Instant::now();
    write(100)?;
    let (mut calls, mut in_a_row, mut last_v1) = (0u32, 0, begin);
    while in_a_row < SETTLED {
        let reply = client.call(&Call::new("lookup", "change")).await?;
        calls += 1;
        if reply.provider.ends_with("-v2") {
            in_a_row += 1;
        } else {
            in_a_row = 0;
            last_v1 = Instant::now();
        }
        if begin.elapsed() > CHANGE {
            return Err(Problem(format!(
                "v1 still answers after {} s",
                CHANGE.as_secs()
            )));
        }
    }
    let after = last_v1.duration_since(begin).as_millis();
    write(20)?;
    Ok(format!(
        "in force after {after} ms, {calls} calls, none failed"
    ))
}

fn expect_eq(what: &str, is: &str, should: &str) -> Result<(), Problem> {
    if is == should {
        Ok(())
    } else {
        Err(Problem(format!("{what} is {is:?}, should be {should:?}")))
    }
}

fn unexpected(result: Result<Reply, Failure>) -> Problem {
    match result {
        Ok(reply) => Problem(format!("was answered by {}", reply.provider)),
        Err(failure) => failure.into(),
    }
}
