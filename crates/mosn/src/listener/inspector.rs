//! Listener filters that recognise a protocol by its first bytes: `envoy.filters.listener.http_inspector` and the
//! protocol inspector for Bolt and Dubbo beside it.

use tokio::net::TcpStream;

use super::ListenerConfig;

/// What the first bytes of a connection are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    Http11,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// SOFABolt, version 1 or 2.
    Bolt,
    /// Dubbo 2.
    Dubbo,
}

impl Protocol {
    /// The word that `filter_chain_match.application_protocols` uses.
    pub fn application_protocol(self) -> &'static str {
        match self {
            Protocol::Http10 => "http/1.0",
            Protocol::Http11 => "http/1.1",
            Protocol::Http2 => "h2c",
            Protocol::Bolt => "bolt",
            Protocol::Dubbo => "dubbo",
        }
    }
}

/// An inspector of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inspector {
    /// Looks for HTTP only.
    Http,
    /// Looks for HTTP, Bolt and Dubbo.
    Protocol,
}

/// Why inspection ended the connection.
#[derive(Debug)]
pub enum Failed {
    /// Nothing conclusive arrived within `listener_filters_timeout`.
    Timeout,
    /// The peer closed.
    Closed,
}

/// Bytes that are enough to tell: the HTTP/2 preface, or a method, a target and a version within reason.
const PEEK_BYTES: usize = 1024;

enum Verdict {
    Is(Protocol),
    Unknown,
    NeedMore,
}

/// Peeks until every inspector knows; `None` is "none of them".
pub async fn inspect(
    stream: &TcpStream,
    listener: &ListenerConfig,
) -> Result<Option<Protocol>, Failed> {
    let peek = async {
        let mut seen = 0;
        let mut buffer = [0u8; PEEK_BYTES];
        loop {
            let n = stream.peek(&mut buffer).await.map_err(|_| Failed::Closed)?;
            if n == 0 {
                return Err(Failed::Closed);
            }
            let bytes = buffer.get(..n).unwrap_or_default();
            match judge(bytes, &listener.inspectors) {
                Verdict::Is(protocol) => return Ok(Some(protocol)),
                Verdict::Unknown => return Ok(None),
                Verdict::NeedMore if n == PEEK_BYTES => return Ok(None),
                Verdict::NeedMore => {}
            }
            // the socket stays readable while the bytes are in it: wait for more of them without spinning
            if n == seen {
                tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            }
            seen = n;
        }
    };
    match listener.listener_filters_timeout {
        None => peek.await,
        Some(limit) => match tokio::time::timeout(limit, peek).await {
            Ok(result) => result,
            Err(_) if listener.continue_on_listener_filters_timeout => Ok(None),
            Err(_) => Err(Failed::Timeout),
        },
    }
}

fn judge(bytes: &[u8], inspectors: &[Inspector]) -> Verdict {
    let rpc = inspectors.contains(&Inspector::Protocol);
    match bytes {
        [0xda, 0xbb, ..] if rpc => Verdict::Is(Protocol::Dubbo),
        [0xda] if rpc => Verdict::NeedMore,
        [1, kind, rest @ ..] if rpc && *kind <= 2 => bolt_command(rest),
        [2, 1 | 2, kind, rest @ ..] if rpc && *kind <= 2 => bolt_command(rest),
        [1] | [2] | [2, 1 | 2] if rpc => Verdict::NeedMore,
        _ => judge_http(bytes),
    }
}

/// The command codes of `protocols/bolt.md` §1: heartbeat, request, response, and 100 between proxies.
fn bolt_command(bytes: &[u8]) -> Verdict {
    match bytes {
        [0, 0..=2 | 100, ..] => Verdict::Is(Protocol::Bolt),
        [] | [0] => Verdict::NeedMore,
        _ => Verdict::Unknown,
    }
}

fn judge_http(bytes: &[u8]) -> Verdict {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    if bytes.starts_with(PREFACE) {
        return Verdict::Is(Protocol::Http2);
    }
    if PREFACE.starts_with(bytes) {
        return Verdict::NeedMore;
    }
    let Some(end) = memchr::memchr(b'\n', bytes) else {
        let method = bytes.split(|b| *b == b' ').next().unwrap_or_default();
        let plausible = method.len() <= 32
            && method
                .iter()
                .all(|b| b.is_ascii_uppercase() || *b == b'-' || *b == b'_');
        return if plausible {
            Verdict::NeedMore
        } else {
            Verdict::Unknown
        };
    };
    let line = bytes.get(..end).unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.ends_with(b" HTTP/1.1") {
        Verdict::Is(Protocol::Http11)
    } else if line.ends_with(b" HTTP/1.0") {
        Verdict::Is(Protocol::Http10)
    } else {
        Verdict::Unknown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(bytes: &[u8], inspectors: &[Inspector]) -> &'static str {
        match judge(bytes, inspectors) {
            Verdict::Is(p) => p.application_protocol(),
            Verdict::Unknown => "unknown",
            Verdict::NeedMore => "more",
        }
    }

    #[test]
    fn tells_protocols_apart() {
        let all = &[Inspector::Protocol][..];
        let http = &[Inspector::Http][..];
        let cases: &[(&[u8], &[Inspector], &str)] = &[
            (b"\xda\xbb\xc2\0", all, "dubbo"),
            (b"\xda", all, "more"),
            (b"\xda\xbb\xc2\0", http, "unknown"),
            (&[1, 1, 0, 1], all, "bolt"),
            (&[2, 1, 1, 0, 1], all, "bolt"),
            (&[2, 2, 2, 0, 0], all, "bolt"),
            (&[1, 1, 0, 9], all, "unknown"),
            (&[1, 7], all, "unknown"),
            (b"GET / HTTP/1.1\r\n", all, "http/1.1"),
            (b"GET / HTTP/1.0\n", http, "http/1.0"),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", http, "h2c"),
            (b"PRI * HT", http, "more"),
            (b"GET /a", http, "more"),
            (b"\x16\x03\x01", http, "unknown"),
            (b"get lost\r\n", http, "unknown"),
        ];
        for (bytes, inspectors, want) in cases {
            assert_eq!(name(bytes, inspectors), *want, "{bytes:?}");
        }
    }
}
