//! HTTP/1.x as bytes: request and response heads, body framing, and what is written back (RFC 9112).
//!
//! Nothing is copied while parsing: a head is an index of [`Span`]s over the caller's buffer. Where the RFC leaves a
//! choice, what Envoy 1.40 answers decides; where Envoy is lenient in a way that peers disagree about (a second `Host`,
//! folded lines, two spaces in the request line, garbage after a chunk), the message is refused with 400.

mod body;
mod head;
mod names;
mod write;

#[cfg(test)]
mod tests;

pub use body::{BodyDecoder, BodyEvent, Framing, Trailers};
pub use head::{Connection, Header, Limits, Parse, RequestHead, ResponseHead, Span, Version};
pub use names::HeaderId;
pub use write::{
    LAST_CHUNK, put_chunk, put_decimal, put_header, put_lower, put_request_line, put_status_line,
    reason,
};

/// Why a message is refused. The status and the words are Envoy's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not HTTP/1: request line, status line, header syntax, content length or chunk framing.
    #[error("malformed message")]
    Codec,
    /// A control character in a target or header value.
    #[error("invalid character")]
    InvalidCharacters,
    /// A request target that is neither a path, an `http(s)` URL, nor `*` for `OPTIONS`.
    #[error("invalid request target")]
    InvalidUrl,
    /// An absolute target of a scheme other than `http` and `https`.
    #[error("invalid scheme")]
    InvalidScheme,
    /// A `Host` that no authority can be.
    #[error("invalid host")]
    InvalidAuthority,
    /// Both `Content-Length` and `Transfer-Encoding`.
    #[error("content-length together with transfer-encoding")]
    LengthAndChunked,
    /// A transfer coding other than `chunked`, once.
    #[error("unsupported transfer-encoding")]
    TransferEncoding,
    /// A body on `CONNECT`.
    #[error("body not allowed")]
    BodyDisallowed,
    /// The header block or the trailers exceed [`Limits::head_bytes`].
    #[error("headers too large")]
    HeadersTooLarge,
    /// More fields than [`Limits::headers`].
    #[error("too many headers")]
    TooManyHeaders,
    /// A version other than HTTP/1.1 (1.0 only where it is allowed).
    #[error("unsupported version")]
    Version,
}

impl Error {
    /// The status with which Envoy answers a request like this.
    pub fn status(self) -> u16 {
        match self {
            Error::HeadersTooLarge | Error::TooManyHeaders => 431,
            Error::TransferEncoding => 501,
            Error::Version => 426,
            _ => 400,
        }
    }

    /// Envoy's response code details.
    pub fn details(self) -> &'static str {
        match self {
            Error::Codec => "http1.codec_error",
            Error::InvalidCharacters => "http1.invalid_characters",
            Error::InvalidUrl => "http1.invalid_url",
            Error::InvalidScheme => "http1.invalid_scheme",
            Error::InvalidAuthority => "http.invalid_authority",
            Error::LengthAndChunked => "http1.content_length_and_chunked_not_allowed",
            Error::TransferEncoding => "http1.invalid_transfer_encoding",
            Error::BodyDisallowed => "http1.body_disallowed",
            Error::HeadersTooLarge => "http1.headers_too_large",
            Error::TooManyHeaders => "http1.too_many_headers",
            Error::Version => "low_version",
        }
    }
}
