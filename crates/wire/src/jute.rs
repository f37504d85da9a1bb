//! ZooKeeper's wire (jute), the client's side: frames of a 32-bit length, big-endian numbers, strings and buffers with a length
//! before them (-1: none). Records as in ZooKeeper's `zookeeper.jute`.

/// `OpCode`s of requests.
pub mod op {
    /// Makes a node.
    pub const CREATE: i32 = 1;
    /// Deletes a node.
    pub const DELETE: i32 = 2;
    /// Looks whether a node is there.
    pub const EXISTS: i32 = 3;
    /// Reads a node's data.
    pub const GET_DATA: i32 = 4;
    /// Reads the names of a node's children.
    pub const GET_CHILDREN: i32 = 8;
    /// Keeps the session.
    pub const PING: i32 = 11;
    /// Says who the client is.
    pub const AUTH: i32 = 100;
    /// Ends the session.
    pub const CLOSE_SESSION: i32 = -11;
}

/// Numbers of requests and replies that are no answers to numbered requests.
pub mod xid {
    /// An event of a watch.
    pub const EVENT: i32 = -1;
    /// A ping and its answer.
    pub const PING: i32 = -2;
    /// An auth packet and its answer.
    pub const AUTH: i32 = -4;
}

/// `KeeperException.Code`s.
pub mod code {
    /// Done.
    pub const OK: i32 = 0;
    /// There is no such node.
    pub const NO_NODE: i32 = -101;
    /// Not permitted.
    pub const NO_AUTH: i32 = -102;
    /// The node is there.
    pub const NODE_EXISTS: i32 = -110;
    /// The credentials are not accepted.
    pub const AUTH_FAILED: i32 = -115;
}

/// All permissions of an ACL.
pub const PERM_ALL: i32 = 31;
/// Permission to read.
pub const PERM_READ: i32 = 1;
/// Flag of a node that goes with its session.
pub const EPHEMERAL: i32 = 1;
/// Elements of a list that are made room for before they are read: a length on the wire proves nothing.
const RESERVED: usize = 1024;

/// What cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a record of ZooKeeper: {0}")]
pub struct Malformed(&'static str);

/// Writes a record.
#[derive(Debug, Default)]
pub struct Writer(Vec<u8>);

impl Writer {
    /// A frame with the header of a request.
    pub fn request(xid: i32, op: i32) -> Writer {
        let mut writer = Writer::frame();
        writer.int(xid).int(op);
        writer
    }

    /// A frame without anything in it.
    pub fn frame() -> Writer {
        // The frame's length is put in at the end.
        Writer(vec![0; 4])
    }

    /// Appends a 32-bit number.
    pub fn int(&mut self, value: i32) -> &mut Writer {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    /// Appends a 64-bit number.
    pub fn long(&mut self, value: i64) -> &mut Writer {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    /// Appends a truth value.
    pub fn bool(&mut self, value: bool) -> &mut Writer {
        self.0.push(u8::from(value));
        self
    }

    /// Appends bytes with their length.
    pub fn buffer(&mut self, bytes: &[u8]) -> &mut Writer {
        self.int(i32::try_from(bytes.len()).unwrap_or(i32::MAX));
        self.0.extend_from_slice(bytes);
        self
    }

    /// Appends what is written already.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Writer {
        self.0.extend_from_slice(bytes);
        self
    }

    /// What was written, without a frame.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.0)
    }

    /// The whole frame.
    pub fn finish(&mut self) -> Vec<u8> {
        let mut frame = std::mem::take(&mut self.0);
        let length = u32::try_from(frame.len().saturating_sub(4)).unwrap_or(u32::MAX);
        if let Some(head) = frame.get_mut(..4) {
            head.copy_from_slice(&length.to_be_bytes());
        }
        frame
    }
}

/// Reads a record.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Reads from the beginning of a frame, behind its length.
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader(bytes)
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, rest) = self
            .0
            .split_first_chunk::<N>()
            .ok_or(Malformed("it is too short"))?;
        self.0 = rest;
        Ok(*head)
    }

    /// What is not read yet.
    pub fn rest(&self) -> &'a [u8] {
        self.0
    }

    /// A 32-bit number.
    pub fn int(&mut self) -> Result<i32, Malformed> {
        self.take().map(i32::from_be_bytes)
    }

    /// A 64-bit number.
    pub fn long(&mut self) -> Result<i64, Malformed> {
        self.take().map(i64::from_be_bytes)
    }

    /// Bytes with their length; none are as good as empty ones.
    pub fn buffer(&mut self) -> Result<&'a [u8], Malformed> {
        let length = self.int()?;
        if length == -1 {
            return Ok(&[]);
        }
        let length = usize::try_from(length).map_err(|_| Malformed("a length is negative"))?;
        let (bytes, rest) = self
            .0
            .split_at_checked(length)
            .ok_or(Malformed("it is too short"))?;
        self.0 = rest;
        Ok(bytes)
    }

    /// A string.
    pub fn string(&mut self) -> Result<&'a str, Malformed> {
        std::str::from_utf8(self.buffer()?).map_err(|_| Malformed("a string is not UTF-8"))
    }

    /// A list of strings.
    pub fn strings(&mut self) -> Result<Vec<String>, Malformed> {
        let count = usize::try_from(self.int()?).unwrap_or(0);
        let mut strings = Vec::with_capacity(count.min(RESERVED));
        for _ in 0..count {
            strings.push(self.string()?.to_owned());
        }
        Ok(strings)
    }
}

/// `ReplyHeader`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplyHeader {
    /// Of the request.
    pub xid: i32,
    /// The server's last transaction.
    pub zxid: i64,
    /// 0, or why not.
    pub err: i32,
}

impl ReplyHeader {
    /// Reads it; the body follows.
    pub fn read(reader: &mut Reader<'_>) -> Result<ReplyHeader, Malformed> {
        Ok(ReplyHeader {
            xid: reader.int()?,
            zxid: reader.long()?,
            err: reader.int()?,
        })
    }
}

/// `ConnectResponse`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectResponse {
    /// Session timeout in ms; 0 or less: the session is over.
    pub timeout_ms: i32,
    /// The session.
    pub session: i64,
    /// Its password.
    pub password: Vec<u8>,
}

impl ConnectResponse {
    /// Reads it.
    pub fn read(reader: &mut Reader<'_>) -> Result<ConnectResponse, Malformed> {
        reader.int()?;
        Ok(ConnectResponse {
            timeout_ms: reader.int()?,
            session: reader.long()?,
            password: reader.buffer()?.to_vec(),
        })
    }
}

/// `EventType` of a `WatcherEvent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventType {
    /// The node was made.
    Created,
    /// The node was deleted.
    Deleted,
    /// Its data changed.
    DataChanged,
    /// Its children changed.
    ChildrenChanged,
    /// Something about the session.
    Other,
}

/// `WatcherEvent`: its type and path.
pub fn watcher_event(reader: &mut Reader<'_>) -> Result<(EventType, String), Malformed> {
    let kind = match reader.int()? {
        1 => EventType::Created,
        2 => EventType::Deleted,
        3 => EventType::DataChanged,
        4 => EventType::ChildrenChanged,
        _ => EventType::Other,
    };
    reader.int()?;
    Ok((kind, reader.string()?.to_owned()))
}

/// `Stat`: the session that owns the node; 0 for one that stays.
pub fn ephemeral_owner(reader: &mut Reader<'_>) -> Result<i64, Malformed> {
    for _ in 0..4 {
        reader.long()?;
    }
    for _ in 0..3 {
        reader.int()?;
    }
    reader.long()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_frame_begins_with_its_length() {
        let frame = Writer::request(1, op::GET_DATA)
            .buffer(b"/a")
            .bool(true)
            .finish();
        assert_eq!(
            frame,
            [
                0, 0, 0, 15, 0, 0, 0, 1, 0, 0, 0, 4, 0, 0, 0, 2, b'/', b'a', 1
            ]
        );
    }

    proptest! {
        #[test]
        fn nothing_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let reader = Reader::new(&bytes);
            // Whatever comes of it: an answer or an error.
            let _ = ReplyHeader::read(&mut reader.clone());
            let _ = ConnectResponse::read(&mut reader.clone());
            let _ = watcher_event(&mut reader.clone());
            let _ = ephemeral_owner(&mut reader.clone());
            let _ = reader.clone().strings();
        }
    }
}
