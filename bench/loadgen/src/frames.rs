//! Prepared calls and answers, and the cutting of a byte stream into them. All calls of a run are the same frame with
//! another id, so that the generator costs as little as it can.

use anyhow::bail;

use crate::Protocol;

/// The interface that all calls name; the configurations in bench/ route it.
pub(crate) const INTERFACE: &str = "bench.Echo";

const BOLT_REQUEST_HEAD: usize = 22;
const BOLT_RESPONSE_HEAD: usize = 20;
const DUBBO_HEAD: usize = 16;
/// Where the id is: (offset, width) in bytes.
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
            Protocol::Bolt => Self {
                bytes: bolt_request(),
                id: Some(BOLT_ID),
            },
            Protocol::Dubbo => Self {
                bytes: dubbo_request(),
                id: Some(DUBBO_ID),
            },
        }
    }

    /// The answer of the server, with a body of `size` bytes.
    pub(crate) fn answer(protocol: Protocol, size: usize) -> Self {
        let body = vec![b'x'; size];
        match protocol {
            Protocol::Http => {
                let mut bytes = format!(
                    "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {size}\r\n\r\n"
                )
                .into_bytes();
                bytes.extend(body);
                Self { bytes, id: None }
            }
            Protocol::Bolt => Self {
                bytes: bolt_answer(&body),
                id: Some(BOLT_ID),
            },
            Protocol::Dubbo => Self {
                bytes: dubbo_answer(&body),
                id: Some(DUBBO_ID),
            },
        }
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

    /// The id of the next whole call, if it has arrived.
    pub(crate) fn next_request(&mut self) -> anyhow::Result<Option<u64>> {
        let rest = &self.input[self.used..];
        let (id, length) = match self.protocol {
            Protocol::Http => match find(rest, b"\r\n\r\n") {
                Some(end) => (0, end + 4),
                None => return Ok(None),
            },
            Protocol::Bolt => match bolt_length(rest)? {
                Some(length) => (number(rest, BOLT_ID), length),
                None => return Ok(None),
            },
            Protocol::Dubbo => match dubbo_length(rest)? {
                Some(length) => (number(rest, DUBBO_ID), length),
                None => return Ok(None),
            },
        };
        if rest.len() < length {
            return Ok(None);
        }
        self.used += length;
        Ok(Some(id))
    }

    /// The next whole answer, if it has arrived.
    pub(crate) fn next_answer(&mut self) -> anyhow::Result<Option<Answer>> {
        let rest = &self.input[self.used..];
        let (answer, length) = match self.protocol {
            Protocol::Http => match http_answer(rest)? {
                Some(found) => found,
                None => return Ok(None),
            },
            Protocol::Bolt => {
                let Some(length) = bolt_length(rest)? else {
                    return Ok(None);
                };
                let id = number(rest, BOLT_ID);
                let success = number(rest, (10, 2)) == 0;
                (Answer { id, success }, length)
            }
            Protocol::Dubbo => {
                let Some(length) = dubbo_length(rest)? else {
                    return Ok(None);
                };
                let id = number(rest, DUBBO_ID);
                let success = rest[3] == 20;
                (Answer { id, success }, length)
            }
        };
        if rest.len() < length {
            return Ok(None);
        }
        self.used += length;
        Ok(Some(answer))
    }
}

/// The big-endian number at (offset, width); the frame's head is known to be there.
fn number(bytes: &[u8], (offset, width): (usize, usize)) -> u64 {
    bytes[offset..offset + width]
        .iter()
        .fold(0, |value, byte| value << 8 | u64::from(*byte))
}

fn length_field(bytes: &[u8], at: (usize, usize)) -> usize {
    usize::try_from(number(bytes, at)).unwrap_or(usize::MAX / 2)
}

fn find(bytes: &[u8], pattern: &[u8]) -> Option<usize> {
    bytes
        .windows(pattern.len())
        .position(|window| window == pattern)
}

fn bolt_length(rest: &[u8]) -> anyhow::Result<Option<usize>> {
    if rest.len() < BOLT_RESPONSE_HEAD {
        return Ok(None);
    }
    if rest[0] != 1 {
        bail!(
            "the peer does not speak Bolt v1: first byte {:#04x}",
            rest[0]
        );
    }
    let (head, lengths) = if rest[1] == 0 {
        (BOLT_RESPONSE_HEAD, 12)
    } else {
        (BOLT_REQUEST_HEAD, 14)
    };
    if rest.len() < head {
        return Ok(None);
    }
    let class = length_field(rest, (lengths, 2));
    let header = length_field(rest, (lengths + 2, 2));
    let content = length_field(rest, (lengths + 4, 4));
    Ok(Some(head + class + header + content))
}

fn dubbo_length(rest: &[u8]) -> anyhow::Result<Option<usize>> {
    if rest.len() < DUBBO_HEAD {
        return Ok(None);
    }
    if rest[..2] != [0xda, 0xbb] {
        bail!(
            "the peer does not speak Dubbo: first bytes {:02x?}",
            &rest[..2]
        );
    }
    Ok(Some(DUBBO_HEAD + length_field(rest, (12, 4))))
}

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

fn bolt_request() -> Vec<u8> {
    let class = b"com.alipay.sofa.rpc.core.request.SofaRequest";
    let service = format!("{INTERFACE}:1.0");
    let mut header = Vec::new();
    for (key, value) in [
        ("service", service.as_str()),
        ("sofa_head_target_service", service.as_str()),
        ("sofa_head_method_name", "echo"),
        ("type", "sync"),
        ("app", "bench"),
        ("protocol", "bolt"),
    ] {
        for text in [key, value] {
            header.extend(u32::try_from(text.len()).unwrap_or(0).to_be_bytes());
            header.extend(text.as_bytes());
        }
    }
    let content = [b'x'; 128];
    let mut frame = vec![1, 1, 0, 1, 1, 0, 0, 0, 0, 1];
    frame.extend(3000u32.to_be_bytes());
    frame.extend(u16::try_from(class.len()).unwrap_or(0).to_be_bytes());
    frame.extend(u16::try_from(header.len()).unwrap_or(0).to_be_bytes());
    frame.extend(u32::try_from(content.len()).unwrap_or(0).to_be_bytes());
    frame.extend(class);
    frame.extend(header);
    frame.extend(content);
    frame
}

fn bolt_answer(content: &[u8]) -> Vec<u8> {
    let class = b"com.alipay.sofa.rpc.core.response.SofaResponse";
    let mut frame = vec![1, 0, 0, 2, 1, 0, 0, 0, 0, 1, 0, 0];
    frame.extend(u16::try_from(class.len()).unwrap_or(0).to_be_bytes());
    frame.extend(0u16.to_be_bytes());
    frame.extend(u32::try_from(content.len()).unwrap_or(0).to_be_bytes());
    frame.extend(class);
    frame.extend(content);
    frame
}

/// A Hessian2 string of ASCII characters.
fn hessian_string(text: &[u8], output: &mut Vec<u8>) {
    match u8::try_from(text.len()) {
        Ok(length) if length < 32 => output.push(length),
        _ => {
            output.push(b'S');
            output.extend(u16::try_from(text.len()).unwrap_or(u16::MAX).to_be_bytes());
        }
    }
    output.extend_from_slice(text);
}

fn dubbo_frame(flags: u8, status: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![0xda, 0xbb, flags, status, 0, 0, 0, 0, 0, 0, 0, 0];
    frame.extend(u32::try_from(body.len()).unwrap_or(0).to_be_bytes());
    frame.extend(body);
    frame
}

fn dubbo_request() -> Vec<u8> {
    let mut body = Vec::new();
    for text in [
        "2.0.2",
        INTERFACE,
        "0.0.0",
        "echo",
        "Ljava/lang/String;",
        "a short argument of the call",
    ] {
        hessian_string(text.as_bytes(), &mut body);
    }
    body.push(b'H');
    for text in [
        "path",
        INTERFACE,
        "interface",
        INTERFACE,
        "version",
        "0.0.0",
        "timeout",
        "3000",
        "remote.application",
        "bench",
    ] {
        hessian_string(text.as_bytes(), &mut body);
    }
    body.push(b'Z');
    dubbo_frame(0xc2, 0, &body)
}

fn dubbo_answer(content: &[u8]) -> Vec<u8> {
    // 0x94: a value and attachments follow.
    let mut body = vec![0x94];
    hessian_string(content, &mut body);
    body.push(b'H');
    hessian_string(b"dubbo", &mut body);
    hessian_string(b"2.0.2", &mut body);
    body.push(b'Z');
    dubbo_frame(0x02, 20, &body)
}
