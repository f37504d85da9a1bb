//! The closed-loop client: each connection keeps the same number of calls in flight, and sends all that became free
//! in one turn with one write, as the multiplexing clients of the frameworks do.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Context;
use hdrhistogram::Histogram;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::LocalSet;

use crate::Protocol;
use crate::frames::{Frames, Template};

/// How long answers are waited for after the last call was sent.
const DRAIN: Duration = Duration::from_secs(2);

/// What to send, where, and how much of it.
#[derive(Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) protocol: Protocol,
    pub(crate) addr: SocketAddr,
    pub(crate) connections: usize,
    pub(crate) in_flight: usize,
    pub(crate) duration: Duration,
    pub(crate) requests: u64,
}

struct Tally {
    answered: u64,
    /// Answers whose status is not success, and calls that got no answer.
    errors: u64,
    /// Connections that ended before the run did.
    broken: u64,
    latency_us: Histogram<u64>,
}

impl Tally {
    fn new() -> anyhow::Result<Self> {
        Ok(Self {
            answered: 0,
            errors: 0,
            broken: 0,
            latency_us: Histogram::new_with_bounds(1, 60_000_000, 3)?,
        })
    }

    fn add(&mut self, other: &Tally) -> anyhow::Result<()> {
        self.answered += other.answered;
        self.errors += other.errors;
        self.broken += other.broken;
        self.latency_us.add(&other.latency_us)?;
        Ok(())
    }
}

/// Runs the plan and returns its result as JSON.
pub(crate) async fn run(plan: Plan) -> anyhow::Result<Value> {
    // All connections are there before the first call, so that opening them is not measured.
    let mut streams = Vec::with_capacity(plan.connections);
    for _ in 0..plan.connections {
        let stream = TcpStream::connect(plan.addr)
            .await
            .with_context(|| format!("cannot connect to {}", plan.addr))?;
        stream.set_nodelay(true)?;
        streams.push(stream);
    }

    let start = Instant::now();
    let budget = Rc::new(Cell::new(plan.requests));
    let local = LocalSet::new();
    let tasks: Vec<_> = streams
        .into_iter()
        .map(|stream| local.spawn_local(drive(stream, plan, start, Rc::clone(&budget))))
        .collect();
    let mut total = Tally::new()?;
    local
        .run_until(async {
            for task in tasks {
                total.add(&task.await??)?;
            }
            anyhow::Ok(())
        })
        .await?;
    let seconds = start.elapsed().as_secs_f64();

    let latency = |quantile| total.latency_us.value_at_quantile(quantile);
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    let rate = total.answered as f64 / seconds;
    Ok(json!({
        "protocol": match plan.protocol { Protocol::Bolt => "bolt", Protocol::Dubbo => "dubbo", Protocol::Http => "http" },
        "connections": plan.connections,
        "in_flight": plan.in_flight,
        "seconds": seconds,
        "requests": total.answered,
        "errors": total.errors,
        "broken_connections": total.broken,
        "rps": rate,
        "p50_us": latency(0.5),
        "p90_us": latency(0.9),
        "p99_us": latency(0.99),
        "max_us": total.latency_us.max(),
    }))
}

/// One connection: slot `i` of the calls in flight uses the ids that are `i` modulo their number.
async fn drive(
    mut stream: TcpStream,
    plan: Plan,
    start: Instant,
    budget: Rc<Cell<u64>>,
) -> anyhow::Result<Tally> {
    let mut tally = Tally::new()?;
    let template = Template::request(plan.protocol);
    let slots = plan.in_flight as u64;
    let mut sent_at: Vec<Option<Instant>> = vec![None; plan.in_flight];
    let mut next_round = vec![1u64; plan.in_flight];
    let mut frames = Frames::new(plan.protocol);
    let mut output = Vec::new();
    let end = start + plan.duration;

    let mut free: Vec<usize> = (0..plan.in_flight).collect();
    loop {
        let now = Instant::now();
        if now < end {
            for slot in free.drain(..) {
                if !take_one(&budget) {
                    break;
                }
                let id = next_round[slot] * slots + slot as u64;
                next_round[slot] += 1;
                sent_at[slot] = Some(now);
                template.append(id, &mut output);
            }
        }
        if !output.is_empty() {
            if stream.write_all(&output).await.is_err() {
                tally.broken += 1;
                break;
            }
            output.clear();
        }
        if sent_at.iter().all(Option::is_none) {
            break;
        }
        let read =
            tokio::time::timeout_at((end + DRAIN).into(), stream.read_buf(frames.input())).await;
        match read {
            Ok(Ok(bytes)) if bytes > 0 => {}
            Ok(_) => {
                tally.broken += 1;
                break;
            }
            Err(_) => break,
        }
        let now = Instant::now();
        while let Some(answer) = frames.next_answer()? {
            let slot = usize::try_from(answer.id % slots).unwrap_or_default();
            let Some(at) = sent_at[slot].take() else {
                anyhow::bail!(
                    "an answer with the id {} that no call in flight has",
                    answer.id
                );
            };
            tally.answered += 1;
            tally.errors += u64::from(!answer.success);
            let micros = u64::try_from((now - at).as_micros()).unwrap_or(u64::MAX);
            tally.latency_us.saturating_record(micros.max(1));
            free.push(slot);
        }
    }
    tally.errors += sent_at.iter().flatten().count() as u64;
    Ok(tally)
}

fn take_one(budget: &Cell<u64>) -> bool {
    match budget.get().checked_sub(1) {
        Some(left) => {
            budget.set(left);
            true
        }
        None => false,
    }
}
