//! Envoy's command operators (`%REQ(X)%`, `%DURATION%`, …): a text is compiled once into a list of operations and
//! written many times. Access logs and header values with operators share it.
//!
//! What Envoy 1.40 refuses is refused here in Envoy's words. Operators of features that do not exist here (TLS
//! certificates, filter state, dynamic metadata) are accepted and print what Envoy prints where the value is missing.

mod json;
mod op;
mod time;
mod value;

pub use json::JsonFormat;
pub(crate) use op::Op;
use value::Written;

use crate::request_info::RequestInfo;

/// Envoy's format for access logs that have none of their own.
pub const DEFAULT: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" \
     %RESPONSE_CODE% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \
     \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\"\n";

/// Why a format was refused; the text is Envoy's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct FormatError(pub(crate) String);

/// What is written where a value is missing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Missing {
    /// A dash.
    #[default]
    Dash,
    /// Nothing (`omit_empty_values`).
    Nothing,
}

/// A compiled text.
#[derive(Debug)]
pub struct Format {
    parts: Vec<Part>,
    missing: Missing,
}

#[derive(Debug)]
enum Part {
    Literal(Box<str>),
    Op(Op),
}

impl Format {
    /// Compiles a text; a missing value will be a dash.
    ///
    /// # Errors
    /// If an operator is unknown or malformed, in Envoy's words.
    pub fn compile(text: &str) -> Result<Self, FormatError> {
        Self::compile_with(text, Missing::Dash)
    }

    /// Compiles a text.
    ///
    /// # Errors
    /// If an operator is unknown or malformed, in Envoy's words.
    pub fn compile_with(text: &str, missing: Missing) -> Result<Self, FormatError> {
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some(at) = rest.find('%') {
            let (before, from_percent) = rest.split_at(at);
            literal.push_str(before);
            if let Some(after) = from_percent.strip_prefix("%%") {
                literal.push('%');
                rest = after;
                continue;
            }
            let Some((command, after)) = split_command(from_percent) else {
                let position = text.len() - from_percent.len();
                return Err(FormatError(format!(
                    "Incorrect configuration: {text}. Couldn't find valid command at position {position}"
                )));
            };
            if !literal.is_empty() {
                parts.push(Part::Literal(std::mem::take(&mut literal).into()));
            }
            parts.push(Part::Op(Op::parse(&command)?));
            rest = after;
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            parts.push(Part::Literal(literal.into()));
        }
        Ok(Self { parts, missing })
    }

    /// The text itself if it has no operator.
    #[must_use]
    pub fn literal(&self) -> Option<&str> {
        match self.parts.as_slice() {
            [] => Some(""),
            [Part::Literal(text)] => Some(text),
            _ => None,
        }
    }

    /// Appends the text for this request.
    pub fn write(&self, info: &RequestInfo<'_>, out: &mut Vec<u8>) {
        for part in &self.parts {
            match part {
                Part::Literal(text) => out.extend_from_slice(text.as_bytes()),
                Part::Op(op) => {
                    if op.write(info, out) == Written::Nothing && self.missing == Missing::Dash {
                        out.push(b'-');
                    }
                }
            }
        }
    }
}

/// `NAME`, `NAME(parameters)`, `NAME:length` or `NAME(parameters):length`.
#[derive(Debug)]
struct Command<'a> {
    name: &'a str,
    parameters: Option<&'a str>,
    length: Option<usize>,
}

/// Takes one command off a text that starts with its percent sign.
fn split_command(text: &str) -> Option<(Command<'_>, &str)> {
    let text = text.strip_prefix('%')?;
    let end = text.find(|c: char| !(c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_'))?;
    let (name, mut rest) = text.split_at_checked(end)?;
    if name.is_empty() {
        return None;
    }
    let mut parameters = None;
    if let Some(inside) = rest.strip_prefix('(') {
        let (inside, after) = inside.split_once(')')?;
        if inside.contains('\n') {
            return None;
        }
        parameters = Some(inside);
        rest = after;
    }
    let mut length = None;
    if let Some(digits) = rest.strip_prefix(':') {
        let (digits, _) = digits.split_once('%')?;
        length = Some(
            digits
                .parse()
                .ok()
                .filter(|_| digits.bytes().all(|b| b.is_ascii_digit()))?,
        );
        rest = rest.get(1 + digits.len()..)?;
    }
    Some((
        Command {
            name,
            parameters,
            length,
        },
        rest.strip_prefix('%')?,
    ))
}

#[cfg(test)]
mod tests;
