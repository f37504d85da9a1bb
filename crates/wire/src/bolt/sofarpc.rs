//! SOFARPC's messages inside Bolt: header keys, SofaRequest and SofaResponse.

use super::write::{Parts, write_request, write_response};
use super::{Kind, status};
use crate::hessian2::{Decoder, Dialect, Encoder, Error, Limits, Value};

/// Class of the content of a call.
pub const REQUEST_CLASS: &str = "com.alipay.sofa.rpc.core.request.SofaRequest";
/// Class of the content of an answer.
pub const RESPONSE_CLASS: &str = "com.alipay.sofa.rpc.core.response.SofaResponse";
/// Header: unique name of the service, `interface:version[:uniqueId]`. Wins over the body.
pub const SERVICE: &str = "service";
/// Header: the same, used when [`SERVICE`] is absent.
pub const TARGET_SERVICE: &str = "sofa_head_target_service";
/// Header: method.
pub const METHOD: &str = "sofa_head_method_name";
/// Header of an answer: `true` when framework or business code failed.
pub const RESPONSE_ERROR: &str = "sofa_head_response_error";

/// A unique service name taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UniqueName<'a> {
    /// Interface.
    pub interface: &'a [u8],
    /// Version, `1.0` by default.
    pub version: &'a [u8],
    /// Unique id, empty when there is none.
    pub group: &'a [u8],
}

impl<'a> UniqueName<'a> {
    /// Splits `interface:version[:uniqueId]`.
    pub fn parse(name: &'a [u8]) -> UniqueName<'a> {
        let mut parts = name.splitn(3, |byte| *byte == b':');
        UniqueName {
            interface: parts.next().unwrap_or_default(),
            version: parts
                .next()
                .filter(|version| !version.is_empty())
                .unwrap_or(b"1.0"),
            group: parts.next().unwrap_or_default(),
        }
    }
}

/// A SOFARPC call in Hessian.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// Unique name of the service.
    pub service: String,
    /// Method.
    pub method: String,
    /// Java types of the arguments, as in `java.lang.String`.
    pub types: Vec<String>,
    /// Arguments.
    pub args: Vec<Value>,
    /// Request properties.
    pub props: Value,
}

impl Call {
    /// The content bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut encoder = Encoder::new(Dialect::Sofa);
        let types = Value::string_array(self.types.iter().map(String::as_str));
        let request = Value::object(
            REQUEST_CLASS,
            [
                ("targetAppName", Value::Null),
                ("methodName", Value::from(self.method.as_str())),
                (
                    "targetServiceUniqueName",
                    Value::from(self.service.as_str()),
                ),
                ("requestProps", self.props.clone()),
                ("methodArgSigs", types),
            ],
        );
        encoder.encode(&request, &mut out);
        for arg in &self.args {
            encoder.encode(arg, &mut out);
        }
        out
    }

    /// Reads the content bytes.
    pub fn decode(content: &[u8]) -> Result<Call, Error> {
        let mut decoder = Decoder::new(content, Dialect::Sofa, Limits::DECODE);
        let request = decoder.value()?;
        let text = |name: &str| {
            let value = request.get(name).and_then(Value::as_str);
            value.unwrap_or_default().to_owned()
        };
        let types: Vec<String> = request
            .get("methodArgSigs")
            .and_then(Value::items)
            .unwrap_or_default()
            .iter()
            .filter_map(|item| item.as_str().map(str::to_owned))
            .collect();
        let mut args = Vec::new();
        for _ in &types {
            args.push(decoder.value()?);
        }
        Ok(Call {
            service: text("targetServiceUniqueName"),
            method: text("methodName"),
            types,
            args,
            props: request.get("requestProps").cloned().unwrap_or(Value::Null),
        })
    }

    /// Appends the whole frame, with the three headers that name service and method in front of
    /// `headers`.
    pub fn write(
        &self,
        out: &mut Vec<u8>,
        kind: Kind,
        timeout_ms: i32,
        parts: &Parts<'_>,
        headers: &[(&str, &str)],
    ) {
        let mut all = vec![
            (TARGET_SERVICE, self.service.as_str()),
            (SERVICE, self.service.as_str()),
            (METHOD, self.method.as_str()),
        ];
        all.extend_from_slice(headers);
        let content = self.encode();
        let parts = Parts {
            class: REQUEST_CLASS,
            headers: &all,
            content: &content,
            ..*parts
        };
        write_request(out, kind, timeout_ms, &parts);
    }
}

/// A SOFARPC answer in Hessian.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The framework failed, with this message.
    pub error: Option<String>,
    /// Result, or the exception object that business code threw.
    pub response: Value,
    /// Response properties.
    pub props: Value,
}

impl Answer {
    /// A result.
    pub fn ok(response: Value) -> Answer {
        Answer {
            error: None,
            response,
            props: Value::Null,
        }
    }

    /// A failure of the framework.
    pub fn error(message: &str) -> Answer {
        Answer {
            error: Some(message.to_owned()),
            response: Value::Null,
            props: Value::Null,
        }
    }

    /// An exception of `class` thrown by business code.
    pub fn exception(class: &str, message: &str) -> Answer {
        Answer::ok(Value::object(
            class,
            [("detailMessage", Value::from(message))],
        ))
    }

    /// The content bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let message = self.error.clone().map_or(Value::Null, Value::String);
        let value = Value::object(
            RESPONSE_CLASS,
            [
                ("isError", Value::Bool(self.error.is_some())),
                ("errorMsg", message),
                ("appResponse", self.response.clone()),
                ("responseProps", self.props.clone()),
            ],
        );
        Encoder::new(Dialect::Sofa).encode(&value, &mut out);
        out
    }

    /// Reads the content bytes.
    pub fn decode(content: &[u8]) -> Result<Answer, Error> {
        let value = Decoder::new(content, Dialect::Sofa, Limits::DECODE).value()?;
        let is_error = value.get("isError").and_then(Value::as_bool) == Some(true);
        let message = value.get("errorMsg").and_then(Value::as_str);
        Ok(Answer {
            error: is_error.then(|| message.unwrap_or_default().to_owned()),
            response: value.get("appResponse").cloned().unwrap_or(Value::Null),
            props: value.get("responseProps").cloned().unwrap_or(Value::Null),
        })
    }

    /// Appends the whole frame; `failed` sets the header that tells callers of a failure.
    pub fn write(
        &self,
        out: &mut Vec<u8>,
        parts: &Parts<'_>,
        failed: bool,
        headers: &[(&str, &str)],
    ) {
        let mut all = Vec::with_capacity(headers.len() + 1);
        if failed {
            all.push((RESPONSE_ERROR, "true"));
        }
        all.extend_from_slice(headers);
        let content = self.encode();
        let parts = Parts {
            class: RESPONSE_CLASS,
            headers: &all,
            content: &content,
            ..*parts
        };
        write_response(out, status::SUCCESS, &parts);
    }
}
