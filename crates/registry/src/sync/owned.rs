//! What this mesh wrote into which registry: kept on disk, because marks in registries get lost, and written before the copy
//! itself is.

use std::path::Path;
use std::sync::Arc;

use api::mesh::registry::v1 as pb;
use prost::Message;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use crate::convert::{instance_from, instance_to};
use crate::error::OpenError;
use crate::model::Instance;

/// Key: the registry and the copy's id with a zero byte between them. Value: [`SavedCopy`].
const COPIES: TableDefinition<&str, &[u8]> = TableDefinition::new("copies");
const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
const FORMAT: &str = "format";
/// The format that this version writes.
const CURRENT_FORMAT: u64 = 1;
const CACHE_BYTES: usize = 4 * 1024 * 1024;

#[derive(Clone, PartialEq, Message)]
struct SavedCopy {
    #[prost(string, tag = "1")]
    origin: String,
    #[prost(message, optional, tag = "2")]
    copy: Option<pb::Instance>,
}

/// A copy that this mesh wrote.
#[derive(Clone, Debug, PartialEq)]
pub struct OwnedCopy {
    /// The registry that it is in.
    pub target: Arc<str>,
    /// The registry that its original is in.
    pub origin: Arc<str>,
    /// As it was written; its id names it in the target.
    pub copy: Arc<Instance>,
}

/// A change of what is owned.
#[derive(Clone, Debug, PartialEq)]
pub enum OwnedChange {
    /// It is about to be written.
    Put(OwnedCopy),
    /// It is no longer there.
    Forget {
        /// The registry that it was in.
        target: Arc<str>,
        /// Its id.
        id: Arc<str>,
    },
}

/// Where the owned set is kept; without a file only marks say what a hub wrote before it was started.
#[derive(Debug)]
pub(crate) struct OwnedStore(Option<Database>);

impl OwnedStore {
    pub(crate) fn memory() -> OwnedStore {
        OwnedStore(None)
    }

    /// Opens or makes the file. A record that cannot be read is left out: its copy's mark still says whose it is.
    pub(crate) fn open(path: &Path) -> Result<(OwnedStore, Vec<OwnedCopy>), OpenError> {
        let failed = |source: redb::Error| OpenError::Database {
            path: path.display().to_string(),
            source: Box::new(source),
        };
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(|e| failed(redb::Error::Io(e)))?;
        }
        let mut builder = Database::builder();
        builder.set_cache_size(CACHE_BYTES);
        let database = builder.create(path).map_err(|e| failed(e.into()))?;
        let found = prepare(&database).map_err(failed)?;
        if found > CURRENT_FORMAT {
            return Err(OpenError::Format {
                path: path.display().to_string(),
                found,
                known: CURRENT_FORMAT,
            });
        }
        let copies = load(&database).map_err(failed)?;
        Ok((OwnedStore(Some(database)), copies))
    }

    /// Writes changes; they are on disk when this returns without an error, and not at all with one.
    pub(crate) fn commit(&self, changes: &[OwnedChange]) -> Result<(), redb::Error> {
        let Some(database) = &self.0 else {
            return Ok(());
        };
        let transaction = database.begin_write()?;
        {
            let mut copies = transaction.open_table(COPIES)?;
            for change in changes {
                match change {
                    OwnedChange::Put(owned) => {
                        let saved = SavedCopy {
                            origin: owned.origin.to_string(),
                            copy: Some(instance_to(&owned.copy)),
                        };
                        let key = key_of(&owned.target, &owned.copy.id);
                        copies.insert(key.as_str(), saved.encode_to_vec().as_slice())?;
                    }
                    OwnedChange::Forget { target, id } => {
                        copies.remove(key_of(target, id).as_str())?;
                    }
                }
            }
        }
        transaction.commit()?;
        Ok(())
    }
}

fn prepare(database: &Database) -> Result<u64, redb::Error> {
    let transaction = database.begin_write()?;
    let format = {
        transaction.open_table(COPIES)?;
        let mut meta = transaction.open_table(META)?;
        let known = meta.get(FORMAT)?.map(|format| format.value());
        match known {
            Some(format) => format,
            None => {
                meta.insert(FORMAT, CURRENT_FORMAT)?;
                CURRENT_FORMAT
            }
        }
    };
    transaction.commit()?;
    Ok(format)
}

fn load(database: &Database) -> Result<Vec<OwnedCopy>, redb::Error> {
    let transaction = database.begin_read()?;
    let table = transaction.open_table(COPIES)?;
    let mut copies = Vec::new();
    for entry in table.iter()? {
        let (key, value) = entry?;
        match read(key.value(), value.value()) {
            Some(owned) => copies.push(owned),
            None => {
                let key = key.value().replace('\0', " ");
                tracing::warn!(key, "what was written into a registry cannot be read");
            }
        }
    }
    Ok(copies)
}

fn read(key: &str, value: &[u8]) -> Option<OwnedCopy> {
    let (target, id) = key.split_once('\0')?;
    let saved = SavedCopy::decode(value).ok()?;
    let mut copy = instance_from(saved.copy?).ok()?;
    copy.id = id.into();
    Some(OwnedCopy {
        target: target.into(),
        origin: saved.origin.into(),
        copy: Arc::new(copy),
    })
}

fn key_of(target: &str, id: &str) -> String {
    [target, "\0", id].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ServiceKey;
    use proptest::prelude::*;

    #[test]
    fn what_was_written_is_known_after_a_restart() -> Result<(), Box<dyn std::error::Error>> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("a/sync.redb");
        let (store, known) = OwnedStore::open(&file)?;
        assert_eq!(known, []);
        let owned = |id: &str| {
            let mut copy = Instance::new(ServiceKey::new("dubbo", "com.foo.Bar"), "10.0.0.1", 1);
            copy.id = id.into();
            copy.ttl = None;
            OwnedCopy {
                target: "zk".into(),
                origin: "nacos".into(),
                copy: Arc::new(copy),
            }
        };
        store.commit(&[OwnedChange::Put(owned("a")), OwnedChange::Put(owned("b"))])?;
        let (target, id) = ("zk".into(), "a".into());
        store.commit(&[OwnedChange::Forget { target, id }])?;
        drop(store);
        assert_eq!(OwnedStore::open(&file)?.1, [owned("b")]);
        Ok(())
    }

    proptest! {
        #[test]
        fn no_bytes_panic(key in "\\PC{0,3}\0?\\PC{0,3}", value in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = read(&key, &value);
        }
    }
}
