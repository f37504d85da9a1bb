//! What a shared registry writes to etcd, below its prefix: `store`, the name of the data; `instances/…`, one
//! `mesh.registry.v1.Instance` a key, below the lease of whoever registered it; and `deregistered`, which is put in every
//! transaction that takes instances out on request, so that whoever watches tells that from the end of a lease.

use std::collections::HashMap;
use std::time::Duration;

use api::mesh::registry::v1 as pb;
use prost::Message;

use super::shared::EtcdStore;
use crate::adapters::etcd::client::{Client, Failure};
use crate::adapters::etcd::messages::{
    Compare, DeleteRangeRequest, MOD, Op, PutRequest, RangeRequest, RequestOp, Target, TxnRequest,
};
use crate::convert::{instance_from, instance_to};
use crate::limits::Limits;
use crate::model::{Instance, InstanceRef};
use crate::source::Trouble;
use crate::store::{key_of, reference_of};

/// Keys of one answer.
const PAGE: i64 = 2000;
/// Steps of one transaction; servers take 128 unless they are told otherwise.
const STEPS: usize = 100;
/// Bytes of one transaction; servers take 1.5 MiB unless they are told otherwise.
const STEP_BYTES: usize = 1 << 20;

/// The names of keys.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    prefix: String,
}

impl Keys {
    pub(super) fn new(store: &EtcdStore) -> Keys {
        Keys {
            prefix: store.prefix.clone(),
        }
    }

    pub(super) fn instance(&self, reference: &InstanceRef) -> Vec<u8> {
        format!("{}/instances/{}", self.prefix, key_of(reference)).into_bytes()
    }

    /// The instance that a key is of.
    pub(super) fn reference(&self, key: &[u8]) -> Option<InstanceRef> {
        let key = std::str::from_utf8(key).ok()?;
        let key = key
            .strip_prefix(&self.prefix)?
            .strip_prefix("/instances/")?;
        reference_of(key)
    }

    fn store(&self) -> Vec<u8> {
        format!("{}/store", self.prefix).into_bytes()
    }

    pub(super) fn deregistered(&self) -> Vec<u8> {
        format!("{}/deregistered", self.prefix).into_bytes()
    }

    /// All keys, as a range.
    pub(super) fn all(&self) -> (Vec<u8>, Vec<u8>) {
        // 0 is the character after the slash.
        (
            format!("{}/", self.prefix).into_bytes(),
            format!("{}0", self.prefix).into_bytes(),
        )
    }
}

/// An instance as etcd has it.
#[derive(Clone, Debug)]
pub(super) struct Record {
    pub(super) instance: Instance,
    /// Its lease; 0 for none.
    pub(super) lease: i64,
    /// The revision of its key.
    pub(super) revision: i64,
}

/// Reads a record; an error says what is wrong with it.
pub(super) fn record(
    reference: &InstanceRef,
    value: &[u8],
    (lease, revision): (i64, i64),
    limits: &Limits,
) -> Result<Record, String> {
    let message = pb::Instance::decode(value).map_err(|e| e.to_string())?;
    let mut instance = instance_from(message).map_err(|e| e.to_string())?;
    if instance.reference() != *reference {
        return Err(format!("is the record of {:?}", instance.reference()));
    }
    limits.check(&instance).map_err(|e| e.to_string())?;
    instance.revision = self::revision(revision, 0);
    Ok(Record {
        instance,
        lease,
        revision,
    })
}

/// The registry's revision after a step of etcd's: its changes come one by one.
pub(super) fn revision(of_store: i64, step: u64) -> u64 {
    const STEPS_MAX: u64 = 1024;
    u64::try_from(of_store).unwrap_or_default() * STEPS_MAX + step.min(STEPS_MAX - 1)
}

/// Everything at one moment.
pub(super) struct Picture {
    /// Names the data: another one when the servers have lost it.
    pub(super) store: String,
    pub(super) revision: i64,
    pub(super) records: HashMap<InstanceRef, Record>,
}

fn new_name(keys: &Keys) -> PutRequest {
    PutRequest {
        key: keys.store(),
        value: format!("{:016x}", fastrand::u64(1..)).into_bytes(),
        lease: 0,
    }
}

/// Gives the data another name.
pub(super) async fn rename(client: &Client, keys: &Keys) -> Result<(), Failure> {
    client.put(new_name(keys)).await
}

/// The name of the data, with that of the servers, and their revision; the data get a name here if they have none.
pub(super) async fn name(client: &Client, keys: &Keys) -> Result<(String, i64), Failure> {
    client.transact(only_at(new_name(keys), 0)).await?;
    let request = RangeRequest {
        key: keys.store(),
        ..RangeRequest::default()
    };
    let answer = client.range(request).await?;
    let header = answer.header.unwrap_or_default();
    let named = answer.kvs.first();
    let named = named.map(|kv| String::from_utf8_lossy(&kv.value));
    let name = format!("{:016x}-{}", header.cluster_id, named.unwrap_or_default());
    Ok((name, header.revision))
}

/// Reads everything.
pub(super) async fn read(
    client: &Client,
    keys: &Keys,
    limits: &Limits,
) -> Result<Picture, Failure> {
    let mut picture = Picture {
        store: name(client, keys).await?.0,
        revision: 0,
        records: HashMap::new(),
    };
    let (mut key, range_end) = keys.all();
    loop {
        let request = RangeRequest {
            key,
            range_end: range_end.clone(),
            limit: PAGE,
            // All pages are of one moment.
            revision: picture.revision,
            keys_only: false,
        };
        let page = client.range(request).await?;
        if picture.revision == 0 {
            picture.revision = page.header.map_or(0, |header| header.revision);
        }
        for kv in &page.kvs {
            let Some(reference) = keys.reference(&kv.key) else {
                continue;
            };
            match record(&reference, &kv.value, (kv.lease, kv.mod_revision), limits) {
                Ok(record) => drop(picture.records.insert(reference, record)),
                Err(reason) => tracing::warn!(?reference, reason, "a record in etcd is skipped"),
            }
        }
        match page.kvs.last() {
            Some(last) if page.more => {
                key = last.key.clone();
                key.push(0);
            }
            _ => return Ok(picture),
        }
    }
}

/// A put that is only done while its key has this revision; 0: while it is not there.
fn only_at(put: PutRequest, revision: i64) -> TxnRequest {
    TxnRequest {
        compare: vec![Compare {
            target: MOD,
            key: put.key.clone(),
            union: Some(Target::ModRevision(revision)),
        }],
        success: vec![RequestOp {
            op: Some(Op::Put(put)),
        }],
    }
}

/// An instance that has to be written.
#[derive(Clone, Debug)]
pub(super) struct Put {
    key: Vec<u8>,
    value: Vec<u8>,
    ttl: Option<Duration>,
}

impl Put {
    pub(super) fn new(keys: &Keys, instance: &Instance) -> Put {
        Put {
            key: keys.instance(&instance.reference()),
            value: instance_to(instance).encode_to_vec(),
            ttl: instance.ttl,
        }
    }
}

/// Grants a lease for each length that is needed: what one call registers has one lease a length.
struct Grants<'a> {
    client: &'a Client,
    granted: HashMap<u64, i64>,
}

impl Grants<'_> {
    async fn lease(&mut self, ttl: Option<Duration>) -> Result<i64, Failure> {
        let Some(ttl) = ttl else { return Ok(0) };
        // The servers count whole seconds.
        let seconds = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
        if let Some(lease) = self.granted.get(&seconds) {
            return Ok(*lease);
        }
        let lease = self.client.grant(Duration::from_secs(seconds)).await?;
        self.granted.insert(seconds, lease);
        Ok(lease)
    }
}

/// Writes instances below new leases, as many as fit into one transaction at a time; tells the last one's revision.
pub(super) async fn put_all(client: &Client, puts: Vec<Put>) -> Result<i64, Failure> {
    let granted = HashMap::new();
    let mut grants = Grants { client, granted };
    let mut revision = 0;
    let (mut steps, mut bytes) = (Vec::new(), 0);
    for put in puts {
        let size = put.key.len() + put.value.len();
        if steps.len() == STEPS || bytes + size > STEP_BYTES {
            revision = transact(client, std::mem::take(&mut steps)).await?;
            bytes = 0;
        }
        bytes += size;
        let lease = grants.lease(put.ttl).await?;
        let put = PutRequest {
            key: put.key,
            value: put.value,
            lease,
        };
        steps.push(RequestOp {
            op: Some(Op::Put(put)),
        });
    }
    if !steps.is_empty() {
        revision = transact(client, steps).await?;
    }
    Ok(revision)
}

/// Writes instances again below new leases, each only if it is still as it was.
pub(super) async fn move_all(client: &Client, moves: Vec<(Put, i64)>) -> Result<(), Failure> {
    let granted = HashMap::new();
    let mut grants = Grants { client, granted };
    for (put, revision) in moves {
        let lease = grants.lease(put.ttl).await?;
        let put = PutRequest {
            key: put.key,
            value: put.value,
            lease,
        };
        // One who changed it meanwhile has given it a new lease, too.
        client.transact(only_at(put, revision)).await?;
    }
    Ok(())
}

/// Takes instances out, and says that it was on request.
pub(super) async fn delete_all(
    client: &Client,
    keys: &Keys,
    references: &[InstanceRef],
) -> Result<i64, Failure> {
    let mut revision = 0;
    for references in references.chunks(STEPS - 1) {
        let mark = PutRequest {
            key: keys.deregistered(),
            value: Vec::new(),
            lease: 0,
        };
        let deletes = references.iter().map(|reference| {
            Op::Delete(DeleteRangeRequest {
                key: keys.instance(reference),
            })
        });
        let steps = std::iter::once(Op::Put(mark)).chain(deletes);
        let steps = steps.map(|op| RequestOp { op: Some(op) });
        revision = transact(client, steps.collect()).await?;
    }
    Ok(revision)
}

async fn transact(client: &Client, success: Vec<RequestOp>) -> Result<i64, Failure> {
    let request = TxnRequest {
        compare: Vec::new(),
        success,
    };
    let done = client.transact(request).await?;
    done.ok_or_else(|| Failure::new(Trouble::Protocol, "a transaction was not done"))
}
