//! The log of the process: lines in the form of Envoy's default (`[time][thread][level][logger] text`) on standard error,
//! with Envoy's level names, changeable while running as `POST /logging` does it.

use std::fmt;
use std::io::IsTerminal as _;
use std::str::FromStr;
use std::sync::{Mutex, OnceLock, PoisonError};

use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::{Context, Filter, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer, Registry, reload};

/// Envoy's levels (`-l`, `--log-level`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Everything.
    Trace,
    /// Details of each request.
    Debug,
    /// What an operator may want to know.
    #[default]
    Info,
    /// What looks wrong.
    Warning,
    /// What is wrong.
    Error,
    /// Only what ends the process. Such messages go to standard error whatever the level is.
    Critical,
    /// Nothing.
    Off,
}

/// A level that does not exist.
#[derive(Debug, thiserror::Error)]
#[error("unknown log level {0:?} (trace, debug, info, warning, error, critical or off)")]
pub struct UnknownLevel(String);

/// A logger whose level cannot be set alone.
#[derive(Debug, thiserror::Error)]
#[error("unknown logger {0:?}")]
pub struct UnknownLogger(String);

/// The loggers whose level can be set alone, with the start of the tracing targets that they are made of.
const LOGGERS: [(&str, &[&str]); 14] = [
    ("access_log", &["telemetry::access_log"]),
    ("admin", &["mosn::admin"]),
    ("config", &["mosn::config", "mosn::bootstrap", "api"]),
    ("fault", &["mosn::fault"]),
    ("http", &["mosn::http", "wire::http1"]),
    ("listener", &["mosn::listener"]),
    ("main", &["mosn"]),
    ("mesh_registry", &["mosn::mesh_registry", "registry"]),
    ("net", &["net"]),
    ("pilot", &["pilot"]),
    ("router", &["mosn::route"]),
    ("rpc", &["mosn::rpc", "wire"]),
    ("upstream", &["mosn::cluster"]),
    ("xds", &["mosn::xds", "xds"]),
];

/// The filter in force. Targets of other crates follow `others`.
#[derive(Clone, Debug)]
struct Levels {
    loggers: [Level; LOGGERS.len()],
    others: Level,
}

static HANDLE: OnceLock<Mutex<reload::Handle<Levels, Registry>>> = OnceLock::new();

impl Level {
    /// The name as Envoy writes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Trace => "trace",
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
            Self::Critical => "critical",
            Self::Off => "off",
        }
    }

    fn filter(self) -> LevelFilter {
        match self {
            Self::Trace => LevelFilter::TRACE,
            Self::Debug => LevelFilter::DEBUG,
            Self::Info => LevelFilter::INFO,
            Self::Warning => LevelFilter::WARN,
            Self::Error => LevelFilter::ERROR,
            Self::Critical | Self::Off => LevelFilter::OFF,
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Level {
    type Err = UnknownLevel;

    fn from_str(name: &str) -> Result<Self, UnknownLevel> {
        Ok(match name {
            "trace" => Self::Trace,
            "debug" => Self::Debug,
            "info" => Self::Info,
            // Envoy takes the short form too.
            "warning" | "warn" => Self::Warning,
            "error" => Self::Error,
            "critical" => Self::Critical,
            "off" => Self::Off,
            other => return Err(UnknownLevel(other.to_owned())),
        })
    }
}

impl Levels {
    fn all(level: Level) -> Self {
        Self {
            loggers: [level; LOGGERS.len()],
            others: level,
        }
    }

    fn of(&self, target: &str) -> Level {
        let mut best = (0, self.others);
        for (level, (_, prefixes)) in self.loggers.iter().zip(LOGGERS) {
            for prefix in prefixes {
                if prefix.len() > best.0 && is_below(target, prefix) {
                    best = (prefix.len(), *level);
                }
            }
        }
        best.1
    }

    fn most_verbose(&self) -> Level {
        self.loggers
            .iter()
            .copied()
            .min()
            .map_or(self.others, |level| level.min(self.others))
    }
}

fn is_below(target: &str, module: &str) -> bool {
    target
        .strip_prefix(module)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

impl<S: Subscriber> Filter<S> for Levels {
    fn enabled(&self, metadata: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        *metadata.level() <= self.of(metadata.target()).filter()
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.most_verbose().filter())
    }
}

/// Starts logging to standard error. A second call in one process only sets the level.
pub fn init(level: Level) {
    let colours = std::io::stderr().is_terminal();
    start(level, BoxMakeWriter::new(std::io::stderr), colours);
}

/// Starts logging to a file. A second call in one process only sets the level.
pub fn init_file(level: Level, file: std::fs::File) {
    start(level, BoxMakeWriter::new(Mutex::new(file)), false);
}

fn start(level: Level, writer: BoxMakeWriter, colours: bool) {
    let (levels, handle) = reload::Layer::new(Levels::all(level));
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(writer)
        .with_ansi(colours)
        .event_format(EnvoyLine)
        .with_filter(levels);
    if tracing_subscriber::registry()
        .with(lines)
        .try_init()
        .is_ok()
    {
        // The first handle stays: only one subscriber can be the process's own.
        let _ = HANDLE.set(Mutex::new(handle));
    } else {
        set_level(level);
    }
}

fn change(change: impl FnOnce(&mut Levels)) {
    if let Some(handle) = HANDLE.get() {
        // Fails only if the subscriber is gone, and with it every log.
        let _ = handle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .modify(change);
    }
}

/// Sets every logger's level.
pub fn set_level(level: Level) {
    change(|levels| *levels = Levels::all(level));
}

/// Sets one logger's level.
///
/// # Errors
/// If there is no logger of this name.
pub fn set_logger_level(logger: &str, level: Level) -> Result<(), UnknownLogger> {
    let at = LOGGERS
        .iter()
        .position(|(name, _)| *name == logger)
        .ok_or_else(|| UnknownLogger(logger.to_owned()))?;
    change(|levels| {
        if let Some(slot) = levels.loggers.get_mut(at) {
            *slot = level;
        }
    });
    Ok(())
}

/// Every logger with its level, sorted by name. Empty before [`init`].
#[must_use]
pub fn levels() -> Vec<(&'static str, Level)> {
    let Some(handle) = HANDLE.get() else {
        return Vec::new();
    };
    handle
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .with_current(|levels| {
            LOGGERS
                .iter()
                .map(|(name, _)| *name)
                .zip(levels.loggers)
                .collect()
        })
        .unwrap_or_default()
}

/// The logger that a target belongs to, or the target itself.
fn logger_of(target: &str) -> &str {
    LOGGERS
        .iter()
        .flat_map(|(name, prefixes)| prefixes.iter().map(move |prefix| (*name, *prefix)))
        .filter(|(_, prefix)| is_below(target, prefix))
        .max_by_key(|(_, prefix)| prefix.len())
        .map_or(target, |(name, _)| name)
}

/// `[2026-11-22 12:34:56.789][1234][info][main] message key=value`
struct EnvoyLine;

impl<S, N> FormatEvent<S, N> for EnvoyLine
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        ctx: &FmtContext<'_, S, N>,
        mut out: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let metadata = event.metadata();
        let (level, colour) = match *metadata.level() {
            tracing::Level::TRACE => ("trace", "36"),
            tracing::Level::DEBUG => ("debug", "36"),
            tracing::Level::INFO => ("info", "32"),
            tracing::Level::WARN => ("warning", "33"),
            tracing::Level::ERROR => ("error", "31"),
        };
        let now = chrono::Utc::now().format("%Y-%m-%d %H:%M:%S%.3f");
        let thread = std::thread::current();
        write!(out, "[{now}][{}]", thread.name().unwrap_or("-"))?;
        if out.has_ansi_escapes() {
            write!(out, "[\x1b[{colour}m{level}\x1b[0m]")?;
        } else {
            write!(out, "[{level}]")?;
        }
        write!(out, "[{}] ", logger_of(metadata.target()))?;
        ctx.field_format().format_fields(out.by_ref(), event)?;
        writeln!(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_module_decides() {
        let mut levels = Levels::all(Level::Info);
        let at = |logger| {
            LOGGERS
                .iter()
                .position(|(name, _)| *name == logger)
                .unwrap()
        };
        levels.loggers[at("http")] = Level::Debug;
        levels.loggers[at("main")] = Level::Off;
        assert_eq!(levels.of("mosn::http::downstream"), Level::Debug);
        assert_eq!(levels.of("mosn::httpx"), Level::Off);
        assert_eq!(levels.of("hyper::proto"), Level::Info);
        assert_eq!(levels.most_verbose(), Level::Debug);
        assert_eq!(logger_of("wire::http1::parse"), "http");
        assert_eq!(logger_of("wire::bolt"), "rpc");
    }

    #[test]
    fn levels_have_envoys_names() {
        for name in [
            "trace", "debug", "info", "warning", "error", "critical", "off",
        ] {
            assert_eq!(name.parse::<Level>().unwrap().name(), name);
        }
        assert!("loud".parse::<Level>().is_err());
    }
}
