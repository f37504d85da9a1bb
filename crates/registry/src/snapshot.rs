//! The file that a registry is saved to and restored from. It is read whole and checked before anything of it is believed.
//!
//! `MESHOSR` and a zero byte; as little-endian numbers the format (4 bytes), the registry's revision (8) and the number of
//! instances (8); each instance as a `mesh.registry.v1.Instance` behind its length as a varint; CRC-32 of all that (4).

use std::sync::Arc;

use api::mesh::registry::v1 as pb;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;

use crate::convert::{instance_from, instance_to};
use crate::limits::Limits;
use crate::model::Instance;
use crate::services::{Service, Services};

const MAGIC: &[u8; 8] = b"MESHOSR\0";
/// The format that is written, and the only one so far.
const FORMAT: u32 = 1;
const HEADER_BYTES: usize = 28;
const SUM_BYTES: usize = 4;
/// Longest length as a varint: seven bits a byte.
const LENGTH_BYTES: usize = 5;
/// Bytes of a piece when a snapshot is written.
const PIECE_BYTES: usize = 64 * 1024;
/// Of an instance everything but its metadata: some names and words within their limits.
const NAMES_BYTES: usize = 16 * 1024;

/// Why a file is no snapshot that can be restored.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// It does not begin as one.
    #[error("this is no snapshot of a registry")]
    NotOne,
    /// It was written by a newer version.
    #[error("the snapshot has format {found}, this version knows {FORMAT}")]
    Format {
        /// Its format.
        found: u32,
    },
    /// It ends too early.
    #[error("the snapshot is cut off after {instances} of {announced} instances")]
    CutOff {
        /// Those that are there.
        instances: u64,
        /// Those that its beginning announces.
        announced: u64,
    },
    /// There is something behind its end.
    #[error("there are bytes behind the snapshot's end")]
    TooLong,
    /// Its bytes are not those that were written.
    #[error("the snapshot's checksum is wrong: the file is damaged")]
    Damaged,
    /// An instance cannot be read or is not allowed.
    #[error("instance {number} of the snapshot: {reason}")]
    Instance {
        /// Counted from 1.
        number: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// More than this registry takes.
    #[error("the snapshot has {announced} instances; the registry holds {limit} at most")]
    TooMany {
        /// Those that its beginning announces.
        announced: u64,
        /// What the registry takes.
        limit: usize,
    },
}

/// Writes a picture, piece by piece: a million instances are never in memory a second time.
pub(crate) struct Writer {
    services: std::vec::IntoIter<Arc<Service>>,
    head: Option<BytesMut>,
    sum: crc32fast::Hasher,
    done: bool,
}

impl Writer {
    pub(crate) fn new(services: &Services) -> Writer {
        let mut head = BytesMut::with_capacity(HEADER_BYTES);
        head.put_slice(MAGIC);
        head.put_u32_le(FORMAT);
        head.put_u64_le(services.revision);
        head.put_u64_le(services.instances() as u64);
        let services: Vec<Arc<Service>> = services.iter().cloned().collect();
        Writer {
            services: services.into_iter(),
            head: Some(head),
            sum: crc32fast::Hasher::new(),
            done: false,
        }
    }
}

impl Iterator for Writer {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        if self.done {
            return None;
        }
        let mut piece = self.head.take().unwrap_or_default();
        while piece.len() < PIECE_BYTES {
            let Some(service) = self.services.next() else {
                self.sum.update(&piece);
                piece.put_u32_le(self.sum.clone().finalize());
                self.done = true;
                return Some(piece.freeze());
            };
            for instance in service.instances.iter() {
                let record = instance_to(instance).encode_length_delimited_to_vec();
                piece.put_slice(&record);
            }
        }
        self.sum.update(&piece);
        Some(piece.freeze())
    }
}

/// Reads a snapshot as it comes in.
pub(crate) struct Reader {
    limits: Limits,
    /// What has come and was not read.
    left: BytesMut,
    /// Instances that the beginning announces, once it is there.
    announced: Option<u64>,
    instances: Vec<Instance>,
    sum: crc32fast::Hasher,
    summed: bool,
}

impl Reader {
    pub(crate) fn new(limits: Limits) -> Reader {
        Reader {
            limits,
            left: BytesMut::new(),
            announced: None,
            instances: Vec::new(),
            sum: crc32fast::Hasher::new(),
            summed: false,
        }
    }

    /// Takes the next bytes.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<(), SnapshotError> {
        self.left.extend_from_slice(bytes);
        if self.announced.is_none() {
            self.header()?;
        }
        let Some(announced) = self.announced else {
            return Ok(());
        };
        while (self.instances.len() as u64) < announced {
            if !self.instance()? {
                return Ok(());
            }
        }
        if self.summed && !self.left.is_empty() || self.left.len() > SUM_BYTES {
            return Err(SnapshotError::TooLong);
        }
        if !self.summed && self.left.len() == SUM_BYTES {
            if self.left.get_u32_le() != self.sum.clone().finalize() {
                return Err(SnapshotError::Damaged);
            }
            self.summed = true;
        }
        Ok(())
    }

    /// The instances, when all has come and is as it was written.
    pub(crate) fn finish(self) -> Result<Vec<Instance>, SnapshotError> {
        match (self.summed, self.announced) {
            (true, _) => Ok(self.instances),
            (false, None) => Err(SnapshotError::NotOne),
            (false, Some(announced)) => Err(SnapshotError::CutOff {
                instances: self.instances.len() as u64,
                announced,
            }),
        }
    }

    fn header(&mut self) -> Result<(), SnapshotError> {
        let magic = self.left.len().min(MAGIC.len());
        if self.left.get(..magic) != MAGIC.get(..magic) {
            return Err(SnapshotError::NotOne);
        }
        if self.left.len() < HEADER_BYTES {
            return Ok(());
        }
        let mut header = self.left.split_to(HEADER_BYTES);
        self.sum.update(&header);
        header.advance(MAGIC.len());
        let (found, _revision, announced) = (
            header.get_u32_le(),
            header.get_u64_le(),
            header.get_u64_le(),
        );
        if found != FORMAT {
            return Err(SnapshotError::Format { found });
        }
        if announced > self.limits.instances as u64 {
            return Err(SnapshotError::TooMany {
                announced,
                limit: self.limits.instances,
            });
        }
        self.announced = Some(announced);
        Ok(())
    }

    /// Reads an instance; `false` when it has not wholly come.
    fn instance(&mut self) -> Result<bool, SnapshotError> {
        let number = self.instances.len() as u64 + 1;
        let wrong = |reason: String| SnapshotError::Instance { number, reason };
        let start = self.left.get(..LENGTH_BYTES.min(self.left.len()));
        let start = start.unwrap_or_default();
        let Some(end) = start.iter().position(|byte| byte & 0x80 == 0) else {
            return match start.len() < LENGTH_BYTES {
                true => Ok(false),
                false => Err(wrong("its length is none".to_owned())),
            };
        };
        let length = prost::decode_length_delimiter(start).map_err(|e| wrong(e.to_string()))?;
        if length > self.limits.metadata_bytes * 2 + NAMES_BYTES {
            return Err(wrong(format!("has {length} bytes")));
        }
        let whole = end + 1 + length;
        if self.left.len() < whole {
            return Ok(false);
        }
        let mut record = self.left.split_to(whole);
        self.sum.update(&record);
        record.advance(end + 1);
        let message = pb::Instance::decode(record).map_err(|e| wrong(e.to_string()))?;
        let instance = instance_from(message).map_err(|e| wrong(e.to_string()))?;
        self.limits
            .check(&instance)
            .map_err(|e| wrong(e.to_string()))?;
        self.instances.push(instance);
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::ServiceKey;
    use crate::services::Draft;

    fn picture(count: u16) -> Services {
        let mut draft = Draft::of(&Services::default());
        for number in 0..count {
            let service = ServiceKey::new("dubbo", &format!("com.foo.S{}", number % 7));
            let mut instance = Instance::new(service, "10.0.0.1", number + 1);
            instance.id = instance.default_id().into();
            instance.metadata = [("zone", "east"), ("n", &number.to_string())]
                .into_iter()
                .collect();
            instance.ttl = None;
            draft.put(Arc::new(instance));
        }
        draft.finish(99)
    }

    fn file(services: &Services) -> Vec<u8> {
        Writer::new(services).flatten().collect()
    }

    fn read(file: &[u8], piece: usize) -> Result<Vec<Instance>, SnapshotError> {
        let mut reader = Reader::new(Limits::default());
        for piece in file.chunks(piece) {
            reader.push(piece)?;
        }
        reader.finish()
    }

    #[test]
    fn what_was_written_is_read_in_pieces_of_any_size() {
        let services = picture(1000);
        let file = file(&services);
        for piece in [1, 7, 4096, file.len()] {
            let read = read(&file, piece).expect("a whole file");
            assert_eq!(read.len(), 1000);
            for instance in &read {
                let known = services.instance(&instance.reference());
                assert!(known.is_some_and(|known| known.same_content(instance)));
            }
        }
        assert_eq!(read(&self::file(&picture(0)), 8), Ok(Vec::new()));
    }

    #[test]
    fn a_bad_file_is_refused_whole() {
        let whole = file(&picture(20));
        for end in 0..whole.len() {
            assert!(read(&whole[..end], 64).is_err(), "cut off at {end}");
        }
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x10;
            // The revision tells nothing that could be wrong but counts in the sum.
            assert!(read(&damaged, 64).is_err(), "damaged at {at}");
        }
        let mut longer = whole.clone();
        longer.push(0);
        assert_eq!(read(&longer, 64), Err(SnapshotError::TooLong));
        let mut newer = whole.clone();
        newer[8] = 2;
        assert_eq!(read(&newer, 64), Err(SnapshotError::Format { found: 2 }));
        let mut huge = whole;
        huge[26] = 1;
        assert!(matches!(
            read(&huge, 64),
            Err(SnapshotError::TooMany { .. })
        ));
    }

    proptest! {
        #[test]
        fn nothing_panics(bytes: Vec<u8>, records: Vec<u8>, count in 0..9_u8) {
            let _ = read(&bytes, 5);
            let mut file = MAGIC.to_vec();
            file.extend([1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, count, 0, 0, 0, 0, 0, 0, 0]);
            file.extend(records);
            let _ = read(&file, 5);
        }
    }
}
