//! What the length-prefixed protocols share: where a frame ends, and how large it may be.

/// Limits of one listener or cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest frame, head included, in bytes.
    pub frame_bytes: usize,
    /// Largest header section in bytes: Bolt's header map, Dubbo's attachments.
    pub header_bytes: usize,
}

impl Default for Limits {
    /// 64 MiB and 60 KiB.
    fn default() -> Limits {
        Limits {
            frame_bytes: 64 << 20,
            header_bytes: 60 << 10,
        }
    }
}

/// What the bytes at the start of a buffer are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The frame is not complete: it has this many bytes at least.
    NeedMore(usize),
    /// A complete frame of this many bytes.
    Frame(usize),
}

/// Bytes that are no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// These bytes do not belong to the protocol.
    #[error("{what} {value:#x} is not {protocol}")]
    Garbage {
        /// Protocol that was expected.
        protocol: &'static str,
        /// The field that is wrong.
        what: &'static str,
        /// What it holds.
        value: u64,
    },
    /// A frame or section over its limit. The id is known, so the caller can be told.
    #[error("{what} of {bytes} bytes exceeds the limit of {limit}")]
    TooLarge {
        /// Which part.
        what: &'static str,
        /// Its length.
        bytes: u64,
        /// The limit.
        limit: usize,
    },
    /// The trailing checksum does not match.
    #[error("checksum {found:#010x} should be {expected:#010x}")]
    Checksum {
        /// Checksum in the frame.
        found: u32,
        /// Checksum of its bytes.
        expected: u32,
    },
}

pub(crate) fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    let (head, _) = bytes.get(at..)?.split_first_chunk::<2>()?;
    Some(u16::from_be_bytes(*head))
}

pub(crate) fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    let (head, _) = bytes.get(at..)?.split_first_chunk::<4>()?;
    Some(u32::from_be_bytes(*head))
}

pub(crate) fn be64(bytes: &[u8], at: usize) -> Option<u64> {
    let (head, _) = bytes.get(at..)?.split_first_chunk::<8>()?;
    Some(u64::from_be_bytes(*head))
}

/// Overwrites `N` bytes at `at`; does nothing when they do not exist.
pub(crate) fn put<const N: usize>(bytes: &mut [u8], at: usize, value: [u8; N]) {
    if let Some(slot) = bytes.get_mut(at..at + N) {
        slot.copy_from_slice(&value);
    }
}

/// A change to a frame's metadata: Bolt's header map or Dubbo's attachments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edit<'a> {
    /// The key gets this value, whether it existed or not.
    Set(&'a [u8], &'a [u8]),
    /// The key disappears.
    Remove(&'a [u8]),
}

impl<'a> Edit<'a> {
    /// The key that is changed.
    pub fn key(&self) -> &'a [u8] {
        match self {
            Edit::Set(key, _) | Edit::Remove(key) => key,
        }
    }
}
