//! The Dubbo 2 protocol (`protocols/dubbo2.md`): frame boundary, head, lazy reading of a call's
//! words and attachments, edits, answers.
//!
//! ```
//! use wire::dubbo::{self, Head, Serialization};
//! use wire::frame::{Limits, Next};
//!
//! let mut bytes = Vec::new();
//! dubbo::write_heartbeat(&mut bytes, Serialization::HESSIAN2, 3);
//! assert_eq!(dubbo::next_frame(&bytes, &Limits::default()), Ok(Next::Frame(17)));
//! assert!(Head::parse(&bytes).unwrap().is_heartbeat(&bytes));
//! ```

pub mod attachments;
pub mod call;
pub mod json;
pub mod message;
pub mod write;

use crate::frame::{FrameError, Limits, Next, be32, be64, put};

pub use attachments::{Attachments, EditError, Rewrite, rewrite_call, rewrite_response};
pub use call::{Call, CallError, Outcome};
pub use write::{
    write_exception, write_heartbeat, write_heartbeat_ack, write_readonly, write_status,
};

/// Bytes of the head.
pub const HEAD_LEN: usize = 16;
/// First two bytes of each frame.
pub const MAGIC: [u8; 2] = [0xda, 0xbb];

const REQUEST: u8 = 0x80;
const TWO_WAY: u8 = 0x40;
const EVENT: u8 = 0x20;

/// The `status` byte of an answer.
pub mod status {
    /// Answered; business exceptions have this status too.
    pub const OK: u8 = 20;
    /// The answer could not be serialized.
    pub const SERIALIZATION_ERROR: u8 = 25;
    /// The client gave up waiting.
    pub const CLIENT_TIMEOUT: u8 = 30;
    /// The server gave up waiting.
    pub const SERVER_TIMEOUT: u8 = 31;
    /// The channel went away.
    pub const CHANNEL_INACTIVE: u8 = 35;
    /// The request could not be read.
    pub const BAD_REQUEST: u8 = 40;
    /// The answer could not be read.
    pub const BAD_RESPONSE: u8 = 50;
    /// No such service.
    pub const SERVICE_NOT_FOUND: u8 = 60;
    /// The service failed.
    pub const SERVICE_ERROR: u8 = 70;
    /// The server failed.
    pub const SERVER_ERROR: u8 = 80;
    /// The client failed.
    pub const CLIENT_ERROR: u8 = 90;
    /// The server has no thread left.
    pub const THREADPOOL_EXHAUSTED: u8 = 100;
}

/// Serialization id: the low five bits of the flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Serialization(pub u8);

impl Serialization {
    /// Hessian 2.0, the default.
    pub const HESSIAN2: Serialization = Serialization(2);
    /// fastjson2's JSONB, each value with its length in front.
    pub const FASTJSON2: Serialization = Serialization(23);
}

/// The head of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Flags as they came.
    pub flags: u8,
    /// See [`status`]; 0 in requests.
    pub status: u8,
    /// Request id, opaque.
    pub id: u64,
    /// Bytes behind the head.
    pub body_len: u32,
}

impl Head {
    /// The head at the start of `bytes`; `None` while it is not complete.
    pub fn read(bytes: &[u8]) -> Result<Option<Head>, FrameError> {
        for (at, expected) in MAGIC.iter().enumerate() {
            match bytes.get(at) {
                None => return Ok(None),
                Some(byte) if byte == expected => {}
                Some(byte) => {
                    return Err(FrameError::Garbage {
                        protocol: "dubbo",
                        what: "magic byte",
                        value: u64::from(*byte),
                    });
                }
            }
        }
        let fields = (be32(bytes, 12), be64(bytes, 4), bytes.get(2), bytes.get(3));
        let (Some(body_len), Some(id), Some(flags), Some(status)) = fields else {
            return Ok(None);
        };
        Ok(Some(Head {
            flags: *flags,
            status: *status,
            id,
            body_len,
        }))
    }

    /// The head of a frame that [`next_frame`] found complete.
    pub fn parse(frame: &[u8]) -> Result<Head, FrameError> {
        Head::read(frame)?.ok_or(FrameError::Garbage {
            protocol: "dubbo",
            what: "length",
            value: frame.len() as u64,
        })
    }

    /// Serialization of the body.
    pub fn serialization(&self) -> Serialization {
        Serialization(self.flags & 0x1f)
    }

    /// A call or an event, not an answer.
    pub fn is_request(&self) -> bool {
        self.flags & REQUEST != 0
    }

    /// A request that wants an answer.
    pub fn is_two_way(&self) -> bool {
        self.flags & TWO_WAY != 0
    }

    /// Heartbeat or read-only event, or the answer to one.
    pub fn is_event(&self) -> bool {
        self.flags & EVENT != 0
    }

    /// Whether the event is a heartbeat: its body is null. Old peers send it as `N` twice or leave
    /// it out; everything else that is short and no text counts as well.
    pub fn is_heartbeat(&self, frame: &[u8]) -> bool {
        self.is_event() && !self.is_readonly(frame)
    }

    /// Whether the event says that its sender wants no new calls on this connection.
    pub fn is_readonly(&self, frame: &[u8]) -> bool {
        let body = frame.get(HEAD_LEN..).unwrap_or_default();
        self.is_event()
            && match self.serialization() {
                Serialization::FASTJSON2 => body.get(4..).is_some_and(|text| text == b"\x4aR"),
                _ => body == b"\x01R",
            }
    }
}

/// Whether `bytes`, the first of a connection, can be Dubbo: `None` while they are too few to say.
pub fn detect(bytes: &[u8]) -> Option<bool> {
    match bytes {
        [] => None,
        [first] if *first == MAGIC[0] => None,
        _ => Some(bytes.starts_with(&MAGIC)),
    }
}

/// Finds the end of the frame at the start of `bytes`.
pub fn next_frame(bytes: &[u8], limits: &Limits) -> Result<Next, FrameError> {
    let Some(head) = Head::read(bytes)? else {
        return Ok(Next::NeedMore(HEAD_LEN));
    };
    if head.body_len > i32::MAX as u32 {
        return Err(FrameError::Garbage {
            protocol: "dubbo",
            what: "body length",
            value: u64::from(head.body_len),
        });
    }
    let len = HEAD_LEN + head.body_len as usize;
    if len > limits.frame_bytes {
        return Err(FrameError::TooLarge {
            what: "frame",
            bytes: len as u64,
            limit: limits.frame_bytes,
        });
    }
    if bytes.len() < len {
        return Ok(Next::NeedMore(len));
    }
    Ok(Next::Frame(len))
}

/// Replaces the request id.
pub fn set_id(frame: &mut [u8], id: u64) {
    put(frame, 4, id.to_be_bytes());
}

/// Makes the length field of the frame that `frame` holds alone right.
pub(crate) fn seal(frame: &mut [u8]) {
    let body = u32::try_from(frame.len().saturating_sub(HEAD_LEN)).unwrap_or(u32::MAX);
    put(frame, 12, body.to_be_bytes());
}
