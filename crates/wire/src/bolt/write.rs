//! Building Bolt frames.

use super::header::write_string;
use super::sofarpc;
use super::{Head, Kind, Version, codec, command, status};
use crate::hessian2::{Dialect, Encoder, Value};

/// The parts of a frame to be written.
#[derive(Clone, Copy, Debug)]
pub struct Parts<'a> {
    /// Layout.
    pub version: Version,
    /// v2's switch byte; bit 0 adds the checksum with `ver1` 2.
    pub switch: u8,
    /// Request id.
    pub id: u32,
    /// Serialization of the content.
    pub codec: u8,
    /// Java class of the content.
    pub class: &'a str,
    /// Header pairs.
    pub headers: &'a [(&'a str, &'a str)],
    /// Content.
    pub content: &'a [u8],
}

impl<'a> Parts<'a> {
    /// A bodiless frame of v1.
    pub fn v1(id: u32) -> Parts<'a> {
        Parts {
            version: Version::V1,
            switch: 0,
            id,
            codec: codec::HESSIAN2,
            class: "",
            headers: &[],
            content: &[],
        }
    }

    /// A bodiless answer to `request`. The bolt layer of Java answers errors without a checksum, and
    /// so do we.
    pub fn answer(request: &Head) -> Parts<'a> {
        Parts {
            version: request.version,
            switch: 0,
            id: request.id,
            codec: request.codec,
            class: "",
            headers: &[],
            content: &[],
        }
    }
}

/// The two bytes or four between codec and lengths.
enum Middle {
    Timeout(i32),
    Status(u16),
}

fn write(out: &mut Vec<u8>, kind: Kind, command: u16, middle: &Middle, parts: &Parts<'_>) {
    let start = out.len();
    let kind = match kind {
        Kind::Response => 0,
        Kind::Request => 1,
        Kind::OneWay => 2,
    };
    match parts.version {
        Version::V1 => out.extend_from_slice(&[1, kind]),
        Version::V2(ver1) => out.extend_from_slice(&[2, ver1, kind]),
    }
    out.extend_from_slice(&command.to_be_bytes());
    out.push(1);
    out.extend_from_slice(&parts.id.to_be_bytes());
    out.push(parts.codec);
    if parts.version != Version::V1 {
        out.push(parts.switch);
    }
    match middle {
        Middle::Timeout(timeout_ms) => out.extend_from_slice(&timeout_ms.to_be_bytes()),
        Middle::Status(status) => out.extend_from_slice(&status.to_be_bytes()),
    }
    let lengths_at = out.len();
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(parts.class.as_bytes());
    let header_at = out.len();
    for (key, value) in parts.headers {
        write_string(out, key.as_bytes());
        write_string(out, value.as_bytes());
    }
    let header_len = out.len() - header_at;
    out.extend_from_slice(parts.content);
    let short = |len: usize| u16::try_from(len).unwrap_or(u16::MAX).to_be_bytes();
    super::put(out, lengths_at, short(parts.class.len()));
    super::put(out, lengths_at + 2, short(header_len));
    let content_len = u32::try_from(parts.content.len()).unwrap_or(u32::MAX);
    super::put(out, lengths_at + 4, content_len.to_be_bytes());
    if parts.version == Version::V2(2) && parts.switch & 1 == 1 {
        let sum = crc32fast::hash(out.get(start..).unwrap_or_default());
        out.extend_from_slice(&sum.to_be_bytes());
    }
}

/// Appends a call; `timeout_ms` -1 means none.
pub fn write_request(out: &mut Vec<u8>, kind: Kind, timeout_ms: i32, parts: &Parts<'_>) {
    write(
        out,
        kind,
        command::REQUEST,
        &Middle::Timeout(timeout_ms),
        parts,
    );
}

/// Appends an answer.
pub fn write_response(out: &mut Vec<u8>, status: u16, parts: &Parts<'_>) {
    write(
        out,
        Kind::Response,
        command::RESPONSE,
        &Middle::Status(status),
        parts,
    );
}

/// Appends a heartbeat.
pub fn write_heartbeat(out: &mut Vec<u8>, version: Version, id: u32) {
    let parts = Parts {
        version,
        ..Parts::v1(id)
    };
    write(
        out,
        Kind::Request,
        command::HEARTBEAT,
        &Middle::Timeout(-1),
        &parts,
    );
}

/// Appends the acknowledgement of a heartbeat.
pub fn write_heartbeat_ack(out: &mut Vec<u8>, heartbeat: &Head) {
    write(
        out,
        Kind::Response,
        command::HEARTBEAT,
        &Middle::Status(status::SUCCESS),
        &Parts::answer(heartbeat),
    );
}

/// Appends a bodiless answer with this status.
pub fn write_status(out: &mut Vec<u8>, request: &Head, status: u16) {
    write_response(out, status, &Parts::answer(request));
}

/// Appends status 2 with an exception object: a stock client shows `message`. Only callers that use
/// Hessian can read it.
pub fn write_exception(out: &mut Vec<u8>, request: &Head, message: &str) {
    const CLASS: &str = "com.alipay.remoting.rpc.exception.RpcServerException";
    let mut content = Vec::new();
    let value = Value::object(CLASS, [("detailMessage", Value::from(message))]);
    Encoder::new(Dialect::Sofa).encode(&value, &mut content);
    let parts = Parts {
        class: CLASS,
        content: &content,
        ..Parts::answer(request)
    };
    write_response(out, status::SERVER_EXCEPTION, &parts);
}

/// Appends status 0 with a SOFARPC response that says it is an error; readable for callers of every
/// codec.
pub fn write_error(out: &mut Vec<u8>, request: &Head, message: &str) {
    let content = match request.codec {
        codec::HESSIAN2 => sofarpc::Answer::error(message).encode(),
        _ => message.as_bytes().to_vec(),
    };
    let parts = Parts {
        class: sofarpc::RESPONSE_CLASS,
        headers: &[(sofarpc::RESPONSE_ERROR, "true")],
        content: &content,
        ..Parts::answer(request)
    };
    write_response(out, status::SUCCESS, &parts);
}

/// Appends MOSN's GOAWAY. Only for peers known to be a mesh proxy.
pub fn write_goaway(out: &mut Vec<u8>, version: Version, id: u32) {
    let parts = Parts {
        version,
        ..Parts::v1(id)
    };
    write(
        out,
        Kind::Request,
        command::GOAWAY,
        &Middle::Timeout(0),
        &parts,
    );
}
