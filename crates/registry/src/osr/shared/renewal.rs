//! Which leases have to be renewed so that some instances stay and no others.

use std::collections::{HashMap, HashSet};

use futures_util::{StreamExt, TryStreamExt, stream};

use super::Shared;
use super::writes::{self, Put};
use crate::adapters::etcd::client::{Client, Failure};
use crate::model::InstanceRef;

/// Requests of one call at a time.
const REQUESTS: usize = 16;

/// Leases to keep alive, with the instances below them, and instances that get a lease of their own.
#[derive(Default)]
pub(super) struct Renewal {
    keep: Vec<(i64, Vec<InstanceRef>)>,
    moves: Vec<(Put, i64)>,
}

impl Shared {
    /// What has to be done to renew these and no others. What a session holds is renewed with it and not here.
    pub(super) fn renewal(&self, references: &[InstanceRef]) -> Renewal {
        let mut named: HashMap<i64, Vec<InstanceRef>> = HashMap::new();
        let distinct: HashSet<&InstanceRef> = references.iter().collect();
        for reference in distinct {
            if let Some(below) = self.below.get(reference)
                && below.lease != 0
                && !self.held.contains_key(&below.lease)
            {
                let of_lease = named.entry(below.lease).or_default();
                of_lease.push(reference.clone());
            }
        }
        let mut renewal = Renewal::default();
        for (lease, references) in named {
            let members = self.members.get(&lease).copied().unwrap_or_default();
            if references.len() >= members {
                renewal.keep.push((lease, references));
                continue;
            }
            // The others below this lease were not named: these get one of their own.
            for reference in references {
                let instance = self.state.services().instance(&reference);
                let below = self.below.get(&reference);
                if let (Some(instance), Some(below)) = (instance, below) {
                    let put = Put::new(&self.keys, instance);
                    renewal.moves.push((put, below.revision));
                }
            }
        }
        renewal
    }
}

impl Renewal {
    /// Does it, and tells which instances' leases are over.
    pub(super) async fn carry_out(self, client: &Client) -> Result<Vec<InstanceRef>, Failure> {
        let asked = self.keep.into_iter().map(|(lease, references)| async move {
            let kept = client.keep_alive(lease).await?;
            Ok::<_, Failure>(if kept { Vec::new() } else { references })
        });
        let asked: Vec<_> = asked.collect();
        let over = stream::iter(asked).buffer_unordered(REQUESTS);
        let over: Vec<InstanceRef> = over.try_concat().await?;
        writes::move_all(client, self.moves).await?;
        Ok(over)
    }
}
