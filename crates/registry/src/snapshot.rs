//! The file that a registry is saved to and restored from. It is read whole and checked before anything of it is believed.
//!
//! `MESHOSR` and a zero byte; as little-endian numbers the format (4 bytes), the registry's revision (8), the number of
//! instances (8) and, from format 2 on, that of descriptions of interfaces (8); each instance as a
//! `mesh.registry.v1.Instance` behind its length as a varint; each description likewise, its name as a
//! `mesh.registry.v1.InterfaceRef` and its JSON (zlib); CRC-32 of all that (4).

use std::sync::Arc;

use api::mesh::registry::v1 as pb;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;

use crate::convert::{instance_from, instance_to, interface_from, interface_to};
use crate::interfaces::Interface;
use crate::limits::Limits;
use crate::model::Instance;
use crate::services::{Service, Services};

const MAGIC: &[u8; 8] = b"MESHOSR\0";
/// The format that is written.
const FORMAT: u32 = 2;
/// The format without descriptions of interfaces.
const WITHOUT_INTERFACES: u32 = 1;
/// Up to the format, which tells how long the header is.
const FORMAT_BYTES: usize = 12;
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
    #[error("the snapshot is cut off after {records} of {announced} records")]
    CutOff {
        /// Instances and descriptions that are there.
        records: u64,
        /// Those that its beginning announces.
        announced: u64,
    },
    /// There is something behind its end.
    #[error("there are bytes behind the snapshot's end")]
    TooLong,
    /// Its bytes are not those that were written.
    #[error("the snapshot's checksum is wrong: the file is damaged")]
    Damaged,
    /// An instance or a description cannot be read or is not allowed.
    #[error("record {number} of the snapshot: {reason}")]
    Record {
        /// Counted from 1, instances first.
        number: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// More than this registry takes.
    #[error("the snapshot has {announced} {what}; the registry holds {limit} at most")]
    TooMany {
        /// Instances, or descriptions.
        what: &'static str,
        /// Those that its beginning announces.
        announced: u64,
        /// What the registry takes.
        limit: usize,
    },
}

/// A description of an interface.
#[derive(Clone, PartialEq, prost::Message)]
struct Described {
    #[prost(message, optional, tag = "1")]
    interface: Option<pb::InterfaceRef>,
    #[prost(bytes = "vec", tag = "2")]
    packed: Vec<u8>,
}

/// What a snapshot has.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Contents {
    pub(crate) instances: Vec<Instance>,
    pub(crate) interfaces: Vec<Interface>,
}

/// Writes a picture, piece by piece: a million instances are never in memory a second time.
pub(crate) struct Writer {
    services: std::vec::IntoIter<Arc<Service>>,
    interfaces: std::vec::IntoIter<Arc<Interface>>,
    head: Option<BytesMut>,
    sum: crc32fast::Hasher,
    done: bool,
}

impl Writer {
    pub(crate) fn new(services: &Services, interfaces: Vec<Arc<Interface>>) -> Writer {
        let mut head = BytesMut::new();
        head.put_slice(MAGIC);
        head.put_u32_le(FORMAT);
        head.put_u64_le(services.revision);
        head.put_u64_le(services.instances() as u64);
        head.put_u64_le(interfaces.len() as u64);
        let services: Vec<Arc<Service>> = services.iter().cloned().collect();
        Writer {
            services: services.into_iter(),
            interfaces: interfaces.into_iter(),
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
            if let Some(service) = self.services.next() {
                for instance in service.instances.iter() {
                    let record = instance_to(instance).encode_length_delimited_to_vec();
                    piece.put_slice(&record);
                }
            } else if let Some(interface) = self.interfaces.next() {
                let described = Described {
                    interface: interface_to(&interface).interface,
                    packed: interface.packed().to_vec(),
                };
                piece.put_slice(&described.encode_length_delimited_to_vec());
            } else {
                self.sum.update(&piece);
                piece.put_u32_le(self.sum.clone().finalize());
                self.done = true;
                return Some(piece.freeze());
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
    /// Instances and descriptions that the beginning announces, once it is there.
    announced: Option<(u64, u64)>,
    contents: Contents,
    sum: crc32fast::Hasher,
    summed: bool,
}

impl Reader {
    pub(crate) fn new(limits: Limits) -> Reader {
        Reader {
            limits,
            left: BytesMut::new(),
            announced: None,
            contents: Contents::default(),
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
        let Some((instances, interfaces)) = self.announced else {
            return Ok(());
        };
        while (self.contents.instances.len() as u64) < instances {
            let limit = self.limits.metadata_bytes * 2 + NAMES_BYTES;
            let Some(record) = self.record(limit)? else {
                return Ok(());
            };
            let instance = instance(record, &self.limits);
            let instance = instance.map_err(|reason| self.wrong(reason))?;
            self.contents.instances.push(instance);
        }
        while (self.contents.interfaces.len() as u64) < interfaces {
            let Some(record) = self.record(self.limits.interface_bytes + NAMES_BYTES)? else {
                return Ok(());
            };
            let interface = interface(record, &self.limits);
            let interface = interface.map_err(|reason| self.wrong(reason))?;
            self.contents.interfaces.push(interface);
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

    /// Instances and descriptions, when all has come and is as it was written.
    pub(crate) fn finish(self) -> Result<Contents, SnapshotError> {
        match (self.summed, self.announced) {
            (true, _) => Ok(self.contents),
            (false, None) => Err(SnapshotError::NotOne),
            (false, Some((instances, interfaces))) => Err(SnapshotError::CutOff {
                records: self.read(),
                announced: instances + interfaces,
            }),
        }
    }

    /// Records that were read.
    fn read(&self) -> u64 {
        (self.contents.instances.len() + self.contents.interfaces.len()) as u64
    }

    fn wrong(&self, reason: String) -> SnapshotError {
        let number = self.read() + 1;
        SnapshotError::Record { number, reason }
    }

    fn header(&mut self) -> Result<(), SnapshotError> {
        let magic = self.left.len().min(MAGIC.len());
        if self.left.get(..magic) != MAGIC.get(..magic) {
            return Err(SnapshotError::NotOne);
        }
        let Some(mut format) = self.left.get(MAGIC.len()..FORMAT_BYTES) else {
            return Ok(());
        };
        let found = format.get_u32_le();
        let counts = match found {
            WITHOUT_INTERFACES => 1,
            FORMAT => 2,
            _ => return Err(SnapshotError::Format { found }),
        };
        // The revision, and the counts.
        let bytes = FORMAT_BYTES + 8 + 8 * counts;
        if self.left.len() < bytes {
            return Ok(());
        }
        let mut header = self.left.split_to(bytes);
        self.sum.update(&header);
        header.advance(FORMAT_BYTES + 8);
        let instances = header.get_u64_le();
        let interfaces = header.try_get_u64_le().unwrap_or(0);
        for (what, announced, limit) in [
            ("instances", instances, self.limits.instances),
            ("descriptions", interfaces, self.limits.interfaces),
        ] {
            if announced > limit as u64 {
                return Err(SnapshotError::TooMany {
                    what,
                    announced,
                    limit,
                });
            }
        }
        self.announced = Some((instances, interfaces));
        Ok(())
    }

    /// The next record without its length; `None` when it has not wholly come.
    fn record(&mut self, limit: usize) -> Result<Option<BytesMut>, SnapshotError> {
        let start = self.left.get(..LENGTH_BYTES.min(self.left.len()));
        let start = start.unwrap_or_default();
        let Some(end) = start.iter().position(|byte| byte & 0x80 == 0) else {
            return match start.len() < LENGTH_BYTES {
                true => Ok(None),
                false => Err(self.wrong("its length is none".to_owned())),
            };
        };
        let length = prost::decode_length_delimiter(start);
        let length = length.map_err(|e| self.wrong(e.to_string()))?;
        if length > limit {
            return Err(self.wrong(format!("has {length} bytes")));
        }
        let whole = end + 1 + length;
        if self.left.len() < whole {
            return Ok(None);
        }
        let mut record = self.left.split_to(whole);
        self.sum.update(&record);
        record.advance(end + 1);
        Ok(Some(record))
    }
}

fn instance(record: BytesMut, limits: &Limits) -> Result<Instance, String> {
    let message = pb::Instance::decode(record).map_err(|e| e.to_string())?;
    let instance = instance_from(message).map_err(|e| e.to_string())?;
    limits.check(&instance).map_err(|e| e.to_string())?;
    Ok(instance)
}

fn interface(record: BytesMut, limits: &Limits) -> Result<Interface, String> {
    let described = Described::decode(record).map_err(|e| e.to_string())?;
    let key = interface_from(described.interface.unwrap_or_default());
    limits.check_interface(&key).map_err(|e| e.to_string())?;
    Interface::unpack(key, &described.packed, limits.interface_bytes)
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

    fn descriptions() -> Vec<Arc<Interface>> {
        let described = ["com.foo.A", "com.foo.B"].map(|name| {
            let key = crate::interfaces::InterfaceKey {
                service: ServiceKey::new("dubbo", name),
                version: "1.0".into(),
                group: "".into(),
            };
            let json = br#"{"methods":[{"name":"echo"}]}"#;
            Arc::new(Interface::parse(key, json, 100).expect("a description"))
        });
        described.into()
    }

    fn file(services: &Services) -> Vec<u8> {
        Writer::new(services, descriptions()).flatten().collect()
    }

    fn read(file: &[u8], piece: usize) -> Result<Contents, SnapshotError> {
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
            let described: Vec<_> = read.interfaces.into_iter().map(Arc::new).collect();
            assert_eq!((read.instances.len(), described), (1000, descriptions()));
            for instance in &read.instances {
                let known = services.instance(&instance.reference());
                assert!(known.is_some_and(|known| known.same_content(instance)));
            }
        }
        let empty: Vec<u8> = Writer::new(&picture(0), Vec::new()).flatten().collect();
        assert_eq!(read(&empty, 8), Ok(Contents::default()));
    }

    /// Written by hand: revision 42, one instance, no count of descriptions.
    const FIRST_FORMAT: &[u8] = b"MESHOSR\0\x01\0\0\0\x2a\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\
        \x3b\x0a\x05dubbo\x12\x0dcom.foo.Order\x1a\x01a\x32\x0810.0.0.7\x38\x90\xa3\x01\x40\x07\
        \x52\x0c\x0a\x04zone\x12\x04east\x60\0\x68\x29\
        \x72\x04\x5e\x8c";

    #[test]
    fn a_file_of_the_first_format_is_read() {
        let mut expected =
            Instance::new(ServiceKey::new("dubbo", "com.foo.Order"), "10.0.0.7", 20880);
        expected.id = "a".into();
        expected.weight = 7;
        expected.metadata = [("zone", "east")].into_iter().collect();
        expected.ttl = None;
        expected.revision = 41;
        for piece in [1, FIRST_FORMAT.len()] {
            let read = read(FIRST_FORMAT, piece).expect("a whole file");
            assert_eq!(
                (read.instances, read.interfaces),
                (vec![expected.clone()], vec![])
            );
        }
        // Read as the second, a record is no count.
        let mut second = FIRST_FORMAT.to_vec();
        second[8] = 2;
        read(&second, 64).unwrap_err();
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
        newer[8] = 3;
        assert_eq!(read(&newer, 64), Err(SnapshotError::Format { found: 3 }));
        let mut huge = whole;
        huge[26] = 1;
        assert!(matches!(
            read(&huge, 64),
            Err(SnapshotError::TooMany { .. })
        ));
    }

    proptest! {
        #[test]
        fn nothing_panics(bytes: Vec<u8>, records: Vec<u8>, counts: [u8; 2], format in 0..4_u8) {
            let _ = read(&bytes, 5);
            let mut file = MAGIC.to_vec();
            file.extend([format, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            for count in counts {
                file.extend([count % 9, 0, 0, 0, 0, 0, 0, 0]);
            }
            file.extend(records);
            let _ = read(&file, 5);
        }
    }
}
