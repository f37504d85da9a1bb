//! Whole Dubbo calls and answers in Hessian, for programs that speak the protocol themselves.

use super::write::{Kind, write_frame};
use super::{Call, CallError, HEAD_LEN, Head, Serialization, call, status};
use crate::hessian2::encode::{write_int, write_str};
use crate::hessian2::{Decoder, Dialect, Encoder, Limits, Value};

/// A call.
#[derive(Clone, Debug, PartialEq)]
pub struct Invocation {
    /// Interface.
    pub path: String,
    /// Service version, `0.0.0` for none.
    pub version: String,
    /// Method.
    pub method: String,
    /// JVM descriptor of the parameters.
    pub descriptor: String,
    /// Arguments.
    pub args: Vec<Value>,
    /// Attachments.
    pub attachments: Vec<(String, String)>,
}

impl Invocation {
    /// Appends the call, as a two-way or one-way request.
    pub fn write(&self, out: &mut Vec<u8>, kind: Kind, id: u64) {
        write_frame(out, kind, Serialization::HESSIAN2, id, |out| {
            for text in [
                "2.0.2",
                &self.path,
                &self.version,
                &self.method,
                &self.descriptor,
            ] {
                write_str(out, text, Dialect::V2);
            }
            let mut encoder = Encoder::new(Dialect::V2);
            for arg in &self.args {
                encoder.encode(arg, out);
            }
            let pairs = self
                .attachments
                .iter()
                .map(|(key, value)| (key.as_str(), value.as_str()));
            encoder.encode(&Value::string_map(pairs), out);
        });
    }

    /// Reads a request in Hessian.
    pub fn read(frame: &[u8], head: &Head) -> Result<Invocation, CallError> {
        let call = Call::read(frame, head)?;
        if head.serialization() != Serialization::HESSIAN2 {
            return Err(CallError::Serialization(head.serialization().0));
        }
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let count = call::parameter_count(&call.descriptor).ok_or(CallError::Descriptor)?;
        let tail = call.body.get(call.args_at..).unwrap_or_default();
        let mut decoder = Decoder::new(tail, Dialect::V2, Limits::DECODE);
        let mut args = Vec::new();
        for _ in 0..count {
            args.push(decoder.value()?);
        }
        let mut attachments = Vec::new();
        if !decoder.is_empty()
            && let Value::Map { entries, .. } = decoder.value()?
        {
            for (key, value) in entries {
                if let (Value::String(key), Value::String(value)) = (key, value) {
                    attachments.push((key, value));
                }
            }
        }
        Ok(Invocation {
            path: text(&call.path),
            version: text(&call.version),
            method: text(&call.method),
            descriptor: text(&call.descriptor),
            args,
            attachments,
        })
    }

    /// The value of an attachment.
    pub fn attachment(&self, key: &str) -> Option<&str> {
        let found = self.attachments.iter().rev().find(|(name, _)| name == key);
        found.map(|(_, value)| value.as_str())
    }
}

/// What a call came to.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// A result, null included.
    Value(Value),
    /// An exception object.
    Exception(Value),
    /// A status other than 20 with its message.
    Failed(u8, String),
}

impl Reply {
    /// An exception of `class`.
    pub fn exception(class: &str, message: &str) -> Reply {
        Reply::Exception(Value::object(
            class,
            [("detailMessage", Value::from(message))],
        ))
    }

    /// Appends the answer, with attachments.
    pub fn write(&self, out: &mut Vec<u8>, id: u64, attachments: &[(&str, &str)]) {
        let status = match self {
            Reply::Failed(status, _) => *status,
            _ => status::OK,
        };
        write_frame(
            out,
            Kind::Answer(status),
            Serialization::HESSIAN2,
            id,
            |out| {
                let mut encoder = Encoder::new(Dialect::V2);
                let mut kind = |out: &mut Vec<u8>, kind: i32, value: Option<&Value>| {
                    write_int(out, kind);
                    if let Some(value) = value {
                        encoder.encode(value, out);
                    }
                };
                match self {
                    Reply::Failed(_, message) => {
                        return write_str(out, message, Dialect::V2);
                    }
                    Reply::Exception(value) => kind(out, 3, Some(value)),
                    Reply::Value(Value::Null) => kind(out, 5, None),
                    Reply::Value(value) => kind(out, 4, Some(value)),
                }
                encoder.encode(&Value::string_map(attachments.iter().copied()), out);
            },
        );
    }

    /// Reads an answer in Hessian.
    pub fn read(frame: &[u8], head: &Head) -> Result<Reply, CallError> {
        if head.serialization() != Serialization::HESSIAN2 {
            return Err(CallError::Serialization(head.serialization().0));
        }
        if head.status != status::OK {
            let text = call::error_text(frame, head).unwrap_or_default();
            return Ok(Reply::Failed(head.status, text));
        }
        let body = frame.get(HEAD_LEN..).unwrap_or_default();
        let mut decoder = Decoder::new(body, Dialect::V2, Limits::DECODE);
        Ok(match decoder.value()?.as_i64() {
            Some(0 | 3) => Reply::Exception(decoder.value()?),
            Some(1 | 4) => Reply::Value(decoder.value()?),
            _ => Reply::Value(Value::Null),
        })
    }
}
