//! What every framework must show, each step on a [`Stage`].

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use testkit::apps::{self, Call, Framework, Load};
use testkit::wait;

use crate::stage::{Discovery, Stage};

/// A step by its name.
pub(crate) type Step = (&'static str, fn(&mut Stage) -> Result<()>);

/// The steps, in an order that leaves the killing for last.
pub(crate) const STEPS: [Step; 12] = [
    ("all kinds of calls", cases),
    ("a route on a method", route_on_method),
    ("a route on a header", route_on_header),
    ("an 80/20 split by version", split),
    ("another version or group of the interface", other_version),
    ("an aborted call", abort),
    ("a delayed call", delay),
    ("a timeout", timeout),
    ("changes of configuration under load", change_under_load),
    (
        "a provider's sidecar killed under load",
        kill_sidecar_under_load,
    ),
    ("a provider killed under load", kill_under_load),
    ("nothing left behind", nothing_left),
];

/// Runs all steps and reports all that failed, not only the first.
pub(crate) fn run(stage: &mut Stage) -> Result<()> {
    let mut failures = Vec::new();
    for (name, step) in STEPS {
        let start = std::time::Instant::now();
        let outcome = step(stage);
        let took = start.elapsed().as_millis();
        match outcome {
            Ok(()) => eprintln!("ok   {name} ({took} ms)"),
            Err(error) => {
                eprintln!("FAIL {name} ({took} ms): {error:#}");
                failures.push(format!("{name}: {error:#}"));
            }
        }
    }
    ensure!(
        failures.is_empty(),
        "{} steps failed:\n{}",
        failures.len(),
        failures.join("\n")
    );
    Ok(())
}

fn succeeded(call: &Call) -> Result<&str> {
    call.outcome
        .as_deref()
        .map_err(|exception| anyhow::anyhow!("{exception}"))
}

/// Plain calls, exceptions, one-way and asynchronous calls, large payloads, headers: each case of the consumer.
pub(crate) fn cases(stage: &mut Stage) -> Result<()> {
    let cases = stage.consumer.cases(&[])?;
    ensure!(cases.len() > 10, "only {} cases ran", cases.len());
    let failed: Vec<String> = cases
        .iter()
        .filter_map(|(name, call)| Some(format!("{name}: {}", call.outcome.as_ref().err()?)))
        .collect();
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(())
}

/// The words that match one method in a VirtualService.
fn method(stage: &Stage, name: &str) -> String {
    format!("uri: {{prefix: {}{name}}}", stage.plan.path)
}

/// The words that match a header which the application set.
fn header(stage: &Stage, name: &str, value: &str) -> String {
    format!(
        "headers: {{{}{name}: {{exact: {value}}}}}",
        stage.plan.header
    )
}

/// One method goes to v2, all others to v1.
pub(crate) fn route_on_method(stage: &mut Stage) -> Result<()> {
    let host = stage.plan.host;
    let routes = format!(
        "- match: [{{{}}}]\n  route: [{{destination: {{host: {host}, subset: v2}}}}]\n{}",
        method(stage, "audit"),
        stage.to("v1")
    );
    stage.route(&routes)?;
    for _ in 0..5 {
        let audit = stage.consumer.call("audit", "")?;
        ensure!(succeeded(&audit)? == "v2", "audit: {audit:?}");
        let who = stage.consumer.call("who", "")?;
        ensure!(succeeded(&who)? == "v1", "who: {who:?}");
    }
    Ok(())
}

/// Calls with a header go to v2, all others to v1.
pub(crate) fn route_on_header(stage: &mut Stage) -> Result<()> {
    let host = stage.plan.host;
    let routes = format!(
        "- match: [{{{}}}]\n  route: [{{destination: {{host: {host}, subset: v2}}}}]\n{}",
        header(stage, "x-user", "jo"),
        stage.to("v1")
    );
    stage.route(&routes)?;
    for (options, expected) in [("h.x-user=jo", "v2"), ("h.x-user=joe", "v1"), ("", "v1")] {
        let call = stage.consumer.call("who", options)?;
        ensure!(succeeded(&call)? == expected, "{options:?}: {call:?}");
    }
    Ok(())
}

/// 80 of 100 calls go to v1, 20 to v2; the bounds are five standard deviations.
pub(crate) fn split(stage: &mut Stage) -> Result<()> {
    const CALLS: u32 = 300;
    let host = stage.plan.host;
    stage.route(&format!(
        "- route:\n  - {{destination: {{host: {host}, subset: v1}}, weight: 80}}\n  \
         - {{destination: {{host: {host}, subset: v2}}, weight: 20}}\n"
    ))?;
    let tally = stage.consumer.tally("who", CALLS, "")?;
    ensure!(tally.failures.is_empty(), "{tally:?}");
    ensure!(tally.of("v1") + tally.of("v2") == CALLS, "{tally:?}");
    ensure!((25..=95).contains(&tally.of("v2")), "{tally:?}");
    Ok(())
}

/// A call of a version or group that no provider has is refused by the sidecar; no provider is asked.
pub(crate) fn other_version(stage: &mut Stage) -> Result<()> {
    // What a sidecar says; a provider that does not know the version says something else.
    let refusal = match stage.plan.framework {
        Framework::Dubbo => "no healthy upstream",
        Framework::Sofarpc => "NO_PROCESSOR",
        Framework::Spring => return Ok(()),
    };
    let host = stage.plan.host;
    stage.route(&format!("- route: [{{destination: {{host: {host}}}}}]\n"))?;
    for (_, call) in stage.consumer.cases(&["other-version"])? {
        ensure!(succeeded(&call)?.contains(refusal), "{call:?}");
        ensure!(call.took < Duration::from_secs(5), "{call:?}");
    }
    succeeded(&stage.consumer.call("who", "")?)?;
    Ok(())
}

/// Calls with a header are refused by the sidecar, the provider does not see them; others pass.
pub(crate) fn abort(stage: &mut Stage) -> Result<()> {
    let host = stage.plan.host;
    let routes = format!(
        "- match: [{{{}}}]\n  fault: {{abort: {{httpStatus: 503, percentage: {{value: 100}}}}}}\n  \
           route: [{{destination: {{host: {host}, subset: v1}}}}]\n{}",
        header(stage, "x-test", "abort"),
        stage.to("v1")
    );
    stage.route(&routes)?;
    let call = stage.consumer.call("who", "h.x-test=abort")?;
    let Err(exception) = &call.outcome else {
        bail!("not aborted: {call:?}")
    };
    ensure!(call.took < Duration::from_secs(3), "{call:?}");
    eprintln!("     abort: {exception}");
    succeeded(&stage.consumer.call("who", "")?)?;
    Ok(())
}

/// Calls with a header are held by the sidecar for a while and then pass.
pub(crate) fn delay(stage: &mut Stage) -> Result<()> {
    const DELAY: Duration = Duration::from_millis(400);
    let host = stage.plan.host;
    let routes = format!(
        "- match: [{{{}}}]\n  fault: {{delay: {{fixedDelay: 0.4s, percentage: {{value: 100}}}}}}\n  \
           route: [{{destination: {{host: {host}, subset: v1}}}}]\n{}",
        header(stage, "x-test", "delay"),
        stage.to("v1")
    );
    stage.route(&routes)?;
    let call = stage.consumer.call("who", "h.x-test=delay")?;
    succeeded(&call)?;
    ensure!(call.took >= DELAY, "{call:?}");
    // On a busy machine a single call may take as long without any fault.
    let mut shortest = Duration::MAX;
    for _ in 0..5 {
        let call = stage.consumer.call("who", "")?;
        succeeded(&call)?;
        shortest = shortest.min(call.took);
    }
    ensure!(shortest < DELAY, "{shortest:?} without a fault");
    Ok(())
}

/// The route's timeout ends a call long before the provider would and before the caller gives up.
pub(crate) fn timeout(stage: &mut Stage) -> Result<()> {
    let host = stage.plan.host;
    let routes = format!(
        "- match: [{{{}}}]\n  timeout: 0.3s\n  route: [{{destination: {{host: {host}, subset: v1}}}}]\n{}",
        method(stage, "slow"),
        stage.to("v1")
    );
    stage.route(&routes)?;
    let call = stage.consumer.call("slow3000", "timeout=10000")?;
    let Err(exception) = &call.outcome else {
        bail!("no timeout: {call:?}")
    };
    ensure!((300..2500).contains(&call.took.as_millis()), "{call:?}");
    let says_timeout =
        exception.to_ascii_lowercase().contains("timeout") || exception.contains("504");
    ensure!(says_timeout, "not a timeout: {exception}");
    succeeded(&stage.consumer.call("slow10", "")?)?;
    Ok(())
}

fn no_failure(load: &Load) -> Result<()> {
    if let Some(first) = load.failures.first() {
        bail!(
            "{} of {} calls failed, first {first:?}",
            load.failed,
            load.ok + load.failed
        );
    }
    Ok(())
}

/// Routes, subsets' policy and endpoints change again and again while calls go on: none fails.
pub(crate) fn change_under_load(stage: &mut Stage) -> Result<()> {
    const PER_CHANGE: u64 = 40;
    let [v1, v2] = [stage.to("v1"), stage.to("v2")];
    stage
        .consumer
        .start_load("slow5", 6, Duration::from_millis(1))?;
    for round in 0..4 {
        stage.route(&v1)?;
        stage.consumer.wait_for_calls(PER_CHANGE)?;
        // Another policy makes another cluster under the same name.
        let connections = 1000 + round;
        stage.policy(&format!(
            "trafficPolicy: {{connectionPool: {{tcp: {{maxConnections: {connections}}}}}}}\n"
        ))?;
        stage.wait_for(&connections.to_string())?;
        stage.consumer.wait_for_calls(PER_CHANGE)?;
        // v1 alone is left while nothing goes to v2, then v2 is back.
        stage.endpoints(&["v1"])?;
        stage.consumer.wait_for_calls(PER_CHANGE)?;
        stage.endpoints(&["v1", "v2"])?;
        stage.consumer.wait_for_calls(PER_CHANGE)?;
        stage.route(&v2)?;
        stage.consumer.wait_for_calls(PER_CHANGE)?;
    }
    let load = stage.consumer.stop_load()?;
    no_failure(&load)?;
    let both = ["v1", "v2"]
        .iter()
        .all(|label| load.labels.contains_key(*label));
    ensure!(both, "the changes did not arrive: {load:?}");
    Ok(())
}

/// How long the news of a kill may take to a sidecar that waits for a processor.
const NEWS_MILLIS: u64 = 100;
/// The most calls that are in flight while something is killed.
const KILL_THREADS: u32 = 8;

/// Puts both providers under load, kills something of v2, and after some time ends the load.
///
/// `retries` is for the route to both (YAML, may be empty). `kill` answers when it had killed, in milliseconds of the epoch.
fn load_around(
    stage: &mut Stage,
    retries: &str,
    kill: impl FnOnce(&mut Stage) -> Result<u64>,
) -> Result<()> {
    let host = stage.plan.host;
    stage.route(&format!(
        "- route: [{{destination: {{host: {host}}}}}]\n  {retries}\n"
    ))?;
    stage
        .consumer
        .start_load("slow20", KILL_THREADS, Duration::from_millis(2))?;
    stage.consumer.wait_for_calls(100)?;
    let killed = kill(stage)?;
    stage.consumer.wait_for_calls(300)?;
    let load = stage.consumer.stop_load()?;

    ensure!(
        load.labels.contains_key("v2"),
        "the victim had no load: {load:?}"
    );
    // A call made after the kill was not in flight on the victim; the margin is for the news to reach the sidecar.
    let late: Vec<_> = load
        .failures
        .iter()
        .filter(|call| call.started > killed + NEWS_MILLIS)
        .collect();
    ensure!(
        late.is_empty(),
        "{} calls after the kill failed, first {:?}",
        late.len(),
        late.first()
    );
    ensure!(
        load.failed <= u64::from(KILL_THREADS),
        "{} calls failed",
        load.failed
    );
    eprintln!("     killed: {} calls ok, {} failed", load.ok, load.failed);
    Ok(())
}

/// The sidecar of one of two providers is killed under load: only calls that were in flight on it may fail.
pub(crate) fn kill_sidecar_under_load(stage: &mut Stage) -> Result<()> {
    if stage.plan.discovery == Discovery::MeshRegistry {
        // SOFARPC publishes once: a sidecar that comes back does not know of it.
        return Ok(());
    }
    load_around(stage, "", |stage| {
        let sidecar = stage.provider_sidecars.last_mut().context("no sidecar")?;
        sidecar.process().kill()?;
        apps::epoch_millis()
    })?;
    stage.restart_sidecar()?;
    wait::until_ok(
        "the restarted sidecar to be called",
        Duration::from_secs(20),
        || {
            let tally = stage.consumer.tally("who", 10, "")?;
            ensure!(tally.of("v2") > 0, "{tally:?}");
            Ok(())
        },
    )
}

/// One of two providers is killed under load: only calls that were in flight on it may fail.
///
/// Its sidecar lives on and answers for it that there is nobody. As in Istio that alone is no reason to try elsewhere:
/// the route has to say so.
pub(crate) fn kill_under_load(stage: &mut Stage) -> Result<()> {
    let retries = "retries: {attempts: 2, retryOn: '5xx,connect-failure,refused-stream'}";
    load_around(stage, retries, |stage| {
        let mut victim = stage.providers.pop().context("no provider")?;
        victim.kill()?;
        apps::epoch_millis()
    })
}

/// No sidecar counts a call that is over as one that goes on, refused anything that pilot sent, or panicked.
pub(crate) fn nothing_left(stage: &mut Stage) -> Result<()> {
    let sidecars = std::iter::once(&mut stage.consumer_sidecar).chain(&mut stage.provider_sidecars);
    for sidecar in sidecars {
        let name = sidecar.process().name().to_owned();
        // What the last call did to the counters may still be on its way.
        wait::until_ok(
            &format!("the calls of {name} to be over"),
            Duration::from_secs(5),
            || {
                let stats = sidecar.stats()?;
                let mut active = stats.iter().filter(|(name, value)| {
                    (name.ends_with("rq_active") || name.ends_with("rq_pending_active"))
                        && **value != 0
                });
                let admin = |name: &str| name.starts_with("http.admin.");
                match active.find(|(name, _)| !admin(name)) {
                    Some((name, value)) => bail!("{name}: {value}"),
                    None => Ok(()),
                }
            },
        )?;
        let stats = sidecar.stats()?;
        let rejected = stats
            .iter()
            .find(|(name, value)| name.ends_with(".update_rejected") && **value != 0);
        ensure!(rejected.is_none(), "{name}: {rejected:?}");
        let output = sidecar.process().output();
        ensure!(!output.contains("panicked"), "{name}: {output}");
    }
    let output = stage.mesh.pilot_output();
    ensure!(!output.contains("panicked"), "pilot: {output}");
    Ok(())
}
