//! Bolt for the engine: where its words are, and what its answers look like.

use std::borrow::Cow;

use wire::bolt::sofarpc::{Answer, METHOD, RESPONSE_ERROR, SERVICE, TARGET_SERVICE, UniqueName};
use wire::bolt::{self, Head, Headers, Kind, Parts, Version, codec, command, status};
use wire::frame::{Edit, FrameError, Limits, Next};

use super::protocol::{Change, Class, Outcome, Protocol, Role, Words};
use super::refusal::{Native, Refusal};
use super::upstream::{HostPool, Pool};

/// SOFABolt v1 and v2 with SOFARPC's header keys.
pub(super) struct Bolt;

const METHOD_KEYS: [&[u8]; 3] = [
    METHOD.as_bytes(),
    SERVICE.as_bytes(),
    TARGET_SERVICE.as_bytes(),
];

impl Protocol for Bolt {
    type Head = Head;

    const NAME: &'static str = "bolt";
    const ID_BITS: u32 = 32;

    fn pool(pools: &HostPool) -> &Pool<Bolt> {
        &pools.bolt
    }

    fn next_frame(bytes: &[u8], limits: &Limits) -> Result<Next, FrameError> {
        bolt::next_frame(bytes, limits)
    }

    fn head(frame: &[u8]) -> Result<Head, FrameError> {
        let head = Head::parse(frame)?;
        bolt::verify(frame, &head)?;
        Ok(head)
    }

    fn head_unchecked(frame: &[u8]) -> Result<Head, FrameError> {
        Head::parse(frame)
    }

    fn head_of_refused(bytes: &[u8]) -> Option<Head> {
        Head::read(bytes).ok().flatten()
    }

    fn role(head: &Head, _frame: &[u8]) -> Role {
        match (head.command, head.kind) {
            (command::HEARTBEAT, Kind::Request) => Role::Heartbeat,
            (command::HEARTBEAT, Kind::Response) => Role::HeartbeatAck,
            (command::GOAWAY, _) => Role::Drain,
            (_, Kind::Response) => Role::Answer,
            (command::REQUEST, Kind::Request) => Role::Call,
            (command::REQUEST, Kind::OneWay) => Role::OneWay,
            _ => Role::Other,
        }
    }

    fn id(head: &Head) -> u64 {
        u64::from(head.id)
    }

    fn set_id(frame: &mut [u8], head: &Head, id: u64) {
        let mut head = *head;
        bolt::set_id(frame, &mut head, id as u32);
        if head.has_checksum() {
            reseal(frame);
        }
    }

    fn set_timeout(frame: &mut [u8], head: &Head, timeout_ms: u32) {
        let timeout_ms = i32::try_from(timeout_ms).unwrap_or(i32::MAX);
        let mut head = *head;
        if head.timeout_ms != timeout_ms {
            bolt::set_timeout(frame, &mut head, timeout_ms);
            if head.has_checksum() {
                reseal(frame);
            }
        }
    }

    /// A stock server answers all frames of a connection in the layout of the first.
    fn flavour(head: &Head) -> usize {
        match head.version {
            Version::V1 => 0,
            Version::V2(ver1) => usize::from(ver1.clamp(1, 2)),
        }
    }

    fn can_answer(_head: &Head) -> bool {
        true
    }

    fn words<'a>(frame: &'a [u8], head: &Head, _limits: &Limits) -> Result<Words<'a>, String> {
        let [mut method, mut service, mut target] = [None; 3];
        for pair in Headers::of(frame, head) {
            let (key, value) = pair.map_err(|error| error.to_string())?;
            // The lengths differ, so one comparison of bytes is made for a key that fits.
            match METHOD_KEYS.iter().position(|known| *known == key) {
                Some(0) => method = Some(value),
                Some(1) => service = Some(value),
                Some(_) => target = Some(value),
                None => {}
            }
        }
        let name = service.or(target).unwrap_or_default();
        let UniqueName {
            interface,
            version,
            group,
        } = UniqueName::parse(name);
        Ok(Words {
            service: Cow::Borrowed(interface),
            method: Cow::Borrowed(method.unwrap_or_default()),
            version: Cow::Borrowed(version),
            group: Cow::Borrowed(group),
            timeout_ms: u32::try_from(head.timeout_ms).ok().filter(|ms| *ms > 0),
        })
    }

    fn header<'a>(frame: &'a [u8], head: &Head, lower: &str) -> Option<Cow<'a, [u8]>> {
        let mut found = None;
        for pair in Headers::of(frame, head) {
            match pair {
                Ok((key, value)) if key.eq_ignore_ascii_case(lower.as_bytes()) => {
                    found = Some(Cow::Borrowed(value));
                }
                Ok(_) => {}
                Err(_) => break,
            }
        }
        found
    }

    fn each_header(frame: &[u8], head: &Head, visit: &mut dyn FnMut(&[u8], &[u8])) {
        for (key, value) in Headers::of(frame, head).flatten() {
            visit(key, value);
        }
    }

    fn outcome(frame: &[u8], head: &Head) -> Outcome {
        let failed = |http| Outcome {
            class: Class::TransportError,
            http,
            // A server sends 6 before it looks at the call; 8 on the wire only comes from a proxy.
            unseen: matches!(
                head.status,
                status::NO_PROCESSOR | status::CLIENT_SEND_ERROR
            ),
        };
        match head.status {
            status::SUCCESS => {
                let error = head.header().len() > RESPONSE_ERROR.len()
                    && Headers::of(frame, head).find(RESPONSE_ERROR.as_bytes())
                        == Some(b"true".as_slice());
                Outcome {
                    class: if error { Class::AppError } else { Class::Ok },
                    http: 200,
                    unseen: false,
                }
            }
            status::SERVER_BUSY | status::CONNECTION_CLOSED | status::CLIENT_SEND_ERROR => {
                failed(503)
            }
            status::ERROR_COMM => failed(502),
            status::NO_PROCESSOR => failed(404),
            status::TIMEOUT => failed(504),
            status::CODEC_EXCEPTION | status::SERVER_DESERIAL_EXCEPTION => failed(400),
            _ => failed(500),
        }
    }

    fn edit_call(
        frame: &[u8],
        head: &Head,
        change: &Change<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), String> {
        let mut edits = change.edits.clone();
        let name;
        if let Some(service) = &change.service {
            // Version and unique id stay those of the caller.
            let old = Headers::of(frame, head);
            let old = old
                .clone()
                .find(SERVICE.as_bytes())
                .or_else(|| old.find(TARGET_SERVICE.as_bytes()))
                .unwrap_or_default();
            let tail = memchr::memchr(b':', old).and_then(|at| old.get(at..));
            name = [service, tail.unwrap_or_default()].concat();
            edits.push(Edit::Set(SERVICE.as_bytes(), &name));
            edits.push(Edit::Set(TARGET_SERVICE.as_bytes(), &name));
        }
        bolt::rewrite_headers(frame, head, &edits, out).map_err(|error| error.to_string())
    }

    fn edit_answer(
        frame: &[u8],
        head: &Head,
        edits: &[Edit<'_>],
        out: &mut Vec<u8>,
    ) -> Result<(), String> {
        bolt::rewrite_headers(frame, head, edits, out).map_err(|error| error.to_string())
    }

    fn refuse(out: &mut Vec<u8>, call: &Head, refusal: &Refusal) {
        let status = match refusal.native() {
            Native::NotFound | Native::NoHost => status::NO_PROCESSOR,
            // To a stock client the same network error as 16; to a proxy that it may try elsewhere.
            Native::NotSent => status::CLIENT_SEND_ERROR,
            Native::Closed => status::CONNECTION_CLOSED,
            Native::Busy => status::SERVER_BUSY,
            Native::Timeout => status::TIMEOUT,
            Native::BadRequest => status::CODEC_EXCEPTION,
            Native::Denied | Native::ServerError => {
                let message = refusal.message();
                return match call.codec {
                    codec::HESSIAN2 => bolt::write_exception(out, call, &message),
                    _ => bolt::write_error(out, call, &message),
                };
            }
            Native::Text => return write_text(out, call, &refusal.message()),
        };
        bolt::write_status(out, call, status);
    }

    fn heartbeat(out: &mut Vec<u8>, flavour: usize, id: u64) {
        let version = match flavour {
            0 => Version::V1,
            1 => Version::V2(1),
            _ => Version::V2(2),
        };
        bolt::write_heartbeat(out, version, id as u32);
    }

    fn heartbeat_ack(out: &mut Vec<u8>, heartbeat: &Head) {
        bolt::write_heartbeat_ack(out, heartbeat);
    }

    /// Stock Bolt peers close the connection on GOAWAY, so nothing is sent.
    fn drain_notice(_out: &mut Vec<u8>) {}
}

/// The head may have changed its lengths since it was read, so it is read again.
fn reseal(frame: &mut [u8]) {
    if let Ok(head) = Head::parse(frame) {
        bolt::seal(frame, &head);
    }
}

/// A result that is a string.
fn write_text(out: &mut Vec<u8>, call: &Head, text: &str) {
    let parts = Parts::answer(call);
    if call.codec == codec::HESSIAN2 {
        Answer::ok(text.into()).write(out, &parts, false, &[]);
    } else {
        let parts = Parts {
            class: bolt::sofarpc::RESPONSE_CLASS,
            content: text.as_bytes(),
            ..parts
        };
        bolt::write_response(out, status::SUCCESS, &parts);
    }
}
