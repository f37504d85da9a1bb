//! Prepared calls and answers, and the cutting of a byte stream into them. All calls of a run are the same frame with
//! another id, so that the generator costs as little as it can.

use wire::bolt::sofarpc::{Answer as SofaAnswer, Call as SofaCall};
use wire::bolt::{self, Head as BoltHead, Kind as BoltKind, Parts};
use wire::dubbo::message::{Invocation, Reply};
use wire::dubbo::write::Kind as DubboKind;
use wire::dubbo::{self, Head as DubboHead};
use wire::frame::{Limits, Next};
use wire::hessian2::Value;

use crate::Protocol;

/// The interface that all calls name; the configurations in bench/ route it.
const INTERFACE: &str = "bench.Echo";
const METHOD: &str = "echo";
const ARGUMENT: &str = "a short argument of the call";
const TIMEOUT_MS: i32 = 3000;
/// Where the id is in a frame: (offset, width) in bytes.
const BOLT_ID: (usize, usize) = (5, 4);
const DUBBO_ID: (usize, usize) = (4, 8);

/// A frame whose id is filled in for each use.
#[derive(Clone)]
pub(crate) struct Template {
    bytes: Vec<u8>,
    id: Option<(usize, usize)>,
}

impl Template {
    /// The call that the generator sends.
    pub(crate) fn request(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Http => Self {
                bytes: b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n".to_vec(),
                id: None,
            },
            Protocol::Bolt => {
                let call = SofaCall {
                    service: format!("{INTERFACE}:1.0"),
                    method: METHOD.to_owned(),
                    types: vec!["java.lang.String".to_owned()],
                    args: vec![Value::from(ARGUMENT)],
                    props: Value::Null,
                };
                // What a stock SOFARPC client sends besides.
                let headers = [("type", "sync"), ("app", "bench"), ("protocol", "bolt")];
                let mut bytes = Vec::new();
                call.write(
                    &mut bytes,
                    BoltKind::Request,
                    TIMEOUT_MS,
                    &Parts::v1(0),
                    &headers,
                );
                Self {
                    bytes,
                    id: Some(BOLT_ID),
                }
            }
            Protocol::Dubbo => {
                let pairs = [
                    ("path", INTERFACE),
                    ("interface", INTERFACE),
                    ("version", "0.0.0"),
                    ("timeout", "3000"),
                    ("remote.application", "bench"),
                ];
                let call = Invocation {
                    path: INTERFACE.to_owned(),
                    version: "0.0.0".to_owned(),
                    method: METHOD.to_owned(),
                    descriptor: "Ljava/lang/String;".to_owned(),
                    args: vec![Value::from(ARGUMENT)],
                    attachments: pairs
                        .map(|(key, value)| (key.to_owned(), value.to_owned()))
                        .to_vec(),
                };
                let mut bytes = Vec::new();
                call.write(&mut bytes, DubboKind::Call, 0);
                Self {
                    bytes,
                    id: Some(DUBBO_ID),
                }
            }
        }
    }

    /// The answer of the server, with a text of `size` bytes.
    pub(crate) fn answer(protocol: Protocol, size: usize) -> Self {
        let text = "x".repeat(size);
        let mut bytes = Vec::new();
        let id = match protocol {
            Protocol::Http => {
                let head = format!(
                    "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {size}\r\n\r\n"
                );
                bytes.extend(head.bytes().chain(text.bytes()));
                None
            }
            Protocol::Bolt => {
                let answer = SofaAnswer::ok(Value::String(text));
                answer.write(&mut bytes, &Parts::v1(0), false, &[]);
                Some(BOLT_ID)
            }
            Protocol::Dubbo => {
                let reply = Reply::Value(Value::String(text));
                reply.write(&mut bytes, 0, &[("dubbo", "2.0.2")]);
                Some(DUBBO_ID)
            }
        };
        Self { bytes, id }
    }

    /// Appends the frame with this id to the output.
    pub(crate) fn append(&self, id: u64, output: &mut Vec<u8>) {
        let start = output.len();
        output.extend_from_slice(&self.bytes);
        if let Some((offset, width)) = self.id {
            let id = id.to_be_bytes();
            output[start + offset..start + offset + width].copy_from_slice(&id[8 - width..]);
        }
    }
}

/// An answer as the client sees it.
pub(crate) struct Answer {
    /// The id of the call; 0 for HTTP, which has none.
    pub(crate) id: u64,
    /// Whether the status says success.
    pub(crate) success: bool,
}

/// The bytes read from a connection and not used yet.
pub(crate) struct Frames {
    protocol: Protocol,
    input: Vec<u8>,
    used: usize,
}

impl Frames {
    pub(crate) fn new(protocol: Protocol) -> Self {
        Self {
            protocol,
            input: Vec::with_capacity(64 * 1024),
            used: 0,
        }
    }

    /// Where the next bytes of the connection are to be read into.
    pub(crate) fn input(&mut self) -> &mut Vec<u8> {
        self.input.drain(..self.used);
        self.used = 0;
        self.input.reserve(16 * 1024);
        &mut self.input
    }

    /// The id of the next whole call, if it has arrived; 0 for HTTP, which has none.
    pub(crate) fn next_request(&mut self) -> anyhow::Result<Option<u64>> {
        if self.protocol == Protocol::Http {
            // The calls have no bodies.
            let end = find(&self.input[self.used..], b"\r\n\r\n");
            self.used += end.map_or(0, |end| end + 4);
            return Ok(end.map(|_| 0));
        }
        Ok(self.next_answer()?.map(|frame| frame.id))
    }

    /// The next whole answer, if it has arrived.
    pub(crate) fn next_answer(&mut self) -> anyhow::Result<Option<Answer>> {
        let rest = &self.input[self.used..];
        if rest.is_empty() {
            return Ok(None);
        }
        let limits = Limits::default();
        let next = match self.protocol {
            Protocol::Http => match http_answer(rest)? {
                Some((answer, length)) if length <= rest.len() => {
                    self.used += length;
                    return Ok(Some(answer));
                }
                _ => return Ok(None),
            },
            Protocol::Bolt => bolt::next_frame(rest, &limits)?,
            Protocol::Dubbo => dubbo::next_frame(rest, &limits)?,
        };
        let Next::Frame(length) = next else {
            return Ok(None);
        };
        let frame = &rest[..length];
        let answer = if self.protocol == Protocol::Bolt {
            let head = BoltHead::parse(frame)?;
            Answer {
                id: u64::from(head.id),
                success: head.status == bolt::status::SUCCESS,
            }
        } else {
            let head = DubboHead::parse(frame)?;
            Answer {
                id: head.id,
                success: head.status == dubbo::status::OK,
            }
        };
        self.used += length;
        Ok(Some(answer))
    }
}

fn find(bytes: &[u8], pattern: &[u8]) -> Option<usize> {
    bytes
        .windows(pattern.len())
        .position(|window| window == pattern)
}

/// The answer at the start of the bytes and its length, if its head is complete.
fn http_answer(rest: &[u8]) -> anyhow::Result<Option<(Answer, usize)>> {
    let Some(end) = find(rest, b"\r\n\r\n") else {
        return Ok(None);
    };
    let head = std::str::from_utf8(&rest[..end])?.to_ascii_lowercase();
    let body = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"))
        .map_or(Ok(0), |length| length.trim().parse::<usize>())?;
    let success = head.split(' ').nth(1) == Some("200");
    Ok(Some((Answer { id: 0, success }, end + 4 + body)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_back_what_it_writes() {
        for protocol in [Protocol::Bolt, Protocol::Dubbo] {
            let mut frames = Frames::new(protocol);
            Template::request(protocol).append(7, frames.input());
            assert_eq!(frames.next_request().expect("a call"), Some(7));
            Template::answer(protocol, 1024).append(9, frames.input());
            let answer = frames.next_answer().expect("an answer").expect("complete");
            assert_eq!((answer.id, answer.success), (9, true));
            assert!(frames.next_answer().expect("nothing wrong").is_none());
        }
    }
}
