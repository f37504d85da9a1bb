//! Request and response heads as an index over the caller's buffer.

use std::mem::MaybeUninit;

use super::Error;
use super::body::Framing;
use super::names::HeaderId;

/// Most header fields that any limit may allow; the parser's scratch space on the stack.
const MAX_HEADERS: usize = 256;

/// A part of the caller's buffer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    start: u32,
    len: u32,
}

impl Span {
    /// The bytes, taken from the buffer that was parsed; empty for any other buffer that is too short.
    pub fn of(self, buffer: &[u8]) -> &[u8] {
        let start = self.start as usize;
        buffer
            .get(start..start + self.len as usize)
            .unwrap_or_default()
    }

    /// Whether nothing is in it.
    pub fn is_empty(self) -> bool {
        self.len == 0
    }

    /// First byte and length of `part` within `whole`, of which it is a slice.
    fn within(whole: &[u8], part: &[u8]) -> Span {
        let start = (part.as_ptr() as usize).wrapping_sub(whole.as_ptr() as usize);
        debug_assert!(part.is_empty() || start + part.len() <= whole.len());
        Span {
            start: start as u32,
            len: part.len() as u32,
        }
    }

    fn skip(self, bytes: usize) -> Span {
        let bytes = (bytes as u32).min(self.len);
        Span {
            start: self.start + bytes,
            len: self.len - bytes,
        }
    }
}

/// One header field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// As it was sent.
    pub name: Span,
    /// Without surrounding white space.
    pub value: Span,
    /// What the name means to a proxy.
    pub id: HeaderId,
}

/// The version in the first line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    #[default]
    Http11,
}

/// What is accepted.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of a head, and of trailers. Envoy's `max_request_headers_kb`, 60 KiB.
    pub head_bytes: usize,
    /// Header fields. Envoy's `max_headers_count`, 100.
    pub headers: usize,
    /// Requests of HTTP/1.0 are taken (`accept_http_10`).
    pub http_10: bool,
    /// Methods outside the registered ones are taken (`allow_custom_methods`).
    pub custom_methods: bool,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            head_bytes: 60 * 1024,
            headers: 100,
            http_10: false,
            custom_methods: false,
        }
    }
}

/// What `Connection` and `Proxy-Connection` ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connection {
    /// `close` was there.
    pub close: bool,
    /// `keep-alive` was there.
    pub keep_alive: bool,
    /// `upgrade` was there.
    pub upgrade: bool,
    /// Other tokens were there: headers that must not be passed on.
    pub nominates: bool,
}

impl Connection {
    fn add(&mut self, value: &[u8]) {
        for token in value.split(|b| *b == b',').map(<[u8]>::trim_ascii) {
            if token.eq_ignore_ascii_case(b"close") {
                self.close = true;
            } else if token.eq_ignore_ascii_case(b"keep-alive") {
                self.keep_alive = true;
            } else if token.eq_ignore_ascii_case(b"upgrade") {
                self.upgrade = true;
            } else if !token.is_empty() {
                self.nominates = true;
            }
        }
    }
}

/// Outcome of looking for a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parse {
    /// The head is whole and takes this many bytes of the buffer.
    Complete(usize),
    /// More bytes are needed.
    Partial,
}

/// What both kinds of head say about framing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Fields {
    content_length: Option<u64>,
    chunked: bool,
    connection: Connection,
}

/// A request head. Reused from request to request: [`RequestHead::parse`] overwrites all of it.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct RequestHead {
    /// As sent.
    pub method: Span,
    /// Path and query; empty for `CONNECT`.
    pub path: Span,
    /// Host and port: of an absolute target, else of `Host`. `None` when neither is there.
    pub authority: Option<Span>,
    /// HTTP/1.0 or 1.1.
    pub version: Version,
    /// All header fields in order.
    pub headers: Vec<Header>,
    /// The value of `Upgrade`.
    pub upgrade: Option<Span>,
    /// `Expect: 100-continue` is there.
    pub expects_continue: bool,
    fields: Fields,
}

/// A response head. Reused from response to response.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct ResponseHead {
    /// The status code.
    pub status: u16,
    /// HTTP/1.0 or 1.1.
    pub version: Version,
    /// All header fields in order.
    pub headers: Vec<Header>,
    fields: Fields,
}

impl RequestHead {
    /// Parses the head at the start of `buffer`. Empty lines before it are skipped (RFC 9112 §2.2).
    pub fn parse(&mut self, buffer: &[u8], limits: &Limits) -> Result<Parse, Error> {
        let skipped = buffer
            .iter()
            .take_while(|b| matches!(b, b'\r' | b'\n'))
            .count();
        let bytes = buffer.get(skipped..).unwrap_or_default();
        let mut scratch = [const { MaybeUninit::<httparse::Header<'_>>::uninit() }; MAX_HEADERS];
        let space = scratch
            .get_mut(..limits.headers.min(MAX_HEADERS))
            .unwrap_or_default();
        let mut request = httparse::Request::new(&mut []);
        let len = match httparse::ParserConfig::default().parse_request_with_uninit_headers(
            &mut request,
            bytes,
            space,
        ) {
            Ok(httparse::Status::Complete(len)) => len,
            Ok(httparse::Status::Partial) if buffer.len() > limits.head_bytes => {
                return Err(Error::HeadersTooLarge);
            }
            Ok(httparse::Status::Partial) => return partial_request(bytes, limits),
            Err(error) => return Err(request_error(error, bytes)),
        };
        if skipped + len > limits.head_bytes {
            return Err(Error::HeadersTooLarge);
        }
        let (method, target) = (
            request.method.unwrap_or_default(),
            request.path.unwrap_or_default(),
        );
        self.version = match request.version {
            Some(1) => Version::Http11,
            Some(0) if limits.http_10 => Version::Http10,
            _ => return Err(Error::Version),
        };
        if !limits.custom_methods && !is_known_method(method) {
            return Err(Error::Codec);
        }
        self.method = Span::within(buffer, method.as_bytes());
        self.index(buffer, request.headers)?;
        self.target(
            buffer,
            method.as_bytes(),
            Span::within(buffer, target.as_bytes()),
        )?;
        if method == "CONNECT" && self.fields.content_length.is_some_and(|n| n > 0) {
            return Err(Error::BodyDisallowed);
        }
        Ok(Parse::Complete(skipped + len))
    }

    fn index(&mut self, buffer: &[u8], headers: &[httparse::Header<'_>]) -> Result<(), Error> {
        self.headers.clear();
        self.fields = Fields::default();
        (self.authority, self.upgrade, self.expects_continue) = (None, None, false);
        for header in headers {
            let name = Span::within(buffer, header.name.as_bytes());
            let value = Span::within(buffer, header.value);
            let id = HeaderId::of(header.name.as_bytes());
            match id {
                HeaderId::Other => {}
                HeaderId::Host => {
                    // RFC 9112 §3.2: a second Host is an error, because peers disagree about which one counts.
                    if self.authority.is_some() || !is_authority(header.value) {
                        return Err(Error::InvalidAuthority);
                    }
                    self.authority = Some(value);
                }
                HeaderId::Upgrade => self.upgrade = Some(value),
                HeaderId::Expect => {
                    self.expects_continue |= header.value.eq_ignore_ascii_case(b"100-continue")
                }
                id => self.fields.add(id, header.value)?,
            }
            self.headers.push(Header { name, value, id });
        }
        self.fields.check()
    }

    /// Splits the target into authority and path; an absolute target overrides `Host` (RFC 9112 §3.2.2).
    fn target(&mut self, buffer: &[u8], method: &[u8], target: Span) -> Result<(), Error> {
        let bytes = target.of(buffer);
        // The bytes above ASCII that the parser lets through are refused by Envoy.
        if !bytes.is_ascii() {
            return Err(Error::Codec);
        }
        self.path = target;
        if method == b"CONNECT" {
            if bytes.contains(&b'/') || !is_authority(bytes) {
                return Err(Error::InvalidUrl);
            }
            self.authority = Some(target);
            self.path = Span::default();
            return Ok(());
        }
        if bytes.first() == Some(&b'/') || (bytes == b"*" && method == b"OPTIONS") {
            return Ok(());
        }
        let Some(scheme) = memchr::memmem::find(bytes, b"://") else {
            return Err(invalid_target(bytes));
        };
        let name = bytes.get(..scheme).unwrap_or_default();
        if !name.eq_ignore_ascii_case(b"http") && !name.eq_ignore_ascii_case(b"https") {
            return Err(Error::InvalidScheme);
        }
        let rest = target.skip(scheme + 3);
        let end = rest
            .of(buffer)
            .iter()
            .position(|b| matches!(b, b'/' | b'?'))
            .unwrap_or(rest.len as usize);
        let authority = Span {
            start: rest.start,
            len: end as u32,
        };
        if authority.is_empty() || !is_authority(authority.of(buffer)) {
            return Err(Error::InvalidAuthority);
        }
        self.authority = Some(authority);
        self.path = rest.skip(end);
        Ok(())
    }

    /// How the body is framed: a request without a length has none.
    pub fn framing(&self) -> Framing {
        match (self.fields.chunked, self.fields.content_length) {
            (true, _) => Framing::Chunked,
            (false, Some(length)) if length > 0 => Framing::Length(length),
            _ => Framing::Empty,
        }
    }

    /// The declared length.
    pub fn content_length(&self) -> Option<u64> {
        self.fields.content_length
    }

    /// What `Connection` said.
    pub fn connection(&self) -> Connection {
        self.fields.connection
    }

    /// Whether the client means to send another request on this connection.
    pub fn keeps_alive(&self) -> bool {
        let connection = self.fields.connection;
        !connection.close && (self.version == Version::Http11 || connection.keep_alive)
    }
}

impl ResponseHead {
    /// Parses the head at the start of `buffer`; [`Limits::http_10`] is not asked, servers may answer in 1.0.
    pub fn parse(&mut self, buffer: &[u8], limits: &Limits) -> Result<Parse, Error> {
        let mut scratch = [const { MaybeUninit::<httparse::Header<'_>>::uninit() }; MAX_HEADERS];
        let space = scratch
            .get_mut(..limits.headers.min(MAX_HEADERS))
            .unwrap_or_default();
        let mut response = httparse::Response::new(&mut []);
        let len = match httparse::ParserConfig::default().parse_response_with_uninit_headers(
            &mut response,
            buffer,
            space,
        ) {
            Ok(httparse::Status::Complete(len)) => len,
            Ok(httparse::Status::Partial) if buffer.len() > limits.head_bytes => {
                return Err(Error::HeadersTooLarge);
            }
            Ok(httparse::Status::Partial) => return Ok(Parse::Partial),
            Err(httparse::Error::TooManyHeaders) => return Err(Error::TooManyHeaders),
            Err(_) => return Err(Error::Codec),
        };
        if len > limits.head_bytes {
            return Err(Error::HeadersTooLarge);
        }
        self.version = if response.version == Some(0) {
            Version::Http10
        } else {
            Version::Http11
        };
        self.status = response.code.unwrap_or_default();
        if !(100..=999).contains(&self.status) {
            return Err(Error::Codec);
        }
        self.headers.clear();
        self.fields = Fields::default();
        for header in response.headers.iter() {
            let id = HeaderId::of(header.name.as_bytes());
            // A 1xx or 204 must not carry Transfer-Encoding (RFC 9112 §6.1); Envoy takes it and so does everyone.
            self.fields.add(id, header.value)?;
            self.headers.push(Header {
                name: Span::within(buffer, header.name.as_bytes()),
                value: Span::within(buffer, header.value),
                id,
            });
        }
        self.fields.check()?;
        Ok(Parse::Complete(len))
    }

    /// How the body is framed, given whether it answers `HEAD` (RFC 9112 §6.3). `101` is the caller's business.
    pub fn framing(&self, to_head: bool) -> Framing {
        if to_head || self.status < 200 || self.status == 204 || self.status == 304 {
            return Framing::Empty;
        }
        match (self.fields.chunked, self.fields.content_length) {
            (true, _) => Framing::Chunked,
            (false, Some(0)) => Framing::Empty,
            (false, Some(length)) => Framing::Length(length),
            (false, None) => Framing::UntilClose,
        }
    }

    /// The declared length.
    pub fn content_length(&self) -> Option<u64> {
        self.fields.content_length
    }

    /// Whether `Transfer-Encoding: chunked` was there, also on an answer to `HEAD`.
    pub fn chunked(&self) -> bool {
        self.fields.chunked
    }

    /// Whether the server means to answer another request on this connection.
    pub fn keeps_alive(&self) -> bool {
        let connection = self.fields.connection;
        !connection.close && (self.version == Version::Http11 || connection.keep_alive)
    }
}

impl Fields {
    fn add(&mut self, id: HeaderId, value: &[u8]) -> Result<(), Error> {
        match id {
            HeaderId::ContentLength => {
                // Even a second, equal length is refused: whoever sent it is not to be trusted with framing.
                if self.content_length.is_some() {
                    return Err(Error::Codec);
                }
                self.content_length = Some(decimal(value)?);
            }
            HeaderId::TransferEncoding => {
                if self.chunked || !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(Error::TransferEncoding);
                }
                self.chunked = true;
            }
            HeaderId::Connection | HeaderId::ProxyConnection => self.connection.add(value),
            _ => {}
        }
        Ok(())
    }

    fn check(&self) -> Result<(), Error> {
        match self.chunked && self.content_length.is_some() {
            true => Err(Error::LengthAndChunked),
            false => Ok(()),
        }
    }
}

/// Digits only: no sign, no list, no white space inside.
fn decimal(value: &[u8]) -> Result<u64, Error> {
    if value.is_empty() {
        return Err(Error::Codec);
    }
    value.iter().try_fold(0u64, |sum, byte| match byte {
        b'0'..=b'9' => sum
            .checked_mul(10)
            .and_then(|sum| sum.checked_add(u64::from(byte - b'0')))
            .ok_or(Error::Codec),
        _ => Err(Error::Codec),
    })
}

/// The bytes that Envoy lets an authority consist of (RFC 3986, `userinfo` included).
fn is_authority(value: &[u8]) -> bool {
    value.iter().all(|b| {
        b.is_ascii_alphanumeric()
            || matches!(
                b,
                b'-' | b'.' | b'_' | b'~' | b'%' | b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*'
            )
            || matches!(b, b'+' | b',' | b';' | b'=' | b':' | b'@' | b'[' | b']')
    })
}

/// The methods that Envoy knows unless `allow_custom_methods` is set.
fn is_known_method(method: &str) -> bool {
    matches!(
        method,
        "GET"
            | "POST"
            | "PUT"
            | "DELETE"
            | "HEAD"
            | "OPTIONS"
            | "PATCH"
            | "CONNECT"
            | "TRACE"
            | "ACL"
            | "BIND"
            | "CHECKOUT"
            | "COPY"
            | "LINK"
            | "LOCK"
            | "MERGE"
            | "MKACTIVITY"
            | "MKCALENDAR"
            | "MKCOL"
            | "MOVE"
            | "M-SEARCH"
            | "NOTIFY"
            | "PROPFIND"
            | "PROPPATCH"
            | "PURGE"
            | "REBIND"
            | "REPORT"
            | "SEARCH"
            | "SOURCE"
            | "SUBSCRIBE"
            | "UNBIND"
            | "UNLINK"
            | "UNLOCK"
            | "UNSUBSCRIBE"
    )
}

/// Envoy tells a control character in a head from the other errors of syntax.
fn request_error(error: httparse::Error, bytes: &[u8]) -> Error {
    let end = memchr::memmem::find(bytes, b"\r\n\r\n").map_or(bytes.len(), |at| at + 4);
    let head = bytes.get(..end).unwrap_or(bytes);
    match error {
        httparse::Error::TooManyHeaders => Error::TooManyHeaders,
        httparse::Error::Version => other_version(head),
        httparse::Error::Token | httparse::Error::NewLine if is_simple_request(head) => {
            Error::Version
        }
        _ if head
            .iter()
            .any(|b| (*b < 0x20 && !matches!(b, b'\t' | b'\r' | b'\n')) || *b == 0x7f) =>
        {
            Error::InvalidCharacters
        }
        _ => Error::Codec,
    }
}

/// `HTTP/1.2` and `HTTP/2.0` are versions not served; anything else after the target is no version at all.
fn other_version(head: &[u8]) -> Error {
    let line = head
        .split(|b| *b == b'\n')
        .next()
        .unwrap_or_default()
        .trim_ascii_end();
    let mut words = line.split(|b| *b == b' ');
    let version = words
        .nth(2)
        .filter(|_| words.next().is_none())
        .unwrap_or_default();
    match version {
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
            if major.is_ascii_digit() && minor.is_ascii_digit() =>
        {
            Error::Version
        }
        _ => Error::Codec,
    }
}

/// HTTP/0.9: a known method and a path, and nothing after it.
fn is_simple_request(head: &[u8]) -> bool {
    let line = head
        .split(|b| *b == b'\n')
        .next()
        .unwrap_or_default()
        .trim_ascii_end();
    let mut words = line.split(|b| *b == b' ');
    let method = words
        .next()
        .and_then(|m| std::str::from_utf8(m).ok())
        .unwrap_or_default();
    is_known_method(method)
        && words.next().is_some_and(|path| path.first() == Some(&b'/'))
        && words.next().is_none()
}

/// A target with neither a leading slash nor a scheme.
fn invalid_target(target: &[u8]) -> Error {
    match target {
        b"*" => Error::InvalidUrl,
        _ => Error::Codec,
    }
}

/// A head that is not whole yet may already be hopeless: a first line that begins as none can is refused at once, so that a
/// TLS hello does not wait for the header timeout.
fn partial_request(bytes: &[u8], limits: &Limits) -> Result<Parse, Error> {
    let method = bytes.iter().position(|b| *b == b' ').unwrap_or(bytes.len());
    if !limits.custom_methods && method > "UNSUBSCRIBE".len() {
        return Err(Error::Codec);
    }
    Ok(Parse::Partial)
}
