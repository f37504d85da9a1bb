//! `/logging`: levels, shown and changed while running.

use std::fmt::Write as _;

use telemetry::logging::{self, Level};

use super::{Query, Reply};

const USAGE: &str = "usage: /logging?<name>=<level> (change single level)
usage: /logging?paths=name1:level1,name2:level2,... (change multiple levels)
usage: /logging?level=<level> (change all levels)
levels: trace debug info warning error critical off \n";

pub(super) fn logging(query: &Query) -> Reply {
    match change(query) {
        Ok(()) => Reply::text(active()),
        Err(error) => Reply::bad_request(format!("error: {error}\n\n{USAGE}{}", active())),
    }
}

/// Changes what the query says, all or nothing.
fn change(query: &Query) -> Result<(), &'static str> {
    if query.is_empty() {
        return Ok(());
    }
    let Some((name, value)) = query.only() else {
        return Err("invalid number of parameters");
    };
    match name {
        "level" => logging::set_level(level(value)?),
        "paths" => {
            let wanted = value.split(',').map(|pair| match pair.split_once(':') {
                Some((name, value)) if !name.is_empty() && !value.is_empty() => {
                    Ok((known(name)?, level(value)?))
                }
                _ => Err("empty logger name or empty logger level"),
            });
            for (name, level) in wanted.collect::<Result<Vec<_>, _>>()? {
                logging::set_logger_level(name, level).map_err(|_| "unknown logger name")?;
            }
        }
        name => logging::set_logger_level(known(name)?, level(value)?)
            .map_err(|_| "unknown logger name")?,
    }
    Ok(())
}

fn level(name: &str) -> Result<Level, &'static str> {
    name.parse().map_err(|_| "unknown logger level")
}

fn known(name: &str) -> Result<&str, &'static str> {
    if logging::levels().iter().any(|(known, _)| *known == name) {
        Ok(name)
    } else {
        Err("unknown logger name")
    }
}

fn active() -> String {
    let mut text = "active loggers:\n".to_owned();
    for (name, level) in logging::levels() {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {name}: {level}");
    }
    text.push('\n');
    text
}
