//! A key of etcd below a lease of its own: whoever wrote it leads as long as the lease is renewed, and the key goes with it.

use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::{fenced, identity, rest, tell};
use crate::adapters::etcd::client::{Client, Failure};
use crate::adapters::etcd::messages::{PutRequest, RangeRequest};
use crate::osr::EtcdStore;
use crate::sync::Role;

/// How long the key stays without its holder.
const LEASE: Duration = Duration::from_secs(15);
/// A leader stops when it began its last successful renewal so long ago: less than the lease, because clocks differ in speed
/// and a stop takes time.
const RENEWED_WITHIN: Duration = Duration::from_secs(10);
/// Between two looks.
const RETRY: Duration = Duration::from_secs(2);

/// What is held while this process leads.
#[derive(Clone, Copy)]
struct Held {
    lease: i64,
    until: Instant,
}

struct Candidate {
    store: EtcdStore,
    key: String,
    identity: String,
    client: Option<Client>,
    held: Option<Held>,
}

/// Looks at the key again and again, and keeps it as long as it is this process's.
pub(super) async fn run(store: EtcdStore, role: watch::Sender<Role>) {
    let mut candidate = Candidate {
        key: format!("{}/leader", store.prefix),
        store,
        identity: identity(),
        client: None,
        held: None,
    };
    let mut next = 0;
    while !role.is_closed() {
        let until = candidate.held.map(|held| held.until);
        match fenced(candidate.round(next), until, &role).await {
            Ok(None) => tell(&role, Role::Leader, "holds the key in etcd"),
            Ok(Some(holder)) => tell(&role, Role::Follower, &format!("{holder} does")),
            Err(failure) => {
                candidate.client = None;
                next += 1;
                // Until then nobody else can have got the key.
                if !candidate.leads(Instant::now()) {
                    tell(&role, Role::Unknown, &failure.reason);
                }
            }
        }
        // Candidates that start together do not stay together.
        let pause = RETRY.mul_f64(0.8 + fastrand::f64() * 0.4);
        let until = candidate.held.map(|held| held.until);
        fenced(rest(pause, &role), until, &role).await;
    }
    if let (Some(client), Some(held)) = (candidate.client, candidate.held) {
        // Others need not wait for the lease to end.
        let _ = client.revoke(held.lease).await;
    }
}

impl Candidate {
    fn leads(&self, now: Instant) -> bool {
        self.held.is_some_and(|held| now < held.until)
    }

    /// Renews the lease, or asks for the key; who else holds it.
    async fn round(&mut self, number: usize) -> Result<Option<String>, Failure> {
        let client = match &self.client {
            Some(client) => client,
            None => {
                let connected = self.store.connect(number).await?;
                self.client.insert(connected)
            }
        };
        let began = Instant::now();
        if let Some(held) = &mut self.held {
            if client.keep_alive(held.lease).await?
                && holder(client, &self.key).await?.as_ref() == Some(&self.identity)
            {
                held.until = began + RENEWED_WITHIN;
                return Ok(None);
            }
            // The lease is over, or the servers have lost their data.
            self.held = None;
        }
        if let Some(holder) = holder(client, &self.key).await? {
            return Ok(Some(holder));
        }
        let lease = client.grant(LEASE).await?;
        let put = PutRequest {
            key: self.key.clone().into_bytes(),
            value: self.identity.clone().into_bytes(),
            lease,
        };
        if client.put_at(put, 0).await?.is_some() {
            let until = began + RENEWED_WITHIN;
            self.held = Some(Held { lease, until });
            return Ok(None);
        }
        // Somebody was quicker.
        client.revoke(lease).await?;
        let holder = holder(client, &self.key).await?;
        Ok(Some(holder.unwrap_or_default()))
    }
}

/// Who has the key.
async fn holder(client: &Client, key: &str) -> Result<Option<String>, Failure> {
    let request = RangeRequest {
        key: key.as_bytes().to_vec(),
        ..RangeRequest::default()
    };
    let answer = client.range(request).await?;
    let value = answer
        .kvs
        .first()
        .map(|kv| String::from_utf8_lossy(&kv.value));
    Ok(value.map(|value| value.into_owned()))
}
