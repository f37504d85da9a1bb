//! The file that instances survive in: a redb database with one record an instance, and one for the registry itself.
//! A commit is on disk (fsync) when it returns.
//!
//! A record's key is the revision of the instance's last change, which no other has: whatever comes together lies together,
//! and a commit writes some pages at the end instead of one for each instance.

use std::collections::HashSet;
use std::fmt;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use api::mesh::registry::v1 as pb;
use bytes::Bytes;
use prost::Message;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};

use crate::convert::{encode_instance, instance_from};
use crate::error::OpenError;
use crate::interfaces::{Interface, InterfaceKey};
use crate::limits::Limits;
use crate::model::{Change, ChangeKind, Instance, InstanceRef, ServiceKey};
use crate::namespace::Namespace;
use crate::words::Words;

/// Key: the revision of the instance's last change. Value: `mesh.registry.v1.Instance`.
const RECORDS: TableDefinition<u64, &[u8]> = TableDefinition::new("records");
/// Where format 1 has the instances: by their names.
const INSTANCES_1: TableDefinition<&str, &[u8]> = TableDefinition::new("instances");
/// Key: namespace, protocol, name, version and group with a zero byte between them. Value: the description's JSON (zlib).
const INTERFACES: TableDefinition<&str, &[u8]> = TableDefinition::new("interfaces");
/// Key: the name of a document. Value: the document.
const DOCUMENTS: TableDefinition<&str, &[u8]> = TableDefinition::new("documents");
const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
const REVISION: &str = "revision";
const FORMAT: &str = "format";
const STORE_ID: &str = "store";

/// The format that this version writes.
const CURRENT_FORMAT: u64 = 2;
/// Everything is in memory after the start, so that the database's own cache has little to do.
const CACHE_BYTES: usize = 8 * 1024 * 1024;

/// An open file, or none for a registry that forgets.
pub(crate) enum Store {
    Memory,
    File { database: Database, path: PathBuf },
}

/// What a store held when it was opened.
pub(crate) struct Loaded {
    pub(crate) store: Store,
    /// Drawn when the store was made; tells its revisions from those of another.
    pub(crate) id: u64,
    pub(crate) revision: u64,
    pub(crate) instances: Vec<Arc<Instance>>,
    pub(crate) interfaces: Vec<Interface>,
    pub(crate) documents: Vec<(Arc<str>, Bytes)>,
    pub(crate) words: Words,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Store::Memory => f.write_str("Memory"),
            Store::File { path, .. } => f.debug_tuple("File").field(path).finish(),
        }
    }
}

impl Store {
    pub(crate) fn memory() -> Loaded {
        Loaded {
            store: Store::Memory,
            id: fastrand::u64(1..),
            revision: 0,
            instances: Vec::new(),
            interfaces: Vec::new(),
            documents: Vec::new(),
            words: Words::default(),
        }
    }

    /// Opens or makes the file, and the folder it is in.
    pub(crate) fn open(path: &Path) -> Result<Loaded, OpenError> {
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
        let (id, revision) = prepare(&database, path)?.map_err(failed)?;
        let (instances, words) = load(&database, path)?;
        let interfaces = load_interfaces(&database, path)?;
        let documents = load_documents(&database).map_err(failed)?;
        let path = path.to_owned();
        Ok(Loaded {
            store: Store::File { database, path },
            id,
            revision,
            instances,
            interfaces,
            documents,
            words,
        })
    }

    /// Writes changes; they are on disk when this returns without an error, and not at all with one.
    pub(crate) fn commit(&self, changes: &[Change], revision: u64) -> Result<(), redb::Error> {
        let Store::File { database, .. } = self else {
            return Ok(());
        };
        let Some(first) = changes.first().map(|change| change.revision) else {
            return Ok(());
        };
        let gone: HashSet<u64> = changes.iter().filter_map(replaced).collect();
        let transaction = database.begin_write()?;
        {
            let mut records = transaction.open_table(RECORDS)?;
            for key in gone.iter().filter(|key| **key < first) {
                records.remove(key)?;
            }
            let mut end = records.upper_bound_mut(Bound::<u64>::Unbounded)?;
            let mut record = Vec::new();
            let puts = changes.iter().filter(|c| c.kind == ChangeKind::Put);
            // What came and went within the commit is not written.
            for change in puts.filter(|change| !gone.contains(&change.revision)) {
                record.clear();
                encode_instance(&change.instance, &mut record);
                end.insert_before(change.revision, record.as_slice())?;
            }
            end.close()?;
            transaction.open_table(META)?.insert(REVISION, revision)?;
        }
        transaction.commit()?;
        Ok(())
    }
}

/// The key of the record that a change makes void.
fn replaced(change: &Change) -> Option<u64> {
    match change.kind {
        ChangeKind::Put => Some(change.previous.as_ref()?.revision),
        ChangeKind::Deregistered | ChangeKind::Lapsed => Some(change.instance.revision),
    }
}

impl Store {
    /// Writes descriptions of interfaces; they are on disk when this returns without an error, and not at all with one.
    pub(crate) fn put_interfaces(&self, interfaces: &[Interface]) -> Result<(), redb::Error> {
        let Store::File { database, .. } = self else {
            return Ok(());
        };
        let transaction = database.begin_write()?;
        {
            let mut table = transaction.open_table(INTERFACES)?;
            for interface in interfaces {
                let key = interface_key(&interface.key);
                table.insert(key.as_str(), interface.packed())?;
            }
        }
        transaction.commit()?;
        Ok(())
    }

    /// Takes out the description of an interface.
    pub(crate) fn remove_interface(&self, key: &InterfaceKey) -> Result<(), redb::Error> {
        let Store::File { database, .. } = self else {
            return Ok(());
        };
        let transaction = database.begin_write()?;
        let key = interface_key(key);
        transaction.open_table(INTERFACES)?.remove(key.as_str())?;
        transaction.commit()?;
        Ok(())
    }

    /// Writes a document, or takes it out; that is on disk when this returns without an error.
    pub(crate) fn set_document(&self, name: &str, value: Option<&[u8]>) -> Result<(), redb::Error> {
        let Store::File { database, .. } = self else {
            return Ok(());
        };
        let transaction = database.begin_write()?;
        {
            let mut table = transaction.open_table(DOCUMENTS)?;
            match value {
                Some(value) => table.insert(name, value)?,
                None => table.remove(name)?,
            };
        }
        transaction.commit()?;
        Ok(())
    }
}

fn load_documents(database: &Database) -> Result<Vec<(Arc<str>, Bytes)>, redb::Error> {
    let transaction = database.begin_read()?;
    let mut documents = Vec::new();
    for entry in transaction.open_table(DOCUMENTS)?.iter()? {
        let (name, value) = entry?;
        documents.push((name.value().into(), Bytes::copy_from_slice(value.value())));
    }
    Ok(documents)
}

/// The key of a description's record.
pub(crate) fn interface_key(key: &InterfaceKey) -> String {
    let ServiceKey {
        namespace,
        protocol,
        name,
    } = &key.service;
    [namespace.as_str(), protocol, name, &key.version, &key.group].join("\0")
}

fn load_interfaces(database: &Database, path: &Path) -> Result<Vec<Interface>, OpenError> {
    let failed = |source: redb::Error| OpenError::Database {
        path: path.display().to_string(),
        source: Box::new(source),
    };
    let transaction = database.begin_read().map_err(|e| failed(e.into()))?;
    let table = transaction
        .open_table(INTERFACES)
        .map_err(|e| failed(e.into()))?;
    let limit = Limits::default().body_bytes;
    let mut interfaces = Vec::new();
    for entry in table.iter().map_err(|e| failed(e.into()))? {
        let (key, value) = entry.map_err(|e| failed(e.into()))?;
        let key = key.value();
        let interface = match InterfaceKey::from_words(key, '\0') {
            Some(named) => Interface::unpack(named, value.value(), limit),
            None => Err("the key names no interface".to_owned()),
        };
        interfaces.push(interface.map_err(|message| OpenError::Record {
            path: path.display().to_string(),
            key: key.replace('\0', " "),
            message,
        })?);
    }
    Ok(interfaces)
}

/// Makes the tables, and reads the store's id and revision.
fn prepare(database: &Database, path: &Path) -> Result<Result<(u64, u64), redb::Error>, OpenError> {
    let read = || -> Result<(u64, u64, u64), redb::Error> {
        let transaction = database.begin_write()?;
        let found = {
            transaction.open_table(RECORDS)?;
            transaction.open_table(INTERFACES)?;
            transaction.open_table(DOCUMENTS)?;
            let mut meta = transaction.open_table(META)?;
            let stored = meta.get(FORMAT)?.map(|format| format.value());
            let format = match stored {
                Some(1) => {
                    upgrade(&transaction)?;
                    meta.insert(FORMAT, CURRENT_FORMAT)?;
                    CURRENT_FORMAT
                }
                Some(format) => format,
                None => {
                    meta.insert(FORMAT, CURRENT_FORMAT)?;
                    meta.insert(STORE_ID, fastrand::u64(1..))?;
                    meta.insert(REVISION, 0)?;
                    CURRENT_FORMAT
                }
            };
            let number =
                |key| -> Result<u64, redb::Error> { Ok(meta.get(key)?.map_or(0, |n| n.value())) };
            (format, number(STORE_ID)?, number(REVISION)?)
        };
        transaction.commit()?;
        Ok(found)
    };
    match read() {
        Err(error) => Ok(Err(error)),
        Ok((found, _, _)) if found > CURRENT_FORMAT => Err(OpenError::Format {
            path: path.display().to_string(),
            found,
            known: CURRENT_FORMAT,
        }),
        Ok((_, id, revision)) => Ok(Ok((id, revision))),
    }
}

/// Brings the instances of format 1 under their revisions.
fn upgrade(transaction: &WriteTransaction) -> Result<(), redb::Error> {
    {
        let instances = transaction.open_table(INSTANCES_1)?;
        let mut records = transaction.open_table(RECORDS)?;
        for entry in instances.iter()? {
            let (key, value) = entry?;
            let broken = |e| redb::Error::Corrupted(format!("record {:?}: {e}", key.value()));
            let message = pb::Instance::decode(value.value()).map_err(broken)?;
            records.insert(message.revision, value.value())?;
        }
    }
    transaction.delete_table(INSTANCES_1)?;
    Ok(())
}

fn load(database: &Database, path: &Path) -> Result<(Vec<Arc<Instance>>, Words), OpenError> {
    let failed = |source: redb::Error| OpenError::Database {
        path: path.display().to_string(),
        source: Box::new(source),
    };
    let broken = |key: u64, message: String| OpenError::Record {
        path: path.display().to_string(),
        key: key.to_string(),
        message,
    };
    let transaction = database.begin_read().map_err(|e| failed(e.into()))?;
    let table = transaction
        .open_table(RECORDS)
        .map_err(|e| failed(e.into()))?;
    let (mut instances, mut words) = (Vec::new(), Words::default());
    for entry in table.iter().map_err(|e| failed(e.into()))? {
        let (key, value) = entry.map_err(|e| failed(e.into()))?;
        let message =
            pb::Instance::decode(value.value()).map_err(|e| broken(key.value(), e.to_string()))?;
        let mut instance =
            instance_from(message).map_err(|e| broken(key.value(), e.to_string()))?;
        words.share(&mut instance);
        instances.push(Arc::new(instance));
    }
    Ok((instances, words))
}

/// An instance's name with a zero byte between its words: namespace unless it is the default one, protocol, name and id.
pub(crate) fn key_of(reference: &InstanceRef) -> String {
    let InstanceRef { service, id } = reference;
    let key = [&service.protocol, "\0", &service.name, "\0", id].concat();
    match service.namespace.is_default() {
        true => key,
        false => [service.namespace.as_str(), "\0", &key].concat(),
    }
}

/// The instance that such a name is of.
pub(crate) fn reference_of(key: &str) -> Option<InstanceRef> {
    let parts: Vec<&str> = key.split('\0').collect();
    match parts.as_slice() {
        [protocol, name, id] => Some(InstanceRef::new(protocol, name, id)),
        [namespace, protocol, name, id] => Some(InstanceRef {
            service: ServiceKey::within(Namespace::new(namespace), protocol, name),
            id: (*id).into(),
        }),
        _ => None,
    }
}
