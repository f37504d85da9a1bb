//! Building Dubbo frames: heads, events and local answers.

use super::{EVENT, Head, MAGIC, REQUEST, Serialization, TWO_WAY, json, seal, status};
use crate::hessian2::encode::write_str;
use crate::hessian2::{Dialect, Encoder, Value};

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A call that wants an answer.
    Call,
    /// A call that is never answered.
    OneWay,
    /// An answer with this status.
    Answer(u8),
    /// An event that wants an answer.
    Event,
    /// An event that is never answered.
    OneWayEvent,
    /// The answer to an event.
    EventAnswer,
}

/// Appends a frame whose body `body` writes.
pub fn write_frame(
    out: &mut Vec<u8>,
    kind: Kind,
    serialization: Serialization,
    id: u64,
    body: impl FnOnce(&mut Vec<u8>),
) {
    let start = out.len();
    let (flags, status) = match kind {
        Kind::Call => (REQUEST | TWO_WAY, 0),
        Kind::OneWay => (REQUEST, 0),
        Kind::Answer(status) => (0, status),
        Kind::Event => (REQUEST | TWO_WAY | EVENT, 0),
        Kind::OneWayEvent => (REQUEST | EVENT, 0),
        Kind::EventAnswer => (EVENT, status::OK),
    };
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&[flags | (serialization.0 & 0x1f), status]);
    out.extend_from_slice(&id.to_be_bytes());
    out.extend_from_slice(&[0; 4]);
    body(out);
    seal(out.get_mut(start..).unwrap_or_default());
}

fn write_null(out: &mut Vec<u8>, serialization: Serialization) {
    match serialization {
        Serialization::FASTJSON2 => out.extend_from_slice(&[0, 0, 0, 1, json::NULL]),
        _ => out.push(b'N'),
    }
}

fn write_text(out: &mut Vec<u8>, serialization: Serialization, text: &str) {
    match serialization {
        Serialization::FASTJSON2 => json::write_item(out, text.as_bytes()),
        _ => write_str(out, text, Dialect::V2),
    }
}

/// Appends a heartbeat.
pub fn write_heartbeat(out: &mut Vec<u8>, serialization: Serialization, id: u64) {
    write_frame(out, Kind::Event, serialization, id, |out| {
        write_null(out, serialization);
    });
}

/// Appends the answer to a heartbeat: with any other body a Dubbo client does not count it.
pub fn write_heartbeat_ack(out: &mut Vec<u8>, heartbeat: &Head) {
    let serialization = heartbeat.serialization();
    write_frame(out, Kind::EventAnswer, serialization, heartbeat.id, |out| {
        write_null(out, serialization)
    });
}

/// Appends the event that asks a client for no new calls on this connection.
pub fn write_readonly(out: &mut Vec<u8>, serialization: Serialization, id: u64) {
    write_frame(out, Kind::OneWayEvent, serialization, id, |out| {
        write_text(out, serialization, "R");
    });
}

/// Whether an answer of ours can be written in this serialization.
pub fn can_answer(serialization: Serialization) -> bool {
    matches!(
        serialization,
        Serialization::HESSIAN2 | Serialization::FASTJSON2
    )
}

/// Appends an answer with a status other than 20 and a message.
pub fn write_status(out: &mut Vec<u8>, request: &Head, status: u8, message: &str) {
    let serialization = request.serialization();
    write_frame(
        out,
        Kind::Answer(status),
        serialization,
        request.id,
        |out| write_text(out, serialization, message),
    );
}

/// Appends an exception of the application: a stock consumer throws it and does not try again. In
/// fastjson2 classes are opaque to us, so the message goes as a service error.
pub fn write_exception(out: &mut Vec<u8>, request: &Head, message: &str) {
    if request.serialization() != Serialization::HESSIAN2 {
        return write_status(out, request, status::SERVICE_ERROR, message);
    }
    write_frame(
        out,
        Kind::Answer(status::OK),
        Serialization::HESSIAN2,
        request.id,
        |out| {
            out.push(0x90);
            let value = Value::object(
                "java.lang.RuntimeException",
                [("detailMessage", Value::from(message))],
            );
            Encoder::new(Dialect::V2).encode(&value, out);
        },
    );
}
