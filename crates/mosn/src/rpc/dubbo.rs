//! Dubbo 2 for the engine: where its words are, and what its answers look like.

use std::borrow::Cow;

use wire::dubbo::call::{Call, outcome, response_attachments};
use wire::dubbo::message::Reply;
use wire::dubbo::{self, Attachments, Head, Rewrite, Serialization, status};
use wire::frame::{Edit, FrameError, Limits, Next};

use super::protocol::{Change, Class, Outcome, Protocol, Role, Words};
use super::refusal::{Native, Refusal};
use super::upstream::{HostPool, Pool};

/// Dubbo 2 with Hessian 2 or fastjson2 bodies.
pub(super) struct Dubbo;

impl Protocol for Dubbo {
    type Head = Head;

    const NAME: &'static str = "dubbo";
    const ID_BITS: u32 = 64;

    fn pool(pools: &HostPool) -> &Pool<Dubbo> {
        &pools.dubbo
    }

    fn next_frame(bytes: &[u8], limits: &Limits) -> Result<Next, FrameError> {
        dubbo::next_frame(bytes, limits)
    }

    fn head(frame: &[u8]) -> Result<Head, FrameError> {
        Head::parse(frame)
    }

    fn head_unchecked(frame: &[u8]) -> Result<Head, FrameError> {
        Head::parse(frame)
    }

    fn head_of_refused(bytes: &[u8]) -> Option<Head> {
        Head::read(bytes).ok().flatten()
    }

    fn role(head: &Head, frame: &[u8]) -> Role {
        match (head.is_request(), head.is_event()) {
            (true, true) if head.is_readonly(frame) => Role::Drain,
            (true, true) if head.is_two_way() => Role::Heartbeat,
            (true, true) => Role::Other,
            (true, false) if head.is_two_way() => Role::Call,
            (true, false) => Role::OneWay,
            (false, true) => Role::HeartbeatAck,
            (false, false) => Role::Answer,
        }
    }

    fn id(head: &Head) -> u64 {
        head.id
    }

    fn set_id(frame: &mut [u8], _head: &Head, id: u64) {
        dubbo::set_id(frame, id);
    }

    /// The timeout is an attachment: changing it means writing the map again, which only a route's
    /// own changes are worth.
    fn set_timeout(_frame: &mut [u8], _head: &Head, _timeout_ms: u32) {}

    fn flavour(_head: &Head) -> usize {
        0
    }

    fn can_answer(head: &Head) -> bool {
        dubbo::write::can_answer(head.serialization())
    }

    fn words<'a>(frame: &'a [u8], head: &Head, limits: &Limits) -> Result<Words<'a>, String> {
        let call = Call::read(frame, head).map_err(|error| error.to_string())?;
        let method = call.effective_method();
        let (mut interface, mut group, mut timeout_ms) = (None, None, None);
        // A call whose arguments cannot be walked over is still routable by its first words.
        if let Ok(attachments) = call.attachments() {
            if attachments.len_bytes() > limits.header_bytes {
                return Err(format!(
                    "attachments of {} bytes exceed the limit of {}",
                    attachments.len_bytes(),
                    limits.header_bytes
                ));
            }
            let _ = attachments.each(|pair| match &*pair.key {
                b"interface" => interface = pair.value.clone(),
                b"group" => group = pair.value.clone(),
                b"timeout" => timeout_ms = pair.value.as_deref().and_then(number),
                _ => {}
            });
        }
        let version = match &*call.version {
            b"0.0.0" => Cow::Borrowed(b"".as_slice()),
            _ => call.version,
        };
        Ok(Words {
            service: interface
                .filter(|interface| !interface.is_empty())
                .unwrap_or(call.path),
            method,
            version,
            group: group.unwrap_or_default(),
            timeout_ms,
        })
    }

    fn header<'a>(frame: &'a [u8], head: &Head, lower: &str) -> Option<Cow<'a, [u8]>> {
        let mut found = None;
        let _ = attachments(frame, head)?.each(|pair| {
            if pair.key.eq_ignore_ascii_case(lower.as_bytes()) {
                found = pair.value.clone();
            }
        });
        found
    }

    fn each_header(frame: &[u8], head: &Head, visit: &mut dyn FnMut(&[u8], &[u8])) {
        if let Some(attachments) = attachments(frame, head) {
            let _ = attachments.each(|pair| {
                if let Some(value) = &pair.value {
                    visit(&pair.key, value);
                }
            });
        }
    }

    fn outcome(frame: &[u8], head: &Head) -> Outcome {
        let (class, http) = match outcome(frame, head) {
            dubbo::Outcome::Ok => (Class::Ok, 200),
            dubbo::Outcome::AppError => (Class::AppError, 200),
            dubbo::Outcome::TransportError => (
                Class::TransportError,
                match head.status {
                    status::CLIENT_TIMEOUT | status::SERVER_TIMEOUT => 504,
                    status::CHANNEL_INACTIVE | status::THREADPOOL_EXHAUSTED => 503,
                    status::BAD_REQUEST | status::CLIENT_ERROR => 400,
                    status::SERVICE_NOT_FOUND => 404,
                    _ => 500,
                },
            ),
        };
        // Java clients make 35 up for themselves: on the wire it only comes from a proxy.
        let unseen = head.status == status::CHANNEL_INACTIVE;
        Outcome {
            class,
            http,
            unseen,
        }
    }

    fn edit_call(
        frame: &[u8],
        head: &Head,
        change: &Change<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), String> {
        let rewrite = Rewrite {
            path: change.service.as_deref(),
            version: None,
            attachments: &change.edits,
        };
        dubbo::rewrite_call(frame, head, &rewrite, out).map_err(|error| error.to_string())
    }

    fn edit_answer(
        frame: &[u8],
        head: &Head,
        edits: &[Edit<'_>],
        out: &mut Vec<u8>,
    ) -> Result<(), String> {
        dubbo::rewrite_response(frame, head, edits, out).map_err(|error| error.to_string())
    }

    fn refuse(out: &mut Vec<u8>, call: &Head, refusal: &Refusal) {
        let status = match refusal.native() {
            Native::NotFound => status::SERVICE_NOT_FOUND,
            // To a consumer the same network error as 80; to a proxy that it may try elsewhere.
            Native::NoHost | Native::NotSent => status::CHANNEL_INACTIVE,
            Native::Closed | Native::ServerError => status::SERVER_ERROR,
            Native::Busy => status::THREADPOOL_EXHAUSTED,
            Native::Timeout => status::SERVER_TIMEOUT,
            Native::BadRequest => status::BAD_REQUEST,
            Native::Denied => return dubbo::write_exception(out, call, &refusal.message()),
            Native::Text => return write_text(out, call, &refusal.message()),
        };
        dubbo::write_status(out, call, status, &refusal.message());
    }

    fn heartbeat(out: &mut Vec<u8>, _flavour: usize, id: u64) {
        dubbo::write_heartbeat(out, Serialization::HESSIAN2, id);
    }

    fn heartbeat_ack(out: &mut Vec<u8>, heartbeat: &Head) {
        dubbo::write_heartbeat_ack(out, heartbeat);
    }

    fn drain_notice(out: &mut Vec<u8>) {
        dubbo::write_readonly(out, Serialization::HESSIAN2, 0);
    }
}

fn attachments<'a>(frame: &'a [u8], head: &Head) -> Option<Attachments<'a>> {
    if head.is_request() {
        Call::read(frame, head).ok()?.attachments().ok()
    } else {
        response_attachments(frame, head).ok()?
    }
}

fn number(text: &[u8]) -> Option<u32> {
    std::str::from_utf8(text)
        .ok()?
        .parse::<u32>()
        .ok()
        .filter(|ms| *ms > 0)
}

/// A result that is a string, where results can be written.
fn write_text(out: &mut Vec<u8>, call: &Head, text: &str) {
    if call.serialization() == Serialization::HESSIAN2 {
        Reply::Value(text.into()).write(out, call.id, &[]);
    } else {
        dubbo::write_status(out, call, status::SERVER_ERROR, text);
    }
}
