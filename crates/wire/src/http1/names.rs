//! The header names that framing and proxying care about, recognised once while a head is parsed.

/// A header name that has a meaning of its own for a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is the header of its name")]
#[repr(u8)]
pub enum HeaderId {
    /// Any other name.
    Other,
    Connection,
    ContentLength,
    ContentType,
    Date,
    Expect,
    Host,
    Http2Settings,
    KeepAlive,
    ProxyConnection,
    Server,
    Te,
    Trailer,
    TransferEncoding,
    Upgrade,
    UserAgent,
    Via,
    XForwardedFor,
    XForwardedHost,
    XForwardedProto,
    XRequestId,
    /// Any name that begins with `x-envoy-`.
    XEnvoy,
}

impl HeaderId {
    /// Recognises a name, whatever its case.
    pub fn of(name: &[u8]) -> HeaderId {
        use HeaderId::*;
        // The length and one letter leave at most one candidate, so that an ordinary header costs one comparison.
        let Some(&first) = name.first() else {
            return Other;
        };
        let (id, want): (HeaderId, &[u8]) = match (name.len(), first | 0x20) {
            (2, b't') => (Te, b"te"),
            (3, b'v') => (Via, b"via"),
            (4, b'h') => (Host, b"host"),
            (4, b'd') => (Date, b"date"),
            (6, b'e') => (Expect, b"expect"),
            (6, b's') => (Server, b"server"),
            (7, b't') => (Trailer, b"trailer"),
            (7, b'u') => (Upgrade, b"upgrade"),
            (10, b'c') => (Connection, b"connection"),
            (10, b'k') => (KeepAlive, b"keep-alive"),
            (10, b'u') => (UserAgent, b"user-agent"),
            (12, b'c') => (ContentType, b"content-type"),
            (12, b'x') => (XRequestId, b"x-request-id"),
            (14, b'c') => (ContentLength, b"content-length"),
            (14, b'h') => (Http2Settings, b"http2-settings"),
            (15, b'x') => (XForwardedFor, b"x-forwarded-for"),
            (16, b'p') => (ProxyConnection, b"proxy-connection"),
            (16, b'x') => (XForwardedHost, b"x-forwarded-host"),
            (17, b't') => (TransferEncoding, b"transfer-encoding"),
            (17, b'x') => (XForwardedProto, b"x-forwarded-proto"),
            _ => (Other, b""),
        };
        if id != Other && name.eq_ignore_ascii_case(want) {
            return id;
        }
        match name.get(..8) {
            Some(prefix) if first | 0x20 == b'x' && prefix.eq_ignore_ascii_case(b"x-envoy-") => {
                XEnvoy
            }
            _ => Other,
        }
    }
}
