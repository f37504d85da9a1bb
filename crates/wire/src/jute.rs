//! ZooKeeper's wire (jute): frames of a 32-bit length, big-endian numbers, strings and buffers with a length
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
    /// Writes a node's data.
    pub const SET_DATA: i32 = 5;
    /// Reads a node's permissions.
    pub const GET_ACL: i32 = 6;
    /// Writes a node's permissions.
    pub const SET_ACL: i32 = 7;
    /// Reads the names of a node's children.
    pub const GET_CHILDREN: i32 = 8;
    /// Waits for what others wrote.
    pub const SYNC: i32 = 9;
    /// Children and stat.
    pub const GET_CHILDREN2: i32 = 12;
    /// Checks a node's version, within a transaction.
    pub const CHECK: i32 = 13;
    /// Several requests as one transaction.
    pub const MULTI: i32 = 14;
    /// Makes a node and answers its stat.
    pub const CREATE2: i32 = 15;
    /// Looks whether there is such a watch.
    pub const CHECK_WATCHES: i32 = 17;
    /// Takes watches back.
    pub const REMOVE_WATCHES: i32 = 18;
    /// Makes a node that goes when it has no children any more.
    pub const CREATE_CONTAINER: i32 = 19;
    /// Sets watches again after a lost connection.
    pub const SET_WATCHES: i32 = 101;
    /// Names of the session's nodes.
    pub const GET_EPHEMERALS: i32 = 103;
    /// Number of all nodes below one.
    pub const GET_ALL_CHILDREN_NUMBER: i32 = 104;
    /// `SET_WATCHES` with lasting ones.
    pub const SET_WATCHES2: i32 = 105;
    /// Sets a lasting watch.
    pub const ADD_WATCH: i32 = 106;
    /// A failure within a transaction.
    pub const ERROR: i32 = -1;
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
    /// The request cannot be read.
    pub const MARSHALLING: i32 = -5;
    /// There is no such request here.
    pub const UNIMPLEMENTED: i32 = -6;
    /// The request makes no sense.
    pub const BAD_ARGUMENTS: i32 = -8;
    /// A request of the same transaction failed.
    pub const RUNTIME_INCONSISTENCY: i32 = -2;
    /// The node has another version.
    pub const BAD_VERSION: i32 = -103;
    /// Nodes of a session have no children.
    pub const NO_CHILDREN_FOR_EPHEMERALS: i32 = -108;
    /// The node has children.
    pub const NOT_EMPTY: i32 = -111;
    /// There is no such watch.
    pub const NO_WATCHER: i32 = -121;
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

    /// A truth value.
    pub fn bool(&mut self) -> Result<bool, Malformed> {
        self.take::<1>().map(|[byte]| byte != 0)
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

/// `Stat`: what is said of a node. Times are ms since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stat {
    /// Transaction that made it.
    pub czxid: i64,
    /// Transaction that last wrote it.
    pub mzxid: i64,
    /// When it was made.
    pub ctime: i64,
    /// When it was last written.
    pub mtime: i64,
    /// How often it was written.
    pub version: i32,
    /// How often its children changed.
    pub cversion: i32,
    /// How often its permissions changed.
    pub aversion: i32,
    /// Its session; 0 for one that stays.
    pub ephemeral_owner: i64,
    /// Bytes of its data.
    pub data_length: i32,
    /// Number of its children.
    pub num_children: i32,
    /// Transaction that last changed its children.
    pub pzxid: i64,
}

impl Stat {
    /// Appends it.
    pub fn write(&self, writer: &mut Writer) {
        writer.long(self.czxid).long(self.mzxid);
        writer.long(self.ctime).long(self.mtime);
        writer
            .int(self.version)
            .int(self.cversion)
            .int(self.aversion);
        writer.long(self.ephemeral_owner);
        writer.int(self.data_length).int(self.num_children);
        writer.long(self.pzxid);
    }

    /// Reads it.
    pub fn read(reader: &mut Reader<'_>) -> Result<Stat, Malformed> {
        Ok(Stat {
            czxid: reader.long()?,
            mzxid: reader.long()?,
            ctime: reader.long()?,
            mtime: reader.long()?,
            version: reader.int()?,
            cversion: reader.int()?,
            aversion: reader.int()?,
            ephemeral_owner: reader.long()?,
            data_length: reader.int()?,
            num_children: reader.int()?,
            pzxid: reader.long()?,
        })
    }
}

/// `ConnectRequest`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectRequest {
    /// The last transaction that the client has seen.
    pub last_zxid: i64,
    /// The session timeout that it asks for, in ms.
    pub timeout_ms: i32,
    /// The session that it goes on with; 0: a new one.
    pub session: i64,
    /// That session's password.
    pub password: Vec<u8>,
    /// Whether it says if it takes a read-only server, and so expects an answer to that.
    pub knows_read_only: bool,
}

impl ConnectRequest {
    /// Reads it.
    pub fn read(reader: &mut Reader<'_>) -> Result<ConnectRequest, Malformed> {
        reader.int()?;
        Ok(ConnectRequest {
            last_zxid: reader.long()?,
            timeout_ms: reader.int()?,
            session: reader.long()?,
            password: reader.buffer()?.to_vec(),
            knows_read_only: reader.bool().is_ok(),
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
            let _ = ConnectRequest::read(&mut reader.clone());
            let _ = watcher_event(&mut reader.clone());
            let _ = Stat::read(&mut reader.clone());
            let _ = reader.clone().strings();
        }
    }
}
