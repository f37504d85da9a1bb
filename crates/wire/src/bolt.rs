//! SOFABolt v1 and v2 (`protocols/bolt.md`): frame boundary, head, header section, answers.
//!
//! ```
//! use wire::bolt::{self, Head, Version};
//! use wire::frame::{Limits, Next};
//!
//! let mut bytes = Vec::new();
//! bolt::write_heartbeat(&mut bytes, Version::V1, 9);
//! assert_eq!(bolt::next_frame(&bytes, &Limits::default()), Ok(Next::Frame(22)));
//! let head = Head::parse(&bytes).unwrap();
//! assert_eq!((head.id, head.command), (9, bolt::command::HEARTBEAT));
//! ```

pub mod header;
pub mod sofarpc;
pub mod write;

use std::ops::Range;

use crate::frame::{FrameError, Limits, Next, be16, be32, put};

pub use header::{HeaderError, Headers, rewrite_headers};
pub use write::{
    Parts, write_error, write_exception, write_goaway, write_heartbeat, write_heartbeat_ack,
    write_request, write_response, write_status,
};

/// Java reads the lengths of class and header as signed 16-bit numbers.
pub const MAX_SECTION_BYTES: usize = 32767;

/// The `cmdcode` field.
pub mod command {
    /// Heartbeat and its acknowledgement.
    pub const HEARTBEAT: u16 = 0;
    /// A call.
    pub const REQUEST: u16 = 1;
    /// An answer.
    pub const RESPONSE: u16 = 2;
    /// MOSN's extension: no new calls on this connection. Stock peers close on it.
    pub const GOAWAY: u16 = 100;
}

/// The `codec` field: serialization of the content.
pub mod codec {
    /// Hessian, in the sofa dialect for SOFARPC.
    pub const HESSIAN2: u8 = 1;
    /// protobuf
    pub const PROTOBUF: u8 = 11;
    /// JSON
    pub const JSON: u8 = 12;
}

/// The `status` field of an answer. A stock client closes the connection on any other number.
pub mod status {
    /// Answered; business exceptions have this status too.
    pub const SUCCESS: u16 = 0;
    /// Undeclared error.
    pub const ERROR: u16 = 1;
    /// The server threw; a message may be in the content.
    pub const SERVER_EXCEPTION: u16 = 2;
    /// Unknown.
    pub const UNKNOWN: u16 = 3;
    /// Server busy.
    pub const SERVER_BUSY: u16 = 4;
    /// Communication error.
    pub const ERROR_COMM: u16 = 5;
    /// Nobody processes this class.
    pub const NO_PROCESSOR: u16 = 6;
    /// Timeout.
    pub const TIMEOUT: u16 = 7;
    /// The client could not send.
    pub const CLIENT_SEND_ERROR: u16 = 8;
    /// Codec exception.
    pub const CODEC_EXCEPTION: u16 = 9;
    /// Connection closed.
    pub const CONNECTION_CLOSED: u16 = 16;
    /// The server could not serialize.
    pub const SERVER_SERIAL_EXCEPTION: u16 = 17;
    /// The server could not deserialize.
    pub const SERVER_DESERIAL_EXCEPTION: u16 = 18;

    /// Whether stock clients know this number.
    pub fn is_known(status: u16) -> bool {
        matches!(status, 0..=9 | 16..=18)
    }
}

/// Frame layout. v1 and v2 frames may alternate on one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// proto 1
    V1,
    /// proto 2 with this `ver1`, 1 or 2. Only 2 can carry a checksum.
    V2(u8),
}

/// The `type` field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// 0
    Response,
    /// 1
    Request,
    /// 2: never answered
    OneWay,
}

/// The fixed part of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Layout.
    pub version: Version,
    /// Call, one-way call or answer.
    pub kind: Kind,
    /// See [`command`].
    pub command: u16,
    /// Request id, opaque.
    pub id: u32,
    /// See [`codec`].
    pub codec: u8,
    /// v2's switch byte; bit 0 asks for the checksum.
    pub switch: u8,
    /// Milliseconds, of requests; not positive means none.
    pub timeout_ms: i32,
    /// See [`status`], of answers.
    pub status: u16,
    class_len: u16,
    header_len: u16,
    content_len: u32,
}

/// Byte offsets of the variable fields of the four layouts.
struct Layout {
    head: usize,
    lengths: usize,
}

impl Head {
    fn layout(version: Version, kind: Kind) -> Layout {
        match (version, kind) {
            (Version::V1, Kind::Response) => Layout {
                head: 20,
                lengths: 12,
            },
            (Version::V1, _) => Layout {
                head: 22,
                lengths: 14,
            },
            (Version::V2(_), Kind::Response) => Layout {
                head: 22,
                lengths: 14,
            },
            (Version::V2(_), _) => Layout {
                head: 24,
                lengths: 16,
            },
        }
    }

    /// Reads the head at the start of `bytes`; `None` while it is not complete.
    pub fn read(bytes: &[u8]) -> Result<Option<Head>, FrameError> {
        let garbage = |what, value: u64| FrameError::Garbage {
            protocol: "bolt",
            what,
            value,
        };
        let Some(proto) = bytes.first() else {
            return Ok(None);
        };
        let (version, at) = match proto {
            1 => (Version::V1, 1),
            2 => match bytes.get(1) {
                None => return Ok(None),
                Some(ver1 @ 1..=2) => (Version::V2(*ver1), 2),
                // A Java decoder would wait for ever here.
                Some(ver1) => return Err(garbage("version", u64::from(*ver1))),
            },
            proto => return Err(garbage("protocol code", u64::from(*proto))),
        };
        let kind = match bytes.get(at) {
            None => return Ok(None),
            Some(0) => Kind::Response,
            Some(1) => Kind::Request,
            Some(2) => Kind::OneWay,
            Some(kind) => return Err(garbage("type", u64::from(*kind))),
        };
        let Some(command) = be16(bytes, at + 1) else {
            return Ok(None);
        };
        if !matches!(command, 0..=2 | command::GOAWAY) {
            return Err(garbage("command code", u64::from(command)));
        }
        let layout = Head::layout(version, kind);
        let id_at = at + 4;
        let after_codec = if version == Version::V1 {
            id_at + 5
        } else {
            id_at + 6
        };
        // The last field is read first: the others exist when it does.
        let fields = (
            be32(bytes, layout.lengths + 4),
            be16(bytes, layout.lengths),
            be16(bytes, layout.lengths + 2),
            be32(bytes, id_at),
            bytes.get(id_at + 4),
            bytes.get(id_at + 5),
        );
        let (
            Some(content_len),
            Some(class_len),
            Some(header_len),
            Some(id),
            Some(codec),
            Some(switch),
        ) = fields
        else {
            return Ok(None);
        };
        let (timeout_ms, status) = match kind {
            Kind::Response => (0, be16(bytes, after_codec).unwrap_or_default()),
            _ => (be32(bytes, after_codec).unwrap_or_default() as i32, 0),
        };
        Ok(Some(Head {
            version,
            kind,
            command,
            id,
            codec: *codec,
            switch: if version == Version::V1 { 0 } else { *switch },
            timeout_ms,
            status,
            class_len,
            header_len,
            content_len,
        }))
    }

    /// The head of a frame that [`next_frame`] found complete.
    pub fn parse(frame: &[u8]) -> Result<Head, FrameError> {
        Head::read(frame)?.ok_or(FrameError::Garbage {
            protocol: "bolt",
            what: "length",
            value: frame.len() as u64,
        })
    }

    /// Whether a checksum ends the frame.
    pub fn has_checksum(&self) -> bool {
        self.version == Version::V2(2) && self.switch & 1 == 1
    }

    /// Bytes of the fixed part.
    pub fn head_len(&self) -> usize {
        Head::layout(self.version, self.kind).head
    }

    /// Where the class name lies in the frame.
    pub fn class(&self) -> Range<usize> {
        let start = self.head_len();
        start..start + usize::from(self.class_len)
    }

    /// Where the header section lies.
    pub fn header(&self) -> Range<usize> {
        let start = self.class().end;
        start..start + usize::from(self.header_len)
    }

    /// Where the content lies.
    pub fn content(&self) -> Range<usize> {
        let start = self.header().end;
        start..start + self.content_len as usize
    }

    /// Bytes of the whole frame.
    pub fn frame_len(&self) -> usize {
        self.content().end + if self.has_checksum() { 4 } else { 0 }
    }

    fn id_at(&self) -> usize {
        match self.version {
            Version::V1 => 5,
            Version::V2(_) => 6,
        }
    }

    fn timeout_at(&self) -> usize {
        match self.version {
            Version::V1 => 10,
            Version::V2(_) => 12,
        }
    }

    fn lengths_at(&self) -> usize {
        Head::layout(self.version, self.kind).lengths
    }
}

/// Whether `bytes`, the first of a connection, can be Bolt: `None` while they are too few to say.
pub fn detect(bytes: &[u8]) -> Option<bool> {
    let proto = *bytes.first()?;
    let at = match proto {
        1 => 1,
        2 => match bytes.get(1)? {
            1..=2 => 2,
            _ => return Some(false),
        },
        _ => return Some(false),
    };
    if *bytes.get(at)? > 2 {
        return Some(false);
    }
    Some(matches!(be16(bytes, at + 1)?, 0..=2 | command::GOAWAY))
}

/// Finds the end of the frame at the start of `bytes`.
///
/// The checksum is verified by [`verify`], because only a complete frame has one.
pub fn next_frame(bytes: &[u8], limits: &Limits) -> Result<Next, FrameError> {
    let Some(head) = Head::read(bytes)? else {
        return Ok(Next::NeedMore(20.max(bytes.len() + 1)));
    };
    let too_large = |what, bytes: usize, limit| FrameError::TooLarge {
        what,
        bytes: bytes as u64,
        limit,
    };
    if head.content_len > i32::MAX as u32 {
        return Err(FrameError::Garbage {
            protocol: "bolt",
            what: "content length",
            value: u64::from(head.content_len),
        });
    }
    let class_len = usize::from(head.class_len);
    if class_len > MAX_SECTION_BYTES {
        return Err(too_large("class name", class_len, MAX_SECTION_BYTES));
    }
    let header_len = usize::from(head.header_len);
    let header_limit = limits.header_bytes.min(MAX_SECTION_BYTES);
    if header_len > header_limit {
        return Err(too_large("header section", header_len, header_limit));
    }
    let len = head.frame_len();
    if len > limits.frame_bytes {
        return Err(too_large("frame", len, limits.frame_bytes));
    }
    if bytes.len() < len {
        return Ok(Next::NeedMore(len));
    }
    Ok(Next::Frame(len))
}

/// Checks the checksum of a complete frame that has one.
pub fn verify(frame: &[u8], head: &Head) -> Result<(), FrameError> {
    if !head.has_checksum() {
        return Ok(());
    }
    let end = head.content().end;
    let expected = crc32fast::hash(frame.get(..end).unwrap_or_default());
    let found = be32(frame, end).unwrap_or_default();
    if found == expected {
        Ok(())
    } else {
        Err(FrameError::Checksum { found, expected })
    }
}

/// Computes the trailing checksum again, after a change.
pub fn seal(frame: &mut [u8], head: &Head) {
    if head.has_checksum() {
        let end = head.content().end;
        let sum = crc32fast::hash(frame.get(..end).unwrap_or_default());
        put(frame, end, sum.to_be_bytes());
    }
}

/// Replaces the request id, and leaves the checksum to [`seal`].
pub fn set_id(frame: &mut [u8], head: &mut Head, id: u32) {
    head.id = id;
    put(frame, head.id_at(), id.to_be_bytes());
}

/// Replaces the timeout of a request, and leaves the checksum to [`seal`].
pub fn set_timeout(frame: &mut [u8], head: &mut Head, timeout_ms: i32) {
    if head.kind != Kind::Response {
        head.timeout_ms = timeout_ms;
        put(frame, head.timeout_at(), timeout_ms.to_be_bytes());
    }
}
