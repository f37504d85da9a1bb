//! The words of a Dubbo call, read in two stages: five strings first, the attachments behind the
//! arguments only when somebody asks.

use std::borrow::Cow;

use super::attachments::Attachments;
use super::json;
use super::{HEAD_LEN, Head, Serialization, status};
use crate::hessian2::token::{Reader, Token};
use crate::hessian2::{self, Dialect, Limits, Skipper};

/// A body that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// Not the Hessian it should be.
    #[error(transparent)]
    Hessian(#[from] hessian2::Error),
    /// Not the JSONB it should be.
    #[error("malformed fastjson2 item {0}")]
    Json(&'static str),
    /// The parameter types are no JVM descriptor.
    #[error("malformed parameter types")]
    Descriptor,
    /// A serialization whose bodies are opaque to us.
    #[error("serialization id {0} cannot be read")]
    Serialization(u8),
}

/// Stage one: what stands before the arguments.
#[derive(Clone, Debug)]
pub struct Call<'a> {
    /// Body of the frame.
    pub(super) body: &'a [u8],
    pub(super) serialization: Serialization,
    /// Protocol version of the caller, as in `2.0.2`.
    pub dubbo_version: Cow<'a, [u8]>,
    /// Service path, normally the interface.
    pub path: Cow<'a, [u8]>,
    /// Service version; `0.0.0` and nothing mean none.
    pub version: Cow<'a, [u8]>,
    /// Method as written, maybe `$invoke`.
    pub method: Cow<'a, [u8]>,
    /// JVM descriptor of the parameters.
    pub descriptor: Cow<'a, [u8]>,
    /// Offset of the service path in the body.
    pub(super) path_at: usize,
    /// Offset of the service version in the body.
    pub(super) version_at: usize,
    /// Offset of the method in the body.
    pub(super) method_at: usize,
    /// Offset of the first argument in the body.
    pub(super) args_at: usize,
}

impl<'a> Call<'a> {
    /// Reads the five strings of a request frame.
    pub fn read(frame: &'a [u8], head: &Head) -> Result<Call<'a>, CallError> {
        let body = frame.get(HEAD_LEN..).unwrap_or_default();
        let serialization = head.serialization();
        let mut at = 0;
        let mut next = |what| -> Result<(Cow<'a, [u8]>, usize), CallError> {
            let start = at;
            let (text, end) = match serialization {
                Serialization::HESSIAN2 => {
                    let mut reader = Reader::at(body, at, Dialect::V2);
                    (reader.text()?.bytes(), reader.position())
                }
                Serialization::FASTJSON2 => {
                    let (bytes, end) = json::item(body, at).ok_or(CallError::Json(what))?;
                    let (text, _) = json::string(bytes).ok_or(CallError::Json(what))?;
                    (text, end)
                }
                Serialization(id) => return Err(CallError::Serialization(id)),
            };
            at = end;
            Ok((text, start))
        };
        let (dubbo_version, _) = next("dubbo version")?;
        let (path, path_at) = next("path")?;
        let (version, version_at) = next("version")?;
        let (method, method_at) = next("method")?;
        let (descriptor, _) = next("parameter types")?;
        Ok(Call {
            body,
            serialization,
            dubbo_version,
            path,
            version,
            method,
            descriptor,
            path_at,
            version_at,
            method_at,
            args_at: at,
        })
    }

    /// The body's bytes up to the method, method included when `method` says so: equal bytes mean
    /// equal words.
    pub fn key_bytes(&self) -> &'a [u8] {
        self.body.get(..self.args_at).unwrap_or_default()
    }

    /// The method that is meant: argument 0 of `$invoke` and `$invokeAsync`.
    pub fn effective_method(&self) -> Cow<'a, [u8]> {
        if !matches!(&*self.method, b"$invoke" | b"$invokeAsync") {
            return self.method.clone();
        }
        let argument = match self.serialization {
            Serialization::HESSIAN2 => Reader::at(self.body, self.args_at, Dialect::V2)
                .text()
                .ok()
                .map(|text| text.bytes()),
            _ => json::item(self.body, self.args_at)
                .and_then(|(bytes, _)| json::string(bytes))
                .map(|(text, _)| text),
        };
        match argument {
            Some(method) if !method.is_empty() => method,
            _ => self.method.clone(),
        }
    }

    /// Stage two: walks over the arguments to the attachments.
    pub fn attachments(&self) -> Result<Attachments<'a>, CallError> {
        let args = parameter_count(&self.descriptor).ok_or(CallError::Descriptor)?;
        let mut at = self.args_at;
        match self.serialization {
            Serialization::HESSIAN2 => {
                let mut skipper = Skipper::new(Dialect::V2, Limits::SKIP);
                for _ in 0..args {
                    at = skipper.skip(self.body, at)?;
                }
                Ok(Attachments::hessian(self.body, at, skipper))
            }
            _ => {
                for _ in 0..args {
                    (_, at) = json::item(self.body, at).ok_or(CallError::Json("argument"))?;
                }
                Ok(Attachments::json(self.body, at))
            }
        }
    }
}

/// How many parameters a JVM descriptor names: `[` belongs to what follows, `L…;` is one.
pub fn parameter_count(descriptor: &[u8]) -> Option<usize> {
    let mut count = 0;
    let mut rest = descriptor;
    while let Some((first, tail)) = rest.split_first() {
        rest = match first {
            b'[' => {
                if tail.is_empty() {
                    return None;
                }
                rest = tail;
                continue;
            }
            b'L' => {
                let end = memchr::memchr(b';', tail)?;
                tail.get(end + 1..)?
            }
            b'Z' | b'B' | b'C' | b'D' | b'F' | b'I' | b'J' | b'S' => tail,
            _ => return None,
        };
        count += 1;
    }
    Some(count)
}

/// How a call ended, as far as the head and one byte of the body tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A result.
    Ok,
    /// An exception of the application inside an answer of status 20.
    AppError,
    /// A status other than 20.
    TransportError,
}

/// The kind of a status-20 answer: 0 exception, 1 value, 2 null, and the same with attachments from
/// 3 on. `None` when the serialization does not show it.
pub fn response_kind(frame: &[u8], head: &Head) -> Option<u8> {
    let body = frame.get(HEAD_LEN..)?;
    let kind = match head.serialization() {
        Serialization::HESSIAN2 => body.first()?.checked_sub(0x90)?,
        Serialization::FASTJSON2 => {
            let (item, _) = json::item(body, 0)?;
            match item {
                [0xbd, kind] => *kind,
                [kind] => *kind,
                _ => return None,
            }
        }
        _ => return None,
    };
    (kind <= 5).then_some(kind)
}

/// Reads the outcome of an answer.
pub fn outcome(frame: &[u8], head: &Head) -> Outcome {
    if head.status != status::OK {
        return Outcome::TransportError;
    }
    match response_kind(frame, head) {
        Some(0 | 3) => Outcome::AppError,
        _ => Outcome::Ok,
    }
}

/// The attachments of an answer of kind 3 to 5.
pub fn response_attachments<'a>(
    frame: &'a [u8],
    head: &Head,
) -> Result<Option<Attachments<'a>>, CallError> {
    let body = frame.get(HEAD_LEN..).unwrap_or_default();
    let values = match response_kind(frame, head) {
        Some(3 | 4) => 2,
        Some(5) => 1,
        _ => return Ok(None),
    };
    let mut at = 0;
    if head.serialization() == Serialization::HESSIAN2 {
        let mut skipper = Skipper::new(Dialect::V2, Limits::SKIP);
        for _ in 0..values {
            at = skipper.skip(body, at)?;
        }
        return Ok(Some(Attachments::hessian(body, at, skipper)));
    }
    for _ in 0..values {
        (_, at) = json::item(body, at).ok_or(CallError::Json("value"))?;
    }
    Ok(Some(Attachments::json(body, at)))
}

/// The message of an answer whose status is not 20, for logs.
pub fn error_text(frame: &[u8], head: &Head) -> Option<String> {
    let body = frame.get(HEAD_LEN..)?;
    match head.serialization() {
        Serialization::HESSIAN2 => match Reader::new(body, Dialect::V2).next() {
            Ok(Token::Text(text)) => Some(text.to_string_lossy().into_owned()),
            _ => None,
        },
        Serialization::FASTJSON2 => {
            let (bytes, _) = json::item(body, 0)?;
            let (text, _) = json::string(bytes)?;
            Some(String::from_utf8_lossy(&text).into_owned())
        }
        _ => None,
    }
}
