//! Access logs as Envoy configures them (`envoy.config.accesslog.v3.AccessLog`): file, standard output and standard
//! error, with formats and filters compiled once.

mod filter;
mod sink;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use api::envoy::config::accesslog::v3 as proto;
use api::envoy::config::core::v3::substitution_format_string::Format as ProtoFormat;
use api::envoy::config::core::v3::{DataSource, SubstitutionFormatString, data_source};
use api::envoy::extensions::access_loggers::file::v3::{FileAccessLog, file_access_log};
use api::envoy::extensions::access_loggers::stream::v3::{
    StderrAccessLog, StdoutAccessLog, stderr_access_log, stdout_access_log,
};
use base::FieldError;

use crate::format::{self, Format, JsonFormat, Missing};
use crate::request_info::RequestInfo;
use filter::Filter;
pub use sink::Sinks;
use sink::{Sink, Target};

/// The compiled access logs of one listener, connection manager or proxy. Empty by default.
#[derive(Default)]
pub struct AccessLog {
    loggers: Vec<Logger>,
}

struct Logger {
    filter: Option<Filter>,
    line: Line,
    sink: Arc<Sink>,
}

enum Line {
    Text(Format),
    Json(JsonFormat),
}

impl AccessLog {
    /// Compiles the logs and opens their files.
    ///
    /// # Errors
    /// If a logger or filter is not supported, a format is wrong or a file cannot be opened; the path starts with the
    /// index in `logs`.
    pub fn compile(logs: &[proto::AccessLog], sinks: &Sinks) -> Result<Self, FieldError> {
        let loggers = logs
            .iter()
            .enumerate()
            .map(|(at, log)| logger(log, sinks).map_err(|error| error.in_index(at)));
        Ok(Self {
            loggers: loggers.collect::<Result<_, _>>()?,
        })
    }

    /// Whether anything is ever logged; if not, nothing need be collected.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        !self.loggers.is_empty()
    }

    /// Writes a line to each log whose filter lets the request through. Never waits for a file.
    pub fn log(&self, info: &RequestInfo<'_>) {
        for logger in &self.loggers {
            if logger
                .filter
                .as_ref()
                .is_none_or(|filter| filter.passes(info))
            {
                logger.sink.append(|out| match &logger.line {
                    Line::Text(format) => format.write(info, out),
                    Line::Json(format) => format.write(info, out),
                });
            }
        }
    }
}

fn logger(log: &proto::AccessLog, sinks: &Sinks) -> Result<Logger, FieldError> {
    let filter = match &log.filter {
        Some(filter) => Some(Filter::compile(filter).map_err(|error| error.in_field("filter"))?),
        None => None,
    };
    let Some(proto::access_log::ConfigType::TypedConfig(config)) = &log.config_type else {
        return Err(FieldError::at("typed_config", "is required"));
    };
    let (target, line) = match api::any::type_name(config) {
        "envoy.extensions.access_loggers.file.v3.FileAccessLog" => file(&api::any::unpack(config)?),
        "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog" => {
            stdout(&api::any::unpack(config)?)
        }
        "envoy.extensions.access_loggers.stream.v3.StderrAccessLog" => {
            stderr(&api::any::unpack(config)?)
        }
        other => Err(FieldError::new(format!(
            "access logger {other} is not supported"
        ))),
    }
    .map_err(|error| error.in_field("typed_config"))?;
    let sink = sinks
        .open(target)
        .map_err(|error| error.in_field("typed_config"))?;
    Ok(Logger { filter, line, sink })
}

fn file(log: &FileAccessLog) -> Result<(Target, Line), FieldError> {
    if log.path.is_empty() {
        return Err(FieldError::at("path", "must not be empty"));
    }
    Ok((Target::path(&log.path), file_format(log)?))
}

// The older forms are deprecated, and still what many configurations have.
#[allow(deprecated)]
fn file_format(log: &FileAccessLog) -> Result<Line, FieldError> {
    use file_access_log::AccessLogFormat as F;
    match &log.access_log_format {
        None => default_line(),
        Some(F::Format(text)) => text_line(text, false).map_err(|error| error.in_field("format")),
        Some(F::JsonFormat(fields)) => {
            json_line(fields, false).map_err(|error| error.in_field("json_format"))
        }
        Some(F::TypedJsonFormat(fields)) => {
            json_line(fields, false).map_err(|error| error.in_field("typed_json_format"))
        }
        Some(F::LogFormat(format)) => log_format(format),
    }
}

fn stdout(log: &StdoutAccessLog) -> Result<(Target, Line), FieldError> {
    let line = match &log.access_log_format {
        Some(stdout_access_log::AccessLogFormat::LogFormat(format)) => log_format(format)?,
        None => default_line()?,
    };
    Ok((Target::Stdout, line))
}

fn stderr(log: &StderrAccessLog) -> Result<(Target, Line), FieldError> {
    let line = match &log.access_log_format {
        Some(stderr_access_log::AccessLogFormat::LogFormat(format)) => log_format(format)?,
        None => default_line()?,
    };
    Ok((Target::Stderr, line))
}

fn log_format(format: &SubstitutionFormatString) -> Result<Line, FieldError> {
    substitution(format).map_err(|error| error.in_field("log_format"))
}

#[allow(deprecated)]
fn substitution(format: &SubstitutionFormatString) -> Result<Line, FieldError> {
    if let Some(extension) = format.formatters.first() {
        return Err(
            FieldError::new(format!("formatter {} is not supported", extension.name))
                .in_index(0)
                .in_field("formatters"),
        );
    }
    let omit_empty = format.omit_empty_values;
    match &format.format {
        None => Err(FieldError::new(
            "one of text_format, text_format_source and json_format is required",
        )),
        Some(ProtoFormat::TextFormat(text)) => {
            text_line(text, omit_empty).map_err(|error| error.in_field("text_format"))
        }
        Some(ProtoFormat::TextFormatSource(source)) => read(source)
            .and_then(|text| text_line(&text, omit_empty))
            .map_err(|error| error.in_field("text_format_source")),
        Some(ProtoFormat::JsonFormat(fields)) => {
            json_line(fields, omit_empty).map_err(|error| error.in_field("json_format"))
        }
    }
}

fn read(source: &DataSource) -> Result<String, FieldError> {
    use data_source::Specifier as S;
    match &source.specifier {
        Some(S::InlineString(text)) => Ok(text.clone()),
        Some(S::InlineBytes(bytes)) => String::from_utf8(bytes.clone())
            .map_err(|_| FieldError::at("inline_bytes", "is not UTF-8")),
        Some(S::Filename(path)) => std::fs::read_to_string(path)
            .map_err(|error| FieldError::at("filename", format!("cannot read {path}: {error}"))),
        Some(S::EnvironmentVariable(name)) => std::env::var(name).map_err(|_| {
            FieldError::at(
                "environment_variable",
                format!("{name} is not set or not UTF-8"),
            )
        }),
        None => Err(FieldError::new("is empty")),
    }
}

fn default_line() -> Result<Line, FieldError> {
    text_line(format::DEFAULT, false)
}

fn text_line(text: &str, omit_empty: bool) -> Result<Line, FieldError> {
    let missing = if omit_empty {
        Missing::Nothing
    } else {
        Missing::Dash
    };
    Format::compile_with(text, missing)
        .map(Line::Text)
        .map_err(|error| FieldError::new(error.to_string()))
}

fn json_line(fields: &api::google::protobuf::Struct, omit_empty: bool) -> Result<Line, FieldError> {
    JsonFormat::compile(fields, omit_empty).map(Line::Json)
}
