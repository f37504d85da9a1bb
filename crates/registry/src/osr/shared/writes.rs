//! What is written to etcd: as many steps as fit into one transaction at a time.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use prost::Message;

use super::keys::{Key, Keys};
use crate::adapters::etcd::client::{Client, Failure};
use crate::adapters::etcd::messages::{
    Compare, DeleteRangeRequest, Op, PutRequest, RequestOp, TxnRequest,
};
use crate::convert::instance_to;
use crate::interfaces::Interface;
use crate::model::{Instance, InstanceRef};
use crate::source::Trouble;

/// Steps of one transaction; servers take 128 unless they are told otherwise.
const STEPS: usize = 100;
/// Bytes of one transaction; servers take 1.5 MiB unless they are told otherwise.
const STEP_BYTES: usize = 1 << 20;

/// Something that has to be written.
#[derive(Clone, Debug)]
pub(super) struct Put {
    key: Vec<u8>,
    value: Vec<u8>,
    ttl: Option<Duration>,
}

impl Put {
    pub(super) fn new(keys: &Keys, instance: &Instance) -> Put {
        Put {
            key: keys.name(&Key::Instance(instance.reference())),
            value: instance_to(instance).encode_to_vec(),
            ttl: instance.ttl,
        }
    }

    pub(super) fn interface(keys: &Keys, interface: &Interface) -> Put {
        Put {
            key: keys.name(&Key::Interface(interface.key.clone())),
            value: interface.packed().to_vec(),
            ttl: None,
        }
    }

    pub(super) fn document(keys: &Keys, name: &Arc<str>, value: &[u8]) -> Put {
        Put {
            key: keys.name(&Key::Document(name.clone())),
            value: value.to_vec(),
            ttl: None,
        }
    }

    pub(super) fn below(self, lease: i64) -> PutRequest {
        PutRequest {
            key: self.key,
            value: self.value,
            lease,
        }
    }
}

/// Grants a lease of whole seconds, as the servers count them.
pub(super) async fn grant(client: &Client, ttl: Duration) -> Result<i64, Failure> {
    client.grant(Duration::from_secs(seconds(ttl))).await
}

fn seconds(ttl: Duration) -> u64 {
    ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0)
}

/// Grants a lease for each length that is needed: what one call registers has one lease a length.
struct Grants<'a> {
    client: &'a Client,
    granted: HashMap<u64, i64>,
}

impl Grants<'_> {
    async fn lease(&mut self, ttl: Option<Duration>) -> Result<i64, Failure> {
        let Some(ttl) = ttl else { return Ok(0) };
        if let Some(lease) = self.granted.get(&seconds(ttl)) {
            return Ok(*lease);
        }
        let lease = grant(self.client, ttl).await?;
        self.granted.insert(seconds(ttl), lease);
        Ok(lease)
    }
}

/// Writes below new leases; tells the last transaction's revision.
pub(super) async fn put_all(client: &Client, puts: Vec<Put>) -> Result<i64, Failure> {
    let granted = HashMap::new();
    let mut grants = Grants { client, granted };
    let mut revision = 0;
    for puts in in_transactions(puts) {
        let mut steps = Vec::with_capacity(puts.len());
        for put in puts {
            let lease = grants.lease(put.ttl).await?;
            steps.push(Op::Put(put.below(lease)));
        }
        revision = transact(client, Vec::new(), steps)
            .await?
            .ok_or_else(|| Failure::new(Trouble::Protocol, "a transaction was not done"))?;
    }
    Ok(revision)
}

/// Writes below a lease, as long as the lease's session is there; `None`: it is not (any more).
pub(super) async fn put_in(
    client: &Client,
    puts: Vec<Put>,
    lease: i64,
    session: (Vec<u8>, i64),
) -> Result<Option<i64>, Failure> {
    let mut revision = 0;
    for puts in in_transactions(puts) {
        let steps = puts.into_iter().map(|put| Op::Put(put.below(lease)));
        let (key, at) = session.clone();
        match transact(client, vec![Compare::is_at(key, at)], steps.collect()).await {
            Ok(Some(done)) => revision = done,
            Ok(None) => return Ok(None),
            Err(failure) if failure.is_gone => return Ok(None),
            Err(failure) => return Err(failure),
        }
    }
    Ok(Some(revision))
}

fn in_transactions(puts: Vec<Put>) -> Vec<Vec<Put>> {
    let mut all = Vec::new();
    let (mut one, mut bytes) = (Vec::new(), 0);
    for put in puts {
        let size = put.key.len() + put.value.len();
        if one.len() == STEPS || bytes + size > STEP_BYTES && !one.is_empty() {
            all.push(std::mem::take(&mut one));
            bytes = 0;
        }
        bytes += size;
        one.push(put);
    }
    if !one.is_empty() {
        all.push(one);
    }
    all
}

/// Writes again below new leases, each only if it is still as it was.
pub(super) async fn move_all(client: &Client, moves: Vec<(Put, i64)>) -> Result<(), Failure> {
    let granted = HashMap::new();
    let mut grants = Grants { client, granted };
    for (put, revision) in moves {
        let lease = grants.lease(put.ttl).await?;
        // One who changed it meanwhile has given it a new lease, too.
        client.put_at(put.below(lease), revision).await?;
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
                key: keys.name(&Key::Instance(reference.clone())),
            })
        });
        let steps = std::iter::once(Op::Put(mark)).chain(deletes).collect();
        revision = transact(client, Vec::new(), steps).await?.unwrap_or(0);
    }
    Ok(revision)
}

/// Takes a key out, if it has this revision where one is given; `None`: it has not.
pub(super) async fn delete(
    client: &Client,
    key: Vec<u8>,
    at: Option<i64>,
) -> Result<Option<i64>, Failure> {
    let compare = at.map(|at| Compare::is_at(key.clone(), at));
    let delete = Op::Delete(DeleteRangeRequest { key });
    transact(client, compare.into_iter().collect(), vec![delete]).await
}

async fn transact(
    client: &Client,
    compare: Vec<Compare>,
    steps: Vec<Op>,
) -> Result<Option<i64>, Failure> {
    let steps = steps.into_iter().map(|op| RequestOp { op: Some(op) });
    let request = TxnRequest {
        compare,
        success: steps.collect(),
    };
    client.transact(request).await
}
