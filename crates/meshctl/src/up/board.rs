//! The live table: what the consumers report, gathered over the last seconds.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Write};
use std::time::Duration;

use crossterm::{cursor, queue, terminal};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::ChildStdout;
use tokio::sync::mpsc;

use super::plan::{Plan, Protocol, Role};
use crate::demo::consumer::Report;
use crate::output::{self, Colour};

/// Reports, of a second each, that rates, latencies and shares are taken from.
const WINDOW: usize = 5;
/// Reports that may wait to be drawn.
const QUEUE: usize = 64;
const PLAIN_INTERVAL: Duration = Duration::from_secs(5);
const LIVE_INTERVAL: Duration = Duration::from_secs(1);

/// What is known of the calls of one consumer.
struct Row {
    title: String,
    protocol: Protocol,
    ok: u64,
    failed: u64,
    recent: VecDeque<Report>,
    last_failure: Option<String>,
}

/// The table, and where the reports come from.
pub(super) struct Board {
    rows: Vec<Row>,
    live: bool,
    sender: mpsc::Sender<(Protocol, Report)>,
    receiver: mpsc::Receiver<(Protocol, Report)>,
}

impl Board {
    /// A row for each consumer; `live` redraws the table in its place.
    pub(super) fn new(plan: &Plan, live: bool) -> Self {
        let rows = plan
            .of_role(Role::Consumer)
            .map(|consumer| {
                let provider = plan
                    .of_role(Role::Provider)
                    .find(|provider| provider.protocol == consumer.protocol)
                    .map_or("", |provider| provider.app);
                Row {
                    title: format!("{:<5} {} -> {provider}", consumer.protocol, consumer.app),
                    protocol: consumer.protocol,
                    ok: 0,
                    failed: 0,
                    recent: VecDeque::new(),
                    last_failure: None,
                }
            })
            .collect();
        let (sender, receiver) = mpsc::channel(QUEUE);
        Self {
            rows,
            live,
            sender,
            receiver,
        }
    }

    /// Reads the reports of a consumer from its output.
    pub(super) fn listen(&self, protocol: Protocol, output: ChildStdout) {
        let sender = self.sender.clone();
        tokio::spawn(async move {
            let mut lines = BufReader::new(output).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                if let Ok(report) = serde_json::from_str(&line)
                    && sender.send((protocol, report)).await.is_err()
                {
                    return;
                }
            }
        });
    }

    /// Draws until the output is closed.
    pub(super) async fn run(mut self) -> anyhow::Result<()> {
        let interval = if self.live {
            LIVE_INTERVAL
        } else {
            PLAIN_INTERVAL
        };
        let mut ticks = tokio::time::interval(interval);
        ticks.tick().await;
        let mut drawn = 0;
        loop {
            tokio::select! {
                Some((protocol, report)) = self.receiver.recv() => self.take(protocol, report),
                _ = ticks.tick() => drawn = self.draw(drawn)?,
            }
        }
    }

    fn take(&mut self, protocol: Protocol, report: Report) {
        let Some(row) = self.rows.iter_mut().find(|row| row.protocol == protocol) else {
            return;
        };
        row.ok += report.ok;
        row.failed += report.failed;
        if report.last_failure.is_some() {
            row.last_failure.clone_from(&report.last_failure);
        }
        row.recent.push_back(report);
        if row.recent.len() > WINDOW {
            row.recent.pop_front();
        }
    }

    /// Draws over what was drawn before and returns how many lines that are now.
    fn draw(&self, drawn: u16) -> anyhow::Result<u16> {
        let lines = self.lines();
        if !self.live {
            output::write(&format!("{}\n", lines.join("\n")))?;
            return Ok(0);
        }
        let width = terminal::size().map_or(usize::MAX, |(columns, _)| usize::from(columns));
        let colours = output::colours(&io::stdout());
        let mut stdout = io::stdout().lock();
        if drawn > 0 {
            queue!(stdout, cursor::MoveToPreviousLine(drawn))?;
        }
        queue!(stdout, terminal::Clear(terminal::ClearType::FromCursorDown))?;
        for line in &lines {
            let line: String = line.chars().take(width).collect();
            let failing = colours && line.contains("last failure");
            if failing {
                writeln!(stdout, "{}", output::paint(&line, Colour::Red))?;
            } else {
                writeln!(stdout, "{line}")?;
            }
        }
        stdout.flush()?;
        Ok(u16::try_from(lines.len()).unwrap_or(u16::MAX))
    }

    fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!(
            "{:<24} {:>8} {:>9} {:>7} {:>9} {:>9}   {}",
            "CALLS", "RATE", "OK", "FAILED", "P50", "P99", "ANSWERED BY"
        )];
        for row in &self.rows {
            lines.push(row.line());
        }
        for row in &self.rows {
            if let Some(failure) = &row.last_failure {
                lines.push(format!("{}: last failure: {failure}", row.title.trim_end()));
            }
        }
        lines
    }
}

impl Row {
    fn line(&self) -> String {
        let mut latencies: Vec<u64> = self
            .recent
            .iter()
            .flat_map(|report| report.latencies_us.iter().copied())
            .collect();
        latencies.sort_unstable();
        let mut providers: BTreeMap<&str, u64> = BTreeMap::new();
        let mut calls = 0;
        for report in &self.recent {
            calls += report.ok + report.failed;
            for (provider, count) in &report.providers {
                *providers.entry(provider).or_default() += count;
            }
        }
        let answered: u64 = providers.values().sum();
        let shares: Vec<String> = providers
            .iter()
            .map(|(provider, count)| {
                format!(
                    "{provider} {}%",
                    (count * 100 + answered / 2) / answered.max(1)
                )
            })
            .collect();
        let seconds = self.recent.len().max(1) as u64;
        let rate = format!("{}.{}/s", calls / seconds, calls * 10 / seconds % 10);
        format!(
            "{:<24} {rate:>8} {:>9} {:>7} {:>9} {:>9}   {}",
            self.title,
            self.ok,
            self.failed,
            quantile(&latencies, 50),
            quantile(&latencies, 99),
            if shares.is_empty() {
                "nobody yet".to_owned()
            } else {
                shares.join(", ")
            },
        )
    }
}

/// The latency that this percentage of calls does not exceed, as text; the list is sorted.
fn quantile(latencies: &[u64], percent: usize) -> String {
    let index = (latencies.len() * percent).div_ceil(100).saturating_sub(1);
    match latencies.get(index) {
        Some(micros) => format!("{}.{:02} ms", micros / 1000, micros % 1000 / 10),
        None => "-".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_occurred() {
        let latencies: Vec<u64> = (1..=100).map(|n| n * 1000).collect();
        assert_eq!(quantile(&latencies, 50), "50.00 ms");
        assert_eq!(quantile(&latencies, 99), "99.00 ms");
        assert_eq!(quantile(&[1234], 99), "1.23 ms");
        assert_eq!(quantile(&[], 50), "-");
    }

    #[test]
    fn a_row_shows_the_shares_of_the_last_seconds() {
        let mut board = Board::new(&Plan::new([127, 77, 0]), false);
        for _ in 0..WINDOW + 1 {
            board.take(
                Protocol::Bolt,
                Report {
                    ok: 10,
                    latencies_us: vec![2000; 10],
                    providers: [("pricing-v1".to_owned(), 8), ("pricing-v2".to_owned(), 2)].into(),
                    ..Report::default()
                },
            );
        }
        let lines = board.lines();
        assert_eq!(
            lines[2],
            "Bolt  cart -> pricing      10.0/s        60       0   2.00 ms   2.00 ms   pricing-v1 80%, pricing-v2 20%"
        );
    }
}
